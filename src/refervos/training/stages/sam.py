"""Stage ``sam``: a SAM learns to segment from clicks, boxes and masks on images.

SAM's recipe (Kirillov et al. 2023, appendix A) in miniature: prompts of all kinds for several objects of an image, over
the same image features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import ConfigError
from refervos.sam.checkpoints import load_sam, save_sam
from refervos.sam.config import SamConfig
from refervos.sam.model import Sam
from refervos.training.initialisation import initialise
from refervos.training.stages.prompt_stage import Predictions, PromptedSettings, PromptedStage, best_candidate

MASK_PROMPT_LOGIT = 10.0
"""Logit of the pixels on a mask prompt; the others have its negative."""


@dataclass(frozen=True)
class SamSettings(PromptedSettings):
    """Settings of the stage.

    Attributes:
        model: Shape of the SAM, if it starts from random weights.
    """

    model: SamConfig = field(default_factory=SamConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.frames) != {1}:
            raise ConfigError(f"frames is {list(self.frames)}; SAM takes single images, so it must be [1].")


class SamStage(PromptedStage):
    """Training of every parameter of a SAM.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
    """

    name: ClassVar[str] = "sam"
    Settings: ClassVar[type] = SamSettings
    model: Sam

    def __init__(self, settings: SamSettings, model: Sam) -> None:
        config = model.config
        super().__init__(settings, image_size=config.image_size, cell=config.patch, width=config.vit_width)
        self.model = model

    @classmethod
    def build(cls, settings: SamSettings, init: Mapping[str, Path], seed: int) -> SamStage:
        """Build the stage from an earlier stage or a SAM checkpoint (``model``), or from random weights."""
        torch.manual_seed(seed)
        if "model" in init:
            return cls(settings, load_sam(init["model"]))
        model = Sam(settings.model)
        initialise(model)
        return cls(settings, model)

    def predict(self, batch: dict[str, Any]) -> Predictions:
        """Predict masks for all prompts of an image over the same features."""
        sam, ground_truth = self.model, batch["ground_truth"][:, 0]  # (R, S, S)
        features = sam.encode(batch["pixels"].flatten(0, 1))
        image = features.top.repeat_interleave(self.settings.objects, dim=0)  # (R, C, g, g)
        padding = batch["labels"].new_full((len(ground_truth), 1), -1)
        prompts = sam.embed_points(
            F.pad(batch["points"][:, 0], (0, 0, 0, 1)), torch.cat([batch["labels"][:, 0], padding], dim=1)
        )
        decoded = sam.decode(
            image + self._embed_masks(batch["mask_prompts"][:, 0]), prompts, multimask=batch["multimask"]
        )
        upsampled = sam.upsample(decoded.mask_logits)  # (R, M, S, S)
        best = best_candidate(upsampled, ground_truth)
        rows = torch.arange(len(best), device=best.device)
        return Predictions(
            mask_logits=upsampled[rows, best].unsqueeze(1),
            ious=decoded.ious[rows, best].unsqueeze(1),
            score=None,
            cells=features.between[-1],
        )

    def _embed_masks(self, masks: Tensor) -> Tensor:
        """Embed mask prompts bool (R, S, S); an empty mask means that there is none."""
        given = masks.flatten(1).any(1).reshape(-1, 1, 1, 1)
        small = F.interpolate(masks.unsqueeze(1).float(), size=self.model.config.mask_size, mode="area")
        return torch.where(given, self.model.embed_mask((2 * small - 1) * MASK_PROMPT_LOGIT), self.model.no_mask())

    def save(self, folder: Path) -> None:
        """Write the model."""
        save_sam(self.model, folder)
