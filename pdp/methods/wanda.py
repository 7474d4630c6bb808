"""Wanda (Sun et al. 2024): scores are weights times norms of their inputs; each output loses its smallest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pdp.layers import Layer
from pdp.methods.calibrated import CalibratedMethod, Statistics, group_count, to_rows
from pdp.methods.options import WandaOptions


class Norms(Statistics):
    """The squared norms of a layer's inputs, (groups, columns)."""

    def __init__(self) -> None:
        self.squared: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        inputs = inputs if inputs.dtype == torch.float64 else inputs.float()
        found = inputs.square().sum(1)
        self.squared = found if self.squared is None else self.squared.add_(found)


class Method(CalibratedMethod):
    """Prunes by the score |W_ij| ||x_j||_2 (section 3 of the paper); the kept weights do not change."""

    options: WandaOptions

    def statistics(self, layer: Layer) -> Norms:
        return Norms()

    def compress(self, layer: Layer, statistics: Statistics | None) -> None:
        if not isinstance(statistics, Norms) or statistics.squared is None:
            return self.by_magnitude(layer)
        self.set_mask(layer, self.keep_scored(layer, wanda_scores(layer, statistics.squared)))


def wanda_scores(layer: Layer, squared: Tensor) -> Tensor:
    """|W_ij| ||x_j||_2, (groups, rows, columns), from squared input norms (groups, columns)."""
    assert squared.shape[0] == group_count(layer.sites[0].module)
    return to_rows(layer, layer.weight.detach().abs()) * squared.to(layer.weight.device).sqrt()[:, None]
