"""Finding the user's agents: what `refold run` accepts, and what it says of what it cannot load."""

from __future__ import annotations

import sys

import pytest

from refold.cli.load import LoadError, load

APP = """
from refold import Agent
writer = Agent("writer")
reader = Agent("reader")
pair = [writer, reader, writer]
number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in; modules and paths that are added are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def refused(target: str) -> str:
    with pytest.raises(LoadError) as caught:
        load(target)
    return str(caught.value)


def test_a_file_means_all_of_its_agents_and_its_name_is_the_group(folder):
    (folder / "team_a.py").write_text(APP)
    app = load("team_a.py")
    assert (app.name, [a.name for a in app.agents]) == ("team_a", ["writer", "reader"])
    assert app.file == folder / "team_a.py"


def test_one_agent_that_is_picked_gets_a_group_of_its_own(folder):
    (folder / "team_b.py").write_text(APP)
    app = load("team_b.py:reader")
    assert (app.name, [a.name for a in app.agents]) == ("team_b.reader", ["reader"])


def test_the_only_agent_of_a_file_is_not_picked(folder):
    (folder / "solo.py").write_text("from refold import Agent\nsolo = Agent('solo')\n")
    assert load("solo.py:solo").name == load("solo.py").name == "solo"


def test_a_list_of_agents_is_taken_each_once(folder):
    (folder / "team_c.py").write_text(APP)
    app = load("team_c.py:pair")
    assert (app.name, [a.name for a in app.agents]) == ("team_c", ["writer", "reader"])


def test_a_module_is_found_in_the_current_folder_and_its_last_part_is_the_group(folder):
    (folder / "package_d").mkdir()
    (folder / "package_d" / "__init__.py").touch()
    (folder / "package_d" / "agents_of_mine.py").write_text(APP)
    app = load("package_d.agents_of_mine")
    assert (app.name, len(app.agents)) == ("agents_of_mine", 2)
    assert load("package_d.agents_of_mine:writer").name == "agents_of_mine.writer"


def test_a_file_in_another_folder_finds_its_neighbours(folder):
    (folder / "far").mkdir()
    (folder / "far" / "neighbour_e.py").write_text(APP)
    (folder / "far" / "app_e.py").write_text("from neighbour_e import writer\n")
    assert [a.name for a in load("far/app_e.py").agents] == ["writer"]


def test_dots_in_the_attribute_are_followed(folder):
    (folder / "deep.py").write_text(
        "from refold import Agent\nclass Box:\n    agent = Agent('boxed')\n"
    )
    assert [a.name for a in load("deep.py:Box.agent").agents] == ["boxed"]


def test_a_missing_file_names_the_nearest_one(folder):
    (folder / "app.py").touch()
    assert refused("ap.py") == "there is no file ap.py; did you mean app.py?"
    assert refused("other/x.py") == "there is no file other/x.py"


def test_a_missing_module(folder):
    assert refused("no_such_app") == (
        "there is no module 'no_such_app' here; is it FILE.py, or is the folder another one? (looked in the current "
        "folder and the installed packages)"
    )


def test_nothing_at_all(folder):
    assert refused(":writer") == "':writer': write MODULE:ATTR or FILE.py[:ATTR]"


def test_a_wrong_attribute_names_the_nearest_ones_or_the_agents(folder):
    (folder / "team_f.py").write_text(APP)
    assert refused("team_f.py:writr") == "team_f.py:writr: there is no 'writr'; did you mean writer?"
    assert refused("team_f.py:xyz") == "team_f.py:xyz: there is no 'xyz'; its agents are: reader, writer"


def test_an_attribute_that_is_no_agent(folder):
    (folder / "team_g.py").write_text(APP)
    assert refused("team_g.py:number") == (
        "team_g.py:number: number is of type int; name an Agent, or a list of Agents"
    )


def test_no_agents_at_all(folder):
    (folder / "empty.py").write_text("x = 1\n")
    assert refused("empty.py") == (
        "empty.py: defines no Agent at its top level; write e.g. writer = Agent('writer')"
    )


def test_a_syntax_error_has_its_file_and_line(folder):
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    assert refused("broken.py") == f"{folder}/broken.py:2: syntax error: invalid syntax"


def test_an_import_that_fails_has_the_line_of_the_user(folder):
    (folder / "needs.py").write_text("\nimport no_such_library\n")
    assert refused("needs.py") == (
        f"{folder}/needs.py:2: No module named 'no_such_library'; install it, or correct the import"
    )


def test_an_error_of_the_user_has_its_line_even_where_refold_or_a_library_raised_it(folder):
    lines = ("from refold import Agent", "a = Agent('a')", "", "@a.on('handled')", "async def f(x): ...")
    (folder / "fails.py").write_text("\n".join(lines))
    problem = "agent 'a': 'handled' is a kind that refold keeps for itself; choose another"
    assert refused("fails.py") == f"{folder}/fails.py:4: HandlerError: {problem}"
    (folder / "parses.py").write_text("import json\n\njson.loads('{')\n")
    assert refused("parses.py").startswith(f"{folder}/parses.py:3: JSONDecodeError: ")


def test_a_module_that_ends_the_program(folder):
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    assert refused("exits.py") == (
        f"{folder}/exits.py:2: the module ends the program while it is imported; put what starts it under "
        "if __name__ == '__main__':"
    )


def test_a_relative_import_in_a_file(folder):
    (folder / "relative.py").write_text("from . import other\n")
    assert refused("relative.py") == (
        f"{folder}/relative.py:1: ImportError: attempted relative import with no known parent package; name it as "
        "MODULE, from the folder above its package"
    )
