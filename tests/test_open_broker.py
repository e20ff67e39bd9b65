"""Finding the broker of a URL: built in, or installed by somebody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from refold.brokers import open_broker
from refold.brokers.conformance import Subject, cases_of
from refold.brokers.memory import MemoryBroker
from refold.brokers.sqlite import SqliteBroker
from refold.bus.errors import ConfigError, UnknownBroker

LUNAR = """
    \"\"\"A broker of somebody else: a log that lives in a file, under a scheme of its own.\"\"\"

    from refold.brokers.sqlite import SqliteBroker


    class LunarBroker(SqliteBroker):
        def __init__(self, path):
            super().__init__(path)
            self.url = f"lunar://{path}"


    def from_url(url):
        return LunarBroker(url.removeprefix("lunar://"))
"""


def install(folder: Path, package: str, scheme: str, value: str, **modules: str) -> None:
    """Install a distribution: its modules, and the folder by which pip's metadata tells of it."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    told = folder / f"{package}-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(f"[refold.brokers]\n{scheme} = {value}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder from which Python imports."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("lunar", "solar"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("url", "kind"), [("memory://", MemoryBroker), ("MEMORY://x", MemoryBroker), ("sqlite:///x.db", SqliteBroker)]
)
def test_the_url_of_a_built_in_broker_opens_it(url, kind):
    assert type(open_broker(url)) is kind


def test_a_broker_of_somebody_else_is_found_by_its_scheme_and_can_be_judged_by_the_suite(site, tmp_path):
    install(site, "lunar-broker", "lunar", "lunar:from_url", lunar=LUNAR)
    broker = open_broker(f"lunar://{tmp_path}/log.db")
    assert type(broker).__name__ == "LunarBroker"
    logs = iter(range(100))

    def new_log():
        url = f"lunar://{tmp_path}/{next(logs)}.db"
        return lambda: open_broker(url)

    lunar = Subject("lunar", new_log)
    wanted = {
        "another process works on the same log at the same time", "an append is there for every reader when it returns",
    }  # fmt: skip
    cases = [case for case in cases_of(lunar) if str(case) in wanted]
    assert len(cases) == 2
    for case in cases:
        asyncio.run(case.run(lunar))


def test_a_worker_and_a_client_run_on_a_broker_of_somebody_else(site, tmp_path):
    install(site, "lunar-broker", "lunar", "lunar:from_url", lunar=LUNAR)
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
            import asyncio
            from refold import Agent, run

            echo = Agent("echo")

            @echo.on_task
            async def answer(ctx, task):
                return {"said": task["say"]}

            async def main():
                async with run(echo, broker="lunar://log.db") as bus:
                    print(await bus.request(answer, {"say": "hello"}))

            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("{'said': 'hello'}\n", 0), done.stderr
    assert (tmp_path / "log.db").exists()


def test_an_unknown_scheme_names_those_that_are_known_also_others(site):
    install(site, "lunar-broker", "lunar", "lunar:from_url", lunar=LUNAR)
    there_is = "kafka://, lunar://, memory://, nats://, sqlite://"
    with pytest.raises(UnknownBroker, match=rf"no broker for stellar://; there is {there_is}$"):
        open_broker("stellar://x")
    with pytest.raises(UnknownBroker, match=r"no broker for my_own://"):
        open_broker("my_own://x")


@pytest.mark.parametrize(("scheme", "client"), [("kafka", "aiokafka"), ("nats", "nats")])
def test_a_missing_extra_gives_the_line_that_installs_it(scheme, client):
    """In a process of its own: what has been imported there stays imported here."""
    code = f"""
        import sys
        sys.modules[{client!r}] = None
        from refold.brokers import open_broker
        try:
            open_broker("{scheme}://localhost/x")
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"ConfigError {scheme}:// needs its client, which is not installed: pip install 'refold[{scheme}]'\n"
    )
    with pytest.raises(UnknownBroker, match=r"write sqlite:///refold.db"):
        open_broker("refold.db")


def test_a_secret_in_a_url_is_in_no_error():
    with pytest.raises(UnknownBroker) as caught:
        open_broker("stellar://me:secret@host/log")
    assert "secret" not in str(caught.value)


def test_a_broker_that_cannot_be_imported_is_named_with_its_package(site):
    install(site, "solar-broker", "solar", "solar:from_url", solar="import a_package_that_is_not_there\n")
    with pytest.raises(ConfigError, match=r"solar:from_url of the package solar-broker cannot be imported .*not_there"):
        open_broker("solar://x")
    (site / "solar.py").write_text("from_url = 7\n")
    sys.modules.pop("solar", None)
    with pytest.raises(ConfigError, match=r"solar:from_url of the package solar-broker is no function"):
        open_broker("solar://x")


def test_two_brokers_of_one_scheme_are_refused_and_named(site):
    install(site, "lunar-broker", "lunar", "lunar:from_url", lunar=LUNAR)
    install(site, "moon-broker", "lunar", "moon:from_url")
    with pytest.raises(ConfigError, match=r"lunar-broker.*moon-broker|moon-broker.*lunar-broker"):
        open_broker("lunar://x")


def test_nobody_takes_a_scheme_of_refold(site):
    install(site, "thief", "sqlite", "lunar:from_url", lunar=LUNAR)
    assert type(open_broker("sqlite:///x.db")) is SqliteBroker
