"""Where the cluster is and who we are there: from the URL, and from the environment what no URL should hold."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ...bus.errors import ConfigError

SASL = {"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512", "oauth": "OAUTHBEARER"}
SECRET = {"password", "token", "key_password"}
NUMBERS = ("partitions", "replication")
CHOICES = {
    "tls": ("true", "false"), "hostname_check": ("true", "false"), "sasl": tuple(SASL),
    "compression": ("none", "gzip", "lz4", "zstd"), "retention": ("endless", "archived"),
    "cloudevents": ("true", "false"), "offsets": ("true", "false"),
}  # fmt: skip
FILES = ("ca", "cert", "key", "token_file")
KNOWN = {*NUMBERS, *CHOICES, *FILES, *SECRET, "username"}
NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,200}")


class Address(NamedTuple):
    """A cluster, the namespace of a log on it, and the settings (by their names in the URL; secrets included)."""

    servers: tuple[str, ...]
    namespace: str
    settings: Mapping[str, str]

    @property
    def url(self) -> str:
        """The URL without secrets."""
        shown = {k: v for k, v in self.settings.items() if k not in SECRET and k != "username"}
        query = f"?{urlencode(shown, safe='/')}" if shown else ""
        return f"kafka://{','.join(self.servers)}/{quote(self.namespace)}{query}"

    def number(self, name: str) -> int | None:
        """Return a setting that is a number, or None."""
        return int(self.settings[name]) if name in self.settings else None

    def client(self) -> dict[str, Any]:
        """Return what aiokafka's client is made with. Raises ConfigError for files that cannot be used."""
        found, tls = self.settings, self.settings.get("tls") == "true"
        out: dict[str, Any] = {"bootstrap_servers": list(self.servers), "client_id": "refold"}
        if tls:
            out["ssl_context"] = _context(found)
        if sasl := found.get("sasl"):
            out["sasl_mechanism"] = SASL[sasl]
            if sasl == "oauth":
                out["sasl_oauth_token_provider"] = _tokens(found)
            else:
                out["sasl_plain_username"] = found["username"]
                out["sasl_plain_password"] = found["password"]
        out["security_protocol"] = ("SASL_" if sasl else "") + ("SSL" if tls else "PLAINTEXT")
        return out


def parse(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Read `kafka://[user:password@]host[:9092][,host2...]/namespace[?settings]`.

    A setting that the URL does not have is taken from `REFOLD_KAFKA_` + its name in capitals. Raises ConfigError, which
    names all that is wrong and shows no secret.
    """
    parts = urlsplit(url)
    who, _, hosts = parts.netloc.rpartition("@")
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    wrong = [f"there is no setting {name}" for name in settings if name not in KNOWN]
    if who:
        user, _, password = who.partition(":")
        settings |= {"username": unquote(user)} | ({"password": unquote(password)} if password else {})
    for name in KNOWN:
        if name not in settings and (value := environment.get(f"REFOLD_KAFKA_{name.upper()}")):
            settings[name] = value
    namespace = unquote(parts.path.strip("/")) or "refold"
    servers, bad = _servers(hosts)
    wrong += bad
    if not NAMESPACE.fullmatch(namespace):
        wrong.append(f"the namespace {namespace!r} is no name of a topic (letters, digits, . _ -)")
    wrong += _check(settings)
    if wrong:
        raise ConfigError(f"kafka://{hosts}/{quote(namespace)}: " + "; ".join(wrong))
    return Address(servers, namespace, dict(sorted(settings.items())))


def _servers(hosts: str) -> tuple[tuple[str, ...], list[str]]:
    out, wrong = [], []
    for host in filter(None, hosts.split(",")):
        name, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "9092")
        if not name or not 0 < int(port) < 65536:
            wrong.append(f"{host!r} is no host:port")
        out.append(f"{name}:{port}")
    return tuple(out), wrong or ([] if out else ["name at least one host: kafka://localhost:9092/refold"])


def _check(settings: dict[str, str]) -> list[str]:
    wrong = list[str]()
    given = {name: settings[name] for name in NUMBERS if name in settings}
    wrong += [f"{n} is {v!r}, no number from 1 on" for n, v in given.items() if not re.fullmatch(r"[1-9]\d{0,5}", v)]
    for name, choices in CHOICES.items():
        settings[name] = settings[name].lower() if name in settings else ""
        if not settings[name]:
            del settings[name]
        elif settings[name] not in choices:
            wrong.append(f"{name} is {settings[name]!r}: one of {', '.join(choices)}")
    if "username" in settings and "sasl" not in settings:
        settings["sasl"] = "plain"
    if settings.get("sasl") == "oauth":
        if not {"token", "token_file"} & settings.keys():
            wrong.append("sasl=oauth needs token_file=, or REFOLD_KAFKA_TOKEN")
    elif "sasl" in settings:
        wrong += [f"sasl={settings['sasl']} needs {n}" for n in ("username", "password") if n not in settings]
    if ({"ca", "cert"} & settings.keys()) and settings.setdefault("tls", "true") != "true":
        wrong.append("a certificate without tls=true")
    return wrong


def _context(settings: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.get("ca"))
        if settings.get("hostname_check") == "false":
            context.check_hostname = False
        if cert := settings.get("cert"):
            context.load_cert_chain(cert, settings.get("key"), settings.get("key_password"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates of the Kafka connection cannot be used: {error}") from error
    return context


def _tokens(settings: Mapping[str, str]) -> object:
    from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]

    class Tokens(AbstractTokenProvider):  # type: ignore[misc]
        async def token(self) -> str:  # pyright: ignore
            file = settings.get("token_file")
            if file is None:
                return settings["token"]
            try:
                with open(file, encoding="utf-8") as opened:  # noqa: ASYNC230 - small, and renewed by others
                    return opened.read().strip()
            except OSError as error:
                raise ConfigError(f"the token of the Kafka connection cannot be read: {error}") from error

    return Tokens()
