"""Cut-out images as objects of a clip: a folder of images with an alpha channel.

File names give the subject: ``cat.png``, ``cat_2.png`` and ``red fox-01.png`` show a cat, a cat and a red fox. Images
in a sub-folder have the sub-folder's name as their subject. A folder ``grounds`` holds photographs for backgrounds
instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.errors import ConfigError
from refervos.files.images import opened_image, read_image
from refervos.worlds.shapes import COLOURS

Floats = npt.NDArray[np.floating[Any]]

LONGEST_SIDE = 512
"""Cut-outs are reduced to at most this many pixels: more than a clip of 720 lines can show."""

PHOTOGRAPH_FOLDER = "grounds"
"""Sub-folder of photographs for backgrounds."""

_SUFFIXES = {".png", ".webp"}
_PHOTOGRAPH_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_PHOTOGRAPH_SIDE = 640  # maximum short side of a stored photograph, pixels
_MIN_LEVEL_SIDE = 4  # a narrower level of the pyramid shows nothing

_HUES: tuple[tuple[str, float, float], ...] = (
    ("red", 345, 12),
    ("orange", 20, 38),
    ("yellow", 44, 62),
    ("green", 80, 160),
    ("blue", 190, 250),
    ("purple", 260, 295),
    ("pink", 305, 340),
)
"""Colour words and the degrees of hue for which each is unambiguous; hues between them have no name."""

_MAIN_COLOUR_SHARE = 0.7  # an image is named by a colour that covers at least this share ...
_ABSENT_COLOUR_SHARE = 0.04  # ... and clearly lacks a colour that covers at most this share


@dataclass(frozen=True, eq=False)
class Sprite:
    """One cut-out.

    Attributes:
        subject: Its noun, such as "red fox".
        name: Name of the file.
        levels: Image pyramid at full, half, quarter ... size: colours multiplied by alpha (PIL's mode ``RGBa``),
            cropped to the opaque part, with a transparent border of one pixel.
        colours: Share of the image that each colour word covers.
    """

    subject: str
    name: str
    levels: tuple[Image.Image, ...]
    colours: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def colour(self) -> str:
        """Colour word that applies to nearly all of the image, or empty."""
        most = max(self.colours, key=lambda word: self.colours[word], default="")
        return most if most and self.colours[most] >= _MAIN_COLOUR_SHARE else ""

    def may_be_called(self, colour: str) -> bool:
        """Return whether a colour word might be used for the image."""
        return not self.colour or self.colours.get(colour, 0.0) > _ABSENT_COLOUR_SHARE

    def draw(
        self,
        box: tuple[slice, slice],
        centre: tuple[float, float],
        radius: float,
        angle: float,
        mirrored: bool = False,
    ) -> Floats:
        """Draw the image into a box of a frame.

        Args:
            box: Rows and columns.
            centre: x and y of the image's centre in the frame, pixels.
            radius: Half the diagonal of the drawn image, pixels.
            angle: Clockwise rotation, radians.
            mirrored: Whether the image is flipped horizontally before it is rotated.

        Returns:
            float32 (h, w, 4): colours in grey levels multiplied by alpha, and alpha in [0, 1].
        """
        return np.asarray(self._transform(box, centre, radius, angle, mirrored), np.float32) * _SCALE

    def draw_alpha(
        self,
        box: tuple[slice, slice],
        centre: tuple[float, float],
        radius: float,
        angle: float,
        mirrored: bool = False,
    ) -> Floats:
        """Draw the alpha channel alone, see ``draw``: float32 (h, w) in [0, 1]."""
        turned = self._transform(box, centre, radius, angle, mirrored)
        return np.asarray(turned, np.float32)[..., 3] / np.float32(255)

    def _transform(
        self, box: tuple[slice, slice], centre: tuple[float, float], radius: float, angle: float, mirrored: bool
    ) -> Image.Image:
        width, height = (side - 2 for side in self.levels[0].size)
        scale = 0.5 * float(np.hypot(width, height)) / radius  # pixels of the image per pixel of the frame
        level = min(max(int(np.floor(np.log2(max(scale, 1e-6)))), 0), len(self.levels) - 1)
        image = self.levels[level]
        width, height = (side - 2 for side in image.size)
        scale = 0.5 * float(np.hypot(width, height)) / radius
        rows, columns = box
        # From a point of the box to a point of the image: move to the centre, rotate back, scale.
        cos, sin = scale * float(np.cos(angle)), scale * float(np.sin(angle))
        x, y = columns.start - centre[0], rows.start - centre[1]
        side = -1 if mirrored else 1
        matrix = (
            *(side * cos, side * sin, side * (cos * x + sin * y) + 0.5 * width + 1),
            *(-sin, cos, cos * y - sin * x + 0.5 * height + 1),
        )
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


_SCALE = np.array([1, 1, 1, 1 / 255], np.float32)


@dataclass(frozen=True, eq=False)
class Sprites:
    """Folder of cut-outs.

    Attributes:
        cutouts: All of them, in the order of their paths.
        photographs: Photographs for backgrounds, uint8 RGB (H, W, 3) each.
    """

    cutouts: tuple[Sprite, ...]
    photographs: tuple[npt.NDArray[np.uint8], ...] = ()

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Distinct subjects of the cut-outs, in alphabetical order."""
        return tuple(sorted(self.by_subject))

    @cached_property
    def by_subject(self) -> Mapping[str, Sequence[Sprite]]:
        """Cut-outs of each subject."""
        found: dict[str, list[Sprite]] = {}
        for cutout in self.cutouts:
            found.setdefault(cutout.subject, []).append(cutout)
        return found

    @classmethod
    def open(cls, folder: str | Path, designs: Sequence[str] = ()) -> Sprites:
        """Read every PNG and WebP image of a folder and of its sub-folders.

        Args:
            folder: The folder.
            designs: Names of its sub-folders to read, default all. The photographs in ``grounds`` are always read.

        Returns:
            The cut-outs; they stay in memory.

        Raises:
            ConfigError: When the folder is missing or has no cut-outs, or an image has no alpha channel, no opaque
                pixel, or no subject in its name.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ConfigError(f"{folder}: no such folder of sprites; give a folder with PNG or WebP cut-outs.")
        for design in designs:
            if not (root / design).is_dir():
                known = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
                raise ConfigError(f"{folder}: has no sub-folder {design!r}; its sub-folders are {known}.")
        roots = [root / design for design in designs] if designs else [root]
        files = sorted(
            path
            for design_root in roots
            for path in design_root.rglob("*")
            if path.suffix.lower() in _SUFFIXES
            and path.is_file()
            and path.relative_to(root).parts[0] != PHOTOGRAPH_FOLDER
        )
        if not files:
            raise ConfigError(f"{folder}: holds no PNG or WebP files; sprites are read from such files.")
        photographs = sorted(
            path for path in (root / PHOTOGRAPH_FOLDER).glob("*") if path.suffix.lower() in _PHOTOGRAPH_SUFFIXES
        )
        return cls(tuple(_read(path, root) for path in files), tuple(_read_photograph(path) for path in photographs))


def subject_of(name: str) -> str:
    """Extract the noun from the name of a file or folder: "red fox" from ``Red_fox-01``.

    Args:
        name: The name, without suffix.

    Returns:
        Words in lower case, without numbers; may be empty.
    """
    words = re.split(r"[\s_.()]+|-(?![a-z])|(?<![a-z])-", name.lower())
    return " ".join(word for word in words if word and not word.isdigit())


def _read(path: Path, root: Path) -> Sprite:
    """Read an image, crop and shrink it, and build its pyramid."""
    subject = subject_of(path.parent.name if path.parent != root else path.stem)
    if not subject:
        raise ConfigError(f"{path}: its name has no subject; name it after the object it shows, such as cat.png.")
    with opened_image(path, ConfigError) as file:
        if "A" not in file.getbands() and "transparency" not in file.info:
            raise ConfigError(f"{path}: has no alpha channel; sprites are cut-outs on a transparent background.")
        image = file.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
    if box is None:
        raise ConfigError(f"{path}: is transparent everywhere; sprites need pixels with an alpha of at least a half.")
    image = image.crop(box)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    level = image.convert("RGBa")
    levels = [_bordered(level)]
    while min(level.size) >= 2 * _MIN_LEVEL_SIDE:
        level = _halved(level)
        levels.append(_bordered(level))
    return Sprite(subject, path.name, tuple(levels), _colours(image))


def _bordered(image: Image.Image) -> Image.Image:
    """Add a transparent border of one pixel, into which the edge fades."""
    width, height = image.size
    bordered = Image.new("RGBa", (width + 2, height + 2))
    bordered.paste(image, (1, 1))
    return bordered


def _halved(image: Image.Image) -> Image.Image:
    """Average every two by two pixels; an odd last row or column is paired with transparent pixels."""
    width, height = image.size
    even = Image.new("RGBa", (width + width % 2, height + height % 2))
    even.paste(image, (0, 0))
    return even.reduce(2)


def _colours(image: Image.Image) -> dict[str, float]:
    """Compute the share of the opaque pixels that each colour word covers."""
    opaque = np.asarray(image.getchannel("A")) >= 128
    hue, saturation, value = np.moveaxis(np.asarray(image.convert("RGB").convert("HSV"), np.float32)[opaque], -1, 0)
    degrees = hue * np.float32(360 / 256)
    vivid = (saturation > 0.42 * 255) & (value > 0.45 * 255)
    shares = {"white": float(((saturation < 0.12 * 255) & (value > 0.85 * 255)).mean())}
    for word, first, last in _HUES:
        inside = (degrees >= first) & (degrees <= last) if first < last else (degrees >= first) | (degrees <= last)
        shares[word] = float((inside & vivid).mean())
    return {word: share for word, share in shares.items() if share > 0 and word in COLOURS}


def _read_photograph(path: Path) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(read_image(path, ConfigError))
    scale = _PHOTOGRAPH_SIDE / min(image.size)
    if scale < 1:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS, reducing_gap=3.0
        )
    return np.asarray(image)
