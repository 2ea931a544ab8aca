"""A small stage with everything the trainer must handle: batch norm, dropout, a frozen part, varying counts."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from refervos.training.stage import TRAIN, Key, SampleSource, Stage


@dataclass(frozen=True)
class ToySettings:
    """Settings of the toy stage.

    Attributes:
        width: Channels.
        norm: Use a batch norm.
        dropout: Dropout probability.
        counted: Average the loss over selected pixels only, whose number varies.
        leak: Fault of the frozen part: none; a "parameter" or a "buffer" of it changes; a parameter is "trainable", or
            given to the "optimiser".
        nan_at: Step whose samples are NaN.
        kill_at: Step whose samples signal the process, if ``TOY_KILL`` names a signal.
        idle: Have parameters that nothing uses.
    """

    width: int = 4
    norm: bool = True
    dropout: float = 0.2
    counted: bool = True
    leak: str = ""
    nan_at: int = -1
    kill_at: int = -1
    idle: bool = False


class ToyModel(nn.Module):
    """Convolutions that learn to blur an image."""

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        width = settings.width
        self.frozen: nn.Sequential = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        ).requires_grad_(False)
        self.learns = nn.Sequential(
            # No bias: a batch norm subtracts it again, so it would only learn rounding errors.
            nn.Conv2d(width, width, 3, padding=1, bias=not settings.norm),
            nn.BatchNorm2d(width) if settings.norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Conv2d(width, 1, 1),
        )
        self.sometimes = nn.Conv2d(1, 1, 1)
        self.idle = nn.Conv2d(1, 1, 1) if settings.idle else None

    def forward(self, image: Tensor, more: bool) -> Tensor:
        out: Tensor = self.learns(self.frozen(image))
        return out + self.sometimes(image) if more else out

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}, folder / "w.safetensors"
        )


@dataclass(frozen=True)
class ToySource(SampleSource):
    """Source of random images."""

    settings: ToySettings

    def draw(self, step: int, index: int, key: Key) -> tuple[Tensor, bool]:
        if (step, index, key[2]) == (self.settings.kill_at, 0, TRAIN) and "TOY_KILL" in os.environ:
            os.kill(os.getpid(), getattr(signal, os.environ["TOY_KILL"]))
        image = torch.from_numpy(np.random.default_rng([*key, step, index]).random((1, 8, 8), np.float32))
        if step == self.settings.nan_at and key[2] == TRAIN:
            image = image * float("nan")
        return image, self.settings.idle or bool(np.random.default_rng([*key, step]).random() < 0.5)

    def collate(self, samples: list[tuple[Tensor, bool]]) -> dict[str, Any]:
        return {"image": torch.stack([image for image, _ in samples]), "more": samples[0][1]}


class ToyStage(Stage):
    """Stage that learns to blur images."""

    name = "toy"
    Settings = ToySettings
    model: ToyModel

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = ToyModel(settings)
        self.head = nn.Conv2d(1, 1, 1)

    @classmethod
    def build(cls, settings: ToySettings, init: Mapping[str, Path], seed: int) -> ToyStage:
        stage = cls(settings)
        for folder in init.values():
            stage.model.load_state_dict(load_file(folder / "w.safetensors"))
        if settings.leak == "trainable":
            stage.model.frozen[0].requires_grad_(True)
        return stage

    def frozen_parts(self) -> Sequence[nn.Module]:
        return [self.model.frozen]

    def trains_everything_always(self) -> bool:
        return self.settings.idle  # a mistake; otherwise ``sometimes`` is used at some steps only

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        extra = [next(self.model.frozen.parameters())] if self.settings.leak == "optimiser" else []
        return [*groups, {"params": extra}]

    def train(self, mode: bool = True) -> ToyStage:
        super().train(mode)
        self.model.frozen.train(mode and self.settings.leak == "buffer")
        return self

    def source(self) -> ToySource:
        return ToySource(self.settings)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        target = nn.functional.avg_pool2d(image, 3, 1, 1)
        error = (self.head(self.model(image, batch["more"])) - target).square()
        if self.settings.leak == "parameter" and self.training:
            next(self.model.frozen.parameters()).data += 1e-3
        if self.settings.counted:
            counts = image > image.mean((1, 2, 3), keepdim=True) * 1.2
            return {"loss": self.mean("error", (error * counts).sum(), counts.sum()), "share": counts.float().mean()}
        return {"loss": error.mean()}
