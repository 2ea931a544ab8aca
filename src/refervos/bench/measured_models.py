"""Models to measure, behind one interface: segment the next frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from refervos.bench.cases import PLAIN_SAM2, Case
from refervos.bench.clock import StageMethod
from refervos.bench.families import FAMILIES, Family, find_family
from refervos.errors import ConfigError
from refervos.loading import load
from refervos.ops.compilation import compile_stages
from refervos.prompts import Prompt
from refervos.worlds import WorldConfig, draw_clip, referring_expressions

SCENE = 3
"""Seed of the drawn clip, the same for every case."""

DRAWN_FRAMES = 16
"""Length of the drawn clip, repeated forwards and backwards, so that memory does not grow with the measured frames."""


class MeasuredModel(Protocol):
    """Model that segments frame after frame."""

    @property
    def model(self) -> nn.Module:
        """Module to time."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the model's square image."""
        ...

    @property
    def clip_length(self) -> int:
        """Number of frames in a call."""
        ...

    @property
    def stages(self) -> Sequence[StageMethod]:
        """Methods of the model's stages."""
        ...

    @property
    def weights(self) -> str:
        """``random`` or ``trained``."""
        ...

    def segment(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frames.

        Args:
            frames: uint8 (H, W, 3), ``clip_length`` of them.

        Returns:
            Number of memory rewrites.
        """
        ...


class ReferringModel:
    """Model with sentences in a session.

    Args:
        case: The case to measure.
        prompts: The sentences.
    """

    def __init__(self, case: Case, prompts: Sequence[Prompt]) -> None:
        preset = find_family(case.model)
        self.weights = "trained" if preset is None else "random"
        self.model = trained_model(case) if preset is None else random_model(preset, case)
        self.stages = FAMILIES[self.model.model_type].stages
        self.image_size = self.model.placement(case.frame_size).image_size
        self.clip_length = self.model.clip_length  # 1 online
        self.session = self.model.open(prompts)
        if case.compiled:
            compile_stages(self.model)

    def segment(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frames and count the switches."""
        results = [self.session.step(frames[0])] if len(frames) == 1 else self.session.clip(frames)
        return sum(int(result.switched.sum()) for result in results)


class BaselineTracker:
    """Tracker to compare a case's model with, which tracks one object from a click.

    Args:
        case: The case to measure.

    Raises:
        ConfigError: When the model's family has no such tracker.
    """

    clip_length = 1
    weights = "random"
    stages = ()

    def __init__(self, case: Case) -> None:
        family, config = family_and_config(case)
        if family.baseline is None:
            raise ConfigError(f"{case.model} is based on no tracker to compare it with; leave out --baseline.")
        torch.manual_seed(0)
        self.tracker = family.baseline(config, getattr(torch, case.dtype), case.device)
        self.model = self.tracker.model
        self.image_size = self.tracker.image_size

    def segment(self, frames: Sequence[np.ndarray]) -> int:
        """Segment the next frame; memory is never rewritten."""
        self.tracker.step(frames[0])
        return 0


def open_model(case: Case, prompts: Sequence[Prompt]) -> MeasuredModel:
    """Build the model of a case."""
    return BaselineTracker(case) if case.mode == PLAIN_SAM2 else ReferringModel(case, prompts)


def random_model(family: Family, case: Case) -> Any:
    """Build a case's preset with random weights, on the case's device."""
    torch.manual_seed(0)
    config = family.for_case(family.presets[case.model], case)
    with torch.device(case.device):  # a GPU draws random weights much faster
        model = family.random(config)
    return model.to(getattr(torch, case.dtype)).to(case.device).eval()


def trained_model(case: Case) -> Any:
    """Load a case's model from its folder, on the case's device.

    Raises:
        ConfigError: When the benchmark does not support its family, or its weights do not fit the case's image size.
    """
    family, model = _load(case.model, case.dtype, case.device)
    config = family.for_case(model.config, case)
    if config == model.config:
        return model
    if case.size is not None and not family.resizable:
        side = model.placement(case.frame_size).image_size
        raise ConfigError(f"the weights of {Path(case.model).name} fit only images of side {side}; leave out --size.")
    resized = family.build(config, model.tokenizer)
    resized.to(model.compute_dtype).load_state_dict(model.state_dict())
    return resized.to(case.device).eval()


def family_and_config(case: Case) -> tuple[Family, Any]:
    """Find the family of a case's model, and its configuration for the case.

    Raises:
        ConfigError: As for ``trained_model``.
    """
    preset = find_family(case.model)
    if preset is not None:
        return preset, preset.for_case(preset.presets[case.model], case)
    family, model = _load(case.model, "float32", "cpu")
    return family, family.for_case(model.config, case)


def _load(name: str, dtype: str, device: str) -> tuple[Family, Any]:
    model = load(name, device=device, dtype=dtype)
    family = FAMILIES.get(getattr(model, "model_type", ""))
    if family is None:
        raise ConfigError(
            f"the family of {Path(name).name} is not supported by the benchmark; "
            f"give a model that takes sentences ({', '.join(FAMILIES)})."
        )
    return family, model


def draw_inputs(case: Case) -> tuple[list[np.ndarray], list[Prompt]]:
    """Draw a clip's frames, forwards and backwards, and sentences about it.

    Args:
        case: The case, with the size of the frames and the number of sentences.

    Returns:
        Frames uint8 (H, W, 3) to repeat, and the prompts. Every case gets the same frames, and the first of the same
        list of sentences.
    """
    height, width = case.frame_size
    clip = draw_clip(SCENE, WorldConfig(height=height, width=width, frames=DRAWN_FRAMES))
    rng = np.random.default_rng(SCENE)
    # Shuffled, because consecutive expressions are about one object.
    expressions = rng.permutation(np.array(referring_expressions(clip, rng), dtype=object))
    prompts = [Prompt(each.text, verbs=each.verbs) for each in islice(cycle(expressions), case.sentences)]
    frames = list(clip.frames)
    return frames + frames[-2:0:-1], prompts


def repeat_clips(frames: Sequence[np.ndarray], length: int) -> Iterator[list[np.ndarray]]:
    """Repeat frames endlessly, in clips of a length."""
    source = cycle(frames)
    while True:
        yield list(islice(source, length))
