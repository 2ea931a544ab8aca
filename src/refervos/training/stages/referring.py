"""Stages ``images`` and ``video``: SAMWISE's adapters learn sentences over a frozen SAM2 and a frozen text encoder.

As published (SAMWISE paper, section 4.1): single images first, without object score and CME, then clips of eight
frames with both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.loading import load
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.samwise.cme import IGNORED_LABEL, cme_loss_terms
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import ClipOutput, Samwise
from refervos.text.encoder import pad_tokens
from refervos.text.pretrained import load_text
from refervos.text.tokenizer import Tokenizer
from refervos.training.distributed import mean_over_processes
from refervos.training.losses import frame_losses, mask_losses, visible
from refervos.training.stage import TRAIN, VALIDATION, Key, Stage
from refervos.training.stages.asked_clips import BenchmarkClips, BenchmarkSource, ClipSource, Sampling, WorldClips
from refervos.worlds import FAMILIES, WorldConfig

NO_TARGET = "none"
"""The family of sentences that are true of nothing."""


@dataclass(frozen=True)
class ReferringSettings:
    """Settings of both stages.

    Attributes:
        model: Shape of the adapters and the CME; tracker and text encoder bring their own.
        world: What scenes are like.
        frames: Lengths of the clips; one is drawn for each step.
        chunks: Frames that the adapters see at once; one is drawn for each step, None for the whole clip.
        aspects: Width over height of the worlds' clips; one is drawn for each clip.
        data: Benchmarks to learn from, instead of worlds.
        validation: Benchmarks to validate on, where ``data`` is given.
        sampling: Which frames of a benchmark's video make up a clip (see ``BenchmarkClips``).
        flip: Share of the benchmarks' clips that are mirrored.
        sentences: Sentences asked about each clip, about different objects where possible: over the same pixels,
            nothing but the words tells the masks apart.
        families: How often each family of the worlds' sentences is asked, by name; default all alike.
        published_losses: Focal and dice loss of whole clips, as published, with weights 1 and nothing else. Otherwise
            every frame counts alike and the object score learns to say "not there" (see ``frame_losses``).
        least_area: Pixels (of the square) from which on an object counts as visible.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        presence: Weight of the object score's cross-entropy; its head is frozen, the adapters learn to drive it.
        cme_weight: Weight of the CME's cross-entropy.
        freeze_norms: Keep the running statistics of the adapters' batch norms.
        norm_momentum: How fast these follow; small batches want a longer average.
    """

    model: SamwiseConfig = field(default_factory=SamwiseConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    frames: tuple[int, ...] = (1,)
    chunks: tuple[int | None, ...] = (None,)
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    data: tuple[BenchmarkSource, ...] = ()
    validation: tuple[BenchmarkSource, ...] = ()
    sampling: Sampling = "mixed"
    flip: float = 0.5
    sentences: int = 2
    families: Mapping[str, float] = field(default_factory=dict)
    published_losses: bool = False
    least_area: int = 12
    focal: float = 20.0
    dice: float = 1.0
    presence: float = 0.5
    cme_weight: float = 1.0
    freeze_norms: bool = False
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown:
            raise TrainingError(f"there is no family {unknown[0]!r} of sentences; known are {', '.join(FAMILIES)}.")
        if self.validation and not self.data:
            raise TrainingError("validation names a benchmark, but data does not; worlds are validated on worlds.")


@dataclass(frozen=True)
class ImagesSettings(ReferringSettings):
    """Settings of the image stage.

    Attributes:
        object_score: Keep SAM2's object score head; the published image checkpoints are trained without it.
    """

    object_score: bool = False


@dataclass(frozen=True)
class VideoSettings(ReferringSettings):
    """Settings of the video stage: clips of eight frames unless it says otherwise."""

    frames: tuple[int, ...] = (8,)


class _ReferringStage(Stage):
    """What both stages share.

    Args:
        settings: See there.
        model: The weights to start from.
    """

    model: Samwise

    def __init__(self, settings: ReferringSettings, model: Samwise) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise TrainingError("the model to train on has no tokenizer files, so it cannot read sentences.")
        self.settings = settings
        self.model = model
        self.tokenizer = model.tokenizer
        for module in self._norms():
            module.momentum = settings.norm_momentum

    def _norms(self) -> list[Any]:
        return [module for module in self.model.adapters.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> _ReferringStage:
        """Training mode, but for the frozen parts and, where wanted, the batch norms."""
        super().train(mode)
        if self.settings.freeze_norms:
            for module in self._norms():
                module.eval()
        return self

    def frozen_parts(self) -> Sequence[nn.Module]:
        """SAM2 and the text encoder."""
        return self.model.frozen_parts()

    # Data.

    def expect(self, batch: int, validation_batches: int) -> int | None:
        """Open the benchmarks, if any."""
        settings, config = self.settings, self.model.config
        side = config.sam2.image_size
        if not settings.data:
            worlds = WorldClips(settings.world, settings.aspects, settings.families, side)
            self.sources: dict[int, ClipSource] = {TRAIN: worlds, VALIDATION: worlds}
            return None
        if validation_batches and not settings.validation:
            raise TrainingError(
                "there is no benchmark to validate on; name one in settings under validation, or set "
                "validation_batches to 0."
            )
        benchmarks = partial(
            BenchmarkClips,
            batch=batch,
            stride=max(settings.frames),
            short_side=config.short_side,
            side=side,
            sampling=settings.sampling,
        )
        train = benchmarks([source.open() for source in settings.data], flip=settings.flip)
        self.sources = {TRAIN: train}
        if validation_batches:
            self.sources[VALIDATION] = benchmarks([source.open() for source in settings.validation], flip=0.0)
        return len(train)

    def draw(self, step: int, index: int, key: Key) -> dict[str, Any]:
        """One clip with the sentences asked about it."""
        settings = self.settings
        shape = np.random.default_rng([*key, step])  # what all clips of the step share
        frames, chunk = int(shape.choice(settings.frames)), settings.chunks[int(shape.integers(len(settings.chunks)))]
        asked = self.sources[key[-1]].draw(step, index, key, frames, settings.sentences)
        tokens = [self._tokens(text, verbs) for text, verbs in zip(asked.expressions, asked.verbs, strict=True)]
        return {
            "pixels": asked.pixels,  # (T, 3, S, S)
            "ids": [torch.tensor(ids) for ids, _ in tokens],
            "verbs": [torch.tensor(verbs) for _, verbs in tokens],
            "truth": asked.masks,  # (M, T, S, S)
            "inside": [asked.inside] * settings.sentences,
            "families": asked.families,
            "chunk": chunk,
        }

    def _tokens(self, expression: str, verbs: Sequence[str] | None) -> tuple[list[int], list[bool]]:
        config = self.model.config
        moving = verbs if config.motion_prompt else ()
        return self.tokenizer.encode(expression, moving, find_motion=config.motion_prompt, limit=config.text.max_tokens)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack clips; the sentences of all clips, M each, become one axis."""
        ids = [row for sample in samples for row in sample["ids"]]
        verbs = [row for sample in samples for row in sample["verbs"]]
        return {
            "pixels": torch.stack([sample["pixels"] for sample in samples]),  # (B, T, 3, S, S)
            "ids": pad_tokens(ids, self.model.config.text.pad),  # (B*M, L)
            "verbs": nn.utils.rnn.pad_sequence(verbs, batch_first=True),  # (B*M, L)
            "truth": torch.cat([sample["truth"] for sample in samples]),  # (B*M, T, S, S)
            "inside": [size for sample in samples for size in sample["inside"]],  # (B*M) heights and widths
            "families": [family for sample in samples for family in sample["families"]],
            "chunk": samples[0]["chunk"],
        }

    # Losses.

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch of clips, and the mean IoU over the frames in which the target is visible."""
        return self._measure(batch)[0]

    def _measure(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        settings, truth = self.settings, batch["truth"]
        output: ClipOutput = self.model(batch["pixels"], batch["ids"], batch["verbs"], chunk=batch["chunk"])
        logits = self.model.tracker.upsample(output.mask_logits)  # (N, T, S, S)
        losses = frame_losses(logits, output.score, truth, settings.least_area)
        ious = losses.pop("ious")  # (N, T)
        if settings.published_losses:
            inside = [
                (row[..., :h, :w], mask[..., :h, :w])
                for row, mask, (h, w) in zip(logits, truth, batch["inside"], strict=True)
            ]
            losses["focal"], losses["dice"] = mask_losses(*zip(*inside, strict=True))
            losses["loss"] = losses["focal"] + losses["dice"]
        else:
            losses["loss"] = (
                settings.focal * losses["focal"]
                + settings.dice * losses["dice"]
                + settings.presence * losses["presence"]
            )
        if self.model.config.cme:
            losses["cme"] = mean_over_processes(*cme_loss_terms(output.cme_logits, output.cme_labels))
            losses["loss"] = losses["loss"] + settings.cme_weight * losses["cme"]
            losses["switches"] = (output.cme_labels == 1).sum() / (output.cme_labels != IGNORED_LABEL).sum().clamp(
                min=1
            )
        return losses, ious

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Besides the losses, the IoU of each family as at inference: gated by the object score, the CME at work.

        For sentences true of nothing it is the share of frames that are rightly left empty.
        """
        scalars: dict[str, list[float]] = defaultdict(list)
        found: dict[str, list[float]] = defaultdict(list)
        for batch in batches:
            losses, ious = self._measure(batch)
            for name, value in losses.items():
                scalars[name].append(float(value))
            counted = visible(batch["truth"], self.settings.least_area)
            for family, row, seen in zip(batch["families"], ious, counted, strict=True):
                values = row if family == NO_TARGET else row[seen]
                if len(values):
                    found[family].append(float(values.mean()))
        measured = scalars | {f"iou {name}": found[name] for name in sorted(found, key=_place_in_tables)}
        return {name: sum(values) / len(values) for name, values in measured.items()}


class ImagesStage(_ReferringStage):
    """Adapters on single images."""

    name: ClassVar[str] = "images"
    Settings: ClassVar[type] = ImagesSettings

    @classmethod
    def build(cls, settings: ImagesSettings, init: Mapping[str, Path], seed: int) -> ImagesStage:
        """From ``tracker`` (SAM2) and ``text``, or from an earlier image stage (``model``)."""
        return cls(settings, build_samwise(settings.model, init, seed, object_score=settings.object_score, cme=False))


class VideoStage(_ReferringStage):
    """Adapters and CME on clips."""

    name: ClassVar[str] = "video"
    Settings: ClassVar[type] = VideoSettings

    @classmethod
    def build(cls, settings: VideoSettings, init: Mapping[str, Path], seed: int) -> VideoStage:
        """From ``tracker`` and ``text``, with ``adapters`` of an image stage; or from an earlier stage (``model``)."""
        return cls(settings, build_samwise(settings.model, init, seed))


def build_samwise(
    config: SamwiseConfig, init: Mapping[str, Path], seed: int, *, object_score: bool = True, cme: bool | None = None
) -> Samwise:
    """Put a SAMWISE together.

    Args:
        config: Adapters, CME and protocol; ``sam2`` and ``text`` are replaced by what is loaded.
        init: Where the frozen parts come from: ``tracker`` (a SAM2) and ``text`` (of a language stage), or ``frozen``
            (any SAMWISE, of which nothing else is taken). ``model`` or ``adapters``: an earlier SAMWISE whose trained
            parts are taken as far as the configuration has them; ``model`` may bring the frozen parts as well.
        seed: New weights are drawn from it.
        object_score: Whether SAM2's object score head is kept.
        cme: Overrides ``config.cme``.

    Returns:
        The model, tracker and text encoder frozen.

    Raises:
        TrainingError: When a part is missing or is not what its role says.
    """
    roles = [role for role in ("model", "adapters") if role in init]
    earlier = _load_samwise(init[roles[0]]) if roles else None
    tokenizer: Tokenizer | None = None
    if "tracker" in init and "text" in init:
        segmenter = load(init["tracker"], device="cpu")
        if not isinstance(segmenter, Sam2Segmenter):
            raise TrainingError(f"{init['tracker']} is no SAM2, which the role 'tracker' needs.")
        tracker = segmenter.tracker
        text, tokenizer = load_text(init["text"])
    elif "frozen" in init:
        donor = _load_samwise(init["frozen"])
        tracker, text, tokenizer = donor.tracker, donor.text, donor.tokenizer
    elif earlier is not None:
        tracker, text, tokenizer = earlier.tracker, earlier.text, earlier.tokenizer
    else:
        raise TrainingError(
            "SAMWISE starts from 'tracker' and 'text', from 'frozen', or from 'model'; give one of these under init."
        )
    torch.manual_seed(seed)
    has_score = object_score and tracker.config.object_score
    model = Samwise(
        replace(
            config,
            sam2=replace(tracker.config, object_score=has_score),
            text=text.config,
            cme=config.cme if cme is None else cme,
        ),
        tokenizer,
    )
    _fill(model.tracker, tracker.state_dict())
    _fill(model.text, text.state_dict())
    if earlier is not None:
        for part in ("adapters", "text_prompt", "motion_prompt", "cme"):
            source, target = getattr(earlier, part), getattr(model, part)
            if source is not None and target is not None:
                _fill(target, source.state_dict(), partly=True)
    return model


def _place_in_tables(family: str) -> tuple[int, str]:
    """The worlds' families in their own order, those of benchmarks after them by name."""
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def _load_samwise(folder: Path) -> Samwise:
    loaded = load(folder, device="cpu")
    if not isinstance(loaded, Samwise):
        raise TrainingError(f"{folder} is no SAMWISE; a referring stage starts from one.")
    return loaded


def _fill(target: nn.Module, state: Mapping[str, Tensor], *, partly: bool = False) -> None:
    """Copy what a module has a place for; whatever it lacks may be left out (a score head, the adapters' HSA)."""
    known = target.state_dict()
    result = target.load_state_dict({name: value for name, value in state.items() if name in known}, strict=False)
    if result.missing_keys and not partly:
        raise TrainingError(f"the loaded weights lack {result.missing_keys[0]}; they belong to another model.")
