"""Wherever a process dies, the next one converges to what would have been without the crash.

The points are found by wrapping every call of the port, the stores and the effects (tests/crash_points). All points of
all scenes: `make crash-points`, or REFOLD_TESTS=thorough.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from crash_points.campaign import fastest_folder
from crash_points.scenes import SCENES

from refold.bus.broker import Broker, Listener, Subscription
from refold.projections.store import ProjectionStore

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
SERVERS = os.environ.get("REFOLD_SERVERS") == "thorough"
WHOLE = ("hello",)
"""Scenes that die at every point in the quick tests too; of the others every 25th point."""
FACES = {"log": Broker, "log.subscribe": Subscription, "log.listen": Listener, "store": ProjectionStore}
NOT_CROSSED = {
    "log.aclose",  # crossed as `log closed`
    "log.append_raw", "log.health", "log.subscribe.pause", "log.subscribe.resume",  # no worker or client calls them
    "store.get", "store.items", "store.positions", "store.projections",  # readers only
}  # fmt: skip


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=fastest_folder()) as made:
        yield Path(made)


def campaign(scene, folder, every, only="", on=""):
    command = [sys.executable, "-m", "crash_points.campaign", scene, str(folder), str(every), only]
    env = {**os.environ, "CRASH_POINTS_ON": on}
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, env=env)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.timeout(600 if THOROUGH else 120)
def test_wherever_the_process_dies_the_next_one_converges_to_the_crash_free_state(scene, folder, record_property):
    converges(campaign(scene, folder, 1 if THOROUGH or scene in WHOLE else 25), record_property)


@pytest.mark.parametrize("scheme", ["nats", "kafka"])
@pytest.mark.parametrize("scene", SCENES if SERVERS else ("hello", "a takeover with checkpoint"))
@pytest.mark.timeout(600 if SERVERS else 120)
def test_the_same_on_the_brokers_that_people_run(scene, scheme, folder, request, record_property):
    address = request.getfixturevalue(f"{scheme}_address")
    every = 10 if SERVERS else 60
    converges(campaign(scene, folder, every, on=f"{scheme}://{address}"), record_property)


def converges(found, record_property):
    record_property("points", found["points"])
    assert not found["wrong"], f"{len(found['wrong'])} of {found['crashed']} crash points: {found['wrong']}"
    assert found["points"] > 80
    assert len(found["unmet"]) <= found["crashed"] / 20, found["unmet"]


def test_every_call_of_the_port_and_the_stores_is_crossed(folder):
    crossed = set()
    for n, scene in enumerate(("a takeover with checkpoint", "a rebuild")):
        crossed |= set(campaign(scene, folder / str(n), 10_000)["calls"])
    declared = {
        f"{name}.{call}" for name, face in FACES.items()
        for call, _ in inspect.getmembers(face, inspect.isfunction) if not call.startswith("_")
    }  # fmt: skip
    assert declared - crossed == NOT_CROSSED
    assert {call for call in crossed if call.startswith("effect ")}


@pytest.mark.parametrize(
    ("scene", "only", "says"),
    [
        ("forgetful", "append(status_update)#6", "acknowledged and lost"),
        ("volatile", "append(task_response)", "workflows: "),
        ("keyless", "append(effect_completed)", "under another key"),
    ],
)
def test_a_broker_that_loses_and_handlers_that_break_the_rules_are_found_out(scene, only, says, folder):
    assert says in str(campaign(scene, folder, 1, only)["wrong"])


def test_a_point_that_is_never_reached_fails_the_run(folder):
    script = (
        "import sys; from pathlib import Path; from crash_points.campaign import crash\n"
        "print(crash('hello', Path(sys.argv[1]) / 'x', 'log.no_such_call#1 before', {}))"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert done.stdout == "['never reached']\n"
