"""World clips as a model in training sees them: sizes, pixels, masks, and what fills each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.placement import letterbox
from refervos.worlds import COLOURS, KINDS, TEXTURES, Clip, Sprites, WorldConfig, draw_clip

UNCLEAR = -100
"""Label of a cell whose content is no clear case (``cross_entropy`` ignores it)."""

COLOUR_NAMES, TEXTURE_NAMES = tuple(COLOURS), tuple(TEXTURES)


def open_sprites(world: WorldConfig) -> Sprites | None:
    """Read the cut-outs of a world once for a whole stage; None where it has none."""
    return None if world.sprites is None else Sprites.open(world.sprites, world.designs)


def kind_names(sprites: Sprites | None) -> tuple[str, ...]:
    """Every kind of thing that a world may show: the shapes, then what the cut-outs show."""
    return (*KINDS, *(() if sprites is None else sprites.subjects))


def frame_size(image_size: int, aspect: float) -> tuple[int, int]:
    """Height and width of a frame whose long side fills the model's square.

    Args:
        image_size: Side of the square.
        aspect: Width over height.

    Returns:
        Height and width.
    """
    return (round(image_size / aspect), image_size) if aspect >= 1 else (image_size, round(image_size * aspect))


def draw_framed(
    seed: Sequence[int],
    world: WorldConfig,
    frames: int,
    aspects: Sequence[float],
    image_size: int,
    sprites: Sprites | None = None,
) -> Clip:
    """Draw a clip in one of several aspect ratios.

    Args:
        seed: The clip and its size follow from it.
        world: What scenes are like; its size and length are replaced.
        frames: Length.
        aspects: Width over height, one is chosen.
        image_size: Side of the model's square, the clip's long side.
        sprites: The world's cut-outs, see ``open_sprites``.

    Returns:
        The clip.
    """
    rng = np.random.default_rng([*seed, 1])
    height, width = frame_size(image_size, float(rng.choice(aspects)))
    return draw_clip([*seed, 0], replace(world, height=height, width=width, frames=frames), sprites)


def recoloured(frames: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Mix the colour channels of a clip a little, and make it brighter or darker.

    Args:
        frames: RGB (T, H, W, 3).
        strength: Standard deviation of what each channel gets of each other and of itself; 0 leaves all as it is.
        rng: Chooses; the same for all frames.

    Returns:
        RGB (T, H, W, 3).
    """
    if not strength:
        return frames
    mixed = np.eye(3, dtype=np.float32) + strength * rng.standard_normal((3, 3)).astype(np.float32)
    lighter = np.float32(100 * strength * rng.standard_normal())
    return (frames.astype(np.float32) @ mixed + lighter).clip(0, 255).astype(np.uint8)


def place_frames(frames: npt.NDArray[np.uint8], image_size: int) -> Tensor:
    """Frames (T, H, W, 3) letterboxed and normalised, float32 (T, 3, S, S)."""
    height, width = frames.shape[1:3]
    placement = letterbox((height, width), image_size, image_size)
    return torch.stack([placement.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames])


def place_masks(masks: npt.NDArray[np.bool_], image_size: int) -> Tensor:
    """Masks (..., H, W) of frames that fill the square's long side, padded to bool (..., S, S)."""
    height, width = masks.shape[-2:]
    return F.pad(torch.from_numpy(masks), (0, image_size - width, 0, image_size - height))


MOVEMENTS = 6
"""Numbers that tell how what fills a cell moves, see ``cell_movements``."""


def cell_movements(clip: Clip, image_size: int, cell: int, reach: int) -> Tensor:
    """Tell how what fills each square cell moves.

    Args:
        clip: The clip.
        image_size: Side S of the model's square.
        cell: Side of a cell in pixels.
        reach: Frames in a window, the frame itself included.

    Returns:
        float32 (T, S/cell, S/cell, 6), each of them around one for what moves clearly: the way over the window along x
        and y, the last step along x and y, growth over the window, and the last turn. NaN where the background or the
        border of an object is, and in the first frame.
    """
    cover = F.avg_pool2d(place_masks(clip.masks, image_size).float(), cell)  # (K, T, n, n)
    most, which = cover.max(dim=0)  # (T, n, n)
    times = np.arange(len(clip.frames))
    first, before = np.maximum(times - reach + 1, 0), np.maximum(times - 1, 0)
    moved = np.concatenate(
        [
            4 * (clip.centres - clip.centres[:, first]),
            30 * (clip.centres - clip.centres[:, before]),
            5 * np.log(clip.radii / clip.radii[:, first])[..., None],
            5 * (clip.angles - clip.angles[:, before])[..., None],
        ],
        axis=-1,
    )  # (K, T, 6)
    movements = torch.from_numpy(moved.astype(np.float32))[which, torch.arange(len(times))[:, None, None]]
    movements[most <= 0.4] = torch.nan
    movements[0] = torch.nan
    return movements


def cell_names(clip: Clip, image_size: int, cell: int, kinds: Sequence[str] = tuple(KINDS)) -> Tensor:
    """What fills each of the square cells that the recognition loss names.

    Args:
        clip: The clip.
        image_size: Side S of the model's square.
        cell: Side of a cell in pixels.
        kinds: The kinds that are named, see ``kind_names``.

    Returns:
        int64 (T, S/cell, S/cell, 3): position of the kind in ``kinds`` (their count for background), of the
        colour in ``COLOUR_NAMES`` and of the texture in ``TEXTURE_NAMES``; ``UNCLEAR`` where there is none or it is
        unclear.
    """
    cover = F.avg_pool2d(place_masks(clip.masks, image_size).float(), cell)  # (K, T, S/cell, S/cell)
    most, which = cover.max(dim=0)
    objects = clip.scene.objects
    clear = most > 0.35
    labels = []
    for names, words in (
        (kinds, [thing.kind for thing in objects]),
        (COLOUR_NAMES, [thing.colour for thing in objects]),
        (TEXTURE_NAMES, [thing.texture for thing in objects]),
    ):
        known = torch.tensor([list(names).index(word) if word in names else UNCLEAR for word in words])
        labels.append(torch.where(clear, known[which], UNCLEAR))
    labels[0] = torch.where(cover.sum(0) < 0.02, len(kinds), labels[0])
    return torch.stack(labels, dim=-1)
