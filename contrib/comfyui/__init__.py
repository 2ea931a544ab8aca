"""Nodes for ComfyUI: load a model of refervos, and segment what sentences describe in a batch of frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from comfy_api.latest import ComfyExtension, io

import refervos
from refervos.errors import PromptError

Model = io.Custom("REFERVOS_MODEL")
"""Type of the link between the two nodes."""


class LoadRefervos(io.ComfyNode):
    """Node that loads a model; ComfyUI keeps it until its inputs change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="LoadRefervos",
            display_name="Load refervos model",
            category="refervos",
            description="Load a model that segments what a sentence describes.",
            inputs=[
                io.String.Input(
                    "model",
                    default="miniature",
                    tooltip="Name, such as samwise-mevis; a folder; or a hub id. The miniature knows drawings.",
                ),
                io.String.Input("device", default="", tooltip="cpu or cuda; empty for a GPU if there is one."),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, device: str) -> io.NodeOutput:
        """Load the model."""
        return io.NodeOutput(refervos.load(model, device=device or None))


class SegmentSentences(io.ComfyNode):
    """Node that segments a batch of frames, as a video, by the sentences of a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="SegmentSentences",
            display_name="Segment by sentences",
            category="refervos",
            description="Segment what each sentence describes, in all frames of a video.",
            inputs=[
                Model.Input("model"),
                io.Image.Input("frames", tooltip="The frames of a video, in order."),
                io.String.Input(
                    "sentences", multiline=True, default="the red circle", tooltip="One sentence per line."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="For each sentence a batch with a mask per frame.",
                ),
                io.String.Output(
                    display_name="presence",
                    is_output_list=True,
                    tooltip="For each sentence JSON with the probability per frame that the object is visible.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, frames: torch.Tensor, sentences: str) -> io.NodeOutput:
        """Segment the frames.

        Args:
            model: A loaded model.
            frames: float (B, H, W, C), 0 to 1, of which the first three channels are RGB.
            sentences: One per line; empty lines are ignored.

        Returns:
            For each sentence a mask float32 (B, H, W), 0 or 1; and for each sentence the JSON object
            ``{"sentence": ..., "presence": [...]}``.

        Raises:
            PromptError: There is no sentence, or the model does not accept one.
        """
        texts = [line.strip() for line in sentences.splitlines() if line.strip()]
        if not texts:
            raise PromptError("there is no sentence; write one per line.")
        session = model.open(texts)
        masks = torch.zeros(len(texts), *frames.shape[:3])
        presence: list[list[float]] = [[] for _ in texts]
        for k, segmentation in enumerate(session.stream(_images(frames))):
            masks[:, k] = torch.from_numpy(segmentation.masks)
            for values, value in zip(presence, segmentation.presence, strict=True):
                values.append(round(float(value), 4))
        reports = [
            json.dumps({"sentence": text, "presence": values}, ensure_ascii=False)
            for text, values in zip(texts, presence, strict=True)
        ]
        return io.NodeOutput(list(masks), reports)


def _images(frames: torch.Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames as uint8 RGB (H, W, 3), one at a time."""
    for frame in frames:
        yield (frame[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


class RefervosExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes."""
        return [LoadRefervos, SegmentSentences]


async def comfy_entrypoint() -> RefervosExtension:
    """Return the extension; ComfyUI calls this when it loads the folder."""
    return RefervosExtension()
