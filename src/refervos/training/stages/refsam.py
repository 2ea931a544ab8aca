"""Stage ``refsam``: RefSAM's adapters, Cross-Modal MLP, dense attention, mask decoder and tracking learn sentences.

As published: single images first (``frames: [1]``), then clips of three frames, with gradients through the track tokens
of the whole clip. SAM's image encoder and T5 stay frozen.
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
from refervos.training.stages.referring import ReferringSettings, ReferringStage, copy_weights, load_as


@dataclass(frozen=True)
class RefSamSettings(ReferringSettings):
    """Settings of the stage.

    Attributes:
        model: Shape of the trained parts; the shapes of SAM and text encoder come with their weights.
        gradient_checkpointing: Recompute the adapted blocks in the backward pass, which saves memory and costs time.
    """

    model: RefSamConfig = field(default_factory=RefSamConfig)
    gradient_checkpointing: bool = False


class RefSamStage(ReferringStage):
    """Training of RefSAM on images or clips.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
    """

    name: ClassVar[str] = "refsam"
    Settings: ClassVar[type] = RefSamSettings

    model: RefSam
    settings: RefSamSettings

    def __init__(self, settings: RefSamSettings, model: RefSam) -> None:
        super().__init__(settings, model)
        self._lengths = {length for kind in settings.kinds for length in kind.frames}
        decoder = model.sam.mask_decoder
        for unused in (decoder.iou_prediction_head, decoder.output_hypernetworks_mlps[1:]):
            unused.requires_grad_(False)
        if model.tracking is not None:
            model.tracking.requires_grad_(max(self._lengths) > 1)

    def trains_everything_always(self) -> bool:
        """Return False if there are clips of one frame, which do not train the tracking, beside longer ones."""
        return self.model.tracking is None or len({length > 1 for length in self._lengths}) == 1

    @classmethod
    def build(cls, settings: RefSamSettings, init: Mapping[str, Path], seed: int) -> RefSamStage:
        """Build the stage from ``sam`` and ``text``, or from an earlier stage (``model``); see ``build_refsam``."""
        model = build_refsam(settings.model, init, seed)
        model.gradient_checkpointing = settings.gradient_checkpointing
        return cls(settings, model)

    def published_losses(
        self, logits: Sequence[Tensor], ground_truth: Sequence[Tensor], voids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Average the losses of single frames, including those without the object."""

        def frames(clips: Sequence[Tensor]) -> list[Tensor]:
            return [frame for clip in clips for frame in clip.split(1)]  # (1, H, W) each

        return mask_losses(frames(logits), frames(ground_truth), None if voids is None else frames(voids))


def build_refsam(config: RefSamConfig, init: Mapping[str, Path], seed: int) -> RefSam:
    """Build a RefSAM from frozen parts and, optionally, an earlier RefSAM.

    Args:
        config: Adapters, dense attention, tracking; ``sam`` and ``text`` are replaced by the loaded configurations.
        init: Sources of the frozen parts and of the mask decoder's initial weights: ``sam`` (a SAM, such as Meta's
            ``sam_vit_b_01ec64.pth``) and ``text`` (a T5), or ``frozen`` (any RefSAM, with its trained decoder).
            ``model`` or ``trained``: an earlier RefSAM whose trained parts are copied as far as the configuration has
            them; ``model`` may provide the frozen parts as well.
        seed: Seed of new weights.

    Returns:
        The model, with frozen image encoder and text encoder.

    Raises:
        TrainingError: When a part is missing or does not match its role.
    """
    roles = [role for role in ("model", "trained") if role in init]
    earlier = load_as(RefSam, init[roles[0]]) if roles else None
    tokenizer: Tokenizer | None
    if "sam" in init and "text" in init:
        sam = load_sam(init["sam"])
        text, tokenizer = load_t5(init["text"])
    else:
        donor = load_as(RefSam, init["frozen"]) if "frozen" in init else earlier
        if donor is None:
            raise TrainingError(
                "RefSAM starts from 'sam' and 'text', from 'frozen', or from 'model'; give one of these under init."
            )
        sam, text, tokenizer = donor.sam, donor.text, donor.tokenizer
    torch.manual_seed(seed)
    words = config.words or (() if earlier is None else earlier.config.words)
    model = RefSam(replace(config, sam=sam.config, text=text.config, words=words), tokenizer)
    copy_weights(model.sam, sam.state_dict())
    copy_weights(model.text, text.state_dict())
    if earlier is not None:
        trained = earlier.trained_parts()
        for name, part in model.trained_parts().items():
            if name in trained:
                copy_weights(part, trained[name].state_dict(), partial=True)
    return model
