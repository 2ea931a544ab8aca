"""What is measured, behind one question: here are the next frames, answer them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
import torch
from tokenizers import models
from torch import nn

from refervos.bench.cases import PLAIN_SAM2, Case
from refervos.bench.clock import StageMethod
from refervos.bench.families import FAMILIES, Family, family_of_preset
from refervos.errors import ConfigError
from refervos.loading import load
from refervos.ops.compilation import compile_stages
from refervos.prompts import Prompt
from refervos.text.tokenizer import Tokenizer
from refervos.worlds import WorldConfig, draw_clip, referring_expressions

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
    def stages(self) -> Sequence[StageMethod]:
        """Which of its methods is which stage."""
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
    """A model asked with sentences through a session.

    Args:
        case: What to measure.
        prompts: What to ask for.
    """

    def __init__(self, case: Case, prompts: Sequence[Prompt]) -> None:
        preset = family_of_preset(case.model)
        self.weights = "trained" if preset is None else "random"
        self.model = trained_model(case) if preset is None else random_model(preset, case)
        self.stages = FAMILIES[self.model.model_type].stages
        self.image_size = self.model.placement(case.frame_size).image_size
        self.portion = self.model.clip_length  # 1 online
        self.session = self.model.open(prompts)
        if case.compiled:
            compile_stages(self.model)

    def answer(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frames and count the switches."""
        answers = [self.session.step(frames[0])] if len(frames) == 1 else self.session.clip(frames)
        return sum(int(answer.switched.sum()) for answer in answers)


class Click:
    """The tracker that a case's model is compared with, following one object from a click.

    Args:
        case: What to measure.

    Raises:
        ConfigError: When the model's family has no such tracker.
    """

    portion = 1
    weights = "random"
    stages = ()

    def __init__(self, case: Case) -> None:
        family, config = family_and_config(case)
        if family.baseline is None:
            raise ConfigError(f"{case.model} is built on no tracker to compare it with; leave --baseline out.")
        torch.manual_seed(0)
        self.tracker = family.baseline(config, getattr(torch, case.dtype), case.device)
        self.model = self.tracker.model
        self.image_size = self.tracker.image_size

    def answer(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frame; nothing is ever rewritten."""
        self.tracker.step(frames[0])
        return 0


class HashedWords(Tokenizer):
    """Stands in for the tokenizer of a model with random weights: each word becomes one id by its letters.

    Args:
        vocabulary: How many ids there are.
        start: Ids before a sentence.
        end: Ids after it.
    """

    def __init__(self, vocabulary: int, start: tuple[int, ...], end: tuple[int, ...]) -> None:
        super().__init__(tokenizers.Tokenizer(models.BPE()))  # never asked
        self.vocabulary, self.start, self.end = vocabulary, start, end

    def __len__(self) -> int:
        """Number of ids."""
        return self.vocabulary

    def encode(
        self, expression: str, verbs: Sequence[str] | None = None, *, find_motion: bool = False, limit: int = 512
    ) -> tuple[list[int], list[bool]]:
        """One id a word between start and end; no word tells motion."""
        reserved = 4  # at most: start, padding, end, unknown
        words = [reserved + zlib.crc32(word.encode()) % (self.vocabulary - reserved) for word in expression.split()]
        ids = [*self.start, *words[: limit - len(self.start) - len(self.end)], *self.end]
        return ids, [False] * len(ids)


def open_subject(case: Case, prompts: Sequence[Prompt]) -> Subject:
    """Build what a case measures."""
    return Click(case) if case.mode == PLAIN_SAM2 else Sentences(case, prompts)


def random_model(family: Family, case: Case) -> Any:
    """A case's preset with random weights, on the case's device."""
    torch.manual_seed(0)
    config = family.for_case(family.presets[case.model], case)
    with torch.device(case.device):  # a GPU draws so many numbers in no time
        model = family.build(config, HashedWords(config.text.vocabulary, family.start, family.end))
    return model.to(getattr(torch, case.dtype)).to(case.device).eval()


def trained_model(case: Case) -> Any:
    """A case's model from its folder, on the case's device.

    Raises:
        ConfigError: When bench does not know its family, or it cannot have the case's image size.
    """
    family, model = _load(case.model, case.dtype, case.device)
    wanted = family.for_case(model.config, case)
    if wanted == model.config:
        return model
    if case.size is not None and not family.resizable:
        side = model.placement(case.frame_size).image_size
        raise ConfigError(f"{Path(case.model).name} has weights for images of side {side} alone; leave --size out.")
    resized = family.build(wanted, model.tokenizer)
    resized.to(model.compute_dtype).load_state_dict(model.state_dict())
    return resized.to(case.device).eval()


def family_and_config(case: Case) -> tuple[Family, Any]:
    """The family of a case's model, and its configuration for the case.

    Raises:
        ConfigError: As for ``trained_model``.
    """
    preset = family_of_preset(case.model)
    if preset is not None:
        return preset, preset.for_case(preset.presets[case.model], case)
    family, model = _load(case.model, "float32", "cpu")
    return family, family.for_case(model.config, case)


def _load(name: str, dtype: str, device: str) -> tuple[Family, Any]:
    model = load(name, device=device, dtype=dtype)
    family = FAMILIES.get(getattr(model, "model_type", ""))
    if family is None:
        raise ConfigError(
            f"{Path(name).name} is of no family that bench measures; "
            f"give a model that is asked with sentences ({', '.join(FAMILIES)})."
        )
    return family, model


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
    told = rng.permutation(
        np.array(referring_expressions(clip, rng), dtype=object)
    )  # neighbours would be about one object
    prompts = [Prompt(expression.text, verbs=expression.verbs) for expression in islice(cycle(told), case.sentences)]
    frames = list(clip.frames)
    return frames + frames[-2:0:-1], prompts


def portions(frames: Sequence[np.ndarray], portion: int) -> Iterator[list[np.ndarray]]:
    """Frames round and round without end, so many at once."""
    source = cycle(frames)
    while True:
        yield list(islice(source, portion))
