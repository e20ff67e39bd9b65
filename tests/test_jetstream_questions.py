"""Questions on their way to NATS: who gets what, and what becomes of those that get nothing. No server."""

from __future__ import annotations

import pytest

from refold.brokers.jetstream import questions
from refold.brokers.jetstream.questions import Questions
from refold.bus.errors import BrokerUnavailable, ConfigError


def test_an_answer_goes_to_who_asked_and_one_that_comes_late_to_nobody(go):
    async def main():
        asked = Questions(lambda: None)
        (first, one), (second, two) = asked.ask("a"), asked.ask("b")
        two.cancel()
        assert (asked.take(second, "late"), asked.take(first, "in time"), asked.take(first, "again")) == ("b", "a", "")
        assert await one == "in time"
        asked.close()

    go(main())


def test_what_has_no_answer_is_given_up_and_told_but_not_what_nobody_waits_for(go, monkeypatch):
    monkeypatch.setattr(questions, "ANSWER", 0.02)
    silences = list[str]()

    async def main():
        asked = Questions(lambda: silences.append("silent"))
        _, gone = asked.ask("a")
        gone.cancel()
        answers = [asked.ask("a")[1] for _ in range(3)]
        for answer in answers:
            with pytest.raises(BrokerUnavailable, match="no answer"):
                await answer
        monkeypatch.setattr(questions, "ANSWER", 0.01)
        with pytest.raises(BrokerUnavailable):
            await asked.ask("later")[1]

    go(main())
    assert len(silences) == 4


def test_a_refusal_fails_what_was_asked_at_that_subject_and_a_broken_connection_fails_all(go):
    async def main():
        asked = Questions(lambda: None)
        (_, refused), (_, other) = asked.ask("Some.Subject"), asked.ask("other")
        token, queue = asked.collect("some.subject")
        asked.fail(lambda: ConfigError("not allowed"), "some.SUBJECT")
        assert isinstance(refused.exception(), ConfigError)
        assert isinstance(queue.get_nowait(), ConfigError)
        assert not other.done()
        asked.fail(lambda: BrokerUnavailable("broke"))
        assert isinstance(other.exception(), BrokerUnavailable)
        assert isinstance(queue.get_nowait(), BrokerUnavailable)
        asked.drop(token)
        asked.fail(lambda: BrokerUnavailable("broke again"))
        assert queue.empty()
        asked.close()

    go(main())


def test_several_answers_to_one_question_come_in_order(go):
    async def main():
        asked = Questions(lambda: None)
        token, queue = asked.collect("a")
        assert [asked.take(token, n) for n in ("1", "2")] == ["a", "a"]
        assert [await queue.get() for _ in range(2)] == ["1", "2"]
        asked.drop(token)
        assert asked.take(token, "3") == ""
        assert queue.empty()

    go(main())
