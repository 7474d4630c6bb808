"""The classification models of torchvision, and a small one of each timm family, at the smallest input they accept."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

# Words in model names that tell the size, smallest first; a model without one counts as medium-sized.
_SIZES = (
    "test",
    "atto",
    "femto",
    "zepto",
    "pico",
    "nano",
    "xxs",
    "xxt",
    "xs",
    "mini",
    "tiny",
    "lite",
    "small",
    "s",
    "b0",
)
_LARGE = (
    "m",
    "l",
    "medium",
    "base",
    "large",
    "xlarge",
    "huge",
    "giant",
    "gigantic",
    "enormous",
    "xl",
    "xxl",
    "so400m",
    "so150m2",
    "so150m",
)
_SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384)


def names() -> list[str]:
    """The names `torchvision/<model>` and `timm/<model>`."""
    return [*_torchvision(), *_timm()]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The model with random weights in evaluation mode, and an image of the smallest size that it accepts."""
    library, _, model = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        built: Any = timm.create_model(model, num_classes=10)
        channels, fixed = built.pretrained_cfg.get("input_size", (3, 224, 224))[:2]
        own = (
            (built.pretrained_cfg.get("input_size", (3, 224, 224))[1],)
            if built.pretrained_cfg.get("fixed_input_size")
            else ()
        )
        sides = own or tuple(side for side in _SIDES if side < fixed) + (fixed,)
    else:
        import torchvision

        extra = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
        built = torchvision.models.get_model(model, weights=None, num_classes=10, **extra)
        channels, sides = 3, _SIDES
    built.eval()
    failure: Exception | None = None
    for side in sides:
        images = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(1))
        try:
            with torch.no_grad():
                built(images)
            return built, images
        except Exception as error:  # the image is too small for the model's strides; models raise many types of errors
            failure = error
    assert failure is not None
    raise failure


def _torchvision() -> list[str]:
    import torchvision

    return [f"torchvision/{one}" for one in torchvision.models.list_models(module=torchvision.models)]


def _timm() -> list[str]:
    import timm

    chosen = []
    for family in timm.list_modules():
        models = timm.list_models(module=family)
        if models:
            chosen.append(f"timm/{min(models, key=_size)}")
    return chosen


def _size(name: str) -> tuple:
    words = re.split(r"[_.]", name)
    place = next((rank for rank, word in enumerate(_SIZES) if word in words), None)
    if place is None:
        large = next((rank for rank, word in enumerate(_LARGE) if word in words), None)
        place = len(_SIZES) if large is None else len(_SIZES) + 1 + large
    numbers = [int(one) for one in re.findall(r"\d+", name)]
    return place, len(words), max(numbers, default=0), name
