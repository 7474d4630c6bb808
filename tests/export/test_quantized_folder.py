"""The folder of integers and scales loads whole: names of the model's own never pass for those of the quantization."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

from pdp.errors import Refusal
from pdp.export.quantized_folder import load_saved, save_quantized
from pdp.quantize.fake import weight_scale
from pdp.quantize.frozen import Frozen


class Scaled(nn.Module):
    """Has tensors of its own that are called as those of the quantization, an alias, and layers called by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.again, self.twin = nn.Linear(8, 8), nn.Linear(8, 8)
        self.twin.weight = self.again.weight
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.norm = nn.Module()
        self.norm.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.norm.register_buffer("zero_point", torch.rand(8))
        self.norm.input = nn.Module()
        self.norm.input.scale = nn.Parameter(torch.rand(8))
        self.norm.shipped = nn.Parameter(torch.rand(8))

    def forward(self, values):
        values = self.first(input=values) * self.scale * self.norm.scale + self.norm.zero_point
        values = self.twin(self.again(torch.relu(values))) * self.norm.input.scale
        return self.last(values - self.norm.shipped)


def frozen_by_hand(model, inputs, bits=8):
    """Scales for the weights of all linear layers and convolutions and for their inputs, from one batch."""
    kinds, ranges = (nn.Linear, nn.Conv2d), {}
    layers = {name: one for name, one in model.named_modules() if isinstance(one, kinds)}
    hooks = [
        one.register_forward_pre_hook(
            lambda module, given, keywords, name=name: ranges.update({name: (*given, *keywords.values())[0].aminmax()}),
            with_kwargs=True,
        )
        for name, one in layers.items()
    ]
    with torch.no_grad():
        model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    grids = {}
    for name, (low, high) in ranges.items():
        scale = (high.clamp(min=0) - low.clamp(max=0)) / 255 + 1e-6
        grids[f"{name}.input".lstrip(".")] = (scale, (-low.clamp(max=0) / scale).round())
    scales, seen = {}, set()
    for name, one in layers.items():
        if id(one.weight) not in seen:
            seen.add(id(one.weight))
            scales[f"{name}.weight".lstrip(".")] = weight_scale(one.weight.detach(), bits)
    return Frozen(f"int{bits}", bits, scales, grids)


def loader_of(folder):
    spec = importlib.util.spec_from_file_location("load_quantized", folder / "load_quantized.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    return loader.load_quantized


OWN_NAMES = {
    "own": (Scaled, (5, 6)),
    "poolformer": (lambda: timm.create_model("poolformerv2_s12", num_classes=3), (2, 3, 64, 64)),
    "hgnet": (lambda: timm.create_model("hgnetv2_b0", num_classes=3), (2, 3, 64, 64)),
    "caformer": (lambda: timm.create_model("caformer_s18", num_classes=3), (2, 3, 64, 64)),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_model_s_own_scales_and_zero_points_are_loaded_too(name, bits, tmp_path):
    make, shape = OWN_NAMES[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(*shape)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.rpartition(".")[2] in ("scale", "shipped"):
                value.mul_(1.7).add_(0.3)  # as training moves them
    frozen = frozen_by_hand(model, inputs, bits)
    with torch.no_grad(), frozen.applied(model):
        expected = model(inputs)
    save_quantized(model, frozen, tmp_path, {"name": name})
    torch.manual_seed(1)
    loaded = loader_of(tmp_path)(make(), tmp_path)
    for key, value in model.state_dict().items():
        if key not in frozen.weights and key != "twin.weight":
            assert torch.equal(loaded.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.allclose(loaded(inputs), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(load_saved(model, tmp_path)(inputs), loaded(inputs))


def test_a_folder_of_another_model_does_not_load_in_silence(tmp_path):
    model, inputs = Scaled(), torch.randn(5, 6)
    save_quantized(model, frozen_by_hand(model, inputs), tmp_path, {"name": "own"})
    load, other = loader_of(tmp_path), Scaled()
    other.norm.register_buffer("offset", torch.zeros(8))
    with pytest.raises(ValueError, match=r"of another model: the folder lacks norm\.offset$"):
        load(other, tmp_path)
    other = Scaled()
    del other.norm.zero_point
    with pytest.raises(ValueError, match=r"of another model: this model lacks norm\.zero_point$"):
        load(other, tmp_path)
    other = Scaled()
    other.twin.weight = nn.Parameter(torch.zeros(8, 8))  # no alias any more, so nothing gives it its numbers
    with pytest.raises(ValueError, match=r"the folder lacks twin\.weight$"):
        load(other, tmp_path)
    clashing = Scaled()
    clashing.last.input = nn.Module()
    clashing.last.input.scale = nn.Parameter(torch.ones(3))
    frozen = frozen_by_hand(clashing, inputs)
    with pytest.raises(Refusal, match=r"a tensor last\.input\.scale of its own.*: rename it"):
        save_quantized(clashing, frozen, tmp_path, {"name": "own"})
