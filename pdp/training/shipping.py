"""The quantized model of a run: the scales stored beside its weights, and their description in the record."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from pdp.errors import Refusal
from pdp.pruner.pruner import Pruner
from pdp.quantize.frozen import Frozen
from pdp.quantize.options import Int4wOptions
from pdp.quantize.quantizer import Quantizer
from pdp.runs.checkpoint import save_tensors


def shipped(model: nn.Module, frozen: Frozen | None) -> AbstractContextManager[Any]:
    """While this context is open, the plain hard `model` computes as the exported one: quantized, if asked for."""
    return frozen.applied(model) if frozen is not None else nullcontext()


def save_frozen(frozen: Frozen, path: Path) -> None:
    """Writes the scales, beside the weights."""
    save_tensors(frozen.tensors(), path, {"quantize": frozen.name, "bits": str(frozen.bits)})


def read_frozen(path: Path) -> Frozen:
    """Reads what `save_frozen` wrote; raises `Refusal` if there is none or it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        return Frozen.of_tensors(described["quantize"], int(described["bits"]), tensors)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: the run was quantized, and without its scales it is another model") from None
    except Exception as error:  # a damaged file may cause any error
        raise Refusal(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from None


def quantization_of(pruner: Pruner, model: nn.Module) -> dict[str, Any]:
    """The quantization in a record; empty without quantization."""
    quantizer, frozen = pruner.quantizer, pruner.frozen
    if quantizer is None or frozen is None:
        return {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    counts = [
        (int((frozen.integers(name, parameters[name]) == 0).sum()), parameters[name].numel()) for name in frozen.weights
    ]
    options: Int4wOptions = quantizer.options
    unseen = [point.name for point in quantizer.activations if point.name not in frozen.activations]
    return {
        "weight_bits": options.weight_bits,
        "activation_bits": options.activation_bits,
        "ranges": options.ranges,
        "start": options.start,
        "exclude": list(options.exclude),
        "weights": len(frozen.weights),
        "activations": len(frozen.activations),
        "floats": dict(quantizer.skipped),
        "never_seen": unseen,
        "zeros": sum(zeros for zeros, _ in counts) / max(1, sum(size for _, size in counts)),
    }


def said_of(quantizer: Quantizer) -> str:
    """One sentence on what is quantized, and from when on."""
    options = quantizer.options
    unit = "step" if quantizer.by_step else "epoch"
    activations = f", {len(quantizer.activations)} activations in {options.activation_bits}" * bool(
        quantizer.activations
    )
    floats = "; floats stay: " + ", ".join(f"{name} ({why})" for name, why in quantizer.skipped.items())
    return (
        f"quantize {options.name}: {len(quantizer.weights)} weights in {options.weight_bits} bits{activations}, ranges "
        f"{options.ranges}, from {unit} {quantizer.start} on{floats if quantizer.skipped else ''}"
    )
