"""Running text of a Hugging Face data set, given by its name on the hub or as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdp.errors import Refusal
from pdp.tasks.corpora import Corpus, texts_of_rows
from pdp.tasks.hub import cache_alone, limited_patience, reachable
from pdp.wording import one_line

VALIDATION = "validation"


def read_hub(data: Any, streamed: bool = True) -> Corpus:
    """Train, validation and test text of the data set data.name, or of the folder data.root if that is given.

    `streamed`: large parts may be read piece by piece. Raises `Refusal` if data set, part or column are missing.
    """
    asked = f"data.name={data.name}" if data.root is None else f"data.root={data.root}"
    split, names = _opened(data, asked)
    if data.column not in (columns := split(data.train_split).column_names):
        raise Refusal(f"{asked} has no column {data.column}, its columns are {', '.join(columns)}: give data.column=")
    validation = data.validation_split
    if validation is None and VALIDATION in names and VALIDATION not in (data.train_split, data.test_split):
        validation = VALIDATION
    wanted = [data.train_split, validation, data.test_split]
    return Corpus(*texts_of_rows([None if one is None else split(one) for one in wanted], data.column, streamed))


def _opened(data: Any, asked: str) -> tuple[Callable[[str], Any], list[str]]:
    """A function from the name of a part, or of a slice of one, to its rows; and the names of all parts."""
    offline = not reachable()
    try:
        import datasets

        datasets.disable_progress_bars()
        before = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = before or offline
        try:
            with limited_patience(), cache_alone(offline):
                found = _load(datasets, data)
        finally:
            datasets.config.HF_HUB_OFFLINE = before
    except Refusal:
        raise
    except Exception as error:  # the client raises many kinds of errors for missing, damaged and unknown data
        way = (
            "without network give data.root=<a folder that holds it>" if data.root is None else "give another data.root"
        )
        raise Refusal(f"{asked} could not be had ({type(error).__name__}: {one_line(error)[:160]}); {way}") from None

    def split(name: str) -> Any:
        whole, _, rest = name.partition("[")
        if whole not in found:
            key = {data.train_split: "train_split", data.test_split: "test_split"}.get(name, "validation_split")
            raise Refusal(
                f"{asked} has no part {whole}, its parts are {', '.join(found)}: give data.{key}=<one of them, or a "
                "slice such as train[:90%]>"
            )
        rows = found[whole]
        return rows.select(_sliced(len(rows), rest.removesuffix("]"), name)) if rest else rows

    return split, list(found)


def _load(datasets: Any, data: Any) -> dict[str, Any]:
    if data.root is None:
        return dict(datasets.load_dataset(data.name, data.subset))
    folder = Path(data.root).expanduser()
    if not folder.is_dir():
        raise Refusal(f"data.root={data.root} does not exist or is no folder: set data.root")
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder)))
    if (folder / "state.json").is_file():
        return {"train": datasets.load_from_disk(str(folder))}
    return dict(datasets.load_dataset(str(folder), data.subset))


def _sliced(count: int, words: str, name: str) -> range:
    """The row numbers of a slice such as 10:20, :90% or -5%: of `count` rows; `name` is for the refusal."""
    ends = words.split(":")
    try:
        if len(ends) != 2:
            raise ValueError
        first, last = (
            None if not end else int(count * float(end[:-1]) / 100 + 0.5) if end.endswith("%") else int(end)
            for end in ends
        )
    except ValueError:
        raise Refusal(f"{name} is no part of a data set: give a name, or a slice such as train[:90%]") from None
    return range(count)[first:last]
