"""kafka:// URLs: what they say, what the environment adds, and that no secret is ever shown."""

from __future__ import annotations

import pytest

from refold.brokers import open_broker
from refold.brokers.kafka.address import parse
from refold.bus.errors import ConfigError


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_a_codec_whose_package_is_missing_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(f"refold.brokers.kafka.wire.codec.has_{name}", lambda: False)
    with pytest.raises(ConfigError, match=rf"pip install 'aiokafka\[{name}\]'"):
        open_broker(f"kafka://localhost/x?compression={name}")


def test_hosts_a_namespace_and_settings():
    address = parse("kafka://one:9092,two,[::1]:9094/my.log?partitions=12&replication=3", {})
    assert address.servers == ("one:9092", "two:9092", "[::1]:9094")
    assert (address.namespace, address.number("partitions"), address.number("replication")) == ("my.log", 12, 3)
    assert address.url == "kafka://one:9092,two:9092,[::1]:9094/my.log?partitions=12&replication=3"
    assert parse(address.url, {}) == address
    assert address.client()["security_protocol"] == "PLAINTEXT"
    assert parse("kafka://one", {}).namespace == "refold"


def test_secrets_are_taken_from_the_url_or_the_environment_and_never_shown():
    for url, environment in (
        ("kafka://me:s%40cret@one/log?sasl=scram-sha-512&tls=true", {}),
        ("kafka://one/log?sasl=scram-sha-512", {
            "REFOLD_KAFKA_USERNAME": "me", "REFOLD_KAFKA_PASSWORD": "s@cret", "REFOLD_KAFKA_TLS": "true"}),
        ("kafka://one/log?sasl=scram-sha-512&tls=true&username=me&password=s%40cret", {}),
    ):  # fmt: skip
        address = parse(url, environment)
        assert address.url == "kafka://one:9092/log?sasl=scram-sha-512&tls=true"
        found = address.client()
        assert (found["sasl_plain_username"], found["sasl_plain_password"]) == ("me", "s@cret")
        assert (found["security_protocol"], found["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")


def test_a_user_without_a_mechanism_is_plain():
    found = parse("kafka://me:secret@one/log", {}).client()
    assert (found["security_protocol"], found["sasl_mechanism"]) == ("SASL_PLAINTEXT", "PLAIN")


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("kafka:///log", "name at least one host"),
        ("kafka://:9092/log", "no host:port"),
        ("kafka://one:99999/log", "no host:port"),
        ("kafka://one/a/b", "'a/b' is no name of a topic"),
        ("kafka://one/log?partitions=0&replication=x", "partitions is '0'.*replication is 'x'"),
        ("kafka://one/log?acks=1", "there is no setting acks"),
        ("kafka://one/log?sasl=kerberos", "sasl is 'kerberos': one of plain"),
        ("kafka://me:secret@one/log?sasl=oauth", "needs token_file"),
        ("kafka://one/log?sasl=plain", "needs username.*needs password"),
        ("kafka://me:secret@one/log?ca=x&tls=false", "a certificate without tls=true"),
    ],
)
def test_all_that_is_wrong_is_named_and_no_secret(url, wrong):
    with pytest.raises(ConfigError, match=wrong) as caught:
        parse(url, {})
    assert "secret" not in str(caught.value)


def test_certificates_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match="certificates of the Kafka connection cannot be used"):
        parse("kafka://one/log?ca=/nowhere/ca.pem", {}).client()
