"""Every error that refold raises on purpose, under three branches: try again, never, your bug.

RefoldError
├── TryAgain                    the same call may succeed later
│   ├── BrokerUnavailable           the log cannot be reached
│   │   ├── LogLocked                   another process holds the log's write lock (`pid` where known)
│   │   └── LogFull                     no space for the append; nothing of it was written
│   ├── Overloaded                  the sender's own queue is full
│   ├── PartitionLost               this worker no longer owns the partition
│   ├── HandlerTimeout              a handler ran longer than its `timeout`
│   └── RequestTimeout              no answer yet; the request stays in the log
│       ├── AgentUnavailable            its agent is known, but no worker hosts it now
│       └── NoSuchAgent                 no worker has ever announced such an agent
├── Never                       the same call will always fail
│   ├── InvalidMessage              refused before it reached the log (`path`, `problem`, `remedy`)
│   │   └── TooLarge
│   ├── UndecodableRecord           bytes in the log that are no record
│   ├── NotAllowed                  the policy forbids it
│   ├── ConfigError                 settings that cannot work, all at once
│   │   ├── UnknownBroker               no adapter for this URL
│   │   ├── LogMissing                  there is no log here
│   │   ├── LogMismatch                 the log is not what the caller needs
│   │   ├── LogCorrupt                  the file is damaged or not a refold log
│   │   ├── RulesTooNew                 written under rules that this release does not know
│   │   ├── ServerMissing               a server cannot be started here (its text says what to install)
│   │   └── GroupConflict               the group's live members host other agents
│   ├── LogTruncated                the log lost records that had been folded
│   ├── WorkflowExists              the id belongs to a workflow that was started otherwise
│   ├── NoSuchWorkflow
│   ├── VerbRefused                 a control verb that breaks the workflow's rules
│   ├── PoisonMessage               a message whose handling keeps ending its process
│   └── Failure                     terminal inside a handler: it ends the handling without retries
│       ├── AgentError                  the callee answered with an error_report, or was given up
│       │   └── RequestExpired              its deadline passed
│       ├── EffectFailed                an effect failed for good
│       ├── WaitExpired                 a `receive` reached its deadline
│       ├── SchemaError                 a payload does not fit the handler's type
│       └── Refuse                      raised by a handler: "I will never do this"
└── YourBug                     the program must change
    ├── HandlerError                a handler that cannot be registered
    ├── NeedsAsyncHandler           a step called from a `def` handler
    ├── UnawaitedStep               a step that was made and never awaited
    ├── NoKeyYet                    an idempotency key that was used before its effect was called
    ├── ForeignTask                 the context used from a task that it did not start
    ├── StepCancelled               an `asyncio` time limit around a step; use `timeout=`
    └── Divergence                  a rerun asked for something else than was recorded
"""

from __future__ import annotations


class RefoldError(Exception):
    """Base of all errors of refold."""


class TryAgain(RefoldError):
    """The same call may succeed later."""


class BrokerUnavailable(TryAgain):
    """The log cannot be reached now."""


class LogLocked(BrokerUnavailable):
    """Another process held the log's write lock for too long."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class LogFull(BrokerUnavailable):
    """There is no space for the append; nothing of it was written."""


class Overloaded(TryAgain):
    """The sender's own queue is full."""


class PartitionLost(TryAgain):
    """This worker no longer owns the partition; its owner goes on with the work."""


class HandlerTimeout(TryAgain):
    """A handler's running time (waiting is not counted) exceeded its `timeout`."""


class RequestTimeout(TryAgain):
    """No answer within the caller's waiting time; the request stays in the log and may still be answered.

    `correlation_id` is the workflow to attach to; `request_id` the request.
    """

    def __init__(self, message: str, *, correlation_id: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.correlation_id = correlation_id
        self.request_id = request_id


class AgentUnavailable(RequestTimeout):
    """The agent is known, but no worker hosts it now."""


class NoSuchAgent(RequestTimeout):
    """No worker has ever announced an agent of that name."""


class Never(RefoldError):
    """The same call will always fail."""


class InvalidMessage(Never):
    """Refused before it reached the log: what is wrong (`problem`), where (`path`, a JSON path), what to do."""

    def __init__(self, problem: str, *, path: str = "$", remedy: str = "") -> None:
        super().__init__(f"{path}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.problem = problem
        self.path = path
        self.remedy = remedy


class TooLarge(InvalidMessage):
    """A record over `max_record`, or an append over `max_append` (bytes)."""


class UndecodableRecord(Never):
    """Bytes in the log that are no record: counted, shown, skipped."""


class NotAllowed(Never):
    """The policy forbids it."""


class ConfigError(Never):
    """Settings that cannot work; the text lists all that is wrong."""


class UnknownBroker(ConfigError):
    """No adapter is installed for this URL."""


class LogMissing(ConfigError):
    """There is no log here, and the call may not create one."""


class LogMismatch(ConfigError):
    """The log exists and is not what the caller needs."""


class LogCorrupt(ConfigError):
    """The file is damaged, or is not a log of refold."""


class RulesTooNew(ConfigError):
    """The log was written under rules that this release does not know: upgrade refold."""


class ServerMissing(ConfigError):
    """A broker's server cannot be started on this machine; the text says what to install."""


class GroupConflict(ConfigError):
    """The live members of the group host other agents: choose another `--group`."""


class LogTruncated(Never):
    """The log no longer holds what had been folded (truncated, restored or recreated)."""


class WorkflowExists(Never):
    """The workflow id is taken by a start with another kind, receiver or payload."""


class NoSuchWorkflow(Never):
    """The log holds no record of that workflow."""


class VerbRefused(Never):
    """A control verb that breaks the workflow's rules; the text says which rule."""


class PoisonMessage(Never):
    """The handling of this message, alone in its process, ended the process again and again."""


class Failure(Never):
    """Terminal inside a handler: escaping, it ends the handling at once with an `error_report`.

    `step` is the path of the step that failed, "" where no step did.
    """

    step: str = ""


class AgentError(Failure):
    """The callee answered with an `error_report`, or the request was given up (`kind` is that record's kind)."""

    def __init__(self, message: str, *, agent: str = "", error: str = "", kind: str = "error_report") -> None:
        super().__init__(message)
        self.agent = agent
        self.error = error
        self.kind = kind


class RequestExpired(AgentError):
    """The request's deadline passed before its answer."""


class EffectFailed(Failure):
    """An effect failed for good (`error` is the class name of what it raised)."""

    def __init__(self, message: str, *, name: str = "", error: str = "") -> None:
        super().__init__(message)
        self.name = name
        self.error = error


class WaitExpired(Failure, TimeoutError):
    """A `ctx.receive` reached its deadline."""


class SchemaError(Failure):
    """A payload does not fit the type that the handler asks for."""


class Refuse(Failure):
    """Raise it in a handler to end the handling at once: its asker gets an `error_report`, nothing is retried."""


class YourBug(RefoldError):
    """The program must change; the text says where."""


class HandlerError(YourBug):
    """A handler that cannot be registered: its signature, its kind or its name."""


class NeedsAsyncHandler(YourBug):
    """A step was called from a `def` handler, which cannot wait."""


class UnawaitedStep(YourBug):
    """A step was made and never awaited."""


class NoKeyYet(YourBug):
    """An idempotency key was made part of a text before its effect was called."""


class ForeignTask(YourBug):
    """The context was used from a task that it did not start: use `ctx.gather`."""


class StepCancelled(YourBug):
    """A step was cancelled by something that is not refold (`asyncio.timeout`): use the step's `timeout=`."""


class Divergence(YourBug):
    """A rerun of a handler asked for something else than its first run recorded."""
