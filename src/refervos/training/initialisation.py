"""Random initialisation with which narrow models learn."""

from __future__ import annotations

import torch
from torch import nn

FREE_STD: tuple[tuple[str, float], ...] = (
    ("memory_temporal_positional_encoding", 0.5),
    ("pos_embed", 0.2),
    ("pos_embed_window", 0.2),
    ("no_object_pointer", 0.2),
    ("no_memory_embedding", 0.02),
    ("no_mask_embed.weight", 0.02),
    ("occlusion_spatial_embedding_parameter", 0.02),
)
"""Name suffixes of SAM's and SAM2's free parameters, with the standard deviation to draw each from."""

FUSER_SCALE = 0.1
"""Initial layer scale in SAM2's memory fuser (published: 1e-6, with which a small model does not start to learn)."""


@torch.no_grad()
def initialise(part: nn.Module) -> None:
    """Redraw the weights of a SAM, a SAM2 tracker or a text encoder before it is trained from scratch.

    New models use a standard deviation of 0.02 throughout, as published. In layers 64 wide such signals fade, and for
    thousands of steps every object is selected whatever the prompt. PyTorch's own initialisation, which depends on the
    width, avoids this plateau.

    Args:
        part: The module, changed in place.
    """
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()
    for name, parameter in part.named_parameters():
        if name.endswith(".scale"):
            parameter.fill_(FUSER_SCALE)
        for end, deviation in FREE_STD:
            if name.endswith(end):
                parameter.normal_(std=deviation)
