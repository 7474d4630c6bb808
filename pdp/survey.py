"""Goes through every weight of a model: which can be pruned, and why the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from pdp.errors import Refusal
from pdp.experts import ROUTER, UNTOLD, expert_stacks, router_weights
from pdp.layers import Layer, Site, router_sites, weighted_sites
from pdp.transformer_parts import around_the_blocks
from pdp.zeros import why_zeros_are_lost

_TYPES = (Tensor, nn.Parameter)
_COMPUTED = ("_orig", "_g", "_v", "_bar")  # names of weights replaced by older pruning, weight norm and spectral norm


def survey(
    model: nn.Module, exclude: Sequence[str] = (), own_exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> tuple[list[Layer], dict[str, str]]:
    """The prunable layers in the model's order, and by name why every other weight stays dense.

    A weight is a parameter of two or more dimensions; it is called after its module where that calls it `weight`, else
    by its whole name. `exclude` are fnmatch patterns on module names given by a person, each of which must match a
    layer, `own_exclude` the task's own. What chooses among experts, and of Hugging Face's models what lies around the
    blocks and embeddings, stays dense where `include`, patterns as well, does not name it. Raises `Refusal` for a
    pattern that matches nothing.
    """
    asked = lambda name: any(fnmatchcase(name, one) for one in include)  # noqa: E731
    own_weights = list(weighted_sites(model))
    more = [*router_sites(model), *_embeddings(model)] if include else []
    _check_patterns("prune.exclude", exclude, [name for name, _, _ in own_weights])
    _check_patterns("include", include, [name for name, _, _ in (*own_weights, *more)])
    weights = own_weights + [one for one in more if asked(one[0])]
    left = around_the_blocks(model) | dict.fromkeys(router_weights(model).values(), ROUTER)
    outside = dict(_used_outside(model, weights))
    found: dict[tuple[int, int | None], Layer] = {}
    reasons: dict[str, str] = {}
    for name, kind, site in weights:
        weight = site.module._parameters[site.parameter]
        if weight is None:
            continue
        key = id(weight), site.index
        if key in found:
            found[key].sites.append(site)
            continue
        given = exclude if asked(name) else (*exclude, *own_exclude)
        pattern = next((one for one in given if fnmatchcase(name, one)), None)
        if pattern is not None:
            reasons[name] = f"excluded by {pattern}"
        elif id(weight) in outside:
            reasons[name] = f"tied to {outside[id(weight)]}, which is no convolution's or linear layer's"
        elif name in left and not asked(name):
            reasons[name] = left[name]
        elif reason := _refused(site, weight):
            reasons[name] = reason
        else:
            found[key] = Layer(name, kind, _parameter(name, site), [site])
    taken = {id(site.parameter_held) for layer in found.values() for site in layer.sites}
    for name, reason, parameter in _others(model):
        if name not in reasons and id(parameter) not in taken:
            reasons[name] = left.get(name, reason)
    return list(found.values()), reasons


def find_layers(model: nn.Module, exclude: Sequence[str] = (), own_exclude: Sequence[str] = ()) -> list[Layer]:
    """The prunable layers of `survey`; raises `Refusal` if there are none."""
    layers, reasons = survey(model, exclude, own_exclude)
    if not layers:
        raise Refusal(nothing_to_prune("the model", reasons))
    return layers


def nothing_to_prune(who: str, reasons: dict[str, str]) -> str:
    """A sentence that gives the reason why each weight stays, for the first few by name."""
    if not reasons:
        return f"{who} has no layer to prune: it has no weight of two or more dimensions"
    said = "; ".join(f"{name or 'its own weight'} ({reason})" for name, reason in list(reasons.items())[:3])
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    loosen = "; loosen prune.exclude" if any(one.startswith("excluded by") for one in reasons.values()) else ""
    return f"{who} has no layer to prune, no prunable layer is left: {said}{more}{loosen}"


def count_weights(model: nn.Module) -> int:
    """The number of elements in all parameters of two or more dimensions, without duplicates."""
    return sum(one.numel() for one in model.parameters() if _is_weight(one) and not _empty(one))


def _refused(site: Site, weight: nn.Parameter) -> str | None:
    if _empty(weight):
        return "not initialised: run a forward before Pruner(model)"
    if type(weight) not in _TYPES and type(weight).__name__ != "DTensor":  # a sharded model has DTensors
        return f"another type of weight, {type(weight).__name__}"
    if not weight.dtype.is_floating_point:
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}, no floating-point numbers"
    if weight.is_meta:
        return "on the meta device, where weights have no values"
    if weight.numel() == 0:
        return "it has no weights"
    if not weight.requires_grad:
        return "frozen (requires_grad=False)"
    return why_zeros_are_lost(site.module) if site.parameter == "weight" else None


def _used_outside(model: nn.Module, weights: Sequence[tuple[str, str, Site]]) -> Iterator[tuple[int, str]]:
    places = {(id(site.module), site.parameter) for _, _, site in weights}
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and (id(module), key) not in places:
                yield id(parameter), f"{prefix}.{key}".lstrip(".")


def _parameter(name: str, site: Site) -> str:
    """What the model's state dict calls the weight of the layer called `name`."""
    whole = name if site.index is None else name.rpartition(".")[0]
    return f"{whole}.weight".lstrip(".") if site.parameter == "weight" else whole


def _embeddings(model: nn.Module) -> Iterator[tuple[str, str, Site]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            yield name, "Embedding", Site(module, "weight", module)


def _others(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Every other parameter of two or more dimensions, without duplicates, and modules that hide theirs."""
    places = {(id(site.module), site.parameter) for _, _, site in weighted_sites(model)}
    known: set[int] = set()
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or not _is_weight(parameter) or (id(module), key) in places:
                continue
            if id(parameter) not in known:
                known.add(id(parameter))
                name = prefix if key == "weight" else f"{prefix}.{key}".lstrip(".")
                yield name, _why_other(module, key, parameter), parameter
        if not module._parameters and "quantized" in type(module).__module__ and hasattr(module, "weight"):
            yield prefix, f"quantized ({type(module).__name__})", None


def _why_other(module: nn.Module, key: str, parameter: nn.Parameter) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return f"parametrized ({', '.join(type(one).__name__ for one in module)})"
    stem = next((key.removesuffix(end) for end in _COMPUTED if key.endswith(end)), None)
    if stem is not None and isinstance(getattr(module, stem, None), Tensor):
        return f"{kind} computes its {stem} from it before each forward (torch.nn.utils' prune, weight_norm, ...)"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"of a recurrent layer ({kind}), which hands its weights to one operation"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return f"an embedding ({kind})"
    if isinstance(module, nn.Bilinear):
        return "a bilinear layer, neither convolution nor linear"
    if key == "weight":
        return f"{kind} is neither a convolution nor a linear layer"
    shape = "x".join(map(str, parameter.shape)) if not _empty(parameter) else "not initialised"
    if "bias" in key:
        return f"a parameter of {kind}'s own ({shape}), biases"
    why = UNTOLD if key in expert_stacks(module) else "no convolution's or linear layer's weight"
    return f"a parameter of {kind}'s own ({shape}), {why}"


def _is_weight(parameter: Tensor) -> bool:
    return _empty(parameter) or parameter.dim() > 1


def _empty(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedTensorMixin)


def _check_patterns(key: str, patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise Refusal(
                f"{key}={pattern} matches no convolution or linear layer: the layers are called "
                f"{', '.join(names[:3])}, ... {names[-1] if names else ''}; dry_run=true lists them"
            )
