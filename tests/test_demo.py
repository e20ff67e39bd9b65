"""The main job as its user meets it: real processes, a real kill, a report, a proof, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from refold import MessageBus
from refold.demo.curtain import Outcome, commands
from refold.demo.proof import Proof, prove
from refold.demo.provider import Invoiced, read_invoice
from refold.demo.recount import recount
from refold.demo.stage import perform

REFOLD = [sys.executable, "-P", "-m", "refold.cli"]
QUICK = ["--latency", "0.1"]
MODULES = 12
RISKY = """\
import os
from os.path import *


def documented(a, b=[]):
    "This one is."
    if a and b:
        return eval(a)
    try:
        return [x for x in b if x != None]
    except:
        pass
    return a if b else 7 if a > 1 else os


class Open:
    def method(self, f):
        import pickle, subprocess
        subprocess.run("ls", shell=True)
        return pickle.load(f)
"""
Until = Callable[..., Any]


def make_modules(folder: Path) -> Path:
    """A small project: modules of which `risky.py` is known by heart, and files that are none."""
    (folder / "package").mkdir(parents=True)
    for i in range(MODULES - 1):
        body = "".join(f"    if x > {n}:\n        return {n}\n" for n in range(i))
        (folder / "package" / f"m{i:02d}.py").write_text(f'"""A module."""\n\n\ndef f(x):\n{body}    return {i}\n')
    (folder / "risky.py").write_text(RISKY)
    (folder / "broken.py").write_text("x = 1\ndef (:\n")
    (folder / "latin.py").write_bytes(b"# caf\xe9\nx = 1\n")
    (folder / "loop").symlink_to(folder)
    return folder


class Run(NamedTuple):
    """A run of `refold demo --json` that has ended."""

    folder: Path
    outcome: Outcome
    invoice: list[Invoiced]
    report: str
    stderr: str
    code: int


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run for many tests: with a planted number, three analyzers and a picture."""
    folder = tmp_path_factory.mktemp("demo")
    root = make_modules(folder / "project")
    line = [*REFOLD, "demo", str(root), "--sabotage", "--json", "--svg", "run.svg", *QUICK]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    out = folder / "refold-demo"
    return Run(
        folder, outcome, read_invoice(out / "invoice.jsonl"), (out / "report.md").read_text(), done.stderr,
        done.returncode,
    )  # fmt: skip


# ---- a run ----------------------------------------------------------------------------------------------------------
def test_the_whole_job_is_done_and_proved(ended: Run) -> None:
    assert (ended.code, ended.stderr) == (0, "")
    assert [claim for claim in ended.outcome.proof.claims if not claim.ok] == []
    assert ended.outcome.report.modules == MODULES
    assert ended.outcome.report.unreadable == 2


@pytest.mark.timeout(150)
@pytest.mark.parametrize("scheme", ["nats", "kafka"])
def test_the_same_job_is_done_and_proved_on_the_brokers_that_people_run(
    scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(f"{scheme}_address")
    log = f"{scheme}://{address}/demo-{uuid.uuid4().hex[:8]}"
    root = make_modules(tmp_path / "project")
    line = [*REFOLD, "demo", str(root), "--json", "--broker", log, *QUICK]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    assert [claim for claim in outcome.proof.claims if not claim.ok] == []
    assert (done.returncode, outcome.log, outcome.killed is not None) == (0, log, True)
    again = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "holds records: name a log that is not there yet" in again.stderr


def test_one_analyzer_was_killed_at_work_and_another_went_on(ended: Run) -> None:
    killed, proof = ended.outcome.killed, ended.outcome.proof
    assert killed is not None
    assert proof.attempts[0].pid == killed.pid
    assert (proof.attempts[0].outcome, proof.attempts[0].fate) == ("", "died")
    assert proof.attempts[-1].outcome == "task_response"
    assert proof.attempts[-1].pid != killed.pid
    assert proof.takeover is not None and proof.takeover[2] == proof.attempts[-1].pid


def test_the_bill_says_where_the_crash_fell(ended: Run) -> None:
    bill, killed = ended.outcome.proof.bill, ended.outcome.killed
    assert killed is not None
    lines = [line for line in ended.invoice if line.key == killed.key]
    assert [(line.pid == killed.pid, line.repeated, line.price > 0) for line in lines] == [
        (True, False, True), (False, True, False)
    ]  # fmt: skip
    assert bill.made == len(ended.invoice) == MODULES + bill.repeated
    assert bill.recorded == MODULES
    assert bill.repeated_by_the_kill == bill.cut.between >= 1
    assert bill.invoiced == bill.in_the_log == sum(line.price for line in ended.invoice)


def test_the_planted_number_was_sent_back_and_corrected(ended: Run) -> None:
    (wrong,) = ended.outcome.report.corrected
    source = (ended.folder / "project" / wrong.path).read_bytes()
    right = recount(wrong.path, source).decisions
    assert (wrong.what, wrong.reported, wrong.counted) == ("decisions", str(right + 7), str(right))
    assert f"decisions {right}," in section_of(ended.report, wrong.path)


def section_of(report: str, path: str) -> str:
    return report.partition(f"### `{path}`\n")[2].partition("\n### ")[0]


def test_the_report_names_what_is_known_of_a_module_by_file_and_line(ended: Run) -> None:
    said = section_of(ended.report, "risky.py")
    for line in (
        "- lines 20, functions 2, classes 1, decisions 7, worst 8",
        "- complexity: `risky.py:5` `documented` 8",
        "- eval-exec 1: `risky.py:8` `eval`",
        "- shell-true 1: `risky.py:19` `shell=True`",
        "- unpickle 1: `risky.py:20` `pickle.load`",
        "- bare-except 1: `risky.py:11` `except`",
        "- mutable-default 1: `risky.py:5` `documented`",
        "- none-comparison 1: `risky.py:10` `None`",
        "- star-import 1: `risky.py:2` `*`",
        "- swallowed-error 1: `risky.py:11` `pass`",
        "- no-docstring 3: `risky.py:1` `module`, `risky.py:16` `Open`, `risky.py:17` `Open.method`",
    ):
        assert f"{line}\n" in said


def test_every_place_in_the_report_holds_what_it_names(ended: Run) -> None:
    places = re.findall(r"`([^`]+\.py):(\d+)` `([^`]+)`", ended.report)
    assert len(places) > 2 * MODULES
    for path, line, name in places:
        source = (ended.folder / "project" / path).read_text().splitlines()
        word = name.rpartition(".")[2]
        if name == "pass":
            assert "except" in source[int(line) - 1]
        elif name != "module":
            assert word in source[int(line) - 1], (path, line, name)


def test_the_report_lists_each_module_once_and_says_what_could_not_be_read(ended: Run) -> None:
    headings = re.findall(r"^### `(.+)`$", ended.report, flags=re.MULTILINE)
    assert headings == [*(f"package/m{i:02d}.py" for i in range(MODULES - 1)), "risky.py"]
    assert "- `broken.py`: line 2: " in ended.report
    assert "- `latin.py`: invalid or missing encoding" in ended.report


def test_the_commands_to_look_further_work_when_pasted(ended: Run) -> None:
    command = f'refold() {{ "{sys.executable}" -P -m refold.cli "$@" || echo "exit code $?"; }}'
    lines = "\n".join([command, *commands(ended.outcome)])
    done = subprocess.run(
        ["sh", "-c", lines], cwd=ended.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert "exit code" not in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert ended.outcome.killed is not None
    assert str(ended.outcome.killed.pid) in done.stdout
    assert f"workflow {ended.outcome.workflow}: completed" in done.stdout


def test_a_run_leaves_no_process_and_writes_only_into_its_folder(ended: Run) -> None:
    assert sorted(path.name for path in ended.folder.iterdir()) == ["project", "refold-demo", "run.svg"]
    assert left_in(ended.folder) == []


def left_in(folder: Path) -> list[str]:
    """The command lines of processes that work in a folder."""
    processes = psutil.process_iter(["cmdline", "cwd"])
    return [" ".join(p.info["cmdline"] or []) for p in processes if p.info["cwd"] == str(folder)]


def test_the_picture_needs_nothing_from_elsewhere_and_names_no_folder_of_this_machine(ended: Run) -> None:
    svg = (ended.folder / "run.svg").read_text()
    text = re.sub(r"<[^>]+>", "", svg).replace("&#160;", " ")
    assert "killed (kill -9)" in text and "kill -9 in the middle of a call" in text
    assert "Proof, from log, invoice and report: it holds" in text
    assert str(ended.folder) not in svg
    assert "@font-face" not in svg and re.findall(r"https?://(?!www\.w3\.org|www\.textualize\.io)", svg) == []
    assert msgspec.json.encode(ended.outcome).decode().count(str(ended.folder)) == 1  # the reviewed folder


# ---- the proof cannot be had for nothing ----------------------------------------------------------------------------
class Evidence(NamedTuple):
    """What a run is judged by."""

    outcome: Outcome
    report: str
    invoice: list[Invoiced]


def _killed_another(e: Evidence) -> Evidence:
    assert e.outcome.killed is not None
    other = msgspec.structs.replace(e.outcome.killed, pid=e.outcome.proof.attempts[-1].pid)
    return e._replace(outcome=msgspec.structs.replace(e.outcome, killed=other))


def _nobody_killed(e: Evidence) -> Evidence:
    return e._replace(outcome=msgspec.structs.replace(e.outcome, killed=None))


def _numbers(e: Evidence, **changes: Any) -> Evidence:
    report = msgspec.structs.replace(e.outcome.report, **changes)
    return e._replace(outcome=msgspec.structs.replace(e.outcome, report=report))


TAMPERED: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "nobody was killed": (_nobody_killed, "the killed handling"),
    "another one was killed": (_killed_another, "the killed handling"),
    "a module is reported twice": (lambda e: e._replace(report=e.report + "\n### `risky.py`\n"), "reported once"),
    "a module is missing": (lambda e: e._replace(report=e.report.replace("### `risky", "### `r")), "reported once"),
    "a call was charged twice": (
        lambda e: e._replace(invoice=[*e.invoice, msgspec.structs.replace(e.invoice[0], time=0.0)]), "charged exactly"
    ),
    "a call was not charged": (lambda e: e._replace(invoice=e.invoice[1:]), "charged exactly"),
    "the repeated call is not in the invoice": (
        lambda e: e._replace(invoice=[x for x in e.invoice if not x.repeated]), "made again"
    ),
    "a number was not compared": (lambda e: _numbers(e, numbers=e.outcome.report.numbers - 1), "compared every number"),
    "a number was added": (lambda e: e._replace(report=e.report.replace("- lines", "- lies 3, lines", 1)), "compared"),
    "the planted number was not found": (lambda e: _numbers(e, corrected=[]), "planted"),
    "something else was found": (
        lambda e: _numbers(e, corrected=[msgspec.structs.replace(x, reported="1") for x in e.outcome.report.corrected]),
        "planted",
    ),
}  # fmt: skip


def judge(folder: Path, evidence: Evidence, go: Callable[[Any], Any]) -> Proof:
    async def scenario() -> Proof:
        async with MessageBus.open(f"sqlite:///{folder}/refold-demo/refold.db") as bus:
            outcome = evidence.outcome
            return await prove(
                bus.broker, outcome.workflow, outcome.report, evidence.report, evidence.invoice, outcome.killed,
                sabotage=True,
            )  # fmt: skip

    found: Proof = go(scenario())
    return found


def test_the_proof_is_the_same_for_whoever_reads_the_log_later(ended: Run, go: Callable[[Any], Any]) -> None:
    assert judge(ended.folder, Evidence(ended.outcome, ended.report, ended.invoice), go) == ended.outcome.proof


@pytest.mark.parametrize("how", TAMPERED)
def test_the_proof_fails_where(how: str, ended: Run, go: Callable[[Any], Any]) -> None:
    tamper, claim = TAMPERED[how]
    proof = judge(ended.folder, tamper(Evidence(ended.outcome, ended.report, ended.invoice)), go)
    assert not proof.ok
    assert any(claim in c.text for c in proof.claims if not c.ok)


# ---- ended from outside ---------------------------------------------------------------------------------------------
@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_modules(tmp_path / "project")


class Terminal:
    """A demo that runs in a terminal of its own; `seen` is what it has written so far."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.seen = b""
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*REFOLD, "demo", str(root), "--latency", "10"], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._own, 4096):
                self.seen += chunk

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        code = self.process.wait(60)
        self._reader.join(60)
        os.close(self._own)
        return code


@contextlib.contextmanager
def at_work(folder: Path, root: Path, go: Callable[[Any], Any], until: Until) -> Iterator[Terminal]:
    """A demo whose analyzers all wait for the provider."""
    terminal = Terminal(folder, root)
    try:
        go(until(lambda: b"waits for 12 answers" in terminal.seen or terminal.process.poll() is not None, within=25))
        assert terminal.process.poll() is None, terminal.seen.decode()
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()


def test_ctrl_c_ends_all_processes_and_gives_the_terminal_back(
    tmp_path: Path, project: Path, go: Callable[[Any], Any], until: Until
) -> None:
    with at_work(tmp_path, project, go, until) as terminal:
        second = subprocess.run(
            [*REFOLD, "demo", str(project)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (second.returncode, second.stdout) == (6, "")
        assert "another demo runs in refold-demo now" in second.stderr
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
    assert left_in(tmp_path) == []
    assert b"Traceback" not in terminal.seen
    assert b"ended by SIGINT" in terminal.seen
    assert terminal.seen.rfind(b"\x1b[?25h") > terminal.seen.rfind(b"\x1b[?25l")  # the cursor is shown again


def test_processes_of_a_demo_that_was_killed_end_by_themselves(
    tmp_path: Path, project: Path, go: Callable[[Any], Any], until: Until
) -> None:
    with at_work(tmp_path, project, go, until) as terminal:
        assert len(left_in(tmp_path)) == 9
        terminal.process.send_signal(signal.SIGKILL)
        terminal.end()
        go(until(lambda: left_in(tmp_path) == [], within=28))


def test_a_process_that_dies_by_itself_ends_the_run_and_is_named(
    tmp_path: Path, project: Path, go: Callable[[Any], Any], until: Until
) -> None:
    with at_work(tmp_path, project, go, until) as terminal:
        (writer,) = (p for p in psutil.Process(terminal.process.pid).children() if "writer" in p.cmdline())
        writer.kill()
        assert terminal.end() == 1
    assert left_in(tmp_path) == []
    assert f"writer (pid {writer.pid}) ended with -9" in terminal.seen.decode()


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path, project: Path) -> None:
    line = [*REFOLD, "demo", str(project), *QUICK]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    assert left_in(tmp_path) == []


# ---- what cannot be reviewed ----------------------------------------------------------------------------------------
def test_a_path_that_has_nothing_to_review_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.py").write_text("def (")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (
        ("missing", "is no folder"), ("empty", "(0 found)"), ("broken", "(1 found)"), ("loop", "loop"),
        ("broken/a.py", "is no folder"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=re.escape(said)) as caught:
            perform(tmp_path / name, out=tmp_path / "out")
        assert type(caught.value).__name__ == "NoModules"
    assert not (tmp_path / "out").exists()
    line = [*REFOLD, "demo", "missing", "--json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]["exit_code"] == 2


@pytest.mark.parametrize("file", ["out", "picture.svg"])
def test_a_place_that_cannot_be_written_is_said_before_anything_starts(
    tmp_path: Path, project: Path, file: str
) -> None:
    (tmp_path / "out").write_text("in the way") if file == "out" else None
    svg = tmp_path / "nowhere" / file if file != "out" else None
    with pytest.raises(Exception, match=r"cannot (be )?writ(e|ten)") as caught:
        perform(project, out=tmp_path / "out", svg=svg)
    assert type(caught.value).__name__ == "ConfigError"
