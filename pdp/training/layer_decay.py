"""How deep in a model its parameters lie, for learning rates that fall from block to block."""

from __future__ import annotations

from torch import nn

from pdp.errors import Refusal


def layer_groups(model: nn.Module, groups: list[dict], rate: float, decay: float) -> list[dict]:
    """Splits the groups by depth: from each block to the one below it, the learning rate is multiplied by `decay`.

    What comes after the last block (a head) has the full rate, what comes before the first one (embeddings) the lowest:
    layer-wise rate decay (Howard and Ruder 2018). Raises `Refusal` where the model does not say what its blocks are.
    """
    depths = _depths_of_timm(model) if hasattr(model, "group_matcher") else _depths_of_stack(model)
    divided = []
    for depth in sorted(set(depths.values())):
        for group in groups:
            chosen = [one for one in group["params"] if depths[id(one)] == depth]
            divided.append({**group, "params": chosen, "lr": rate * decay**depth})
    return divided


def _depths_of_timm(model: nn.Module) -> dict[int, int]:
    """The blocks above each parameter, as timm's own models group them (`timm.optim.param_groups_layer_decay`)."""
    from timm.models import group_parameters

    places = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(places.values())
    return {id(parameter): last - places.get(name, last) for name, parameter in model.named_parameters()}


def _depths_of_stack(model: nn.Module) -> dict[int, int]:
    """The blocks above each parameter, of the one list of blocks that lies in no other list."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    stacks = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(stacks) != 1:
        found = f"has {len(stacks)} of them ({', '.join(stacks[:4])})" if stacks else "has none"
        raise Refusal(
            f"recipe.layer_decay needs a model with one stack of blocks, a torch.nn.ModuleList, and this one {found}: "
            "give recipe.layer_decay=null"
        )
    prefix, many = stacks[0], len(model.get_submodule(stacks[0]))  # type: ignore[arg-type]
    depths: dict[int, int] = {}
    below = True
    for name, parameter in model.named_parameters():
        inside = name.startswith(f"{prefix}.")
        below = below and not inside
        block = int(name[len(prefix) + 1 :].split(".")[0]) if inside else -1 if below else many
        depths[id(parameter)] = many - block
    return depths
