"""Allocation: how a target share becomes a budget, the number of pruned units of every layer."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.masks.cut import count_global, count_pruned

ENDS = ("pruned", "first_dense", "dense")
Saliency = Callable[[Layer], Tensor]


def allocate(
    name: str, layers: Sequence[Layer], share: float | None, saliency: Saliency, path: str | Path | None = None
) -> list[int]:
    """The budget of `layers` (pruned units per layer); `global` and `erk` sum to floor(share * units + 0.5) exactly.

    Each layer keeps at least its `least` units. `uniform` prunes the same share of every layer; where some layers must
    keep more than that, the others make up for them and the counts sum to the same total. `saliency` gives a layer's
    saliencies, which `global` needs; `path` is the file that `file` reads. Raises `Refusal` for an unknown allocation
    or a budget that cannot be met.
    """
    if name == "file":
        if path is None:
            raise Refusal("allocation=file needs allocation.path=<a CSV of layer,share or a run's directory>")
        return file_budget(layers, Path(path), share)
    if share is None:
        raise Refusal("sparsity is missing: give sparsity=<a share from 0 to 1>")
    if not 0 <= share < 1:
        raise Refusal(f"sparsity={share} must lie in [0, 1)")
    total = count_pruned(share, sum(layer.units for layer in layers))
    if name == "global":
        # Of a sharded model all weights together are more than a device may hold.
        values = (saliency(layer).cpu() if layer.sharded else saliency(layer) for layer in layers)
        return count_global(list(values), total, [layer.least for layer in layers])
    if name == "uniform":
        return uniform_budget(layers, share, total)
    if name == "erk":
        shapes, sizes = [tuple(layer.stored.shape) for layer in layers], [layer.units for layer in layers]
        return erk_budget(shapes, sizes, total, [layer.least for layer in layers])
    raise Refusal(f"allocation={name} is unknown: choose one of global, uniform, erk, file")


def least_units(layers: Sequence[Layer], least_density: float, ends: str) -> list[int]:
    """How many units each layer keeps whatever the budget: `least_density` of them rounded up, and at least one.

    With `ends` = "dense" the first and the last layer keep all their units, with "first_dense" only the first does.
    """
    if not 0 <= least_density < 1:
        raise Refusal(f"allocation.least_density={least_density} must lie in [0, 1): the least share each layer keeps")
    if ends not in ENDS:
        raise Refusal(f"allocation.ends={ends} is unknown: choose one of {', '.join(ENDS)}")
    floors = [max(1, math.ceil(least_density * layer.units - 1e-9)) for layer in layers]
    dense = {"pruned": set(), "first_dense": {0}, "dense": {0, len(layers) - 1}}[ends]
    both = enumerate(zip(layers, floors, strict=True))
    return [layer.units if place in dense else floor for place, (layer, floor) in both]


def uniform_budget(layers: Sequence[Layer], share: float, total: int) -> list[int]:
    """The same share in every layer; layers that must keep more do so, and the other layers make up for them."""
    counts = [min(count_pruned(share, layer.units), layer.units - layer.least) for layer in layers]
    if all(layer.least <= 1 for layer in layers):
        return counts
    if sum(layer.units - layer.least for layer in layers) < total:
        raise Refusal(
            f"allocation=uniform cannot prune {total} of {sum(layer.units for layer in layers)} units while each layer "
            "keeps what it must: lower sparsity= or allocation.least_density="
        )
    bound: set[int] = set()
    while True:
        free = [place for place in range(len(layers)) if place not in bound]
        left = total - sum(layers[place].units - layers[place].least for place in bound)
        units = sum(layers[place].units for place in free)
        common = left / units if units else 0.0
        over = {place for place in free if common * layers[place].units > layers[place].units - layers[place].least}
        if not over:
            break
        bound |= over
    exact = [
        float(layer.units - layer.least) if place in bound else common * layer.units
        for place, layer in enumerate(layers)
    ]
    return _rounded(exact, [layer.units - layer.least for layer in layers], total)


def _rounded(exact: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Rounds to whole numbers that sum to `total` by largest remainder, none above its `most`; `total` must be
    reachable.
    """
    counts = [min(math.floor(value + 1e-9), limit) for value, limit in zip(exact, most, strict=True)]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    while (left := total - sum(counts)) > 0:
        for index in by_remainder:
            if left and counts[index] < most[index]:
                counts[index] += 1
                left -= 1
    return counts


def erk_densities(shapes: Sequence[Sequence[int]], sizes: Sequence[int], density: float) -> list[float]:
    """The Erdos-Renyi-kernel densities of SET and RigL: proportional to sum(shape) / prod(shape), none above 1.

    Layers that would get a density above 1 are made dense and the others are scaled again, until all are at most 1.
    """
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    full: set[int] = set()
    while True:
        rest = [index for index in range(len(sizes)) if index not in full]
        wanted = density * sum(sizes) - sum(sizes[index] for index in full)
        weighted = sum(raw[index] * sizes[index] for index in rest)
        scale = wanted / weighted if weighted else 0.0
        over = {index for index in rest if raw[index] * scale > 1}
        if not over:
            return [1.0 if index in full else raw[index] * scale for index in range(len(sizes))]
        full |= over


def erk_budget(
    shapes: Sequence[Sequence[int]], sizes: Sequence[int], total: int, least: Sequence[int] | None = None
) -> list[int]:
    """ERK densities turned into whole numbers of pruned units that sum to `total`, by largest remainder.

    Each layer keeps at least its `least` units, by default one.
    """
    units = sum(sizes)
    most = [size - floor for size, floor in zip(sizes, least or [1] * len(sizes), strict=True)]
    densities = erk_densities(shapes, sizes, (units - total) / units)
    exact = [size * (1 - density) for size, density in zip(sizes, densities, strict=True)]
    counts = [min(math.floor(value), limit) for value, limit in zip(exact, most, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (counts[index] - exact[index], index))
    left = total - sum(counts)
    while left:
        before = left
        for index in by_remainder:
            if left and counts[index] < most[index]:
                counts[index] += 1
                left -= 1
        if left == before:
            raise Refusal(
                f"allocation=erk cannot prune {total} of {units} units while each layer keeps what it must: lower "
                "sparsity= or allocation.least_density="
            )
    return counts


def read_shares(path: Path) -> dict[str, float]:
    """Shares of units by layer name, from a CSV with the columns layer,share or from a run's directory (its
    layers.csv).

    Where the run's file has no column of shares, the sparsity of each layer is taken; both are the same where a unit is
    a single weight.
    """
    table = path / "layers.csv" if path.is_dir() else path
    if not table.is_file():
        raise Refusal(f"allocation.path={path} is neither a CSV of layer,share nor a run's directory with layers.csv")
    name_key, share_key = ("name", "sparsity") if path.is_dir() else ("layer", "share")
    shares: dict[str, float] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a mark before the first word
            rows = csv.DictReader(lines, skipinitialspace=True)
            if missing := {name_key, share_key} - set(rows.fieldnames or ()):
                raise Refusal(
                    f"allocation.path={table}: its first line is {','.join(rows.fieldnames or ())!r} and has no "
                    f"{' and no '.join(sorted(missing))}: begin it with {name_key},{share_key}, with commas between"
                )
            for row in rows:
                if row.get(None):
                    cells = ",".join([*(row[key] or "" for key in rows.fieldnames or ()), *row[None]])
                    raise Refusal(
                        f"allocation.path={table} has a row of more cells than its first line, {cells!r}: write shares "
                        "with a point, and names with a comma in quotes"
                    )
                given = row.get("share", row[share_key]) if path.is_dir() else row[share_key]
                if path.is_dir() and (row.get("prunable", "True") != "True" or not given):
                    continue
                if row[name_key] in shares:
                    raise Refusal(
                        f"allocation.path={table} names {row[name_key]} twice, with {shares[row[name_key]]:g} and "
                        f"{given}: leave one row of it"
                    )
                shares[row[name_key]] = float(given)
    except Refusal:  # a ValueError too
        raise
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise Refusal(f"allocation.path={table} cannot be read as {name_key},{share_key}: {error!r}") from None
    bad = [f"{name}={share}" for name, share in shares.items() if not 0 <= share <= 1]
    if bad or not shares:
        raise Refusal(f"allocation.path={table}: shares must lie in [0, 1], got {bad[0] if bad else 'no layers'}")
    return shares


def _check_units(layers: Sequence[Layer], path: Path) -> None:
    """Raises `Refusal` for the directory of a run whose shares are of channels while these are of weights, or the
    other way round: channels name one of several coupled layers, so that the others would stay dense.
    """
    try:
        record = json.loads((path / "record.json").read_text(encoding="utf-8"))
        theirs = "channels" if record["pattern"] == "channel" else "weights"
    except (OSError, ValueError, KeyError, TypeError):
        return  # a CSV, or a folder of one, which says nothing of it
    ours = "weights" if all(layer.units == layer.stored.numel() for layer in layers) else "channels"
    if record["pattern"] != "none" and theirs != ours:
        raise Refusal(
            f"allocation.path={path} is a run of prune={record['pattern']}, whose shares are of {theirs}, and this "
            f"one's are of {ours}: give allocation.path=<a run that prunes {ours}, or a CSV of layer,share>"
        )


def _units_of(layer: Layer, share: float, path: Path) -> int:
    """How many units a share of this layer is; all of them only where the share is 1 and the layer keeps nothing else.

    Raises `Refusal` if the layer was told to keep more.
    """
    count, most = count_pruned(share, layer.units), layer.units - layer.least
    if count > most and layer.least > 1:
        raise Refusal(
            f"allocation.path={path} prunes {count} of the {layer.units} units of {layer.name}, of which it must keep "
            f"{layer.least}: lower its share to {most / layer.units:.6g}, or lower allocation.least_density="
        )
    return count if share == 1 else min(count, most)


def file_budget(layers: Sequence[Layer], path: Path, share: float | None) -> list[int]:
    """The budget that a file gives; layers that it does not name stay dense.

    Raises `Refusal` if the file names layers that the model does not have, or gives shares of other units.
    """
    _check_units(layers, path)
    shares = read_shares(path)
    known = [layer.name for layer in layers]
    for name, value in shares.items():
        if name not in known and value > 0:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Refusal(f"allocation.path={path} names {name}, which is no prunable layer of this model{hint}")
    counts = [_units_of(layer, shares.get(layer.name, 0.0), path) for layer in layers]
    if not any(counts):
        raise Refusal(
            f"allocation.path={path} prunes nothing of this model: give layers shares above 0, or prune nothing by "
            "method=dense"
        )
    reached = sum(counts) / sum(layer.units for layer in layers)
    if share is not None and abs(reached - share) > 1e-3:
        raise Refusal(
            f"sparsity={share} contradicts allocation.path={path}, which implies {reached:.4f}: leave sparsity out"
        )
    return counts
