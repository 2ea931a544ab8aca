"""Manifests: tables of videos and sentences, checked as a whole before any work starts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.errors import DataError, PromptError
from refervos.files.plain_text import decode_text, parse_json
from refervos.prompts import Prompt

SUFFIXES = (".csv", ".jsonl", ".parquet")

LISTED_FAULTS = 50
"""Maximum number of faults listed in an error."""

_COLUMNS = "the columns are video, expression or expressions, and optionally start, end and frames"


@dataclass(frozen=True)
class Entry:
    """One video with all its sentences.

    Attributes:
        line: Line (or row) of the manifest at which it first appears, from 1.
        uri: Absolute path or address of the video.
        expressions: Its sentences, at least one, in the order of the manifest.
        start: First frame to segment.
        end: Frame before which to end; None for the whole video.
        frames: Number of frames of the video as stated in the manifest; None if not stated.
    """

    line: int
    uri: str
    expressions: tuple[str, ...]
    start: int = 0
    end: int | None = None
    frames: int | None = None


def read_manifest(path: str | Path) -> list[Entry]:
    """Read and check a manifest.

    A row has a ``video``, an ``expression`` or a list of ``expressions``, and optionally ``start`` and ``end`` (frames)
    and ``frames`` (the video's number of frames, an estimate). Rows of the same video and range are merged.

    Args:
        path: CSV file, JSON lines or Parquet file. Paths of videos are relative to its folder.

    Returns:
        The videos in order of first appearance.

    Raises:
        DataError: When the file is unreadable, or rows are faulty: one sentence for each fault, with its line.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path}' is not a manifest; give a .csv, .jsonl or .parquet file.")
    if not path.is_file():
        raise DataError(f"'{path}' does not exist or is not a file; give a manifest of videos and sentences.")
    faults: list[str] = []
    merged: dict[tuple[str, int, int | None], Entry] = {}
    for line, row in _rows(path, faults):
        try:
            entry = _entry(line, row, path.parent)
            key = (entry.uri, entry.start, entry.end)
            merged[key] = _merge(merged[key], entry) if key in merged else entry
        except (DataError, PromptError) as error:
            faults.append(f"line {line}: {error}")
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        more = len(faults) - LISTED_FAULTS
        listed = faults[:LISTED_FAULTS] + ([f"and {more} more."] if more > 0 else [])
        raise DataError(f"'{path}' has {count}; correct the lines:\n  " + "\n  ".join(listed))
    if not merged:
        raise DataError(f"'{path}' lists no video; {_COLUMNS}.")
    return list(merged.values())


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its line."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet_rows(path)
            return
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or error}); give a readable manifest.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text; save the manifest as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text, faults)
        return
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = parse_json(content, f"line {line}", DataError)
            if not isinstance(row, dict):
                raise DataError(f"line {line} is not a JSON object; {_COLUMNS}.")
            yield line, row
        except DataError as error:
            faults.append(str(error))


def _csv_rows(path: Path, text: str, faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        names = [name.strip().lower() for name in header]
        if len(set(names)) < len(names):
            raise DataError(f"'{path}' has a column twice; {_COLUMNS}.")
        if "video" not in names or not {"expression", "expressions"} & set(names):
            raise DataError(f"'{path}' has the columns {', '.join(names) or 'none'}; {_COLUMNS}.")
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if len(cells) != len(names):
                if cells:
                    faults.append(f"line {line}: it has {len(cells)} cells, but the header has {len(names)}.")
                continue
            row: dict[str, Any] = {name: cell.strip() or None for name, cell in zip(names, cells, strict=True)}
            if isinstance(row.get("expressions"), str):
                row["expressions"] = _json_list(row["expressions"])
            yield line, row
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: it is not valid CSV ({error}); put texts with commas in double quotes.")


def _json_list(text: str) -> Any:
    """Parse a JSON list in a cell; another text is returned unchanged and refused later."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"'{path}' is not a readable Parquet file ({reason}); write it again.") from error
    for index in range(table.num_rows):  # row by row, because a manifest may have 100,000 long rows
        row = {name: table.column(name)[index].as_py() for name in table.column_names}
        yield index + 1, {name.lower(): value for name, value in row.items() if value is not None}


def _entry(line: int, row: dict[str, Any], folder: Path) -> Entry:
    start = _whole(row, "start", 0)
    end = _whole(row, "end", 1)
    if end is not None and end <= (start or 0):
        raise DataError(f"end is {end}, but must be greater than start, which is {start or 0}.")
    return Entry(
        line=line,
        uri=_uri(row.get("video"), folder),
        expressions=tuple(_expressions(row)),
        start=start or 0,
        end=end,
        frames=_whole(row, "frames", 1),
    )


def _uri(video: object, folder: Path) -> str:
    if not isinstance(video, str) or not video.strip():
        raise DataError("it names no video; give a path or an address.")
    video = video.strip()
    if not video.isprintable():
        raise DataError("the name of its video has control characters; give a path or an address.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", video):
        if re.match(r"[^/]+//[^/?#]*@", video) and not video.startswith(("abfs", "az://", "wasb")):
            raise DataError("its address has a user name; give credentials in environment variables.")
        return video
    return str((folder / Path(video).expanduser()).absolute())


def _expressions(row: dict[str, Any]) -> Sequence[str]:
    several, single = row.get("expressions"), row.get("expression")
    if (several is None) == (single is None):
        raise DataError("it needs either an expression or a list of expressions.")
    texts = [single] if several is None else several
    if not isinstance(texts, list) or not texts:
        raise DataError('its expressions are not a list of sentences; write ["the dog", "the red ball"].')
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"an expression is {text!r}, not a text; give a sentence.")
        Prompt(text)
    return _distinct(texts)


def _distinct(expressions: Sequence[str]) -> Sequence[str]:
    for index, expression in enumerate(expressions):
        if expression in expressions[:index]:
            raise DataError(f"the expression {expression!r} appears twice for the same video; remove one.")
    return expressions


def _whole(row: dict[str, Any], name: str, least: int) -> int | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value) else value
    if isinstance(number, float) and number.is_integer():  # whole numbers with gaps are floats in some tables
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 10**12:
        raise DataError(f"{name} is {value!r}, but must be a whole number of frames of at least {least}.")
    return number


def _merge(one: Entry, other: Entry) -> Entry:
    return Entry(
        line=one.line,
        uri=one.uri,
        expressions=tuple(_distinct([*one.expressions, *other.expressions])),
        start=one.start,
        end=one.end,
        frames=one.frames or other.frames,
    )
