"""Workers as real processes on one file: killed, stopped, drained, started late."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from stopping import stop

from refold import MessageBus
from refold.projections.history import read_workflow
from refold.projections.status import Status
from refold.projections.timeline import attempts
from refold.projections.verdict import Verdict

TEAM = Path(__file__).parent / "team.py"


class Team:
    """Starts workers, and ends those that it started."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/log.db"
        self.ledger = folder / "ledger"
        self.gate = folder / "gate"
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, agents: str, group: str = "g", **settings: float) -> subprocess.Popen[bytes]:
        pairs = [f"{k}={v}" for k, v in settings.items()]
        log = (self.folder / f"worker-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen([sys.executable, str(TEAM), self.url, agents, group, *pairs], stderr=log)
        self.processes.append(process)
        return process

    def lines(self) -> list[str]:
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def job(self, n: int = 0, **more: object) -> dict[str, object]:
        return {"n": n, "ledger": str(self.ledger), **more}

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def team(tmp_path):
    made = Team(tmp_path)
    yield made
    made.end()


async def all_own_partitions(bus: MessageBus, group: str, members: int) -> bool:
    return sum(bool(m.presence.partitions) for m in await bus.broker.members(group)) == members


def test_two_workers_of_a_group_share_the_work_and_each_message_is_handled_once(go, until, team):
    async def main():
        team.start("worker")
        team.start("worker")
        async with MessageBus.open(team.url) as bus:
            await until(lambda: all_own_partitions(bus, "g", 2))
            handles = [await bus.start("worker", team.job(n), id=f"w{n}") for n in range(60)]
            results = [await h.result(20) for h in handles]
        assert {pid for pair in results for pid in pair} == {p.pid for p in team.processes}
        paid = Counter(" ".join(line.split()[:2]) for line in team.lines())
        assert paid == {f"{n} {half}": 1 for n in range(60) for half in ("first", "second")}

    go(main())


def test_a_worker_that_is_killed_at_work_is_replaced_and_what_was_recorded_is_not_paid_twice(go, until, team):
    async def main():
        first = team.start("worker")
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("worker", team.job(1, gate=str(team.gate)), id="w")
            await until(lambda: len(team.lines()) == 1)
            history = await read_workflow(bus.broker, "w")
            await until_recorded(bus, 2)
            first.kill()
            first.wait()
            second = team.start("worker")
            await until(lambda: second.poll() is None)
            team.gate.touch()
            a, b = await handle.result(20)
            assert (a, b) == (first.pid, second.pid)
            history = await read_workflow(bus.broker, "w")
        assert [line.split()[:2] for line in team.lines()] == [["1", "first"], ["1", "second"]]
        tries = attempts(history)
        assert [(t.number, t.pid, t.outcome) for t in tries] == [
            (1, first.pid, ""), (2, second.pid, "task_response")
        ]  # fmt: skip

    async def until_recorded(bus, effects):
        async def recorded():
            history = await read_workflow(bus.broker, "w")
            return sum(j.envelope.message_type == "effect_completed" for j in history.records) >= effects

        await until(recorded)

    go(main())


def test_a_call_that_was_made_and_not_recorded_is_repeated_with_the_same_key(go, until, team):
    async def main():
        first = team.start("worker")
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("worker", team.job(1, gate=str(team.gate)), id="w")
            await until(team.lines)
            first.send_signal(signal.SIGSTOP)  # it may have recorded the call, or not: either way it is one key
            first.kill()
            first.wait()
            team.start("worker")
            team.gate.touch()
            await handle.result(20)
        keys = {line.split()[2] for line in team.lines() if line.split()[1] == "first"}
        assert len(keys) == 1

    go(main())


def test_a_worker_that_was_stopped_beyond_its_lease_is_fenced(go, until, team):
    async def main():
        first = team.start("worker", lease=1.0)
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("worker", team.job(1, gate=str(team.gate)), id="w")
            await until(team.lines)
            await stop(first.pid, team.folder / "log.db", until)
            second = team.start("worker", lease=1.0)

            async def taken_over():
                history = await read_workflow(bus.broker, "w")
                return any(o.fact.pid == second.pid for o in history.owners.values())

            await until(taken_over, 15)
            first.send_signal(signal.SIGCONT)
            team.gate.touch()
            assert await handle.result(20)
            assert (await handle.status()).status is Status.COMPLETED
            records = (await read_workflow(bus.broker, "w")).records
            answers = [j for j in records if j.envelope.message_type == "task_response"]
            assert [j.verdict for j in answers] == [Verdict.ADMITTED]
        assert first.poll() is None
        second_payments = [line for line in team.lines() if line.split()[1] == "second"]
        assert len({line.split()[2] for line in second_payments}) == 1

    go(main())


def test_sigterm_drains_a_worker_and_the_other_goes_on(go, until, team):
    async def main():
        first = team.start("worker")
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("worker", team.job(1, gate=str(team.gate)), id="w")
            await until(team.lines)
            first.terminate()
            team.gate.touch()
            assert await handle.result(20) == [first.pid, first.pid]
            assert first.wait(20) == 0
            history = await read_workflow(bus.broker, "w")
            kinds = [o.message_type for o in history.owners.values()]
            assert kinds == ["owner", "owner_released"]
            second = team.start("worker")
            assert await bus.request("worker", team.job(2), timeout=20) == [second.pid, second.pid]

    go(main())


def test_an_agent_that_is_started_later_completes_what_waited(go, team):
    async def main():
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("worker", team.job(1), id="w")
            await bus.send("worker", team.job(2), kind="ping", id="p")
            worker = team.start("worker")
            assert await handle.result(20) == [worker.pid, worker.pid]
            ping = await bus.attach("p")
            async for _ in ping.events():
                pass
        assert any(line.startswith("ping 2") for line in team.lines())

    go(main())


def test_children_run_in_other_processes_of_other_groups(go, until, team):
    async def main():
        team.start("parent", "parents")
        workers = [team.start("worker", "workers") for _ in range(2)]
        async with MessageBus.open(team.url) as bus:
            await until(lambda: all_own_partitions(bus, "workers", 2))
            results = await bus.request("parent", team.job(children=30), timeout=25)
        assert {pid for pair in results for pid in pair} == {w.pid for w in workers}

    go(main())


def test_a_message_that_kills_its_process_is_dead_lettered_and_takes_no_innocent_with_it(go, until, team):
    async def main():
        def keep_alive():
            if all(p.poll() is not None for p in team.processes):
                team.start("poison", concurrency=4)

        async with MessageBus.open(team.url) as bus:
            innocent = [await bus.start("poison", team.job(n), id=f"i{n}") for n in range(12)]
            deadly = await bus.start("poison", team.job(99, deadly=True), id="deadly")

            async def over():
                keep_alive()
                statuses = [(await h.status()).status for h in (*innocent, deadly)]
                return all(s in (Status.COMPLETED, Status.FAILED) for s in statuses)

            await until(over, 28)
            assert {(await h.status()).status for h in innocent} == {Status.COMPLETED}
            assert (await deadly.status()).status is Status.FAILED
        starts = Counter(line.split()[0] for line in team.lines())
        assert starts["99"] <= 6

    go(main())


def test_a_handler_that_blocks_the_loop_for_three_leases_keeps_its_lease_and_runs_once(go, team):
    async def main():
        team.start("blocker", lease=0.5)
        async with MessageBus.open(team.url) as bus:
            handle = await bus.start("blocker", team.job(1, seconds=1.7), id="b")
            team.start("blocker", lease=0.5)
            assert await handle.result(20) == "done"
            history = await read_workflow(bus.broker, "b")
            assert len(attempts(history)) == 1
        assert len(team.lines()) == 1

    go(main())


def test_a_handler_that_blocks_the_loop_for_ever_is_ended_at_the_stall_limit(go, until, team):
    async def main():
        first = team.start("blocker", lease=0.3, stall_limit=2.5)
        async with MessageBus.open(team.url) as bus:
            await bus.start("blocker", team.job(1, seconds=600), id="b")
            await until(lambda: first.poll() is not None, 20)
            assert first.returncode == 70
        log = (team.folder / "worker-0.log").read_text()
        assert "agent blocker, workflow b" in log
        assert "has not turned" in log

    go(main())
