"""A workflow waits for a person, while the process that runs it is killed and another takes its place.

Run it: python examples/approval.py
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from refold import Agent, Context, Handle, MessageBus

clerk = Agent("clerk")


@clerk.on_task
async def refund(ctx: Context, amount: int) -> str:
    decision = await ctx.receive("decision", timeout=7 * 24 * 3600)
    return f"refund of {amount}: {decision['answer']}, says {decision['by']}"


def start_worker(folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "refold.cli", "run", str(Path(__file__).resolve())]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


async def until_it_waits(handle: Handle[str]) -> None:
    async for event in handle.events():
        if event.message.message_type == "timer_set":
            return


async def play(folder: str, workers: list[subprocess.Popen[bytes]]) -> None:
    async with MessageBus.open(f"sqlite:///{folder}/refold.db") as bus:
        workers.append(start_worker(folder))
        handle = await bus.start(refund, 250, id="refund-7")
        await until_it_waits(handle)
        print("the workflow waits for a decision; its worker is killed with SIGKILL")
        workers[0].kill()
        workers[0].wait()

        await bus.send(clerk, {"answer": "granted", "by": "Ada"}, kind="decision", id="refund-7")
        print("Ada decides while no worker runs; the decision is in the log")

        workers.append(start_worker(folder))
        print(await handle.result(timeout=60))
        print(f"the workflow is {(await handle.status()).status}")


def main() -> None:
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(play(folder, workers))
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()


if __name__ == "__main__":
    main()
