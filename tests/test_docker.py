"""What docker/ sets is what a log needs: a safe setting that is lost fails here, and real servers take the settings."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from refold.agents.worker import Worker
from refold.brokers import open_broker
from refold.brokers.servers.nats import nats_binary
from refold.brokers.servers.process import HOST, Node, free_ports

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
FILES = {"nats.yaml": 1, "nats-3.yaml": 3, "kafka.yaml": 1, "kafka-3.yaml": 3}
UNITS = {"s": 1, "m": 60}


def compose(file: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / file).read_text("utf-8"))


def nodes(file: str) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose(file)["services"].items() if name != "agents"}


def seconds(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


@pytest.mark.parametrize(("file", "count"), FILES.items())
def test_each_node_is_pinned_kept_watched_and_reachable_from_this_machine_only(file, count):
    found = nodes(file)
    assert len(found) == count
    volumes = {volume for service in found.values() for volume in service["volumes"] if not volume.startswith(".")}
    assert len(volumes) == count
    assert {volume.partition(":")[0] for volume in volumes} == set(compose(file)["volumes"])
    ports = [port for service in found.values() for port in service["ports"]]
    assert len(set(ports)) == count and all(port.startswith("127.0.0.1:") for port in ports)
    for service in found.values():
        assert re.fullmatch(r"(nats|apache/kafka):\d+\.\d+[.\w-]*", service["image"])
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize(("file", "count"), FILES.items())
def test_agents_wait_for_all_nodes_and_may_end_their_work(file, count):
    agents = compose(file)["services"]["agents"]
    assert agents["depends_on"] == {name: {"condition": "service_healthy"} for name in nodes(file)}
    assert agents["profiles"] == ["agents"]
    assert seconds(agents["stop_grace_period"]) > Worker.__init__.__kwdefaults__["drain"]
    url = agents["environment"]["REFOLD_BROKER"]
    assert re.findall(r"[\w-]+(?=:\d+)", url) == list(nodes(file))
    assert open_broker(url).url == url
    assert ("=3" in url) == (count == 3)
    assert ("sync=always" in url) == file.startswith("nats")
    assert (ROOT / agents["build"]["dockerfile"]).is_file()
    assert (DOCKER / agents["volumes"][0].partition(":-")[2].partition("}")[0] / "app.py").is_file()


SAFE = {
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_LOG_CLEANUP_POLICY": "delete",
    "KAFKA_LOG_RETENTION_MS": "-1",
    "KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE": "false",
    "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
}
INTERNAL = ("OFFSETS_TOPIC", "TRANSACTION_STATE_LOG", "SHARE_COORDINATOR_STATE_TOPIC")


@pytest.mark.parametrize("file", ["kafka.yaml", "kafka-3.yaml"])
def test_kafka_keeps_all_of_a_log_and_acknowledges_what_two_of_three_nodes_have(file):
    count = FILES[file]
    for number, (name, service) in enumerate(nodes(file).items(), 1):
        settings = service["environment"]
        assert {key: settings[key] for key in SAFE} == SAFE
        assert {settings[f"KAFKA_{of}_REPLICATION_FACTOR"] for of in ("DEFAULT", *INTERNAL)} == {count}
        assert settings["KAFKA_MIN_INSYNC_REPLICAS"] == (count + 1) // 2
        assert settings["KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"] == (count + 1) // 2
        voters = settings["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")
        assert voters == [f"{i}@{n}:9093" for i, n in enumerate(nodes(file), 1)]
        assert settings["KAFKA_NODE_ID"] == number and service["hostname"] == name
        port = service["ports"][0].split(":")[1]
        assert settings["KAFKA_ADVERTISED_LISTENERS"] == f"INSIDE://{name}:19092,HOST://localhost:{port}"
        assert service["volumes"] == [f"{'data' if count == 1 else f'data-{number}'}:/var/lib/kafka/data"]


@pytest.mark.parametrize("config", ["nats.conf", "nats-3.conf"])
def test_a_real_nats_server_with_these_settings_syncs_always(own_nats, config, tmp_path, go, monkeypatch):
    client, monitor, cluster = free_ports(3)
    places = {"/data": str(tmp_path), "http: 8222": f"http: {HOST}:{monitor}", "0.0.0.0:6222": f"{HOST}:{cluster}"}
    text = (DOCKER / config).read_text("utf-8")
    for there, here in places.items():
        text = text.replace(there, here)
    (tmp_path / config).write_text(text)
    monkeypatch.setenv("NODE", "nats-1")

    def seen() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{HOST}:{monitor}/jsz?config=true", timeout=2) as said:
            return json.loads(said.read())["config"]

    async def main() -> None:
        command = [str(nats_binary()), "-c", str(tmp_path / config), "-a", HOST, "-p", str(client)]
        node = Node("nats", command, tmp_path / "log", lambda: asyncio.to_thread(seen), ())
        node.begin()
        try:
            await node.ready(20)
            assert seen()["sync_always"] is True
        finally:
            await node.end()

    go(main())


@pytest.mark.parametrize("file", ["nats.yaml", "nats-3.yaml"])
def test_nats_reads_the_file_that_is_tested_and_keeps_its_data_where_the_volume_is(file):
    for name, service in nodes(file).items():
        mounted = dict(volume.split(":")[1::-1] for volume in service["volumes"])
        config = mounted[service["command"][-1]]
        text = (DOCKER / config).read_text("utf-8")
        assert service["command"][:-1] == ["nats-server", "--config"]
        assert re.search(r"store_dir: (\S+)", text)[1] in mounted
        assert re.search(r"http: (\d+)", text)[1] in service["healthcheck"]["test"][-1]
        if FILES[file] == 3:
            assert service["environment"] == {"NODE": name}
            assert re.findall(r"nats-route://([\w-]+):6222", text) == list(nodes(file))


@pytest.mark.skipif(os.environ.get("REFOLD_TESTS") != "thorough", reason="starts a Kafka: make test-all")
def test_a_real_kafka_takes_the_settings_and_has_them(own_kafka, tmp_path):
    settings = nodes("kafka.yaml")["kafka"]["environment"]
    ours = {k: str(v) for k, v in settings.items() if k.startswith("KAFKA_") and not _of_the_place(k)}
    properties = {k.removeprefix("KAFKA_").lower().replace("_", "."): v for k, v in ours.items()}

    async def main() -> None:
        from aiokafka.admin import AIOKafkaAdminClient
        from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

        async with own_kafka(tmp_path, properties=properties) as server:
            admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
            await admin.start()
            (said,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
            await admin.close()
            found = {entry[0]: entry[1] for entry in said.resources[0][4]}
            assert {name: found[name] for name in properties} == properties

    asyncio.run(main())


def _of_the_place(name: str) -> bool:
    return any(word in name for word in ("LISTENER", "VOTERS", "LOG_DIRS", "NODE_ID", "PROCESS_ROLES"))


# ---- the image -------------------------------------------------------------------------------------------------------
def instructions() -> list[tuple[str, str]]:
    text = (DOCKER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_agents_run_as_a_user_that_is_not_root_and_get_the_signals_themselves():
    last = dict(instructions())
    assert int(last["USER"]) > 0
    assert json.loads(last["ENTRYPOINT"]) == ["refold"]
    assert json.loads(last["CMD"])[0] == "run"
    assert last["STOPSIGNAL"] == "SIGTERM"
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_the_image_is_built_from_what_ships_and_its_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    install = next(text for name, text in instructions() if name == "RUN" and "pip install" in text)
    extras = re.search(r"\.\[([\w,]+)\]", install)[1].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    kept = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[0] == "!"}
    rooms = {name.split(".")[1] for name in project["tool"]["setuptools"]["packages"] if "." in name}
    assert rooms | {"__init__.py", "py.typed", "pyproject.toml", "README.md", "LICENSE"} == kept


def test_the_app_of_the_compose_files_answers(tmp_path):
    script = (
        "import asyncio, runpy\nfrom refold import run\n"
        f"greeter = runpy.run_path({str(DOCKER / 'app' / 'app.py')!r})['greeter']\n"
        "async def main():\n    async with run(greeter, broker='memory://') as bus:\n"
        "        print(await bus.request(greeter, 'Ada'))\nasyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "Hello, Ada!\n", done.stderr
