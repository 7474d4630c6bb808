"""recipe.sharding=fsdp: masks, counts and weights of parts on two and four processes are those of one process."""

import functools
import signal
from pathlib import Path

import pytest
import sharding_worker
import torch
from forked import wait_for
from forked_ranks import in_ranks
from tiny_language import TINY, write_text

import pdp
from pdp.benchmarks.forked_runs import Start, two_ranks
from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.errors import Refusal
from pdp.runs.checkpoint import read_tensors
from pdp.runs.record import read_record
from pdp.training.export_run import ExportedRun, export

# Every pattern on both models; the other methods find their cuts in the same way, and two processes show theirs.
ON_FOUR = [case for case in sharding_worker.CASES if case[1] == "pdp"]
MODELS = ["transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"]


@pytest.fixture(scope="module")
def left_by_processes(tmp_path_factory):
    """What each of so many processes was left with; they are started at the first question."""

    @functools.cache
    def left(processes):
        folder = tmp_path_factory.mktemp("fsdp")
        method = [] if processes == 2 else ["pdp"]
        arguments = (str(folder), *method)
        in_ranks(processes, sharding_worker.main, *arguments, log=folder / "log", imports=MODELS)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]

    return left


@functools.cache
def left_by_one(case):
    return sharding_worker.what_is_left(*sharding_worker.train(0, 1, False, *case))


def equal(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    return torch.equal(one, two) if torch.is_tensor(one) else one == two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "case"),
    [(2, case) for case in sharding_worker.CASES] + [(4, case) for case in ON_FOUR],
    ids=lambda one: str(one) if isinstance(one, int) else " ".join(one),
)
def test_parts_on_several_processes_are_one_process(processes, case, left_by_processes):
    one, *others = (left[" ".join(case)] for left in left_by_processes(processes))
    assert len(others) == processes - 1 and all(equal(one, other) for other in others)
    alone = left_by_one(case)
    for key in ("keep", "final", "pruned", "nonzero"):
        assert equal(one[key], alone[key])
    assert any(one["pruned"][name] > 0 for name in one["pruned"])
    # A unit's mask, and the sum of the gradients that reaches it, are float32: each process rounds that of its examples.
    near = 1e-5 if case[2] == "channel" else 1e-9
    for key in ("soft", "hard"):
        for name, value in alone[key].items():
            assert torch.allclose(one[key][name], value, rtol=1e-6, atol=near), name
            assert torch.equal(one[key][name] == 0, value == 0), name


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def start(arguments: list[str], processes: int) -> list[Start]:
    log = output_of(arguments) / "log"
    return two_ranks(arguments, log) if processes == 2 else [Start(arguments, log)]


def output_of(arguments: list[str]) -> Path:
    return Path(next(one for one in arguments if one.startswith("output_dir=")).partition("=")[2])


def killed_after_an_epoch(arguments, processes):
    ranks = start(arguments, processes)
    wait_for(lambda: any(output_of(arguments).glob("*/seed0/checkpoint/step-*.pt")), *ranks)
    for one in ranks:
        one.send(signal.SIGKILL)
    assert ranks[0].wait() == -signal.SIGKILL and ranks[-1].wait() != 0, ranks[0].output


def left_by(output):
    (run,) = output.glob("*/seed0")
    return read_record(run), read_tensors(run / "model.safetensors"), run


def alike(one, two):
    record, weights, _ = one
    other, expected, _ = two
    assert (record.config_hash, record.sparsity, record.steps) == (other.config_hash, other.sparsity, other.steps)
    assert record.metric == pytest.approx(other.metric, rel=1e-4)
    assert record.metric_before_pruning == pytest.approx(other.metric_before_pruning, rel=1e-4)
    assert record.metric_best == pytest.approx(other.metric_best, rel=1e-4)
    assert (record.params_nonzero, record.macs_sparse) == (other.params_nonzero, other.macs_sparse)
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=2e-4) for name in expected)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    pdp.run([*TINY, f"data.root={text}", f"output_dir={output}"])
    return left_by(output)


@pytest.mark.slow
def test_a_run_goes_on_from_two_sharded_processes_to_one(text, tmp_path, uninterrupted):
    arguments = [*TINY, f"data.root={text}", f"output_dir={tmp_path}", "recipe.epochs=4"]
    killed_after_an_epoch([*arguments, "recipe.sharding=fsdp"], 2)
    pdp.run(arguments)
    left = left_by(tmp_path)
    alike(left, uninterrupted)
    assert [(one["sharding"], one["processes"]) for one in left[0].ran_under] == [("fsdp", 2), ("none", 1)]
    assert left[0].ran_under[1]["from_step"] > 0
    assert uninterrupted[0].ran_under == [{"sharding": "none", "processes": 1, "from_step": 0}]


@pytest.mark.slow
def test_a_run_goes_on_from_one_process_to_two_sharded_and_from_pretrained_opens_it(text, tmp_path, uninterrupted):
    from transformers import AutoModelForCausalLM

    arguments = [*TINY, f"data.root={text}", f"output_dir={tmp_path}"]
    killed_after_an_epoch(arguments, 1)
    ranks = start([*arguments, "recipe.sharding=fsdp"], 2)
    assert [one.wait() for one in ranks] == [0, 0], ranks[0].output
    assert "going on from epoch" in ranks[0].output
    left = left_by(tmp_path)
    alike(left, uninterrupted)
    assert [(one["sharding"], one["processes"]) for one in left[0].ran_under] == [("none", 1), ("fsdp", 2)]
    (tmp_path / "folder").mkdir()
    export(ExportedRun(left[2]), "safetensors", tmp_path / "folder")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    weight = opened.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(weight, left[1]["transformer.h.0.mlp.c_fc.weight"]) and (weight == 0).any()


def test_it_moves_no_identity_and_what_it_cannot_do_is_refused_in_a_line():
    plain = ["model=gpt2_tiny", "sparsity=0.5"]
    config = compose([*plain, "recipe.sharding=fsdp"])
    assert config_hash(config, "x") == config_hash(compose(plain), "x")
    for more, said in (
        (["method=str"], "method=str reads gradients"),
        (["recipe.ema=0.9"], "give recipe.ema=null"),
        (["recipe.compile=true"], "give recipe.compile=false"),
        (["recipe.on_nonfinite=skip"], "give recipe.on_nonfinite=stop"),
        (["recipe.precision=fp16"], "give recipe.precision=bf16"),
        (["recipe.sharding=zero"], "recipe.sharding=zero"),
        (["method.temperature_mode=learned"], "method.temperature_mode=relative"),
    ):
        with pytest.raises(Refusal) as caught:
            compose([*plain, "recipe.sharding=fsdp", *more])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(Refusal, match="for language models"):
        compose(["model=resnet20", "sparsity=0.5", "recipe.sharding=fsdp"])
