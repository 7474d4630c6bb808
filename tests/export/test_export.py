"""Exports: slim models equal the masked ones, load without this project and can be trained; ONNX equals torch."""

import importlib.util
import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet50

from pdp import Pruner, count_macs
from pdp.config.schema import ModelConfig
from pdp.errors import Refusal
from pdp.export.compare import difference
from pdp.export.onnx import save_onnx
from pdp.export.program import save_program
from pdp.export.semi_structured import check_nm, refuse_without_semi_structured
from pdp.export.slim_folder import save_slim
from pdp.tasks.image_models import build_model

pytestmark = pytest.mark.slow

NOW = {"warmup": "0ep", "ramp": "1ep"}
SIZE = 64
MODELS = {
    "resnet18": lambda: resnet18(num_classes=10),
    "resnet20": lambda: build_model(ModelConfig(name="resnet20", task="images"), 10)[0],
    "resnet50": lambda: resnet50(num_classes=10),
    "mobilenet_v1": lambda: timm.create_model("mobilenetv1_100", num_classes=10),
    "mobilenet_v2": lambda: mobilenet_v2(num_classes=10),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=16, depth=3, num_classes=10, embed_dim=96
    ),
}


def trained_and_pruned(name, pattern="channel", steps=2, **values):
    """A model whose BatchNorm statistics have seen data, pruned hard, in evaluation mode."""
    torch.manual_seed(1)
    model = MODELS[name]()
    options = {"sparsity": 0.5, "epochs": 1, "schedule": NOW, "allocation": "uniform"} | values
    if pattern == "channel":
        options["example_input"] = torch.zeros(1, 3, SIZE, SIZE)
    pruner = Pruner(model, pattern=pattern, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner.start_epoch(0)
    for _ in range(steps):
        nn.functional.cross_entropy(
            model(torch.randn(4, 3, SIZE, SIZE) * 2 + 0.5), torch.randint(0, 10, (4,))
        ).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruner.finalize()
    return model.eval(), pruner


@pytest.mark.parametrize("name", MODELS)
def test_slim_equals_masked_loads_in_plain_pytorch_and_trains_on(name, tmp_path):
    model, _ = trained_and_pruned(name)
    example, images = torch.zeros(1, 3, SIZE, SIZE), torch.randn(3, 3, SIZE, SIZE)
    smaller = save_slim(model, example, tmp_path, {"name": name})
    assert difference(model, smaller, images) < 1e-5
    dense, slimmed = (count_macs(one, example).macs.sum() for one in (model, smaller))
    assert slimmed < 0.75 * dense
    assert slimmed == count_macs(model, example).sparse_macs.sum()

    spec = importlib.util.spec_from_file_location("load_slim", tmp_path / "load_slim.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    loaded = loader.load_slim(MODELS[name](), tmp_path).eval()
    assert difference(smaller, loaded, images) == 0
    nn.functional.cross_entropy(loaded.train()(images), torch.tensor([1, 2, 3])).backward()
    torch.optim.SGD(loaded.parameters(), 0.01).step()
    assert difference(smaller, loaded, images) > 0


def test_the_exported_program_opens_where_this_project_is_not(tmp_path):
    model, _ = trained_and_pruned("resnet20", steps=1)
    smaller = save_slim(model, torch.zeros(1, 3, SIZE, SIZE), tmp_path, {"name": "resnet20"})
    save_program(smaller, [torch.zeros(1, 3, SIZE, SIZE)], tmp_path / "model.pt2")
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.save({"images": images, "outputs": smaller(images).detach()}, tmp_path / "expected.pt")
    code = (
        "import sys, torch; seen = torch.load('expected.pt'); "
        "outputs = torch.export.load('model.pt2').module()(seen['images']); "
        "assert torch.allclose(outputs, seen['outputs'], atol=1e-5); "
        "assert not any(name.split('.')[0] in ('pdp', 'timm', 'torchvision') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pdp" not in (tmp_path / "load_slim.py").read_text().replace("pdp-", "")
    assert json.loads((tmp_path / "slim.json").read_text())["modules"]["layer2.0.conv1"]["out_channels"] == 16


@pytest.mark.parametrize(("name", "pattern"), [("resnet20", "2:4"), ("vit", "random"), ("resnet20", "channel")])
def test_onnx_equals_torch(name, pattern, tmp_path):
    model, _ = trained_and_pruned(name, pattern, steps=1, sparsity=None if pattern == "2:4" else 0.5)
    images = torch.randn(3, 3, SIZE, SIZE)
    assert save_onnx(model, images, tmp_path / "model.onnx") < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (output,) = session.run(None, {"input": images[:1].numpy()})  # another batch size
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(output), model(images[:1]), rtol=1e-3, atol=1e-3)


def test_the_checker_finds_a_group_that_disobeys():
    model, pruner = trained_and_pruned("resnet20", "2:4", steps=1, sparsity=None)
    names = {layer.name for layer in pruner.layers}
    assert len(names) == 21 and check_nm(model, 2, 4, names) == []
    with torch.no_grad():
        model.layer3[0].conv2.weight[5, 8:12, 1, 1] = 1.0
    assert check_nm(model, 2, 4, names) == ["layer3.0.conv2"]
    assert check_nm(model, 1, 4, names) != []


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only without a GPU")
def test_the_semi_structured_format_is_refused_without_hardware():
    with pytest.raises(Refusal, match="format=onnx"):
        refuse_without_semi_structured()
