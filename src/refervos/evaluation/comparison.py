"""Two systems' masks side by side, with the ground truth where it is public: as a video or a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.data.sample import Dataset, ImageArray, Mask, Sample, Video
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.contact_sheets import FRAME_SIZE, LEGEND, draw_frame, evenly_spaced, lay_out
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expression_scores import read_json, read_result, score_expression
from refervos.evaluation.predictions import Predictions, png, read_numbers, stems
from refervos.evaluation.result_folder import ResultFolder
from refervos.evaluation.submission import frame_size
from refervos.files.writing import prepare_folder, refuse_existing, write_atomically
from refervos.markdown import number
from refervos.metrics.region_boundary import region_similarity
from refervos.progress import Bar
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame
from refervos.video.overlay_video import OverlaySink

SHEET_EXPRESSIONS = 6
"""Number of expressions on a sheet."""

SHEET_FRAMES = 8
"""Number of frames per expression."""

VIDEO_SIDE = 512
"""Long side of each panel of a video, in pixels."""

COMPARED_FRAMES = 8
"""Number of frames per expression in which masks are compared to rank expressions by difference."""

GREY = 60


@dataclass(frozen=True)
class Side:
    """One of the two compared systems.

    Attributes:
        label: ``A`` or ``B``, and the name of the folder.
        folder: The folder of its results or masks.
        predictions: The masks in it.
    """

    label: str
    folder: Path
    predictions: Predictions

    def mask(self, sample: Sample, index: int, size: tuple[int, int]) -> Mask | None:
        """Read the mask of one frame, bool (H, W); None where there is no file."""
        name = sample.video.frames.names[index]
        return self.predictions.mask(sample, name, size) if name in self.predictions.names(sample) else None

    def score(self, sample: Sample) -> float | None:
        """Return J&F of an expression in percent, from the folder's results if possible; None without ground truth."""
        file = ResultFolder(self.folder).result(sample)
        result = read_result(file) if file.exists() else score_expression(sample, self.predictions)
        return None if result.scores is None else 100 * result.scores.j_and_f


def open_sides(a: Path, b: Path) -> tuple[Side, Side]:
    """Open two folders and label them by name, or by path if their names are equal.

    Raises:
        EvaluationError: When one is not a folder.
    """
    names = (a.name, b.name) if a.resolve().name != b.resolve().name else (str(a), str(b))
    return (
        Side(f"A: {names[0]}", a, Predictions.open(a)),
        Side(f"B: {names[1]}", b, Predictions.open(b)),
    )


def shared_part(a: Side, b: Side) -> Part | None:
    """Return the data set and split that ``eval`` noted in both folders; None if one holds no settings.

    Raises:
        EvaluationError: When they differ.
    """
    files = [ResultFolder(side.folder).settings for side in (a, b)]
    if not all(file.exists() for file in files):
        return None
    one, other = ({**settings["binding"], "data": settings["data"]} for settings in map(read_json, files))
    for name in ("dataset", "split"):
        if one[name] != other[name]:
            raise EvaluationError(
                f"{a.folder} was evaluated on {name} {one[name]}, {b.folder} on {other[name]}; compare results on "
                "the same data."
            )
    return Part(one["dataset"], None if one["data"] is None else Path(one["data"]), one["split"])


@dataclass(frozen=True)
class _BlankFrames:
    """Grey frames for masks without a data set."""

    names: tuple[str, ...]
    size: tuple[int, int]

    def read(self, index: int) -> ImageArray:
        """Return one frame, uint8 (H, W, 3)."""
        return np.full((*self.size, 3), GREY, dtype=np.uint8)


def part_from_masks(predictions: Predictions) -> OpenPart:
    """Build a data set from masks alone: grey frames, and folder names as expressions.

    Args:
        predictions: The masks.

    Returns:
        One sample for each folder that holds masks.
    """
    samples = []
    for folder, _, files in sorted(os.walk(predictions.folder)):
        names = tuple(sorted(stems(Path(folder)))) if any(name.endswith(".png") for name in files) else ()
        relative = Path(folder).relative_to(predictions.folder)
        if names and len(relative.parts) > 1:
            height, width = read_numbers(Path(folder) / f"{names[0]}.png").shape
            video = Video(relative.parent.as_posix(), _BlankFrames(names, (height, width)))
            samples.append(Sample(video, relative.name, relative.as_posix()))
    videos = tuple((sample.video, [sample]) for sample in samples)
    return OpenPart(Dataset("masks", "all", tuple(samples)), "video", videos)


def choose_expressions(
    part: OpenPart, a: Side, b: Side, count: int, names: Sequence[str] = (), *, show_progress: bool | None = None
) -> list[Sample]:
    """Choose the expressions to show.

    Args:
        part: The data set.
        a: One side.
        b: The other.
        count: Number of expressions to choose, unless names are given.
        names: Expressions as ``<video>/<expression_id>``; default those on which the two differ most, by J&F where
            both folders hold results, else by the overlap of their masks in a few frames.
        show_progress: Show a progress bar; default only on a terminal.

    Returns:
        The expressions.

    Raises:
        ConfigError: When a name is unknown, or the two have no expression in common.
    """
    samples = {f"{sample.video.id}/{sample.expression_id}": sample for sample in part.samples()}
    for name in names:
        if name not in samples:
            raise ConfigError(
                f"there is no expression {name!r}; give <video>/<expression>, such as {next(iter(samples), '-')}."
            )
    if names:
        return [samples[name] for name in names]
    both = [s for s in samples.values() if a.predictions.names(s) and b.predictions.names(s)]
    if not both:
        raise ConfigError(f"{a.folder} and {b.folder} have masks for no common expression; nothing can be compared.")
    with Bar("expressions", len(both), show_progress) as bar:
        differences = []
        for place, sample in enumerate(both):
            differences.append((-_difference(sample, a, b), place))
            bar.advance(1)
    return [both[place] for _, place in sorted(differences)[:count]]


def _difference(sample: Sample, a: Side, b: Side) -> float:
    """Return how much two predictions differ, in [0, 1]."""
    files = [ResultFolder(side.folder).result(sample) for side in (a, b)]
    if all(file.exists() for file in files):
        one, other = (read_result(file).scores for file in files)
        if one is not None and other is not None:
            return abs(one.j_and_f - other.j_and_f)
    size = frame_size(sample.video)
    overlaps = []
    for index in evenly_spaced(range(len(sample.video)), COMPARED_FRAMES):
        one_mask, other_mask = (side.mask(sample, index, size) for side in (a, b))
        if one_mask is not None and other_mask is not None:
            overlaps.append(region_similarity(one_mask, other_mask))
    return 1 - float(np.mean(overlaps)) if overlaps else 0.0


def write_sheet(samples: Sequence[Sample], a: Side, b: Side, path: Path, *, overwrite: bool = False) -> None:
    """Draw a sheet of expressions, each with a row of frames for A, for B and, where public, for the ground truth.

    Args:
        samples: The expressions.
        a: One side.
        b: The other.
        path: The PNG file to write.
        overwrite: Replace an existing file.

    Raises:
        DataError: When a frame or a ground-truth mask cannot be read.
        OutputError: When the file exists or cannot be written.
    """
    refuse_existing(path, overwrite)
    prepare_folder(path.parent)
    blocks = []
    for sample in samples:
        frames = range(len(sample.video)) if sample.ground_truth is None else sample.ground_truth.annotated
        shown = evenly_spaced(frames, SHEET_FRAMES)
        columns = [_panels(sample, index, a, b) for index in shown]
        rows = list(zip(*columns, strict=True))
        names = [sample.video.frames.names[index] for index in shown]
        captions = [f"{label}, {name}" for label in panel_labels(sample, a, b) for name in names]
        blocks.append(lay_out([tile for row in rows for tile in row], captions, sheet_titles(sample, a, b), len(shown)))
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)))
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    write_atomically(path, png(sheet))


def write_video(
    sample: Sample,
    a: Side,
    b: Side,
    path: Path,
    *,
    fps: float,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> None:
    """Draw one expression as a video: A, B and, where public, the ground truth side by side.

    Args:
        sample: The expression.
        a: One side.
        b: The other.
        path: The mp4 file to write.
        fps: Frames per second.
        overwrite: Replace an existing file.
        show_progress: Show a progress bar; default only on a terminal.

    Raises:
        DataError: When a frame or a ground-truth mask cannot be read.
        OutputError: When the file exists or cannot be written.
    """
    titles, labels = sheet_titles(sample, a, b), panel_labels(sample, a, b)
    sink = OverlaySink(path, fps=fps, legend=False, overwrite=overwrite)
    try:
        with Bar("frames", len(sample.video), show_progress) as bar:
            for index, name in enumerate(sample.video.frames.names):
                tiles = _panels(sample, index, a, b, VIDEO_SIDE)
                panel = lay_out(tiles, labels, [*titles, f"frame {name}"], len(tiles))
                sink.write(Frame(index, np.asarray(panel)), _no_tracks(panel.height, panel.width))
                bar.advance(1)
    except BaseException:
        sink.abort()
        raise
    sink.close()


def _panels(sample: Sample, index: int, a: Side, b: Side, longest: int = FRAME_SIZE) -> list[ImageArray]:
    """Draw one frame with A's mask, with B's and, where public, with the ground truth alone."""
    frame, ground_truth = sample.video.frames.read(index), sample.ground_truth
    size = (frame.shape[0], frame.shape[1])
    empty = np.zeros(size, dtype=np.bool_)
    target = empty if ground_truth is None or index not in ground_truth.annotated else ground_truth.mask(index)
    predicted = [side.mask(sample, index, size) for side in (a, b)]
    panels = [draw_frame(frame, target, empty if mask is None else mask, longest) for mask in predicted]
    return panels if ground_truth is None else [*panels, draw_frame(frame, target, empty, longest)]


def panel_labels(sample: Sample, a: Side, b: Side) -> list[str]:
    """Return the captions of an expression's panels."""
    return [a.label, b.label] if sample.ground_truth is None else [a.label, b.label, "ground truth"]


def sheet_titles(sample: Sample, a: Side, b: Side) -> list[str]:
    """Return the lines above an expression: its text and, where the ground truth is public, both scores."""
    lines = [f'"{sample.expression}" ({sample.video.id}/{sample.expression_id})']
    if sample.ground_truth is not None:
        scores = [f"{side.label} {number(side.score(sample))}" for side in (a, b)]
        lines.append(f"J&F: {', '.join(scores)} ({LEGEND})")
    return lines


def _no_tracks(height: int, width: int) -> Segmentation:
    """Return a segmentation without tracks: the masks are already drawn."""
    empty = np.zeros(0)
    return Segmentation(0, (), (), np.zeros((0, height, width), bool), empty.astype(np.float32), empty.astype(bool))
