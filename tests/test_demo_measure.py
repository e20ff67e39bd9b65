"""The review team counts each module twice, by two means that share no code: they must agree."""

from __future__ import annotations

import ast
import asyncio
import email
import json
import os
import warnings
from pathlib import Path

import pytest

import refold.demo
from refold.demo.measure import measure
from refold.demo.messages import MAX_BYTES, Assemble, CheckReport, Finding, Function, Survey
from refold.demo.recount import recount
from refold.demo.report import write_report
from refold.demo.survey import look, modules_of, survey
from refold.demo.validate import check_report

FOLDERS = [Path(package.__file__ or "").parent for package in (json, asyncio, email, refold.demo)]

TRICKY = '''\
from os import *; from sys import \\
    *
import pickle, subprocess
text = f"{1 if text else 2} and {[x for x in text if x == None]} {eval('1')}"
nested = f"{f'{a or b}' if a else 'or'}" "and"
either = a and b and (c or d) or (lambda x, shell=True, y=[]: x if y else None)(1, shell=True)
subprocess.run("ls", shell=(True)); subprocess.run(shell=True if a else b)
assert a == None != (None), a == None.real
pickle.loads(b""), x.pickle.loads(b""), pickle . load(f), pickle.loads
def eval(x): "one line"; return x if x else -x
class exec(dict, shell=True): x = 1 if a else 2; y = eval(x)
@decorate(1 if a else 2, [n for n in a if n if not n])
async def plain(a, b=[], *, c: dict = {}, d=([x for x in ()]), e=[][0], f=({},), g=lambda h=[]: h, shell=True, i={} | {}) -> [1][0]:
    ("documented"
     "in two")
    async for x in a:
        async with b: pass
    def inner(a=b if c else d):
        match = case = 1
        case: int = 3
        match a:
            case 1 if a and b: pass
            case [1, *_] | {"x": 1}:
                match(case)
            case _:
                return match[case:case]
    def _private(): pass
class Outer:
    r"""Raw."""
    def method(self):
        b"bytes are no docstring"
    class Inner:
        f"{1} neither"
        def deep(self): ...
        def _hidden(self): ...
        @property
        def shown(self): u"yes"; return 1
    if a:
        def conditional(self): "a" % b
    class _Hidden:
        def method(self): pass
try: pass
except: pass
try:
    pass
except (Exception): pass;
except Exception.x: pass
except Exception as error:
    # a comment
    pass

except (BaseException, OSError):
    pass; pass
except* None if a else b:
    ...
else:
    while not a: a = not b
'''  # noqa: E501


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_both_ways_of_counting_agree_on_every_module(folder: Path) -> None:
    warnings.simplefilter("ignore")
    seen = 0
    for path in modules_of(folder):
        source = Path(folder, path).read_bytes()
        assert measure(path, source) == recount(path, source), path
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_both_ways_of_counting_agree_on_what_is_hard_to_count(end: str) -> None:
    source = TRICKY.replace("except* None", "except None").replace("\n", end).encode()
    ast.parse(source)
    assert measure("pkg/tricky.py", source) == recount("pkg/tricky.py", source)


def test_the_hard_module_is_counted_as_by_hand() -> None:
    source = b"""\
import os
def f(a, b=[]):
    if a and b or a:
        return [x for x in a if x] if b else None
    def g():
        try:
            return eval(a)
        except Exception:
            pass
class A:
    'Doc.'
    def m(self): return self == None
"""
    for count in (measure, recount):
        n = count("m.py", source)
        assert (n.lines, n.functions, n.classes, n.decisions, n.worst) == (12, 3, 1, 7, 7), count
        assert n.top == [Function(2, "f", 7)]
        assert n.findings == [
            Finding(7, "eval-exec", "eval"),
            Finding(2, "mutable-default", "f"),
            Finding(12, "none-comparison", "None"),
            Finding(8, "swallowed-error", "pass"),
            Finding(8, "broad-except", "Exception"),
            Finding(1, "no-docstring", "module"),
            Finding(2, "no-docstring", "f"),
            Finding(12, "no-docstring", "A.m"),
        ]
        assert n.rules["no-docstring"] == 3


@pytest.mark.parametrize("source", [b"\n", b"# only a comment", b"\xef\xbb\xbfx = 1", b"x = 1\\\n\n", b"'''doc'''"])
@pytest.mark.parametrize("path", ["m.py", "_m.py", "__init__.py", "a/__main__.py"])
def test_both_ways_of_counting_agree_on_small_modules(path: str, source: bytes) -> None:
    assert measure(path, source) == recount(path, source)


def test_a_wrong_count_is_seen() -> None:
    a, b = (measure("m.py", source) for source in (b"x = 1 if y else 2", b"x = (y) and 2 or 3"))
    assert a != b
    assert a.decisions == 1 and b.decisions == 2


def test_the_survey_takes_modules_only_once_and_follows_no_links(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a.py", ".hidden/x.py", "build/x.py", "node_modules/x.py", "refold-demo/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "large.py").write_text("#" * (MAX_BYTES + 1))
    (tmp_path / "wrong.py").write_text("x = 1\ndef (:\n")
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink("b.py", tmp_path / "link.py")
    assert modules_of(tmp_path) == ["a.py", "a/z.py", "b.py", "large.py", "wrong.py"]
    first = survey(Survey(str(tmp_path), limit=3))
    rest = survey(Survey(str(tmp_path), after=first.modules[-1].path, limit=3))
    assert [m.path for m in first.modules + rest.modules] == modules_of(tmp_path)
    assert first.more and not rest.more
    assert [m.error for m in first.modules] == ["", "", ""]
    assert rest.modules[0].error.startswith(f"{MAX_BYTES + 1} bytes are too many")
    assert rest.modules[1].error.startswith("line 2: ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x = 1\ndef (:\n", "line 2: "),
        (b"# caf\xe9\nx = 1\n", "invalid or missing encoding declaration"),
        (b"# coding: nonsense\n", "unknown encoding: nonsense"),
        (b"# coding: rot13\n", "'rot13' is not a text encoding"),
        (b"x = 1\0\n", "source code string cannot contain null bytes"),
        (b"x = " + b"-" * 50_000 + b"1\n", "nested too deeply"),
        (b"# coding: latin-1\n# caf\xe9\n", ""),
    ],
)
def test_what_is_no_python_is_reported_with_a_reason_and_the_validator_agrees(
    tmp_path: Path, source: bytes, said: str
) -> None:
    (tmp_path / "m.py").write_bytes(source)
    module = look(str(tmp_path), "m.py")
    assert module.error.startswith(said) and bool(module.error) == bool(said)
    if said:
        write_report(Assemble(str(tmp_path), "it", [], [module]))
        wanted = CheckReport(str(tmp_path), str(tmp_path), "report.md", [], [module])
        assert check_report(wanted).objections == []
        (tmp_path / "m.py").write_bytes(b"x = 1\n")
        assert [o.counted for o in check_report(wanted).objections] == ["it can be compiled"]


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    assert look(str(tmp_path), "gone.py").error == "cannot be read: No such file or directory"
