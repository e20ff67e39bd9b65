"""Being let in: each way to log in, tried on a real server that demands it; and what a user of little right can do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess

import nkeys
import pytest
from jetstream_logs import item, new_url

from refold.brokers.jetstream import from_url, names, plan, streams
from refold.brokers.jetstream.address import parse
from refold.brokers.jetstream.connection import Link
from refold.bus.broker import ANY_LOG, Assigned, Batch, LogSpec
from refold.bus.errors import BrokerUnavailable, ConfigError

TWO = LogSpec(partitions=2)
OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3


async def works(url: str) -> None:
    """Make a log there, append, and own it: the connection of the leases must be let in too."""
    async with from_url(url) as broker:
        await broker.ensure_log(TWO)
        assert "s3cret" not in broker.url
        await broker.append([item(0, "k", "a")])
        await read_as_owner(broker)


async def read_as_owner(broker) -> None:
    async with broker.subscribe("g", "m") as sub:
        seen = b""
        while not seen:
            for event in await sub.fetch(max_wait=0.2):
                if isinstance(event, Assigned):
                    sub.seek(event.partition, 0)
                    assert await sub.save_checkpoint(event.partition, event.epoch, 1, b"", {b"k": b"v"}, [])
                if isinstance(event, Batch):
                    seen = event.records[0].value
        assert seen == b"a"


async def is_refused(url: str) -> None:
    async with from_url(url) as broker:
        with pytest.raises((ConfigError, BrokerUnavailable)) as error:
            await broker.ensure_log(TWO)
        assert "s3cret" not in str(error.value)


@pytest.fixture
def quick(monkeypatch):
    """A refusal is believed after a second."""
    monkeypatch.setattr("refold.brokers.jetstream.connection.CONNECT", 1.0)


def with_user(url: str, user: str) -> str:
    return url.replace("nats://", f"nats://{user}@")


def test_user_and_password(go, own_nats, tmp_path, quick, monkeypatch):
    async def main():
        async with own_nats(tmp_path, extra='authorization { user: "me@home", password: "s3cret:/" }') as server:
            url = new_url(server.bootstrap)
            await works(with_user(url, "me%40home:s3cret%3A%2F"))
            for wrong in (url, with_user(url, "me%40home:s3cret"), with_user(url, "s3cret")):
                await is_refused(wrong)
            monkeypatch.setenv("NATS_USER", "me@home")
            monkeypatch.setenv("NATS_PASSWORD", "s3cret:/")
            await works(url)

    go(main())


def test_a_token(go, own_nats, tmp_path, quick, monkeypatch):
    async def main():
        async with own_nats(tmp_path, extra='authorization { token: "s3cret" }') as server:
            url = new_url(server.bootstrap)
            await works(with_user(url, "s3cret"))
            await is_refused(url)
            monkeypatch.setenv("NATS_TOKEN", "s3cret")
            await works(url)

    go(main())


def pair(prefix: int) -> tuple[bytes, str]:
    """A new seed and its public key."""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    return seed, nkeys.from_seed(bytearray(seed)).public_key.decode()


def test_an_nkey(go, own_nats, tmp_path, quick):
    async def main():
        seed, public = pair(USER)
        (tmp_path / "user.nk").write_bytes(seed)
        async with own_nats(tmp_path / "nats", extra=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server:
            url = new_url(server.bootstrap)
            await works(f"{url}?nkey={tmp_path}/user.nk")
            await is_refused(url)
            with pytest.raises(ConfigError, match=r"there is no file .*none\.nk"):
                await works(f"{url}?nkey={tmp_path}/none.nk")

    go(main())


def jwt(issuer: bytes, subject: str, name: str, kind: dict[str, object]) -> str:
    """A signed claim, as the servers of NATS read it."""

    def text(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    pair = nkeys.from_seed(bytearray(issuer))
    claim = {"iat": 1700000000, "iss": pair.public_key.decode(), "name": name, "sub": subject, "nats": kind}
    claim["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claim).encode()).digest()).decode().rstrip("=")
    parts = text(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()) + "." + text(json.dumps(claim).encode())
    return f"{parts}.{text(pair.sign(parts.encode()))}"


def account(name: str, operator: bytes, jetstream: bool) -> tuple[bytes, str, str]:
    seed, public = pair(ACCOUNT)
    names = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    limits: dict[str, object] = dict.fromkeys(names, -1) | {"wildcards": True}
    if jetstream:
        limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    return seed, public, jwt(operator, public, name, {"limits": limits, "type": "account", "version": 2})


def test_credentials_of_a_user_of_an_account(go, own_nats, tmp_path, quick, monkeypatch):
    async def main():
        operator, operator_public = pair(OPERATOR)
        _, system, system_jwt = account("SYS", operator, jetstream=False)
        app, app_public, app_jwt = account("APP", operator, jetstream=True)
        user, user_public = pair(USER)
        limits = {"subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2, "pub": {}, "sub": {}}
        creds = (
            f"-----BEGIN NATS USER JWT-----\n{jwt(app, user_public, 'me', limits)}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.decode()}\n------END USER NKEY SEED------\n"
        )
        (tmp_path / "me.creds").write_text(creds)
        claim = jwt(operator, operator_public, "OP", {"type": "operator", "version": 2, "system_account": system})
        extra = (
            f"operator: {claim}\nsystem_account: {system}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {system}: {system_jwt}, {app_public}: {app_jwt} }}"
        )
        async with own_nats(tmp_path / "nats", extra=extra) as server:
            url = new_url(server.bootstrap)
            await works(f"{url}?creds={tmp_path}/me.creds")
            await is_refused(url)
            monkeypatch.setenv("NATS_CREDS", f"{tmp_path}/me.creds")
            await works(url)

    go(main())


def certificates(folder) -> str:
    """An authority, a server and a client, by openssl; return the server's configuration, which demands a client's."""

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-subj", f"/CN={name}")  # fmt: skip
        run("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    files = f'cert_file: "{folder}/server.pem", key_file: "{folder}/server.key", ca_file: "{folder}/ca.pem"'
    return f"tls {{ {files}, verify: true }}"


def test_tls_where_both_sides_show_a_certificate(go, own_nats, tmp_path, quick):
    async def main():
        async with own_nats(tmp_path / "nats", extra=certificates(tmp_path)) as server:
            url = new_url(server.bootstrap)
            ca, client = f"tls_ca={tmp_path}/ca.pem", f"tls_cert={tmp_path}/client.pem&tls_key={tmp_path}/client.key"
            await works(f"{url}?{ca}&{client}")
            for wrong in (url, f"{url}?tls=true", f"{url}?{ca}"):
                await is_refused(wrong)

    go(main())


# ---- a user of little right ----------------------------------------------------------------------------------------
def test_a_user_that_may_make_no_streams_works_on_those_that_an_administrator_made(go, own_nats, tmp_path, quick):
    async def main():
        url = new_url("127.0.0.1:1")
        meta = streams.new_meta(TWO, None, 1.0)
        known = names.Names(parse(url).namespace, meta.log_id)
        rights = json.dumps(plan.permissions(known))
        extra = (
            'authorization { users: [ { user: admin, password: a }, { user: app, password: s3cret, permissions: '
            f"{rights} }} ] }}"
        )
        async with own_nats(tmp_path, extra=extra) as server:
            url = url.replace("127.0.0.1:1", f"app:s3cret@{server.bootstrap}")
            async with from_url(url) as broker:
                with pytest.raises(ConfigError, match="refold broker plan"):
                    await broker.ensure_log(TWO)
            link = Link(parse(url.replace("app:s3cret", "admin:a")))
            await link.open()
            for line in plan.commands(parse(url), ANY_LOG, meta=meta):
                if "stream add" in line:
                    config = json.loads(line.partition("printf %s '")[2].partition("' >")[0])
                    await link.api(f"STREAM.CREATE.{config['name']}", config)
            await link.request(f"{known.root}.control.made", b"made")
            await link.close()
            await works(url)
            async with from_url(url) as broker:
                await broker.ensure_log(create=False)
                assert (await broker.health()).ok
                async with broker.listen() as listener:
                    await broker.notify(listener.address, b"hint")
                    assert await listener.get() == b"hint"

    go(main())
