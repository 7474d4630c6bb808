"""Checks of whole models, one at a time: a file per kind of check, with `names()` and `check(name)`, and a runner."""

# The checks of scripts/check_models.py: the option's value and its module.
PARTS = {
    "weights": "pdp.benchmarks.model_checks.weights",
    "channel": "pdp.benchmarks.model_checks.channel",
    "language": "pdp.benchmarks.model_checks.language",
}
