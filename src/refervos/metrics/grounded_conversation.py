"""Metrics of grounded conversation generation (GCG): segmentation of the phrases of a text in a video.

Munasinghe et al. 2024 (VideoGLaMM, arXiv 2411.04923); `eval_gcg_metrics.py` of mbzuai-oryx/VideoGLaMM. A text has
G ground-truth phrases and P predicted phrases, each with a volume of masks (T, H, W); IoU(i, j) is that of two volumes.

- Published mIoU (``published_miou``): pairs are taken greedily by IoU, and the mean is over those pairs alone, so
  that unmatched phrases cost nothing: with ground truth {A, B} and prediction {A} it is 1.
- Set mIoU (``set_miou``, ours): the best one-to-one matching m maximises the sum of IoU, and

      set mIoU = sum over (i, j) in m of IoU(i, j) / max(G, P)

  so that each missing and each surplus phrase counts as 0. In the same example it is 0.5. One minus it is the OSPA
  distance of order 1 with cut-off 1 (Schuhmacher et al. 2008), a metric on sets, over the distance 1 - IoU.

Both score one generated answer; reports average over answers. Indices are in the order (ground truth, prediction).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError, MissingDependencyError

Volume = npt.NDArray[np.bool_]
"""The masks of one phrase, bool (T, H, W)."""

Matrix = npt.NDArray[np.float64]
"""A number for each pair, float64 (G, P): rows are ground-truth phrases, columns are predicted ones."""

Pairs = list[tuple[int, int]]
"""Matched phrases, each as (ground truth, prediction)."""

THRESHOLD = 0.5
"""Minimum IoU and text similarity of a found phrase."""


class IouCounter:
    """Pixel counts of volumes, added frame by frame, so that no whole volume has to be in memory.

    Args:
        ground_truth: Number of ground-truth phrases G.
        predicted: Number of predicted phrases P.
    """

    def __init__(self, ground_truth: int, predicted: int) -> None:
        self._intersections = np.zeros((ground_truth, predicted), dtype=np.int64)
        self._ground_truth = np.zeros(ground_truth, dtype=np.int64)
        self._predicted = np.zeros(predicted, dtype=np.int64)

    def add(self, ground_truth: Sequence[npt.NDArray[np.bool_]], predicted: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Add the masks of one frame.

        Args:
            ground_truth: G masks, bool (H, W).
            predicted: P masks, bool (H, W).

        Raises:
            EvaluationError: When the numbers of masks and phrases differ, or masks are not bool or differ in size.
        """
        masks = [*ground_truth, *predicted]
        if len(ground_truth) != len(self._ground_truth) or len(predicted) != len(self._predicted):
            raise EvaluationError(
                f"a frame has {len(ground_truth)} and {len(predicted)} masks for {len(self._ground_truth)} "
                f"ground-truth and {len(self._predicted)} predicted phrases; each phrase needs one."
            )
        if any(mask.dtype != np.bool_ or mask.shape != masks[0].shape for mask in masks):
            found = ", ".join(sorted({f"{mask.dtype} {mask.shape}" for mask in masks}))
            raise EvaluationError(f"the masks of a frame are {found}; all must be bool and have one size.")
        self._ground_truth += np.array([np.count_nonzero(mask) for mask in ground_truth], dtype=np.int64)
        self._predicted += np.array([np.count_nonzero(mask) for mask in predicted], dtype=np.int64)
        for i, one in enumerate(ground_truth):
            for j, other in enumerate(predicted):
                self._intersections[i, j] += np.count_nonzero(one & other)

    def iou(self) -> Matrix:
        """Return the IoU of each pair of volumes, float64 (G, P); NaN where both volumes are empty."""
        unions = self._ground_truth[:, None] + self._predicted[None, :] - self._intersections
        with np.errstate(invalid="ignore"):
            return self._intersections / unions


def iou_matrix(ground_truth: Sequence[Volume], predicted: Sequence[Volume]) -> Matrix:
    """Return the IoU of each pair of volumes.

    Args:
        ground_truth: G volumes, bool (T, H, W).
        predicted: P volumes, bool (T, H, W).

    Returns:
        float64 (G, P) in [0, 1]; NaN where both volumes are empty.

    Raises:
        EvaluationError: When the volumes are not bool or differ in shape.
    """
    volumes = [*ground_truth, *predicted]
    if any(volume.shape != volumes[0].shape or volume.ndim != 3 for volume in volumes):
        found = ", ".join(sorted({str(volume.shape) for volume in volumes}))
        raise EvaluationError(f"the volumes have shapes {found}; all must have the same shape (T, H, W).")
    counter = IouCounter(len(ground_truth), len(predicted))
    for index in range(len(volumes[0]) if volumes else 0):
        counter.add([volume[index] for volume in ground_truth], [volume[index] for volume in predicted])
    return counter.iou()


def published_miou(iou: Matrix) -> float:
    """Return the mIoU of one answer as published: the mean over greedily matched pairs, unmatched phrases ignored.

    Pairs are taken in order of IoU until no pair with IoU above 0 is left. As in the released code, a pair of empty
    volumes (NaN) ends the matching before it starts, so that such an answer scores 0.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty (``iou_matrix``).

    Returns:
        In [0, 1]; 0 where nothing is matched.
    """
    remaining = np.array(iou.T, dtype=np.float64)  # predictions as rows, as in the released code, which breaks ties
    taken = []
    while remaining.size and remaining.max() > 0:  # False where the maximum is NaN
        row, column = np.unravel_index(remaining.argmax(), remaining.shape)
        taken.append(remaining[row, column])
        remaining = np.delete(np.delete(remaining, row, axis=0), column, axis=1)
    return float(np.mean(taken)) if taken else 0.0


def published_matches(
    iou: Matrix, similarity: Matrix, *, iou_threshold: float = THRESHOLD, similarity_threshold: float = THRESHOLD
) -> Pairs:
    """Match phrases as the published recall does, which is the number of pairs over G.

    Pairs are taken in order of IoU while both the IoU and the text similarity reach their thresholds; the first pair
    below a threshold ends the matching, even if later pairs would qualify. A pair of empty volumes (NaN) comes
    first and counts if its texts are similar.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty.
        similarity: float64 (G, P), similarity of the phrases' texts (``refervos.metrics.phrase_similarity``).
        iou_threshold: Minimum IoU of a pair.
        similarity_threshold: Minimum text similarity of a pair.

    Returns:
        The pairs in the order in which they were matched.

    Raises:
        EvaluationError: When the two matrices have different shapes.
    """
    if iou.shape != similarity.shape:
        raise EvaluationError(
            f"the IoUs have shape {iou.shape} and the similarities {similarity.shape}; both must be of the same "
            "ground-truth and predicted phrases."
        )
    iou, similarity = np.array(iou, dtype=np.float64), np.array(similarity, dtype=np.float64)
    matches: Pairs = []
    while iou.size:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        if iou[row, column] < iou_threshold or similarity[row, column] < similarity_threshold:
            break
        matches.append((int(row), int(column)))
        for matrix in (iou, similarity):
            matrix[row, :] = 0
            matrix[:, column] = 0
    return matches


def best_matches(iou: Matrix) -> Pairs:
    """Match phrases one to one so that the sum of IoU is largest (Hungarian matching).

    Args:
        iou: float64 (G, P); a pair of empty volumes (NaN) counts as IoU 1.

    Returns:
        min(G, P) pairs in ascending order of the ground truth, including those of IoU 0.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    rows, columns = _assign(_defined(iou))
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def set_miou(iou: Matrix) -> float:
    """Return the mIoU of one answer over all phrases; unmatched ones count as 0 (see the module's formula).

    Args:
        iou: float64 (G, P), NaN where both volumes are empty, which counts as IoU 1.

    Returns:
        In [0, 1]; 1 if there are no phrases.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    if not max(iou.shape):
        return 1.0
    defined = _defined(iou)
    return float(sum(defined[pair] for pair in best_matches(iou)) / max(iou.shape))


def found_phrases(iou: Matrix, *, threshold: float = THRESHOLD) -> int:
    """Count the ground-truth phrases with a predicted phrase of their own at this IoU, regardless of its text.

    Divided by G, it is the recall of phrases; divided by P, their precision.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty, which counts as IoU 1.
        threshold: Minimum IoU.

    Returns:
        The size of the largest one-to-one matching among the pairs that reach the threshold.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    admissible = _defined(iou) >= threshold
    rows, columns = _assign(admissible.astype(np.float64))
    return int(np.count_nonzero(admissible[rows, columns]))


def _defined(iou: Matrix) -> Matrix:
    return np.nan_to_num(np.asarray(iou, dtype=np.float64), nan=1.0)


def _assign(values: Matrix) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return rows and columns of the one-to-one matching with the largest sum."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError("matching phrases needs SciPy: pip install 'refervos[eval]'.") from error
    rows, columns = linear_sum_assignment(values, maximize=True)
    return rows, columns
