"""GLUE from its original files, as JSONL or parquet, or from the hub; and three-way inference from TSV files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdp.errors import Refusal
from pdp.tasks.examples import Examples, make_examples
from pdp.tasks.hub import cache_alone, limited_patience, reachable
from pdp.tasks.tables import Table, read_table, texts_of
from pdp.wording import one_line

NLI_LABELS = ("entailment", "neutral", "contradiction")
HUB = "nyu-mll/glue"
_SUFFIXES = (".tsv", ".txt", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class GlueTask:
    """Where a task's columns are, the names of its labels, its metric, and the number of its samples."""

    folder: str  # name in the original archive
    first: tuple[str, ...]  # column names; the first that a file has is used
    second: tuple[str, ...]
    label: tuple[str, ...]
    labels: tuple[str, ...]  # in the order of their numbers; empty for a score
    metric: str
    train: int
    test: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...] = (("dev", "validation"),)  # the evaluated files, each with alternative names
    header: tuple[str, ...] = field(default=())  # of TSV files without a header line


_PAIR = (("sentence1", "premise"), ("sentence2", "hypothesis"))
GLUE = {
    "mnli": GlueTask(
        "MNLI", *_PAIR, ("gold_label", "label"), NLI_LABELS, "accuracy", 392_702, (9_815, 9_832),
        (("dev_matched", "validation_matched"), ("dev_mismatched", "validation_mismatched")),
    ),
    "qqp": GlueTask(
        "QQP", ("question1",), ("question2",), ("is_duplicate", "label"), ("not_duplicate", "duplicate"), "accuracy",
        363_846, (40_430,),
    ),
    "qnli": GlueTask(
        "QNLI", ("question",), ("sentence",), ("label",), ("entailment", "not_entailment"), "accuracy", 104_743,
        (5_463,),
    ),
    "sst2": GlueTask("SST-2", ("sentence",), (), ("label",), ("negative", "positive"), "accuracy", 67_349, (872,)),
    "rte": GlueTask("RTE", *_PAIR, ("label",), ("entailment", "not_entailment"), "accuracy", 2_490, (277,)),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "sentence1"), ("#2 String", "sentence2"), ("Quality", "label"),
        ("not_equivalent", "equivalent"), "accuracy", 3_668, (408,),
    ),
    "cola": GlueTask(
        "CoLA", ("sentence",), (), ("label",), ("unacceptable", "acceptable"), "matthews_correlation", 8_551, (1_043,),
        header=("source", "label", "mark", "sentence"),
    ),
    "stsb": GlueTask(
        "STS-B", ("sentence1",), ("sentence2",), ("score", "label"), (), "pearson", 5_749, (1_500,)
    ),
    "wnli": GlueTask("WNLI", *_PAIR, ("label",), ("not_entailment", "entailment"), "accuracy", 635, (71,)),
}  # fmt: skip


def read_glue(name: str, root: str | None) -> tuple[Examples | None, list[Examples]]:
    """Train (None if the folder has none) and the evaluated parts of a GLUE task; raises `Refusal`."""
    task = GLUE[name]
    if root is None:
        return _from_hub(name, task)
    folder = _folder(Path(root).expanduser(), (task.folder, name, name.upper()), root)
    measured = []
    for names in task.parts:
        found = _find(folder, names)
        if not found:
            raise Refusal(
                f"data.root={root} has no {names[0]}.tsv (.jsonl, .parquet) for data.task={name}: set data.root to the "
                f"folder of GLUE or of {task.folder}"
            )
        measured.append(_read(found, task))
    train = _find(folder, ("train",))
    return (_read(train, task) if train else None), measured


def read_tsv_folder(root: str) -> tuple[Examples | None, Examples | None, Examples]:
    """Train, dev and test of a folder of three-way inference; dev is also the test if there is no other."""
    task = GlueTask("", *_PAIR, ("gold_label", "label"), NLI_LABELS, "accuracy", 0, (0,))
    folder = _folder(Path(root).expanduser(), (), root)
    parts = [
        _read(found, task) if (found := _find(folder, names)) else None
        for names in (("train",), ("dev", "validation"), ("test",))
    ]
    train, dev, test = parts
    if test is None:
        test, dev = dev, None
    if test is None:
        raise Refusal(f"data.root={root} has nothing to test on: it must hold train.tsv and test.tsv or dev.tsv")
    return train, dev, test


def _folder(path: Path, names: Iterable[str], root: str) -> Path:
    if not path.is_dir():
        raise Refusal(f"data.root={root} does not exist or is no folder: set data.root, or drop it to use the hub")
    return next((path / name for name in names if (path / name).is_dir()), path)


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of one part: the first of `names` that exists; parquet also in numbered shards."""
    for name in names:
        for suffix in _SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return [folder / f"{name}{suffix}"]
        shards = sorted(folder.glob(f"{name}-[0-9]*.parquet"))
        if shards:
            return shards
    return []


def _read(paths: list[Path], task: GlueTask) -> Examples:
    table = read_table(paths, (*task.first, *task.second, *task.label), "data.root", task.header, plain=True)
    return _examples(table, task, str(paths[0]))


def _examples(table: Table, task: GlueTask, place: str) -> Examples:
    # MNLI and SNLI mark pairs without agreement among annotators by "-"; the hub's unlabelled ones have -1.
    labels = [_label(value, task.labels) for value in table.column(task.label, place, "data.root")]
    texts = [table.column(names, place, "data.root") for names in (task.first, task.second) if names]
    if labels and all(label is None for label in labels):
        wanted = f"a label of {', '.join(task.labels)}" if task.labels else "a score from 0 up"
        raise Refusal(f"{place} has no row with {wanted}: set data.root")
    kind = "label" if task.labels else "score"
    return make_examples(texts, labels, kind, table.left_out, place, "data.root")


def _label(value: Any, names: tuple[str, ...]) -> float | None:
    """The number of a class, from its name or number in the file, or a score; None for anything else."""
    if names and str(value) in names:
        return names.index(str(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    valid = number in range(len(names)) if names else np.isfinite(number) and number >= 0
    return number if valid else None


def _from_hub(name: str, task: GlueTask) -> tuple[Examples, list[Examples]]:
    def examples(part: str) -> Examples:
        rows = load_from_hub(HUB, name, part, f"data=glue data.task={name}")
        table = Table({column: texts_of(rows[column]) for column in rows.column_names})
        return _examples(table, task, f"{HUB} {name} {part}")

    return examples("train"), [examples(names[-1]) for names in task.parts]


def load_from_hub(path: str, name: str, part: str, asked: str) -> Any:
    """A part of a data set through `datasets`, from its cache if the hub does not answer; raises `Refusal`."""
    offline = not reachable()
    try:
        import datasets

        before = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = before or offline
        try:
            with limited_patience(), cache_alone(offline):
                return datasets.load_dataset(path, name, split=part)
        finally:
            datasets.config.HF_HUB_OFFLINE = before
    except Exception as error:  # the client raises many types of exceptions without a network
        raise Refusal(
            f"{asked}: {path} could not be had from the hub ({type(error).__name__}: {one_line(error)[:120]}); without "
            "network give data.root=<a folder with the files in their original layout>, or data=grammar_nli or "
            "data=docstrings, which need none"
        ) from None
