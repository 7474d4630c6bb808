"""Small models and loops that several tests share."""

import torch
from torch import nn

from pdp import Pruner
from pdp.methods.checks import PATTERNS_OF
from pdp.methods.options import OPTIONS

PATTERNS = {"random": 0.8, "2:4": None, "channel": 0.5, "4x1": 0.5}  # with the target that a case has
CASES = [
    (method, pattern)
    for method in OPTIONS
    for pattern in PATTERNS
    if method not in ("dense", "held")
    and {"2:4": "nm", "4x1": "block"}.get(pattern, pattern)
    in PATTERNS_OF.get(method, ("random", "nm", "channel", "block"))
]
# So that three steps an epoch see an update, or scores learn anything in a few of them.
CALIBRATED = ("wanda", "sparsegpt")  # methods that prune at once, from samples
SHORT_OPTIONS = {
    "rigl": {"update_every": "2it"},
    "optg": {"update_every": "2it"},
    "granet": {"update_every": "2it"},
    "movement": {"score_lr": None},
    "str": {"initial": -5.0},
    "chex": {"update_every": 1},
}
# Methods at settings that keep or do something else than at their defaults.
VARIANTS = {
    "pdp, relative": ("pdp", {"temperature_mode": "relative"}),
    "pdp, every other step": ("pdp", {"refresh": 2}),
    "pdp, a cut with a gradient": ("pdp", {"detach_cut": False}),
    "pdp, annealed": ("pdp", {"anneal": "linear", "temperature_end": 1e-6, "anneal_from": "2ep"}),
    "pdp, learned": ("pdp", {"temperature_mode": "learned", "temperature": 1e-2}),
    "pdp, a moving budget": ("pdp", {"budget": "moving"}),
    "gmp, global": ("gmp", {"allocation": "global"}),
    "gmp, a fixed budget": ("gmp", {"allocation": "global", "budget": "fixed"}),
    "gmp, every four steps": ("gmp", {"update_every": 4, "schedule": {"warmup": "3it", "ramp": "8it", "unit": "step"}}),
    "str, free": ("str", {"controller": "none", "initial": -5.0, "sparsity": None}),
    "cs, controlled": ("cs", {"controller": "cubic"}),
    "cs, two rounds": ("cs", {"rounds": 2}),
    "movement, soft": ("movement", {"variant": "soft", "score_lr": None, "threshold": 0.5}),
    "movement, global": ("movement", {"allocation": "global", "score_lr": None}),
    "acdc, uniform": ("acdc", {"allocation": "uniform", "reset_momentum": False}),
    "pdp, int8": ("pdp", {"quantize": "int8", "quantize_options": {"start": "0.5"}}),
    "gmp, int8 learned": ("gmp", {"quantize": "int8", "quantize_options": {"start": "0.3", "ranges": "learned"}}),
    "str, int4w learned": ("str", {"quantize": "int4w", "quantize_options": {"start": "0", "ranges": "learned"}}),
    "rigl, cosine": ("rigl", {"update_every": "2it", "anneal": "cosine"}),
}
VARIANT_CASES = [(variant, "random") for variant in VARIANTS]


def case_net(norm: bool = True) -> nn.Sequential:
    """A net that every pattern and method finds something to prune in; float64, BatchNorm or none."""
    norms = nn.BatchNorm2d if norm else nn.Identity
    layers = [nn.Conv2d(3, 8, 3), norms(8), nn.ReLU(), nn.Conv2d(8, 16, 3), norms(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3), norms(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).double()


def case_pruner(model: nn.Module, method: str, pattern: str, epochs: int, **values) -> Pruner:
    """The pruner of a case, in a run of three steps an epoch."""
    name, options = VARIANTS.get(method, (method, SHORT_OPTIONS.get(method, {})))
    values = {"sparsity": PATTERNS[pattern], "schedule": {"warmup": "1ep", "ramp": "2ep"}} | options | values
    if name in CALIBRATED:
        values.setdefault("calibration", [batch(1, dtype=next(model.parameters()).dtype)[0]])
    return Pruner(
        model,
        name,
        pattern,
        epochs=epochs,
        steps_per_epoch=3,
        example_input=torch.zeros(1, 3, 8, 8, dtype=torch.float64),
        **values,
    )


def case_step(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, images, labels) -> None:
    """One optimizer step as the trainer makes it."""
    loss = nn.functional.cross_entropy(model(images), labels)
    penalty = pruner.penalty()
    (loss if penalty is None else loss + penalty).backward()
    pruner.after_backward()
    optimizer.step()
    pruner.step()
    optimizer.zero_grad()


def small_net(classes: int = 4) -> nn.Sequential:
    """A convolution, a depthwise one, a norm and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def batch(seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator).to(dtype), torch.randint(0, 4, (size,), generator=generator)


def train_epoch(
    model: nn.Module,
    pruner: Pruner,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
) -> None:
    """One epoch of a plain loop."""
    pruner.start_epoch(epoch)
    for step in range(steps):
        images, labels = batch(100 * epoch + step, dtype=dtype)
        case_step(model, pruner, optimizer, images, labels)
