"""The table of what a forward takes beside accuracy: the studies that scripts/benchmark_latency.py has timed."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from pdp.reports.bytes_figure import together
from pdp.reports.latency_figure import points, read_latency
from pdp.reports.sheet import Column, Section, Sheet, score

_STUDY = ["study", "model", "data", "metric_name"]
_COLUMNS = [
    *(Column("model", right=False), Column("engine", right=False), Column("seeds"), Column("metric")),
    *(Column("ms of a sample"), Column("quartiles"), Column("times as fast"), Column("kB of the file")),
]


def latency_sheet(runs: pd.DataFrame, benchmarks: Path) -> Sheet | None:
    """The sheet, with a section for each study, model and batch; None if no study has times."""
    sheet = Sheet("latency", "Accuracy and latency", _COLUMNS)
    frames = []
    for (study, model, data, metric_name), group in together(runs).groupby(_STUDY, sort=True):
        found = read_latency(benchmarks, study)
        frame = points(group, found[0]) if found else pd.DataFrame()
        if found is None or frame.empty:
            continue
        machine = found[1]
        where = f"{machine.get('processor')}, threads {machine.get('threads')}, load {machine.get('load_average')}"
        for batch, mine in frame.groupby("batch"):
            rows = [
                [
                    row.label,
                    row.engine,
                    f"{row.seeds}",
                    score(metric_name, row.metric, row.interval),
                    f"{row.latency_ms:.4f}",
                    f"{row.low:.4f}, {row.high:.4f}",
                    "" if math.isnan(row.speedup) else f"{row.speedup:.2f}",
                    f"{row.bytes / 1000:,.1f}",
                ]
                for row in mine.itertuples()
            ]
            sheet.sections.append(Section(f"{model} on {data}, batch {batch}, study {study}, {where}", rows))
        frames.append(frame.assign(study=study, model=model, data=data, metric_name=metric_name))
    if not frames:
        return None
    sheet.notes = [
        "A forward of what ships, every model of a section in its turn, and the metric of the study's records beside "
        "it: medians of rounds with quartiles, milliseconds of one sample. Models have the shapes and shares of zeros "
        "of the runs and weights of chance. Times as fast is against the dense float32 model in the same engine; bytes "
        "are those of the ONNX file, which stores zeros. Made by scripts/benchmark_latency.py."
    ]
    sheet.frame = pd.concat(frames, ignore_index=True)
    return sheet
