"""The broker of the examples, which shows how to write one: judged by the suite that ships, and used."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))

from journal_broker import JournalBroker  # noqa: E402
from journal_broker.__main__ import subject  # noqa: E402
from test_differential import digest  # noqa: E402

from refold import Agent, Context, run  # noqa: E402
from refold.agents.copying import copy, ensure_target  # noqa: E402
from refold.brokers import open_broker  # noqa: E402
from refold.brokers.conformance import cases_of, left_out  # noqa: E402
from refold.projections.history import read_workflow  # noqa: E402

UNUSED = subject(Path("unused"))


@pytest.mark.parametrize("case", cases_of(UNUSED), ids=str)
def test_every_promise_is_kept_by_the_broker_of_the_examples(case, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    asyncio.run(case.run(subject(tmp_path)))


def test_nothing_of_it_is_left_unjudged():
    assert left_out(UNUSED) == {}


def test_a_team_works_on_it_and_its_workflows_move_to_another_log(tmp_path, go):
    clerk, scribe = Agent("clerk"), Agent("scribe")

    @clerk.on_task
    async def work(ctx: Context, word: str) -> str:
        return await ctx.effect("shout", word.upper) + await ctx.request(scribe, word)

    @scribe.on_task
    async def count(ctx: Context, word: str) -> str:
        return str(len(word))

    async def main():
        async with JournalBroker(tmp_path / "log") as broker, open_broker(f"sqlite:///{tmp_path}/log.db") as target:
            await broker.ensure_log()
            async with run(clerk, scribe, broker=broker) as bus:
                handles = [await bus.start(clerk, f"word{n}") for n in range(5)]
                assert [await h.result() for h in handles] == [f"WORD{n}5" for n in range(5)]
            await ensure_target(broker, target)
            assert (await copy(broker, target)).workflows == 5
            for handle in handles:
                here, there = [await read_workflow(log, handle.correlation_id) for log in (broker, target)]
                assert digest(here) == digest(there)

    go(main())
