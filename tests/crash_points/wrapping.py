"""Wrapping every call of a protocol or a class, before and after: by introspection, so a new one is wrapped too."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from refold.bus import codec
from refold.bus.broker import Appended, Broker
from refold.bus.errors import UndecodableRecord

DIED = 9


class Crossings:
    """Counts the crossings of each call, and ends the process at the one that is armed.

    A crossing is named `call#n before` or `call#n after`. What an append acknowledged is written to `acknowledged`.
    """

    def __init__(self, folder: Path, armed: str = "") -> None:
        self.folder = folder
        self.armed = armed
        self.seen: list[str] = []
        self._counts: Counter[tuple[str, str]] = Counter()

    def cross(self, call: str, side: str) -> None:
        """The process goes over the line before or after a call."""
        self._counts[call, side] += 1
        name = f"{call}#{self._counts[call, side]} {side}"
        self.seen.append(name)
        if name == self.armed:
            os._exit(DIED)

    def note(self, file: str, line: str) -> None:
        """Add a line to a file that outlives the process."""
        with (self.folder / file).open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")

    def effect(self, name: str, key: str) -> None:
        """Stands for a call of the outside world: it is counted where no crash can undo it."""
        self.cross(f"effect {name}", "before")
        self.note("effects", f"{name} {key}")
        self.cross(f"effect {name}", "after")

    def wrap(self, inner: Any, face: type, name: str = "") -> Any:
        """Return something that does what `inner` does, and crosses at every public call that `face` declares."""
        return _Wrapped(self, inner, face, name)


class _Wrapped:
    def __init__(self, crossings: Crossings, inner: Any, face: type, name: str) -> None:
        self._inner, self._crossings, self._face, self._name = inner, crossings, face, name

    def __getattr__(self, attribute: str) -> Any:
        """Called for what is not here yet: every attribute's first use."""
        found = self._found(attribute)
        if callable(found):
            self.__dict__[attribute] = found
        return found

    def _found(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        declared = inspect.getattr_static(self._face, attribute, None)
        if attribute.startswith("_") or not inspect.isfunction(declared):
            return found
        returns = get_type_hints(declared).get("return")
        name = f"{self._name}.{attribute}".lstrip(".")
        if get_origin(returns) in (AbstractAsyncContextManager,):
            return self._opening(name, found, get_args(returns)[0])
        return self._calling(name, found) if inspect.iscoroutinefunction(declared) else self._saying(name, found)

    def _calling(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def crossing(*args: Any, **kwargs: Any) -> Any:
            label = f"{name}{_about(name, args)}"
            self._crossings.cross(label, "before")
            result = await call(*args, **kwargs)
            _acknowledge(self._crossings, name, args, result)
            self._crossings.cross(label, "after")
            return result

        return crossing

    def _saying(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def crossing(*args: Any, **kwargs: Any) -> Any:
            self._crossings.cross(name, "before")
            result = call(*args, **kwargs)
            self._crossings.cross(name, "after")
            return result

        return crossing

    def _opening(self, name: str, call: Callable[..., Any], face: type) -> Callable[..., Any]:
        @asynccontextmanager
        async def crossing(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            self._crossings.cross(name, "before")
            async with call(*args, **kwargs) as opened:
                self._crossings.cross(name, "after")
                yield self._crossings.wrap(opened, face, name)
                self._crossings.cross(f"{name} left", "before")
            self._crossings.cross(f"{name} left", "after")

        return crossing

    async def __aenter__(self) -> Any:
        self._crossings.cross(f"{self._name} opened", "before")
        await self._inner.__aenter__()
        self._crossings.cross(f"{self._name} opened", "after")
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._crossings.cross(f"{self._name} closed", "before")
        await self._inner.__aexit__(*exc)
        self._crossings.cross(f"{self._name} closed", "after")


def _about(name: str, args: tuple[Any, ...]) -> str:
    """Say which records an append has: its n-th call alone says little."""
    if not name.endswith("append"):
        return ""
    found = []
    for item in args[0]:
        for record in item.records:
            try:
                found.append(codec.envelope(record.value).message_type)
            except UndecodableRecord:
                found.append("bytes")
    return f"({', '.join(found)})"


def _acknowledge(crossings: Crossings, name: str, args: tuple[Any, ...], result: Any) -> None:
    if name.endswith("append"):
        for item, answer in zip(args[0], result, strict=True):
            if isinstance(answer, Appended):
                for record in item.records:
                    crossings.note("acknowledged", f"{item.partition} {record.id}")


def wrapped_broker(crossings: Crossings, broker: Broker) -> Broker:
    """Return the broker with a crossing before and after every call of the port."""
    wrapped: Broker = crossings.wrap(broker, Broker, "log")
    return wrapped
