"""Two agents in one process: a writer that asks a researcher. Run it: python examples/hello.py"""

import asyncio
from dataclasses import dataclass

from refold import Agent, Context, run

writer = Agent("writer")
researcher = Agent("researcher")


@dataclass
class Topic:
    name: str


def look_up(name: str) -> list[str]:
    """Stands for what costs money: a model, a search. Its result is recorded in the log."""
    return [f"{name} come twice a day", f"{name} follow the moon"]


@researcher.on_task
async def research(ctx: Context, topic: Topic) -> list[str]:
    return await ctx.effect("look up", look_up, topic.name)


@writer.on_task
async def write(ctx: Context, topic: Topic) -> str:
    facts = await ctx.request(research, topic, timeout=60)
    return " and ".join(facts).capitalize() + "."


async def main() -> None:
    async with run(writer, researcher) as bus:
        handle = await bus.start(write, Topic("tides"))
        print(await handle.result(timeout=30))
        print("\nwhat the log holds of it:")
        async for event in handle.events():
            message = event.message
            print(f"  {message.message_type:<16} {message.sender_id} -> {message.receiver_id}")


if __name__ == "__main__":
    asyncio.run(main())
