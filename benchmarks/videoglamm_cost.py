"""Cost of VideoGLaMM, calculated from its configuration: tokens, floating-point operations, memory, smallest card.

    python benchmarks/videoglamm_cost.py                     # the published size
    python benchmarks/videoglamm_cost.py --preset miniature

Nothing is measured, and no weights are needed: torch counts the operations of encoders and SAM2 on its meta device, and
those of the language model follow from its sizes. Two operations for each multiply-add.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from refervos.bench.measuring import flop_formulas
from refervos.markdown import markdown_table
from refervos.sam2.memory import MemoryReading
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig
from refervos.videoglamm.model import VideoGlamm

TEXT = 60
"""Tokens of system prompt, template and question: those of the published question for a description."""

CARDS = (4, 6, 8, 12, 16, 24, 32, 48, 80)
"""Memory of common GPUs in GB."""

ACTIVATIONS = 1.0
"""Estimate of the memory of activations in GB, most of them SAM2's at 1024 pixels in bfloat16."""

NF4_BYTES = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits, with a float32 scale for each block of 64."""


@dataclass(frozen=True)
class Step:
    """A step of the computation.

    Attributes:
        name: The step.
        tokens: Its tokens for the language model; None if there are none.
        operations: Floating-point operations.
    """

    name: str
    tokens: int | None
    operations: float


def steps(config: VideoGlammConfig, text: int = TEXT) -> list[Step]:
    """Count the operations of each step.

    Args:
        config: The model's configuration.
        text: Tokens of the prompt without the video.
    """
    model = on_meta(config)
    clip, video, phi = config.clip, config.internvideo, config.phi
    image = torch.empty(config.frames, 3, clip.image_size, clip.image_size, device="meta")
    features = torch.empty(config.frames, clip.grid**2, clip.width, device="meta")
    found = [
        Step(
            f"image encoder, {config.frames} frames",
            config.frames * config.image_tokens,
            count(lambda: model.image_encoder(image)),
        )
    ]
    projecting = count(lambda: model.image_projector(features))
    if video is not None:
        chunks = torch.empty(
            config.frames // video.frames, video.frames, 3, video.image_size, video.image_size, device="meta"
        )
        pooled = torch.empty(config.frames, video.grid**2, video.width, device="meta")
        operations = count(lambda: model.video_encoder(chunks))
        found.append(
            Step(
                f"video encoder, {len(chunks)} chunks of {video.frames} frames",
                config.frames * config.video_tokens,
                operations,
            )
        )
        projecting += count(lambda: model.video_projector(pooled))
    length = config.visual_tokens + text
    found.append(Step("projectors", config.visual_tokens, projecting))
    found.append(Step("language model, linear layers of the prompt", length, length * per_token(config)))
    found.append(Step("language model, attention of the prompt", length, attention(config, 0, length)))
    head = 2 * phi.vocabulary * phi.width
    found.append(
        Step(
            "language model, each generated token", 1, per_token(config) + head + attention(config, length, length + 1)
        )
    )
    found += [Step(name, None, operations) for name, operations in tracking(model, config)]
    return found


def on_meta(config: VideoGlammConfig) -> Any:
    """Build a model without memory for its weights."""
    with torch.device("meta"):
        model = VideoGlamm(replace(config, lora=None))
    return model.to("meta")  # tables of positions too


def count(computation: Callable[[], object]) -> float:
    """Count the operations of a computation."""
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with torch.no_grad(), torch.device("meta"), counter:
        computation()
    return counter.get_total_flops()


def linear_weights(config: VideoGlammConfig) -> int:
    """Return the number of weights in the linear layers of the language model's decoder layers."""
    phi = config.phi
    return phi.layers * phi.width * (4 * phi.width + 3 * phi.feedforward)


def per_token(config: VideoGlammConfig) -> float:
    """Return the operations of a token in the linear layers of the decoder layers."""
    return 2 * linear_weights(config)


def attention(config: VideoGlammConfig, first: int, last: int) -> float:
    """Return the operations of attention for tokens at positions from ``first`` to before ``last``."""
    phi = config.phi
    keys = sum(min(position + 1, phi.window or position + 1) for position in range(first, last))
    return 4 * phi.layers * phi.width * keys


def tracking(model: Any, config: VideoGlammConfig) -> list[tuple[str, float]]:
    """Count the operations of SAM2 for one frame: those shared by all phrases, and those of each phrase."""
    tracker, sam2 = model.tracker, config.sam2
    frame = torch.empty(1, 3, sam2.image_size, sam2.image_size, device="meta")
    shared = count(lambda: tracker.pyramid(tracker.encode(frame)))
    features = tracker.pyramid(tracker.encode(frame))
    maps = [torch.empty(1, sam2.memory_width, sam2.grid, sam2.grid, device="meta")] * sam2.memory_slots
    pointers = [torch.empty(1, sam2.hidden, device="meta")] * sam2.pointer_limit
    memory = MemoryReading(tuple(range(-1, len(maps) - 1)), maps, tuple(range(1, len(pointers) + 1)), pointers)
    mask = torch.empty(1, 1, sam2.image_size, sam2.image_size, device="meta")
    score = torch.empty(1, device="meta")

    def phrase() -> None:
        conditioned = tracker.condition(features.top, memory)
        tracker.decode(conditioned, features, torch.empty(1, 2, sam2.hidden, device="meta"), multimask=True)
        tracker.remember(features.top, mask, score, binary=False)

    return [("SAM2, each frame", shared), ("SAM2, each phrase in a frame, full memory", count(phrase))]


# Memory.


@dataclass(frozen=True)
class Footprint:
    """Memory of a model in a precision.

    Attributes:
        name: The precision.
        weights: GB of weights.
        cache: GB of keys and values of a conversation that fills the attention window.
    """

    name: str
    weights: float
    cache: float

    @property
    def card(self) -> int | None:
        """Smallest common GPU in GB on which it fits; None if it fits on none."""
        needed = self.weights + self.cache + ACTIVATIONS
        return next((card for card in CARDS if card >= needed), None)


def footprints(config: VideoGlammConfig) -> list[Footprint]:
    """Calculate the memory of weights and cache in each precision; only linear layers are quantised."""
    phi, linear = config.phi, linear_weights(config)
    total = sum(parameter.numel() for parameter in on_meta(config).parameters())
    cache = 2 * phi.layers * phi.width * min(phi.window or phi.positions, phi.positions)
    rest = total - linear
    bytes_of = {
        "float32": (4.0 * total, 4 * cache),
        "bfloat16": (2.0 * total, 2 * cache),
        "8 bits": (2.0 * rest + linear, 2 * cache),
        "4 bits": (2.0 * rest + NF4_BYTES * linear, 2 * cache),
    }
    return [Footprint(name, weights / 1e9, kept / 1e9) for name, (weights, kept) in bytes_of.items()]


def tables(config: VideoGlammConfig) -> str:
    """Return both tables in Markdown."""
    rows = [
        [step.name, "" if step.tokens is None else f"{step.tokens:,}", number(step.operations / 1e9)]
        for step in steps(config)
    ]
    sizes = [
        [one.name, f"{one.weights:.1f}", f"{one.cache:.1f}", f"{one.card} GB" if one.card else "none"]
        for one in footprints(config)
    ]
    return "\n\n".join(
        [
            markdown_table(["", "tokens", "GFLOP"], rows),
            markdown_table(
                ["weights", "GB", "GB of keys and values", f"smallest card, with {ACTIVATIONS:.0f} GB of activations"],
                sizes,
            ),
        ]
    )


def number(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(VIDEOGLAMM_PRESETS), default="published")
    print(tables(VIDEOGLAMM_PRESETS[parser.parse_args(arguments).preset]))


if __name__ == "__main__":
    main()
