"""A conversation of several turns in one workflow; the process ends in the middle of it.

Run it: python examples/conversation.py
"""

import asyncio
import tempfile

from refold import Agent, Context, MessageBus, run

guide = Agent("guide")


@guide.on_task
async def turn(ctx: Context, said: str) -> str:
    history = [*ctx.state.get("history", []), said]
    ctx.update({"history": history})
    if said.startswith("my name is "):
        ctx.update({"name": said.removeprefix("my name is ")})
        return f"hello {said.removeprefix('my name is ')}"
    return f"{ctx.state.get('name', 'stranger')}, that was turn {len(history)}"


async def first_process(url: str) -> None:
    async with run(guide, broker=url) as bus:
        handle = await bus.start(turn, "my name is Ada", id="talk-1")
        print("guide:", await handle.result(timeout=30))
        print("guide:", await handle.request("who am I?"))


async def second_process(url: str) -> None:
    async with run(guide, broker=url), MessageBus.open(url) as bus:
        handle = await bus.attach("talk-1")
        print("guide:", await handle.request("and now?"))
        print(f"one workflow, {(await handle.status()).version} records, {(await handle.status()).status}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/refold.db"
        asyncio.run(first_process(url))
        print("(everything in memory is gone: what follows knows only the log)")
        asyncio.run(second_process(url))


if __name__ == "__main__":
    main()
