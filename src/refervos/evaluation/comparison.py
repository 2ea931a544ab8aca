"""Two systems' masks side by side, with the truth where it is known: as a video, or as a sheet of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.data.sample import Dataset, ImageArray, Mask, Sample, Video
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.contact_sheets import FRAME_SIZE, HOW_TO_READ, draw_frame, lay_out, spread
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expressions import read_json, read_result, score_expression
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
"""How many expressions a sheet shows."""

SHEET_FRAMES = 8
"""How many frames of each."""

VIDEO_SIDE = 512
"""The long side of each picture in a video, in pixels."""

SAMPLED = 8
"""In how many frames of an expression masks are compared to see how much they differ."""

GREY = 60


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        label: ``A`` or ``B``, and the name of the folder.
        folder: As it was given.
        predictions: The masks in it.
    """

    label: str
    folder: Path
    predictions: Predictions

    def mask(self, sample: Sample, index: int, size: tuple[int, int]) -> Mask | None:
        """The mask in one frame, bool (H, W); None where there is none."""
        name = sample.video.frames.names[index]
        return self.predictions.mask(sample, name, size) if name in self.predictions.names(sample) else None

    def score(self, sample: Sample) -> float | None:
        """J&F in percent of an expression whose truth is known; from the folder's results where there are some."""
        file = ResultFolder(self.folder).result(sample)
        result = read_result(file) if file.exists() else score_expression(sample, self.predictions)
        return None if result.scores is None else 100 * result.scores.j_and_f


def sides(a: Path, b: Path) -> tuple[Side, Side]:
    """Open two folders; they are told apart by their names, or by their paths where the names are the same.

    Raises:
        EvaluationError: When one is no folder.
    """
    names = (a.name, b.name) if a.resolve().name != b.resolve().name else (str(a), str(b))
    return (
        Side(f"A: {names[0]}", a, Predictions.open(a)),
        Side(f"B: {names[1]}", b, Predictions.open(b)),
    )


def part_of(a: Side, b: Side) -> Part | None:
    """What both folders say that they were evaluated on; None where one says nothing.

    Raises:
        EvaluationError: When it is not the same.
    """
    told = [ResultFolder(side.folder).settings for side in (a, b)]
    if not all(file.exists() for file in told):
        return None
    one, other = ({**settings["binding"], "data": settings["data"]} for settings in map(read_json, told))
    for name in ("dataset", "split"):
        if one[name] != other[name]:
            raise EvaluationError(f"{a.folder} is about {name} {one[name]}, {b.folder} about {other[name]}.")
    return Part(one["dataset"], None if one["data"] is None else Path(one["data"]), one["split"])


@dataclass(frozen=True)
class _BlankFrames:
    """Grey frames, where only masks are known."""

    names: tuple[str, ...]
    size: tuple[int, int]

    def read(self, index: int) -> ImageArray:
        """One frame, uint8 (H, W, 3)."""
        return np.full((*self.size, 3), GREY, dtype=np.uint8)


def masks_alone(predictions: Predictions) -> OpenPart:
    """What masks are about, as far as they themselves tell: grey frames, and names for expressions.

    Args:
        predictions: The masks.

    Returns:
        A sample for each folder that holds masks.
    """
    samples = []
    for folder, _, files in sorted(os.walk(predictions.folder)):
        names = tuple(sorted(stems(Path(folder)))) if any(name.endswith(".png") for name in files) else ()
        place = Path(folder).relative_to(predictions.folder)
        if names and len(place.parts) > 1:
            height, width = read_numbers(Path(folder) / f"{names[0]}.png").shape
            video = Video(place.parent.as_posix(), _BlankFrames(names, (height, width)))
            samples.append(Sample(video, place.name, place.as_posix()))
    videos = tuple((sample.video, [sample]) for sample in samples)
    return OpenPart(Dataset("masks", "all", tuple(samples)), "video", videos)


def choose(
    part: OpenPart, a: Side, b: Side, count: int, wanted: Sequence[str] = (), *, show_progress: bool | None = None
) -> list[Sample]:
    """Which expressions to show.

    Args:
        part: What there is.
        a: One side.
        b: The other.
        count: How many, where none are named.
        wanted: Expressions as ``<video>/<expression_id>``; default those that the two answered most differently, by
            J&F where both folders hold results, else by how little their masks overlap in a few frames.
        show_progress: True or False; default when standard error is a terminal.

    Returns:
        The expressions.

    Raises:
        ConfigError: When there is no expression of a name, or none at all.
    """
    samples = {f"{sample.video.id}/{sample.expression_id}": sample for sample in part.samples()}
    for name in wanted:
        if name not in samples:
            raise ConfigError(
                f"there is no expression {name!r}; give <video>/<expression>, such as {next(iter(samples), '-')}."
            )
    if wanted:
        return [samples[name] for name in wanted]
    both = [s for s in samples.values() if a.predictions.names(s) and b.predictions.names(s)]
    if not both:
        raise ConfigError(f"{a.folder} and {b.folder} hold no masks of the same expression; nothing can be compared.")
    with Bar("expressions", len(both), show_progress) as bar:
        by_difference = []
        for place, sample in enumerate(both):
            by_difference.append((-_difference(sample, a, b), place))
            bar.advance(1)
    return [both[place] for _, place in sorted(by_difference)[:count]]


def _difference(sample: Sample, a: Side, b: Side) -> float:
    files = [ResultFolder(side.folder).result(sample) for side in (a, b)]
    if all(file.exists() for file in files):
        one, other = (read_result(file).scores for file in files)
        if one is not None and other is not None:
            return abs(one.j_and_f - other.j_and_f)
    size = frame_size(sample.video)
    overlaps = []
    for index in spread(range(len(sample.video)), SAMPLED):
        one_mask, other_mask = (side.mask(sample, index, size) for side in (a, b))
        if one_mask is not None and other_mask is not None:
            overlaps.append(region_similarity(one_mask, other_mask))
    return 1 - float(np.mean(overlaps)) if overlaps else 0.0


def write_sheet(samples: Sequence[Sample], a: Side, b: Side, path: Path, *, overwrite: bool = False) -> None:
    """Draw expressions one below the other, each with a row of frames for A, for B, and for the truth where known.

    Args:
        samples: The expressions.
        a: One side.
        b: The other.
        path: A PNG.
        overwrite: Whether it may be replaced.

    Raises:
        DataError: When a frame or a truth cannot be read.
        OutputError: When the file exists or cannot be written.
    """
    refuse_existing(path, overwrite)
    prepare_folder(path.parent)
    blocks = []
    for sample in samples:
        frames = range(len(sample.video)) if sample.ground_truth is None else sample.ground_truth.annotated
        shown = spread(frames, SHEET_FRAMES)
        columns = [_panels(sample, index, a, b) for index in shown]
        rows = list(zip(*columns, strict=True))
        names = [sample.video.frames.names[index] for index in shown]
        captions = [f"{label}, {name}" for label in _labels(sample, a, b) for name in names]
        blocks.append(lay_out([tile for row in rows for tile in row], captions, _titles(sample, a, b), len(shown)))
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
    """Draw one expression as a video: A, B and, where it is known, the truth side by side.

    Args:
        sample: The expression.
        a: One side.
        b: The other.
        path: An mp4.
        fps: Frames a second.
        overwrite: Whether it may be replaced.
        show_progress: True or False; default when standard error is a terminal.

    Raises:
        DataError: When a frame or a truth cannot be read.
        OutputError: When the file exists or cannot be written.
    """
    titles, labels = _titles(sample, a, b), _labels(sample, a, b)
    sink = OverlaySink(path, fps=fps, legend=False, overwrite=overwrite)
    try:
        with Bar("frames", len(sample.video), show_progress) as bar:
            for index, name in enumerate(sample.video.frames.names):
                tiles = _panels(sample, index, a, b, VIDEO_SIDE)
                picture = lay_out(tiles, labels, [*titles, f"frame {name}"], len(tiles))
                sink.write(Frame(index, np.asarray(picture)), _nothing(picture.height, picture.width))
                bar.advance(1)
    except BaseException:
        sink.abort()
        raise
    sink.close()


def _panels(sample: Sample, index: int, a: Side, b: Side, longest: int = FRAME_SIZE) -> list[ImageArray]:
    """One frame with A's mask, with B's, and with the truth alone where it is known."""
    frame, truth = sample.video.frames.read(index), sample.ground_truth
    size = (frame.shape[0], frame.shape[1])
    nothing = np.zeros(size, dtype=np.bool_)
    meant = nothing if truth is None or index not in truth.annotated else truth.mask(index)
    answers = [side.mask(sample, index, size) for side in (a, b)]
    panels = [draw_frame(frame, meant, nothing if answer is None else answer, longest) for answer in answers]
    return panels if truth is None else [*panels, draw_frame(frame, meant, nothing, longest)]


def _labels(sample: Sample, a: Side, b: Side) -> list[str]:
    """What stands under each panel."""
    return [a.label, b.label] if sample.ground_truth is None else [a.label, b.label, "truth"]


def _titles(sample: Sample, a: Side, b: Side) -> list[str]:
    lines = [f'"{sample.expression}" ({sample.video.id}/{sample.expression_id})']
    if sample.ground_truth is not None:
        scores = [f"{side.label} {number(side.score(sample))}" for side in (a, b)]
        lines.append(f"J&F: {', '.join(scores)} ({HOW_TO_READ})")
    return lines


def _nothing(height: int, width: int) -> Segmentation:
    """No track: everything is drawn already."""
    empty = np.zeros(0)
    return Segmentation(0, (), (), np.zeros((0, height, width), bool), empty.astype(np.float32), empty.astype(bool))
