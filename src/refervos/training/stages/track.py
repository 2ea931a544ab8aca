"""Stage ``track``: a SAM2 learns to segment from clicks, boxes and masks and to follow what it segmented.

The recipe is SAM2's (Ravi et al. 2024, section 4), in miniature: images first (``frames: [1]``), then clips, in which
later frames are conditioned on memory and sometimes asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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
from refervos.training.losses import visible
from refervos.training.stages.prompt_stage import Answers, PromptedSettings, PromptedStage, best_candidate


@dataclass(frozen=True)
class TrackSettings(PromptedSettings):
    """Settings of the stage.

    Attributes:
        model: Shape of the tracker, when it starts from random weights.
    """

    model: Sam2Config = field(default_factory=Sam2Config)


class TrackStage(PromptedStage):
    """Train every parameter of a SAM2.

    Args:
        settings: See there.
        tracker: The weights to start from.
    """

    name: ClassVar[str] = "track"
    Settings: ClassVar[type] = TrackSettings
    model: Sam2Segmenter

    def __init__(self, settings: TrackSettings, tracker: Sam2Tracker) -> None:
        shape = tracker.config  # Hiera's last two stages are what is recognised from
        super().__init__(settings, image_size=shape.image_size, cell=16, width=sum(shape.stage_widths[2:]))
        self.model = Sam2Segmenter(tracker)
        tracker.requires_grad_(True)

    @classmethod
    def build(cls, settings: TrackSettings, init: Mapping[str, Path], seed: int) -> TrackStage:
        """From an earlier track stage, a SAM2 checkpoint or a model over a SAM2 (``model``), or from random weights."""
        torch.manual_seed(seed)
        if "model" in init:
            tracker = getattr(load(init["model"], device="cpu"), "tracker", None)
            if not isinstance(tracker, Sam2Tracker):
                raise TrainingError(
                    f"{init['model']} has no SAM2; the track stage starts from one, or from a model over one."
                )
            return cls(settings, tracker)
        tracker = Sam2Tracker(settings.model)
        initialise(tracker)
        return cls(settings, tracker)

    @property
    def tracker(self) -> Sam2Tracker:
        """What learns."""
        return self.model.tracker

    def train(self, mode: bool = True) -> TrackStage:
        """Training mode for the tracker too, which a ``Sam2Segmenter`` keeps out of it: dropout in the memory
        attention, and each of the decoder's masks learns from its own error (Ravi et al. 2024, appendix D).
        """
        super().train(mode)
        self.tracker.train(mode)
        return self

    def answer(self, batch: dict[str, Any]) -> Answers:
        """Answer frame by frame, each conditioned on what is remembered of those before."""
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
            upsampled = self.tracker.upsample(decoded.mask_logits)  # (R, M, S, S)
            best = best_candidate(upsampled, batch["truth"][:, time])
            rows = torch.arange(len(best), device=best.device)
            mask = upsampled[rows, best]  # (R, S, S)
            if time + 1 < frames:  # nobody reads what the last frame would leave
                first = time == 0 and batch["conditioning"]
                pointer = self.tracker.pointer(decoded.tokens[rows, best], decoded.score)
                remembered, score = mask.unsqueeze(1), decoded.score
                if batch["teacher"]:
                    true = batch["truth"][:, time]
                    remembered = torch.where(true.unsqueeze(1), MASK_LOGIT, -MASK_LOGIT).to(remembered.dtype)
                    score = visible(true, settings.least_area).to(remembered.dtype) - 0.5
                maps = self.tracker.remember(mine.top, remembered, score, binary=first)
                memory.store(time, maps, pointer, conditioning=first)
            logits.append(mask)
            ious.append(decoded.ious[rows, best])
            scores.append(decoded.score)
        score = torch.stack([s for s in scores if s is not None], 1) if config.object_score else None  # (R, T)
        return Answers(torch.stack(logits, 1), torch.stack(ious, 1), score, cells=_cells(stages))

    def _decode(self, features: FrameFeatures, memory: MemoryBank, batch: dict[str, Any], time: int) -> Decoded:
        conditioned = self.tracker.condition(features.top, memory.read(time))
        rough = batch["rough"][:, time]  # (R, S, S)
        dense = None
        if batch["given"][time]:  # seldom after the first frame
            given = rough.flatten(1).any(1).reshape(-1, 1, 1, 1)
            nothing = self.tracker.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
            dense = torch.where(given, self.tracker.embed_mask(rough.unsqueeze(1).to(features.top.dtype)), nothing)
        sparse = self.tracker.embed_points(batch["points"][:, time], batch["labels"][:, time])
        return self.tracker.decode(conditioned, features, sparse, dense=dense, multimask=batch["multimask"])


def _cells(stages: Sequence[Tensor]) -> Tensor:
    """Tokens of Hiera's third stage beside those of the fourth that cover them, each normalised: (N, n, n, D)."""
    fine, coarse = stages[2], stages[3]
    coarse = F.interpolate(coarse.permute(0, 3, 1, 2), size=fine.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in (fine, coarse)], dim=-1)
