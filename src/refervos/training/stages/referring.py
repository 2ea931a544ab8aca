"""Base of the stages that train a model, of any family, on sentences about clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
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
from refervos.text.vocabulary import words_of
from refervos.training.devices import read_back
from refervos.training.history import Means
from refervos.training.losses import frame_losses, visible
from refervos.training.stage import TRAIN, VALIDATION, Key, SampleSource, Stage
from refervos.training.stages.clip_sources import (
    BenchmarkClips,
    BenchmarkSource,
    ClipSource,
    ReferringClip,
    Sampling,
    WorldClips,
)
from refervos.training.stages.ranges import ASPECTS, COUNT, FRAMES, SHARE, WEIGHT
from refervos.training.stages.world_tensors import open_sprites
from refervos.typed_config import check_not_empty, check_range
from refervos.worlds import FAMILIES, WorldConfig, known_words

Model = TypeVar("Model")

NO_TARGET = "none"
"""Family of the sentences without a target."""


@dataclass(frozen=True)
class ClipMix:
    """One kind of training clips among several that a stage mixes; each step has clips of one kind.

    Attributes:
        share: Share of the steps, relative to the other kinds.
        clips: Clips in place of each clip of a batch: several short clips cost as much as a long one.
        frames: Lengths of the clips; default those of the stage, like all that follows.
        world: Distribution of scenes.
        families: Relative frequency of each family of sentences.
        pairs: Share of the sentences that are followed by their near miss.
        stride: Share of the clips in which every second frame is left out.
        sentences: Sentences about each clip.
    """

    share: float = 1.0
    clips: int = 1
    frames: tuple[int, ...] | None = None
    world: WorldConfig | None = None
    families: Mapping[str, float] | None = None
    pairs: float | None = None
    stride: float | None = None
    sentences: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None:
            check_not_empty(self, "frames")
        check_range(self, share=WEIGHT, clips=COUNT, frames=FRAMES, sentences=COUNT, pairs=SHARE, stride=SHARE)


@dataclass(frozen=True)
class ReferringSettings:
    """Settings of the referring stages.

    Attributes:
        world: Distribution of scenes.
        frames: Lengths of the clips; one is drawn for each step.
        chunks: Frames that the adapters see at once; one is drawn for each step, None for the whole clip.
        aspects: Width over height of the worlds' clips; one is drawn for each clip.
        data: Benchmarks to train on, instead of worlds.
        validation: Benchmarks to validate on, if ``data`` is given.
        sampling: Choice of the frames of a clip from a benchmark's video (see ``BenchmarkClips``).
        flip: Share of the benchmarks' clips that are mirrored.
        sentences: Sentences about each clip, about different objects if possible: with the same pixels, only the words
            distinguish the masks.
        families: Relative frequency of each family of the worlds' sentences, by name; default all equal.
        pairs: Share of the worlds' sentences about one object that are followed by their near miss, the same sentence
            with one word changed so that it has no target.
        stride: Share of the worlds' clips in which every second frame is left out.
        from_decidable: Train the mask of a sentence about motion only from the first frame from which the frames so far
            determine its target; before it, only the object score. Not with ``published_losses``.
        published_losses: Use the model's published focal and dice loss, with weights 1 and nothing else. Otherwise all
            frames have equal weight and the object score, if any, learns absence (see ``frame_losses``).
        least_area: Least number of pixels (of the square) of a visible object.
        focal: Weight of the focal loss.
        dice: Weight of the dice loss.
        presence: Weight of the object score's cross-entropy.
        rates: Factors of the learning rate of some of the model's trained parts, by their names.
        mix: Kinds of worlds' clips that take turns at random; default only one, as set above.
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
    mix: tuple[ClipMix, ...] = ()

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
        unknown = sorted({*self.families, *(name for kind in self.mix for name in kind.families or ())} - set(FAMILIES))
        if unknown:
            raise TrainingError(f"there is no family {unknown[0]!r} of sentences; known are {', '.join(FAMILIES)}.")
        if self.validation and not self.data:
            raise TrainingError("validation names a benchmark, but data does not; worlds are validated on worlds.")
        if self.mix and (self.data or not any(kind.share for kind in self.mix)):
            raise TrainingError("mix is for drawn worlds, without data, and needs a kind with a share above 0.")
        own = self.world.sprites, self.world.designs
        if any(kind.world.sprites and (kind.world.sprites, kind.world.designs) != own for kind in self.kinds):
            raise TrainingError("mix has a world with other sprites or designs than world; all must have the same.")

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """The settings of each kind of clips, of the class of these; one if nothing is mixed."""
        changes = [
            {each.name: getattr(kind, each.name) for each in fields(kind) if each.name not in ("share", "clips")}
            for kind in self.mix
        ]
        given = [{name: value for name, value in change.items() if value is not None} for change in changes]
        return tuple(replace(self, mix=(), **change) for change in given) or (self,)


@dataclass(frozen=True)
class ReferringSource(SampleSource):
    """Source of clips with sentences as tensors.

    Attributes:
        settings: Settings of the stage.
        clips: Sources of clips for ``TRAIN`` and ``VALIDATION``, one for each kind of clips.
        preprocessor: Tokenizes sentences, see ``preprocessor_of``.
    """

    settings: ReferringSettings
    clips: Mapping[int, Sequence[ClipSource]]
    preprocessor: TrainableModel

    def draw(self, step: int, index: int, key: Key) -> list[dict[str, Any]]:
        """Draw a clip with its sentences, or several where the kind of clips says so."""
        shape = np.random.default_rng([*key, step])  # what all clips of the step share
        kind, clips = 0, 1
        if self.settings.mix:
            shares = np.array([kind.share for kind in self.settings.mix])
            kind = int(shape.choice(len(shares), p=shares / shares.sum()))
            clips = self.settings.mix[kind].clips
        settings = self.settings.kinds[kind]
        frames, chunk = int(shape.choice(settings.frames)), settings.chunks[int(shape.integers(len(settings.chunks)))]
        source = self.clips[key[-1]][kind]
        drawn = [source.draw(step, clips * index + n, key, frames, settings.sentences) for n in range(clips)]
        return [self._as_tensors(clip, settings.sentences) | {"chunk": chunk, "kind": kind} for clip in drawn]

    def _as_tensors(self, clip: ReferringClip, sentences: int) -> dict[str, Any]:
        tokens = [self.preprocessor.read(text, verbs) for text, verbs in zip(clip.expressions, clip.verbs, strict=True)]
        # (T, n, n, 6), (M, T, S, S) and (T, n, n)
        optional = {"movements": clip.movements, "void": clip.void, "names": clip.names}
        return {
            "pixels": clip.pixels,  # (T, 3, S, S)
            "ids": [torch.tensor(ids) for ids, _ in tokens],
            "verbs": [torch.tensor(verbs) for _, verbs in tokens],
            "ground_truth": clip.masks,  # (M, T, S, S)
            "frame_sizes": [clip.frame_size] * sentences,
            "families": clip.families,
            "decidable": torch.tensor(clip.decidable),  # (M,)
        } | {name: tensor for name, tensor in optional.items() if tensor is not None}

    def collate(self, samples: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Stack the clips of all samples; the sentences of all clips, M each, become one axis."""
        return self._stack([clip for sample in samples for clip in sample])

    def _stack(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [row for sample in samples for row in sample["ids"]]
        verbs = [row for sample in samples for row in sample["verbs"]]
        batch = {
            "pixels": torch.stack([sample["pixels"] for sample in samples]),  # (B, T, 3, S, S)
            "ids": pad_tokens(ids, self.preprocessor.pad),  # (B*M, L)
            "verbs": nn.utils.rnn.pad_sequence(verbs, batch_first=True),  # (B*M, L)
            "ground_truth": torch.cat([sample["ground_truth"] for sample in samples]),  # (B*M, T, S, S)
            "frame_sizes": [size for sample in samples for size in sample["frame_sizes"]],  # (B*M) heights and widths
            "families": [family for sample in samples for family in sample["families"]],
            "decidable": torch.cat([sample["decidable"] for sample in samples]),  # (B*M,)
            "chunk": samples[0]["chunk"],
            "kind": samples[0]["kind"],
        }
        if any("void" in sample for sample in samples):
            voids = [sample.get("void", torch.zeros_like(sample["ground_truth"])) for sample in samples]
            batch["void"] = torch.cat(voids)  # (B*M, T, S, S)
        if "movements" in samples[0]:
            batch["movements"] = torch.stack([sample["movements"] for sample in samples])  # (B, T, n, n, 6)
        if "names" in samples[0]:
            batch["names"] = torch.stack([sample["names"] for sample in samples])  # (B, T, n, n)
        return batch


class ReferringStage(Stage):
    """Training of a model on sentences about clips.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
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
                f"rates names {unknown[0]!r}, which is no trained part of the model; its trained parts are {known}."
            )
        self.settings = settings
        self.model = model
        model.config = replace(model.config, words=self._vocabulary())

    def _vocabulary(self) -> tuple[str, ...]:
        """List the words that the model will have been trained on; none if its vocabulary is open.

        Training on drawn worlds closes the vocabulary. A model with a closed one that is trained on data learns the
        words of the data.
        """
        earlier: tuple[str, ...] = self.model.config.words
        if not self.settings.data:
            sprites = open_sprites(self.settings.world)
            return known_words(() if sprites is None else sprites.subjects)
        if not earlier:
            return ()
        samples = [sample for source in self.settings.data for sample in source.open().samples]
        return tuple(sorted({*earlier, *(word for sample in samples for word in words_of(sample.expression))}))

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Return the model's frozen parts."""
        return self.model.frozen_parts()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group for each trained part, with its own rate."""
        rates = self.settings.rates
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "rate_scale": rates.get(name, 1.0)}
            for name, part in self.model.trained_parts().items()
        ]

    # Data.

    def prepare_data(self, batch: int, validation_batches: int) -> int | None:
        """Open the benchmarks, if any, and check their sentences."""
        settings = self.settings
        if not settings.data:
            worlds = [
                WorldClips(
                    kind.world,
                    kind.aspects,
                    kind.families,
                    self.model.image_size,
                    kind.pairs,
                    movements=self.movement_cells(),
                    stride=kind.stride,
                    decidable=kind.from_decidable,
                    sprites=open_sprites(kind.world),
                    names=self.naming_cell(),
                )
                for kind in settings.kinds
            ]
            self.clips: dict[int, Sequence[ClipSource]] = {TRAIN: worlds, VALIDATION: worlds}
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
            placement=preprocessor_of(self.model).placement,
            sampling=settings.sampling,
        )
        train = benchmarks([source.open() for source in settings.data], flip=settings.flip)
        require_sentences(train.samples, self._tokens)
        self.clips = {TRAIN: [train]}
        if validation_batches:
            held_out = benchmarks([source.open() for source in settings.validation], flip=0.0)
            require_sentences(held_out.samples, self._tokens)
            self.clips[VALIDATION] = [held_out]
        return len(train)

    def _tokens(self, sentence: str) -> object:
        """Tokenize a sentence; its motion words are detected only when it is drawn."""
        return self.model.read(sentence, ())

    def movement_cells(self) -> tuple[int, int] | None:
        """Return side in pixels and window in frames of the cells whose movement is trained. Default None, for none."""
        return None

    def naming_cell(self) -> int | None:
        """Return the side in pixels of the cells whose kind of object is trained. Default None, for none."""
        return None

    def source(self) -> ReferringSource:
        """Return the source of clips with sentences."""
        return ReferringSource(self.settings, self.clips, preprocessor_of(self.model))

    # Losses.

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the losses of a batch of clips, and the mean IoU over the frames in which the target is visible."""
        return self.losses_and_ious(batch)[0]

    def counts(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """Count nothing if the losses are the published ones, which are means over clips or frames."""
        return {} if self.settings.published_losses else None

    def losses_and_ious(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch, and the IoU of each sentence in each predicted frame (N, T)."""
        settings = self.settings
        output = self.predict(batch)
        logits = self.model.upsample(output.mask_logits)  # (N, T, S, S)
        frames = batch["ground_truth"].shape[1]
        first = frames - logits.shape[1]
        ground_truth = batch["ground_truth"][:, first:]
        void = batch["void"][:, first:] if "void" in batch else None
        weight: Tensor | None = None
        if settings.from_decidable:
            times = torch.arange(first, frames, device=ground_truth.device)
            weight = (times >= batch["decidable"].unsqueeze(1)).to(logits.dtype)  # (N, T)
        gated = None if output.gated_logits is None else self.model.upsample(output.gated_logits)
        losses = frame_losses(
            logits, output.score, ground_truth, settings.least_area, weight, gated, void, mean=self.mean
        )
        ious = losses.pop("ious")  # (N, T)
        if settings.published_losses:
            cropped = [
                [clip[..., :h, :w] for clip, (h, w) in zip(clips, batch["frame_sizes"], strict=True)]
                for clips in ((logits, ground_truth) if void is None else (logits, ground_truth, void))
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

    def predict(self, batch: dict[str, Any]) -> ClipOutput:
        """Run the model on a batch, see ``ReferringSource``; return all frames of the clips, or the last ones."""
        output: ClipOutput = self.model(batch["pixels"], batch["ids"], batch["verbs"], chunk=batch["chunk"])
        return output

    @abstractmethod
    def published_losses(
        self, logits: Sequence[Tensor], ground_truth: Sequence[Tensor], voids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute focal and dice loss as in the model's paper.

        Args:
            logits: Mask logits of each sentence, cropped to the frame (T, H, W).
            ground_truth: Masks of each sentence, bool (T, H, W).
            voids: Pixels of each sentence to ignore, bool (T, H, W), default none.
        """

    def add_losses(self, losses: dict[str, Tensor], output: ClipOutput, batch: dict[str, Any]) -> None:
        """Add the model's losses besides masks to the scalars, and to ``loss``. Default none."""

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> Means:
        """Compute the losses, and the IoU of each family as at inference, with gating by presence and with the CME.

        The losses are those of training, before gating: after it, a missed frame would cost hundreds of times as much.
        The IoU of sentences without a target is the share of frames that are correctly left empty.
        """
        scalars, by_family = Means(), Means()
        for batch in batches:
            losses, ious = self.losses_and_ious(batch)
            seen = visible(batch["ground_truth"], self.settings.least_area)[:, -ious.shape[1] :]
            *loss_values, ious, seen = read_back([*losses.values(), ious, seen])
            for name, value in zip(losses, loss_values, strict=True):
                scalars.add_output(name, value)
            for family, row, row_seen in zip(batch["families"], ious, seen.bool(), strict=True):
                values = row if family == NO_TARGET else row[row_seen]
                if len(values):
                    by_family.add(family, float(values.mean()))
        for family, (total, count) in sorted(by_family.sums().items(), key=lambda item: _table_order(item[0])):
            scalars.add(f"iou {family}", total, count)
        return scalars


def _table_order(family: str) -> tuple[int, str]:
    """Return a sort key: the worlds' families in their own order, then those of benchmarks by name."""
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def preprocessor_of(model: TrainableModel) -> TrainableModel:
    """Return the model without its modules, for data workers.

    It can place frames and tokenize sentences, for which models need only their configuration and tokenizer.

    Args:
        model: A model with weights.

    Returns:
        An instance of its class without weights.
    """
    preprocessor: TrainableModel = object.__new__(type(model))
    nn.Module.__init__(preprocessor)
    preprocessor.config, preprocessor.tokenizer = model.config, model.tokenizer
    return preprocessor


def load_as(kind: type[Model], folder: Path) -> Model:
    """Load the initial model of a stage.

    Args:
        kind: The class that it must have.
        folder: Folder of the model.

    Raises:
        TrainingError: When it is another model.
    """
    loaded: Any = load(folder, device="cpu")
    if not isinstance(loaded, kind):
        raise TrainingError(f"{folder} is no {kind.__name__}; this stage starts from one.")
    return loaded


def copy_weights(target: nn.Module, state: Mapping[str, Tensor], *, partial: bool = False) -> None:
    """Copy the weights that a module has in common with a state dict.

    Args:
        target: Changed in place.
        state: Another module's weights; names that the target lacks are ignored (a score head, a level).
        partial: Allow the target to have more weights, or other shapes, which keep their initial values: with another
            text encoder, the layers that read its states are trained from scratch.

    Raises:
        TrainingError: When the target has more weights, or other shapes, and ``partial`` is False.
    """
    own = target.state_dict()
    common = {name: value for name, value in state.items() if name in own}
    other = [name for name, value in common.items() if value.shape != own[name].shape]
    if other and not partial:
        raise TrainingError(
            f"the loaded weights have {tuple(common[other[0]].shape)} for {other[0]} and the model "
            f"{tuple(own[other[0]].shape)}; they belong to another model."
        )
    result = target.load_state_dict({name: common[name] for name in common.keys() - set(other)}, strict=False)
    if result.missing_keys and not partial:
        raise TrainingError(f"the loaded weights lack {result.missing_keys[0]}; they belong to another model.")
