"""from=<run>: training continues under a finished run's zeros, or from its weights only; and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.runs.record import read_record
from pdp.tasks import build_task
from pdp.training.assembly import make_model

pytestmark = pytest.mark.slow
SHORT = ["data.limit=64", "recipe.epochs=2", "recipe.lr_warmup=0", "recipe.batch_size=32", "output_dir=out"]
RAMP = ["schedule.warmup=0", "schedule.ramp=1ep"]
RUNS = {
    "random": ["model=resnet20", "sparsity=0.9", "prune.exclude=[fc]", "model.arguments.shortcut=pad", *RAMP],
    "nm": ["model=resnet20", "prune=nm", "prune.n=1", "prune.m=4", "method=gmp", *RAMP],
    "channel": ["model=resnet20", "prune=channel", "sparsity=0.5", "seed=3", *RAMP],
    "block": ["model=resnet20", "prune=block", "prune.block=[8,2]", "sparsity=0.6", *RAMP],
    "dense": ["model=resnet20", "prune=none"],
}
RUN_LABELS = [("random", "random"), ("nm", "1:4"), ("channel", "channel"), ("block", "block-8x2")]
NEXT = ["recipe.epochs=2", "recipe.lr_warmup=0", "recipe.batch_size=32", "recipe.lr=0.02", "recipe.weight_decay=0.01"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run of each kind, made once: `<kind>` links to its directory."""
    folder = tmp_path_factory.mktemp("läufe und mehr")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, words in RUNS.items():
            before = set(Path().glob("out/*/seed*"))
            assert main("train", [*SHORT, *words]) == 0
            (made,) = set(Path().glob("out/*/seed*")) - before
            (folder / kind).symlink_to(made.resolve())
        shutil.copytree("random", "unfinished")
        Path("unfinished/record.json").unlink()
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def run(*words, code=0):
    before = set(Path().glob("out/*/seed*"))
    assert main("train", [*words, "output_dir=out"]) == code
    return next(iter(set(Path().glob("out/*/seed*")) - before), None)


def weights(path):
    return load_file(str(Path(path) / "model.safetensors"))


def zeros(state):
    return {key: value == 0 for key, value in state.items() if value.dim() in (2, 4)}


@pytest.mark.parametrize(("kind", "pattern"), RUN_LABELS)
def test_the_zeros_stay_and_the_rest_is_trained(here, kind, pattern):
    """Weight decay and momentum are on; what is held is exactly the old mask, and what is not is not zero."""
    made = run("model=resnet20", f"from={kind}", *NEXT)
    before, after = weights(kind), weights(made)
    assert all(torch.equal(mask, zeros(after)[key]) for key, mask in zeros(before).items())
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    old, new = read_record(Path(kind)), read_record(made)
    assert (new.method, new.pattern, new.allocation) == ("held", pattern, "held")
    assert (new.sparsity, new.sparsity_all, new.params_nonzero) == (old.sparsity, old.sparsity_all, old.params_nonzero)
    assert (new.target_sparsity, new.data_fingerprint) == (old.target_sparsity, old.data_fingerprint)
    assert new.start["config_hash"] == old.config_hash and new.start["seed"] == old.seed and new.seed == 0
    assert new.pretrained == f"run {old.run_id}" and any(f"begins with run {old.run_id}" in one for one in new.notes)
    # Before the first step it measures what the old run ended with.
    assert new.metric_before_pruning == old.metric


def test_what_nobody_typed_is_the_runs(here):
    theirs = compose([*SHORT, *RUNS["random"]])
    config = compose(["from=random", *NEXT])
    assert config.model == theirs.model and config.prune == theirs.prune and config.sparsity == 0.9
    assert config.data.limit == 64 and config.method.name == "held" and config.schedule.name == "constant"
    assert config.recipe.epochs == 2 and config.recipe.lr == 0.02
    config = compose(["from=random", "data.limit=32", "prune.exclude=[]", "debug=smoke"])
    assert config.data.limit == 32 and config.prune.exclude == []
    assert compose(["from=random", "debug=smoke"]).data.workers == 0
    config = compose(["from=channel", "start.mask=free", "method=gmp", "sparsity=0.3"])
    assert (config.method.name, config.prune.pattern, config.sparsity) == ("gmp", "channel", 0.3)
    config = compose(["from=nm", "start.mask=free", "prune=random", "sparsity=0.3"])
    assert (config.method.name, config.prune.pattern, config.sparsity) == ("pdp", "random", 0.3)
    assert compose(["from=random", "start.mask=free"]).sparsity == 0.9


def test_a_run_is_named_by_its_seeds_folder_too(here, tmp_path):
    seed = Path("random").resolve()
    assert compose([f"from={seed.parent}", "seed=7"]).start.run == str(seed)  # the only one
    shutil.copytree(seed, tmp_path / "runs" / "seed0")
    shutil.copytree(seed, tmp_path / "runs" / "seed2")
    assert compose([f"from={tmp_path}/runs", "seed=2"]).start.run == str(tmp_path / "runs" / "seed2")
    assert compose([f"start.run={tmp_path}/runs"]).start.run == str(tmp_path / "runs" / "seed0")


def test_the_identity_is_of_the_run_and_its_seed_wherever_it_lies(here, tmp_path):
    def identity(*words):
        return config_hash(compose([*words, *NEXT]), "data")

    held = identity("from=random")
    shutil.copytree("random", tmp_path / "elsewhere")
    assert identity(f"from={tmp_path}/elsewhere") == identity("model=resnet20", "from=random") == held
    assert len({held, identity("from=channel"), identity("from=random", "start.mask=free")}) == 3
    record = json.loads((tmp_path / "elsewhere" / "record.json").read_text())
    for key, value in {"seed": 1, "config_hash": "0123456789abcdef"}.items():
        (tmp_path / "elsewhere" / "record.json").write_text(json.dumps(record | {key: value}))
        assert identity(f"from={tmp_path}/elsewhere") != held


def test_free_weights_say_that_their_zeros_will_not_stay(here, capsys):
    record = read_record(Path("random"))
    made = run("from=random", "start.mask=free", "method=dense", *NEXT)
    state = weights("random")
    count = sum(int(mask.sum()) for mask in zeros(state).values() if float(mask.float().mean()) >= 0.01)
    (note,) = [one for one in read_record(made).notes if "will not stay" in one]
    assert f"has {count:,} zeros" in note and "start.mask=hold holds them" in note
    assert note in capsys.readouterr().out
    assert read_record(made).sparsity_all < 0.01 < record.sparsity_all
    save_file(state, "pruned.safetensors")
    made = run(
        "model=resnet20",
        "prune=none",
        "model.pretrained=pruned.safetensors",
        "model.arguments.shortcut=pad",
        "data.limit=64",
        *NEXT,
    )
    (note,) = [one for one in read_record(made).notes if "will not stay" in one]
    assert f"model.pretrained=pruned.safetensors has {count:,} zeros" in note and "from=<the run" in note
    save_file(weights("dense"), "dense.safetensors")
    made = run("model=resnet20", "prune=none", "model.pretrained=dense.safetensors", "data.limit=64", *NEXT)
    assert not [one for one in read_record(made).notes if "zeros" in one]


def test_a_dense_run_is_pruned_from_its_weights_and_a_held_one_goes_on_again(here):
    made = run("from=dense", "start.mask=free", "sparsity=0.8", *RAMP, *NEXT)
    assert read_record(made).method == "pdp" and read_record(made).start["method"] == "dense"
    again = run(f"from={made}", *NEXT)
    third = run(f"from={again}", *NEXT, "seed=1")
    assert zeros(weights(third)).keys() and all(
        torch.equal(mask, zeros(weights(third))[key]) for key, mask in zeros(weights(made)).items()
    )
    assert read_record(third).target_sparsity == 0.8 and read_record(third).start["method"] == "held"


def test_a_dry_run_shows_what_is_held_and_a_measured_run_agrees(here, capsys):
    assert main("train", ["from=nm", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "its zeros are held" in shown and "75.00 %" in shown and "which are held" in shown
    made = run("from=nm", "seed=5", *NEXT)
    shutil.move(Path("nm").resolve(), "moved")  # what it went on from is not needed to measure it
    try:
        assert main("evaluate", [f"run={made}"]) == 0
    finally:
        shutil.move("moved", Path("nm").resolve())
    assert "agrees with the record" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["from=nowhere"], "from=nowhere is no directory"),
        (["from=unfinished"], "has no record.json, so that run is not finished"),
        (["from=out"], "holds no run"),
        (["from=7"], "from=7 is no directory"),
        (["from=random", "model=resnet18"], "has model.name=resnet20, and this run has resnet18"),
        (["from=random", "model=timm", "model.name=resnet10t"], "model.name=resnet20"),
        (["from=random", "model.arguments.shortcut=projection"], "model.arguments"),
        (["from=random", "sparsity=0.5"], "sparsity=0.5: the zeros of .* are held, which is 0.9"),
        (["from=random", "method=gmp"], "method=gmp does not hold .*start.mask=free"),
        (["from=random", "prune=none"], "method=dense does not hold"),
        (["from=random", "prune=channel"], "pruned with prune=random, and its zeros are held, not prune=channel"),
        (["from=nm", "prune.n=2"], "prune.n=1 prune.m=4, and its zeros are held, not prune=nm prune.n=2"),
        (["from=random", "schedule.warmup=1ep"], "schedule.warmup has no effect"),
        (["from=random", "allocation=erk"], "allocation has no effect"),
        (["from=dense"], "has no zeros to hold: give start.mask=free"),
        (["from=dense", "start.mask=free"], "sparsity must be given"),
        (["from=random", "model.pretrained=true"], "both say what to begin with"),
        (["from=random", "start.mask=keep"], "start.mask=keep: no such choice"),
        (["from=random", "start.mask=free", "method=held"], "drop one of them"),
        (["model=resnet20", "sparsity=0.5", "start.mask=free"], "start.mask=free has no meaning without a run"),
        (["model=resnet20", "sparsity=0.5", "method=held"], "give from="),
        (["from=random", "start.run=nm"], "two spellings"),
        (["from=random", "prune.exclude=[nothing*]"], "prune.exclude=nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_refused_in_one_line(here, capsys, words, said):
    assert run(*words, *NEXT, code=2) is None
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line


def write_images(root, names):
    """A folder for each class; the pixels of a class are bright by its name alone, so that a trained model is right."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        low = {"a_dark": 0, "b_light": 170, "c_dark": 60}[name]
        for k in range(30):
            pixels = rng.integers(low, low + 60, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two folders of images with two classes each, one of them in both, and `dark`, a run on the first."""
    folder = tmp_path_factory.mktemp("classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(folder / "im1", ("a_dark", "b_light"))
        write_images(folder / "im2", ("b_light", "c_dark"))
        words = ["model=resnet20", "data=image_folder", "data.root=im1", "data.image_size=16", "prune=none"]
        assert main("train", [*words, "recipe.epochs=10", "recipe.batch_size=8", "output_dir=out"]) == 0
        (made,) = Path().glob("out/*/seed*")
        made.rename("dark")
    return folder


ONE = ["from=dark", "start.mask=free", "method=dense", "output_dir=next"]


def made_from(*words):
    shutil.rmtree("next", ignore_errors=True)
    named = [one for one in ONE if not one.startswith("from=") or not any("from=" in word for word in words)]
    assert main("train", [*named, *words]) == 0
    return next(iter(Path("next").glob("*/seed*")))


def test_other_classes_get_a_head_of_their_own_and_are_told(classes, monkeypatch, capsys):
    monkeypatch.chdir(classes)
    assert main("train", [*ONE, "data.root=im2", "recipe.epochs=0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "was trained for a_dark, b_light, and this data has b_light, c_dark" in line
    assert "give recipe.epochs=<at least 1>" in line
    made = made_from("data.root=im2", "recipe.epochs=1", "recipe.lr=1e-6", "recipe.batch_size=16")
    said = "the run was trained for a_dark, b_light, and this data has b_light, c_dark: fc starts random"
    assert said in read_record(made).notes and said in " ".join(capsys.readouterr().out.split())
    before, after = weights("dark"), weights(made)
    assert torch.allclose(before["conv1.weight"], after["conv1.weight"], atol=1e-3)
    assert not torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-2)
    with torch.random.fork_rng():
        first = make_model(config := compose([*ONE, "data.root=im2", "recipe.epochs=1"]), opened(config))
    assert torch.allclose(first.fc.weight, after["fc.weight"], atol=1e-3)


def opened(config):
    task = build_task(config)
    task.open_data()
    return task


def test_the_same_classes_go_on_and_in_another_order_by_their_names(classes, monkeypatch, capsys):
    monkeypatch.chdir(classes)
    metric = read_record(Path("dark")).metric
    assert metric > 0.9
    made = made_from("recipe.epochs=0")
    assert read_record(made).metric == metric and torch.equal(weights(made)["fc.weight"], weights("dark")["fc.weight"])
    # The run as of data whose classes came in another order.
    shutil.copytree("dark", "turned", dirs_exist_ok=True)
    record = json.loads(Path("turned/record.json").read_text())
    Path("turned/record.json").write_text(json.dumps(record | {"classes": ["b_light", "a_dark"]}))
    state = weights("dark")
    save_file(
        state | {f"fc.{one}": state[f"fc.{one}"].flip(0) for one in ("weight", "bias")}, "turned/model.safetensors"
    )
    made = made_from("recipe.epochs=0", "from=turned")
    assert read_record(made).metric == metric
    assert "the run's classes are b_light, a_dark: fc put in the data's order" in read_record(made).notes
    # Numbers may mean any names: which they are taken for is told.
    Path("turned/record.json").write_text(json.dumps(record | {"classes": ["0", "1"]}))
    made = made_from("recipe.epochs=0", "from=turned")
    assert any("0, 1, are taken to be a_dark, b_light" in one for one in read_record(made).notes)


def test_data_with_fixed_classes_is_told_apart_by_its_name(here, classes, capsys):
    words = ["start.mask=free", "method=dense", *NEXT]
    made = run("from=dense", *words, "data=image_folder", f"data.root={classes / 'im1'}", "data.image_size=32")
    said = "the run was trained for the classes of digits, and this data has a_dark, b_light: fc starts random"
    assert said in read_record(made).notes
    made = run("from=dense", *words, "seed=3", "data.limit=32")
    assert not any("starts random" in one for one in read_record(made).notes)
