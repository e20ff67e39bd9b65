"""The tables of docs/brokers.md, from the suite that judges a broker and from what each adapter says of itself.

`cd tests && python -m broker_table [--three-nodes]` plays every case on all four brokers, on servers that it starts,
and writes what came of it into the page. `test_brokers_page.py` says when the page is no longer what the code says.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from documents import ROOT
from jetstream_logs import on_nats, running
from kafka_logs import on_kafka
from test_conformance import in_a_file, in_memory

from refold.brokers.conformance import CASES, Case, PromiseBroken, Subject, cases_of, left_out
from refold.brokers.jetstream.health import durability_of as durability_on_nats
from refold.brokers.kafka import topics, wire
from refold.brokers.kafka.health import durability_of as durability_on_kafka
from refold.brokers.memory import Log, MemoryBroker
from refold.brokers.servers import kafka_server, nats_server
from refold.brokers.sqlite.health import look as health_of_file
from refold.bus.broker import Capabilities

PAGE = ROOT / "docs" / "brokers.md"
NAMES = ("memory", "SQLite", "NATS", "Kafka")
BROKEN = "BROKEN"
CLAIMS = {
    "compare_and_append": "a writer that has not seen a workflow's last record is refused (`Conflict`)",
    "refuse_duplicates": "a record whose id is there already is refused (`Duplicate`)",
    "fence_appends": "an append of an owner that has a successor is refused (`Fenced`)",
    "shared_between_processes": "processes share the log",
    "survives_restart": "the log outlives its processes",
}
Results = Mapping[str, Mapping[str, str]]
"""What came of each case that was played, by broker and case; nothing where it kept its promise."""


def unserved() -> dict[str, Subject]:
    """Return what is judged, without servers: enough to know what applies."""
    found = (in_memory(), in_a_file(Path("unused")), on_nats("unused:1"), on_kafka("unused:1"))
    return dict(zip(NAMES, found, strict=True))


def filled(page: str, name: str, lines: list[str]) -> str:
    """Return the page with other lines between a table's marks. Raises ValueError where there are none."""
    mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(page):
        raise ValueError(f"no <!-- {name} --> in the page")
    return mark.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], page)


# ---- what the tables say ---------------------------------------------------------------------------------------------
def capabilities() -> list[str]:
    """Return what each broker claims to refuse or do by itself."""
    claims = [subject.new_log()().capabilities for subject in unserved().values()]
    rows = [
        [f"{CLAIMS[name]}: `{name}`", *("yes" if getattr(c, name) else "no" for c in claims)]
        for name in Capabilities.__struct_fields__
    ]
    return table(["early, by the broker itself", *NAMES], rows)


def promises(results: Results) -> list[str]:
    """Return a row for each case: whether the broker keeps it, or does not claim it."""
    rows = []
    subjects = unserved()
    unproved = {name: left_out(subject) for name, subject in subjects.items()}
    for part, cases in groupby(CASES, lambda case: case.act.__module__):
        says = str(sys.modules[part].__doc__).splitlines()[0]
        rows.append([f"**{part.rpartition('.')[2]}**: {says[0].lower()}{says[1:].rstrip('.')}", *[""] * len(NAMES)])
        for case in cases:
            cells = [results.get(n, {}).get(str(case)) or cell(case, s, unproved[n]) for n, s in subjects.items()]
            rows.append([str(case), *cells])
    return table(["promise", *NAMES], rows)


def cell(case: Case, subject: Subject, unproved: Mapping[str, str]) -> str:
    """Return what is known of a case that was not broken."""
    if str(case) in unproved:
        return "not judged"
    return "yes" if case.why_not(subject) is None else "no"


def durability() -> list[str]:
    """Return the class of each setting, as the adapters tell it."""
    rows = []
    memory = asyncio.run(MemoryBroker(Log()).health())
    rows.append(["memory", "", memory.durability, memory.why])
    with tempfile.TemporaryDirectory() as folder:
        for setting, said in (("FULL", ""), ("NORMAL", "`?synchronous=normal`")):
            found = health_of_file(f"{folder}/unused.db", setting)
            rows.append(["SQLite", said, found.durability, found.why])
    for replicas in (1, 3):
        for sync, said in (("unknown", ""), ("always", "`sync_interval: always`")):
            rows.append(["NATS", named(replicas, said), *durability_on_nats(replicas, sync)])
    for replicas, least, flush in ((1, 1, False), (3, 1, False), (3, 2, False), (3, 2, True)):
        said = f"`min.insync.replicas={least}`" + (", `flush.messages=1`" if flush else "")
        rows.append(["Kafka", named(replicas, said), *durability_on_kafka(facts(replicas, least, flush))])
    return table(["broker", "setting", "class", "as `refold doctor` says it"], rows)


def named(replicas: int, said: str) -> str:
    """Return a setting of a replicated log."""
    return f"{replicas} replica{'s' if replicas > 1 else ''}{', ' if said else ''}{said}"


def facts(replicas: int, least: int, flush: bool) -> topics.Facts:
    """Return what a cluster would say of a log's topic."""
    names = topics.names_of("n")
    nodes = list(range(replicas))
    settings = {"min.insync.replicas": str(least)} | ({"flush.messages": "1"} if flush else {})
    return topics.Facts(names, {names.log: wire.Topic(0, "", {0: (0, nodes, nodes)})}, {names.log: settings})


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return Markdown."""
    return [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, ["---"] * len(head), *rows)]


# ---- the run ---------------------------------------------------------------------------------------------------------
def played(subject: Subject) -> dict[str, str]:
    """Put a broker to the test; the cases whose promise it breaks."""
    broken = {}
    for case in cases_of(subject):
        try:
            asyncio.run(case.run(subject))
        except Exception as error:
            print(f"{subject}: {case}: {type(error).__name__}: {error}", file=sys.stderr)
            broken[str(case)] = BROKEN if isinstance(error, PromiseBroken) else f"{BROKEN} ({type(error).__name__})"
    return broken


@contextlib.contextmanager
def served(folder: Path, nodes: int = 1) -> Iterator[dict[str, tuple[Subject, str]]]:
    """Yield brokers on servers of so many nodes, with their versions."""
    nats = nats_server(folder / f"nats{nodes}", nodes=nodes)
    kafka = kafka_server(folder / f"kafka{nodes}", nodes=nodes)
    many = nodes > 1
    with running(nats) as n, running(kafka) as k:
        on_n = on_nats(n.bootstrap, **({"replicas": nodes} if many else {}))
        on_k = on_kafka(k.bootstrap, patience=60.0, settings=f"?replication={nodes}" if many else "")
        yield {"NATS": (on_n, f"nats-server {n.version}"), "Kafka": (on_k, f"Apache Kafka {k.version}")}


def score(name: str, subject: Subject, broken: Mapping[str, str]) -> str:
    """Return how many of the cases that apply were kept."""
    count = len(cases_of(subject))
    return f"{name} {count - len(broken)} of {count}"


def main() -> None:
    """Play everything, and rewrite the page. Exits with 1 where a promise was broken."""
    results, scores = dict[str, dict[str, str]](), list[str]()
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as servers:
        files = {
            "memory": (in_memory(), "memory"),
            "SQLite": (in_a_file(Path(name)), f"SQLite {sqlite3.sqlite_version}"),
        }
        for broker, (subject, version) in (files | servers).items():
            results[broker] = played(subject)
            scores.append(score(version, subject, results[broker]))
    if "--three-nodes" in sys.argv:
        with tempfile.TemporaryDirectory() as name, served(Path(name), 3) as servers:
            for broker, (subject, version) in servers.items():
                found = played(subject)
                results[broker] |= found
                scores.append(score(f"{version} of three nodes", subject, found))
    write(results, scores)
    sys.exit(1 if any(results.values()) else 0)


def write(results: Results, scores: list[str]) -> None:
    """Rewrite what lies between the marks of the page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    said = f"Played on {day} at commit {commit}, cases kept of those that apply: {'; '.join(scores)}."
    page = PAGE.read_text("utf-8")
    for part, lines in {
        "capabilities": capabilities(), "durability": durability(), "promises": promises(results), "played": [said],
    }.items():  # fmt: skip
        page = filled(page, part, lines)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
