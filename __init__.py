"""refold: an event-sourced message bus for AI agents. State is a fold over the log, and you can fold it again."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("refold runs on Linux and macOS; on Windows use WSL (https://learn.microsoft.com/windows/wsl)")

if TYPE_CHECKING:
    from .agents.agent import Agent
    from .agents.client import Handle, MessageBus
    from .agents.context import Context
    from .agents.retry import RetryPolicy
    from .agents.runtime import run
    from .agents.worker import Worker
    from .brokers import open_broker
    from .bus.errors import (
        AgentError,
        AgentUnavailable,
        EffectFailed,
        NoSuchAgent,
        NoSuchWorkflow,
        RefoldError,
        Refuse,
        RequestExpired,
        RequestTimeout,
        SchemaError,
        TryAgain,
        WaitExpired,
        WorkflowExists,
    )
    from .bus.message import AgentMessage, MessageType, Work
    from .projections.projection import Projection

__version__ = "0.1.0"

_HOMES = {
    "Agent": "agents.agent",
    "AgentError": "bus.errors",
    "AgentMessage": "bus.message",
    "AgentUnavailable": "bus.errors",
    "Context": "agents.context",
    "EffectFailed": "bus.errors",
    "Handle": "agents.client",
    "MessageBus": "agents.client",
    "MessageType": "bus.message",
    "NoSuchAgent": "bus.errors",
    "NoSuchWorkflow": "bus.errors",
    "Projection": "projections.projection",
    "RefoldError": "bus.errors",
    "Refuse": "bus.errors",
    "RequestExpired": "bus.errors",
    "RequestTimeout": "bus.errors",
    "RetryPolicy": "agents.retry",
    "SchemaError": "bus.errors",
    "TryAgain": "bus.errors",
    "WaitExpired": "bus.errors",
    "Work": "bus.message",
    "Worker": "agents.worker",
    "WorkflowExists": "bus.errors",
    "open_broker": "brokers",
    "run": "agents.runtime",
}

__all__ = [
    "Agent",
    "AgentError",
    "AgentMessage",
    "AgentUnavailable",
    "Context",
    "EffectFailed",
    "Handle",
    "MessageBus",
    "MessageType",
    "NoSuchAgent",
    "NoSuchWorkflow",
    "Projection",
    "RefoldError",
    "Refuse",
    "RequestExpired",
    "RequestTimeout",
    "RetryPolicy",
    "SchemaError",
    "TryAgain",
    "WaitExpired",
    "Work",
    "Worker",
    "WorkflowExists",
    "open_broker",
    "run",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
