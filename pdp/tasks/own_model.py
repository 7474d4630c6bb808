"""A model of the user's own: made with the number of classes if it accepts it, and tested by forward passes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pdp.config.schema import ModelConfig
from pdp.config.source import locate, names_in
from pdp.errors import Refusal
from pdp.wording import one_line

_COUNT = "num_classes"
_OTHER_COUNTS = ("n_classes", "nclasses", "classes", "num_class", "n_class", "num_labels", "n_labels", "out_features")


def check_own(model: ModelConfig) -> None:
    """Raises `Refusal` if the dotted path does not name something that can make a model."""
    with _settings_kept():
        found = locate(model.name)
    if isinstance(found, ModuleType):
        names = ", ".join(names_in(found)[:10]) or "nothing that could be called"
        raise Refusal(f"model={model.name} is a module: give a class or function of it, which are {names}")
    if isinstance(found, nn.Module):
        raise Refusal(
            f"model={model.name} is a model that is there already, and every run must begin with its own: give the "
            f"class ({type(found).__name__}) or a function that makes one"
        )
    if not callable(found):
        raise Refusal(f"model={model.name} is a {type(found).__name__}: give a class or function that makes a model")


def build_own(model: ModelConfig, classes: int) -> nn.Module:
    """The result of calling `model.name` with `model.arguments`, fp32 on the CPU; raises `Refusal` if no model."""
    check_own(model)
    arguments = {str(key): value for key, value in dict(model.arguments).items()}
    if _COUNT in arguments:
        raise Refusal(f"model.arguments.{_COUNT} is set by the data: remove it")
    with _settings_kept():
        network = _call(model.name, locate(model.name), arguments, classes)
    if not isinstance(network, nn.Module):
        raise Refusal(
            f"model={model.name} gives a {type(network).__name__}, and no torch.nn.Module: give what makes one"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise Refusal(f"model={model.name} has no parameter that could be trained")
    return network.cpu().float().train()


def _call(name: str, maker: Any, arguments: dict[str, Any], classes: int) -> Any:
    takes = _takes_count(maker)
    if takes != "no":
        try:
            return maker(**arguments, **{_COUNT: classes})
        except TypeError as error:
            # A function with **kwargs may pass them to another one that does not accept this argument.
            if takes == "yes" or _COUNT not in str(error):
                raise _unsuited(name, maker, arguments | {_COUNT: classes}, error) from None
        except Exception as error:
            raise _unsuited(name, maker, arguments | {_COUNT: classes}, error) from None
    try:
        return maker(**arguments)
    except Exception as error:
        raise _unsuited(name, maker, arguments, error) from None


def _takes_count(maker: Any) -> str:
    """Whether the function accepts the number of classes: "yes", "no", or "maybe" (by **kwargs)."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        return "no"
    if any(one.name == _COUNT and one.kind is not one.POSITIONAL_ONLY for one in parameters):
        return "yes"
    return "maybe" if any(one.kind is one.VAR_KEYWORD for one in parameters) else "no"


def _unsuited(name: str, maker: Any, arguments: dict[str, Any], error: Exception) -> Refusal:
    try:
        signature = " ".join(str(inspect.signature(maker)).split())[:200]
    except (TypeError, ValueError):
        signature = "(...)"
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    reason = f"{type(error).__name__}: {one_line(error)[:200]}"
    return Refusal(f"model={name}{signature} cannot be called with ({given}): {reason}; change model.arguments")


def prove(network: nn.Module, model: ModelConfig, example: Tensor, classes: int) -> None:
    """Tests the model with two samples, in evaluation mode and in training mode; leaves it unchanged otherwise.

    Lazy layers, which take their sizes from their first input, get them here. Raises `Refusal` if the model does not
    accept the data's images or does not return one float per class.
    """
    pair = torch.cat([example, torch.randn(example.shape, generator=torch.Generator().manual_seed(0))])
    buffers: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _settings_kept():
        try:
            for training in (False, True):
                if training:
                    # A forward pass in training mode changes BatchNorm's statistics. They are copied only now, because
                    # the first pass has created the buffers of lazy layers.
                    buffers = {key: value.clone() for key, value in network.named_buffers()}
                _check_output(_run(network.train(training), model, pair, training), model, classes, training)
        finally:
            for key, value in network.named_buffers():
                if key in buffers:
                    value.copy_(buffers[key])
            network.train()


def _run(network: nn.Module, model: ModelConfig, pair: Tensor, training: bool) -> Any:
    try:
        return network(pair)
    except Exception as error:
        shape = tuple(pair.shape)
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise Refusal(
            f"model={model.name} does not take images of {shape[-2]}x{shape[-1]}, float32 {shape}, in "
            f"{'training' if training else 'evaluation'} ({reason}): give data.image_size=<its input size>, or "
            "model.arguments that suit"
        ) from None


def _check_output(output: Any, model: ModelConfig, classes: int, training: bool) -> None:
    wanted = f"the logits alone, float (N, {classes})"
    when = " in training" if training else ""
    if not isinstance(output, Tensor):
        kind = type(output).__name__ + (f" of {len(output)}" if isinstance(output, list | tuple | dict) else "")
        raise Refusal(
            f"model={model.name} gives a {kind}{when}, and must give {wanted}: give a function of your own whose model "
            "gives that one of them"
        )
    if not output.is_floating_point() or tuple(output.shape) != (2, classes):
        outputs = output.shape[1] if output.dim() == 2 else None
        hint = f": return {wanted}"
        if outputs is not None and outputs != classes:
            other = next((one for one in _OTHER_COUNTS if one in _parameters_of(model.name)), None)
            key = (
                f"give model.arguments.{other}={classes}"
                if other
                else f"take {_COUNT} in its signature, which is passed"
            )
            hint = f": {key}, so that it gives {classes}"
        raise Refusal(
            f"model={model.name} gives {str(output.dtype).removeprefix('torch.')} {tuple(output.shape)} for two samples"
            f"{when}, and the data has {classes} classes{hint}"
        )


def _parameters_of(name: str) -> list[str]:
    try:
        return list(inspect.signature(locate(name)).parameters)
    except (TypeError, ValueError):
        return []


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Undoes process-wide settings (a default dtype, say) that the user's code makes while creating a model."""
    dtype, gradients, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    device = torch.get_default_device()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
