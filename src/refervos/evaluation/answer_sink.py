"""Sink that collects the masks of an answer's phrases and writes ``answer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refervos.errors import OutputError
from refervos.evaluation.grounded_answers import AnsweredPhrase, GroundedAnswer, RunLengths, run_lengths, write_answer
from refervos.files.writing import prepare_folder, refuse_existing
from refervos.segmentation import Segmentation
from refervos.video import Frame
from refervos.video.closing import Closing
from refervos.video.tracks import FrameNames, check_fit


class AnswerSink(Closing):
    """Sink for an answer with the masks of its phrases, which are the tracks in order.

    Args:
        path: The file to write, ``answer.json``; parent folders are created.
        question: The question.
        text: The answer without markup.
        phrases: Start and end of each phrase in the text.
        model: Name of the model.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputError: When the file exists or is not writable.
    """

    def __init__(
        self,
        path: Path,
        question: str,
        text: str,
        phrases: Sequence[tuple[int, int]],
        *,
        model: str | None = None,
        overwrite: bool = False,
    ) -> None:
        refuse_existing(path, overwrite)
        prepare_folder(path.parent)
        self._path, self._question, self._text, self._model = path, question, text, model
        self._phrases = list(phrases)
        self._unique, self._names = FrameNames(), list[str]()
        self._size: tuple[int, int] | None = None
        self._masks: list[list[RunLengths | None]] = [[] for _ in self._phrases]
        self._written: list[Path] | None = None

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Add the masks of one frame.

        Args:
            frame: Frame of the source.
            segmentation: One track for each phrase.

        Raises:
            OutputError: When the frame has another size than the first.
            VideoError: When the masks do not fit the frame.
        """
        check_fit(frame, segmentation)
        height, width = frame.image.shape[:2]
        if self._size not in (None, (height, width)):
            raise OutputError(f"'{self._path}' has masks of one size, but the frames differ in size; use masks.jsonl.")
        self._size = height, width
        self._names.append(self._unique.of(frame))
        for track, mask in zip(self._masks, segmentation.masks, strict=True):
            track.append(run_lengths(mask))

    def close(self) -> list[Path]:
        """Write the file; safe to call twice.

        Returns:
            Its path; empty if no frame was written.
        """
        if self._written is None:
            self._written = []
            if self._size is not None:
                phrases = tuple(
                    AnsweredPhrase(self._text[start:end], start, end, tuple(masks))
                    for (start, end), masks in zip(self._phrases, self._masks, strict=True)
                )
                answer = GroundedAnswer(
                    self._question, self._text, self._size, tuple(self._names), phrases, self._model
                )
                write_answer(self._path, answer)
                self._written = [self._path]
        return self._written

    def abort(self) -> None:
        """Write nothing."""
        self._written = self._written or []
