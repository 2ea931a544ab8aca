"""Masks of a recording in a temporary file, so that memory does not grow with the recording."""

from __future__ import annotations

import tempfile
import zlib
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from refervos.errors import OutputError


class Answer(NamedTuple):
    """Prediction for one prompt in one frame: its mask, bool (H, W), and its presence in [0, 1]."""

    mask: npt.NDArray[np.bool_]
    presence: float


class _Entry(NamedTuple):
    """An answer in the file: offset and length of the compressed mask in bytes, its shape, and the presence."""

    offset: int
    length: int
    shape: tuple[int, ...]
    presence: float


class AnswerFile:
    """Answers by frame and prompt. Masks are compressed in a temporary file, deleted on leaving the context; memory
    holds a few numbers for each answer.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="refervos-")  # noqa: SIM115 (closed by __exit__)
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._end = 0

    def write(self, frame: int, row: int, answer: Answer) -> None:
        """Store the answer for one prompt in one frame, in place of an earlier one.

        Raises:
            OutputError: When the temporary folder has no space left.
        """
        packed = zlib.compress(np.packbits(answer.mask).tobytes(), 1)
        try:
            self._file.seek(self._end)
            self._file.write(packed)
        except OSError as error:
            raise OutputError(
                f"masks cannot be kept in '{tempfile.gettempdir()}' ({error.strerror}); free some space there, or "
                "set TMPDIR to another folder."
            ) from error
        self._entries[frame, row] = _Entry(self._end, len(packed), answer.mask.shape, answer.presence)
        self._end += len(packed)

    def read(self, frame: int, row: int) -> Answer:
        """Return the answer for one prompt in one frame; KeyError when there is none."""
        offset, length, shape, presence = self._entries[frame, row]
        self._file.seek(offset)
        bits = np.frombuffer(zlib.decompress(self._file.read(length)), dtype=np.uint8)
        mask = np.unpackbits(bits, count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
        return Answer(mask, presence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
