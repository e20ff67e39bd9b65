"""LangGraph with its SQLite saver: a graph of five nodes; a checkpoint after each, written before the next one begins.

It sets WAL itself, and leaves SQLite's default `synchronous=FULL`. A graph that was interrupted is resumed by calling
it again with its thread's id; nobody does so by itself, and two processes may run the same thread at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

STAGES = 5


class State(TypedDict):
    """What goes from node to node."""

    payload: dict[str, str]


async def node(state: State) -> State:
    """Do nothing."""
    return {"payload": state["payload"]}


async def pipeline(
    folder: Path, measure: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]], durability: str = "sync"
) -> Any:
    """Measure `request`, which runs one workflow."""
    graph = StateGraph(State)
    for i in range(1, STAGES + 1):
        graph.add_node(f"stage{i}", node)
        graph.add_edge(START if i == 1 else f"stage{i - 1}", f"stage{i}")
    graph.add_edge(f"stage{STAGES}", END)
    async with AsyncSqliteSaver.from_conn_string(str(folder / "langgraph.db")) as saver:
        await saver.setup()
        runnable = graph.compile(checkpointer=saver)

        async def request() -> Any:
            config: Any = {"configurable": {"thread_id": str(uuid.uuid4())}}
            given: Any = {"payload": {"text": "x" * 289}}
            answer = await runnable.ainvoke(given, config, durability=durability)  # type: ignore[call-overload]
            return answer["payload"]

        return await measure(request)
