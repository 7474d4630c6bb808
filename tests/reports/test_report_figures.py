"""Figures show what the records hold, are the same bytes every time, and name what is missing."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_report_page import Page
from test_report_statistics import DENSE, keep

from pdp.methods.options import OPTIONS
from pdp.reports.figures import KINDS, draw_all
from pdp.reports.look import as_png, as_svg, look_of, looks_of
from pdp.reports.masks import mask_values, soft_share, weight_values
from pdp.reports.runs import read_kept
from scripts import figures

pytestmark = pytest.mark.slow

LAYERS = "name,type,weights,nonzero,sparsity,macs,sparse_macs,prunable\nconv1,Conv2d,10,5,0.5,100,50,True\nfc,Linear,4,2,0.25,40,30,True\nbn,Linear,4,2,0.9,40,4,False\n"
METHODS = ("pdp", "gmp", "rigl")


def distributions(path, seed):
    """Masks of which a tenth is between, weights in two layers."""
    arrays = {"layers": np.array(["conv1", "fc"])}
    for moment in ("start", "middle", "end"):
        masks = np.zeros((2, 20), np.int32)
        masks[:, 0], masks[:, 19], masks[:, 9] = 50, 40, 10
        arrays |= {f"{moment}/weights": np.full((2, 48), 3 + seed, np.int32), f"{moment}/masks": masks}
        arrays[f"{moment}/edges"] = np.array([0.5, 2.0], np.float32)
    np.savez_compressed(path / "distributions.npz", **arrays)


@pytest.fixture
def results(tmp_path):
    for seed in range(2):
        keep(tmp_path, "s", "d", seed, metric=0.97, sparsity=0.0, **DENSE)
        for number, method in enumerate(METHODS):
            for share in (0.8, 0.9):
                values = {"metric": 0.9 + 0.01 * number - 0.02 * seed, "target_sparsity": share, "sparsity": share}
                path = keep(tmp_path, "s", f"{number}{int(10 * share)}", seed, method=method, **values)
                (path / "layers.csv").write_text(LAYERS)
                lines = [
                    {"epoch": epoch, "metric": 0.5 + 0.1 * epoch, "metric_soft": None, "sparsity": 0.2 * epoch,
                     "revived": 0.01 * epoch * (seed + 1)} for epoch in range(4)
                ]  # fmt: skip
                (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                if method == "pdp":
                    distributions(path, seed)
    return tmp_path


def test_settings_of_pdp_stand_each_in_a_panel_of_its_own_beside_the_bare_one(tmp_path):
    usual = {"temperature": 1e-4, "refresh": 1}
    for cell, options in enumerate([usual, usual | {"temperature": 1e-3}, usual | {"refresh": 10}]):
        path = keep(tmp_path, "s", str(cell), 0, method_options=options, metric=[0.9, 0.92, 0.3][cell])
        (path / "layers.csv").write_text(LAYERS)
        (path / "history.jsonl").write_text(json.dumps({"epoch": 0, "metric": 0.1 * cell, "sparsity": 0.5}) + "\n")
    drawn = {one.name.partition("-")[0]: one.figure for one in draw_all(read_kept(tmp_path))[0]}
    panels = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in drawn["layer_share"].axes]
    assert panels == [["pdp (refresh=10)", "pdp"], ["pdp (temperature=0.001)", "pdp"]]
    titles = [axis.get_title(loc="left") for axis in drawn["epochs"].axes]
    assert titles == ["pdp", "pdp (refresh=10)", "pdp (temperature=0.001)"]
    assert [axis.lines[0].get_ydata().tolist() for axis in drawn["epochs"].axes] == [[0], [20], [10]]
    (axis,) = drawn["accuracy_sparsity"].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "pdp (refresh=10)",
        "pdp",
        "pdp (temperature=0.001)",
    ]
    assert [text.get_text() for text in axis.texts] == ["◂ 30.0"]  # far below the others, so beyond the axis
    looks = looks_of(["pdp", "pdp (refresh=10)", "pdp (temperature=0.001)"]).values()
    assert len({str(look) for look in looks}) == 3


def test_every_kind_is_drawn_of_what_the_records_hold(results):
    drawn, left_out = draw_all(read_kept(results))
    # Those are in tests of their own.
    kinds = ["accuracy against bytes", "accuracy against latency"]
    assert [line.partition(":")[0] for line in left_out] == kinds
    assert left_out[0] == "accuracy against bytes: not drawn; it needs records of quantized runs"
    assert {one.name.partition("-")[0] for one in drawn} == {kind.name for kind in KINDS} - {"bytes", "latency"}
    by_name = {one.name.partition("-")[0]: one for one in drawn}
    axis = by_name["accuracy_sparsity"].figure.axes[0]
    lines = {one.get_label(): one for one in axis.containers}
    assert set(lines) == {"gmp", "pdp"} and len(by_name["accuracy_sparsity"].figure.axes) == 2
    assert lines["pdp"][0].get_xdata().tolist() == pytest.approx([80, 90])
    assert lines["pdp"][0].get_ydata().tolist() == pytest.approx([89, 89])
    low, high = lines["pdp"][2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(12.7062047 * np.std([90, 88], ddof=1) / 2**0.5)
    share = by_name["layer_share"].figure.axes[0]
    assert share.lines[0].get_ydata().tolist() == [0.5, 0.25]  # prunable layers, in the model's order
    macs = by_name["layer_macs"].figure.axes[0]
    assert macs.lines[0].get_ydata().tolist() == [50, 30] and "0.9" in by_name["layer_macs"].name
    came_back = by_name["revived"].figure.axes
    assert [axis.get_title(loc="left") for axis in came_back] == ["target 80 %", "target 90 %"]
    pdp = next(line for line in came_back[0].lines if line.get_label() == "pdp")
    assert pdp.get_xdata().tolist() == [1, 2, 3, 4] and pdp.get_ydata().tolist() == pytest.approx([0, 1.5, 3, 4.5])
    (words,) = [text.get_text() for text in by_name["masks"].figure.axes[0].get_legend().get_texts()]
    assert words == "tau = 0.0001: 10.00 % between"


def test_the_same_records_give_the_same_bytes(results):
    first, second = (draw_all(read_kept(results))[0] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        text = as_svg(one.figure)
        assert text == as_svg(other.figure) and "<dc:date>" not in text
        # A temporary path or a clock would show between two processes, not here.
        assert not re.search(r"20\d\d-\d\d-\d\d|/tmp/", text) and not Page(text).fetched
    png = as_png(first[0].figure)
    assert png[:4] == b"\x89PNG" and png == as_png(second[0].figure)


def test_what_no_record_has_is_left_out_and_said(tmp_path, capsys):
    keep(tmp_path, "s", "1", 0)
    keep(tmp_path, "s", "2", 0, method="gmp", macs_sparse=123_456)
    keep(tmp_path, "t", "1", 0)  # the same MACs, for there is one method
    (tmp_path / "figures").mkdir()
    for name in ("masks-old.svg", "first_run.svg"):
        (tmp_path / "figures" / name).write_text("<svg/>")
    assert figures.main(["--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for words in (
        "weight distributions: not drawn; it needs",
        "mask values",
        "per-layer share",
        "weights that come back",
    ):
        assert words in told
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    # Those of a kind that is drawn no more go; what others drew stays.
    kinds = ("accuracy_macs", "accuracy_sparsity")
    drawn = [f"{kind}-s-resnet20-digits-random.svg" for kind in kinds]
    assert made == [*drawn, "first_run.svg"]
    assert (tmp_path / "figures" / made[1]).read_text().startswith("<?xml")


def test_histograms_are_densities_and_shares():
    counts = np.arange(48, dtype=np.int32)
    found = {"layers": np.array(["a", "b", "c"])}
    for moment in ("start", "middle", "end"):
        found |= {f"{moment}/weights": np.stack([counts] * 3), f"{moment}/edges": np.array([1.0, 2.0, 3.0])}
        found[f"{moment}/masks"] = np.eye(3, 20, dtype=np.int32)
    values = weight_values(found, number=2)
    assert list(values) == ["a", "c"]
    edges, density = values["c"]["end"]
    assert edges[0] == -3 and np.sum(density * np.diff(edges)) == pytest.approx(1)
    shares = mask_values([found, found])
    assert shares.end.sum() == pytest.approx(1) and soft_share(shares.end) == pytest.approx(2 / 3)
    assert soft_share(pd.Series([0.5] + [0] * 18 + [0.5])) == 0


def test_no_two_methods_look_alike_without_colour():
    known = tuple(OPTIONS)
    looks = {(str(look_of(name)["linestyle"]), look_of(name)["marker"]) for name in known}
    assert len(looks) == len(known)
    assert look_of("new_method") == look_of("new_method")


def test_a_mark_beyond_the_axis_is_said_at_its_edge_and_macs_are_plain_millions(tmp_path):
    for share, macs, metric, collapsed in ((0.8, 4_000_000, 0.95, 0.94), (0.9, 1_000_000, 0.94, 0.1)):
        both = {"target_sparsity": share, "macs_sparse": macs}
        keep(tmp_path, "s", f"{share}", 0, metric=metric, **both)
        keep(tmp_path, "s", f"{1 - share:.1f}", 0, metric=collapsed, method="acdc", **both)
    drawn = {one.name.split("-")[0]: one.figure for one in draw_all(read_kept(tmp_path))[0]}
    for kind in ("accuracy_sparsity", "accuracy_macs"):
        (axis,) = drawn[kind].axes
        assert [text.get_text() for text in axis.texts] == ["▾ 10.0"], kind
    as_svg(drawn["accuracy_macs"])
    shown = [one.get_text() for one in drawn["accuracy_macs"].axes[0].get_xticklabels()]
    assert {"1", "2"} <= {*shown} and not [one for one in shown if "10^" in one]
