"""Which picture is which frame of a CVAT task.

CVAT numbers the frames of a task as the video or the list of pictures that it was made of: from ``start_frame`` on, by
the ``step`` of ``frame_filter``; frames that were deleted keep their numbers, but have no picture. Pictures of a video
are named after their numbers, ``frame_000012.PNG``. Those of other tasks keep their own names, of which "CVAT for
images" tells the numbers and "CVAT for video" does not (``dataset_manager/bindings.py`` of https://github.com/cvat-ai/cvat).
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
from refervos.data.records import take_size
from refervos.errors import DataError
from refervos.video.sources import natural_key

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")

_NUMBERED = re.compile(r"frame_(\d{1,12})", re.ASCII)
"""What CVAT calls the frames of a video."""

_ADVICE = "export it as 'CVAT for images 1.1', which names the picture of each frame"


@dataclass(frozen=True)
class Task:
    """What an export tells of a task.

    Attributes:
        where: What to call it in an error.
        id: As CVAT numbers it, or empty.
        subset: Of a project; empty where it is not told.
        mode: ``interpolation`` for a video, ``annotation`` for pictures; empty where it is not told.
        start: Number of its first frame.
        step: How many numbers further the next one is.
        length: How many frames it has, deleted ones too; None where it is not told.
        size: Height and width, told of videos only.
        source: Name of the video file; empty where it is not told.
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
        """Numbers of all frames; None where it is not told how many there are."""
        if self.length is None:
            return None
        return range(self.start, self.start + self.step * self.length, self.step)

    @property
    def span(self) -> int:
        """By how much CVAT raises the numbers of the next task of the same subset of a project."""
        return self.start + self.step * (self.length or 0)


@dataclass(frozen=True, eq=False)
class TaskFrames:
    """The frames of a task.

    Attributes:
        frames: Where they are read.
        indices: Their indices among these by CVAT's number, ascending; deleted frames are left out.
    """

    frames: FileFrames
    indices: Mapping[int, int]


def read_task(element: ElementTree.Element, root: ElementTree.Element, where: str) -> Task:
    """Read what an export tells of a task.

    Args:
        element: ``task`` or ``job``.
        root: The whole export; of jobs, CVAT writes the size beside them.
        where: What to call the element in an error.

    Returns:
        The task.

    Raises:
        DataError: When a number is none, or frames were chosen in a way that is not known.
    """
    start = whole(element.findtext("start_frame") or "0", where)
    chosen = (element.findtext("frame_filter") or "").strip()
    stepped = re.fullmatch(r"step\s*=\s*([1-9]\d{0,8})", chosen, re.ASCII)
    if chosen and not stepped:
        raise DataError(f"{where}: the frame_filter {chosen[:40]!r} is unknown; it should be empty or step=N.")
    step = int(stepped[1]) if stepped else 1
    length = None
    if stop := element.findtext("stop_frame"):
        length = max(0, (whole(stop, where) - start) // step + 1)
    elif size := element.findtext("size"):
        length = whole(size, where)
    told = element.find("original_size")
    if told is None:
        told = root.find("meta/original_size")
    return Task(
        where=where,
        id=(element.findtext("id") or "").strip(),
        subset=(element.findtext("subset") or "").strip(),
        mode=(element.findtext("mode") or ("" if told is None else "interpolation")).strip(),
        start=start,
        step=step,
        length=length,
        size=None if told is None else _size(told, f"{where}, original_size"),
        source=(element.findtext("source") or "").strip(),
    )


def _size(told: ElementTree.Element, where: str) -> tuple[int, int]:
    return take_size({name: whole(told.findtext(name), where) for name in ("height", "width")}, where)


def pictures_in(folder: Path) -> list[str]:
    """List the pictures in a folder and the folders in it.

    Args:
        folder: Where to look.

    Returns:
        Their paths from there with forward slashes, in no particular order; hidden ones are passed over.
    """
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(place).relative_to(folder)
        pictures = (name for name in names if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES))
        found.extend((within / name).as_posix() for name in pictures)
    return found


def task_pictures(task: Task, folder: Path, pictures: Sequence[str], problems: Problems) -> TaskFrames:
    """Tell which picture is which frame of a task.

    Args:
        task: The task.
        folder: What the pictures' paths are relative to.
        pictures: All of the task, and no others.
        problems: Told what cannot be known for certain.

    Returns:
        The frames.

    Raises:
        DataError: When there are none, or it cannot be told which is which.
    """
    if not pictures:
        raise DataError(f"{folder} holds no images; frames are {', '.join(IMAGE_SUFFIXES)} files.")
    stems: dict[str, str] = {}
    for picture in sorted(pictures):
        other = stems.setdefault(PurePosixPath(picture).stem, picture)
        if other != picture:
            raise DataError(f"{folder} holds both {other} and {picture}; each frame of a video needs its own stem.")
    by_number = _by_name(task, folder, pictures, problems) or _by_order(task, folder, pictures, problems)
    numbers = sorted(by_number)
    files = tuple(by_number[number] for number in numbers)
    return TaskFrames(ImageFrames(folder, files), {number: index for index, number in enumerate(numbers)})


def numbers_in_names(pictures: Iterable[str]) -> dict[int, str] | None:
    """Pictures by the number that their name tells, as CVAT names the frames of a video; None where one does not."""
    by_number: dict[int, str] = {}
    for picture in pictures:
        told = _NUMBERED.fullmatch(PurePosixPath(picture).stem)
        if told is None or int(told[1]) in by_number:
            return None
        by_number[int(told[1])] = picture
    return by_number


def _by_name(task: Task, folder: Path, pictures: Sequence[str], problems: Problems) -> dict[int, str] | None:
    """Pictures by the numbers in their names; None where these are not the task's numbers."""
    named, wanted = numbers_in_names(pictures), task.numbers
    if named is None or task.mode == "annotation":
        return None
    strange = [] if wanted is None else sorted(number for number in named if number not in wanted)
    if strange and task.mode == "interpolation":
        raise DataError(
            f"{task.where}: {folder / named[strange[0]]} is none of the task's frames, which are {_told(wanted)}."
        )
    if strange:
        return None
    if wanted is not None and len(named) < len(wanted):
        first = next(number for number in wanted if number not in named)
        problems.note(
            f"{task.where}: {len(wanted) - len(named)} of the task's {len(wanted)} frames have no picture in {folder}, "
            f"the first of them frame {first}; CVAT leaves out those that were deleted."
        )
    return named


def _by_order(task: Task, folder: Path, pictures: Sequence[str], problems: Problems) -> dict[int, str]:
    """Pictures in the order in which CVAT takes them."""
    wanted = task.numbers
    if wanted is not None and len(wanted) != len(pictures):
        raise DataError(
            f"{task.where}: the task has {len(wanted)} frames, {folder} has {len(pictures)} pictures, and their names "
            f"do not tell which frames these are; {_ADVICE}."
        )
    numbers: Iterable[int] = count(task.start, task.step) if wanted is None else wanted
    natural = sorted(pictures, key=lambda name: (natural_key(name), name))
    if task.mode == "interpolation":  # somebody's own pictures of a video, which CVAT did not name
        return dict(zip(numbers, natural, strict=False))
    alphabetical = sorted(pictures)
    if alphabetical != natural:
        place = next(place for place, name in enumerate(natural) if alphabetical[place] != name)
        problems.note(
            f"{task.where}: the pictures in {folder} were taken in CVAT's usual order, by letters, in which "
            f"{alphabetical[place]} comes before {natural[place]}; if the task was made in another order, {_ADVICE}."
        )
    return dict(zip(numbers, alphabetical, strict=False))


def task_video(task: Task, file: Path, decoder: VideoDecoder, shift: int, problems: Problems) -> TaskFrames:
    """Tell which frame of a video file is which frame of a task.

    Args:
        task: The task.
        file: The whole video that it was made of.
        decoder: What reads it.
        shift: By how much the task's numbers were raised.
        problems: Told where the video is shorter than the task.

    Returns:
        The frames.

    Raises:
        DataError: When the video cannot be read.
    """
    frames = VideoFileFrames(file, decoder)
    length = len(frames.names)
    wanted = range(task.start, length, task.step) if task.numbers is None else task.numbers
    if wanted and wanted[-1] >= length:
        problems.note(f"{task.where}: the task goes to frame {wanted[-1]}, {file} has {length} frames, from 0 on.")
    there = range(wanted.start, min(wanted.stop, length), wanted.step)
    return TaskFrames(frames, {number + shift: number for number in there})


def video_file(folder: Path, source: str, *, sure: bool = True) -> Path:
    """Find the video beside an export.

    Args:
        folder: Where the export is.
        source: What the export calls the video, or empty.
        sure: Whether a single video must be the one, whatever it is called.

    Returns:
        The file of that name, or the only one there is.

    Raises:
        DataError: When there is neither.
    """
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    named = [path for path in videos if path.name == source]
    if named or (sure and len(videos) == 1):
        return (named or videos)[0]
    raise DataError(
        f"{folder} must hold the frames: a folder 'images', or one video file; it has {len(videos)}"
        f"{f', none of them named {source}' if videos and source else ''}."
    )


def whole(text: str | None, where: str) -> int:
    """Read a number that an export tells.

    Args:
        text: What it tells.
        where: What to call it in an error.

    Returns:
        The number, not negative.

    Raises:
        DataError: When it is no whole number, or one of more than twelve digits.
    """
    if text is None or not re.fullmatch(r"\s*\d{1,12}\s*", text, re.ASCII):
        raise DataError(f"{where}: {text!r} should be a whole number.")
    return int(text)


def _told(numbers: range | None) -> str:
    if not numbers:
        return "none"
    return f"{numbers[0]} to {numbers[-1]}{f', every {numbers.step}th' if numbers.step > 1 else ''}"
