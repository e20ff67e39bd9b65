"""The review itself, all agents in one process: what the validator sends back, and what it never lets through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refold import AgentError, run
from refold.demo import team
from refold.demo.messages import Check, Checked, Job, Numbers, Opinion, Report
from refold.demo.proof import Proof, prove
from refold.demo.provider import opinion_of

Go = Callable[[Any], Any]
MODULES = 30


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules; the provider answers at once."""

    async def ask(key: str, path: str, digest: str, lines: int, of: int) -> Opinion:
        assert of == MODULES
        return opinion_of(digest, lines)

    monkeypatch.setattr(team, "ask_provider", ask)
    (tmp_path / "project").mkdir()
    for i in range(MODULES):
        (tmp_path / "project" / f"m{i:02d}.py").write_text(f"def f(x):\n    return {' or '.join('x' * (i + 1))}\n")
    return tmp_path / "project"


def review(project: Path, go: Go, *, sabotage: bool = False) -> tuple[Report, dict[str, bool]]:
    """Run the job; return the report, and the proof's claims (nobody is killed here)."""

    async def scenario() -> tuple[Report, Proof]:
        out = project.parent
        async with run(*team.GROUPS.values(), broker="memory://") as bus:
            handle = await bus.start(team.review, Job(str(project), str(out), "it", sabotage), id="review")
            report: Report = await handle.result(25)
            text = (out / report.file).read_text()
            return report, await prove(bus.broker, "review", report, text, [], None, sabotage=sabotage)

    report, proof = go(scenario())
    return report, {claim.text: claim.ok for claim in proof.claims}


def ok(claims: dict[str, bool], words: str) -> bool:
    (found,) = (held for text, held in claims.items() if words in text)
    return found


def test_an_honest_team_has_nothing_sent_back(project: Path, go: Go) -> None:
    report, claims = review(project, go)
    assert (report.modules, report.corrected) == (MODULES, [])
    assert ok(claims, "reported once") and ok(claims, "compared every number")


def test_a_planted_number_is_sent_back_and_corrected(project: Path, go: Go) -> None:
    report, claims = review(project, go, sabotage=True)
    assert [(o.what, int(o.reported) - int(o.counted)) for o in report.corrected] == [("decisions", 7)]
    assert ok(claims, "planted")


def test_a_validator_that_accepts_everything_is_found_out(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = team.check_section
    monkeypatch.setattr(team, "check_section", lambda wanted: Checked(honest(wanted).numbers, []))
    report, claims = review(project, go, sabotage=True)
    assert report.corrected == []
    assert not ok(claims, "planted")


def test_a_validator_that_looks_at_nothing_is_found_out(project: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "check_section", lambda wanted: Checked(0, []))
    _, claims = review(project, go)
    assert not ok(claims, "compared every number")


def miscounting(times: int) -> Callable[[str, str], Numbers]:
    """An analyzer's measure that is wrong about one module, so many times."""
    honest, seen = team.measure_file, Counter[str]()

    def measure(root: str, path: str) -> Numbers:
        numbers = honest(root, path)
        seen[path] += 1
        if path == "m03.py" and seen[path] <= times:
            return msgspec.structs.replace(numbers, functions=numbers.functions + 1)
        return numbers

    return measure


def test_an_analyzer_that_miscounts_is_sent_back_without_paying_again(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "measure_file", miscounting(1))
    report, claims = review(project, go)
    assert [str(o) for o in report.corrected] == ["m03.py: functions is reported as 2, counted as 1"]
    assert ok(claims, "reported once")


def test_an_analyzer_that_always_miscounts_gets_no_report_out(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "measure_file", miscounting(99))
    with pytest.raises(AgentError, match=r"objected in 3 rounds: m03\.py: functions is reported as 2, counted as 1"):
        review(project, go)


def test_a_file_that_is_edited_meanwhile_is_counted_again(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, edited = team.check_section, set[int]()

    def check(wanted: Check) -> Checked:
        if wanted.section.file.endswith("0001.md") and not edited:
            edited.add(1)
            (project / "m05.py").write_text("def f(x):\n    return x\n\n\ndef g(x):\n    return x\n")
        return honest(wanted)

    monkeypatch.setattr(team, "check_section", check)
    report, claims = review(project, go)
    assert {o.path for o in report.corrected} == {"m05.py"}
    assert "- lines 6, functions 2," in (project.parent / report.file).read_text()
    assert ok(claims, "compared every number")


def test_a_report_that_was_changed_after_it_was_validated_is_refused(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = team.write_report

    def write(wanted: Any) -> str:
        name = honest(wanted)
        file = project.parent / name
        file.write_text(file.read_text().replace("functions 1,", "functions 2,", 1))
        return name

    monkeypatch.setattr(team, "write_report", write)
    with pytest.raises(AgentError, match="the report is not what was validated"):
        review(project, go)


@pytest.mark.parametrize("wrong", ["| 30 | 60 |", "| no-docstring | 60 |", "| 30 | `m29.py:1` `f` |"])
def test_a_table_with_a_wrong_number_is_refused(
    project: Path, go: Go, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    honest = team.write_report

    def write(wanted: Any) -> str:
        name = honest(wanted)
        file = project.parent / name
        assert wrong in file.read_text()
        file.write_text(file.read_text().replace(wrong, wrong.replace("0", "1", 1), 1))
        return name

    monkeypatch.setattr(team, "write_report", write)
    with pytest.raises(AgentError, match="row of a table"):
        review(project, go)
