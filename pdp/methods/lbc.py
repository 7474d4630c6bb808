"""LBC: learning best combination (Zhang et al. 2022, zyxxmu/LBC): each N:M group by elimination of candidates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdp.kernels import cpu as host_kernels
from pdp.layers import Layer, Member
from pdp.masks.candidates import prune_by_candidates
from pdp.methods import method
from pdp.methods.options import LbcOptions
from pdp.patterns.nm import Pattern as NmPattern
from pdp.patterns.nm import input_dim


class Method(method.Method):
    """Each group of M has C = C(M, N) candidate patterns with trained scores; the lowest are removed for good.

    A weight is kept while one of the remaining candidates contains it. Backward is straight-through: a candidate's
    score gets the sum of W * dL/dW~ over the weights that it contains. At fraction f of the schedule 1 + ceil((C - 1)(1
    - f)) candidates remain, as in the authors' code with 1 - f = (1 - (e - t_i) / (t_f - t_i))^3. The fraction is that
    of the moment before, so that no candidate is removed before it was trained. A classifier whose inputs divide by M
    is pruned unless `prune.exclude` names it; the authors' classifier is dense.
    """

    schedule = "cubic"
    needs_attach = True
    pattern: NmPattern
    options: LbcOptions

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        n, m = self.pattern.options.n, self.pattern.options.m
        chosen = [[index in kept for index in range(m)] for kept in itertools.combinations(range(m), n)]
        self.candidates = torch.tensor(chosen, dtype=torch.float32)
        self.left = 0  # candidates that remain in each group
        self.before, self.now = 0.0, 0.0  # the schedule's fraction at the previous and the present moment
        for layer in layers:
            groups = self.pattern.groups(layer.weight.detach(), layer).shape[:-1]
            scores = torch.full((*groups, len(chosen)), 1 / math.comb(m - 1, n - 1), device=layer.weight.device)
            self.extras[layer.name] = nn.Parameter(scores)
            layer.state["alive"] = torch.ones_like(scores, dtype=torch.bool)
            layer.state["keep"] = torch.ones_like(layer.weight, dtype=torch.bool)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.extras.values()), "name": "scores"}]

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            layer.active = True

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if moment.epoch_start or moment.fraction != self.now:
            self.before, self.now = self.now, moment.fraction
        fraction = 1.0 if moment.final else self.before
        left = 1 + math.ceil((len(self.candidates) - 1) * (1 - fraction) - 1e-9)
        if left == self.left:
            return
        self.left = left
        self.candidates = self.candidates.to(layers[0].weight.device)
        for layer in layers:
            scores, alive = self.extras[layer.name].detach(), layer.state["alive"]
            if left < alive.shape[-1]:
                # Among equal scores the first candidate remains, whatever the sort order of the device.
                ranked = torch.where(alive, scores, -torch.inf).argsort(dim=-1, descending=True, stable=True)
                alive.zero_().scatter_(-1, ranked[..., :left], True)
            covered = (alive.float() @ self.candidates) > 0
            layer.state["keep"].copy_(self.pattern.ungroup(covered, layer))
            layer.pruned = layer.units - int(layer.state["keep"].sum())

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        keep = layer.state["keep"]
        if layer.pruned == layer.final and layer.final:
            return weight * keep  # with one candidate left, its score is frozen
        scores, alive = self.extra(layer, weight), layer.state["alive"]
        given = (weight, keep, scores, alive, self.candidates, input_dim(layer))
        if not host_kernels.usable(weight):
            return prune_by_candidates(*given)
        from pdp.kernels.cpu.candidates import host_prune_by_candidates

        return host_prune_by_candidates(*given)

    def recorded_with(self) -> int:
        return self.left

    def keep(self, layer: Layer) -> Tensor:
        return layer.state["keep"]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"before": self.before, "now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.before, self.now = state["before"], state["now"]
