"""Effects that use masks: colour, outline, blur, pixelate, spotlight and cut-out, for previews and exports alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from refervos.errors import VideoError
from refervos.files.images import ImageArray
from refervos.video.overlay import Colour

EffectKind = Literal["colour", "outline", "blur", "pixelate", "spotlight", "cutout"]
Area = Literal["object", "background"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Effect:
    """One effect.

    Attributes:
        kind: ``colour`` tints each object, ``outline`` draws its border, ``blur`` and ``pixelate`` hide an area,
            ``spotlight`` darkens everything but the objects, ``cutout`` replaces it by a colour.
        area: Area that ``blur`` and ``pixelate`` hide: the objects or the background.
        strength: Opacity, width, size of blocks or darkness, from 0 (hardly visible) to 1.
        background: RGB of what ``cutout`` leaves, 0 to 255.

    Raises:
        VideoError: When the kind or the area is unknown, or a number is out of range.
    """

    kind: EffectKind
    area: Area = "background"
    strength: float = 0.5
    background: Colour = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.kind not in get_args(EffectKind):
            raise VideoError(f"the effect {str(self.kind)[:40]!r} is unknown; use {', '.join(get_args(EffectKind))}.")
        if self.area not in get_args(Area):
            raise VideoError(f"the area {str(self.area)[:40]!r} is unknown; use object or background.")
        if not 0 <= self.strength <= 1:
            raise VideoError(f"the strength of an effect is {self.strength}; it must be from 0 to 1.")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise VideoError(f"the background is {self.background}; it must be three numbers from 0 to 255.")


def apply_effects(
    image: ImageArray, masks: Sequence[Mask], colours: Sequence[Colour], effects: Sequence[Effect]
) -> ImageArray:
    """Apply effects to a frame, one after another.

    Args:
        image: uint8 (H, W, 3); not modified.
        masks: bool (H, W) of each object.
        colours: RGB of each object, 0 to 255.
        effects: The effects.

    Returns:
        uint8 (H, W, 3), a new image.

    Raises:
        VideoError: When a mask does not fit the image, or there is not one colour for each mask.
    """
    if len(masks) != len(colours):
        raise VideoError(f"there are {len(masks)} masks and {len(colours)} colours; give one colour for each mask.")
    for mask in masks:
        if mask.shape != image.shape[:2]:
            raise VideoError(f"a mask has shape {mask.shape}; for this frame it must be {image.shape[:2]}.")
    objects = np.logical_or.reduce(list(masks)) if len(masks) else np.zeros(image.shape[:2], bool)
    out = image.copy()
    for effect in effects:
        area = objects if effect.area == "object" else ~objects
        if effect.kind == "colour":
            for mask, colour in zip(masks, colours, strict=True):
                out[mask] = _mixed(out[mask], colour, effect.strength)
        elif effect.kind == "outline":
            width = max(1, round(effect.strength * min(image.shape[:2]) / 50))
            for mask, colour in zip(masks, colours, strict=True):
                out[border(mask, width)] = colour
        elif effect.kind == "blur":
            out[area] = blurred(out, effect.strength)[area]
        elif effect.kind == "pixelate":
            out[area] = pixelated(out, effect.strength)[area]
        elif effect.kind == "spotlight":
            out[~objects] = _mixed(out[~objects], (0, 0, 0), effect.strength)
        else:
            out[~objects] = effect.background
    return out


def border(mask: Mask, width: int) -> Mask:
    """Return the pixels of a mask that are at most so far from its outside, along rows and columns.

    Args:
        mask: bool (H, W).
        width: Width of the border in pixels, at least 1.

    Returns:
        bool (H, W). The edge of the frame is not a border.
    """
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def blurred(image: ImageArray, strength: float) -> ImageArray:
    """Blur an image with a Gaussian whose standard deviation grows to a twelfth of the shorter side.

    Args:
        image: uint8 (H, W, 3).
        strength: 0 to 1.

    Returns:
        uint8 (H, W, 3), a new image.
    """
    radius = max(1.0, strength * min(image.shape[:2]) / 12)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def pixelated(image: ImageArray, strength: float) -> ImageArray:
    """Replace blocks of an image by their means; the blocks grow to an eighth of the shorter side.

    Args:
        image: uint8 (H, W, 3).
        strength: 0 to 1.

    Returns:
        uint8 (H, W, 3), a new image.
    """
    height, width = image.shape[:2]
    block = max(2, round(strength * min(height, width) / 8))
    picture = Image.fromarray(image)
    small = picture.resize((-(-width // block), -(-height // block)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def _mixed(values: npt.NDArray[np.uint8], colour: Colour, opacity: float) -> npt.NDArray[np.uint8]:
    mixed = values.astype(np.float32) * (1 - opacity) + np.array(colour, np.float32) * opacity
    return mixed.round().astype(np.uint8)
