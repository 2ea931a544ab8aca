"""Stage ``track``: a SAM2 learns to segment from clicks, boxes and masks and to follow what it segmented.

The recipe is SAM2's (Ravi et al. 2024, section 4), in miniature: images first (``frames: [1]``), then clips, in which
later frames are conditioned on memory and sometimes asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import TrainingError
from refervos.loading import load
from refervos.sam2.config import Sam2Config
from refervos.sam2.memory import MemoryBank
from refervos.sam2.prompting import MASK_LOGIT
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Decoded, FrameFeatures, Sam2Tracker
from refervos.training.initialisation import initialise
from refervos.training.losses import frame_losses, visible
from refervos.training.stage import Stage
from refervos.training.stages.pictures import cell_names, draw_framed, place_frames, place_masks
from refervos.training.stages.questions import AskedShares, ask
from refervos.training.stages.recognition import RecognitionHead
from refervos.worlds import WorldConfig


@dataclass(frozen=True)
class TrackSettings:
    """Settings of the stage.

    Attributes:
        model: Shape of the tracker, when it starts from random weights.
        world: What scenes are like.
        frames: Lengths of the clips; one is drawn for each step.
        aspects: Width over height of the clips; one is drawn for each clip.
        asked: How often each kind of question is asked.
        objects: Questions about each clip, all answered over the same features.
        multimask: Share of steps in which the three ambiguity masks learn instead of the single one.
        conditioning: Share of steps in which the first frame stays in memory, as SAM2 does it; otherwise it falls out
            of the window like any other, as in SAMWISE.
        teacher: Share of steps in which the true masks are remembered instead of the predicted ones, so that reading
            memory can be learnt before what is written there is any good.
        least_area: Pixels (of the square) from which on an object counts as visible; with fewer, but some, its
            presence is not taught.
        recognition: Weight of the auxiliary recognition loss.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        quality: Weight of the error of the predicted IoU.
        presence: Weight of the object score's cross-entropy.
    """

    model: Sam2Config = field(default_factory=Sam2Config)
    world: WorldConfig = field(default_factory=WorldConfig)
    frames: tuple[int, ...] = (1,)
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    asked: AskedShares = field(default_factory=AskedShares)
    objects: int = 3
    multimask: float = 0.25
    conditioning: float = 0.4
    teacher: float = 0.0
    least_area: int = 12
    recognition: float = 0.0
    focal: float = 20.0
    dice: float = 1.0
    quality: float = 0.5
    presence: float = 0.5


class TrackStage(Stage):
    """Train every parameter of a SAM2.

    Args:
        settings: See there.
        tracker: The weights to start from.
    """

    name: ClassVar[str] = "track"
    Settings: ClassVar[type] = TrackSettings
    model: Sam2Segmenter

    def __init__(self, settings: TrackSettings, tracker: Sam2Tracker) -> None:
        super().__init__()
        self.settings = settings
        self.model = Sam2Segmenter(tracker)
        tracker.requires_grad_(True)
        self.recogniser = RecognitionHead(tracker.config.stage_widths[2]) if settings.recognition else None

    @classmethod
    def build(cls, settings: TrackSettings, init: Mapping[str, Path], seed: int) -> TrackStage:
        """From an earlier track stage or a SAM2 checkpoint (``model``), otherwise from random weights."""
        torch.manual_seed(seed)
        if "model" in init:
            loaded = load(init["model"], device="cpu")
            if not isinstance(loaded, Sam2Segmenter):
                raise TrainingError(f"{init['model']} is no SAM2; the track stage starts from one, or from nothing.")
            return cls(settings, loaded.tracker)
        tracker = Sam2Tracker(settings.model)
        initialise(tracker)
        return cls(settings, tracker)

    @property
    def tracker(self) -> Sam2Tracker:
        """What learns."""
        return self.model.tracker

    def draw(self, step: int, index: int, key: Sequence[int]) -> dict[str, Any]:
        """One clip with its questions and answers."""
        shape = np.random.default_rng([*key, step])  # what all clips of the step share
        frames = int(shape.choice(self.settings.frames))
        points = int(shape.integers(2, 4))
        rng = np.random.default_rng([*key, step, index, 2])
        side = self.tracker.config.image_size
        clip = draw_framed([*key, step, index], self.settings.world, frames, self.settings.aspects, side)
        masks = place_masks(clip.masks, side).numpy()
        rows = [
            ask(masks, self.settings.asked, points, rng, self.settings.least_area) for _ in range(self.settings.objects)
        ]
        return {
            "pixels": place_frames(clip.frames, side),  # (T, 3, S, S)
            "points": torch.from_numpy(np.stack([row.points for row in rows])),  # (M, T, P, 2)
            "labels": torch.from_numpy(np.stack([row.labels for row in rows])),  # (M, T, P)
            "rough": torch.from_numpy(np.stack([row.rough for row in rows])),  # (M, T, S, S)
            "truth": torch.from_numpy(np.stack([row.truth for row in rows])),  # (M, T, S, S)
            "names": cell_names(clip, side),  # (T, S/16, S/16, 3)
            "multimask": bool(shape.random() < self.settings.multimask),
            "conditioning": bool(shape.random() < self.settings.conditioning),
            "teacher": bool(shape.random() < self.settings.teacher),
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack clips; the rows of all clips, M each, become one axis."""
        batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in ("pixels", "names")}
        for name in ("points", "labels", "rough", "truth"):
            batch[name] = torch.cat([sample[name] for sample in samples])
        return batch | {name: samples[0][name] for name in ("multimask", "conditioning", "teacher")}

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            batch: See ``draw``; B clips, R = B * M rows.

        Returns:
            ``loss``, its parts, and the mean IoU and the share of right object scores.
        """
        settings, pixels = self.settings, batch["pixels"]
        clips, frames = pixels.shape[:2]
        stages = self.tracker.encode(pixels.flatten(0, 1))
        features = self.tracker.pyramid(stages)
        owner = torch.arange(clips, device=pixels.device).repeat_interleave(settings.objects) * frames  # (R,)
        config = self.tracker.config
        memory = MemoryBank(map_limit=config.memory_slots - 1, pointer_limit=config.pointer_limit - 1)
        logits, ious, scores = [], [], []
        for time in range(frames):
            mine = features.take(owner + time)
            decoded = self._decode(mine, memory, batch, time)
            best = self._best(decoded, batch["truth"][:, time])
            rows = torch.arange(len(best), device=best.device)
            mask = decoded.mask_logits[rows, best].unsqueeze(1)  # (R, 1, 4g, 4g)
            if frames > 1:
                first = time == 0 and batch["conditioning"]
                pointer = self.tracker.pointer(decoded.tokens[rows, best], decoded.score)
                remembered, score = self.tracker.upsample(mask), decoded.score
                if batch["teacher"]:
                    true = batch["truth"][:, time]
                    remembered = torch.where(true.unsqueeze(1), MASK_LOGIT, -MASK_LOGIT).to(remembered.dtype)
                    score = visible(true, settings.least_area).to(remembered.dtype) - 0.5
                maps = self.tracker.remember(mine.top, remembered, score, binary=first)
                memory.store(time, maps, pointer, conditioning=first)
            logits.append(mask[:, 0])
            ious.append(decoded.ious[rows, best])
            scores.append(decoded.score)
        score = torch.stack([s for s in scores if s is not None], 1) if config.object_score else None  # (R, T)
        losses = self._losses(torch.stack(logits, 1), torch.stack(ious, 1), score, batch["truth"])
        if self.recogniser is not None:
            losses["recognition"] = self.recogniser(stages[2], batch["names"].flatten(0, 1))
            losses["loss"] = losses["loss"] + settings.recognition * losses["recognition"]
        return losses

    def _decode(self, features: FrameFeatures, memory: MemoryBank, batch: dict[str, Any], time: int) -> Decoded:
        conditioned = self.tracker.condition(features.top, memory.read(time))
        rough = batch["rough"][:, time]  # (R, S, S)
        given = rough.flatten(1).any(1).reshape(-1, 1, 1, 1)
        dense = None
        if bool(given.any()):  # seldom after the first frame
            nothing = self.tracker.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
            dense = torch.where(given, self.tracker.embed_mask(rough.unsqueeze(1).to(features.top.dtype)), nothing)
        sparse = self.tracker.embed_points(batch["points"][:, time], batch["labels"][:, time])
        return self.tracker.decode(conditioned, features, sparse, dense=dense, multimask=batch["multimask"])

    def _best(self, decoded: Decoded, truth: Tensor) -> Tensor:
        """The candidate that fits best, (R,): it alone learns, as in SAM."""
        if decoded.mask_logits.shape[1] == 1:
            return torch.zeros(len(truth), dtype=torch.long, device=truth.device)
        with torch.no_grad():
            logits = self.tracker.upsample(decoded.mask_logits)  # (R, M, S, S)
            wrong = F.binary_cross_entropy_with_logits(
                logits, truth.unsqueeze(1).expand_as(logits).to(logits.dtype), reduction="none"
            )
            return wrong.flatten(2).mean(2).argmin(1)

    def _losses(self, mask_logits: Tensor, ious: Tensor, score: Tensor | None, truth: Tensor) -> dict[str, Tensor]:
        """Losses of logits (R, T, 4g, 4g), predicted IoUs (R, T) and scores (R, T) against truth (R, T, S, S)."""
        settings = self.settings
        losses = frame_losses(self.tracker.upsample(mask_logits), score, truth, settings.least_area)
        reached = losses.pop("ious")  # (R, T)
        losses["quality"] = (ious - reached).abs().mean()
        losses["loss"] = (
            settings.focal * losses["focal"]
            + settings.dice * losses["dice"]
            + settings.quality * losses["quality"]
            + settings.presence * losses["presence"]
        )
        if score is not None:
            losses["present"] = ((score > 0) == visible(truth, settings.least_area)).float().mean()
        return losses
