"""CVAT's tracking of masks and boxes by SAM2: a shape drawn in one frame is followed through the next ones.

cvat-cli function create-native "refervos tracking" --function-module refervos.integrations.cvat.tracking
cvat-cli function run-agent ID --function-module refervos.integrations.cvat.tracking
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refervos.files.images import ImageArray, rgb_from_pil
from refervos.integrations.cvat.models import DEFAULT_SAM2, load_for_shapes
from refervos.integrations.run_lengths import Box
from refervos.prompts import Prompt

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import (
        TrackableShape,
        TrackingFunctionContext,
        TrackingFunctionShapeContext,
        TrackingFunctionSpec,
    )

    from refervos.session.session import Session


def create(model: str = DEFAULT_SAM2, device: str | None = None) -> ShapeTracking:
    """Create the function; CVAT's command line calls it with the parameters ``-p NAME=TYPE:VALUE``.

    Args:
        model: A SAM2 model, see ``refervos.load``.
        device: Device such as ``cpu`` or ``cuda``; default a GPU if available.

    Returns:
        The function.

    Raises:
        MissingDependencyError: CVAT's SDK is not installed.
        PromptError: The model accepts only sentences.
        CheckpointError: The model cannot be loaded.
    """
    return ShapeTracking(load_for_shapes(model, device))


class ShapeTracking:
    """Tracking function of CVAT; the state of a shape is a session.

    Args:
        model: A model that takes boxes and masks.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def spec(self) -> TrackingFunctionSpec:
        """The types of shapes that can be tracked."""
        import cvat_sdk.auto_annotation as cvataa

        return cvataa.TrackingFunctionSpec(supported_shape_types=["mask", "rectangle"])

    def preprocess_image(self, context: TrackingFunctionContext, image: Image.Image) -> ImageArray:
        """Convert a frame to uint8 RGB (H, W, 3)."""
        return rgb_from_pil(image)

    def init_tracking_state(
        self, context: TrackingFunctionShapeContext, pp_image: ImageArray, shape: TrackableShape
    ) -> Session:
        """Start to track a shape.

        Args:
            context: Not used.
            pp_image: The frame with the shape, uint8 (H, W, 3).
            shape: A mask or a rectangle.

        Returns:
            The state: a session that has segmented the frame.
        """
        from cvat_sdk.masks import decode_mask

        if shape.type == "mask":
            height, width = pp_image.shape[:2]
            prompt = Prompt(mask=decode_mask(shape.points, image_width=width, image_height=height))
        else:
            prompt = Prompt(box=shape.points)
        session: Session = self._model.open([prompt])
        session.step(pp_image)
        return session

    def track(
        self, context: TrackingFunctionShapeContext, pp_image: ImageArray, state: Session
    ) -> TrackableShape | None:
        """Find a shape in the next frame.

        Args:
            context: The type of the shape.
            pp_image: The frame, uint8 (H, W, 3).
            state: The state of the shape, which advances by a frame.

        Returns:
            The mask, or the rectangle around it; None if the object is not visible.
        """
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask

        mask = state.step(pp_image).masks[0]
        if not mask.any():
            return None
        if context.original_shape_type == "mask":
            return cvataa.TrackableShape(type="mask", points=encode_mask(mask))
        box = Box.around(mask)
        return cvataa.TrackableShape(
            type="rectangle", points=np.array([box.left, box.top, box.right, box.bottom], float)
        )
