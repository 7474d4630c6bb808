"""Checks which options, patterns and targets a method supports; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pdp.errors import Refusal
from pdp.methods.options import OPTIONS, MethodOptions, PdpOptions
from pdp.schedule.time import Time

# The patterns that a method supports; a method that is not listed supports all of them.
PATTERNS_OF: dict[str, tuple[str, ...]] = {
    "str": ("random",),
    "cs": ("random",),
    "granet": ("random",),
    "rigl": ("random",),
    "pofa": ("random",),
    "dnw": ("random", "nm"),
    "srste": ("nm",),
    "asp": ("nm",),
    "lbc": ("nm",),
    "sfp": ("channel",),
    "slimming": ("channel",),
    "chex": ("channel",),
    "wanda": ("random", "nm"),
    "sparsegpt": ("random", "nm"),
}

# Methods whose sparsity is learned unless the option named here controls it.
FREE = {"str": "controller", "cs": "controller", "movement": "variant", "pofa": "stage"}


def is_free(options: MethodOptions) -> bool:
    """Whether the method, with these options, can run without a target sparsity."""
    return options.name == "held" or getattr(options, FREE.get(options.name, ""), "") in ("none", "soft", "finetune")


def check_options(options: MethodOptions) -> None:
    """Raises `Refusal` for an option value that the method does not support."""
    if isinstance(options, PdpOptions) and not 0 < options.temperature < float("inf"):
        raise Refusal(f"method.temperature={options.temperature} must be a finite number above 0 (the paper's is 1e-4)")
    for key, value in vars(options).items():
        allowed = _CHOICES.get(f"{options.name}.{key}", _CHOICES.get(key))
        if allowed is not None and value is not None and value not in allowed:
            raise Refusal(f"method.{key}={value}: no such choice; known: {', '.join(allowed)}")
    for key, (holds, words) in _RANGES.items():
        value = getattr(options, key, None)
        if value is not None and not isinstance(value, str) and not holds(value):
            raise Refusal(f"method.{key}={value} is out of range: give method.{key} {words}")
    for key in ("update_every", "end"):
        value = getattr(options, key, None)
        if isinstance(value, str):
            Time.parse(value, f"method.{key}")
    if isinstance(options, PdpOptions):
        _check_annealing(options)


def _check_annealing(options: PdpOptions) -> None:
    """Raises `Refusal` for annealing without an end value, or for options of annealing that is not switched on."""
    mode = options.temperature_mode
    if options.anneal_from != "target":
        try:
            Time.parse(options.anneal_from, "method.anneal_from")
        except Refusal:
            raise Refusal(
                f"method.anneal_from={options.anneal_from} is no moment: give target (from when the ramp has ended) or "
                'a time, "16ep", "2000it" or "0.5"'
            ) from None
    if mode == "learned":
        if options.anneal != "none":
            raise Refusal(
                f"method.anneal={options.anneal} has no meaning with method.temperature_mode=learned: give "
                "method.anneal=none, or method.temperature_mode=relative"
            )
        if not options.detach_cut:
            raise Refusal(
                "method.detach_cut=false is not known with method.temperature_mode=learned: give method.detach_cut=true"
            )
    elif options.temperature_lr is not None or options.temperature_decay:
        key = "temperature_decay" if options.temperature_lr is None else "temperature_lr"
        raise Refusal(
            f"method.{key}={getattr(options, key)} has no effect with method.temperature_mode={mode}: add "
            "method.temperature_mode=learned"
        )
    ends = {"kappa_end": options.kappa_end, "temperature_end": options.temperature_end}
    if options.anneal == "none":
        for key, value in ends.items():
            if value is not None:
                raise Refusal(
                    f"method.{key}={value} has no effect with method.anneal=none: add method.anneal=geometric, or "
                    f"give method.{key}=null"
                )
    elif mode in ("absolute", "relative"):
        needed, other = ("kappa_end", "temperature_end") if mode == "relative" else ("temperature_end", "kappa_end")
        if ends[needed] is None:
            raise Refusal(
                f"method.anneal={options.anneal} needs where it ends: give method.{needed} with "
                f"method.temperature_mode={mode}"
            )
        if ends[other] is not None:
            raise Refusal(
                f"method.{other}={ends[other]} has no effect with method.temperature_mode={mode}: give method.{needed} "
                f"and method.{other}=null"
            )
    elif (options.kappa_end is None) == (options.temperature_end is None):
        raise Refusal(
            f"method.anneal={options.anneal} needs where it ends: give method.kappa_end (relative) or "
            "method.temperature_end (absolute), one of them"
        )
    elif options.kappa_end is not None and options.chosen is not None:
        raise Refusal(
            f"method.kappa_end={options.kappa_end} has no effect with method.{options.chosen}, which is absolute: give "
            "method.temperature_end in its place, or drop method.temperature"
        )


def check_pattern(options: MethodOptions, pattern: str) -> None:
    """Raises `Refusal` if a method, or one of its options, does not support the pattern."""
    method = options.name
    if isinstance(options, PdpOptions) and not options.detach_cut and pattern != "random":
        raise Refusal(
            f"method.detach_cut=false has no meaning with prune={pattern}: give prune=random or drop method.detach_cut"
        )
    if isinstance(options, PdpOptions) and options.temperature_mode == "learned" and pattern in ("channel", "block"):
        raise Refusal(
            "method.temperature_mode=learned is for single weights (prune=random or nm): give "
            f"method.temperature_mode=relative with prune={pattern}"
        )
    known = PATTERNS_OF.get(method)
    if known and pattern not in known:
        others = [
            name for name in OPTIONS if pattern in PATTERNS_OF.get(name, (pattern,)) and name not in ("dense", "held")
        ]
        raise Refusal(
            f"method={method} does not know prune={pattern}: give prune={' or prune='.join(known)}, or a method that "
            f"does: {', '.join(others)}"
        )


def check_saliency(method: str, saliency: str) -> None:
    """Raises `Refusal` for a saliency of channels or blocks for which PDP has no gradient."""
    if method in ("pdp", "pdp_annealed") and saliency == "l1":
        raise Refusal(f"prune.saliency=l1 has no soft mask: give prune.saliency=rms or l2 with method={method}")


_CHOICES = {
    "temperature_mode": ("auto", "absolute", "relative", "learned"),
    "controller": ("cubic", "none"),
    "variant": ("hard", "soft"),
    "stage": ("prune", "finetune"),
    "rigl.anneal": ("constant", "cosine"),
    "anneal": ("none", "geometric", "linear"),
    "budget": ("moving", "fixed"),
}
_Range = tuple[Callable[[Any], bool], str]
_ABOVE_0: _Range = (lambda value: 0 < value < math.inf, "a finite number above 0")
_FINITE: _Range = (lambda value: math.isfinite(value), "a finite number")
_FROM_0: _Range = (lambda value: 0 <= value < math.inf, "a finite number from 0 up")
_FRACTION: _Range = (lambda value: 0 <= value <= 1, "from 0 to 1")
_RANGES: dict[str, _Range] = {
    "kappa": _ABOVE_0,
    "kappa_end": _ABOVE_0,
    "temperature_end": _ABOVE_0,
    "anneal_share": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "temperature_lr": _ABOVE_0,
    "temperature_decay": _FROM_0,
    "refresh": (lambda value: value >= 1, "at least 1 optimizer step"),
    "update_every": (lambda value: value >= 1, "at least 1, or null where it may be left out"),
    "initial": _FINITE,
    "threshold_decay": _FROM_0,
    "initial_density": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "prune_rate": _FRACTION,
    "last_rate": _FRACTION,
    "drop_fraction": _FRACTION,
    "final_temperature": (lambda value: 1 <= value < math.inf, "a finite number from 1 up"),
    "penalty": _FROM_0,
    "rounds": (lambda value: value >= 1, "at least 1"),
    "score_lr": _ABOVE_0,
    "threshold": _FRACTION,
    "decay": _FROM_0,
    "calibration": (lambda value: value >= 1, "at least 1 sample"),
    "damping": _ABOVE_0,
    "block": (lambda value: value >= 1, "at least 1 column"),
    "regrow": (lambda value: 0 <= value < 1, "from 0 to below 1"),
}
