"""What is known of RefSAM: its parameter counts, what its parts compute, what gradients reach, and each option."""

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
"""Numbers in the table of SAM's positions, which Meta's code counts among the buffers."""


@pytest.fixture(scope="module")
def model() -> RefSam:
    """In double precision, in which other orders of summation cannot be told apart; not to be changed."""
    return tiny_model().double()


@pytest.fixture
def no_grad() -> Any:
    with torch.no_grad():
        yield


def same(one: Tensor, other: Tensor) -> bool:
    """Whether results in double precision differ in rounding only."""
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def watch_decoder(model: RefSam, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Decoded]]:
    """Collects, call by call, which prompts the mask decoder is given and what it says."""
    calls: list[tuple[Tensor, Decoded]] = []
    decode: Callable[..., Decoded] = model.sam.decode

    def watched(image: Tensor, prompts: Tensor, keep: Tensor | None = None, **others: Any) -> Decoded:
        decoded = decode(image, prompts, keep, **others)
        calls.append((prompts, decoded))
        return decoded

    monkeypatch.setattr(model.sam, "decode", watched)
    return calls


def of_one_frame(model: RefSam, captions: list[list[int]]) -> tuple[FrameFeatures, SentenceVectors]:
    return model.encode_frames(placed(model, 1)), model.read_sentences(padded(captions))


# How large it is.


def on_meta(config: RefSamConfig) -> RefSam:
    """A model without weights; one layer of the text encoder is as wide as all of them."""
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
    assert abs(sum(counts.values()) - published) < 0.1e6  # its layout is a reconstruction
    assert model.describe()["trained"] == sum(counts.values())
    assert model.describe()["total"] == count_parameters(model)


def test_the_first_generation_has_as_many_parameters_as_published() -> None:
    config = replace(REFSAM_PRESETS["vit-h"], dense="attention", adapters=False, tracking="none")
    model = on_meta(config)
    assert set(model.trained_parts()) == {"mask decoder", "cross-modal MLP", "dense attention"}
    assert model.describe()["trained"] == 4_845_796


@pytest.mark.parametrize(("width", "count"), [(512, 197_120), (768, 393_856), (1024, 656_128)])
def test_the_cross_modal_mlp_is_half_as_wide_inside_as_the_text_encoder(width: int, count: int) -> None:
    assert count_parameters(CrossModalMlp(width, 256)) == count


@pytest.mark.parametrize(("layers", "shapes"), [(0, [(32, 24)]), (2, [(12, 24), (12, 12), (32, 12)])])
def test_hidden_layers_of_the_cross_modal_mlp(layers: int, shapes: list[tuple[int, int]]) -> None:
    mlp = CrossModalMlp(24, 32, layers)
    assert [tuple(weight.shape) for weight in mlp.parameters() if weight.ndim == 2] == shapes


def test_the_interaction_layer_has_as_many_parameters_as_released() -> None:
    assert count_parameters(TrackTokenInteraction(256)) == 1_315_840


# Image encoder.


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("vit-b", (2, 5, 8)), ("vit-l", (5, 11, 17)), ("vit-h", (7, 15, 23))],
)
def test_presets_read_three_maps_between_their_blocks(name: str, blocks: tuple[int, ...]) -> None:
    model = on_meta(REFSAM_PRESETS[name])
    config = model.config.sam
    features = model.sam.encode(torch.empty(2, 3, 1024, 1024, device="meta"))
    assert config.vit_global_blocks[:-1] == blocks
    assert features.top.shape == (2, 256, 64, 64)
    assert [tokens.shape for tokens in features.between] == [(2, 64, 64, config.vit_width)] * 3


@pytest.mark.parametrize("name", ["vit-b", "vit-l", "vit-h"])
def test_the_last_half_of_the_blocks_has_adapters_a_quarter_as_wide(name: str) -> None:
    model = on_meta(REFSAM_PRESETS[name])
    width, layers = model.config.sam.vit_width, model.config.sam.vit_layers
    assert [int(index) for index in model.adapters] == list(range(layers // 2, layers))
    for block in model.adapters.values():
        for adapter in block.children():
            assert isinstance(adapter, Adapter)
            assert (adapter.down.out_features, adapter.up.in_features) == (width // 4, width // 4)


def published_maps(model: RefSam, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What transformers' SAM makes of an image: the neck's output, and every block's."""
    output = transformers_own(model.sam).vision_encoder(pixels, output_hidden_states=True)
    return output.last_hidden_state, list(output.hidden_states[1:])


@pytest.mark.usefixtures("no_grad")
def test_without_adapters_the_image_encoder_is_that_of_transformers(model: RefSam) -> None:
    pixels = placed(model, 2)
    top, blocks = published_maps(model, pixels)
    features = model.sam.encode(pixels)
    assert top.std() > 0.1
    torch.testing.assert_close(features.top, top, atol=1e-9, rtol=1e-9)
    for tokens, index in zip(features.between, (1, 3, 5), strict=True):
        torch.testing.assert_close(tokens, blocks[index], atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("no_grad")
def test_adapters_that_start_at_zero_leave_the_image_encoder_as_it_is() -> None:
    model = tiny_model(zero_adapters=True)
    pixels = placed(model, 1)
    top, _ = published_maps(model, pixels)
    adapted = F.normalize(top, dim=1)
    torch.testing.assert_close(model.encode_frames(pixels).visual, adapted, atol=1e-4, rtol=0)


def test_adapters_start_at_random_unless_asked_for_zero() -> None:
    assert not any(bool(layer.any()) for layer in Adapter(8, 2, zero=True).up.parameters())
    assert all(bool(layer.all()) for layer in Adapter(8, 2).up.parameters())


@pytest.mark.usefixtures("no_grad")
def test_adapters_change_what_comes_after_the_first_half_alone(model: RefSam) -> None:
    pixels = placed(model, 1)
    plain = model.sam.encode(pixels)
    adapters: Any = {int(name): part for name, part in model.adapters.items()}
    adapted = model.sam.encode(pixels, adapters)
    assert [same(a, b) for a, b in zip(adapted.between, plain.between, strict=True)] == [True, True, False]
    assert not same(adapted.top, plain.top)


@pytest.mark.usefixtures("no_grad")
def test_the_space_adapter_has_a_skip_and_half_of_the_feedforward_adapter_has_none(model: RefSam) -> None:
    block = model.adapters["4"]
    assert isinstance(block, BlockAdapter)
    tokens = torch.randn(2, 8, 8, 32, dtype=torch.float64)

    def through(adapter: Adapter) -> Tensor:
        inside = F.gelu(F.linear(tokens, adapter.down.weight, adapter.down.bias))
        return F.linear(inside, adapter.up.weight, adapter.up.bias)

    assert same(block.after_attention(tokens), tokens + through(block.space))
    assert same(block.beside_feedforward(tokens), 0.5 * through(block.mlp))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("index", [6, 7], ids=["windows", "global"])
def test_the_space_adapter_gives_the_same_inside_the_windows(model: RefSam, index: int) -> None:
    """As the released code has it, while here the windows are closed before."""
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
def test_large_maps_are_attended_to_in_pieces(model: RefSam, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_words_sentences_and_pixels_have_length_one(model: RefSam) -> None:
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
def test_how_long_the_image_features_are_does_not_matter(model: RefSam) -> None:
    pixels = placed(model, 1).unsqueeze(0)
    before = model(pixels, padded([CAPTION])).mask_logits
    encoder: Any = model.sam.vision_encoder
    handle = encoder.neck.register_forward_hook(lambda module, inputs, output: 3.7 * output)
    after = model(pixels, padded([CAPTION])).mask_logits
    handle.remove()
    assert same(after, before)


@pytest.mark.usefixtures("no_grad")
def test_the_sentence_is_the_mean_of_its_words_before_the_mlp(model: RefSam) -> None:
    states = model.text(torch.tensor([SHORT_CAPTION]))
    of_mean = model.cross_modal(states.mean(1, keepdim=True), torch.ones(1, 1, dtype=torch.bool)).words[:, 0]
    assert same(model.read_sentences(padded([CAPTION, SHORT_CAPTION])).sentence[1:], of_mean)


# Order and number of words.


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dense", ["none", "hierarchical"])
def test_the_order_of_words_does_not_matter_but_their_number_does(dense: Any) -> None:
    """Once Cross-Modal MLP and T5, which does know the order, have read them."""
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
    """The module at its published width, pixels (1, 256, 4, 4) and words (1, 9, 256)."""
    torch.manual_seed(0)
    visual, rows = torch.randn(1, 256, 4, 4, dtype=torch.float64), torch.randn(1, 9, 256, dtype=torch.float64)
    return DenseAttention(256).double(), F.normalize(visual, dim=1), F.normalize(rows, dim=-1)


def everything(rows: Tensor) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool)


def test_dense_attention_is_a_convolution_over_pixels_and_what_they_look_at(
    attention: tuple[DenseAttention, Tensor, Tensor],
) -> None:
    dense, visual, rows = attention
    pixels = visual.flatten(2).transpose(1, 2)
    weights = (pixels @ rows.transpose(1, 2) / 16).softmax(-1)
    language = (weights @ rows).transpose(1, 2).reshape(visual.shape)
    assert same(dense(visual, rows, everything(rows)), dense.conv(torch.cat([visual, language], dim=1)))


def test_one_word_or_equal_words_are_looked_at_wholly(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    dense, visual, rows = attention
    one = rows[:, :1]
    pixels = visual.flatten(2).transpose(1, 2)
    assert bool((attention_over_words(pixels, one, everything(one)) == 1).all())
    expected = dense.conv(torch.cat([visual, one[0, 0, :, None, None].expand_as(visual[0])[None]], dim=1))
    assert same(dense(visual, one, everything(one)), expected)
    equal = one.expand(-1, 5, -1)
    assert same(dense(visual, equal, everything(equal)), expected)


def test_no_word_is_looked_at_much_more_than_another(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    _, visual, rows = attention
    pixels = visual.flatten(2).transpose(1, 2)
    rows = torch.cat([rows, pixels[:, :1], -pixels[:, :1]], dim=1)  # the farthest that words can be apart
    weights = attention_over_words(pixels, rows, everything(rows))
    ratio = weights.amax(-1) / weights.amin(-1)
    assert math.isclose(float(ratio.max()), math.exp(1 / 8), rel_tol=1e-9)
    assert bool((ratio <= math.exp(1 / 8) + 1e-9).all())


def test_dense_attention_knows_no_order_and_no_padding(attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    dense, visual, rows = attention
    alone = dense(visual, rows, everything(rows))
    assert same(dense(visual, rows.flip(1), everything(rows)), alone)
    longer = torch.cat([rows, rows[:, :2]], dim=1)
    keep = torch.arange(11).unsqueeze(0) < 9
    assert same(dense(visual, longer, keep), alone)
    assert not same(dense(visual, longer, everything(longer)), alone)


def test_dense_attention_may_see_the_sentence_as_one_more_word(model: RefSam) -> None:
    sentences = model.read_sentences(padded([CAPTION, SHORT_CAPTION]))
    rows, keep = sentences.rows(with_sentence=True)
    assert torch.equal(rows[:, :-1], sentences.words)
    assert torch.equal(rows[:, -1], sentences.sentence)
    assert keep.sum(1).tolist() == [7, 3]
    assert sentences.rows(with_sentence=False)[0] is sentences.words


@pytest.mark.parametrize("fusion", ["weighted", "sum", "concatenated"])
def test_both_levels_become_one(fusion: Any, attention: tuple[DenseAttention, Tensor, Tensor]) -> None:
    _, visual, rows = attention
    dense = HierarchicalDenseAttention(256, fusion).double()
    merged, keep = visual.flip(2), everything(rows)
    last, between = dense.last(visual, rows, keep), dense.between(merged, rows, keep)
    if dense.join is not None:
        expected = dense.join(torch.cat([last, between], dim=1))
    else:
        expected = last + between if fusion == "sum" else 0.5 * last + 0.5 * between
    assert same(dense(visual, merged, rows, keep), expected)


# The decoder and the track token.


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("multimask", [False, True])
def test_the_decoder_without_a_track_token_is_that_of_transformers(model: RefSam, multimask: bool) -> None:
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
    calls = watch_decoder(model, monkeypatch)
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
def test_no_frame_looks_ahead(model: RefSam) -> None:
    pixels, ids = placed(model, 4).unsqueeze(0), padded([CAPTION])
    changed = pixels.clone()
    changed[:, 2] = placed(model, 1, seed=3)
    before, after = model(pixels, ids).mask_logits[0], model(changed, ids).mask_logits[0]
    assert [same(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]


@pytest.mark.usefixtures("no_grad")
def test_a_track_that_restarts_answers_as_on_its_first_frame(model: RefSam) -> None:
    pixels, place = placed(model, 1), model.placement((48, 64))
    track = model.begin_tokens(CAPTION)
    first, second = (next(model.segment_clip(pixels, [track], [place])).mask_logits for _ in range(2))
    model.restart(track)
    again = next(model.segment_clip(pixels, [track], [place])).mask_logits
    assert torch.equal(again, first)
    assert (second - first).abs().max() > 1e-3


@pytest.mark.usefixtures("no_grad")
def test_a_sentence_is_answered_alone_as_beside_a_longer_one(model: RefSam) -> None:
    pixels = placed(model, 3).unsqueeze(0)
    together = model(pixels, padded([CAPTION, SHORT_CAPTION])).mask_logits
    for row, caption in enumerate([CAPTION, SHORT_CAPTION]):
        assert same(model(pixels, padded([caption])).mask_logits[0], together[row])
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.usefixtures("no_grad")
def test_sentences_belong_to_the_video_beside_them(model: RefSam) -> None:
    videos = torch.stack([placed(model, 2), placed(model, 2, seed=2)])
    captions = [CAPTION, SHORT_CAPTION, SHORT_CAPTION, CAPTION]
    together = model(videos, padded(captions)).mask_logits
    apart = [model(video[None], padded(captions[2 * at : 2 * at + 2])).mask_logits for at, video in enumerate(videos)]
    assert same(together, torch.cat(apart))


@pytest.mark.usefixtures("no_grad")
def test_a_track_without_a_token_yet_is_answered_as_alone_beside_one_that_has_one() -> None:
    for options in ({}, {"tracking_token": False}, {"tracking": "interaction"}):
        model = tiny_model(**options).double()
        pixels, place = placed(model, 3), model.placement((48, 64))
        old, new, alone = (model.begin_tokens(ids) for ids in (CAPTION, SHORT_CAPTION, SHORT_CAPTION))
        for _ in model.segment_clip(pixels[:1], [old], [place]):
            pass
        mixed = [answer.mask_logits[1:] for answer in model.segment_clip(pixels[1:], [old, new], [place] * 2)]
        single = [answer.mask_logits for answer in model.segment_clip(pixels[1:], [alone], [place] * 2)]
        assert same(torch.cat(mixed), torch.cat(single))


@pytest.mark.usefixtures("no_grad")
def test_the_interaction_layer_keeps_the_token_that_was_used() -> None:
    layer = TrackTokenInteraction(32)
    mask, token = torch.randn(2, 32), torch.randn(2, 32)
    assert torch.equal(layer(mask, token), layer(mask + token, None))
    assert not torch.allclose(layer(mask, token), layer(mask, None))


# Gradients.


def trained(model: RefSam, frames: int) -> dict[str, nn.Module]:
    """Run backward from masks of a clip; the trained parts with their gradients."""
    model.train()
    output = model(placed(model, frames).unsqueeze(0), padded([CAPTION, SHORT_CAPTION]))
    output.mask_logits.square().mean().backward()
    return model.trained_parts()


def learns(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def test_gradients_reach_the_trained_parts_and_no_frozen_one() -> None:
    model = tiny_model()
    parts = trained(model, 2)
    for part in model.frozen_parts():
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert all(parameter.grad is None for parameter in part.parameters())
    decoder = parts.pop("mask decoder")
    assert set(parts) == {"adapters", "cross-modal MLP", "laterals", "dense attention", "tracking"}
    for name, part in parts.items():
        assert [own for own, parameter in part.named_parameters() if not learns(parameter)] == [], name
    unused = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert unused == {
        name
        for name, _ in decoder.named_parameters()
        if name.startswith(("iou_prediction_head.", "output_hypernetworks_mlps."))
        if not name.startswith("output_hypernetworks_mlps.0.")
    }
    assert learns(decoder.get_parameter("output_hypernetworks_mlps.0.proj_in.weight"))


def test_tracking_learns_from_the_second_frame_on() -> None:
    parts = trained(tiny_model(), 1)
    assert [name for name, part in parts.items() if not any(map(learns, part.parameters()))] == ["tracking"]


def test_gradients_begin_at_the_first_adapter(model: RefSam) -> None:
    adapters: Any = {int(name): part for name, part in model.adapters.items()}
    features = model.sam.encode(placed(model, 1), adapters)
    assert [tokens.requires_grad for tokens in features.between] == [False, False, True]
    assert not model.sam.encode(placed(model, 1)).top.requires_grad


def test_gradients_are_the_same_when_adapted_blocks_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_last_frame_teaches_the_first_through_the_track_token(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**options).train()
    calls = watch_decoder(model, monkeypatch)
    masks = model(placed(model, 3).unsqueeze(0), padded([CAPTION])).mask_logits
    (gradient,) = torch.autograd.grad(masks[0, -1].square().mean(), calls[0][1].tokens, allow_unused=True)
    reached = gradient is not None and float(gradient.abs().max()) > 1e-8
    assert reached == (model.config.tracking != "none")


def test_training_leaves_the_frozen_parts_in_evaluation_mode() -> None:
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


def test_the_published_loss_of_zero_logits(stage: RefSamStage) -> None:
    focal, dice = stage.published_losses([torch.zeros(1, 10, 10)], [thirty_of_a_hundred()])
    assert float(dice) == pytest.approx(1 - (2 * 15 + 1) / (50 + 30 + 1))  # 0.6173
    assert float(focal) == pytest.approx(0.10397, abs=5e-6)


def test_the_published_loss_of_a_perfect_mask_is_nothing(stage: RefSamStage) -> None:
    truth = thirty_of_a_hundred()
    focal, dice = stage.published_losses([torch.where(truth, 30.0, -30.0)], [truth])
    assert float(focal) < 1e-6
    assert float(dice) < 1e-6


def test_the_published_loss_is_the_mean_over_frames_of_any_size(stage: RefSamStage) -> None:
    torch.manual_seed(0)
    truths = [torch.rand(2, 9, 7) < 0.3, torch.zeros(1, 5, 8, dtype=torch.bool)]  # the object may be absent
    logits = [torch.randn(truth.shape) for truth in truths]
    together = stage.published_losses(logits, truths)
    frames = [(rows[at : at + 1], truth[at : at + 1]) for rows, truth in zip(logits, truths, strict=True)
              for at in range(len(truth))]  # fmt: skip
    apart = [stage.published_losses([row], [truth]) for row, truth in frames]
    for loss, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert float(loss) == pytest.approx(float(torch.stack(parts).mean()))


def answer_of(model: RefSam, levels: list[float], monkeypatch: pytest.MonkeyPatch) -> Segmentation:
    """A frame's answer where the decoder says one level everywhere for each sentence."""
    flat = torch.tensor(levels)[:, None, None, None].expand(-1, 1, 32, 32)
    decoded = Decoded(flat, torch.zeros(len(levels), 1), torch.zeros(len(levels), 1, 32))
    monkeypatch.setattr(model.sam, "decode", lambda *_, **__: decoded)
    return model.open(list(SENTENCES[: len(levels)]), keep_logits=True).step(scene(1, 48, 64)[0])


@pytest.mark.parametrize(("threshold", "seen"), [(0.0, [True, True]), (0.01, [False, True]), (0.1, [False, False])])
def test_a_pixel_is_on_the_object_above_the_threshold(
    threshold: float, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = answer_of(tiny_model(mask_threshold=threshold), [0.005, 0.05], monkeypatch).masks
    assert [bool(mask.all()) for mask in masks] == [bool(mask.any()) for mask in masks] == seen
    assert RefSamConfig().mask_threshold == 0.01


@pytest.mark.parametrize(
    ("levels", "merged"), [([0.05, 0.2], [False, True]), ([0.3, 0.2], [True, False]), ([0.05, 0.09], [False, False])]
)
def test_the_published_merge_with_a_background_at_a_tenth_is_a_threshold(
    levels: list[float], merged: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = answer_of(tiny_model(mask_threshold=0.1), levels, monkeypatch).logits
    assert logits is not None
    objects = merge_objects(1 / (1 + np.exp(-logits)))
    assert [bool(mask.all()) for mask in objects] == [bool(mask.any()) for mask in objects] == merged


# Options.


def answers_of(**options: Any) -> Tensor:
    model = tiny_model(**options)
    with torch.no_grad():
        masks: Tensor = model(placed(model, 2).unsqueeze(0), padded([CAPTION, SHORT_CAPTION])).mask_logits
    assert masks.shape == (2, 2, 32, 32)
    assert bool(masks.isfinite().all())
    return masks


@pytest.fixture(scope="module")
def default_answers() -> Tensor:
    return answers_of()


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
def test_each_option_changes_the_masks(options: dict[str, Any], default_answers: Tensor) -> None:
    assert (answers_of(**options) - default_answers).abs().amax(dim=(0, 2, 3)).min() > 1e-4


@pytest.mark.parametrize(
    "options",
    [{"tracking": "none"}, {"tracking": "interaction"}, {"tracking_layers": 1}, {"tracking_token": False}],
    ids=str,
)
def test_each_option_of_tracking_changes_the_masks_after_the_first(
    options: dict[str, Any], default_answers: Tensor
) -> None:
    answers = answers_of(**options)
    torch.testing.assert_close(answers[:, 0], default_answers[:, 0])
    assert (answers[:, 1] - default_answers[:, 1]).abs().max() > 1e-3


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("sparse", [True, False])
def test_words_are_left_out_by_making_them_zero(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(sparse=sparse)
    calls = watch_decoder(model, monkeypatch)
    model(placed(model, 1).unsqueeze(0), padded([CAPTION]))
    (prompts, _), = calls  # fmt: skip
    assert prompts.shape[1] == len(CAPTION)
    assert bool(prompts.any()) == sparse


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dense", ["none", "sentence"])
def test_simple_dense_embeddings(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dense=dense).double()
    features, sentences = of_one_frame(model, [CAPTION])
    images: list[Tensor] = []
    decode = model.sam.decode

    def watched(image: Tensor, *others: Any, **options: Any) -> Decoded:
        images.append(image)
        return decode(image, *others, **options)

    monkeypatch.setattr(model.sam, "decode", watched)
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
            r"needs a global block before the last; vit_global_blocks is \(7,\)",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
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


def test_pixels_are_those_of_transformers() -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    frame = scene(1, 41, 90)[0]
    published = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    expected = torch.as_tensor(np.asarray(published(frame)["pixel_values"][0]))
    pixels = place_for_sam((41, 90), 64).place(torch.from_numpy(frame).permute(2, 0, 1))
    gray_level = 1 / 57.12
    assert (pixels - expected).abs().max() < 1.1 * gray_level
    assert (pixels - expected).abs().mean() < 0.1 * gray_level
    assert not pixels[:, 29:].any()  # what is beside the frame is zero after the mean is taken off


def test_the_means_and_deviations_are_those_of_sam() -> None:
    pixels = place_for_sam((8, 8), 8).place(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(pixels[:, 0, 0], (200 - mean) / deviation)


def test_frames_may_be_shrunk_before_as_the_released_script_does() -> None:
    placement = place_for_sam((480, 854), 1024, 360)
    assert (placement.first, placement.resized) == ((360, 640), (576, 1024))
    tall = place_for_sam((854, 480), 1024, 360)
    assert (tall.first, tall.resized) == ((640, 360), (1024, 576))
    frame = torch.from_numpy(scene(1, 480, 854)[0]).permute(2, 0, 1)
    detour, straight = placement.place(frame), place_for_sam((480, 854), 1024).place(frame)
    assert detour.shape == straight.shape
    assert not torch.equal(detour, straight)
    assert tiny_model(first_short_side=30).placement((48, 64)).first == (30, 40)


@pytest.mark.parametrize("short", [39, 175, 427, 480, 720, 1080])
def test_a_frame_shrunk_before_is_then_placed_like_any_other_of_that_size(short: int) -> None:
    placement = place_for_sam((short, short + 121), 1024, 360)
    shrunk = (360, 360 * (short + 121) // short)
    assert placement.first == shrunk
    assert placement.resized == place_for_sam(shrunk, 1024).resized


def test_plain_sam_draws_its_positions_with_deviation_one() -> None:
    torch.manual_seed(0)
    sam = Sam(replace(TINY.sam, hidden=256))
    table = sam.sam.shared_image_embedding.positional_embedding
    assert table is sam.sam.prompt_encoder.shared_embedding.positional_embedding
    assert float(table.detach().std()) == pytest.approx(1, abs=0.2)
    assert not table.requires_grad
