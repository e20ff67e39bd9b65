"""The pages of docs/: those with code are played, and the page on the command line is what `--help` says."""

from __future__ import annotations

import inspect
import re

import pytest
from documents import ROOT, Likeness, blocks, commands, play
from typer.main import get_command

import refold
from refold.agents.agent import DEFAULT_TIMEOUT
from refold.agents.retry import EFFECT_RETRY, HANDLER_RETRY
from refold.cli import app, exits

DOCS = ROOT / "docs"
PLAYED = ("clients.md", "handlers.md", "operating.md", "projections.md")
NOT_PLAYED = {"performance.md": "its commands measure for minutes, and its figures are those of one machine"}
COMMAND_LINE = (DOCS / "command-line.md").read_text("utf-8")
WORDS = re.compile(r"`(?:refold )?([^`\n]+)`")


@pytest.mark.parametrize("page", PLAYED)
def test_whoever_types_what_a_page_shows_sees_what_it_shows(page, tmp_path):
    play(DOCS / page, tmp_path)


def test_every_page_with_code_or_commands_is_played():
    pages = [*DOCS.rglob("*.md"), ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
    with_code = {p.name for p in pages if any(b.language in ("python", "console") for b in blocks(p))}
    assert with_code - set(NOT_PLAYED) == set(PLAYED)


def test_every_public_name_is_on_a_page():
    pages = "\n".join(path.read_text("utf-8") for path in [ROOT / "README.md", *DOCS.glob("*.md")])
    assert [name for name in refold.__all__ if not re.search(rf"\b{name}\b", pages)] == []


def test_the_defaults_that_the_pages_name_are_those_of_the_code():
    page = " ".join((DOCS / "operating.md").read_text("utf-8").split())
    settings = inspect.signature(refold.Worker).parameters
    named = dict(re.findall(r"`(\w+)` \((?:[a-z ]+, )?([\d,]+)(?: s)?\)", page))
    assert set(named) == {"concurrency", "threads", "max_live", "lease", "stall_limit", "drain"}
    assert {name: float(value.replace(",", "")) for name, value in named.items()} == {
        name: settings[name].default for name in named
    }
    handlers = (DOCS / "handlers.md").read_text("utf-8")
    assert f"({HANDLER_RETRY.attempts} times in all, {HANDLER_RETRY.initial} s doubling" in handlers
    assert f"({EFFECT_RETRY.attempts} times in all by default" in handlers
    assert f"`timeout` ({DEFAULT_TIMEOUT:.0f} s;" in handlers


def _help() -> dict[str, set[str]]:
    """The options of each command, from the command line itself."""
    found = {}
    waiting = {"": get_command(app)}
    while waiting:
        name, command = waiting.popitem()
        found[name] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        waiting |= {f"{name} {n}".strip(): c for n, c in getattr(command, "commands", {}).items()}
    return found


def test_every_command_is_on_the_page_of_the_command_line():
    table = COMMAND_LINE.partition("**Which log.**")[0]
    missing = [name for name in _help() if name and not re.search(rf"\b{name}\b", table)]
    assert missing == []


def test_every_option_and_command_that_the_page_names_exists():
    known = _help()
    options = {option for found in known.values() for option in found}
    longest_first = sorted(known, key=len, reverse=True)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", COMMAND_LINE))
    assert named - options == set()
    for said in WORDS.findall(COMMAND_LINE):
        for option in re.findall(r"--[a-z-]+", said):
            command = next(name for name in longest_first if said.startswith(name))
            assert option in known[command] or (not command and option in options), said


def test_the_exit_codes_on_the_page_are_those_of_the_command_line():
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", COMMAND_LINE, re.MULTILINE))
    assert {int(code): text for code, text in rows.items()} == exits.MEANING


def test_a_likeness_forgives_what_differs_from_run_to_run_and_nothing_else():
    shown = ["worker 12258 did it in 7 ms", "...", "then 12286, not 12258"]
    assert Likeness()(shown, ["worker   7 did it in 1.5 s", "any", "thing", "then 8, not 7"])
    assert Likeness()(shown, ["worker 7 did it in 1.5 s", "then 8, not 7"])
    assert not Likeness()(shown, ["worker 7 did it in 1.5 s", "then 8, not 9"])
    assert not Likeness()(shown, ["worker 7 did it in 1.5 s", "then 7, not 7"])
    assert not Likeness()(shown, ["worker 7 did it", "then 8, not 7"])
    assert not Likeness()(["5 records"], ["6 records"])
    assert not Likeness()(["a"], ["a", "b"])


def test_comments_behind_commands_are_for_people():
    (first, second) = commands("$ kill %%     # the job above\n$ cat '#x'\nyes\n")
    assert (first.text, first.shown, second.text, second.shown) == ("kill %%", [], "cat '#x'", ["yes"])
