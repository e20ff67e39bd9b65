"""The list of seeded mistakes fits the product: each has its place and its tests. `make mutants` runs them."""

from __future__ import annotations

import pytest
from mutants.copies import ROOT, Mutant, mutated
from mutants.seeded import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_seeded_mistake_has_its_place_and_its_tests(mutant: Mutant) -> None:
    for file, (before, after) in mutated(mutant).items():
        assert before != after, file
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        source = (ROOT / "tests" / file).read_text()
        assert f"def {name}(" in source if name else "def test_" in source, test


def test_no_two_seeded_mistakes_have_one_name() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)
