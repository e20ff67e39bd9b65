"""A pytest plugin: the servers that tests run against, and what the run says of them.

`nats_address`, `kafka_address`: host:port of a server that the whole run shares; a test takes a namespace of its own.
`own_nats`, `own_kafka`: `nats_server` and `kafka_server`, for a test that stops, kills or configures its servers.
An address in REFOLD_TEST_NATS or REFOLD_TEST_KAFKA comes first, then a container (where Docker runs and testcontainers
is installed), then a process of this machine. A test without its server is skipped, and the last lines say so; with
REFOLD_DEMAND_BROKERS=1 it fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import containers
import pytest

from refold.brokers.servers import kafka_server, nats_server
from refold.brokers.servers.jars import VERSION, java, kafka_jars
from refold.brokers.servers.nats import nats_binary, nats_version
from refold.bus.errors import RefoldError

KINDS = ("nats", "kafka")
DEMANDED = os.environ.get("REFOLD_DEMAND_BROKERS") == "1"
_GIVEN: dict[str, str] = {}


class Address(str):
    """host:port, and what answers there."""

    version: str
    how: str


def _address(address: str, version: str, how: str) -> Address:
    found = Address(address)
    found.version, found.how = version, how
    return found


@pytest.fixture(scope="session")
def nats_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """host:port of a NATS with JetStream."""
    with _shared("nats", tmp_path_factory) as address:
        yield address


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """host:port of a Kafka."""
    with _shared("kafka", tmp_path_factory) as address:
        yield address


@pytest.fixture(scope="session")
def own_nats() -> Any:
    """`nats_server`, where this machine has one."""
    try:
        _GIVEN["nats"] = f"{nats_version(nats_binary())}, {HERE}"
    except RefoldError as error:
        _without("nats", str(error))
    return nats_server


@pytest.fixture(scope="session")
def own_kafka() -> Any:
    """`kafka_server`, where this machine can run one."""
    try:
        java()
        kafka_jars(fetch=DEMANDED)
    except RefoldError as error:
        _without("kafka", str(error))
    _GIVEN["kafka"] = f"{VERSION}, {HERE}"
    return kafka_server


HERE = "a process of this machine"


def _without(kind: str, why: str) -> None:
    if DEMANDED:
        pytest.fail(f"no {kind}, though REFOLD_DEMAND_BROKERS=1: {why}", pytrace=False)
    pytest.skip(f"no {kind}: {why}")


@contextmanager
def _shared(kind: str, factory: pytest.TempPathFactory) -> Iterator[Address]:
    given = os.environ.get(f"REFOLD_TEST_{kind.upper()}")
    if given:
        address = _address(given, "of unknown version", f"REFOLD_TEST_{kind.upper()}={given}")
        _GIVEN[kind] = address.how
        yield address
        return
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    told, held = _kept(kind, place)
    if held is None:
        _without(kind, told["missing"])
        return
    with held:
        address = _address(told["address"], told["version"], told["how"])
        _GIVEN[kind] = f"{address.version}, {address.how}"
        yield address


def _kept(kind: str, place: Path) -> tuple[dict[str, Any], socket.socket | None]:
    """Connect to the run's keeper of this server, or start one: what it tells, and the connection that holds it."""
    with (place / f"{kind}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = place / f"{kind}.json"
        if note.exists():
            told = json.loads(note.read_text())
            held = _connected(told)
            if held is not None or "missing" in told:
                return told, held
        told = _started(kind, place)
        note.write_text(json.dumps(told))
        return told, _connected(told)


def _started(kind: str, place: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "keeper", kind, str(place), "fetch" if DEMANDED else "as-it-is"]
    with (place / f"{kind}.keeper.log").open("ab") as log:
        keeper = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    assert keeper.stdout is not None
    with keeper.stdout as stdout:
        line = stdout.readline()
    if not line:
        raise RuntimeError(f"the keeper of {kind} died: {(place / f'{kind}.keeper.log').read_text()[-2000:]}")
    keeper.returncode = 0  # nobody waits for it: it outlives this process where others use it
    return dict(json.loads(line))


def _connected(told: dict[str, Any]) -> socket.socket | None:
    if "port" not in told:
        return None
    try:
        held = socket.create_connection(("127.0.0.1", told["port"]), timeout=10)
        if held.recv(5) == b"kept\n":
            return held
        held.close()
    except OSError:
        pass
    return None


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
    """Keep the folder above the repository, whose root is a package, off the path: pytest would put it first there, and
    a clone beside it named `nats` would hide the client of NATS."""
    return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parent.parent else None


# ---- what the run says ---------------------------------------------------------------------------------------------
def pytest_report_header() -> list[str]:
    return [f"brokers: memory, sqlite, nats {_expected('nats')}, kafka {_expected('kafka')}"]


def _expected(kind: str) -> str:
    if given := os.environ.get(f"REFOLD_TEST_{kind.upper()}"):
        return f"at {given}"
    if containers.available():
        return "in a container"
    try:
        if kind == "nats":
            return nats_version(nats_binary())
        java()
        kafka_jars(fetch=DEMANDED)
    except RefoldError as error:
        return f"MISSING ({str(error).splitlines()[0]})"
    return VERSION


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.when == "call":
        for kind in KINDS:
            if kind in _GIVEN and (_named(kind, item.nodeid) or _wanted(kind, item)):
                item.user_properties.append(("server", f"{kind}: {_GIVEN[kind]}"))
    return (yield)


def _named(broker: str, nodeid: str) -> bool:
    return broker in nodeid.partition("[")[2].rstrip("]").split("-")


def _wanted(kind: str, item: pytest.Item) -> bool:
    return bool({f"{kind}_address", f"own_{kind}"} & set(getattr(item, "fixturenames", ())))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which brokers the tests met, and which not and why."""
    met, versions, missing = Counter[str](), dict[str, str](), dict[str, Counter[str]]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            met.update(broker for broker in ("memory", "sqlite") if _named(broker, report.nodeid))
            for name, told in getattr(report, "user_properties", ()):  # a module that cannot be collected has none
                if name == "server":
                    kind, _, version = told.partition(": ")
                    met[kind] += 1
                    versions[kind] = version
    for report in terminalreporter.getreports("skipped"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        for kind in KINDS:
            if reason.startswith(f"Skipped: no {kind}: "):
                missing.setdefault(kind, Counter())[reason.removeprefix(f"Skipped: no {kind}: ")] += 1
    terminalreporter.write_line(_told(met, versions, missing))


def _told(met: Counter[str], versions: dict[str, str], missing: dict[str, Counter[str]]) -> str:
    parts = [f"{b} in {met[b]} tests" for b in ("memory", "sqlite")]
    parts += [f"{b} ({versions[b]}) in {met[b]} tests" for b in KINDS if met[b]]
    line = f"Brokers met: {', '.join(parts)}."
    for kind in KINDS:
        for why, count in missing.get(kind, {}).items():
            line += f"\nNOT MET: {kind}: {count} tests skipped. {why}"
        if not met[kind] and kind not in missing:
            line += f"\nNot met: {kind}, which no test of this run asked for."
    return line
