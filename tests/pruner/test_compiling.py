"""A compiled training step of a pruned model: one graph, whatever the order of images in memory, and the same step."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from pdp import Pruner
from pdp.pruner import compiling
from pdp.training.assembly import compiled

NOW = {"warmup": "0ep", "ramp": "1ep"}
PDP = [(pattern, method) for pattern in ("random", "nm", "channel", "block") for method in ("pdp", "pdp_annealed")]
METHODS = [*PDP, ("random", "cs"), ("random", "str"), ("nm", "srste"), ("nm", "lbc"), ("channel", "slimming")]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


def pruned(model, pattern, method, images):
    options = {} if pattern == "nm" else {"sparsity": 0.5}
    if pattern == "block":
        options["pattern_options"] = {"block": [2, 2]}
    if method in ("pdp", "pdp_annealed"):
        options["temperature"] = 1e-2
    if method == "cs":
        options["rounds"] = 1
    pruner = Pruner(model, method, pattern, epochs=4, schedule=NOW, example_input=images[:1], **options)
    pruner.start_epoch(0)
    return pruner


@pytest.mark.slow
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("pattern, method", METHODS)
def test_a_step_is_one_graph_that_gives_no_operation_its_memory(pattern, method, order):
    """PyTorch 2.11 breaks a graph where `out` is in channels last, and takes the gradient of an autograd function for
    zero if its result is one of its intermediate tensors: soft masks of weights and blocks must be plain operations.
    """
    images, labels = torch.randn(4, 3, 6, 6).to(memory_format=order), torch.arange(4)
    plain = net().to(memory_format=order)
    model = copy.deepcopy(plain)
    pruners = [pruned(one, pattern, method, images) for one in (plain, model)]
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (plain, model)]
    for pruner, optimizer in zip(pruners, optimizers, strict=True):
        pruner.attach(optimizer)
    given: list[str] = []
    functions: list[str] = []

    def backend(graph, inputs):
        for one in graph.modules():
            if isinstance(one, torch.fx.GraphModule):  # the step's own and those of its autograd functions
                given.extend(str(node) for node in one.graph.nodes if node.kwargs.get("out") is not None)
                functions.extend(str(node) for node in one.graph.nodes if "autograd_function" in str(node.target))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        for call, pruner, optimizer in zip((plain, forward), pruners, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(call(images), labels).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
    assert not given
    assert not functions or pattern == "channel" or method == "srste"  # whose results are new tensors
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
def test_each_run_of_a_process_is_compiled():
    """More models of one class than PyTorch keeps compiled forms of its code."""
    image = torch.ones(1, 2)
    for outputs in (2, 3, 4):
        model = nn.Linear(2, outputs)
        torch.testing.assert_close(compiled(model)(image), model(image))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        torch.compile(nn.Linear(2, 5))(image)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8)
@pytest.mark.parametrize("deletions", [True, False])  # the way of PyTorch 2.14, and that of earlier ones
def test_modules_compiled_one_by_one_are_masked_also_beyond_the_limit(deletions, monkeypatch):
    """PyTorch runs what exceeds the limit uncompiled; no module may keep a weight of another moment."""
    monkeypatch.setattr("pdp.pruner.compiling.DELETIONS_COMPILE", deletions and compiling.DELETIONS_COMPILE)
    torch.manual_seed(0)
    torch._dynamo.reset()
    images, labels = torch.randn(8, 3, 6, 6), torch.arange(8)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ConvTranspose2d(16, 8, 2, 2), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)),
    )
    model = copy.deepcopy(plain)
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.compile(backend="aot_eager")
    seen = []
    for one in (plain, model):
        pruner = pruned(one, "channel", "pdp", images)
        optimizer = torch.optim.SGD(one.parameters(), 0.05, momentum=0.9)
        pruner.attach(optimizer)
        for step in range(4):
            if step == 3:
                pruner.start_epoch(1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(images), labels).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
        one.eval()
        with torch.no_grad():
            first = one(images)
            with pruner.hard():
                hard = one(images)
            seen.append([first, hard, one(images)])
    assert torch.equal(seen[1][0], seen[1][2])
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


class Twice(nn.Module):
    """Calls a layer and multiplies by its weight once more."""

    def __init__(self, breaks):
        super().__init__()
        self.proj, self.out, self.breaks = nn.Linear(8, 8), nn.Linear(8, 4), breaks

    def forward(self, x):
        h = self.proj(x).relu()
        if self.breaks:
            torch._dynamo.graph_break()
        return self.out(functional.linear(h, self.proj.weight.t()))


class Around(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.inner = Twice(breaks)

    def forward(self, x):
        return self.inner(x)


def trained_beside_eager(model, compile_first=False):
    """Trains the compiled model and a copy that is not, with a dense start; compares whatever looks at the weights."""
    plain = copy.deepcopy(model)
    x = torch.randn(5, 8, dtype=torch.float64)
    forward = torch.compile(model, backend="eager")
    if compile_first:
        forward(x)
    pruners = [
        Pruner(one, "gmp", sparsity=0.7, epochs=3, schedule={"warmup": "1ep", "ramp": "1ep"}) for one in (plain, model)
    ]
    if not compile_first:
        forward = torch.compile(model, backend="eager")
    calls = (plain, forward)
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (plain, model)]
    for epoch in range(3):
        for one, pruner in zip((plain, model), pruners, strict=True):
            pruner.start_epoch(epoch)
            one.train()
        for _ in range(2):
            x = torch.randn(5, 8, dtype=torch.float64)
            for call, pruner, optimizer in zip(calls, pruners, optimizers, strict=True):
                call(x).square().mean().backward()
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
            for name, module in model.named_modules():
                assert not [key for key in module.__dict__ if key in module._parameters or "around" in key], name
        plain.eval(), model.eval()
        with torch.no_grad(), pruners[0].hard(), pruners[1].hard():
            right = plain(x)
            for one in (model, copy.deepcopy(model), forward):
                assert torch.equal(one(x), right)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for pruner in pruners:
        pruner.finalize()
    assert torch.equal(forward(x), plain(x))


@pytest.mark.slow
@pytest.mark.parametrize("compile_first", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("kind", [Twice, Around])
def test_evaluation_without_the_graph_finds_no_weight_of_it(kind, breaks, compile_first):
    """Around a forward of one's own class, and where a graph breaks, each hook is compiled by itself."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    trained_beside_eager(kind(breaks).double(), compile_first)


@pytest.mark.slow
def test_each_model_of_a_process_is_masked_where_its_weights_are_read():
    """PyTorch keeps eight compiled forms of a hook's code; each model takes two or three."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    for number in range(4):
        kind = type(f"Kind{number}", (nn.Module,), {"__init__": made, "forward": called(number)})
        trained_beside_eager(kind().double())


def made(self):
    nn.Module.__init__(self)
    self.proj, self.out = nn.Linear(8, 8), nn.Linear(8, 4)


def called(number):
    def forward(self, x):
        return self.out(functional.linear(self.proj(x).relu(), self.proj.weight.t())) + number

    return types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
