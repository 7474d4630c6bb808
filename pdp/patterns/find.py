"""Finds the couplings of a model by following one forward, then verifies them by experiment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pdp.errors import Refusal
from pdp.patterns.assemble import OUTPUTS, assemble, head_coupling, unread
from pdp.patterns.attention import find_attentions
from pdp.patterns.coupling import Coupling, describe
from pdp.patterns.head_biases import joined
from pdp.patterns.heads import find_heads
from pdp.patterns.proof import prove
from pdp.patterns.response_norm import computes_response_norm, follow_response_norm
from pdp.patterns.rules import follow
from pdp.patterns.walk import Walk


def find_couplings(model: nn.Module, example_input: Any) -> list[Coupling]:
    """The couplings in the order of the model's modules; `refused` says why a coupling cannot lose channels.

    Follows one forward of `example_input` (a tensor, a tuple of arguments or a dict of keyword arguments); a few more
    forwards of a copy verify the result. Leaves the model and its training mode unchanged. Raises `Refusal` if the
    model does not accept the input.
    """
    attentions = list(find_attentions(model))
    apart = {maker for one in attentions for maker in one.makers}
    heads = _other_heads(model, example_input, [head_coupling(model, one) for one in attentions])
    apart |= {part.name for one in heads for part in one.outputs}
    walk = Walk(model, apart, follow)
    wholes = {name: follow_response_norm for name, module in model.named_modules() if computes_response_norm(module)}
    with quiet(model):
        try:
            with walk.watching(model, wholes):
                output = call(model, example_input)
        except Exception as error:
            raise Refusal(
                f"the model does not take this example_input: {describe(error)} (in {walk.where}); give one batch as "
                "the model's forward takes it"
            ) from error
        try:
            pin_outputs(walk, output)
            _follow_others(walk, model, wholes, example_input)
            couplings = [*(head_coupling(model, one) for one in attentions), *heads, *assemble(walk, model)]
            place = {name: index for index, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
            couplings.sort(key=lambda one: place[one.name])
            prove(model, couplings, call, example_input, walk.macs)
        except Exception as error:
            raise Refusal(
                f"channel pruning cannot follow this model ({describe(error)}): give prune=random or prune=nm"
            ) from error
    return couplings


def _other_heads(model: nn.Module, example_input: Any, known: list[Coupling]) -> list[Coupling]:
    """The heads of attentions of no known kind; none if the model does not accept the input."""
    parts = {part.name for one in known for part in (*one.outputs, *one.inputs)}
    try:
        with quiet(model):
            return joined(model, find_heads(model, call, example_input, parts), call, example_input)
    except Exception:  # the walk that comes next says what is wrong with the input
        return []


def _follow_others(walk: Walk, model: nn.Module, wholes: dict[str, Any], example_input: Any) -> None:
    """Follows what the first forward has not done: what its data did not choose, and what training alone uses."""
    if walk.choices.places:
        for answer in (-1e30, 1e30) if walk.choices.numbers else (-1e30,):
            _follow_again(walk, model, wholes, example_input, answer)
    if unread(walk, model):
        model.train()
        for module in model.modules():
            if isinstance(module, (_NormBase, _DropoutNd)):
                module.eval()
        _follow_again(walk, model, wholes, example_input)
        model.eval()
    if walk.choices.places and walk.choices.close(unread(walk, model)):
        _follow_again(walk, model, wholes, example_input)


def _follow_again(
    walk: Walk, model: nn.Module, wholes: dict[str, Any], example_input: Any, answer: float | None = None
) -> None:
    """One more forward, which may fail: training may want labels or a larger batch, the other choice be an error."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    walk.choices.begin(answer)
    try:
        with walk.watching(model, wholes):
            output = call(model, example_input)
        pin_outputs(walk, output)
    except Exception:
        walk.closed = 0  # what it would have used then stays unread
    finally:
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def call(model: nn.Module, example_input: Any) -> Any:
    """The model's output for an example input."""
    if isinstance(example_input, dict):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, (tuple, list)) else model(example_input)


def pin_outputs(walk: Walk, output: Any) -> None:
    """Pins the channels in the model's outputs, whatever object holds them."""
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            walk.pin(walk.data_labels(value), OUTPUTS)
        elif isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif isinstance(value, (list, tuple, set)):
            for one in value:
                visit(one)
        elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
            for one in vars(value).values():
                visit(one)

    visit(output)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, cache of past keys or fused attention; restores the random generators."""
    settings: Any = getattr(model, "config", None)
    cached = getattr(settings, "use_cache", None)
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({one.device.index or 0 for one in model.parameters() if one.is_cuda})
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if cached:
            settings.use_cache = False
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if cached:
            settings.use_cache = cached
        for module in training:
            module.training = True
