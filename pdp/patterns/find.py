"""The couplings of a model: found in one forward, then proven."""

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
    """The couplings of a model in its own order; those that cannot lose channels say why in `refused`.

    One forward of `example_input` (a tensor, a tuple of arguments or a dict of keywords) is followed, a few more of a
    copy prove what was found. Leaves model and training mode as they were. Raises `Refusal` where the model does not
    take the input.
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
            if unread(walk, model):
                _train(walk, model, wholes, example_input)
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
    """The heads of attentions of no known kind; none where the model does not take the input."""
    parts = {part.name for one in known for part in (*one.outputs, *one.inputs)}
    try:
        with quiet(model):
            return joined(model, find_heads(model, call, example_input, parts), call, example_input)
    except Exception:  # what is wrong with the input is said by who follows the model
        return []


def _train(walk: Walk, model: nn.Module, wholes: dict[str, Any], example_input: Any) -> None:
    """Follows a forward in training mode too: layers that only training uses, auxiliary heads, read channels."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    for module in model.modules():
        if isinstance(module, (_NormBase, _DropoutNd)):
            module.eval()
    try:
        with walk.watching(model, wholes):
            output = call(model, example_input)
        pin_outputs(walk, output)
    except Exception:
        # Training may want more than the example, labels or a larger batch; what it uses then stays unread.
        walk.closed = 0
    finally:
        model.eval()
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def call(model: nn.Module, example_input: Any) -> Any:
    """The model's output for an example input."""
    if isinstance(example_input, dict):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, (tuple, list)) else model(example_input)


def pin_outputs(walk: Walk, output: Any) -> None:
    """Channels in the model's outputs stay, whatever object holds them."""
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
    """Evaluation mode, no gradients, no cache of past keys, no fused attention, and the generators' states kept."""
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
