"""What is installed: every package is in the wheel, and it lives beside other people's modules of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import refold

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = {"tests", "examples", "docs", "docker", "bench", "build", "dist", "scripts", "refold-demo"}
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
HEAVY = {
    *("aiosqlite", "asyncio", "click", "logging", "msgspec", "orjson", "psutil", "pydantic"),
    *("rich", "sqlite3", "typer", "uuid_utils", "watchfiles"),
}
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"


def _package_folders() -> set[str]:
    found = {"refold"}
    for init in ROOT.glob("*/**/__init__.py"):
        parts = init.relative_to(ROOT).parent.parts
        if parts[0] not in NOT_SHIPPED and not any(part.startswith((".", "_")) for part in parts):
            found.add(".".join(("refold", *parts)))
    return found


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Name what builds and runs leave behind. `tests` and the like stay: the wheel itself must not want them."""
    made = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
    if Path(folder) == ROOT:
        made |= {name for name in names if name.startswith(".") or name in {"build", "dist", "refold-demo"}}
    return made


def _run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository without the network."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=_left_out)
    _run([sys.executable, "-c", BUILD, str(place)], source)
    (made,) = place.glob("refold-*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site packages with the wheel in it (it is pure Python: unpacked is installed)."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def _python(code: str, cwd: Path, *paths: Path) -> str:
    """Run code in a fresh interpreter that finds `paths` first; its output."""
    lines = "".join(f"sys.path.insert(0, {str(path)!r})\n" for path in paths)
    return _run([sys.executable, "-c", f"import sys\n{lines}{code}"], cwd)


def test_every_package_folder_is_listed_and_nothing_else():
    assert sorted(LISTED) == LISTED
    assert set(LISTED) == _package_folders()


def test_the_wheel_holds_every_module_of_every_listed_package(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    expected = set()
    for package in LISTED:
        folder = ROOT.joinpath(*package.split(".")[1:])
        expected |= {"/".join((*package.split("."), module.name)) for module in folder.glob("*.py")}
    assert inside == expected


def test_the_wheel_says_that_it_is_typed_and_ships_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "refold/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"refold", f"refold-{refold.__version__}.dist-info"}
    assert not [name for name in names if "/tests/" in name or "/examples/" in name]


def test_the_wheel_offers_the_command_and_the_brokers(wheel):
    archive = zipfile.ZipFile(wheel)
    points = archive.read(f"refold-{refold.__version__}.dist-info/entry_points.txt").decode()
    assert "refold = refold.cli:main" in points
    assert "memory = refold.brokers.memory:from_url" in points
    assert "sqlite = refold.brokers.sqlite:from_url" in points


def test_it_lives_beside_a_distribution_with_a_top_level_agents_package(installed, tmp_path):
    other, elsewhere = tmp_path / "other", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("agents", "bus"):
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").write_text("OWNER = 'somebody else'\n")
    code = (
        "import agents, bus, refold.agents.agent, refold.bus.message\n"
        "print(agents.OWNER, bus.OWNER, refold.agents.agent.__file__)"
    )
    for order in ((other, installed), (installed, other)):
        words = _python(code, elsewhere, *order)
        assert words == f"somebody else somebody else {installed / 'refold' / 'agents' / 'agent.py'}"


def test_it_imports_in_a_project_that_has_an_agents_folder_of_its_own(installed, tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("MINE = True\n")
    code = "import agents, refold\nprint(agents.MINE, refold.Agent.__module__, refold.run.__module__)"
    assert _python(code, tmp_path, installed, tmp_path) == "True refold.agents.agent refold.agents.runtime"


def test_importing_the_root_is_cheap(installed, tmp_path):
    code = (
        f"before = set(sys.modules)\nimport refold\nnew = set(sys.modules) - before\n"
        f"print(sorted(new & {HEAVY!r}), sorted(name for name in new if name.startswith('refold.')))"
    )
    assert _python(code, tmp_path, installed) == "[] []"


def test_every_public_name_resolves_and_the_list_is_sorted():
    assert refold.__all__ == sorted(refold.__all__)
    assert len(set(refold.__all__)) == len(refold.__all__)
    for name in refold.__all__:
        assert getattr(refold, name).__module__.startswith("refold."), name
    assert set(refold.__all__) <= set(dir(refold))


def test_what_a_program_must_catch_is_a_public_name():
    """What `request`, `start`, `attach` and a handler's steps raise, and the branch that says: try again."""
    asked = {"AgentError", "RequestExpired", "RequestTimeout", "NoSuchAgent", "AgentUnavailable", "TryAgain"}
    started = {"WorkflowExists", "NoSuchWorkflow"}
    in_a_handler = {"EffectFailed", "WaitExpired", "SchemaError", "Refuse"}
    for name in asked | started | in_a_handler:
        assert name in refold.__all__
        assert issubclass(getattr(refold, name), refold.RefoldError)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Agents'"):
        _ = refold.Agents


def test_a_star_import_brings_the_public_names():
    names: dict[str, object] = {}
    exec("from refold import *", names)
    assert set(refold.__all__) == set(names) - {"__builtins__"}


def test_on_windows_the_import_says_what_to_use_instead(installed, tmp_path):
    code = "sys.platform = 'win32'\ntry:\n    import refold\nexcept ImportError as error:\n    print(error)"
    said = _python(code, tmp_path, installed)
    assert said.startswith("refold runs on Linux and macOS; on Windows use WSL")


def test_the_version_is_the_same_everywhere(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == refold.__version__
    assert wheel.name == f"refold-{refold.__version__}-py3-none-any.whl"
