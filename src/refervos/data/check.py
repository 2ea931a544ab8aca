"""Tells what of a data set is there, and everything that is wrong with it."""

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
from refervos.data.sentences import described, fault_of
from refervos.errors import DataError
from refervos.progress import Bar

WORKERS = 8
"""Threads that decode; Pillow and the run-length decoder leave the interpreter to others meanwhile."""


@dataclass(frozen=True)
class SplitCheck:
    """What is in a split.

    Attributes:
        split: Its name.
        videos: That are asked about.
        frames: Of these videos.
        expressions: About these videos.
        objects: That these mean, as far as the benchmark tells objects apart.
        with_target: Expressions that mean something.
        without_target: Expressions that mean nothing.
        secret: Expressions whose target is kept secret.
        invisible: Expressions with a target that no mask shows, as video and id; empty unless masks were decoded.
        problems: Sentences, each naming a file.
        notes: Sentences about what was assumed or should be looked at, likewise.
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
    """What is in a data set.

    Attributes:
        name: Of the benchmark.
        folder: Where it was looked for.
        decoded: Whether all frames and masks were decoded, not only looked for.
        splits: What was found in each split that is there.
        absent: Splits that are not there.
        unlisted: Images and folders that no split asks about, though they are beside others that it does.
    """

    name: str
    folder: str
    decoded: bool
    splits: tuple[SplitCheck, ...]
    absent: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems, each once, in the order of the splits."""
        return tuple(dict.fromkeys(problem for split in self.splits for problem in split.problems))

    @property
    def expressions(self) -> int:
        """How many expressions could be read."""
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
    """Read a data set as far as it can be read, and collect what is wrong.

    Args:
        name: Of the benchmark, such as ``mevis``.
        folder: Where it is, in its published layout.
        split: Only this one; all that are there when not given.
        decode: Decode every frame and every mask; otherwise only the annotation files are read, and images looked for.
        allow_outside: Read files that its annotations name although they are outside its folder.
        show_progress: True for a progress bar, None for one where standard error is a terminal.

    Returns:
        What was found.

    Raises:
        ConfigError: When there is no such benchmark or split.
        DataError: When no split is there.
    """
    benchmark = find_benchmark(name)
    splits = benchmark.splits_in(folder) if split is None else [split]
    if not splits:
        looked_for = ", ".join(sign.format(split=benchmark.default_split) for sign in benchmark.signs)
        raise DataError(f"{folder} holds no split of {benchmark.title}; looked for {looked_for}.")
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
        if fault := fault_of(sample.expression):
            problems.found.append(f"{dataset.name} {dataset.split}, {described(sample)}: {fault}.")
    samples, videos = dataset.samples, list(dataset.videos())
    frames = 0
    invisible: list[tuple[str, str]] = []
    bar = Bar("videos", len(videos), show_progress, description=dataset.split)
    # Video files share a decoder, which would begin anew each time another one is asked for.
    shared = any(isinstance(video.frames, VideoFileFrames) for video, _ in videos)
    with bar, ThreadPoolExecutor(1 if shared else min(WORKERS, os.cpu_count() or 1)) as pool:
        try:
            for checked in pool.map(lambda asked: _check_video(asked[0], asked[1], decode), videos):
                frames += checked.frames
                invisible += checked.invisible
                problems.found += checked.problems
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C need not wait for all videos
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
    """What was found in a video; see ``SplitCheck``."""

    frames: int
    invisible: list[tuple[str, str]]
    problems: list[str]


def _check_video(video: Video, samples: Sequence[Sample], decode: bool) -> _VideoCheck:
    problems, invisible, count = Problems(keep_going=True), [], 0
    with problems.collect():
        count = len(video)
        if decode:
            size = _decode_frames(video, problems)
            for sample, truth in _once_each(samples):
                with problems.collect():
                    if not _decode_masks(video, truth, size, problems) and sample.has_target:
                        invisible.append(sample.key)
            _decode_foreground(samples, problems)
    return _VideoCheck(count, invisible, problems.found)


def _decode_frames(video: Video, problems: Problems) -> tuple[int, int] | None:
    """Decode all frames; returns their size where one could be read."""
    size = video.size
    for index in range(len(video)):
        with problems.collect():
            height, width = video.frames.read(index).shape[:2]
            size = size or (height, width)
            if (height, width) != size:
                where = _frame_name(video, index)
                raise DataError(f"{where} is {width}x{height}, the video otherwise {size[1]}x{size[0]}.")
    return size


def _decode_masks(video: Video, truth: GroundTruth, size: tuple[int, int] | None, problems: Problems) -> bool:
    """Decode all masks of an expression; returns whether one shows anything, or could not be read."""
    shown = False
    for index in truth.annotated:
        readable = False
        with problems.collect():
            mask = truth.mask(index)
            readable = True
            if index >= len(video):
                raise DataError(f"{_place(video)} has {len(video)} frames, but there is a mask of frame {index + 1}.")
            if size is not None and mask.shape != size:
                height, width = mask.shape
                where = _frame_name(video, index)
                raise DataError(f"{where} has a mask of {width}x{height}, but is {size[1]}x{size[0]}.")
            truth.void(index)
        shown = shown or not readable or bool(mask.any())
    return shown


def _decode_foreground(samples: Iterable[Sample], problems: Problems) -> None:
    """Decode what all expressions of a video share, where a benchmark has that."""
    for truth in [sample.ground_truth for sample in samples if isinstance(sample.ground_truth, RevosGroundTruth)][:1]:
        for index in truth.annotated:
            with problems.collect():
                truth.foreground(index)


def _once_each(samples: Iterable[Sample]) -> Iterator[tuple[Sample, GroundTruth]]:
    """Samples with a truth; of those that mean the same objects, the first only."""
    seen = set()
    for sample in samples:
        if sample.ground_truth is None or sample.object_ids in seen:
            continue
        if sample.object_ids:
            seen.add(sample.object_ids)
        yield sample, sample.ground_truth


def _place(video: Video) -> Path | str:
    """Where the frames of a video are."""
    frames = video.frames
    if isinstance(frames, ImageFrames):
        return frames.folder
    return frames.path if isinstance(frames, VideoFileFrames) else video.id


def _frame_name(video: Video, index: int) -> str:
    """What to call a frame in a sentence."""
    frames = video.frames
    if isinstance(frames, ImageFrames):
        return str(frames.folder / frames.files[index])
    return f"{_place(video)}, frame {frames.names[index]},"


def _unlisted(datasets: Iterable[Dataset]) -> Iterator[str]:
    """Tell what is beside frames that are asked about, but itself is not."""
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
    known = {place for folder in listed for place in (folder, *folder.parents)}
    folders = [
        str(entry)
        for parent in dict.fromkeys(folder.parent for folder in listed)
        for entry in sorted(parent.iterdir())
        if entry.is_dir() and entry not in known
    ]
    yield from (*images, *folders)
