"""Stage ``refsam``: adapters, Cross-Modal MLP, dense attention, mask decoder and tracking learn sentences.

As published: single images first (``frames: [1]``), then clips of three frames, with gradients through the track tokens
of the whole clip. SAM's image encoder and T5 stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from refervos.errors import TrainingError
from refervos.refsam.config import RefSamConfig
from refervos.refsam.model import RefSam
from refervos.sam.checkpoints import load_sam
from refervos.text.pretrained import load_t5
from refervos.text.tokenizer import Tokenizer
from refervos.training.losses import mask_losses
from refervos.training.stages.referring import ReferringSettings, ReferringStage, fill, loaded_as


@dataclass(frozen=True)
class RefSamSettings(ReferringSettings):
    """Settings of the stage.

    Attributes:
        model: Shape of what is trained; SAM and text encoder bring their own.
        gradient_checkpointing: Recompute the adapted blocks in the backward pass, which saves memory and costs time.
    """

    model: RefSamConfig = field(default_factory=RefSamConfig)
    gradient_checkpointing: bool = False


class RefSamStage(ReferringStage):
    """RefSAM on images or clips.

    Args:
        settings: See there.
        model: The weights to start from.
    """

    name: ClassVar[str] = "refsam"
    Settings: ClassVar[type] = RefSamSettings

    @classmethod
    def build(cls, settings: RefSamSettings, init: Mapping[str, Path], seed: int) -> RefSamStage:
        """From ``sam`` and ``text``, or from an earlier stage (``model``); see ``build_refsam``."""
        model = build_refsam(settings.model, init, seed)
        model.gradient_checkpointing = settings.gradient_checkpointing
        return cls(settings, model)

    def published_losses(
        self, logits: Sequence[Tensor], truths: Sequence[Tensor], voids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every frame by itself, those in which the object is absent too."""

        def frames(clips: Sequence[Tensor]) -> list[Tensor]:
            return [frame for clip in clips for frame in clip.split(1)]  # (1, H, W) each

        return mask_losses(frames(logits), frames(truths), None if voids is None else frames(voids))


def build_refsam(config: RefSamConfig, init: Mapping[str, Path], seed: int) -> RefSam:
    """Put a RefSAM together.

    Args:
        config: Adapters, dense attention, tracking; ``sam`` and ``text`` are replaced by what is loaded.
        init: Where the frozen parts and the mask decoder's first weights come from: ``sam`` (a SAM, such as Meta's
            ``sam_vit_b_01ec64.pth``) and ``text`` (a T5), or ``frozen`` (any RefSAM, whose decoder has learnt).
            ``model`` or ``trained``: an earlier RefSAM whose trained parts are taken as far as the configuration has
            them; ``model`` may bring the frozen parts as well.
        seed: New weights are drawn from it.

    Returns:
        The model, image encoder and text encoder frozen.

    Raises:
        TrainingError: When a part is missing or is not what its role says.
    """
    roles = [role for role in ("model", "trained") if role in init]
    earlier = loaded_as(RefSam, init[roles[0]]) if roles else None
    tokenizer: Tokenizer | None
    if "sam" in init and "text" in init:
        sam = load_sam(init["sam"])
        text, tokenizer = load_t5(init["text"])
    else:
        donor = loaded_as(RefSam, init["frozen"]) if "frozen" in init else earlier
        if donor is None:
            raise TrainingError(
                "RefSAM starts from 'sam' and 'text', from 'frozen', or from 'model'; give one of these under init."
            )
        sam, text, tokenizer = donor.sam, donor.text, donor.tokenizer
    torch.manual_seed(seed)
    model = RefSam(replace(config, sam=sam.config, text=text.config), tokenizer)
    fill(model.sam, sam.state_dict())
    fill(model.text, text.state_dict())
    if earlier is not None:
        learnt = earlier.trained_parts()
        for name, part in model.trained_parts().items():
            if name in learnt:
                fill(part, learnt[name].state_dict(), partly=True)
    return model
