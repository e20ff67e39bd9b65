"""What an administrator has to make, as commands of the `nats` tool, where refold may not make streams itself."""

from __future__ import annotations

import json
import shlex

from ...bus.broker import ANY_LOG, LogMeta, LogSpec
from .address import Address
from .names import Names
from .streams import configs, new_meta


def commands(address: Address, spec: LogSpec = ANY_LOG, now: float = 0.0, meta: LogMeta | None = None) -> list[str]:
    """Return shell commands that make the log of an address; run them once, in order, as they are.

    `meta` is what the log will say of itself; by default a new one, with a new id.
    """
    meta = meta or new_meta(spec, address.partitions, now)
    names = Names(address.namespace, meta.log_id)
    server = shlex.quote(",".join(f"nats://{host}" for host in address.servers))
    out = [f"export NATS_URL={server}"]
    for config in configs(names, address.replicas or 1, address.max_bytes or -1, meta):
        document = shlex.quote(json.dumps(config))
        out.append(f"printf %s {document} > {config['name']}.json && nats stream add --config {config['name']}.json")
    out.append(f"nats publish {names.root}.control.made 'all streams of the log have been there'")
    return out


def text(address: Address, spec: LogSpec = ANY_LOG, *, now: float = 0.0) -> str:
    """Return the commands as lines for a shell, and what a user of refold must be allowed, as lines of comment."""
    meta = new_meta(spec, address.partitions, now)
    allowed = permissions(Names(address.namespace, meta.log_id))
    said = [f"#   {verb}: {json.dumps(subjects)}" for verb, subjects in allowed.items()]
    head = "# permissions of a user that works on this log (nats-server's configuration, or `nsc`):"
    return "\n".join([*commands(address, spec, now, meta), head, *said])


def permissions(names: Names) -> dict[str, list[str]]:
    """Return which subjects a user of refold must be allowed to publish and to subscribe to, if it makes no streams."""
    publish = [f"{names.root}.>"]
    publish += ["$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.*"]
    publish += [f"$JS.API.STREAM.PURGE.{names.checkpoints}", "$JS.API.CONSUMER.CREATE.*.>", "$JS.API.INFO"]
    publish += ["$JS.API.CONSUMER.DELETE.*.*", "$JS.API.CONSUMER.MSG.NEXT.*.*"]
    return {"publish": publish, "subscribe": ["_INBOX.>", f"{names.root}.control.>", f"{names.root}.hint.>"]}
