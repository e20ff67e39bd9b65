"""Brokers that break one promise each, and the sentence of the case that must catch them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from types import SimpleNamespace

from msgspec.structs import replace

from refold.brokers.memory import MemoryBroker, MemoryListener, MemorySubscription
from refold.bus.broker import (
    ANY_LOG,
    Appended,
    Assigned,
    At,
    Batch,
    Capabilities,
    Checkpoint,
    Conflict,
    Duplicate,
    Health,
    LogSpec,
    Lost,
    Page,
)  # fmt: skip
from refold.bus.errors import BrokerUnavailable, LogMismatch, TooLarge
from refold.bus.message import new_id

BROKEN: list[tuple[type, str]] = []
KEPT: list[object] = []
"""What would end by itself when nobody holds it."""


def breaks(sentence: str):
    def take(kind: type) -> type:
        BROKEN.append((kind, sentence))
        return kind

    return take


def claiming(**changes: bool) -> Capabilities:
    claims = {name: getattr(MemoryBroker.capabilities, name) for name in Capabilities.__struct_fields__}
    return Capabilities(**{**claims, **changes})


# ---- the log ---------------------------------------------------------------------------------------------------------
@breaks("a log that is not there is missing and looking for it makes none")
class MakesALogWhenItLooks(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        if not create and self.log.meta is None:
            await super().ensure_log(spec)
        return await super().ensure_log(spec, create=create)


@breaks("a log is made as it was asked for and says so")
class HasSizesOfItsOwn(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        return await super().ensure_log(LogSpec(partitions=spec.partitions), create=create)


@breaks("what is not asked for has the defaults of every log")
class HasOtherDefaults(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        mine = spec if self.log.meta else LogSpec(partitions=2, max_append=10**6)
        return await super().ensure_log(mine, create=create)


@breaks("a log that is there is verified and never changed")
class MakesTheLogAgain(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        if create and self.log.meta is not None and spec.partitions:
            self.log.create(spec, new_id(), 0.0)
        return await super().ensure_log(spec, create=create)


@breaks("a log that is not what was asked for names each difference and stays")
class TakesWhatIsThere(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        return await super().ensure_log(ANY_LOG if self.log.meta else spec, create=create)


@breaks("a log that is not what was asked for names each difference and stays")
class NamesOneDifference(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        try:
            return await super().ensure_log(spec, create=create)
        except LogMismatch as error:
            raise LogMismatch(str(error).split(";")[0]) from None


@breaks("several that make a log at once make one")
class MakesALogSlowly(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        missing = self.log.meta is None
        await asyncio.sleep(0)
        return self.log.create(spec, new_id(), 0.0) if missing else await super().ensure_log(spec, create=create)


@breaks("two logs have two ids")
class HasOneLogId(MemoryBroker):
    async def ensure_log(self, spec=ANY_LOG, *, create=True):
        self.source = SimpleNamespace(new_id=lambda: "the one and only")
        return await super().ensure_log(spec, create=create)


@breaks("before a log is made there is none to work on")
class ReadsWhatIsNotThere(MemoryBroker):
    def _records(self, partition):
        return self.log.partitions[partition] if self.log.partitions else []


@breaks("a broker says where it is and what it can before it is opened")
class ShowsItsPassword(MemoryBroker):
    def __init__(self, log=None):
        super().__init__(log)
        self.url = "memory://me:secret@here"


@breaks("health names a durability and why and changes nothing")
class SaysThatMemoryIsSafe(MemoryBroker):
    async def health(self):
        return Health(ok=True, durability="D2", why="trust me")


@breaks("closing twice is closing once and what was appended stays")
class ClosesOnce(MemoryBroker):
    closed = False

    async def aclose(self):
        if self.closed:
            raise BrokerUnavailable("it is closed")
        self.closed = True
        await super().aclose()


@breaks("closing finishes the appends that were accepted")
class DropsWhatItHasAcceptedWhenItCloses(MemoryBroker):
    closed = False

    async def append(self, items, fence=None):
        await asyncio.sleep(0.001)
        if self.closed:
            raise BrokerUnavailable("it is closed")
        return await super().append(items, fence)

    async def aclose(self):
        self.closed = True
        await super().aclose()


@breaks("an append to a closed broker is refused or in the log")
class AnswersWhenItIsClosed(MemoryBroker):
    closed = False

    async def append(self, items, fence=None):
        return [Appended((1,)) for _ in items] if self.closed else await super().append(items, fence)

    async def aclose(self):
        self.closed = True
        await super().aclose()


@breaks("closing lets others have what it owned at once")
class KeepsItsMembersWhenItCloses(MemoryBroker):
    async def aclose(self):
        pass


# ---- appending -------------------------------------------------------------------------------------------------------
@breaks("each record has a position of its own and they grow in order")
class LosesTheSecondRecordOfAnItem(MemoryBroker):
    def _append(self, item):
        result = super()._append(replace(item, records=item.records[:1]))
        return Appended(result.positions * len(item.records)) if isinstance(result, Appended) else result


@breaks("an append is there for every reader when it returns")
class AnswersBeforeItHasWritten(MemoryBroker):
    def _append(self, item):
        end = len(self.log.partitions[item.partition])
        asyncio.get_running_loop().call_later(0.01, super()._append, item)
        return Appended(tuple(range(end + 1, end + 1 + len(item.records))))


@breaks("each record has a position of its own and they grow in order")
class AppendsTheItemsOfACallBackwards(MemoryBroker):
    async def append(self, items, fence=None):
        return (await super().append(items[::-1], fence))[::-1]


@breaks("bytes and keys are kept verbatim")
class RepairsText(MemoryBroker):
    def _store(self, partition, key, value):
        return super()._store(partition, key, value.decode(errors="replace").encode())


@breaks("bytes and keys are kept verbatim")
class FoldsTheCaseOfKeys(MemoryBroker):
    def _store(self, partition, key, value):
        return super()._store(partition, key and key.lower(), value)


@breaks("no reader ever sees a part of an item")
class AppendsRecordByRecord(MemoryBroker):
    async def append(self, items, fence=None):
        out = []
        for item in items:
            positions = ()
            for record in item.records:
                (result,) = await super().append([replace(item, records=(record,))], fence)
                positions += result.positions
            out.append(Appended(positions))
        return out


@breaks("concurrent appends all succeed each at its own place")
class ComparesUnasked(MemoryBroker):
    async def append(self, items, fence=None):
        seen = [len(self.log.partitions[item.partition]) for item in items]
        await asyncio.sleep(0)
        now = [len(self.log.partitions[item.partition]) for item in items]
        return await super().append(items, fence) if seen == now else [Conflict(n) for n in now]


@breaks("what is too large is refused and nothing of its call is there")
class TakesRecordsOfAnySize(MemoryBroker):
    def _check(self, partition, values):
        super()._check(partition, [v[:1] for v in values])


@breaks("what is too large is refused and nothing of its call is there")
class NoticesTheSizeTooLate(MemoryBroker):
    async def append(self, items, fence=None):
        out = []
        for item in items:
            out += await super().append([item], fence)
        return out


@breaks("what is too large is refused and nothing of its call is there")
class CountsACallAsOneAppend(MemoryBroker):
    async def append(self, items, fence=None):
        if sum(len(r.value) for item in items for r in item.records) > self.meta.max_append:
            raise TooLarge("too large in all")
        return await super().append(items, fence)


@breaks("a partition that is not there is refused and nothing of its call is there")
class WrapsPartitionsAround(MemoryBroker):
    async def append(self, items, fence=None):
        return await super().append([replace(i, partition=i.partition % self.meta.partitions) for i in items], fence)


@breaks("a call that is wrong harms no other")
class FailsTogether(MemoryBroker):
    wrong = False

    def _check(self, partition, values):
        try:
            super()._check(partition, values)
        except TooLarge:
            self.wrong = True
            raise
        if self.wrong:
            raise TooLarge("somebody's record is too large")


@breaks("a cancelled append happened or not and others are whole")
class IsCutInTwoByCancelling(MemoryBroker):
    async def append(self, items, fence=None):
        (item,) = items
        first, *others = item.records
        (result,) = await super().append([replace(item, records=(first,))], fence)
        positions = result.positions
        for record in others:
            positions += (await super().append([replace(item, records=(record,))], fence))[0].positions
        return [Appended(positions)]


@breaks("raw records are appended in order and never refused")
class KnowsRawRecords(MemoryBroker):
    async def append_raw(self, partition, records):
        known = {(r.key, r.value) for r in self.log.partitions[partition]}
        return await super().append_raw(partition, [r for r in records if r not in known])


@breaks("a record has the time at which the log took it and is found by it")
class FindsTheRecordBeforeATime(MemoryBroker):
    async def read(self, partition, start=0, *, end=None, limit=1000):
        if isinstance(start, At):
            first = next((r.position for r in self.log.partitions[partition] if r.time >= start.time), None)
            start = max(1, first - 1) if first else start
        return await super().read(partition, start, end=end, limit=limit)


# ---- refusing --------------------------------------------------------------------------------------------------------
@breaks("an append behind what its writer has not seen is a conflict and names it")
class ClaimsToCompare(MemoryBroker):
    def _append(self, item):
        return super()._append(replace(item, after=None))


@breaks("an append behind what its writer has not seen is a conflict and names it")
class NamesTheFirstRecordInAConflict(MemoryBroker):
    def _append(self, item):
        result = super()._append(item)
        return Conflict(1) if isinstance(result, Conflict) else result


@breaks("a conflict concerns its key in its partition and its item alone")
class ComparesWithThePartition(MemoryBroker):
    def _append(self, item):
        last = len(self.log.partitions[item.partition])
        return super()._append(item) if item.after is None or item.after >= last else Conflict(last)


@breaks("raw records and those of the same call count for a conflict")
class OverlooksRawRecords(MemoryBroker):
    async def append_raw(self, partition, records):
        before = {k: list(v) for k, v in self.log.by_key[partition].items()}
        positions = await super().append_raw(partition, records)
        for key, _ in records:
            self.log.by_key[partition][key][:] = before.get(key, [])
        return positions


@breaks("of writers that saw the same one wins")
class ComparesAndThenAppends(MemoryBroker):
    async def append(self, items, fence=None):
        lasts = [max(self.log.by_key[i.partition].get(i.key, [0])) for i in items]
        await asyncio.sleep(0)
        if any(i.after is not None and last > i.after for i, last in zip(items, lasts, strict=True)):
            return [Conflict(last) for last in lasts]
        return await super().append([replace(i, after=None) for i in items], fence)


@breaks("a broker that does not compare appends whatever the writer saw")
class DoesNotSayThatItCompares(MemoryBroker):
    capabilities = claiming(compare_and_append=False)


@breaks("an id that is there is refused with its position")
class ClaimsToKnowIds(MemoryBroker):
    def _append(self, item):
        for record in item.records:
            self.log.ids.pop((item.partition, item.key, record.id), None)
        return super()._append(item)


@breaks("an id that is there is refused with its position")
class LooksAtTheFirstIdOnly(MemoryBroker):
    def _append(self, item):
        for record in item.records[1:]:
            self.log.ids.pop((item.partition, item.key, record.id), None)
        return super()._append(item)


@breaks("a duplicate concerns its key in its partition and its item alone")
class KnowsIdsInAllWorkflows(MemoryBroker):
    def _append(self, item):
        for (_, _, id), at in self.log.ids.items():
            if any(r.id == id for r in item.records):
                return Duplicate(at)
        return super()._append(item)


@breaks("an append that is tried again at once happens once")
class LooksForIdsAndThenAppends(MemoryBroker):
    async def append(self, items, fence=None):
        known = [next((self.log.ids[k] for r in i.records if (k := (i.partition, i.key, r.id)) in self.log.ids), None)
                 for i in items]  # fmt: skip
        await asyncio.sleep(0)
        for item in items:
            for record in item.records:
                self.log.ids.pop((item.partition, item.key, record.id), None)
        results = await super().append(items, fence)
        return [r if at is None else Duplicate(at) for r, at in zip(results, known, strict=True)]


@breaks("an append that is tried again is a duplicate and no conflict")
class ComparesBeforeItLooksForIds(MemoryBroker):
    def _append(self, item):
        last = max(self.log.by_key[item.partition].get(item.key, [0]))
        return Conflict(last) if item.after is not None and last > item.after else super()._append(item)


@breaks("a broker that does not know ids appends them again")
class DoesNotSayThatItKnowsIds(MemoryBroker):
    capabilities = claiming(refuse_duplicates=False)


@breaks("a stale fence lets nothing of the call in and names the epoch")
class ClaimsToFence(MemoryBroker):
    def _stale(self, fence):
        return None


@breaks("a stale fence lets nothing of the call in and names the epoch")
class FencesItsOwnPartitionOnly(MemoryBroker):
    async def append(self, items, fence=None):
        stale = self._stale(fence)
        return [stale if stale and i.partition == fence.partition else self._append(i) for i in items]


@breaks("a stale fence lets nothing of the call in and names the epoch")
class FencesOlderEpochsOnly(MemoryBroker):
    def _stale(self, fence):
        stale = super()._stale(fence)
        return None if stale and stale.epoch is not None and fence.epoch > stale.epoch else stale


@breaks("a partition without an owner lets no fence pass")
class LetsTheLastOwnerIn(MemoryBroker):
    def _stale(self, fence):
        held = fence and self.log.owned.get(fence.group)
        return None if held and held[fence.partition].epoch == fence.epoch else super()._stale(fence)


@breaks("an owner that was taken for dead appends nothing more")
class BelievesTheDead(MemoryBroker):
    def _stale(self, fence):
        stale = super()._stale(fence)
        return None if stale and stale.epoch and fence.epoch == stale.epoch - 1 else stale


@breaks("a broker that knows no fences appends under any epoch")
class DoesNotSayThatItFences(MemoryBroker):
    capabilities = claiming(fence_appends=False)


# ---- reading ---------------------------------------------------------------------------------------------------------
@breaks("pages of any size cover a partition without gap or repetition")
class SkipsARecordBetweenPages(MemoryBroker):
    async def read(self, partition, start=0, *, end=None, limit=1000):
        page = await super().read(partition, start, end=end, limit=limit)
        return Page(page.records, page.next and page.next + 1)


@breaks("a page begins at its start and ends before its end")
class ReadsItsEndToo(MemoryBroker):
    async def read(self, partition, start=0, *, end=None, limit=1000):
        return await super().read(partition, start, end=None if end is None else end + 1, limit=limit)


@breaks("a page begins at its start and ends before its end")
class AlwaysHasANextPage(MemoryBroker):
    async def read(self, partition, start=0, *, end=None, limit=1000):
        page = await super().read(partition, start, end=end, limit=limit)
        last = page.records[-1].position + 1 if page.records else 0
        return page._replace(next=page.next or (last if last and end else None))


@breaks("reading from a time is reading from its first record")
class ReadsFromTheStartWhateverTheTime(MemoryBroker):
    async def read(self, partition, start=0, *, end=None, limit=1000):
        return await super().read(partition, 0 if isinstance(start, At) else start, end=end, limit=limit)


@breaks("a workflow is read with its partitions own records and nothing else")
class ForgetsThePartitionsOwnRecords(MemoryBroker):
    async def read_workflow(self, correlation_id, *, after=0, limit=1000):
        page = await super().read_workflow(correlation_id, after=after, limit=limit)
        return page._replace(records=[r for r in page.records if r.key is not None])


@breaks("a workflow is read with its partitions own records and nothing else")
class ReadsTheWholePartition(MemoryBroker):
    async def read_workflow(self, correlation_id, *, after=0, limit=1000):
        partition = next(p for p, keys in enumerate(self.log.by_key) if correlation_id in keys or p == 1)
        return await self.read(partition, after + 1, limit=limit)


@breaks("a workflow is read after a position and in pages of any size")
class ReadsTheRecordAtAfterToo(MemoryBroker):
    async def read_workflow(self, correlation_id, *, after=0, limit=1000):
        return await super().read_workflow(correlation_id, after=after - 1, limit=limit)


@breaks("records are read by position ascending and each once")
class ReadsInTheOrderAskedFor(MemoryBroker):
    async def read_at(self, partition, positions):
        found = {r.position: r for r in await super().read_at(partition, positions)}
        return [found[p] for p in positions]


@breaks("a position that holds no record is a truncated log")
class LeavesOutWhatIsMissing(MemoryBroker):
    async def read_at(self, partition, positions):
        return await super().read_at(partition, [p for p in positions if 1 <= p <= len(self.log.partitions[partition])])


@breaks("begin and end enclose the records and their difference is none where there are none")
class EndsAtTheLastRecord(MemoryBroker):
    async def positions(self, kind, group=None):
        found = await super().positions(kind, group)
        return {p: n - 1 for p, n in found.items()} if kind == "end" else found


@breaks("begin and end enclose the records and their difference is none where there are none")
class KnowsOnlyPartitionsWithRecords(MemoryBroker):
    async def positions(self, kind, group=None):
        found = await super().positions(kind, group)
        return {p: n for p, n in found.items() if self.log.partitions[p]}


# ---- owning ----------------------------------------------------------------------------------------------------------
class Sub(MemorySubscription):
    """What others are built on: each names what it does otherwise."""


def with_subscription(sentence: str, kind: type[MemorySubscription]) -> None:
    def member(broker, group, name, partitions):
        return kind(broker, group, name, partitions)

    BROKEN.append((type(kind.__name__, (MemoryBroker,), {"_member": member}), sentence))


class AssignsEachPartitionTwice(Sub):
    def tell(self, event):
        super().tell(event)
        if isinstance(event, Assigned):
            super().tell(event)


with_subscription("a lone member is given every partition once", AssignsEachPartitionTwice)


class IsSureOfEverything(Sub):
    def deadline(self, partition):
        return math.inf


with_subscription("an owner is sure of what it owns for some time and of nothing else", IsSureOfEverything)


class TakesWithoutAsking(Sub):
    def revoke(self, partition):
        asyncio.get_running_loop().call_soon(lambda: partition in self.holds and self.lose(partition))


with_subscription("a member that joins gets a share and the owner is asked for it", TakesWithoutAsking)


class NeverGivesUpItsSurplus(Sub):
    def revoke(self, partition):
        pass


with_subscription("a member that joins gets a share and the owner is asked for it", NeverGivesUpItsSurplus)


class TakesWhatIsRevokedAtOnce(Sub):
    def revoke(self, partition):
        if partition not in self.revoking:
            super().revoke(partition)
            asyncio.get_running_loop().call_later(0.05, lambda: partition in self.holds and self.lose(partition))


with_subscription("an owner that does not release keeps what was revoked while it lives", TakesWhatIsRevokedAtOnce)


class LeavesWithoutReleasing(Sub):
    def leave(self):
        self.die()


with_subscription("a member that leaves hands over at once", LeavesWithoutReleasing)


@breaks("a member that leaves by an error has left")
class StaysAfterAnError(MemoryBroker):
    @contextlib.asynccontextmanager
    async def subscribe(self, group, member, **how):
        leaving = super().subscribe(group, member, **how)
        KEPT.append(leaving)
        yield await leaving.__aenter__()
        await leaving.__aexit__(None, None, None)


@breaks("a member that is cancelled while it joins leaves nothing behind")
class StaysWhenItIsCancelled(MemoryBroker):
    @contextlib.asynccontextmanager
    async def subscribe(self, group, member, **how):
        joining = super().subscribe(group, member, **how)
        KEPT.append(joining)
        sub = await joining.__aenter__()
        await asyncio.sleep(0)
        try:
            yield sub
        finally:
            await joining.__aexit__(None, None, None)


class NeverChangesItsEpoch(Sub):
    def claim(self, partition, held):
        held.epoch = 0
        super().claim(partition, held)


with_subscription("the epochs of a partition grow with each change of owner", NeverChangesItsEpoch)


class KeepsWhatItReleases(Sub):
    async def release(self, partition, epoch):
        self.holds.pop(partition, None)


with_subscription("what is released may be had by another at once", KeepsWhatItReleases)


class ReleasesWhateverTheEpoch(Sub):
    async def release(self, partition, epoch):
        await super().release(partition, self.holds.get(partition, epoch))


with_subscription("releasing what has ended already does nothing", ReleasesWhateverTheEpoch)


@breaks("members own only partitions that they claim")
class ClaimsEverything(MemoryBroker):
    def subscribe(self, group, member, *, partitions=None, **how):
        return super().subscribe(group, member, **how)


@breaks("groups know nothing of each other")
class KnowsOneGroup(MemoryBroker):
    def subscribe(self, group, member, **how):
        return super().subscribe("g", f"{group}.{member}", **how)


class TakesADeathForALeave(Sub):
    def tell(self, event):
        super().tell(event._replace(after_death=False) if isinstance(event, Assigned) else event)


with_subscription("what a dead member owned goes to others who hear of the death", TakesADeathForALeave)


class LosesWithoutAWord(Sub):
    def tell(self, event):
        if not isinstance(event, Lost):
            super().tell(event)


with_subscription("an owner that was away beyond its lease hears that it has lost", LosesWithoutAWord)


# ---- delivering ------------------------------------------------------------------------------------------------------
class DeliversUnasked(Sub):
    def tell(self, event):
        super().tell(event)
        if isinstance(event, Assigned):
            asyncio.get_running_loop().call_later(0.01, self.seek, event.partition, 0)


with_subscription("a partition delivers nothing until seek says from where", DeliversUnasked)


class DeliversBackwards(Sub):
    def _take(self, max_records):
        return [e._replace(records=e.records[::-1]) if isinstance(e, Batch) else e for e in super()._take(max_records)]


with_subscription("every record is delivered in log order while others append", DeliversBackwards)


class LosesARecordOfABatch(Sub):
    def _take(self, max_records):
        return [e._replace(records=e.records[:1] + e.records[2:]) if isinstance(e, Batch) else e
                for e in super()._take(max_records)]  # fmt: skip


with_subscription("every record is delivered in log order while others append", LosesARecordOfABatch)


class IsNotWokenByRecords(Sub):
    async def fetch(self, max_records=1000, max_wait=1.0):
        out = await super().fetch(max_records, 0)
        if not out:
            await asyncio.sleep(max_wait)
        return out


with_subscription("a fetch that waits returns when something is appended by anybody", IsNotWokenByRecords)


class WaitsForEver(Sub):
    async def fetch(self, max_records=1000, max_wait=1.0):
        return await super().fetch(max_records, math.inf if max_wait else 0)


with_subscription("a fetch returns nothing when nothing happens for its time", WaitsForEver)


class ReturnsAllThereIs(Sub):
    async def fetch(self, max_records=1000, max_wait=1.0):
        return await super().fetch(1000, max_wait)


with_subscription("a fetch returns no more records than were asked for and the rest comes next", ReturnsAllThereIs)


class DropsWhatIsTooMuch(Sub):
    def _take(self, max_records):
        left, out = max_records, []
        for event in super()._take(1000):
            if isinstance(event, Batch):
                event = event._replace(records=event.records[:left])
                left -= len(event.records)
            if not isinstance(event, Batch) or event.records:
                out.append(event)
        return out


with_subscription("a fetch returns no more records than were asked for and the rest comes next", DropsWhatIsTooMuch)


class ServesTheFirstPartitionFirst(Sub):
    def _take(self, max_records):
        self._turn = -1
        self.next = dict(sorted(self.next.items()))
        return super()._take(max_records)


with_subscription("no partition waits for ever behind a busy one", ServesTheFirstPartitionFirst)


class NeverGoesBack(Sub):
    def seek(self, partition, position):
        super().seek(partition, max(position, self.next.get(partition, 0)))


with_subscription("seek goes back and ahead", NeverGoesBack)


class SkipsWhatCameDuringAPause(Sub):
    def resume(self, partitions):
        for p in partitions:
            self.next[p] = len(self.log.partitions[p]) + 1
        super().resume(partitions)


with_subscription("a pause delivers nothing and resuming skips nothing", SkipsWhatCameDuringAPause)


class CannotPause(Sub):
    def pause(self, partitions):
        pass


with_subscription("a pause delivers nothing and resuming skips nothing", CannotPause)


class ForgetsASeekDuringAPause(Sub):
    def seek(self, partition, position):
        if partition not in self.paused:
            super().seek(partition, position)


with_subscription("a seek during a pause counts when it ends", ForgetsASeekDuringAPause)


class GoesOnWhereItWas(Sub):
    def _forget(self, partition):
        self.told.pop(partition, None)


with_subscription("a new assignment starts without the seek and the pause of the last", GoesOnWhereItWas)


class DeliversUnderTheEpochBefore(Sub):
    def _take(self, max_records):
        return [e._replace(epoch=e.epoch - 1) if isinstance(e, Batch) and e.epoch > 1 else e
                for e in super()._take(max_records)]  # fmt: skip


with_subscription("nothing is delivered under an epoch that has ended", DeliversUnderTheEpochBefore)


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def checkpoint_of(sub, partition):
    return sub.log.checkpoints.get((sub.group, partition)) or Checkpoint(0, b"", {})


@breaks("without a checkpoint there is none")
class HasAnEmptyCheckpoint(MemoryBroker):
    async def checkpoint(self, group, partition):
        return await super().checkpoint(group, partition) or Checkpoint(0, b"", {})


class SavesLater(Sub):
    async def save_checkpoint(self, *args):
        async def later():
            await asyncio.sleep(0.01)
            await MemorySubscription.save_checkpoint(self, *args)

        KEPT.append(asyncio.ensure_future(later()))
        return True


with_subscription("a checkpoint is there for every reader when it is saved", SavesLater)


class ForgetsWhatIsGone(Sub):
    async def save_checkpoint(self, partition, epoch, position, anchor, changed, gone):
        return await super().save_checkpoint(partition, epoch, position, anchor, changed, [])


with_subscription("changed entries are replaced gone ones removed and others stay", ForgetsWhatIsGone)


class KeepsOnlyWhatHasChanged(Sub):
    async def save_checkpoint(self, partition, epoch, position, anchor, changed, gone):
        gone = [*checkpoint_of(self, partition).entries, *gone]
        return await super().save_checkpoint(partition, epoch, position, anchor, changed, gone)


with_subscription("changed entries are replaced gone ones removed and others stay", KeepsOnlyWhatHasChanged)


class SavesUnderAnyEpoch(Sub):
    async def save_checkpoint(self, partition, epoch, *more):
        held = self.log.owned[self.group][partition]
        return await super().save_checkpoint(partition, held.epoch, *more)


with_subscription("a checkpoint under an epoch that has ended changes nothing", SavesUnderAnyEpoch)


class SavesEntriesBeforeThePosition(Sub):
    async def save_checkpoint(self, partition, epoch, position, anchor, changed, gone):
        before = checkpoint_of(self, partition)
        if before.position:
            await super().save_checkpoint(partition, epoch, before.position, before.anchor, changed, ())
            await asyncio.sleep(0)
        return await super().save_checkpoint(partition, epoch, position, anchor, changed, gone)


with_subscription("no reader ever sees a part of a checkpoint", SavesEntriesBeforeThePosition)


@breaks("groups and partitions have checkpoints of their own")
class NamesTheOldestGroupFirst(MemoryBroker):
    async def checkpoint_groups(self, partition):
        return (await super().checkpoint_groups(partition))[::-1]


@breaks("a checkpoint that was read is the readers own")
class LendsItsCheckpoint(MemoryBroker):
    async def checkpoint(self, group, partition):
        return self.log.checkpoints.get((group, partition))


class RecordsCheckpoints(Sub):
    async def save_checkpoint(self, partition, *more):
        await self.broker.append_raw(partition, [(None, b"checkpoint")])
        return await super().save_checkpoint(partition, *more)


with_subscription("a checkpoint is no record", RecordsCheckpoints)


# ---- presence --------------------------------------------------------------------------------------------------------
@breaks("who is announced is seen by all as it was told")
class TellsOnlyItself(MemoryBroker):
    async def members(self, group=None, *, gone=False):
        known = await super().members(group, gone=gone)
        return [m for m in known if m.presence.member in getattr(self, "own", ())]

    async def announce(self, presence, *, ttl=8.0):
        self.own = {*getattr(self, "own", ()), presence.member}
        await super().announce(presence, ttl=ttl)


@breaks("what a member tells replaces what it told before")
class KeepsTheFirstWord(MemoryBroker):
    async def announce(self, presence, *, ttl=8.0):
        if presence.member not in self.log.presences:
            await super().announce(presence, ttl=ttl)


@breaks("members are asked for by group or all")
class NamesEverybody(MemoryBroker):
    async def members(self, group=None, *, gone=False):
        return await super().members(gone=gone)


@breaks("who withdraws is gone and remembered")
class CannotForget(MemoryBroker):
    async def withdraw(self, member):
        pass


@breaks("who withdraws is gone and remembered")
class ForgetsWhoHasWithdrawn(MemoryBroker):
    async def withdraw(self, member):
        self.log.presences.pop(member, None)


@breaks("a presence holds for its time only")
class BelievesForEver(MemoryBroker):
    async def announce(self, presence, *, ttl=8.0):
        await super().announce(presence, ttl=1000.0)


@breaks("presence is not in the log")
class RecordsPresence(MemoryBroker):
    async def announce(self, presence, *, ttl=8.0):
        await self.append_raw(0, [(None, presence.member.encode())])
        await super().announce(presence, ttl=ttl)


# ---- hints -----------------------------------------------------------------------------------------------------------
@breaks("a hint arrives verbatim from every broker on the log")
class CutsHintsShort(MemoryBroker):
    async def notify(self, address, hint):
        await super().notify(address, hint[:512])


@breaks("a hint arrives verbatim from every broker on the log")
class LosesEveryHintOfOthers(MemoryBroker):
    async def notify(self, address, hint):
        if address in getattr(self, "own", ()):
            await super().notify(address, hint)

    @contextlib.asynccontextmanager
    async def listen(self):
        async with super().listen() as listener:
            self.own = {*getattr(self, "own", ()), listener.address}
            yield listener


@breaks("a hint goes to its address alone and every listener has another")
class TellsEverybody(MemoryBroker):
    async def notify(self, address, hint):
        for known in list(self.log.listeners):
            await super().notify(known, hint)


@breaks("a hint goes to its address alone and every listener has another")
class HasOneAddress(MemoryBroker):
    @contextlib.asynccontextmanager
    async def listen(self):
        listener = self.log.listeners.setdefault("here", MemoryListener("here"))
        yield listener


@breaks("a hint to nobody is no error")
class RaisesForNobody(MemoryBroker):
    async def notify(self, address, hint):
        self.log.listeners[address].hints.put_nowait(hint)


@breaks("a hint that is too large is refused")
class TakesHintsOfAnySize(MemoryBroker):
    async def notify(self, address, hint):
        await super().notify(address, hint[:1024])


@breaks("hints are not in the log")
class RecordsHints(MemoryBroker):
    async def notify(self, address, hint):
        await self.append_raw(0, [(None, hint)])
        await super().notify(address, hint)


# ---- other processes -------------------------------------------------------------------------------------------------
@breaks("another process works on the same log at the same time")
class ClaimsToBeShared(MemoryBroker):
    capabilities = claiming(shared_between_processes=True)


@breaks("what was appended and saved is there after a restart and epochs go on")
class ClaimsToSurvive(MemoryBroker):
    capabilities = claiming(survives_restart=True)


