"""Stage ``conversation``: VideoGLaMM learns to answer questions about videos in words and masks.

As published (VideoGLaMM paper, section 3.4, and released code): cross-entropy of the answers, binary cross-entropy and
dice of their masks, over frozen encoders and a frozen SAM2. The parts that the published training takes ready-made can
be trained too, for a miniature that begins from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.sam2.following import predict_from_tokens, repeated
from refervos.training.stage import TRAIN, VALIDATION, Key, SampleSource, Stage
from refervos.training.stages.conversation_sources import (
    ConversationSource,
    DataMix,
    DataShare,
    DrawnConversations,
    VideoWithTurns,
)
from refervos.training.stages.judged_captions import Sampled, advantages, reward_caption, sample_answers
from refervos.training.stages.ranges import ASPECTS, COUNT, FRAMES, SHARE, WEIGHT
from refervos.training.stages.videoglamm_parts import build_videoglamm
from refervos.training.stages.visual_alignment import CellLabels, VisualAlignment
from refervos.training.step_means import ratio
from refervos.typed_config import check_not_empty, check_range
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, LoraConfig, VideoGlammConfig
from refervos.videoglamm.conversation import ChatTokenizer, next_ids, opening_ids
from refervos.videoglamm.frames import EncoderPixels, encoder_frames, image_pixels, place_squashed, video_pixels
from refervos.videoglamm.language import IGNORED, add_lora, embed
from refervos.videoglamm.losses import LossWeights, sigmoid_bce_loss, sigmoid_dice_loss
from refervos.videoglamm.model import Example, LabelledIds, VideoGlamm, VisualTokens
from refervos.worlds import WorldConfig
from refervos.worlds.conversations import CONVERSATION_WORLD, FAMILY_WEIGHTS, KIND_WEIGHTS

Decoding = Literal["frames", "first"]

Part = Literal["language", "projectors", "mask decoder"]

LONGEST_CAPTION = 72
"""Maximum length of a sampled caption in tokens; those of worlds have at most 62 and the end."""

LEAST_PIXELS = 10
"""A mask of fewer pixels cannot be pointed at."""


@dataclass(frozen=True)
class ConversationSettings:
    """Settings of the stage.

    Attributes:
        model: Shape of the model, if it starts from random weights or from parts.
        data: Data sets to train on and their rates, instead of worlds.
        validation: Data sets to validate on, if ``data`` is given.
        world: Distribution of scenes.
        lengths: Frames of a clip; one is drawn for each.
        aspects: Width over height of the worlds' clips; one is drawn for each clip.
        questions: Conversations about each clip of a world beside its caption.
        kinds: Weight of each kind of question about worlds.
        families: Weight of each family of claims in questions about worlds.
        variety: How often the worlds' answers are worded otherwise than plainly.
        detail: How much the worlds' captions say, from 0 to 2.
        vague: Share of objects of which the worlds' captions say only that they are there, or that they move.
        patterns: Share of the worlds' captions that name the pattern of every object, also where nothing looks like it.
        masked_frames: Frames for SAM2; the encoders see ``model.frames``.
        decoding: ``frames``: each frame by itself, as published. ``first``: the first frame alone, with the tokens and
            the choice among three masks with which SAM2 is prompted in use (published training differs from use there).
        text: Weight of the cross-entropy.
        bce: Weight of the masks' binary cross-entropy.
        dice: Weight of the masks' dice loss.
        padded_masks: Masks that each video is cut and padded to, see ``LossWeights``; the released code has 4.
        pointing: Weight of the distance of prompt tokens from the embedding of a click on their object, in the first
            frame; for a tracker that only knows clicks. Not published.
        absent: Weight of an object that the first frame does not show in the same loss; its prompt token is compared
            with SAM2's "not a point". Not published.
        alignment: Weight of the words and places that are read from visual tokens, see ``visual_alignment.py``; drawn
            worlds only. Not published.
        placing: Weight of the distance of the place that is read from the hidden state before ``[SEG]``. Not published.
        presence: Weight of the object score's cross-entropy, with decoding ``first``. Not published.
        judged: Weight of the loss of captions that the model samples and the facts of the world judge, see
            ``judged_captions.py``; drawn worlds only. Not published.
        samples: Captions of each clip that are sampled for it.
        imitated: Weight of the cross-entropy of captions in comparison with other answers.
        trained: The parts that learn beside those of the released code, which are low-rank adaptation, token table,
            head and language-to-vision projector. ``projectors``: those of the encoders, as the paper says.
            ``language``: the whole language model. ``mask decoder``: SAM2's.
        lora: Low-rank adaptation for a model that has none; unused where the whole language model learns.
        gradient_checkpointing: Recompute the language model's layers in the backward pass, which saves memory.
        image_only: Share of the videos of which the language model sees the tokens of the image encoder alone.
    """

    model: VideoGlammConfig = field(default_factory=lambda: VIDEOGLAMM_PRESETS["published"])
    data: tuple[DataShare, ...] = ()
    validation: tuple[DataShare, ...] = ()
    world: WorldConfig = CONVERSATION_WORLD
    lengths: tuple[int, ...] = (16,)
    aspects: tuple[float, ...] = (1.0,)
    questions: int = 3
    kinds: Mapping[str, float] = field(default_factory=lambda: dict(KIND_WEIGHTS, description=0.0))
    families: Mapping[str, float] = field(default_factory=lambda: dict(FAMILY_WEIGHTS))
    variety: float = 0.3
    detail: int = 2
    vague: float = 0.0
    patterns: float = 0.0
    masked_frames: int = 8
    decoding: Decoding = "frames"
    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    padded_masks: int | None = 4
    pointing: float = 0.0
    absent: float = 0.0
    alignment: float = 0.0
    placing: float = 0.0
    presence: float = 0.0
    judged: float = 0.0
    samples: int = 4
    imitated: float = 1.0
    trained: tuple[Part, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False
    image_only: float = 0.0

    def __post_init__(self) -> None:
        check_not_empty(self, "lengths", "aspects")
        check_range(self, lengths=FRAMES, aspects=ASPECTS, questions=(0, COUNT[1]), masked_frames=FRAMES, detail=(0, 2))
        check_range(self, **dict.fromkeys(("variety", "image_only"), SHARE))
        check_range(self, **dict.fromkeys(("text", "bce", "dice", "pointing", "presence", "kinds", "families"), WEIGHT))
        check_range(self, **dict.fromkeys(("alignment", "placing", "judged", "imitated"), WEIGHT))
        check_range(self, vague=SHARE, patterns=SHARE, absent=WEIGHT, samples=(2, COUNT[1]))
        if self.data and (self.alignment or self.placing):
            raise TrainingError(
                "alignment and placing need masks of every frame, which only worlds have; with data, set them to 0."
            )
        if self.data and (self.judged or self.imitated != 1):
            raise TrainingError(
                "judged and imitated need captions that facts can judge, which only worlds have; with data, set judged "
                "to 0 and imitated to 1."
            )
        unknown = sorted(set(self.kinds) - set(KIND_WEIGHTS))
        if unknown:
            raise TrainingError(f"there is no kind {unknown[0]!r} of question; known are {', '.join(KIND_WEIGHTS)}.")
        if self.validation and not self.data:
            raise TrainingError("validation names a data set, but data does not; worlds are validated on worlds.")
        if self.decoding == "first" and self.masked_frames != 1:
            raise TrainingError(
                f"masked_frames is {self.masked_frames}; decoding 'first' decodes the first frame alone: set it to 1."
            )

    @property
    def weights(self) -> LossWeights:
        """How the published losses are added up."""
        return LossWeights(self.text, self.bce, self.dice, self.padded_masks)


@dataclass(frozen=True)
class ExampleSource(SampleSource):
    """Source of videos with conversations as tensors.

    Attributes:
        settings: Settings of the stage.
        videos: Sources of videos for ``TRAIN`` and ``VALIDATION``.
        config: Shape of the model.
        tokenizer: Of the model.
    """

    settings: ConversationSettings
    videos: Mapping[int, ConversationSource]
    config: VideoGlammConfig
    tokenizer: ChatTokenizer

    def draw(self, step: int, index: int, key: Key) -> dict[str, Any]:
        """Draw a video with its conversations."""
        config = self.config
        video = self.videos[key[-1]].draw(step, index, key)
        pixels = image_pixels(video.frames[0], config) if video.image else video_pixels(video.frames, config)
        rng = np.random.default_rng([*key, step, index, 1])
        whole = rng.random() >= self.settings.image_only
        side = config.sam2.image_size
        height, width = video.masked_frames[0].shape[:2]
        placement = place_squashed((height, width), side)
        masks = np.concatenate([one.masks for one in video.conversations])  # (K, T, H, W)
        points = torch.tensor([point_inside(mask[0]) for mask in masks]).reshape(-1, 2)  # (K, 2)
        sentinels = 1 if video.image else config.frames
        return {
            "clip": pixels.clip,
            "internvideo": pixels.internvideo if whole else None,
            "image": video.image,
            "conversations": [labelled_ids(self.tokenizer, one.turns, sentinels) for one in video.conversations],
            "frames": torch.stack(
                [placement.place(torch.tensor(frame).permute(2, 0, 1)) for frame in video.masked_frames]
            ),  # (T, 3, S, S)
            "masks": torch.from_numpy(masks),
            "points": points * torch.tensor([side / width, side / height]),  # in pixels of the square
            "cells": self._cells(video),
            "facts": video.facts,
            "seed": int(rng.integers(2**62)),
        }

    def _cells(self, video: VideoWithTurns) -> tuple[CellLabels, CellLabels] | None:
        """Label what the cells of a video show to either encoder, if the alignment is trained."""
        if video.described is None or not self.settings.alignment:
            return None
        frames = encoder_frames(len(video.frames), self.config.frames)
        frames += frames[-1:] * (self.config.frames - len(frames))
        cells, encode = self.config.clip.grid // self.config.pooling, self.tokenizer.encode
        return (
            CellLabels.of(video.described, frames, cells, encode, cropped=True),
            CellLabels.of(video.described, frames, cells, encode),
        )

    def collate(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Videos differ in the number of their masks and conversations, and stay apart."""
        return samples


def labelled_ids(tokenizer: ChatTokenizer, turns: Sequence[tuple[str, str]], frames: int) -> LabelledIds:
    """Tokenise a conversation for training: the answers and the tokens that end them are supervised.

    Args:
        tokenizer: Of the model.
        turns: Questions and tagged answers.
        frames: Image sentinels before the first question.
    """
    ids: list[int] = []
    labels: list[int] = []
    for question, answer in turns:
        question_ids = next_ids(tokenizer, question, ended=True) if ids else opening_ids(tokenizer, question, frames)
        answered = [*tokenizer.encode(answer), tokenizer.end]
        ids += [*question_ids, *answered]
        labels += [*[IGNORED] * len(question_ids), *answered]
    return LabelledIds(ids, labels)


def point_inside(mask: npt.NDArray[np.int8]) -> tuple[float, float]:
    """Choose the pixel to click on: of the mask's pixels the one that is nearest to their mean.

    Args:
        mask: int8 (H, W); 1 is the object.

    Returns:
        x and y of the pixel; NaN when the mask is too small.
    """
    ys, xs = np.nonzero(mask == 1)
    if len(ys) < LEAST_PIXELS:
        return float("nan"), float("nan")
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return float(xs[nearest]), float(ys[nearest])


class ConversationStage(Stage):
    """Training of VideoGLaMM on conversations.

    Args:
        settings: Settings of the stage.
        model: The model with its initial weights.
    """

    name: ClassVar[str] = "conversation"
    Settings: ClassVar[type] = ConversationSettings
    settings: ConversationSettings
    model: VideoGlamm

    def __init__(self, settings: ConversationSettings, model: VideoGlamm) -> None:
        super().__init__()
        self.settings, self.model = settings, model
        self._choose_trained()
        model.gradient_checkpointing = settings.gradient_checkpointing
        self.aligned: VisualAlignment | None = None
        if settings.alignment or settings.placing:
            self.aligned = VisualAlignment(model.language.get_input_embeddings())
        self.videos: dict[int, ConversationSource] = {}

    @classmethod
    def build(cls, settings: ConversationSettings, init: Mapping[str, Path], seed: int) -> ConversationStage:
        """Build the stage from an earlier VideoGLaMM (``model``), or from ``encoders`` and ``tracker``."""
        model = build_videoglamm(settings.model, init, seed)
        if model.config.lora is None and "language" not in settings.trained:
            torch.manual_seed(seed)
            add_lora(model.language, settings.lora)
            model.config = replace(model.config, lora=settings.lora)
        return cls(settings, model)

    def _choose_trained(self) -> None:
        trained = set(self.settings.trained)
        self.model.choose_trained(projectors="projectors" in trained)
        if "language" in trained:
            self.model.language.requires_grad_(True)
        if "mask decoder" in trained:
            self.mask_decoder.requires_grad_(True)

    def trains_everything_always(self) -> bool:
        """Return False if some parts serve only some videos, or the mask decoder learns, which has unused heads."""
        settings = self.settings
        some_without_video = "projectors" in settings.trained and bool(settings.image_only or settings.data)
        reads_tokens = bool(settings.bce or settings.dice or settings.pointing)
        return "mask decoder" not in settings.trained and not some_without_video and reads_tokens

    def counts(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Count the supervised tokens and the masks of a batch."""
        settings = self.settings
        seg = self.model.config.seg
        labels = [label for sample in batch for one in sample["conversations"] for label in one.labels[1:]]
        counts = {"text": sum(label != IGNORED for label in labels)}
        if settings.pointing:
            counts["pointing"] = sum(float(self._pointing_weights(sample["points"]).sum()) for sample in batch)
        if self.aligned is not None:
            counts["place"] = sum(int((~sample["points"].isnan().any(1)).sum()) for sample in batch)
        if settings.alignment:
            views = [own for sample in batch for own in sample["cells"][: 1 if sample["internvideo"] is None else 2]]
            counts["words"] = sum(len(own.shown) for own in views)
            counts["cells"] = sum(int(own.known.sum()) for own in views)
        if settings.bce or settings.dice:
            phrases = [sum(one.ids.count(seg) for one in sample["conversations"]) for sample in batch]
            masks = [sample["masks"] for sample in batch]
            if settings.decoding == "frames":
                padded = settings.padded_masks
                decoded = [min(n, len(m)) if padded is None else padded for n, m in zip(phrases, masks, strict=True)]
                shown = sum(n * len(sample["frames"]) for n, sample in zip(decoded, batch, strict=True))
            else:
                counts["presence"] = sum(phrases)
                firsts = [mask[:, 0].float() for mask in masks]
                shown = sum(int((mask.flatten(1).sum(1) >= LEAST_PIXELS).sum()) for mask in firsts)
            counts |= {"bce": shown, "dice": shown}
        return {name: torch.tensor(float(count)) for name, count in counts.items()}

    @property
    def mask_decoder(self) -> nn.Module:
        """SAM2's mask decoder."""
        decoder: nn.Module = self.model.tracker.sam.mask_decoder
        return decoder

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Encoders and tracker; with the mask decoder in training, the rest of the tracker."""
        parts = self.model.frozen_parts()
        if "mask decoder" not in self.settings.trained:
            return parts
        return [part for part in parts if part is not self.model.tracker]

    def prepare_data(self, batch: int, validation_batches: int) -> int | None:
        """Open the data, which have no epochs: data sets are drawn by their rates, as published, and worlds endlessly.

        Raises:
            TrainingError: When a data set has no masks.
            DataError: When a data set is missing or damaged.
        """
        settings = self.settings
        if settings.data:
            self.videos = {TRAIN: DataMix(settings.data, settings.masked_frames)}
            if validation_batches:
                self.videos[VALIDATION] = DataMix(settings.validation or settings.data, settings.masked_frames)
            return None
        drawn = DrawnConversations(
            world=settings.world,
            aspects=settings.aspects,
            lengths=settings.lengths,
            image_size=self.model.config.sam2.image_size,
            questions=settings.questions,
            kinds=settings.kinds,
            families=settings.families,
            variety=settings.variety,
            detail=settings.detail,
            vague=settings.vague,
            patterns=settings.patterns,
            masked_frames=settings.masked_frames,
            judged=bool(settings.judged),
        )
        self.videos = {TRAIN: drawn, VALIDATION: drawn}
        return None

    def source(self) -> ExampleSource:
        """Return the source of samples."""
        return ExampleSource(self.settings, self.videos, self.model.config, self.model.tokenizer)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Compute the losses."""
        settings, model = self.settings, self.model
        examples = [
            Example(
                EncoderPixels(sample["clip"], sample["internvideo"]),
                self._imitated(sample["conversations"]),
                sample["frames"],
                sample["masks"],
                image=sample["image"],
            )
            for sample in batch
        ]
        videos = model.encode_examples(examples)
        scalars: dict[str, Tensor] = {}
        read = examples
        if settings.judged and self.training:
            sampled, scalars = self._judged(batch, videos)
            read = [
                replace(example, conversations=[*example.conversations, *own])
                for example, own in zip(examples, sampled, strict=True)
            ]
        text, tokens, states = model.read_batch(read, videos, packed=True, mean=self.mean)
        # The masks of sampled phrases are not known.
        phrases = [sum(one.ids.count(model.config.seg) for one in example.conversations) for example in examples]
        tokens = [own[:number] for own, number in zip(tokens, phrases, strict=True)]
        states = [own[:number] for own, number in zip(states, phrases, strict=True)]
        scalars["text"] = text.detach()
        loss = settings.text * text
        if self.aligned is not None:
            aligned, more = self._alignment(self.aligned, batch, videos, states)
            loss, scalars = loss + aligned, scalars | more
        if settings.pointing:
            pointing = self._pointing(batch, tokens)
            loss = loss + settings.pointing * pointing
            scalars["pointing"] = pointing.detach()
        if settings.bce or settings.dice:
            if settings.decoding == "frames":
                bce, dice = model.mask_losses(examples, tokens, settings.padded_masks, self.mean)
            else:
                bce, dice, presence = self._prompted_losses(examples, tokens)
                loss = loss + settings.presence * presence
                scalars["presence"] = presence.detach()
            loss = loss + settings.bce * bce + settings.dice * dice
            scalars |= {"bce": bce.detach(), "dice": dice.detach()}
        return {"loss": loss, **scalars}

    def _imitated(self, conversations: Sequence[LabelledIds]) -> list[LabelledIds]:
        """Return the conversations of a video with the weight of its caption, which is the first."""
        if self.settings.imitated == 1:
            return list(conversations)
        first = conversations[0]
        return [replace(first, weights=[self.settings.imitated] * len(first.ids)), *conversations[1:]]

    def _judged(
        self, batch: Sequence[Mapping[str, Any]], videos: Sequence[VisualTokens | None]
    ) -> tuple[list[list[LabelledIds]], dict[str, Tensor]]:
        """Sample captions of the videos that both encoders see, and weight their tokens by what they are worth."""
        model, settings = self.model, self.settings
        end = model.config.phi.end
        seen = [
            (row, video, sample)
            for row, (video, sample) in enumerate(zip(videos, batch, strict=True))
            if video is not None and sample["facts"] is not None and sample["internvideo"] is not None
        ]
        found: list[list[LabelledIds]] = [[] for _ in batch]
        judged: list[Sampled] = []
        if seen:
            # One request for all, so that the prompts have the same length.
            asked = batch[seen[0][0]]["conversations"][0]
            prompt = [int(id) for id, label in zip(asked.ids, asked.labels, strict=True) if label == IGNORED]
            # In float32: one token at a time, a CPU is slower in mixed precision.
            with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
                prompts = torch.stack([embed(model.language, prompt, video.tokens) for _, video, _ in seen])
                prompts = prompts.to(model.language.get_input_embeddings().weight.dtype)  # (B, S, D)
                sources = [torch.Generator(prompts.device).manual_seed(sample["seed"]) for _, _, sample in seen]
                drawn = sample_answers(model.language, prompts, settings.samples, LONGEST_CAPTION, end, sources)
            for (row, _, sample), answers in zip(seen, drawn, strict=True):
                samples = [reward_caption(ids, model.tokenizer.decode, end, sample["facts"]) for ids in answers]
                judged += samples
                for one, weights in zip(samples, advantages(samples), strict=True):
                    found[row].append(
                        LabelledIds(
                            [*prompt, *one.ids],
                            [*[IGNORED] * len(prompt), *one.ids],
                            [*[0.0] * len(prompt), *(settings.judged * weight for weight in weights)],
                            counted=False,
                        )
                    )
        count = torch.tensor(float(len(judged)))
        return found, {
            "reward": ratio(torch.tensor(float(sum(sum(one.steps.values()) for one in judged))), count),
            "all_true": ratio(torch.tensor(float(sum(one.all_true for one in judged))), count),
        }

    def _alignment(
        self,
        aligned: VisualAlignment,
        batch: Sequence[Mapping[str, Any]],
        videos: Sequence[VisualTokens | None],
        states: Sequence[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted losses of words and places in visual tokens, and of places in the states before ``[SEG]``."""
        points = torch.cat([sample["points"] for sample in batch]) / self.model.config.sam2.image_size  # (N, 2)
        place = aligned.distance(torch.cat(list(states)), points.to(self.model.device), "place", self.mean)
        scalars = {"place": place.detach()}
        loss = self.settings.placing * place
        if self.settings.alignment:
            words, cells = aligned(videos, [sample["cells"] for sample in batch], self.mean)
            scalars |= {"words": words.detach(), "cells": cells.detach()}
            loss = loss + self.settings.alignment * (words + cells)
        return loss, scalars

    def _pointing_weights(self, points: Tensor) -> Tensor:
        """Weight each point (N, 2) in the loss of prompt tokens, (N,); it is NaN where there is nothing to click on."""
        return torch.where(points.isnan().any(1), self.settings.absent, 1.0)

    def _pointing(self, batch: Sequence[Mapping[str, Any]], tokens: Sequence[Tensor]) -> Tensor:
        """Mean squared distance of prompt tokens from the embeddings of clicks on their objects, or of no point."""
        points = torch.cat([sample["points"] for sample in batch]).to(self.model.device)  # (N, 2)
        shown = ~points.isnan().any(1)
        weights = self._pointing_weights(points)
        tracker = self.model.tracker
        clicks = torch.nan_to_num(points).unsqueeze(1).to(tracker.sine_top)  # (N, 1, 2)
        labels = torch.where(shown, 1, -1).unsqueeze(1)  # (N, 1)
        with torch.no_grad():
            wanted = tracker.embed_points(clicks, labels)[:, 0]  # (N, C)
        distance = (torch.cat(list(tokens)).float() - wanted.float()).square().mean(1)
        return self.mean("pointing", (distance * weights).sum(), weights.sum())

    def _prompted_losses(self, examples: Sequence[Example], tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the masks in the first frame, which is prompted as in use, and of the object score there."""
        tracker = self.model.tracker
        with torch.no_grad():
            features = tracker.pyramid(tracker.encode(torch.cat([example.frames[:1] for example in examples])))
        logits, targets, scores = [], [], []
        for row, (example, own) in enumerate(zip(examples, tokens, strict=True)):
            if not len(own):
                continue
            wanted = example.masks[:, 0].to(own.device, torch.float32)  # (N, H, W)
            shared = repeated(features.take(slice(row, row + 1)), len(own))
            predicted = predict_from_tokens(tracker, shared, own.unsqueeze(1))
            assert predicted.ungated is not None
            assert predicted.score is not None
            logits.append(F.interpolate(predicted.ungated.float(), size=wanted.shape[1:], mode="bilinear")[:, 0])
            targets.append(wanted)
            scores.append(predicted.score.float().flatten())
        bce = dice = presence = 0.0 * torch.cat(list(tokens)).sum()  # a gradient for the projector without any mask
        visible, prompted = bce.new_zeros(()), bce.new_tensor(sum(map(len, scores)))
        if logits:
            mask, target, score = torch.cat(logits), torch.cat(targets), torch.cat(scores)
            there = target.flatten(1).sum(1) >= LEAST_PIXELS
            visible = there.sum()
            bce = bce + sigmoid_bce_loss(mask[there], target[there], 1)
            dice = dice + sigmoid_dice_loss(mask[there], target[there], 1)
            presence = presence + F.binary_cross_entropy_with_logits(score, there.float(), reduction="sum")
        return (
            self.mean("bce", bce, visible),
            self.mean("dice", dice, visible),
            self.mean("presence", presence, prompted),
        )

    def save(self, folder: Path) -> None:
        """Write the model."""
        self.model.save_pretrained(folder)
