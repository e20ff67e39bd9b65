"""Power cuts: of every state that a disk may be in, the log comes back with all that was acknowledged (D2), or with all
up to some moment (D1, synchronous=normal). The controls cut the power on a disk that lies, and must find losses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from faults.power_loss import CannotCut, Disk, PowerLoss, events, library, put
from faults.writer import PARTITIONS, value_of

from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import Appended, Item, LogSpec, Outgoing
from refold.bus.errors import RefoldError

TESTS = Path(__file__).parent
THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
STEP, SEEDS = (1, 3) if THOROUGH else (8, 1)
"""Cuts after every STEPth write, each with SEEDS dice."""
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a log is opened after a cut: there is no second cut, so nothing needs a disk."""


@pytest.fixture(autouse=True)
def _cuts_can_be_played() -> None:
    """Fail where they cannot, but for those who know it (REFOLD_WITHOUT=power-loss)."""
    try:
        library()
    except CannotCut as error:
        if os.environ.get("REFOLD_WITHOUT") == "power-loss":
            pytest.skip(f"power cuts are NOT tested: {error}")
        pytest.fail(f"{error}; or leave these tests out knowingly: REFOLD_WITHOUT=power-loss")


class Told(NamedTuple):
    """What the writer was told before the cut: the log's id, the last record and checkpoint that were acknowledged."""

    log_id: str
    appended: dict[int, tuple[int, int]]
    saved: int


def told(marks: list[str]) -> Told:
    """Read the writer's marks."""
    log_id, appended, saved = "", {}, 0
    for kind, *words in (line.split() for line in marks):
        if kind == "opened":
            log_id = words[0]
        elif kind == "appended":
            number, partition, position = map(int, words)
            appended[number] = partition, position
        else:
            saved = int(words[1])
    return Told(log_id, appended, saved)


async def found(broker: SqliteBroker) -> dict[int, tuple[int, int]]:
    """Return where each record is. Every partition must be without gaps, and every record as it was sent."""
    out = {}
    for partition in range(PARTITIONS):
        page = await broker.read(partition)
        assert [s.position for s in page.records] == list(range(1, len(page.records) + 1)), "a gap"
        for s in page.records:
            number = int(s.value.split()[0])
            assert s.value == value_of(number), f"record {number} is not what was sent"
            assert s.key == f"key {number % 7}", f"record {number} has another key"
            out[number] = partition, s.position
    return out


async def losses(folder: Path, before: Told) -> list[str]:
    """Open what a cut has left; return what is lost of what was acknowledged. Raises where the log is not whole."""
    spec = LogSpec(partitions=PARTITIONS)
    async with SqliteBroker(str(folder / "log.db")) as broker:
        meta = await broker.ensure_log(spec)
        there = await found(broker)
        assert sorted(there) == list(range(1, len(there) + 1)), "a record is there, one before it is not"
        saved = [c.entries for p in range(PARTITIONS) if (c := await broker.checkpoint("group", p)) is not None]
        numbers = [int(entries.get(b"sent", b"0")) for entries in saved]
        out = [f"record {n}" for n, where in before.appended.items() if there.get(n) != where]
        out += [f"checkpoint {before.saved}"] if before.saved > max(numbers, default=0) else []
        out += ["the log"] if before.log_id not in ("", meta.log_id) else []
        assert all(number <= len(there) for number in numbers), "a checkpoint is ahead of the log"
        (result,) = await broker.append([Item(0, "after", (Outgoing("after", b"0 goes on"),))])
        assert isinstance(result, Appended)
        assert result.positions == (1 + sum(p == 0 for p, _ in there.values()),)
    with contextlib.closing(sqlite3.connect(folder / "log.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return out


class Cuts(NamedTuple):
    """What came of many cuts."""

    cuts: int
    took: int
    broken: list[str]
    lost: list[str]


def cuts(folder: Path, seed: int, synchronous: str, *, forget: str = "") -> Cuts:
    """Let a writer work, then cut the power after its every write."""
    power = PowerLoss(folder)
    command = [sys.executable, "-m", "faults.writer", str(folder), str(seed), synchronous]
    subprocess.run(command, cwd=TESTS, env={**os.environ, **power.environment}, check=True, timeout=60)
    seen = list(events(power.trace.read_bytes()))
    disk, out, took, n = Disk({}, forget), Cuts(0, 0, [], []), 0, 0
    for at, event in enumerate(seen):
        disk.take(event)
        if event.name == "marks" or (at + seed) % STEP:
            continue
        for dice in range(SEEDS):
            after = Path(tempfile.mkdtemp(dir=MEMORY))
            put(after, disk.cut(at * SEEDS + dice), at)
            n, took = n + 1, took + (disk.unsynced > 0)
            try:
                out.lost.extend(f"{event}: {what}" for what in asyncio.run(losses(after, told(disk.marks))))
            except (AssertionError, RefoldError, sqlite3.Error, LookupError, ValueError) as error:
                out.broken.append(f"after event {at} ({event.kind} {event.name}): {type(error).__name__} {error}")
            shutil.rmtree(after)
    for name, file in disk.names.items():
        assert file.now() == (folder / name).read_bytes(), f"the trace does not explain {name}"
    return out._replace(cuts=n, took=took)


@pytest.mark.parametrize("seed", range(1, 4 if THOROUGH else 2))
def test_whatever_a_power_cut_takes_of_what_was_not_synced_nothing_acknowledged_is_lost(
    tmp_path: Path, seed: int
) -> None:
    made = cuts(tmp_path, seed, "FULL")
    assert made.took > made.cuts / 4, "most of the cuts had nothing to take"
    assert made.broken == []
    assert made.lost == []


def test_with_synchronous_normal_a_power_cut_takes_the_newest_records_and_nothing_from_the_middle(
    tmp_path: Path,
) -> None:
    made = cuts(tmp_path, 1, "NORMAL")
    assert made.took > made.cuts / 4
    assert made.broken == []
    assert made.lost, "NORMAL promises less than FULL: a simulation that does not show it proves nothing"


@pytest.mark.parametrize("forget", ["-wal", ".db"])
def test_control_a_disk_that_ignores_syncs_of_one_file_is_found_out(tmp_path: Path, forget: str) -> None:
    made = cuts(tmp_path, 1, "FULL", forget=forget)
    assert made.lost or made.broken
