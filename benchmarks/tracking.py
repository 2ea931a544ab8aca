"""Compare the cost of a frame on a CPU: SAMWISE with sentences, and transformers' own SAM2 with one clicked object.

Both have random weights of the same shape, get the same frames and alternate, so that other load on the machine affects
both. Times are processor time. Run it from a clone with the ``dev`` extra:
``OMP_NUM_THREADS=1 python benchmarks/tracking.py``.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refervos.bench.memory import peak_resident_megabytes
from refervos.bench.plain_sam2 import PlainSam2
from refervos.samwise.config import SAMWISE_PRESETS, SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.samwise.track import SamwiseTrack

FRAME_SIZE = (720, 1280)
SENTENCE = (0, 627, 1354, 634, 2)
"""Token ids, chosen arbitrarily because the weights are random."""


# Clock


@dataclass
class Clock:
    """Processor seconds by name, with separate user and system time."""

    user: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    system: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        start = os.times()
        yield
        end = os.times()
        self.user[name] += end.user - start.user
        self.system[name] += end.system - start.system

    def total(self, name: str) -> float:
        """Return the sum of user and system time."""
        return self.user[name] + self.system[name]

    def wrap(self, owner: object, method: str, name: Callable[..., str]) -> None:
        """Measure all later calls of an object's method; ``name`` gets the arguments."""
        call = getattr(owner, method)

        def measured(*args: Any, **options: Any) -> Any:
            with self.measure(name(*args)):
                return call(*args, **options)

        setattr(owner, method, measured)

    def hook(self, module: nn.Module, name: str) -> None:
        """Measure all later forward passes of a module."""
        self.wrap(module, "forward", lambda *args: name)


# The two trackers


def frames_of(count: int) -> list[Tensor]:
    """Draw drifting smooth noise, uint8 (3, H, W) each."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 24, 42)).astype(np.float32))
    wide = nn.functional.interpolate(coarse, (FRAME_SIZE[0], FRAME_SIZE[1] + 8 * count), mode="bicubic")
    wide = wide.clamp(0, 255).to(torch.uint8)[0]
    return [wide[..., 8 * time : 8 * time + FRAME_SIZE[1]].contiguous() for time in range(count)]


def transformers(preset: str, clock: Clock) -> PlainSam2:
    """Build transformers' ``Sam2VideoModel`` in float32, which tracks one clicked object."""
    plain = PlainSam2(SAMWISE_PRESETS[preset].sam2)
    randomise(plain.model)
    for part in ("vision_encoder", "memory_attention", "mask_decoder", "memory_encoder"):
        clock.hook(getattr(plain.model, part), f"transformers: {part.replace('_', ' ')}")
    return plain


class Referring:
    """SAMWISE with sentences, clip by clip, with frames and masks at the video's size.

    Args:
        preset: Name of the preset.
        dtype: Type of weights and activations.
        count: Number of sentences.
        clock: Clock of its parts.
    """

    def __init__(self, preset: str, dtype: torch.dtype, count: int, clock: Clock) -> None:
        self.model = Samwise(SAMWISE_PRESETS[preset])
        randomise(self.model)
        self.model.to(dtype)
        self.tracks = [self.model.begin_tokens((*SENTENCE[:-1], 100 + index, 2)) for index in range(count)]
        prefix = f"{name_of(dtype)}: "
        tracker = self.model.tracker
        clock.wrap(tracker, "embed_patches", lambda *args: prefix + "patches, stages 1 and 2")
        clock.wrap(tracker, "encode_stage", lambda stage, *args: prefix + (STAGES[stage] if stage > 1 else STAGES[0]))
        for adapter in self.model.adapters:
            clock.hook(adapter, prefix + "adapters")
        clock.wrap(self.model.text, "run_segment", lambda *args: prefix + "text")
        for method in ("fine_level", "coarse_levels"):
            clock.wrap(tracker, method, lambda *args: prefix + "pyramid")
        clock.wrap(tracker, "condition", lambda *args: prefix + "memory attention")
        clock.wrap(tracker, "decode", lambda *args: prefix + "decoder")
        clock.wrap(tracker, "upsample", lambda *args: prefix + "masks to full size")
        clock.wrap(tracker, "remember", lambda *args: prefix + "memory encoder")
        self.restore = partial(self._restore, clock, prefix + "masks to full size")

    def segment(self, frames: Sequence[Tensor]) -> Tensor:
        """Return the mask logits (T, N, H, W) of frames (3, H, W)."""
        placement = self.model.placement(FRAME_SIZE)
        pixels = torch.stack([placement.place(frame) for frame in frames])
        predictions = self.model.segment_clip(pixels, self.tracks, [placement] * len(frames))
        return torch.stack([self.restore(placement, prediction.mask_logits) for prediction in predictions])

    @staticmethod
    def _restore(clock: Clock, name: str, placement: Any, logits: Tensor) -> Tensor:
        with clock.measure(name):
            restored: Tensor = placement.restore(logits)
            return restored


STAGES = ("patches, stages 1 and 2", "patches, stages 1 and 2", "stage 3", "stage 4")


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def randomise(model: nn.Module) -> None:
    """Draw weights that keep activations near one; transformers' own initialisation has many zeros."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.named_parameters()):
        if tensor.ndim < 2:
            continue
        with torch.no_grad():
            scale = 0.5 if "embed" in name else tensor[0].numel() ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)


# Tables


def tracking(preset: str, clip: int, dtypes: Sequence[torch.dtype], repeats: int) -> None:
    """Print the cost of a frame with a full memory, in total and by part."""
    clock = Clock()
    baseline_model = transformers(preset, clock)
    models = {dtype: Referring(preset, dtype, 1, clock) for dtype in dtypes}
    frames = frames_of((repeats + 1) * clip)

    def track_click(clip_part: Sequence[Tensor]) -> None:
        for frame in clip_part:
            with clock.measure("transformers"):
                baseline_model.step(frame.permute(1, 2, 0))

    with torch.inference_mode():
        for repeat in range(repeats + 1):
            if repeat == 1:  # the memory is full
                clock.user.clear()
                clock.system.clear()
            part = frames[repeat * clip : (repeat + 1) * clip]
            track_click(part[: clip // 2])
            for dtype, samwise in models.items():
                with clock.measure(name_of(dtype)):
                    samwise.segment(part)
            track_click(part[clip // 2 :])
            print(f"{(repeat + 1) * clip} frames", file=sys.stderr, flush=True)
    counted = repeats * clip
    baseline = clock.total("transformers")
    print("\na frame with a full memory | user s | system s | both | ratio")
    for name in ("transformers", *map(name_of, dtypes)):
        print(
            f"{name} | {clock.user[name] / counted:.2f} | {clock.system[name] / counted:.2f} | "
            f"{clock.total(name) / counted:.2f} | {clock.total(name) / baseline:.2f}"
        )
    print("\npart | user ms | system ms")
    for name in sorted(name for name in clock.user if ": " in name):
        print(f"{name} | {1e3 * clock.user[name] / counted:.0f} | {1e3 * clock.system[name] / counted:.0f}", flush=True)


def fill(track: SamwiseTrack, config: SamwiseConfig) -> None:
    """Fill a track's memory with random content, as after many frames."""
    memory, sam2 = track.memory, config.sam2
    generator = torch.Generator().manual_seed(0)
    for frame in range(memory.pointer_limit):
        features = torch.randn(sam2.memory_width, sam2.grid, sam2.grid, generator=generator)
        memory.store(frame, features, torch.randn(sam2.hidden, generator=generator))
    track.frame = memory.pointer_limit


def sentences(preset: str, clip: int, dtype: torch.dtype, count: int) -> None:
    """Print the cost of each of several sentences relative to a single one, with full memories."""
    clock = Clock()
    frames = frames_of(clip)
    with torch.inference_mode():
        for name, several in (("warm", 1), ("one", 1), ("several", count)):
            samwise = Referring(preset, dtype, several, clock)
            for track in samwise.tracks:
                fill(track, samwise.model.config)
            with clock.measure(name):
                samwise.segment(frames)
    alone, each = clock.total("one") / clip, clock.total("several") / clip / count
    print(f"\n{name_of(dtype)}, full memories: one sentence {alone:.2f} s a frame, ", end="")
    print(f"each of {count} {each:.2f} s: {each / alone:.2f}", flush=True)


def memory(preset: str, clip: int, dtype: torch.dtype) -> None:
    """Print the peak resident memory of this process after two clips."""
    frames = frames_of(2 * clip)
    with torch.inference_mode():
        samwise = Referring(preset, dtype, 1, Clock())
        built = peak_resident_megabytes() or math.nan
        for part in (frames[:clip], frames[clip:]):
            samwise.segment(part)
    peak = peak_resident_megabytes() or math.nan
    print(f"{name_of(dtype)}: peak {peak:.0f} MB resident, {built:.0f} MB once built", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=SAMWISE_PRESETS, default="base-plus")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["tracking", "memory"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip", type=int, default=8, help="frames of a clip")
    parser.add_argument("--repeats", type=int, default=1, help="clips measured, after one that fills the memory")
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--here", action="store_true", help="measure memory in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    if "tracking" in arguments.parts:
        tracking(arguments.preset, arguments.clip, dtypes, arguments.repeats)
    if "memory" in arguments.parts:
        for name, dtype in zip(arguments.dtypes, dtypes, strict=True):
            if arguments.here:
                memory(arguments.preset, arguments.clip, dtype)
                continue
            # Each in its own process: the peak of a process never falls.
            options = ["--preset", arguments.preset, "--clip", str(arguments.clip), "--dtypes", name]
            again = [sys.executable, __file__, "--parts", "memory", "--here", "--threads", str(arguments.threads)]
            subprocess.run([*again, *options], check=True)
    if "sentences" in arguments.parts:
        for dtype in dtypes:
            sentences(arguments.preset, arguments.clip, dtype, arguments.sentences)


PARTS = ("tracking", "memory", "sentences")

if __name__ == "__main__":
    main()
