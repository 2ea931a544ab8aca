"""The recorded pictures of a live session, one JPEG a frame, so that its masks can be exported with their pictures."""

from __future__ import annotations

import logging
from http import HTTPStatus
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.files.images import ImageArray
from refervos.files.writing import write_atomically
from refervos.serving.problems import Problem
from refervos.serving.wire import encode_jpeg

_LOG = logging.getLogger(__name__)
_QUALITY = 92


class Recording:
    """Pictures by frame, in files ``<frame>.jpg``.

    Args:
        folder: Folder of the pictures; created with the first one.
        limit: Bytes of all pictures together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._sizes = {int(path.stem): path.stat().st_size for path in folder.glob("*.jpg") if path.stem.isdigit()}
        self._used = sum(self._sizes.values())

    @property
    def frames(self) -> list[int]:
        """Indices of the recorded frames, ascending."""
        return sorted(self._sizes)

    def add(self, frame: int, image: ImageArray) -> None:
        """Record the picture of a frame.

        Args:
            frame: Index of the frame.
            image: uint8 RGB (H, W, 3).

        Raises:
            Problem: There is no room left.
            OutputError: The file cannot be written.
        """
        content = encode_jpeg(image, max(image.shape[:2]), _QUALITY)
        if self._used + len(content) > self._limit:
            sentence = f"the recorded pictures have reached the limit of {self._limit} bytes; recording has stopped."
            raise Problem(HTTPStatus.INSUFFICIENT_STORAGE, "recording-full", sentence)
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._path(frame), content)
        self._used += len(content) - self._sizes.get(frame, 0)
        self._sizes[frame] = len(content)

    def read(self, frame: int) -> ImageArray | None:
        """Return the picture of a frame as uint8 RGB (H, W, 3); None if it was not recorded."""
        if frame not in self._sizes:
            return None
        try:
            with Image.open(self._path(frame), formats=["JPEG"]) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, ValueError):
            _LOG.warning("the recorded picture of frame %d cannot be read", frame)
            return None

    def _path(self, frame: int) -> Path:
        return self._folder / f"{frame}.jpg"
