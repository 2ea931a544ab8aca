"""How sure a mean over clips is: percentile bootstrap intervals, paired for the difference of two models.

Clips are what is drawn again, not frames: the frames of one clip are anything but independent. Two models are compared
clip by clip, so that what makes a clip easy or hard for both cancels (Efron and Tibshirani 1993, chapter 13). Where
several sentences are asked about one video, whole videos are drawn again (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError

RESAMPLES = 10_000
"""How often the clips are drawn again; an end's standard deviation from seed to seed is then 0.7 % of the width."""

DRAWS_AT_ONCE = 2_000_000
"""Clips drawn in one piece, so that memory stays below 40 MB however many clips there are."""

Values = Sequence[float] | npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside, that is, whether a difference is more than the choice of clips explains."""
        return self.low > 0 or self.high < 0


def mean_interval(
    values: Values,
    strata: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of one number per clip, with its percentile bootstrap interval.

    Args:
        values: One number per clip.
        strata: Each clip's group. Clips are then drawn again within their group, and the mean is that of the groups'
            means, each group counting the same; default one group.
        level: Share of the bootstrap means inside the interval, in (0, 1).
        resamples: How often the clips are drawn again.
        seed: Same seed, same interval.

    Returns:
        The mean and the interval's ends; all three equal when every group has one clip.

    Raises:
        EvaluationError: When there are no clips, or not one group name for each.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise EvaluationError(f"there are values of shape {numbers.shape}; give one number for each of some clips.")
    names = [0] * len(numbers) if strata is None else list(strata)
    if len(names) != len(numbers):
        raise EvaluationError(f"there are {len(numbers)} values and {len(names)} group names; give one name a value.")
    generator = np.random.default_rng(seed)
    groups = [numbers[[other == name for other in names]] for name in dict.fromkeys(names)]
    mean = float(np.mean([group.mean() for group in groups]))
    means = np.mean([_resampled_means(group, resamples, generator) for group in groups], axis=0)  # (resamples,)
    return interval_around(mean, means, level=level)


def paired_difference(
    a: Values,
    b: Values,
    strata: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much better ``a`` is than ``b`` on the same clips, with the paired bootstrap interval.

    Args:
        a: One number per clip.
        b: The other model's, for the same clips in the same order.
        strata: Each clip's group (see ``mean_interval``).
        level: Share of the bootstrap differences inside the interval.
        resamples: How often the clips are drawn again.
        seed: Same seed, same interval.

    Returns:
        The mean of ``a - b`` and the interval's ends; positive where ``a`` is larger.

    Raises:
        EvaluationError: When the two are of different length.
    """
    if len(a) != len(b):
        raise EvaluationError(f"there are {len(a)} clips on one side and {len(b)} on the other; pair the same clips.")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return mean_interval(difference, strata, level=level, resamples=resamples, seed=seed)


def resampled_ratios(
    numerators: npt.NDArray[np.float64],
    denominators: npt.NDArray[np.float64],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Ratios of sums, when whole clusters are drawn again: of any measure that is a sum over a sum.

    A mean over some rows has ones below for these and zeros for the others. All measures see the same draws, so they
    can be combined draw by draw.

    Args:
        numerators: M measures over n rows (n, M).
        denominators: Likewise, at least 0.
        clusters: Each row's cluster, such as its video.
        resamples: How often the clusters are drawn again.
        seed: Same seed, same draws.

    Returns:
        (resamples, M), NaN in a draw that leaves nothing below.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    owner = np.array([numbers[name] for name in clusters])
    count = len(numbers)
    above, below = np.zeros((2, count, numerators.shape[1]))  # sums over each cluster
    np.add.at(above, owner, numerators)
    np.add.at(below, owner, denominators)
    generator = np.random.default_rng(seed)
    piece = max(1, DRAWS_AT_ONCE // count)
    ratios = []
    for start in range(0, resamples, piece):
        rows = min(piece, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        with np.errstate(invalid="ignore"):
            ratios.append((times @ above) / (times @ below))
    return np.concatenate(ratios)


def interval_around(value: float, resampled: npt.NDArray[np.float64], *, level: float = 0.95) -> Interval:
    """The percentile interval of resampled values; those that are NaN do not count.

    Args:
        value: What was measured.
        resampled: The same measured on resamples (R,).
        level: Share of them inside the interval.

    Returns:
        The value and the interval's ends.
    """
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resampled_means(
    values: npt.NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of as many values as there are, drawn with replacement, (resamples,)."""
    count = len(values)
    piece = max(1, DRAWS_AT_ONCE // count)
    means = [
        values[generator.integers(0, count, size=(min(piece, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, piece)
    ]
    return np.concatenate(means)


def span(interval: Interval) -> str:
    """The ends of an interval."""
    return f"{interval.low:.1f} to {interval.high:.1f}"
