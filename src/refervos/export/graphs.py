"""Graphs of the streaming step, each a tensor function of the loop in ``samwise/streamer.py``.

Memory, windows and all decisions stay outside the graphs, in the loop that PyTorch models share.
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
from refervos.samwise.motion import COMPARED_CHANNELS

ADAPTERS = 3
"""Number of adapters, and of a track's windows."""

EXAMPLES = {"sentences": 2, "tokens": 5, "window": 3, "maps": 4, "pointers": 6, "prompt_tokens": 3}
"""Dynamic sizes and their values while tracing: different within a graph, and at least 2."""

INTEGERS = {"ids", "verbs", "slots", "ages"}
"""Inputs that are int64; all others are float32."""

Shape = tuple[int | str, ...]
"""Sizes, dynamic ones by name."""


@dataclass(frozen=True)
class Graph:
    """Function to export as a graph.

    Attributes:
        name: Name of its file without ``.onnx``.
        weights: Module with the weights of the function.
        function: The function.
        inputs: Shapes by name, in the function's order; float32 unless they are in ``INTEGERS``.
        outputs: Names in the function's order.
    """

    name: str
    weights: nn.Module
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]

    def examples(self) -> tuple[Tensor, ...]:
        """Make example inputs for tracing."""
        inputs = []
        for name, shape in self.inputs.items():
            sizes = [EXAMPLES[size] if isinstance(size, str) else size for size in shape]
            inputs.append(torch.ones(sizes, dtype=torch.int64) if name in INTEGERS else torch.rand(sizes))
        return tuple(inputs)


def streaming_step(model: Samwise) -> list[Graph]:
    """List the graphs of one frame of a stream.

    Args:
        model: An online model in evaluation mode and float32.
    """
    config, sam2 = model.config, model.config.sam2
    tracker, grid, hidden, side = model.tracker, sam2.grid, sam2.hidden, sam2.image_size
    top: Shape = ("sentences", hidden, grid, grid)
    prompts: Shape = ("sentences", "prompt_tokens", hidden)
    token: Shape = ("sentences", hidden)
    score: dict[str, Shape] = {"score": ("sentences",)} if sam2.object_score else {}
    image: dict[str, Shape] = {"second": (1, 2 * grid, 2 * grid, sam2.stage_widths[1])}
    sentence: dict[str, Shape] = {"ids": ("sentences", "tokens")}
    if config.motion_features:
        sentence["compared"] = (1, 1, COMPARED_CHANNELS, side // 2, side // 2)
    if config.motion_prompt:
        sentence["verbs"] = ("sentences", "tokens")
    past = {
        f"past_{index}": ("sentences" if index else 1, patches, "window", tokens, config.adapter_width)
        for index, (patches, tokens) in enumerate(config.window_patches)
    }
    memory = {
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
            "tracks",
            model,
            partial(_tracks, model),
            {**image, **sentence, **past},
            ("middle", "top", "prompts", *inside),
        ),
        Graph("condition", tracker, partial(_condition, tracker), {"top": top, **memory}, ("conditioned",)),
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
    """Compute patch embedding and the first two image stages; return the pyramid's fine level and the second stage."""
    first = tracker.encode_stage(0, tracker.embed_patches(pixels))
    return tracker.fine_level(first), tracker.encode_stage(1, first)


@dataclass(frozen=True)
class _Windows:
    """``Lookback`` of one frame whose windows are input and output tensors."""

    past: Sequence[Tensor]
    inside: list[Tensor] = field(default_factory=list)

    def before(self, adapter: int) -> Tensor:
        return self.past[adapter]

    def keep(self, adapter: int, inside: Tensor) -> None:
        assert adapter == len(self.inside)
        self.inside.append(inside[:, 0])  # (N, P, S, A), at the first adapter (1, P, S, A)


def _tracks(model: Samwise, second: Tensor, ids: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Compute the rest of early fusion for one frame."""
    optional, windows = list(others[:-ADAPTERS]), _Windows(others[-ADAPTERS:])
    motion = None if model.motion_features is None else model.motion_features(optional.pop(0))
    stages, text = model.encode_stages(second.unsqueeze(0), ids, windows=windows, motion=motion)
    levels = model.tracker.coarse_levels(*(stage[:, 0] for stage in stages))
    prompts = [model.tracker.padding_points(text.shape[0]), model.text_prompt(text[:, :1])]  # (N, 2, C), (N, 1, C)
    if model.motion_prompt is not None:
        moving = optional.pop().to(text.dtype).unsqueeze(1)  # (N, 1, L)
        mean = (moving @ text) / moving.sum(dim=2, keepdim=True).clamp(min=1)  # (N, 1, D)
        prompts.append(model.motion_prompt(mean))  # (N, 1, C), dropped by the caller for sentences without a verb
    return *levels, torch.cat(prompts, dim=1), *windows.inside


def _condition(
    tracker: Sam2Tracker, top: Tensor, maps: Tensor, slots: Tensor, pointers: Tensor, ages: Tensor
) -> Tensor:
    return tracker.condition_on(top, MemoryTensors(maps, slots, pointers, ages))


def _decode(
    tracker: Sam2Tracker, conditioned: Tensor, fine: Tensor, middle: Tensor, prompts: Tensor
) -> tuple[Tensor, ...]:
    """Run the mask decoder, which uses only the two fine levels of the pyramid."""
    decoded = tracker.decode(conditioned, FrameFeatures(fine, middle, conditioned), prompts)
    outputs = (decoded.mask_logits, decoded.ious, decoded.tokens, decoded.early_tokens)
    return outputs if decoded.score is None else (*outputs, decoded.score)


def _pointer(tracker: Sam2Tracker, token: Tensor, score: Tensor | None = None) -> Tensor:
    return tracker.pointer(token, score)


def _remember(tracker: Sam2Tracker, top: Tensor, mask_logits: Tensor, score: Tensor | None = None) -> Tensor:
    return tracker.remember(top, mask_logits, score)
