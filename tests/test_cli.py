"""The command line, as processes: a worker of `refold run`, and commands that look at its log and say verbs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from refold.cli import app as commands, exits, main

APP = '''
import asyncio, logging, sys
from refold import Agent, Context, RetryPolicy

log = logging.getLogger("mine")
twice = RetryPolicy(attempts=2, initial=0.01, jitter=0)
clerk, flaky, plain = Agent("clerk"), Agent("flaky", retry=twice), Agent("plain", retry=RetryPolicy(attempts=1))

@clerk.on_task
async def count(ctx: Context, words: list[str]) -> dict[str, int]:
    """Count letters, one recorded call a word; the state keeps the sum."""
    lengths = [await ctx.effect("measure", len, word) for word in words]
    ctx.update({"letters": sum(lengths)})
    log.info("counted %d", sum(lengths))
    return dict(zip(words, lengths))

@clerk.on("hello")
async def hello(ctx: Context, name: str) -> None:
    await ctx.receive("bye")

@flaky.on_task
async def fail_once(ctx: Context, message: str) -> str:
    log.warning("trying %s", message)
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return "done"

@plain.on_task
def refuse(facts, reason):
    log.info("in a thread")
    raise RuntimeError(reason)

@plain.on("note")
def note(facts, payload):
    raise RuntimeError("cannot note this")
'''


class Done(NamedTuple):
    """A command that has ended."""

    code: Any
    stdout: str
    stderr: str


class Shell:
    """A folder with an app and a log; commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        (folder / "app.py").write_text(APP)

    def start(self, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
        n = len(self.started)
        with (self.folder / f"out{n}").open("w") as out, (self.folder / f"err{n}").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "refold.cli", *arguments], cwd=self.folder, env=environment(), stdout=out,
                stderr=err, text=True, **settings,
            )  # fmt: skip
        self.started.append(process)
        return process

    def printed(self, n: int = 0, stream: str = "out") -> str:
        return (self.folder / f"{stream}{n}").read_text()

    def call(self, *arguments: str, code: int = 0, stdin: str = "") -> Done:
        """Run a command in this process, as in this folder."""
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        with (
            pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder), contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):  # fmt: skip
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            patch.setattr(sys, "path", list(sys.path))
            patch.delenv("REFOLD_BROKER", raising=False)
            with pytest.raises(SystemExit) as ended:
                main(list(arguments))
        done = Done(ended.value.code, *(stream.buffer.getvalue().decode() for stream in (out, err)))
        assert done.code == code, done
        assert "Traceback" not in done.stderr
        return done

    def process(self, *arguments: str, **settings: Any) -> Done:
        """Run a command as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "refold.cli", *arguments], cwd=self.folder, text=True, timeout=60, check=False,
            **{"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.call(*arguments, "--json", code=code).stdout)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("REFOLD_")}


def wait_for(condition: Callable[[], object], within: float = 20.0) -> None:
    """Poll a condition until it holds."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def shell(tmp_path) -> Iterator[Shell]:
    """A folder of its own."""
    made = Shell(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def office(tmp_path_factory) -> Iterator[Shell]:
    """A folder in which a worker runs, shared by the tests of this module: each uses workflow ids of its own."""
    made = Shell(tmp_path_factory.mktemp("office"))
    made.start("run", "app.py")
    wait_for(lambda: "Ctrl-C stops" in made.printed(stream="err"))
    yield made
    made.end()


# ---- asking and looking ----------------------------------------------------------------------------------------------
def test_an_answer_is_printed_and_the_same_request_again_is_the_same_workflow(office):
    first = office.call("request", "clerk", '["sea", "tide"]', "--id", "r1").stdout
    assert json.loads(first) == {"sea": 3, "tide": 4}
    other = office.call("request", "clerk", '["other"]', "--id", "r1", code=exits.REFUSED)
    assert other.stderr.startswith("WorkflowExists: workflow 'r1' was started with ")
    again = office.call("request", "clerk", "-", "--id", "r1", "--json", stdin='["sea", "tide"]')
    assert json.loads(again.stdout) == {"workflow": "r1", "answer": {"sea": 3, "tide": 4}}
    shown = office.json("show", "r1")
    assert shown["report"]["status"] == "completed"
    assert [r["kind"] for r in shown["records"]].count("effect_completed") == 2


def test_a_line_is_printed_for_each_handling(office):
    office.call("request", "clerk", '["a"]', "--id", "lines")
    wait_for(lambda: " lines " in office.printed())
    (line,) = [text for text in office.printed().splitlines() if " lines " in text]
    assert re.fullmatch(r"\d\d:\d\d:\d\d clerk  lines  task_request -> task_response  \d+ ms  2 steps", line)


def test_ps_show_state_and_tail_tell_of_an_open_workflow(office):
    office.call("send", "clerk", '"Ann"', "--kind", "hello", "--id", "open1")
    wait_for(lambda: office.json("show", "open1")["report"]["status"] == "waiting")
    told = office.json("ps")
    assert [m["group"] for m in told["members"]] == ["app"]
    (row,) = [r for r in told["rows"] if r["workflow"] == "open1"]
    assert (row["status"], row["agents"]) == ("waiting", ["clerk"])
    assert "clerk waits for a message 'bye'" in office.call("ps").stdout
    text = office.call("show", "open1", "--payloads").stdout
    assert text.startswith("workflow open1: waiting, 2 records")
    assert "Ann" in text
    lines = [json.loads(line) for line in office.call("tail", "--id", "open1", "--json").stdout.splitlines()]
    assert [line["record"]["message_type"] for line in lines] == ["hello", "timer_set"]
    assert office.call("tail", "--id", "open1", "-n", "1").stdout.split()[-1] == "bye"
    assert office.call("tail", "-n", "0").stdout == ""
    office.call("send", "clerk", "--kind", "bye", "--id", "open1")
    wait_for(lambda: office.json("show", "open1")["report"]["status"] == "completed")


def test_the_state_at_points_of_the_past(office):
    office.call("request", "clerk", '["abc", "de"]', "--id", "states")
    assert office.json("state", "states") == {"letters": 5}
    assert office.json("state", "states", "--at", "3") == {}
    assert office.json("state", "states", "--at", "g0:4") == {"letters": 5}
    assert json.loads(office.call("state", "states", "--at", "2000-01-01T00:00").stdout) == {}


def test_doctor_says_what_it_found(office):
    wait_for(lambda: any(len(m["partitions"]) == 16 for m in office.json("ps")["members"]))
    told = office.json("doctor")
    checks = {c["check"]: c for c in told["checks"]}
    assert told["ok"]
    assert {"integrity", "space", "log", "worker", "group"} <= set(checks)
    assert "app: owns 16 of 16 partitions" in checks["group"]["found"]


def test_doctor_fails_where_something_must_be_done(shell):
    worker = shell.start("run", "app.py:plain")
    shell.call("send", "plain", "1", "--kind", "note")
    wait_for(lambda: shell.json("dlq", "ls"))
    worker.terminate()
    assert worker.wait(20) == 0
    blocked = shell.call("doctor", code=exits.FAILED).stdout
    assert re.search(r"!! +workflows +1 open, 1 blocked +`refold ps` says by what", blocked)


# ---- verbs -----------------------------------------------------------------------------------------------------------
def test_cancel(office):
    office.call("send", "clerk", '"Bob"', "--kind", "hello", "--id", "c1")
    wait_for(lambda: office.json("show", "c1")["report"]["status"] == "waiting")
    assert office.call("cancel", "c1", "--reason", "enough").stdout == "workflow c1 is cancelled\n"
    assert office.json("show", "c1")["report"]["status"] == "cancelled"
    assert office.json("cancel", "c1") == {"workflow": "c1", "cancelled": True}
    office.call("cancel", "no-such", code=exits.NOT_FOUND)


def test_a_failed_request_is_told_and_retried(office):
    failed = office.call("request", "plain", '"no money"', "--id", "f1", code=exits.FAILED)
    assert failed.stderr == "AgentError: 'plain' answered with an error: RuntimeError: no money\n"
    (letter,) = [d for d in office.json("dlq", "ls") if d["workflow"] == "f1"]
    assert (letter["agent"], letter["holds"]) == ("plain", False)
    assert "to run it again: refold retry f1" in office.call("show", "f1").stdout
    (again,) = office.json("retry", "f1")
    assert (again["agent"], again["round"]) == ("plain", 1)
    office.call("retry", "lines-never", code=exits.NOT_FOUND)


def test_a_dead_letter_is_shown_redriven_and_discarded(office):
    office.call("send", "plain", '{"a": 1}', "--kind", "note", "--id", "d1")

    def letters() -> list[Any]:
        return [d for d in office.json("dlq", "ls") if d["workflow"] == "d1"]

    wait_for(letters)
    (letter,) = letters()
    assert letter["holds"]
    assert letter["error"] == "RuntimeError: cannot note this"
    (shown,) = office.json("dlq", "show", "d1")
    assert shown["payload"] == {"a": 1}
    again = office.json("dlq", "redrive", "d1", "plain", letter["message"])
    assert again["round"] == 1
    wait_for(lambda: [d["round"] for d in letters()] == [1])
    office.call("dlq", "discard", "d1", "plain", letter["message"])
    assert letters() == []
    refused = office.call("dlq", "discard", "d1", "plain", letter["message"], code=exits.REFUSED)
    assert "only a dead letter that holds its place can be discarded" in refused.stderr


# ---- log lines -------------------------------------------------------------------------------------------------------
def test_every_line_inside_a_handler_carries_what_it_is_about_in_text(office):
    office.call("request", "flaky", '"x"', "--id", "log1")
    office.call("request", "plain", '"x"', "--id", "log2", code=exits.FAILED)
    lines = [line[9:] for line in office.printed(stream="err").splitlines()]
    one, two = (office.json("show", name)["attempts"][0]["message"] for name in ("log1", "log2"))
    assert [line for line in lines if " log1 " in line] == [
        f"WARNING [flaky log1 message {one} attempt 1] trying x",
        f"WARNING [flaky log1 message {one} attempt 1] flaky failed on task_request: not yet",
        f"WARNING [flaky log1 message {one} attempt 2] trying x",
    ]
    assert f"INFO    [plain log2 message {two} attempt 1] in a thread" in lines


def test_json_lines_carry_workflow_agent_message_and_attempt(shell):
    worker = shell.start("run", "app.py:flaky", "--log-format", "json", "--member", "m1")
    answer = shell.json("request", "flaky", '"x"', "--id", "w")
    assert answer["answer"] == "done"
    message = shell.json("show", "w")["attempts"][0]["message"]
    worker.terminate()
    assert worker.wait(20) == 0
    about = {"workflow": "w", "agent": "flaky", "message_id": message}
    logged = [json.loads(line) for line in shell.printed(stream="err").splitlines()]
    mine = [line for line in logged if line["logger"] == "mine"]
    assert [line["attempt"] for line in mine] == [1, 2]
    assert all(line.items() >= {**about, "level": "warning", "message": "trying x"}.items() for line in mine)
    handled = [json.loads(line) for line in shell.printed().splitlines()]
    assert [(line["attempt"], line["message"]) for line in handled] == [
        (1, "attempt_failed ValueError"), (2, "task_response")
    ]  # fmt: skip
    assert all(line.items() >= about.items() for line in handled)


# ---- ends ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_ends_well(shell, kind):
    worker = shell.start("run", "app.py")
    wait_for(lambda: "Ctrl-C stops" in shell.printed(stream="err"))
    worker.send_signal(kind)
    assert worker.wait(20) == 0
    assert len(shell.printed(stream="err").splitlines()) == 1
    assert shell.json("ps")["members"] == []


SLEEPER = """
import asyncio
from refold import Agent
sleeper = Agent("sleeper")

@sleeper.on_task
async def sleep(ctx, seconds):
    print("asleep", flush=True)
    await ctx.effect("sleep", asyncio.sleep, seconds)
"""


def test_a_second_signal_ends_a_worker_at_once(shell):
    (shell.folder / "slow.py").write_text(SLEEPER)
    worker = shell.start("run", "slow.py")
    shell.call("request", "sleeper", "600", "--no-wait")
    wait_for(lambda: "asleep" in shell.printed())
    worker.terminate()
    worker.send_signal(signal.SIGINT)
    assert worker.wait(10) == exits.INTERRUPTED
    assert "Traceback" not in shell.printed(stream="err")


def test_ctrl_c_while_a_request_waits(shell):
    shell.call("send", "nobody", "1", "--id", "other")
    asking = shell.start("request", "nobody", "1", "--id", "w")
    wait_for(lambda: '"w"' in shell.call("tail", "--json").stdout)
    asking.send_signal(signal.SIGINT)
    assert asking.wait(20) == exits.INTERRUPTED
    assert shell.printed(0, "err") == "the request stays in the log: refold show w, or refold cancel w\n"


def test_tail_follows_until_ctrl_c(shell):
    shell.call("send", "nobody", "1", "--id", "before")
    tail = shell.start("tail", "-f", "--json")
    wait_for(lambda: "before" in shell.printed())
    shell.call("send", "nobody", "2", "--id", "after")
    wait_for(lambda: "after" in shell.printed())
    tail.send_signal(signal.SIGINT)
    assert tail.wait(20) == exits.INTERRUPTED
    assert shell.printed(0, "err") == ""
    assert [json.loads(line)["record"]["correlation_id"] for line in shell.printed().splitlines()] == [
        "before", "after"
    ]  # fmt: skip


def test_nobody_reads_the_output(shell):
    for n in range(3):
        shell.call("send", "nobody", "1", "--id", f"w{n}")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        for more in ((), ("--json",)):
            done = shell.process("tail", *more, stdout=closed)
            assert (done.code, done.stderr) == (0, "")


GREETER = """
from refold import Agent
greeter = Agent("greeter")

@greeter.on_task
def greet(name):
    return "NEW"
"""


def test_reload_starts_the_worker_again_and_ends_it(shell):
    module = shell.folder / "greet.py"
    module.write_text(GREETER.replace("NEW", "hello"))
    parent = shell.start("run", "greet.py", "--reload")
    assert shell.json("request", "greeter", "1")["answer"] == "hello"
    module.write_text(GREETER.replace("NEW", "good evening"))
    wait_for(lambda: shell.printed(0, "err").count("Ctrl-C stops") == 2)
    assert "greet.py changed: starting again" in shell.printed(0, "err")
    assert shell.json("request", "greeter", "1")["answer"] == "good evening"
    parent.terminate()
    assert parent.wait(30) == 0
    assert shell.json("ps")["members"] == []


# ---- projections -----------------------------------------------------------------------------------------------------
PROJECTION = '''
from refold import Projection

class Counts:
    """How many records each workflow has."""
    name, version, scope = "counts", 1, "workflow"
    def start(self): return 0
    def key(self, record): return record.envelope.correlation_id
    def apply(self, state, record): return state + 1

class Broken(Counts):
    name = "broken"
    def apply(self, state, record): return state / 0

number = 5
'''


def test_rebuild(shell):
    (shell.folder / "views_a.py").write_text(PROJECTION)
    for n in range(5):
        shell.call("send", "nobody", "1", "--id", f"w{n % 2}")
    assert shell.json("rebuild", "views_a.py:Counts") == {"projection": "counts", "records": 5, "states": 2}
    assert shell.call("rebuild", "views_a:Counts", "--store", "other.db").stdout == (
        "counts: 2 states from 5 records, in other.db\n"
    )
    assert "name the projection" in shell.call("rebuild", "views_a.py", code=exits.USER_CODE).stderr
    assert "number is no Projection" in shell.call("rebuild", "views_a.py:number", code=exits.USER_CODE).stderr


def test_an_unexpected_error_shows_its_traceback_only_when_it_is_asked_for(shell):
    (shell.folder / "views.py").write_text(PROJECTION)
    shell.call("send", "nobody", "1")
    quiet = shell.call("rebuild", "views.py:Broken", code=exits.INTERNAL)
    assert quiet.stderr.startswith("unexpected ZeroDivisionError: division by zero\n")
    assert "--debug shows where" in quiet.stderr
    loud = shell.process("rebuild", "views.py:Broken", "--debug")
    assert 'views.py", line 13, in apply' in loud.stderr


# ---- the whole -------------------------------------------------------------------------------------------------------
READING = (
    ("ps",), ("show", "x"), ("state", "x"), ("tail",), ("dlq", "ls"), ("dlq", "show", "x"), ("doctor",),
    ("cancel", "x"), ("retry", "x"), ("dlq", "redrive", "x", "a", "m"), ("dlq", "discard", "x", "a", "m"),
)  # fmt: skip


def test_only_run_send_and_request_make_a_log(shell):
    for arguments in READING:
        told = json.loads(shell.call(*arguments, "--json", code=exits.NO_LOG).stderr)
        assert told["error"]["type"] == "LogMissing"
    assert [p.name for p in shell.folder.iterdir()] == ["app.py"]


def test_every_command_has_json_and_a_help_text():
    group = typer.main.get_command(commands)
    leaves = {name: c for name, c in group.commands.items() if name not in ("dlq", "broker")}
    leaves |= {f"{some} {name}": c for some in ("dlq", "broker") for name, c in group.commands[some].commands.items()}
    assert set(leaves) == {
        "new", "run", "send", "request", "ps", "show", "state", "tail", "cancel", "retry", "rebuild", "doctor", "demo",
        "version", "dlq ls", "dlq show", "dlq redrive", "dlq discard",
        "broker up", "broker fetch", "broker plan", "copy",
    }  # fmt: skip
    without = {"new", "version", "broker up", "broker fetch", "broker plan", "copy"}
    for name, command in leaves.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, name
        assert command.help, name
        assert ("--broker" in options) == (name not in without), name


def test_a_help_text_says_where_the_log_may_be_named(shell):
    assert "[tool.refold]" in shell.call("ps", "--help").stdout


def test_help_loads_no_engine(shell):
    code = (
        "import sys\ntry:\n    import refold.cli; refold.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('refold.agents', 'refold.brokers', 'refold.projections', "
        "'sqlite3', 'aiosqlite'))], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
    assert "Exit codes: 0 done; 1 what was asked for failed" in " ".join(done.stdout.split())


def test_completion_names_commands(shell):
    asked = {"_REFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "refold re", "COMP_CWORD": "1"}
    assert shell.process(env={**environment(), **asked}).stdout.split() == ["request", "retry", "rebuild"]


def test_version(shell):
    assert set(shell.json("version")) == {"refold", "python", "sqlite"}
    assert shell.call("version").stdout.startswith("refold ")
