"""Auxiliary task of the text encoder: the states of nouns predict what the image encoder sees of their objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import TrainingError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_text
from refervos.training.stages.language import LOOKS, LanguageSettings, LanguageStage, train_byte_level
from refervos.training.stages.noun_states import TEMPLATES, NounTokens, noun_states
from refervos.training.stages.word_looks import NamedCells, WordLooks
from refervos.training.stages.word_meanings import WordMeanings, take_nearest
from refervos.training.stages.world_tensors import UNLABELLED, cell_labels, draw_framed, place_frames
from refervos.worlds import KINDS, WorldConfig
from refervos.worlds.nouns import everyday_nouns, names_of
from training_runs import trainable_micro_model

WORLD = WorldConfig(objects=(2, 3), radius=(0.2, 0.3))
SHAPE = TextConfig(width=32, layers=4, heads=2, feedforward=32, positions=66, segment_ends=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def cells() -> NamedCells:
    torch.manual_seed(0)
    return NamedCells.draw(trainable_micro_model().tracker, WORLD, (1.0,), 30, (1, LOOKS))


def test_cells_have_the_tokens_of_their_place_and_the_noun_of_their_object(cells: NamedCells) -> None:
    torch.manual_seed(0)
    tracker = trainable_micro_model().tracker
    size = tracker.config.image_size
    clip = draw_framed([1, LOOKS, 0], WORLD, 1, (1.0,), size)
    labels = cell_labels(clip, size, 16)[0, ..., 0]  # (n, n)
    with torch.no_grad():
        stages = tracker.encode(place_frames(clip.frames, size))
    wanted = [
        (stages[2][0, row, column], stages[3][0, row // 2, column // 2], labels[row, column])
        for row in range(len(labels))
        for column in range(len(labels))
        if labels[row, column] != UNLABELLED and labels[row, column] < len(KINDS)
    ]
    assert len(wanted) > 4
    assert stages[2].shape[1] == len(labels)
    for number, (fine, coarse, label) in enumerate(wanted):
        torch.testing.assert_close(cells.tokens[0][number].float(), fine, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(cells.tokens[1][number].float(), coarse, atol=2e-3, rtol=2e-3)
        assert cells.labels[number] == label
    assert cells.names == tuple(KINDS)
    assert len(cells.tokens[0]) == len(cells.tokens[1]) == len(cells.labels)


def test_states_of_some_nouns_are_those_of_all() -> None:
    model = trainable_micro_model()
    assert model.tokenizer is not None
    names = ["circle", "hot air balloon", "star"]
    for number, template in enumerate(TEMPLATES):
        tokens = NounTokens.of(model.tokenizer, names, template, model.text.config.pad)
        together = noun_states(model.text, model.tokenizer, names)[number]
        some = tokens.states(model.text, torch.tensor([2, 0]))  # shorter than the longest
        for part in range(2):
            torch.testing.assert_close(some[part], together[part][[2, 0]])


def looks_of(cells: NamedCells) -> tuple[WordLooks, Any]:
    torch.manual_seed(0)
    model = trainable_micro_model()
    model.text.requires_grad_(True)
    assert model.tokenizer is not None
    looks = WordLooks(cells, model.tokenizer, model.text.config.width, model.text.config.pad, shared=16)
    return looks, model.text


def test_the_loss_compares_the_cells_with_the_nouns(cells: NamedCells, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds are compared, since they are fewer than the nouns of a step."""
    looks, text = looks_of(cells)
    looks.eval()
    rows: list[Tensor] = []
    states = NounTokens.states

    def noted(self: NounTokens, text: Any, own: Tensor) -> list[Tensor]:
        rows.append(own)
        return states(self, text, own)

    monkeypatch.setattr(NounTokens, "states", noted)
    torch.manual_seed(5)
    found = looks(text)
    torch.manual_seed(5)
    chosen = torch.randint(len(cells.labels), (1024,))
    torch.randperm(len(cells.names))
    template = int(torch.randint(len(TEMPLATES), ()))
    noun_of = np.repeat(np.arange(len(cells.names)), [len(names) for names in looks.variants])
    nouns = [int(noun_of[row]) for row in rows[0]]
    assert sorted(nouns) == list(range(len(cells.names)))
    firsts = int(np.isin(rows[0].numpy(), looks.first[:-1]).sum())
    assert len(nouns) / 4 < firsts < len(nouns)  # the others go by a synonym
    words = looks.nouns[template].states(text, rows[0])
    expected = 0.0
    for part in range(2):
        image = looks.image_heads[part](cells.tokens[part][chosen].float())
        logits = 0.25 * image @ looks.text_heads[part](words[part]).T
        target = torch.tensor([nouns.index(int(label)) for label in cells.labels[chosen]])
        expected += float(F.cross_entropy(logits, target).detach()) / 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_training_lets_the_states_of_nouns_tell_their_objects_apart(cells: NamedCells) -> None:
    looks, text = looks_of(cells)
    optimiser = torch.optim.AdamW([*looks.parameters(), *text.parameters()], 3e-3)
    values = []
    for _ in range(40):
        loss = looks(text)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    assert not any("looks" in name for name in text.state_dict())


def test_synonyms_that_test_a_model_are_compared_with_no_image() -> None:
    unseen = {name for noun in everyday_nouns().values() for name in noun.unseen}
    assert unseen
    assert not {name for noun in everyday_nouns() for name in names_of(noun)} & unseen
    assert names_of("rabbit")[0] == "rabbit"


def test_words_without_an_image_take_the_embedding_of_the_nearest_noun() -> None:
    words = ("rabbit", "bicycle", "bunny", "bike", "blanket", "hot air balloon", "dirigible", "hare")
    vectors = torch.eye(3)[[0, 1, 0, 1, 2, 2, 2, 0]].clone()
    vectors[2] = torch.tensor([0.8, 0.6, 0.0])
    vectors[4] = torch.tensor([0.3, 0.0, 0.95])
    meanings = WordMeanings(words, vectors)
    tokenizer = train_byte_level([text for word in words for text in (word, f"the {word}") for _ in range(2)], 600)
    embeddings = torch.nn.Embedding(len(tokenizer), 4)
    before = embeddings.weight.detach().clone()
    count = take_nearest(embeddings, tokenizer, meanings, ["the rabbit", "the bike", "the hare", "the bicycle"], 0.5)

    def row(text: str) -> Tensor:
        [token] = tokenizer.encode(text)[0][1:-1]
        return embeddings.weight[token]

    def inside(word: str) -> Tensor:
        return embeddings.weight[tokenizer.encode(f"the {word}")[0][-2]]

    assert torch.equal(row("bunny"), row("rabbit"))
    assert torch.equal(inside("bunny"), inside("rabbit"))
    assert not torch.equal(inside("bunny"), row("bunny"))
    for kept in (
        "bike",
        "blanket",
        "rabbit",
        "dirigible",
    ):  # in a sentence, near no noun, a noun, near one of two tokens
        token = tokenizer.encode(f"the {kept}")[0][-2]
        assert torch.equal(embeddings.weight[token], before[token]), kept
    assert count == 1


def test_a_language_stage_writes_the_embeddings_of_the_nearest_nouns(tmp_path: Path) -> None:
    sentences = ["the rabbit", "the circle"]
    tokenizer = train_byte_level([*sentences, *sentences, "the bunny", "the bunny"], 600)
    meanings = WordMeanings(("rabbit", "bunny"), torch.ones(2, 1))
    for nearest in (None, 0.5):
        torch.manual_seed(0)
        encoder = TextEncoder(replace(SHAPE, vocabulary=len(tokenizer)))
        settings = LanguageSettings(model=SHAPE, nearest=nearest)
        LanguageStage(settings, encoder, tokenizer, sentences, meanings).save(tmp_path / str(nearest))
        weight = load_text(tmp_path / str(nearest))[0].get_parameter("roberta.embeddings.word_embeddings.weight")
        bunny, rabbit = (weight[tokenizer.encode(f"the {word}")[0][-2]] for word in ("bunny", "rabbit"))
        assert torch.equal(bunny, rabbit) == (nearest is not None)


def test_a_language_stage_learns_looks(tmp_path: Path) -> None:
    model = trainable_micro_model()
    tracker = tmp_path / "tracker"
    Sam2Segmenter(model.tracker).save_pretrained(tracker)
    settings = LanguageSettings(model=SHAPE, looks=1.0, world=WORLD, images=10)
    with pytest.raises(TrainingError, match="needs the image encoder of a tracker"):
        LanguageStage.build(settings, {}, seed=1)
    stage = LanguageStage.build(settings, {"tracker": tracker}, seed=1)
    source = stage.source()
    losses = stage(source.collate([source.draw(0, index, (1, 0, 0)) for index in range(4)]))
    assert losses["looks"] > 0
    plain = losses["guess"] + losses["summary"] + losses["looks"]
    assert float(losses["loss"].detach()) == pytest.approx(float(plain.detach()))
    losses["looks"].backward()
    gradient = stage.model.get_parameter("roberta.embeddings.word_embeddings.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    stage.save(tmp_path / "text")
    assert not any("looks" in name for name in stage.model.state_dict())
    with pytest.raises(TrainingError, match="looks is trained in a RoBERTa, not in a t5"):
        LanguageSettings(kind="t5", looks=1.0)
