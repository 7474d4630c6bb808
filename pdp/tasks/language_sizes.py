"""Checks the sizes and arguments that a transformer's configuration is given, which takes unknown ones in silence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pdp.errors import Refusal

# Not attributes of a configuration under these names, but known to every one.
_KNOWN = ("attn_implementation", "dtype", "torch_dtype", "rope_theta", "rope_scaling")


def check_known(key: str, given: Mapping[str, Any], shape: Any, name: str) -> None:
    """Raises `Refusal` for a name in `given`, the values of the override `key`, that the configuration has not."""
    for one in given:
        if one in _KNOWN or hasattr(shape, one):
            continue
        near = difflib.get_close_matches(one, [*vars(shape), *getattr(shape, "attribute_map", {})], 1)
        hint = f": did you mean {key}.{near[0]}?" if near else ": remove it"
        raise Refusal(f"{key}.{one}={given[one]} is nothing that the configuration of {name} has{hint}")


def check_sizes(sizes: Mapping[str, Any], shape: Any) -> None:
    """Raises `Refusal` for a size below 1, or for query heads that cannot share the key-value heads evenly."""
    for one, value in sizes.items():
        if one.endswith("_size") and isinstance(value, int) and value < 1:
            raise Refusal(f"model.sizes.{one}={value} must be at least 1")
    heads, shared = (getattr(shape, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise Refusal(
            f"model.sizes.num_key_value_heads={shared} does not divide the {heads} query heads: give a divisor of "
            "model.sizes.num_attention_heads"
        )
