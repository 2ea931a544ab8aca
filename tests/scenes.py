"""Small moving scenes and a small model with random weights, for tests that need no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor

from golden import noise
from refervos.prompts import Prompt
from refervos.sam2.config import Sam2Config
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.segmentation import Segmentation
from refervos.session.session import Session, SessionMixin
from refervos.text.encoder import TextConfig
from refervos.text.tokenizer import Tokenizer

MICRO_SAM2 = Sam2Config(
    image_size=128,
    hiera_width=16,
    hiera_heads=1,
    hiera_blocks=(1, 2, 3, 1),
    hiera_windows=(8, 4, 8, 4),
    hiera_global_blocks=(4,),
    hiera_background=7,
    hidden=64,
    memory_layers=1,
    memory_feedforward=64,
    fuser_feedforward=64,
    decoder_heads=2,
    decoder_feedforward=64,
)

MICRO = SamwiseConfig(
    sam2=MICRO_SAM2,
    text=TextConfig(
        vocabulary=100, width=32, layers=4, heads=2, feedforward=64, positions=40, segment_ends=(1, 2, 3, 4)
    ),
    adapter_width=32,
    adapter_heads=4,
    short_side=128,
)

FIRST_GENERATION = Path(__file__).parents[1] / "weights" / "miniature-1"
"""The first ``miniature``: without movement features, so that it can also follow the published protocol."""

CAPTION, SHORT_CAPTION = [0, 17, 23, 42, 61, 5, 2], [0, 33, 2]


def micro_model(**changes: Any) -> Samwise:
    """Make a model of 0.5 M parameters without tokenizer, whose weights depend on their names and give varied masks."""
    from dataclasses import replace

    model = Samwise(replace(MICRO, **changes))
    state = model.state_dict()
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        draw = torch.from_numpy(noise(name, value.shape)).float()
        if name.endswith("pred_obj_score_head.proj_out.bias"):
            value.fill_(3.0)  # mostly visible
        elif name.endswith("running_var"):
            value.copy_(1 + 0.1 * draw.abs())
        elif value.ndim >= 2 and "embed" not in name:
            value.copy_(draw * 1.5 / value[0].numel() ** 0.5)
        elif "norm" in name.lower() and name.endswith("weight"):
            value.copy_(1 + 0.1 * draw)
        else:
            value.copy_(draw * (0.5 if value.ndim >= 2 or "token" in name or "pointer" in name else 0.05))
    return model


def scene(count: int, height: int = 96, width: int = 128, seed: int = 0) -> list[np.ndarray]:
    """Draw frames of a moving disc on a textured background, uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([(x * (3 + seed) + y) % 160, (x + y * 2) % 140, (x * y // 16) % 150], -1).astype(np.uint8)
    frames = []
    for t in range(count):
        frame = np.roll(base, t, axis=1).copy()
        frame[(x - (20 + 5 * t) % width) ** 2 + (y - 40) ** 2 < 200] = (220, 40 + 20 * seed, 40)
        frames.append(frame)
    return frames


def number_tokenizer() -> Tokenizer:
    """Make a tokenizer that reads token ids written as digits: "0 17 2"."""
    words = models.WordLevel({str(number): number for number in range(MICRO.text.vocabulary)}, unk_token="3")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer)


def prompt_of(caption: list[int], **geometry: Any) -> Prompt:
    """Write token ids, none of them a verb, as a prompt for ``number_tokenizer``, with optional points, box or mask."""
    return Prompt(" ".join(map(str, caption)), verbs=(), **geometry)


def session_of(model: Samwise, captions: list[list[int]], **options: Any) -> Session:
    """Open a session that follows sequences of token ids and keeps logits; a model without a tokenizer gets one."""
    model.tokenizer = model.tokenizer or number_tokenizer()
    return model.open([prompt_of(caption) for caption in captions], **{"keep_logits": True, **options})


def stack_logits(results: Sequence[Segmentation]) -> np.ndarray:
    """Stack the mask logits of results (T, N, H, W), all of which must have some."""
    stacked = [result.logits for result in results if result.logits is not None]
    assert len(stacked) == len(results)
    return np.stack(stacked)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the intersection over union of two masks, 0 if both are empty."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def tensors_of(session: Session) -> Iterator[Tensor]:
    """Yield every tensor that a session keeps."""
    for track in session._tracks.values():
        memory = track.state.memory
        yield track.state.ids
        yield from (entry.features for entry in [*memory.maps, *memory.conditioning_maps])
        yield from (entry.vector for entry in [*memory.pointers, *memory.conditioning_pointers])
        for window in track.state.windows.frames:
            yield from window
        last = track.state.last
        if last is not None:
            yield from (last.pixels, last.mask_logits)


def bytes_kept(session: Session) -> int:
    """Count the bytes of the storages behind a session's tensors, including parts that only views keep alive."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(session)}.values())


class Uncorrectable(SessionMixin):
    """Base of stand-in segmenters that supports no changes of running tracks."""

    state_types: tuple[type, ...] = ()
    mixes_sentences = False

    def check(self, track: Any, frame_size: tuple[int, int]) -> None:
        raise NotImplementedError

    def correct(self, track: Any, prompt: Any, placement: Any) -> Any:
        raise NotImplementedError

    def undo(self, track: Any) -> Any:
        raise NotImplementedError

    def set_prompt(self, track: Any, prompt: Any) -> None:
        raise NotImplementedError

    def restart(self, track: Any) -> None:
        raise NotImplementedError

    def mark_gap(self, track: Any) -> None:
        raise NotImplementedError

    def check_restored(self, track: Any) -> None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError
