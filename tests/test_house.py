"""The rules of the house that no linter knows: size, first lines, whom a room may import."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("agents", "brokers", "bus", "cli", "demo", "projections")
SHIPPED = sorted([ROOT / "__init__.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
LONGEST = 600
DOCUMENTS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
A_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`|\]\(([\w./-]+)\)")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


@pytest.fixture(autouse=True)
def no_finalizers():
    """Python 3.11 gives up on a syntax tree when a finalizer meanwhile prints a traceback, which parses too."""
    gc.disable()
    yield
    gc.enable()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imported_absolutely(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_the_first_line_of_a_file_says_what_it_is_for(path):
    said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert said, f"{_name(path)} has no docstring"
    assert len(said.splitlines()[0].split()) >= 2


def test_a_file_has_one_subject_and_fits_on_a_desk():
    lengths = {_name(path): len(path.read_text("utf-8").splitlines()) for path in SHIPPED}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_nothing_is_left_for_later():
    left = {_name(path) for path in SHIPPED if UNFINISHED.search(path.read_text("utf-8"))}
    assert left == set()


def test_the_package_imports_itself_relatively():
    wrong = {_name(path): found for path in SHIPPED if (found := _imported_absolutely(path) & {"refold", *ROOMS})}
    assert wrong == {}


def test_what_ships_needs_nothing_that_only_tests_have():
    only_for_tests = {"pytest", "hypothesis", "blockbuster", "inline_snapshot", "xdist", "setuptools", "tests"}
    assert {_name(path): found for path in SHIPPED if (found := _imported_absolutely(path) & only_for_tests)} == {}


def test_folders_of_tests_and_containers_are_no_packages():
    assert [name for name in ("tests", "docker", "docs", "scripts") if (ROOT / name / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_of_a_room_can_be_imported_first(room):
    """No import cycle hides behind the order in which others happen to import it."""
    modules = [path for path in SHIPPED if path.is_relative_to(ROOT / room) and path.name != "__main__.py"]
    dotted = [".".join(("refold", *path.relative_to(ROOT).with_suffix("").parts)) for path in modules]
    names = [name.removesuffix(".__init__") for name in dotted]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    for loaded in [m for m in sys.modules if m.split('.')[0] == 'refold']: del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_a_document_names_only_files_that_exist(document):
    found = A_PATH.findall(document.read_text("utf-8"))
    missing = [path for path, _ in found if path and not (ROOT / path).exists()]
    missing += [link for _, link in found if link and not (document.parent / link).exists()]
    assert missing == []


def test_the_scripts_are_plain_shell():
    for script in [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]:
        text = script.read_text("utf-8")
        shell = "bash" if text.startswith("#!/usr/bin/env bash") else "sh"
        done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
