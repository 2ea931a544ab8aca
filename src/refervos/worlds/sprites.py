"""Cut-out pictures of real things as objects of a clip: a folder of images with an alpha channel.

The name says what a picture shows: ``cat.png``, ``cat_2.png`` and ``red fox-01.png`` show a cat, a cat and a red fox.
A picture in a sub-folder shows what the sub-folder is named after. A folder ``grounds`` holds photographs for the
background instead.
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
"""Pictures are kept at this many pixels at most: more than a clip of 720 lines can show."""

GROUNDS = "grounds"
"""The sub-folder of photographs for backgrounds."""

_SUFFIXES = {".png", ".webp"}
_PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".webp"}
_GROUND_SIDE = 640  # pixels of a photograph's short side that are kept
_FEWEST_PIXELS = 4  # a level of the pyramid narrower than this shows nothing

_HUES: tuple[tuple[str, float, float], ...] = (
    ("red", 345, 12),
    ("orange", 20, 38),
    ("yellow", 44, 62),
    ("green", 80, 160),
    ("blue", 190, 250),
    ("purple", 260, 295),
    ("pink", 305, 340),
)
"""The colour words and the degrees of hue for which each is beyond doubt; what lies between has no name."""

_MOSTLY = 0.7  # share of the picture that a colour must have to name it ...
_HARDLY = 0.04  # ... and that another must not have, for the picture not to be called by it


@dataclass(frozen=True, eq=False)
class Sprite:
    """One cut-out.

    Attributes:
        subject: The noun for it, such as "red fox".
        name: The file it came from.
        levels: The picture at full, half, quarter ... size, colours multiplied by alpha (PIL's mode ``RGBa``), cropped
            to what is not transparent and with a transparent border of one pixel.
        colours: Share of the picture in each colour word that is in it.
    """

    subject: str
    name: str
    levels: tuple[Image.Image, ...]
    colours: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def colour(self) -> str:
        """The colour word that nearly all of the picture has, or empty."""
        most = max(self.colours, key=lambda word: self.colours[word], default="")
        return most if most and self.colours[most] >= _MOSTLY else ""

    def may_be_called(self, colour: str) -> bool:
        """Tell whether it is unclear that the picture does not have a colour."""
        return not self.colour or self.colours.get(colour, 0.0) > _HARDLY

    def draw(
        self,
        box: tuple[slice, slice],
        centre: tuple[float, float],
        radius: float,
        angle: float,
        mirrored: bool = False,
    ) -> Floats:
        """Draw the picture into a box of a frame.

        Args:
            box: Rows and columns.
            centre: Where the picture's centre is in the frame: x and y in pixels.
            radius: Half the picture's diagonal as it is shown, pixels.
            angle: How far it is turned clockwise, radians.
            mirrored: Whether left and right are exchanged, before it is turned.

        Returns:
            float32 (h, w, 4): colours in grey levels multiplied by alpha, and alpha in [0, 1].
        """
        return np.asarray(self._turned(box, centre, radius, angle, mirrored), np.float32) * _SCALE

    def cover(
        self,
        box: tuple[slice, slice],
        centre: tuple[float, float],
        radius: float,
        angle: float,
        mirrored: bool = False,
    ) -> Floats:
        """Draw the alpha channel alone, see ``draw``: float32 (h, w) in [0, 1]."""
        turned = self._turned(box, centre, radius, angle, mirrored)
        return np.asarray(turned, np.float32)[..., 3] / np.float32(255)

    def _turned(
        self, box: tuple[slice, slice], centre: tuple[float, float], radius: float, angle: float, mirrored: bool
    ) -> Image.Image:
        width, height = (side - 2 for side in self.levels[0].size)
        scale = 0.5 * float(np.hypot(width, height)) / radius  # pixels of the picture per pixel of the frame
        level = min(max(int(np.floor(np.log2(max(scale, 1e-6)))), 0), len(self.levels) - 1)
        picture = self.levels[level]
        width, height = (side - 2 for side in picture.size)
        scale = 0.5 * float(np.hypot(width, height)) / radius
        rows, columns = box
        # From a point of the box to a point of the picture: move to the centre, turn back, scale.
        cos, sin = scale * float(np.cos(angle)), scale * float(np.sin(angle))
        x, y = columns.start - centre[0], rows.start - centre[1]
        side = -1 if mirrored else 1
        matrix = (
            *(side * cos, side * sin, side * (cos * x + sin * y) + 0.5 * width + 1),
            *(-sin, cos, cos * y - sin * x + 0.5 * height + 1),
        )
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


_SCALE = np.array([1, 1, 1, 1 / 255], np.float32)


@dataclass(frozen=True, eq=False)
class Sprites:
    """A folder of cut-outs.

    Attributes:
        pictures: All of them, in the order of their paths.
        grounds: Photographs for backgrounds, uint8 RGB (H, W, 3) each.
    """

    pictures: tuple[Sprite, ...]
    grounds: tuple[npt.NDArray[np.uint8], ...] = ()

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """What the pictures show, each named once, in alphabetical order."""
        return tuple(sorted(self.by_subject))

    @cached_property
    def by_subject(self) -> Mapping[str, Sequence[Sprite]]:
        """The pictures of each subject."""
        found: dict[str, list[Sprite]] = {}
        for picture in self.pictures:
            found.setdefault(picture.subject, []).append(picture)
        return found

    @classmethod
    def open(cls, folder: str | Path, designs: Sequence[str] = ()) -> Sprites:
        """Read every PNG and WebP picture of a folder and of its sub-folders.

        Args:
            folder: The folder.
            designs: Names of its sub-folders to read, default all of it. Those of ``grounds`` are always read.

        Returns:
            The pictures; they stay in memory.

        Raises:
            ConfigError: When the folder is missing or has no pictures, or a picture has no alpha channel, nothing to
                see, or no subject in its name.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ConfigError(f"{folder}: no such folder of sprites; give one that holds PNG or WebP cut-outs.")
        for design in designs:
            if not (root / design).is_dir():
                known = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
                raise ConfigError(f"{folder}: has no sub-folder {design!r}; its sub-folders are {known}.")
        roots = [root / design for design in designs] if designs else [root]
        files = sorted(
            path
            for some in roots
            for path in some.rglob("*")
            if path.suffix.lower() in _SUFFIXES and path.is_file() and path.relative_to(root).parts[0] != GROUNDS
        )
        if not files:
            raise ConfigError(f"{folder}: holds no PNG or WebP files; sprites are such files with an alpha channel.")
        photographs = sorted(path for path in (root / GROUNDS).glob("*") if path.suffix.lower() in _PHOTOGRAPHS)
        return cls(tuple(_read(path, root) for path in files), tuple(_read_photograph(path) for path in photographs))


def subject_of(name: str) -> str:
    """The noun in a file's or folder's name: ``Red_fox-01`` shows a "red fox".

    Args:
        name: The name, without suffix.

    Returns:
        Words in lower case, without numbers; empty when nothing is left.
    """
    words = re.split(r"[\s_.()]+|-(?![a-z])|(?<![a-z])-", name.lower())
    return " ".join(word for word in words if word and not word.isdigit())


def _read(path: Path, root: Path) -> Sprite:
    """One picture, cropped, shrunk and with its pyramid."""
    subject = subject_of(path.parent.name if path.parent != root else path.stem)
    if not subject:
        raise ConfigError(f"{path}: its name does not say what it shows; name it after its subject, such as cat.png.")
    with opened_image(path, ConfigError) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            raise ConfigError(f"{path}: has no alpha channel; sprites are cut-outs on a transparent ground.")
        picture = image.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
    if box is None:
        raise ConfigError(f"{path}: is transparent everywhere; sprites need pixels with an alpha of at least a half.")
    picture = picture.crop(box)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    level = picture.convert("RGBa")
    levels = [_bordered(level)]
    while min(level.size) >= 2 * _FEWEST_PIXELS:
        level = _halved(level)
        levels.append(_bordered(level))
    return Sprite(subject, path.name, tuple(levels), _colours(picture))


def _bordered(picture: Image.Image) -> Image.Image:
    """A picture with a transparent border of one pixel, into which its edge fades."""
    width, height = picture.size
    bordered = Image.new("RGBa", (width + 2, height + 2))
    bordered.paste(picture, (1, 1))
    return bordered


def _halved(picture: Image.Image) -> Image.Image:
    """The mean of every two by two pixels; an odd last row or column is paired with transparency."""
    width, height = picture.size
    even = Image.new("RGBa", (width + width % 2, height + height % 2))
    even.paste(picture, (0, 0))
    return even.reduce(2)


def _colours(picture: Image.Image) -> dict[str, float]:
    """Which share of what is opaque has each colour word."""
    opaque = np.asarray(picture.getchannel("A")) >= 128
    hue, saturation, value = np.moveaxis(np.asarray(picture.convert("RGB").convert("HSV"), np.float32)[opaque], -1, 0)
    degrees = hue * np.float32(360 / 256)
    vivid = (saturation > 0.42 * 255) & (value > 0.45 * 255)
    shares = {"white": float(((saturation < 0.12 * 255) & (value > 0.85 * 255)).mean())}
    for word, first, last in _HUES:
        inside = (degrees >= first) & (degrees <= last) if first < last else (degrees >= first) | (degrees <= last)
        shares[word] = float((inside & vivid).mean())
    return {word: share for word, share in shares.items() if share > 0 and word in COLOURS}


def _read_photograph(path: Path) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(read_image(path, ConfigError))
    scale = _GROUND_SIDE / min(picture.size)
    if scale < 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS, reducing_gap=3.0
        )
    return np.asarray(picture)
