"""What is measured, behind one question: here are the next frames, answer them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from refervos.bench.cases import PLAIN_SAM2, Case
from refervos.compilation import compile_stages
from refervos.errors import ConfigError
from refervos.loading import load
from refervos.prompts import Prompt
from refervos.samwise.config import SAMWISE_PRESETS, SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer
from refervos.worlds import WorldConfig, draw_clip, referrals

SCENE = 3
"""Seed of the drawn clip that every case is given."""

DRAWN_FRAMES = 16
"""They are given forwards and backwards in turn, so that memory does not grow with the frames measured."""


class Subject(Protocol):
    """Something that answers frames."""

    @property
    def model(self) -> nn.Module:
        """Its module."""
        ...

    @property
    def image_size(self) -> int:
        """Side of its square image."""
        ...

    @property
    def portion(self) -> int:
        """How many frames it is given at once."""
        ...

    @property
    def weights(self) -> str:
        """``random`` or ``trained``."""
        ...

    def answer(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frames.

        Args:
            frames: uint8 (H, W, 3), ``portion`` of them.

        Returns:
            How often the memory was rewritten.
        """
        ...


class Sentences:
    """SAMWISE, asked with sentences through a session.

    Args:
        case: What to measure.
        prompts: What to ask for.
    """

    def __init__(self, case: Case, prompts: Sequence[Prompt]) -> None:
        self.weights = "random" if case.model in SAMWISE_PRESETS else "trained"
        self.model = samwise(case)
        self.image_size = self.model.config.sam2.image_size
        self.portion = self.model.clip_length  # 1 online
        self.session = self.model.open(prompts)
        if case.compiled:
            compile_stages(self.model)

    def answer(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frames and count the switches."""
        answers = [self.session.step(frames[0])] if len(frames) == 1 else self.session.clip(frames)
        return sum(int(answer.switched.sum()) for answer in answers)


class Click:
    """transformers' SAM2, following one object from a click.

    Args:
        case: What to measure.
    """

    portion = 1
    weights = "random"

    def __init__(self, case: Case) -> None:
        from refervos.sam2.plain import PlainSam2

        config = samwise_config(case).sam2
        torch.manual_seed(0)
        self.tracker = PlainSam2(config, dtype=getattr(torch, case.dtype), device=case.device)
        self.model = self.tracker.model
        self.image_size = config.image_size

    def answer(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frame; nothing is ever rewritten."""
        self.tracker.step(frames[0])
        return 0


class HashedWords(Tokenizer):
    """Stands in for the tokenizer of a model with random weights: each word becomes one id by its letters.

    Args:
        vocabulary: How many ids there are.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__(None)
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        """Number of ids."""
        return self.vocabulary

    def encode(
        self, expression: str, verbs: Sequence[str] | None = None, *, find_motion: bool = False, limit: int = 512
    ) -> tuple[list[int], list[bool]]:
        """One id a word between RoBERTa's start and end; no word tells motion."""
        reserved = 4  # start, padding, end, unknown
        words = [reserved + zlib.crc32(word.encode()) % (self.vocabulary - reserved) for word in expression.split()]
        ids = [0, *words[: limit - 2], 2]
        return ids, [False] * len(ids)


def open_subject(case: Case, prompts: Sequence[Prompt]) -> Subject:
    """Build what a case measures."""
    return Click(case) if case.mode == PLAIN_SAM2 else Sentences(case, prompts)


def samwise(case: Case) -> Samwise:
    """The model of a case, on its device.

    Raises:
        ConfigError: When it is not asked with sentences.
    """
    if case.model in SAMWISE_PRESETS:
        torch.manual_seed(0)
        config = samwise_config(case)
        model = Samwise(config, HashedWords(config.text.vocabulary))
        return model.compute_in(getattr(torch, case.dtype)).to(case.device).eval()
    model = _loaded(case.model, case.dtype, case.device)
    wanted = for_case(model.config, case)
    if wanted == model.config:
        return model
    # No weight depends on the image's size or on how the adapters look over time.
    resized = Samwise(wanted, model.tokenizer)
    resized.compute_in(model.compute_dtype).load_state_dict(model.state_dict())
    return resized.to(case.device).eval()


def samwise_config(case: Case) -> SamwiseConfig:
    """The configuration of a case's model."""
    preset = SAMWISE_PRESETS.get(case.model)
    return for_case(_loaded(case.model, "float32", "cpu").config if preset is None else preset, case)


def for_case(config: SamwiseConfig, case: Case) -> SamwiseConfig:
    """Change a configuration to the image size that a case wants, and to its way to look over time.

    Raises:
        ConfigError: When the model cannot have that size.
    """
    if case.size is not None and case.size != config.sam2.image_size:
        short_side = round(config.short_side * case.size / config.sam2.image_size)
        sam2 = dataclasses.replace(config.sam2, image_size=case.size)
        config = dataclasses.replace(config, sam2=sam2, short_side=short_side)
    if case.mode == PLAIN_SAM2:
        return config
    return dataclasses.replace(config, time="online" if case.mode == "online" else "clip")


def _loaded(model: str, dtype: str, device: str) -> Samwise:
    loaded = load(model, device=device, dtype=dtype)
    if not isinstance(loaded, Samwise):
        raise ConfigError(
            f"{Path(model).name} is asked with clicks; bench measures models that are asked with sentences."
        )
    return loaded


def draw_material(case: Case) -> tuple[list[np.ndarray], list[Prompt]]:
    """The drawn clip's frames, forwards and backwards, and sentences about it.

    Args:
        case: Says how large the frames are and how many sentences there must be.

    Returns:
        Frames uint8 (H, W, 3), to be given round and round, and as many sentences as wanted. Every case is given the
        same, a case with more sentences some more.
    """
    height, width = case.frame_size
    clip = draw_clip(SCENE, WorldConfig(height=height, width=width, frames=DRAWN_FRAMES))
    rng = np.random.default_rng(SCENE)
    told = rng.permutation(np.array(referrals(clip, rng), dtype=object))  # neighbours would be about one object
    prompts = [Prompt(referral.text, verbs=referral.verbs) for referral in islice(cycle(told), case.sentences)]
    frames = list(clip.frames)
    return frames + frames[-2:0:-1], prompts


def portions(frames: Sequence[np.ndarray], portion: int) -> Iterator[list[np.ndarray]]:
    """Frames round and round without end, so many at once."""
    source = cycle(frames)
    while True:
        yield list(islice(source, portion))
