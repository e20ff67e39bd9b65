"""`refold broker plan`: what an administrator has to do, without asking any server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from jetstream_logs import item, new_url

from refold.brokers import open_broker, plan_of
from refold.bus.broker import LogSpec
from refold.bus.errors import ConfigError, UnknownBroker


def test_the_plan_for_kafka_is_commands_of_its_own_tools_with_the_settings_that_a_log_needs():
    plan = plan_of("kafka://one:9092,two/shop?partitions=12&replication=3")
    lines = [shlex.split(line) for line in plan.splitlines()]
    assert {line[0] for line in lines} == {"kafka-topics", "kafka-acls"}
    (log,) = [line for line in lines if line[0] == "kafka-topics" and line[line.index("--topic") + 1] == "shop"]
    assert log[log.index("--partitions") + 1] == "12"
    assert {"min.insync.replicas=2", "retention.ms=-1", "unclean.leader.election.enable=false"} <= set(log)
    assert not any("compact" in word for word in log)


def test_the_plan_for_nats_makes_each_stream_as_refold_would_and_says_what_a_user_must_be_allowed():
    lines = plan_of("nats://one,two/shop?replicas=3", LogSpec(partitions=2)).splitlines()
    made = [json.loads(shlex.split(line)[2]) for line in lines if line.startswith("printf")]
    assert {config["name"] for config in made} == {"shop_control", "shop_checkpoints", "shop_0", "shop_1"}
    assert {(config["num_replicas"], config["storage"], config["discard"]) for config in made} == {(3, "file", "new")}
    assert [line for line in lines if line.startswith("#   publish: ")]


def test_the_plan_for_nats_run_as_it_is_printed_makes_a_log_that_refold_accepts(go, nats_address, tmp_path):
    """By the real tool: `go install github.com/nats-io/natscli/nats@v0.5.0`. What its lines hold is tried without it by
    test_jetstream_traps.py."""
    if shutil.which("nats") is None:
        pytest.skip("the nats tool is not installed: the lines of the plan were not run by it")
    url = f"{new_url(nats_address)}?partitions=2"
    env = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["sh", "-ec", plan_of(url)], check=True, cwd=tmp_path, env=env, capture_output=True, timeout=60)

    async def main():
        async with open_broker(url) as broker:
            assert (await broker.ensure_log(create=False)).partitions == 2
            await broker.append([item(1, "k", "a")])

    go(main())


def test_a_log_that_needs_no_administrator_says_so_and_an_unknown_one_is_named():
    with pytest.raises(ConfigError, match="sqlite:// needs nothing from an administrator"):
        plan_of("sqlite:///x.db")
    with pytest.raises(UnknownBroker, match="no broker for redis://"):
        plan_of("redis://x")


def test_the_command_prints_the_plan_and_shows_no_secret():
    command = [sys.executable, "-m", "refold.cli", "broker", "plan", "kafka://me:hush@one:9092/shop?sasl=plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "User:me" in done.stdout
    assert "hush" not in done.stdout + done.stderr
