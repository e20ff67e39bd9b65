"""Plugin for a run of the tests on a mutant: it is the mutant that they import, and failing examples are not shrunk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

import refold


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run on anything but the copy."""
    wanted, found = Path(os.environ["REFOLD_MUTANT"]), Path(str(refold.__file__)).parent
    if found != wanted:
        raise pytest.UsageError(f"the tests would import {found}, not {wanted}")
    settings.register_profile("mutant", deadline=None, phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("mutant")
