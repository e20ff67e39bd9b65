"""The log on NATS JetStream: a stream per partition, shared by any number of machines."""

from __future__ import annotations

import time

from ...bus.broker import ANY_LOG, LogSpec
from . import plan
from .address import parse
from .broker import JetStreamBroker, from_url


def plan_of(url: str, spec: LogSpec = ANY_LOG) -> str:
    """Return what an administrator has to do for the log of a URL. Raises ConfigError."""
    return plan.text(parse(url), spec, now=time.time())


__all__ = ["JetStreamBroker", "from_url", "plan_of"]
