"""A run's identity: what changes the hash, what does not, and in which folder the run is stored."""

import copy
import dataclasses
import json
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdp.config.data_schema import ImagesDataConfig
from pdp.config.identity import changed_values, config_hash, run_directory
from pdp.config.schema import AllocationConfig, Config, ModelConfig, PruneConfig, RecipeConfig, ScheduleConfig
from pdp.errors import Refusal
from pdp.methods.options import DenseOptions, GmpOptions, PdpOptions

DATA = "0123456789abcdef"


def make_config() -> Config:
    return Config(
        model=ModelConfig(name="resnet18", task="images", smallest_input=32),
        data=ImagesDataConfig(name="digits"),
        recipe=RecipeConfig(name="digits", epochs=12, batch_size=32, lr=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(name="linear"),
        allocation=AllocationConfig(name="global"),
        method=PdpOptions(),
        prune=PruneConfig(pattern="random"),
        sparsity=0.9,
    )


def changed(key: str, value: object) -> Config:
    config = make_config()
    *parents, last = key.split(".")
    node = config
    for part in parents:
        node = getattr(node, part)
    setattr(node, last, value)
    return config


def test_the_hash_is_what_it_always_was():
    assert changed_values(make_config()) == {
        "model.name": "resnet18",
        "model.task": "images",
        "model.smallest_input": 32,
        "data.name": "digits",
        "recipe.epochs": 12,
        "recipe.batch_size": 32,
        "recipe.lr": 0.1,
        "recipe.weight_decay": 0.0005,
        "schedule.name": "linear",
        "allocation.name": "global",
        "method.name": "pdp",
        "prune.pattern": "random",
        "sparsity": 0.9,
    }
    assert config_hash(make_config(), DATA) == "e7fe4469884721cb"


def test_run_directory():
    path = run_directory(dataclasses.replace(make_config(), seed=3, output_dir="out"), DATA)
    digits = config_hash(make_config(), DATA)[:8]
    assert path.as_posix() == f"out/resnet18-digits-pdp-random-0.9-{digits}/seed3"
    dense = dataclasses.replace(make_config(), method=DenseOptions(), prune=PruneConfig(pattern="none"), sparsity=None)
    assert run_directory(dense, DATA).parent.name.startswith("resnet18-digits-dense-none-0-")
    assert run_directory(changed("sparsity", 0.0), DATA).parent.name.startswith("resnet18-digits-pdp-random-0-")
    odd = run_directory(changed("model.name", "hf_hub:a/../b c"), DATA)
    assert re.fullmatch(r"hf_hub_a_.._b_c-digits-pdp-random-0\.9-[0-9a-f]{8}", odd.parent.name)
    assert run_directory(changed("model.name", "../.."), DATA).parent.parent.as_posix() == "results/runs"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("resume", False),
        ("rerun", True),
        ("dry_run", True),
        ("tracker.name", "wandb"),
        ("output_dir", "/elsewhere"),
        ("device", "cuda"),
        ("provenance", "a paper"),
        ("recipe.name", "other"),
        ("data.workers", 8),
        ("data.root", "/data"),
        ("data.unasked", True),
        ("schedule.warmup", "0.160"),
        ("recipe.lr_warmup", "0.0"),
        ("sparsity", 0.90),
        ("prune.exclude", []),
    ],
)
def test_what_does_not_move_the_hash(key, value):
    assert config_hash(changed(key, value), DATA) == config_hash(make_config(), DATA)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.name", "resnet34"),
        ("model.pretrained", "true"),
        ("model.arguments", {"drop_rate": 0.1}),
        ("data.limit", 100),
        ("data.image_size", 64),
        ("data.noise_if_absent", True),
        ("recipe.lr", 0.2),
        ("recipe.precision", "bf16"),
        ("schedule.name", "cubic"),
        ("schedule.warmup", "16ep"),
        ("schedule.warmup", "auto"),
        ("schedule.rate", 0.5),
        ("allocation.name", "erk"),
        ("method", PdpOptions(temperature=1e-5)),
        ("method", GmpOptions()),
        ("prune.exclude", ["fc"]),
        ("sparsity", 0.91),
    ],
)
def test_what_moves_the_hash(key, value):
    assert config_hash(changed(key, value), DATA) != config_hash(make_config(), DATA)


def test_data_move_the_hash_by_their_fingerprint():
    assert config_hash(make_config(), "a") != config_hash(make_config(), "b")


def test_a_new_option_with_a_default_moves_no_run():
    @dataclass
    class LaterRecipe(RecipeConfig):
        mixup: float = 0.0

    @dataclass
    class LaterPdp(PdpOptions):
        sharpen: bool = False

    later = make_config()
    later.recipe = LaterRecipe(**dataclasses.asdict(later.recipe))
    later.method = LaterPdp()
    assert config_hash(later, DATA) == config_hash(make_config(), DATA)
    later.recipe.mixup = 0.2
    assert config_hash(later, DATA) != config_hash(make_config(), DATA)


@given(st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_one_hash_for_one_configuration(sparsity, seed):
    one = dataclasses.replace(make_config(), sparsity=sparsity, seed=seed)
    other = dataclasses.replace(make_config(), sparsity=float(repr(sparsity)), seed=0)
    assert config_hash(one, DATA) == config_hash(other, DATA)
    assert run_directory(one, DATA).parent == run_directory(other, DATA).parent


@given(st.permutations(["fc", "layer1.*", "conv1"]))
def test_the_order_of_excluded_patterns_does_not_matter(patterns):
    one, other = changed("prune.exclude", patterns), changed("prune.exclude", ["fc", "layer1.*", "conv1", "fc"])
    assert config_hash(one, DATA) == config_hash(other, DATA)


@given(st.floats(0.001, 10), st.floats(0.001, 10))
def test_different_rates_have_different_hashes(one, other):
    same = config_hash(changed("recipe.lr", one), DATA) == config_hash(changed("recipe.lr", other), DATA)
    assert same == (one == other)


def test_files_enter_by_content(tmp_path):
    def hashes(key: str) -> list[str]:
        found = []
        for name, content in (("a.bin", b"one"), ("b.bin", b"one"), ("c.bin", b"two")):
            (tmp_path / name).write_bytes(content)
            found.append(config_hash(changed(key, str(tmp_path / name)), DATA))
        return found

    for key in ("model.pretrained", "allocation.path"):
        first, same, other = hashes(key)
        assert first == same != other
        with pytest.raises(Refusal, match=re.escape(key)):
            config_hash(changed(key, str(tmp_path / "absent")), DATA)


def test_a_run_enters_by_its_hash_and_seed(tmp_path):
    def of(name: str, record: dict | str | None, layers: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "layers.csv").write_text(layers, encoding="utf-8")
        if record is not None:
            text = record if isinstance(record, str) else json.dumps(record)
            (folder / "record.json").write_text(text, encoding="utf-8")
        return config_hash(changed("allocation.path", str(folder)), DATA)

    run = {"config_hash": "ab", "seed": 0}
    assert of("a", run, "x") == of("b", run | {"metric": 1}, "y")
    assert len({of("c", run, "x"), of("d", run | {"seed": 1}, "x"), of("e", run | {"config_hash": "cd"}, "x")}) == 3
    assert of("f", None, "x") == of("g", "{damaged", "x") != of("h", None, "y")


def test_hashing_changes_nothing():
    config = make_config()
    before = copy.deepcopy(config)
    config_hash(config, DATA)
    run_directory(config, DATA)
    assert config == before
