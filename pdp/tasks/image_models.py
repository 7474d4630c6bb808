"""Image models by name: torchvision's, timm's and our ResNet-20, pretrained or initialised as their libraries do it."""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pdp.config.schema import ModelConfig
from pdp.errors import Refusal
from pdp.importing import hidden
from pdp.ranks import OWN_PROCESS
from pdp.tasks.hub import cache_alone, limited_patience, reachable
from pdp.tasks.image_weights import ANEW, load_weights
from pdp.tasks.own_model import build_own, check_own, prove
from pdp.wording import one_line

LIBRARIES = ("pdp", "timm", "import")
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "mobilenet_v2")
NAMES = (*_TORCHVISION, "mobilenet_v1", "resnet20")


def check_name(model: ModelConfig) -> None:
    """Raises `Refusal` for an unknown model or library; the message gives the most similar known names."""
    if model.library not in LIBRARIES:
        raise Refusal(f"model.library={model.library} is unknown; it can be {', '.join(LIBRARIES)}")
    if model.library == "import":
        check_own(model)
        return
    if model.library == "pdp":
        if model.name not in NAMES:
            near = difflib.get_close_matches(model.name, NAMES, 3, 0.5) or NAMES
            raise Refusal(
                f"model.name={model.name} is unknown; near it: {', '.join(near)}; set model.name, or model=timm"
            )
        return
    timm = _timm()
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name.split(".")[0], timm.list_models(), 3, 0.4)
        known = f"near it: {', '.join(near)}" if near else "timm.list_models() has them all"
        raise Refusal(f"model.name={model.name} is no timm model; {known}; set model.name")


def build_model(model: ModelConfig, classes: int, example: Tensor | None = None) -> tuple[nn.Module, list[str]]:
    """The model for `classes` classes, and notes that say where its weights came from and which parts have none.

    A model of the user's own is tested by a forward pass of `example`, if given: float32 (1, 3, H, W). Raises
    `Refusal`.
    """
    check_name(model)
    pretrained = str(model.pretrained)
    if pretrained.lower() == "true":
        return _from_hub(model, classes)
    network = _construct(model, classes)
    if model.library == "import" and example is not None:
        prove(network, model, example, classes)
    if pretrained.lower() == "false":
        return network, []
    return network, load_weights(network, pretrained, classes, _heads(model, network))


def _timm() -> ModuleType:
    """The package timm. In a process of ours it has no Weights & Biases, which none of its functions used here needs
    and which takes long to import; a tracker that imports it finds it.
    """
    with hidden("wandb") if OWN_PROCESS.get() else nullcontext():
        import timm

        return timm


def _timm_name(model: ModelConfig) -> str | None:
    if model.library == "timm":
        return model.name
    return "mobilenetv1_100" if model.name == "mobilenet_v1" else None


def _construct(model: ModelConfig, classes: int) -> nn.Module:
    if model.library == "import":
        return build_own(model, classes)
    arguments = {str(key): value for key, value in dict(model.arguments).items()}
    reserved = sorted({"num_classes", "pretrained", "weights"} & arguments.keys())
    if reserved:
        raise Refusal(f"model.arguments.{reserved[0]} is set by the data and model.pretrained; remove it")
    timm_name = _timm_name(model)
    try:
        if timm_name is not None:
            return _timm().create_model(timm_name, num_classes=classes, **arguments)
        if model.name in _TORCHVISION:
            import torchvision

            return torchvision.models.get_model(model.name, num_classes=classes, **arguments)
        from pdp.tasks.resnet20 import ResNet20

        return ResNet20(num_classes=classes, **arguments)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        if not arguments:
            raise
        raise Refusal(
            f"model.arguments={arguments} does not suit {model.name}: {one_line(error)}; change or remove it"
        ) from None


def rows_of_classes(model: ModelConfig, network: nn.Module, classes: int) -> list[str]:
    """The parameters of `network` that have a row for each class: of another shape in the model for one class more."""
    own = network.state_dict()
    with torch.random.fork_rng(devices=[]):
        try:
            other = _construct(model, classes + 1).state_dict()
        except Refusal:  # a model of the user's own that takes no other number
            other = {}
    found = [name for name, value in own.items() if name in other and other[name].shape != value.shape]
    named = [f"{head}.{kind}" for head in _heads(model, network) for kind in ("weight", "bias")]
    return [name for name in found or named if name in own and own[name].shape[:1] == (classes,)]


def _heads(model: ModelConfig, network: nn.Module) -> tuple[str, ...]:
    """The classification layers: what timm calls the classifier (a distilled DeiT has two), else the last layer."""
    named = getattr(network, "pretrained_cfg", {}).get("classifier") if _timm_name(model) else None
    if isinstance(named, str):
        return (named,)
    if isinstance(named, list | tuple):
        return tuple(named)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return tuple(linear[-1:])


def _from_hub(model: ModelConfig, classes: int) -> tuple[nn.Module, list[str]]:
    offline = "give a file, model.pretrained=<file.safetensors or .pth>, or model.pretrained=false"
    if model.name == "resnet20" and model.library == "pdp":
        raise Refusal(f"model.pretrained=true: no hub has weights of resnet20; {offline}")
    network = _construct(model, classes)
    try:
        with limited_patience():
            timm_name = _timm_name(model)
            if timm_name is not None:
                return _from_timm(timm_name, network, classes, dict(model.arguments))
            import torchvision

            weights = torchvision.models.get_model_weights(model.name)["IMAGENET1K_V1"]
            state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # hub clients raise many types of exceptions without a network
        raise Refusal(
            f"model.pretrained=true: the weights of {model.name} could not be downloaded"
            f" ({type(error).__name__}: {one_line(error)}); without network {offline}"
        ) from None
    return network, load_weights(network, str(weights), classes, _heads(model, network), state)


def _from_timm(name: str, plain: Any, classes: int, arguments: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """Loads by timm's own function, which adapts weights to the model.

    `plain` is the same model without weights, made before to check the arguments.
    """
    with cache_alone(not reachable()):
        network = _timm().create_model(name, pretrained=True, num_classes=classes, **arguments)
    theirs = plain.pretrained_cfg.get("num_classes", classes)
    if theirs == classes:
        return network, []
    return network, [f"the classifier of timm's {name} is for {theirs} classes, not {classes}: it {ANEW}"]
