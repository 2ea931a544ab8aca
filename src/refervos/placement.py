"""Placement of frames of any size in the model's square, and of mask logits back in the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import FrameError
from refervos.ops.borders import FrameGuide, follow_frame

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

CUDA_SHRINKING = 32.0
"""Largest reduction factor of a resize on CUDA; its kernel fails from a factor of about 94."""

RESTORED_AT_ONCE = 256 * 2**20
"""Memory budget for mask logits at the frame's size in bytes, when only masks are requested."""


def as_rgb(frame: Any) -> Tensor:
    """Check a frame and convert it to an RGB tensor.

    Args:
        frame: uint8 array or tensor (H, W, 3), (H, W, 1) or (H, W).

    Returns:
        uint8 tensor (3, H, W), a view where possible.

    Raises:
        FrameError: When the frame has another type, shape or size.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8:
            raise FrameError(f"the frame has values of type {frame.dtype}; it must be uint8 from 0 to 255.")
        # NumPy calls a mirrored axis of length one contiguous, and torch takes no negative strides.
        usable = frame.flags.writeable and min(frame.strides, default=0) >= 0
        tensor = torch.from_numpy(np.ascontiguousarray(frame) if usable else frame.copy())
    elif isinstance(frame, Tensor):
        if frame.dtype != torch.uint8:
            raise FrameError(f"the frame has values of type {frame.dtype}; it must be uint8 from 0 to 255.")
        tensor = frame
    else:
        raise FrameError(f"the frame is a {type(frame).__name__}; it must be a uint8 array or tensor (H, W, 3).")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(-1)
    if tensor.ndim != 3 or tensor.shape[-1] not in (1, 3):
        raise FrameError(f"the frame has shape {tuple(frame.shape)}; it must be (H, W, 3) in RGB, or (H, W) in gray.")
    if 0 in tensor.shape:
        raise FrameError(f"the frame has shape {tuple(frame.shape)}; it has no pixels.")
    return tensor.permute(2, 0, 1).expand(3, -1, -1)  # (3, H, W)


@dataclass(frozen=True)
class Placement:
    """Placement of a frame in the model's square: resized, at the top left, padded with zeros on the right and below.

    Attributes:
        frame_size: Height and width of the frame.
        resized: Height and width inside the square.
        image_size: Side of the square.
        first: Height and width of an intermediate resize that loses detail, as in some published protocols; None for
            no such resize.
    """

    frame_size: tuple[int, int]
    resized: tuple[int, int]
    image_size: int
    first: tuple[int, int] | None = None

    def place(self, frame: Tensor, device: torch.device | None = None) -> Tensor:
        """Resize, normalise and pad a frame.

        The resize is bilinear with antialiasing, within one grey level of Pillow's, which the released code uses. It
        runs on the CPU, on bytes, and only the result is uploaded. CUDA devices resize in floats instead, which is much
        faster (H200: 0.4 ms for 854 x 480; 16 CPU cores: 8.2 ms).

        Args:
            frame: uint8 (3, H, W).
            device: Device of the result, default the frame's.

        Returns:
            float32 (3, S, S).
        """
        device = frame.device if device is None else device
        shrinking = max(
            before / after for before, after in zip(frame.shape[1:], self.first or self.resized, strict=True)
        )
        if device.type == "cuda" and shrinking <= CUDA_SHRINKING:
            frame = _upload(frame, device)
        for size in (self.first, self.resized):
            if size is not None and size != tuple(frame.shape[1:]):
                frame = _resize(frame, size)
        pixels = _upload(frame, device).float() / 255
        for channel, mean, std in zip(pixels, IMAGE_MEAN, IMAGE_STD, strict=True):
            channel.sub_(mean).div_(std)
        height, width = self.resized
        return F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height))

    def restore(self, mask_logits: Tensor, guide: FrameGuide | None = None) -> Tensor:
        """Resize low-resolution mask logits to the frame: upsample to the square, crop, resize.

        Args:
            mask_logits: (N, h, w) over the whole square.
            guide: The frame whose edges the borders follow; default bilinear resizing only.

        Returns:
            float32 (N, H, W).
        """
        logits = mask_logits.float().unsqueeze(0)  # (1, N, h, w)
        square = (self.image_size, self.image_size)
        logits = F.interpolate(logits, size=square, mode="bilinear", align_corners=False)
        logits = logits[..., : self.resized[0], : self.resized[1]]
        if guide is not None:
            frame = guide.frame.to(logits.device)
            resized = frame if self.resized == self.frame_size else _resize(frame, self.resized)
            logits = follow_frame(
                logits[0], mask_logits, resized, self.image_size // mask_logits.shape[1], guide.cells
            ).unsqueeze(0)
        if self.resized != self.frame_size:
            logits = F.interpolate(logits, size=self.frame_size, mode="bilinear", align_corners=False)
        return logits[0]

    def masks(self, mask_logits: Tensor, guide: FrameGuide | None = None) -> Tensor:
        """Resize low-resolution mask logits to the frame and threshold them, in batches of ``RESTORED_AT_ONCE`` bytes.

        Args:
            mask_logits: (N, h, w) over the whole square.
            guide: See ``restore``.

        Returns:
            bool (N, H, W).
        """
        pixels = self.image_size**2 + self.frame_size[0] * self.frame_size[1]
        batch = max(1, RESTORED_AT_ONCE // (4 * pixels))
        parts = [self.restore(logits, guide) > 0 for logits in mask_logits.split(batch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def download(tensors: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """Copy tensors to main memory, from a device in a single transfer with one synchronisation.

    Args:
        tensors: On one device, of types that NumPy supports.

    Returns:
        Arrays of the same shapes and types.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    packed = _packed(tensors).cpu()
    return [part.numpy() for part in _unpacked(packed, tensors)]


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the bytes of tensors, uint8 (B,), widest types first, so that all are aligned."""
    return torch.cat([tensors[index].contiguous().view(-1).view(torch.uint8) for index in _widest_first(tensors)])


def _unpacked(packed: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Undo ``_packed``: return views of the bytes with the types and shapes of ``likes``."""
    order = _widest_first(likes)
    parts = packed.split([likes[index].numel() * likes[index].element_size() for index in order])
    found = dict(zip(order, parts, strict=True))
    return [found[index].view(like.dtype).view(like.shape) for index, like in enumerate(likes)]


def _widest_first(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())


def _resize(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 frame (3, H, W), in floats on devices other than the CPU, which have no kernel for bytes."""
    if frame.device.type == "cpu":
        return F.interpolate(frame.unsqueeze(0), size=size, mode="bilinear", antialias=True)[0]
    resized = F.interpolate(frame.float().unsqueeze(0), size=size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def _upload(frame: Tensor, device: torch.device) -> Tensor:
    """Move a frame to a device; through pinned memory, so that the copy to a GPU does not wait for its queue."""
    if device.type == "cuda" and frame.device.type == "cpu":
        frame = frame.pin_memory()
    return frame.to(device, non_blocking=True)


def enlarge(mask_logits: Tensor, image_size: int) -> Tensor:
    """Upsample low-resolution mask logits to the model's square, bilinear, in float32 or wider.

    Args:
        mask_logits: (N, M, h, w).
        image_size: Side S of the square.

    Returns:
        (N, M, S, S).
    """
    exact = mask_logits.to(torch.promote_types(mask_logits.dtype, torch.float32))
    return F.interpolate(exact, size=(image_size, image_size), mode="bilinear", align_corners=False)


def letterbox(frame_size: tuple[int, int], image_size: int, short_side: int) -> Placement:
    """Place a frame at its aspect ratio: short side to ``short_side``, long side to at most ``image_size``.

    Args:
        frame_size: Height and width of the frame.
        image_size: Side of the square.
        short_side: Length of the short side, at most ``image_size``; shorter where the long side would not fit.

    Returns:
        The placement, sizes rounded down; 854 x 480 becomes 1024 x 575 in a square of 1024, as in the released
        evaluation.
    """
    short, long = sorted(frame_size)
    new_short, new_long = short_side, int(short_side * long / short)
    if new_long > image_size:
        new_short, new_long = max(1, int(image_size * new_short / new_long)), image_size
    resized = (new_short, new_long) if frame_size[0] <= frame_size[1] else (new_long, new_short)
    return Placement(frame_size, resized, image_size)


def stretch(frame_size: tuple[int, int], image_size: int) -> Placement:
    """Stretch a frame to fill the square, as SAM2 does."""
    return Placement(frame_size, (image_size, image_size), image_size)


def place_for_sam(frame_size: tuple[int, int], image_size: int, first_short_side: int | None = None) -> Placement:
    """Place a frame as SAM does: long side to the side of the square, sizes rounded half up.

    Args:
        frame_size: Height and width of the frame.
        image_size: Side of the square.
        first_short_side: Short side of the intermediate resize, see ``RefSamConfig``; default none.

    Returns:
        The placement; 854 x 480 becomes 1024 x 576 in a square of 1024.
    """
    first, shown = None, frame_size
    if first_short_side is not None:
        short = min(frame_size)
        shown = first = (frame_size[0] * first_short_side // short, frame_size[1] * first_short_side // short)
    scale = image_size / max(shown)
    height, width = (max(1, int(side * scale + 0.5)) for side in shown)
    return Placement(frame_size, (height, width), image_size, first)
