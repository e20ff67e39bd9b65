"""Reading by direct get: pages of a stream or of one subject, without a consumer."""

from __future__ import annotations

import asyncio
import calendar
import math
import time as clock
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from ...bus.broker import At, Page, Stored
from ...bus.errors import BrokerUnavailable, LogMissing, LogTruncated
from .connection import NO_MESSAGE, NO_STREAM, PATIENCE, Link, Refused, status
from .frames import unpacked
from .names import Names, key_of, last_position, sequence_of

PAGE_BYTES = 8 * 1024 * 1024
SEQUENCE, SUBJECT, TIME = "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"
BEFORE, LEFT = "Nats-Last-Sequence", "Nats-Num-Pending"


class Got(NamedTuple):
    """Messages of a stream in order, and how many more match what was asked for."""

    messages: list[Msg]
    left: int


@lru_cache(maxsize=256)
def _minute(text: str) -> int:
    return calendar.timegm(clock.strptime(text, "%Y-%m-%dT%H:%M"))


def seconds(text: str) -> float:
    """Return unix seconds of a time as the server writes it; nanoseconds are rounded as everywhere here."""
    whole, _, part = text[17:].rstrip("Z").partition(".")
    return ((_minute(text[:16]) + int(whole)) * 1_000_000_000 + int((part or "0").ljust(9, "0")[:9])) / 1e9


def written(time: float) -> str:
    """Return a time as the server reads it, a little earlier than it is: floats know no nanoseconds."""
    at = max(0, math.floor(time * 1e9) - 1000) if math.isfinite(time) else 0
    whole, part = divmod(min(at, 9_000_000_000 * 10**9), 1_000_000_000)
    return f"{clock.strftime('%Y-%m-%dT%H:%M:%S', clock.gmtime(whole))}.{part:09}Z"


async def get(link: Link, stream: str, body: Mapping[str, object]) -> Got:
    """Return the messages that a direct get finds. Raises BrokerUnavailable."""
    return await link.look(lambda within: _get(link, stream, body, within))


async def _get(link: Link, stream: str, body: Mapping[str, object], within: float) -> Got:
    """Ask once. Raises BrokerUnavailable, also where a message was lost on its way."""
    subject = f"$JS.API.DIRECT.GET.{stream}"
    out: list[Msg] = []
    before = 0
    async with link.collect(subject, body) as queue:
        while True:
            if queue.empty():  # else no timer is needed
                try:
                    async with asyncio.timeout(within):
                        msg = await queue.get()
                except TimeoutError:
                    raise BrokerUnavailable(f"no answer from {subject} within {within:g} s") from None
            else:
                msg = queue.get_nowait()
            if isinstance(msg, Exception):
                raise msg
            headers = msg.headers or {}
            said = None if SEQUENCE in headers else status(msg)  # a record may have any header, also that one
            if said is None:
                if int(headers.get(BEFORE, before)) != before:
                    raise BrokerUnavailable(f"an answer of {subject} was lost on its way")
                before = int(headers[SEQUENCE])
                out.append(msg)
                if "batch" not in body:
                    return Got(out, 0)
            elif said == "204":
                return Got(out, int(headers.get(LEFT, 0)))
            elif said == "404":
                return Got(out, 0)
            else:
                raise BrokerUnavailable(f"{subject} answers {said} {headers.get('Description', '')!r}")


def records_of(msg: Msg) -> list[Stored]:
    """Return the records of a message that a direct get has found."""
    headers = msg.headers or {}
    key = key_of(headers[SUBJECT].split(".", 3)[3])
    return unpacked(int(headers[SEQUENCE]), key, msg.data, headers, seconds(headers[TIME]))


class Reader:
    """Reads a log. On replicated streams any replica may answer: an answer counts if it covers what its leader has."""

    def __init__(self, link: Link, names: Names, replicated: bool) -> None:
        self._link, self._names, self._replicated = link, names, replicated

    # ---- what the leader says ----------------------------------------------------------------------------------------
    async def state(self, stream: str) -> dict[str, Any]:
        """Return the state of a stream, as its leader has it. Raises LogMissing."""
        try:
            found: dict[str, Any] = await self._link.asked(f"STREAM.INFO.{stream}")
        except Refused as error:
            if error.code == NO_STREAM:
                raise LogMissing(f"the stream {stream} is gone") from error
            raise BrokerUnavailable(f"{stream}: {error}") from error
        return found

    async def leaders(self, stream: str, body: Mapping[str, object]) -> dict[str, Any] | None:
        """Return one message as the stream's leader has it; None where there is none."""
        try:
            found: dict[str, Any] = (await self._link.asked(f"STREAM.MSG.GET.{stream}", body))["message"]
        except Refused as error:
            if error.code == NO_MESSAGE:
                return None
            if error.code == NO_STREAM:
                raise LogMissing(f"the stream {stream} is gone") from error
            raise BrokerUnavailable(f"{stream}: {error}") from error
        return found

    async def last_of(self, stream: str, subject: str) -> int:
        """Return the sequence of a subject's last message, 0 where there is none."""
        found = await self.leaders(stream, {"last_by_subj": subject})
        return int(found["seq"]) if found is not None else 0

    # ---- pages -------------------------------------------------------------------------------------------------------
    async def span(self, stream: str, body: dict[str, object], up_to: int, by_time: bool = False) -> Got:
        """Return what a direct get finds, from a replica that has the message `up_to` (0: from any).

        By time it may find nothing although the message is there.
        """
        until = clock.monotonic() + PATIENCE
        while True:
            got = await get(self._link, stream, body)
            last = int((got.messages[-1].headers or {})[SEQUENCE]) if got.messages else 0
            if got.left or last >= up_to or (by_time and not last):
                return got
            if clock.monotonic() > until:
                raise BrokerUnavailable(f"{stream}: no replica that has {up_to} has answered within {PATIENCE:g} s")
            await asyncio.sleep(0.005)

    async def page(self, partition: int, start: int | At, end: int | None, limit: int) -> Page:
        """Return records with start <= position < end."""
        stream = self._names.stream(partition)
        body: dict[str, object] = {"batch": limit, "max_bytes": PAGE_BYTES}
        if isinstance(start, At):
            body["start_time"] = written(start.time)
        else:
            if end is not None and end <= start:
                return Page([], None)
            body["seq"] = max(1, sequence_of(start))
        up_to = int((await self.state(stream))["state"]["last_seq"]) if self._replicated else 0
        if isinstance(start, int) and up_to < sequence_of(start):
            up_to = 0  # nothing is there: nothing can be missing
        got = await self.span(stream, body, up_to, by_time=isinstance(start, At))
        records = [r for msg in got.messages for r in records_of(msg) if _from(r, start)]
        more = got.left > 0
        if end is not None:
            inside = [r for r in records if r.position < end]
            more = more and len(inside) == len(records)
            records = inside
        if len(records) > limit:
            records, more = records[:limit], True
        if more and not records:  # all were before the start: a page of the rest
            at = int((got.messages[-1].headers or {})[SEQUENCE])
            return await self.page(partition, last_position(at) + 1, end, limit)
        return Page(records, records[-1].position + 1 if more else None)

    async def workflow(self, partition: int, key: str, after: int, limit: int) -> Page:
        """Return records of a workflow and its partition's own, with position > after.

        Two subjects are read at two moments, so nothing counts that is newer than both: who goes on behind the newest
        record of one would never see what the other has had before it.
        """
        end = last_position(int((await self.state(self._names.stream(partition)))["state"]["last_seq"]))
        found = await asyncio.gather(*(self._of_key(partition, k, after, limit) for k in (key, None)))
        bound = min((records[-1].position for records, more in found if more), default=None)
        top = end if bound is None else min(bound, end)
        merged = sorted((r for records, _ in found for r in records if r.position <= top), key=attrgetter("position"))
        more = (bound is not None and bound <= end) or len(merged) > limit
        return Page(merged[:limit], merged[:limit][-1].position if more else None)

    async def _of_key(self, partition: int, key: str | None, after: int, limit: int) -> tuple[list[Stored], bool]:
        stream, subject = self._names.stream(partition), self._names.subject(partition, key)
        up_to = await self.last_of(stream, subject) if self._replicated else 0
        seq = max(1, sequence_of(after + 1))
        body: dict[str, object] = {"seq": seq, "next_by_subj": subject, "batch": limit + 1, "max_bytes": PAGE_BYTES}
        got = await self.span(stream, body, up_to if up_to >= seq else 0)
        records = [r for msg in got.messages for r in records_of(msg) if r.position > after]
        return records, got.left > 0 and bool(records)

    async def at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        """Return the records at these positions, ascending. Raises LogTruncated."""
        wanted = sorted(set(positions))
        if wanted and wanted[0] < 1:
            raise LogTruncated(f"partition {partition} holds no record at {wanted[0]}")
        sequences = sorted({sequence_of(p) for p in wanted})
        found: dict[int, Stored] = {}
        for some in (sequences[i : i + 256] for i in range(0, len(sequences), 256)):
            for records in await asyncio.gather(*(self._message(partition, s) for s in some)):
                found |= {r.position: r for r in records}
        missing = [p for p in wanted if p not in found]
        if missing:
            raise LogTruncated(f"partition {partition} holds no record at {missing[0]}")
        return [found[p] for p in wanted]

    async def _message(self, partition: int, sequence: int) -> list[Stored]:
        stream = self._names.stream(partition)
        got = await get(self._link, stream, {"seq": sequence})
        if not got.messages and self._replicated:  # by a replica that lags behind, maybe
            up_to = int((await self.state(stream))["state"]["last_seq"])
            if sequence <= up_to:
                got = await self.span(stream, {"seq": sequence, "batch": 1}, sequence)
        return [r for msg in got.messages if int((msg.headers or {})[SEQUENCE]) == sequence for r in records_of(msg)]

    async def latest(self, subject: str) -> list[Msg]:
        """Return the last message of each subject of the control stream that matches."""
        stream, everything = self._names.control, f"{self._names.root}.control.>"
        up_to = await self.last_of(stream, everything) if self._replicated else 0
        until = clock.monotonic() + PATIENCE
        while True:  # a replica that has the stream's last message has all: hence everything is asked for
            found = await self._listed(stream, everything if self._replicated else subject)
            if not up_to or max(found, default=0) >= up_to:
                break
            if clock.monotonic() > until:
                raise BrokerUnavailable(f"{stream}: no replica that has {up_to} has answered within {PATIENCE:g} s")
            await asyncio.sleep(0.005)
        last = {(msg.headers or {})[SUBJECT]: msg for _, msg in sorted(found.items())}
        return [msg for name, msg in last.items() if matches(name, subject)]

    async def _listed(self, stream: str, subject: str) -> dict[int, Msg]:
        out: dict[int, Msg] = {}
        while True:
            body = {"seq": max(out, default=0) + 1, "next_by_subj": subject, "batch": 5000}
            got = await get(self._link, stream, body)
            out |= {int((msg.headers or {})[SEQUENCE]): msg for msg in got.messages}
            if not got.left or not got.messages:
                return out


def matches(subject: str, pattern: str) -> bool:
    """Return whether a subject matches one with wildcards."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        tokens = tokens[: len(wanted)] if len(tokens) > len(wanted) else []
    return len(tokens) == len(wanted) and all(w in ("*", t) for t, w in zip(tokens, wanted, strict=True))


def _from(record: Stored, start: int | At) -> bool:
    return record.time >= start.time if isinstance(start, At) else record.position >= start
