"""The log on Apache Kafka, for many machines: `kafka://host:9092,host2/namespace`. Needs the extra `refold[kafka]`."""

from __future__ import annotations

from .broker import KafkaBroker, from_url

__all__ = ["KafkaBroker", "from_url"]
