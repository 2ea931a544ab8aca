"""RefSAM: parameter counts, computations of its parts, gradients, losses and every option."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.checkpoints.weights import count_parameters
from refervos.errors import ConfigError
from refervos.metrics.ref_davis import merge_objects
from refervos.placement import place_for_sam
from refervos.refsam.adapters import Adapter, BlockAdapter
from refervos.refsam.config import REFSAM_PRESETS, RefSamConfig
from refervos.refsam.dense_attention import DenseAttention, HierarchicalDenseAttention, attention_over_words
from refervos.refsam.language import CrossModalMlp, SentenceVectors
from refervos.refsam.model import FrameFeatures, RefSam
from refervos.refsam.tracking import TrackTokenInteraction
from refervos.sam import image_encoder
from refervos.sam.image_encoder import VitBlock
from refervos.sam.mask_decoder import OWN_TOKENS, Decoded
from refervos.sam.model import Sam
from refervos.segmentation import Segmentation
from refervos.training.stages.refsam import RefSamSettings, RefSamStage
from refsam_models import CAPTION, SENTENCES, SHORT_CAPTION, TINY, padded, placed, tiny_model, tokenizer
from scenes import scene
from transformers_sam import transformers_own

FOURIER_TABLE = 2 * 128
"""Size of SAM's table of Fourier features, which is a buffer in Meta's code."""


@pytest.fixture(scope="module")
def model() -> RefSam:
    """Make a model in double precision, where the order of summation does not matter; do not modify it."""
    return tiny_model().double()


@pytest.fixture
def no_grad() -> Any:
    with torch.no_grad():
        yield


def same(one: Tensor, other: Tensor) -> bool:
    """Compare results in double precision up to rounding."""
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def record_decoder(model: RefSam, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Decoded]]:
    """Record the prompts and the output of each call of the mask decoder."""
    calls: list[tuple[Tensor, Decoded]] = []
    decode: Callable[..., Decoded] = model.sam.decode

    def recorded(image: Tensor, prompts: Tensor, keep: Tensor | None = None, **others: Any) -> Decoded:
        decoded = decode(image, prompts, keep, **others)
        calls.append((prompts, decoded))
        return decoded

    monkeypatch.setattr(model.sam, "decode", recorded)
    return calls


def of_one_frame(model: RefSam, captions: list[list[int]]) -> tuple[FrameFeatures, SentenceVectors]:
    return model.encode_frames(placed(model, 1)), model.read_sentences(padded(captions))


# Sizes.


def on_meta(config: RefSamConfig) -> RefSam:
    """Make a model without weights and with only one layer in the text encoder."""
    with torch.device("meta"):
        return RefSam(replace(config, text=replace(config.text, layers=1)))


@pytest.mark.parametrize(
    ("name", "sam", "adapters", "first_generation", "published"),
    [
        ("vit-b", 93_735_472, 3_550_464, 8_396_260, 9.9e6),
        ("vit-l", 312_342_832, 12_613_632, 17_459_428, 19.1e6),
        ("vit-h", 641_090_608, 26_265_600, 31_111_396, 33.0e6),
    ],
)
def test_presets_have_as_many_parameters_as_published(
    name: str, sam: int, adapters: int, first_generation: int, published: float
) -> None:
    model = on_meta(REFSAM_PRESETS[name])
    counts = {part: count_parameters(module) for part, module in model.trained_parts().items()}
    assert count_parameters(model.sam) == sam + FOURIER_TABLE
    assert counts["adapters"] == adapters
    assert counts["mask decoder"] == 4_058_340
    assert counts["cross-modal MLP"] == 656_128
    assert isinstance(model.dense, HierarchicalDenseAttention)
    one = count_parameters(model.dense.last)
    assert one == count_parameters(model.dense.between) == 131_328
    assert counts["mask decoder"] + counts["cross-modal MLP"] + one + adapters == first_generation
    assert abs(sum(counts.values()) - published) < 0.1e6  # the layout of the rest is a reconstruction
    assert model.describe()["trained"] == sum(counts.values())
    assert model.describe()["total"] == count_parameters(model)


def test_the_first_version_has_as_many_parameters_as_published() -> None:
    config = replace(REFSAM_PRESETS["vit-h"], dense="attention", adapters=False, tracking="none")
    model = on_meta(config)
    assert set(model.trained_parts()) == {"mask decoder", "cross-modal MLP", "dense attention"}
    assert model.describe()["trained"] == 4_845_796


@pytest.mark.parametrize(("width", "count"), [(512, 197_120), (768, 393_856), (1024, 656_128)])
def test_the_cross_modal_mlp_has_half_the_text_encoders_width_inside(width: int, count: int) -> None:
    assert count_parameters(CrossModalMlp(width, 256)) == count


@pytest.mark.parametrize(("layers", "shapes"), [(0, [(32, 24)]), (2, [(12, 24), (12, 12), (32, 12)])])
def test_the_cross_modal_mlp_has_the_configured_hidden_layers(layers: int, shapes: list[tuple[int, int]]) -> None:
    mlp = CrossModalMlp(24, 32, layers)
    assert [tuple(weight.shape) for weight in mlp.parameters() if weight.ndim == 2] == shapes


def test_the_interaction_layer_has_as_many_parameters_as_released() -> None:
    assert count_parameters(TrackTokenInteraction(256)) == 1_315_840


# Image encoder.


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("vit-b", (2, 5, 8)), ("vit-l", (5, 11, 17)), ("vit-h", (7, 15, 23))],
)
def test_presets_use_three_intermediate_maps(name: str, blocks: tuple[int, ...]) -> None:
    model = on_meta(REFSAM_PRESETS[name])
    config = model.config.sam
    features = model.sam.encode(torch.empty(2, 3, 1024, 1024, device="meta"))
    assert config.vit_global_blocks[:-1] == blocks
    assert features.top.shape == (2, 256, 64, 64)
    assert [tokens.shape for tokens in features.between] == [(2, 64, 64, config.vit_width)] * 3


@pytest.mark.parametrize("name", ["vit-b", "vit-l", "vit-h"])
def test_the_second_half_of_the_blocks_has_adapters_of_a_quarter_of_the_width(name: str) -> None:
    model = on_meta(REFSAM_PRESETS[name])
    width, layers = model.config.sam.vit_width, model.config.sam.vit_layers
    assert [int(index) for index in model.adapters] == list(range(layers // 2, layers))
    for block in model.adapters.values():
        for adapter in block.children():
            assert isinstance(adapter, Adapter)
            assert (adapter.down.out_features, adapter.up.in_features) == (width // 4, width // 4)


def published_maps(model: RefSam, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Encode an image with transformers' SAM; return the outputs of the neck and of every block."""
    output = transformers_own(model.sam).vision_encoder(pixels, output_hidden_states=True)
    return output.last_hidden_state, list(output.hidden_states[1:])


@pytest.mark.usefixtures("no_grad")
def test_without_adapters_the_image_encoder_equals_transformers(model: RefSam) -> None:
    pixels = placed(model, 2)
    top, blocks = published_maps(model, pixels)
    features = model.sam.encode(pixels)
    assert top.std() > 0.1
    torch.testing.assert_close(features.top, top, atol=1e-9, rtol=1e-9)
    for tokens, index in zip(features.between, (1, 3, 5), strict=True):
        torch.testing.assert_close(tokens, blocks[index], atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("no_grad")
def test_zero_initialised_adapters_do_not_change_the_image_encoder() -> None:
    model = tiny_model(zero_adapters=True)
    pixels = placed(model, 1)
    top, _ = published_maps(model, pixels)
    adapted = F.normalize(top, dim=1)
    torch.testing.assert_close(model.encode_frames(pixels).visual, adapted, atol=1e-4, rtol=0)


def test_adapters_are_initialised_randomly_by_default() -> None:
    assert not any(bool(layer.any()) for layer in Adapter(8, 2, zero=True).up.parameters())
    assert all(bool(layer.all()) for layer in Adapter(8, 2).up.parameters())


@pytest.mark.usefixtures("no_grad")
def test_adapters_change_only_the_second_half_of_the_encoder(model: RefSam) -> None:
    pixels = placed(model, 1)
    plain = model.sam.encode(pixels)
    adapters: Any = {int(name): part for name, part in model.adapters.items()}
    adapted = model.sam.encode(pixels, adapters)
    assert [same(a, b) for a, b in zip(adapted.between, plain.between, strict=True)] == [True, True, False]
    assert not same(adapted.top, plain.top)


@pytest.mark.usefixtures("no_grad")
def test_the_space_adapter_has_a_residual_connection_and_the_feedforward_adapter_is_halved_without_one(
    model: RefSam,
) -> None:
    block = model.adapters["4"]
    assert isinstance(block, BlockAdapter)
    tokens = torch.randn(2, 8, 8, 32, dtype=torch.float64)

    def adapted_by(adapter: Adapter) -> Tensor:
        inside = F.gelu(F.linear(tokens, adapter.down.weight, adapter.down.bias))
        return F.linear(inside, adapter.up.weight, adapter.up.bias)

    assert same(block.after_attention(tokens), tokens + adapted_by(block.space))
    assert same(block.beside_feedforward(tokens), 0.5 * adapted_by(block.mlp))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("index", [6, 7], ids=["windows", "global"])
def test_the_space_adapter_gives_the_same_result_inside_the_windows(model: RefSam, index: int) -> None:
    """The released code applies it inside the windows, ours after merging them."""
    encoder: Any = model.sam.vision_encoder
    block, adapter = encoder.layers[index], model.adapters[str(index)]
    assert isinstance(adapter, BlockAdapter)
    tokens = torch.randn(1, 8, 8, 32, dtype=torch.float64)
    normed = block.layer_norm1(tokens)
    if index == 6:
        theirs = transformers_own(model.sam).vision_encoder.layers[index]
        windows, with_padding = theirs.window_partition(normed, 3)
        attended = adapter.after_attention(block.attn(windows))
        attended = theirs.window_unpartition(attended, 3, with_padding, (8, 8))
    else:
        attended = adapter.after_attention(block.attn(normed))
    middle = tokens + attended
    normed = block.layer_norm2(middle)
    expected = middle + block.mlp(normed) + adapter.beside_feedforward(normed)
    assert same(block(tokens, adapter), expected)
    assert not same(block(tokens), expected)


@pytest.mark.usefixtures("no_grad")
def test_attention_over_large_maps_is_computed_in_parts(model: RefSam, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = placed(model, 2)
    whole = model.encode_frames(pixels)
    calls = []
    attention = F.scaled_dot_product_attention

    def counted(query: Tensor, *others: Any, **options: Any) -> Tensor:
        calls.append(len(query))
        return attention(query, *others, **options)

    monkeypatch.setattr(image_encoder, "BIAS_BYTES", 1)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    pieces = model.encode_frames(pixels)
    assert set(calls) == {1}
    assert same(pieces.visual, whole.visual)


# Unit length.


@pytest.mark.usefixtures("no_grad")
def test_word_sentence_and_pixel_vectors_have_unit_length(model: RefSam) -> None:
    features, sentences = of_one_frame(model, [CAPTION, SHORT_CAPTION])
    assert features.merged is not None
    for vectors in (
        sentences.words,
        sentences.sentence,
        features.visual.movedim(1, -1),
        features.merged.movedim(1, -1),
    ):
        length = vectors.norm(dim=-1)
        torch.testing.assert_close(length, torch.ones_like(length))


@pytest.mark.usefixtures("no_grad")
def test_the_scale_of_the_image_features_does_not_matter(model: RefSam) -> None:
    pixels = placed(model, 1).unsqueeze(0)
    before = model(pixels, padded([CAPTION])).mask_logits
    encoder: Any = model.sam.vision_encoder
    handle = encoder.neck.register_forward_hook(lambda module, inputs, output: 3.7 * output)
    after = model(pixels, padded([CAPTION])).mask_logits
    handle.remove()
    assert same(after, before)


@pytest.mark.usefixtures("no_grad")
def test_the_sentence_vector_is_the_mean_of_its_words_before_the_mlp(model: RefSam) -> None:
    states = model.text(torch.tensor([SHORT_CAPTION]))
    of_mean = model.cross_modal(states.mean(1, keepdim=True), torch.ones(1, 1, dtype=torch.bool)).words[:, 0]
    assert same(model.read_sentences(padded([CAPTION, SHORT_CAPTION])).sentence[1:], of_mean)


# Order and number of words.


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dense", ["none", "hierarchical"])
def test_the_order_of_words_does_not_matter_but_their_number_does(dense: Any) -> None:
    """This holds after T5, which does depend on the order, and the Cross-Modal MLP."""
    model = tiny_model(dense=dense).double()
    features, sentences = of_one_frame(model, [CAPTION])
    masks = model.decode(features, sentences, None).mask_logits

    def with_words(order: list[int]) -> Tensor:
        words = SentenceVectors(sentences.words[:, order], sentences.sentence, sentences.keep[:, order])
        return model.decode(features, words, None).mask_logits

    assert same(with_words([3, 0, 5, 1, 4, 2]), masks)
    assert (with_words([0, 1, 2, 3, 4, 5, 5]) - masks).abs().max() > 1e-3


# Dense Attention.


@pytest.fixture
def attention() -> tuple[DenseAttention, Tensor, Tensor]:
    """Make the module at its published width, pixels (1, 256, 4, 4) and words (1, 9, 256)."""
    torch.manual_seed(0)
    visual, rows = torch.randn(1, 256, 4, 4, dtype=torch.float64), torch.randn(1, 9, 256, dtype=torch.float64)
    return DenseAttention(256).double(), F.normalize(visual, dim=1), F.normalize(rows, dim=-1)


def keep_all(rows: Tensor) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool)


def test_dense_attention_is_a_convolution_over_pixels_and_attended_words(
    attention: tuple[DenseAttention, Tensor, Tensor],
) -> None:
    dense, visual, rows = attention
    pixels = visual.flatten(2).transpose(1, 2)
    weights = (pixels @ rows.transpose(1, 2) / 16).softmax(-1)
    language = (weights @ rows).transpose(1, 2).reshape(visual.shape)
    assert same(dense(visual, rows, keep_all(rows)), dense.conv(torch.cat([visual, language], dim=1)))


def test_a_single_word_or_equal_words_get_the_full_weight(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    dense, visual, rows = attention
    one = rows[:, :1]
    pixels = visual.flatten(2).transpose(1, 2)
    assert bool((attention_over_words(pixels, one, keep_all(one)) == 1).all())
    expected = dense.conv(torch.cat([visual, one[0, 0, :, None, None].expand_as(visual[0])[None]], dim=1))
    assert same(dense(visual, one, keep_all(one)), expected)
    equal = one.expand(-1, 5, -1)
    assert same(dense(visual, equal, keep_all(equal)), expected)


def test_the_ratio_of_attention_weights_is_bounded(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    _, visual, rows = attention
    pixels = visual.flatten(2).transpose(1, 2)
    rows = torch.cat([rows, pixels[:, :1], -pixels[:, :1]], dim=1)  # the extreme cases
    weights = attention_over_words(pixels, rows, keep_all(rows))
    ratio = weights.amax(-1) / weights.amin(-1)
    assert math.isclose(float(ratio.max()), math.exp(1 / 8), rel_tol=1e-9)
    assert bool((ratio <= math.exp(1 / 8) + 1e-9).all())


def test_dense_attention_ignores_word_order_and_padding(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    dense, visual, rows = attention
    alone = dense(visual, rows, keep_all(rows))
    assert same(dense(visual, rows.flip(1), keep_all(rows)), alone)
    longer = torch.cat([rows, rows[:, :2]], dim=1)
    keep = torch.arange(11).unsqueeze(0) < 9
    assert same(dense(visual, longer, keep), alone)
    assert not same(dense(visual, longer, keep_all(longer)), alone)


def test_dense_attention_can_use_the_sentence_as_one_more_word(model: RefSam) -> None:
    sentences = model.read_sentences(padded([CAPTION, SHORT_CAPTION]))
    rows, keep = sentences.rows(with_sentence=True)
    assert torch.equal(rows[:, :-1], sentences.words)
    assert torch.equal(rows[:, -1], sentences.sentence)
    assert keep.sum(1).tolist() == [7, 3]
    assert sentences.rows(with_sentence=False)[0] is sentences.words


@pytest.mark.parametrize("fusion", ["weighted", "sum", "concatenated"])
def test_the_dense_embeddings_of_both_levels_are_merged_as_configured(
    fusion: Any, attention: tuple[DenseAttention, Tensor, Tensor]
) -> None:
    _, visual, rows = attention
    dense = HierarchicalDenseAttention(256, fusion).double()
    merged, keep = visual.flip(2), keep_all(rows)
    last, between = dense.last(visual, rows, keep), dense.between(merged, rows, keep)
    if dense.join is not None:
        expected = dense.join(torch.cat([last, between], dim=1))
    else:
        expected = last + between if fusion == "sum" else 0.5 * last + 0.5 * between
    assert same(dense(visual, merged, rows, keep), expected)


# The decoder and the track token.


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("multimask", [False, True])
def test_the_decoder_without_a_track_token_equals_transformers(model: RefSam, multimask: bool) -> None:
    sam = model.sam
    image = model.encode_frames(placed(model, 1)).visual
    prompts = torch.randn(1, 3, 32, dtype=torch.float64)
    theirs = transformers_own(sam)
    positions = theirs.get_image_wide_positional_embeddings()
    masks, ious = theirs.mask_decoder(image, positions, prompts[None], sam.no_mask(), multimask)
    decoded = sam.decode(image + sam.no_mask(), prompts, multimask=multimask)
    assert decoded.mask_logits.shape == (1, 3 if multimask else 1, 32, 32)
    torch.testing.assert_close(decoded.mask_logits, masks[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(decoded.ious, ious[0], atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("tracking", ["mlp", "interaction"])
def test_the_track_token_is_one_more_token_from_the_second_frame_on(
    tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tracking=tracking).double()
    calls = record_decoder(model, monkeypatch)
    masks = model(placed(model, 3).unsqueeze(0), padded([CAPTION])).mask_logits
    words = len(CAPTION)
    assert masks.shape == (1, 3, 32, 32)
    assert [decoded.mask_logits.shape for _, decoded in calls] == [(1, 1, 32, 32)] * 3
    assert [OWN_TOKENS + prompts.shape[1] for prompts, _ in calls] == [5 + words, 6 + words, 6 + words]
    assert model.tracking is not None
    used = None
    for (_, before), (prompts, _) in pairwise(calls):
        following = model.tracking(before.tokens[:, 0], used)
        assert same(prompts[:, 0], following)
        used = following


@pytest.mark.usefixtures("no_grad")
def test_no_frame_depends_on_later_frames(model: RefSam) -> None:
    pixels, ids = placed(model, 4).unsqueeze(0), padded([CAPTION])
    changed = pixels.clone()
    changed[:, 2] = placed(model, 1, seed=3)
    before, after = model(pixels, ids).mask_logits[0], model(changed, ids).mask_logits[0]
    assert [same(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]


@pytest.mark.usefixtures("no_grad")
def test_a_restarted_track_gives_the_masks_of_a_first_frame(model: RefSam) -> None:
    pixels, place = placed(model, 1), model.placement((48, 64))
    track = model.begin_tokens(CAPTION)
    first, second = (next(model.segment_clip(pixels, [track], [place])).mask_logits for _ in range(2))
    model.restart(track)
    again = next(model.segment_clip(pixels, [track], [place])).mask_logits
    assert torch.equal(again, first)
    assert (second - first).abs().max() > 1e-3


@pytest.mark.usefixtures("no_grad")
def test_a_sentence_gives_the_same_masks_alone_and_with_a_longer_one(model: RefSam) -> None:
    pixels = placed(model, 3).unsqueeze(0)
    joint = model(pixels, padded([CAPTION, SHORT_CAPTION])).mask_logits
    for row, caption in enumerate([CAPTION, SHORT_CAPTION]):
        assert same(model(pixels, padded([caption])).mask_logits[0], joint[row])
    assert (joint[0] - joint[1]).abs().max() > 1e-2


@pytest.mark.usefixtures("no_grad")
def test_adjacent_sentences_belong_to_the_same_video(model: RefSam) -> None:
    videos = torch.stack([placed(model, 2), placed(model, 2, seed=2)])
    captions = [CAPTION, SHORT_CAPTION, SHORT_CAPTION, CAPTION]
    joint = model(videos, padded(captions)).mask_logits
    separate = [
        model(video[None], padded(captions[2 * at : 2 * at + 2])).mask_logits for at, video in enumerate(videos)
    ]
    assert same(joint, torch.cat(separate))


@pytest.mark.usefixtures("no_grad")
def test_a_new_track_gives_the_same_masks_alone_and_with_a_running_track() -> None:
    for options in ({}, {"tracking_token": False}, {"tracking": "interaction"}):
        model = tiny_model(**options).double()
        pixels, place = placed(model, 3), model.placement((48, 64))
        old, new, alone = (model.begin_tokens(ids) for ids in (CAPTION, SHORT_CAPTION, SHORT_CAPTION))
        for _ in model.segment_clip(pixels[:1], [old], [place]):
            pass
        mixed = [prediction.mask_logits[1:] for prediction in model.segment_clip(pixels[1:], [old, new], [place] * 2)]
        single = [prediction.mask_logits for prediction in model.segment_clip(pixels[1:], [alone], [place] * 2)]
        assert same(torch.cat(mixed), torch.cat(single))


@pytest.mark.usefixtures("no_grad")
def test_the_interaction_layer_adds_the_previous_track_token() -> None:
    layer = TrackTokenInteraction(32)
    mask, token = torch.randn(2, 32), torch.randn(2, 32)
    assert torch.equal(layer(mask, token), layer(mask + token, None))
    assert not torch.allclose(layer(mask, token), layer(mask, None))


# Gradients.


def trained(model: RefSam, frames: int) -> dict[str, nn.Module]:
    """Run a backward pass from masks of a clip; return the trained parts with their gradients."""
    model.train()
    output = model(placed(model, frames).unsqueeze(0), padded([CAPTION, SHORT_CAPTION]))
    output.mask_logits.square().mean().backward()
    return model.trained_parts()


def has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def test_gradients_reach_all_trained_parts_and_no_frozen_one() -> None:
    model = tiny_model()
    parts = trained(model, 2)
    for part in model.frozen_parts():
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert all(parameter.grad is None for parameter in part.parameters())
    decoder = parts.pop("mask decoder")
    assert set(parts) == {"adapters", "cross-modal MLP", "laterals", "dense attention", "tracking"}
    for name, part in parts.items():
        assert [own for own, parameter in part.named_parameters() if not has_gradient(parameter)] == [], name
    unused = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert unused == {
        name
        for name, _ in decoder.named_parameters()
        if name.startswith(("iou_prediction_head.", "output_hypernetworks_mlps."))
        if not name.startswith("output_hypernetworks_mlps.0.")
    }
    assert has_gradient(decoder.get_parameter("output_hypernetworks_mlps.0.proj_in.weight"))


def test_the_tracking_module_needs_two_frames_for_gradients() -> None:
    parts = trained(tiny_model(), 1)
    assert [name for name, part in parts.items() if not any(map(has_gradient, part.parameters()))] == ["tracking"]


def test_gradients_start_at_the_first_adapter(model: RefSam) -> None:
    adapters: Any = {int(name): part for name, part in model.adapters.items()}
    features = model.sam.encode(placed(model, 1), adapters)
    assert [tokens.requires_grad for tokens in features.between] == [False, False, True]
    assert not model.sam.encode(placed(model, 1)).top.requires_grad


def test_gradient_checkpointing_recomputes_adapted_blocks_and_keeps_the_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = []

    run = VitBlock.forward

    def counted(block: VitBlock, *others: Any) -> Tensor:
        blocks.append(block)
        return run(block, *others)

    monkeypatch.setattr(VitBlock, "forward", counted)
    kept, again = tiny_model().double(), tiny_model().double()
    again.gradient_checkpointing = True
    parts = trained(kept, 2)
    once = len(blocks)
    parts_again = trained(again, 2)
    assert (once, len(blocks) - once) == (8, 8 + 4)
    for one, other in zip(parts.values(), parts_again.values(), strict=True):
        for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
            if parameter.grad is None or twin.grad is None:
                assert parameter.grad is twin.grad
            else:
                assert same(twin.grad, parameter.grad)


@pytest.mark.parametrize("options", [{}, {"tracking_token": False}, {"tracking": "interaction"}, {"tracking": "none"}])
def test_gradients_flow_from_the_last_frame_to_the_first_through_the_track_token(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**options).train()
    calls = record_decoder(model, monkeypatch)
    masks = model(placed(model, 3).unsqueeze(0), padded([CAPTION])).mask_logits
    (gradient,) = torch.autograd.grad(masks[0, -1].square().mean(), calls[0][1].tokens, allow_unused=True)
    reached = gradient is not None and float(gradient.abs().max()) > 1e-8
    assert reached == (model.config.tracking != "none")


def test_training_mode_leaves_frozen_parts_in_evaluation_mode() -> None:
    model = tiny_model().train()
    assert not any(module.training for part in model.frozen_parts() for module in part.modules())
    assert all(part.training for part in model.trained_parts().values())
    assert not model.eval().sam.mask_decoder.training


# Losses, thresholds.


@pytest.fixture(scope="module")
def stage() -> RefSamStage:
    return RefSamStage(RefSamSettings(published_losses=True), tiny_model())


def thirty_of_a_hundred() -> Tensor:
    return torch.arange(100).reshape(1, 10, 10) < 30


def test_the_published_losses_of_zero_logits_match_the_formulas(stage: RefSamStage) -> None:
    focal, dice = stage.published_losses([torch.zeros(1, 10, 10)], [thirty_of_a_hundred()])
    assert float(dice) == pytest.approx(1 - (2 * 15 + 1) / (50 + 30 + 1))  # 0.6173
    assert float(focal) == pytest.approx(0.10397, abs=5e-6)


def test_the_published_losses_of_a_perfect_mask_are_zero(stage: RefSamStage) -> None:
    mask = thirty_of_a_hundred()
    focal, dice = stage.published_losses([torch.where(mask, 30.0, -30.0)], [mask])
    assert float(focal) < 1e-6
    assert float(dice) < 1e-6


def test_the_published_losses_are_means_over_frames_of_any_size(stage: RefSamStage) -> None:
    torch.manual_seed(0)
    ground_truth = [torch.rand(2, 9, 7) < 0.3, torch.zeros(1, 5, 8, dtype=torch.bool)]  # the object may be absent
    logits = [torch.randn(mask.shape) for mask in ground_truth]
    joint = stage.published_losses(logits, ground_truth)
    frames = [(rows[at : at + 1], mask[at : at + 1]) for rows, mask in zip(logits, ground_truth, strict=True)
              for at in range(len(mask))]  # fmt: skip
    separate = [stage.published_losses([row], [mask]) for row, mask in frames]
    for loss, parts in zip(joint, zip(*separate, strict=True), strict=True):
        assert float(loss) == pytest.approx(float(torch.stack(parts).mean()))


def step_with_levels(model: RefSam, levels: list[float], monkeypatch: pytest.MonkeyPatch) -> Segmentation:
    """Segment a frame with a decoder that returns one constant logit for each sentence."""
    flat = torch.tensor(levels)[:, None, None, None].expand(-1, 1, 32, 32)
    decoded = Decoded(flat, torch.zeros(len(levels), 1), torch.zeros(len(levels), 1, 32))
    monkeypatch.setattr(model.sam, "decode", lambda *_, **__: decoded)
    return model.open(list(SENTENCES[: len(levels)]), keep_logits=True).step(scene(1, 48, 64)[0])


@pytest.mark.parametrize(("threshold", "seen"), [(0.0, [True, True]), (0.01, [False, True]), (0.1, [False, False])])
def test_pixels_above_the_mask_threshold_are_on_the_object(
    threshold: float, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = step_with_levels(tiny_model(mask_threshold=threshold), [0.005, 0.05], monkeypatch).masks
    assert [bool(mask.all()) for mask in masks] == [bool(mask.any()) for mask in masks] == seen
    assert RefSamConfig().mask_threshold == 0.01


@pytest.mark.parametrize(
    ("levels", "merged"), [([0.05, 0.2], [False, True]), ([0.3, 0.2], [True, False]), ([0.05, 0.09], [False, False])]
)
def test_the_published_merging_of_objects_acts_as_a_threshold_of_a_tenth(
    levels: list[float], merged: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = step_with_levels(tiny_model(mask_threshold=0.1), levels, monkeypatch).logits
    assert logits is not None
    objects = merge_objects(1 / (1 + np.exp(-logits)))
    assert [bool(mask.all()) for mask in objects] == [bool(mask.any()) for mask in objects] == merged


# Options.


def masks_of(**options: Any) -> Tensor:
    model = tiny_model(**options)
    with torch.no_grad():
        masks: Tensor = model(placed(model, 2).unsqueeze(0), padded([CAPTION, SHORT_CAPTION])).mask_logits
    assert masks.shape == (2, 2, 32, 32)
    assert bool(masks.isfinite().all())
    return masks


@pytest.fixture(scope="module")
def default_masks() -> Tensor:
    return masks_of()


@pytest.mark.parametrize(
    "options",
    [
        {"adapters": False},
        {"adapter_ratio": 0.5},
        {"zero_adapters": True},
        {"mlp_layers": 0},
        {"mlp_layers": 2},
        {"sparse": False},
        {"dense": "none"},
        {"dense": "sentence"},
        {"dense": "attention"},
        {"dense_sentence": True},
        {"lateral_norm": False},
        {"fusion": "sum"},
        {"fusion": "concatenated"},
    ],
    ids=str,
)
def test_each_option_changes_the_masks(options: dict[str, Any], default_masks: Tensor) -> None:
    assert (masks_of(**options) - default_masks).abs().amax(dim=(0, 2, 3)).min() > 1e-4


@pytest.mark.parametrize(
    "options",
    [{"tracking": "none"}, {"tracking": "interaction"}, {"tracking_layers": 1}, {"tracking_token": False}],
    ids=str,
)
def test_each_tracking_option_changes_the_masks_after_the_first_frame(
    options: dict[str, Any], default_masks: Tensor
) -> None:
    masks = masks_of(**options)
    torch.testing.assert_close(masks[:, 0], default_masks[:, 0])
    assert (masks[:, 1] - default_masks[:, 1]).abs().max() > 1e-3


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("sparse", [True, False])
def test_without_sparse_prompts_the_word_tokens_are_zero(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(sparse=sparse)
    calls = record_decoder(model, monkeypatch)
    model(placed(model, 1).unsqueeze(0), padded([CAPTION]))
    (prompts, _), = calls  # fmt: skip
    assert prompts.shape[1] == len(CAPTION)
    assert bool(prompts.any()) == sparse


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dense", ["none", "sentence"])
def test_dense_embeddings_without_attention_are_those_configured(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dense=dense).double()
    features, sentences = of_one_frame(model, [CAPTION])
    images: list[Tensor] = []
    decode = model.sam.decode

    def recorded(image: Tensor, *others: Any, **options: Any) -> Decoded:
        images.append(image)
        return decode(image, *others, **options)

    monkeypatch.setattr(model.sam, "decode", recorded)
    model.decode(features, sentences, None)
    added = model.sam.no_mask() if dense == "none" else features.visual + sentences.sentence[:, :, None, None]
    assert same(images[0], features.visual + added)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"adapter_ratio": 0.0}, "adapter_ratio is 0.0; it must be above 0 and at most 1"),
        ({"mlp_layers": -1}, "mlp_layers is -1; it must be 0 or more"),
        ({"tracking_layers": 0}, "tracking_layers is 0; it must be at least 1"),
        ({"first_short_side": 0}, "first_short_side is 0; it must be at least 1, or null"),
        (
            {"sam": replace(TINY.sam, vit_global_blocks=(7,))},
            r"needs a global-attention block before the last; vit_global_blocks is \(7,\)",
        ),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(TINY, **options)


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens and the text encoder 20"):
        RefSam(replace(TINY, text=replace(TINY.text, vocabulary=20)), tokenizer())


# Frames.


@pytest.mark.parametrize("size", [(480, 854), (33, 57), (57, 33), (601, 1000), (9, 1500), (1024, 1024), (427, 640)])
def test_frames_are_placed_as_transformers_places_them(size: tuple[int, int]) -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    placement = place_for_sam(size, 1024)
    published = SamImageProcessorPil(do_normalize=False, do_pad=False, do_rescale=False)
    image = np.zeros((*size, 3), np.uint8)
    assert tuple(published(image)["reshaped_input_sizes"][0]) == placement.resized
    assert placement.resized == tuple(int(side * (1024 / max(size)) + 0.5) for side in size)
    assert placement.first is None


def test_placed_pixels_equal_those_of_transformers() -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    frame = scene(1, 41, 90)[0]
    published = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    expected = torch.as_tensor(np.asarray(published(frame)["pixel_values"][0]))
    pixels = place_for_sam((41, 90), 64).place(torch.from_numpy(frame).permute(2, 0, 1))
    gray_level = 1 / 57.12
    assert (pixels - expected).abs().max() < 1.1 * gray_level
    assert (pixels - expected).abs().mean() < 0.1 * gray_level
    assert not pixels[:, 29:].any()  # the padding is zero after normalisation


def test_pixels_are_normalised_as_in_sam() -> None:
    pixels = place_for_sam((8, 8), 8).place(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(pixels[:, 0, 0], (200 - mean) / deviation)


def test_frames_can_be_resized_first_as_in_the_released_script() -> None:
    placement = place_for_sam((480, 854), 1024, 360)
    assert (placement.first, placement.resized) == ((360, 640), (576, 1024))
    tall = place_for_sam((854, 480), 1024, 360)
    assert (tall.first, tall.resized) == ((640, 360), (1024, 576))
    frame = torch.from_numpy(scene(1, 480, 854)[0]).permute(2, 0, 1)
    resized_first, direct = placement.place(frame), place_for_sam((480, 854), 1024).place(frame)
    assert resized_first.shape == direct.shape
    assert not torch.equal(resized_first, direct)
    assert tiny_model(first_short_side=30).placement((48, 64)).first == (30, 40)


@pytest.mark.parametrize("short", [39, 175, 427, 480, 720, 1080])
def test_a_frame_resized_first_is_placed_like_any_other_of_that_size(short: int) -> None:
    placement = place_for_sam((short, short + 121), 1024, 360)
    shrunk = (360, 360 * (short + 121) // short)
    assert placement.first == shrunk
    assert placement.resized == place_for_sam(shrunk, 1024).resized


def test_sams_fourier_table_is_shared_and_drawn_with_unit_deviation() -> None:
    torch.manual_seed(0)
    sam = Sam(replace(TINY.sam, hidden=256))
    table = sam.sam.shared_image_embedding.positional_embedding
    assert table is sam.sam.prompt_encoder.shared_embedding.positional_embedding
    assert float(table.detach().std()) == pytest.approx(1, abs=0.2)
    assert not table.requires_grad
