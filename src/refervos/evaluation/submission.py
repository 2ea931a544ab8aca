"""Zip files for the evaluation servers, checked before they are written.

MeViS: ``<video>/<expression_id>/<frame>.png`` (https://github.com/henghuiding/MeViS, section "CodaLab Evaluation
Submission Guideline"). Ref-YouTube-VOS: the same below a folder ``Annotations``, as ``inference_ytvos.py`` of
https://github.com/wjn922/ReferFormer writes it. Masks are 8-bit grey PNGs of 0 and 255.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from refervos.data.sample import Sample, Video
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.predictions import Predictions, mask_png
from refervos.files.writing import PartialFile, prepare_folder, refuse_existing, write_error
from refervos.progress import Bar

TOP_FOLDERS = {"mevis": "", "ref-youtube-vos": "Annotations/"}
"""Benchmarks with a server, and what the names in their zips begin with."""

SPLIT = "valid"
"""The split that both servers score."""

LISTED = 20
"""How many problems are told one by one."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip, the first that there can be: same masks, same zip."""


def submit(
    predictions: Predictions,
    part: OpenPart,
    out: Path,
    *,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> list[str]:
    """Write a submission.

    Args:
        predictions: The masks of any system: 0 and 255, 0 and 1, or a palette's first two entries.
        part: The benchmark's split; its truth is not needed.
        out: The zip file.
        overwrite: Whether it may be replaced.
        show_progress: True or False; default when standard error is a terminal.

    Returns:
        Folders among the predictions that are of no video or expression of the split; they are left out.

    Raises:
        ConfigError: When the benchmark has no server whose format is known.
        DataError: When the size of a video's frames cannot be read.
        EvaluationError: When masks are missing, damaged, not binary or of another size, listing them; nothing is
            written then.
        OutputError: When the zip cannot be written.
    """
    top = top_folder(part.dataset.name)
    refuse_existing(out, overwrite)
    prepare_folder(out.parent)
    problems: list[str] = []
    try:
        written = PartialFile(out)
    except OSError as error:
        raise write_error(out, error) from error
    try:
        # Masks are deflated already; stored as they are, they are read once, checked and written.
        with (
            Bar("expressions", sum(len(samples) for _, samples in part.videos), show_progress) as bar,
            zipfile.ZipFile(written.temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            for video, samples in sorted(part.videos, key=lambda one: one[0].id):
                size = frame_size(video)
                for sample in sorted(samples, key=lambda sample: sample.expression_id):
                    for name, content in _masks(predictions, sample, size, problems):
                        path = f"{top}{video.id}/{sample.expression_id}/{name}.png"
                        archive.writestr(_entry(path), content)
                    bar.advance(1)
        if problems:
            raise EvaluationError(_told(predictions.folder, part, problems))
    except BaseException as error:
        written.discard()
        if isinstance(error, OSError):
            raise write_error(out, error) from error
        raise
    written.put_in_place(overwrite)
    return strangers(predictions, part)


def top_folder(benchmark: str) -> str:
    """What names in a benchmark's zip begin with; ConfigError when it has no server whose format is known."""
    if benchmark not in TOP_FOLDERS:
        raise ConfigError(f"there is no server format for {benchmark!r}; there are {', '.join(TOP_FOLDERS)}.")
    return TOP_FOLDERS[benchmark]


def frame_size(video: Video) -> tuple[int, int]:
    """Height and width of a video's frames, read from the first where the benchmark does not tell."""
    if video.size is not None:
        return video.size
    height, width = video.frames.read(0).shape[:2]
    return height, width


def strangers(predictions: Predictions, part: OpenPart) -> list[str]:
    """Folders among the predictions, ``<video>`` or ``<video>/<expression>``, that belong to nothing in a split."""
    videos = {video.id: {sample.expression_id for sample in samples} for video, samples in part.videos}
    found = []
    for video in sorted(_folders(predictions.folder)):
        if video not in videos:
            found.append(video)
        else:
            there = _folders(predictions.folder / video)
            found += [f"{video}/{expression}" for expression in sorted(there - videos[video])]
    return found


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def _masks(
    predictions: Predictions, sample: Sample, size: tuple[int, int], problems: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Every frame's name and mask; what is wrong is added to the problems."""
    names, there = sample.video.frames.names, predictions.names(sample)
    if not there.intersection(names):
        problems.append(f"{predictions.of(sample)} is missing, or has none of {len(names)} masks.")
        return
    for name in names:
        if name not in there:
            problems.append(f"{predictions.of(sample) / name}.png is missing.")
            continue
        try:
            mask = predictions.mask(sample, name, size)
        except EvaluationError as error:
            problems.append(str(error))
        else:
            yield name, mask_png(mask)


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, EPOCH)
    entry.create_system = 3  # Unix, on whatever system it is written
    entry.external_attr = 0o100644 << 16
    return entry


def _told(folder: Path, part: OpenPart, problems: list[str]) -> str:
    told = problems[:LISTED]
    if len(problems) > LISTED:
        told.append(f"... and {len(problems) - LISTED} more.")
    lines = "\n  ".join(told)
    return (
        f"{folder} is no complete submission to {part.dataset.name} {part.dataset.split}, so nothing was written:"
        f"\n  {lines}"
    )
