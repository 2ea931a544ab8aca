"""What stages have in common that learn to answer clicks, boxes and masks: SAM on images, SAM2 on clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import ConfigError
from refervos.training.losses import around_occlusions, frame_losses, visible
from refervos.training.stage import SampleSource, Stage
from refervos.training.stages.pictures import (
    cell_names,
    draw_framed,
    kind_names,
    open_sprites,
    place_frames,
    place_masks,
    recoloured,
)
from refervos.training.stages.ranges import AREA, ASPECTS, COUNT, FRAMES, SHARE, WEIGHT
from refervos.training.stages.recognition import RecognitionHead
from refervos.training.stages.simulated_prompts import AskedShares, ask
from refervos.typed_config import check_not_empty, check_range
from refervos.worlds import Sprites, WorldConfig


@dataclass(frozen=True)
class PromptedSettings:
    """Settings of these stages.

    Attributes:
        world: What scenes are like.
        frames: Lengths of the clips; one is drawn for each step.
        gap: Least and greatest number of frames from one frame of a clip to its next, drawn for each. Frames far apart
            teach a tracker to find objects by their look: of neighbours it learns that they are where they were.
        gapped: Share of clips to which ``gap`` applies; the others have neighbouring frames.
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
        colours: How strongly the colours of each clip are changed at random, 0 for not at all; 0.1 turns them a little.
        recognition: Weight of the auxiliary recognition loss.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        quality: Weight of the error of the predicted IoU.
        presence: Weight of the object score's cross-entropy.
        hiding: How much more than others a frame's mask counts in which the object is hidden after it was seen, or
            which is one of the four after that.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    frames: tuple[int, ...] = (1,)
    gap: tuple[int, int] = (1, 1)
    gapped: float = 1.0
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    asked: AskedShares = field(default_factory=AskedShares)
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
                f"frames is {list(self.frames)} and gap {list(self.gap)}; clips of up to {longest} frames would be "
                f"drawn, and at most {FRAMES[1]} are."
            )


@dataclass(frozen=True)
class Answers:
    """What a model answers to R rows of questions over T frames.

    Attributes:
        mask_logits: (R, T, S, S).
        ious: Predicted qualities (R, T).
        score: Object score logits (R, T), or None.
        cells: What the recognition head reads, channels last (V*T, n, n, D).
    """

    mask_logits: Tensor
    ious: Tensor
    score: Tensor | None
    cells: Tensor


@dataclass(frozen=True)
class PromptedSource(SampleSource):
    """Drawn worlds and questions about them.

    Attributes:
        settings: See there.
        image_size: Side S of the model's square.
        cell: Side in pixels of the cells that are to be named.
        sprites: The world's cut-outs, if any.
    """

    settings: PromptedSettings
    image_size: int
    cell: int
    sprites: Sprites | None = None

    def draw(self, step: int, index: int, key: Sequence[int]) -> dict[str, Any]:
        """One clip with its questions and answers."""
        settings, side = self.settings, self.image_size
        shape = np.random.default_rng([*key, step])  # what all clips of the step share
        frames = int(shape.choice(settings.frames))
        points = int(shape.integers(2, 4))
        rng = np.random.default_rng([*key, step, index, 2])
        times = self._times(frames, np.random.default_rng([*key, step, index, 3]))
        last = int(times[-1])
        clip = draw_framed([*key, step, index], settings.world, last + 1, settings.aspects, side, self.sprites)
        clip = clip.at(times)
        pictures = recoloured(clip.frames, settings.colours, np.random.default_rng([*key, step, index, 4]))
        masks = place_masks(clip.masks, side).numpy()
        rows = [ask(masks, settings.asked, points, rng, settings.least_area) for _ in range(settings.objects)]
        return {
            "pixels": place_frames(pictures, side),  # (T, 3, S, S)
            "points": torch.from_numpy(np.stack([row.points for row in rows])),  # (M, T, P, 2)
            "labels": torch.from_numpy(np.stack([row.labels for row in rows])),  # (M, T, P)
            "rough": torch.from_numpy(np.stack([row.rough for row in rows])),  # (M, T, S, S)
            "truth": torch.from_numpy(np.stack([row.truth for row in rows])),  # (M, T, S, S)
            "names": cell_names(clip, side, self.cell, kind_names(self.sprites)),  # (T, n, n, 3)
            "multimask": bool(shape.random() < settings.multimask),
            "conditioning": bool(shape.random() < settings.conditioning),
            "teacher": bool(shape.random() < settings.teacher),
        }

    def _times(self, frames: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Which frames of a drawn clip the T frames are, int64 (T,); the first one may be any of the first few."""
        least, greatest = self.settings.gap if rng.random() < self.settings.gapped else (1, 1)
        gaps = rng.integers(least, greatest + 1, frames)
        gaps[0] = rng.integers(0, min(greatest, 4))
        return np.cumsum(gaps)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack clips; the rows of all clips, M each, become one axis. ``given`` tells at which frames masks are."""
        batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in ("pixels", "names")}
        for name in ("points", "labels", "rough", "truth"):
            batch[name] = torch.cat([sample[name] for sample in samples])
        # Told here, where it costs nothing: a model that asked its device for each frame would wait each time.
        batch["given"] = batch["rough"].flatten(2).any(2).any(0).tolist()
        return batch | {name: samples[0][name] for name in ("multimask", "conditioning", "teacher")}


class PromptedStage(Stage):
    """Train every parameter of a model that answers clicks, boxes and masks.

    Args:
        settings: See there.
        image_size: Side S of the model's square.
        cell: Side in pixels of what a token of ``Answers.cells`` sees.
        width: Channels of such a token.
    """

    Settings: ClassVar[type] = PromptedSettings

    def __init__(self, settings: PromptedSettings, *, image_size: int, cell: int, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.image_size, self.cell = image_size, cell
        self.sprites = open_sprites(settings.world)
        self.recogniser = RecognitionHead(width, len(kind_names(self.sprites))) if settings.recognition else None

    @abstractmethod
    def answer(self, batch: dict[str, Any]) -> Answers:
        """Answer a batch of questions, see ``PromptedSource``."""

    def source(self) -> PromptedSource:
        """Drawn worlds and questions about them."""
        return PromptedSource(self.settings, self.image_size, self.cell, self.sprites)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            batch: See ``PromptedSource``; V clips, R = V * M rows.

        Returns:
            ``loss``, its parts, and the mean IoU and the share of right object scores.
        """
        settings, truth = self.settings, batch["truth"]
        answers = self.answer(batch)
        hiding = around_occlusions(truth, settings.least_area)  # (R, T)
        weight = torch.where(hiding, settings.hiding, 1.0)
        losses = frame_losses(answers.mask_logits, answers.score, truth, settings.least_area, weight)
        reached = losses.pop("ious")  # (R, T)
        losses["quality"] = (answers.ious - reached).abs().mean()
        losses["loss"] = (
            settings.focal * losses["focal"]
            + settings.dice * losses["dice"]
            + settings.quality * losses["quality"]
            + settings.presence * losses["presence"]
        )
        if answers.score is not None:
            losses["present"] = ((answers.score > 0) == visible(truth, settings.least_area)).float().mean()
        if self.recogniser is not None:
            losses["recognition"] = self.recogniser(answers.cells, batch["names"].flatten(0, 1))
            losses["loss"] = losses["loss"] + settings.recognition * losses["recognition"]
        return losses


def best_candidate(mask_logits: Tensor, truth: Tensor) -> Tensor:
    """Which of several candidate masks fits best: it alone learns, as in SAM.

    Args:
        mask_logits: (R, M, S, S).
        truth: bool (R, S, S).

    Returns:
        int64 (R,).
    """
    if mask_logits.shape[1] == 1:
        return torch.zeros(len(truth), dtype=torch.long, device=truth.device)
    with torch.no_grad():
        wrong = F.binary_cross_entropy_with_logits(
            mask_logits, truth.unsqueeze(1).expand_as(mask_logits).to(mask_logits.dtype), reduction="none"
        )
        return wrong.flatten(2).mean(2).argmin(1)
