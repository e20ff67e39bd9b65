"""The review team: five agents, and the entry of a process that hosts one of them.

`python -m refold.demo.team ROLE --broker URL` works until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from ..agents.agent import Agent
from ..agents.context import Context
from ..agents.runtime import serve
from ..bus.errors import Refuse
from .lifeline import lifeline
from .measure import measure
from .messages import (
    PLANTED,
    Analysis,
    Analyze,
    Assemble,
    Check,
    Checked,
    CheckReport,
    Job,
    Module,
    Numbers,
    Objection,
    Opinion,
    Report,
    Section,
    Survey,
    Surveyed,
    Write,
)
from .provider import Provider
from .report import write_report, write_section
from .survey import survey
from .validate import check_report, check_section

PROVIDER = "REFOLD_DEMO_PROVIDER"
"""Environment variable of an analyzer: the provider's address."""
SECTION_SIZE = 24
"""Modules per section: their analyses fit into one record, whatever they hold."""
SECTIONS_AT_ONCE = 4
ROUNDS = 3
"""How often the validator may look at a section before the review gives up."""

orchestrator = Agent("orchestrator")
researcher = Agent("researcher")
analyzer = Agent("analyzer")
writer = Agent("writer")
validator = Agent("validator")
GROUPS = {
    "orchestrator": orchestrator,
    "researcher": researcher,
    "analyzers": analyzer,
    "writer": writer,
    "validator": validator,
}
"""Group -> the agent that each process of it hosts."""
AT_ONCE = {"orchestrator": 16, "researcher": 2, "analyzers": 4, "writer": 4, "validator": 4}
"""Group -> handlings that one process of it works on at once. So many calls has an analyzer in flight."""


@researcher.on_task
async def list_modules(ctx: Context, wanted: Survey) -> Surveyed:
    """List modules and parse each."""
    return await ctx.effect("survey", survey, wanted)


@analyzer.on_task
async def analyze(ctx: Context, task: Analyze) -> Analysis:
    """Measure one module, and pay for one opinion about it."""
    path, digest = task.module.path, task.module.digest
    numbers = await ctx.effect("measure", measure_file, task.root, path)
    opinion = task.opinion
    if opinion is None:
        key = ctx.idempotency_key
        opinion = await ctx.effect("opinion", ask_provider, key, path, digest, numbers.lines, task.of, timeout=60)
    if task.sabotage:
        numbers = msgspec.structs.replace(numbers, decisions=numbers.decisions + PLANTED)
    return Analysis(path, digest, numbers, opinion)


def measure_file(root: str, path: str) -> Numbers:
    """Measure a file."""
    return measure(path, Path(root, path).read_bytes())


async def ask_provider(key: str, path: str, digest: str, lines: int, of: int) -> Opinion:
    """Make the metered call."""
    return await Provider(os.environ[PROVIDER]).call(key, path, digest, lines, of)


@writer.on_task
async def write(ctx: Context, task: Write | Assemble) -> Section | str:
    """Write a section, or the report of all sections."""
    if isinstance(task, Write):
        return await ctx.effect("write section", write_section, task)
    return await ctx.effect("write report", write_report, task)


@validator.on_task
async def check(ctx: Context, task: Check | CheckReport) -> Checked:
    """Compare what is written with the source."""
    if isinstance(task, Check):
        return await ctx.effect("check section", check_section, task)
    return await ctx.effect("check report", check_report, task)


@orchestrator.on_task
async def review(ctx: Context, job: Job) -> Report:
    """Have all modules analysed, written about and validated, and return where the report is."""
    modules = await survey_all(ctx, job)
    good = [m for m in modules if not m.error]
    pages = [good[i : i + SECTION_SIZE] for i in range(0, len(good), SECTION_SIZE)]
    ctx.send("*", {"modules": len(good), "sections": len(pages)}, kind="progress")
    branches = (review_page(ctx, job, i, page, len(good)) for i, page in enumerate(pages))
    done = await ctx.gather(*branches, limit=SECTIONS_AT_ONCE)
    unreadable = [m for m in modules if m.error]
    file, last = await assemble(ctx, job, [section for section, _, _ in done], unreadable)
    numbers = last.numbers + sum(n for _, n, _ in done)
    return Report(file, len(good), len(unreadable), numbers, [o for _, _, wrong in done for o in wrong])


async def survey_all(ctx: Context, job: Job) -> list[Module]:
    """Ask the researcher, page by page."""
    modules: list[Module] = []
    more = True
    while more:
        after = modules[-1].path if modules else ""
        page = await ctx.request(list_modules, Survey(job.root, after))
        modules += page.modules
        more = page.more
    return modules


async def review_page(
    ctx: Context, job: Job, number: int, modules: list[Module], of: int
) -> tuple[Section, int, list[Objection]]:
    """One section: fan out, write, validate; what the validator sends back is analysed and written again."""
    planted = number == 0 and job.sabotage
    tasks = [Analyze(job.root, m, of, sabotage=planted and i == len(modules) // 2) for i, m in enumerate(modules)]
    analyses = await ctx.gather(*(ctx.spawn(analyze, task) for task in tasks))
    found: list[Objection] = []
    rounds = 0
    while True:
        section = await ctx.request(writer, Write(job.out, number, analyses), returns=Section)
        checked = await ctx.request(check, Check(job.root, job.out, section, modules))
        ctx.send("*", {"section": number + 1, "wrong": [str(o) for o in checked.objections]}, kind="progress")
        if not checked.objections:
            return section, checked.numbers, found
        rounds += 1
        if rounds == ROUNDS:
            raise Refuse(f"the validator objected in {ROUNDS} rounds: {checked.objections[0]}")
        found += checked.objections
        analyses = await correct(ctx, job, modules, analyses, checked.objections)


async def correct(
    ctx: Context, job: Job, modules: list[Module], analyses: list[Analysis], objections: list[Objection]
) -> list[Analysis]:
    """Have the modules that were objected to analysed again; their opinions are paid for already."""
    texts: dict[str, list[str]] = {}
    for objection in objections:
        texts.setdefault(objection.path, []).append(str(objection))
    again = [i for i, m in enumerate(modules) if m.path in texts]
    tasks = [Analyze(job.root, modules[i], 0, texts[modules[i].path], analyses[i].opinion) for i in again]
    new = await ctx.gather(*(ctx.spawn(analyze, task) for task in tasks))
    replaced = dict(zip(again, new, strict=True))
    return [replaced.get(i, analysis) for i, analysis in enumerate(analyses)]


async def assemble(ctx: Context, job: Job, sections: list[Section], unreadable: list[Module]) -> tuple[str, Checked]:
    """Have the report put together and checked as a whole."""
    file = await ctx.request(writer, Assemble(job.out, job.title, sections, unreadable), returns=str)
    checked = await ctx.request(check, CheckReport(job.root, job.out, file, sections, unreadable))
    if checked.objections:
        raise Refuse(f"the report is not what was validated: {checked.objections[0]}")
    return file, checked


async def work(group: str, url: str, member: str, *, at_once: int, tied: bool) -> int:
    """Host the agent of a group in this process; `tied`: until stdin is closed, at the latest."""
    with lifeline() if tied else contextlib.nullcontext():
        return await serve([GROUPS[group]], url, group=group, member=member, concurrency=at_once, threads=2)


def main(arguments: Any = None) -> int:
    """`python -m refold.demo.team GROUP --broker URL`."""
    parser = argparse.ArgumentParser(description="One process of the demo's review team.")
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--broker", required=True, help="the log's URL")
    parser.add_argument("--member", required=True, help="the process's name in its group")
    parser.add_argument("--at-once", type=int, default=4, help="handlings at once (default: %(default)s)")
    parser.add_argument("--tied", action="store_true", help="end when stdin is closed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return asyncio.run(work(options.group, options.broker, options.member, at_once=options.at_once, tied=options.tied))


if __name__ == "__main__":
    raise SystemExit(main())
