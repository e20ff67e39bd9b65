"""The log on Apache Kafka, for many machines: `kafka://host:9092,host2/namespace`. Needs the extra `refold[kafka]`."""

from __future__ import annotations

from ...bus.broker import ANY_LOG, LogSpec
from . import plan
from .address import parse
from .broker import KafkaBroker, from_url


def plan_of(url: str, spec: LogSpec = ANY_LOG) -> str:
    """Return what an administrator has to do for the log of a URL. Raises ConfigError."""
    address = parse(url)
    return plan.text(address, spec, principal=f"User:{address.settings.get('username', 'refold')}")


__all__ = ["KafkaBroker", "from_url", "plan_of"]
