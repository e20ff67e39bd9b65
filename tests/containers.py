"""Servers in containers, where Docker runs and testcontainers is installed (dependency group `containers`)."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from contextlib import ExitStack

NATS_IMAGE = "nats:2.12-alpine"
KAFKA_IMAGE = "confluentinc/cp-kafka:8.0.0"
"""The one whose start-up testcontainers knows; 8.0 is Kafka 4.0."""
SETTINGS = {
    "AUTO_CREATE_TOPICS_ENABLE": "false", "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "TRANSACTION_STATE_LOG_MIN_ISR": "1",
}  # fmt: skip


def available() -> bool:
    """Return whether a server can be had in a container here."""
    if importlib.util.find_spec("testcontainers") is None or shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def start(kind: str, stack: ExitStack) -> tuple[str, str]:
    """Start a server that ends with `stack`; return its host:port and its image."""
    if kind == "nats":
        from testcontainers.community.nats import NatsContainer

        nats = stack.enter_context(NatsContainer(NATS_IMAGE, jetstream=True))
        host, port = nats.nats_host_and_port()
        return f"{host}:{port}", NATS_IMAGE
    from testcontainers.community.kafka import KafkaContainer

    kafka = KafkaContainer(KAFKA_IMAGE).with_kraft()
    for name, value in SETTINGS.items():
        kafka.with_env(f"KAFKA_{name}", value)
    return stack.enter_context(kafka).get_bootstrap_server(), KAFKA_IMAGE
