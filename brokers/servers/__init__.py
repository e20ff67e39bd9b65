"""Servers for development and tests: a real NATS or Kafka as processes of this machine, on loopback, ended with it.

    async with nats_server(folder, nodes=3) as server:
        server.url               # nats://127.0.0.1:21544,127.0.0.1:21602,127.0.0.1:30971/refold?replicas=3&sync=always
        server.nodes[0].kill()
        await server.nodes[0].restart()

Not for production: nothing here is meant to be reached from another machine.
"""

from __future__ import annotations

from .kafka import kafka_server
from .nats import nats_server
from .process import Node
from .server import Front, Server

__all__ = ["Front", "Node", "Server", "kafka_server", "nats_server"]
