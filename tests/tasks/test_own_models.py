"""Models of the user's own by a dotted path: how they are called, what is checked, what is refused in one line."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.config.source import source_of
from pdp.errors import Refusal
from pdp.tasks import build_task

MODELS = """
    import functools
    import torch
    from torch import nn
    from .blocks import block

    class Net(nn.Module):
        def __init__(self, num_classes=3, width=8):
            super().__init__()
            self.body = nn.Sequential(block(3, width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(width, num_classes)
        def forward(self, x):
            return self.fc(self.body(x))

    class KeywordsOnly(Net):
        def __init__(self, *, num_classes, width=4):
            super().__init__(num_classes, width)
    class Keywords(Net):
        def __init__(self, **keywords):
            super().__init__(**keywords)
    class KeywordsGoOn(nn.Module):
        def __init__(self, **keywords):
            super().__init__(**keywords)  # which takes none
            self.net = Net(10)
        def forward(self, x):
            return self.net(x)
    class Lazy(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv, self.fc = nn.LazyConv2d(8, 3), nn.LazyLinear(num_classes)
        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3)))
    class Half(Net):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.bfloat16()
    class Outer:
        class Inner(Net):
            pass
        @staticmethod
        def made(num_classes):
            return Net(num_classes)
    def make(num_classes, width=4):
        return Net(num_classes, width)
    partial = functools.partial(Net, width=4)

    class Named(Net):
        def __init__(self, n_classes=1000):
            super().__init__(n_classes)
    class Fixed(Net):
        def __init__(self):
            super().__init__(7)
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x
    class Named2(Net):
        def forward(self, x):
            return {"logits": super().forward(x)}
    class PairInTraining(Net):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)
    class Classes(Net):
        def forward(self, x):
            return super().forward(x).argmax(1)
    class Large(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 32), nn.Linear(8, num_classes)
        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))
    class Texts(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(100, 8), nn.Linear(8, num_classes)
        def forward(self, tokens):
            return self.fc(self.embedding(tokens).mean(1))
    class Raises(nn.Module):
        def __init__(self, num_classes):
            raise RuntimeError("not today\\nnor tomorrow")
    class Needs(Net):
        def __init__(self, depth, num_classes=10):
            super().__init__(num_classes)
    class NoModule:
        def __init__(self, num_classes):
            pass
    class Frozen(Net):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.requires_grad_(False)
    def nothing(num_classes):
        return None
    there = Net()
    number = 3
"""
FILES = {
    "shapes/__init__.py": "from .models import Net\n",
    "shapes/blocks.py": """
        from torch import nn
        def block(inputs, outputs):
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
    """,
    "shapes/models.py": MODELS,
    "alone.py": "from shapes.models import Net\nclass Alone(Net):\n    pass\n",
    "with-dash/net.py": "from shapes.models import Net\nclass Own(Net):\n    pass\n",
    "größe/netz.py": "from shapes.models import Net\nclass Netz(Net):\n    pass\n",
    "resnet20/net.py": "from shapes.models import Net\nclass Own(Net):\n    pass\n",
    "train.py": "from shapes.models import Net\nclass Own(Net):\n    pass\n",
    "side.py": """
        import os, torch
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        from shapes.models import Net
        class Side(Net):
            pass
    """,
    "syntax.py": "class Net(:\n",
    "lacking.py": "import a_package_that_nobody_has\n",
    "failing.py": "import os\nraise ValueError('the file is\\nmissing')\n",
    "script.py": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--must', required=True)\nparser.parse_args()\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with modules, forgotten by Python afterwards."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)) or name in (
            "größe",
            "resnet20",
        ):
            del sys.modules[name]


def built(name, *words):
    task = build_task(compose([f"model={name}", "sparsity=0.5", *words]))
    torch.manual_seed(0)  # as a run does, after the import
    return task.build_model()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "shapes.Net",
            "shapes.models.Net",
            "shapes.models:Net",
            "shapes.models.KeywordsOnly",
            "shapes.models.Keywords",
        ),
        *("shapes.models.KeywordsGoOn", "shapes.models.Lazy", "shapes.models.Half", "shapes.models.Outer.Inner"),
        *("shapes.models.Outer.made", "shapes.models.make", "shapes.models.partial", "alone.Alone"),
        *("with-dash.net.Own", "größe.netz.Netz", "resnet20.net.Own", "train.Own", "side.Side"),
        "timm.models.resnet.resnet10t",
    ],
)
def test_anything_importable_that_makes_a_model(folder, name):
    model = built(name)
    assert model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert Path.cwd() == folder and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shapes.models.Named", r"gives float32 \(2, 1000\) .* 10 classes: give model.arguments.n_classes=10"),
        ("shapes.models.Fixed", r"gives float32 \(2, 7\) .* take num_classes in its signature"),
        ("shapes.models.Pair", r"gives a tuple of 2, and must give the logits alone, float \(N, 10\)"),
        ("shapes.models.Named2", "gives a dict of 1, and must give the logits alone"),
        ("shapes.models.PairInTraining", "gives a tuple of 2 in training"),
        ("shapes.models.Classes", r"gives int64 \(2,\)"),
        ("shapes.models.Large", "does not take images of 8x8.*give data.image_size"),
        ("shapes.models.Texts", "does not take images of 8x8"),
        ("shapes.models.Raises", r"Raises\(num_classes\) cannot be called .* not today nor tomorrow"),
        ("shapes.models.Needs", "'depth'; change model.arguments"),
        ("shapes.models.NoModule", "gives a NoModule, and no torch.nn.Module"),
        ("shapes.models.nothing", "gives a NoneType"),
        ("shapes.models.Frozen", "no parameter that could be trained"),
        ("shapes.models.there", r"is there already.*give the class \(Net\)"),
        ("shapes.models.number", "is a int: give a class or function"),
        ("shapes.models", "is a module: give a class or function of it"),
        ("shapes.models.Nett", "has no Nett; did you mean Net"),
        ("shapes.models.Outer.Iner", "has no Iner; did you mean Inner"),
        ("shapes.model.Net", "has no model; did you mean models"),
        ("shape.Net", "no module shape, neither in the working directory .* did you mean shapes"),
        ("alone.py", r"alone .*alone.py\) has no py; it has Alone"),
        ("syntax.Net", "syntax.py, line 1 is not Python"),
        ("lacking.Net", "needs the module a_package_that_nobody_has, which is not installed"),
        ("failing.Net", r"ValueError: the file is missing .*failing.py, line 2\)"),
        ("script.Net", r"SystemExit: 2 .*script.py, line 4\)"),
        ("resnet50.a1_in1k", "model=timm model.name=<name>"),
        ("Net", "no such model.*a model of your own is model=<module>.<class or function>"),
        ("json.dumps", "cannot be called with"),
    ],
)
def test_what_makes_no_model_of_the_datas_classes_is_refused_in_one_line(folder, capfd, name, words):
    code = main("train", [f"model={name}", "sparsity=0.5", "output_dir=out"])
    error = capfd.readouterr().err
    assert code == 2, error
    (line,) = error.strip().splitlines()
    assert re.search(words, line) and not (folder / "out").exists(), line


def test_its_arguments_its_input_size_and_what_does_not_go_with_it(folder):
    assert built("shapes.Net", "model.arguments.width=6").fc.in_features == 6
    assert built("shapes.models.Named", "model.arguments.n_classes=10").fc.out_features == 10
    assert built("shapes.models.Large", "data.image_size=32").conv.weight.shape == (8, 3, 32, 32)
    for words, match in [
        (["model.arguments.num_classes=10"], "num_classes is set by the data"),
        (["model.arguments.depth=3"], "cannot be called with .*depth"),
        (["model.name=other.Net"], "drop model.name"),
        (["model.pretrained=true"], "no hub has weights of shapes.Net"),
        (["data=grammar_nli"], "a model of images|takes images"),
        (["model.task=text_classification"], "takes images"),
    ]:
        with pytest.raises(Refusal, match=match):
            built("shapes.Net", *words)


def test_the_first_weights_are_a_function_of_the_seed_alone(folder):
    """The proof draws random numbers and moves statistics; the model it leaves is the one that was made."""
    model = built("shapes.models.Net")
    from shapes.models import Net

    torch.manual_seed(0)
    plain = Net(num_classes=10)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_source_is_part_of_the_identity_and_edits_are_seen(folder):
    """A package that only takes the name from elsewhere is not its source."""
    config = compose(["model=shapes.Net", "sparsity=0.5"])
    assert source_of("shapes.Net") == folder / "shapes" / "models.py"
    first = config_hash(config, "data")
    blocks = folder / "shapes" / "blocks.py"
    blocks.write_text(blocks.read_text() + "# a file beside it\n")
    assert config_hash(config, "data") == first and built("shapes.Net").fc.in_features == 8
    models = folder / "shapes" / "models.py"
    models.write_text(models.read_text().replace("width=8", "width=12"))
    assert config_hash(config, "data") != first
    assert built("shapes.Net").fc.in_features == 12  # in the same process, as a notebook is one
