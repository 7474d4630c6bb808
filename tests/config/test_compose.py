"""Composition: what the files set, which value wins, what is normalised, and config.yaml written and read back."""

from pathlib import Path

import pytest
from experiment_cells import DISTINCT, EXPERIMENTS, needed

from pdp.config.check_values import DATA, LANGUAGE_MODELS, MODELS, TEXT_DATA
from pdp.config.compose import compose
from pdp.config.data_schema import ImagesDataConfig
from pdp.config.groups import CONF, GROUPS, choices
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import Refusal
from pdp.methods.checks import PATTERNS_OF
from pdp.methods.options import OPTIONS, GmpOptions, PdpOptions


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def more_files(tmp_path):
    """A folder of further files in the search path: a model that picks its data, an experiment, a debug overlay."""

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}", encoding="utf-8")

    model = "model: {name: resnet18, task: images}\nrecipe: {lr: 0.02}\n"
    write("model/picky", f"defaults:\n  - override /data: cifar10\n{model}")
    write(
        "experiment/mine",
        "defaults:\n  - override /model: picky\n  - override /method: gmp\n"
        "sparsity: 0.7\nrecipe: {lr: 0.03, epochs: 7}\n",
    )
    write(
        "experiment/fashion",
        "defaults:\n  - override /model: picky\n  - override /data: fashion_mnist\nsparsity: 0.7",
    )
    write("debug/over", "recipe: {epochs: 5}\nsparsity: 0.6\n")
    write("model/typo", "model: {name: resnet18, task: images, nmae: 1}\n")
    return f"hydra.searchpath=[file://{tmp_path}]"


def test_mission_command():
    config = compose(["model=mobilenet_v1", "prune=random", "sparsity=0.866"])
    assert (config.model.name, config.data.name, config.recipe.name) == ("mobilenet_v1", "digits", "digits")
    assert config.method == PdpOptions() and config.prune.pattern == "random" and config.sparsity == 0.866
    assert (config.schedule.name, config.allocation.name) == ("linear", "global")
    assert config.data.unasked and isinstance(config.data, ImagesDataConfig)


@pytest.mark.parametrize(
    ("data", "recipe"),
    [("digits", "digits"), ("cifar10", "small_images"), ("fashion_mnist", "small_images"), ("imagenet", "imagenet")],
)
def test_data_picks_recipe(data, recipe):
    config = compose(["model=resnet18", "sparsity=0.5", f"data={data}", "dry_run=true"])
    assert (config.data.name, config.recipe.name, config.data.unasked) == (data, recipe, False)


def test_imagenet_recipe_brings_the_papers_schedule():
    config = compose(["model=resnet50", "sparsity=0.9", "data=imagenet", "data.root=/nowhere"])
    assert (config.schedule.warmup, config.schedule.rate, config.schedule.ramp) == ("16ep", 0.015, None)
    recipe = config.recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.lr_unit) == (0.256, 0.875, 3.0517578e-5, "epoch")
    assert not recipe.nesterov and config.data.validation == 0


def test_order_of_composition(more_files):
    def values(*overrides):
        config = compose([more_files, *overrides])
        return config.data.name, config.recipe.name, config.recipe.lr, config.recipe.epochs, config.sparsity

    assert values("model=picky", "sparsity=0.5") == ("cifar10", "small_images", 0.02, 30, 0.5)  # model > data > recipe
    assert values("experiment=mine") == ("cifar10", "small_images", 0.03, 7, 0.7)  # experiment > model
    assert values("experiment=mine", "debug=over") == ("cifar10", "small_images", 0.03, 5, 0.6)  # debug > experiment
    everything = ["experiment=mine", "debug=over", "data=digits", "recipe.lr=0.4", "sparsity=0.1"]
    assert values(*everything) == ("digits", "digits", 0.4, 5, 0.1)  # command line > debug
    assert values("experiment=fashion")[:2] == ("fashion_mnist", "small_images")  # experiment > what its model picks


def test_method_picks_schedule_and_allocation_unless_told():
    config = compose(["model=resnet18", "sparsity=0.5", "method=gmp"])
    assert (config.schedule.name, config.allocation.name) == ("cubic", "uniform")
    assert config.method == GmpOptions()
    config = compose(["model=resnet18", "sparsity=0.5", "method=gmp", "schedule=linear", "allocation=erk"])
    assert (config.schedule.name, config.allocation.name) == ("linear", "erk")


def test_a_key_that_a_file_misspells_is_refused(more_files):
    with pytest.raises(Refusal, match="nmae"):
        compose([more_files, "model=typo", "sparsity=0.5"])


# The others need words of their own, or set an option of their method, which no other takes: prune=none is refused.
PLAIN = [name for name in DISTINCT if not name.endswith(("budget", "finetune_90", "asp", "soft_90", "pofa_prune_90"))]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PLAIN)
@pytest.mark.parametrize("extra", [["debug=smoke"], ["prune=none"]])
def test_every_experiment_has_a_smoke_test_and_a_dense_run(experiment, extra):
    config = compose([f"experiment={experiment}", "dry_run=true", *extra])
    if extra == ["prune=none"]:
        assert config.method.name == "dense" and config.sparsity is None
    if extra == ["debug=smoke"]:
        assert config.distill.name == "none"
        assert config.recipe.epochs == 3 and config.data.noise_if_absent and config.schedule.rate is None
        if config.model.task == "images":
            assert config.data.image_size == config.model.smallest_input
        assert config.output_dir.endswith(".smoke")


@pytest.mark.slow
def test_every_choice_of_every_group_composes(tmp_path):
    budget = tmp_path / "budget.csv"
    budget.write_text("layer,share\nfc,0.5\n", encoding="utf-8")
    base = {"model": "resnet18", "dry_run": "true", "sparsity": "0.5"}
    # Choices that go with any model, data and recipe need no composition of their own: each goes with a model's.
    anywhere = ("schedule", "quantize", "distill", "tracker")
    riding = [(group, choice) for group in anywhere for choice in choices(group)]
    assert len(riding) < len(choices("model"))
    for group in GROUPS:
        for choice in choices(group):
            if choice == "held":
                continue  # it goes on from a run: tests/training/test_from_run.py
            extra = {group: choice}
            if group == "data" and choice in TEXT_DATA:
                extra |= {"model": "huggingface"}
                if choice == "glue":
                    extra["data.task"] = "cola"
            if group == "recipe" and choice in ("glue", "nli", "docstrings", "language_modelling"):
                extra["model"] = "bert_tiny"
            if choice == "timm" or "huggingface" in extra.values():
                extra["model.name"] = "resnet10t"
            if choice == "import":
                extra["model.name"] = "torchvision.models.resnet18"
            if choice == "file":
                extra |= {"allocation.path": str(budget), "sparsity": "null"}
            if choice in ("none", "dense") and group in ("prune", "method"):
                extra["sparsity"] = "null"
            if group == "method":
                extra["prune"] = PATTERNS_OF.get(choice, ("random",))[0]
            if choice == "asp":
                extra["schedule"] = "oneshot"
            if extra.get("prune") == "nm":
                extra["sparsity"] = "null"
            if group == "model" and riding:
                extra |= [riding.pop()]
            words = base | extra
            if group == "experiment" or group in anywhere:
                continue  # experiments: below
            compose([f"{key}={value}" for key, value in words.items()])
    assert not riding


def test_parts_of_experiments_are_no_choices_and_cells_win_over_them():
    assert not [name for name in EXPERIMENTS if "/_" in name]
    assert len(EXPERIMENTS) > 100
    config = compose(["experiment=imagenet/mobilenet_v1_random_866_str", "dry_run=true"])
    assert (config.method.initial, config.recipe.weight_decay) == (-12800.0, 3.751757813e-5)
    assert (config.recipe.lr, config.provenance["cell"][:5]) == (0.256, "paper")
    config = compose(["experiment=imagenet/mobilenet_v2_random_80_rigl", "dry_run=true"])
    assert (config.recipe.name, config.recipe.lr_drops) == ("imagenet_rigl", ["40ep", "75ep", "95ep"])
    assert (config.recipe.lr_warmup, config.recipe.label_smoothing) == (
        "8ep",
        0.1,
    )  # the cell, what its recipe builds on


def test_a_budget_must_be_given_where_an_experiment_takes_one(tmp_path):
    name = "experiment=imagenet/resnet18_random_855_pdp_str_budget"
    with pytest.raises(Refusal, match=r"needs allocation\.path: a CSV of layer,share or the directory of another run"):
        compose([name, "dry_run=true"])
    config = compose([name, "dry_run=true", *needed(name, tmp_path)])
    assert (config.sparsity, config.allocation.name, config.schedule.rate) == (None, "file", 0.015)


def test_a_budget_of_conf_goes_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    words = ["experiment=imagenet/resnet50_random_90_pdp_str_budget", "dry_run=true"]
    stored = CONF / "allocation" / "str_resnet50_9023.csv"
    assert compose(words).allocation.path == str(stored)
    monkeypatch.chdir(tmp_path)
    (tmp_path / stored.stem).write_text("layer,share\nfc,0.5\n", encoding="utf-8")
    assert compose(words).allocation.path == stored.stem
    with pytest.raises(
        Refusal, match=r"allocation.path=str_resnet5 does not exist: .* conf/allocation: str_resnet50_9023"
    ):
        compose([*words, "allocation.path=str_resnet5"])


def test_a_pruned_model_must_be_given_to_fine_tune_it():
    with pytest.raises(Refusal, match=r"give model\.pretrained=<its weights, or for a transformer its folder>"):
        compose(["experiment=glue/bert_base_mnli_pofa_finetune_90", "dry_run=true"])


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["recipe.lr_schedule=steps"], r"recipe\.lr_drops"),
        (["recipe.lr_drops=[3ep]"], r"lr_schedule=cosine: give recipe\.lr_drops=\[\]"),
        (["recipe.lr_schedule=steps", "recipe.lr_drops=[3]"], "is not a time"),
    ],
)
def test_a_rate_falls_in_steps_where_it_is_said_when(words, refusal):
    with pytest.raises(Refusal, match=refusal):
        compose(["model=resnet18", "sparsity=0.5", *words])


def test_files_and_known_names_agree():
    assert {*choices("model")} == {*MODELS, *LANGUAGE_MODELS, "timm", "huggingface", "import"}
    assert {*choices("data")} == {*DATA, *TEXT_DATA}
    assert {*choices("method")} == {*OPTIONS}
    others = {"hydra", "sweep", "study"}  # Hydra's own, and the files of submit.py and compare.py
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*GROUPS} | others


def test_imagenet_dir_and_data_root_name_imagenet(monkeypatch):
    base = ["model=resnet18", "sparsity=0.5"]
    config = compose([*base, "data.root=/somewhere/else"])
    assert (config.data.name, config.data.root, config.data.unasked) == ("imagenet", "/somewhere/else", False)
    monkeypatch.setenv("IMAGENET_DIR", "/data/image net,1")
    config = compose(base)
    assert (config.data.name, config.data.root, config.recipe.epochs) == ("imagenet", "/data/image net,1", 100)
    assert compose([*base, "data=imagenet"]).data.root == "/data/image net,1"
    assert compose([*base, "data.root=/mine"]).data.root == "/mine"
    config = compose([*base, "data=digits"])
    assert (config.data.name, config.data.root, config.data.unasked) == ("digits", None, False)
    assert compose(["experiment=digits/mobilenet_v1_random_866"]).data.name == "digits"


def test_home_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = compose(["model=resnet18", "sparsity=0.5", "data.root=~/imagenet"])
    assert config.data.root == "/home/someone/imagenet"


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_plus_signs_change_nothing(prefix):
    plain = compose(["model=resnet18", "sparsity=0.5", "recipe.lr=0.3"])
    assert compose(["model=resnet18", f"{prefix}sparsity=0.5", f"{prefix}recipe.lr=0.3"]) == plain


def test_model_arguments_are_free():
    config = compose(["model=resnet18", "sparsity=0.5", "model.arguments.drop_rate=0.1", "model.arguments={a: [1, 2]}"])
    assert config.model.arguments == {"drop_rate": 0.1, "a": [1, 2]}


def test_typing_ramp_or_rate_resets_the_other():
    base = ["model=resnet18", "sparsity=0.5", "data=imagenet", "dry_run=true"]
    config = compose([*base, "schedule.ramp=30ep"])
    assert (config.schedule.ramp, config.schedule.rate) == ("30ep", None)
    config = compose([*base, "debug=smoke", "schedule.rate=0.5"])
    assert (config.schedule.ramp, config.schedule.rate) == (None, 0.5)
    assert compose([*base, "schedule.ramp=null"]).schedule.rate == 0.015
    assert compose([*base, "schedule.rate=null"]).schedule.rate is None


def test_two_spellings_of_the_dense_run_are_one():
    dense = compose(["model=resnet18", "method=dense"])
    others = [["prune=none"], ["prune=none", "method=dense", "sparsity=0"], ["method=dense", "prune.exclude=[fc]"]]
    others += [["prune=none", "schedule=cubic", "schedule.warmup=3ep", "allocation=erk"]]
    for other in others:
        assert compose(["model=resnet18", *other]) == dense
    assert (dense.sparsity, dense.prune.pattern, dense.method.name) == (None, "none", "dense")


def test_pretrained_is_spelled_one_way(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"x")
    base = ["model=resnet18", "sparsity=0.5"]
    assert compose([*base, "model.pretrained=False"]).model.pretrained == "false"
    assert compose([*base, "model.pretrained=true"]).model.pretrained == "true"
    assert compose([*base, f"model.pretrained={weights}"]).model.pretrained == str(weights)


def test_yaml_there_and_back():
    for overrides in (["sparsity=0.5", "method=gmp", "method.update_every=7"], ["prune=none", "model.arguments.a=1"]):
        config = compose(["model=resnet18", *overrides])
        again = from_yaml(to_yaml(config))
        assert again == config and type(again.data) is ImagesDataConfig
    for damaged in ("", "model: 3", "][", to_yaml(config).replace("epochs", "epoch")):
        with pytest.raises(Refusal, match="config.yaml"):
            from_yaml(damaged)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["model=bert_tiny"], ("text_classification", "grammar_nli", "nli", True)),
        (["model=gpt2_tiny"], ("language_modelling", "docstrings", "docstrings", True)),
        (["model=bert_base", "data=glue", "data.task=mnli"], ("text_classification", "glue", "glue", False)),
        (["model=huggingface", "model.name=a/b"], ("text_classification", "grammar_nli", "nli", True)),
        (["model=huggingface", "model.name=a/b", "data=wikitext"],
         ("language_modelling", "wikitext-2", "language_modelling", False)),
        (["model=huggingface", "model.name=a/b", "model.task=language_modelling"],
         ("language_modelling", "docstrings", "docstrings", True)),
    ],
)  # fmt: skip
def test_text_models_have_data_of_their_own(chosen, expected, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/data/imagenet")  # is no text
    config = compose([*chosen, "sparsity=0.9"])
    assert (config.model.task, config.data.name, config.recipe.name, config.data.unasked) == expected
    assert (config.schedule.unit, config.recipe.optimizer) == ("step", "adamw")
    assert from_yaml(to_yaml(config)) == config


def test_composition_needs_no_particular_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose(["model=resnet18", "sparsity=0.5"]).output_dir == "results/runs"
    assert list(Path(tmp_path).iterdir()) == []
