"""Backgrounds: soft, dull, of middle brightness, and larger than the frame when the camera moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating[Any]]

_DARKEST, _BRIGHTEST = 30.0, 200.0


def draw_background(
    style: str, seed: int, strength: float, size: tuple[int, int], short: int
) -> npt.NDArray[np.float32]:
    """Draw a background: a gradient between two dull colours, with a pattern on top.

    Args:
        style: One of ``scene.BACKGROUNDS``.
        seed: Seed of colours and pattern.
        strength: Amplitude of the pattern, grey levels.
        size: Height and width of the canvas, pixels.
        short: The frame's short side, pixels: the unit of the pattern's sizes.

    Returns:
        RGB in grey levels (H, W, 3).
    """
    rng = np.random.default_rng(seed)
    height, width = size
    first, second = (rng.uniform(60, 165) + rng.uniform(-22, 22, 3) for _ in range(2))
    x = (np.arange(width, dtype=np.float32) / np.float32(short))[None, :]  # short sides
    y = (np.arange(height, dtype=np.float32) / np.float32(short))[:, None]
    direction = rng.uniform(0, 2 * np.pi)
    ramp = (x - width / short / 2) * np.cos(direction) + (y - height / short / 2) * np.sin(direction)
    ramp = np.clip(0.5 + 0.7 * ramp, 0, 1)
    canvas = (first + (second - first) * ramp[..., None]).astype(np.float32)
    if style in _PATTERNS:
        canvas += strength * _PATTERNS[style](rng, x, y)
    return np.clip(canvas, _DARKEST, _BRIGHTEST, out=canvas)


def crop_photograph(photograph: npt.NDArray[np.uint8], seed: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Crop a background from a photograph at a random position and scale, sometimes mirrored.

    Args:
        photograph: RGB (h, w, 3).
        seed: Seed of position, scale and mirroring.
        size: Height and width of the canvas, pixels.

    Returns:
        RGB in grey levels (H, W, 3), no darker and no brighter than a drawn background.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = photograph.shape[:2]
    most = min(rows / height, columns / width)
    scale = most * float(rng.uniform(0.3, 1.0))  # pixels of the photograph per pixel of the canvas
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1))
    cut = Image.fromarray(photograph[top : top + high, left : left + wide])
    canvas = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0), np.float32)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    return np.clip(canvas * np.float32(rng.uniform(0.7, 1.0)), _DARKEST, _BRIGHTEST)


def _noise(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Draw grain that is coarse enough to survive a video codec."""
    cell = 1 / 42  # short sides
    columns, rows = (x[0] / cell).astype(np.intp), (y[:, 0] / cell).astype(np.intp)
    grain = rng.standard_normal((int(rows[-1]) + 1, int(columns[-1]) + 1), dtype=np.float32)
    return 0.8 * grain[rows[:, None], columns][..., None]


def _clouds(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Draw a few waves of random direction."""
    clouds = np.zeros((y.size, x.size), np.float32)
    for _ in range(5):
        fx, fy, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 2 * np.pi)
        clouds += np.sin(np.float32(fx) * x + np.float32(fy) * y + np.float32(phase))
    return 0.5 * clouds[..., None]


def _stripes(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Draw straight bands of a random direction."""
    along, _ = _rotated_grid(rng, x, y)
    return np.clip(3 * np.sin(along), -1, 1)[..., None]


def _checks(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Draw a rotated checkerboard."""
    along, across = _rotated_grid(rng, x, y)
    return np.clip(3 * np.sin(along) * np.sin(across), -1, 1)[..., None]


def _rotated_grid(rng: np.random.Generator, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return coordinates of a rotated grid with a period of 2 pi."""
    period, turn = rng.uniform(0.1, 0.3), rng.uniform(0, np.pi)
    cos, sin = (np.float32(v * 2 * np.pi / period) for v in (np.cos(turn), np.sin(turn)))
    return x * cos + y * sin, y * cos - x * sin


def _blobs(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Draw soft spots, each a little brighter, darker or of another dull hue."""
    spots = np.zeros((y.size, x.size, 3), np.float32)
    for _ in range(int(10 * float(x[0, -1]) * float(y[-1, 0])) + 1):
        cx, cy = rng.uniform(0, x[0, -1]), rng.uniform(0, y[-1, 0])
        shade = (rng.uniform(-1.2, 1.2) + rng.uniform(-0.5, 0.5, 3)).astype(np.float32)
        radius = np.float32(rng.uniform(0.06, 0.2))
        columns, rows = np.abs(x[0] - cx) < radius, np.abs(y[:, 0] - cy) < radius
        near = (x[:, columns] - np.float32(cx)) ** 2 + (y[rows] - np.float32(cy)) ** 2
        window = np.ix_(rows, columns)
        spots[window] += np.clip(2 - 2 * near / radius**2, 0, 1)[..., None] * shade
    return spots


_PATTERNS: dict[str, Callable[[np.random.Generator, Floats, Floats], Floats]] = {
    "noise": _noise,
    "clouds": _clouds,
    "stripes": _stripes,
    "checks": _checks,
    "blobs": _blobs,
}
