"""Many child workflows, at most four at once. Run it: python examples/fan_out.py"""

import asyncio

from refold import Agent, Context, run

editor = Agent("editor")
reader = Agent("reader")
at_work: set[int] = set()
seen: list[int] = []


async def count_words(page: int) -> int:
    """Stands for a slow call; it notes how many run beside it."""
    at_work.add(page)
    seen.append(len(at_work))
    await asyncio.sleep(0.02)
    at_work.discard(page)
    return 100 + page


@reader.on_task
async def read(ctx: Context, page: int) -> int:
    return await ctx.effect("count words", count_words, page)


@editor.on_task
async def survey(ctx: Context, pages: int) -> dict[str, int]:
    # Each child is a workflow of its own, so any process of the group may run it.
    children = [ctx.spawn(read, page) for page in range(pages)]
    words = await ctx.gather(*children, limit=4)
    return {"pages": len(words), "words": sum(words), "first": words[0], "last": words[-1]}


async def main() -> None:
    async with run(editor, reader) as bus:
        print(await bus.request(survey, 20))
    print(f"{len(seen)} calls, at most {max(seen)} at once")


if __name__ == "__main__":
    asyncio.run(main())
