"""Small random nets of many kinds: what a step does between its layers, by name, for images of any dimensions."""

import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TURNED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def over_first(x):
    x = x.clone()
    x[:, 0] = 1
    return x


def half_added(x):
    x = x.clone()
    x[:, : x.shape[1] // 2] += x[:, x.shape[1] // 2 :].tanh()
    return x


# fmt: off
BETWEEN = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "softplus": F.softplus, "cos": torch.cos, "gelu": F.gelu, "silu": F.silu,
    "hardsigmoid": F.hardsigmoid, "add": lambda x: x + 0.3, "rsub": lambda x: 2 - x, "clamp": lambda x: x.clamp(min=0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.7), "where": lambda x: torch.where(x > 0, x, 0.1 * x - 1),
    "in place": lambda x: x.clone().mul_(2).add_(0.1), "lerp": lambda x: torch.lerp(x, x.tanh(), 0.3),
    "fill": lambda x: x.masked_fill(x > 1, 0.5), "logsigmoid": F.logsigmoid, "over first": over_first, "half added": half_added,
    "softmax": lambda x: x.softmax(1), "minus mean": lambda x: x - x.mean(1, keepdim=True), "l2": lambda x: F.normalize(x, dim=1),
    "flip": lambda x: x.flip(1), "sort": lambda x: x.sort(1).values, "cumsum": lambda x: x.cumsum(1), "roll": lambda x: x.roll(1, 1),
    "swap": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), "times max": lambda x: x * x.amax(1, keepdim=True),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), "topk": lambda x: x.topk(x.shape[1], 1).values,
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1), "every second": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "halves": lambda x: torch.cat([x.chunk(2, 1)[0] * x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "by first": lambda x: x * x[:, :1], "stack": lambda x: torch.stack([x, x.tanh()], 1).sum(1), "same": lambda x: x,
}
NORMS = [
    lambda c, n: BATCH[n](c), lambda c, n: BATCH[n](c, affine=False), lambda c, n: BATCH[n](c, track_running_stats=False),
    lambda c, n: BATCH[n](c).requires_grad_(False), lambda c, n: INSTANCE[n](c, affine=True), lambda c, n: nn.GroupNorm(2, c),
    lambda c, n: nn.GroupNorm(c, c), lambda c, n: nn.PReLU(c), lambda c, n: nn.Identity(), lambda c, n: nn.Dropout(0.1),
    lambda c, n: ChannelsLast(nn.LayerNorm(c)), lambda c, n: ChannelsLast(nn.RMSNorm(c)), lambda c, n: Gain(c, n),
]
# fmt: on


class ChannelsLast(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


class Gain(nn.Module):
    def __init__(self, c, n):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(c) + 0.5)
        self.register_buffer("shift", torch.randn(c, *(1,) * n))

    def forward(self, x):
        return x * self.gain.view(-1, *(1,) * (x.dim() - 2)) + self.shift


class Step(nn.Module):
    """One step on (N, 8, ...), of a kind; `width` and `splits` are numbers that its code cuts its channels by."""

    def __init__(self, kind, between, draw, n):
        super().__init__()
        self.kind, self.between, self.width, self.splits = kind, BETWEEN[between], 3, [3, 4, 5]
        self.across = tuple(range(2, 2 + n))

        def conv(i, o, k=1, groups=1):
            layer = CONV[n](i, o, k, padding=k // 2, groups=groups, bias=draw.random() < 0.7)
            ways = [weight_norm, spectral_norm, lambda one: prune.random_unstructured(one, "weight", 0.3)]
            ways += [lambda one: one.requires_grad_(False)]
            return draw.choice(ways)(layer) if draw.random() < 0.12 else layer

        self.a, self.b, self.norm = conv(8, 12, 3), conv(8, 12), draw.choice(NORMS)(12, n)
        self.reader, self.both = conv(12, 8), conv(24, 8)
        self.deep = conv(12, 24, 3, 12) if kind == "depthwise" else conv(12, 12, 3, 2)
        self.square, self.narrow = conv(12, 12), conv(6, 8)
        self.turned = TURNED[n](12, 12, 3, padding=1)
        self.lin, self.gate, self.read = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 8)
        self.experts = nn.ModuleList([conv(12, 8) for _ in range(3)])
        self.parts = nn.ModuleList([conv(size, size, 3) for size in self.splits])
        self.own, self.rest = conv(self.width, 8), conv(12 - self.width, 8)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.recurrent, self.bilinear = nn.GRU(12, 12, batch_first=True), nn.Bilinear(12, 12, 8)
        self.table = nn.Embedding(4, 12)

    def forward(self, x):
        y = self.between(self.norm(self.a(x)))
        return getattr(self, self.kind)(x, y)

    # fmt: off
    def chain(self, x, y): return self.reader(y)
    def total(self, x, y): return self.reader(y + self.b(x))
    def cat(self, x, y): return self.both(torch.cat([y, self.b(x)], 1))
    def nested(self, x, y): return self.both(torch.cat([torch.cat([y], 1), torch.cat([y, y], 1)[:, 12:]], 1))
    def split(self, x, y): return self.narrow(y.chunk(2, 1)[0] * y.chunk(2, 1)[1].sigmoid())
    def squeezed(self, x, y): return self.reader(y * self.gate(self.lin(y.mean(self.across)).relu()).sigmoid()[(...,) + (None,) * len(self.across)])
    def again(self, x, y): return self.reader(self.square(self.square(y).relu()))
    def depthwise(self, x, y): return self.both(self.deep(y))
    def groups(self, x, y): return self.reader(self.deep(y))
    def residual(self, x, y): return x + self.reader(y)
    def transposed(self, x, y): return self.reader(self.turned(y).relu())
    def recomputed(self, x, y): return checkpoint(self.reader, y, use_reentrant=False)
    def outside(self, x, y): return self.reader((y.movedim(1, -1) @ self.lin.weight.T + self.lin.bias).movedim(-1, 1))
    def standardised(self, x, y): return self.read(F.linear(y.movedim(1, -1), self.lin.weight - self.lin.weight.mean(1, True))).movedim(-1, 1)
    def chosen(self, x, y): return self.reader(y) if bool(y.sum() > 0) else self.reader(self.square(y))
    def early(self, x, y): return self.own(y[:, : self.width]) if y.max().item() > 1.5 else self.reader(y)
    def parted(self, x, y): return self.reader(torch.cat([one(part) for one, part in zip(self.parts, y.split(self.splits, 1), strict=True)], 1))
    def cut(self, x, y): return self.own(y[:, : self.width]) + self.rest(y[:, self.width :])
    def partly(self, x, y): return self.reader(torch.cat([y[:, : self.width] + self.square(y)[:, : self.width], y[:, self.width :]], 1))
    def bilinearly(self, x, y): return self.bilinear(y.movedim(1, -1).contiguous(), self.b(x).movedim(1, -1).contiguous()).movedim(-1, 1)
    def embedded(self, x, y): return self.reader(y * self.table.weight.mean(0).view(-1, *(1,) * len(self.across)))
    def summed(self, x, y): return self.reader(torch.einsum("bcx,bdx,bdy->bcy", y.flatten(2), y.flatten(2), y.flatten(2)).view_as(y) / 50)
    def paths(self, x, y):
        both = torch.stack([y, self.b(x)], 1)
        weights = self.gate(self.lin(both.sum(1).mean(self.across)).relu()).sigmoid()[(...,) + (None,) * len(self.across)]
        return self.reader((both * weights.unsqueeze(1)).sum(1))
    def flat(self, x, y): return self.reader(y) + self.read(F.linear(y.flatten(2).mean(2), self.lin.weight))[(...,) + (None,) * len(self.across)]
    def attended(self, x, y):
        tokens = y.flatten(2).transpose(1, 2)
        return self.reader(self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(y.shape))
    def over_time(self, x, y): return self.reader(self.recurrent(y.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(y.shape))
    def routed(self, x, y):
        chosen, out = self.lin(y.mean(self.across)).argmax(1) % 3, torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            rows = torch.where(chosen == place)[0]
            if len(rows):
                out.index_add_(0, rows, expert(y[rows]))
        return out
    # fmt: on


KINDS = [name for name, value in vars(Step).items() if callable(value) and name != "forward" and name[0] != "_"]


class Net(nn.Module):
    """A stem, some steps and a head; its outputs a tensor, a tuple or a dict."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        self.n, self.form = draw.choice([1, 2, 2, 3]), draw.choice(["tensor", "tensor", "tuple", "dict"])
        self.named = [(draw.choice(KINDS), draw.choice(list(BETWEEN))) for _ in range(draw.randint(1, 3))]
        self.stem = CONV[self.n](3, 8, 1)
        self.steps = nn.Sequential(*(Step(kind, between, draw, self.n) for kind, between in self.named))
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.normal_(0, 0.5)
                    module.running_var.uniform_(0.5, 1.5)
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.5)

    def forward(self, x):
        features = self.steps(self.stem(x))
        outputs = self.head(features.mean(tuple(range(2, 2 + self.n))))
        if self.form == "tuple":
            return outputs, 2 * outputs
        return {"logits": outputs, "none": None} if self.form == "dict" else outputs

    def inputs(self, count=3):
        return torch.randn(count, 3, *(4,) * self.n, generator=torch.Generator().manual_seed(1))
