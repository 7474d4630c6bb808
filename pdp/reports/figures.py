"""The paper's figures from records, PDP beside each method; a figure without data is left out, and a line says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pdp.patterns.options import kind_of
from pdp.reports import bytes_figure, drawings, latency_figure
from pdp.reports.bytes_figure import together
from pdp.reports.cells import KEY, cells
from pdp.reports.look import as_svg, style
from pdp.reports.masks import mask_values, read_distributions, weight_values
from pdp.reports.runs import read_history, read_layers
from pdp.reports.sheet import target

_STUDY = ["study", "model", "data", "metric_name"]
_ARROWS = "▾▴◂"  # first characters of a note on a value beyond the axis
SAME_MACS = 1.01  # methods whose MACs agree within this factor count as equal in MACs


@dataclass
class Drawn:
    """One figure: its file name, what it shows, and the figure itself."""

    name: str
    caption: str
    figure: Figure
    title: str = ""  # the title after model and data; empty: that of the kind


@dataclass(frozen=True)
class Kind:
    """A kind of figure: what data it needs, in words, and how it is drawn for one study's runs of one model."""

    name: str
    title: str
    needs: str
    draw: Callable[[str, pd.DataFrame], Iterator[Drawn]]


def draw_all(runs: pd.DataFrame, benchmarks: Path | None = None) -> tuple[list[Drawn], list[str]]:
    """Every figure for which these runs have the data, and one line for each kind without any.

    `benchmarks` is the folder with latency_<study>.json of studies whose models were timed.
    """
    drawn: list[Drawn] = []
    left_out: list[str] = []
    for kind in KINDS:
        mine: list[Drawn] = []
        of_kind = together(runs) if kind.draw in (_bytes, _latency) else runs
        draw = partial(_latency, benchmarks=benchmarks) if kind.draw is _latency else kind.draw
        for key, group in of_kind.groupby(_STUDY, sort=True):
            where = f"{kind.name}-{key[0]}-{key[1]}-{key[2]}"
            new = list(draw(where, group.reset_index(drop=True)))
            for one in new:
                _head(one, f"{key[1]} on {key[2]}: {one.title or kind.title}")
            mine += new
        if not mine:
            left_out.append(f"{kind.title}: not drawn; it needs {kind.needs}")
        drawn += mine
    return drawn, left_out


def _head(drawn: Drawn, title: str) -> None:
    """Writes model, data and subject above the figure, and the meaning of an arrow if it has one."""
    arrows = any(text.get_text()[:1] in _ARROWS for axis in drawn.figure.axes for text in axis.texts)
    if arrows:
        title += "\nan arrow at an edge: the value beside it lies beyond the axis"
    with style():
        drawn.figure.suptitle(title, x=0.01, ha="left", fontsize=9)


def write_figures(drawn: list[Drawn], folder: Path) -> list[Path]:
    """Writes every figure as SVG; removes figures of these kinds that are no longer drawn, including earlier PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for one in drawn:
        head = '<?xml version="1.0" encoding="utf-8"?>\n'
        path = folder / f"{one.name}.svg"
        beside = folder / f".{path.name}"
        beside.write_bytes((head + as_svg(one.figure)).encode())
        written.append(beside.replace(path))
    for kind in KINDS:
        for ending in ("svg", "png"):
            for path in folder.glob(f"{kind.name}-*.{ending}"):
                if path not in written:
                    path.unlink()
    return written


# ------------------------------------------------------------------------------------------------------------- kinds


def _against(x: str) -> Callable[[str, pd.DataFrame], Iterator[Drawn]]:
    words = {"sparsity": "sparsity", "macs_sparse": "sparse MACs, millions"}[x]

    def draw(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
        first = runs.iloc[0]
        frame = cells(runs)
        dense = frame[frame.method == "dense"]
        for pattern, group in frame[~frame.method.str.match(r"dense\b")].groupby("pattern"):
            several = group.target_sparsity.nunique() > 1
            if x == "sparsity" and not several and group.label.nunique() < 2:
                continue
            if x == "macs_sparse" and not several and group.macs_sparse.max() <= SAME_MACS * group.macs_sparse.min():
                continue  # the pattern determines the MACs, so the other figure says everything
            make = drawings.against if several else drawings.one_target
            figure = make(group, dense, x, words, first.metric_name)
            how = "" if not several and x == "sparsity" else f" against {words}"
            band = "; the grey band is the dense model's" if several else ""
            caption = (
                f"{first.metric_name} (hard, test set, last epoch){how}: {first.model} on {first.data}, {pattern}"
                f"{'' if several else f', target {target(group.target_sparsity.iloc[0])}'}, study {first.study}. Means "
                f"over seeds with 95 % intervals (Student t){band}."
            )
            title = f"accuracy{how}" if several else f"accuracy at {target(group.target_sparsity.iloc[0])}{how}"
            yield Drawn(f"{name}-{_slug(pattern)}", caption, figure, title)

    return draw


def _layers(column: str, words: str) -> Callable[[str, pd.DataFrame], Iterator[Drawn]]:
    def draw(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
        first = runs.iloc[0]
        for (pattern, share), group in _middle_targets(runs):
            lines: dict[str, pd.DataFrame] = {}
            for label, mine in _by_label(group):
                tables = [table for path in mine.path if (table := read_layers(path)) is not None and column in table]
                if tables:
                    lines[label] = pd.concat(tables).groupby("name", sort=False)[column].agg(["mean", "min", "max"])
            if lines:
                caption = (
                    f"{words} of each prunable layer: {first.model} on {first.data}, {pattern}, target "
                    f"{target(share)}, study {first.study}. Means over seeds, bands from the least to the most."
                )
                yield Drawn(f"{name}-{_slug(pattern, share)}", caption, drawings.layers(lines, words))

    return draw


def _epochs(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
    first = runs.iloc[0]
    for (pattern, share), group in _middle_targets(runs):
        lines = {label: _history(mine) for label, mine in _by_label(group)}
        lines = {label: frame for label, frame in lines.items() if len(frame)}
        if lines:
            caption = (
                f"Validation {first.metric_name} of the hard model, of the soft one where it was measured (hollow "
                f"marks), and sparsity over epochs: {first.model} on {first.data}, {pattern}, target {target(share)}, "
                f"study {first.study}. Means over seeds, bands from the least to the most."
            )
            yield Drawn(f"{name}-{_slug(pattern, share)}", caption, drawings.epochs(lines, first.metric_name))


def _revived(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
    first = runs.iloc[0]
    for pattern, family in runs[runs.method.isin(["pdp", "gmp"])].groupby("pattern"):
        panels: dict[str, dict[str, pd.DataFrame]] = {}
        for share, group in family.groupby("target_sparsity"):
            of_label = dict(_by_label(group))
            # Of several settings, only the one that the others are compared with.
            of_label = {label: mine for label, mine in of_label.items() if label == mine.method.iloc[0]} or of_label
            lines = {label: _history(mine) for label, mine in of_label.items()}
            lines = {label: frame for label, frame in lines.items() if "revived" in frame}
            if lines:
                panels[target(share)] = lines
        if any(label.split()[0] == drawings.OURS for lines in panels.values() for label in lines):
            caption = (
                "Share of weights that were pruned at the end of the epoch before and are kept at the end of this one, "
                f"PDP beside GMP where it ran: {first.model} on {first.data}, {pattern}, study {first.study}. Means "
                "over seeds, bands from the least to the most."
            )
            yield Drawn(f"{name}-{_slug(pattern)}", caption, drawings.revived(panels))


def _weights(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
    first = runs.iloc[0]
    for (pattern, share), group in _middle_targets(runs[runs.method == drawings.OURS]):
        found = read_distributions(group.path.iloc[0])
        if found is None:
            continue
        caption = (
            f"Stored weights of four layers at the start of pruning, mid-ramp and at the end: PDP, {first.model} "
            f"on {first.data}, {pattern}, target {target(share)}, study {first.study}, seed {group.seed.iloc[0]}."
        )
        yield Drawn(f"{name}-{_slug(pattern, share)}", caption, drawings.weights(weight_values(found)))


def _masks(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
    first = runs.iloc[0]
    for (pattern, share), group in _middle_targets(runs[runs.method == drawings.OURS]):
        lines: dict[str, pd.DataFrame] = {}
        for cell in cells(group).itertuples():
            mine = group[group.cell == cell.cell]
            found = [one for path in mine.path if (one := read_distributions(path)) is not None]
            if found:
                lines[_temperature(mine.iloc[0])] = mask_values(found)
        if lines:
            caption = (
                f"Values of PDP's mask, share of all prunable weights, by temperature: {first.model} on {first.data}, "
                f"{pattern}, target {target(share)}, study {first.study}, all seeds. In the legend, the share that is "
                "neither below 0.05 nor above 0.95."
            )
            yield Drawn(f"{name}-{_slug(pattern, share)}", caption, drawings.masks(lines))


def _bytes(name: str, runs: pd.DataFrame) -> Iterator[Drawn]:
    for figure, caption in bytes_figure.draw(runs):
        yield Drawn(name, caption, figure)


def _latency(name: str, runs: pd.DataFrame, benchmarks: Path | None = None) -> Iterator[Drawn]:
    for figure, caption in latency_figure.draw(runs, benchmarks) if benchmarks is not None else ():
        yield Drawn(name, caption, figure)


def _temperature(row: pd.Series) -> str:
    options: dict[str, Any] = row.method_options
    mode = options.get("temperature_mode", "absolute")
    # temperature_mode=auto means absolute for single weights and relative for channels and blocks.
    if mode == "absolute" or (mode == "auto" and kind_of(row.pattern) not in ("channel", "block")):
        return f"tau = {options['temperature']:g}"
    return "tau = kappa t²" if options.get("kappa") is None else f"tau = {options['kappa']:g} t²"


def _middle_targets(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, float], pd.DataFrame]]:
    """The runs of the middle target of each pattern, the higher of two: one figure stands for a study's targets."""
    for pattern, group in runs[runs.base_method != "dense"].groupby("pattern"):
        targets = sorted(set(group.target_sparsity))
        share = targets[len(targets) // 2]
        yield (str(pattern), share), group[group.target_sparsity == share]


def _by_label(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs of each configuration, with its label."""
    for key, label in cells(runs).set_index(KEY).label.items():
        yield label, runs[(runs.study == key[0]) & (runs.cell == key[1])]


def _history(runs: pd.DataFrame) -> pd.DataFrame:
    """The histories of several runs in one frame."""
    return pd.DataFrame([line for path in runs.path for line in read_history(path)])


def _slug(pattern: Any, share: float | None = None) -> str:
    return f"{pattern}".replace(":", "-") + ("" if share is None else f"-{share:g}")


KINDS = (
    Kind("accuracy_sparsity", "accuracy against sparsity", "two methods or settings", _against("sparsity")),
    Kind("accuracy_macs", "accuracy against MACs", "records of pruned runs", _against("macs_sparse")),
    Kind("layer_share", "per-layer share", "pruned records with layers.csv", _layers("sparsity", "Share of zeros")),
    Kind("layer_macs", "per-layer MACs", "records with MACs in layers.csv", _layers("sparse_macs", "Sparse MACs")),
    Kind("epochs", "sparsity and metric over epochs", "records of pruned runs with history.jsonl", _epochs),
    Kind("revived", "weights that come back", "records of PDP with `revived` in history.jsonl", _revived),
    Kind("weights", "weight distributions", "records of PDP with distributions.npz (kept whole)", _weights),
    Kind("bytes", "accuracy against bytes", "records of quantized runs", _bytes),
    Kind("latency", "accuracy against latency", "a file of scripts/benchmark_latency.py of a kept study", _latency),
    Kind("masks", "mask values by temperature", "records of PDP with distributions.npz (kept whole)", _masks),
)  # fmt: skip
