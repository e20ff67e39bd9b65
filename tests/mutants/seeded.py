"""The mistakes that are put into the product: each is one that an engineer could make, and that a test must notice."""

from __future__ import annotations

from mutants.copies import Mutant
from mutants.in_fold import IN_THE_FOLD
from mutants.in_log import IN_THE_LOG
from mutants.in_worker import IN_THE_WORKER

MUTANTS: list[Mutant] = [*IN_THE_FOLD, *IN_THE_WORKER, *IN_THE_LOG]
