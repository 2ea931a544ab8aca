"""CMT, the Cross-Modal Temporal adapter: language and time inside the frozen encoders (SAMWISE paper, section 3.2).

Inside an adapter the image tokens are in the order of HSA's patches, so that they are moved only on the way in and on
the way out.

Shapes: N tracks about V videos; T frames; W frames in a temporal window; H x B image tokens of C channels per frame, in
P patches of S tokens; R texts of L tokens of D channels; A channels inside the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import column_major, linear, product
from refervos.ops.multihead_attention import MultiheadAttention
from refervos.ops.precision import BatchNorm2d
from refervos.ops.splitting import should_split

CPU_CHUNK = 16 * 2**20
"""Bytes of image tokens processed at once on a CPU: more would cost memory and save no time."""


@dataclass(frozen=True)
class Adapted:
    """Output of an adapter.

    Attributes:
        vision: Change of the image tokens, to be added (N*T, H, B, C).
        text: Change of the text tokens, to be added (R, L, D).
        inside: The image tokens inside the adapter (V, T, P, S, A), which later frames may attend to.
    """

    vision: Tensor
    text: Tensor
    inside: Tensor


class CrossModalTemporalAdapter(nn.Module):
    """CMT adapter, placed after a Hiera stage and the text layers that run in parallel with it.

    Args:
        vision_width: Channels C of the image stage.
        text_width: Channels D of the text encoder.
        width: Channels A inside the adapter.
        heads: Attention heads.
        patch: Side of the patches of Hierarchical Selective Attention, or None to omit it.
        text_to_visual: Change the image tokens; when off, HSA has no effect either.
        visual_to_text: Change the text tokens.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        width: int,
        heads: int,
        patch: int | None,
        *,
        text_to_visual: bool = True,
        visual_to_text: bool = True,
    ) -> None:
        super().__init__()
        self.changes_vision, self.changes_text = text_to_visual, visual_to_text
        self.vision_down = nn.Conv2d(vision_width, width, kernel_size=1, bias=False)
        self.vision_down_norm = BatchNorm2d(width)
        self.vision_up = nn.ConvTranspose2d(width, vision_width, kernel_size=1, bias=False)
        self.vision_up_norm = BatchNorm2d(vision_width)
        self.text_down = nn.Linear(text_width, width, bias=False)
        self.text_up = nn.Linear(width, text_width, bias=False)
        self.vision_to_text = MultiheadAttention(width, heads)
        self.text_to_vision = MultiheadAttention(width, heads)
        self.hsa = HierarchicalSelectiveAttention(width, heads, patch) if patch else None
        self.derived = Derived()

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        frames: int,
        keep: Tensor | None = None,
        *,
        past: Tensor | None = None,
        reach: int | None = None,
        motion: Tensor | None = None,
    ) -> Adapted:
        """Compute the changes of the image tokens and of the text tokens.

        In clips (``reach`` is None) all frames attend to each other and share one text: R = N. Online, each frame
        attends to itself and up to ``reach - 1`` earlier frames, and has a text of its own: R = N*T. Image tokens that
        do not depend on a sentence yet are those of V videos, each with N / V adjacent tracks, so that all
        sentence-independent work is done once per video.

        Args:
            vision: Image tokens, channels last (V*T, H, B, C).
            text: Text tokens (R, L, D).
            frames: T.
            keep: bool (R, L), False for padding; default: attend to padding like text, as the released code does.
            past: Online, this adapter's ``inside`` of earlier frames (V, P, W, S, A), W < ``reach``, default none.
            reach: Online, number of frames that a frame attends to, itself included.
            motion: Movement features to be added inside (V*T, H, B, A), default none.

        Returns:
            The changes.
        """
        height, width = vision.shape[1:3]
        side = 1 if self.hsa is None else self.hsa.side
        inside = conv_norm_relu(vision, self.vision_down, self.vision_down_norm, self.derived)  # (V*T, H, B, A)
        inside = inside if motion is None else inside + motion
        inside = into_patches(inside, side).unflatten(0, (-1, frames))  # (V, T, P, S, A)
        x = inside.transpose(1, 2)  # (V, P, T, S, A)
        t = linear(text, self.text_down)  # (R, L, A)
        # Online, each frame queries the window that ends with it.
        windows = [x] if reach is None else windows_before(x, past, reach)  # (V, P, W, S, A) each
        querying = frames if reach is None else 1
        tracks = t.shape[0] // len(windows)

        if self.changes_text:
            visible = torch.stack([window.mean(dim=2) for window in windows], dim=1).flatten(2, 3)  # (V, R/N, P*S, A)
            key, value = (
                for_each_sentence(part, tracks).flatten(0, 1)  # (R, P*S, A) each
                for part in self.text_to_vision.keys_and_values(visible)
            )
            attended = self.text_to_vision.attend(self.text_to_vision.queries(t), key, value)
            text_delta = linear(t * attended, self.text_up)
        else:
            text_delta = torch.zeros_like(text)
        if not self.changes_vision:
            return Adapted(vision.new_zeros(tracks * frames, *vision.shape[1:]), text_delta, inside)
        mask = None if keep is None else keep[:, None, None, :]  # (R, 1, 1, L)
        columns = width // side  # of patches
        patch_rows = max(1, patches_at_once(windows[-1]) // columns)
        if patch_rows * columns >= x.shape[1]:
            change = self._change_vision(x, windows, querying, t, mask)  # (N*T, P, S, C)
            return Adapted(out_of_patches(change, side, height, width), text_delta, inside)
        vision_delta = vision.new_empty(tracks * frames, *vision.shape[1:])  # (N*T, H, B, C)
        for top in range(0, height // side, patch_rows):
            part = slice(top * columns, (top + patch_rows) * columns)
            window_parts = [window[:, part] for window in windows]
            change = self._change_vision(x[:, part], window_parts, querying, t, mask)
            rows = vision_delta[:, top * side : (top + patch_rows) * side]
            rows.copy_(out_of_patches(change, side, rows.shape[1], width))
        return Adapted(vision_delta, text_delta, inside)

    def _change_vision(
        self, x: Tensor, windows: Sequence[Tensor], querying: int, t: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Compute the change of some patches of the image, (V, p, T, S, A) -> (N*T, p, S, C)."""
        if self.hsa is not None:
            attended = [self.hsa(window, querying) for window in windows]
            x = x + (attended[0] if len(attended) == 1 else torch.cat(attended, dim=2))
        texts = len(windows)  # per track
        tokens = x.transpose(1, 2).reshape(x.shape[0], texts, -1, x.shape[-1])  # (V, R/N, N*T/R*p*S, A)
        queries, tokens = (
            for_each_sentence(part, t.shape[0] // texts).flatten(0, 1)  # (R, N*T/R*p*S, A) each
            for part in (self.vision_to_text.queries(tokens), tokens)
        )
        y = tokens * self.vision_to_text.attend(queries, *self.vision_to_text.keys_and_values(t), mask)
        y = y.reshape(-1, x.shape[1], *x.shape[3:])  # (N*T, p, S, A)
        return conv_norm_relu(y, self.vision_up, self.vision_up_norm, self.derived)  # (N*T, p, S, C)


def for_each_sentence(videos: Tensor, count: int) -> Tensor:
    """Repeat tensors of V videos for their sentences: (V, ...) -> (count, ...), without copying for V = 1."""
    repeats = count // videos.shape[0]
    return videos.unsqueeze(1).expand(-1, repeats, *videos.shape[1:]).flatten(0, 1)


class HierarchicalSelectiveAttention(nn.Module):
    """HSA: temporal self-attention within patches, whose size in the image halves from adapter to adapter.

    Each patch, over all frames of the window, is one sequence of W*S tokens.

    Args:
        width: Channels A.
        heads: Attention heads.
        side: Side of a patch; must divide the grid.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.spatial_embedding = nn.Parameter(torch.empty(side * side, width).normal_(std=0.02))
        self.norm = nn.LayerNorm(width)
        self.attention = MultiheadAttention(width, heads)
        self.linear = nn.Linear(width, width)
        self.derived = Derived()

    def forward(self, window: Tensor, frames: int) -> Tensor:
        """Attend.

        Args:
            window: (V, P, W, S, A).
            frames: T, number of the window's last frames that are queries; the earlier ones are only keys and values.

        Returns:
            Change of the last T frames, to be added (V, P, T, S, A).
        """
        tokens = self.norm(window + self._positions(window)).flatten(0, 1)  # (V*P, W, S, A)
        queries = tokens[:, -frames:].flatten(1, 2)  # (V*P, T*S, A)
        attended = linear(self.attention(queries, tokens.flatten(1, 2)), self.linear)  # (V*P, T*S, A)
        return attended.reshape(*window.shape[:2], frames, *window.shape[3:])

    def _positions(self, window: Tensor) -> Tensor:
        """Compute the embedding of a token's position in its patch and of its time in the window, (W, S, A)."""
        length = window.shape[2]

        def compute() -> Tensor:
            time = time_embedding(length, window.shape[-1]).to(window)
            return self.spatial_embedding + time.unsqueeze(1)

        return self.derived.get(("positions", length, window.dtype), [self.spatial_embedding], compute)


def into_patches(image: Tensor, side: int) -> Tensor:
    """Reorder image tokens into square patches: (n, height, width, A) -> (n, P, side * side, A)."""
    batch, height, width, channels = image.shape
    cut = image.reshape(batch, height // side, side, width // side, side, channels)
    return cut.transpose(2, 3).reshape(batch, -1, side * side, channels)


def out_of_patches(patches: Tensor, side: int, height: int, width: int) -> Tensor:
    """Reorder patches back into rows and columns: (n, P, side * side, C) -> (n, height, width, C)."""
    batch, channels = patches.shape[0], patches.shape[-1]
    cut = patches.reshape(batch, height // side, width // side, side, side, channels)
    return cut.transpose(2, 3).reshape(batch, height, width, channels)


def windows_before(x: Tensor, past: Tensor | None, reach: int) -> list[Tensor]:
    """Collect the window of each frame online: up to ``reach - 1`` earlier frames, then itself.

    Args:
        x: The frames (V, P, T, ...).
        past: Earlier frames (V, P, W, ...), W < ``reach``, or None.
        reach: Length of the longest window.

    Returns:
        T windows (V, P, W, ...), W from 1 to ``reach``.
    """
    known = x if past is None else torch.cat([past, x], dim=2)  # (N, P, W + T, ...)
    if x.shape[2] == 1:  # no size is read, so that W stays open in an exported graph
        return [known]
    ends = range(known.shape[2] - x.shape[2] + 1, known.shape[2] + 1)
    return [known[:, :, max(0, end - reach) : end] for end in ends]


def conv_norm_relu(
    x: Tensor, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d, derived: Derived
) -> Tensor:
    """Apply a 1x1 convolution, batch norm and ReLU, channels last.

    With fixed statistics the norm is folded into the convolution, which becomes a single linear layer.

    Args:
        x: (n, H, B, in).
        convolution: Without bias.
        norm: The batch norm; in training mode its statistics are the batch's.
        derived: Cache for the folded weights.

    Returns:
        (n, H, B, out).
    """
    weight = convolution.weight  # (out, in, 1, 1)
    if isinstance(convolution, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    if norm.training:
        mapped = F.conv2d(x.permute(0, 3, 1, 2), weight)  # (n, out, H, B)
        return torch.relu(norm(mapped)).permute(0, 2, 3, 1)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None

    def fold() -> tuple[Tensor, Tensor]:
        scale = norm.weight / torch.sqrt(variance + norm.eps)  # (out,), in the norm's own precision
        folded, bias = weight[:, :, 0, 0] * scale.unsqueeze(1), norm.bias - mean * scale
        return column_major(folded.to(x.dtype)), bias.to(x.dtype)

    weights = [convolution.weight, norm.weight, norm.bias, mean, variance]
    return product(x, *derived.get(("folded", id(convolution), x.dtype), weights, fold), "relu")


def patches_at_once(window: Tensor) -> int:
    """Choose how many of the P patches of (V, P, W, S, A) to process at once: all, or on a CPU ``CPU_CHUNK`` bytes."""
    patches = window.shape[1]
    if not should_split(window):
        return patches
    return max(1, CPU_CHUNK * patches // (window.element_size() * window.numel()))


def time_embedding(frames: int, width: int) -> Tensor:
    """Compute the sine embedding of frames 1 to W, normalised to a full turn at the last one (temperature 10000).

    Args:
        frames: W.
        width: Channels, even.

    Returns:
        float32 (W, width), sines at even and cosines at odd channels.
    """
    turns = torch.arange(1, frames + 1, dtype=torch.float32)
    turns = turns / (turns[-1] + 1e-6) * 2 * math.pi
    channel = torch.arange(width, dtype=torch.float32)
    angles = turns.unsqueeze(1) / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)  # (W, width)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)
