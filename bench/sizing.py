"""What a load needs, computed from what was measured (bench/costs.json): `python bench/sizing.py` writes the sheet of
docs/brokers.md. `python bench/sizing.py 500 20000` prints it for 500 workflows/s and 20,000 that wait."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

COSTS = Path(__file__).parent / "costs.json"
PAGE = Path(__file__).parent.parent / "docs" / "brokers.md"
BUSY = 0.6
"""How much of its one core a worker's process should be busy at most."""
SHARES = 4
"""Partitions for each worker: so many others share what one leaves when it dies."""
LEASE = 8.0
STUBS = 100_000
REPLICAS = 3
DAY = 86_400
GB = 1e9
ROOM = 64 * GB
"""Memory of a server, or of whoever looks workflows up: what the last rows are told against."""
SCAN = 200_000.0
"""Records a second that the first look at a partition of Kafka reads (docs/kafka.md)."""
BROKERS = {"nats": "NATS", "kafka": "Kafka"}


class Load(NamedTuple):
    """Pipelines of five stages a second, workflows that wait, groups that fold the log."""

    rate: float
    waiting: float
    groups: int = 1


class Costs(NamedTuple):
    """What was measured: processor microseconds and bytes, of a workflow of the pipeline if the name says no other."""

    worker_us: float
    server_us: float
    group_us: float
    disk_bytes: float
    records: float
    open_bytes: float
    open_memory: float
    open_restore_us: float
    open_read_us: float
    stub_bytes: float
    stub_memory: float
    stub_restore_us: float
    subject_memory: float
    index_memory: float


class Need(NamedTuple):
    """What a load needs."""

    workers: int
    partitions: int
    cores: float
    group_cores: float
    server_cores: float
    partition_limit: float
    disk_a_day: float
    memory: float
    checkpoint: float
    heirs: int
    takeover: float
    subjects_a_day: float
    index_a_day: float
    first_look: float


def costs_of(found: dict[str, Any], broker: str) -> Costs:
    """Take what is needed from what was measured."""
    fold = {"records": found["fold"]["records_of_a_pipeline"], **found["fold"]}
    known = {"subject_memory": 0.0, "index_memory": 0.0, **fold, **found[broker]}
    return Costs(*(float(known[name]) for name in Costs._fields))


def need(load: Load, c: Costs) -> Need:
    """Compute what a load needs. Everything is linear in what was measured: nothing of it was tried at this size."""
    cores = load.rate * c.worker_us / 1e6
    group_cores = load.rate * c.group_us / 1e6
    workers = math.ceil((cores + (load.groups - 1) * group_cores) / BUSY)
    partitions = SHARES * workers
    stubs = min(STUBS * partitions, load.rate * DAY)
    heirs = max(min(SHARES, workers - 1), 1)
    inherited = (c.open_restore_us + c.open_read_us) * load.waiting + c.stub_restore_us * stubs
    records_a_day = load.rate * c.records * DAY
    return Need(
        workers=workers,
        partitions=partitions,
        cores=cores,
        group_cores=group_cores,
        server_cores=load.rate * c.server_us / 1e6,
        partition_limit=BUSY * 1e6 / c.worker_us,
        disk_a_day=load.rate * c.disk_bytes * DAY * REPLICAS,
        memory=(load.waiting * c.open_memory + stubs * c.stub_memory) / workers,
        checkpoint=load.waiting * c.open_bytes + stubs * c.stub_bytes,
        heirs=heirs,
        takeover=LEASE + inherited / 1e6 / workers / heirs,
        subjects_a_day=load.rate * DAY * c.subject_memory,
        index_a_day=load.rate * DAY * c.index_memory,
        first_look=records_a_day / partitions / SCAN,
    )


# ---- the sheet -------------------------------------------------------------------------------------------------------
def sheet(load: Load, found: dict[str, Any]) -> list[str]:
    """Return what a load needs as a table of Markdown."""
    needs = [need(load, costs_of(found, broker)) for broker in BROKERS]
    nats, kafka = needs
    rows = [
        ("processor time of the workers of one group, cores", [f"{n.cores:.1f}" for n in needs]),
        (f"worker processes, {BUSY:.0%} busy, one core each", [f"{n.workers:,}" for n in needs]),
        (f"partitions, {SHARES} for each worker", [f"{n.partitions:,}" for n in needs]),
        ("what one partition, hence one process, can do: workflows/s", [f"{n.partition_limit:,.0f}" for n in needs]),
        ("each further group: cores, if it only listens", [f"{n.group_cores:.1f}" for n in needs]),
        ("servers: cores of the leaders alone", [f"{n.server_cores:.1f}" for n in needs]),
        (f"disk a day, {REPLICAS} replicas", [f"{n.disk_a_day / 1e12:.1f} TB" for n in needs]),
        ("memory of a worker for what waits and what is remembered", [f"{n.memory / GB:.2f} GB" for n in needs]),
        ("checkpoints of one group", [f"{n.checkpoint / GB:.1f} GB" for n in needs]),
        (f"takeover of a dead worker by {nats.heirs} others, a lease of {LEASE:g} s included",
         [f"{n.takeover:.1f} s" for n in needs]),
        ("**breaks**: memory of the servers for a day's workflows", [f"{nats.subjects_a_day / GB:,.0f} GB", "none"]),
        (f"... {ROOM / GB:.0f} GB are full after", [lasts(nats.subjects_a_day), "never"]),
        ("**breaks**: memory of who looks all partitions' workflows up, after a day",
         ["none", f"{kafka.index_a_day / GB:,.0f} GB"]),
        ("... the first look at one partition then takes", ["by subject, at once", f"{kafka.first_look / 60:.0f} min"]),
    ]  # fmt: skip
    head = [f"{load.rate:,.0f} workflows/s and {load.waiting:,.0f} that wait", *BROKERS.values()]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * 3, *([title, *cells] for title, cells in rows))]


def lasts(a_day: float) -> str:
    """Return how long it takes until the room is full."""
    days = ROOM / a_day
    return f"{days * 24:.0f} hours" if days < 3 else f"{days:,.0f} days"


MEASURED = (
    ("worker: processor time of a workflow", "worker_us", "us"),
    ("server: processor time of a workflow", "server_us", "us"),
    ("a group that only listens: processor time of a workflow", "group_us", "us"),
    ("disk of a workflow, one replica", "disk_bytes", "B"),
    ("a checkpoint's entry: written", "open_write_us", "us"),
    ("a checkpoint's entry: read", "open_read_us", "us"),
    ("server: heap of a workflow, after two minutes and a half", "subject_memory", "B"),
    ("server: heap of a workflow just written, its record's id included", "known_memory", "B"),
    ("who looks a workflow up: memory of one of six records", "index_memory", "B"),
)
OF_THE_FOLD = (
    ("records of a workflow", "records_of_a_pipeline", ""), ("a record", "record_bytes", "B"),
    ("folding a record", "fold_us", "us"),
    ("a workflow that waits: in a checkpoint", "open_bytes", "B"),
    ("a workflow that waits: in a worker's memory", "open_memory", "B"),
    ("a workflow that waits: loaded at a takeover", "open_restore_us", "us"),
    ("a completed workflow (stub): in a checkpoint", "stub_bytes", "B"),
    ("a completed workflow (stub): in a worker's memory", "stub_memory", "B"),
    ("a completed workflow (stub): loaded at a takeover", "stub_restore_us", "us"),
)  # fmt: skip


def measured(found: dict[str, Any]) -> list[str]:
    """Return what was measured as a table of Markdown, and on what."""
    kinds = {"sqlite": "SQLite", **BROKERS}
    lines = [f"| measured | {' | '.join(kinds.values())} |", "|---|---|---|---|"]
    for title, name, unit in MEASURED:
        lines.append(f"| {title} | {' | '.join(number(found[kind].get(name), unit) for kind in kinds)} |")
    lines += [f"| {title} | on all: {number(found['fold'][name], unit)} | | |" for title, name, unit in OF_THE_FOLD]
    on = {part: found[part]["measured"] for part in ("fold", *kinds)}
    said = "; ".join(f"{part}: commit {one['commit']}, load {one['load']}" for part, one in on.items())
    one = on["fold"]
    named = {"sqlite": "SQLite", "nats": "nats-server", "kafka": "Kafka"}
    versions = ", ".join(f"{name} {found[kind]['version']}" for kind, name in named.items())
    where = f"{one['processors']} cores ({one['machine']}), Python {one['python']}, {versions}"
    lines += ["", f"Measured on {one['day']}: {where}; each server one node of the same machine ({said})."]
    return lines


def number(value: float | None, unit: str) -> str:
    """Return a measured value, with the digits that it deserves."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 10 else 1
    return f"{value:,.{digits}f} {unit}".strip()


def filled(page: str, found: dict[str, Any]) -> str:
    """Return the page with these figures between its marks."""
    for name, lines in {"measured": measured(found), "sheet": sheet(Load(10_000, 10_000_000), found)}.items():
        mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = mark.sub(lambda m, lines=lines: m[1] + "\n".join(lines) + "\n" + m[2], page)  # type: ignore[misc]
    return page


def main() -> None:
    """Write the page, or print another load's sheet."""
    found = json.loads(COSTS.read_text("utf-8"))
    if sys.argv[1:]:
        print("\n".join(sheet(Load(float(sys.argv[1]), float(sys.argv[2])), found)))
    else:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    main()
