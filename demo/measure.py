"""The analyzers' work: count and judge one module by its syntax tree (`ast`)."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from .messages import COMPLEX, MAX_LISTED, MAX_TOP, RANK, Finding, Function, Numbers

DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
FORMATTED = tuple(getattr(ast, name) for name in ("JoinedStr", "TemplateStr") if hasattr(ast, name))
BROAD = ("Exception", "BaseException")
DECIDING = frozenset(
    (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.comprehension)
    + (ast.match_case,)
)
JUDGED = frozenset((ast.Call, ast.ExceptHandler, ast.Compare, ast.ImportFrom, ast.keyword))
LEAVES = frozenset((ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.alias))
"""Most nodes are these, and nothing is to be said of them."""


class Scope(NamedTuple):
    """Where a node stands: the function that owns its decisions (-1: none), its dotted name, is it public."""

    function: int
    name: str
    public: bool

    def inner(self, name: str, function: int) -> Scope:
        """Return the scope of a class or function in this one; what is inside a function is never public."""
        public = self.public and not name.startswith("_")
        return Scope(function, f"{self.name}.{name}" if self.name else name, public)


class Walk:
    """One pass over a tree, without recursion: a long chain of operators is deep."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.functions: list[tuple[int, str]] = []
        self.decisions: Counter[int] = Counter()
        self.findings: list[Finding] = []
        self.classes = 0
        stem = PurePosixPath(path).stem
        public = stem == "__init__" or not stem.startswith("_")
        if public and tree.body and not _documented(tree.body):
            self.find(1, "no-docstring", "module")
        self._stack: list[tuple[ast.AST, Scope]] = []
        self._push(tree.body, Scope(-1, "", public))
        while self._stack:
            self._visit(*self._stack.pop())

    def find(self, line: int, rule: str, name: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(line, rule, name))

    def _push(self, nodes: list[ast.stmt] | list[ast.expr], scope: Scope) -> None:
        self._stack += [(node, scope) for node in nodes]

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        kind = type(node)
        if kind in FORMATTED:
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._definition(node, scope)
            return
        if kind in DECIDING:
            self.decisions[scope.function] += _decisions(node)
        if kind in JUDGED:
            self._judge(node)
        self._stack += [(child, scope) for child in _children(node)]

    def _definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, scope: Scope) -> None:
        """The header belongs to what surrounds it, the body to the definition."""
        if isinstance(node, ast.ClassDef):
            self.classes += 1
            inner = scope.inner(node.name, scope.function)
        else:
            inner = scope.inner(node.name, len(self.functions))
            self.functions.append((node.lineno, inner.name))
            self._defaults(node.args, inner.name)
        if inner.public and not _documented(node.body):
            self.find(node.lineno, "no-docstring", inner.name)
        if not isinstance(node, ast.ClassDef):
            inner = inner._replace(public=False)
        body = set(map(id, node.body))
        for child in _children(node):
            self._stack.append((child, inner if id(child) in body else scope))

    def _defaults(self, arguments: ast.arguments, name: str) -> None:
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if isinstance(default, DISPLAYS):
                self.find(default.lineno, "mutable-default", name)

    def _judge(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.ExceptHandler):
            self._handler(node)
        elif isinstance(node, ast.Compare):
            for op, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, ast.Eq | ast.NotEq) and isinstance(right, ast.Constant) and right.value is None:
                    self.find(right.lineno, "none-comparison", "None")
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            self.find(node.lineno, "star-import", "*")
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                self.find(node.lineno, "shell-true", "shell=True")

    def _call(self, node: ast.Call) -> None:
        match node.func:
            case ast.Name(id="eval" | "exec" as name):
                self.find(node.lineno, "eval-exec", name)
            case ast.Attribute(value=ast.Name(id="pickle"), attr="load" | "loads" as name):
                self.find(node.lineno, "unpickle", f"pickle.{name}")

    def _handler(self, node: ast.ExceptHandler) -> None:
        if node.type is None:
            self.find(node.lineno, "bare-except", "except")
        elif isinstance(node.type, ast.Name) and node.type.id in BROAD:
            self.find(node.lineno, "broad-except", node.type.id)
        if len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
            self.find(node.lineno, "swallowed-error", "pass")


def measure(path: str, source: bytes) -> Numbers:
    """Count and judge a module. Raises SyntaxError where it is none."""
    walk = Walk(path, ast.parse(source))
    functions = [Function(line, name, 1 + walk.decisions[i]) for i, (line, name) in enumerate(walk.functions)]
    functions.sort(key=lambda f: (-f.complexity, f.line, f.name))
    findings = sorted(walk.findings, key=lambda f: (RANK[f.rule], f))
    rules = Counter(f.rule for f in findings)
    return Numbers(
        lines=_lines(source), functions=len(functions), classes=walk.classes, decisions=walk.decisions.total(),
        worst=functions[0].complexity if functions else 0, rules=dict(rules),
        top=[f for f in functions[:MAX_TOP] if f.complexity >= COMPLEX], findings=findings[:MAX_LISTED],
    )  # fmt: skip


def _children(node: ast.AST) -> list[ast.AST]:
    """Return the nodes below, without leaves."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [child for child in value if isinstance(child, ast.AST) and type(child) not in LEAVES]
        elif isinstance(value, ast.AST) and type(value) not in LEAVES:
            found.append(value)
    return found


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler():
            return 1
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.match_case():
            return 1 if node.guard is None else 2
    return 0


def _documented(body: list[ast.stmt]) -> bool:
    match body[0]:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _lines(source: bytes) -> int:
    text = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.count(b"\n") + (not text.endswith(b"\n"))
