"""Base of the stages that train on clicks, boxes and masks: SAM on images, SAM2 on clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import ConfigError
from refervos.training.losses import around_occlusions, frame_losses, visible
from refervos.training.stage import SampleSource, Stage
from refervos.training.stages.noun_states import load_nouns_of
from refervos.training.stages.ranges import AREA, ASPECTS, COUNT, FRAMES, SHARE, WEIGHT
from refervos.training.stages.recognition import RecognitionHead, WordSpace
from refervos.training.stages.simulated_prompts import PromptShares, simulate_prompts
from refervos.training.stages.world_tensors import (
    cell_labels,
    draw_framed,
    jitter_colours,
    kind_names,
    open_sprites,
    place_frames,
    place_masks,
)
from refervos.typed_config import check_not_empty, check_range
from refervos.worlds import Sprites, WorldConfig


@dataclass(frozen=True)
class PromptedSettings:
    """Settings of the prompt stages.

    Attributes:
        world: Distribution of scenes.
        frames: Lengths of the clips; one is drawn for each step.
        gap: Least and greatest number of frames from one frame of a clip to the next, drawn for each. Distant frames
            teach a tracker to find objects by appearance; adjacent ones teach it that objects stay in place.
        gapped: Share of clips to which ``gap`` applies; the others have adjacent frames.
        aspects: Width over height of the clips; one is drawn for each clip.
        asked: Relative frequencies of the kinds of prompts.
        objects: Prompted objects of each clip, all over the same features.
        multimask: Share of steps that train the three ambiguity masks instead of the single one.
        conditioning: Share of steps in which the first frame stays in memory, as in SAM2; otherwise it leaves the
            window like any other, as in SAMWISE.
        teacher: Share of steps with teacher forcing: the ground truth is stored in memory instead of the predictions,
            so that reading memory can be learnt before the predictions are good.
        least_area: Least number of pixels (of the square) of a visible object; with fewer, but some, its presence is
            not trained.
        colours: Strength of random colour changes of each clip, 0 for none; 0.1 changes them a little.
        recognition: Weight of the auxiliary recognition loss.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        quality: Weight of the error of the predicted IoU.
        presence: Weight of the object score's cross-entropy.
        hiding: Weight of the mask losses in frames in which the object is hidden after it was seen, and in the four
            frames after; other frames have weight 1.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    frames: tuple[int, ...] = (1,)
    gap: tuple[int, int] = (1, 1)
    gapped: float = 1.0
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    asked: PromptShares = field(default_factory=PromptShares)
    objects: int = 3
    multimask: float = 0.25
    conditioning: float = 0.4
    teacher: float = 0.0
    least_area: int = 12
    colours: float = 0.0
    recognition: float = 0.0
    focal: float = 20.0
    dice: float = 1.0
    quality: float = 0.5
    presence: float = 0.5
    hiding: float = 1.0

    def __post_init__(self) -> None:
        check_not_empty(self, "frames", "aspects")
        least, greatest = self.gap
        if not 1 <= least <= greatest:
            raise ConfigError(f"gap is {self.gap}; a least and a greatest number are needed, such as [1, 12].")
        check_range(
            self,
            frames=FRAMES,
            gap=FRAMES,
            aspects=ASPECTS,
            objects=COUNT,
            least_area=AREA,
            colours=(0, 10),
            **dict.fromkeys(("gapped", "multimask", "conditioning", "teacher"), SHARE),
            **dict.fromkeys(("recognition", "focal", "dice", "quality", "presence", "hiding"), WEIGHT),
        )
        longest = max(self.frames) * greatest
        if longest > FRAMES[1]:
            raise ConfigError(
                f"frames is {list(self.frames)} and gap {list(self.gap)}; clips would have up to {longest} frames, and "
                f"at most {FRAMES[1]} are allowed."
            )


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for R prompted objects over T frames.

    Attributes:
        mask_logits: (R, T, S, S).
        ious: Predicted IoUs (R, T).
        score: Object score logits (R, T), or None.
        cells: Tokens for the recognition head, channels last (V*T, n, n, D).
    """

    mask_logits: Tensor
    ious: Tensor
    score: Tensor | None
    cells: Tensor


@dataclass(frozen=True)
class PromptedSource(SampleSource):
    """Source of drawn worlds with simulated prompts.

    Attributes:
        settings: Settings of the stage.
        image_size: Side S of the model's square.
        cell: Side in pixels of the cells to label.
        sprites: The world's cut-outs, if any.
    """

    settings: PromptedSettings
    image_size: int
    cell: int
    sprites: Sprites | None = None

    def draw(self, step: int, index: int, key: Sequence[int]) -> dict[str, Any]:
        """Draw a clip with prompts and ground truth."""
        settings, side = self.settings, self.image_size
        shared = np.random.default_rng([*key, step])  # for all clips of the step
        frames = int(shared.choice(settings.frames))
        points = int(shared.integers(2, 4))
        rng = np.random.default_rng([*key, step, index, 2])
        times = self.draw_times(frames, np.random.default_rng([*key, step, index, 3]))
        last = int(times[-1])
        clip = draw_framed([*key, step, index], settings.world, last + 1, settings.aspects, side, self.sprites)
        clip = clip.at(times)
        images = jitter_colours(clip.frames, settings.colours, np.random.default_rng([*key, step, index, 4]))
        masks = place_masks(clip.masks, side).numpy()
        rows = [
            simulate_prompts(masks, settings.asked, points, rng, settings.least_area) for _ in range(settings.objects)
        ]
        return {
            "pixels": place_frames(images, side),  # (T, 3, S, S)
            "points": torch.from_numpy(np.stack([row.points for row in rows])),  # (M, T, P, 2)
            "labels": torch.from_numpy(np.stack([row.labels for row in rows])),  # (M, T, P)
            "mask_prompts": torch.from_numpy(np.stack([row.masks for row in rows])),  # (M, T, S, S)
            "ground_truth": torch.from_numpy(np.stack([row.ground_truth for row in rows])),  # (M, T, S, S)
            "cell_labels": cell_labels(clip, side, self.cell, kind_names(self.sprites)),  # (T, n, n, 3)
            "multimask": bool(shared.random() < settings.multimask),
            "conditioning": bool(shared.random() < settings.conditioning),
            "teacher": bool(shared.random() < settings.teacher),
        }

    def draw_times(self, frames: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw the indices of a clip's T frames in the drawn world, int64 (T,); the first is one of the first few."""
        least, greatest = self.settings.gap if rng.random() < self.settings.gapped else (1, 1)
        gaps = rng.integers(least, greatest + 1, frames)
        gaps[0] = rng.integers(0, min(greatest, 4))
        return np.cumsum(gaps)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack clips; the M rows of each become one axis. ``has_mask_prompt`` is a list of a bool for each frame."""
        batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in ("pixels", "cell_labels")}
        for name in ("points", "labels", "mask_prompts", "ground_truth"):
            batch[name] = torch.cat([sample[name] for sample in samples])
        # Computed here on the CPU: on a GPU the model would have to synchronise for each frame.
        batch["has_mask_prompt"] = batch["mask_prompts"].flatten(2).any(2).any(0).tolist()
        return batch | {name: samples[0][name] for name in ("multimask", "conditioning", "teacher")}


class PromptedStage(Stage):
    """Training of every parameter of a model that takes clicks, boxes and masks.

    Args:
        settings: Settings of the stage.
        image_size: Side S of the model's square.
        cell: Side in pixels of a token of ``Predictions.cells``.
        width: Channels of such a token.
        text: Folder of a text encoder in whose states of the nouns kinds are recognised, too, see ``load_nouns_of``.
        parts: Channels of the parts of a token that are compared with these states.
    """

    Settings: ClassVar[type] = PromptedSettings

    def __init__(
        self,
        settings: PromptedSettings,
        *,
        image_size: int,
        cell: int,
        width: int,
        text: Path | None = None,
        parts: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.image_size, self.cell = image_size, cell
        self.sprites = open_sprites(settings.world)
        self.recogniser: RecognitionHead | None = None
        if settings.recognition:
            kinds = kind_names(self.sprites)
            words = None if text is None else WordSpace(parts, load_nouns_of(text, kinds))
            self.recogniser = RecognitionHead(width, len(kinds), words)

    def trains_everything_always(self) -> bool:
        """Return False: some parts serve only some kinds of prompts, ambiguity masks or later frames."""
        return False

    @abstractmethod
    def predict(self, batch: dict[str, Any]) -> Predictions:
        """Predict masks for a batch of prompts, see ``PromptedSource``."""

    def source(self) -> PromptedSource:
        """Return the source of drawn worlds with prompts."""
        return PromptedSource(self.settings, self.image_size, self.cell, self.sprites)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: See ``PromptedSource``; V clips, R = V * M rows.

        Returns:
            ``loss``, its parts, the mean IoU, and the share of correct object scores.
        """
        settings, ground_truth = self.settings, batch["ground_truth"]
        predictions = self.predict(batch)
        occluded = around_occlusions(ground_truth, settings.least_area)  # (R, T)
        weight = torch.where(occluded, settings.hiding, 1.0)
        losses = frame_losses(
            predictions.mask_logits, predictions.score, ground_truth, settings.least_area, weight, mean=self.mean
        )
        ious = losses.pop("ious")  # (R, T)
        losses["quality"] = (predictions.ious - ious).abs().mean()
        losses["loss"] = (
            settings.focal * losses["focal"]
            + settings.dice * losses["dice"]
            + settings.quality * losses["quality"]
            + settings.presence * losses["presence"]
        )
        if predictions.score is not None:
            losses["present"] = ((predictions.score > 0) == visible(ground_truth, settings.least_area)).float().mean()
        if self.recogniser is not None:
            losses["recognition"] = self.recogniser(predictions.cells, batch["cell_labels"].flatten(0, 1), self.mean)
            losses["loss"] = losses["loss"] + settings.recognition * losses["recognition"]
        return losses


def best_candidate(mask_logits: Tensor, ground_truth: Tensor) -> Tensor:
    """Choose the best of several candidate masks, the only one that is trained, as in SAM.

    Args:
        mask_logits: (R, M, S, S).
        ground_truth: bool (R, S, S).

    Returns:
        int64 (R,).
    """
    if mask_logits.shape[1] == 1:
        return torch.zeros(len(ground_truth), dtype=torch.long, device=ground_truth.device)
    with torch.no_grad():
        target = ground_truth.unsqueeze(1).expand_as(mask_logits).to(mask_logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(mask_logits, target, reduction="none")
        return entropy.flatten(2).mean(2).argmin(1)
