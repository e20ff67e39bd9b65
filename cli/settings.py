"""Which log a command works on: `--broker`, `REFOLD_BROKER`, `[tool.refold]` in pyproject.toml, else refold.db here."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from ..bus.errors import ConfigError, UnknownBroker

DEFAULT_BROKER = "sqlite:///refold.db"
VARIABLE = "REFOLD_BROKER"
KNOWN = frozenset({"broker"})
RELATIVE = "sqlite:///"

BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker", "-b", metavar="URL",
        help=f"Which log. Default: {VARIABLE}, or broker in \\[tool.refold] of pyproject.toml, or {DEFAULT_BROKER}.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


def broker_url(given: str | None, start: Path | None = None) -> str:
    """Return the log's URL: `given`, or what is set from `start` (default: the current folder) upwards.

    Raises ConfigError (UnknownBroker) that names the place where the wrong URL is written.
    """
    url, where = _found(given, (start or Path.cwd()).absolute())
    from ..brokers import open_broker

    try:
        open_broker(url)
    except UnknownBroker as error:
        raise UnknownBroker(f"{where}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return url


def _found(given: str | None, here: Path) -> tuple[str, str]:
    if given is not None:
        return _filled(given, "--broker"), "--broker"
    if VARIABLE in os.environ:
        return _filled(os.environ[VARIABLE], VARIABLE), VARIABLE
    table, path = _table(here)
    if "broker" not in table:
        return DEFAULT_BROKER, "the default"
    where = f"{path}, [tool.refold] broker"
    if not isinstance(table["broker"], str):
        raise ConfigError(f"{where} = {table['broker']!r}: write a URL, as in broker = {DEFAULT_BROKER!r}")
    return _from_folder(_filled(table["broker"], where), path.parent, here), where


def _filled(url: str, where: str) -> str:
    if not url.strip():
        raise ConfigError(f"{where} is empty: write a URL, or leave it out for {DEFAULT_BROKER}")
    return url


def _from_folder(url: str, folder: Path, here: Path) -> str:
    """A relative file in pyproject.toml is one beside it, from whichever folder below it is asked for."""
    if folder == here or not url.startswith(RELATIVE) or url.startswith(RELATIVE + "/"):
        return url
    return f"{RELATIVE}{quote(str(folder))}/{url.removeprefix(RELATIVE)}"


def _table(here: Path) -> tuple[dict[str, Any], Path]:
    """Return `[tool.refold]` of the nearest pyproject.toml upwards, and its path. Raises ConfigError."""
    for folder in [here, *here.parents]:
        path = folder / "pyproject.toml"
        if path.is_file():
            return _read(path), path
    return {}, here


def _read(path: Path) -> dict[str, Any]:
    try:
        tools = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except (ValueError, OSError) as error:  # a number of 5,000 digits is a ValueError of its own
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} cannot be read: it is nested too deep") from error
    found = tools.get("refold", {}) if isinstance(tools, dict) else {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: tool.refold is {found!r}: write a table, [tool.refold]")
    unknown = sorted(set(found) - KNOWN)
    if unknown:
        raise ConfigError(f"{path}: [tool.refold] knows {', '.join(sorted(KNOWN))}, not {', '.join(unknown)}")
    return found
