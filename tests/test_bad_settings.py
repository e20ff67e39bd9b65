"""Bad settings and command lines: a typed error with an exit code each, never an unexpected one."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from garbage import Garbage
from random_log import RandomLog

from refold import cli
from refold.brokers import open_broker
from refold.bus.broker import LogSpec
from refold.bus.errors import ConfigError, InvalidMessage
from refold.cli import exits, settings
from refold.cli.payload import read_payload

MANY = 8 if os.environ.get("REFOLD_TESTS") == "thorough" else 1
TOML = (
    "[tool.refold]", "[tool]", "tool = 5", "tool.refold = 3", "broker = ", "broker=", "'sqlite:///x.db'", "'memory://'",
    "\n", "[[tool.refold]]", "5", "[", "]", "{", "}", "=", '"', "'''", "x = 2021-02-30", "y = " + "9" * 5000,
    "a = " + "[" * 1500, "nan", "true", "\x00", "é", "\ud83d", "#", "[tool.refold.deep]", "a.b.c = 1", "\\u", "1e400",
)  # fmt: skip
URL = (
    "sqlite:///", "sqlite://", "sqlite://[x", "memory://", "kafka://", "nats:", "/", "..", "x", "[", "]", "::1", "%00",
    "%zz", "%ff", "?", "&", "=", "synchronous=", "full", "#", "@", ":", "99999999", "é", "\x00", " ", "\n", "~", "*",
    "http://", "SQLITE:///", "file:", "\udcff",
)  # fmt: skip
JSON = (
    "{", "}", "[", "]", '"a"', ":", ",", "1", "NaN", "1e400", "-", '"', "\\", "\\ud800", "null", "tru", "\x00", "é",
    "\udcff", '{"a":1,"a":2}', "[" * 1500, "9" * 5000, "@", "@x", "@\x00", "@.", "@" + "x" * 5000,
    "18446744073709551616",
)  # fmt: skip


def some(chance, words, most):
    return "".join(chance.choice(words) + chance.choice(["", "", "\n"]) for _ in range(chance.randrange(most)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    return tmp_path


def test_a_bad_pyproject_is_a_config_error_or_says_what_it_says(here):
    chance, refused, accepted = random.Random(1), 0, 0
    for n in range(4000 * MANY):
        text = some(chance, TOML, 8).encode(errors="surrogatepass") if n % 10 else chance.randbytes(50)
        (here / "pyproject.toml").write_bytes(text)
        try:
            assert "://" in settings.broker_url(None, here)
        except ConfigError as error:
            refused += "pyproject.toml" in str(error)
        else:
            accepted += 1
    assert accepted + refused == 4000 * MANY
    assert 1000 * MANY < refused < 4000 * MANY


def test_a_bad_url_is_a_config_error_that_says_where_it_is_written(here, monkeypatch):
    chance, refused, accepted = random.Random(2), 0, 0
    for n in range(3000 * MANY):
        url = some(chance, URL, 5).replace("\x00", "\x00" if n % 2 else "")
        try:
            assert settings.broker_url(url) == url
        except ConfigError as error:
            refused += "--broker" in str(error)
        else:
            accepted += 1
    assert accepted + refused == 3000 * MANY
    assert 1000 * MANY < refused < 3000 * MANY


def test_a_bad_payload_is_refused_with_its_place(here, monkeypatch):
    chance, refused = random.Random(3), 0
    for _ in range(3000 * MANY):
        text = some(chance, JSON, 6)
        if text == "-":
            continue
        try:
            read_payload(text)
        except InvalidMessage as error:
            refused += 1
            str(error).encode()
    assert 1000 * MANY < refused < 3000 * MANY


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a":1,"a":2}', r"\$\.payload\.a: the key 'a' comes twice"),
        ("[NaN]", r"\$\.payload: not JSON: NaN is not a JSON number"),
        ("[" * 1500, "nested more than 64 deep"),
        ("18446744073709551616", "64 bits"),
        ('"\\ud800"', "surrogate"),
        ('"\udcff"', "not UTF-8"),
        ("@a\x00b", "null byte"),
    ],
)  # fmt: skip
def test_a_payload_on_the_command_line_obeys_the_rules_of_raw_json(here, text, says):
    with pytest.raises(InvalidMessage, match=says):
        read_payload(text)


# ---- whole command lines on a log that is half garbage ---------------------------------------------------------------
async def garbage_log(seed):
    """Write refold.db here: sensible records and garbage, one of them with power over terminals."""
    async with open_broker(settings.DEFAULT_BROKER) as broker:
        await broker.ensure_log(LogSpec(partitions=2))
        log = RandomLog(seed, workflows=4)
        garbage, chance = Garbage(seed, log.names), random.Random(seed)
        records = [(s.key, s.value) for s in log.grow(40)]
        for _, raw in records:
            garbage.sample(raw)
        for _ in range(150):
            key, raw = garbage.record(log.folds.get)
            garbage.sample(raw)
            records.insert(chance.randrange(10, len(records) + 1), (key, raw))
        name = log.names[0]
        evil = (
            '{"id":"ev\\u001b[2Jil","sender_id":"\\u001b[31mred","receiver_id":"[bold]x[/]","asked":true,'
            f'"message_type":"task_request","correlation_id":"{name}","timestamp":1e11}}'
        )
        await broker.append_raw(0, [(name, evil.encode()), *records])
        return log.names


def command(chance, names):
    """A command line that no person would write."""
    ids = [*names, "nope", "", "\x00", "é", " ", "x" * 200, "\udcff", "[red]", "--", "-1"]
    id, other, payload = chance.choice(ids), chance.choice(ids), some(chance, JSON, 3)
    at = chance.choice(["0", "5", "999", "-1", "g0:3", "g9:9", "g", "nan", "2026-01-01", "9" * 5000, "²", "\x00"])
    timeout = chance.choice(["0.01", "nan", "-1", "x", "0"])
    return chance.choice([
        ["ps"], ["show", id], ["state", id], ["state", id, "--at", at], ["tail", "--no-follow"], ["tail", "-n", "500"],
        ["dlq", "ls"], ["dlq", "show", id], ["doctor"], ["cancel", id], ["retry", id], ["retry", id, "--fresh"],
        ["dlq", "redrive", id, "a", other], ["dlq", "discard", id, "b", other], ["send", id, payload],
        ["request", id, payload, "--timeout", timeout],
        ["send", "a", "1", "--kind", chance.choice(["owner", "", "é"])],
        ["send", "a", "1", "--id", id], ["rebuild", id], ["run", id], ["version"],
        ["ps", "--broker", some(chance, URL, 4)],
    ]) + chance.choice([[], ["--json"]])  # fmt: skip


@pytest.mark.parametrize("seed", range(MANY))
def test_no_command_line_on_any_log_ends_unexpectedly(here, seed, capfdbinary, monkeypatch):
    names, chance = asyncio.run(garbage_log(seed)), random.Random(seed)
    met = set()
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115 - for as long as the test
    for _ in range(120):
        arguments = command(chance, names)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capfdbinary.readouterr()
        assert ended.value.code in exits.MEANING and ended.value.code != exits.INTERNAL, (arguments, out, err)
        assert b"\x1b[2J" not in out + err, arguments
        assert b"Traceback" not in out + err, arguments
        met.add(ended.value.code)
    assert {exits.OK, exits.NOT_FOUND, exits.REFUSED, exits.CONFIG} <= met
