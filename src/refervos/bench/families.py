"""Families of models that the benchmark supports; no other file of the benchmark names one.

Differences between families are functions and tables of their entries; everything else uses ``Segmenter``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from refervos.bench.cases import PLAIN_SAM2, Case
from refervos.bench.clock import (
    ADAPTERS,
    CME,
    CONDITION,
    DECODER,
    DENSE,
    EARLY_STAGES,
    IMAGE,
    LANGUAGE,
    LATE_STAGES,
    MASKS,
    PATCHES,
    PLACING,
    PYRAMID,
    REMEMBER,
    TEXT,
    TRACKING,
    VISION,
    StageMethod,
)
from refervos.refsam.config import REFSAM_PRESETS, RefSamConfig
from refervos.samwise.config import SAMWISE_PRESETS, SamwiseConfig
from refervos.text.tokenizer import Tokenizer
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig


class PlainTracker(Protocol):
    """Tracker of another project, which tracks one object from a click."""

    @property
    def model(self) -> nn.Module:
        """Module of the tracker."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the tracker's square image."""
        ...

    def step(self, frame: Any) -> np.ndarray:
        """Return the object's mask bool (H, W) in the next frame, uint8 (H, W, 3)."""
        ...


@dataclass(frozen=True)
class Family:
    """Functions and tables of a family of models.

    Attributes:
        presets: Configurations by name, measured with random weights.
        build: Builds a model from a configuration and a tokenizer.
        for_case: Changes a configuration to a case's image size and mode without changing the weights' shapes. Raises a
            ``ConfigError`` when the family has no model of that size.
        resizable: True if the weights fit any image size.
        random: Builds a model from a configuration with random weights and a tokenizer for any text.
        stages: Methods of the stages.
        baseline: Builds the tracker that the family is based on, from a configuration, with random weights in a type
            and on a device; None if it has none.
    """

    presets: Mapping[str, Any]
    build: Callable[[Any, Tokenizer | None], Any]
    for_case: Callable[[Any, Case], Any]
    resizable: bool
    random: Callable[[Any], Any]
    stages: tuple[StageMethod, ...]
    baseline: Callable[[Any, torch.dtype, str], PlainTracker] | None


def find_family(name: str) -> Family | None:
    """Find the family with a preset of this name; return None if there is none."""
    return next((family for family in FAMILIES.values() if name in family.presets), None)


def preset_names() -> list[str]:
    """List the names of all presets."""
    return [name for family in FAMILIES.values() for name in family.presets]


# SAMWISE.


def _samwise(config: SamwiseConfig, tokenizer: Tokenizer | None) -> Any:
    from refervos.samwise.model import Samwise

    return Samwise(config, tokenizer)


def _random_samwise(config: SamwiseConfig) -> Any:
    from refervos.bench.random_models import HashTokenizer

    return _samwise(config, HashTokenizer(config.text.vocabulary, start=(0,), end=(2,)))


def _samwise_for_case(config: SamwiseConfig, case: Case) -> SamwiseConfig:
    if case.size is not None and case.size != config.sam2.image_size:
        short_side = round(config.short_side * case.size / config.sam2.image_size)
        sam2 = dataclasses.replace(config.sam2, image_size=case.size)
        config = dataclasses.replace(config, sam2=sam2, short_side=short_side)
    if case.mode == PLAIN_SAM2:
        return config
    return dataclasses.replace(config, time="online" if case.mode == "online" else "clip")


def _plain_sam2(config: SamwiseConfig | VideoGlammConfig, dtype: torch.dtype, device: str) -> PlainTracker:
    from refervos.bench.plain_sam2 import PlainSam2

    return PlainSam2(config.sam2, dtype=dtype, device=device)


TRACKER_STAGES = (
    StageMethod("tracker", "embed_patches", PATCHES),
    StageMethod("tracker", "encode_stage", (EARLY_STAGES, EARLY_STAGES, LATE_STAGES, LATE_STAGES)),
    StageMethod("tracker", "fine_level", PYRAMID),
    StageMethod("tracker", "coarse_levels", PYRAMID),
    StageMethod("tracker", "condition", CONDITION),
    StageMethod("tracker", "decode", DECODER),
    StageMethod("tracker", "pointer", DECODER),
    StageMethod("tracker", "remember", REMEMBER),
    StageMethod("tracker", "upsample", MASKS),
)
"""Stages of SAM2, in every family that tracks with it."""

SAMWISE_STAGES = (
    *TRACKER_STAGES,
    *(StageMethod(f"adapters.{index}", "forward", ADAPTERS) for index in range(3)),
    StageMethod("text", "embed", TEXT),
    StageMethod("text", "run_segment", TEXT),
    StageMethod("text_prompt", "forward", TEXT),
    StageMethod("motion_prompt", "forward", TEXT),
    StageMethod("cme", "forward", CME),
)

# RefSAM.


def _refsam(config: RefSamConfig, tokenizer: Tokenizer | None) -> Any:
    from refervos.refsam.model import RefSam

    return RefSam(config, tokenizer)


def _random_refsam(config: RefSamConfig) -> Any:
    from refervos.bench.random_models import HashTokenizer

    return _refsam(config, HashTokenizer(config.text.vocabulary, start=(), end=(1,)))


def _refsam_for_case(config: RefSamConfig, case: Case) -> RefSamConfig:
    if case.size is None:
        return config
    return dataclasses.replace(config, sam=dataclasses.replace(config.sam, image_size=case.size))


MAX_BLOCKS = 32
"""Number of blocks of the largest image encoder."""

REFSAM_STAGES = (
    StageMethod("sam", "encode", IMAGE),
    *(
        StageMethod(f"adapters.{block}", method, ADAPTERS)
        for block in range(MAX_BLOCKS)
        for method in ("after_attention", "beside_feedforward")
    ),
    StageMethod("text", "forward", TEXT),
    StageMethod("cross_modal", "forward", TEXT),
    StageMethod("laterals", "forward", DENSE),
    StageMethod("dense", "forward", DENSE),
    StageMethod("sam", "decode", DECODER),
    StageMethod("tracking", "forward", TRACKING),
)

# VideoGLaMM.


def _videoglamm(config: VideoGlammConfig, tokenizer: Any) -> Any:
    from refervos.videoglamm.model import VideoGlamm

    return VideoGlamm(config, tokenizer)


def _random_videoglamm(config: VideoGlammConfig) -> Any:
    from refervos.bench.random_models import PointingModel, chat_tokenizer

    return PointingModel(config, chat_tokenizer(config))


def _videoglamm_for_case(config: VideoGlammConfig, case: Case) -> VideoGlammConfig:
    if case.size is not None:
        config = dataclasses.replace(config, sam2=dataclasses.replace(config.sam2, image_size=case.size))
    return dataclasses.replace(config, clip_length=1) if case.mode == "online" else config


VIDEOGLAMM_STAGES = (
    StageMethod("", "prepare", PLACING),
    StageMethod("", "encode_views", VISION),
    StageMethod("", "point_out", LANGUAGE),
    *TRACKER_STAGES,
)

FAMILIES = {
    "samwise": Family(
        presets=SAMWISE_PRESETS,
        build=_samwise,
        for_case=_samwise_for_case,
        resizable=True,
        random=_random_samwise,
        stages=SAMWISE_STAGES,
        baseline=_plain_sam2,
    ),
    "refsam": Family(
        presets=REFSAM_PRESETS,
        build=_refsam,
        for_case=_refsam_for_case,
        resizable=False,  # SAM's position embeddings have the size of its image
        random=_random_refsam,
        stages=REFSAM_STAGES,
        baseline=None,
    ),
    "videoglamm": Family(
        presets={"videoglamm-published": dataclasses.replace(VIDEOGLAMM_PRESETS["published"], lora=None)},
        build=_videoglamm,
        for_case=_videoglamm_for_case,
        resizable=True,
        random=_random_videoglamm,
        stages=VIDEOGLAMM_STAGES,
        baseline=_plain_sam2,
    ),
}
"""Families that take sentences, by the ``model_type`` of their models."""
