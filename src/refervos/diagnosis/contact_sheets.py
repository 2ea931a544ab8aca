"""Pictures of the cases that a model answered worst and best, so that a person sees what the numbers mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from refervos.diagnosis.results import CaseResult
from refervos.errors import EvaluationError
from refervos.evaluation.contact_sheets import HOW_TO_READ, draw_frame, lay_out
from refervos.evaluation.predictions import png
from refervos.files.writing import write_atomically, write_error

if TYPE_CHECKING:
    from refervos.diagnosis.diagnose import AnsweredCase


class Extremes:
    """The answers with the lowest and highest J&F of each split, and no others: memory stays bounded.

    Args:
        count: How many of each.

    Example:
        >>> extremes = Extremes(3)
        >>> diagnose(model, progress=extremes.add)  # doctest: +SKIP
        >>> extremes.write(Path("sheets"))  # doctest: +SKIP
    """

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self._kept: dict[str, list[AnsweredCase]] = {}

    def add(self, answered: AnsweredCase) -> None:
        """Look at one more answer, and keep it or not."""
        kept = self._kept.setdefault(answered.result.split, [])
        kept.append(answered)
        kept.sort(key=lambda answered: (answered.result.j_and_f, answered.result.index))
        if len(kept) > 2 * self.count:
            del kept[self.count]

    def ranked(self) -> Iterator[tuple[str, AnsweredCase]]:
        """The answers kept, split by split.

        Yields:
            Such as ``worst 1`` or ``best 2``, and the answer; none comes twice.
        """
        for kept in self._kept.values():
            worst = kept[: self.count]
            best = kept[len(worst) :][::-1]
            for kind, answers in (("worst", worst), ("best", best)):
                for rank, answered in enumerate(answers, start=1):
                    yield f"{kind} {rank}", answered

    def write(self, folder: Path) -> list[Path]:
        """Draw each answer kept into a PNG named after its split and rank, such as ``late-entry-worst-1.png``.

        Args:
            folder: Created when absent; pictures of the same name are replaced.

        Returns:
            The files.

        Raises:
            EvaluationError: When they cannot be written.
        """
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for rank, answered in self.ranked():
                path = folder / f"{answered.result.split} {rank}.png".replace(" ", "-")
                write_atomically(path, png(draw_sheet(answered, rank)), error=EvaluationError)
                written.append(path)
        except OSError as error:
            raise write_error(folder, error, EvaluationError) from error
        return written


def draw_sheet(answered: AnsweredCase, rank: str = "", *, every: int = 4, columns: int = 10) -> Image.Image:
    """Draw a case: the truth with a white outline, the prediction tinted, the sentence above.

    Args:
        answered: The case.
        rank: Words for the title.
        every: Show every frame whose number this divides.
        columns: Frames in a row.

    Returns:
        An RGB picture.
    """
    case, result = answered.case, answered.result
    truth = case.clip.target_masks(case.referral)
    shown = range(0, len(truth), every)
    tiles = [draw_frame(case.clip.frames[t], truth[t], answered.masks[t]) for t in shown]
    return lay_out(tiles, [f"frame {t}" for t in shown], titles(result, rank), columns)


def titles(result: CaseResult, rank: str = "") -> list[str]:
    """What stands over a case: the sentence, its scores, and how to read the picture."""
    absent = result.frames - result.visible
    return [
        f'"{result.text}"',
        f"{result.split} {result.index}{', ' * bool(rank)}{rank}: J {100 * result.j:.1f}, F {100 * result.f:.1f}; "
        f"missed in {result.missed} of {result.visible} frames that show it, "
        f"false alarm in {result.false_alarms} of {absent} that do not ({HOW_TO_READ})",
    ]
