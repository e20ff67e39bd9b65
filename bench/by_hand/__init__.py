"""The hand-written baselines on NATS and Kafka, on the clients that refold uses: they know nothing of refold.

They store the records of `raw.py`, as durable as refold's. They check nothing, fence nobody, find no workflow again.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMED = {"nats": "NATS", "kafka": "Kafka"}


def on(kind: str) -> Any:
    """Return the module of a broker: `append`, `pipeline`, `rebuild`."""
    return importlib.import_module(f"by_hand.{kind}_loop")
