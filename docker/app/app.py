"""What the compose files run where nothing else is mounted: an agent that answers."""

from refold import Agent, Context

greeter = Agent("greeter")


@greeter.on_task
async def greet(ctx: Context, name: str) -> str:
    """Greet somebody; that it happened is in the log."""
    return await ctx.effect("greet", lambda: f"Hello, {name}!")
