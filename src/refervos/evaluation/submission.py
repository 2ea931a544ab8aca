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
"""Benchmarks with an evaluation server, and the prefix of the names in their zips."""

SPLIT = "valid"
"""The split that both servers score."""

MAX_LISTED = 20
"""Maximum number of problems that are listed."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every file in a zip (the earliest possible), so that equal masks give equal zips."""


def submit(
    predictions: Predictions,
    part: OpenPart,
    out: Path,
    *,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> list[str]:
    """Check the masks of a split and write them as a submission.

    Args:
        predictions: The masks of any system: 0 and 255, 0 and 1, or a palette's first two entries.
        part: The benchmark's split; its ground truth is not needed.
        out: The zip file.
        overwrite: Replace an existing file.
        show_progress: Show a progress bar; default only on a terminal.

    Returns:
        Folders of the predictions that belong to no video or expression of the split and are left out.

    Raises:
        ConfigError: When no server format is known for the benchmark.
        DataError: When the size of a video's frames cannot be read.
        EvaluationError: When masks are missing, damaged, not binary or of another size; it lists them, and nothing
            is written.
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
        # PNGs are compressed already, so the zip stores them; each mask is read once, checked and written.
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
            raise EvaluationError(_message(predictions.folder, part, problems))
    except BaseException as error:
        written.discard()
        if isinstance(error, OSError):
            raise write_error(out, error) from error
        raise
    written.put_in_place(overwrite)
    return unknown_folders(predictions, part)


def top_folder(benchmark: str) -> str:
    """Return the top folder of a benchmark's zip; ConfigError when no server format is known for it."""
    if benchmark not in TOP_FOLDERS:
        raise ConfigError(
            f"no server format is known for {benchmark!r}; the benchmarks with one are {', '.join(TOP_FOLDERS)}."
        )
    return TOP_FOLDERS[benchmark]


def frame_size(video: Video) -> tuple[int, int]:
    """Return height and width of a video's frames, read from the first frame if the annotations lack them."""
    if video.size is not None:
        return video.size
    height, width = video.frames.read(0).shape[:2]
    return height, width


def unknown_folders(predictions: Predictions, part: OpenPart) -> list[str]:
    """List the folders ``<video>`` and ``<video>/<expression>`` of the predictions that are not in the split."""
    videos = {video.id: {sample.expression_id for sample in samples} for video, samples in part.videos}
    unknown = []
    for video in sorted(_folders(predictions.folder)):
        if video not in videos:
            unknown.append(video)
        else:
            expressions = _folders(predictions.folder / video)
            unknown += [f"{video}/{expression}" for expression in sorted(expressions - videos[video])]
    return unknown


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def _masks(
    predictions: Predictions, sample: Sample, size: tuple[int, int], problems: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and PNG of every frame's mask; append to ``problems`` otherwise."""
    names, predicted_names = sample.video.frames.names, predictions.names(sample)
    if not predicted_names.intersection(names):
        problems.append(f"{predictions.of(sample)} is missing or has none of the {len(names)} masks.")
        return
    for name in names:
        if name not in predicted_names:
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
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o100644 << 16
    return entry


def _message(folder: Path, part: OpenPart, problems: list[str]) -> str:
    listed = problems[:MAX_LISTED]
    if len(problems) > MAX_LISTED:
        listed.append(f"... and {len(problems) - MAX_LISTED} more.")
    lines = "\n  ".join(listed)
    return (
        f"{folder} is not a complete submission to {part.dataset.name} {part.dataset.split}, so nothing was written:"
        f"\n  {lines}"
    )
