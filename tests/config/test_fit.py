"""Times that do not fit into a run: refused once, with a whole command line that fits."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdp.config.check_schedule import misfits
from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.schedule.shapes import make_schedule

BASE = ["model=resnet20", "sparsity=0.5"]


def line_that_fits(*words):
    """The words of the line that the refusal gives."""
    with pytest.raises(Refusal) as caught:
        compose(words)
    message = str(caught.value)
    assert "\n" not in message
    return shlex.split(message.partition("this line would fit: python train.py ")[2])


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 16, 82])
def test_imagenets_recipe_in_a_short_run_is_refused_once(epochs):
    words = [*BASE, "data=imagenet", "data.root=my photos", f"recipe.epochs={epochs}"]
    line = line_that_fits(*words)
    assert set(words) <= set(line)
    fitting = compose(line)
    # The shares of the paper's 100 epochs: 16 dense, 67 of ramp, 5 of the rate's warm-up.
    assert (fitting.schedule.warmup, fitting.schedule.ramp) == ("0.16", "0.67") and fitting.recipe.epochs == epochs
    assert fitting.recipe.lr_warmup == ("0.05" if epochs < 5 else "5ep")


@pytest.mark.parametrize("epochs", [1, 2, 4, 10, 1000])
@pytest.mark.parametrize("data", ["image_folder", "table"])
def test_own_data_fits_any_number_of_epochs(data, epochs):
    words = {
        "image_folder": [*BASE, "data=image_folder", "data.root=x"],
        "table": ["model=bert_tiny", "sparsity=0.5", "data=table", "data.train=x", "data.text=a", "data.label=b"],
    }[data]
    config = compose([*words, f"recipe.epochs={epochs}"])
    assert config.recipe.name == {"image_folder": "own_images", "table": "own_texts"}[data]
    assert config.schedule.unit == "step" and config.schedule.rate is None
    for steps in (1, 2, 3, 7, 1000):
        assert not misfits(config, steps)
        schedule = make_schedule("linear", epochs, warmup="0.16", unit="step", steps_per_epoch=steps)
        assert schedule.fraction(schedule.moments - 1, schedule.start) == 1.0


def test_imagenets_way_is_open_to_own_images_and_pretrained_texts_have_theirs():
    assert compose([*BASE, "data=image_folder", "data.root=x", "recipe=imagenet"]).schedule.warmup == "16ep"
    table = ["sparsity=0.5", "data=table", "data.train=x", "data.text=a", "data.label=b"]
    assert compose(["model=bert_base", *table]).recipe.name == "glue"
    assert compose(["model=bert_tiny", *table, "recipe=nli"]).recipe.name == "nli"


@pytest.mark.parametrize(
    ("words", "kept", "changed"),
    [
        (["schedule.warmup=9ep"], {"schedule.warmup=9ep"}, {"schedule.ramp=3ep"}),
        (["schedule.warmup=auto", "schedule.ramp=8ep"], {"schedule.warmup=auto"}, {"schedule.ramp=7ep"}),
        (["schedule.ramp=11ep"], {"schedule.ramp=11ep"}, {"schedule.warmup=1ep"}),
        (["schedule.rate=0.05"], set(), {"schedule.ramp=0.4"}),
        (["recipe.epochs=1"], {"recipe.epochs=1"}, {"recipe.lr_warmup=0.17"}),
        (["schedule=oneshot", "schedule.warmup=12ep"], {"schedule=oneshot"}, {"schedule.warmup=0.5"}),
    ],
)
def test_what_was_typed_stays_where_it_can(words, kept, changed):
    line = line_that_fits(*BASE, *words)
    assert kept | changed | set(BASE) <= set(line)
    compose(line)


TIMES = st.integers(0, 40).map("{}ep".format) | st.floats(0, 1).map("{:.3f}".format)


@given(
    epochs=st.integers(1, 30),
    warmup=st.none() | TIMES | st.just("auto"),
    ramp=st.none() | TIMES,
    rate=st.none() | st.floats(0.01, 1).map("{:.3f}".format),
    lr_warmup=st.none() | TIMES,
    name=st.sampled_from(["linear", "cubic", "oneshot"]),
    unit=st.sampled_from(["epoch", "step"]),
)
@settings(max_examples=12)
def test_the_line_given_is_one_that_composes(epochs, warmup, ramp, rate, lr_warmup, name, unit):
    times = {"schedule.warmup": warmup, "recipe.lr_warmup": lr_warmup}
    if name != "oneshot":  # which has no ramp, and is refused one
        times["schedule.ramp" if rate is None else "schedule.rate"] = ramp if rate is None else rate
    words = [*BASE, f"schedule={name}", f"schedule.unit={unit}", f"recipe.epochs={epochs}"]
    words += [f"{key}={value}" for key, value in times.items() if value is not None]
    try:
        compose(words)
    except Refusal as refusal:
        assert "this line would fit" in str(refusal)
        compose(line_that_fits(*words))


@given(epochs=st.integers(1, 50), thousandths=st.integers(0, 1000), steps=st.integers(1, 9))
def test_shares_that_make_a_whole_always_fit(epochs, thousandths, steps):
    for unit in ("epoch", "step"):
        schedule = make_schedule(
            "linear",
            epochs,
            warmup=thousandths / 1000,
            ramp=(1000 - thousandths) / 1000,
            unit=unit,
            steps_per_epoch=steps,
        )
        assert schedule.start + schedule.length <= schedule.moments
        assert schedule.fraction(schedule.moments - 1, schedule.start) == 1.0
