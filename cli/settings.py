"""Which log a command works on: `--broker`, `REFOLD_BROKER`, `[tool.refold]` in pyproject.toml, else refold.db here."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bus.errors import ConfigError

DEFAULT_BROKER = "sqlite:///refold.db"
KNOWN = frozenset({"broker"})

BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", "-b", envvar="REFOLD_BROKER", metavar="URL", help=f"Which log. Default: {DEFAULT_BROKER}"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


def broker_url(given: str | None, start: Path | None = None) -> str:
    """Return the log's URL. Raises ConfigError."""
    if given is not None:
        if not given.strip():
            raise ConfigError(f"the broker's URL is empty: leave it out for {DEFAULT_BROKER}")
        return given
    url = table(start).get("broker", DEFAULT_BROKER)
    if not isinstance(url, str):
        raise ConfigError(f"[tool.refold] broker = {url!r}: write a URL, as in broker = {DEFAULT_BROKER!r}")
    return url


def table(start: Path | None = None) -> dict[str, Any]:
    """Return `[tool.refold]` of the nearest pyproject.toml upwards. Raises ConfigError."""
    here = (start or Path.cwd()).absolute()
    for folder in [here, *here.parents]:
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                found = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("refold", {})
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise ConfigError(f"{path} cannot be read: {error}") from error
            unknown = sorted(set(found) - KNOWN)
            if unknown:
                raise ConfigError(f"{path}: [tool.refold] knows {', '.join(sorted(KNOWN))}, not {', '.join(unknown)}")
            return dict(found)
    return {}
