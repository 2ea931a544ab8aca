"""CVAT's interactive segmentation by SAM2: clicks on an object and beside it, or a box around it, give its mask.

cvat-cli function create-native "refervos clicks" --function-module refervos.integrations.cvat.interaction
cvat-cli function run-agent ID --function-module refervos.integrations.cvat.interaction
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from refervos.files.images import ImageArray, rgb_from_pil
from refervos.integrations.cvat.models import DEFAULT_SAM2, load_for_shapes
from refervos.prompts import Prompt

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import (
        InteractionFunctionContext,
        InteractionFunctionSpec,
        InteractionPrompts,
        InteractionResultShape,
    )


def create(model: str = DEFAULT_SAM2, device: str | None = None) -> ClickSegmentation:
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
    return ClickSegmentation(load_for_shapes(model, device))


class ClickSegmentation:
    """Interaction function of CVAT.

    Args:
        model: A model that takes clicks and boxes.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def spec(self) -> InteractionFunctionSpec:
        """The prompts that the function takes: any clicks, and at most one box."""
        import cvat_sdk.auto_annotation as cvataa

        return cvataa.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def preprocess_image(self, context: InteractionFunctionContext, image: Image.Image) -> ImageArray:
        """Convert a frame to uint8 RGB (H, W, 3)."""
        return rgb_from_pil(image)

    def detect(
        self, context: InteractionFunctionContext, pp_image: ImageArray, prompts: InteractionPrompts
    ) -> list[InteractionResultShape]:
        """Segment the object that the prompts describe.

        Args:
            context: Not used.
            pp_image: The frame, uint8 (H, W, 3).
            prompts: Clicks and a box in pixels.

        Returns:
            Its mask with the confidence; empty without a click on the object or a box, or if nothing is found.
        """
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask
        from cvat_sdk.models import AttributeValRequest

        if not prompts.pos_points and prompts.bounding_box is None:
            return []
        points = [*prompts.pos_points, *prompts.neg_points]
        prompt = Prompt(
            points=points or None,
            labels=[1] * len(prompts.pos_points) + [0] * len(prompts.neg_points) if points else None,
            box=None if prompts.bounding_box is None else [side for corner in prompts.bounding_box for side in corner],
        )
        result = self._model.open([prompt]).step(pp_image)
        if not result.masks[0].any():
            return []
        confidence = AttributeValRequest(
            spec_id=cvataa.InteractionResultAttributes.CONFIDENCE, value=f"{result.presence[0]:.4f}"
        )
        return [
            cvataa.InteractionResultShape(type="mask", points=encode_mask(result.masks[0]), attributes=[confidence])
        ]
