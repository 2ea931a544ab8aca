"""Alignment of a small VideoGLaMM's visual tokens with words and places."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training.stages.conversation_sources import DescribedObjects, describe_objects
from refervos.training.stages.videoglamm import ConversationSettings
from refervos.training.stages.videoglamm_parts import drawn_tokenizer
from refervos.training.stages.visual_alignment import CellLabels, VisualAlignment
from refervos.training.step_means import mean_of_batch
from refervos.videoglamm.model import VisualTokens
from refervos.worlds.conversation_writer import Turn
from refervos.worlds.conversations import ConversationClip, caption, held_out_conversation
from test_videoglamm_stages import TINY, batch_of, losses_on, stage_of

SETTINGS: dict[str, Any] = {
    "model": TINY, "trained": ["language", "projectors"], "masked_frames": 1, "decoding": "first",
    "padded_masks": None, "pointing": 1.0, "alignment": 0.5, "placing": 1.0, "bce": 0.0, "dice": 0.0,
    "lengths": [6], "aspects": [1.0, 1.5], "questions": 2, "image_only": 0.5,
}  # fmt: skip


def two_objects() -> DescribedObjects:
    """A red one in the top left corner, and a blue one that moves from the bottom left to the bottom right."""
    masks = np.zeros((2, 2, 8, 8), np.bool_)
    masks[0, :, :4, :4] = True
    masks[1, 0, 4:, :4] = True
    masks[1, 1, 4:, 4:] = True
    return DescribedObjects(("the red circle stays still.", "the blue square moves right."), masks)


def labels() -> CellLabels:
    return CellLabels.of(two_objects(), [0, 1], 2, drawn_tokenizer().encode)


def test_cells_are_labelled_with_the_words_and_the_place_of_their_object() -> None:
    own, encode = labels(), drawn_tokenizer().encode
    assert own.shown.tolist() == [0, 2, 4, 7]  # frame 0: top left and bottom left; frame 1: top left and bottom right
    assert own.owners.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(own.place, torch.tensor([[0.25, 0.25], [0.25, 0.75], [0.25, 0.25], [0.75, 0.75]]))
    assert own.words[0] == tuple(encode("red circle stays still"))  # neither "the" nor the full stop
    mixture = own.mixture(260)
    torch.testing.assert_close(mixture.sum(1), torch.ones(4))
    assert mixture[1, encode("blue")[0]] == 1 / len(own.words[1])
    assert mixture[1, encode("red")[0]] == 0


def test_a_hidden_object_has_no_place() -> None:
    objects = two_objects()
    objects.masks[1, 1] = False
    own = CellLabels.of(objects, [0, 1], 2, drawn_tokenizer().encode)
    assert own.places[1, 1].isnan().all()
    assert own.shown.tolist() == [0, 2, 4]


def test_an_encoder_that_sees_the_centre_alone_cannot_know_places_in_a_wide_frame() -> None:
    masks = np.zeros((1, 1, 8, 16), np.bool_)
    masks[0, 0, :4, 4:8] = True
    objects = DescribedObjects(("the red circle stays still.",), masks)
    encode = drawn_tokenizer().encode
    cropped, whole = (CellLabels.of(objects, [0], 2, encode, cropped=cropped) for cropped in (True, False))
    assert cropped.cover[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]  # the columns 4 to 12
    assert whole.cover[0, 0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert not cropped.known.any()
    torch.testing.assert_close(whole.place, torch.tensor([[0.375, 0.25]]))


def test_each_sentence_of_a_caption_describes_the_object_of_its_first_phrase() -> None:
    clip = held_out_conversation(0)
    turn = caption(clip.clip, np.random.default_rng(1), variety=0.0, detail=0)
    described = describe_objects(clip, turn)
    assert len(described.sentences) == len(described.masks) == len(turn.targets)
    for sentence, mask, (target,) in zip(described.sentences, described.masks, turn.targets, strict=True):
        thing = clip.clip.scene.objects[target]
        assert thing.colour in sentence
        assert not re.search(r"<|\[", sentence)
        np.testing.assert_array_equal(mask, clip.clip.masks[target])


def test_a_second_phrase_is_not_what_a_sentence_is_about() -> None:
    clip = held_out_conversation(0)
    answer = (
        "<p> The red circle </p> [SEG:1] passes behind <p> the square </p> [SEG:0]. <p> The ring </p> [SEG:2] spins."
    )
    answer = re.sub(r"\[SEG:\d\]", "[SEG]", answer)
    described = describe_objects(
        ConversationClip(clip.clip, ()), Turn("description", "", answer, ((1,), (0,), (2,)), False)
    )
    assert [re.sub(r"\s+", " ", sentence).strip() for sentence in described.sentences] == [
        "The red circle passes behind", "The ring spins.",
    ]  # fmt: skip
    np.testing.assert_array_equal(described.masks, clip.clip.masks[[1, 2]])


def aligned_tokens(table: torch.nn.Embedding, own: CellLabels) -> Tensor:
    """Visual tokens (8, D) that are the sums of the token embeddings of their words; noise elsewhere."""
    tokens = torch.randn(8, table.embedding_dim)
    tokens[own.shown] = own.mixture(table.num_embeddings) @ table.weight.detach()
    return tokens


def test_tokens_that_resemble_the_words_for_what_they_show_have_a_small_loss() -> None:
    torch.manual_seed(0)
    table, own = torch.nn.Embedding(260, 64), labels()
    aligned = VisualAlignment(table)
    wanted = aligned_tokens(table, own)
    near, _ = aligned([VisualTokens(wanted, 2)], [(own, own)], mean_of_batch)
    far, _ = aligned([VisualTokens(torch.randn(8, 64), 2)], [(own, own)], mean_of_batch)
    assert near < far - 3
    both, _ = aligned([VisualTokens(torch.cat([wanted, wanted]), 2)], [(own, own)], mean_of_batch)  # two encoders
    torch.testing.assert_close(both, near)
    nothing, nowhere = aligned([None], [(own, own)], mean_of_batch)
    assert nothing == nowhere == 0


def test_places_are_compared_where_they_are_known() -> None:
    aligned = VisualAlignment(torch.nn.Embedding(4, 2))
    with torch.no_grad():
        aligned.place.weight.copy_(torch.eye(2))
        aligned.place.bias.zero_()
    states = torch.tensor([[0.5, 0.5], [0.1, 0.3]])
    places = torch.tensor([[0.25, 0.5], [torch.nan, torch.nan]])
    assert aligned.distance(states, places, "place", mean_of_batch).item() == pytest.approx(0.125)


def test_the_stage_learns_to_align_and_saves_the_model_alone() -> None:
    stage = stage_of("conversation", SETTINGS)
    batch = batch_of(stage)
    before = {name: value.item() for name, value in stage(batch).items()}
    losses_on(stage, batch, 30)
    after = {name: value.item() for name, value in stage(batch).items()}
    for name in ("words", "cells", "place"):
        assert after[name] < 0.8 * before[name], name
    assert not any("aligned" in name for name in stage.model.state_dict())


def test_the_numbers_of_items_are_those_that_the_losses_average_over() -> None:
    stage = stage_of("conversation", SETTINGS)
    batch = batch_of(stage, 8)
    assert {sample["internvideo"] is None for sample in batch} == {True, False}
    with stage.mean.recording() as recorded:
        stage(batch)
    counted = stage.counts(batch)
    assert {name: value.item() for name, value in counted.items()} == {k: v.item() for k, v in recorded.items()}


def test_alignment_needs_drawn_worlds() -> None:
    with pytest.raises(TrainingError, match="which only worlds have"):
        replace(ConversationSettings(), data=("x",), alignment=0.5)  # type: ignore[arg-type]
