"""Random command lines: each is refused in one line, or gives the configuration that was asked for."""

from typing import Any

import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pdp.config.check_prune import is_dense
from pdp.config.compose import compose
from pdp.errors import Refusal

GROUPS = [
    "model",
    "data",
    "method",
    "schedule",
    "recipe",
    "prune",
    "allocation",
    "distill",
    "tracker",
    "experiment",
    "debug",
]
KEYS = [
    "sparsity", "seed", "resume", "rerun", "dry_run", "output_dir", "device", "recipe.epochs", "recipe.batch_size", "recipe.lr",
    "recipe.weight_decay", "recipe.precision", "recipe.clip", "recipe.lr_warmup", "recipe.channels_last", "data.validation",
    "data.limit", "data.workers", "data.image_size", "data.root", "schedule.warmup", "schedule.ramp", "schedule.rate", "schedule.unit",
    "method.temperature", "method.update_every", "allocation.path", "prune.exclude", "model.pretrained", "model.arguments",
    "model.arguments.drop_rate", "recipe.nope", "nope", "sparsty", "recipe.lr.deeper",
]  # fmt: skip
VALUES = [
    "", "null", "true", "false", "0", "0.5", "0.866", "86.6", "1", "1.0", "3", "32", "-1", "nan", "inf", "1e400", "abc", "[1]", "[fc]", "[]",
    "{a: 1}", "gmp", "pdp", "dense", "none", "random", "resnet18", "resnet20", "mobilenet_v1", "digits", "imagenet", "cubic", "linear", "uniform",
    "erk", "file", "smoke", "2ep", "0.1", "100it", "auto", "step", "epoch", "bf16", "cpu", "'x", "${seed}", "???", "a,b", "range(3)", "\\", "=",
    "${oc.env:NO}", "digits/mobilenet_v1_random_866", "../x", "é",
]  # fmt: skip
PLUSES = ["", "", "", "+", "++", "~"]
# What a dense run sets back, and paths that are made absolute.
SET_BACK = ("sparsity", "schedule", "allocation", "prune", "method", "output_dir", "data.root")

overrides = st.lists(
    st.tuples(
        st.sampled_from(PLUSES),
        st.sampled_from(GROUPS) | st.sampled_from(KEYS) | st.text(max_size=6),
        st.sampled_from(VALUES) | st.text(max_size=8) | st.floats().map(str) | st.integers(-5, 500).map(str),
    ),
    min_size=1,
    max_size=4,
)


def value_at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


@settings(max_examples=250, phases=[Phase.explicit, Phase.generate])
@given(overrides)
@example([("", "sparsity", "86.6")])
@example([("+", "dry_run", "230")])
@example([("", "rerun", "${seed}")])
@example([("++", "method.temperature", "1"), ("", "method", "gmp")])
def test_a_random_command_line_is_refused_in_one_line_or_means_what_it_says(parts):
    lines = ["model=resnet20", "sparsity=0.5", *(f"{plus}{key}={value}" for plus, key, value in parts)]
    try:
        config = compose(lines)
    except Refusal as refusal:
        text = str(refusal)
        assert text.strip() and "Traceback" not in text
        return
    for position, (_, key, value) in enumerate(parts):
        later = [other for _, other, _ in parts[position + 1 :]]
        if key in GROUPS or any(other == key or other in GROUPS for other in later):
            continue
        if is_dense(config) and key.startswith(SET_BACK) or key in ("output_dir", "data.root"):
            continue
        asked, got = config.seed if value == "${seed}" else yaml.safe_load(value), value_at(config, key)
        assert got == asked or str(got) == str(asked) or str(got) == value.strip() or float(got) == float(asked), (
            key,
            value,
        )
