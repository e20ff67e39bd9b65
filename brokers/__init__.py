"""Carriers: adapters of the port (`bus.broker`). `open_broker` finds the one for a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from ..bus.broker import Broker
from ..bus.errors import UnknownBroker

BUILT_IN = {"memory": ".memory", "sqlite": ".sqlite"}
COMING = {"kafka", "nats"}


def open_broker(url: str) -> Broker:
    """Return the broker of a URL, not yet opened: use it as `async with`. Raises UnknownBroker.

    Others' brokers are found by the entry-point group `refold.brokers`: name = scheme, value = `from_url(url)`.
    """
    scheme = urlsplit(url).scheme
    if "://" not in url:
        raise UnknownBroker(f"{url!r} is no broker URL: for a file write sqlite:///{url}")
    for entry in entry_points(group="refold.brokers"):
        if entry.name == scheme and scheme not in BUILT_IN:
            make: Callable[[str], Broker] = entry.load()
            return make(url)
    if scheme in BUILT_IN:
        broker: Broker = import_module(BUILT_IN[scheme], __name__).from_url(url)
        return broker
    more = " (its adapter is not part of this release)" if scheme in COMING else ""
    known = sorted({*BUILT_IN, *(e.name for e in entry_points(group="refold.brokers"))})
    raise UnknownBroker(f"no broker for {scheme}://{more}; there is {', '.join(f'{k}://' for k in known)}")


__all__ = ["open_broker"]
