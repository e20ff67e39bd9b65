"""What others put into a topic of Kafka with their own client and its default partitioner: starts, and rubbish."""

from __future__ import annotations

import json
import uuid
from typing import Any

from refold import AgentMessage
from refold.bus import codec
from refold.bus.partition import partition_of

from . import ledger
from .check import digest_of
from .client import job_of
from .logs import PARTITIONS
from .stage import Stage

RUBBISH = (b"", b"\x00\x01\xff\xfe", b"not json", b"[1, 2]", b'"text"', b'{"id": 1}', b"{", b"\xef\xbb\xbf{}")


class Foreigner:
    """A producer of librdkafka. `strays` counts what its partitioner has put where refold does not look for it."""

    def __init__(self, stage: Stage, topic: str) -> None:
        from confluent_kafka import Producer

        self.stage, self.folder, self.topic, self.strays = stage, stage.folder, topic, 0
        self._producer: Any = Producer({"bootstrap.servers": stage.log.server.bootstrap, "linger.ms": 5})

    def _put(self, key: bytes | None, value: bytes | None) -> None:
        self._producer.produce(self.topic, key=key, value=value, on_delivery=self._delivered)
        self._producer.poll(0)

    def _delivered(self, error: object, message: Any) -> None:
        assert error is None, error
        if message.key() is not None and message.value():
            self.strays += message.partition() != partition_of(message.key().decode(errors="replace"), PARTITIONS)

    def start(self, number: int, **settings: str) -> None:
        """Start a workflow with nothing but a message."""
        name, id = f"clerk-{number}", str(uuid.uuid4())
        message = AgentMessage(
            id=id, sender_id="foreigner", receiver_id="clerk", message_type="task_request",
            payload=job_of(self.folder, number, settings), correlation_id=name, asked=True,
        )  # fmt: skip
        for outcome in ("invoke", "ok"):
            self.say(outcome, name, id)
        self._put(name.encode(), codec.encode(message))

    def say(self, outcome: str, workflow: str, id: str) -> None:
        ledger.write(self.folder / "history", client="foreigner", op="start", outcome=outcome, workflow=workflow, id=id)

    def rubbish(self, key: str) -> None:
        """Put in what is no record: garbage, a tombstone of a workflow, and a record that is larger than any may be."""
        dice = self.stage.random
        large = {"id": str(uuid.uuid4()), "message_type": "large", "correlation_id": key, "payload": "x" * 700_000}
        value = dice.choice((*RUBBISH, dice.randbytes(dice.randrange(2000)), json.dumps(large).encode(), None))
        ledger.write(self.folder / "planted", digest=digest_of(value or b""))
        self._put(dice.choice((key.encode(), None, b"\xff\xfe", b"")), value)

    def end(self) -> None:
        """Wait until everything is there."""
        left = self._producer.flush(30)
        assert not left, f"{left} records were not delivered"
