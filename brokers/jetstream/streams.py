"""The streams of a log: how they are made, and how they are recognised. What is there is verified and never changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from ...bus.broker import RULES, LogMeta, LogSpec
from ...bus.clock import Clock
from ...bus.errors import BrokerUnavailable, ConfigError, LogCorrupt, LogMismatch, LogMissing, RulesTooNew
from ...bus.message import new_id
from .address import Address
from .connection import NO_MESSAGE, NO_PEERS, NO_STREAM, STREAM_EXISTS, UNAVAILABLE, Link, Refused, accepted
from .frames import OVERHEAD
from .names import SPAN, Names

FORMAT = 1
DEFAULT_PARTITIONS = 24
OLDEST = (2, 12)
CREATING = 30.0
"""Seconds within which a stream must be made: in a cluster the servers have to find each other first, and agree."""
AGAIN = 0.2
"""Seconds after which they are asked once more."""
DUPLICATES = 120_000_000_000
"""Nanoseconds in which a message that is sent again is recognised; more costs the servers memory for every message."""
SAME = ("storage", "retention", "max_age", "max_msgs", "max_msgs_per_subject", "allow_direct")
NUMBERS = ("format", "partitions", "max_record", "max_append", "rules", "stride")
Config = dict[str, Any]


def config_of_log(names: Names, partition: int, replicas: int, max_bytes: int, meta: LogMeta) -> Config:
    """Return what the stream of a partition must be: nothing is ever removed from it."""
    return {
        "name": names.stream(partition), "subjects": [f"{names.root}.{partition}.>"], "storage": "file",
        "retention": "limits", "discard": "new", "max_age": 0, "max_msgs": -1, "max_msgs_per_subject": -1,
        "max_bytes": max_bytes, "max_msg_size": -1, "num_replicas": replicas, "duplicate_window": DUPLICATES,
        "allow_direct": True, "allow_atomic": True, "deny_delete": True, "deny_purge": True,
        "metadata": _metadata(meta) | {"refold.partition": str(partition)},
    }  # fmt: skip


def config_of_control(names: Names, replicas: int, meta: LogMeta) -> Config:
    """Return what the stream of what is true now must be: the last message of each subject."""
    return {
        "name": names.control, "subjects": [f"{names.root}.control.>"], "storage": "file", "retention": "limits",
        "discard": "new", "max_age": 0, "max_msgs": -1, "max_msgs_per_subject": 1, "max_bytes": -1,
        "max_msg_size": -1, "num_replicas": replicas, "duplicate_window": DUPLICATES, "allow_direct": True,
        "allow_msg_ttl": True, "metadata": _metadata(meta) | {"refold.replicas": str(replicas)},
    }  # fmt: skip


def config_of_checkpoints(names: Names, replicas: int, meta: LogMeta) -> Config:
    """Return what the stream of the checkpoints' entries must be: refold itself removes what no checkpoint names."""
    return {
        "name": names.checkpoints, "subjects": [f"{names.root}.checkpoint.>"], "storage": "file",
        "retention": "limits", "discard": "new", "max_age": 0, "max_msgs": -1, "max_msgs_per_subject": -1,
        "max_bytes": -1, "max_msg_size": -1, "num_replicas": replicas, "duplicate_window": DUPLICATES,
        "allow_direct": True, "metadata": _metadata(meta),
    }  # fmt: skip


def configs(names: Names, replicas: int, max_bytes: int, meta: LogMeta) -> list[Config]:
    """Return all streams of a log; the control stream, which says that there is a log, is the first."""
    partitions = [config_of_log(names, p, replicas, max_bytes, meta) for p in range(meta.partitions)]
    return [config_of_control(names, replicas, meta), config_of_checkpoints(names, replicas, meta), *partitions]


def new_meta(spec: LogSpec, partitions: int | None, now: float) -> LogMeta:
    """Return what a new log will say of itself."""
    sizes = {k: v for k in ("max_record", "max_append") if (v := getattr(spec, k)) is not None}
    count = spec.partitions or partitions or DEFAULT_PARTITIONS
    return LogMeta(log_id=new_id(), partitions=count, created=now, rules=RULES, stride=SPAN, **sizes)


def _metadata(meta: LogMeta) -> dict[str, str]:
    said = {name: str(getattr(meta, name)) for name in meta.__struct_fields__}
    return {"refold.format": str(FORMAT)} | {f"refold.{name}": value for name, value in said.items()}


def read_meta(config: Mapping[str, Any], where: str) -> LogMeta:
    """Return what a stream says of its log. Raises LogCorrupt, RulesTooNew."""
    said = config.get("metadata") or {}
    found = {name: said.get(f"refold.{name}") for name in ("format", *LogMeta.__struct_fields__)}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise LogCorrupt(f"the stream {config.get('name')} at {where} is no log of refold: it lacks {missing}")
    try:
        numbers = {name: int(str(found[name])) for name in NUMBERS}
        meta = LogMeta(
            log_id=str(found["log_id"]), partitions=numbers["partitions"], max_record=numbers["max_record"],
            max_append=numbers["max_append"], rules=numbers["rules"], created=float(str(found["created"])),
            stride=numbers["stride"],
        )  # fmt: skip
    except ValueError as error:
        raise LogCorrupt(f"the metadata of the stream {config.get('name')} at {where} is damaged: {error}") from error
    if numbers["format"] > FORMAT or meta.rules > RULES or meta.stride != SPAN:
        raise RulesTooNew(
            f"{where} was written under format {numbers['format']}, rules {meta.rules}; this release knows format "
            f"{FORMAT}, rules {RULES}: upgrade refold"
        )
    return meta


def differences(found: Mapping[str, Any], wanted: Config) -> list[str]:
    """Return in what a stream is not what refold needs, each as a sentence."""
    name = wanted["name"]
    out = [
        f"{setting} of {name} is {found.get(setting)}, refold needs {wanted[setting]}"
        for setting in SAME if (found.get(setting) or 0) != (wanted[setting] or 0)
    ]  # fmt: skip
    if found.get("subjects") != wanted["subjects"]:
        out.append(f"subjects of {name} are {found.get('subjects')}, refold needs {wanted['subjects']}")
    if (found.get("max_bytes") or -1) > 0 and found.get("discard") != "new":
        out.append(f"discard of {name} is {found.get('discard')}: refold needs new where there is a max_bytes")
    if not DUPLICATES // 4 <= (found.get("duplicate_window") or 0) <= 10 * DUPLICATES:
        out.append(f"duplicate_window of {name} is {found.get('duplicate_window')} ns, refold needs about {DUPLICATES}")
    size = found.get("max_msg_size") or -1
    if 0 < size < int(wanted["metadata"]["refold.max_append"]) + OVERHEAD:
        out.append(f"max_msg_size of {name} is {size}: too little for max_append and {OVERHEAD} bytes of headers")
    if found.get("persist_mode") == "async":
        out.append(f"persist_mode of {name} is async: it acknowledges what it has not stored")
    odd = [setting for setting in ("sealed", "mirror", "sources", "subject_transform") if found.get(setting)]
    if odd:
        out.append(f"{', '.join(odd)} of {name} is set: refold needs a stream that takes what is published, as it is")
    if wanted.get("allow_atomic") and not found.get("allow_atomic"):
        out.append(f"allow_atomic of {name} is off, refold needs it")
    if "allow_msg_ttl" in wanted and not found.get("allow_msg_ttl"):
        out.append(f"allow_msg_ttl of {name} is off, refold needs it")
    said = found.get("metadata") or {}
    for key, value in wanted["metadata"].items():
        if said.get(key) != value and key != "refold.created":
            out.append(f"{key} of {name} is {said.get(key)}, refold needs {value}")
    return out


# ---- making and opening ----------------------------------------------------------------------------------------------
class Opened:
    """A log that was verified: what it says of itself, and its streams as they are."""

    def __init__(self, meta: LogMeta, names: Names, found: list[dict[str, Any]]) -> None:
        self.meta, self.names = meta, names
        self.replicas = max(int(info["config"].get("num_replicas", 1)) for info in found)
        self.created = {info["config"]["name"]: info["created"] for info in found}


async def info(link: Link, stream: str) -> dict[str, Any] | None:
    """Return what the server says of a stream; None where there is none."""
    try:
        return await link.asked(f"STREAM.INFO.{stream}")
    except Refused as error:
        if error.code == NO_STREAM:
            return None
        raise BrokerUnavailable(f"{stream}: {error}") from error


async def ensure(link: Link, address: Address, spec: LogSpec, create: bool) -> Opened:
    """Verify a log, or make it. Raises LogMissing, LogMismatch, LogCorrupt, RulesTooNew, ConfigError."""
    _check_server(link, spec)
    where = f"nats://{','.join(address.servers)}/{address.namespace}"
    control = await info(link, f"{address.namespace}_control")
    if control is None:
        if not create:
            raise missing(where)
        control = await _create_control(link, address, spec)
    meta = read_meta(control["config"], where)
    _verify_spec(meta, address, spec, where)
    names = Names(address.namespace, meta.log_id)
    replicas = int(control["config"].get("num_replicas", 1))
    wanted = configs(names, replicas, address.max_bytes or -1, meta)
    found = await _open_streams(link, names, wanted, where, create)
    wrong = [text for one, config in zip(found, wanted, strict=True) for text in differences(one["config"], config)]
    if address.replicas is not None and address.replicas != replicas:
        wrong.append(f"replicas is {replicas}, asked for {address.replicas}")
    if wrong:
        raise LogMismatch(f"{where} is not what refold needs: {'; '.join(wrong)}. A log is never changed by refold")
    return Opened(meta, names, found)


def missing(where: str) -> LogMissing:
    """Return the error of a log that is not there."""
    return LogMissing(
        f"there is no log at {where}: start a worker (`refold run app.py`) or send something to make one, or name "
        "another with --broker"
    )


def _check_server(link: Link, spec: LogSpec) -> None:
    client = link.client
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        raise ConfigError(f"the NATS server is {link.version}: refold needs {OLDEST[0]}.{OLDEST[1]} or later")
    needed = (spec.max_append or LogMeta(log_id="", partitions=1).max_append) + OVERHEAD
    if client.max_payload < needed:
        raise ConfigError(
            f"max_payload of the NATS server is {client.max_payload}: refold needs {needed} for this log's max_append; "
            "set max_payload in its configuration, or make the log with a smaller max_append"
        )


def _verify_spec(meta: LogMeta, address: Address, spec: LogSpec, where: str) -> None:
    asked = {name: getattr(spec, name) for name in spec.__struct_fields__}
    asked["partitions"] = asked["partitions"] or address.partitions
    wrong = [f"{k} is {getattr(meta, k)}, asked for {v}" for k, v in asked.items() if v not in (None, getattr(meta, k))]
    if wrong:
        raise LogMismatch(f"{where} is not what was asked for: {'; '.join(wrong)}. A log is never changed: use another")


async def _create_control(link: Link, address: Address, spec: LogSpec) -> dict[str, Any]:
    """Make the control stream, unless another has just made it: who makes it decides the log's id."""
    meta = new_meta(spec, address.partitions, Clock().now())
    names = Names(address.namespace, meta.log_id)
    await _create(link, config_of_control(names, address.replicas or 1, meta))
    return await link.look(partial(_made, link, names.control))


async def _made(link: Link, stream: str, within: float) -> dict[str, Any]:
    """Return what the server says of a stream that was just made: in a cluster not every server knows it at once."""
    try:
        return await link.api(f"STREAM.INFO.{stream}", within=within)
    except Refused as error:
        raise BrokerUnavailable(f"the stream {stream} was made, and is not known: {error}") from error


async def _create(link: Link, config: Config) -> None:
    """Make a stream, unless another has just made it; whether that one is right is judged by who reads it back.

    Raises ConfigError; BrokerUnavailable where the servers do not agree within `CREATING`.
    """
    until = time.monotonic() + CREATING
    while True:
        try:
            await link.api(f"STREAM.CREATE.{config['name']}", config)
        except Refused as error:
            if error.code == STREAM_EXISTS:
                return
            if error.code not in UNAVAILABLE and not (error.code == NO_PEERS and "offline" in error.text):
                raise ConfigError(
                    f"the stream {config['name']} cannot be made: {error}. Let an administrator make the streams "
                    "(`refold broker plan URL` prints how)"
                ) from error
            if time.monotonic() > until:
                raise BrokerUnavailable(f"the stream {config['name']} cannot be made now: {error}") from error
        except BrokerUnavailable as error:
            if type(error) is not BrokerUnavailable or time.monotonic() > until:
                raise
            await link.connected(max(0.01, until - time.monotonic()))
        else:
            return
        await asyncio.sleep(AGAIN)


async def _open_streams(
    link: Link, names: Names, wanted: list[Config], where: str, create: bool
) -> list[dict[str, Any]]:
    """Return what the server says of each stream. Those that are missing are made, unless the log was whole once."""
    complete = await _is_complete(link, names)  # before looking for them: another may be making them now
    found = await asyncio.gather(*(info(link, config["name"]) for config in wanted))
    if complete and None in found:  # seen twice, it is so: in a cluster not every server knows all at once
        await asyncio.sleep(1.0)
        found = await asyncio.gather(*(info(link, config["name"]) for config in wanted))
    absent = [config for config, one in zip(wanted, found, strict=True) if one is None]
    if absent and complete:
        raise LogCorrupt(f"{where} lacks the streams {', '.join(c['name'] for c in absent)}: restore its backup")
    if absent and not create:
        raise missing(where)
    if absent:
        await asyncio.gather(*(_create(link, config) for config in absent))
        found = await asyncio.gather(*(link.look(partial(_made, link, c["name"])) for c in wanted))
    if not complete and create:
        accepted(await link.request(f"{names.root}.control.made", b"all streams of the log have been there"))
    return [one for one in found if one is not None]


async def _is_complete(link: Link, names: Names) -> bool:
    """All streams of the log have been there once. Asked again where the control stream is not known: it is there."""
    return await link.look(partial(_says_complete, link, names))


async def _says_complete(link: Link, names: Names, within: float) -> bool:
    try:
        await link.api(f"STREAM.MSG.GET.{names.control}", {"last_by_subj": f"{names.root}.control.made"}, within)
    except Refused as error:
        if error.code == NO_MESSAGE:
            return False
        raise BrokerUnavailable(f"{names.control}: {error}") from error
    return True
