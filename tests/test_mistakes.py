"""Mistakes of the first hour: each is told with what is wrong, where it is, and what to do. The texts are snapshots."""

# ruff: noqa: E501 - the texts are as long as they are

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import sys

import pytest
from inline_snapshot import snapshot

from refold import Agent, Context, MessageBus, RetryPolicy, run
from refold.agents.runtime import serve
from refold.bus.errors import RefoldError
from refold.cli import main
from refold.projections.status import Status

ONCE = RetryPolicy(attempts=1)
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in."""
    monkeypatch.delenv("REFOLD_BROKER", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def refold(here, capfd):
    """Run a command line; return its exit code and what it says (mistakes go to standard error)."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        told = "".join(capfd.readouterr()).replace(f"{here}/", "")
        return f"{ended.value.code}: {ID.sub('ID', told)}"

    return call


def write(folder, name: str, text: str) -> None:
    (folder / name).write_text(text)


# ---- the command line ------------------------------------------------------------------------------------------------
def test_a_misspelt_attribute(here, refold):
    write(here, "app1.py", "from refold import Agent\nwriter = Agent('writer')\n")
    assert refold("run", "app1.py:writr") == snapshot("9: LoadError: app1.py:writr: there is no 'writr'; did you mean writer?\n")


def test_a_missing_file(here, refold):
    write(here, "app.py", "")
    assert refold("run", "ap.py") == snapshot('9: LoadError: there is no file ap.py; did you mean app.py?\n')


def test_a_missing_module(refold):
    assert refold("run", "no_such_app:writer") == snapshot("9: LoadError: there is no module 'no_such_app' here; is it FILE.py, or is the folder another one? (looked in the current folder and the installed packages)\n")


def test_a_syntax_error(here, refold):
    write(here, "app2.py", "from refold import Agent\nwriter = Agent('writer'\n")
    assert refold("run", "app2.py") == snapshot("9: LoadError: app2.py:2: syntax error: '(' was never closed\n")


def test_no_agents(here, refold):
    write(here, "app3.py", "from refold import Agent\n")
    assert refold("run", "app3.py") == snapshot("9: LoadError: app3.py: defines no Agent at its top level; write e.g. writer = Agent('writer')\n")


def test_no_log_here(here, refold):
    assert refold("ps") == snapshot('4: LogMissing: there is no log at refold.db: start a worker (`refold run app.py`) or send something to make one, or name another with --broker\n')
    assert refold("show", "x", "--json") == snapshot('4: {"error":{"type":"LogMissing","message":"there is no log at refold.db: start a worker (`refold run app.py`) or send something to make one, or name another with --broker","exit_code":4}}\n')
    assert list(here.iterdir()) == []


def test_the_folder_of_the_log_is_missing(refold):
    assert refold("send", "a", "--broker", "sqlite:///logs/a.db") == snapshot('8: ConfigError: the folder of logs/a.db does not exist: make it first\n')


def test_a_foreign_file(here, refold):
    write(here, "notes.txt", "not a database\n" * 100)
    assert refold("ps", "--broker", "sqlite:///notes.txt") == snapshot('8: LogCorrupt: notes.txt is damaged or no SQLite database (file is not a database): restore it from its backup\n')


def test_a_database_of_something_else(here, refold):
    with contextlib.closing(sqlite3.connect(here / "shop.db")) as db:
        db.execute("CREATE TABLE orders(id)")
    assert refold("ps", "--broker", "sqlite:///shop.db") == snapshot('8: LogCorrupt: shop.db is a SQLite database, but no log of refold: choose another file\n')


def test_a_path_for_a_url(refold):
    assert refold("ps", "--broker", "refold.db") == snapshot("8: UnknownBroker: --broker: 'refold.db' is no broker URL: for a file write sqlite:///refold.db\n")


def test_an_unknown_broker(refold):
    assert refold("ps", "--broker", "redis://localhost") == snapshot('8: UnknownBroker: --broker: no broker for redis://; there is kafka://, memory://, nats://, sqlite://\n')


def test_a_bad_variable(refold, monkeypatch):
    monkeypatch.setenv("REFOLD_BROKER", "sqlite://refold.db")
    assert refold("ps") == snapshot("8: ConfigError: REFOLD_BROKER: 'sqlite://refold.db': write sqlite:///refold.db (three slashes) or sqlite:////absolute/path.db (four)\n")


def test_a_payload_that_is_no_json(here, refold):
    assert refold("request", "writer", "tides") == snapshot('7: InvalidMessage: the payload: not JSON: Expecting value: line 1 column 1 (char 0); a plain text is written as \'"tides"\'\n')
    assert refold("send", "writer", '{"topic": tides}') == snapshot('7: InvalidMessage: the payload: not JSON: Expecting value: line 1 column 11 (char 10); names and texts need double quotes, and the whole single ones for the shell: \'{"topic": "tides"}\'\n')
    assert list(here.iterdir()) == []


def test_a_payload_that_is_too_large(here, refold):
    write(here, "big.json", '"' + "x" * 600_000 + '"')
    told = refold("send", "writer", "@big.json", "--json")
    assert re.sub(r"has \d+ bytes", "has N bytes", told) == snapshot("""\
7: there was no log at sqlite:///refold.db: made one; a worker that is started on it handles the message
{"error":{"type":"TooLarge","message":"$.payload: the record has N bytes, this log takes 524288; store the value elsewhere (a file, an object store) and send a reference","exit_code":7}}
""")


def test_a_command_that_is_none(refold):
    assert refold("lst") == snapshot("""\
2: Usage: refold [OPTIONS] COMMAND [ARGS]...
Try 'refold --help' for help.

Error: No such command 'lst'.
""")


def test_an_agent_that_nobody_ever_hosted(refold):
    assert refold("request", "writer", "1", "--timeout", "0", "--id", "w") == snapshot("""\
3: there was no log at sqlite:///refold.db: made one; a worker that is started on it handles the message
NoSuchAgent: no worker has ever announced an agent 'writer'; no worker has been seen on this log at all. The request stays in the log: attach with `await bus.attach('w')` or `refold show w`, cancel with `refold cancel w`; a worker that is started later answers it
""")


def test_an_id_that_is_taken(refold):
    refold("request", "writer", "1", "--no-wait", "--id", "w")
    assert refold("request", "writer", "2", "--no-wait", "--id", "w") == snapshot("7: WorkflowExists: workflow 'w' was started with task_request to 'writer' and another payload: choose another id, or `attach` to it\n")


def test_a_workflow_that_is_not_there(refold):
    refold("send", "writer", "1", "--id", "w")
    assert refold("show", "v") == snapshot("3: NoSuchWorkflow: the log holds no workflow 'v'; `refold ps` lists those that are open\n")
    assert refold("retry", "w") == snapshot("7: VerbRefused: nothing in workflow 'w' has failed\n")
    assert refold("state", "w", "--at", "7") == snapshot('7: InvalidMessage: at: version 7 does not exist in generation 0; it has versions 0 to 1\n')


def test_an_id_with_spaces(refold):
    assert refold("send", "writer", "1", "--id", "my first") == snapshot("""\
7: there was no log at sqlite:///refold.db: made one; a worker that is started on it handles the message
InvalidMessage: $.correlation_id: 'my first' is no id; use 1 to 128 printable ASCII characters, no spaces
""")


# ---- the program -----------------------------------------------------------------------------------------------------
async def ask(agent: Agent, payload: object = None) -> str:
    """Ask an agent on a log in memory; return the error that its asker gets."""
    async with run(agent) as bus:
        with pytest.raises(RefoldError) as caught:
            await bus.request(agent, payload, timeout=10)
    return f"{type(caught.value).__name__}: {caught.value}"


def one() -> int:
    return 1


def test_a_step_that_is_not_awaited(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        ctx.effect("call", one)

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: UnawaitedStep: never awaited: effect 'call' (arguments c105a9e3); write `await ctx...`, or give it to ctx.gather")


def test_a_plain_function_that_calls_a_step(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    def handle(ctx, payload):
        return ctx.effect("call", one)

    assert go(ask(agent)) == snapshot("""\
AgentError: 'a' answered with an error: NeedsAsyncHandler: ctx.effect needs an `async def` handler:
-    def handler(ctx, payload):  ...  ctx.effect(...)
+    async def handler(ctx, payload):  ...  await ctx.effect(...)\
""")


def test_asyncio_gather_over_steps(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> list[int]:
        return await asyncio.gather(ctx.effect("x", one), ctx.effect("y", one))

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: ForeignTask: the context was used from a task that it did not start; run branches with `await ctx.gather(...)` instead of asyncio.create_task, asyncio.gather or a TaskGroup, and bound a step with its own `timeout=` instead of asyncio.wait_for")


def test_a_time_limit_of_asyncio_around_a_step(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        async with asyncio.timeout(0.01):
            await ctx.effect("call", asyncio.sleep, 5)

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: StepCancelled: step 1 was cancelled by something that is not refold (asyncio.timeout, asyncio.wait_for, a TaskGroup whose other task failed?); to bound a step use its own `timeout=`")


def test_a_context_that_is_used_after_the_end(go):
    agent, kept = Agent("a"), []

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        kept.append(ctx)

    async def main() -> str:
        async with run(agent) as bus:
            await bus.request(agent)
            with pytest.raises(RefoldError) as caught:
                await kept[0].effect("late", one)
            return f"{type(caught.value).__name__}: {caught.value}"

    assert go(main()) == snapshot('ForeignTask: the context was used from a task that it did not start; run branches with `await ctx.gather(...)` instead of asyncio.create_task, asyncio.gather or a TaskGroup, and bound a step with its own `timeout=` instead of asyncio.wait_for')


def test_a_key_in_a_text(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        await ctx.effect("pay", print, f"key={ctx.idempotency_key}")

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: NoKeyYet: ctx.idempotency_key is known when the effect is called: pass it as an argument of ctx.effect by itself, or read it inside the effect's function")


def test_a_result_that_json_cannot_carry(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> object:
        return {"answers": [1, object()]}

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: InvalidMessage: $.payload.answers[1]: JSON cannot carry 'object'; send plain data: dicts, lists, strings, numbers, Structs")


def test_an_effect_that_returns_what_json_cannot_carry(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> object:
        return await ctx.effect("connect", object)

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: EffectFailed: effect 'connect' failed: InvalidMessage: $.payload: JSON cannot carry 'object'; send plain data: dicts, lists, strings, numbers, Structs")


def test_the_result_of_a_call_instead_of_the_function(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, which: str) -> object:
        given = asyncio.sleep(0) if which == "coroutine" else "text"
        return await ctx.effect("draft", given)

    assert go(ask(agent, "coroutine")) == snapshot("AgentError: 'a' answered with an error: HandlerError: ctx.effect('draft', ...) got a coroutine: pass the function and its arguments, not the result of a call: ctx.effect('draft', fn, *args)")
    assert go(ask(agent, "text")) == snapshot("AgentError: 'a' answered with an error: HandlerError: ctx.effect('draft', ...) got a str: pass the function and its arguments, not the result of a call: ctx.effect('draft', fn, *args)")


def test_a_gather_of_what_cannot_be_awaited(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, which: str) -> object:
        return await (ctx.gather([ctx.now(), ctx.now()]) if which == "list" else ctx.gather(7))

    assert go(ask(agent, "list")) == snapshot("AgentError: 'a' answered with an error: HandlerError: ctx.gather takes steps and coroutines, not a list; write ctx.gather(*steps)")
    assert go(ask(agent, "number")) == snapshot("AgentError: 'a' answered with an error: HandlerError: ctx.gather takes steps and coroutines, not a int")


def test_a_payload_that_json_cannot_carry(go):
    assert go(ask(Agent("a"), {"when": {"f": lambda: 1}})) == snapshot("InvalidMessage: $.payload.when.f: JSON cannot carry 'function'; send plain data: dicts, lists, strings, numbers, Structs")
    assert go(ask(Agent("a"), [float("nan")])) == snapshot('InvalidMessage: $.payload[0]: nan is not a JSON number; send null or a string')


def test_a_payload_of_another_type(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, numbers: list[int]) -> int:
        return sum(numbers)

    assert go(ask(agent, [1, "two"])) == snapshot("AgentError: 'a' answered with an error: SchemaError: the payload is no list: Expected `int`, got `str` - at `$.payload[1]`")


def test_a_kind_that_nobody_handles(go):
    assert go(ask(Agent("a"))) == snapshot("AgentError: 'a' answered with an error: Refuse: agent 'a' has no handler of 'task_request'; add @a.on('task_request')")


def test_handlers_that_cannot_be_registered():
    agent = Agent("a")
    problems = []

    def refuse(decorate, function) -> None:
        with pytest.raises(RefoldError) as caught:
            decorate(function)
        problems.append(f"{type(caught.value).__name__}: {caught.value}".replace(f"{__name__}.", ""))

    async def three(ctx, payload, more): ...


    async def generator(ctx, payload):
        yield payload

    async def fine(ctx, payload): ...

    async def unknown(ctx, payload: Nowhere): ...  # noqa: F821

    refuse(agent.on_task, three)
    refuse(agent.on_task, generator)
    refuse(agent.on_task, unknown)
    refuse(lambda _: agent.on("effect_completed"), fine)
    refuse(lambda _: agent.on("task_request"), fine)
    agent.on_task(fine)
    refuse(agent.on_task, fine)
    refuse(lambda f: Agent("my agent"), fine)
    assert problems == snapshot(["HandlerError: handler 'test_handlers_that_cannot_be_registered.<locals>.three' of agent 'a' takes 3 parameters; write (ctx, payload), or (payload)", "HandlerError: handler 'test_handlers_that_cannot_be_registered.<locals>.generator' of agent 'a' is a generator; a handler returns its one answer", "HandlerError: handler 'test_handlers_that_cannot_be_registered.<locals>.unknown' of agent 'a': its annotation names what is not defined where it is: name 'Nowhere' is not defined", "HandlerError: agent 'a': 'effect_completed' is a kind that refold keeps for itself; choose another", "HandlerError: agent 'a': requests are handled by @agent.on_task", "HandlerError: agent 'a' handles 'task_request' already, in test_handlers_that_cannot_be_registered.<locals>.fine", "HandlerError: agent name 'my agent': use 1 to 128 printable ASCII characters without spaces, not '*'"])


def test_a_handler_of_notifications_that_is_asked(go):
    agent = Agent("a")

    @agent.on("note")
    async def note(ctx: Context, text: str) -> None: ...

    async def main() -> None:
        async with run(agent) as bus:
            await bus.request(note, "hello")

    with pytest.raises(RefoldError) as caught:
        go(main())
    assert str(caught.value).replace(f"{note.__qualname__} ", "note ") == snapshot("note handles 'note' and no requests: send it a message with kind='note', or ask a handler under on_task")


def test_what_is_no_agent_is_hosted(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None: ...

    async def host(*agents) -> None:
        async with run(*agents):
            pass

    problems = []
    for agents in ([], [[agent]], [handle], [agent, Agent("a")]):
        with pytest.raises(RefoldError) as caught:
            go(host(*agents))
        problems.append(f"{type(caught.value).__name__}: {caught.value}")
    assert problems == snapshot(['ConfigError: a worker hosts one or more agents with different names, not: none', 'ConfigError: a worker hosts Agents, not a list: write run(*agents)', "ConfigError: a worker hosts Agents, not a handler of 'a': give its Agent", 'ConfigError: a worker hosts one or more agents with different names, not: a, a'])


def test_a_step_that_is_used_as_if_it_were_its_value(go):
    agent = Agent("a", retry=ONCE)

    @agent.on_task
    async def handle(ctx: Context, _: None) -> str:
        facts = ctx.effect("look up", sorted, [1, 2])
        return ", ".join(facts)

    assert go(ask(agent)) == snapshot("AgentError: 'a' answered with an error: UnawaitedStep: never awaited: effect 'look up' (arguments 35bc7518); write `await ctx...`, or give it to ctx.gather. The handler raised TypeError: can only join an iterable")


def test_an_empty_id(go):
    async def main() -> None:
        async with run(Agent("a")) as bus:
            await bus.start("a", 1, id="")

    with pytest.raises(RefoldError) as caught:
        go(main())
    assert str(caught.value) == snapshot("$.correlation_id: '' is no id; use 1 to 128 printable ASCII characters, no spaces")


def test_an_answer_that_waits_for_a_person_and_is_cancelled(go, until):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, _: None) -> object:
        return await ctx.receive("approval")

    async def main() -> str:
        async with run(agent) as bus:
            handle = await bus.start("a", id="w")

            async def waits() -> bool:
                return (await handle.status()).status is Status.WAITING

            await until(waits)
            with pytest.raises(RefoldError) as late:
                await handle.result(0)
            await handle.cancel("the order was a mistake")
            with pytest.raises(RefoldError) as cancelled:
                await handle.result(20)
        return "\n".join(f"{type(e.value).__name__}: {e.value}" for e in (late, cancelled))

    assert go(main()) == snapshot("""\
RequestTimeout: no answer within 0 s: 'a' waits for a message 'approval'. The request stays in the log: attach with `await bus.attach('w')` or `refold show w`, cancel with `refold cancel w`
AgentError: the request to 'a' was cancelled by client: the order was a mistake\
""")


def test_an_agent_that_does_not_run_now(go, here):
    agent = Agent("writer")

    async def main() -> str:
        async with run(agent, broker="sqlite:///refold.db"):
            pass
        async with MessageBus.open() as bus:
            with pytest.raises(RefoldError) as caught:
                await bus.request("writer", timeout=0, id="w")
            near = await bus.start("writr", id="v")
            with pytest.raises(RefoldError) as misspelt:
                await near.result(0)
        return "\n".join(f"{type(e.value).__name__}: {e.value}" for e in (caught, misspelt))

    assert re.sub(r"seen \d+ s", "seen N s", go(main())) == snapshot("""\
AgentUnavailable: no worker hosts agent 'writer' now (last seen N s ago). The request stays in the log: attach with `await bus.attach('w')` or `refold show w`, cancel with `refold cancel w`; it is answered when a worker starts
NoSuchAgent: no worker has ever announced an agent 'writr'; did you mean 'writer'? The request stays in the log: attach with `await bus.attach('v')` or `refold show v`, cancel with `refold cancel v`; a worker that is started later answers it\
""")


def test_code_that_was_edited_while_a_workflow_waited(go, here, refold, until):
    def version(name: str) -> Agent:
        agent = Agent("writer")

        @agent.on_task
        async def handle(ctx: Context, topic: str) -> str:
            text = await ctx.effect(name, str.upper, topic)
            await ctx.receive("approval")
            return text

        return agent

    async def main() -> None:
        async with MessageBus.open() as bus:
            async with run(version("draft"), broker="sqlite:///refold.db"):
                handle = await bus.start("writer", "tides", id="w")

                async def waits() -> bool:
                    return (await handle.status()).status is Status.WAITING

                await until(waits)
            async with run(version("write"), broker="sqlite:///refold.db"):
                await handle.send(kind="approval")

                async def blocked() -> bool:
                    return any("parked" in reason for reason in (await handle.status()).blocked)

                await until(blocked)

    go(main())
    assert refold("retry", "w") == snapshot("7: VerbRefused: nothing in workflow 'w' has failed; a handling is parked by a divergence: load code that fits, or use retry --fresh\n")
    explained = refold("show", "w").split("\n\n")[0]
    assert explained == snapshot("""\
0: workflow w: blocked, 5 records, generation 0
  writer is parked: divergence
  no worker hosts 'writer' now
  writer failed: step 1 is recorded as effect 'draft' (arguments fc25733f), but the code now asks for effect 'write' (arguments fc25733f)
  it goes on by itself with code that fits its steps; to start it anew: refold retry w --fresh\
""")


def test_two_groups_for_one_agent_and_two_kinds_of_workers_in_one_group(go, here, until):
    async def main() -> list[str]:
        problems = []
        a, b, url = Agent("a"), Agent("b"), "sqlite:///refold.db"
        async with run(a, broker=url, group="first") as bus:

            async def announced() -> bool:
                return bool(await bus.broker.members("first"))

            await until(announced)
            for agent, group in ((a, "second"), (b, "first")):
                with pytest.raises(RefoldError) as caught:
                    await serve([agent], url, group=group)
                problems.append(f"{type(caught.value).__name__}: {caught.value}")
        return problems

    told = "\n".join(go(main()))
    assert re.sub(r"\S+ \(pid \d+\)", "MEMBER (pid PID)", told) == snapshot("""\
GroupConflict: a is hosted by MEMBER (pid PID) in group 'first'; an agent belongs to one group: use --group first
GroupConflict: group 'first': MEMBER (pid PID) hosts a, this worker b; workers of one group host the same agents, or a part of them: choose another --group\
""")


def test_a_file_that_another_process_has_locked(go, here, refold):
    refold("send", "a", "1")

    async def main() -> str:
        from refold.brokers.sqlite import SqliteBroker

        with contextlib.closing(sqlite3.connect("refold.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            async with SqliteBroker("refold.db", patience=0.05) as broker:
                await broker.ensure_log(create=False)
                async with MessageBus.open(broker) as bus:
                    with pytest.raises(RefoldError) as caught:
                        await bus.send("a", 1)
        return f"{type(caught.value).__name__}: {caught.value}"

    told = go(main()).replace(f"{here}/", "")
    assert re.sub(r"process \d+", "process PID", told) == snapshot('LogLocked: process PID has held the write lock of refold.db for 0.05 s: nothing was written, try again')
