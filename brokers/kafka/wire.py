"""All that knows the insides of aiokafka, with requests.py: its client, its protocol structs, its record batches."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import codec, errors  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.conn import collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import PartitionRecords  # type: ignore[import-untyped]
from aiokafka.protocol import admin, commit, coordination, fetch, metadata, offset, transaction  # type: ignore[import-untyped]
from aiokafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as _Place  # type: ignore[import-untyped]
from msgspec import Struct

from ...bus.errors import ConfigError
from .requests import ProduceRequest

log = logging.getLogger("refold.kafka")

COMPRESSION = {"none": 0, "gzip": 1, "lz4": 3, "zstd": 4}
EARLIEST, LATEST = -2, -1
"""Times that `list_offsets` takes for the two ends."""
GROUP, TRANSACTION = 0, 1
"""What a coordinator is asked for."""

# codes of the protocol (https://kafka.apache.org/protocol#protocol_error_codes)
OK, OUT_OF_RANGE, TOO_LARGE, LIST_TOO_LARGE = 0, 1, 10, 18
UNKNOWN_TOPIC, TOPIC_EXISTS = 3, 36
OUT_OF_ORDER, DUPLICATE, BAD_EPOCH, UNKNOWN_PRODUCER = 45, 46, 47, 59
BAD_STATE, BAD_MAPPING, CONCURRENT, FENCED = 48, 49, 51, 90
STORAGE = 56
DISK = "the log directory of its broker has failed: is the disk full?"
"""What it means to people: Kafka has no code for a full disk. A broker whose only log directory has failed ends."""
UNKNOWN_ID, OTHER_ID = 100, 103
NO_RIGHT = {29: "topic", 30: "group", 31: "cluster", 53: "transactional id"}
AGAIN = {-1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 72, 74, 75, 76, 78, UNKNOWN_ID, OTHER_ID}
"""What goes away by itself: elections, moves, time limits, replicas that are behind."""
NOTHING_WRITTEN = {3, 5, 6, 9, 19, 74, 75, 76, UNKNOWN_ID, OTHER_ID}
"""Of these: the broker took nothing of the batch."""

REFUSALS = tuple(errors.for_code(code) for code in (33, 34, 58))
"""A mechanism that is not there, a wrong order of words, a wrong password."""
NETWORK: tuple[type[BaseException], ...] = (errors.KafkaError, OSError, asyncio.TimeoutError)


def compression(name: str) -> int:
    """Return the number of a codec. Raises ConfigError where the package that it needs is not there."""
    if (name == "lz4" and not codec.has_lz4()) or (name == "zstd" and not codec.has_zstd()):
        raise ConfigError(f"compression={name} needs a package that is not installed: pip install 'aiokafka[{name}]'")
    return COMPRESSION[name]


def named(code: int) -> str:
    """Return the name of an error code."""
    return "UnknownTopicId" if code in (UNKNOWN_ID, OTHER_ID) else str(errors.for_code(code).__name__)


class Client(AIOKafkaClient):  # type: ignore[misc]
    """aiokafka's, which never makes a topic by asking for it, and leaves it to its caller to say what went wrong."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if logging.getLogger("aiokafka").level == logging.NOTSET:
            logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        request = metadata.MetadataRequest(list(topics), False)
        nodes = [b.nodeId for b in self.cluster.brokers()] + [k[0] for k in self._conns if k[0] == "bootstrap"]
        random.shuffle(nodes)
        for node in nodes:
            try:
                answer = await self.send(node, request)
            except Exception as error:  # noqa: BLE001 - raised, it would end the task that looks: nobody looked again
                log.debug("node %s does not say who leads what: %r", node, error)
                continue
            if not answer.brokers:
                return False
            cluster_metadata.update_metadata(answer)
            return True
        cluster_metadata.failed_update(None)
        return False


async def refusal(settings: Mapping[str, Any]) -> str | None:
    """Return why a server lets nobody in who comes like this; None where that is not the reason."""
    found = {k: v for k, v in settings.items() if k != "bootstrap_servers"}
    for host, port, _ in collect_hosts(settings["bootstrap_servers"]):
        try:
            (await create_conn(host, port, request_timeout_ms=5000, **found)).close()
        except (*REFUSALS, ssl.SSLError) as error:
            return f"{type(error).__name__} {error}".rstrip()
        except NETWORK:
            continue
    return None


Headers = list[tuple[str, bytes | None]]


class Raw(Struct, frozen=True, gc=False):
    """A record as Kafka has it; `time` in milliseconds."""

    offset: int
    time: int
    key: bytes | None
    value: bytes | None


class Part(NamedTuple):
    """What a fetch brought of one partition: records, where the next ones are, and the end of what may be read.

    `twice`: several of the records have the same offset, see `apart`.
    """

    error: int
    end: int
    next: int
    records: list[Raw]
    twice: bool = False


def apart(records: list[Raw]) -> tuple[list[Raw], list[Raw]]:
    """Return the records whose offsets grow, and those, each once, that were stored at an offset that was taken.

    A broker whose disk is full may store a batch, fail to enter it into its memory-mapped index (`InternalError: a
    fault occurred in a recent unsafe memory access operation`, seen with Kafka 4.3), and give its offsets to the next
    batch as well; both may be acknowledged in the end. Who asks for an offset gets the first: so it is what is there.
    """
    first: dict[int, Raw] = {}
    others: dict[tuple[bytes | None, bytes | None], Raw] = {}
    newest = -1
    for raw in records:
        if raw.offset > newest:
            newest, first[raw.offset] = raw.offset, raw
        elif (known := first.get(raw.offset)) is None or (known.key, known.value) != (raw.key, raw.value):
            others.setdefault((raw.key, raw.value), raw)
    return list(first.values()), list(others.values())


def nodes(client: Any) -> list[int]:
    """Return the nodes of the cluster."""
    return [broker.nodeId for broker in client.cluster.brokers()]


def leader(client: Any, topic: str, partition: int) -> int | None:
    """Return who leads a partition, as far as it is known (-1: nobody)."""
    node: int | None = client.cluster.leader_for_partition(_Place(topic, partition))
    return node


# ---- requests --------------------------------------------------------------------------------------------------------
def offsets_request(topic: str, partitions: Mapping[int, int], isolation: int) -> Any:
    """Ask for offsets: partition -> time in ms, or EARLIEST or LATEST."""
    return offset.OffsetRequest(-1, isolation, [(topic, list(partitions.items()))])


def offsets_of(answer: Any) -> Iterator[tuple[int, int, int]]:
    """Return (partition, error, offset) of each."""
    for _, partitions in answer.topics:
        for number, error, _, found in partitions:
            yield number, error, found


def fetch_request(
    wanted: Mapping[tuple[str, int], int], wait_ms: int, max_bytes: int, isolation: int, part_bytes: int
) -> Any:
    """Ask for records of partitions from offsets on; the broker answers when there are some, or after the wait."""
    topics: dict[str, list[tuple[int, int, int]]] = {}
    for (topic, partition), start in wanted.items():
        topics.setdefault(topic, []).append((partition, start, part_bytes))
    return fetch.FetchRequest(wait_ms, 1, max_bytes, isolation, list(topics.items()))


def parts_of(answer: Any, wanted: Mapping[tuple[str, int], int], isolation: int) -> dict[tuple[str, int], Part]:
    """Return what a fetch brought. Raises ValueError for bytes that do not match their checksum."""
    out: dict[tuple[str, int], Part] = {}
    for topic, partitions in answer.topics:
        for number, error, high, stable, *rest in partitions:
            start = wanted[topic, number]
            end = stable if isolation else high
            if error:
                out[topic, number] = Part(error, end, start, [])
                continue
            aborted = rest[1] if answer.API_VERSION >= 5 else rest[0]
            records, following, twice = _unpack(topic, number, rest[-1], aborted, start, isolation)
            out[topic, number] = Part(OK, end, following, records, twice)
    return out


def _unpack(
    topic: str, partition: int, data: bytes | None, aborted: Any, start: int, isolation: int
) -> tuple[list[Raw], int, bool]:
    if not data:
        return [], start, False
    try:
        if not isolation:
            return _unpack_all(MemoryRecords(data), start)
        place = _Place(topic, partition)
        unpacked = PartitionRecords(place, MemoryRecords(data), aborted, start, None, None, True, isolation)
        records = [Raw(r.offset, r.timestamp, r.key, r.value) for r in unpacked]
    except errors.CorruptRecordException as error:
        raise ValueError(f"partition {partition} of {topic}: {error}") from error
    return records, unpacked.next_fetch_offset, False


def _unpack_all(batches: Any, start: int) -> tuple[list[Raw], int, bool]:
    """Unpack whatever is there, but for the marks of transactions."""
    out, following, twice = list[Raw](), start, False
    while batches.has_next():
        batch = batches.next_batch()
        if not batch.validate_crc():
            raise ValueError(f"a batch behind offset {following - 1}")
        if not batch.is_control_batch:
            records = [Raw(r.offset, r.timestamp, r.key, r.value) for r in batch if r.offset >= start]
            twice = twice or bool(records and records[0].offset < following)
            out += records
        following = max(following, batch.next_offset)
    return out, following, twice


def produce_request(
    parts: Mapping[tuple[str, int], bytes], wait_ms: int, *, transaction_id: str | None = None,
    ids: Mapping[str, str] = {},
) -> ProduceRequest:  # fmt: skip
    """Append record batches; answered when all replicas in sync have them. With the `ids` of all topics, to those."""
    topics: dict[str, list[tuple[int, bytes]]] = {}
    for (topic, partition), batch in parts.items():
        topics.setdefault(topic, []).append((partition, batch))
    return ProduceRequest(transaction_id, wait_ms, list(topics.items()), ids)


def produced(answer: Any, ids: Mapping[str, str] = {}) -> dict[tuple[str, int], tuple[int, int]]:
    """Return (error, offset of the first record) of each batch."""
    names: dict[Any, str] = {bytes.fromhex(id): name for name, id in ids.items()}
    out: dict[tuple[str, int], tuple[int, int]] = {}
    for topic, parts, *_ in answer.topics:
        name: str = names.get(topic) or topic
        out |= {(name, partition): (error, first) for partition, error, first, *_ in parts}
    return out


def batch_bytes(
    records: Sequence[tuple[bytes | None, bytes | None]], producer: tuple[int, int], sequence: int, *,
    transactional: bool = False, compression: int = 0, headers: Sequence[Headers] = (),
) -> bytes:  # fmt: skip
    """Return a record batch, which the broker takes or refuses as a whole. `headers`: of each record, or of none."""
    room = 2**31 - 1
    builder = DefaultRecordBatchBuilder(2, compression, int(transactional), producer[0], producer[1], sequence, room)
    for n, (key, value) in enumerate(records):
        builder.append(n, None, key, value, headers[n] if headers else [])
    return bytes(builder.build())


def producer_id_request(transaction_id: str | None, timeout_ms: int) -> Any:
    """Ask for a producer id; with a transactional id this fences all who had it before."""
    return transaction.InitProducerIdRequest(transaction_id, timeout_ms)  # pyright: ignore


def coordinator_request(name: str, kind: int = TRANSACTION) -> Any:
    """Ask who coordinates the transactions of an id, or a consumer group."""
    return coordination.FindCoordinatorRequest(name, kind)


def commit_request(group: str, topic: str, partition: int, offset: int) -> Any:
    """Commit the offset of the next record, for a group without members."""
    return commit.OffsetCommitRequest(group, -1, "", -1, [(topic, [(partition, offset, "")])])


def add_partition_request(transaction_id: str, producer: tuple[int, int], topic: str, partition: int) -> Any:
    """Begin, or widen, a transaction."""
    return transaction.AddPartitionsToTxnRequest(transaction_id, *producer, [(topic, [partition])])


def end_request(transaction_id: str, producer: tuple[int, int], commit: bool) -> Any:
    """End a transaction."""
    return transaction.EndTxnRequest(transaction_id, *producer, commit)


def create_request(
    topics: Sequence[tuple[str, int, int, Mapping[str, str]]], timeout_ms: int, validate_only: bool = False
) -> Any:
    """Make topics: (name, partitions, replication, settings)."""
    wanted: list[Any] = [(name, count, replicas, [], list(how.items())) for name, count, replicas, how in topics]
    return admin.CreateTopicsRequest(create_topic_requests=wanted, timeout=timeout_ms, validate_only=validate_only)


def config_request(kind: int, name: str) -> Any:
    """Ask for all settings of a topic (kind 2) or a broker (kind 4)."""
    return admin.DescribeConfigsRequest([(kind, name, None)], False)


# ---- topics --------------------------------------------------------------------------------------------------------
class Topic(NamedTuple):
    """What the cluster knows of a topic: its id, and of each partition its leader, replicas and those in sync."""

    error: int
    id: str
    partitions: dict[int, tuple[int, list[int], list[int]]]


def topics_of(answer: Any) -> dict[str, Topic]:
    """Return what is known of each topic that was asked for."""
    return {
        name: Topic(error, id.hex(), {p[1]: (p[2], list(p[4]), list(p[5])) for p in partitions})
        for error, name, id, _, partitions, *_ in answer.topics
    }


def versions_request() -> Any:
    """Ask which requests a node knows."""
    return admin.ApiVersionRequest()


def release(answer: Any) -> str:
    """Return what can be told of the release: brokers do not say it, but which requests they know."""
    highest = {version[0]: version[2] for version in answer.api_versions}
    return f"protocol: fetch v{highest.get(1)}, produce v{highest.get(0)}"
