"""`refold new`: a project whose own test passes, and that a worker can run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from refold.bus.errors import ConfigError
from refold.cli.load import load
from refold.cli.new import new


def test_its_own_test_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    new("tides-team")
    folder = tmp_path / "tides-team"
    assert "next: cd tides-team && refold run app.py" in capsys.readouterr().out
    assert {p.name for p in folder.iterdir()} >= {"app.py", "test_app.py", "README.md", "pyproject.toml"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_its_agents_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new("team")
    monkeypatch.setattr(sys, "path", list(sys.path))
    app = load("team/app.py")
    del sys.modules["app"]
    assert (app.name, sorted(a.name for a in app.agents)) == ("app", ["researcher", "writer"])


def test_json_names_the_files(tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    new("team", json=True)
    told = json.loads(capsysbinary.readouterr().out)
    assert told["folder"] == "team"
    assert sorted(p.name for p in (tmp_path / "team").iterdir()) == told["files"]


@pytest.mark.parametrize("name", ["1st", "a b", "x.y", ".."])
def test_names_that_are_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no project name"):
        new(name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "team").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        new("team")
    assert list((tmp_path / "team").iterdir()) == []


def test_a_place_where_nothing_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/team cannot be made: .*Not a directory"):
        new("file/team")
