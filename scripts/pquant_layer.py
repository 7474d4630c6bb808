"""Times the PDP layer of pquant-ml in a separate environment, which needs torch; for benchmark_cut.py --peer.

    <python with pquant-ml> scripts/pquant_layer.py WEIGHT.npy PRUNED_SHARE TEMPERATURE THREADS MASK.npy

Prints its version, writes the mask, and answers each line "forward N" or "backward N" with the seconds that N passes
took.
"""

import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def pdp_layer(share: float, temperature: float, shape: torch.Size) -> Any:
    """The layer after its dense phase, at the full ratio.

    Only its own file is imported, because the package would load keras and a backend.
    """
    found = importlib.util.find_spec("pquant")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pquant-ml is not installed here")
    path = Path(found.submodule_search_locations[0]) / "core" / "torch" / "pruning_methods" / "pdp.py"
    spec = importlib.util.spec_from_file_location("pquant_pdp", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = SimpleNamespace(sparsity=share, epsilon=1.0, temperature=temperature, structured_pruning=False)
    layer = module.PDP(SimpleNamespace(pruning_parameters=parameters), "linear")
    layer.build(shape)
    layer.post_pre_train_function()
    layer.pre_epoch_function(0, 1)
    return layer


def main() -> None:
    """Answers requests until standard input ends."""
    file, share, temperature, threads, left = sys.argv[1:]
    torch.set_num_threads(int(threads))
    weight = torch.nn.Parameter(torch.from_numpy(np.load(file)))
    layer = pdp_layer(float(share), float(temperature), weight.shape)
    with torch.no_grad():
        np.save(left, layer._compute_mask(weight).numpy())
    print(importlib.metadata.version("pquant-ml"), flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        started = time.perf_counter()
        for _ in range(int(count)):
            effective = layer(weight)
            if kind == "backward":
                effective.sum().backward()
                weight.grad = None
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
