"""The main job on a real Kafka: processes on one cluster, one of them killed at work, and the proof."""

from __future__ import annotations

import pytest
from kafka_logs import new_namespace
from rich.console import Console

from refold.demo.stage import perform


@pytest.mark.timeout(300)
def test_the_demo_is_proved_on_kafka(kafka_address, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    for n in range(24):
        (project / f"m{n}.py").write_text(f"def f{n}(x):\n    return x + {n}\n" * (n + 1))
    console = Console(width=100, record=True, quiet=True)
    url = f"kafka://{kafka_address}/{new_namespace()}?partitions=4"
    assert perform(project, out=tmp_path / "out", latency=0.2, console=console, broker=url) == 0
