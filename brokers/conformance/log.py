"""A log is made, verified, described, and closed."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

from ...bus.broker import ANY_LOG, DEFAULT_MAX_APPEND, DEFAULT_MAX_RECORD, RULES, Appended, LogSpec
from ...bus.errors import BrokerUnavailable, LogMismatch, LogMissing
from .case import Cases
from .stage import TWO, Stage, appended, check, equal, item, keys, raising, value, values, whole

CASES = Cases()
DURABILITY = re.compile(r"D0|D[1-4](\+D[1-4])*")


@CASES.add("Broker.ensure_log")
async def a_log_that_is_not_there_is_missing_and_looking_for_it_makes_none(stage: Stage) -> None:
    for _ in range(2):
        with raising(LogMissing, what="ensure_log(create=False) without a log"):
            await stage.connect().ensure_log(create=False)
    await stage.open()
    meta = await stage.connect().ensure_log(create=False)
    equal(meta.partitions, 2, "the partitions of a log that is there")


@CASES.add("Broker.ensure_log", "Broker.meta")
async def a_log_is_made_as_it_was_asked_for_and_says_so(stage: Stage) -> None:
    broker = stage.connect()
    meta = await broker.ensure_log(LogSpec(partitions=3, max_record=70_000, max_append=90_000))
    found = (meta.partitions, meta.max_record, meta.max_append, meta.rules)
    equal(found, (3, 70_000, 90_000, RULES), "partitions, max_record, max_append and rules of the log")
    check(meta.log_id, "a log without `log_id`")
    equal(broker.meta, meta, "`meta` after ensure_log")
    equal((await stage.open(ANY_LOG)).meta, meta, "`meta` of another broker on the log")
    equal(sorted(await broker.positions("end")), [0, 1, 2], "the partitions that have positions")


@CASES.add("Broker.ensure_log")
async def what_is_not_asked_for_has_the_defaults_of_every_log(stage: Stage) -> None:
    meta = await stage.connect().ensure_log()
    check(meta.partitions >= 1, "a log without partitions")
    equal((meta.max_record, meta.max_append), (DEFAULT_MAX_RECORD, DEFAULT_MAX_APPEND), "max_record and max_append")


@CASES.add("Broker.ensure_log")
async def a_log_that_is_there_is_verified_and_never_changed(stage: Stage) -> None:
    broker = await stage.open()
    (at,) = await appended(broker, item(0, None, "a"))
    before = broker.meta
    for spec in (TWO, ANY_LOG, LogSpec(max_record=before.max_record)):
        equal(await broker.ensure_log(spec), before, "the log after it was verified again")
        equal(await stage.connect().ensure_log(spec), before, "the log as another broker finds it")
    equal([r.position for r in await whole(broker, 0)], [at], "the records after the log was verified")


@CASES.add("Broker.ensure_log")
async def a_log_that_is_not_what_was_asked_for_names_each_difference_and_stays(stage: Stage) -> None:
    broker = await stage.open(LogSpec(partitions=2, max_record=70_000))
    spec = LogSpec(partitions=7, max_record=80_001, max_append=broker.meta.max_append)
    for create in (True, False):
        try:
            await stage.connect().ensure_log(spec, create=create)
        except LogMismatch as error:
            for part in ("partitions", "2", "7", "max_record", "70000", "80001"):
                check(part in str(error), f"the error names no {part}: {error}")
            check("max_append" not in str(error), f"the error names what does not differ: {error}")
        else:
            check(False, "a log of other settings was accepted")
    equal(await stage.connect().ensure_log(), broker.meta, "the log after it was refused")


@CASES.add("Broker.ensure_log")
async def several_that_make_a_log_at_once_make_one(stage: Stage) -> None:
    brokers = [stage.connect() for _ in range(4)]
    metas = await asyncio.gather(*(broker.ensure_log(TWO) for broker in brokers))
    equal(len({meta.log_id for meta in metas}), 1, "how many logs there are")
    for n, broker in enumerate(brokers):
        await appended(broker, item(0, None, f"r{n}"))
    equal(len(await whole(brokers[0], 0)), 4, "records of four brokers")


@CASES.add("Broker.meta")
async def two_logs_have_two_ids(stage: Stage) -> None:
    first, other = await stage.open(), stage.subject.new_log()()
    try:
        await other.ensure_log(TWO)
        check(other.meta.log_id != first.meta.log_id, "two logs have one log_id")
        await appended(first, item(0, None, "a"))
        equal(await whole(other, 0), [], "what another log holds")
    finally:
        await other.aclose()


@CASES.add("Broker.ensure_log", "Broker.meta")
async def before_a_log_is_made_there_is_none_to_work_on(stage: Stage) -> None:
    broker = stage.connect()
    with raising(LogMissing, what="`meta` before ensure_log"):
        _ = broker.meta
    with raising(LogMissing, what="append before ensure_log"):
        await broker.append([item(0, None, "a")])
    with raising(LogMissing, what="read before ensure_log"):
        await broker.read(0)
    with raising(LogMissing, what="read_workflow before ensure_log"):
        await broker.read_workflow("w")
    with raising(LogMissing, what="subscribe before ensure_log"):
        async with broker.subscribe("g", "a"):
            pass


@CASES.add("Broker.url", "Broker.capabilities")
async def a_broker_says_where_it_is_and_what_it_can_before_it_is_opened(stage: Stage) -> None:
    broker = stage.connect()
    url, claims = broker.url, broker.capabilities
    check("://" in url and urlsplit(url).password is None, f"{url!r} is no URL, or holds a password")
    await broker.ensure_log(TWO)
    equal((broker.url, broker.capabilities), (url, claims), "url and capabilities of an open broker")


@CASES.add("Broker.health")
async def health_names_a_durability_and_why_and_changes_nothing(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, item(0, None, "a"))
    before = (await broker.positions("end"), broker.meta)
    health = await broker.health()
    check(DURABILITY.fullmatch(health.durability), f"{health.durability!r} is no durability class (D0 .. D4)")
    check(health.why, "no `why` of the durability class")
    check(health.ok, f"a log that works is not ok: {health.checks}")
    check(all(len(c) == 4 and c[0] for c in health.checks), "a check is (name, ok, detail, remedy)")
    survives = broker.capabilities.survives_restart
    equal(health.durability != "D0", survives, f"{health.durability}: whether records survive their process")
    equal((await broker.positions("end"), broker.meta), before, "the log after a look at its health")


@CASES.add("Broker.aclose")
async def closing_twice_is_closing_once_and_what_was_appended_stays(stage: Stage) -> None:
    broker, other = await stage.pair()
    await appended(broker, item(0, None, "a"))
    await broker.aclose()
    await broker.aclose()
    await broker.__aexit__(None, None, None)
    equal(values(await whole(other, 0)), [value("a")], "the log after a broker on it was closed")
    await appended(other, item(0, None, "b"))


@CASES.add("Broker.aclose")
async def a_broker_that_was_never_opened_can_be_closed(stage: Stage) -> None:
    await stage.connect().aclose()
    async with stage.connect():
        pass


@CASES.add("Broker.aclose", "Broker.append")
async def closing_finishes_the_appends_that_were_accepted(stage: Stage) -> None:
    broker, other = await stage.pair()
    waiting = [stage.do(broker.append([item(n % 2, None, f"r{n}")])) for n in range(40)]
    await asyncio.sleep(0)
    await broker.aclose()
    done = [await task for task in waiting]
    check(all(isinstance(r, Appended) for (r,) in done), f"an append that was accepted before closing: {done}")
    found = sorted(values(await whole(other, 0)) + values(await whole(other, 1)))
    equal(found, sorted(value(f"r{n}") for n in range(40)), "the log after a broker with open appends was closed")


@CASES.add("Broker.aclose")
async def an_append_to_a_closed_broker_is_refused_or_in_the_log(stage: Stage) -> None:
    broker, other = await stage.pair()
    await broker.aclose()
    try:
        (result,) = await broker.append([item(0, None, "late")])
    except BrokerUnavailable:
        equal(await whole(other, 0), [], "the log after an append was refused")
    else:
        check(isinstance(result, Appended), f"an append to a closed broker: {result}")
        equal(values(await whole(other, 0)), [value("late")], "the log after an append was answered")


@CASES.add("Broker.aclose", "Broker.subscribe")
async def closing_lets_others_have_what_it_owned_at_once(stage: Stage) -> None:
    broker, other = await stage.pair()
    await stage.lone(broker)
    heir = await stage.join(other, "b")
    await broker.aclose()
    await stage.until(lambda: len(heir.epochs) == 2, heir)
    check(not any(e.after_death for e in heir.assigned()), "a broker that was closed is taken for dead")
    await appended(other, item(0, keys(other, 0, 1)[0], "a"))
