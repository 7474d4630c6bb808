import huggingface_hub
import pytest
import torch
import torchvision
from making import configuration
from safetensors.torch import save_file
from torch import nn

from pdp.errors import Refusal
from pdp.tasks import build_task
from pdp.tasks.image_models import build_model
from pdp.tasks.resnet20 import ResNet20


def model_of(**model):
    return build_model(configuration({"name": "digits"}, model).model, model.pop("classes", 10))


def weights_of(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize(
    ("name", "parameters", "prunable"),
    [
        ("resnet18", 11_689_512, 11_678_912),
        ("resnet50", 25_557_032, 25_502_912),
        ("mobilenet_v1", 4_231_976, 4_209_088),
        ("mobilenet_v2", 3_504_872, 3_469_760),
    ],
)
def test_published_counts(name, parameters, prunable):
    task = build_task(configuration({"name": "imagenet"}, {"name": name}))
    model = task.build_model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert weights_of(model) == prunable


def test_resnet20_has_the_published_counts_and_takes_tiny_images():
    assert sum(p.numel() for p in ResNet20().parameters()) == 272_474
    assert sum(p.numel() for p in ResNet20(shortcut="pad").parameters()) == 269_722
    for shortcut in ("projection", "pad"):
        assert ResNet20(7, shortcut)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)


def test_random_init_is_the_librarys():
    torch.manual_seed(3)
    ours, notes = model_of(name="resnet18", arguments={"zero_init_residual": True})
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10, zero_init_residual=True)
    assert notes == []
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_any_timm_model_by_name():
    model, _ = model_of(name="resnet10t", library="timm")
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "resnet5"}, "model.name=resnet5 is unknown; near it: resnet50"),
        ({"name": "resnet5", "library": "timm"}, "model.name=resnet5 is no timm model; near it: .*resnet50"),
        ({"name": "resnet18", "library": "keras"}, "model.library=keras is unknown; it can be pdp, timm"),
        ({"name": "resnet18", "arguments": {"depth": 3}}, "model.arguments=.*depth"),
        ({"name": "resnet20", "arguments": {"shortcut": "none"}}, "shortcut=none can be"),
        ({"name": "mobilenet_v1", "arguments": {"depth": 3}}, "model.arguments=.*depth"),
        ({"name": "resnet18", "arguments": {"num_classes": 3}}, "model.arguments.num_classes is set by"),
        ({"name": "resnet20", "pretrained": "true"}, "no hub has weights of resnet20"),
    ],
)
def test_unknown_models_and_arguments_are_refused_in_one_line(model, words):
    with pytest.raises(Refusal, match=words) as refused:
        model_of(**model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1"])
def test_hub_without_network_is_refused_in_one_line(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(Refusal, match="without network give a file, model.pretrained=<file") as refused:
        model_of(name=name, pretrained="true")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_weights_from_a_file(tmp_path, kind):
    torch.manual_seed(0)
    source = ResNet20(10)
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(source.state_dict(), str(file))
    elif kind == "pth":
        torch.save(source.state_dict(), file)
    else:
        prefixed = {f"module.{key}": value for key, value in source.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": prefixed}, file)
    model, notes = model_of(name="resnet20", pretrained=str(file))
    assert notes == ([f"of {file} state_dict was taken"] if kind == "wrapped" else [])
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "mobilenet_v2"])
def test_a_classifier_of_another_size_starts_random_and_is_told(tmp_path, name):
    file = tmp_path / "w.pth"
    source, _ = build_model(configuration({"name": "digits"}, {"name": name}).model, 12)
    torch.save(source.state_dict(), file)
    task = build_task(configuration({"name": "digits"}, {"name": name, "pretrained": str(file)}))
    model = task.build_model()
    assert len(task.notes) == 1 and "for 12 classes, not 10" in task.notes[0]
    first = next(iter(source.state_dict()))
    assert torch.equal(model.state_dict()[first], source.state_dict()[first])


class Evil:
    def __reduce__(self):
        return (print, ("this code ran",))


def test_bad_files_are_refused_in_one_line(tmp_path, capsys):
    good = ResNet20().state_dict()
    torch.save(good, tmp_path / "good.pth")
    save_file(good, str(tmp_path / "good.safetensors"))
    for name in ("good.pth", "good.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name.replace("good", "cut")).write_bytes(content[: len(content) // 2])
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "weights.zip").write_text("hello")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pth")
    torch.save({key: value for key, value in good.items() if key != "bn1.bias"}, tmp_path / "less.pth")
    torch.save(good | {"conv1.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "grey.pth")
    expected = {
        "absent.pth": "does not exist",
        "cut.pth": "damaged",
        "cut.safetensors": "damaged",
        "evil.pth": "would run code",
        "number.pth": "holds no state dict",
        "empty.pth": "damaged",
        "text.pth": "damaged",
        "weights.zip": "must end in",
        "other.pth": "it lacks layer1.2.* more; it has the unknown layer4.0.*another shape: conv1.weight",
        "less.pth": "it lacks bn1.bias;",
        "grey.pth": r"another shape: conv1.weight \(16, 1, 3, 3\) for \(16, 3, 3, 3\);",
    }
    for name, words in expected.items():
        with pytest.raises(Refusal, match=words) as refused:
            model_of(name="resnet20", pretrained=str(tmp_path / name))
        assert "\n" not in str(refused.value) and "model.pretrained=" in str(refused.value)
    assert "this code ran" not in capsys.readouterr().out
