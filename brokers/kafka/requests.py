"""Requests that aiokafka does not have: who leads what, with the ids of topics, and appending by a topic's id. Each is
as in https://kafka.apache.org/protocol, in the version that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.protocol import produce  # type: ignore[import-untyped]
from aiokafka.protocol.api import Request, RequestStruct, Response  # type: ignore[import-untyped]
from aiokafka.protocol.types import (  # type: ignore[import-untyped]
    AbstractType,
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)


class _Uuid(AbstractType):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(16))


# ---- what is known of topics -----------------------------------------------------------------------------------------
class _TopicsAnswer(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 3, 10  # pyright: ignore
    _BROKER = (
        ("node", Int32), ("host", CompactString("utf-8")), ("port", Int32), ("rack", CompactString("utf-8")),
        ("tags", TaggedFields),
    )  # fmt: skip
    _PARTITION = (
        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)), ("offline", CompactArray(Int32)),
        ("tags", TaggedFields),
    )  # fmt: skip
    _TOPIC = (
        ("error_code", Int16), ("topic", CompactString("utf-8")), ("id", _Uuid), ("is_internal", Boolean),
        ("partitions", CompactArray(*_PARTITION)), ("operations", Int32), ("tags", TaggedFields),
    )  # fmt: skip
    SCHEMA = Schema(
        ("throttle_time_ms", Int32), ("brokers", CompactArray(*_BROKER)), ("cluster_id", CompactString("utf-8")),
        ("controller", Int32), ("topics", CompactArray(*_TOPIC)), ("operations", Int32), ("tags", TaggedFields),
    )  # fmt: skip


class _TopicsQuestion(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, RESPONSE_TYPE, FLEXIBLE_VERSION = 3, 10, _TopicsAnswer, True
    SCHEMA = Schema(
        ("topics", CompactArray(("id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("create", Boolean), ("operations", Boolean), ("topic_operations", Boolean), ("tags", TaggedFields),
    )  # fmt: skip


class TopicsRequest(Request[_TopicsQuestion]):  # type: ignore[misc]
    """Ask what is known of topics, with their ids, making none."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([(bytes(16), name, {}) for name in self._topics], False, False, False, {})


# ---- appending by id -------------------------------------------------------------------------------------------------
class _Produced(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 0, 13  # pyright: ignore
    _WRONG = (("index", Int32), ("message", CompactString("utf-8")), ("tags", TaggedFields))
    _PARTITION = (
        ("partition", Int32), ("error_code", Int16), ("offset", Int64), ("timestamp", Int64), ("log_start", Int64),
        ("wrong", CompactArray(*_WRONG)), ("message", CompactString("utf-8")), ("tags", TaggedFields),
    )  # fmt: skip
    SCHEMA = Schema(
        ("topics", CompactArray(("id", _Uuid), ("partitions", CompactArray(*_PARTITION)), ("tags", TaggedFields))),
        ("throttle_time_ms", Int32), ("tags", TaggedFields),
    )  # fmt: skip


class _ProduceById(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, RESPONSE_TYPE, FLEXIBLE_VERSION = 0, 13, _Produced, True
    _PARTITION = (("partition", Int32), ("records", CompactBytes), ("tags", TaggedFields))
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")), ("acks", Int16), ("timeout_ms", Int32),
        ("topics", CompactArray(("id", _Uuid), ("partitions", CompactArray(*_PARTITION)), ("tags", TaggedFields))),
        ("tags", TaggedFields),
    )  # fmt: skip


class ProduceRequest(Request[_ProduceById]):  # type: ignore[misc]
    """Append batches; answered when all replicas in sync have them. Topics are meant by their `ids`, if all are known
    and the node takes that (Kafka 4.1 or later, https://cwiki.apache.org/confluence/display/KAFKA/KIP-516): another
    topic of the same name is not written then."""

    API_KEY = 0

    def __init__(
        self, transaction_id: str | None, wait_ms: int, topics: list[tuple[str, list[tuple[int, bytes]]]],
        ids: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._by_name = produce.ProduceRequest(transaction_id, -1, wait_ms, topics)  # pyright: ignore
        self._head = (transaction_id, -1, wait_ms)
        self._topics, self._ids = topics, ids

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        if all(topic in self._ids for topic, _ in self._topics) and versions.get(0, (0, 0))[1] >= 13:
            return super().prepare(versions)
        return self._by_name.prepare(versions)

    def build(self, request_struct_class: Any) -> Any:
        topics: list[Any] = [
            (bytes.fromhex(self._ids[topic]), [(partition, batch, {}) for partition, batch in parts], {})
            for topic, parts in self._topics
        ]
        return request_struct_class(*self._head, topics, {})
