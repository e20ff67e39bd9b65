"""Getting in: each way of SASL and TLS on a real Kafka that demands it; and only where it is right."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String
from kafka_logs import new_namespace

from refold.brokers.kafka import plan, wire
from refold.brokers.kafka.address import Address, parse
from refold.brokers.kafka.broker import KafkaBroker
from refold.brokers.servers.jars import java, kafka_jars
from refold.bus.broker import Appended, Item, LogSpec, Outgoing
from refold.bus.errors import BrokerUnavailable, ConfigError

LOGIN = "org.apache.kafka.common.security"
LISTENERS = {"PLAIN": "SASL_PLAINTEXT", "TLS": "SASL_SSL", "MUTUAL": "SSL"}


def properties(folder: Path) -> dict[str, str]:
    jaas = {
        "plain": f'{LOGIN}.plain.PlainLoginModule required user_me="pa ss";',
        "scram-sha-256": f"{LOGIN}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{LOGIN}.scram.ScramLoginModule required;",
        "oauthbearer": f'{LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
    }
    out = {"sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"}
    for listener in ("plain", "tls"):
        for mechanism, config in jaas.items():
            out[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = config
    for listener in ("tls", "mutual"):
        out |= {
            f"listener.name.{listener}.ssl.keystore.type": "PEM",
            f"listener.name.{listener}.ssl.keystore.location": str(folder / "server.all.pem"),
            f"listener.name.{listener}.ssl.truststore.type": "PEM",
            f"listener.name.{listener}.ssl.truststore.location": str(folder / "ca.pem"),
        }
    return {**out, "listener.name.mutual.ssl.client.auth": "required"}


def certificates(folder: Path) -> None:
    """An authority, a certificate of the server for 127.0.0.1, one of a client; and another authority."""

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout",
            f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr")  # fmt: skip
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
    run("pkcs8", "-topk8", "-nocrypt", "-in", "server.key", "-out", "server.p8")
    (folder / "server.all.pem").write_text((folder / "server.p8").read_text() + (folder / "server.pem").read_text())


def token(seconds: float = 300) -> str:
    """A token that says who it is of, without a signature: what Kafka takes where nothing else is configured."""

    def part(what: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(what).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': 'me', 'iat': now, 'exp': now + seconds})}."


def scram_users(address: str) -> None:
    for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        command = [
            java(), "-cp", f"{kafka_jars(fetch=False)}/*", "kafka.admin.ConfigCommand", "--bootstrap-server", address,
            "--alter", "--add-config", f"{kind}=[password=pa ss]", "--entity-type", "users", "--entity-name", "me",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=60)


async def works(url: str, environment: dict[str, str] | None = None, patience: float = 10.0) -> None:
    async with KafkaBroker(parse(url, environment or {}), patience=patience) as broker:
        assert "pa%20ss" not in broker.url and "pa ss" not in broker.url and "pa+ss" not in broker.url
        await broker.ensure_log(LogSpec(partitions=1))
        (result,) = await broker.append([Item(0, "k", (Outgoing("a", b"a"),))])
        assert result == Appended((1,))
        async with broker.subscribe("g", "m") as sub:  # the connections of the thread get in, too
            assert await sub.fetch(max_wait=5)


@pytest.mark.skipif(os.environ.get("REFOLD_TESTS") != "thorough", reason="a server of its own: make test-all")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
@pytest.mark.timeout(300)
def test_every_way_in_that_kafka_demands(own_kafka, tmp_path):
    pems = tmp_path / "pems"
    pems.mkdir()
    certificates(pems)
    (pems / "token").write_text(token() + "\n")

    async def main():
        async with own_kafka(tmp_path / "kafka", listeners=LISTENERS, properties=properties(pems)) as server:
            await asyncio.to_thread(scram_users, server.addresses["client"][0])
            plain, tls, mutual = (server.addresses[name][0] for name in LISTENERS)
            ca, secret = f"ca={pems}/ca.pem", {"REFOLD_KAFKA_USERNAME": "me", "REFOLD_KAFKA_PASSWORD": "pa ss"}
            await works(f"kafka://me:pa%20ss@{plain}/{new_namespace()}")
            for mechanism in ("plain", "scram-sha-256", "scram-sha-512"):
                await works(f"kafka://{plain}/{new_namespace()}?sasl={mechanism}", secret)
                await works(f"kafka://{tls}/{new_namespace()}?sasl={mechanism}&{ca}", secret)
            await works(f"kafka://{plain}/{new_namespace()}?sasl=oauth", {"REFOLD_KAFKA_TOKEN": token()})
            await works(f"kafka://{tls}/{new_namespace()}?sasl=oauth&token_file={pems}/token&{ca}")
            mine = f"{ca}&cert={pems}/client.pem&key={pems}/client.key"
            await works(f"kafka://{mutual}/{new_namespace()}?{mine}")
            for wrong, kind, told in (
                (f"kafka://{plain}/{new_namespace()}", BrokerUnavailable, "no Kafka answers"),
                (f"kafka://me:wrong@{plain}/{new_namespace()}", ConfigError, "lets nobody in .*Authentication"),
                (f"kafka://me:wrong@{tls}/x?sasl=scram-sha-512&{ca}", ConfigError, "lets nobody in .*Authentication"),
                (f"kafka://me:pa%20ss@{tls}/x?ca={pems}/other.pem", ConfigError, "lets nobody in .*certificate"),
                (f"kafka://{mutual}/x?{ca}", BrokerUnavailable, "no Kafka answers"),
            ):
                with pytest.raises(kind, match=told) as caught:
                    await works(wrong, patience=2.0)
                assert "wrong" not in str(caught.value)
                assert "pa ss" not in str(caught.value)

    asyncio.run(main())


# ---- rights ----------------------------------------------------------------------------------------------------------
KINDS = {"topic": 2, "transactional-id": 5}
OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}


class AclAnswer(Response):
    API_KEY, API_VERSION = 30, 1
    SCHEMA = Schema(("throttle", Int32), ("results", Array(("code", Int16), ("message", String("utf-8")))))


class AclQuestion(RequestStruct):
    API_KEY, API_VERSION, RESPONSE_TYPE = 30, 1, AclAnswer
    SCHEMA = Schema(
        ("creations", Array(
            ("kind", Int8), ("name", String("utf-8")), ("pattern", Int8), ("principal", String("utf-8")),
            ("host", String("utf-8")), ("operation", Int8), ("permission", Int8))),
    )  # fmt: skip


class CreateAcls(Request[AclQuestion]):
    API_KEY = 30

    def __init__(self, creations):
        self._creations = creations

    def build(self, request_struct_class):
        return request_struct_class(self._creations)


async def administrate(address: Address, principal: str) -> None:
    """Do what the plan says, as an administrator would with Kafka's tools."""
    client = wire.Client(**address.client())
    await client.bootstrap()
    try:
        node = client.get_random_node()
        answer = await client.send(node, wire.create_request(plan.topics(address, LogSpec()), 10_000))
        assert [code for _, code, _ in answer.topic_errors] == [0] * 4
        creations = [
            (KINDS[r.kind], r.name, 4 if r.prefixed else 3, principal, "*", OPERATIONS[operation], 3)
            for r in plan.rights(address) for operation in r.operations
        ]  # fmt: skip
        answer = await client.send(node, CreateAcls(creations))
        assert {code for code, _ in answer.results} == {0}
    finally:
        await client.close()


async def run_plan(address: Address, principal: str) -> None:
    """Let Kafka's own tools do what the plan prints."""
    text = plan.text(address, principal=principal)
    done = await asyncio.to_thread(subprocess.run, ["sh", "-ec", text], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


async def lets_in(url: str) -> bool:
    async with KafkaBroker(parse(url, {})) as broker:
        health = await broker.health()
        return health.why != "the cluster cannot be asked" and len(health.checks) > 15


@pytest.mark.skipif(os.environ.get("REFOLD_TESTS") != "thorough", reason="a server of its own: make test-all")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("by", ["the protocol", "Kafka's tools"])
def test_the_rights_of_the_plan_are_enough_and_without_them_the_error_names_the_plan(own_kafka, tmp_path, until, by):
    if by == "Kafka's tools" and not (shutil.which("kafka-topics") and shutil.which("kafka-acls")):
        pytest.skip("kafka-topics and kafka-acls are not installed: the lines of the plan were not run by them")
    login = f'{LOGIN}.plain.PlainLoginModule required user_root="root" user_me="mine";'
    strict = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:root;User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.plain.plain.sasl.jaas.config": login,
    }

    async def main():
        async with own_kafka(tmp_path, listeners={"PLAIN": "SASL_PLAINTEXT"}, properties=strict) as server:
            at, settings = server.addresses["PLAIN"][0], "partitions=1&replication=1"
            with pytest.raises(ConfigError, match="refold broker plan"):
                await works(f"kafka://me:mine@{at}/secret?{settings}", patience=5.0)
            if by == "the protocol":
                await administrate(parse(f"kafka://root:root@{at}/shared?{settings}", {}), "User:me")
            else:
                await run_plan(parse(f"kafka://{server.bootstrap}/shared?{settings}", {}), "User:me")
            shared = f"kafka://me:mine@{at}/shared?{settings}"
            await until(lambda: lets_in(shared))  # the rights are known a moment later
            await works(shared)
            with pytest.raises(ConfigError, match="refold broker plan"):
                await works(f"kafka://me:mine@{at}/secret?{settings}", patience=5.0)

    asyncio.run(main())


def test_the_plan_is_commands_for_kafkas_own_tools():
    lines = plan.text(parse("kafka://one,two:9093/log?partitions=12", {}), principal="User:CN=agents").splitlines()
    assert len(lines) == 9
    assert lines[0] == (
        "kafka-topics --bootstrap-server one:9092,two:9093 --create --topic log --partitions 12 --replication-factor 3 "
        "--config cleanup.policy=delete --config retention.bytes=-1 --config retention.ms=-1 --config "
        "min.insync.replicas=2 --config unclean.leader.election.enable=false --config "
        "message.timestamp.type=LogAppendTime --config max.message.bytes=1152000"
    )
    assert lines[-1] == (
        "kafka-acls --bootstrap-server one:9092,two:9093 --add --allow-principal User:CN=agents --operation Write "
        "--operation Describe --transactional-id log. --resource-pattern-type prefixed"
    )
    assert "Create" not in " ".join(lines).replace("--create", "")
