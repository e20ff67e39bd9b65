"""A promise as a case: its sentence, whose promise it is, when it applies, and how it is run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from .promise import PromiseBroken
from .stage import Stage
from .subject import Subject


class Act(Protocol):
    """What is done to the broker."""

    __name__: str

    def __call__(self, stage: Stage) -> Awaitable[None]: ...



class NotApplicable(Exception):
    """The case cannot be run on this subject; the text says why."""


class Case(NamedTuple):
    """A promise of the port. `str(case)` is its sentence."""

    sentence: str
    proves: tuple[str, ...]
    act: Act
    claims: str | None = None
    disclaims: str | None = None
    hooks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.sentence

    def why_not(self, subject: Subject, *, claimed: bool = False) -> str | None:
        """Return why the case cannot be run; with `claimed` only if it would apply to what the broker claims."""
        claims = subject.new_log()().capabilities
        if self.claims is not None and not getattr(claims, self.claims):
            return None if claimed else f"{subject} does not claim {self.claims}"
        if self.disclaims is not None and getattr(claims, self.disclaims):
            return None if claimed else f"{subject} claims {self.disclaims}"
        missing = [hook for hook in self.hooks if getattr(subject, hook) is None]
        return f"Subject({', '.join(f'{hook}=' for hook in missing)})" if missing else None

    async def run(self, subject: Subject) -> None:
        """Put the broker to the test. Raises PromiseBroken, or what the broker raised; NotApplicable."""
        why = self.why_not(subject)
        if why is not None:
            raise NotApplicable(f"{self.sentence}: {why}")
        try:
            await self._run(subject)
        except Exception as error:
            error.add_note(f"{subject} breaks a promise of {', '.join(self.proves)}: {self.sentence}")
            raise

    async def _run(self, subject: Subject) -> None:
        failure: Exception | None = None
        try:
            async with asyncio.timeout(2 * subject.patience), asyncio.TaskGroup() as tasks:
                stage = Stage(subject, tasks)
                try:
                    async with asyncio.timeout(subject.patience):
                        await self.act(stage)
                except Exception as error:  # noqa: BLE001 - raised below, when everything is closed
                    failure = _named(error, subject)
                finally:
                    await stage.clear()
        except TimeoutError as error:
            failure = failure or _named(error, subject)
        except ExceptionGroup as errors:
            failure = failure or errors.exceptions[0]
        if failure is not None:
            raise failure


def _named(error: Exception, subject: Subject) -> Exception:
    if isinstance(error, TimeoutError):
        found = PromiseBroken(f"it has not come to an end within {subject.patience:g} s")
        found.__cause__ = error
        return found
    return error


class Cases(list[Case]):
    """The cases of one file."""

    def add(
        self, *proves: str, claims: str | None = None, disclaims: str | None = None, hooks: tuple[str, ...] = ()
    ) -> Callable[[Act], Act]:  # fmt: skip
        """Take a function as a case; its name is the sentence."""

        def take(act: Act) -> Act:
            sentence = act.__name__.replace("_", " ")
            self.append(Case(sentence, proves, act, claims, disclaims, hooks))
            return act

        return take
