"""J and F against the DAVIS toolkit's numbers, and against a straightforward version on masks of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import metrics_oracle
from golden import DATA, Golden
from refervos.errors import EvaluationError
from refervos.metrics import boundary_accuracy, overlap, region_similarity, video_scores

GOLDEN = Golden(DATA / "metrics.npz")
NAMES = [str(name) for name in GOLDEN["names"]]

EXACT = 1e-12


def masks(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    shape = tuple(GOLDEN[f"{name}.shape"])

    def unpack(kind: str) -> np.ndarray:
        return np.unpackbits(GOLDEN[f"{name}.{kind}"])[: shape[0] * shape[1]].reshape(shape).astype(bool)

    return unpack("gt"), unpack("pred"), unpack("void") if f"{name}.void" in GOLDEN else None


@pytest.mark.parametrize("name", NAMES)
def test_j_and_f_are_the_toolkits_on_golden_pairs(name: str) -> None:
    ground_truth, predicted, void = masks(name)
    assert region_similarity(ground_truth, predicted, void) == pytest.approx(GOLDEN[f"{name}.J"].item(), abs=1e-9)
    assert boundary_accuracy(ground_truth, predicted, void) == pytest.approx(GOLDEN[f"{name}.F"].item(), abs=1e-9)


def test_videos_and_tolerances_in_pixels_score_as_in_the_toolkit() -> None:
    names = [str(name) for name in GOLDEN["stack.names"]]
    assert len(names) == 10
    ground_truth, predicted = np.stack([masks(name)[:2] for name in names], axis=1)
    j, f = video_scores(ground_truth, predicted)
    np.testing.assert_allclose(j, GOLDEN["stack.J"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(f, GOLDEN["stack.F"], atol=1e-9, rtol=0)
    _, three = video_scores(ground_truth, predicted, tolerance=3)
    np.testing.assert_allclose(three, GOLDEN["stack.F_bound3px"], atol=1e-9, rtol=0)


# Random masks


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.random((height, width)) < rng.choice([0.01, 0.1, 0.5, 0.9])


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An ellipse anywhere, often over the border."""
    y, x = np.mgrid[:height, :width]
    centre, radii = rng.uniform(-0.1, 1.1, 2), rng.uniform(0.05, 0.5, 2)
    return ((y / height - centre[0]) / radii[0]) ** 2 + ((x / width - centre[1]) / radii[1]) ** 2 < 1


def ragged(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return blob(rng, height, width) ^ (rng.random((height, width)) < 0.02)


def empty(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), dtype=bool)


def full(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.ones((height, width), dtype=bool)


def pixel(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


def band(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Rows or columns along one border."""
    mask = np.zeros((height, width), dtype=bool)
    mask[: 1 + rng.integers(height)] = True
    return np.rot90(mask, 2) if rng.random() < 0.5 else mask


SHAPES = (noise, blob, ragged, empty, full, pixel, band)
SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 40), (33, 21), (64, 96)]


def cases(seed: int, height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for ground_truth in SHAPES:
        for predicted in SHAPES:
            yield ground_truth(rng, height, width), predicted(rng, height, width), rng.random((height, width)) < 0.1


@pytest.mark.parametrize("tolerance", [0.008, 0.05, 0.3, 0.6, 1, 2, 3, 7, 30], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random_masks_of_every_kind_score_as_in_the_straightforward_version(
    size: tuple[int, int], tolerance: float
) -> None:
    ground_truth, predicted, void = (np.stack(kind) for kind in zip(*cases(1, *size), strict=True))
    for holes in (None, void):
        j, f = video_scores(ground_truth, predicted, holes, tolerance=tolerance)
        expected_j, expected_f = metrics_oracle.scores(ground_truth, predicted, holes, tolerance)
        np.testing.assert_allclose(j, expected_j, atol=EXACT, rtol=0)
        np.testing.assert_allclose(f, expected_f, atol=EXACT, rtol=0)


@pytest.mark.parametrize("shape", [noise, blob, ragged, band])
def test_large_masks_score_as_in_the_straightforward_version(shape: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    ground_truth, predicted = (np.stack([shape(rng, 240, 427) for _ in range(3)]) for _ in range(2))
    for tolerance in (0.008, 0.02):
        j, f = video_scores(ground_truth, predicted, tolerance=tolerance)
        expected_j, expected_f = metrics_oracle.scores(ground_truth, predicted, tolerance=tolerance)
        np.testing.assert_allclose(j, expected_j, atol=EXACT, rtol=0)
        np.testing.assert_allclose(f, expected_f, atol=EXACT, rtol=0)


def test_a_match_is_at_most_the_tolerance_away() -> None:
    """(3, 4) is 5 pixels from the origin: a match at tolerance 5, none at 4."""
    one, other = (np.zeros((20, 20), dtype=bool) for _ in range(2))
    one[10, 10] = other[13, 14] = True
    assert boundary_accuracy(one, other, tolerance=5) == 1.0  # both boundaries have the same shape
    assert boundary_accuracy(one, other, tolerance=1) == 0.0
    at_four = boundary_accuracy(one, other, tolerance=4)  # only the corner nearest the other pixel matches
    assert 0 < at_four < 1
    assert at_four == pytest.approx(metrics_oracle.contour(one, other, tolerance=4))
    assert boundary_accuracy(one, other, tolerance=1e9) == 1.0  # memory is bounded by the image's size


# Videos


def test_a_video_scores_as_its_frames_do() -> None:
    ground_truth, predicted, void = (np.stack(kind) for kind in zip(*list(cases(3, 30, 40))[:19], strict=True))
    j, f = video_scores(ground_truth, predicted, void)
    assert j.dtype == f.dtype == np.float64
    assert j.tolist() == [region_similarity(*frame) for frame in zip(ground_truth, predicted, void, strict=True)]
    assert f.tolist() == [boundary_accuracy(*frame) for frame in zip(ground_truth, predicted, void, strict=True)]


def test_frames_may_come_one_by_one_and_be_stored_by_columns() -> None:
    ground_truth, predicted, void = (np.stack(kind) for kind in zip(*list(cases(4, 30, 40))[:10], strict=True))
    j, f = video_scores(ground_truth, predicted, void)
    streamed = video_scores(iter(ground_truth), (np.asfortranarray(frame) for frame in predicted), iter(void))
    np.testing.assert_array_equal(streamed, (j, f))


def test_frames_may_be_without_void() -> None:
    rng = np.random.default_rng(5)
    ground_truth, predicted, hole = (noise(rng, 12, 12) for _ in range(3))
    j, _ = video_scores([ground_truth] * 2, [predicted] * 2, [None, hole])
    assert j.tolist() == [region_similarity(ground_truth, predicted), region_similarity(ground_truth, predicted, hole)]


def test_overlap_counts_the_pixels_of_an_example() -> None:
    ground_truth = np.array([[True, True, False], [False, False, False]])
    predicted = np.array([[False, True, True], [False, False, True]])
    assert overlap(ground_truth, predicted) == (1, 4)
    assert overlap(ground_truth, predicted, void=np.array([[False, True, False], [False, False, True]])) == (0, 2)
    assert region_similarity(ground_truth, predicted) == 1 / 4


# Invalid input


@pytest.mark.parametrize("score", [region_similarity, boundary_accuracy, overlap])
def test_masks_of_different_size_are_refused(score: Callable[..., float]) -> None:
    with pytest.raises(EvaluationError, match=r"prediction.*\(4, 7\).*\(4, 6\)"):
        score(np.zeros((4, 6), dtype=bool), np.zeros((4, 7), dtype=bool))
    with pytest.raises(EvaluationError, match=r"void.*\(2, 6\).*\(4, 6\)"):
        score(np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool), np.zeros((2, 6), dtype=bool))


def test_masks_that_are_no_bool_images_are_refused() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    with pytest.raises(EvaluationError, match="prediction is float32"):
        boundary_accuracy(mask, np.zeros((4, 6), dtype=np.float32))
    with pytest.raises(EvaluationError, match=r"ground truth has shape \(2, 4, 6\); a mask must be \(height, width\)"):
        boundary_accuracy(np.stack([mask] * 2), np.stack([mask] * 2))


def test_a_frame_of_another_size_is_named() -> None:
    frames = [np.zeros((4, 6), dtype=bool), np.zeros((5, 6), dtype=bool)]
    with pytest.raises(
        EvaluationError, match=r"ground truth of frame 1 has shape \(5, 6\), not \(4, 6\); all masks must have one size"
    ):
        video_scores(frames, frames)


@pytest.mark.parametrize("lengths", [(3, 2, 3), (2, 3, 3), (3, 3, 2)])
def test_streams_of_different_length_are_refused(lengths: tuple[int, int, int]) -> None:
    short = ("ground truth", "prediction", "void")[lengths.index(2)]
    with pytest.raises(EvaluationError, match=f"the {short} ended after 2 frames"):
        video_scores(*(np.zeros((count, 4, 6), dtype=bool) for count in lengths))


def test_a_video_without_frames_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no frames"):
        video_scores([], [])


@pytest.mark.parametrize("tolerance", [-1, float("inf"), float("nan")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float) -> None:
    mask = np.eye(4, dtype=bool)
    with pytest.raises(EvaluationError, match="boundary tolerance is"):
        boundary_accuracy(mask, mask, tolerance=tolerance)
