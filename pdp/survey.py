"""Goes through every weight of a model: which can be pruned, and why the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from pdp.errors import Refusal
from pdp.layers import Layer, Site, weighted_sites
from pdp.zeros import why_zeros_are_lost

_TYPES = (Tensor, nn.Parameter)
_COMPUTED = ("_orig", "_g", "_v", "_bar")  # names of weights replaced by older pruning, weight norm and spectral norm


def survey(
    model: nn.Module, exclude: Sequence[str] = (), own_exclude: Sequence[str] = ()
) -> tuple[list[Layer], dict[str, str]]:
    """The prunable layers in the model's order, and by name the reason why every other weight stays dense.

    A weight is a parameter of two or more dimensions. It is named after its module if it is the module's `weight`, else
    by its whole name. `exclude` are the user's fnmatch patterns on module names, each of which must match a layer;
    `own_exclude` are the task's own. Raises `Refusal` for a pattern that matches nothing.
    """
    weights = list(weighted_sites(model))
    _check_patterns(exclude, [name for name, _, _ in weights])
    outside = dict(_used_outside(model, weights))
    found: dict[int, Layer] = {}
    reasons: dict[str, str] = {}
    for name, kind, site in weights:
        weight = site.module._parameters[site.parameter]
        if weight is None:
            continue
        if id(weight) in found:
            found[id(weight)].sites.append(site)
            continue
        pattern = next((one for one in (*exclude, *own_exclude) if fnmatchcase(name, one)), None)
        if pattern is not None:
            reasons[name] = f"excluded by {pattern}"
        elif id(weight) in outside:
            reasons[name] = f"tied to {outside[id(weight)]}, which is no convolution's or linear layer's"
        elif reason := _refused(site, weight):
            reasons[name] = reason
        else:
            parameter = f"{name}.weight".lstrip(".") if site.parameter == "weight" else name
            found[id(weight)] = Layer(name, kind, parameter, [site])
    for name, reason in _others(model):
        if name not in reasons and all(layer.name != name for layer in found.values()):
            reasons[name] = reason
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


def _others(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every other parameter of two or more dimensions, without duplicates, and modules that hide theirs."""
    places = {(id(site.module), site.parameter) for _, _, site in weighted_sites(model)}
    known: set[int] = set()
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or not _is_weight(parameter) or (id(module), key) in places:
                continue
            if id(parameter) not in known:
                known.add(id(parameter))
                yield (prefix if key == "weight" else f"{prefix}.{key}".lstrip(".")), _why_other(module, key, parameter)
        if not module._parameters and "quantized" in type(module).__module__ and hasattr(module, "weight"):
            yield prefix, f"quantized ({type(module).__name__})"


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
    return f"a parameter of {kind}'s own ({shape}), no convolution's or linear layer's weight"


def _is_weight(parameter: Tensor) -> bool:
    return _empty(parameter) or parameter.dim() > 1


def _empty(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedTensorMixin)


def _check_patterns(exclude: Sequence[str], names: list[str]) -> None:
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise Refusal(
                f"prune.exclude={pattern} matches no convolution or linear layer: the layers are called "
                f"{', '.join(names[:3])}, ... {names[-1] if names else ''}; dry_run=true lists them"
            )
