"""Several that ask at once are answered by one request, made after they asked."""

from __future__ import annotations

import asyncio

import pytest

from refold.brokers.kafka.rounds import Rounds
from refold.bus.errors import BrokerUnavailable


class Far:
    """Answers when it is told to, with what is true then."""

    def __init__(self) -> None:
        self.truth = 0
        self.asked: list[dict[str, int]] = []
        self.open = asyncio.Event()

    async def answer(self, asked):
        self.asked.append(dict(asked))
        seen = self.truth
        await self.open.wait()
        return {key: (wanted, seen) for key, wanted in asked.items()}


def test_who_asks_while_a_request_is_under_way_has_the_next_one_and_shares_it(go):
    async def main():
        far = Far()
        rounds = Rounds(far.answer)
        first = asyncio.ensure_future(rounds.ask("a", 1))
        while not far.asked:
            await asyncio.sleep(0)
        far.truth = 1
        others = [asyncio.ensure_future(rounds.ask(key, 2)) for key in ("a", "b", "c")]
        await asyncio.sleep(0)
        far.open.set()
        assert await first == (1, 0)
        assert await asyncio.gather(*others) == [(2, 1)] * 3
        assert far.asked == [{"a": 1}, {"a": 2, "b": 2, "c": 2}]
        await rounds.aclose()

    go(main())


def test_what_goes_wrong_is_told_to_those_that_asked_and_to_nobody_after_them(go):
    async def main():
        fail = [True]

        async def answer(asked):
            if fail.pop():
                raise LookupError("far away")
            return dict.fromkeys(asked, 7)

        rounds = Rounds(answer)
        for done in await asyncio.gather(rounds.ask("a", 0), rounds.ask("b", 0), return_exceptions=True):
            assert isinstance(done, LookupError)
        fail.append(False)
        assert await rounds.ask("a", 0) == 7

    go(main())


def test_one_that_is_cancelled_takes_the_answer_from_nobody_and_closing_ends_all(go):
    async def main():
        far = Far()
        rounds = Rounds(far.answer)
        one, other = (asyncio.ensure_future(rounds.ask(key, 0)) for key in "ab")
        while not far.asked:
            await asyncio.sleep(0)
        one.cancel()
        far.open.set()
        assert await other == (0, 0)
        far.open.clear()
        late = asyncio.ensure_future(rounds.ask("a", 0))
        while len(far.asked) < 2:
            await asyncio.sleep(0)
        await rounds.aclose()
        with pytest.raises(BrokerUnavailable, match="is closed"):
            await late

    go(main())
