"""The branches of `ctx.gather`: beside each other, at most `limit` at once; stopped when one of them fails."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from .causes import as_failure, is_own

if TYPE_CHECKING:
    from .run import Run


class BranchStopped(asyncio.CancelledError):
    """Another branch of the gather has failed: this one takes no further step."""


class Group:
    """The branches of one gather."""

    def __init__(self, parent: Group | None) -> None:
        self.parent = parent
        self.stopped = False

    def is_stopped(self) -> bool:
        """One of them, or of those around them, has failed."""
        return self.stopped or (self.parent is not None and self.parent.is_stopped())


class Branch:
    """A line of steps: the handler itself, or one argument of a gather."""

    def __init__(self, prefix: str, group: Group | None) -> None:
        self.prefix = prefix
        self.group = group
        self.count = 0
        self.calling = False

    def next_path(self) -> str:
        """Take a number."""
        self.count += 1
        return f"{self.prefix}{self.count}"


class Gathering:
    """One gather under way. While its branches run, the branch that gathers does not count as active."""

    def __init__(
        self, run: Run, arguments: Sequence[Awaitable[Any]], limit: int | None, return_exceptions: bool, path: str,
        parent: Group | None,
    ) -> None:  # fmt: skip
        self.run = run
        self.arguments = arguments
        self.limit = limit or len(arguments)
        self.return_exceptions = return_exceptions
        self.path = path
        self.group = Group(parent)
        self.todo = list(enumerate(arguments))[::-1]
        self.left = len(arguments)
        self.results: list[Any] = [None] * len(arguments)
        self.errors: list[BaseException] = []

    async def results_of_all(self) -> list[Any]:
        """Run the branches; results in the order of the arguments. Raises the first failure when all have ended."""
        if not self.todo:
            return []
        self.run.active -= 1
        try:
            async with asyncio.TaskGroup() as self.tasks:
                for _ in range(min(self.limit, self.left)):
                    self._start()
        except BaseException:
            discard(*self.arguments)
            raise
        if self.errors:
            self.errors[0].also = self.errors[1:]  # type: ignore[attr-defined]
            raise self.errors[0]
        if self.group.is_stopped():
            raise BranchStopped  # the gather around it has failed: not all results are there
        return self.results

    def _start(self) -> None:
        i, argument = self.todo.pop()
        self.run.active += 1
        self.tasks.create_task(self._branch(i, argument))

    async def _branch(self, i: int, argument: Awaitable[Any]) -> None:
        run, task = self.run, asyncio.current_task()
        assert task is not None
        run.branches[task] = Branch(f"{self.path}.{i + 1}.", self.group)
        try:
            self.results[i] = await run.argument(argument, f"{self.path}.{i + 1}")
        except BranchStopped:
            pass
        except BaseException as error:
            if run.over or not is_own(error):
                self.group.stopped = True
                raise
            self._failed(i, as_failure(error, f"branch {self.path}.{i + 1} of ctx.gather"))
        finally:
            del run.branches[task]
            self._ended()
        if not run.active and not run.over:
            await run.quiet()

    def _failed(self, i: int, error: BaseException) -> None:
        self.results[i] = error
        if not self.return_exceptions:
            self.errors.append(error)
            self.group.stopped = True

    def _ended(self) -> None:
        """A branch has ended: start the next one, or let the branch that gathers go on."""
        run = self.run
        self.left -= 1
        while self.todo and (self.group.is_stopped() or run.over or run.fault is not None):
            self.left -= 1
            discard(self.todo.pop()[1])
        if self.todo:
            self._start()
        elif not self.left:
            run.active += 1
        run.active -= 1


def discard(*arguments: Awaitable[Any]) -> None:
    """Drop branches that will not be started (nothing happens to one that has ended)."""
    from .context import Gather, Pending

    for argument in arguments:
        if isinstance(argument, Gather):
            argument.drop()
        elif inspect.iscoroutine(argument) or isinstance(argument, Pending):
            argument.close()
