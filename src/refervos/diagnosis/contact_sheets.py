"""Contact sheets of the cases with the lowest and highest scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from refervos.diagnosis.results import CaseResult
from refervos.errors import EvaluationError
from refervos.evaluation.contact_sheets import LEGEND, draw_frame, lay_out
from refervos.evaluation.predictions import png
from refervos.files.writing import write_atomically, write_error

if TYPE_CHECKING:
    from refervos.diagnosis.diagnose import ScoredCase


class Extremes:
    """The cases with the lowest and highest J&F of each split; the others are dropped, so memory is bounded.

    Args:
        count: Number of cases of each kind.

    Example:
        >>> extremes = Extremes(3)
        >>> diagnose(model, progress=extremes.add)  # doctest: +SKIP
        >>> extremes.write(Path("sheets"))  # doctest: +SKIP
    """

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self._kept: dict[str, list[ScoredCase]] = {}

    def add(self, scored: ScoredCase) -> None:
        """Keep a case if it is among the lowest or highest so far."""
        kept = self._kept.setdefault(scored.result.split, [])
        kept.append(scored)
        kept.sort(key=lambda case: (case.result.j_and_f, case.result.index))
        if len(kept) > 2 * self.count:
            del kept[self.count]

    def ranked(self) -> Iterator[tuple[str, ScoredCase]]:
        """Iterate over the kept cases, split by split.

        Yields:
            The rank, such as ``worst 1`` or ``best 2``, and the case; each case once.
        """
        for kept in self._kept.values():
            worst = kept[: self.count]
            best = kept[len(worst) :][::-1]
            for kind, cases in (("worst", worst), ("best", best)):
                for rank, scored in enumerate(cases, start=1):
                    yield f"{kind} {rank}", scored

    def write(self, folder: Path) -> list[Path]:
        """Draw each kept case into a PNG named after its split and rank, such as ``late-entry-worst-1.png``.

        Args:
            folder: Folder to write to; created if missing. Images of the same name are replaced.

        Returns:
            Paths of the images.

        Raises:
            EvaluationError: When an image cannot be written.
        """
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for rank, scored in self.ranked():
                path = folder / f"{scored.result.split} {rank}.png".replace(" ", "-")
                write_atomically(path, png(draw_sheet(scored, rank)), error=EvaluationError)
                written.append(path)
        except OSError as error:
            raise write_error(folder, error, EvaluationError) from error
        return written


def draw_sheet(scored: ScoredCase, rank: str = "", *, every: int = 4, columns: int = 10) -> Image.Image:
    """Draw a case: the ground truth outlined in white, the prediction tinted, the expression above.

    Args:
        scored: The case.
        rank: Rank for the title.
        every: Interval of the shown frames.
        columns: Frames per row.

    Returns:
        An RGB image.
    """
    case, result = scored.case, scored.result
    ground_truth = case.clip.target_masks(case.expression)
    shown = range(0, len(ground_truth), every)
    tiles = [draw_frame(case.clip.frames[t], ground_truth[t], scored.masks[t]) for t in shown]
    return lay_out(tiles, [f"frame {t}" for t in shown], titles(result, rank), columns)


def titles(result: CaseResult, rank: str = "") -> list[str]:
    """Return the lines above a case: the expression, its scores and the legend."""
    absent = result.frames - result.visible
    return [
        f'"{result.text}"',
        f"{result.split} {result.index}{', ' * bool(rank)}{rank}: J {100 * result.j:.1f}, F {100 * result.f:.1f}; "
        f"missed in {result.missed} of {result.visible} frames that show it, "
        f"false alarm in {result.false_alarms} of {absent} that do not ({LEGEND})",
    ]
