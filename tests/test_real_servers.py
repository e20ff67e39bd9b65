"""The plugin that gives tests their servers: nothing is skipped in silence, and no server outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

TESTS = Path(__file__).parent
WANTS = "def test_it(kafka_address):\n    print('met', kafka_address)\ndef test_own(own_kafka):\n    pass\n"
HOLDS = "import sys, time\ndef test_it(nats_address):\n    print('met', flush=True)\n    time.sleep(60)\n"


def _command(folder: Path, code: str) -> list[str]:
    (folder / "test_it.py").write_text(code)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "real_servers", "-rP", f"--basetemp={folder / 'temp'}", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *options, str(folder)]


def _run(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = _command(folder, code)
    return subprocess.run(
        command, cwd=folder, env=_environment(**environment), capture_output=True, text=True, check=False, timeout=60
    )


def _environment(**more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("REFOLD_", "PYTEST_", "JAVA_"))}
    return {**ours, "PYTHONPATH": str(TESTS), **more}


def test_a_machine_without_java_skips_and_the_last_lines_say_why(tmp_path):
    done = _run(tmp_path, WANTS, PATH=str(tmp_path), REFOLD_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "kafka MISSING (there is no java here: install" in done.stdout
    assert "2 skipped" in done.stdout
    assert "NOT MET: kafka: 2 tests skipped. there is no java here: install a Java runtime" in done.stdout
    assert "Not met: nats, which no test of this run asked for." in done.stdout


def test_where_brokers_are_demanded_a_missing_one_fails_the_run(tmp_path):
    done = _run(tmp_path, WANTS, PATH=str(tmp_path), REFOLD_CACHE=str(tmp_path), REFOLD_DEMAND_BROKERS="1")
    assert done.returncode == 1
    assert "no kafka, though REFOLD_DEMAND_BROKERS=1: there is no java here" in done.stdout
    assert "2 errors" in done.stdout


def test_an_address_in_the_environment_comes_first(tmp_path):
    done = _run(tmp_path, WANTS.partition("def test_own")[0], PATH=str(tmp_path), REFOLD_TEST_KAFKA="10.1.2.3:9092")
    assert done.returncode == 0, done.stdout
    assert "met 10.1.2.3:9092" in done.stdout
    assert "kafka (REFOLD_TEST_KAFKA=10.1.2.3:9092) in 1 tests" in done.stdout


def test_the_server_of_a_run_ends_with_it_even_where_the_run_is_killed(tmp_path, go, until, own_nats):
    run = subprocess.Popen(
        [*_command(tmp_path, HOLDS), "-s"], cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, text=True
    )
    assert any("met" in line for line in run.stdout)
    (keeper,) = [child for child in psutil.Process(run.pid).children() if "keeper" in child.cmdline()]
    (server,) = keeper.children()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    go(until(lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in (keeper, server))))
    assert list((tmp_path / "temp").glob("nats-*")) == []


def test_processes_of_one_run_share_a_server(tmp_path, own_nats):
    tests = "".join(f"def test_{n}(nats_address):\n    print('at', nats_address)\n" for n in range(6))
    command = [*_command(tmp_path, tests), "-n", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert "in 6 tests" in done.stdout
    assert len({line for line in done.stdout.splitlines() if line.startswith("at ")}) == 1
