"""The URL of a log on NATS: servers, namespace, what to make where there is nothing, and how to be let in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from ...bus.errors import ConfigError
from .names import NAMESPACE

NUMBERS = ("partitions", "replicas", "max_bytes")
FILES = ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")
ENVIRONMENT = {
    "creds": "NATS_CREDS", "nkey": "NATS_NKEY", "user": "NATS_USER", "password": "NATS_PASSWORD", "token": "NATS_TOKEN",
    "tls_ca": "NATS_CA", "tls_cert": "NATS_CERT", "tls_key": "NATS_KEY",
}  # fmt: skip
"""The names that the tools of NATS use. What the URL says goes before."""


class Address(Struct, frozen=True, kw_only=True):
    """Where a log is. `sync` is what its operator says of the servers' `sync_interval`: a client cannot see it."""

    servers: tuple[str, ...]
    namespace: str = "refold"
    partitions: int | None = None
    replicas: int | None = None
    max_bytes: int | None = None
    sync: str = "unknown"
    tls: bool = False
    cloudevents: bool = False
    secrets: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.url}>"

    @property
    def url(self) -> str:
        """The URL without anything that lets somebody in."""
        said = {name: getattr(self, name) for name in NUMBERS if getattr(self, name) is not None}
        if self.sync != "unknown":
            said["sync"] = self.sync
        if self.tls:
            said["tls"] = "true"
        if self.cloudevents:
            said["cloudevents"] = "true"
        said |= {name: quote(self.secrets[name], safe="/") for name in FILES if name in self.secrets}
        query = "&".join(f"{name}={value}" for name, value in said.items())
        return f"nats://{','.join(self.servers)}/{self.namespace}{'?' if query else ''}{query}"

    def options(self) -> dict[str, Any]:
        """Return what the client of NATS is given. Raises ConfigError for files that cannot be used."""
        out: dict[str, Any] = {"servers": [f"nats://{server}" for server in self.servers]}
        found = self.secrets
        for name in FILES:
            if name in found and not os.path.isfile(found[name]):
                raise ConfigError(f"there is no file {found[name]} ({name} of {self.url})")
        if "creds" in found:
            out["user_credentials"] = found["creds"]
        if "nkey" in found:
            out["nkeys_seed"] = found["nkey"]
        out |= {name: found[name] for name in ("user", "password", "token") if name in found}
        if self.tls or "tls_ca" in found or "tls_cert" in found:
            out["tls"] = self._tls()
        return out

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.secrets.get("tls_ca"))
            if "tls_cert" in self.secrets:
                context.load_cert_chain(self.secrets["tls_cert"], self.secrets.get("tls_key"))
        except OSError as error:
            raise ConfigError(f"the TLS files of {self.url} cannot be used: {error}") from error
        return context


def parse(url: str, environment: Mapping[str, str] | None = None) -> Address:
    """Return the address that a URL names, with what the environment adds. Raises ConfigError, without secrets."""
    parts = urlsplit(url)
    given = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    secrets = _user(parts.netloc)
    hosts = tuple(_host(host) for host in parts.netloc.rpartition("@")[2].split(",") if host)
    namespace = parts.path.strip("/") or "refold"
    wrong = [] if hosts else ["it names no server"]
    if not NAMESPACE.fullmatch(namespace):
        wrong.append(f"the namespace {namespace!r} is not 1 to 64 letters, digits, - and _")
    address = Address(servers=hosts, namespace=namespace)
    for name, text in given.items():
        if name in NUMBERS and text.isascii() and text.isdigit() and int(text) > 0:
            address = replace(address, **{name: int(text)})
        elif name in FILES:
            secrets[name] = text
        elif name == "sync" and text in ("always", "default"):
            address = replace(address, sync=text)
        elif name in ("tls", "cloudevents") and text in ("true", "false"):
            address = replace(address, **{name: text == "true"})
        else:
            wrong.append(f"{name} is no setting, or not with this value")
    if wrong:
        raise ConfigError(
            f"nats://{','.join(hosts)}/...: {'; '.join(wrong)}. Write nats://host:4222,host2/namespace, with any of "
            "?partitions=, replicas=, max_bytes= (numbers), sync=always|default, tls=true, cloudevents=true, "
            "creds=, nkey=, tls_ca=, tls_cert=, tls_key= (files)"
        )
    return replace(address, secrets=_completed(secrets, os.environ if environment is None else environment))


def _host(host: str) -> str:
    return host if ":" in host.rpartition("]")[2] else f"{host}:4222"


def _user(netloc: str) -> dict[str, str]:
    user, found, password = netloc.rpartition("@")[0].partition(":")
    if found:
        return {"user": unquote(user), "password": unquote(password)}
    return {"token": unquote(user)} if user else {}


def _completed(secrets: dict[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Add what the environment says; how to log in comes from one place alone."""
    login = ("creds", "nkey", "user", "password", "token")
    named = any(name in secrets for name in login)
    known = {name: environment[var] for name, var in ENVIRONMENT.items() if environment.get(var)}
    return {n: v for n, v in known.items() if not (named and n in login)} | secrets
