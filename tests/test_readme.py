"""The README, executed: every block and every command in it does what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks, commands, play

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
ONLY_CHECKED = {
    "make demo": "it runs `refold demo`, which tests of its own play; here its recipe is read",
    "make test": "this very run: it would run itself",
    "python -m pip install .": "it needs a package index; tests/test_package.py builds the wheel and imports it",
    "refold demo": "tests of its own play it",
}
TYPED = [command.text for block in blocks(README) if block.language == "console" for command in commands(block.text)]


def test_whoever_types_what_the_readme_shows_sees_what_it_shows(tmp_path):
    play(README, tmp_path, skip=ONLY_CHECKED)


def test_what_is_not_played_here_is_shown_in_the_readme_and_is_there():
    assert set(ONLY_CHECKED) <= set(TYPED)
    for command in (c for c in ONLY_CHECKED if c.startswith("make ")):
        plan = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {"make demo": "refold demo", "make test": "-m pytest"}[command] in plan
    assert (ROOT / "pyproject.toml").is_file()
    refold = Path(sys.executable).parent / "refold"
    assert subprocess.run([refold, "demo", "--help"], capture_output=True, check=False).returncode == 0


def test_the_first_screen_says_what_it_is_shows_it_installs_it_and_greets():
    first = TEXT.partition("\n## ")[0]
    order = ["An event-sourced message bus", "<img src=", "make demo", "pip install .", "hello.py", "Hello, world!"]
    places = [first.index(word) for word in order]
    assert places == sorted(places)
    (hello,) = (block for block in blocks(README) if block.file == "hello.py")
    assert len(hello.text.splitlines()) <= 12
    assert len(TEXT.splitlines()) <= 150


def test_the_five_rules_are_those_of_the_page_on_handlers():
    section = TEXT.partition("## The five rules of a handler\n")[2].partition("\n## ")[0]
    rules = re.findall(r"^\d\. (.+(?:\n   .+)*)", section, re.MULTILINE)
    more = (ROOT / "docs" / "handlers.md").read_text("utf-8")
    assert len(rules) == 5
    assert [rule for rule in rules if _plain(rule) not in _plain(more)] == []


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\*\*|\([^)]*\)", "", text)).replace(" :", ":").replace(" .", ".")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"(?:\]\(|src=\")([\w./-]+)[)\"]", TEXT))))
def test_every_link_of_the_readme_leads_somewhere(link):
    assert (ROOT / link).exists()


def test_the_picture_is_of_a_run_whose_proof_held_and_shows_nothing_of_the_machine_it_ran_on():
    picture = (ROOT / "docs" / "demo.svg").read_text("utf-8")
    words = re.sub(r"\s+", " ", re.sub(r"&#160;|<[^>]*>", " ", picture))
    for word in ("kill -9", "begins again", "it holds", "charged exactly once"):
        assert word in words
    assert re.findall(r"(?<![\w:/.])/(?:home|root|tmp|Users|work|var)\b", words) == []
    assert "@font-face" not in picture
    assert "--svg docs/demo.svg" in (ROOT / "Makefile").read_text("utf-8")


def test_no_command_that_cannot_work_is_shown():
    assert "pip install refold" not in TEXT
