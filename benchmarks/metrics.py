"""Measure the speed of J and F relative to the straightforward implementation, which is the oracle of the tests.

Both score the same drawn masks in the same run, and their results are compared. Run it from a clone with the ``dev``
extra: ``python benchmarks/metrics.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import metrics_oracle
from refervos.metrics import boundary, video_scores

SIZES = {"854x480": (480, 854), "1920x1080": (1080, 1920)}
FRAMES = 24
CLIPS = (  # share of the image that the object covers, and quality of the prediction
    (0.01, "close"),
    (0.05, "close"),
    (0.2, "close"),
    (0.05, "rough"),
    (0.05, "elsewhere"),
    (0.2, "elsewhere"),
)
WIGGLE = {"close": 0.03, "rough": 0.2}
"""Deviation of the predicted outline from the ground truth, as a share of the radius."""


def draw(rng: np.random.Generator, size: tuple[int, int], covered: float, prediction: str) -> np.ndarray:
    """Draw a lobed object that drifts, and its prediction: bool (2, T, H, W)."""
    height, width = size
    centre, speed = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(-3, 3, 2)
    lobes = rng.normal(0, 0.15, (6, 2)) / np.arange(1, 7)[:, None]
    radius = np.sqrt(covered * height * width / np.pi)
    clip = np.zeros((2, FRAMES, height, width), dtype=bool)
    for t in range(FRAMES):
        position = centre + speed * t
        clip[0, t] = lobed(size, position, radius, lobes)
        if prediction == "elsewhere":
            clip[1, t] = lobed(size, size - position, radius, lobes[::-1])
        else:
            deviations = rng.normal(0, WIGGLE[prediction] / 5, (25, 2))
            clip[1, t] = lobed(size, position + rng.normal(0, 1, 2), radius, np.concatenate([lobes, deviations]))
    return clip


def lobed(size: tuple[int, int], centre: np.ndarray, radius: float, lobes: np.ndarray) -> np.ndarray:
    """Draw a disc with a wavy outline: row ``k`` of ``lobes`` (K, 2) has the amplitudes of ``k + 1`` waves."""
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = (y - centre[0]).astype(np.float32), (x - centre[1]).astype(np.float32)
    times = np.arange(1, len(lobes) + 1)
    angles = np.linspace(-np.pi, np.pi, 2048)
    outline = 1 + np.cos(angles[:, None] * times) @ lobes[:, 0] + np.sin(angles[:, None] * times) @ lobes[:, 1]
    around = ((np.arctan2(y, x) / np.pi + 1) / 2 * 2047).astype(np.int32)
    return np.hypot(y, x) < radius * np.maximum(outline, 0.2).astype(np.float32)[around]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Measure the processor time of a call, the minimum of several."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


# Other methods to find near boundary pixels, each measured in the box around both masks


def by_scipy_distance(edge: np.ndarray, other: np.ndarray, radius: int) -> int:
    """Count near pixels by the exact distance transform of SciPy."""
    return int(np.count_nonzero(edge & (distance_transform_edt(~other) <= radius)))


def by_opencv_distance(edge: np.ndarray, other: np.ndarray, radius: int) -> int:
    """Count near pixels by the exact distance transform of OpenCV."""
    distances = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return int(np.count_nonzero(edge & (distances <= radius)))


def by_opencv_dilation(edge: np.ndarray, other: np.ndarray, radius: int) -> int:
    """Count near pixels by dilation with a disk, as in the oracle."""
    disk = metrics_oracle.disk(radius).astype(np.uint8)
    return int(np.count_nonzero(edge & cv2.dilate(other.view(np.uint8), disk).view(bool)))


def by_tree(edge: np.ndarray, other: np.ndarray, radius: int) -> int:
    """Count near pixels by the nearest neighbour in a KD-tree."""
    distances, _ = KDTree(np.argwhere(other)).query(np.argwhere(edge), distance_upper_bound=radius + 0.01)
    return int(np.count_nonzero(distances <= radius))


OTHERS = (by_scipy_distance, by_opencv_distance, by_opencv_dilation, by_tree)


def f_in_box(near: Callable[[np.ndarray, np.ndarray, int], int], exact: np.ndarray, predicted: np.ndarray) -> float:
    """Compute F of one frame with another method to count near pixels; both masks must have pixels."""
    radius = int(np.ceil(0.008 * np.linalg.norm(exact.shape)))
    rows, columns = (np.flatnonzero((exact | predicted).any(axis=axis)) for axis in (1, 0))
    box = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    one, other = boundary(exact[box]), boundary(predicted[box])
    precision, recall = near(other, one, radius) / other.sum(), near(one, other, radius) / one.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# Tables


def one_process(clips: dict[tuple[float, str], np.ndarray], repeats: int) -> Iterator[str]:
    """Yield rows of milliseconds a frame, with the speed-up."""
    totals = np.zeros(2)
    for (covered, prediction), (exact, predicted) in clips.items():
        np.testing.assert_allclose(
            video_scores(exact, predicted), metrics_oracle.scores(exact, predicted), atol=1e-12, rtol=0
        )
        slow = seconds(partial(metrics_oracle.scores, exact, predicted), repeats) / FRAMES
        fast = seconds(partial(video_scores, exact, predicted), repeats) / FRAMES
        totals += slow, fast
        yield f"{covered:.0%} of the image, {prediction} | {1e3 * slow:.2f} | {1e3 * fast:.3f} | {slow / fast:.0f}"
    slow, fast = totals / len(clips)
    yield f"all | {1e3 * slow:.2f} | {1e3 * fast:.3f} | {slow / fast:.0f}"


def other_methods(clips: dict[tuple[float, str], np.ndarray], repeats: int) -> Iterator[str]:
    """Yield rows of milliseconds a frame for F alone, over all clips."""
    frames = [(exact[0], predicted[0]) for exact, predicted in clips.values()]
    for near in OTHERS:
        for exact, predicted in frames:
            assert abs(f_in_box(near, exact, predicted) - metrics_oracle.contour(exact, predicted)) < 1e-12
        mean = sum(seconds(partial(f_in_box, near, *frame), repeats) for frame in frames) / len(frames)
        yield f"{near.__name__.replace('_', ' ')} | {1e3 * mean:.2f}"


def score_file(score: Callable[..., object], path: Path) -> None:
    """Map a clip into memory and score it, in a process of the pool."""
    cv2.setNumThreads(1)
    score(*np.asarray(np.load(path, mmap_mode="r")))


def call(task: Callable[[], object]) -> None:
    """Run a task and discard its result."""
    task()


def several_processes(clips: dict[tuple[float, str], np.ndarray], processes: int) -> Iterator[str]:
    """Yield a row of wall-clock milliseconds a frame, measured after the processes have started."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.npy" for number in range(len(clips))]
        for path, clip in zip(paths, clips.values(), strict=True):
            np.save(path, clip)
        for score, rounds in ((metrics_oracle.scores, 2), (video_scores, 40)):
            tasks = [partial(score_file, score, path) for path in paths] * rounds
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                results = pool.map(call, tasks)
                next(results)
                start = time.perf_counter()
                done = sum(1 for _ in results)
                times.append((time.perf_counter() - start) / (done * FRAMES))
    slow, fast = times
    yield f"all, {processes} processes | {1e3 * slow:.2f} | {1e3 * fast:.3f} | {slow / fast:.0f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for name, size in SIZES.items():
        rng = np.random.default_rng(0)
        clips = {clip: draw(rng, size, *clip) for clip in CLIPS}
        print(f"\n{name}, ms a frame | straightforward | refervos | ratio", flush=True)
        for row in one_process(clips, arguments.repeats):
            print(row, flush=True)
        for row in several_processes(clips, arguments.processes):
            print(row, flush=True)
        print(f"\n{name}, other methods for F | ms a frame", flush=True)
        for row in other_methods(clips, arguments.repeats):
            print(row, flush=True)


if __name__ == "__main__":
    main()
