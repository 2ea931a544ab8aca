"""A VideoGLaMM put together for training from earlier models and new weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.loading import load
from refervos.sam2.tracker import Sam2Tracker
from refervos.training.initialisation import initialise
from refervos.training.stages.referring import copy_weights, load_as
from refervos.videoglamm.config import VideoGlammConfig, as_decoder
from refervos.videoglamm.conversation import ChatTokenizer
from refervos.videoglamm.encoders import ImageEncoder, VideoEncoder
from refervos.videoglamm.model import VideoGlamm
from refervos.worlds.vocabulary import conversation_tokenizer

ROLES = ("model", "image", "video", "tracker")
"""Roles of the models that VideoGLaMM starts from."""

LAYER_SCALE = 0.5
"""First layer scale of a video encoder (published: 1e-5, from which a small encoder takes long to start)."""

CLASS_STD = 0.2
"""Standard deviation of an encoder's first class token."""

TOKEN_STD = 0.3
"""Standard deviation of a language model's first token embeddings."""


def drawn_tokenizer() -> ChatTokenizer:
    """Make the tokenizer of conversations about drawn clips."""
    from transformers import PreTrainedTokenizerFast

    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=conversation_tokenizer()))


def build_videoglamm(config: VideoGlammConfig, init: Mapping[str, Path], seed: int) -> VideoGlamm:
    """Build a VideoGLaMM from the parts of earlier models; what none has gets new weights.

    Args:
        config: The shape; parts that are loaded bring their own.
        init: ``model``: an earlier VideoGLaMM, of which everything is taken that no other role replaces. ``image`` and
            ``video``: VideoGLaMMs of which one encoder is taken; ``tracker``: any model over a SAM2, whose tracker is
            taken.
        seed: Seed of new weights.

    Returns:
        The model, with everything frozen. Without ``model`` its tokenizer is that of drawn conversations.

    Raises:
        TrainingError: When a role is unknown, or a model does not have the part.
    """
    unknown = sorted(set(init) - set(ROLES))
    if unknown:
        raise TrainingError(f"init names the role {unknown[0]!r}; VideoGLaMM starts from {', '.join(ROLES)}.")
    if "model" in init:
        model = load_as(VideoGlamm, init["model"])
        if "tracker" in init:
            copy_weights(model.tracker, load_tracker(init["tracker"]).state_dict())
        for role in ("image", "video"):
            if role in init:
                copy_encoder(model, load_as(VideoGlamm, init[role]), role)
        return model
    image, video = (load_as(VideoGlamm, init[role]) if role in init else None for role in ("image", "video"))
    tracker = load_tracker(init["tracker"]) if "tracker" in init else None
    if image is not None:
        config = replace(config, clip=image.config.clip)
    if video is not None and config.internvideo is not None:
        config = replace(config, internvideo=video.config.internvideo)
    if tracker is not None:
        config = replace(config, sam2=as_decoder(tracker.config))
    tokenizer = drawn_tokenizer()
    if (config.phi.vocabulary, config.seg) != (len(tokenizer), tokenizer.seg):
        raise TrainingError(
            f"model: phi.vocabulary is {config.phi.vocabulary} and seg is {config.seg}; conversations about drawn "
            f"clips have {len(tokenizer)} tokens, of which {tokenizer.seg} is [SEG]."
        )
    torch.manual_seed(seed)
    model = VideoGlamm(config, tokenizer)
    initialise_new(model)
    if image is not None:
        copy_encoder(model, image, "image")
    if video is not None:
        copy_encoder(model, video, "video")
    if tracker is not None:
        copy_weights(model.tracker, tracker.state_dict())
    return model


def copy_encoder(model: VideoGlamm, other: VideoGlamm, role: str) -> None:
    """Copy the weights of one encoder, ``image`` or ``video``, of another model, if both have it."""
    pairs = {"image": (model.image_encoder, other.image_encoder), "video": (model.video_encoder, other.video_encoder)}
    target, source = pairs[role]
    if target is not None and source is not None:
        copy_weights(target, source.state_dict())


def load_tracker(folder: Path) -> Sam2Tracker:
    """Load the SAM2 of a model over one.

    Raises:
        TrainingError: When the model has none.
    """
    tracker = getattr(load(folder, device="cpu"), "tracker", None)
    if not isinstance(tracker, Sam2Tracker):
        raise TrainingError(f"{folder} has no SAM2; VideoGLaMM's masks need the tracker of a model over one.")
    return tracker


@torch.no_grad()
def initialise_new(model: VideoGlamm) -> None:
    """Redraw all weights of a small VideoGLaMM before it is trained from scratch, changed in place."""
    for part in (model.image_encoder, model.image_projector, model.language, model.seg_projector, model.tracker):
        initialise(part)
    if model.video_encoder is not None and model.video_projector is not None:
        initialise(model.video_encoder)
        initialise(model.video_projector)
    model.language.get_input_embeddings().weight.normal_(std=TOKEN_STD)
    _initialise_encoder(model.image_encoder, 1, model.config.clip.grid)
    if model.video_encoder is not None and model.config.internvideo is not None:
        _initialise_encoder(model.video_encoder, model.config.internvideo.frames, model.config.internvideo.grid)


def _initialise_encoder(encoder: ImageEncoder | VideoEncoder, frames: int, side: int) -> None:
    for name, parameter in encoder.named_parameters():
        if name.endswith(("lambda_1", "lambda_2")):
            nn.init.constant_(parameter, LAYER_SCALE)
        elif name.endswith(("class_embedding", "cls_token")):
            nn.init.normal_(parameter, std=CLASS_STD)
        elif name.endswith("position_embedding.weight"):
            parameter[1:] = waves((side, side), parameter.shape[1])
        elif name.endswith("pos_embed"):
            parameter[0, 1:] = waves((frames, side, side), parameter.shape[2])


def waves(sizes: Sequence[int], width: int) -> Tensor:
    """Make position embeddings of sines and cosines, as InternVideo2's are at first; near places are then alike.

    Args:
        sizes: Places along each axis.
        width: Channels, divided among the axes.

    Returns:
        (product of sizes, width), the last axis fastest.
    """
    pairs = [width // 2 // len(sizes)] * len(sizes)
    pairs[-1] += width // 2 - sum(pairs)
    parts = []
    for axis, (size, count) in enumerate(zip(sizes, pairs, strict=True)):
        # From a period of four places to one of four times the whole axis.
        speeds = torch.pi / 2 * torch.logspace(0, -math.log10(max(size, 2)), count)
        angles = torch.arange(size).unsqueeze(1) * speeds  # (size, count)
        part = torch.cat([angles.sin(), angles.cos()], dim=1)  # (size, 2 * count)
        shape = [1] * len(sizes) + [2 * count]
        shape[axis] = size
        parts.append(part.view(shape).expand(*sizes, 2 * count))
    table = torch.cat(parts, dim=-1).flatten(0, -2)
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))
