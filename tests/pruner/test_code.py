"""Weights that are read by their own module and by other code, wherever that lies, are masked in a compiled graph too."""

import copy
from functools import partial

import pytest
import torch
import ways_of_reading
from torch import nn
from torch.nn import functional
from ways_of_reading import KINDS, OPS, TABLE, Ops

from pdp import Pruner
from pdp.pruner.code import reading_of


class Reader(nn.Module):
    def forward(self, x, layer):
        return functional.linear(x, layer.weight.t())


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([Reader()])

    def forward(self, x, layer):
        return self.inner[0](x, layer)


def imported(model, x):
    from ways_of_reading import project as found

    return found(x, model.proj)


def imported_whole(model, x):
    import ways_of_reading as found

    return found.project(x, model.proj)


WAYS = {
    "of a Python module": lambda model, x: ways_of_reading.project(x, model.proj),
    "static": lambda model, x: Ops.plainly(x, model.proj),
    "class method": lambda model, x: ways_of_reading.Ops.by_class(x, model.proj),
    "global object": lambda model, x: OPS.project(x, model.proj),
    "object made there": lambda model, x: Ops().project(x, model.proj),
    "held object": lambda model, x: model.ops.project(x, model.proj),
    "held callable": lambda model, x: model.called(x, model.proj),
    "table": lambda model, x: TABLE["plain"](x, model.proj),
    "nested table": lambda model, x: KINDS[0]["by module"](model, x),
    "held list": lambda model, x: model.functions[0](x, model.proj),
    "held partial": lambda model, x: model.partial(layer=model.proj)(x),
    "import": imported,
    "import of a module": imported_whole,
    "child": lambda model, x: model.reader(x, model.proj),
    "child of a child": lambda model, x: model.outer(x, model.proj),
}


class Both(nn.Module):
    """Calls a layer, and has its weight read once more in one of these ways."""

    def __init__(self, way):
        super().__init__()
        self.proj, self.out, self.reader, self.outer = nn.Linear(8, 8), nn.Linear(8, 4), Reader(), Outer()
        self.ops, self.called, self.functions = Ops(), ways_of_reading.Called(), [ways_of_reading.project]
        self.partial = partial(partial, ways_of_reading.project)
        self.way = WAYS[way]

    def forward(self, x):
        return self.out(self.way(self, self.proj(x).relu()))


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_read_twice_is_masked_twice(way):
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain = Both(way).double()
    model = copy.deepcopy(plain)
    x = torch.randn(5, 8, dtype=torch.float64)
    for one, call in ((plain, plain), (model, torch.compile(model, backend="eager"))):
        pruner = Pruner(one, "gmp", sparsity=0.7, epochs=4, schedule={"warmup": "0ep", "ramp": "1ep"})
        pruner.start_epoch(3)
        one.seen = call(x)
        one.seen.square().sum().backward()
    assert torch.equal(model.seen, plain.seen)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_nothing_of_the_model_is_called():
    class Watching(nn.Module):
        @property
        def ops(self):
            raise AssertionError("called")

        def __getattr__(self, name):
            raise AssertionError("called")

        def forward(self, x):
            return self.ops.project(x, self.proj)

    assert not reading_of(Watching())("proj")


def test_a_norm_with_a_weight_of_its_own_reads_no_others():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.weight * x

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.proj = Norm(), nn.Linear(8, 8)

        def forward(self, x):
            return self.proj(self.norm(x))

    assert not reading_of(Block())("proj")
