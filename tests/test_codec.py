"""What may enter the log, and what comes out of it: one set of rules for Python messages and for foreign bytes."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import os
import subprocess
import sys
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from refold import AgentMessage
from refold.bus import codec, facts, kinds, rules
from refold.bus.broker import LogMeta
from refold.bus.errors import InvalidMessage, SchemaError, TooLarge, UndecodableRecord
from refold.bus.facts import FACTS
from refold.bus.message import Envelope, Expected, Origin, Work
from refold.bus.values import MAX_DEPTH, MAX_INT, MIN_INT

# ---- what is valid ---------------------------------------------------------------------------------------------------
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.floats(min_value=-1e11, max_value=1e11)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(MIN_INT, MAX_INT) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
COUNTS = st.integers(-(2**63), 2**63 - 1)
STEPS = st.lists(st.integers(1, 999), max_size=4).map(lambda ns: ".".join(map(str, ns)))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


WORKS = st.builds(
    Work, message=IDS, step=STEPS, round=COUNTS, attempt=COUNTS, writer=TEXTS.map(lambda t: t[:20]), done=st.booleans()
)
ORIGINS = st.builds(Origin, workflow=IDS, id=IDS, step=STEPS, generation=COUNTS)
EXPECTED = st.builds(Expected, version=maybe(COUNTS), generation=maybe(COUNTS), inputs=maybe(COUNTS))
USER_KINDS = IDS.filter(lambda k: k not in kinds.ENGINE) | st.sampled_from(sorted(kinds.MESSAGES))
ENVELOPE: dict[str, st.SearchStrategy[Any]] = {
    "id": IDS, "sender_id": IDS, "receiver_id": IDS, "correlation_id": IDS, "timestamp": TIMES,
    "priority": st.integers(0, 9), "ttl": maybe(st.floats(0, 1e9)), "causation_id": maybe(IDS),
    "generation": maybe(COUNTS), "in_reply_to": maybe(IDS), "asked": st.booleans(), "answers": maybe(IDS),
    "deadline": maybe(TIMES), "to": maybe(IDS), "origin": maybe(ORIGINS), "expected": maybe(EXPECTED),
    "work": maybe(WORKS), "payload": VALUES, "schema": maybe(TEXTS),
    "headers": st.dictionaries(TEXTS, TEXTS, max_size=3),
}  # fmt: skip


def fact_of(kind: str) -> st.SearchStrategy[Any]:
    fits: dict[Any, st.SearchStrategy[Any]] = {
        facts.Count: COUNTS, facts.Time | None: maybe(TIMES), tuple[facts.StepPath, ...]: st.tuples(STEPS),
        dict[str, facts.Amount]: st.dictionaries(TEXTS, st.floats(-1e9, 1e9), max_size=2), str: TEXTS,
        tuple[str, ...]: st.tuples(TEXTS), bool: st.booleans(), dict[str, tuple[str, ...]]: st.just({"a": ("k",)}),
        tuple[msgspec.Raw, ...]: st.just((msgspec.Raw(b'{"id":"x"}'),)),
    }  # fmt: skip
    kind_of_fact = FACTS.get(kind, facts.Call)
    hints = {f.name: f.type for f in msgspec.structs.fields(kind_of_fact)}
    return st.builds(kind_of_fact, **{name: fits[hint] for name, hint in hints.items()})


PLAIN = st.builds(AgentMessage, message_type=USER_KINDS, **ENVELOPE)
WITH_FACT = st.sampled_from([*sorted(FACTS), "task_request", "own"]).flatmap(
    lambda kind: st.builds(AgentMessage, message_type=st.just(kind), fact=fact_of(kind), **ENVELOPE)
)
MESSAGES = PLAIN | WITH_FACT


@given(MESSAGES)
def test_a_valid_message_comes_back_from_its_bytes_as_it_was(message):
    raw = rules.check(message)
    back = codec.decode(raw)
    assert back == message
    assert codec.encode(back) == raw
    assert codec.payload(raw) == message.payload


@given(MESSAGES)
def test_the_envelope_is_the_message_without_payload_schema_and_headers(message):
    raw = rules.check(message)
    r, whole = codec.envelope(raw), codec.decode(raw)
    assert all(getattr(r, name) == getattr(whole, name) for name in Envelope.__struct_fields__)
    bare = codec.bare(raw)
    assert (bare.payload, bare.schema, bare.headers) == (None, None, {})
    assert bare.id == message.id


def wire(message: AgentMessage, **more: Any) -> dict[str, Any]:
    return {**json.loads(rules.check(message)), **more}


@given(MESSAGES, st.dictionaries(TEXTS.map(lambda t: f"x-{t}"), VALUES, max_size=3), st.sampled_from([None, 1, 4]))
def test_foreign_bytes_that_are_accepted_survive_byte_for_byte_with_fields_and_headers_nobody_knows(
    message, unknown, indent
):
    tree = wire(message, **unknown)
    tree["headers"] = {**tree.get("headers", {}), "x-trace": "ö"}
    raw = json.dumps(tree, indent=indent, ensure_ascii=bool(indent), sort_keys=bool(indent)).encode()
    accepted = rules.check_bytes(raw)
    assert codec.encode(accepted) == raw
    assert rules.check(accepted) == raw
    changed = codec.decode(rules.check(codec.with_changes(accepted, priority=0)))
    assert changed.priority == 0
    again = json.loads(codec.encode(codec.with_changes(changed, priority=accepted.priority)))
    assert {k: again[k] for k in unknown} == unknown
    assert again["headers"]["x-trace"] == "ö"
    codec.envelope(raw)


# ---- what is not -----------------------------------------------------------------------------------------------------
def nested(n: int) -> Any:
    value: Any = []
    for _ in range(n - 1):
        value = [value]
    return value


class Hue(enum.Enum):
    RED = "red"


ODD_VALUES = st.one_of(
    VALUES, st.just(math.nan), st.just(-math.inf), st.just(2**64), st.just(-(2**63) - 1), st.just("\ud800"),
    st.just({"\udfff": 1}), st.just({1: 2}), st.just({(1, 2): 3}), st.just(object()), st.just(len), st.just({1, 2}),
    st.just(b"\xff"), st.just(decimal.Decimal("NaN")), st.just(datetime.date(2026, 1, 1)), st.just(Hue.RED),
    st.just(uuid.UUID(int=7)), st.just(msgspec.Raw(b"{")), st.just(msgspec.UNSET), st.just(1 + 2j),
    st.integers(MAX_DEPTH - 2, MAX_DEPTH + 2).map(nested), st.just(range(3)),
)  # fmt: skip
ODD_FIELDS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=200), st.just(b"x"),
    st.just("\ud800"), st.just({}), st.just([1]), st.just({1: "a"}), st.just({"a": 1}), st.just({"a": "\ud800"}),
    st.just(object()), WORKS, ORIGINS, EXPECTED, st.just(Work(message="a b")), st.just(Work(message="m", round=2**63)),
    st.just(Origin(workflow="", id="x")), st.just(Expected(version=2**80)), st.just(facts.TimerSet(due=math.nan)),
    st.just(facts.RolledBack(to_version=1, op_id="o", with_inputs=(msgspec.Raw(b'{"a":1,"a":2}'),))),
    st.just({"due": "soon"}), st.sampled_from(sorted(kinds.ENGINE)),
)  # fmt: skip


def odd(message: AgentMessage, name: str, value: Any) -> AgentMessage:
    return msgspec.structs.replace(message, **{name: value})


MESSY = st.one_of(
    st.builds(odd, MESSAGES, st.just("payload"), ODD_VALUES),
    st.builds(odd, MESSAGES, st.sampled_from(sorted({*AgentMessage.__struct_fields__} - {"payload"})), ODD_FIELDS),
)


def check_refusal(error: InvalidMessage) -> None:
    """It says what, where and what to do, and can be printed."""
    assert error.problem
    assert error.path.startswith("$")
    assert error.remedy
    str(error).encode()


@given(MESSY)
def test_what_is_refused_from_python_is_a_typed_error_and_what_is_accepted_is_accepted_as_bytes_too(message):
    try:
        raw = rules.check(message)
    except InvalidMessage as error:
        check_refusal(error)
        return
    accepted = rules.check_bytes(raw)
    assert codec.encode(accepted) == raw
    codec.envelope(raw)


def mangled(raw: bytes, at: int, cut: int, paste: bytes) -> bytes:
    at %= len(raw) + 1
    return raw[:at] + paste + raw[at + cut :]


PASTES = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([
        b"1e400", b"-0", b"1E5", b"18446744073709551616", b"9" * 5000, b"NaN", b"-Infinity", b"[" * 2000, b'{"a":' * 70,
        b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", rb"\ud800", rb"\udc00\ud800", rb"\u0000", rb"\q", b"\x00", b"\n",
        b'"payload":', b'"id":"x",', b'"work":{"message":"m"},', b'"fact":{"to_version":1},', b"null", b"{}", b"[]",
        b'"headers":{"a":"b","a":"c"},', b'"ttl":-1,', b'"priority":10,', b'"timestamp":1e999,', b",", b"}", b'"',
    ]),
)  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=60),
    st.builds(mangled, MESSAGES.map(rules.check), st.integers(0, 2000), st.integers(0, 12), PASTES),
    st.builds(lambda m, name, v: json.dumps(wire(m, **{name: v})).encode(), MESSAGES,
              st.sampled_from(AgentMessage.__struct_fields__), VALUES),
)  # fmt: skip


@given(BYTES)
@example(b"")
@example(b"null")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
def test_foreign_bytes_are_accepted_as_they_are_or_refused_with_a_typed_error(raw):
    try:
        accepted = rules.check_bytes(raw)
    except InvalidMessage as error:
        check_refusal(error)
        only_typed_errors(raw)
        return
    assert codec.encode(accepted) == raw
    assert rules.check(accepted) == raw
    assert codec.envelope(raw).id == accepted.id


def only_typed_errors(raw: bytes) -> None:
    """What a log holds may be read by everybody who meets it."""
    try:
        codec.envelope(raw)
    except UndecodableRecord:
        with pytest.raises(UndecodableRecord):
            codec.decode(raw)
        return
    codec.bare(raw)
    for read in (codec.decode, codec.payload, lambda r: codec.payload_as(r, dict[str, int])):
        try:
            read(raw)
        except (UndecodableRecord, SchemaError):
            pass
    codec.canonical(codec.shown(raw))


GOOD = AgentMessage(sender_id="me", receiver_id="you", message_type="note", correlation_id="w", id="i", timestamp=1.0)


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"id": ""}, "$.id", "no id"),
        ({"sender_id": "a b"}, "$.sender_id", "no id"),
        ({"receiver_id": "é"}, "$.receiver_id", "no id"),
        ({"correlation_id": "x" * 129}, "$.correlation_id", "no id"),
        ({"message_type": "a\n"}, "$.message_type", "no id"),
        ({"to": "\ud800"}, "$.to", "surrogate"),
        ({"work": Work(message="a b")}, "$.work.message", "no id"),
        ({"origin": Origin(workflow="w", id="")}, "$.origin.id", "no id"),
        ({"priority": 10}, "$.priority", "0..9"),
        ({"priority": True}, "$.priority", "bool"),
        ({"ttl": -1.0}, "$.ttl", "negative"),
        ({"ttl": math.nan}, "$.ttl", "finite"),
        ({"timestamp": math.inf}, "$.timestamp", "finite"),
        ({"timestamp": 1.7e12}, "$.timestamp", "253402300799"),
        ({"deadline": -math.inf}, "$.deadline", "finite"),
        ({"generation": 2**63}, "$.generation", "9223372036854775807"),
        ({"headers": {"a": 1}}, "$.headers.a", "int"),
        ({"headers": {"a": "\ud800"}}, "$.headers.a", "surrogate"),
        ({"headers": None}, "$.headers", "dict"),
        ({"schema": 5}, "$.schema", "int"),
        ({"payload": {"a": [1, math.nan]}}, "$.payload.a[1]", "not a JSON number"),
        ({"payload": {"a": {"b": 2**64}}}, "$.payload.a.b", "64 bits"),
        ({"payload": ["x", "\udc00"]}, "$.payload[1]", "surrogate"),
        ({"payload": [object()]}, "$.payload[0]", "cannot carry 'object'"),
        ({"payload": nested(65)}, "$.payload" + "[0]" * 64, "64 deep"),
        ({"message_type": "rolled_back"}, "$", "without its fact"),
    ],
)
def test_a_refusal_says_what_where_and_what_to_do(changes, path, says):
    with pytest.raises(InvalidMessage) as caught:
        rules.check(msgspec.structs.replace(GOOD, **changes))
    assert (caught.value.path, says in caught.value.problem) == (path, True), caught.value
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ('{"id":"i","id":"j"}', "$.id", "comes twice"),
        ('{"a":{"b":[{"c":1,"c":1}]}}', "$.a.b[0].c", "comes twice"),
        ('{"headers":{"a":"1","a":"2"}}', "$.headers.a", "comes twice"),
        ('{"payload":NaN}', "$", "NaN is not a JSON number"),
        ('{"payload":[-Infinity]}', "$", "-Infinity is not a JSON number"),
        ('{"payload":1e400}', "$.payload", "inf is not a JSON number"),
        ('{"payload":18446744073709551616}', "$.payload", "64 bits"),
        ('{"payload":"\\ud800"}', "$.payload", "surrogate"),
        ('{"\\ud800":1}', "$", "surrogate"),
        ('{"payload":' + "[" * 65 + "]" * 65 + "}", "$.payload" + "[0]" * 64, "64 deep"),
        ("[" * 100_000, "$", "64 deep"),
        ("\ufeff{}", "$", "not JSON"),
        ("[]", "$", "expected an object"),
        ("{}", "$", "missing required field `id`"),
        ("", "$", "not JSON"),
    ],
)
def test_a_refusal_of_foreign_bytes_says_what_and_where(text, path, says):
    with pytest.raises(InvalidMessage) as caught:
        rules.check_bytes(text.encode())
    assert (caught.value.path, says in caught.value.problem) == (path, True), caught.value
    assert caught.value.remedy


def test_bytes_that_are_not_utf8_are_refused_with_the_place():
    with pytest.raises(InvalidMessage, match="byte 12 is not UTF-8"):
        rules.check_bytes(b'{"payload":"\xff"}')


def test_the_spelling_of_foreign_numbers_is_kept():
    raw = codec.encode(GOOD)[:-1] + b', "payload" : [-0, 1E5, 1.0, 18446744073709551615, 1e-400]}'
    assert codec.encode(rules.check_bytes(raw)) == raw
    assert codec.payload(raw) == [0, 1e5, 1.0, 18446744073709551615, 0.0]


def test_a_record_over_the_logs_limit_is_refused_on_both_ways_in():
    meta = LogMeta(log_id="x", partitions=1, max_record=200)
    big = msgspec.structs.replace(GOOD, payload="x" * 200)
    with pytest.raises(TooLarge):
        rules.check(big, meta)
    with pytest.raises(TooLarge):
        rules.check_bytes(codec.encode(big), meta)


@pytest.mark.parametrize("frames", [0, 300])
def test_how_deep_a_record_may_nest_does_not_depend_on_who_reads_it(frames):
    def deep(n: int, raw: bytes) -> Any:
        return deep(n - 1, raw) if n else codec.envelope(raw)

    head = codec.encode(GOOD)[:-1]
    assert deep(frames, head + b',"payload":' + b"[" * 499 + b"]" * 499 + b"}").id == "i"
    for depth in (500, 700, 5000):
        with pytest.raises(UndecodableRecord, match="500 deep"):
            deep(frames, head + b',"payload":' + b"[" * depth + b"]" * depth + b"}")
    text = json.dumps({"a": '[[{"' * 1000}).encode()
    assert deep(frames, head + b',"payload":' + text + b"}").id == "i"


def test_a_message_from_outside_may_not_say_what_only_refold_says():
    for changes in ({"generation": 0}, {"work": Work(message="m")}, {"fact": facts.Call()}, {"message_type": "owner"},
                    {"origin": Origin(workflow="w", id="i")}):  # fmt: skip
        with pytest.raises(InvalidMessage):
            rules.check_outside(msgspec.structs.replace(GOOD, **changes))


SETS = """
import dataclasses, json
import msgspec, pydantic
from refold.agents.calls import digest_of
from refold.bus.values import to_json

class Tagged(msgspec.Struct, tag=True, rename="camel", omit_defaults=True):
    first_name: str = "x"
    tag_set: set[str] = msgspec.field(default_factory=set)

class Row(msgspec.Struct, array_like=True):
    n: int
    tags: frozenset[str]

@dataclasses.dataclass
class Data:
    tags: set[str]

class Model(pydantic.BaseModel):
    tags: set[str]

words = {"delta", "alpha", "echo", "bravo"}
values = [words, {"z": frozenset(words), "a": 1}, Tagged(tag_set=words), Row(1, frozenset(words)), Data(words),
          Model(tags=words), {frozenset("uv"), frozenset("wqr")}, {1: 2, 3: words}]
print(json.dumps(to_json(values)), digest_of(values, words), digest_of({1, "b", len}))
"""


def test_a_set_is_spelt_alike_in_every_process():
    """Else a rerun in another process would ask for something else than was recorded."""
    found = set()
    for seed in ("1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SETS], env=env, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    (spelt,) = found
    words = ["alpha", "bravo", "delta", "echo"]
    values, _ = json.JSONDecoder().raw_decode(spelt)
    assert values == [
        words, {"z": words, "a": 1}, {"type": "Tagged", "tagSet": words}, [1, words], {"tags": words}, {"tags": words},
        [["q", "r", "w"], ["u", "v"]], {"1": 2, "3": words},
    ]  # fmt: skip
    assert list(values[1]) == ["z", "a"]


def test_keys_that_become_the_same_text_are_refused_not_lost():
    with pytest.raises(InvalidMessage, match=r"\$\.payload\.a\[0\]: two keys become the same text"):
        rules.check(msgspec.structs.replace(GOOD, payload={"a": [{1: 2, "1": 3}]}))
