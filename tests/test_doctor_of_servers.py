"""`refold doctor` on the brokers that people run: what is fit for development is well, and advised against."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid

import pytest


@pytest.mark.parametrize("scheme", ["nats", "kafka"])
def test_one_node_is_well_and_its_durability_is_said(scheme, request):
    url = f"{scheme}://{request.getfixturevalue(f'{scheme}_address')}/doctor-{uuid.uuid4().hex[:8]}?partitions=2"
    sent = refold("send", "nobody", "1", "--broker", url)
    assert sent.returncode == 0, sent.stderr
    told = refold("doctor", "--json", "--broker", url)
    found = json.loads(told.stdout)
    assert (told.returncode, found["ok"], found["durability"]) == (0, True, "D1"), told.stdout
    (log,) = [check["found"] for check in found["checks"] if check["check"] == "log"]
    assert log.removesuffix(" records") in ("2 partitions, 1", "2 partitions, about 1")


def test_a_log_that_is_not_there_is_missing_and_none_is_made(nats_address):
    url = f"nats://{nats_address}/doctor-{uuid.uuid4().hex[:8]}"
    for _ in range(2):
        told = refold("doctor", "--json", "--broker", url)
        assert json.loads(told.stderr)["error"]["type"] == "LogMissing"


def refold(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refold.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
