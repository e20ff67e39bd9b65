"""What must be true at the end of a story, and of every worker's fold at any moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from model import Model

from refold.agents.worker import Worker
from refold.bus import codec, kinds
from refold.bus.broker import Stored
from refold.bus.errors import UndecodableRecord
from refold.bus.message import Envelope
from refold.bus.partition import partition_of
from refold.projections.frozen import freeze, state_of, thaw
from refold.projections.partition import PartitionFold, listen
from refold.projections.verdict import Verdict
from refold.projections.view import Handling
from refold.projections.workflow import Workflow

from .programs import TASKS
from .world import World

if TYPE_CHECKING:
    from .story import Order, Story


class Read:
    """A partition folded from zero, with the verdict of each record."""

    def __init__(self, world: World, partition: int, end: int | None = None) -> None:
        self.fold = PartitionFold(partition, world.partitions)
        self.judged: list[tuple[Stored, Envelope, Verdict]] = []
        for stored in world.broker.log.partitions[partition][:end]:
            r = self.fold.open_envelope(stored)
            if r is not None:
                self.judged.append((stored, r, self.fold.fold(stored, r).verdict))


def unfinished(world: World) -> list[str]:
    """Return the workflows in which something is open or owed, or waits for an agent that has not appeared yet."""
    found = []
    for p in range(world.partitions):
        fold = Read(world, p).fold
        found += [c for agent in TASKS for c in fold.unclaimed.get(agent, ())]
        found += [c for c, w in fold.live.items() if not w.is_complete()]
        found += [f"stray in {p} at {position}" for position in fold.strays]
    return found


def check_worker(world: World, worker: Worker) -> None:
    """What a worker holds is what folding from zero gives, up to the same place."""
    for place in list(worker.places.values()):
        fold = place.fold
        if place.active and not place.ended:
            world.met["folds compared"] += 1
            _check_fold(world, fold, Read(world, place.partition, fold.position).fold)


def _check_fold(world: World, fold: PartitionFold, zero: PartitionFold) -> None:
    where = f"partition {fold.partition} at {fold.position}"
    for correlation, w in zero.live.items():
        held = fold.live.get(correlation) or fold.recent.get(correlation)
        if held is None and correlation in fold.entries:
            held = thaw(fold.entries[correlation])
        if held is None:
            if not w.is_complete():
                world.violation(f"{where}: {correlation} is open and not held")
        elif held.verdicts and (differ := list(differences(state(held), state(w)))):
            world.violation(f"{where}: {correlation} is held otherwise than from zero: {'; '.join(differ[:5])}")
    if fold.listeners != zero.listeners:
        world.violation(f"{where}: listeners {fold.listeners}, from zero {zero.listeners}")


def state(w: Workflow) -> Any:
    """Return all of a fold but its payloads, as plain values."""
    copy = thaw(freeze(w, idle=False))
    copy.duties()  # forgets what can be owed no more
    return msgspec.msgpack.decode(state_of(freeze(copy, idle=False)), strict=False)


def differences(held: Any, zero: Any, path: str = "") -> Iterator[str]:
    """Yield where two plain values differ."""
    if isinstance(held, dict) and isinstance(zero, dict):
        for k in dict.fromkeys([*held, *zero]):
            yield from differences(held.get(k, "nothing"), zero.get(k, "nothing"), f"{path}/{k}")
    elif isinstance(held, list) and isinstance(zero, list) and len(held) == len(zero):
        for i, (a, b) in enumerate(zip(held, zero, strict=True)):
            yield from differences(a, b, f"{path}/{i}")
    elif held != zero:
        yield f"{path} is {str(held)[:300]}, from zero {str(zero)[:300]}"


# ---- at the end
def check_all(story: Story) -> None:
    """Check everything that is promised of a log."""
    world = story.world
    for worker in world.workers.values():
        check_worker(world, worker)
    reads = [Read(world, p) for p in range(world.partitions)]
    for read in reads:
        _check_readers(world, read)
        _check_owners(world, read)
        for w in read.fold.live.values():
            _check_order(world, w)
        for stored, r, verdict in read.judged:
            world.met[f"verdict {verdict}"] += 1
            _check_record(world, stored, r, verdict)
    for token, to in story.acknowledged:
        if to != "*" and f"note {token} by {to}" not in world.keys:
            world.violation(f"the message {token!r} to {to!r} was acknowledged, and nobody has handled it")
    workflows = {c: w for read in reads for c, w in read.fold.live.items()}
    for order in story.orders:
        check_order(story, order, workflows.get(order.id))


def _check_record(world: World, stored: Stored, r: Envelope, verdict: Verdict) -> None:
    beaten = r.message_type == kinds.EXPIRED  # by a handling whose first record came before
    if r.work is not None and not beaten and verdict in (Verdict.INVALID, Verdict.CONFLICT):
        world.violation(f"refold wrote what admission refuses: {r.message_type} {r.id} is {verdict}")
    if r.message_type == kinds.EFFECT_COMPLETED and verdict is Verdict.ADMITTED:
        paid = str(codec.payload(stored.value)).startswith("paid ")
        if paid and not world.calls[r.fact.effect]:
            world.violation(f"effect {r.fact.effect} is recorded and was never called")


def _check_readers(world: World, read: Read) -> None:
    """Other readers come to the same verdicts: the independent model, and one that folds a workflow by key."""
    listeners: dict[str, tuple[str, ...]] = {}
    heard: dict[str, int] = {}
    models: dict[str, Model] = defaultdict(Model)
    alone: dict[str, Workflow] = {}
    for stored, r, verdict in read.judged:
        if r.message_type in kinds.PARTITION:
            for agent, wanted in list(listen(listeners, heard, r)):
                for m in models.values():
                    m.claim(agent, wanted)
                for w in alone.values():
                    w.view.claim(agent, wanted)
        elif verdict is not Verdict.MISPLACED:
            w = alone.setdefault(r.correlation_id, Workflow(r.correlation_id))
            said = [models[r.correlation_id].admit(stored.value, dict(listeners))]
            said.append(w.admit(r, stored.position, dict(listeners)))
            if said != [verdict, verdict]:
                world.violation(f"record {r.id} at {stored.position} is {verdict}; the model and a reader say {said}")
    for correlation, m in models.items():
        w = read.fold.live[correlation]
        if m.path != [e.id for e in w.view.path]:
            world.violation(f"{correlation}: the model's path is another one")
        if m.complete() != w.is_complete():
            world.violation(f"{correlation}: complete is {w.is_complete()}, the model says {m.complete()}")


def _check_owners(world: World, read: Read) -> None:
    """Where the broker fences, an owner of an older epoch writes nothing but outcomes of calls that were running."""
    owners: dict[str, tuple[str, int]] = {}
    newest: dict[str, int] = {}
    seen: set[str] = set()
    for stored, r, verdict in read.judged:
        if r.id in seen:
            continue
        seen.add(r.id)
        if r.message_type == kinds.OWNER:
            owners[r.id] = (r.fact.group, r.fact.epoch)
            newest[r.fact.group] = max(newest.get(r.fact.group, 0), r.fact.epoch)
        elif r.work is not None and world.refuses and verdict is not Verdict.MISPLACED:
            group, epoch = owners[r.work.writer.partition("#")[0]]
            if epoch < newest[group] and r.message_type not in kinds.OUTCOMES:
                what = f"{r.message_type} {r.id} at {stored.position}"
                world.violation(f"{what} was written in epoch {epoch}, after {newest[group]}")


def _check_order(world: World, w: Workflow) -> None:
    """Per workflow and agent, handled order is log order: none begins before the one in front of it has ended."""
    if w.generation or any(e.envelope is not None and e.envelope.message_type == kinds.REDRIVEN for e in w.view.path):
        return
    begun: dict[tuple[str, str], int] = {}
    effects: set[tuple[str, str, str]] = set()
    for version, entry in enumerate(w.view.path, 1):
        r = entry.envelope
        if r is None or r.work is None:
            continue
        begun.setdefault((r.sender_id, r.work.message), version)
        if r.message_type == kinds.EFFECT_COMPLETED:
            step = (r.sender_id, r.work.message, r.work.step)
            if step in effects:
                world.violation(f"{w.correlation}: two outcomes of {step}")
            effects.add(step)
    by_agent: dict[str, list[Handling]] = defaultdict(list)
    for h in w.view.all_handlings():
        if h.agent != "cid":
            by_agent[h.agent].append(h)
    for hs in by_agent.values():
        hs.sort(key=lambda h: h.version)
        ended = 0
        for h in hs:
            first = begun.get(h.key, 0)
            exempt = h.kind == kinds.TASK_REQUEST and h.inside
            if first and first < ended and not exempt:
                world.violation(f"{w.correlation}: {h.key} begins at {first}, one in front of it ends at {ended}")
            ended = max(ended, h.closed)


def check_order(story: Story, order: Order, w: Workflow | None) -> None:
    """What a client was told, and what the log says, is what the program comes to."""
    world = story.world
    if w is None:
        world.violation(f"{order.id} was acknowledged and is not in the log")
        return
    request = next((q for q in w.view.requests.values() if q.asked and q.asker is None and q.to is None), None)
    if request is None:
        world.violation(f"{order.id} holds no request")
        return
    root = w.view.requests[request.root]
    told = _answer(world, w, root.answer, root.answer_kind)
    if order.id in story.deadly:
        if order.outcome[0] != "error" or "PoisonMessage" not in str(order.outcome[1]):
            world.violation(f"{order.id} is poison, its client was told {order.outcome}")
    elif not order.loose and not story.poison:
        for what in (told, order.outcome):
            if what[0] != order.expected()[0] or (what[0] == "ok" and what != order.expected()):
                world.violation(f"{order.id}: {what} instead of {order.expected()}\n{order.program}")
    elif story.poison and order.outcome != order.expected():
        world.violation(f"{order.id} is innocent, its client was told {order.outcome}")


def _answer(world: World, w: Workflow, ref: tuple[int, int], kind: str) -> Any:
    if kind != kinds.TASK_RESPONSE:
        return "error", kind
    stored = world.broker.log.partitions[partition_of(w.correlation, world.partitions)][ref[0] - 1]
    try:
        return "ok", codec.payload(stored.value)
    except UndecodableRecord:
        return "error", "undecodable"
