"""Checks of whole models, one at a time: a file per kind of check, with `names()` and `check(name)`, and a runner."""

# What scripts/check_models.py can check, by the name of its option: the module that does.
PARTS = {
    "weights": "pdp.benchmarks.model_checks.weights",
    "channel": "pdp.benchmarks.model_checks.channel",
    "language": "pdp.benchmarks.model_checks.language",
}
