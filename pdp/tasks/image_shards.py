"""Images in the hub's parquet shards and in WebDataset tar files, located once and read in place without unpacking."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import track

from pdp.errors import Refusal
from pdp.tasks.image_decoding import EXTENSIONS
from pdp.tasks.image_parts import ImageSource
from pdp.wording import one_line

_LABELS = ("label", "labels", "class", "cls", "fine_label", "class_name")
_MANY = 20  # with at least this many shards, progress is shown


@dataclass
class Shards:
    """The images of one part's shards: a class number or a class name each; `names` of the numbers if known."""

    source: ImageSource
    numbers: np.ndarray | None
    class_of: list[str] | None
    names: list[str] | None


def _signature(paths: Sequence[Path]) -> bytes:
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).digest()


# ---------------------------------------------------------------------------------------------------------- parquet


class ParquetImages(ImageSource):
    """Rows of parquet files, through a memory map; to get a row, its row group is read up to that row."""

    def __init__(self, paths: Sequence[Path], starts: np.ndarray, column: str, bytes_known: int):
        self.paths, self.starts, self.column = list(paths), starts, column  # starts: first row, file and number of each
        self.signature, self.bytes_known = _signature(paths), bytes_known
        self._open: dict[int, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def _file(self, number: int) -> Any:
        import pyarrow.parquet as pq

        if self._process != os.getpid():  # a forked worker opens its own files
            self._open, self._process = {}, os.getpid()
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self.paths[number], memory_map=True, pre_buffer=False)
        return self._open[number]

    def read(self, row: int) -> bytes:
        """The encoded bytes of a row."""
        at = int(np.searchsorted(self.starts[:, 0], row, side="right")) - 1
        first, number, group = self.starts[at].tolist()
        left = row - first
        for batch in self._file(number).iter_batches(
            batch_size=16, row_groups=[group], columns=[self.column], use_threads=False
        ):
            if left < len(batch):
                values = batch.column(0)
                value = (values if self.column == batch.schema.names[0] else values.field(0))[left].as_py()
                if value is None:
                    break
                return value
            left -= len(batch)
        raise OSError(f"row {row} holds no bytes")

    def open(self, row: int) -> IO[bytes]:
        """The bytes as a file object."""
        return io.BytesIO(self.read(row))

    def name(self, row: int) -> str:
        """The shard and the number of the row in it."""
        at = int(np.searchsorted(self.starts[:, 0], row, side="right")) - 1
        number = int(self.starts[at, 1])
        first = int(self.starts[self.starts[:, 1] == number][0, 0])
        return f"{self.paths[number].name} row {row - first}"


def read_parquet_shards(root: str, paths: Sequence[Path]) -> Shards:
    """Reads the labels and the positions of the row groups; raises `Refusal`."""
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    starts, labels, row, known = [], [], 0, 0
    column = label = ""
    names: list[str] | None = None
    for number, path in enumerate(track(paths, "reading shards", transient=True, disable=len(paths) < _MANY)):
        try:
            file = pq.ParquetFile(path, memory_map=True)
            features = Features.from_arrow_schema(file.schema_arrow)
            if not column:
                column, label = _columns(root, path, file.schema_arrow, features)
            kind = features[label]
            its = list(kind.names) if isinstance(kind, ClassLabel) and kind.names else None
            labels += file.read(columns=[label], use_threads=False).column(0).to_pylist()
            for group in range(file.metadata.num_row_groups):
                data = file.metadata.row_group(group)
                starts.append((row, number, group))
                row += data.num_rows
                chunks = (data.column(k) for k in range(data.num_columns))
                known += sum(one.total_uncompressed_size for one in chunks if one.path_in_schema == column)
        except Refusal:
            raise
        except Exception as error:  # pyarrow raises many types of exceptions for damaged and foreign files
            raise Refusal(
                f"data.root={root}: {path.name} cannot be read ({type(error).__name__}: {one_line(error)[:120]}); "
                "set data.root"
            ) from None
        if number and its != names:
            raise Refusal(f"data.root={root}: {path.name} has other classes than {paths[0].name}; set data.root")
        names = its
    source = ParquetImages(paths, np.array(starts, dtype=np.int64).reshape(-1, 3), column, known)
    return _labelled(root, paths[0].name, source, labels, names)


def _columns(root: str, path: Path, schema: Any, features: Any) -> tuple[str, str]:
    """The names of the column with the image bytes and of the column with the labels."""
    import pyarrow as pa
    from datasets import ClassLabel, Image

    def has_bytes(name: str) -> bool:
        kind = schema.field(name).type
        return (
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        )

    images = [name for name in schema.names if isinstance(features[name], Image) or has_bytes(name)]
    images = [name for name in ("image", "img") if name in images] or images
    labels = [name for name in _LABELS if name in schema.names]
    labels = labels or [name for name in schema.names if isinstance(features[name], ClassLabel)]
    for found, what in ((images, "images"), (labels, "labels")):
        if not found:
            raise Refusal(
                f"data.root={root}: {path.name} has no column of {what}, it has {', '.join(schema.names)[:120]}; it "
                "must have image (bytes) and label; set data.root"
            )
    struct = pa.types.is_struct(schema.field(images[0]).type)
    return (f"{images[0]}.bytes" if struct else images[0]), labels[0]


# ------------------------------------------------------------------------------------------------------------- tars


class TarImages(ImageSource):
    """Members of tar files, read directly at their offsets."""

    def __init__(self, paths: Sequence[Path], files: list[int], offsets: list[int], sizes: list[int], names: list[str]):
        self.paths, self.signature = list(paths), _signature(paths)
        self.files, self.offsets = np.array(files, dtype=np.int32), np.array(offsets, dtype=np.int64)
        self.sizes, self.names = np.array(sizes, dtype=np.int64), np.array([os.fsencode(one) for one in names])
        self.bytes_known = int(self.sizes.sum())
        self._open: dict[int, int] = {}  # processes may share descriptors, because every read gives its offset

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def read(self, row: int) -> bytes:
        """The member's bytes."""
        return os.pread(self._descriptor(row), int(self.sizes[row]), int(self.offsets[row]))

    def _descriptor(self, row: int) -> int:
        number = int(self.files[row])
        if number not in self._open:
            self._open[number] = os.open(self.paths[number], os.O_RDONLY)
        return self._open[number]

    def head(self, row: int, count: int) -> tuple[int, bytes]:
        """The member's size and its first bytes."""
        size = int(self.sizes[row])
        return size, os.pread(self._descriptor(row), min(size, count), int(self.offsets[row]))

    def open(self, row: int) -> IO[bytes]:
        """The bytes as a file object."""
        return io.BytesIO(self.read(row))

    def name(self, row: int) -> str:
        """The tar file and the name of the member."""
        return f"{self.paths[int(self.files[row])].name} {os.fsdecode(self.names[row])}"


def read_tar_shards(root: str, paths: Sequence[Path]) -> Shards:
    """Lists the members of all tar files; raises `Refusal`.

    Members whose names agree up to the first dot belong to one sample.
    """
    files: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    names: list[str] = []
    labels: list[Any] = []
    for number, path in enumerate(track(paths, "reading tars", transient=True, disable=len(paths) < _MANY)):
        labelled: dict[str, Any] = {}
        images: list[tuple[str, tarfile.TarInfo]] = []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, ending = _key(member.name)
                    if not member.isfile() or os.path.basename(key).startswith("."):
                        continue
                    if f".{ending.rpartition('.')[2]}" in EXTENSIONS:
                        images.append((key, member))
                    elif ending in ("cls", "json", "txt", "class", "label") and (file := tar.extractfile(member)):
                        labelled[key] = _label(ending, file.read(), labelled.get(key))
        except (OSError, tarfile.TarError, ValueError) as error:
            raise Refusal(
                f"data.root={root}: {path.name} cannot be read as a plain tar ({type(error).__name__}: "
                f"{one_line(error)[:100]}); set data.root"
            ) from None
        for key, member in images:
            label = labelled.get(key)
            label = os.path.basename(os.path.dirname(key)) if label is None else label
            if label == "":
                raise Refusal(
                    f"data.root={root}: {path.name} has no label for {one_line(member.name)}: it needs "
                    f"{os.path.basename(key)}.cls, a .json with label, or a folder called as its class; set data.root"
                )
            files.append(number)
            offsets.append(member.offset_data)
            sizes.append(member.size)
            names.append(member.name)
            labels.append(label)
    return _labelled(root, paths[0].name, TarImages(paths, files, offsets, sizes, names), labels, None)


def _key(name: str) -> tuple[str, str]:
    """The sample's name and its ending, split at the first dot as WebDataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def _label(ending: str, content: bytes, before: Any) -> Any:
    """The label in a member, a number or a name (of JSON its label); a .cls file takes precedence over others."""
    text = content.decode("utf-8").strip()
    if ending == "json":
        record = json.loads(text)
        found = next((record[name] for name in _LABELS if name in record), None) if isinstance(record, dict) else None
        return before if before is not None else found
    if ending == "txt":  # most .txt members are captions, not labels
        return before
    return int(text) if text.lstrip("-").isdigit() else text


def _labelled(root: str, place: str, source: ImageSource, labels: list[Any], names: list[str] | None) -> Shards:
    if not labels:
        raise Refusal(f"data.root={root}: {place} holds no image with a label; set data.root")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in labels):
        return Shards(source, np.array(labels, dtype=np.int64), None, names)
    if any(one is None for one in labels):
        raise Refusal(f"data.root={root}: {place} has rows without a label; set data.root")
    return Shards(source, None, [str(one) for one in labels], None)
