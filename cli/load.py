"""Finding the user's agents: `MODULE:ATTR` or `FILE.py[:ATTR]`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any, NamedTuple

from ..agents.agent import Agent
from ..bus.errors import YourBug

ROOMS = ("agents", "brokers", "bus", "cli", "projections")
NOT_THEIRS = ("importlib", "_frozen_importlib", *(f"{__name__.partition('.')[0]}.{r}." for r in ROOMS))
"""Modules that stand between us and the user's own code in a traceback."""


class LoadError(YourBug):
    """The module, or what is asked for in it, cannot be loaded; the text says where and why."""


class App(NamedTuple):
    """What was loaded: its name (the default group), its agents, its file."""

    name: str
    agents: list[Agent]
    file: Path | None


def load(target: str) -> App:
    """Return the agents of a target. Raises LoadError."""
    module, attr, name = load_module(target)
    file = Path(module.__file__) if module.__file__ else None
    if attr is None:
        agents = unique(v for v in vars(module).values() if isinstance(v, Agent))
        if not agents:
            raise LoadError(f"{target}: defines no Agent at its top level; write e.g. writer = Agent('writer')")
        return App(name, agents, file)
    found = find(module, attr, target)
    if isinstance(found, Agent):
        every = unique(v for v in vars(module).values() if isinstance(v, Agent))
        return App(name if every == [found] else f"{name}.{found.name}", [found], file)
    try:
        agents = unique(found)
    except TypeError:
        agents = []
    if not agents or not all(isinstance(a, Agent) for a in agents):
        raise LoadError(f"{target}: {attr} is of type {type(found).__name__}; name an Agent, or a list of Agents")
    return App(name, agents, file)


def unique(agents: Iterable[Any]) -> list[Any]:
    """Return them in order, each once."""
    out: list[Any] = []
    for agent in agents:
        if not any(agent is known for known in out):
            out.append(agent)
    return out


def load_module(target: str) -> tuple[ModuleType, str | None, str]:
    """Return the module, the attribute asked for, and the app's name. Raises LoadError."""
    place, _, attr = target.partition(":")
    if place.endswith(".py") or "/" in place:
        path = Path(place).absolute()
        if not path.is_file():
            near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
            raise LoadError(f"there is no file {place}" + (f"; did you mean {near[0]}?" if near else ""))
        sys.path.insert(0, str(path.parent))
        return _import(path.stem, path), attr or None, path.stem
    if not place:
        raise LoadError(f"{target!r}: write MODULE:ATTR or FILE.py[:ATTR]")
    sys.path.insert(0, str(Path.cwd()))
    return _import(place, None), attr or None, place.rpartition(".")[2]


def _import(name: str, path: Path | None) -> ModuleType:
    try:
        return importlib.import_module(name) if path is None else _execute(name, path)
    except SyntaxError as error:
        raise LoadError(f"{error.filename}:{error.lineno}: syntax error: {error.msg}") from error
    except ModuleNotFoundError as error:
        if path is None and error.name and (name == error.name or name.startswith(error.name + ".")):
            raise LoadError(
                f"there is no module {error.name!r} here; is it FILE.py, or is the folder another one? (looked in the "
                "current folder and the installed packages)"
            ) from error
        raise LoadError(f"{_where(error)}: {error}; install it, or correct the import") from error
    except SystemExit as error:
        raise LoadError(
            f"{_where(error)}: the module ends the program while it is imported; put what starts it under "
            "if __name__ == '__main__':"
        ) from error
    except Exception as error:
        relative = "; name it as MODULE, from the folder above its package" if "relative import" in str(error) else ""
        raise LoadError(f"{_where(error)}: {type(error).__name__}: {error}{relative}") from error


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException) -> str:
    """Return file:line of the user's code in which an import failed."""
    frames = [(f.f_globals.get("__name__", ""), f.f_code.co_filename, n) for f, n in walk_tb(error.__traceback__)]
    own = [(file, line) for name, file, line in frames if not name.startswith(NOT_THEIRS) and not _installed(file)]
    return f"{own[-1][0]}:{own[-1][1]}" if own else "your module"


def _installed(file: str) -> bool:
    return any(file.startswith(sysconfig.get_path(kind) + os.sep) for kind in ("stdlib", "purelib", "platlib"))


def find(module: ModuleType, attr: str, target: str) -> Any:
    """Return an attribute (dots allowed). Raises LoadError with the nearest names."""
    found: Any = module
    for part in attr.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [n for n in dir(found) if not n.startswith("_")]
            near = get_close_matches(part, names, n=3, cutoff=0.5)
            agents = [n for n in names if isinstance(getattr(found, n), Agent)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"its agents are: {', '.join(agents) or 'none'}"
            raise LoadError(f"{target}: there is no {part!r}; {hint}") from None
    return found
