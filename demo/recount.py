"""The validator's own count: the same numbers from the tokens of the source, without a syntax tree.

It shares no code with `measure`: where both agree, neither has made a mistake of its own.
"""

from __future__ import annotations

import io
import token
import tokenize
import unicodedata
from pathlib import PurePosixPath
from typing import NamedTuple

from .messages import COMPLEX, MAX_LISTED, MAX_TOP, RULES, Finding, Function, Numbers

DECISIONS = frozenset({"if", "elif", "for", "while", "except", "and", "or"})
OPEN, CLOSE = frozenset("([{"), frozenset(")]}")
IGNORED = frozenset({token.COMMENT, token.NL, token.ENCODING})
F_START = frozenset(getattr(token, n) for n in ("FSTRING_START", "TSTRING_START") if hasattr(token, n))
F_END = frozenset(getattr(token, n) for n in ("FSTRING_END", "TSTRING_END") if hasattr(token, n))
PLAIN_PREFIXES = frozenset({"", "r", "u"})


class Word(NamedTuple):
    """A token that matters: its kind (of `token`), its text, its line."""

    kind: int
    text: str
    line: int


def words_of(source: bytes) -> list[Word]:
    """Return the tokens that matter; an f-string is one STRING, whatever this Python makes of it."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    words, formatted = [], 0
    for found in tokenize.generate_tokens(io.StringIO(text, newline="\n").readline):
        if found.type in F_START:
            formatted += 1
            if formatted == 1:
                words.append(Word(token.STRING, 'f""', found.start[0]))
        elif found.type in F_END:
            formatted -= 1
        elif not formatted and found.type not in IGNORED:
            words.append(Word(found.type, found.string, found.start[0]))
    words.append(Word(token.ENDMARKER, "", 0))
    return words


class Scope:
    """A class or a def that the reader is in. `function` owns the decisions (None: the module)."""

    def __init__(self, name: str, function: list[int] | None, public: bool, is_def: bool) -> None:
        self.name = name
        self.function = function
        self.public = public
        self.is_def = is_def


class Reader:
    """Reads the words from left to right and keeps book of blocks, brackets and scopes."""

    def __init__(self, path: str, words: list[Word]) -> None:
        self.words = words
        self.findings: list[Finding] = []
        self.functions: list[tuple[int, str, list[int]]] = []
        self.classes = self.decisions = 0
        stem = PurePosixPath(path).stem
        self.scopes = [Scope("", None, stem == "__init__" or not stem.startswith("_"), False)]
        self._blocks: list[tuple[bool, bool]] = []
        self._parameters = self._lambda_parameters()
        self._coming: Scope | None = None
        self._first = ""
        if self.scopes[0].public and words[0].kind != token.ENDMARKER and not self._documented(0):
            self._find(1, "no-docstring", "module")
        self._read()

    def _find(self, line: int, rule: str, name: str) -> None:
        self.findings.append(Finding(line, rule, name))

    # ---- the walk --------------------------------------------------------------------------------------------------
    def _read(self) -> None:
        fresh, body_at, inline = True, -1, False
        for i, (kind, text, line) in enumerate(self.words):
            if kind == token.INDENT:
                self._blocks.append((self._coming is not None, self._first == "match"))
                self._open()
                continue
            if kind == token.DEDENT:
                if self._blocks.pop()[0]:
                    self.scopes.pop()
                continue
            if kind == token.NEWLINE:
                if inline:
                    self.scopes.pop()
                fresh, inline = True, False
                continue
            if fresh:
                self._first = text
                fresh = False
                if text == "case" and self._blocks and self._blocks[-1][1]:
                    self._decide()
            if i == body_at:
                self._open()
                inline = True
            if kind == token.NAME:
                if text in {"def", "class"}:
                    body_at = self._definition(i, line)
                elif text in DECISIONS:
                    self._decide()
                self._judge(i, text, line)
            elif text in {"==", "!="} and self._bare(i + 1, token.NAME)[0] == "None":
                self._find(self._bare(i + 1, token.NAME)[1], "none-comparison", "None")

    def _open(self) -> None:
        if self._coming is not None:
            self.scopes.append(self._coming)
            self._coming = None

    def _decide(self) -> None:
        self.decisions += 1
        owner = self.scopes[-1].function
        if owner is not None:
            owner[0] += 1

    def _definition(self, i: int, line: int) -> int:
        """A header begins: note the scope that comes; return where a body on the same line starts (-1: none)."""
        is_def = self.words[i].text == "def"
        if is_def and i and self.words[i - 1].text == "async":
            line = self.words[i - 1].line
        outer, own = self.scopes[-1], unicodedata.normalize("NFKC", self.words[i + 1].text)
        name = f"{outer.name}.{own}" if outer.name else own
        public = outer.public and not outer.is_def and not own.startswith("_")
        colon = self._colon(i)
        if is_def:
            count = [1]
            self.functions.append((line, name, count))
            self._coming = Scope(name, count, public, True)
            self._defaults(i + 2, colon, name)
        else:
            self.classes += 1
            self._coming = Scope(name, outer.function, public, False)
        body = colon + 1 if self.words[colon + 1].kind != token.NEWLINE else -1
        if public and not self._documented(body if body >= 0 else colon + 3):
            self._find(line, "no-docstring", name)
        return body

    # ---- looking ahead ---------------------------------------------------------------------------------------------
    def _colon(self, i: int) -> int:
        """Return where the header that stands at `i` ends."""
        depth = lambdas = 0
        while True:
            text = self.words[i].text if self.words[i].kind != token.STRING else ""
            if text in OPEN:
                depth += 1
            elif text in CLOSE:
                depth -= 1
            elif not depth and text == "lambda":
                lambdas += 1
            elif not depth and text == ":":
                if not lambdas:
                    return i
                lambdas -= 1
            i += 1

    def _lambda_parameters(self) -> set[int]:
        """Return where an `=` gives a default to a parameter of a lambda."""
        found: set[int] = set()
        for i, word in enumerate(self.words):
            if word.kind == token.NAME and word.text == "lambda":
                end = self._colon(i + 1)
                found.update(self._at_depth(i + 1, end, "="))
        return found

    def _at_depth(self, start: int, end: int, text: str, depth: int = 0) -> list[int]:
        found = []
        for i in range(start, end):
            word = self.words[i]
            if word.kind != token.OP:
                continue
            depth += (word.text in OPEN) - (word.text in CLOSE)
            if not depth and word.text == text:
                found.append(i)
        return found

    def _defaults(self, start: int, colon: int, name: str) -> None:
        """The parameters of a def: their defaults are no keywords of a call, and may be mutable."""
        if self.words[start].text == "[":
            start = self._closing(start) + 1
        for i in self._at_depth(start + 1, self._closing(start), "="):
            if i in self._parameters:
                continue
            self._parameters.add(i)
            at = opened = i + 1
            while self.words[at].text == "(":
                at += 1
            if self.words[at].text in {"[", "{"} and self._alone(self._closing(at) + 1, at - opened):
                self._find(self.words[at].line, "mutable-default", name)

    def _alone(self, i: int, closers: int) -> bool:
        """After so many closing parentheses nothing more belongs to the value."""
        while closers and self.words[i].text == ")":
            i, closers = i + 1, closers - 1
        return not closers and self.words[i].text in {",", ")"}

    def _closing(self, i: int) -> int:
        depth = 0
        while True:
            if self.words[i].kind == token.OP:
                depth += (self.words[i].text in OPEN) - (self.words[i].text in CLOSE)
                if not depth:
                    return i
            i += 1

    def _bare(self, i: int, kind: int) -> tuple[str, int, int]:
        """Return the one word that stands at `i`, maybe in parentheses, its line, and what comes next ("" if more)."""
        opened = 0
        while self.words[i].text == "(":
            i, opened = i + 1, opened + 1
        found, after = self.words[i], i + 1
        while opened and self.words[after].text == ")":
            after, opened = after + 1, opened - 1
        if opened or found.kind != kind or self.words[after].text in {".", "(", "["}:
            return "", found.line, after
        return found.text, found.line, after

    def _documented(self, i: int) -> bool:
        """The statement at `i` is a plain string and nothing more."""
        opened = 0
        while self.words[i].text == "(":
            i, opened = i + 1, opened + 1
        strings = 0
        while self.words[i].kind == token.STRING:
            if self.words[i].text.partition(self.words[i].text.strip("rRuUbBfFtT")[0])[0].lower() not in PLAIN_PREFIXES:
                return False
            i, strings = i + 1, strings + 1
        while opened and self.words[i].text == ")":
            i, opened = i + 1, opened - 1
        end = self.words[i]
        return bool(strings) and not opened and (end.kind in {token.NEWLINE, token.ENDMARKER} or end.text == ";")

    # ---- the rules -------------------------------------------------------------------------------------------------
    def _judge(self, i: int, text: str, line: int) -> None:
        words = self.words
        if text in {"eval", "exec"}:
            if words[i + 1].text == "(" and (not i or words[i - 1].text not in {".", "def", "class"}):
                self._find(line, "eval-exec", text)
        elif text == "pickle":
            dot, name, bracket = (w.text for w in words[i + 1 : i + 4])
            if dot == "." and bracket == "(" and name in {"load", "loads"} and (not i or words[i - 1].text != "."):
                self._find(line, "unpickle", f"pickle.{name}")
        elif text == "import" and words[i + 1].text == "*":
            self._find(line, "star-import", "*")
        elif text == "shell" and words[i + 1].text == "=" and i + 1 not in self._parameters:
            value, _, after = self._bare(i + 2, token.NAME)
            if value == "True" and words[i - 1].text in {"(", ","} and words[after].text in {")", ","}:
                self._find(line, "shell-true", "shell=True")
        elif text == "except":
            self._except(i, line)

    def _except(self, i: int, line: int) -> None:
        caught = i + 2 if self.words[i + 1].text == "*" else i + 1
        value, _, after = self._bare(caught, token.NAME)
        if self.words[caught].text == ":":
            self._find(line, "bare-except", "except")
        elif value in {"Exception", "BaseException"} and self.words[after].text in {":", "as"}:
            self._find(line, "broad-except", value)
        body = self._colon(i) + 1
        indented = self.words[body].kind == token.NEWLINE
        rest = [w for w in self.words[body + 2 * indented : body + 6] if w.text != ";"]
        if rest[0].text == "pass" and rest[1].kind == token.NEWLINE:
            if not indented or rest[2].kind == token.DEDENT:
                self._find(line, "swallowed-error", "pass")


def recount(path: str, source: bytes) -> Numbers:
    """Count a module again. Raises tokenize.TokenError or SyntaxError where it is no Python."""
    reader = Reader(path, words_of(source))
    functions = [Function(line, name, count[0]) for line, name, count in reader.functions]
    ranked = sorted((f for f in functions if f.complexity >= COMPLEX), key=lambda f: (-f.complexity, f.line, f.name))
    by_rule = {rule: sorted(f for f in reader.findings if f.rule == rule) for rule in RULES}
    return Numbers(
        lines=len(source.splitlines()), functions=len(functions), classes=reader.classes, decisions=reader.decisions,
        worst=max((f.complexity for f in functions), default=0),
        rules={rule: len(found) for rule, found in by_rule.items() if found},
        top=ranked[:MAX_TOP], findings=[f for found in by_rule.values() for f in found][:MAX_LISTED],
    )  # fmt: skip
