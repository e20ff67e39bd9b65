"""Random programs for handlers, played by real handlers, and what they must come to when nothing disturbs them.

A program is a list of operations (plain JSON, so that it travels in messages). `evaluate` is the oracle: it knows
nothing of refold. A program that holds a race against time is `loose`: only that it ends is known of it.
"""

from __future__ import annotations

import random
from typing import Any

from refold import AgentError, Context, EffectFailed, RetryPolicy, WaitExpired

Program = list[dict[str, Any]]

TASKS = ("ann", "bob", "cid", "dee")
NOTES = ("note", "tick")
ATTEMPTS = 3
QUICK = RetryPolicy(attempts=ATTEMPTS, initial=0.3, factor=2, jitter=0.5)


class Writer:
    """Writes random programs. Every operation has a token of its own."""

    def __init__(self, random: random.Random, name: str) -> None:
        self.random = random
        self.name = name
        self.count = 0
        self.budget = random.choice((4, 8, 12, 20))

    def token(self) -> str:
        self.count += 1
        return f"{self.name}.{self.count}"

    def program(self, depth: int = 0, *, broken: bool = False) -> Program:
        n = self.random.randint(1, 5 if depth == 0 else 3)
        program = [self.operation(depth) for _ in range(n)]
        if broken:
            program.insert(self.random.randint(0, len(program)), {"do": "broken"})
        if self.random.random() < 0.15:
            program.insert(self.random.randint(0, len(program)), {"do": "flaky", "until": self.random.randint(2, 3)})
        if depth < 2 and self.random.random() < 0.1:
            program.append({"do": "forward", "to": self.random.choice(TASKS), "program": self.program(depth + 1)})
        return program

    def operation(self, depth: int, *, in_gather: bool = False) -> dict[str, Any]:
        self.budget -= 1
        kinds = ["effect"] * 4 + ["send", "sleep", "random", "update", "now", "progress"]
        if depth < 3 and self.budget > 0:
            kinds += ["request"] * 3 + ["spawn"] * 2 + ["gather"] * 2 + ["try", "receive"]
            kinds += ["late request", "race", "hopeless", "plain"] if depth else ["plain"]
        return getattr(self, "_" + self.random.choice(kinds).replace(" ", "_"))(depth)

    def _effect(self, depth: int) -> dict[str, Any]:
        fails = self.random.choice((0, 0, 0, 0, 1, 2)) if depth else self.random.choice((0, 0, 1))
        return {"do": "effect", "token": self.token(), "fails": fails}

    def _plain(self, depth: int) -> dict[str, Any]:
        return {"do": "plain", "n": self.random.randint(0, 99)}

    def _send(self, depth: int) -> dict[str, Any]:
        to = self.random.choice((*TASKS, "*"))
        return {"do": "send", "to": to, "kind": self.random.choice(NOTES), "token": self.token()}

    def _sleep(self, depth: int) -> dict[str, Any]:
        return {"do": "sleep", "seconds": self.random.choice((0.1, 1.0, 5.0, 12.0))}

    def _random(self, depth: int) -> dict[str, Any]:
        return {"do": "random", "token": self.token()}

    def _now(self, depth: int) -> dict[str, Any]:
        return {"do": "now"}

    def _update(self, depth: int) -> dict[str, Any]:
        return {"do": "update", "token": self.token()}

    def _progress(self, depth: int) -> dict[str, Any]:
        return {"do": "progress", "token": self.token()}

    def _ask(self, verb: str, depth: int) -> dict[str, Any]:
        return {"do": verb, "to": self.random.choice(TASKS), "program": self.program(depth + 1)}

    def _request(self, depth: int) -> dict[str, Any]:
        return self._ask("request", depth)

    def _spawn(self, depth: int) -> dict[str, Any]:
        return self._ask("spawn", depth)

    def _late_request(self, depth: int) -> dict[str, Any]:
        verb = self.random.choice(("request", "spawn"))
        return {"do": "try", "op": {**self._ask(verb, depth), "timeout": self.random.choice((0.5, 4.0, 30.0))}}

    def _race(self, depth: int) -> dict[str, Any]:
        return {"do": "try", "op": {"do": "receive", "kind": self.token(), "timeout": self.random.choice((1.0, 10.0))}}

    def _receive(self, depth: int) -> dict[str, Any]:
        return {"do": "receive", "kind": self.token()}

    def _hopeless(self, depth: int) -> dict[str, Any]:
        program = [self._effect(depth), {"do": "hopeless", "how": self.random.choice(("error", "effect", "refuse"))}]
        verb = self.random.choice(("request", "spawn"))
        ask = {"do": verb, "to": self.random.choice(TASKS), "program": program}
        return {"do": "try", "op": ask} if self.random.random() < 0.9 else ask

    def _try(self, depth: int) -> dict[str, Any]:
        return {"do": "try", "op": self.operation(depth + 1)}

    def _gather(self, depth: int) -> dict[str, Any]:
        of = [self.operation(depth + 1, in_gather=True) for _ in range(self.random.randint(1, 4))]
        return {"do": "gather", "of": of, "limit": self.random.choice((None, None, 1, 2))}


# ---- the oracle
class FailedError(Exception):
    """The program ends in an error."""


def evaluate(program: Program) -> Any:
    """Return what the program's handling answers. Raises FailedError."""
    values = []
    for op in program:
        if op["do"] == "forward":
            return evaluate(op["program"])
        values.append(value(op))
    return values


def value(op: dict[str, Any]) -> Any:
    """Return what one operation comes to."""
    match op["do"]:
        case "effect":
            return f"paid {op['token']}"
        case "plain":
            return op["n"] * 2
        case "request" | "spawn":
            return evaluate(op["program"])
        case "receive":
            return f"said {op['kind']}"
        case "gather":
            return [value(o) for o in op["of"]]
        case "hopeless":
            raise FailedError
        case "try":
            try:
                return value(op["op"])
            except FailedError:
                return "failed"
    return op["do"]


def operations(program: Program) -> list[dict[str, Any]]:
    """Return every operation of a program, those of its callees too."""
    out, todo = [], list(program)
    while todo:
        op = todo.pop(0)
        out.append(op)
        todo += op.get("program", []) + op.get("of", []) + ([op["op"]] if "op" in op else [])
    return out


def is_loose(program: Program) -> bool:
    """What the program comes to depends on time."""
    return any("timeout" in op for op in operations(program))


# ---- the real thing
async def play(ctx: Context, program: Program, world: Any) -> Any:
    """Carry a program out in a handler."""
    values = []
    for op in program:
        match op["do"]:
            case "flaky":
                if ctx.attempt < op["until"]:
                    raise RuntimeError(f"attempt {ctx.attempt} fails")
                values.append("flaky")
            case "broken":
                if not world.mended:
                    raise RuntimeError("somebody has to mend this")
                values.append("broken")
            case "forward":
                return ctx.forward(op["to"], op["program"])
            case _:
                values.append(await perform(ctx, op, world))
    return values


async def perform(ctx: Context, op: dict[str, Any], world: Any) -> Any:
    """Carry one operation out."""
    match op["do"]:
        case "effect":
            return await ctx.effect("pay", world.pay, op["token"], ctx.idempotency_key, op["fails"], retry=QUICK)
        case "plain":
            return await ctx.effect("plain", lambda n: n * 2, op["n"])
        case "send":
            ctx.send(op["to"], op["token"], kind=op["kind"])
        case "sleep":
            await ctx.sleep(op["seconds"])
        case "random":
            token = f"{op['token']}/{ctx.random().random()}/{ctx.uuid()}"
            assert await ctx.effect("pay", world.pay, token, ctx.idempotency_key, 0, retry=QUICK) == f"paid {token}"
        case "now":
            assert await ctx.now() > 0
        case "update":
            ctx.update({op["token"]: True})
        case "progress":
            ctx.progress(op["token"])
        case "request":
            return await ctx.request(op["to"], op["program"], timeout=op.get("timeout"))
        case "spawn":
            return await ctx.spawn(op["to"], op["program"], timeout=op.get("timeout"))
        case "receive":
            return await ctx.receive(op["kind"], timeout=op.get("timeout"))
        case "gather":
            return await ctx.gather(*(perform(ctx, o, world) for o in op["of"]), limit=op["limit"])
        case "hopeless":
            await hopeless(ctx, op["how"], world)
        case "try":
            try:
                return await perform(ctx, op["op"], world)
            except (AgentError, EffectFailed, WaitExpired):
                return "failed"
    return op["do"]


async def hopeless(ctx: Context, how: str, world: Any) -> None:
    """Fail for good, in one of three ways."""
    from refold import Refuse

    if how == "refuse":
        raise Refuse("never")
    if how == "effect":
        await ctx.effect("pay", world.pay, f"hopeless {ctx.message.id}", ctx.idempotency_key, 10**6, retry=QUICK)
    raise RuntimeError("hopeless")
