"""`refold new`: a small project whose own test passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..bus.errors import ConfigError
from .output import as_json, say
from .settings import JsonOption

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

APP = '''"""Two agents: a writer that asks a researcher. Run it with: refold run app.py"""

from __future__ import annotations

from msgspec import Struct
from refold import Agent, Context

writer = Agent("writer")
researcher = Agent("researcher")


class Topic(Struct):
    name: str


class Draft(Struct):
    text: str


def look_up(topic: str) -> list[str]:
    """Stands for a paid call: a model, a search. Its result is recorded, and never paid for again."""
    return [f"{topic} come twice a day", f"{topic} follow the moon"]


@researcher.on_task
async def research(ctx: Context, topic: Topic) -> list[str]:
    return await ctx.effect("look up", look_up, topic.name)


@writer.on_task
async def write(ctx: Context, topic: Topic) -> Draft:
    facts = await ctx.request(research, topic, timeout=60)
    return Draft("; ".join(facts).capitalize() + ".")
'''

TEST = '''"""The test runs both agents in this process, on a log in memory."""

from __future__ import annotations

import asyncio

from app import Draft, Topic, research, researcher, write, writer
from refold import run


def test_the_writer_uses_the_facts() -> None:
    async def main() -> Draft:
        async with run(writer, researcher) as bus:
            return await bus.request(write, Topic("tides"))

    assert asyncio.run(main()).text == "Tides come twice a day; tides follow the moon."


def test_a_handler_is_a_plain_function_too() -> None:
    assert research.__name__ == "research"
'''

README = """# {name}

    refold run app.py                                   # a worker; start it in as many terminals as you like
    refold request writer '{{"name": "tides"}}'           # ask it, from another terminal
    refold ps                                           # what is open
    refold show ID                                      # what happened
    python -m pytest                                    # the test
"""

PYPROJECT = """[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["refold"]

[tool.refold]
broker = "sqlite:///refold.db"

[tool.pytest.ini_options]
pythonpath = ["."]
"""


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The folder to make.")], json: JsonOption = False
) -> None:
    """Make a small project: two agents, and a test that passes."""
    folder = Path(name)
    if not NAME.fullmatch(folder.name):
        raise ConfigError(f"{folder.name!r} is no project name: use letters, digits, - and _, a letter first")
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name")
    files = {
        "app.py": APP,
        "test_app.py": TEST,
        "README.md": README.format(name=folder.name),
        "pyproject.toml": PYPROJECT.format(name=folder.name),
        ".gitignore": "*.db\n*.db-*\n__pycache__/\n",
    }
    try:
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error}") from error
    if json:
        as_json({"folder": str(folder), "files": sorted(files)})
        return
    say(f"made {folder}/: {', '.join(sorted(files))}")
    say(f"next: cd {folder} && refold run app.py")
