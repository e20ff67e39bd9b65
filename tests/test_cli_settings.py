"""Which log a command works on, payload arguments, and exit codes."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from pathlib import Path

import pytest

from refold.bus import errors
from refold.bus.errors import ConfigError, InvalidMessage, UnknownBroker
from refold.cli import exits
from refold.cli.payload import read_payload
from refold.cli.settings import broker_url


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("REFOLD_BROKER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def project(folder, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)


def test_without_settings_it_is_refold_db_here(here):
    assert broker_url(None) == "sqlite:///refold.db"
    assert list(here.iterdir()) == []


def test_the_option_goes_before_the_variable_and_that_before_pyproject(here, monkeypatch):
    project(here, '[tool.refold]\nbroker = "sqlite:///file.db"\n')
    assert broker_url(None) == "sqlite:///file.db"
    monkeypatch.setenv("REFOLD_BROKER", "sqlite:///variable.db")
    assert broker_url(None) == "sqlite:///variable.db"
    assert broker_url("memory://") == "memory://"


def test_the_nearest_pyproject_upwards_counts_and_its_file_is_beside_it(here, monkeypatch):
    project(here, '[tool.refold]\nbroker = "sqlite:///logs/a.db"\n')
    below = here / "some" / "folder"
    below.mkdir(parents=True)
    assert broker_url(None, below) == f"sqlite:///{here}/logs/a.db"
    project(here / "some", "[tool.other]\nx = 1\n")
    assert broker_url(None, below) == "sqlite:///refold.db"
    project(here / "some", '[tool.refold]\nbroker = "sqlite:////var/a.db"\n')
    assert broker_url(None, below) == "sqlite:////var/a.db"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tool.refold]\nbroker = 5\n", "[tool.refold] broker = 5: write a URL"),
        ('[tool.refold]\nbroker = ""\n', "[tool.refold] broker is empty"),
        ('[tool.refold]\nbrokr = "x"\n', "[tool.refold] knows broker, not brokr"),
        ("[tool]\nrefold = 5\n", "tool.refold is 5: write a table"),
        ("[tool.refold\n", "cannot be read"),
        ('[tool.refold]\nbroker = "refold.db"\n', "[tool.refold] broker: 'refold.db' is no broker URL"),
    ],
)
def test_a_wrong_pyproject_is_named(here, text, problem):
    project(here, text)
    with pytest.raises(ConfigError) as caught:
        broker_url(None)
    assert str(here / "pyproject.toml") in str(caught.value)
    assert problem in str(caught.value)


def test_a_wrong_url_says_where_it_is_written(here, monkeypatch):
    with pytest.raises(UnknownBroker, match=r"^--broker: no broker for redis://; there is kafka://, memory://, nats://, sqlite://$"):
        broker_url("redis://localhost")
    monkeypatch.setenv("REFOLD_BROKER", "log.db")
    with pytest.raises(UnknownBroker, match=r"^REFOLD_BROKER: 'log.db' is no broker URL: .* sqlite:///log.db$"):
        broker_url(None)
    monkeypatch.setenv("REFOLD_BROKER", " ")
    with pytest.raises(ConfigError, match=r"^REFOLD_BROKER is empty"):
        broker_url(None)
    with pytest.raises(ConfigError, match=r"^--broker: .*three slashes"):
        broker_url("sqlite://log.db")


# ---- payloads --------------------------------------------------------------------------------------------------------
def test_payloads_are_json_a_file_or_standard_input(here, monkeypatch):
    (here / "p.json").write_text('{"from": "file"}')
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]"))
    given = [None, '{"a": [1, 2.5, null]}', '"text"', "@p.json", "-"]
    assert [read_payload(p) for p in given] == [None, {"a": [1, 2.5, None]}, "text", {"from": "file"}, [1, 2]]


def test_what_is_no_json_has_its_place_and_a_way_out(here):
    with pytest.raises(InvalidMessage) as caught:
        read_payload('{"a": 1,\n "b": }')
    assert "the payload: not JSON: Expecting value: line 2 column 7 (char 15)" in str(caught.value)
    with pytest.raises(InvalidMessage, match="""a plain text is written as '"tides"'"""):
        read_payload("tides")
    (here / "bad.json").write_text("{")
    with pytest.raises(InvalidMessage, match=r"bad.json: not JSON: .*line 1 column 2"):
        read_payload("@bad.json")
    with pytest.raises(InvalidMessage, match=r"none.json: cannot be read: .*No such file"):
        read_payload("@none.json")


# ---- exit codes ------------------------------------------------------------------------------------------------------
def test_exit_codes_are_distinct_and_every_one_has_a_meaning():
    codes = [v for k, v in vars(exits).items() if k.isupper() and isinstance(v, int)]
    assert sorted(codes) == sorted(set(codes)) == sorted(exits.MEANING)
    text = exits.epilog()
    assert all(f"[bold]{code}[/] {meaning}" in text for code, meaning in exits.MEANING.items())
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    documented = re.findall(r"^\| (\d+) \| (.*) \|$", page, flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in documented} == exits.MEANING


def test_every_error_has_the_code_of_its_branch():
    expected = {
        errors.AgentError: exits.FAILED, errors.EffectFailed: exits.FAILED, errors.NoSuchAgent: exits.NOT_FOUND,
        errors.NoSuchWorkflow: exits.NOT_FOUND, errors.LogMissing: exits.NO_LOG, errors.RequestTimeout: exits.TIMEOUT,
        errors.AgentUnavailable: exits.TIMEOUT, errors.LogLocked: exits.UNAVAILABLE, errors.LogFull: exits.UNAVAILABLE,
        errors.BrokerUnavailable: exits.UNAVAILABLE, errors.VerbRefused: exits.REFUSED,
        errors.WorkflowExists: exits.REFUSED, errors.InvalidMessage: exits.REFUSED, errors.TooLarge: exits.REFUSED,
        errors.UnknownBroker: exits.CONFIG, errors.GroupConflict: exits.CONFIG, errors.LogCorrupt: exits.CONFIG,
        errors.HandlerError: exits.USER_CODE, ValueError: exits.INTERNAL,
    }  # fmt: skip
    assert {kind: exits.code_of(kind("x")) for kind in expected} == expected


def test_a_pyproject_that_new_writes_is_read():
    from refold.cli.new import PYPROJECT

    assert tomllib.loads(PYPROJECT.format(name="x"))["tool"]["refold"] == {"broker": "sqlite:///refold.db"}
