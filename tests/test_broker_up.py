"""`refold broker up`: a real server that answers at the URL it prints, ends with Ctrl-C, and keeps its data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from refold.brokers.servers.process import free_ports
from refold.cli import exits

REFOLD = [sys.executable, "-m", "refold.cli"]
UP = [*REFOLD, "broker", "up"]
APP = Path(__file__).parent.parent / "docker" / "app" / "app.py"
DURABILITY = {"nats": "durability D2", "kafka": "durability D1"}
THOROUGH = pytest.mark.skipif(os.environ.get("REFOLD_TESTS") != "thorough", reason="a second Kafka: make test-all")


class Up:
    """The command as a process, and what it said when the server answered."""

    def __init__(self, folder: Path, kind: str, *options: str) -> None:
        (port,) = free_ports(1)
        command = [*UP, kind, "--folder", str(folder / kind), "--port", str(port), "--json", *options]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.said = json.loads(line)
        self.port = port

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def __enter__(self) -> Up:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_nats_is_there_until_ctrl_c_and_its_data_is_there_again_afterwards(own_nats, tmp_path, go):
    async def streams(port: int, make: bool) -> int:
        import nats

        connection = await nats.connect(f"nats://127.0.0.1:{port}")
        if make:
            await connection.jetstream().add_stream(name="kept", subjects=["kept"])
        found = len(await connection.jetstream().streams_info())
        await connection.close()
        return found

    with Up(tmp_path, "nats") as up:
        assert up.said["url"] == f"nats://127.0.0.1:{up.port}/refold?sync=always"
        assert go(streams(up.port, make=True)) == 1
        node = up.said["nodes"][0]["pid"]
        assert up.end() == exits.OK
        assert not psutil.pid_exists(node)
    with Up(tmp_path, "nats") as up:
        assert go(streams(up.port, make=False)) == 1
        assert up.end(signal.SIGTERM) == exits.OK


def test_a_kafka_is_there_until_ctrl_c(own_kafka, tmp_path, go):
    async def topics(port: int) -> list[str]:
        from aiokafka.admin import AIOKafkaAdminClient

        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
        await admin.start()
        found = await admin.list_topics()
        await admin.close()
        return found

    with Up(tmp_path, "kafka") as up:
        assert up.said["url"] == f"kafka://127.0.0.1:{up.port}/refold"
        assert go(topics(up.port)) == []
        node = up.said["nodes"][0]["pid"]
        assert up.end() == exits.OK
        assert not psutil.pid_exists(node)


@pytest.mark.parametrize("kind", ["nats", pytest.param("kafka", marks=THOROUGH)])
def test_a_worker_and_a_client_work_at_the_url_that_is_printed(kind, request, tmp_path):
    request.getfixturevalue(f"own_{kind}")
    with Up(tmp_path, kind) as up:
        settings = {"cwd": tmp_path, "env": {**os.environ, "REFOLD_BROKER": up.said["url"]}, "text": True}
        worker = subprocess.Popen([*REFOLD, "run", str(APP)], stderr=subprocess.PIPE, **settings)
        try:
            assert "Ctrl-C stops" in worker.stderr.readline()
            for command, said in ((("request", "greeter", '"Ada"'), "Hello, Ada!"), (("doctor",), DURABILITY[kind])):
                done = subprocess.run([*REFOLD, *command], capture_output=True, check=False, **settings)
                assert said in done.stdout, done.stdout + done.stderr
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=60)
        assert worker.returncode == exits.OK
        assert up.end() == exits.OK


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(own_nats, tmp_path):
    with Up(tmp_path, "nats", "--nodes", "3") as up:
        os.kill(up.said["nodes"][1]["pid"], signal.SIGKILL)
        _, errors = up.process.communicate(timeout=60)
        assert up.process.returncode == exits.UNAVAILABLE
        assert "nats node2 has ended; the end of " in json.loads(errors)["error"]["message"]
        assert [pid for node in up.said["nodes"] if psutil.pid_exists(pid := node["pid"])] == []


def _refused(folder: Path, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [*UP, *options], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == exits.CONFIG, done.stderr
    return done.stderr


def test_what_cannot_be_started_says_what_to_do(tmp_path, own_nats):
    no_java = {"JAVA_HOME": str(tmp_path)}
    assert "install a Java runtime of version 17" in _refused(tmp_path, "kafka", **no_java)
    with Up(tmp_path, "nats") as up:
        assert "choose another --port" in _refused(tmp_path, "nats", "--port", str(up.port))
        assert "belongs to a server that runs" in _refused(tmp_path, "nats", "--folder", str(tmp_path / "nats"))
    assert "holds the data of 1 nodes, not of 3" in _refused(tmp_path, "nats", "--folder", "nats", "--nodes", "3")


@pytest.mark.parametrize("options", [("redis",), ("nats", "--nodes", "0"), ("nats", "--port", "80")])
def test_what_is_no_server_is_a_usage_error(options, tmp_path):
    done = subprocess.run([*UP, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == exits.USAGE
