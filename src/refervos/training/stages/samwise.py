"""Stages ``images`` and ``video``: SAMWISE's adapters learn sentences over a frozen SAM2 and a frozen text encoder.

As published (SAMWISE paper, section 4.1): single images first, without object score and CME, then clips of eight
frames with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from refervos.errors import TrainingError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.samwise.cme import IGNORED_LABEL, cme_loss
from refervos.samwise.cmt import for_each_sentence
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise, SamwiseOutput
from refervos.text.pretrained import load_text
from refervos.text.tokenizer import Tokenizer
from refervos.training.losses import mask_losses
from refervos.training.stages.movement import MovementHeads
from refervos.training.stages.naming import NamingLoss
from refervos.training.stages.ranges import SHARE, WEIGHT
from refervos.training.stages.referring import ClipMix, ReferringSettings, ReferringStage, copy_weights, load_as
from refervos.training.stages.world_tensors import kind_names, open_sprites
from refervos.training.step_means import ratio
from refervos.typed_config import check_range


@dataclass(frozen=True)
class SamwiseMix(ClipMix):
    """One kind of training clips among several that a stage mixes.

    Attributes:
        answered: Number of frames at the end of each clip to predict; default that of the stage.
    """

    answered: int | None = None


@dataclass(frozen=True)
class SamwiseSettings(ReferringSettings):
    """Settings of both stages.

    Attributes:
        model: Shape of the adapters and the CME; the shapes of tracker and text encoder come with their weights.
        cme_weight: Weight of the CME's cross-entropy.
        freeze_norms: Keep the running statistics of the adapters' batch norms.
        norm_momentum: Momentum of these statistics; small batches need a smaller one.
        movement: Weight of the auxiliary movement loss over the first two adapters, which must have HSA.
        naming: Weight of the auxiliary naming loss inside the last two adapters, which must have HSA.
        answered: Number of frames at the end of each clip to predict, each without memory, which is cheap; default all
            frames, each with the memory of those before.
    """

    model: SamwiseConfig = field(default_factory=SamwiseConfig)
    cme_weight: float = 1.0
    freeze_norms: bool = False
    norm_momentum: float = 0.1
    movement: float = 0.0
    naming: float = 0.0
    answered: int | None = None
    mix: tuple[SamwiseMix, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, cme_weight=WEIGHT, norm_momentum=SHARE, movement=WEIGHT, naming=WEIGHT)
        for name in ("movement", "naming"):
            if getattr(self, name) and (self.data or not self.model.hsa):
                raise TrainingError(f"{name} is trained on drawn worlds, in adapters with HSA; set {name} to 0.")
        if self.answered is not None and not 1 <= self.answered <= min(self.frames):
            raise TrainingError(
                f"answered is {self.answered}; it must be between 1 and the shortest clip's {min(self.frames)}."
            )


@dataclass(frozen=True)
class ImagesSettings(SamwiseSettings):
    """Settings of the image stage.

    Attributes:
        object_score: Keep SAM2's object score head; the published image checkpoints are trained without it.
    """

    object_score: bool = False


@dataclass(frozen=True)
class VideoSettings(SamwiseSettings):
    """Settings of the video stage, by default with clips of eight frames."""

    frames: tuple[int, ...] = (8,)


class _SamwiseStage(ReferringStage):
    """Base of both stages.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
    """

    settings: SamwiseSettings
    model: Samwise

    def __init__(self, settings: SamwiseSettings, model: Samwise) -> None:
        super().__init__(settings, model)
        for module in self._norms():
            module.momentum = settings.norm_momentum
        # Only clips in which it can run train the CME, and it has a norm that is nowhere used.
        runs = {
            kind.answered is None and length > model.config.cme_window + 1
            for kind in settings.kinds
            for length in kind.frames
        }
        if model.config.cme:
            model.cme.requires_grad_(any(runs))
            model.cme.norm2.requires_grad_(False)
        # Not every batch has words about motion, for the motion prompt.
        self.same_parts = model.motion_prompt is None and not (model.config.cme and len(runs) > 1)
        early: Any = model.adapters[:2]
        self.mover = MovementHeads(early, model.config.adapter_width) if settings.movement else None
        self.namer = NamingLoss(model, kind_names(open_sprites(settings.world))) if settings.naming else None

    def movement_cells(self) -> tuple[int, int] | None:
        """Return cells of the size of the second adapter's tokens, and the model's window."""
        if self.mover is None:
            return None
        return 16, self.model.config.clip_length

    def naming_cell(self) -> int | None:
        """Return cells of the size of the second adapter's tokens."""
        return None if self.namer is None else 16

    def trains_everything_always(self) -> bool:
        """Return False if the CME or the motion prompt learns from some batches only."""
        return self.same_parts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the trained parts, and one of the movement heads."""
        heads = [] if self.mover is None else [{"params": list(self.mover.parameters()), "rate_scale": 1.0}]
        return [*super().parameter_groups(), *heads]

    def predict(self, batch: dict[str, Any]) -> SamwiseOutput:
        """Run the model on a batch; return only the last frames if the settings say so."""
        answered = self.settings.kinds[batch["kind"]].answered
        return self.model(batch["pixels"], batch["ids"], batch["verbs"], chunk=batch["chunk"], final_frames=answered)

    def _norms(self) -> list[Any]:
        # _BatchNorm includes torch's SyncBatchNorm, which is no BatchNorm2d.
        return [module for module in self.model.adapters.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> _SamwiseStage:
        """Set training mode except for the frozen parts and, with ``freeze_norms``, the batch norms."""
        super().train(mode)
        if self.settings.freeze_norms:
            for module in self._norms():
                module.eval()
        return self

    def published_losses(
        self, logits: Sequence[Tensor], ground_truth: Sequence[Tensor], voids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses with all frames of a clip in one row."""
        return mask_losses(logits, ground_truth, voids)

    def counts(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """Count nothing if the losses are the published ones; the labels of the CME depend on predictions."""
        return None if self.mover or self.namer or self.model.config.cme else super().counts(batch)

    def add_losses(self, losses: dict[str, Tensor], output: Any, batch: dict[str, Any]) -> None:
        """Add the auxiliary losses, the CME's cross-entropy, and the share of decisions labelled as switches.

        The last two are ratios over the labelled decisions, of which short clips and validation have none.
        """
        if self.mover is not None and self.training:
            losses["movement"] = self.mover(batch["movements"], self.mean)
            losses["loss"] = losses["loss"] + self.settings.movement * losses["movement"]
        if self.namer is not None and self.training:
            names = for_each_sentence(batch["names"], len(batch["decidable"]))  # (N, T, n, n)
            losses["naming"] = self.namer(names, self.mean)
            losses["loss"] = losses["loss"] + self.settings.naming * losses["naming"]
        if not self.model.config.cme:
            return
        logits, labels = output.cme_logits, output.cme_labels

        def mean(total: Tensor, weight: Tensor) -> Tensor:
            losses["cme"] = ratio(total, weight)
            return self.mean("cme", total, weight)

        losses["loss"] = losses["loss"] + self.settings.cme_weight * cme_loss(logits, labels, mean)
        losses["switches"] = ratio((labels == 1).sum(), (labels != IGNORED_LABEL).sum())


class ImagesStage(_SamwiseStage):
    """Training of the adapters on single images."""

    name: ClassVar[str] = "images"
    Settings: ClassVar[type] = ImagesSettings

    @classmethod
    def build(cls, settings: ImagesSettings, init: Mapping[str, Path], seed: int) -> ImagesStage:
        """Build the stage from ``tracker`` (SAM2) and ``text``, or from an earlier image stage (``model``)."""
        return cls(settings, build_samwise(settings.model, init, seed, object_score=settings.object_score, cme=False))


class VideoStage(_SamwiseStage):
    """Training of adapters and CME on clips."""

    name: ClassVar[str] = "video"
    Settings: ClassVar[type] = VideoSettings

    @classmethod
    def build(cls, settings: VideoSettings, init: Mapping[str, Path], seed: int) -> VideoStage:
        """Build the stage from ``tracker``, ``text`` and an image stage's ``adapters``, or an earlier ``model``."""
        return cls(settings, build_samwise(settings.model, init, seed))


def build_samwise(
    config: SamwiseConfig, init: Mapping[str, Path], seed: int, *, object_score: bool = True, cme: bool | None = None
) -> Samwise:
    """Build a SAMWISE from frozen parts and, optionally, an earlier SAMWISE.

    Args:
        config: Adapters, CME and protocol; ``sam2`` and ``text`` are replaced by the loaded configurations.
        init: Sources of the frozen parts: ``tracker`` (a SAM2) and ``text`` (of a language stage), or ``frozen`` (any
            SAMWISE, of which nothing else is used). ``model`` or ``adapters``: an earlier SAMWISE whose trained parts
            are copied as far as the configuration has them; ``model`` may provide the frozen parts as well.
        seed: Seed of new weights.
        object_score: Keep SAM2's object score head.
        cme: Overrides ``config.cme``.

    Returns:
        The model, with frozen tracker and text encoder.

    Raises:
        TrainingError: When a part is missing or does not match its role.
    """
    roles = [role for role in ("model", "adapters") if role in init]
    earlier = load_as(Samwise, init[roles[0]]) if roles else None
    tokenizer: Tokenizer | None = None
    if "tracker" in init and "text" in init:
        tracker = load_as(Sam2Segmenter, init["tracker"]).tracker
        text, tokenizer = load_text(init["text"])
    elif "frozen" in init:
        donor = load_as(Samwise, init["frozen"])
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
            words=config.words or (() if earlier is None else earlier.config.words),
        ),
        tokenizer,
    )
    copy_weights(model.tracker, tracker.state_dict())
    copy_weights(model.text, text.state_dict())
    if earlier is not None:
        for part in ("adapters", "motion_features", "text_prompt", "motion_prompt", "cme"):
            source, target = getattr(earlier, part), getattr(model, part)
            if source is not None and target is not None:
                copy_weights(target, source.state_dict(), partial=True)
    return model
