"""Whole models, each checked by itself: a file a question, with `names()` and `check(name)`, and what runs them."""

# What scripts/check_models.py can check, by the name of its option: the module that does.
PARTS = {
    "weights": "pdp.benchmarks.model_checks.weights",
    "channel": "pdp.benchmarks.model_checks.channel",
    "language": "pdp.benchmarks.model_checks.language",
}
