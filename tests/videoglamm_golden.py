"""Golden numbers of the released VideoGLaMM code (mbzuai-oryx/VideoGLaMM, commit 6b15b1e) at a miniature size.

``data/videoglamm/README.md`` says how they were computed and what each file holds. Weights are rebuilt from their names
and pass through the converter; inputs are rebuilt from integer formulas.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden import DATA, Golden, noise, synthetic_frame
from refervos.placement import IMAGE_MEAN, IMAGE_STD
from refervos.videoglamm.checkpoints import load_official
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig
from refervos.videoglamm.frames import CLIP_MEAN, CLIP_STD, EncoderPixels
from refervos.videoglamm.language import IMAGE
from refervos.videoglamm.model import VideoGlamm

HERE = DATA / "videoglamm"
CONFIG = VIDEOGLAMM_PRESETS["miniature"]
SEG = CONFIG.seg
PRE = [1, 32, 210, 15, 77]
POST = [13, 301, 44, 8, 99, 260, 7, 35, 402, 18]
POST_B = [13, 88, 451, 6, 310, 29]
ANSWERS = {
    "A0": [120, 64, 333, 9, 71, 2],
    "A1": [120, 64, SEG, 9, 71, 2],
    "A2": [120, SEG, 64, 333, SEG, 2],
    "A3": [SEG, 120, 64, SEG, 333, 9, SEG, 2],
    "A5": [55, SEG, SEG, 120, SEG, 64, SEG, 333, SEG, 2],
}


@functools.cache
def golden(name: str) -> Golden:
    """One file of numbers."""
    return Golden(HERE / f"{name}.npz")


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """The manifest: for each tensor, by its merged name, how its value is made."""
    found: dict[str, dict[str, Any]] = json.loads((HERE / "manifest.json").read_text())["entries"]
    return found


@functools.cache
def value_of(name: str) -> np.ndarray:
    """The value of a tensor of the manifest, float32."""
    entry = entries()[name]
    if entry["kind"] == "zero":
        return np.zeros(entry["shape"], np.float32)
    return (entry["offset"] + entry["scale"] * noise(name, entry["shape"])).astype(np.float32)


def official_state(*, merged: bool = False, wrapped: bool = False) -> dict[str, Tensor]:
    """The released model's state dict, by merged names or by those that peft gives.

    Args:
        merged: Add the low-rank adaptation to the weights, in float64.
        wrapped: Names as in the model that was run.
    """
    state = {}
    for name, entry in entries().items():
        value = value_of(name)
        if merged and ".lora_" in name:
            continue
        if merged and name.endswith("qkv_proj.weight"):
            stem = name.removesuffix(".weight")
            down, up = (value_of(f"{stem}.lora_{part}.default.weight").astype(np.float64) for part in "AB")
            value = (value + 2 * up @ down).astype(np.float32)
        if not merged and name.endswith("qkv_proj.weight") and not wrapped:
            name = name.replace(".weight", ".base_layer.weight")
        state[entry["official"] if wrapped else name] = torch.from_numpy(value)
    return state


def write_checkpoint(folder: Path, **form: bool) -> Path:
    """Write ``official_state`` as a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in official_state(**form).items()}, folder / "model.safetensors"
    )
    return folder


def released_model(folder: Path, config: VideoGlammConfig = CONFIG) -> VideoGlamm:
    """The model of the goldens, through the converter."""
    return load_official(write_checkpoint(folder, wrapped=True), config=config)


# Inputs.


def _pixels(count: int, size: int, left: int, mean: Any, deviation: Any, start: int, step: int = 1) -> Tensor:
    top = (144 - size) // 2
    frames = [synthetic_frame(start + step * t)[top : top + size, left : left + size] for t in range(count)]
    values = (np.stack(frames).astype(np.float64) / 255.0 - np.array(mean)) / np.array(deviation)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32))


@functools.cache
def encoder_pixels(start: int = 0) -> EncoderPixels:
    """What the encoders see of video A (start 0) or B (start 7)."""
    clip = _pixels(16, 84, 50, CLIP_MEAN, CLIP_STD, start)
    return EncoderPixels(clip, _pixels(16, 56, 60, IMAGE_MEAN, IMAGE_STD, start))


def sam_frames(count: int, start: int = 0) -> Tensor:
    """What SAM2 sees (count, 3, 128, 128)."""
    return _pixels(count, 128, 64, IMAGE_MEAN, IMAGE_STD, start, step=2)


def prompt(post: list[int] = POST, images: int = 16) -> list[int]:
    """Token ids of a prompt."""
    return [*PRE, *[IMAGE] * images, *post]


def gt_masks(count: int, frames: int, height: int, width: int, first: int = 0) -> Tensor:
    """Ground truth: discs that move, float32 (count, frames, height, width)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    masks = np.zeros((count, frames, height, width), np.float32)
    for row in range(count):
        k = first + row
        for t in range(frames):
            cx, cy, radius = 30 + 25 * k + 3 * t, 40 + 8 * k - t, 14 + 4 * k
            masks[row, t] = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    return torch.from_numpy(masks)


def probe_places(count: int, probes: int) -> np.ndarray:
    """Flat places at which a tensor of ``count`` numbers is probed."""
    return (np.arange(probes, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(count)).astype(np.int64)


def unpacked(numbers: Golden, key: str) -> np.ndarray:
    """Masks that are stored as bits."""
    shape = tuple(numbers[f"{key}_shape"])
    return np.unpackbits(numbers[f"{key}_packed"])[: math.prod(shape)].reshape(shape).astype(bool)
