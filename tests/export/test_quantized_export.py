"""Quantized models in other forms: integers in the file, zeros exact, and the function that was measured."""

import copy
import importlib.util
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pdp import Pruner
from pdp.config.command_line import main
from pdp.errors import Refusal, Stopped
from pdp.export.integers import with_integers
from pdp.export.latency import in_turn
from pdp.export.onnx import onnx_outputs, operators, save_onnx_integers
from pdp.export.quantized_folder import save_quantized
from pdp.quantize.fake import weight_scale
from pdp.quantize.frozen import Frozen
from pdp.tasks.resnet20 import ResNet20
from pdp.training import export_run
from pdp.training.export_run import ExportedRun, export

pytestmark = pytest.mark.slow


def quantized(quantize, model=None, **values):
    torch.manual_seed(0)
    model = ResNet20() if model is None else model
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    options = {
        "sparsity": 0.7,
        "epochs": 2,
        "steps_per_epoch": 3,
        "schedule": {"warmup": "1it", "ramp": "2it", "unit": "step"},
    }
    pruner = Pruner(
        model, "pdp", example_input=images[:1], quantize=quantize, quantize_options={"start": "0.5"}, **options | values
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(2):
        pruner.start_epoch(epoch)
        for _ in range(3):
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step(), pruner.step(), optimizer.zero_grad()
    pruner.finalize()
    # A norm with a negative factor, and one that lets nothing through, as training may leave them.
    with torch.no_grad():
        model.layer1[0].bn1.weight[0], model.layer1[0].bn1.weight[1] = -0.5, 0.0
    frozen = pruner.quantizer.freeze(model)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad(), frozen.applied(model.eval()):
        return model, frozen, images, model(images)


def usual_steps(found, expected):
    """The largest difference in the outputs of an image, in steps, of half of the images.

    A number near the middle of two integers goes one way on one processor and the other way on the next, and of its
    image weights of chance make that a few steps.
    """
    return float(((found - expected).abs().amax(1) / (expected.max() - expected.min()) * 255).median())


@pytest.mark.parametrize(
    ("quantize", "bits", "weights"), [("int8", 8, "uint8"), ("int8", 8, "int8"), ("int4w", 4, "uint8")]
)
def test_onnxruntime_computes_what_was_measured_from_integers(quantize, bits, weights, tmp_path):
    import onnx

    model, frozen, images, expected = quantized(quantize)
    path = tmp_path / "model.onnx"
    integers = with_integers(model, frozen, images[:1], onnx=True)
    save_onnx_integers(integers, {"input": images}, expected, path, bits, most=5, weights=weights)
    found = [onnx_outputs(path, {"input": one[None]}, exact=weights == "int8") for one in images]  # another batch size
    # Of weights in 4 bits onnxruntime makes products that round what they multiply to 8 bits, if nothing is said.
    assert usual_steps(torch.cat(found), expected) < {8: 0.05, 4: 1}[bits]
    assert usual_steps(onnx_outputs(path, {"input": images}, exact=True), expected) < 0.05
    with pytest.raises(Stopped, match="steps of the outputs"):
        save_onnx_integers(integers, {"input": images}, expected + 1, tmp_path / "other.onnx", bits)
    if bits == 8:
        kinds = operators(path)
        assert kinds["QLinearConv"] == 21 and kinds["QGemm"] == 1 and "Conv" not in kinds
    kind = onnx.TensorProto.INT4 if bits == 4 else getattr(onnx.TensorProto, weights.upper())
    stored = [one for one in onnx.load(path).graph.initializer if one.data_type == kind and len(one.dims) > 1]
    zero = 128 if kind == onnx.TensorProto.UINT8 else 0
    counts = sorted(int((onnx.numpy_helper.to_array(one).astype(np.int16) == zero).sum()) for one in stored)
    gone = model.layer1[0].conv1.weight[1].numel()  # the output that its norm lets nothing through of
    mine = {name: int((frozen.integers(name, model.get_parameter(name)) == 0).sum()) for name in frozen.weights}
    there = int((frozen.integers("layer1.0.conv1.weight", model.layer1[0].conv1.weight)[1] == 0).sum())
    mine["layer1.0.conv1.weight"] += gone - there
    assert counts == sorted(mine.values())
    assert path.stat().st_size < {8: 500_000, 4: 330_000}[bits]


@pytest.mark.parametrize("kind", ["linear", "sequence", "convolution"])
def test_a_plain_session_is_exact_where_products_do_not_fit_in_16_bits(kind, tmp_path):
    # 255 * 127 twice is more than 16 bits with a sign hold, in which processors without VNNI add signed products.
    layer = nn.Conv2d(64, 8, 3, bias=False) if kind == "convolution" else nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign() * 0.127).view(8, -1)[:4] = 0.127
    shape = {"linear": (5, 64), "sequence": (5, 3, 64), "convolution": (5, 64, 6, 6)}[kind]
    model, inputs = nn.Sequential(layer), torch.full(shape, 0.98) + 0.02 * torch.rand(shape)
    grid = (torch.tensor(1 / 255), torch.tensor(0.0))
    activations = {"0.input": grid}
    if kind == "convolution":
        activations["0.output"] = (torch.tensor(1.0), torch.tensor(128.0))
    frozen = Frozen("int8", 8, {"0.weight": weight_scale(layer.weight.detach(), 8)}, activations)
    with torch.no_grad(), frozen.applied(model):
        expected = model(inputs)
    path = tmp_path / "model.onnx"
    off = save_onnx_integers(with_integers(model, frozen, inputs[:1], onnx=True), {"input": inputs}, expected, path, 8)
    kinds = operators(path)
    assert off < 0.01 and kinds[{"linear": "QGemm", "sequence": "MatMulIntegerToFloat"}.get(kind, "QLinearConv")] == 1


def test_a_layer_that_is_called_twice_is_stored_without_a_sign_alone(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Linear(48, 16), nn.Linear(16, 16)

        def forward(self, values):
            return self.again(torch.relu(self.again(torch.relu(self.first(values)))))

    torch.manual_seed(0)
    model, inputs = Twice().eval(), torch.randn(5, 48)
    scales = {f"{name}.weight": weight_scale(one.weight.detach(), 8) for name, one in model.named_children()}
    grid = (torch.tensor(0.05), torch.tensor(128.0))
    frozen = Frozen("int8", 8, scales, {"first.input": grid, "again.input": grid})
    with torch.no_grad(), frozen.applied(model):
        expected = model(inputs)
    integers = with_integers(model, frozen, inputs[:1], onnx=True)
    assert save_onnx_integers(integers, {"input": inputs}, expected, tmp_path / "model.onnx", 8) < 0.1
    with pytest.raises(Refusal, match=r"weights=int8: again.* is called 2 times.*: give weights=uint8"):
        save_onnx_integers(integers, {"input": inputs}, expected, tmp_path / "other.onnx", 8, weights="int8")


def test_a_program_of_torch_computes_it_too():
    for quantize in ("int8", "int4w"):
        model, frozen, images, expected = quantized(quantize)
        plain = with_integers(model, frozen, images[:1], onnx=False)
        with torch.no_grad():
            assert usual_steps(plain(images), expected) < 0.05
        assert {one.dtype for name, one in plain.named_buffers() if name.endswith("weight.integers")} == {torch.int8}


@pytest.mark.parametrize("quantize", ["int8", "int4w"])
def test_integers_and_scales_load_into_the_plain_model_without_this_project(quantize, tmp_path):
    model, frozen, images, expected = quantized(quantize)
    save_quantized(model, frozen, tmp_path, {"name": "resnet20"})
    spec = importlib.util.spec_from_file_location("load_quantized", tmp_path / "load_quantized.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    loaded = loader.load_quantized(ResNet20(), tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded(images), expected, rtol=1e-5, atol=1e-5)
    for name in frozen.weights:
        hard = model.get_parameter(name)
        assert (loaded.get_parameter(name)[hard == 0] == 0).all() and (hard == 0).any()
    stored = load_file(tmp_path / "model.safetensors")["layer3.0.conv1.weight"]
    assert (stored.dtype, stored.numel()) == ((torch.int8, 18432) if quantize == "int8" else (torch.uint8, 9216))
    assert "pdp" not in (tmp_path / "load_quantized.py").read_text()


RUNS = {
    "channel int8": ["model=resnet20", "prune=channel", "sparsity=0.5", "quantize=int8", "recipe.epochs=2"],
    "bert int4w": ["model=bert_tiny", "sparsity=0.5", "quantize=int4w", "recipe.epochs=1", "data.max_length=16"],
    "bert int8": ["model=bert_tiny", "sparsity=0.5", "quantize=int8", "recipe.epochs=1", "data.max_length=16"],
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = [*RUNS[request.param], "data.limit=160", "quantize.start=0.5", "recipe.lr_warmup=0", "device=cpu"]
    if "bert" in request.param:
        words += ["model.sizes.hidden_size=16", "model.sizes.intermediate_size=32", "model.sizes.num_hidden_layers=1"]
        words += ["model.sizes.num_attention_heads=2", "schedule.warmup=0", "schedule.ramp=0.4", "schedule.unit=step"]
    assert main("train", [*words, f"output_dir={folder}"]) == 0
    return next(folder.glob("*/seed0"))


def lose_biases(module):
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.fill_(torch.nan)


def test_a_run_s_exports_say_bytes_and_time_beside_the_dense_model(run, tmp_path):
    exported = ExportedRun(run)
    channels = "channel" in run.parent.name
    outputs = []
    with torch.no_grad():
        for quantized in (nullcontext(), exported.frozen.applied(exported.model)):
            with quantized:
                plain, named = exported.by_place(exported.model)
                outputs.append(plain(*named.values()))
    steps = 255 * float((outputs[1] - outputs[0]).abs().max() / (outputs[1].max() - outputs[1].min()))
    for form in ("onnx", "torch") if channels else ("onnx", "safetensors"):
        said = dict(export(exported, form, tmp_path / form))
        assert "dense float32" in said["bytes"] and f"int{exported.frozen.bits} bitmask" in said["bytes in other forms"]
        if form == "safetensors":
            assert said["difference of what load_quantized.py makes"].startswith("0 steps")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(export_run, "load_saved", lambda model, folder: copy.deepcopy(model).apply(lose_biases))
                with pytest.raises(Stopped, match="load_quantized.py makes differs"):
                    export(exported, form, tmp_path / "wrong")
            assert not (tmp_path / "wrong").exists()
            continue
        assert float(next(value for key, value in said.items() if key.startswith("difference")).split()[0]) <= max(
            1, steps / 4
        )
        timed = next(value for key, value in said.items() if key.startswith("latency"))
        assert "ms exported" in timed and "ms dense float32" in timed
        assert ("onnxruntime rounds" in said) == ("MatMulNBits" in said.get("onnxruntime runs", ""))
        if form == "onnx" and "int8" in run.parent.name:
            signed = dict(export(exported, form, tmp_path / "signed", weights="int8"))
            assert "session.x64quantprecision" in signed["sessions need"] and "sessions need" not in said
        if form == "onnx" and channels:
            before, after = (int(one.replace(",", "")) for one in said["parameters"].split(" -> "))
            assert after < before and "QLinearConv" in said["onnxruntime runs"]
        elif form == "onnx":
            kind = "MatMulIntegerToFloat" if "int8" in run.parent.name else "MatMulNBits"
            assert kind in said["onnxruntime runs"]


def test_contenders_are_called_in_turn():
    calls = []
    times = in_turn({"one": lambda: calls.append(1), "two": lambda: calls.append(2)}, rounds=4)
    assert set(times) == {"one", "two"} and min(times.values()) >= 0
    changes = sum(one != two for one, two in zip(calls, calls[1:], strict=False))
    assert changes == 1 + 2 * 4


def test_how_weights_are_stored_is_a_choice_of_onnx_files_of_8_bits_alone(run, tmp_path):
    exported = ExportedRun(run)
    for form, weights in (("onnx", "int4"), ("torch", "int8"), ("safetensors", "uint8")):
        with pytest.raises(Refusal, match=f"weights={weights}: uint8 or int8, of format=onnx"):
            export(exported, form, tmp_path / "out", weights)
    exported.record.quantize = "none"
    with pytest.raises(Refusal, match="one with quantize=none"):
        export(exported, "onnx", tmp_path / "out", "uint8")
    assert not (tmp_path / "out").exists()
