"""Stage ``track``: a SAM2 learns to segment from clicks, boxes and masks and to track the segmented objects.

The recipe is SAM2's (Ravi et al. 2024, section 4), in miniature: images first (``frames: [1]``), then clips, in which
later frames are conditioned on memory and sometimes prompted again.
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
from refervos.training.stages.prompt_stage import Predictions, PromptedSettings, PromptedStage, best_candidate


@dataclass(frozen=True)
class TrackSettings(PromptedSettings):
    """Settings of the stage.

    Attributes:
        model: Shape of the tracker, if it starts from random weights.
    """

    model: Sam2Config = field(default_factory=Sam2Config)


class TrackStage(PromptedStage):
    """Training of every parameter of a SAM2.

    Args:
        settings: Settings of the stage.
        tracker: The tracker with its initial weights.
        text: Folder of a text encoder, see ``PromptedStage``.
    """

    name: ClassVar[str] = "track"
    Settings: ClassVar[type] = TrackSettings
    model: Sam2Segmenter

    def __init__(self, settings: TrackSettings, tracker: Sam2Tracker, text: Path | None = None) -> None:
        shape = tracker.config  # the recognition head takes the tokens of Hiera's last two stages
        parts = shape.stage_widths[2:]
        super().__init__(settings, image_size=shape.image_size, cell=16, width=sum(parts), text=text, parts=parts)
        self.model = Sam2Segmenter(tracker)
        tracker.requires_grad_(True)

    @classmethod
    def build(cls, settings: TrackSettings, init: Mapping[str, Path], seed: int) -> TrackStage:
        """Build the stage from an earlier one, a SAM2 or a model over one (``model``), or from random weights.

        With ``text``, a text encoder, recognition also compares the image tokens with its states of the kinds' nouns.
        """
        torch.manual_seed(seed)
        if "model" in init:
            return cls(settings, load_tracker(init["model"]), init.get("text"))
        tracker = Sam2Tracker(settings.model)
        initialise(tracker)
        return cls(settings, tracker, init.get("text"))

    @property
    def tracker(self) -> Sam2Tracker:
        """The SAM2 tracker, which is trained."""
        return self.model.tracker

    def train(self, mode: bool = True) -> TrackStage:
        """Set training mode for the tracker, too, which a ``Sam2Segmenter`` keeps in evaluation mode.

        It enables dropout in the memory attention, and returns the decoder's masks unselected (Ravi et al. 2024,
        appendix D).
        """
        super().train(mode)
        self.tracker.train(mode)
        return self

    def predict(self, batch: dict[str, Any]) -> Predictions:
        """Predict frame by frame, each conditioned on the memory of those before."""
        settings, pixels = self.settings, batch["pixels"]
        clips, frames = pixels.shape[:2]
        stages = self.tracker.encode(pixels.flatten(0, 1))
        features = self.tracker.pyramid(stages)
        first_frame = torch.arange(clips, device=pixels.device).repeat_interleave(settings.objects) * frames  # (R,)
        config = self.tracker.config
        memory = MemoryBank(map_limit=config.memory_slots - 1, pointer_limit=config.pointer_limit - 1)
        logits, ious, scores = [], [], []
        for time in range(frames):
            current = features.take(first_frame + time)
            decoded = self._decode(current, memory, batch, time)
            upsampled = self.tracker.upsample(decoded.mask_logits)  # (R, M, S, S)
            best = best_candidate(upsampled, batch["ground_truth"][:, time])
            rows = torch.arange(len(best), device=best.device)
            mask = upsampled[rows, best]  # (R, S, S)
            if time + 1 < frames:  # no frame would read the memory of the last one
                first = time == 0 and batch["conditioning"]
                pointer = self.tracker.pointer(decoded.tokens[rows, best], decoded.score)
                stored, score = mask.unsqueeze(1), decoded.score
                if batch["teacher"]:
                    ground_truth = batch["ground_truth"][:, time]
                    stored = torch.where(ground_truth.unsqueeze(1), MASK_LOGIT, -MASK_LOGIT).to(stored.dtype)
                    score = visible(ground_truth, settings.least_area).to(stored.dtype) - 0.5
                maps = self.tracker.remember(current.top, stored, score, binary=first)
                memory.store(time, maps, pointer, conditioning=first)
            logits.append(mask)
            ious.append(decoded.ious[rows, best])
            scores.append(decoded.score)
        score = torch.stack([s for s in scores if s is not None], 1) if config.object_score else None  # (R, T)
        return Predictions(torch.stack(logits, 1), torch.stack(ious, 1), score, cells=_cells(stages))

    def _decode(self, features: FrameFeatures, memory: MemoryBank, batch: dict[str, Any], time: int) -> Decoded:
        conditioned = self.tracker.condition(features.top, memory.read(time))
        masks = batch["mask_prompts"][:, time]  # (R, S, S)
        dense = None
        if batch["has_mask_prompt"][time]:  # rare after the first frame
            given = masks.flatten(1).any(1).reshape(-1, 1, 1, 1)
            nothing = self.tracker.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
            dense = torch.where(given, self.tracker.embed_mask(masks.unsqueeze(1).to(features.top.dtype)), nothing)
        sparse = self.tracker.embed_points(batch["points"][:, time], batch["labels"][:, time])
        return self.tracker.decode(conditioned, features, sparse, dense=dense, multimask=batch["multimask"])


def load_tracker(folder: Path) -> Sam2Tracker:
    """Load the SAM2 of a model.

    Args:
        folder: Folder of a SAM2, or of a model over one.

    Raises:
        TrainingError: When it has none.
    """
    tracker = getattr(load(folder, device="cpu"), "tracker", None)
    if not isinstance(tracker, Sam2Tracker):
        raise TrainingError(f"{folder} has no SAM2; this stage starts from one, or from a model over one.")
    return tracker


def _cells(stages: Sequence[Tensor]) -> Tensor:
    """Concatenate the tokens of Hiera's third stage with the upsampled ones of the fourth, normalised: (N, n, n, D)."""
    fine, coarse = stages[2], stages[3]
    coarse = F.interpolate(coarse.permute(0, 3, 1, 2), size=fine.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in (fine, coarse)], dim=-1)
