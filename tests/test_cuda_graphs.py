"""CUDA graphs: when stages are recorded and replayed, and on a GPU that results do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos import load
from refervos.ops import cuda_graphs
from refervos.ops.cuda_graphs import SHAPES, Recorded, outline_of, rebuilt
from refervos.sam2.tracker import FrameFeatures
from scenes import scene


def features(height: int) -> FrameFeatures:
    return FrameFeatures(torch.rand(1, 2, height, 3), torch.rand(1), torch.rand(2))


def test_an_outline_depends_on_shapes_and_plain_values_but_not_on_tensor_contents() -> None:
    tensors: list[Tensor] = []
    first = outline_of(((features(4), [None, 3]), {"past": torch.zeros(2)}), tensors)
    assert len(tensors) == 4
    assert first == outline_of(((features(4), [None, 3]), {"past": torch.ones(2)}), [])
    for other in (
        ((features(5), [None, 3]), {"past": torch.zeros(2)}),
        ((features(4), [None, 4]), {"past": torch.zeros(2)}),
        ((features(4), [None, 3]), {"past": torch.zeros(2).double()}),
        ((features(4), (None, 3)), {"past": torch.zeros(2)}),
        ((features(4), [None, 3]), {"window": torch.zeros(2)}),
    ):
        assert first != outline_of(other, [])
    assert {first}  # hashable


def test_a_value_can_be_rebuilt_with_other_tensors() -> None:
    value = (features(4), [torch.zeros(2), None], {"reach": 8})
    tensors: list[Tensor] = []
    outline = outline_of(value, tensors)
    changed = rebuilt(value, iter([tensor + 1 for tensor in tensors]))
    assert outline_of(changed, []) == outline
    assert torch.equal(changed[0].fine, value[0].fine + 1)
    assert torch.equal(changed[1][0], torch.ones(2))
    assert changed[2] == {"reach": 8}


@torch.inference_mode()
def test_the_second_call_with_the_same_shapes_is_recorded_and_later_ones_are_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Replay:
        def replay(self, tensors: Any) -> str:
            done.append(f"replayed {tuple(tensors[0].shape)}")
            return "replayed"

    def record(self: Recorded, given: Any, tensors: Any) -> Any:
        done.append(f"recorded {tuple(tensors[0].shape)}")
        return Replay()

    monkeypatch.setattr(cuda_graphs, "on_cuda", bool)
    monkeypatch.setattr(Recorded, "_record", record)
    function = Recorded(lambda x: done.append("ran") or "ran", None)  # type: ignore[func-returns-value]
    one, two = torch.zeros(1), torch.zeros(2)
    assert [function(one), function(two), function(one), function(one), function(two)] == ["ran"] * 2 + ["replayed"] * 3
    assert done == ["ran", "ran", "recorded (1,)", "replayed (1,)", "replayed (1,)", "recorded (2,)", "replayed (2,)"]
    with torch.inference_mode(False), torch.enable_grad():
        assert function(one) == "ran"
    for length in range(3, 2 * SHAPES):
        function(torch.zeros(length))
    assert function(torch.zeros(2 * SHAPES)) == function(torch.zeros(2 * SHAPES)) == "ran"
    assert len(function.recordings) == SHAPES


def test_on_a_cpu_nothing_is_recorded() -> None:
    doubled = Recorded(lambda x: 2 * x, None)
    for _ in range(3):
        with torch.inference_mode():
            assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
    assert not doubled.recordings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["miniature", "refsam-miniature"])
def test_recorded_stages_give_the_same_masks(name: str) -> None:
    def logits(compiled: bool) -> np.ndarray:
        session = load(name, device="cuda", compile=compiled).open(["the red circle", "the star"], keep_logits=True)
        return np.stack([part for frame in scene(24) if (part := session.step(frame).logits) is not None])

    before, after = logits(False), logits(True)
    visible = np.abs(before[before > -1000]).max()
    assert np.abs(after - before).max() < 1e-3 * visible
