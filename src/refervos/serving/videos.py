"""Uploaded videos: each in a folder with a random name, within a quota, probed in a process that can be killed."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

from refervos.files.writing import write_atomically, write_error
from refervos.serving.decoding import Decoder
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem, unknown

_ID = re.compile(r"[0-9a-f]{32}")
_INFO = "video.json"


@dataclass(frozen=True)
class Video:
    """A video of the server.

    Attributes:
        id: Random identifier.
        name: Name that its user gave it.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        fps: Frames per second; None if unknown.
        frame_count: Number of frames; None if unknown.
        duration: Length in seconds; None if unknown.
        playable: Whether browsers play the file.
        pts: Times of the frames in seconds since the first; None if unknown.
        start_time: Time of the first frame in the file, in seconds.
        media_type: Type of the file's content.
    """

    id: str
    name: str
    width: int
    height: int
    fps: float | None
    frame_count: int | None
    duration: float | None
    playable: bool
    pts: list[float] | None
    start_time: float
    media_type: str


class VideoStore:
    """The videos of a server, on disk.

    Args:
        folder: Folder of the videos; created.
        limits: Limits of the server.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():  # uploads that an earlier process did not finish
            if entry.is_dir() and not (entry / _INFO).is_file():
                shutil.rmtree(entry, ignore_errors=True)

    def get(self, video: str) -> Video:
        """Return a video.

        Raises:
            Problem: There is none of that id.
        """
        try:
            if not _ID.fullmatch(video):
                raise ValueError(video)
            return Video(**json.loads((self._folder / video / _INFO).read_bytes()))
        except (OSError, ValueError, TypeError):
            raise unknown("video", video) from None

    def path(self, video: str) -> Path:
        """Return the path of a video's file.

        Raises:
            Problem: There is none of that id.
        """
        return self._folder / self.get(video).id / "file"

    def remove(self, video: str) -> None:
        """Delete a video.

        Raises:
            Problem: There is none of that id.
        """
        shutil.rmtree(self._folder / self.get(video).id, ignore_errors=True)

    async def receive(self, chunks: AsyncIterator[bytes], declared: int | None) -> Path:
        """Write an upload to disk as it arrives.

        Args:
            chunks: Its content.
            declared: Size that the client announced, if any.

        Returns:
            A new folder with the file; pass it to ``admit``.

        Raises:
            Problem: It is too large, or the server's storage is full.
        """
        if declared is not None and declared > self._limits.upload_bytes:
            raise self._too_large()
        folder = self._new_folder()
        size = 0
        used = self._used()
        try:
            with (folder / "file").open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._limits.upload_bytes:
                        raise self._too_large()
                    if used + size > self._limits.storage_bytes:
                        raise _full()
                    file.write(chunk)
            if not size:
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "video", "the upload is empty; send a video file.")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise write_error(Path("the upload"), error) from error
        except BaseException:  # also a client that goes away
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def link(self, path: Path) -> Path:
        """Make a video of a file on this machine, without copying it, and return its folder for ``admit``."""
        folder = self._new_folder()
        (folder / "file").symlink_to(path)
        return folder

    def take(self, path: Path) -> Path:
        """Make a video of a file by moving it, and return its folder for ``admit``.

        Raises:
            Problem: The server's storage is full.
        """
        if self._used() + path.stat().st_size > self._limits.storage_bytes:
            raise _full()
        folder = self._new_folder()
        shutil.move(path, folder / "file")
        return folder

    def admit(self, folder: Path, name: str) -> Video:
        """Probe a received file, and keep it if it is a video within the limits. Blocks while it is probed.

        Args:
            folder: What ``receive`` returned; removed when the file is refused.
            name: Name that its user gave it.

        Returns:
            The video.

        Raises:
            RefervosError: It is not a video, or beyond the limits.
        """
        try:
            video = self._probe(folder, name)
            write_atomically(folder / _INFO, json.dumps(asdict(video)).encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return video

    def _probe(self, folder: Path, name: str) -> Video:
        path, limits = folder / "file", self._limits
        shown = _shown(name)
        decoder = Decoder(limits)
        try:
            info = decoder.open(str(path), named=shown)
            details = decoder.times(str(path))
        finally:
            decoder.close()
        times: list[float] | None = details["times"]
        count = info.frame_count if times is None else len(times)
        duration = None if not info.fps or count is None else count / info.fps
        if times:
            duration = times[-1] + (1 / info.fps if info.fps else 0.0)
        if (duration or 0) > limits.duration or (count or 0) > limits.frames:
            sentence = (
                f"'{shown}' has {count} frames in {duration or 0:.0f} seconds; at most {limits.frames} frames and "
                f"{limits.duration:.0f} seconds are allowed."
            )
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-long", sentence)
        return Video(
            id=folder.name,
            name=shown,
            width=info.width or 0,
            height=info.height or 0,
            fps=info.fps,
            frame_count=count,
            duration=duration,
            playable=bool(details["playable"]),
            pts=times,
            start_time=details["start_time"],
            media_type=details["media_type"],
        )

    def _new_folder(self) -> Path:
        folder = self._folder / secrets.token_hex(16)
        try:
            folder.mkdir()
        except OSError as error:
            raise write_error(Path("the upload"), error) from error
        return folder

    def _used(self) -> int:
        """Return the size of all files, including those that are being received."""
        return sum(path.lstat().st_size for path in self._folder.glob("*/file"))

    def _too_large(self) -> Problem:
        sentence = f"the upload is larger than the limit of {self._limits.upload_bytes} bytes; shorten the video."
        return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", sentence)


def _full() -> Problem:
    sentence = "the server's storage is full; delete videos that are no longer needed."
    return Problem(HTTPStatus.INSUFFICIENT_STORAGE, "storage-full", sentence)


def _shown(name: str) -> str:
    """Reduce a name from outside to its last part, printable and short."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:120] or "video"
