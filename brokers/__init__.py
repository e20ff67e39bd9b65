"""Carriers: adapters of the port (`bus.broker`). `open_broker` finds the one for a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..bus.broker import ANY_LOG, Broker, LogSpec
from ..bus.errors import ConfigError, UnknownBroker

BUILT_IN = {"kafka": ".kafka", "memory": ".memory", "nats": ".jetstream", "sqlite": ".sqlite"}
EXTRAS = {"kafka": ("aiokafka",), "nats": ("nats", "nkeys", "nacl")}
"""The modules of a client that an extra of refold installs, by scheme."""
GROUP = "refold.brokers"


def open_broker(url: str) -> Broker:
    """Return the broker of a URL, not yet opened: use it as `async with`.

    Others' brokers are found by the entry-point group `refold.brokers`: name = scheme, value = `from_url(url)`; the
    schemes of refold cannot be taken. Raises UnknownBroker; ConfigError where the one that is installed cannot be
    used, or several are, and what its `from_url` raises.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        raise UnknownBroker(f"{url!r} is no broker URL: for a file write sqlite:///{url}")
    scheme = scheme.lower()
    if scheme in BUILT_IN:
        try:
            broker: Broker = _built_in(scheme).from_url(url)
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from error
        return broker
    installed = {entry.value: entry for entry in entry_points(group=GROUP, name=scheme)}
    if len(installed) > 1:
        names = ", ".join(_named(entry) for entry in installed.values())
        raise ConfigError(f"several brokers are installed for {scheme}://: {names}; remove all but one")
    for entry in installed.values():
        return _load(entry)(url)
    known = sorted({*BUILT_IN, *(e.name for e in entry_points(group=GROUP))})
    raise UnknownBroker(f"no broker for {scheme}://; there is {', '.join(f'{k}://' for k in known)}")


def plan_of(url: str, spec: LogSpec = ANY_LOG) -> str:
    """Return what an administrator has to do for the log of a URL, as commands of the broker's own tools.

    Raises UnknownBroker; ConfigError where there is nothing that an administrator could do.
    """
    scheme = url.partition("://")[0].lower()
    plan: Callable[[str, LogSpec], str] | None = None
    if scheme in BUILT_IN:
        plan = getattr(_built_in(scheme), "plan_of", None)
    else:
        open_broker(url)
    if plan is None:
        raise ConfigError(f"{scheme}:// needs nothing from an administrator: whoever opens the log makes it")
    return plan(url, spec)


def _built_in(scheme: str) -> Any:
    """Import an adapter of refold. Raises ConfigError, which says what to install, where its client is not there."""
    try:
        return import_module(BUILT_IN[scheme], __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS.get(scheme, ()):
            raise
        raise ConfigError(
            f"{scheme}:// needs its client, which is not installed: pip install 'refold[{scheme}]'"
        ) from error


def _load(entry: EntryPoint) -> Callable[[str], Broker]:
    """Import what an entry point names. Raises ConfigError."""
    try:
        make: Callable[[str], Broker] = entry.load()
    except Exception as error:
        raise ConfigError(f"{_named(entry)} cannot be imported ({error}): install or remove it again") from error
    if not callable(make):
        raise ConfigError(f"{_named(entry)} is no function from a URL to a broker")
    return make


def _named(entry: EntryPoint) -> str:
    package = f" of the package {entry.dist.name}" if entry.dist is not None else ""
    return f"the broker {entry.value}{package}"


__all__ = ["open_broker", "plan_of"]
