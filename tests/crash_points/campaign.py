"""Every crash point of every scene: `python -m crash_points.campaign`; with SCENE FOLDER EVERY [ONLY] of one, as JSON.

A warm process forks: a first child plays the scene without a crash and tells its crossings; then, for each of them, a
child dies there with `os._exit`, and another one plays the scene to its end on what the first one left.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refold.bus.errors import LogMissing

from .ending import Ending, ending_of
from .place import SERVER, fresh
from .scenes import FAULTY, SCENES, Stage
from .wrapping import DIED, Crossings

HANGS = 25
"""Seconds after which a child is ended: what was left behind did not converge."""
BESIDE = 6
"""Crashes that are played beside each other."""
TRIES = 8
"""A point that a run did not meet (what is polled comes and goes with time) is armed again; then it fails, unless it is
a later look of what is polled: how often that looks depends on how fast the machine is just now."""
POLLED = tuple(f"log.subscribe.{call}#" for call in ("fetch", "turned", "deadline"))
NEVER = "never reached"
Report = dict[str, Any]


def forked(work: Callable[[], None], folder: Path) -> int:
    """Run it in a child process; return how that ended (negative: by a signal)."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        signal.alarm(HANGS)
        with (folder / "output").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def play(scene: str, folder: Path, armed: str) -> None:
    """Play the scene; the process may end in it."""
    crossings = Crossings(folder, armed)
    asyncio.run({**SCENES, **FAULTY}[scene](Stage(crossings)))
    (folder / "seen").write_text(json.dumps(crossings.seen))


def play_on(scene: str, folder: Path) -> None:
    """Look at what a crash left behind, play the scene to its end, and look again."""
    (folder / "left").write_text(json.dumps(looked_at(folder)))
    play(scene, folder, "")
    (folder / "end").write_text(json.dumps(looked_at(folder)))


def looked_at(folder: Path) -> Ending:
    try:
        return asyncio.run(ending_of(folder))
    except LogMissing:
        return {"workflows": {}, "ids": [], "outcomes": [], "refused": [], "open": [], "views": None}


def undisturbed(scene: str, folder: Path) -> tuple[list[str], Ending]:
    """Play the scene three times without a crash; return the crossings that all met, and the end."""
    seen: list[list[str]] = []
    for turn in range(3):
        place = fresh(folder / f"undisturbed-{turn}")
        code = forked(lambda place=place: play_on(scene, place), place)  # type: ignore[misc]
        if code:
            raise SystemExit(f"{scene!r} fails without any crash:\n{(place / 'output').read_text()}")
        seen.append(json.loads((place / "seen").read_text()))
    common = set(seen[1]) & set(seen[2])
    return [name for name in dict.fromkeys(seen[0]) if name in common], json.loads(
        (folder / "undisturbed-1" / "end").read_text()
    )


def crash(scene: str, place: Path, point: str, wanted: Ending) -> list[str]:
    """Die at the point, go on in another process; return what is wrong with the end."""
    for _ in range(TRIES):
        fresh(place)
        code = forked(lambda place=place: play(scene, place, point), place)  # type: ignore[misc]
        if code == DIED:
            break
        if code:
            return [f"before the crash it ended with {code}: {(place / 'output').read_text()[-2000:]}"]
    else:
        return [NEVER]
    called = lines(place / "effects")
    code = forked(lambda: play_on(scene, place), place)
    if code:
        return [f"the next process ended with {code}: {(place / 'output').read_text()[-3000:]}"]
    return compared(place, called, wanted)


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def compared(place: Path, called: list[str], wanted: Ending) -> list[str]:
    """Return what differs from the end without a crash, and what was lost or done twice."""
    left, end = json.loads((place / "left").read_text()), json.loads((place / "end").read_text())
    wrong = [f"{what}: {end[what]} instead of {wanted[what]}" for what in ("workflows", "open", "views")
             if end[what] != wanted[what]]  # fmt: skip
    wrong += [f"refused: {end['refused']}"] if end["refused"] else []
    wrong += [f"acknowledged and lost: {line}" for line in lines(place / "acknowledged") if line not in end["ids"]]
    everything = lines(place / "effects")
    for call in dict.fromkeys(everything):
        name, _, key = call.rpartition(" ")
        lost = called.count(call) - left["outcomes"].count(key)  # the crash fell between call and record
        if lost not in (0, 1) or everything.count(call) > wanted["calls"][name] + lost:
            wrong.append(f"{call}: {everything.count(call)} calls, {lost} of them were lost in the crash")
    names = {call.rpartition(" ")[0] for call in everything}
    if len(set(everything)) != len(names):
        wrong.append(f"an effect was repeated under another key: {sorted(set(everything))}")
    return wrong


def crashes(scene: str, folder: Path, points: list[str], wanted: Ending) -> Iterator[tuple[str, list[str]]]:
    """Crash at each point, several beside each other (most of the time they wait); yield what went wrong."""
    todo, running = list(enumerate(points))[::-1], dict[int, int]()
    while todo or running:
        while todo and len(running) < BESIDE:
            n, point = todo.pop()
            running[watched(lambda: crash(scene, folder / str(n), point, wanted), folder / f"{n}.json")] = n  # noqa: B023
        pid, code = os.wait()
        n = running.pop(pid)
        found = json.loads((folder / f"{n}.json").read_text()) if not code else ["the watching process failed"]
        if found:
            yield points[n], found
        else:
            shutil.rmtree(folder / str(n), ignore_errors=True)


def watched(work: Callable[[], list[str]], answer: Path) -> int:
    """Let a process of its own do it, and write the answer to a file; return its pid."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            answer.write_text(json.dumps(work()))
            code = 0
        finally:
            os._exit(code)
    return pid


def campaign(scene: str, folder: Path, every: int = 1, only: str = "") -> Report:
    """Crash at every point of a scene (or every `every`-th, or those whose name holds `only`)."""
    started = time.monotonic()
    gc.freeze()  # what is loaded is shared with the children, not copied
    points, wanted = undisturbed(scene, folder)
    calls = [call.rpartition(" ")[0] for call in lines(folder / "undisturbed-1" / "effects")]
    wanted["calls"] = {name: calls.count(name) for name in calls}
    chosen = [point for point in points[::every] if only in point]
    wrong = dict(crashes(scene, folder, chosen, wanted))
    unmet = [point for point, found in wrong.items() if found == [NEVER] and point.startswith(POLLED)]
    wrong = {point: found for point, found in wrong.items() if point not in unmet}
    return {
        "scene": scene, "points": len(points), "crashed": len(chosen) - len(unmet), "unmet": unmet, "wrong": wrong,
        "calls": sorted({point.partition("#")[0].partition("(")[0] for point in points}),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def everything() -> int:
    """Every crash point of every scene, as a table."""
    total, failed = 0, False
    print(f"on {SERVER or 'the embedded log'}")
    for scene in SCENES:
        with tempfile.TemporaryDirectory(dir=fastest_folder()) as folder:
            found = campaign(scene, Path(folder))
        total, failed = total + found["crashed"], failed or bool(found["wrong"])
        print(
            f"{scene:28} {found['points']:5} points, {len(found['unmet'])} of them not met again, "
            f"{len(found['wrong'])} wrong, {found['seconds']:6.1f} s",
            flush=True,
        )
        for point, wrong in found["wrong"].items():
            print(f"    {point}: {wrong}")
    print(f"{total} crash points in all, each died at, restarted, and compared")
    return int(failed)


def fastest_folder() -> str | None:
    """Where a file costs no disk; None for the usual temporary folder."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(everything())
    print(json.dumps(campaign(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
