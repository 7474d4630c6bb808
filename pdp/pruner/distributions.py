"""Histograms of weights and masks per layer at one moment of training."""

from __future__ import annotations

import numpy as np
import torch

from pdp.pruner.pruner import Pruner

WEIGHT_BINS, MASK_BINS = 48, 20


@torch.no_grad()
def histograms(pruner: Pruner) -> dict[str, np.ndarray]:
    """Counts: `weights` (layers, 48) over [-edge, edge] with `edges` (layers,), and `masks` (layers, 20) over [0, 1].

    The mask is computed as |effective| / |stored|, so that it has the same meaning for every method.
    """
    weights, edges, masks = [], [], []
    for layer in pruner.layers:
        weight = layer.weight.detach()
        stored = weight.float()
        effective = pruner.method.effective_weight(layer, weight).detach().float() if layer.active else stored
        edge = float(stored.abs().max()) or 1.0
        some = stored != 0
        mask = (effective[some] / stored[some]).abs().clamp(0, 1)
        weights.append(torch.histc(stored, WEIGHT_BINS, -edge, edge).cpu().numpy().astype(np.int32))
        masks.append(torch.histc(mask, MASK_BINS, 0, 1).cpu().numpy().astype(np.int32))
        edges.append(edge)
    return {"weights": np.stack(weights), "masks": np.stack(masks), "edges": np.array(edges, dtype=np.float32)}
