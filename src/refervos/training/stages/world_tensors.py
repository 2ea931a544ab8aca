"""World clips as training tensors: sizes, pixels, masks, and labels of cells."""

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

UNLABELLED = -100
"""Label of a cell without clear contents (``cross_entropy`` ignores it)."""

COLOUR_NAMES, TEXTURE_NAMES = tuple(COLOURS), tuple(TEXTURES)


def open_sprites(world: WorldConfig) -> Sprites | None:
    """Read the cut-outs of a world once for a whole stage; return None if it has none."""
    return None if world.sprites is None else Sprites.open(world.sprites, world.designs)


def kind_names(sprites: Sprites | None) -> tuple[str, ...]:
    """List all kinds of objects in a world: the shapes, then the subjects of the cut-outs."""
    return (*KINDS, *(() if sprites is None else sprites.subjects))


def frame_size(image_size: int, aspect: float) -> tuple[int, int]:
    """Compute height and width of a frame whose long side fills the model's square.

    Args:
        image_size: Side of the square.
        aspect: Width over height.

    Returns:
        Height and width.
    """
    return (round(image_size / aspect), image_size) if aspect >= 1 else (image_size, round(image_size * aspect))


def random_shape(
    world: WorldConfig, aspects: Sequence[float], image_size: int, rng: np.random.Generator
) -> WorldConfig:
    """Return a world whose clips have one of several aspect ratios.

    Args:
        world: Distribution of scenes; its size is replaced.
        aspects: Width over height; one is chosen at random.
        image_size: Side of the model's square, the clips' long side.
        rng: Random generator.
    """
    height, width = frame_size(image_size, float(rng.choice(aspects)))
    return replace(world, height=height, width=width)


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
        seed: Seed of the clip and its size.
        world: Distribution of scenes; its size and length are replaced.
        frames: Number of frames.
        aspects: Width over height; one is chosen at random.
        image_size: Side of the model's square, the clip's long side.
        sprites: The world's cut-outs, see ``open_sprites``.

    Returns:
        The clip.
    """
    rng = np.random.default_rng([*seed, 1])
    world = random_shape(replace(world, frames=frames), aspects, image_size, rng)
    return draw_clip([*seed, 0], world, sprites)


def jitter_colours(frames: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Jitter the colours of a clip: mix the channels and change the brightness.

    Args:
        frames: RGB (T, H, W, 3).
        strength: Standard deviation of the change of each entry of the mixing matrix; 0 for no change.
        rng: Random generator; all frames get the same change.

    Returns:
        RGB (T, H, W, 3).
    """
    if not strength:
        return frames
    mixed = np.eye(3, dtype=np.float32) + strength * rng.standard_normal((3, 3)).astype(np.float32)
    brightness = np.float32(100 * strength * rng.standard_normal())
    return (frames.astype(np.float32) @ mixed + brightness).clip(0, 255).astype(np.uint8)


def place_frames(frames: npt.NDArray[np.uint8], image_size: int) -> Tensor:
    """Letterbox and normalise frames: (T, H, W, 3) -> float32 (T, 3, S, S)."""
    height, width = frames.shape[1:3]
    placement = letterbox((height, width), image_size, image_size)
    return torch.stack([placement.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames])


def place_masks(masks: npt.NDArray[np.bool_], image_size: int) -> Tensor:
    """Pad masks of frames whose long side fills the square: (..., H, W) -> bool (..., S, S)."""
    height, width = masks.shape[-2:]
    return F.pad(torch.from_numpy(masks), (0, image_size - width, 0, image_size - height))


MOVEMENT_CHANNELS = 6
"""Numbers that describe the movement in a cell, see ``cell_movements``."""


def cell_movements(clip: Clip, image_size: int, cell: int, reach: int) -> Tensor:
    """Compute the movement of the object that fills each square cell.

    Args:
        clip: The clip.
        image_size: Side S of the model's square.
        cell: Side of a cell in pixels.
        reach: Frames in a window, the frame itself included.

    Returns:
        float32 (T, S/cell, S/cell, 6), each number about one for clear movement: displacement over the window along x
        and y, displacement since the last frame along x and y, growth over the window, and rotation since the last
        frame. NaN for background, for borders of objects, and in the first frame.
    """
    cover = F.avg_pool2d(place_masks(clip.masks, image_size).float(), cell)  # (K, T, n, n)
    most, which = cover.max(dim=0)  # (T, n, n)
    times = np.arange(len(clip.frames))
    first, before = np.maximum(times - reach + 1, 0), np.maximum(times - 1, 0)
    movement = np.concatenate(
        [
            4 * (clip.centres - clip.centres[:, first]),
            30 * (clip.centres - clip.centres[:, before]),
            5 * np.log(clip.radii / clip.radii[:, first])[..., None],
            5 * (clip.angles - clip.angles[:, before])[..., None],
        ],
        axis=-1,
    )  # (K, T, 6)
    movements = torch.from_numpy(movement.astype(np.float32))[which, torch.arange(len(times))[:, None, None]]
    movements[most <= 0.4] = torch.nan
    movements[0] = torch.nan
    return movements


def cell_labels(clip: Clip, image_size: int, cell: int, kinds: Sequence[str] = tuple(KINDS)) -> Tensor:
    """Label the contents of square cells for the recognition loss.

    Args:
        clip: The clip.
        image_size: Side S of the model's square.
        cell: Side of a cell in pixels.
        kinds: Classes of kinds, see ``kind_names``.

    Returns:
        int64 (T, S/cell, S/cell, 3): index of the kind in ``kinds`` (their count for background), of the colour in
        ``COLOUR_NAMES`` and of the texture in ``TEXTURE_NAMES``; ``UNLABELLED`` if there is none or it is unclear.
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
        known = torch.tensor([list(names).index(word) if word in names else UNLABELLED for word in words])
        labels.append(torch.where(clear, known[which], UNLABELLED))
    labels[0] = torch.where(cover.sum(0) < 0.02, len(kinds), labels[0])
    return torch.stack(labels, dim=-1)
