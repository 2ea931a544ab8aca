"""Stage ``vision``: VideoGLaMM's two encoders learn from drawn clips what their published counterparts know beforehand.

CLIP and InternVideo2 were trained on hundreds of millions of images and videos. Small encoders have nothing of the
kind, and a language model that is trained on captions alone learns to see through them only slowly. Here linear heads
name the object of each cell: its kind, colour and pattern, its place, what it does, and how it compares with the
others. The heads are discarded afterwards, as after any pretraining.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.loading import load
from refervos.training.stage import Key, SampleSource, Stage
from refervos.training.stages.ranges import ASPECTS, FRAMES, SHARE, WEIGHT
from refervos.training.stages.videoglamm_parts import build_videoglamm
from refervos.training.stages.vision_labels import (
    BACKGROUND,
    CLAIM_WORDS,
    KIND_NAMES,
    MOTION_CLAIMS,
    PARTS,
    SHARED_LOOKS,
    DenseLabels,
)
from refervos.training.stages.vit_teacher import VitTeacher, start_from_vit, vit_of
from refervos.training.stages.world_tensors import COLOUR_NAMES, TEXTURE_NAMES, UNLABELLED, random_shape
from refervos.training.step_means import Mean, ratio, within
from refervos.typed_config import check_not_empty, check_range
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig
from refervos.videoglamm.frames import clip_pixels, encoder_frames, internvideo_pixels
from refervos.videoglamm.model import VideoGlamm
from refervos.worlds import Facts, WorldConfig, draw_clip
from refervos.worlds.conversations import CONVERSATION_WORLD

BACKGROUND_WEIGHT = 0.1
"""Class weight of the background among kinds: it fills most cells."""

WHITENED_FRAMES = 200
"""Drawn frames whose patches are whitened."""

WHITENED_STD = 0.7
"""Standard deviation of each channel of whitened patches."""

WHITENING_NOISE = 0.01
"""Added to the variances, so that hardly visible components are not enlarged as much."""

LEAST_AREA = 0.3
"""Cells that an object must cover, in all frames together, for its mean feature to be read."""

RANKS = 6
"""Number of positions in the order of objects from left to right that have a class of their own."""


@dataclass(frozen=True)
class VisionSettings:
    """Settings of the stage.

    Attributes:
        model: Shape of the whole model; only the encoders learn here.
        learns: The encoders that learn. They need not see the same clips: the image encoder learns looks from many
            images, the video encoder movement from clips.
        world: Distribution of scenes.
        lengths: Frames of a clip, of which one is drawn for each; none for the world's own.
        aspects: Width over height of the clips; one is drawn for each clip.
        still: Share of the clips of which the encoders see one frame alone, repeated, as at the start of a stream.
        image_frames: Frames of each clip that the image encoder learns from; neighbouring frames say much the same.
        claims: Weight of the loss of what is true of the objects.
        places: Weight of the loss of where they are.
        outlines: Weight of the loss of how much of each part of a cell is covered.
        teacher: Weight of the image encoder's distance from the teacher, where there is one.
    """

    model: VideoGlammConfig = field(default_factory=lambda: VIDEOGLAMM_PRESETS["miniature"])
    learns: tuple[Literal["image", "video"], ...] = ("image", "video")
    world: WorldConfig = CONVERSATION_WORLD
    lengths: tuple[int, ...] = ()
    aspects: tuple[float, ...] = (1.0,)
    still: float = 0.05
    image_frames: int = 2
    claims: float = 5.0
    places: float = 2.0
    outlines: float = 2.0
    teacher: float = 3.0

    def __post_init__(self) -> None:
        check_not_empty(self, "learns", "aspects")
        check_range(self, lengths=FRAMES, aspects=ASPECTS)
        check_range(
            self, still=SHARE, image_frames=FRAMES, claims=WEIGHT, places=WEIGHT, outlines=WEIGHT, teacher=WEIGHT
        )
        if "video" in self.learns and self.model.internvideo is None:
            raise TrainingError("learns names the video encoder, but model.internvideo is null; leave it out.")
        if self.world.sprites is not None:
            raise TrainingError(f"world: sprites is {self.world.sprites!r}; the heads know no names for cut-outs.")


@dataclass(frozen=True)
class VisionSource(SampleSource):
    """Source of drawn clips with dense labels.

    Attributes:
        settings: Settings of the stage.
    """

    settings: VisionSettings

    def draw(self, step: int, index: int, key: Key) -> dict[str, Any]:
        """Draw a clip and label its cells."""
        settings, config = self.settings, self.settings.model
        seed = [*key, step, index]
        rng = np.random.default_rng([*seed, 2])
        side = max(settings.world.height, settings.world.width)
        world = random_shape(settings.world, settings.aspects, side, rng)
        if settings.lengths:
            world = replace(world, frames=int(rng.choice(settings.lengths)))
        if rng.random() < settings.still:
            world = replace(world, frames=1)
        clip = draw_clip([*seed, 1], world)
        facts = Facts.of(clip)
        sample: dict[str, Any] = {}
        if "image" in settings.learns:
            chosen = sorted(rng.permutation(len(clip.frames))[: settings.image_frames].tolist())
            chosen += chosen[-1:] * (settings.image_frames - len(chosen))
            sample["clip"] = torch.stack([clip_pixels(clip.frames[index], config.clip) for index in chosen])
            sample["image"] = DenseLabels.of(facts, chosen, config.clip.grid, cropped=True).padded()
        if "video" in settings.learns and config.internvideo is not None:
            shown = encoder_frames(len(clip.frames), config.frames)
            shown += shown[-1:] * (config.frames - len(shown))
            video = {index: internvideo_pixels(clip.frames[index], config.internvideo) for index in set(shown)}
            sample["internvideo"] = torch.stack([video[index] for index in shown])
            sample["video"] = DenseLabels.of(facts, shown, config.internvideo.grid).padded()
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack the samples."""
        return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}


def _stacked(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return torch.stack(parts)


class DenseHead(nn.Module):
    """Linear readings of an encoder's features, and their loss.

    Args:
        width: Channels of a feature.
        frames: Frames F of the clip that each feature has seen, so that it can tell what happens there; None for
            features of a frame by itself, of which only looks and the place in that frame are read.
        settings: Weights of the losses.
    """

    def __init__(self, width: int, frames: int | None, settings: VisionSettings) -> None:
        super().__init__()
        self.frames, self.settings = frames, settings
        self.looks = (len(KIND_NAMES) + 1, len(COLOUR_NAMES), len(TEXTURE_NAMES))
        self.sizes = [*self.looks, 2]
        if frames is not None:
            self.sizes += [RANKS, len(CLAIM_WORDS) + len(SHARED_LOOKS), 3 * frames]
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.sizes))
        self.outlines = nn.Linear(width, PARTS**2)

    def forward(self, features: Tensor, labels: Mapping[str, Tensor], mean: Mean) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, and how much is read correctly.

        Args:
            features: (B, F, n*n, width).
            labels: See ``DenseLabels.padded``, stacked.
            mean: Averages over the labelled cells, objects and claims.

        Returns:
            A scalar, and shares by name, most of them a ``ratio``: of cells for looks, ranks, and true and false claims
            about motion; and the same of objects.
        """
        cells = labels["cells"].flatten(2)  # (B, F, n*n)
        on_object = cells >= 0
        owner = cells.clamp(min=0)
        batch = torch.arange(len(cells), device=cells.device)[:, None, None]
        times = torch.arange(cells.shape[1], device=cells.device)[None, :, None]
        cover = labels["cover"].flatten(3)  # (B, K, F, n*n)
        sizes = cover.mean(3, keepdim=True).sqrt()  # (B, K, F, 1)
        tracks = torch.cat([labels["places"], sizes], dim=-1).flatten(2)  # (B, K, 3F)
        looks = torch.where(on_object.unsqueeze(-1), labels["looks"][batch, owner], UNLABELLED)  # (B, F, n*n, 3)
        looks[..., 0] = torch.where(cells == BACKGROUND, len(KIND_NAMES), looks[..., 0])
        of_cells, shares = self._read(
            within(mean, "cell"),
            features,
            looks,
            labels["places"][batch, owner, times].where(on_object.unsqueeze(-1), torch.nan),
            labels["ranks"][batch, owner].where(on_object, UNLABELLED),
            labels["claims"][batch, owner] * on_object.unsqueeze(-1),  # (B, F, n*n, C)
            tracks[batch, owner].where(on_object.unsqueeze(-1), torch.nan),
        )
        # The same of the mean feature of each object, to which every cell adds what it sees of it.
        area = cover.sum((2, 3))  # (B, K)
        means = torch.einsum("bkft,bftw->bkw", cover, features.float()) / area.clamp(min=1e-6).unsqueeze(-1)
        shown = area >= LEAST_AREA
        of_objects, object_shares = self._read(
            within(mean, "object"),
            means,
            labels["looks"].where(shown.unsqueeze(-1), UNLABELLED),
            labels["places"][:, :, 0].where(shown.unsqueeze(-1), torch.nan),
            labels["ranks"].where(shown, UNLABELLED),
            labels["claims"] * shown.unsqueeze(-1),
            tracks.where(shown.unsqueeze(-1), torch.nan),
        )
        outlines = self.outlines(self.norm(features)).float()
        outline = F.binary_cross_entropy_with_logits(outlines, labels["outlines"].flatten(2, 3))
        shares |= {f"object_{name}": value for name, value in object_shares.items()}
        return of_cells + of_objects + self.settings.outlines * outline, shares

    def _read(
        self,
        mean: Mean,
        features: Tensor,
        looks: Tensor,
        places: Tensor,
        ranks: Tensor,
        claims: Tensor,
        tracks: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and shares of features (..., width); labels that are missing or not a number do not count.

        Args:
            mean: Averages over what is labelled.
            features: Of cells or of objects.
            looks: Kind, colour and pattern (..., 3).
            places: Place in the frame (..., 2).
            ranks: Order from left to right (...).
            claims: 1, 0 or -1, (..., C).
            tracks: Place and size in every frame (..., 3F).
        """
        settings = self.settings
        read = self.read(self.norm(features)).float()
        kinds, colours, textures, place, *whole = read.split(self.sizes, dim=-1)
        class_weights = torch.ones(self.looks[0], device=read.device)
        class_weights[-1] = BACKGROUND_WEIGHT
        loss = _entropy(within(mean, "kinds"), kinds, looks[..., 0], class_weights)
        loss = loss + 0.5 * _entropy(within(mean, "colours"), colours, looks[..., 1])
        loss = loss + 0.5 * _entropy(within(mean, "textures"), textures, looks[..., 2])
        loss = loss + settings.places * _distance(within(mean, "places"), place, places)
        objects = looks[..., 0].where(looks[..., 0] < len(KIND_NAMES), UNLABELLED)
        shares = {
            "kinds": _correct(kinds[..., :-1], objects),
            "colours": _correct(colours, looks[..., 1]),
            "textures": _correct(textures, looks[..., 2]),
        }
        if whole:
            rank, claim, track = whole
            ranks = torch.where(ranks < RANKS, ranks, UNLABELLED)
            loss = loss + 0.5 * _entropy(within(mean, "ranks"), rank, ranks)
            loss = loss + settings.claims * _claim_loss(within(mean, "claims"), claim, claims)
            distance = _distance(within(mean, "tracks"), track, tracks)
            loss = loss + 2 * settings.places * distance
            shares["ranks"] = _correct(rank, ranks)
            read_claims, wanted = (values[..., list(MOTION_CLAIMS)] for values in (claim, claims))
            # Two ratios, because their mean would depend on the number of processes.
            shares["motion_true"] = ratio(((read_claims > 0) & (wanted > 0)).sum(), (wanted > 0).sum())
            shares["motion_false"] = ratio(((read_claims <= 0) & (wanted < 0)).sum(), (wanted < 0).sum())
            shares["tracks"] = distance.detach()
        return loss, shares


def _entropy(mean: Mean, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged over what is labelled."""
    labels = labels.flatten()
    total = F.cross_entropy(logits.flatten(0, -2), labels, weights, ignore_index=UNLABELLED, reduction="sum")
    counted = (labels != UNLABELLED).float()
    if weights is not None:
        counted = counted * weights[labels.clamp(min=0)]
    return mean("", total, counted.sum())


def _claim_loss(mean: Mean, logits: Tensor, claims: Tensor) -> Tensor:
    """Binary cross-entropy of what is true (1) or false (-1), averaged over what is either."""
    decided = claims != 0
    loss = F.binary_cross_entropy_with_logits(logits, (claims > 0).float(), reduction="none")
    return mean("", (loss * decided).sum(), decided.sum())


def _distance(mean: Mean, places: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of places along both axes, of those that are known."""
    known = ~wanted.isnan()
    distance = (places - torch.where(known, wanted, places.detach())).abs().sum()
    return mean("", distance, known.sum())


@torch.no_grad()
def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    labelled = labels != UNLABELLED
    right = (logits.argmax(-1) == labels) & labelled
    return ratio(right.sum(), labelled.sum())


class VisionStage(Stage):
    """Training of both encoders with heads that are discarded.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
        teacher: What the image encoder is distilled from, if anything.
    """

    name: ClassVar[str] = "vision"
    Settings: ClassVar[type] = VisionSettings
    model: VideoGlamm

    def __init__(self, settings: VisionSettings, model: VideoGlamm, teacher: VitTeacher | None = None) -> None:
        super().__init__()
        self.settings, self.model = settings, model
        model.requires_grad_(False)
        self.teacher = teacher
        self.image_head: DenseHead | None = None
        self.video_head: DenseHead | None = None
        if "image" in settings.learns:
            self.image_head = DenseHead(model.config.clip.width, None, settings)
            model.image_encoder.requires_grad_(True)
            model.image_encoder.clip.post_layernorm.requires_grad_(False)  # features come from before it
        if "video" in settings.learns and model.video_encoder is not None:
            assert model.config.internvideo is not None
            self.video_head = DenseHead(model.config.internvideo.width, model.config.frames, settings)
            model.video_encoder.requires_grad_(True)

    @classmethod
    def build(cls, settings: VisionSettings, init: Mapping[str, Path], seed: int) -> VisionStage:
        """Build the stage from random weights, an earlier one (``model``), or the ViT of a RefSAM (``teacher``).

        The teacher's weights are where new encoders start from, and the image encoder is distilled from it.
        """
        parts = {role: folder for role, folder in init.items() if role != "teacher"}
        vit = vit_of(load(init["teacher"], device="cpu"), init["teacher"]) if "teacher" in init else None
        model = build_videoglamm(settings.model, parts, seed)
        if "model" not in init and vit is not None:
            start_from_vit(model, vit)
        elif "model" not in init:
            whiten_patches(model, replace(settings.world, frames=1), seed)
        distilled = vit is not None and "image" in settings.learns
        return cls(replace(settings, model=model.config), model, VitTeacher(vit) if distilled and vit else None)

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Return the teacher, and what of the model does not learn."""
        model = self.model
        parts: list[nn.Module | None] = [self.teacher, model.tracker, model.language]
        parts += [] if "image" in self.settings.learns else [model.image_encoder]
        parts += [] if "video" in self.settings.learns else [model.video_encoder]
        return [part for part in parts if part is not None]

    def source(self) -> VisionSource:
        """Return the source of samples."""
        return VisionSource(self.settings)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the losses of the encoders that learn."""
        model = self.model
        losses: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        if self.image_head is not None:
            pixels = batch["clip"]  # (B, F, 3, S, S)
            clip: Any = model.image_encoder.clip
            states = clip(pixel_values=pixels.flatten(0, 1), output_hidden_states=True).hidden_states
            states = [state[:, 1:] for state in states[1:]]  # (B * F, n*n, width) after each block
            image = states[-1].unflatten(0, pixels.shape[:2])  # (B, F, n*n, width)
            loss, shares = self.image_head(image, batch["image"], within(self.mean, "image"))
            losses.append(loss)
            scalars |= {"image": loss.detach()} | {f"image_{name}": value for name, value in shares.items()}
            if self.teacher is not None:
                distance = self.teacher.distance(pixels.flatten(0, 1), states)
                losses.append(self.settings.teacher * distance)
                scalars["teacher"] = distance.detach()
        if self.video_head is not None and model.video_encoder is not None:
            assert model.config.internvideo is not None
            pixels = batch["internvideo"]  # (B, F, 3, s, s)
            chunks = pixels.unflatten(1, (-1, model.config.internvideo.frames)).flatten(0, 1)  # (B * F/f, f, 3, s, s)
            video = model.video_encoder(chunks).flatten(0, 1).unflatten(0, pixels.shape[:2])
            loss, shares = self.video_head(video, batch["video"], within(self.mean, "video"))
            losses.append(loss)
            scalars |= {"video": loss.detach()} | {f"video_{name}": value for name, value in shares.items()}
        return {"loss": torch.stack(losses).sum(), **scalars}


@torch.no_grad()
def whiten_patches(model: VideoGlamm, world: WorldConfig, seed: int) -> None:
    """Set the patch embeddings of new encoders to the whitened principal components of patches of drawn frames.

    Most of what distinguishes patches is then as large as their mean colour, which random filters hardly see past, so
    that small encoders learn patterns and shapes several times sooner.

    Args:
        model: Changed in place.
        world: Distribution of the frames.
        seed: Of the frames.
    """
    frames = [draw_clip([seed, number, 3], world).frames[0] for number in range(WHITENED_FRAMES)]
    clip: Any = model.image_encoder.clip
    embeddings: list[tuple[Any, list[Tensor]]] = [
        (clip.embeddings.patch_embedding, [clip_pixels(frame, model.config.clip) for frame in frames])
    ]
    if model.video_encoder is not None and model.config.internvideo is not None:
        shape = model.config.internvideo
        embeddings.append((model.video_encoder.patch_embed, [internvideo_pixels(frame, shape) for frame in frames]))
    for embedding, pixels in embeddings:
        width, _, patch, _ = embedding.weight.shape
        patches = F.unfold(torch.stack(pixels), patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (n, 3 * p * p)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        count = min(width, len(values))
        largest, main = values.flip(0)[:count], vectors.flip(1)[:, :count]
        filters = WHITENED_STD * main / (largest + WHITENING_NOISE).sqrt()  # (3 * p * p, count)
        embedding.weight[:count] = filters.T.reshape(count, 3, patch, patch)
