"""Weights with NaN, infinity or a wrong data type are refused, with the names of the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from refervos import load
from refervos.errors import CheckpointError, RefervosError
from refervos.evaluation.inference import PromptedClip, predict_batch
from refervos.prompts import Prompt
from scenes import micro_model, scene

WEIGHT = "text_prompt.layers.0.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    micro_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, name: str, value: Any) -> None:
    state = load_file(folder / "model.safetensors")
    state[name] = value(state[name])
    save_file(state, folder / "model.safetensors")


def spoilt(value: float) -> Any:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [WEIGHT, "adapters.0.vision_up_norm.running_var", "tracker.sam.mask_downsample.bias"])
def test_weights_with_nan_or_infinity_are_refused_by_name(folder: Path, value: float, name: str) -> None:
    change(folder, name, spoilt(value))
    with pytest.raises(CheckpointError, match=rf"model.safetensors has NaN or infinity in {name}; its weights"):
        load(folder, device="cpu")


def test_a_weight_that_overflows_in_the_data_type_of_the_model_is_refused(folder: Path) -> None:
    change(folder, WEIGHT, lambda tensor: spoilt(1e300)(tensor.double()))
    with pytest.raises(CheckpointError, match=rf"has NaN or infinity in {WEIGHT}; "):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_of_a_non_float_type_are_refused_and_not_cast(folder: Path, dtype: torch.dtype) -> None:
    change(folder, WEIGHT, lambda tensor: tensor.to(dtype))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"1 of another type: {WEIGHT} is {name}, float32 expected\."):
        load(folder, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_float_types_load(folder: Path, dtype: torch.dtype) -> None:
    change(folder, WEIGHT, lambda tensor: tensor.to(dtype))
    model: Any = load(folder, device="cpu")
    assert model.state_dict()[WEIGHT].dtype == torch.float32


def test_counters_that_are_not_integers_are_refused(folder: Path) -> None:
    counter = "adapters.0.vision_up_norm.num_batches_tracked"
    change(folder, counter, lambda tensor: tensor.float())
    with pytest.raises(CheckpointError, match=rf"1 of another type: {counter} is float32, int64 expected"):
        load(folder, device="cpu")


def test_an_error_about_many_tensors_has_a_limited_length(folder: Path) -> None:
    state = {name: torch.full_like(value, 7).to(torch.int8) for name, value in micro_model().state_dict().items()}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d\d\d of another type: .* and \d+ more\.") as caught:
        load(folder, device="cpu")
    assert len(str(caught.value)) < 2100


def test_weights_too_large_for_float16_are_refused_only_in_float16(folder: Path) -> None:
    change(folder, WEIGHT, spoilt(1e6))
    load(folder, device="cpu")
    load(folder, device="cpu", dtype="bfloat16")
    with pytest.raises(CheckpointError, match=rf"in float16, has NaN or infinity in {WEIGHT}; .* load it in float32"):
        load(folder, device="cpu", dtype="float16")


def test_a_model_with_nan_or_infinity_is_not_saved(tmp_path: Path) -> None:
    model: Any = micro_model()
    model.text_prompt.layers[0].weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "fits")
    with pytest.raises(CheckpointError, match=rf"not written: {WEIGHT} would have NaN or infinity in float16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    model.text_prompt.layers[0].weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=rf"not written: {WEIGHT} would have NaN or infinity; "):
        model.save_pretrained(tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits"]


@pytest.fixture
def overflowing() -> Any:
    """A model whose weights are finite and whose answers are not, as happens in half precision."""
    model: Any = load("miniature", device="cpu")
    model.tracker.sam.mask_decoder.upscale_layer_norm.weight.data.fill_(1e38)
    return model


@pytest.mark.parametrize("keep_logits", [False, True])
def test_an_answer_that_is_no_number_is_no_empty_mask(overflowing: Any, keep_logits: bool) -> None:
    session = overflowing.open("the red circle", keep_logits=keep_logits)
    with pytest.raises(CheckpointError, match="output contains NaN"):
        session.step(scene(1)[0])


def test_a_batch_of_clips_refuses_nan_too(overflowing: Any) -> None:
    clips = [PromptedClip(np.stack(scene(2)), Prompt("the red circle")) for _ in range(2)]
    with pytest.raises(CheckpointError, match="output contains NaN"):
        predict_batch(overflowing, clips, clip_length=1)


def test_tensor_names_in_errors_are_escaped(folder: Path) -> None:
    change(folder, WEIGHT, lambda tensor: tensor)
    state = load_file(folder / "model.safetensors")
    state["\x1b]0;owned\x07\x1b[31m\u202egnp"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 unexpected") as caught:
        load(folder, device="cpu")
    assert str(caught.value).isprintable()
    assert "\\x1b]0;owned\\x07" in str(caught.value)


def test_an_error_message_is_one_line_of_limited_length() -> None:
    assert str(RefervosError("a\nb\x1b[0m\ud800")) == "a\\nb\\x1b[0m\\ud800"
    assert str(RefervosError("größer, 犬, 🐕")) == "größer, 犬, 🐕"
    long = str(RefervosError("<" + "x" * 10**6 + ">"))
    assert len(long) < 2100
    assert long.startswith("<")
    assert long.endswith(">")
