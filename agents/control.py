"""The verbs of an operator: cancel, redrive, discard, retry. Each appends one control record and reads its verdict."""

from __future__ import annotations

from typing import NamedTuple

from ..bus import facts, kinds
from ..bus.errors import NoSuchWorkflow, VerbRefused
from ..bus.message import AgentMessage
from ..bus.sender import Sender
from ..projections.follow import Follower
from ..projections.verdict import Verdict
from ..projections.view import Handling
from ..projections.workflow import Workflow


class Redriven(NamedTuple):
    """A handling that was opened again."""

    workflow: str
    agent: str
    message: str
    round: int


async def cancel(bus: Sender, correlation: str, *, actor: str = "operator", reason: str = "") -> None:
    """Close everything that is open in a workflow; its children are cancelled by their owners.

    Raises NoSuchWorkflow.
    """
    await _follow(bus, correlation)
    await _say(bus, correlation, kinds.CANCELLED, facts.Cancelled(actor=actor, reason=reason))


async def redrive(
    bus: Sender, correlation: str, agent: str, message: str, *, actor: str = "operator", reason: str = "",
    keep: str = "", force: bool = False,
) -> Redriven:  # fmt: skip
    """Open a handling that failed again: the steps that failed, and what followed them, run anew.

    A request that another handling asked is redriven by its outermost asker that has ended, in parent workflows too.
    `keep="none"` forgets all of its steps. Raises NoSuchWorkflow, VerbRefused.
    """
    follower = await _follow(bus, correlation)
    h = _handling(follower.workflow, agent, message)
    follower, h = await _outermost(bus, follower, h)
    fact = facts.Redriven(agent=h.agent, message=h.message, keep=keep, actor=actor, reason=reason, force=force)
    round = h.round + 1
    await _say(bus, follower.correlation, kinds.REDRIVEN, fact)
    return Redriven(follower.correlation, h.agent, h.message, round)


async def discard(
    bus: Sender, correlation: str, agent: str, message: str, *, actor: str = "operator", reason: str = ""
) -> None:
    """Let a dead letter give up its place: the messages behind it go on. Raises NoSuchWorkflow, VerbRefused."""
    follower = await _follow(bus, correlation)
    h = _handling(follower.workflow, agent, message)
    fact = facts.Discarded(agent=h.agent, message=h.message, actor=actor, reason=reason)
    await _say(bus, correlation, kinds.DISCARDED, fact)


async def retry(
    bus: Sender, correlation: str, *, fresh: bool = False, actor: str = "operator", reason: str = "",
    force: bool = False,
) -> list[Redriven]:  # fmt: skip
    """Redrive what failed in a workflow; with `fresh` its steps are forgotten, and a diverged handling starts anew.

    Raises NoSuchWorkflow; VerbRefused where nothing has failed.
    """
    follower = await _follow(bus, correlation)
    found = failed(follower.workflow)
    if fresh:
        found += [h for h in follower.workflow.open_handlings() if h.parked]
    if not found:
        parked = any(h.parked for h in follower.workflow.open_handlings())
        raise VerbRefused(
            f"nothing in workflow {correlation!r} has failed"
            + ("; a handling is parked by a divergence: load code that fits, or use retry --fresh" if parked else "")
        )
    out = []
    for h in found:
        keep = "none" if fresh else ""
        out.append(
            await redrive(bus, correlation, h.agent, h.message, actor=actor, reason=reason, keep=keep, force=force)
        )
    return out


def failed(w: Workflow) -> list[Handling]:
    """Return the handlings whose failure nobody has dealt with: dead letters, and requests from outside that failed."""
    v = w.view
    out = [v.handlings[message][agent] for agent, message in v.holding]
    for q in v.requests.values():
        h = v.handling(q.agent, q.id)
        ended = h is not None and h.closed and h.end in (kinds.ERROR_REPORT, kinds.DEAD_LETTERED) and not h.discarded
        if ended and h is not None and q.asker is None and h not in out:
            out.append(h)
    return sorted(out, key=lambda h: h.version)


async def _follow(bus: Sender, correlation: str) -> Follower:
    follower = Follower(bus.broker, correlation)
    await follower.catch_up()
    if not follower.workflow.verdicts:
        raise NoSuchWorkflow(f"the log holds no workflow {correlation!r}; `refold ps` lists those that are open")
    return follower


def _handling(w: Workflow, agent: str, message: str) -> Handling:
    h = w.view.handling(agent, message)
    if h is None:
        known = ", ".join(f"{h.agent} {h.message}" for h in w.view.all_handlings()) or "none"
        raise VerbRefused(f"{agent!r} handles no message {message!r} in {w.correlation!r}; its handlings are: {known}")
    return h


async def _outermost(bus: Sender, follower: Follower, h: Handling) -> tuple[Follower, Handling]:
    """Follow a request to the handling that asked it, as long as that has ended too."""
    while True:
        v = follower.workflow.view
        q = v.requests.get(h.message)
        root = v.requests[q.root] if q is not None else None
        if root is None:
            return follower, h
        if root.asker is not None:
            asker = v.handling(*root.asker)
        elif root.origin is not None:
            follower, asker = await _parent(bus, follower, root.origin.workflow, root.origin.id)
        else:
            return follower, h
        if asker is None:
            return follower, h
        if not asker.closed:
            raise VerbRefused(
                f"{asker.agent!r}, which asked for it in {follower.correlation!r}, is still running and has (or will "
                "have) its answer: cancel it, or let it end first"
            )
        h = asker


async def _parent(bus: Sender, child: Follower, workflow: str, request: str) -> tuple[Follower, Handling | None]:
    follower = await _follow(bus, workflow)
    q = follower.workflow.view.requests.get(request)
    if q is None or q.asker is None:
        return child, None
    return follower, follower.workflow.view.handling(*q.asker)


async def _say(bus: Sender, correlation: str, kind: str, fact: facts.Fact) -> None:
    """Append a control record and see what became of it. Raises VerbRefused."""
    record = AgentMessage(
        id=bus.source.new_id(), sender_id=getattr(fact, "actor", "") or "operator", receiver_id="*",
        message_type=kind, correlation_id=correlation, timestamp=bus.clock.now(), fact=fact,
    )  # fmt: skip
    await bus.send_control(record)
    follower = await _follow(bus, correlation)
    verdict = follower.workflow.verdicts.get(record.id)
    if verdict is not Verdict.ADMITTED:
        raise VerbRefused(f"{kind} is {verdict} in {correlation!r}: {_why(kind)}")


def _why(kind: str) -> str:
    return {
        kinds.REDRIVEN: "only a handling that ended in a dead letter or an error_report can be redriven, and not one "
        "whose failure its asker has seen; an irreversible effect needs force",
        kinds.DISCARDED: "only a dead letter that holds its place can be discarded",
    }.get(kind, "the workflow's rules refuse it")
