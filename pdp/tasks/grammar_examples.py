"""The grammar's sentence pairs as the examples of a classification task."""

from __future__ import annotations

from typing import Any

import numpy as np

from pdp.tasks.examples import Examples
from pdp.tasks.grammar_nli import generate
from pdp.tasks.sampling import SPLIT_SEED

GROUPS, TEST_GROUPS = 2600, 200  # hypotheses in train and in test, each with three premises


def made_examples(classes: int) -> tuple[Examples, None, list[Examples]]:
    """The grammar's pairs: train, nothing for validation, and the one test set.

    A hypothesis and its three premises always stay together. Labels run from 0 to `classes` - 1; with no classes they
    are scores, float64.
    """
    groups = generate(SPLIT_SEED, GROUPS + TEST_GROUPS)

    def examples(chosen: list[Any]) -> Examples:
        pairs = [pair for group in chosen for pair in group]
        labels = np.asarray([pair.label for pair in pairs])
        kept = labels % classes if classes else labels.astype(np.float64)
        return Examples([pair.premise for pair in pairs], [pair.hypothesis for pair in pairs], kept)

    return examples(groups[TEST_GROUPS:]), None, [examples(groups[:TEST_GROUPS])]
