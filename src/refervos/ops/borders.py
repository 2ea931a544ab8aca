"""Mask borders that follow the edges of the frame (joint bilateral upsampling, Kopf et al. 2007).

Models predict one logit per cell of several pixels. Where the upsampled logits are near zero, each pixel takes a mean
of the surrounding cells' logits, weighted by similarity of colour. An extension of this project: no published protocol
has it.

Shapes: N masks in h x w cells, a frame of H x W pixels, B pixels near a border, K cells around a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Borders = Literal["bilinear", "frame"]
"""``bilinear``: upsample logits as published; ``frame``: follow the frame's edges."""

BAND = 4.0
"""Logits up to this far from zero are near a border."""

STRONGEST = 6.0
"""Logits of cells are clamped to this magnitude, so that one confident cell does not outvote its neighbours."""

COLOUR_SIGMA = 0.06
"""Standard deviation of the weight by colour difference, as a fraction of the range of a channel."""

PLACE_SIGMA = 1.0
"""Standard deviation of the weight by distance, in cells."""

BILINEAR_WEIGHT = 1e-4
"""Weight of the bilinear logit, which decides where no surrounding cell is similar to the pixel."""


@dataclass(frozen=True)
class FrameGuide:
    """Frame whose edges mask borders follow.

    Attributes:
        frame: uint8 RGB (3, H, W).
        cells: Side of the square neighbourhood of a pixel, in cells: 3 is fast, 7 is finer.
    """

    frame: Tensor
    cells: int = 3


def follow_frame(enlarged: Tensor, mask_logits: Tensor, frame: Tensor, cell: int, side: int) -> Tensor:
    """Refine upsampled mask logits by the edges of the frame.

    Args:
        enlarged: Upsampled mask logits, float32 (N, H, W), cropped to the frame's part of the square.
        mask_logits: Mask logits per cell, over the whole square (N, h, w).
        frame: The frame resized to H x W, uint8 (3, H, W).
        cell: Side of a cell in pixels.
        side: Side of the neighbourhood in cells.

    Returns:
        Mask logits (N, H, W), changed near borders alone.
    """
    height, width = enlarged.shape[1:]
    near = (enlarged.abs() < BAND).any(dim=0)  # (H, W), for any mask: all masks share the weights
    places = near.flatten().nonzero().squeeze(1)  # (B,)
    colours = cell_colours(frame, cell)
    rows, row_weights = _around(torch.div(places, width, rounding_mode="floor"), cell, colours.shape[1], side)
    columns, column_weights = _around(places % width, cell, colours.shape[2], side)
    cells = (rows.unsqueeze(2) * colours.shape[2] + columns.unsqueeze(1)).flatten(1)  # (B, K)
    here = frame.flatten(1).index_select(1, places).float() / 255  # (3, B)
    unlike = torch.zeros(cells.shape, device=near.device)
    for channel, cell_channel in zip(here, colours.flatten(1), strict=True):
        unlike += (cell_channel[cells] - channel.unsqueeze(1)).square_()
    weights = torch.exp(unlike * (-0.5 / COLOUR_SIGMA**2)).unflatten(1, (side, side))
    weights = (weights * row_weights.unsqueeze(2) * column_weights.unsqueeze(1)).flatten(1)  # (B, K)
    known = mask_logits[:, : colours.shape[1], : colours.shape[2]].float().clamp(-STRONGEST, STRONGEST).flatten(1)
    flat = enlarged.flatten(1)  # (N, H*W)
    before = flat.index_select(1, places)  # (N, B)
    sums = torch.stack([(mask[cells] * weights).sum(1) for mask in known])  # (N, B)
    after = (sums + BILINEAR_WEIGHT * before) / (weights.sum(1) + BILINEAR_WEIGHT)
    after = torch.where(before.abs() < BAND, after, before)  # only in the band of its own mask
    return flat.index_copy(1, places, after).unflatten(1, (height, width))


def _around(pixels: Tensor, cell: int, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Find the neighbouring cells of pixels along one axis.

    Args:
        pixels: Positions (B,).
        cell: Side of a cell in pixels.
        count: Number of cells along the axis.
        side: Number of neighbouring cells.

    Returns:
        Indices of the cells, int64 (B, side), and their weights by distance (B, side).
    """
    at = (pixels.float() + 0.5) / cell - 0.5  # in cells
    reach = side // 2
    around = at.round().unsqueeze(1) + torch.arange(-reach, reach + 1, device=at.device)  # (B, side)
    inside = around.clamp(0, count - 1)
    weights = torch.exp((at.unsqueeze(1) - inside).square() * (-0.5 / PLACE_SIGMA**2))
    return inside.long(), weights


def cell_colours(resized: Tensor, cell: int) -> Tensor:
    """Compute the mean colour of each cell of a frame; partial cells are padded by their edge.

    Args:
        resized: The resized frame, uint8 (3, h', w').
        cell: Side of a cell in pixels.

    Returns:
        From 0 to 1, (3, rows, columns).
    """
    height, width = resized.shape[1:]
    padding = (0, -width % cell, 0, -height % cell)
    padded = F.pad(resized.float().unsqueeze(0), padding, mode="replicate")
    return F.avg_pool2d(padded, cell)[0] / 255
