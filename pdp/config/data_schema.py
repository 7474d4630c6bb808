"""The keys of a data set's configuration, for each kind of task.

The comment at a key, or right above it, is its meaning, which `docs/configuration.md` and its test read there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataConfig:
    """What the configuration of every data set has."""

    name: str = MISSING  # name of the data set
    root: str | None = None  # folder that holds the data
    # share of the training part that is held out for validation by a fixed split; 0: the test set is used for
    # validation too, and tables say so
    validation: float = 0.1
    workers: int = 0  # number of processes that load data; 0: the training process itself
    limit: int | None = None  # largest number of training samples, and of test samples; null: all
    # set by the command line if no data was named: the default data set is used, and the run says so
    unasked: bool = False
    # for debug overlays only: if the data is missing, random data of the same shape takes its place
    noise_if_absent: bool = False
    # for debug overlays only: the smallest images, or the shortest texts, that make sense
    smallest_inputs: bool = False


@dataclass
class ImagesDataConfig(DataConfig):
    """Images with one class each."""

    image_size: int | None = None  # side of the images in pixels; null: the data set's own
    # what happens at an image that cannot be read: stop ends the run, skip leaves the image out and names it
    unreadable: str = "stop"
    # which decodes the training images: cpu, the loader's processes, or gpu, the device that trains, ahead of its
    # steps; others are always decoded by the processor
    decode: str = "cpu"


@dataclass
class TextDataConfig(DataConfig):
    """What the configuration of every text data set has."""

    source: str = MISSING  # which reader opens the data; set by the data group
    # a folder, a vocabulary file or a name on the hub; null: the checkpoint's tokenizer, or one trained on the training
    # text if there is no checkpoint
    tokenizer: str | None = None
    vocabulary: int = 30522  # largest number of entries of a tokenizer that is trained on the training text


@dataclass
class TextClassificationDataConfig(TextDataConfig):
    """Sentences, or pairs of them, with one label each."""

    task: str | None = None  # source=glue: one of mnli, qqp, qnli, sst2, rte, mrpc, cola, stsb, wnli
    # largest number of tokens in a text; longer texts are cut at their end, in a pair the longer text first
    max_length: int = 128
    length_grouping: bool = False  # whether a batch holds texts of about the same length, which saves padding
    train: str | None = None  # source=table: file with the training rows, below data.root if that is given
    # source=table: file with the validation rows; null: the share data.validation of the training rows
    validation_file: str | None = None
    # source=table: file with the test rows; null: a fifth of the training rows, chosen by a fixed split
    test: str | None = None
    text: Any = None  # source=table: name of the column with the texts, or a list of one or two names
    label: str | None = None  # source=table: name of the column with the classes; its values are the class names
    score: str | None = None  # source=table: name of a column with scores; given in place of label


@dataclass
class LanguageModellingDataConfig(TextDataConfig):
    """Running text, cut into windows."""

    context: int = 1024  # tokens in a window
    # tokens from the start of a measured window to the start of the next; null: context - 1, or context if
    # protocol=huggingface
    stride: int | None = None
    # how lines become one text: lines joins them without the blank ones; huggingface joins all lines by blank lines and
    # tokenizes them as one text, as the Hugging Face guide to perplexity does
    protocol: str = "lines"
    # source=files: names or glob patterns, below data.root, of the training files
    train_files: list[str] = field(default_factory=list)
    # source=files: likewise of the validation files; []: a share of the training windows; null: the files valid*.*, or
    # a share if there are none
    validation_files: list[str] | None = None
    # source=files: likewise of the files that are measured at the end
    test_files: list[str] = field(default_factory=list)
    subset: str | None = None  # source=hub: which configuration of the data set, if it has several
    column: str = "text"  # source=hub: name of the column with the texts
    train_split: str = "train"  # source=hub: name of the training part, or a slice of it such as train[:90%]
    # source=hub: likewise of the validation part; null: the part named validation, or a share of the training part if
    # there is none
    validation_split: str | None = None
    test_split: str = "test"  # source=hub: likewise of the part that is measured at the end


DATA_SCHEMAS: dict[str, type[DataConfig]] = {
    "images": ImagesDataConfig,
    "text_classification": TextClassificationDataConfig,
    "language_modelling": LanguageModellingDataConfig,
}


def data_label(data: DataConfig) -> str:
    """How records and tables name the data: glue-mnli where one of its tasks was chosen."""
    task = getattr(data, "task", None)
    return f"{data.name}-{task}" if task else data.name
