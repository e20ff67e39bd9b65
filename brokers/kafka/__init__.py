"""The log on Apache Kafka, for many machines: `kafka://host:9092,host2/namespace`. Needs the extra `refold[kafka]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...bus.errors import ConfigError

if TYPE_CHECKING:
    from .broker import KafkaBroker


def from_url(url: str) -> KafkaBroker:
    """Return the broker of `kafka://[user:password@]host:9092[,host2...]/namespace?partitions=24&replication=3`; the
    other settings are those of `.address.KNOWN`. Raises ConfigError."""
    try:
        from . import broker
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "aiokafka":
            raise
        raise ConfigError("kafka:// needs aiokafka, which is not installed: pip install 'refold[kafka]'") from error
    return broker.from_url(url)


__all__ = ["from_url"]
