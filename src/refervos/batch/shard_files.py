"""Parquet files of masks and of units."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from refervos.errors import DataError
from refervos.segmentation import Segmentation
from refervos.video import Frame

if TYPE_CHECKING:
    import pyarrow

STAMP = b"refervos.stamp"
"""Key of the stamp in a file's metadata: model fingerprint, version and options, as JSON."""

SHARD = b"refervos.shard"
UNITS = b"refervos.units"


@dataclass
class UnitRecord:
    """Outcome of a unit. The first group depends on the inputs alone, the second on the run.

    Attributes:
        unit: Name of the unit.
        status: ``ok`` or ``failed``.
        error: Class of the error, such as ``VideoError``; None if ok.
        reason: The sentence of the error; None if ok.
        warnings: Sentences about problems that did not stop the reading, such as a truncated end.
        frames: Number of frames segmented.
        attempts: Number of attempts.
        seconds: Seconds of the work, waiting for the decoder included; None if unknown.
        host: Name of the machine; None if unknown.
        worker: Name of the worker; None if unknown.
    """

    unit: str
    status: str
    error: str | None = None
    reason: str | None = None
    warnings: list[str] = field(default_factory=list)
    frames: int = 0
    attempts: int | None = None
    seconds: float | None = None
    host: str | None = None
    worker: str | None = None

    def outcome(self) -> dict[str, Any]:
        """Return the fields that depend on the inputs alone."""
        return {name: getattr(self, name) for name in ("unit", "status", "error", "reason", "warnings", "frames")}


@dataclass
class MaskRows:
    """Rows of masks of one unit, column by column; see ``mask_schema``."""

    track: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    pts: list[float | None] = field(default_factory=list)
    presence: list[float] = field(default_factory=list)
    counts: list[bytes] = field(default_factory=list)
    size: list[tuple[int, int]] = field(default_factory=list)

    def add(self, frame: Frame, segmentation: Segmentation) -> None:
        """Add one row for each track of a frame."""
        from pycocotools import mask as coco

        height, width = segmentation.masks.shape[1:]
        encoded = coco.encode(np.asfortranarray(segmentation.masks.transpose(1, 2, 0).astype(np.uint8)))
        for track, presence, mask in zip(segmentation.track_ids, segmentation.presence, encoded, strict=True):
            self.track.append(track)
            self.frame.append(frame.index)
            self.pts.append(frame.time)
            self.presence.append(float(presence))
            self.counts.append(mask["counts"])
            self.size.append((height, width))

    def __len__(self) -> int:
        return len(self.frame)


def mask_schema() -> pyarrow.Schema:
    """Return the columns of a file of masks."""
    import pyarrow

    return pyarrow.schema(
        [
            ("unit", pyarrow.string()),
            ("track", pyarrow.int32()),  # position of the sentence
            ("frame", pyarrow.int64()),  # index in the video, from 0
            ("pts", pyarrow.float64()),  # seconds since the first frame of the video
            ("presence", pyarrow.float32()),
            ("counts", pyarrow.binary()),  # compressed run lengths of COCO
            ("size", pyarrow.list_(pyarrow.int32(), 2)),  # height, width
        ]
    )


def unit_schema() -> pyarrow.Schema:
    """Return the columns of a file of units."""
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    return pyarrow.schema(
        [
            *[("unit", text), ("uri", text), ("start", pyarrow.int64()), ("end", pyarrow.int64())],
            *[("expressions", texts), ("status", text), ("error", text), ("reason", text), ("warnings", texts)],
            *[("frames", pyarrow.int64()), ("attempts", pyarrow.int32()), ("seconds", pyarrow.float64())],
            *[("host", text), ("worker", text), ("shard", text), ("generation", pyarrow.int32())],
            *[("fingerprint", text), ("version", text)],
        ]
    )


def encode_table(table: pyarrow.Table, metadata: Mapping[bytes, str]) -> bytes:
    """Write a table as a Parquet file; the same table gives the same bytes.

    Args:
        table: The table.
        metadata: Entries of the file's metadata.

    Returns:
        The file.
    """
    from pyarrow import parquet

    written = io.BytesIO()
    table = table.replace_schema_metadata({key: value.encode() for key, value in metadata.items()})
    parquet.write_table(table, written, compression="zstd", use_dictionary=["unit"])
    return written.getvalue()


def mask_table(units: Sequence[str], rows: Sequence[MaskRows]) -> pyarrow.Table:
    """Return the table of the masks of several units, in order."""
    import pyarrow

    columns: dict[str, list[Any]] = {name: [] for name in mask_schema().names}
    for unit, part in zip(units, rows, strict=True):
        columns["unit"] += [unit] * len(part)
        for each in dataclasses.fields(part):
            columns[each.name] += getattr(part, each.name)
    return pyarrow.table(columns, schema=mask_schema())


def rows_of(table: pyarrow.Table) -> MaskRows:
    """Return the rows of a table of one unit."""
    columns = {field.name: table.column(field.name).to_pylist() for field in dataclasses.fields(MaskRows)}
    return MaskRows(**{**columns, "size": [(height, width) for height, width in columns["size"]]})


def canonical(value: Any) -> str:
    """Return JSON whose text is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def encode_shard(name: str, stamp: Mapping[str, Any], records: Sequence[UnitRecord], rows: Sequence[MaskRows]) -> bytes:
    """Write the file of a shard: the rows of masks, and the outcome of each unit in the metadata.

    Args:
        name: Name of the shard.
        stamp: Model fingerprint, version and options.
        records: Outcome of each unit, in order.
        rows: Rows of each unit, likewise.

    Returns:
        The file, whose bytes depend on the inputs alone.
    """
    outcomes = canonical([record.outcome() for record in records])
    metadata = {STAMP: canonical(stamp), SHARD: name, UNITS: outcomes}
    return encode_table(mask_table([record.unit for record in records], rows), metadata)


def read_table(data: bytes, where: str) -> pyarrow.Table:
    """Read a Parquet file.

    Args:
        data: The file.
        where: Its name in errors.

    Raises:
        DataError: When it is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        # parquet.read_table would scan with threads of Arrow. One that still holds the buffer of `data` when the
        # interpreter ends aborts the process (seen with pyarrow 26).
        with parquet.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
            return file.read(use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"'{where}' is damaged ({reason}); delete it, and run the same command again.") from error


def outcomes_of(metadata: Mapping[bytes, bytes], where: str) -> tuple[dict[str, Any], list[UnitRecord]]:
    """Return the stamp and the outcomes of units from the metadata of a shard's file.

    Args:
        metadata: The file's metadata.
        where: Its name in errors.

    Raises:
        DataError: When they are missing.
    """
    try:
        return json.loads(metadata[STAMP]), [UnitRecord(**each) for each in json.loads(metadata[UNITS])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{where}' was not written by refervos batch; remove it from the folder.") from error
