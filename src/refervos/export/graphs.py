"""The graphs of the streaming step: each is one function of the loop in ``samwise/streamer.py``, tensors in and out.

Memory, windows and every decision stay outside, in the loop that PyTorch models run too.
Shapes as there: N tracks (n of them in a group), L tokens, C = SAM2's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from refervos.sam2.memory import MemoryTensors
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.samwise.model import Samwise

ADAPTERS = 3
"""Adapters, and with them windows, that a track has."""

EXAMPLES = {"sentences": 2, "tokens": 5, "window": 3, "maps": 4, "pointers": 6, "prompt_tokens": 3}
"""Sizes that are open in the graphs, and what they are traced with: no two alike where they meet, none below 2."""

INTEGERS = {"ids", "verbs", "slots", "ages"}
"""Inputs that are int64; all others are float32."""

Shape = tuple[int | str, ...]
"""Sizes, the open ones by name."""


@dataclass(frozen=True)
class Graph:
    """One graph to be written.

    Attributes:
        name: Its file is ``NAME.onnx``.
        weights: What the function uses.
        function: What is computed.
        inputs: Shapes by name, in the function's order; float32 unless they are in ``INTEGERS``.
        outputs: Names, in the function's order.
    """

    name: str
    weights: nn.Module
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]

    def examples(self) -> tuple[Tensor, ...]:
        """Inputs to trace with."""
        made = []
        for name, shape in self.inputs.items():
            sizes = [EXAMPLES[size] if isinstance(size, str) else size for size in shape]
            made.append(torch.ones(sizes, dtype=torch.int64) if name in INTEGERS else torch.rand(sizes))
        return tuple(made)


def streaming_step(model: Samwise) -> list[Graph]:
    """The graphs that one frame of a stream goes through.

    Args:
        model: Online, in evaluation mode, float32.
    """
    config, sam2 = model.config, model.config.sam2
    tracker, grid, hidden, side = model.tracker, sam2.grid, sam2.hidden, sam2.image_size
    top: Shape = ("sentences", hidden, grid, grid)
    prompts: Shape = ("sentences", "prompt_tokens", hidden)
    token: Shape = ("sentences", hidden)
    score: dict[str, Shape] = {"score": ("sentences",)} if sam2.object_score else {}
    seen: dict[str, Shape] = {"second": (1, 2 * grid, 2 * grid, sam2.stage_widths[1])}
    asked: dict[str, Shape] = {"ids": ("sentences", "tokens")}
    if config.motion_prompt:
        asked["verbs"] = ("sentences", "tokens")
    past = {
        f"past_{index}": ("sentences" if index else 1, patches, "window", tokens, config.adapter_width)
        for index, (patches, tokens) in enumerate(config.window_patches)
    }
    remembered = {
        "maps": ("sentences", "maps", sam2.memory_width, grid, grid),
        "slots": ("maps",),
        "pointers": ("sentences", "pointers", hidden),
        "ages": ("pointers",),
    }
    fine: Shape = ("sentences", hidden // 8, 4 * grid, 4 * grid)
    middle: Shape = ("sentences", hidden // 4, 2 * grid, 2 * grid)
    mask: Shape = ("sentences", 1, side, side)
    inside = [f"inside_{index}" for index in range(ADAPTERS)]
    decoded = ("mask_logits", "ious", "tokens", "early_tokens", *score)
    return [
        Graph("shared", tracker, partial(_shared, tracker), {"pixels": (1, 3, side, side)}, ("fine", "second")),
        Graph(
            "tracks", model, partial(_tracks, model), {**seen, **asked, **past}, ("middle", "top", "prompts", *inside)
        ),
        Graph("condition", tracker, partial(_condition, tracker), {"top": top, **remembered}, ("conditioned",)),
        Graph("without_memory", tracker, tracker.without_memory, {"top": top}, ("conditioned",)),
        Graph(
            "decode",
            tracker,
            partial(_decode, tracker),
            {"conditioned": top, "fine": fine, "middle": middle, "prompts": prompts},
            decoded,
        ),
        Graph("early_token", tracker, tracker.early_token, {"conditioned": top, "prompts": prompts}, ("token",)),
        Graph("switch", model.cme, model.cme, {"tracked": token, "unbiased": token}, ("logits",)),
        Graph("pointer", tracker, partial(_pointer, tracker), {"token": token, **score}, ("pointer",)),
        Graph("remember", tracker, partial(_remember, tracker), {"top": top, "mask_logits": mask, **score}, ("map",)),
    ]


def _shared(tracker: Sam2Tracker, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patch embedding and the first two image stages; of the first, what the pyramid makes of it."""
    first = tracker.encode_stage(0, tracker.embed_patches(pixels))
    return tracker.fine_level(first), tracker.encode_stage(1, first)


@dataclass(frozen=True)
class _Windows:
    """A ``Lookback`` at one frame whose windows come in and go out as tensors."""

    past: Sequence[Tensor]
    inside: list[Tensor] = field(default_factory=list)

    def before(self, adapter: int) -> Tensor:
        return self.past[adapter]

    def keep(self, adapter: int, inside: Tensor) -> None:
        assert adapter == len(self.inside)
        self.inside.append(inside[:, 0])  # (N, P, S, A), at the first adapter (1, P, S, A)


def _tracks(model: Samwise, second: Tensor, ids: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The rest of early fusion for one frame."""
    verbs, windows = others[:-ADAPTERS], _Windows(others[-ADAPTERS:])
    stages, text = model.encode_stages(second.unsqueeze(0), ids, windows=windows)
    levels = model.tracker.coarse_levels(*(stage[:, 0] for stage in stages))
    prompts = [model.tracker.padding_points(text.shape[0]), model.text_prompt(text[:, :1])]  # (N, 2, C), (N, 1, C)
    if model.motion_prompt is not None:
        moving = verbs[0].to(text.dtype).unsqueeze(1)  # (N, 1, L)
        mean = (moving @ text) / moving.sum(dim=2, keepdim=True).clamp(min=1)  # (N, 1, D)
        prompts.append(model.motion_prompt(mean))  # (N, 1, C), to be left out where no token tells motion
    return *levels, torch.cat(prompts, dim=1), *windows.inside


def _condition(
    tracker: Sam2Tracker, top: Tensor, maps: Tensor, slots: Tensor, pointers: Tensor, ages: Tensor
) -> Tensor:
    return tracker.condition_on(top, MemoryTensors(maps, slots, pointers, ages))


def _decode(
    tracker: Sam2Tracker, conditioned: Tensor, fine: Tensor, middle: Tensor, prompts: Tensor
) -> tuple[Tensor, ...]:
    """The mask decoder; it reads the two fine levels of the pyramid only."""
    decoded = tracker.decode(conditioned, FrameFeatures(fine, middle, conditioned), prompts)
    outputs = (decoded.mask_logits, decoded.ious, decoded.tokens, decoded.early_tokens)
    return outputs if decoded.score is None else (*outputs, decoded.score)


def _pointer(tracker: Sam2Tracker, token: Tensor, score: Tensor | None = None) -> Tensor:
    return tracker.pointer(token, score)


def _remember(tracker: Sam2Tracker, top: Tensor, mask_logits: Tensor, score: Tensor | None = None) -> Tensor:
    return tracker.remember(top, mask_logits, score)
