"""The benchmarks time and count what they say; small runs of each check their figures, not the speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from counting_contender import counting

from pdp.benchmarks import benchmarking, step_memory
from pdp.benchmarks.benchmarking import Apart, command
from pdp.benchmarks.contender import Contender, own_seconds
from pdp.benchmarks.forked_runs import CONTEXT
from pdp.benchmarks.made_images import make_image_folder
from pdp.benchmarks.measured_words import pruned_words, words
from pdp.benchmarks.step_memory import allocated
from pdp.benchmarks.step_timing import Pairs, in_turn, quartiles
from pdp.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_cut  # noqa: E402
import benchmark_loading  # noqa: E402
import benchmark_overhead  # noqa: E402
import benchmark_training  # noqa: E402

pytestmark = pytest.mark.slow

SMALL = ["model=resnet20", "data=imagenet", "data.noise_if_absent=true", "data.image_size=16", "recipe.batch_size=2"]
SMALL += ["recipe.lr=1e-4", "device=cpu"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def forked():
    """The benchmarks' processes are forked from a server that never trains: a start of Python outlasts these steps."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (benchmarking, step_memory):
            patch.setattr(module, "multiprocessing", SimpleNamespace(get_context=lambda name: CONTEXT))
        yield


class Drifting:
    """Takes `cost` a step on a machine that gets slower with every measurement."""

    taken: list["Drifting"] = []

    def __init__(self, cost: float):
        self.cost = cost

    def seconds(self, steps: int) -> float:
        self.taken.append(self)
        return steps * self.cost * 1.01 ** len(self.taken)


def test_contenders_apart_live_in_processes_of_their_own():
    first, second = Apart(counting, 5), Apart(counting, 9)
    assert [first.seconds(2), first.seconds(1), second.seconds(4)] == [1.0, 0.5, 2.0]
    assert [one["left"] for one in first.seen] == [3, 2] and second.seen[0]["left"] == 5
    assert len({first.seen[0]["process"], first.seen[1]["process"], second.seen[0]["process"], os.getpid()}) == 3
    with pytest.raises(Refusal, match="3 steps of 2"):
        first.seconds(3)
    first.close(), second.close()


def test_pairs_are_timed_in_turn_and_a_drift_cancels():
    Drifting.taken = []
    first, second, told = Drifting(2.0), Drifting(2.1), []
    pairs = in_turn(first, second, rounds=4, steps=3, warmup=1, tell=lambda: told.append(1))
    names = "".join("ab"[one is second] for one in Drifting.taken)
    assert names == "ab" + "abbaabba" and len(told) == 10
    assert median(pairs.ratios) == pytest.approx(1.05, abs=1e-4)
    assert pairs.ratios == pytest.approx([1.05 * 1.01, 1.05 / 1.01] * 2)
    assert pairs.repeats == pytest.approx([1.01] * 3)  # the same contender's, one measurement later
    assert Pairs([(1.0, 2.0)]).repeats == []
    assert quartiles([1, 2, 3, 4, 5]) == [2, 4]


def test_a_contender_steps_as_the_trainer_does():
    words = ["model=resnet20", "data=digits", "debug=smoke", "device=cpu", "sparsity=0.5", "recipe.clip=0.1"]
    contender = Contender(words)
    model, batch = contender.model, contender.batch
    assert contender.pruner.share == pytest.approx(0.5, abs=1e-4)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    loss = contender.task.loss(model, batch, contender.recipe.label_smoothing)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([one.norm() for one in gradients]).norm()
    assert norm > 0.1
    contender.step()
    group = contender.optimizer.param_groups[1]  # without decay; the first step of nesterov is (1 + momentum) times
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        if any(parameter is one for one in group["params"]):
            moved = group["lr"] * (1 + group["momentum"]) * gradient * (0.1 / norm)
            torch.testing.assert_close(before[name] - parameter.detach(), moved, rtol=1e-3, atol=1e-6)
    assert contender.steps == 1


@pytest.mark.parametrize(
    "words",
    [["method=acdc"], ["method=pdp", "schedule.unit=step", "schedule.rate=null", "schedule.warmup=0.1"]],
)
def test_a_contender_whose_schedule_counts_steps_is_at_its_target_too(words):
    contender = Contender([*SMALL, "sparsity=0.5", "recipe.epochs=10", *words], made=True)
    contender.step()
    assert contender.pruner.share == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ["model=bert_tiny", "data=glue", "data.task=mnli", "data.max_length=12", "data.vocabulary=300"],
        ["model=gpt2_tiny", "data=wikitext", "data.context=12", "data.vocabulary=300"],
        SMALL[:-3],
    ],
    ids=["bert", "gpt2", "resnet"],
)
def test_made_batches_are_trained_on_and_every_part_is_timed(words):
    words = [*words, "recipe.batch_size=2", "device=cpu", "data.noise_if_absent=true", "sparsity=0.5"]
    contender = Contender(words, made=True)
    stored = [member.tensor for layer in contender.pruner.layers for member in layer.members]
    before = [one.detach().clone() for one in stored]
    contender.step()
    assert all(not torch.equal(one, was) for one, was in zip(stored, before, strict=True))
    parts = own_seconds(contender, repeats=2)
    assert parts.keys() == {"copy", "cut", "mask", "backward"}
    assert all(len(taken) == 2 and min(taken) > 0 for taken in parts.values())


def test_a_known_allocation_is_counted():
    kept = []

    def work():
        first = torch.empty(1000, 1000)
        second = torch.cat([first, first])
        del first
        kept.append(torch.empty(250_000))
        del second

    peak, left = allocated(work, CPU)
    assert peak == 12_000_000  # first and second; later second and what is kept
    assert left == 1_000_000
    kept.clear()
    peak, left = allocated(kept.clear, CPU, lambda: kept.extend([torch.empty(500_000), torch.empty(500_000).sqrt()]))
    assert (peak, left) == (4_000_000, 0)  # what was held before, but not what making it took


def test_overhead_of_a_small_model_and_the_table_of_files(tmp_path, capsys):
    out = tmp_path / "figures.json"
    line = f"--model resnet20 --batch 2 --size 16 --pairs 2 --device cpu --threads 1 --out {out}"
    assert benchmark_overhead.run(benchmark_overhead.parsed(line.split())) == 0
    written = json.loads(out.read_text())
    assert {"device", "threads", "torch", "versions", "command", "load_average"} <= written["machine"].keys()
    (row,) = written["results"]
    assert (row["pattern"], row["held"]) == ("random", None)
    assert row["measured_steps"] == [4, 4]  # two to warm up, two measured
    assert row["pairs"] == 2 and row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
    weights = 4 * row["weights"]
    assert 3 * weights < row["dense_peak_bytes"] < 6 * weights  # with gradients and momenta; tiny images
    assert row["extra_bytes"] == row["pdp_peak_bytes"] - row["dense_peak_bytes"]
    assert row["extra_of_weights"] == pytest.approx(row["extra_bytes"] / weights)
    assert 0.2 < row["extra_of_weights"] < 2.5  # the largest moment need not be the one with all masked weights
    assert row["memory_held"] == (row["extra_of_weights"] <= 1.1)
    capsys.readouterr()
    for file in (out, ROOT / "results" / "benchmarks" / "overhead_cpu.json"):
        assert benchmark_overhead.run(benchmark_overhead.parsed(["--show", str(file)])) == 0
        assert json.loads(file.read_text())["results"][0]["model"] in capsys.readouterr().out


def test_presets_are_the_targets():
    targets = {
        name: {
            (row[0], row[1]): row[2]
            for row in benchmark_overhead.rows_of(benchmark_overhead.parsed(["--preset", name]))
        }
        for name in ("cpu", "gpu")
    }
    assert targets["cpu"]["resnet50", 16]["random"] == 1.03 and targets["cpu"]["bert_base", 8]["random"] == 1.05
    assert {key: rows["random"] for key, rows in targets["gpu"].items()} == {
        ("resnet50", 256): 1.01,
        ("mobilenet_v1", 512): 1.02,
        ("gpt2", 8): 1.01,
    }
    assert [rows["nm"] for rows in targets["gpu"].values()] == [1.02, 1.02, 1.01]
    assert all(rows["channel"] == 1.02 for rows in targets["gpu"].values())
    from pdp.config.compose import compose

    for name in targets:
        arguments = benchmark_overhead.parsed(["--preset", name, "--device", "cpu"])
        for model, batch, patterns in benchmark_overhead.rows_of(arguments):
            for pattern in patterns:
                base = words(model, batch, vars(arguments))
                config = compose([*base, *pruned_words(model, pattern, [])])
                assert (config.recipe.batch_size, config.method.name) == (batch, "pdp")
    with pytest.raises(Refusal, match="--preset cpu has resnet50"):
        benchmark_overhead.rows_of(benchmark_overhead.parsed(["--preset", "cpu", "--model", "gpt2"]))


def test_loading_counts_the_same_images_for_both(tmp_path):
    out = tmp_path / "figures.json"
    line = f"--images 12 --sides 60 48 --size 32 --batch 4 --rounds 1 --rate 100 --out {out}"
    assert benchmark_loading.run(benchmark_loading.make_parser().parse_args(line.split())) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["loader"] for row in rows] == ["pdp", "pdp, bytes"]
    for row in rows:
        assert row["images"] == row["torchvision_images"] == [12]
        assert row["ratio"] == pytest.approx(row["per_core"] / row["torchvision_per_core"])
        assert row["cores_for_rate"] == pytest.approx(100 / row["per_core"])
    with pytest.raises(Refusal, match="has no train/"):
        benchmark_loading.run(benchmark_loading.make_parser().parse_args(["--root", str(tmp_path)]))


def test_the_cost_of_cut_and_mask_is_told_per_weight_and_per_layer(tmp_path):
    out = tmp_path / "figures.json"
    line = f"--millions 2 1 --layers 1 4 --total 1 --rounds 3 --threads 1 --out {out}"
    assert benchmark_cut.run(benchmark_cut.make_parser().parse_args(line.split())) == 0
    figures = json.loads(out.read_text())
    rows = figures["results"]
    assert [(row["what"], row["pass"]) for row in rows] == [
        (what, kind) for what in ("layers", "one layer", "4 layers over 1, 1 M") for kind in ("forward", "backward")
    ]
    for row in rows[:4]:
        costs = {total: median(spent) / int(total) / 1e6 * 1e9 for total, spent in row["seconds"].items()}
        assert row["nanoseconds_a_weight"] == pytest.approx(costs) and all(map(len, row["seconds"].values()))
        assert row["largest_over_smallest"] == pytest.approx(costs["2"] / costs["1"])
    for row in rows[4:]:
        many, few = row["seconds"]["4"], row["seconds"]["1"]
        assert row["ratio"] == pytest.approx(median(one / other for one, other in zip(many, few, strict=True)))
    assert figures["machine"]["share"] == 0.9
    with pytest.raises(Refusal, match="no such file"):
        benchmark_cut.run(benchmark_cut.make_parser().parse_args(["--peer", str(tmp_path / "python")]))


def test_training_takes_the_same_steps_in_both(tmp_path):
    out = tmp_path / "figures.json"
    line = (
        "--model resnet20 --images 14 --sides 60 48 --size 32 --batch 4 --epochs 3 --rounds 1 --workers 0 --threads 1"
    )
    assert benchmark_training.run(benchmark_training.parsed([*line.split(), "--out", str(out)])) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert row["pdp_steps"] == row["timm_steps"] == 6  # two counted epochs of three whole batches
    assert row["ratio"] == pytest.approx(row["pdp_per_second"] / row["timm_per_second"])
    assert row["target"] == 0.98 and row["held"] == (row["ratio"] >= 0.98)
    with pytest.raises(Refusal, match="--epochs=1"):
        benchmark_training.run(benchmark_training.parsed(["--epochs", "1"]))
    with pytest.raises(Refusal, match="--decode=gpu needs a CUDA device"):
        benchmark_training.run(benchmark_training.parsed(["--decode", "gpu"]))


def test_made_images_weigh_what_imagenets_do(tmp_path):
    from PIL import Image

    root = make_image_folder(tmp_path, 6, classes=2)
    files = sorted((root / "train").rglob("*.jpg"))
    assert len(files) == 6 and len(list((root / "val").rglob("*.jpg"))) == 2
    assert {Image.open(file).size for file in files} <= {(500, 375), (375, 500)}
    assert 80_000 < sum(file.stat().st_size for file in files) / 6 < 150_000
    changed = files[0].stat().st_mtime_ns
    make_image_folder(tmp_path, 6, classes=2)
    assert files[0].stat().st_mtime_ns == changed


def test_a_profile_names_what_is_long_and_methods_take_the_patterns_they_know(tmp_path, capsys):
    out = tmp_path / "figures.json"
    line = "--model resnet20 --batch 2 --size 16 --pairs 1 --device cpu --threads 1 --no-memory --profile --target 9"
    line += f" --method gmp srste asp --out {out}"
    assert benchmark_overhead.run(benchmark_overhead.parsed(line.split())) == 0
    rows = json.loads(out.read_text())["results"]
    assert [(row["method"], row["pattern"]) for row in rows] == [("gmp", "random"), ("srste", "nm"), ("asp", "nm")]
    assert "starts from a trained model" in rows[2]["refused"] and rows[2]["held"] is None
    assert [row["held"] for row in rows[:2]] == [True, True] and rows[0]["target"] == 9
    assert [sorted(row["profile"]) for row in rows[:2]] == [["dense", "pruned"], ["pruned"]]
    host = rows[0]["profile"]["pruned"]["host"]
    assert [one["ms"] for one in host] == sorted((one["ms"] for one in host), reverse=True)
    assert {"aten::convolution_backward", "aten::mkldnn_convolution"} & {one["name"] for one in host}
    assert "srste" in capsys.readouterr().out
    with pytest.raises(Refusal, match="needs a GPU"):
        benchmark_overhead.run(
            benchmark_overhead.parsed(["--model", "resnet20", "--size", "16", "--ways", "captured", "--device", "cpu"])
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "nothing is no row: choose among compiled_images training decoding"),
        (["--fast"], "--fast is no option"),
        (["--seconds", "0"], "--seconds=0: give a whole number of at least 1"),
        (["--seconds"], "--seconds needs a value"),
        (["--python", "/no/python", "cut"], "--python=/no/python is no program"),
    ],
)
def test_what_the_script_for_gpus_does_not_know_is_refused_in_one_line(words, told):
    done = subprocess.run(["bash", str(ROOT / "scripts" / "benchmark_gpu.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and told in done.stderr


def test_the_script_for_gpus_leaves_a_file_for_each_row_and_says_which_were_stopped(tmp_path):
    words = ["--try", "--python", sys.executable, "--out", str(tmp_path), "--seconds", "60", "cut", "gpt2"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # A `timeout` that lets the first row run and ends the second at once.
    (tmp_path / "timeout").write_text('#!/bin/sh\nshift 2\ncase "$*" in *gpt2*) exit 124 ;; esac\nexec "$@"\n')
    (tmp_path / "timeout").chmod(0o755)
    script = ["bash", str(ROOT / "scripts" / "benchmark_gpu.sh"), *words]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 3 and "cut: done in" in done.stdout and "gpt2: stopped at its limit" in done.stdout
    assert json.loads((tmp_path / "gpu_cut.json").read_text())["results"] and (tmp_path / "gpu_cut.log").is_file()


def test_a_kept_command_names_no_place_of_this_machine():
    words = ["scripts/a.py", "--to", "/some/place/x.json", "data.root=/a/b/", "--out", "results/b/c.json", "k=[1,2]"]
    assert command(words) == "scripts/a.py --to x.json data.root=b --out results/b/c.json k=[1,2]"
