"""The ComfyUI nodes of contrib/comfyui over a stub of its API, which accepts the parameters of the real one only."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refervos
from refervos.errors import PromptError
from refervos.pipeline import segment_frames

ROOT = Path(__file__).parents[1]
VIDEO = ROOT / "examples" / "data" / "shapes.mp4"


class Input:
    def __init__(self, id: str, *, default: Any = None, multiline: bool = False, tooltip: str | None = None) -> None:
        self.id, self.default, self.multiline = id, default, multiline


class Output:
    def __init__(self, *, display_name: str, is_output_list: bool = False, tooltip: str | None = None) -> None:
        self.display_name, self.is_output_list = display_name, is_output_list


def io_type(name: str) -> Any:
    return types.SimpleNamespace(
        io_type=name,
        Input=type("Input", (Input,), {"io_type": name}),
        Output=type("Output", (Output,), {"io_type": name}),
    )


class Schema:
    def __init__(
        self,
        *,
        node_id: str,
        display_name: str,
        category: str,
        description: str,
        inputs: list[Input],
        outputs: list[Output],
    ) -> None:
        self.node_id, self.inputs, self.outputs = node_id, inputs, outputs


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The nodes by their ids, loaded as ComfyUI loads a folder of custom nodes."""
    io = types.SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {}),
        Custom=io_type,
        Image=io_type("IMAGE"),
        Mask=io_type("MASK"),
        NodeOutput=NodeOutput,
        Schema=Schema,
        String=io_type("STRING"),
    )
    latest = types.ModuleType("comfy_api.latest")
    vars(latest).update(io=io, ComfyExtension=type("ComfyExtension", (), {}))
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    spec = importlib.util.spec_from_file_location("custom_nodes_refervos", ROOT / "contrib" / "comfyui" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def test_the_schemas_fit_the_functions(nodes: dict[str, Any]) -> None:
    assert list(nodes) == ["LoadRefervos", "SegmentSentences"]
    for node in nodes.values():
        schema = node.define_schema()
        wanted = list(node.execute.__annotations__)
        assert [each.id for each in schema.inputs] == [name for name in wanted if name != "return"]
    masks, presence = nodes["SegmentSentences"].define_schema().outputs
    assert masks.is_output_list
    assert presence.is_output_list


def test_masks_are_those_of_a_session(nodes: dict[str, Any]) -> None:
    with refervos.open_source(VIDEO, start=64, stop=76) as source:
        video = list(source)
    (model,) = nodes["LoadRefervos"].execute(model="miniature", device="cpu").args
    frames = torch.from_numpy(np.stack([frame.image for frame in video])).float() / 255
    sentences = "the red circle\n\n  the blue star \n"
    masks, reports = nodes["SegmentSentences"].execute(model=model, frames=frames, sentences=sentences).args

    session = refervos.load("miniature", device="cpu").open(["the red circle", "the blue star"])
    expected = [segmentation for _, segmentation in segment_frames(video, session)]
    assert len(masks) == len(reports) == 2
    for k, (mask, report) in enumerate(zip(masks, reports, strict=True)):
        assert mask.dtype == torch.float32
        assert np.array_equal(mask.numpy(), np.stack([result.masks[k] for result in expected]))
        parsed = json.loads(report)
        assert parsed["sentence"] == ["the red circle", "the blue star"][k]
        assert parsed["presence"] == pytest.approx([float(result.presence[k]) for result in expected], abs=1e-4)
    assert masks[1].any()


def test_one_image_with_transparency_is_segmented(nodes: dict[str, Any]) -> None:
    model = refervos.load("miniature", device="cpu")
    frames = torch.full((1, 37, 53, 4), 2.0)  # brighter than white
    masks, _ = nodes["SegmentSentences"].execute(model=model, frames=frames, sentences="the red circle").args
    assert masks[0].shape == (1, 37, 53)


def test_no_sentence_is_one_sentence(nodes: dict[str, Any]) -> None:
    model = refervos.load("miniature", device="cpu")
    with pytest.raises(PromptError, match="write one per line"):
        nodes["SegmentSentences"].execute(model=model, frames=torch.zeros(1, 8, 8, 3), sentences=" \n")
