"""Match images and video frames to the frame numbers of a CVAT task.

CVAT numbers the frames of a task like the video or the list of images that it was created from: from ``start_frame``,
in the ``step`` of ``frame_filter``; deleted frames keep their numbers, but have no image. Images of a video are named
by their numbers, ``frame_000012.PNG``. Images of other tasks keep their names; "CVAT for images" states their numbers,
"CVAT for video" does not (``dataset_manager/bindings.py`` of https://github.com/cvat-ai/cvat).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from refervos.data.files import IMAGE_SUFFIXES, Problems
from refervos.data.frames import FileFrames, ImageFrames, VideoDecoder, VideoFileFrames
from refervos.data.records import require_size
from refervos.errors import DataError
from refervos.video.sources import natural_key

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")

_NUMBERED = re.compile(r"frame_(\d{1,12})", re.ASCII)
"""CVAT's file names for video frames."""

_ADVICE = "export it as 'CVAT for images 1.1', which states the image of each frame"


@dataclass(frozen=True)
class Task:
    """A task as described in an export.

    Attributes:
        where: Name of the task in error messages.
        id: CVAT's id, or empty.
        subset: Subset of the project, or empty.
        mode: ``interpolation`` for a video, ``annotation`` for images, or empty.
        start: Number of its first frame.
        step: Difference between consecutive frame numbers.
        length: Number of frames, including deleted ones; None when not stated.
        size: Height and width, stated only for videos.
        source: Name of the video file, or empty.
    """

    where: str
    id: str = ""
    subset: str = ""
    mode: str = ""
    start: int = 0
    step: int = 1
    length: int | None = None
    size: tuple[int, int] | None = None
    source: str = ""

    @property
    def numbers(self) -> range | None:
        """Numbers of all frames; None when the length is not stated."""
        if self.length is None:
            return None
        return range(self.start, self.start + self.step * self.length, self.step)

    @property
    def span(self) -> int:
        """Offset that CVAT adds to the frame numbers of the next task of the subset."""
        return self.start + self.step * (self.length or 0)


@dataclass(frozen=True, eq=False)
class TaskFrames:
    """The frames of a task.

    Attributes:
        frames: The frames.
        indices: Index of each frame by CVAT's number, ascending; deleted frames are left out.
    """

    frames: FileFrames
    indices: Mapping[int, int]


def read_task(element: ElementTree.Element, root: ElementTree.Element, where: str) -> Task:
    """Read the description of a task.

    Args:
        element: ``task`` or ``job``.
        root: The whole export; CVAT writes the size of a job beside its element.
        where: Name of the element in error messages.

    Returns:
        The task.

    Raises:
        DataError: When a number is malformed or the frame filter is unknown.
    """
    start = whole_number(element.findtext("start_frame") or "0", where)
    filter = (element.findtext("frame_filter") or "").strip()
    stepped = re.fullmatch(r"step\s*=\s*([1-9]\d{0,8})", filter, re.ASCII)
    if filter and not stepped:
        raise DataError(f"{where}: the frame_filter {filter[:40]!r} is unknown; it must be empty or step=N.")
    step = int(stepped[1]) if stepped else 1
    length = None
    if stop := element.findtext("stop_frame"):
        length = max(0, (whole_number(stop, where) - start) // step + 1)
    elif size := element.findtext("size"):
        length = whole_number(size, where)
    original = element.find("original_size")
    if original is None:
        original = root.find("meta/original_size")
    return Task(
        where=where,
        id=(element.findtext("id") or "").strip(),
        subset=(element.findtext("subset") or "").strip(),
        mode=(element.findtext("mode") or ("" if original is None else "interpolation")).strip(),
        start=start,
        step=step,
        length=length,
        size=None if original is None else _size(original, f"{where}, original_size"),
        source=(element.findtext("source") or "").strip(),
    )


def _size(element: ElementTree.Element, where: str) -> tuple[int, int]:
    return require_size({name: whole_number(element.findtext(name), where) for name in ("height", "width")}, where)


def list_images(folder: Path) -> list[str]:
    """List the images in a folder and its subfolders.

    Args:
        folder: The folder.

    Returns:
        Relative paths with forward slashes, unordered; hidden files and folders are ignored.
    """
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        images = (name for name in names if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES))
        found.extend((relative / name).as_posix() for name in images)
    return found


def image_frames(task: Task, folder: Path, images: Sequence[str], problems: Problems) -> TaskFrames:
    """Match images to the frame numbers of a task.

    Args:
        task: The task.
        folder: Folder that the images' paths are relative to.
        images: All images of the task, and no others.
        problems: Collects notes on assumptions.

    Returns:
        The frames.

    Raises:
        DataError: When there are no images, or the match is ambiguous.
    """
    if not images:
        raise DataError(f"{folder} contains no images; frames are {', '.join(IMAGE_SUFFIXES)} files.")
    stems: dict[str, str] = {}
    for image in sorted(images):
        other = stems.setdefault(PurePosixPath(image).stem, image)
        if other != image:
            raise DataError(f"{folder} contains both {other} and {image}; each frame of a video needs its own stem.")
    by_number = _by_name(task, folder, images, problems) or _by_order(task, folder, images, problems)
    numbers = sorted(by_number)
    files = tuple(by_number[number] for number in numbers)
    return TaskFrames(ImageFrames(folder, files), {number: index for index, number in enumerate(numbers)})


def images_by_number(images: Iterable[str]) -> dict[int, str] | None:
    """Map CVAT's frame numbers, parsed from the names, to the images; None when a name has none."""
    by_number: dict[int, str] = {}
    for image in images:
        match = _NUMBERED.fullmatch(PurePosixPath(image).stem)
        if match is None or int(match[1]) in by_number:
            return None
        by_number[int(match[1])] = image
    return by_number


def _by_name(task: Task, folder: Path, images: Sequence[str], problems: Problems) -> dict[int, str] | None:
    """Map frame numbers to images by their names; None when the names do not have the task's numbers."""
    numbered, wanted = images_by_number(images), task.numbers
    if numbered is None or task.mode == "annotation":
        return None
    unexpected = [] if wanted is None else sorted(number for number in numbered if number not in wanted)
    if unexpected and task.mode == "interpolation":
        file = folder / numbered[unexpected[0]]
        raise DataError(f"{task.where}: {file} is not a frame of the task; its frames are {_range_text(wanted)}.")
    if unexpected:
        return None
    if wanted is not None and len(numbered) < len(wanted):
        first = next(number for number in wanted if number not in numbered)
        problems.note(
            f"{task.where}: {len(wanted) - len(numbered)} of the task's {len(wanted)} frames have no image in "
            f"{folder}, the first is frame {first}; CVAT leaves out deleted frames."
        )
    return numbered


def _by_order(task: Task, folder: Path, images: Sequence[str], problems: Problems) -> dict[int, str]:
    """Map frame numbers to images in CVAT's order."""
    wanted = task.numbers
    if wanted is not None and len(wanted) != len(images):
        raise DataError(
            f"{task.where}: the task has {len(wanted)} frames, {folder} has {len(images)} images, and their names do "
            f"not state the frame numbers; {_ADVICE}."
        )
    numbers: Iterable[int] = count(task.start, task.step) if wanted is None else wanted
    natural = sorted(images, key=lambda name: (natural_key(name), name))
    if task.mode == "interpolation":  # the user's own images of a video, not named by CVAT
        return dict(zip(numbers, natural, strict=False))
    alphabetical = sorted(images)
    if alphabetical != natural:
        first = next(position for position, name in enumerate(natural) if alphabetical[position] != name)
        problems.note(
            f"{task.where}: the images in {folder} were taken in CVAT's default order, alphabetically, in which "
            f"{alphabetical[first]} comes before {natural[first]}; if the task was created in another order, {_ADVICE}."
        )
    return dict(zip(numbers, alphabetical, strict=False))


def video_frames(task: Task, file: Path, decoder: VideoDecoder, shift: int, problems: Problems) -> TaskFrames:
    """Match the frames of a video file to the frame numbers of a task.

    Args:
        task: The task.
        file: The whole video that it was created from.
        decoder: Decoder of the data set.
        shift: Offset of the task's frame numbers in the export.
        problems: Collects a note when the video is shorter than the task.

    Returns:
        The frames.

    Raises:
        DataError: When the video cannot be read.
    """
    frames = VideoFileFrames(file, decoder)
    length = len(frames.names)
    wanted = range(task.start, length, task.step) if task.numbers is None else task.numbers
    if wanted and wanted[-1] >= length:
        problems.note(f"{task.where}: the task ends at frame {wanted[-1]}, but {file} ends at frame {length - 1}.")
    present = range(wanted.start, min(wanted.stop, length), wanted.step)
    return TaskFrames(frames, {number + shift: number for number in present})


def video_file(folder: Path, source: str, *, sure: bool = True) -> Path:
    """Find the video beside an export.

    Args:
        folder: Folder of the export.
        source: Name of the video in the export, or empty.
        sure: Whether to accept the only video under any name.

    Returns:
        The file of that name, or the only video.

    Raises:
        DataError: When neither exists.
    """
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    named = [path for path in videos if path.name == source]
    if named or (sure and len(videos) == 1):
        return (named or videos)[0]
    raise DataError(
        f"{folder} must contain the frames, in a folder 'images' or one video file; it has {len(videos)} video files"
        f"{f', none named {source}' if videos and source else ''}."
    )


def whole_number(text: str | None, where: str) -> int:
    """Parse a number in an export.

    Args:
        text: Text of the element or attribute; None when it is missing.
        where: Name of the element in error messages.

    Returns:
        The number, not negative.

    Raises:
        DataError: When it is not a whole number of at most twelve digits.
    """
    if text is None or not re.fullmatch(r"\s*\d{1,12}\s*", text, re.ASCII):
        raise DataError(f"{where}: {text!r} is not a whole number.")
    return int(text)


def _range_text(numbers: range | None) -> str:
    if not numbers:
        return "none"
    return f"{numbers[0]} to {numbers[-1]}{f' in steps of {numbers.step}' if numbers.step > 1 else ''}"
