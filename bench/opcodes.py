"""Counts the interpreter's instructions that a record of the five-stage pipeline costs in the event loop, by function.

    python bench/opcodes.py [URL] [--workflows 200] [--top 40]      # memory:// by default; a new log each time

Unlike seconds, the count is the same on every machine and beside any load (but for what a batch shares, since batches
are cut by time): so a change of a few per cent can be seen. What C code does in an instruction does not count, nor what
other threads do.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import raw as hand
from rows import pipeline

ROOT = Path(__file__).resolve().parents[1]
WARM, AT_ONCE = 200, 50


class Counter:
    """Instructions and frames by code object, while it is on."""

    def __init__(self) -> None:
        self.opcodes = collections.Counter[CodeType]()
        self.frames = collections.Counter[CodeType]()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.frames[code] += 1
        elif event == "opcode":
            self.opcodes[code] += 1
        return self


async def count(url: str, workflows: int) -> Counter:
    """Run so many workflows through five agents; return what they cost."""
    from refold import AgentMessage, run

    ended, counter = asyncio.Queue[None](), Counter()

    def on_handled(handling: Any) -> None:
        if handling.agent == f"stage{hand.STAGES}":
            ended.put_nowait(None)

    async with run(*pipeline.agents(), broker=url, on_handled=on_handled) as bus:

        async def one() -> None:
            await bus.send_message(AgentMessage.request("stage1", hand.PAYLOAD))
            await ended.get()

        await pipeline.flood(one, WARM, AT_ONCE)
        sys.settrace(counter)
        await asyncio.create_task(pipeline.flood(one, workflows, AT_ONCE))
        sys.settrace(None)
    return counter


def place_of(code: CodeType) -> str:
    """Return where a function is: in the repository, else in its library."""
    path = Path(code.co_filename)
    if ".venv" not in str(path) and path.is_relative_to(ROOT):
        return f"{path.relative_to(ROOT)}:{code.co_firstlineno}"
    return f"{path.parent.name}/{path.name}:{code.co_firstlineno}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions that a record of the pipeline costs, by function.")
    parser.add_argument("url", nargs="?", default="memory://")
    parser.add_argument("--workflows", type=int, default=200)
    parser.add_argument("--top", type=int, default=40, help="so many functions")
    options = parser.parse_args()
    found = asyncio.run(count(options.url, options.workflows))
    records = options.workflows * (hand.STAGES + 1)
    each, frames = found.opcodes.total() / records, found.frames.total() / records
    sys.stdout.write(f"{each:,.0f} instructions and {frames:.0f} frames a record\n")
    for code, n in found.opcodes.most_common(options.top):
        line = f"{n / records:8.1f} {found.frames[code] / records:7.2f}  {place_of(code)} {code.co_qualname}"
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
