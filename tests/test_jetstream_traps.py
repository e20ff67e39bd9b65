"""What is known to go wrong with JetStream, one by one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given, strategies as st
from jetstream_logs import item, new_url

from refold.brokers import open_broker
from refold.brokers.jetstream import from_url, leases, names, plan, streams, tail
from refold.brokers.jetstream.address import parse
from refold.brokers.jetstream.connection import Link
from refold.brokers.jetstream.frames import packed, unpacked
from refold.brokers.jetstream.health import durability_of
from refold.brokers.jetstream.reading import Reader
from refold.bus.broker import Appended, Assigned, Batch, Conflict, Item, LogMeta, LogSpec, Lost, Outgoing, Stored
from refold.bus.errors import (
    BrokerUnavailable,
    ConfigError,
    LogCorrupt,
    LogFull,
    LogMismatch,
    LogMissing,
    LogTruncated,
    TooLarge,
)  # fmt: skip
from refold.bus.partition import partition_of

TWO = LogSpec(partitions=2)


@asynccontextmanager
async def opened(url: str, spec: LogSpec = TWO):
    async with from_url(url) as broker:
        await broker.ensure_log(spec)
        yield broker


async def everything(broker, partition: int = 0) -> list[bytes]:
    return [r.value for r in (await broker.read(partition)).records]


async def update(broker, stream: str, **changes) -> None:
    """An administrator changes a stream."""
    config = (await broker.link.api(f"STREAM.INFO.{stream}"))["config"]
    await broker.link.api(f"STREAM.UPDATE.{stream}", config | changes)


# ---- names, frames, URLs -------------------------------------------------------------------------------------------
@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), min_size=2, max_size=6))
def test_any_key_is_one_token_of_a_subject_and_no_two_keys_share_one(keys):
    keys = [k for k in keys if k is None or k.isascii() or k.encode("utf-8", "ignore").decode() == k]
    tokens = [names.token_of(k) for k in keys]
    assert len(set(tokens)) == len(set(keys))
    for key, token in zip(keys, tokens, strict=True):
        assert token and token.isascii() and not set(token) & set(".*> \t\r\n")
        assert names.key_of(token) == key


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=30), st.integers(1, 10**9))
def test_the_records_of_a_message_come_out_as_they_went_in_below_its_position(values, sequence):
    records = unpacked(sequence, "k", *packed(values), 1.0)
    assert [r.value for r in records] == values
    assert records[-1].position == names.last_position(sequence)
    assert [names.sequence_of(r.position) for r in records] == [sequence] * len(values)
    assert names.sequence_of(records[-1].position + 1) == sequence + 1


@pytest.mark.parametrize("sizes", ["", "x", "1,x", "2,2", "-1,4", "1" * 30, ",", "\u0661,2"])
def test_a_message_whose_sizes_make_no_sense_is_a_record_as_it_is(sizes):
    assert unpacked(3, "k", b"abc", {"Refold-Sizes": sizes}, 1.0) == [Stored(30_000, "k", b"abc", 1.0)]


def test_a_url_says_all_but_what_lets_somebody_in():
    secret = "nats://user:pa%40ss@a,b:4333/ns?replicas=3&partitions=5&max_bytes=9&sync=always"
    address = parse(secret, {})
    assert address.servers == ("a:4222", "b:4333")
    assert address.secrets == {"user": "user", "password": "pa@ss"}
    assert "pass" not in address.url and "user" not in address.url and "pa@ss" not in repr(address)
    again = parse(address.url, {})
    assert (again.namespace, again.replicas, again.partitions, again.sync) == ("ns", 3, 5, "always")
    assert parse("nats://t0ken@a/ns", {}).secrets == {"token": "t0ken"}
    known = {"NATS_CREDS": "f.creds", "NATS_CA": "ca.pem", "NATS_USER": ""}
    assert parse("nats://a", known).secrets == {"creds": "f.creds", "tls_ca": "ca.pem"}
    assert parse("nats://u:p@a", known).secrets == {"user": "u", "password": "p", "tls_ca": "ca.pem"}


@pytest.mark.parametrize(
    "url",
    ["nats://", "nats:///ns", "nats://a/b/c", "nats://a/n s", "nats://a/x?replicas=0", "nats://a/x?replicas=-1",
     "nats://a/x?colour=red", "nats://a/x?sync=maybe", "nats://u:s3cret@a/x?tls=yes"],
)  # fmt: skip
def test_a_url_that_cannot_work_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError) as error:
        from_url(url)
    assert "s3cret" not in str(error.value)


def test_without_its_client_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['nats'] = None\n"
        "from refold.brokers import open_broker\n"
        "try: open_broker('nats://localhost/x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "ConfigError nats:// needs its client, which is not installed: pip install 'refold[nats]'"


def test_the_durability_class_follows_from_replicas_and_from_what_the_url_says_of_the_servers():
    found = {(r, s): durability_of(r, s)[0] for r in (1, 3) for s in ("unknown", "default", "always")}
    assert found == {
        (1, "unknown"): "D1", (1, "default"): "D1", (1, "always"): "D2",
        (3, "unknown"): "D1+D3", (3, "default"): "D1+D3", (3, "always"): "D4",
    }  # fmt: skip


def test_no_server_is_told_within_seconds_and_names_the_address(go, monkeypatch):
    async def main():
        monkeypatch.setattr("refold.brokers.jetstream.connection.CONNECT", 0.5)
        async with from_url("nats://127.0.0.1:1/x") as broker:
            with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
                await broker.ensure_log()

    go(main())


# ---- the log is verified -------------------------------------------------------------------------------------------
WRONG = {
    "max_age": {"max_age": 10**15},
    "max_msgs": {"max_msgs": 10**9},
    "discard": {"max_bytes": 10**9, "discard": "old"},
    "max_msg_size": {"max_msg_size": 1000},
    "duplicate_window": {"duplicate_window": 10**9},
    "allow_atomic": {"allow_atomic": False},
    "allow_direct": {"allow_direct": False},
    "subjects": {"subjects": ["other.>"]},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_stream_that_could_lose_records_is_refused_and_left_as_it_is(go, nats_address, name):
    async def main():
        url = new_url(nats_address)
        async with opened(url) as broker:
            stream = broker.names.stream(1)
            await update(broker, stream, **WRONG[name])
            before = (await broker.link.api(f"STREAM.INFO.{stream}"))["config"]
            async with from_url(url) as other:
                with pytest.raises(LogMismatch, match=f"{name} of {stream}"):
                    await other.ensure_log()
            assert (await broker.link.api(f"STREAM.INFO.{stream}"))["config"] == before
            health = await broker.health()
            assert not health.ok and any(name in detail for _, ok, detail, _ in health.checks if not ok)

    go(main())


def test_a_stream_that_acknowledges_what_it_has_not_stored_is_refused():
    meta = LogMeta(log_id="0190-12345678", partitions=1, stride=names.SPAN)
    wanted = streams.config_of_log(names.Names("ns", meta.log_id), 0, 1, -1, meta)
    assert streams.differences(wanted, wanted) == []
    for odd in ({"persist_mode": "async"}, {"storage": "memory"}, {"sealed": True}, {"sources": [{"name": "x"}]}):
        assert len(streams.differences(wanted | odd, wanted)) == 1


def test_a_stream_of_somebody_else_is_no_log(go, nats_address):
    async def main():
        url = new_url(nats_address)
        async with opened(new_url(nats_address)) as broker:
            name = url.rpartition("/")[2]
            await broker.link.api(f"STREAM.CREATE.{name}_control", {"name": f"{name}_control", "subjects": [name]})
        async with from_url(url) as other:
            with pytest.raises(LogCorrupt, match="no log of refold"):
                await other.ensure_log()

    go(main())


def test_a_log_needs_room_for_its_headers_in_the_servers_max_payload(go, nats_address):
    async def main():
        async with from_url(new_url(nats_address)) as broker:
            with pytest.raises(ConfigError, match="max_payload"):
                await broker.ensure_log(LogSpec(max_append=1024 * 1024))
            with pytest.raises(LogMissing):
                await broker.ensure_log(create=False)

    go(main())


def test_a_log_that_lost_a_stream_is_refused_and_the_stream_not_made_again(go, nats_address):
    async def main():
        url = new_url(nats_address)
        async with opened(url) as broker:
            await broker.append([item(1, "k", "a")])
            await broker.link.api(f"STREAM.DELETE.{broker.names.stream(1)}")
            async with from_url(url) as other:
                for _ in range(2):
                    with pytest.raises(LogCorrupt, match=broker.names.stream(1)):
                        await other.ensure_log()
            assert not (await broker.health()).ok

    go(main())


def test_who_dies_while_making_a_log_leaves_one_that_the_next_completes(go, nats_address, monkeypatch):
    async def main():
        url = new_url(nats_address)
        with monkeypatch.context() as patch:
            patch.setattr(streams, "_open_streams", _dies)
            async with from_url(url) as broker:
                with pytest.raises(SystemError):
                    await broker.ensure_log(TWO)
        async with from_url(url) as broker:
            with pytest.raises(LogMissing):
                await broker.ensure_log(create=False)
            assert (await broker.ensure_log(TWO)).partitions == 2

    go(main())


def test_who_opens_a_log_while_another_completes_it_finds_it_whole(go, nats_address, monkeypatch):
    async def main():
        url = new_url(nats_address)
        with monkeypatch.context() as patch:
            patch.setattr(streams, "_open_streams", _dies)
            async with from_url(url) as broker:
                with pytest.raises(SystemError):
                    await broker.ensure_log(TWO)
        look = streams._is_complete

        async def other_was_faster(link, known):
            monkeypatch.setattr(streams, "_is_complete", look)
            async with from_url(url) as other:
                await other.ensure_log(TWO)
            return await look(link, known)

        monkeypatch.setattr(streams, "_is_complete", other_was_faster)
        async with from_url(url) as broker:
            assert (await broker.ensure_log(TWO)).partitions == 2

    go(main())


async def _dies(*_):
    raise SystemError


# ---- appending -----------------------------------------------------------------------------------------------------
def losing(broker, times: int):
    """Let the next answers to what is published be lost."""
    answer, left = broker.link.answer, [times]

    async def lost(future, subject, within=5.0):
        if left[0] and not subject.startswith("$JS"):
            left[0] -= 1
            await answer(future, subject, within)
            raise BrokerUnavailable("lost on its way")
        return await answer(future, subject, within)

    broker.link.answer = lost


@pytest.mark.parametrize("times", [1, 3])
def test_an_append_whose_acknowledgement_was_lost_is_stored_once(go, nats_address, times):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            losing(broker, times)
            (first,) = await broker.append([item(0, "k", "a", "b")])
            assert first == Appended((9999, 10000))
            losing(broker, times)
            (second,) = await broker.append([item(0, "k", "c", after=10000)])
            assert second == Appended((20000,))
            losing(broker, times)
            assert await broker.append_raw(0, [("k", b"d"), (None, b"e"), (None, b"f")]) == (30000, 39999, 40000)
            assert await everything(broker) == [b"a", b"b", b"c", b"d", b"e", b"f"]

    go(main())


def test_an_append_that_lost_its_acknowledgement_and_then_the_race_is_no_conflict_with_itself(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            losing(broker, 1)
            (mine,) = await broker.append([item(0, "k", "a", after=0)])
            assert mine == Appended((10000,))
            assert await broker.append([item(0, "k", "b", after=0)]) == [Conflict(10000)]

    go(main())


def test_nothing_overtakes_a_record_whose_acknowledgement_was_lost(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            ask, left = broker.link.ask, [1]

            async def ask_once(subject, payload=b"", headers=None):
                if payload == b"b" and left[0]:  # it never arrives
                    left[0] = 0
                    future = asyncio.get_running_loop().create_future()
                    future.set_exception(BrokerUnavailable("lost on its way"))
                    return future
                return await ask(subject, payload, headers)

            broker.link.ask = ask_once
            with pytest.raises(BrokerUnavailable):
                await broker.append([item(0, "k", "a"), item(0, "k", "b"), item(0, "k", "c")])
            assert await everything(broker) == [b"a", b"c"]
            await broker.append([item(0, "k", "b")])

    go(main())


def test_a_full_stream_is_told_and_takes_more_when_it_has_space(go, nats_address):
    async def main():
        url = new_url(nats_address, max_bytes=100_000)
        async with opened(url) as broker:

            async def fill():
                for n in range(50):
                    await broker.append([Item(0, "k", (Outgoing(f"{n}", b"x" * 10_000),))])

            with pytest.raises(LogFull):
                await fill()
            before = await everything(broker)
            assert 5 < len(before) < 11
            await broker.append([item(1, "k", "elsewhere")])
            await update(broker, broker.names.stream(0), max_bytes=10**7)
            await broker.append([item(0, "k", "a")])
            assert await everything(broker) == [*before, b"a"]

    go(main())


def test_more_records_than_a_message_holds_are_refused_and_the_connection_stays(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            many = tuple(Outgoing(f"{n}", b"") for n in range(names.SPAN + 1))
            with pytest.raises(TooLarge):
                await broker.append([Item(0, "k", many)])
            (stored,) = await broker.append([Item(0, "k", many[:-1])])
            assert isinstance(stored, Appended) and len(stored.positions) == names.SPAN == stored.positions[-1]
            assert broker.link.reconnects == 0

    go(main())


# ---- a log that is gone, made again, or shorter --------------------------------------------------------------------
async def made_again(broker, same: bool) -> None:
    """Delete the streams and make them again: as those of the same log, or of another."""
    meta = broker.meta if same else msgspec.structs.replace(broker.meta, log_id="0190aaaa-another")
    for config in streams.configs(names.Names(broker.names.namespace, meta.log_id), 1, -1, meta):
        await broker.link.api(f"STREAM.DELETE.{config['name']}")
        await broker.link.api(f"STREAM.CREATE.{config['name']}", config)


def test_a_log_that_was_made_again_takes_nothing_of_who_knew_the_old_one(go, nats_address, monkeypatch):
    async def main():
        monkeypatch.setattr("refold.brokers.jetstream.appending.PATIENCE", 0.5)
        monkeypatch.setattr("refold.brokers.jetstream.appending.SETTLES", 0.2)
        url = new_url(nats_address)
        async with opened(url) as broker:
            await broker.append([item(0, "k", "a")])
            await made_again(broker, same=False)
            with pytest.raises((LogMissing, LogTruncated)):
                await broker.append([item(0, "k", "b")])
            with pytest.raises(LogMissing):
                await broker.ensure_log()
            async with opened(url) as other:
                assert await everything(other) == []

    go(main())


def test_a_log_that_is_shorter_than_it_was_stops_who_appends_and_who_reads(go, nats_address, monkeypatch):
    async def main():
        monkeypatch.setattr("refold.brokers.jetstream.appending.SETTLES", 0.2)
        monkeypatch.setattr(tail, "SILENCE", 0.5)
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            for n in range(3):
                await broker.append([item(0, "k", f"r{n}")])
            assert sorted(await assigned(sub)) == [0, 1]
            sub.seek(0, 0)
            assert len(await records(sub, 3)) == 3
            await made_again(broker, same=True)
            with pytest.raises(LogTruncated, match="restored or made again"):
                await broker.append([item(0, "k", "b")])
            with pytest.raises(LogTruncated, match="restored or made again"):
                await records(sub, 1)

    go(main())


async def assigned(sub) -> dict[int, int]:
    out: dict[int, int] = {}
    while len(out) < 2:
        out |= {e.partition: e.epoch for e in await sub.fetch(max_wait=0.2) if isinstance(e, Assigned)}
    return out


async def records(sub, count: int) -> list[bytes]:
    out: list[bytes] = []
    while len(out) < count:
        for event in await sub.fetch(max_wait=0.2):
            out += [r.value for r in event.records] if isinstance(event, Batch) else []
    return out


# ---- following -----------------------------------------------------------------------------------------------------
def test_a_message_that_is_lost_on_its_way_to_a_reader_is_read_again_in_its_place(go, nats_address, monkeypatch):
    async def main():
        hear, heard = tail.Tail._hear, [0]

        def loses_some(self, msg):
            heard[0] += 1
            return hear(self, msg) if heard[0] not in (3, 9, 16) else False

        monkeypatch.setattr(tail.Tail, "_hear", loses_some)
        monkeypatch.setattr(tail, "AGAIN", 0.01)
        monkeypatch.setattr(tail, "SILENCE", 0.3)
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            for n in range(20):
                await broker.append([item(0, "k", f"{n}a", f"{n}b")])
            await assigned(sub)
            sub.seek(0, 0)
            assert await records(sub, 40) == [f"{n}{x}".encode() for n in range(20) for x in "ab"]
            assert heard[0] > 20

    go(main())


def test_a_consumer_that_the_server_has_forgotten_is_made_again(go, nats_address, monkeypatch):
    async def main():
        monkeypatch.setattr(tail, "SILENCE", 0.5)
        monkeypatch.setattr(tail, "HEARTBEAT", 0.2)
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            await broker.append([item(0, "k", "a")])
            await assigned(sub)
            sub.seek(0, 0)
            assert await records(sub, 1) == [b"a"]
            stream = broker.names.stream(0)
            for name in (await broker.link.api(f"CONSUMER.NAMES.{stream}"))["consumers"]:
                await broker.link.api(f"CONSUMER.DELETE.{stream}.{name}")
            await broker.append([item(0, "k", "b")])
            assert await records(sub, 1) == [b"b"]

    go(main())


def test_a_seek_into_the_middle_of_an_item_delivers_the_rest_of_it(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            (stored,) = await broker.append([item(0, "k", *"abcd")])
            await assigned(sub)
            sub.seek(0, stored.positions[2])
            assert await records(sub, 2) == [b"c", b"d"]
            assert await broker.append([item(0, "k", "x", after=stored.positions[2])]) == [Conflict(10000)]

    go(main())


def test_what_others_publish_to_the_log_is_read_as_it_is(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            subject = broker.names.subject(0, "k")
            await broker.link.request(subject, b"garbage", {"Refold-Sizes": "what?", "Foreign": "yes"})
            await broker.link.request(f"{broker.names.root}.0.a.b.%zz", b"odd subject")
            await broker.append([item(0, "k", "a")])
            assert await everything(broker) == [b"garbage", b"odd subject", b"a"]
            keys = [r.key for r in (await broker.read(0)).records]
            assert keys[0] == keys[2] == "k" and len(set(keys)) == 2

    go(main())


def test_a_message_that_looks_like_a_word_of_the_server_is_a_record_like_any_other(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            for word in ("404", "204", "409", "100", "503"):
                odd = {"Status": word, "Nats-Sequence": "99", "Nats-Num-Pending": "0", "Nats-Pending-Messages": "7"}
                await broker.link.request(broker.names.subject(0, "k"), word.encode(), odd)
            await broker.append([item(0, "k", "a")])
            wanted = [b"404", b"204", b"409", b"100", b"503", b"a"]
            assert await everything(broker) == wanted
            assert [r.position for r in (await broker.read(0)).records] == [10_000 * n for n in range(1, 7)]
            await assigned(sub)
            sub.seek(0, 0)
            assert await records(sub, 6) == wanted

    go(main())


def test_garbage_beside_the_leases_disturbs_nobody(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            known = broker.names
            for subject in (known.peer("g", "x"), f"{known.group('g')}.lease.x", known.presence("x")):
                await broker.link.request(subject, b"\xffgarbage")
            async with broker.subscribe("g", "m") as sub:
                assert await assigned(sub) == {0: 1, 1: 1}
            assert await broker.members() == []

    go(main())


# ---- owning --------------------------------------------------------------------------------------------------------
def test_who_was_taken_for_dead_by_mistake_has_lost_all_and_joins_anew(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m", lease=2.0) as sub:
            before = await assigned(sub)
            token = sub.keeper.token
            view, _ = await leases.read(broker.reader, broker.names, "g")
            (peer,) = view.peers
            buried = None
            while buried is None:
                view, _ = await leases.read(broker.reader, broker.names, "g")
                (peer,) = view.peers
                subject = broker.names.peer("g", token)
                buried = await leases.put(broker.link, subject, b"", peer.counter, leases.GONE)
            events = []
            while len(events) < 4:
                events += await sub.fetch(max_wait=0.2)
            assert {(e.partition, e.epoch) for e in events if isinstance(e, Lost)} == set(before.items())
            again = {e.partition: e.epoch for e in events if isinstance(e, Assigned)}
            assert again == {p: epoch + 1 for p, epoch in before.items()}
            assert sub.keeper.token != token
            for partition, epoch in before.items():
                assert not await sub.save_checkpoint(partition, epoch, 1, b"", {}, [])

    go(main())


def test_a_second_member_of_one_name_is_refused(go, nats_address):
    async def main():
        url = new_url(nats_address)
        async with opened(url) as broker, broker.subscribe("g", "m"), opened(url) as other:
            with pytest.raises(ConfigError, match="choose another --member"):
                async with other.subscribe("g", "m"):
                    pass

    go(main())


# ---- checkpoints ---------------------------------------------------------------------------------------------------
def test_a_checkpoint_is_larger_than_a_message_and_what_it_no_longer_names_is_purged(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker, broker.subscribe("g", "m") as sub:
            epochs = await assigned(sub)
            large = {b"large": bytes(3_000_000)} | {b"%d" % n: b"x" * 100 for n in range(5000)}
            orphan = broker.names.segment("g", 0, "0-dead")
            await broker.link.request(orphan, b"of an owner that died in the middle of a save")
            assert await sub.save_checkpoint(0, epochs[0], 1, b"", large, [])
            for n in range(80):
                changed = {b"%d" % i: b"%d" % n for i in range(n * 50, n * 50 + 400)}
                large |= changed
                assert await sub.save_checkpoint(0, epochs[0], 2 + n, b"", changed, [b"large"] if n == 40 else [])
            large.pop(b"large")
            found = await broker.checkpoint("g", 0)
            assert found is not None and found.position == 81 and found.entries == large
            held = await leases.hold_of(broker.reader, broker.names, "g", 0)
            named = {broker.names.segment("g", 0, s.name) for s in held.hold.head.segments}
            asked = {"subjects_filter": f"{broker.names.root}.checkpoint.>"}
            state = (await broker.link.api(f"STREAM.INFO.{broker.names.checkpoints}", asked))["state"]
            assert set(state["subjects"]) == named and len(named) <= 33

    go(main())


def test_a_workflow_is_never_read_past_a_record_that_came_while_its_partition_was_read(go, nats_address, monkeypatch):
    """Its subject and the partition's own are read at two moments: an owner's record that is newer than the first of
    these must not hide the answer that came between them."""
    url = new_url(nats_address)

    async def main():
        async with opened(url) as broker:
            partition = partition_of("w", 2)
            await broker.append([item(partition, "w", "ask")])
            of_key, read = Reader._of_key, asyncio.Event()

            async def slowly(self, partition, key, after, limit):
                if key is None:
                    await read.wait()
                found = await of_key(self, partition, key, after, limit)
                if key == "w" and not read.is_set():
                    await broker.append([item(partition, "w", "answer")])
                    await broker.append_raw(partition, [(None, b"owner")])
                    read.set()
                return found

            monkeypatch.setattr(Reader, "_of_key", slowly)
            seen, after = [], 0
            for _ in range(2):
                page = await broker.read_workflow("w", after=after)
                assert page.next is None
                seen += page.records
                after = page.records[-1].position
            assert len(seen) == 3
            assert seen[2].key is None

    go(main())


# ---- what an administrator makes -----------------------------------------------------------------------------------
def test_the_plan_for_an_administrator_makes_a_log_that_refold_accepts(go, nats_address):
    async def main():
        url = new_url(nats_address)
        lines = plan.commands(parse(f"{url}?partitions=3"), now=1.0)
        documents = [line.partition("printf %s '")[2].partition("' >")[0] for line in lines if "stream add" in line]
        assert len(documents) == 5
        link = Link(parse(url))
        await link.open()
        for document in documents:
            config = json.loads(document)
            await link.api(f"STREAM.CREATE.{config['name']}", config)
        _, _, subject, said = lines[-1].split(" ", 3)
        await link.request(subject, said.strip("'").encode())
        await link.close()
        async with from_url(url) as broker:
            assert (await broker.ensure_log(create=False)).partitions == 3
            await broker.append([item(2, "k", "a")])

    go(main())


def test_reconnecting_is_never_given_up(go, nats_address):
    async def main():
        async with opened(new_url(nats_address)) as broker:
            assert broker.link.client.options["max_reconnect_attempts"] == -1

    go(main())


def test_open_broker_knows_the_scheme():
    assert open_broker("nats://localhost/ns").url == "nats://localhost:4222/ns"


def test_the_script_for_an_administrator_ends_with_the_rights_of_refolds_user():
    lines = plan.text(parse("nats://host/ns?partitions=1")).splitlines()
    assert [line for line in lines if "stream add" in line] == lines[1:4]
    rights = dict(line.removeprefix("#").strip().split(": ", 1) for line in lines[-2:])
    assert json.loads(rights["publish"])[0].startswith("ns.") and "_INBOX.>" in json.loads(rights["subscribe"])
