"""Metrics of grounded conversation generation (GCG): how well the phrases of a text are segmented in the video.

Munasinghe et al. 2024 (VideoGLaMM, arXiv 2411.04923); `eval_gcg_metrics.py` of mbzuai-oryx/VideoGLaMM. A text has
G ground-truth phrases and P predicted phrases, each with a volume of masks (T, H, W); IoU(i, j) is that of two volumes.

- Published mIoU (``published_miou``): pairs are taken greedily by IoU, and the mean is over those pairs alone. Phrases
  that no pair has cost nothing: with ground truth {A, B} and prediction {A} it is 1.
- Set mIoU (``set_miou``, ours): the best one-to-one matching m maximises the sum of IoU, and

      set mIoU = sum over (i, j) in m of IoU(i, j) / max(G, P)

  so that each missing and each surplus phrase counts as 0. In the same example it is 0.5. One minus it is the OSPA
  distance of order 1 with cut-off 1 (Schuhmacher et al. 2008), a metric on sets, over the distance 1 - IoU.

Both are of one answer; reports take the mean over answers. Indices are in the order (ground truth, prediction).
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
"""IoU, and similarity of the texts, from which on a phrase counts as found."""


class IouCounter:
    """Counts the pixels of volumes frame by frame, so that no volume need be in memory whole.

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
            EvaluationError: When there are more or fewer masks than phrases, or they are not bool or not of one size.
        """
        masks = [*ground_truth, *predicted]
        if len(ground_truth) != len(self._ground_truth) or len(predicted) != len(self._predicted):
            raise EvaluationError(
                f"a frame has {len(ground_truth)} and {len(predicted)} masks, where there are "
                f"{len(self._ground_truth)} ground-truth and {len(self._predicted)} predicted phrases; each needs one."
            )
        if any(mask.dtype != np.bool_ or mask.shape != masks[0].shape for mask in masks):
            found = ", ".join(sorted({f"{mask.dtype} {mask.shape}" for mask in masks}))
            raise EvaluationError(f"the masks of a frame are {found}; all must be bool and of one size.")
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
        EvaluationError: When the volumes are not bool or not of one shape.
    """
    volumes = [*ground_truth, *predicted]
    if any(volume.shape != volumes[0].shape or volume.ndim != 3 for volume in volumes):
        found = ", ".join(sorted({str(volume.shape) for volume in volumes}))
        raise EvaluationError(f"the volumes have shapes {found}; all must have the same, (T, H, W).")
    counter = IouCounter(len(ground_truth), len(predicted))
    for index in range(len(volumes[0]) if volumes else 0):
        counter.add([volume[index] for volume in ground_truth], [volume[index] for volume in predicted])
    return counter.iou()


def published_miou(iou: Matrix) -> float:
    """Return the mIoU of one answer as published: the mean over greedily matched pairs, unmatched phrases ignored.

    The pair with the largest IoU is taken until no pair with IoU above 0 is left. A pair of empty volumes (NaN) stops
    the matching before anything is taken, as it does in the released code, so that such an answer scores 0.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty (``iou_matrix``).

    Returns:
        In [0, 1]; 0 where nothing is matched.
    """
    left = np.array(iou.T, dtype=np.float64)  # the released code has predictions as rows, which decides between equals
    taken = []
    while left.size and left.max() > 0:  # False where the maximum is NaN
        row, column = np.unravel_index(left.argmax(), left.shape)
        taken.append(left[row, column])
        left = np.delete(np.delete(left, row, axis=0), column, axis=1)
    return float(np.mean(taken)) if taken else 0.0


def published_matches(
    iou: Matrix, similarity: Matrix, *, iou_threshold: float = THRESHOLD, similarity_threshold: float = THRESHOLD
) -> Pairs:
    """Match phrases as the published recall does; the recall is their number over G.

    The pair with the largest IoU is taken as long as both its IoU and the similarity of its texts reach their
    thresholds; the first pair that does not ends the matching, even if a later one would. A pair of empty volumes (NaN)
    comes first, and counts where its texts are similar.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty.
        similarity: float64 (G, P), similarity of the phrases' texts (``refervos.metrics.phrase_similarity``).
        iou_threshold: IoU from which on a pair is admissible.
        similarity_threshold: Similarity from which on a pair is admissible.

    Returns:
        The pairs in the order in which they were matched.

    Raises:
        EvaluationError: When the two matrices have different shapes.
    """
    if iou.shape != similarity.shape:
        raise EvaluationError(
            f"there are IoUs of shape {iou.shape} and similarities of shape {similarity.shape}; both must be of the "
            "same ground-truth and predicted phrases."
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
        iou: float64 (G, P); a pair of empty volumes (NaN) counts as IoU 1, since nothing is to be seen of the phrase.

    Returns:
        min(G, P) pairs in ascending order of the ground truth, those of IoU 0 among them.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    rows, columns = _assign(_defined(iou))
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def set_miou(iou: Matrix) -> float:
    """Return the mIoU of one answer over all phrases, those without a partner counted as 0 (see the module's formula).

    Args:
        iou: float64 (G, P), NaN where both volumes are empty, which counts as IoU 1.

    Returns:
        In [0, 1]; 1 where there is no phrase on either side.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    if not max(iou.shape):
        return 1.0
    defined = _defined(iou)
    return float(sum(defined[pair] for pair in best_matches(iou)) / max(iou.shape))


def found_phrases(iou: Matrix, *, threshold: float = THRESHOLD) -> int:
    """Count the ground-truth phrases that have a predicted phrase of their own with enough IoU, whatever its text.

    Divided by G it is the recall of phrases at this IoU, divided by P their precision.

    Args:
        iou: float64 (G, P), NaN where both volumes are empty, which counts as IoU 1.
        threshold: The least IoU.

    Returns:
        The size of the largest one-to-one matching among the pairs that reach the threshold.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    enough = _defined(iou) >= threshold
    rows, columns = _assign(enough.astype(np.float64))
    return int(np.count_nonzero(enough[rows, columns]))


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
