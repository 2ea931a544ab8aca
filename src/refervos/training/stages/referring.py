"""What stages have in common in which a model learns sentences about clips, whichever model it is."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from refervos.data.sentences import require_sentences
from refervos.errors import TrainingError
from refervos.loading import load
from refervos.model_base import ClipOutput, TrainableModel
from refervos.text.encoder import pad_tokens
from refervos.training.devices import read_back
from refervos.training.losses import frame_losses, visible
from refervos.training.stage import TRAIN, VALIDATION, Key, SampleSource, Stage
from refervos.training.stages.clip_sources import BenchmarkClips, BenchmarkSource, ClipSource, Sampling, WorldClips
from refervos.training.stages.pictures import open_sprites
from refervos.training.stages.ranges import ASPECTS, COUNT, FRAMES, SHARE, WEIGHT
from refervos.typed_config import check_not_empty, check_range
from refervos.worlds import FAMILIES, WorldConfig, known_words

Model = TypeVar("Model")

NO_TARGET = "none"
"""The family of sentences that are true of nothing."""


@dataclass(frozen=True)
class ReferringSettings:
    """Settings of these stages.

    Attributes:
        world: What scenes are like.
        frames: Lengths of the clips; one is drawn for each step.
        chunks: Frames that the adapters see at once; one is drawn for each step, None for the whole clip.
        aspects: Width over height of the worlds' clips; one is drawn for each clip.
        data: Benchmarks to learn from, instead of worlds.
        validation: Benchmarks to validate on, where ``data`` is given.
        sampling: Which frames of a benchmark's video make up a clip (see ``BenchmarkClips``).
        flip: Share of the benchmarks' clips that are mirrored.
        sentences: Sentences asked about each clip, about different objects where possible: over the same pixels,
            nothing but the words tells the masks apart.
        families: How often each family of the worlds' sentences is asked, by name; default all alike.
        pairs: Share of the worlds' sentences about one object that are followed by their near miss, the same sentence
            with one thing changed so that it is true of nothing.
        stride: Share of the worlds' clips in which every second frame is left out.
        from_decidable: Teach the mask of a sentence about motion only from the first frame on from which what was seen
            settles which object is meant; before it, the object score alone. Not with ``published_losses``.
        published_losses: Focal and dice loss as published for the model, with weights 1 and nothing else. Otherwise
            every frame counts alike and the object score, if any, learns to say "not there" (see ``frame_losses``).
        least_area: Pixels (of the square) from which on an object counts as visible.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        presence: Weight of the object score's cross-entropy.
        rates: What the learning rate is multiplied by in some of the model's trained parts, by their names.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    frames: tuple[int, ...] = (1,)
    chunks: tuple[int | None, ...] = (None,)
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    data: tuple[BenchmarkSource, ...] = ()
    validation: tuple[BenchmarkSource, ...] = ()
    sampling: Sampling = "mixed"
    flip: float = 0.5
    sentences: int = 2
    families: Mapping[str, float] = field(default_factory=dict)
    pairs: float = 0.0
    stride: float = 0.0
    from_decidable: bool = False
    published_losses: bool = False
    least_area: int = 12
    focal: float = 20.0
    dice: float = 1.0
    presence: float = 0.5
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_not_empty(self, "frames", "chunks", "aspects")
        check_range(
            self,
            frames=FRAMES,
            chunks=FRAMES,
            aspects=ASPECTS,
            sentences=COUNT,
            families=WEIGHT,
            least_area=(0, 10**9),
            **dict.fromkeys(("flip", "pairs", "stride"), SHARE),
            **dict.fromkeys(("focal", "dice", "presence", "rates"), WEIGHT),
        )
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown:
            raise TrainingError(f"there is no family {unknown[0]!r} of sentences; known are {', '.join(FAMILIES)}.")
        if self.validation and not self.data:
            raise TrainingError("validation names a benchmark, but data does not; worlds are validated on worlds.")


@dataclass(frozen=True)
class ReferringSource(SampleSource):
    """Clips and the sentences asked about them.

    Attributes:
        settings: See there.
        clips: What is asked in training and in validation.
        reader: Makes token ids of sentences, see ``reader_of``.
    """

    settings: ReferringSettings
    clips: Mapping[int, ClipSource]
    reader: TrainableModel

    def draw(self, step: int, index: int, key: Key) -> dict[str, Any]:
        """One clip with the sentences asked about it."""
        settings = self.settings
        shape = np.random.default_rng([*key, step])  # what all clips of the step share
        frames, chunk = int(shape.choice(settings.frames)), settings.chunks[int(shape.integers(len(settings.chunks)))]
        asked = self.clips[key[-1]].draw(step, index, key, frames, settings.sentences)
        tokens = [self.reader.read(text, verbs) for text, verbs in zip(asked.expressions, asked.verbs, strict=True)]
        known = {"movements": asked.movements, "void": asked.void}  # (T, n, n, 6) and (M, T, S, S), where there are any
        return {
            "pixels": asked.pixels,  # (T, 3, S, S)
            "ids": [torch.tensor(ids) for ids, _ in tokens],
            "verbs": [torch.tensor(verbs) for _, verbs in tokens],
            "truth": asked.masks,  # (M, T, S, S)
            "inside": [asked.inside] * settings.sentences,
            "families": asked.families,
            "decidable": torch.tensor(asked.decidable),  # (M,)
            "chunk": chunk,
        } | {name: tensor for name, tensor in known.items() if tensor is not None}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack clips; the sentences of all clips, M each, become one axis."""
        ids = [row for sample in samples for row in sample["ids"]]
        verbs = [row for sample in samples for row in sample["verbs"]]
        batch = {
            "pixels": torch.stack([sample["pixels"] for sample in samples]),  # (B, T, 3, S, S)
            "ids": pad_tokens(ids, self.reader.pad),  # (B*M, L)
            "verbs": nn.utils.rnn.pad_sequence(verbs, batch_first=True),  # (B*M, L)
            "truth": torch.cat([sample["truth"] for sample in samples]),  # (B*M, T, S, S)
            "inside": [size for sample in samples for size in sample["inside"]],  # (B*M) heights and widths
            "families": [family for sample in samples for family in sample["families"]],
            "decidable": torch.cat([sample["decidable"] for sample in samples]),  # (B*M,)
            "chunk": samples[0]["chunk"],
        }
        if any("void" in sample for sample in samples):
            voids = [sample.get("void", torch.zeros_like(sample["truth"])) for sample in samples]
            batch["void"] = torch.cat(voids)  # (B*M, T, S, S)
        if "movements" in samples[0]:
            batch["movements"] = torch.stack([sample["movements"] for sample in samples])  # (B, T, n, n, 6)
        return batch


class ReferringStage(Stage):
    """Train a model on sentences about clips.

    Args:
        settings: See there.
        model: The weights to start from.
    """

    model: TrainableModel

    def __init__(self, settings: ReferringSettings, model: TrainableModel) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise TrainingError("the model to train on has no tokenizer files, so it cannot read sentences.")
        unknown = sorted(set(settings.rates) - set(model.trained_parts()))
        if unknown:
            known = ", ".join(model.trained_parts())
            raise TrainingError(
                f"rates names {unknown[0]!r}, which is no trained part of the model; these are {known}."
            )
        self.settings = settings
        self.model = model
        if not settings.data:  # what is learnt from drawn worlds has a closed vocabulary, and says so
            sprites = open_sprites(settings.world)
            model.config = replace(model.config, words=known_words(() if sprites is None else sprites.subjects))

    def frozen_parts(self) -> Sequence[nn.Module]:
        """What the model says never trains."""
        return self.model.frozen_parts()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group for each trained part, at its own rate."""
        rates = self.settings.rates
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "rate_scale": rates.get(name, 1.0)}
            for name, part in self.model.trained_parts().items()
        ]

    # Data.

    def prepare_data(self, batch: int, validation_batches: int) -> int | None:
        """Open the benchmarks, if any."""
        settings = self.settings
        if not settings.data:
            worlds = WorldClips(
                settings.world,
                settings.aspects,
                settings.families,
                self.model.image_size,
                settings.pairs,
                movements=self.movements(),
                stride=settings.stride,
                decidable=settings.from_decidable,
                sprites=open_sprites(settings.world),
            )
            self.clips: dict[int, ClipSource] = {TRAIN: worlds, VALIDATION: worlds}
            return None
        if validation_batches and not settings.validation:
            raise TrainingError(
                "there is no benchmark to validate on; name one in settings under validation, or set "
                "validation_batches to 0."
            )
        benchmarks = partial(
            BenchmarkClips,
            batch=batch,
            stride=max(settings.frames),
            placement=reader_of(self.model).placement,
            sampling=settings.sampling,
        )
        train = benchmarks([source.open() for source in settings.data], flip=settings.flip)
        require_sentences(train.samples, self._tokens)
        self.clips = {TRAIN: train}
        if validation_batches:
            held_out = benchmarks([source.open() for source in settings.validation], flip=0.0)
            require_sentences(held_out.samples, self._tokens)
            self.clips[VALIDATION] = held_out
        return len(train)

    def _tokens(self, sentence: str) -> object:
        """Read a sentence; which of its words tell motion is found when it is drawn."""
        return self.model.read(sentence, ())

    def movements(self) -> tuple[int, int] | None:
        """Side in pixels of the cells whose movement the stage teaches, and frames in a window; None for none."""
        return None

    def source(self) -> ReferringSource:
        """Clips and the sentences asked about them."""
        return ReferringSource(self.settings, self.clips, reader_of(self.model))

    # Losses.

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch of clips, and the mean IoU over the frames in which the target is visible."""
        return self.losses_and_ious(batch)[0]

    def losses_and_ious(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch, and the IoU of each sentence in each predicted frame (N, T)."""
        settings = self.settings
        output = self.answer(batch)
        logits = self.model.upsample(output.mask_logits)  # (N, T, S, S)
        first = batch["truth"].shape[1] - logits.shape[1]
        truth = batch["truth"][:, first:]
        void = batch["void"][:, first:] if "void" in batch else None
        weight: Tensor | None = None
        if settings.from_decidable:
            times = torch.arange(first, batch["truth"].shape[1], device=truth.device)
            weight = (times >= batch["decidable"].unsqueeze(1)).to(logits.dtype)  # (N, T)
        gated = None if output.gated_logits is None else self.model.upsample(output.gated_logits)
        losses = frame_losses(logits, output.score, truth, settings.least_area, weight, gated, void)
        ious = losses.pop("ious")  # (N, T)
        if settings.published_losses:
            cropped = [
                [clip[..., :h, :w] for clip, (h, w) in zip(clips, batch["inside"], strict=True)]
                for clips in ((logits, truth) if void is None else (logits, truth, void))
            ]
            losses["focal"], losses["dice"] = self.published_losses(*cropped)
            losses["loss"] = losses["focal"] + losses["dice"]
        else:
            losses["loss"] = (
                settings.focal * losses["focal"]
                + settings.dice * losses["dice"]
                + settings.presence * losses["presence"]
            )
        self.add_losses(losses, output, batch)
        return losses, ious

    def answer(self, batch: dict[str, Any]) -> ClipOutput:
        """Answer a batch, see ``ReferringSource``: all frames of the clips, or the last ones."""
        output: ClipOutput = self.model(batch["pixels"], batch["ids"], batch["verbs"], chunk=batch["chunk"])
        return output

    @abstractmethod
    def published_losses(
        self, logits: Sequence[Tensor], truths: Sequence[Tensor], voids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Focal and dice loss as the model's paper has them.

        Args:
            logits: Of each sentence, cropped to the frame (T, H, W).
            truths: The masks, bool (T, H, W).
            voids: Pixels that do not count, bool (T, H, W), default none.
        """

    def add_losses(self, losses: dict[str, Tensor], output: ClipOutput, batch: dict[str, Any]) -> None:
        """Add what the model learns besides masks to the losses, and to ``loss``. Default nothing.

        What is not a number was not measured, and is left out of what is told.
        """

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Besides the losses, the IoU of each family as at inference: gated by the presence, the CME at work.

        The losses are those of training, before any gate: behind it a frame that was missed would cost hundreds of
        times what it costs there.

        For sentences true of nothing it is the share of frames that are rightly left empty.
        """
        scalars: dict[str, list[float]] = defaultdict(list)
        found: dict[str, list[float]] = defaultdict(list)
        for batch in batches:
            losses, ious = self.losses_and_ious(batch)
            counted = visible(batch["truth"], self.settings.least_area)[:, -ious.shape[1] :]
            *values_of_losses, ious, counted = read_back([*losses.values(), ious, counted])
            for name, value in zip(losses, values_of_losses, strict=True):
                if name == "loss" or not value.isnan():
                    scalars[name].append(float(value))
            for family, row, seen in zip(batch["families"], ious, counted.bool(), strict=True):
                values = row if family == NO_TARGET else row[seen]
                if len(values):
                    found[family].append(float(values.mean()))
        measured = scalars | {f"iou {name}": found[name] for name in sorted(found, key=_place_in_tables)}
        return {name: sum(values) / len(values) for name, values in measured.items()}


def _place_in_tables(family: str) -> tuple[int, str]:
    """The worlds' families in their own order, those of benchmarks after them by name."""
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def reader_of(model: TrainableModel) -> TrainableModel:
    """The same model without its modules, for the processes that draw samples.

    It can place frames and read sentences, for which models ask their configuration and their tokenizer alone.

    Args:
        model: A model with weights.

    Returns:
        An instance of its class without any.
    """
    reader: TrainableModel = object.__new__(type(model))
    nn.Module.__init__(reader)
    reader.config, reader.tokenizer = model.config, model.tokenizer
    return reader


def loaded_as(kind: type[Model], folder: Path) -> Model:
    """Load a model that a stage begins from.

    Args:
        kind: The class that it must have.
        folder: Where it is.

    Raises:
        TrainingError: When it is another model.
    """
    loaded: Any = load(folder, device="cpu")
    if not isinstance(loaded, kind):
        raise TrainingError(f"{folder} is no {kind.__name__}; this stage starts from one.")
    return loaded


def fill(target: nn.Module, state: Mapping[str, Tensor], *, partly: bool = False) -> None:
    """Copy weights into a module as far as it has a place for them.

    Args:
        target: Filled in place.
        state: Another module's weights; what the target has no place for is left out (a score head, a level less).
        partly: Whether the target may have more, or tensors of other shapes: beside another text encoder the layers
            that read its states begin anew.

    Raises:
        TrainingError: When the target has more and must not, or a tensor has another shape.
    """
    known = target.state_dict()
    taken = {name: value for name, value in state.items() if name in known}
    other = [name for name, value in taken.items() if value.shape != known[name].shape]
    if other and not partly:
        raise TrainingError(
            f"the loaded weights have {tuple(taken[other[0]].shape)} for {other[0]} and the model "
            f"{tuple(known[other[0]].shape)}; they belong to another model."
        )
    result = target.load_state_dict({name: taken[name] for name in taken.keys() - set(other)}, strict=False)
    if result.missing_keys and not partly:
        raise TrainingError(f"the loaded weights lack {result.missing_keys[0]}; they belong to another model.")
