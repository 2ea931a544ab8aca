"""Cut-out pictures of real things as objects of a clip: a folder of images with an alpha channel.

The name says what a picture shows: ``cat.png``, ``cat_2.png`` and ``red fox-01.png`` show a cat, a cat and a red fox.
A picture in a sub-folder shows what the sub-folder is named after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from refervos.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]

LONGEST_SIDE = 512
"""Pictures are kept at this many pixels at most: more than a clip of 720 lines can show."""

_SUFFIXES = {".png", ".webp"}
_FEWEST_PIXELS = 4  # a level of the pyramid narrower than this shows nothing


@dataclass(frozen=True, eq=False)
class Sprite:
    """One cut-out.

    Attributes:
        subject: The noun for it, such as "red fox".
        name: The file it came from.
        levels: The picture at full, half, quarter ... size: RGBA float32 (h, w, 4), colours in grey levels multiplied
            by alpha, alpha in [0, 1]; cropped to what is not transparent.
    """

    subject: str
    name: str
    levels: tuple[Floats, ...]

    def sample(self, x: Floats, y: Floats, radius: float) -> tuple[Floats, Floats]:
        """Look the picture up.

        Args:
            x: To the right of the centre before turning, pixels (..., broadcasts with ``y``).
            y: Below the centre, pixels.
            radius: Half the picture's diagonal as it is shown, pixels.

        Returns:
            Colours (..., 3) in grey levels multiplied by alpha, and alpha (...) in [0, 1].
        """
        picture = self.levels[0]
        scale = 0.5 * float(np.hypot(*picture.shape[:2])) / radius  # pixels of the picture per pixel of the frame
        level = min(max(int(np.floor(np.log2(max(scale, 1e-6)))), 0), len(self.levels) - 1)
        picture = self.levels[level]
        height, width = picture.shape[:2]
        scale = 0.5 * float(np.hypot(height, width)) / radius
        column, row = np.broadcast_arrays(x * scale + (0.5 * width - 0.5), y * scale + (0.5 * height - 0.5))
        left, top = np.floor(column).astype(np.intp), np.floor(row).astype(np.intp)
        right_share, lower_share = (column - left)[..., None], (row - top)[..., None]
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))  # transparent beyond the edge
        left, top = np.clip(left + 1, 0, width), np.clip(top + 1, 0, height)
        upper = padded[top, left] * (1 - right_share) + padded[top, left + 1] * right_share
        lower = padded[top + 1, left] * (1 - right_share) + padded[top + 1, left + 1] * right_share
        mixed = upper * (1 - lower_share) + lower * lower_share
        outside = (column < -1) | (column >= width) | (row < -1) | (row >= height)
        mixed[outside] = 0
        return mixed[..., :3], mixed[..., 3]


@dataclass(frozen=True, eq=False)
class Sprites:
    """A folder of cut-outs.

    Attributes:
        pictures: All of them, in the order of their paths.
    """

    pictures: tuple[Sprite, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """What the pictures show, each named once, in alphabetical order."""
        return tuple(sorted({picture.subject for picture in self.pictures}))

    @classmethod
    def open(cls, folder: str | Path) -> Sprites:
        """Read every PNG and WebP picture of a folder and of its sub-folders.

        Args:
            folder: The folder.

        Returns:
            The pictures; they stay in memory.

        Raises:
            ConfigError: When the folder is missing or has no pictures, or a picture has no alpha channel, nothing to
                see, or no subject in its name.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ConfigError(f"{folder}: no such folder of sprites; give one that holds PNG or WebP cut-outs.")
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        if not files:
            raise ConfigError(f"{folder}: holds no PNG or WebP files; sprites are such files with an alpha channel.")
        return cls(tuple(_read(path, root) for path in files))


def subject_of(name: str) -> str:
    """The noun in a file's or folder's name: ``Red_fox-01`` shows a "red fox".

    Args:
        name: The name, without suffix.

    Returns:
        Words in lower case, without numbers; empty when nothing is left.
    """
    words = re.split(r"[\s_\-.()]+", name.lower())
    return " ".join(word for word in words if word and not word.isdigit())


def _read(path: Path, root: Path) -> Sprite:
    """One picture, cropped, shrunk and with its pyramid."""
    subject = subject_of(path.parent.name if path.parent != root else path.stem)
    if not subject:
        raise ConfigError(f"{path}: its name does not say what it shows; name it after its subject, such as cat.png.")
    try:
        with Image.open(path) as image:
            if "A" not in image.getbands() and "transparency" not in image.info:
                raise ConfigError(f"{path}: has no alpha channel; sprites are cut-outs on a transparent ground.")
            picture = image.convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as an image ({error}); sprites are PNG or WebP files.") from error
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
    if box is None:
        raise ConfigError(f"{path}: is transparent everywhere; sprites need pixels with an alpha of at least a half.")
    picture = picture.crop(box)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, np.float32)
    alpha = pixels[..., 3:] / np.float32(255)
    level = np.concatenate((pixels[..., :3] * alpha, alpha), axis=2)
    levels = [level]
    while min(level.shape[:2]) >= 2 * _FEWEST_PIXELS:
        level = _halved(level)
        levels.append(level)
    return Sprite(subject, path.name, tuple(levels))


def _halved(picture: Floats) -> Floats:
    """The mean of every two by two pixels; an odd last row or column is paired with transparency."""
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 4).mean(axis=(1, 3), dtype=np.float32)
