"""The faults that only a server has: killed, set back, filled, cut off; its members rolled and coming and going."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time

from refold.brokers.kafka.topics import names_of

from .check import whole_log
from .logs import NAMESPACE, PARTITIONS
from .stage import START, Broken, Process, Scenario, Stage

SERVERS = ("nats", "kafka")
FOREIGN = 1_000
"""Workflows that another client starts."""
LOUD = 40.0
"""Seconds within which a worker must have ended when its log is gone."""

TYPED = ("LogMissing", "LogMismatch", "LogTruncated", "LogCorrupt")


def is_at_work(stage: Stage, client: Process) -> bool:
    """The client waits for answers: a fault falls under load."""
    return client.alive and stage.acknowledged("result") < stage.acknowledged("start")


async def broker_killed(stage: Stage) -> None:
    """The server is killed with SIGKILL under load, and started again on what it had stored."""
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 24, pause=0.1)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    (node,) = stage.log.server.nodes
    for _ in range(2):
        await stage.pause(0.0, 0.4)
        stage.seen += is_at_work(stage, client)
        node.kill()
        await stage.pause(0.0, 1.0)
        await node.restart()
    await stage.over(client)
    await stage.drain()


async def deleted(stage: Stage) -> None:
    """All that the server keeps of the log is deleted."""
    await stage.log.delete()


async def made_again(stage: Stage) -> None:
    """The log is deleted, and an empty one of the same name is made: nobody of the old one may write to it."""
    await stage.log.delete()
    async with stage.log.open() as broker:
        await broker.ensure_log()


async def set_back(stage: Stage) -> None:
    """The server comes back with what it had stored a while ago: what was acknowledged since is gone."""
    (node,), home = stage.log.server.nodes, stage.log.server.folder
    copy = home.with_name("copy")
    node.kill()
    shutil.copytree(home, copy)
    await node.restart()
    calls = stage.calls()
    await stage.until(lambda: stage.calls() > calls + 6, 15, "work goes on")
    node.kill()
    for old in home.glob("node1/*"):
        if old.is_dir():
            shutil.rmtree(old)
            shutil.copytree(copy / "node1" / old.name, old)
    await node.restart()


async def log_lost(stage: Stage) -> None:
    """A log is deleted, made again or set back under its worker: it says so and stops, or has stopped with an
    error; it never goes on as if nothing had happened."""
    worker = stage.worker()
    client = stage.client("ann", 0, 200, pause=0.1, spread=20)
    await stage.until(lambda: stage.calls() > 6, START, "work has begun")
    await stage.pause(0.0, 0.5)
    how = stage.random.choice((deleted, made_again, set_back))
    await how(stage)
    stage.seen += 1
    stage.judged = False
    await stage.until(lambda: not worker.alive, LOUD, f"{how.__name__}: the worker ends; {stage.last_words(worker)}")
    said = stage.last_words(worker)
    if not worker.child.returncode or not any(error in said for error in TYPED):
        raise Broken(f"{how.__name__}: the worker ended with {worker.child.returncode}: {said}")
    if client.alive:
        client.kill()
    if how is made_again:
        async with stage.log.open() as broker:
            await broker.ensure_log(create=False)
            written = [p.record["message_type"] for p in (await whole_log(broker))[0]]
        if written:
            raise Broken(f"{how.__name__}: those of the old log have written to the new one: {written}")


async def rolling_restart(stage: Stage) -> None:
    """Every worker is replaced, one after the other, under load: nothing is dead-lettered, nobody dies."""
    for _ in range(3):
        stage.worker()
    client = stage.client("ann", 0, 36, pause=0.1, spread=4)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    for old in stage.workers():
        await stage.until(lambda: all(stage.is_ready(w) for w in stage.workers()), START, "workers have started")
        stage.seen += is_at_work(stage, client)
        stage.worker()
        old.signal(signal.SIGTERM)
        await stage.until(lambda old=old: not old.alive, 20, "a worker ends after SIGTERM")
        if old.child.returncode:
            raise Broken(f"a worker that was told to end ended with {old.child.returncode}: {stage.last_words(old)}")
    await stage.over(client)
    await stage.drain()


async def coming_and_going(stage: Stage) -> None:
    """A worker joins and another one leaves every second, for a minute; 30 s later everything is through."""
    stage.worker()
    client = stage.client("ann", 0, 72, pause=0.1, spread=60)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        stage.worker()
        alive = [worker for worker in stage.workers() if stage.is_ready(worker)]
        if len(alive) > 2:
            stage.random.choice(alive).signal(signal.SIGTERM)
            stage.seen += client.alive
        await asyncio.sleep(1.0)
    await stage.over(client, stage.client("bob", 72, 78), within=30)
    await stage.drain()


async def leader_killed(stage: Stage) -> None:
    """Of three nodes the one that leads a partition is killed under load; the other two go on; it comes back."""
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 24, pause=0.1, spread=3)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    await stage.pause(0.0, 0.4)
    node = stage.log.server.nodes[await stage.log.leader(stage.random.randrange(PARTITIONS))]
    stage.seen += is_at_work(stage, client)
    node.kill()
    await stage.over(client)
    await node.restart()
    await stage.over(stage.client("bob", 24, 30))
    await stage.drain()


async def node_stands_still(stage: Stage) -> None:
    """Of three nodes one that leads a partition stands still for a while, and comes back with what it believed then."""
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 24, pause=0.1, spread=3)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    await stage.pause(0.0, 0.4)
    node = stage.log.server.nodes[await stage.log.leader(stage.random.randrange(PARTITIONS))]
    stage.seen += is_at_work(stage, client)
    node.stop()
    try:
        await stage.pause(6.0, 12.0)
    finally:
        node.cont()
    await stage.over(client, stage.client("bob", 24, 30))
    await stage.drain()


async def network_cut(stage: Stage) -> None:
    """Of three nodes one that leads a partition is cut off for 6 to 15 s: from the other nodes and all clients, or from
    the other nodes alone, so that it goes on being asked, and believes that it leads. What was sent meanwhile is lost,
    or arrives late."""
    network = stage.log.network
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 36, pause=0.1, spread=12)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    await stage.pause(0.0, 0.4)
    node, minority = await stage.log.leader(stage.random.randrange(PARTITIONS)), stage.random.random() < 0.5
    under_load = is_at_work(stage, client)
    network.cut(node, clients=minority)
    try:
        await stage.pause(6.0, 15.0)
        if past := network.past():
            raise Broken(f"the network was not cut: {past}")
    finally:
        network.heal(late=stage.random.random() < 0.5)
    stage.seen += under_load and network.dropped > 0 and (minority or network.stale > 0)
    await stage.over(client, stage.client("bob", 36, 42))
    await stage.drain()


async def disk_of_server_full(stage: Stage) -> None:
    """The server's disk is full under load: whoever writes is told so. With space again, and the server started anew
    where it has given up, all goes on."""
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 24, pause=0.1, spread=3)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    await stage.pause(0.0, 0.4)
    (node,), told = stage.log.server.nodes, stage.refused()
    stage.log.disk.fill()
    await stage.until(lambda: stage.refused() > told or not client.alive, 60, "somebody is told")
    stage.seen += stage.refused() - told
    await stage.pause(0.0, 1.0)
    stage.log.disk.free()
    await node.restart()
    await stage.over(client)
    await stage.drain()


async def foreign_records(stage: Stage) -> None:
    """Another client starts 1,000 workflows in partitions of its own choice, among garbage, tombstones and records that
    are too large: each is handled once."""
    from .foreign import Foreigner

    for _ in range(2):
        stage.worker()
    await stage.over(stage.client("ann", FOREIGN, FOREIGN + 6, pause=0.02), within=START)
    foreigner = Foreigner(stage, names_of(NAMESPACE).log)
    for number in range(FOREIGN):
        foreigner.start(number, pause="0.02", notes="0")
        if stage.random.random() < 0.3:
            foreigner.rubbish(f"clerk-{stage.random.randrange(FOREIGN)}")
    await asyncio.to_thread(foreigner.end)
    stage.seen += foreigner.strays
    await stage.over(stage.client("bob", 0, FOREIGN, started=1, notes=0, spread=1), within=3 * START)
    await stage.drain()


SCENARIOS = (
    Scenario(foreign_records, ("kafka",)), Scenario(disk_of_server_full, SERVERS, disk=96),
    Scenario(broker_killed, SERVERS), Scenario(log_lost, SERVERS), Scenario(rolling_restart, SERVERS),
    Scenario(coming_and_going, SERVERS), Scenario(leader_killed, SERVERS, 3), Scenario(node_stands_still, SERVERS, 3),
    Scenario(network_cut, SERVERS, 3, network=True),
)  # fmt: skip
