"""transformers' own SAM2 video tracker, as shipped: the baseline that speed is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refervos.frames import as_rgb, stretch
from refervos.sam2.config import Sam2Config, hf_config


class PlainSam2:
    """Follows one object from a click on the first frame, frame by frame, with random weights.

    Nothing of this package computes anything here but the resizing of frames and masks, which transformers' processor
    needs torchvision for. Like transformers' streaming session, it keeps every frame and every mask that it has seen.

    Args:
        config: Shape of the tracker.
        dtype: Type of weights and frames.
        device: Where it runs.
    """

    def __init__(
        self, config: Sam2Config, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        from transformers import Sam2VideoModel

        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.model = Sam2VideoModel(hf_config(config)).to(self.device, dtype).eval()
        self._session: Any = None

    @property
    def image_size(self) -> int:
        """Side of its square image."""
        return self.config.image_size

    @torch.inference_mode()
    def step(self, frame: Any) -> np.ndarray:
        """Follow the object into the next frame; the first one is clicked at its centre.

        Args:
            frame: uint8 RGB (H, W, 3) or gray (H, W), array or tensor; all of one size.

        Returns:
            bool (H, W).
        """
        image = as_rgb(frame).to(self.device)
        height, width = image.shape[1:]
        placement = stretch((height, width), self.image_size)
        if self._session is None:
            self._session = self._begin(height, width)
        answer = self.model(self._session, frame=placement.place(image))
        return (placement.restore(answer.pred_masks[:, 0])[0] > 0).cpu().numpy()

    def _begin(self, height: int, width: int) -> Any:
        """A session whose first frame has a click in the middle."""
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        session = Sam2VideoInferenceSession(
            None,
            height,
            width,
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device=self.device,
            dtype=self.dtype,
        )
        middle = self.image_size / 2
        click = {
            "point_coords": torch.tensor([[[[middle, middle]]]], dtype=self.dtype),  # (1, 1, 1, 2)
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        session.add_point_inputs(session.obj_id_to_idx(1), 0, click)
        session.obj_with_new_inputs = [1]
        return session
