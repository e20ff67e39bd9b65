"""Documents that run: their fenced blocks, a shell that plays their commands, and what counts as the same output."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w-]+\.(?:py|toml))`[^`\n]*:\n+\Z")
READING = re.compile(r"refold (ps|show|state|tail|doctor|dlq ls|dlq show)\b|cat ")
WORKER = re.compile(r"refold run .* >>? (\S+) 2>&1 &")
NOTE = re.compile(r"bash: line \d+: +\d+ Killed|\[\d+\]")
END = "end-of-command"


class Block(NamedTuple):
    """A fenced block: its language, its text, its line in the document, the file that the line above it names."""

    language: str
    text: str
    line: int
    file: str


class Command(NamedTuple):
    """A line after `$`, and the lines that are shown below it."""

    text: str
    shown: list[str]

    @property
    def reads(self) -> bool:
        """It only looks, so it may be repeated until what a slower reader would see is there."""
        return READING.match(self.text) is not None


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    text = document.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        name = FILE.search(before)
        found.append(Block(match[1], match[2], before.count("\n") + 1, name[1] if name else ""))
    return found


def commands(session: str) -> list[Command]:
    """Return the commands of a console block, each with what it shows. A comment at a line's end is for people."""
    found: list[Command] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append(Command(re.sub(r"\s+# .*", "", line[2:]), []))
        else:
            found[-1].shown.append(line)
    return found


KINDS = {
    "any": r"\.\.\.",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "member": r"\b[\w.-]+-\d+-[0-9a-f]{4}\b",
    "clock": r"\b\d\d:\d\d:\d\d\b",
    "seconds": r"\+\d+\.\d{3}\b",
    "span": r"\b\d+(?:\.\d+)? m?s\b",
    "pid": r"(?<![\w.+-])\d{4,}(?![\w-])",
    "space": " +",
}
PART = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in KINDS.items()))
ACTUAL = KINDS | {"any": ".*", "pid": r"\d+", "space": " +"}
ANY_LINES = r"(?:.*\n)*?"


class Likeness:
    """Says whether an output is the one that a document shows.

    Times, ids and names of members may be others, and `...` is anything. A number of four digits or more is a process
    id: it may be another one, but the same in all places of the document where the same one is shown. Runs of spaces
    count as one. Everything else must be the same.
    """

    def __init__(self) -> None:
        self.pids: dict[str, str] = {}

    def __call__(self, shown: list[str], actual: list[str]) -> bool:
        lines = [line.rstrip() for line in shown]
        while lines and not lines[-1]:
            lines.pop()
        names: list[str] = []
        pattern = "".join(ANY_LINES if line == "..." else _pattern(line, names) + "\n" for line in lines)
        match = re.fullmatch(f"{pattern}\n*", "".join(f"{line.rstrip()}\n" for line in actual))
        if match is None:
            return False
        known = dict(self.pids)
        same = all(known.setdefault(name, real) == real for name, real in zip(names, match.groups(), strict=True))
        if same and len(set(known.values())) == len(known):
            self.pids = known
            return True
        return False


def _pattern(line: str, names: list[str]) -> str:
    """Return a line as a pattern with a group for each process id; the ids as shown go to `names`."""
    pattern, at = "", 0
    for part in PART.finditer(line):
        kind = part.lastgroup or ""
        group = "" if kind == "pid" else "?:"
        pattern += re.escape(line[at : part.start()]) + f"({group}{ACTUAL[kind]})"
        if kind == "pid":
            names.append(part[0])
        at = part.end()
    return pattern + re.escape(line[at:])


class Shell:
    """A bash in a folder, as a reader has it: background jobs keep their numbers from one command to the next."""

    def __init__(self, folder: Path) -> None:
        unwanted = ("REFOLD_BROKER", "REFOLD_DEBUG", "PYTHONPATH", "COLUMNS", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self.folder = folder
        self.workers: Counter[Path] = Counter()
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._do("set -m")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *exc: object) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        for process in [self.process, *children]:
            process.kill()
        self.process.communicate()

    def run(self, command: str) -> list[str]:
        """Return the lines that a command printed (bash's own notes on jobs are left out)."""
        lines = self._do(command)
        self._started(command)
        return [line for line in lines if not NOTE.match(line)]

    def _started(self, command: str) -> None:
        """A reader is slower than a worker's start: wait until it says that it is there."""
        match = WORKER.fullmatch(command)
        if match is None:
            return
        log, deadline = self.folder / match[1], time.monotonic() + 60
        self.workers[log] += 1
        while not log.exists() or log.read_text("utf-8").count("Ctrl-C stops") < self.workers[log]:
            assert time.monotonic() < deadline, f"{command}: not there after 60 s"
            time.sleep(0.01)

    def _do(self, command: str, within: float = 60.0) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\nprintf '\\n{END}\\n'\n".encode())
        self.process.stdin.flush()
        said, deadline = b"", time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not said.endswith(f"\n{END}\n".encode()):
                assert selector.select(deadline - time.monotonic()), f"{command}: no end after {said.decode()!r}"
                said += os.read(self.process.stdout.fileno(), 65536)
        return said.decode().removesuffix(f"\n{END}\n").splitlines()


SESSION = """
import ast, asyncio, contextlib, inspect, io, json, sys, traceback
names = {"__name__": "__main__"}
with asyncio.Runner() as runner:
    for line in sys.stdin:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                code = compile(json.loads(line), "<block>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                found = eval(code, names)
                if inspect.iscoroutine(found):
                    runner.run(found)
            except BaseException:
                traceback.print_exc(file=said)
        print(json.dumps(said.getvalue()), flush=True)
"""


class Session:
    """A Python as `python -m asyncio` has it, in a folder: blocks share their names, and may await."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION], cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, code: str) -> list[str]:
        """Return the lines that a block printed, a traceback included."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        return str(json.loads(self.process.stdout.readline())).splitlines()


def play(document: Path, folder: Path, *, skip: Collection[str] = ()) -> None:
    """Do what a reader of the document does: save its files, run its code, type its commands, compare.

    A command in `skip` is left out. Raises AssertionError with the document's line, what it shows, and what came.
    """
    like, said = Likeness(), [""]
    with Session(folder) as session, Shell(folder) as shell:
        for block in blocks(document):
            where = f"{document.name}:{block.line}"
            if block.file:
                (folder / block.file).write_text(block.text, "utf-8")
            elif block.language == "python":
                said = session.run(block.text)
                assert not any("Traceback" in line for line in said), "\n".join([where, *said])
            elif block.language == "text":
                _expect(like, f"{where}, of the block above", block.text.splitlines(), said)
            elif block.language == "console":
                for command in commands(block.text):
                    if command.text not in skip:
                        _type(shell, like, where, command)
            else:
                raise AssertionError(f"{where}: nothing here plays a block of the language {block.language!r}")


def _type(shell: Shell, like: Likeness, where: str, command: Command, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    said = shell.run(command.text)
    while command.reads and not like(command.shown, said) and time.monotonic() < deadline:
        time.sleep(0.1)
        said = shell.run(command.text)
    _expect(like, f"{where}: {command.text}", command.shown, said)


def _expect(like: Likeness, where: str, shown: list[str], said: list[str]) -> None:
    assert like(shown, said), "\n".join([where, "shown:", *shown, "but it said:", *said])
