"""The run as a picture: the screen soon after the kill, and the end, as one SVG that needs nothing from elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from .curtain import Outcome, told
from .screen import Drawn, Scene

WIDTH = 100
HEIGHT = 30
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Fonts from another server: nobody should have to ask it, and an image in a page could not."""


def draw(file: Path, scene: Scene, outcome: Outcome) -> None:
    """Save the scene and what was told as an SVG."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, highlight=False, color_system="truecolor")
    console.print(Drawn(scene, HEIGHT), told(outcome))
    svg = console.export_svg(title="refold demo", unique_id="refold-demo")
    file.write_text(FONT_FACE.sub("", svg), encoding="utf-8")
