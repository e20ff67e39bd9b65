"""What a stranger's machine may lack: the script that makes the environment says so, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _make(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this Python, and with no uv on PATH."""
    environment = {"PYTHON": python, "PATH": os.defpath, "HOME": str(tmp_path)}
    command = ["sh", "scripts/venv.sh", str(tmp_path / "venv"), "editable", "test"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_old_python_is_named_with_what_is_needed(tmp_path):
    old = _script(tmp_path / "python3", '[ "$1" = -V ] && echo "Python 3.9.2" && exit 0; exit 1')
    done = _make(tmp_path, old)
    assert done.returncode == 1
    assert f"refold needs Python 3.11 or newer; {old} is Python 3.9.2." in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_python_that_is_not_there_is_said_to_be_missing(tmp_path):
    done = _make(tmp_path, str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "nowhere is not there." in done.stderr


@pytest.mark.skipif(
    any((Path(folder) / "uv").exists() for folder in os.defpath.split(":") if folder), reason="uv would be used instead"
)
def test_a_python_without_ensurepip_names_the_package_to_install(tmp_path):
    bare = _script(tmp_path / "bare", f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"')
    done = _make(tmp_path, bare)
    assert done.returncode == 1
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
    assert not (tmp_path / "venv").exists()
