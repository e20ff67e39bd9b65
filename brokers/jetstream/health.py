"""What `doctor` wants to know of a log on NATS. Changes nothing."""

from __future__ import annotations

from typing import Any

from ...bus.broker import Health
from ...bus.errors import RefoldError
from .address import Address
from .connection import Link, Refused
from .streams import Opened, configs, differences, info

Check = tuple[str, bool, str, str]
NEARLY = 0.9


async def look(link: Link, address: Address, opened: Opened | None) -> Health:
    """Return the health of a log."""
    version = link.version if link.up else ""
    if opened is None or not link.up:
        check = ("connection", False, "no server answers, or the log is not open", "look at the servers and the URL")
        return Health(ok=False, durability="D1", why="not known without a server", version=version, checks=[check])
    try:
        checks = [("server", True, f"version {version}, JetStream answers", ""), *await _streams(link, opened)]
        checks += [_replicas(opened), _sync(address, opened), *await _account(link)]
    except (RefoldError, Refused) as error:
        checks = [("connection", False, str(error), "look at the servers")]
    durability, why = durability_of(opened.replicas, address.sync)
    fatal = any(not ok for name, ok, _, _ in checks if name in ("connection", "streams", "leaders"))
    return Health(ok=not fatal, durability=durability, why=why, version=version, checks=checks)


def durability_of(replicas: int, sync: str) -> tuple[str, str]:
    """Return the class and its reason. A client cannot see `sync_interval`: it is believed what the URL says of it."""
    known = {
        "always": "sync_interval: always, as the URL says",
        "default": "sync_interval: 2 minutes, as the URL says",
    }.get(sync, "sync_interval not known (sync=always in the URL says that the servers have it)")
    if replicas >= 3:
        return ("D4" if sync == "always" else "D1+D3"), f"{replicas} replicas, {known}"
    return ("D2" if sync == "always" else "D1"), f"{replicas} replica{'s' if replicas > 1 else ''}, {known}"


async def _streams(link: Link, opened: Opened) -> list[Check]:
    found = {c["name"]: await info(link, c["name"]) for c in configs(opened.names, opened.replicas, -1, opened.meta)}
    gone = [name for name, one in found.items() if one is None]
    wrong = [
        text for c in configs(opened.names, opened.replicas, -1, opened.meta)
        if (one := found[c["name"]]) is not None for text in differences(one["config"], c)
    ]  # fmt: skip
    anew = [name for name, one in found.items() if one is not None and one["created"] != opened.created.get(name)]
    wrong += [f"{name} is gone" for name in gone] + [f"{name} was made again" for name in anew]
    checks: list[Check] = [
        ("streams", not wrong, "; ".join(wrong) or f"{len(found)}, as refold needs them", "restore them from a backup")
    ]
    lonely = [name for name, one in found.items() if one is not None and _lacks_replicas(one)]
    checks.append(("leaders", True, "each stream has one", "start the servers that are down"))
    if opened.replicas > 1:
        detail = f"behind or offline in {', '.join(lonely)}" if lonely else "all follow"
        checks.append(("followers", not lonely, detail, "start the servers that are down"))
    for name, one in found.items():
        limit = one["config"].get("max_bytes", -1) if one is not None else -1
        if one is not None and limit > 0:
            used = one["state"]["bytes"]
            text = f"{used // 2**20} of {limit // 2**20} MiB"
            remedy = "raise max_bytes: a full stream takes nothing more"
            checks.append((f"space of {name}", used < NEARLY * limit, text, remedy))
    return checks


def _lacks_replicas(found: dict[str, Any]) -> bool:
    others = (found.get("cluster") or {}).get("replicas") or []
    return any(one.get("offline") or not one.get("current", True) for one in others)


def _replicas(opened: Opened) -> Check:
    ok = opened.replicas >= 3
    text = f"{opened.replicas}"
    return ("replicas", ok, text, "one node is one point of failure: for production three, ?replicas=3 on a new log")


def _sync(address: Address, opened: Opened) -> Check:
    ok = address.sync == "always" or opened.replicas >= 3
    return (
        "sync_interval", ok, address.sync,
        "by default a server acknowledges what a power cut can take: set `jetstream { sync_interval: always }`, then "
        "say sync=always in the URL",
    )  # fmt: skip


async def _account(link: Link) -> list[Check]:
    found = await link.asked("INFO")
    limits = found.get("limits") or {}
    limit, used = limits.get("max_storage", -1), found.get("storage", 0)
    if limit is None or limit <= 0:
        return [("space of the account", True, f"{used // 2**20} MiB used, no limit of its own", "")]
    text = f"{used // 2**20} of {limit // 2**20} MiB"
    return [("space of the account", used < NEARLY * limit, text, "raise max_storage: appends fail when it is full")]
