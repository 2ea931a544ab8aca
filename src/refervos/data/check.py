"""Check a data set: count its contents and list every problem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from refervos.data.catalogue import find_benchmark, open_dataset
from refervos.data.files import IMAGE_SUFFIXES, Problems
from refervos.data.frames import ImageFrames, VideoFileFrames
from refervos.data.layouts.revos import RevosGroundTruth
from refervos.data.sample import Dataset, GroundTruth, Sample, Video
from refervos.data.sentences import describe_expression, expression_fault
from refervos.errors import DataError
from refervos.progress import Bar

WORKERS = 8
"""Number of decoding threads; Pillow and the run-length decoder release the interpreter lock."""


@dataclass(frozen=True)
class SplitCheck:
    """Contents and problems of a split.

    Attributes:
        split: Its name.
        videos: Number of videos with expressions.
        frames: Number of frames of these videos.
        expressions: Number of expressions.
        objects: Number of target objects, in benchmarks that distinguish objects.
        with_target: Number of expressions with a target.
        without_target: Number of expressions without a target.
        secret: Number of expressions whose target is secret.
        invisible: Expressions with a target that no mask shows, as video and expression id; empty unless masks were
            decoded.
        problems: Problems, each one sentence that names a file.
        notes: Assumptions that deserve a check, likewise.
    """

    split: str
    videos: int = 0
    frames: int = 0
    expressions: int = 0
    objects: int = 0
    with_target: int = 0
    without_target: int = 0
    secret: int = 0
    invisible: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetCheck:
    """Contents and problems of a data set.

    Attributes:
        name: Name of the benchmark.
        folder: Its folder.
        decoded: Whether all frames and masks were decoded; otherwise only their files were looked up.
        splits: Result for each split that is present.
        absent: Splits that are missing.
        unlisted: Images and folders that no split lists, beside others that are listed.
    """

    name: str
    folder: str
    decoded: bool
    splits: tuple[SplitCheck, ...]
    absent: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """All distinct problems, in the order of the splits."""
        return tuple(dict.fromkeys(problem for split in self.splits for problem in split.problems))

    @property
    def expressions(self) -> int:
        """Number of readable expressions."""
        return sum(split.expressions for split in self.splits)


def check_dataset(
    name: str,
    folder: Path,
    split: str | None = None,
    *,
    decode: bool = True,
    allow_outside: bool = False,
    show_progress: bool | None = False,
) -> DatasetCheck:
    """Read as much of a data set as possible and collect all problems.

    Args:
        name: Name of the benchmark, such as ``mevis``.
        folder: Its folder, in the published layout.
        split: The only split to check; all present splits when not given.
        decode: Decode every frame and every mask; otherwise annotations are read and image files only looked up.
        allow_outside: Allow annotations to name files outside its folder.
        show_progress: True for a progress bar, None for one when standard error is a terminal.

    Returns:
        Contents and problems.

    Raises:
        ConfigError: When the benchmark or the split is unknown.
        DataError: When no split is present.
    """
    benchmark = find_benchmark(name)
    splits = benchmark.splits_in(folder) if split is None else [split]
    if not splits:
        expected = ", ".join(path.format(split=benchmark.default_split) for path in benchmark.split_paths)
        raise DataError(f"{folder} contains no split of {benchmark.title}; expected {expected}.")
    checks, datasets = [], []
    for part in splits:
        problems = Problems(keep_going=True, allow_outside=allow_outside)
        dataset = Dataset(name, part, ())
        with problems.collect():
            dataset = open_dataset(name, folder, part, problems=problems)
        datasets.append(dataset)
        checks.append(_check_split(dataset, problems, decode, show_progress))
    absent = () if split or benchmark.more_splits else tuple(part for part in benchmark.splits if part not in splits)
    return DatasetCheck(name, str(folder), decode, tuple(checks), absent, tuple(_unlisted(datasets)))


def _check_split(dataset: Dataset, problems: Problems, decode: bool, show_progress: bool | None) -> SplitCheck:
    for sample in dataset.samples:
        if fault := expression_fault(sample.expression):
            problems.found.append(f"{dataset.name} {dataset.split}, {describe_expression(sample)}: {fault}.")
    samples, videos = dataset.samples, list(dataset.videos())
    frames = 0
    invisible: list[tuple[str, str]] = []
    bar = Bar("videos", len(videos), show_progress, description=dataset.split)
    # Video files share a decoder, which starts over whenever another file is requested.
    shared = any(isinstance(video.frames, VideoFileFrames) for video, _ in videos)
    with bar, ThreadPoolExecutor(1 if shared else min(WORKERS, os.cpu_count() or 1)) as pool:
        try:
            for checked in pool.map(lambda entry: _check_video(entry[0], entry[1], decode), videos):
                frames += checked.frames
                invisible += checked.invisible
                problems.found += checked.problems
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for all videos
            raise
    return SplitCheck(
        dataset.split,
        videos=len(videos),
        frames=frames,
        expressions=len(samples),
        objects=len({(sample.video.id, id) for sample in samples for id in sample.object_ids}),
        with_target=sum(sample.has_target is True for sample in samples),
        without_target=sum(sample.has_target is False for sample in samples),
        secret=sum(sample.has_target is None for sample in samples),
        invisible=tuple(invisible),
        problems=tuple(dict.fromkeys(problems.found)),
        notes=tuple(dict.fromkeys(problems.notes)),
    )


@dataclass(frozen=True)
class _VideoCheck:
    """Result for a video; see ``SplitCheck``."""

    frames: int
    invisible: list[tuple[str, str]]
    problems: list[str]


def _check_video(video: Video, samples: Sequence[Sample], decode: bool) -> _VideoCheck:
    problems, invisible, count = Problems(keep_going=True), [], 0
    with problems.collect():
        count = len(video)
        if decode:
            size = _decode_frames(video, problems)
            for sample, ground_truth in _distinct_targets(samples):
                with problems.collect():
                    if not _decode_masks(video, ground_truth, size, problems) and sample.has_target:
                        invisible.append(sample.key)
            _decode_foreground(samples, problems)
    return _VideoCheck(count, invisible, problems.found)


def _decode_frames(video: Video, problems: Problems) -> tuple[int, int] | None:
    """Decode all frames and return their size, or None when none is readable."""
    size = video.size
    for index in range(len(video)):
        with problems.collect():
            height, width = video.frames.read(index).shape[:2]
            size = size or (height, width)
            if (height, width) != size:
                where = _frame_name(video, index)
                raise DataError(f"{where} is {width}x{height}, other frames of the video are {size[1]}x{size[0]}.")
    return size


def _decode_masks(video: Video, ground_truth: GroundTruth, size: tuple[int, int] | None, problems: Problems) -> bool:
    """Decode all masks of an expression and return whether one is non-empty or unreadable."""
    shown = False
    for index in ground_truth.annotated:
        readable = False
        with problems.collect():
            mask = ground_truth.mask(index)
            readable = True
            if index >= len(video):
                raise DataError(f"{_location(video)} has {len(video)} frames, but a mask is for frame {index + 1}.")
            if size is not None and mask.shape != size:
                height, width = mask.shape
                where = _frame_name(video, index)
                raise DataError(f"{where} is {size[1]}x{size[0]}, but its mask is {width}x{height}.")
            ground_truth.void(index)
        shown = shown or not readable or bool(mask.any())
    return shown


def _decode_foreground(samples: Iterable[Sample], problems: Problems) -> None:
    """Decode the foreground that all expressions of a ReVOS video share."""
    for shared in [sample.ground_truth for sample in samples if isinstance(sample.ground_truth, RevosGroundTruth)][:1]:
        for index in shared.annotated:
            with problems.collect():
                shared.foreground(index)


def _distinct_targets(samples: Iterable[Sample]) -> Iterator[tuple[Sample, GroundTruth]]:
    """Yield the samples with ground truth, only the first of those with the same target objects."""
    seen = set()
    for sample in samples:
        if sample.ground_truth is None or sample.object_ids in seen:
            continue
        if sample.object_ids:
            seen.add(sample.object_ids)
        yield sample, sample.ground_truth


def _location(video: Video) -> Path | str:
    """Return the folder or file of a video's frames."""
    frames = video.frames
    if isinstance(frames, ImageFrames):
        return frames.folder
    return frames.path if isinstance(frames, VideoFileFrames) else video.id


def _frame_name(video: Video, index: int) -> str:
    """Name a frame in an error message."""
    frames = video.frames
    if isinstance(frames, ImageFrames):
        return str(frames.folder / frames.files[index])
    return f"{_location(video)}, frame {frames.names[index]},"


def _unlisted(datasets: Iterable[Dataset]) -> Iterator[str]:
    """List the images and folders beside listed frames that are not listed themselves."""
    listed: dict[Path, set[str]] = {}
    for dataset in datasets:
        for video, _ in dataset.videos():
            if isinstance(video.frames, ImageFrames) and len(video.frames.files) > 1:
                listed.setdefault(video.frames.folder, set()).update(video.frames.files)
    images = [
        str(folder / name)
        for folder, files in listed.items()
        for name in sorted(os.listdir(folder))
        if name not in files and name.lower().endswith(IMAGE_SUFFIXES)
    ]
    known = {path for folder in listed for path in (folder, *folder.parents)}
    folders = [
        str(entry)
        for parent in dict.fromkeys(folder.parent for folder in listed)
        for entry in sorted(parent.iterdir())
        if entry.is_dir() and entry not in known
    ]
    yield from (*images, *folders)
