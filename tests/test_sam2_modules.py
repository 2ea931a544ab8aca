"""Our SAM2 computes the same results and gradients as transformers' with the same weights, in every precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2VideoModel

import refervos.ops.attention
import refervos.sam2.hiera
from refervos.bench.plain_sam2 import hf_config
from refervos.ops.attention import attend
from refervos.ops.linear import Activation, linear, product
from refervos.sam2.memory import CONDITIONING_SLOT, MemoryReading
from refervos.sam2.tracker import Sam2Tracker
from scenes import MICRO_SAM2
from test_sam2_segmenter import randomise_

# Full and partial windows (14 in 24), windows larger than the image (14 in 12), pooling in each, global attention.
CONFIG = replace(
    MICRO_SAM2,
    image_size=192,
    hidden=128,
    memory_layers=2,
    hiera_blocks=(1, 2, 3, 2),
    hiera_windows=(8, 14, 14, 7),
    hiera_global_blocks=(4,),
    pointer_time_encoding=True,
    occlusion_embedding=True,
)


def tracker_of(dtype: torch.dtype) -> Sam2Tracker:
    tracker = Sam2Tracker(CONFIG)
    randomise_(tracker.sam, 0, 0.0)
    return tracker.to(dtype).eval()


@pytest.fixture(scope="module")
def tracker() -> Sam2Tracker:
    return tracker_of(torch.float32)


@pytest.fixture(scope="module")
def exact() -> Sam2Tracker:
    return tracker_of(torch.float64)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split even these small images into parts, like large ones."""
    monkeypatch.setattr(refervos.sam2.hiera, "TOKENS_AT_ONCE", 300)
    monkeypatch.setattr(refervos.ops.attention, "SHORT", 150)
    monkeypatch.setattr(refervos.ops.attention, "SCORES_AT_ONCE", 64 * 200 * 4)


def pixels(dtype: torch.dtype, count: int = 1) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count, 3, 192, 192).to(dtype)


def reading(dtype: torch.dtype, tracks: int = 2) -> MemoryReading:
    torch.manual_seed(1)
    grid = CONFIG.grid
    return MemoryReading(
        slots=(CONDITIONING_SLOT, 2, 0),
        maps=[torch.randn(tracks, 64, grid, grid).to(dtype) for _ in range(3)],
        ages=(7, 1, 2),
        pointers=[torch.randn(tracks, CONFIG.hidden).to(dtype) for _ in range(3)],
    )


def top_of(dtype: torch.dtype, tracks: int = 2) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(tracks, CONFIG.hidden, CONFIG.grid, CONFIG.grid).to(dtype)


def transformers_own(tracker: Sam2Tracker) -> Any:
    """Make transformers' SAM2 with the weights of ours."""
    model = Sam2VideoModel(hf_config(CONFIG)).to(tracker.dtype).eval()
    model.load_state_dict(tracker.sam.state_dict())
    return model


def encoded_by_transformers(sam: Any, images: Tensor) -> list[Tensor]:
    return list(sam.vision_encoder.backbone(images).intermediate_hidden_states)


def conditioned_by_transformers(sam: Any, tracker: Sam2Tracker, top: Tensor, memory: MemoryReading) -> Tensor:
    count = len(top)
    sine = tracker.sine_memory.flatten(2).permute(2, 0, 1)  # (g*g, 1, 64)
    keys = [features.flatten(2).permute(2, 0, 1) for features in memory.maps]  # (g*g, N, 64)
    positions = [sine + sam.memory_temporal_positional_encoding[slot] for slot in memory.slots]
    sam.config.max_object_pointers_in_encoder = CONFIG.pointer_limit
    pointers, places = sam._process_object_pointers(
        list(memory.ages), memory.pointers, CONFIG.pointer_limit, count, CONFIG.hidden, top.device
    )
    conditioned = sam.memory_attention(
        top.flatten(2).permute(2, 0, 1),
        torch.cat([*keys, pointers]),
        tracker.sine_top.flatten(2).permute(2, 0, 1),
        torch.cat([position.expand(-1, count, -1) for position in positions] + [places]),
        len(pointers),
    )
    result: Tensor = conditioned.reshape(count, -1, CONFIG.hidden).transpose(1, 2).reshape(top.shape)
    return result


def test_hiera_equals_transformers(tracker: Sam2Tracker, small_parts: None) -> None:
    with torch.inference_mode():
        expected = encoded_by_transformers(transformers_own(tracker), pixels(torch.float32))
        for ours, theirs in zip(tracker.encode(pixels(torch.float32)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_hieras_gradients_equal_those_of_transformers(exact: Sam2Tracker) -> None:
    sam = transformers_own(exact)

    def gradients(model: Any, stages: list[Tensor]) -> dict[str, Tensor]:
        weights = dict(model.vision_encoder.backbone.named_parameters())
        torch.manual_seed(3)
        loss = sum(((stage * torch.randn(stage.shape).to(stage)).sum() for stage in stages), torch.zeros(()))
        found = torch.autograd.grad(loss, list(weights.values()))
        return dict(zip(weights, found, strict=True))

    expected = gradients(sam, encoded_by_transformers(sam, pixels(torch.float64)))
    for name, ours in gradients(exact.sam, exact.encode(pixels(torch.float64))).items():
        torch.testing.assert_close(ours, expected[name], rtol=1e-6, atol=1e-6 * float(expected[name].abs().max()))


def test_the_feature_pyramid_equals_transformers(tracker: Sam2Tracker) -> None:
    with torch.inference_mode():
        stages = tracker.encode(pixels(torch.float32))
        sam = transformers_own(tracker)
        fine, middle, top = sam.vision_encoder.neck(stages)[0][::-1][:3]
        features = tracker.pyramid(stages)
        decoder = sam.mask_decoder
        torch.testing.assert_close(features.fine, decoder.conv_s0(fine), rtol=0, atol=2e-5)
        torch.testing.assert_close(features.middle, decoder.conv_s1(middle), rtol=0, atol=2e-5)
        torch.testing.assert_close(features.top, top, rtol=0, atol=2e-5)


def test_memory_attention_equals_transformers(tracker: Sam2Tracker, small_parts: None) -> None:
    with torch.inference_mode():
        sam = transformers_own(tracker)
        expected = conditioned_by_transformers(sam, tracker, top_of(torch.float32), reading(torch.float32))
        ours = tracker.condition(top_of(torch.float32), reading(torch.float32))
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_memory_without_pointers_is_supported(tracker: Sam2Tracker) -> None:
    memory, top = replace(reading(torch.float32), pointers=[], ages=()), top_of(torch.float32)
    with torch.inference_mode():
        tokens = memory.as_tensors(CONFIG.hidden)
        assert tokens.pointers.shape == (2, 0, CONFIG.hidden)
        maps = torch.stack([features.flatten(2).mT for features in memory.maps], dim=1)
        slots = tracker.sam.memory_temporal_positional_encoding[list(memory.slots), 0]
        none = top.new_zeros(2, 0, 64)
        expected = tracker.attend_to_memory(top, maps, slots + tracker.sine_memory.flatten(2).mT, none, none[0])
        assert torch.equal(tracker.condition(top, memory), expected)


def test_memory_attentions_gradients_equal_those_of_transformers(exact: Sam2Tracker) -> None:
    def gradient(condition: Callable[[Tensor, MemoryReading], Tensor]) -> list[Tensor]:
        top, memory = top_of(torch.float64), reading(torch.float64)
        leaves = [top, *memory.maps, *memory.pointers]
        for leaf in leaves:
            leaf.requires_grad_(True)
        output = condition(top, memory)
        torch.manual_seed(3)
        return list(torch.autograd.grad((output * torch.randn(output.shape).to(output)).sum(), leaves))

    sam = transformers_own(exact)
    expected = gradient(lambda top, memory: conditioned_by_transformers(sam, exact, top, memory))
    for ours, theirs in zip(gradient(exact.condition), expected, strict=True):
        # transformers rotates queries and keys in float32, whatever their type.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_attention_weights_and_activations_are_dropped_in_training() -> None:
    tracker = tracker_of(torch.float32)
    still = tracker.condition(top_of(torch.float32), reading(torch.float32))
    for part in ("attention", "rest"):
        tracker.train()
        for module in tracker.sam.memory_attention.modules():
            module.training = isinstance(module, torch.nn.Dropout) != (part == "attention")
        torch.manual_seed(0)
        dropped = tracker.condition(top_of(torch.float32), reading(torch.float32))
        assert (dropped - still).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keys", [20, 400])
def test_attention_equals_torchs(dtype: torch.dtype, keys: int, small_parts: None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, length, 3, 24).transpose(1, 2) for length in (70, keys, keys))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with torch.inference_mode():
        ours = attend(query.to(dtype), key.to(dtype), value.to(dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_linear_layers_equal_torchs(activation: Activation) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(2, 5, 48, dtype=torch.float64), torch.nn.Linear(48, 33).double()
    follow = {"none": torch.nn.Identity(), "gelu": torch.nn.GELU(), "relu": torch.nn.ReLU()}[activation]
    expected = follow(layer(x))
    torch.testing.assert_close(linear(x, layer, activation), expected)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x.float(), layer.float(), activation), expected.float(), rtol=0, atol=3e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x.float(), layer, activation).dtype == torch.bfloat16
    assert product(torch.zeros(0, 48), layer.weight).shape == (0, 33)


def test_frames_of_a_batch_do_not_affect_each_other(tracker: Sam2Tracker) -> None:
    images = pixels(torch.float32, 2)
    with torch.inference_mode():
        joint = tracker.encode(images)[-1]
        alone = torch.cat([tracker.encode(image)[-1] for image in images.split(1)])
    torch.testing.assert_close(joint, alone, rtol=0, atol=2e-5)


def test_inputs_are_not_modified(tracker: Sam2Tracker) -> None:
    with torch.inference_mode():
        stages = tracker.encode(pixels(torch.float32))
        copies = [stage.clone() for stage in stages]
        for number, stage in enumerate(stages[:-1], start=1):
            tracker.encode_stage(number, stage)
        top, memory = tracker.pyramid(stages).top, reading(torch.float32, 1)
        kept = [top.clone(), *(each.clone() for each in memory.maps)]
        tracker.condition(top, memory)
    assert all(map(torch.equal, stages, copies))
    assert all(map(torch.equal, [top, *memory.maps], kept))


# bfloat16


def tables(tracker: Sam2Tracker) -> list[Tensor]:
    backbone = tracker.sam.vision_encoder.backbone
    return [
        tracker.sine_top,
        tracker.sine_memory,
        tracker.rotary,
        tracker._image_positions(),
        tracker.sam.shared_image_embedding(torch.tensor([37 / 192, 37 / 192])),
        backbone.positions(48, 48),
    ]


def test_positions_stay_exact_in_bfloat16() -> None:
    plain, rounded = tracker_of(torch.float32), tracker_of(torch.float32).to(torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert rounded.sam.get_parameter("memory_attention.layers.0.linear1.weight").dtype == torch.bfloat16
    for ours, expected in zip(tables(rounded), tables(plain), strict=True):
        assert torch.equal(ours, expected)
    assert list(rounded.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda model: model.to("cpu", torch.float16)])
def test_every_conversion_keeps_positions_exact(convert: Callable[[nn.Module], nn.Module]) -> None:
    plain, model = tracker_of(torch.float32), tracker_of(torch.float32)
    convert(nn.ModuleList([model]))  # through a parent module
    assert model.dtype.itemsize == 2
    assert all(map(torch.equal, tables(model), tables(plain)))


def test_positions_survive_conversion_to_bfloat16_and_back() -> None:
    tracker = tracker_of(torch.float32)
    before = tables(tracker)
    back = tracker.to(torch.bfloat16).to(torch.float32)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    assert all(map(torch.equal, tables(back), before))


def test_bfloat16_agrees_with_float32_and_keeps_click_positions_accurate(tracker: Sam2Tracker) -> None:
    """With positions in bfloat16 clicks would be less accurate."""
    converted = copy.deepcopy(tracker).to(torch.bfloat16)
    all_rounded = copy.deepcopy(tracker)
    for tensor in [*all_rounded.parameters(), *all_rounded.buffers()]:
        tensor.data = tensor.data.to(torch.bfloat16)

    @torch.inference_mode()
    def outputs(tracker: Sam2Tracker) -> list[Tensor]:
        features = tracker.pyramid(tracker.encode(pixels(torch.float32, 2)))
        conditioned = tracker.condition(features.top, reading(torch.float32))
        clicks = tracker.embed_points(torch.tensor([[[40.0, 50.0]], [[10.0, 90.0]]]), torch.ones(2, 1).long())
        decoded = tracker.decode(conditioned, features, clicks)
        assert decoded.mask_logits.dtype == torch.float32
        assert decoded.mask_logits.isfinite().all()
        masks = torch.linspace(-9, 9, 2 * 192**2).reshape(2, 1, 192, 192)
        maps = tracker.remember(features.top, masks, torch.tensor([3.0, -3.0]))
        assert maps.dtype == tracker.dtype
        return [clicks, conditioned, maps]

    def errors(rounded: list[Tensor]) -> list[float]:
        pairs = zip(rounded, outputs(tracker), strict=True)
        return [
            float((ours.float() - exact_output).pow(2).mean().sqrt() / exact_output.std())
            for ours, exact_output in pairs
        ]

    ours, theirs = errors(outputs(converted)), errors(outputs(all_rounded))
    assert max(ours) < 0.03, ours
    assert ours[0] < 0.5 * theirs[0], (ours, theirs)


def test_patches_are_converted_to_the_type_of_the_weights(tracker: Sam2Tracker) -> None:
    backbone = copy.deepcopy(tracker).to(torch.bfloat16).sam.vision_encoder.backbone
    with torch.inference_mode():
        tokens = backbone.embed_patches(pixels(torch.float32))
        assert backbone.run_stage(1, backbone.run_stage(0, tokens)).dtype == torch.bfloat16


# Decoder, clicks and memory encoder, in float64.


def test_clicks_masks_and_positions_equal_those_of_transformers(exact: Sam2Tracker) -> None:
    sam = transformers_own(exact)
    torch.manual_seed(4)
    points, labels = torch.rand(2, 3, 2).double() * 192, torch.tensor([[1, 0, 2], [3, -1, 1]])
    mask = torch.rand(2, 1, 192, 192).double()
    with torch.no_grad():
        expected, _ = sam.prompt_encoder(points.unsqueeze(1), labels.unsqueeze(1), None, None)
        torch.testing.assert_close(exact.embed_points(points, labels), expected.squeeze(1), rtol=0, atol=1e-9)
        dense = sam.prompt_encoder.mask_embed(sam.mask_downsample(mask))
        torch.testing.assert_close(exact.embed_mask(mask), dense, rtol=0, atol=1e-9)
        places = sam.get_image_wide_positional_embeddings().flatten(2)[0].t()
        torch.testing.assert_close(exact._image_positions(), places, rtol=0, atol=1e-9)


@pytest.mark.parametrize("multimask", [False, True])
def test_the_mask_decoder_equals_transformers(exact: Sam2Tracker, multimask: bool) -> None:
    sam = transformers_own(exact)
    torch.manual_seed(5)
    prompts = torch.randn(2, 4, CONFIG.hidden).double()
    dense = torch.randn(2, CONFIG.hidden, CONFIG.grid, CONFIG.grid).double()
    with torch.no_grad():
        features = exact.pyramid(exact.encode(pixels(torch.float64, 2)))
        masks, ious, tokens, scores = sam.mask_decoder(
            image_embeddings=features.top,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings().repeat(2, 1, 1, 1),
            sparse_prompt_embeddings=prompts.unsqueeze(1),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[features.fine, features.middle],
        )
        decoded = exact.decode(features.top, features, prompts, dense=dense, multimask=multimask)
    assert decoded.mask_logits.std() > 0.01
    for ours, theirs in (
        (decoded.mask_logits, masks[:, 0]),
        (decoded.ious, ious[:, 0]),
        (decoded.tokens, tokens[:, 0]),
        (decoded.score, scores.flatten()),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_memory_encoder_equals_transformers(exact: Sam2Tracker) -> None:
    sam = transformers_own(exact)
    torch.manual_seed(6)
    logits, top = 5 * torch.randn(2, 1, 192, 192).double(), top_of(torch.float64)
    with torch.no_grad():
        expected, _ = sam.memory_encoder(top, torch.sigmoid(logits) * 20 - 10)
        expected[1] += sam.occlusion_spatial_embedding_parameter.reshape(-1, 1, 1)
        ours = exact.remember(top, logits, torch.tensor([1.0, -1.0]).double())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_names_and_shapes_equal_those_of_transformers(exact: Sam2Tracker) -> None:
    theirs = transformers_own(exact)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in exact.sam.state_dict().items()} == shapes
    parameters = {name for name, _ in theirs.named_parameters()}
    assert {name for name, _ in exact.sam.named_parameters()} == parameters


def test_initialisation_equals_that_of_transformers() -> None:
    """Compares means and standard deviations within the sampling error."""
    torch.manual_seed(7)
    ours, theirs = Sam2Tracker(CONFIG).sam.state_dict(), Sam2VideoModel(hf_config(CONFIG)).state_dict()
    for name, tensor in ours.items():
        if name.endswith("scale"):
            continue  # initialised to 1e-6 in Meta's code, but not in transformers
        other, noise = theirs[name], 6 / tensor.numel() ** 0.5
        spread = float(other.std()) if other.numel() > 1 else 1.0
        assert abs(float(tensor.mean() - other.mean())) <= noise * max(spread, 1e-9) * 2, name
        if other.numel() > 100:
            assert abs(float(tensor.std()) - spread) <= noise * max(spread, 1e-9), name
