"""The log on NATS JetStream: a stream per partition, shared by any number of machines."""

from __future__ import annotations

from .broker import JetStreamBroker, from_url

__all__ = ["JetStreamBroker", "from_url"]
