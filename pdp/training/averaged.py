"""The running average of the weights, which recipe.ema asks for, where it is measured, kept and shipped.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pdp.methods.options import PdpOptions
from pdp.pruner.parts import moment_of


@contextmanager
def averaged(trainer: Any, soft: bool = False) -> Iterator[None]:
    """While this context is open, the model holds its running average, if the run keeps one; then its own weights.

    So masks, which are made of the weights that the pruner's model holds, are those of the average, as at the end of
    the run. With `soft` PDP's cuts, which a step finds for the next one, are the average's too.
    """
    if trainer.average is None:
        yield
        return
    model, layers = trainer.model, trainer.pruner.layers
    own = {name: one.detach().clone() for name, one in model.state_dict().items()}
    recut = soft and isinstance(trainer.config.method, PdpOptions)
    states = [{key: one.detach().clone() for key, one in layer.state.items()} for layer in layers] if recut else []
    try:
        model.load_state_dict(trainer.average.module.state_dict())
        if recut:
            with torch.no_grad():
                trainer.pruner.method.update(layers, moment_of(trainer.pruner, final=True))
        yield
    finally:
        model.load_state_dict(own)
        for layer, state in zip(layers, states, strict=False):  # none were kept where nothing was cut
            for key, one in state.items():
                trainer.pruner.method.replace_state(layer, key, one)
