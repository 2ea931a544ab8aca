"""A trained ViT of a SAM as the start, and the teacher, of VideoGLaMM's small encoders.

InternVideo2 was itself distilled from image encoders before it saw text (Wang et al. 2024, arXiv 2403.15377, stage 1).

Shapes: N frames, g = grid, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.placement import IMAGE_MEAN, IMAGE_STD
from refervos.sam.image_encoder import ImageEncoder as SamVit
from refervos.training.stages.videoglamm_parts import waves
from refervos.videoglamm.frames import CLIP_MEAN, CLIP_STD
from refervos.videoglamm.model import VideoGlamm

CODE_SIZE = 0.7
"""Size of the first codes of time and place in the video encoder, which are added to the teacher's of places."""


class VitTeacher(nn.Module):
    """Frozen ViT of a SAM that shows an image encoder what each of its blocks should say.

    Args:
        vit: The ViT.
    """

    def __init__(self, vit: SamVit) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Run the blocks on frames with CLIP's mean and deviation (N, 3, S, S).

        Returns:
            The tokens after each block (N, g*g, D).
        """
        scale, shift = (numbers.view(-1, 1, 1).to(pixels) for numbers in _renormalisation())
        tokens = self.vit.patch_embed(pixels * scale + shift) + self.vit.pos_embed
        after = []
        for block in self.vit.layers:
            tokens = block(tokens)
            after.append(tokens.flatten(1, 2))
        return after

    def distance(self, pixels: Tensor, states: list[Tensor]) -> Tensor:
        """Compare an image encoder's blocks with the teacher's.

        Args:
            pixels: Frames as for CLIP (N, 3, S, S).
            states: Tokens after each of the encoder's blocks, without the class token (N, g*g, D); it may have fewer
                blocks, of which the last is compared with the teacher's last.

        Returns:
            Mean over the images of the mean squared difference, relative to the variance of the image's tokens, summed
            over the blocks.
        """
        wanted = self(pixels)
        wanted = [*wanted[: len(states) - 1], wanted[-1]]
        # Each image by itself, so that batches may be shared out.
        parts = [
            ((state.float() - tokens.float()).square().mean((1, 2)) / tokens.float().var((1, 2))).mean()
            for state, tokens in zip(states, wanted, strict=True)
        ]
        return torch.stack(parts).sum()


def vit_of(model: Any, where: object) -> SamVit:
    """Find the ViT of a model over a SAM.

    Args:
        model: A loaded model.
        where: Its folder, for the error.

    Raises:
        TrainingError: When it has none.
    """
    vit = getattr(getattr(model, "sam", None), "vision_encoder", None)
    if not isinstance(vit, SamVit):
        raise TrainingError(f"{where} has no ViT of a SAM; the role 'teacher' needs a RefSAM.")
    return vit


def _renormalisation() -> tuple[Tensor, Tensor]:
    """Factor and summand that turn CLIP's normalised pixels into SAM's, (3,) each."""
    clip_mean, clip_std, mean, std = (torch.tensor(numbers) for numbers in (CLIP_MEAN, CLIP_STD, IMAGE_MEAN, IMAGE_STD))
    return clip_std / std, (clip_mean - mean) / std


@torch.no_grad()
def start_from_vit(model: VideoGlamm, vit: SamVit) -> None:
    """Copy a ViT's weights into both encoders, as far as their blocks are alike.

    Windows and relative positions, which the encoders lack, have to be learnt anew. The video encoder's attention
    starts from random weights.

    Args:
        model: Changed in place.
        vit: A ViT of the encoders' width, patches and grid.

    Raises:
        TrainingError: When the shapes differ.
    """
    width, _, patch, _ = vit.patch_embed.projection.weight.shape
    grid = vit.pos_embed.shape[1]
    for name, shape in (("clip", model.config.clip), ("internvideo", model.config.internvideo)):
        if shape is not None and (shape.width, shape.patch, shape.grid) != (width, patch, grid):
            raise TrainingError(
                f"model.{name} has width {shape.width}, patches of {shape.patch} pixels and a grid of {shape.grid}; "
                f"the teacher's ViT has {width}, {patch} and {grid}, which must be the same."
            )
    places = vit.pos_embed.reshape(-1, width)  # (g*g, D)
    _start_clip(model.image_encoder.clip, vit, places)
    if model.video_encoder is not None and model.config.internvideo is not None:
        _start_internvideo(model.video_encoder, vit, places, model.config.internvideo.frames)


def _start_clip(clip: Any, vit: Any, places: Tensor) -> None:
    projection = vit.patch_embed.projection
    scale, shift = _renormalisation()
    clip.embeddings.patch_embedding.weight.copy_(projection.weight * scale.view(1, -1, 1, 1))
    bias = projection.bias + (projection.weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))
    clip.embeddings.position_embedding.weight[1:] = places + bias
    for own, block in zip(clip.encoder.layers, vit.layers, strict=False):
        own.layer_norm1.load_state_dict(block.layer_norm1.state_dict())
        own.layer_norm2.load_state_dict(block.layer_norm2.state_dict())
        parts = zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        for name, (weight, offset) in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            getattr(own.self_attn, name).weight.copy_(weight)
            getattr(own.self_attn, name).bias.copy_(offset)
        own.self_attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        own.mlp.fc1.load_state_dict(block.mlp.lin1.state_dict())
        own.mlp.fc2.load_state_dict(block.mlp.lin2.state_dict())


def _start_internvideo(encoder: Any, vit: Any, places: Tensor, frames: int) -> None:
    width, side = places.shape[1], round(len(places) ** 0.5)
    encoder.patch_embed.load_state_dict(vit.patch_embed.projection.state_dict())
    places = places + CODE_SIZE * waves((side, side), width)  # (g*g, D)
    times = CODE_SIZE * waves((frames,), width)  # (f, D)
    encoder.pos_embed[0, 1:] = (places + times.unsqueeze(1)).flatten(0, 1)
    centred = torch.eye(width) - 1 / width
    for own, block in zip(encoder.layers, vit.layers, strict=False):
        # Linear layers take over the scale, the offset and the subtraction of the mean of the norms before them.
        folded = block.attn.qkv.weight * block.layer_norm1.weight @ centred  # (3 * D, D)
        offset = block.attn.qkv.bias + block.attn.qkv.weight @ block.layer_norm1.bias
        own.layernorm_before.weight.fill_(1)
        attention = own.attention
        # A ViT's attention stays near by. Here tokens attend to those that are like them, in any frame: queries equal
        # to keys (Trockman and Kolter 2023, arXiv 2305.09828), from which the tracks of objects are learnt sooner.
        alike = torch.linalg.qr(torch.randn(width, width))[0]
        attention.q_proj.weight.copy_(alike)
        attention.k_proj.weight.copy_(alike)
        attention.q_norm.weight.fill_(1)
        attention.k_norm.weight.fill_(1)
        attention.v_proj.weight.copy_(folded.chunk(3)[2])
        attention.projection_layer.weight.copy_(block.attn.proj.weight)
        attention.projection_layer.bias.copy_(block.attn.proj.bias + block.attn.proj.weight @ offset.chunk(3)[2])
        own.layernorm_after.weight.fill_(1)
        own.mlp.fc1.weight.copy_(block.mlp.lin1.weight * block.layer_norm2.weight @ centred)
        own.mlp.fc1.bias.copy_(block.mlp.lin1.bias + block.mlp.lin1.weight @ block.layer_norm2.bias)
        own.mlp.fc2.load_state_dict(block.mlp.lin2.state_dict())
        own.lambda_1.fill_(1)
        own.lambda_2.fill_(1)
