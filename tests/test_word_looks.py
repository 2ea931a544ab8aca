"""Auxiliary task of the text encoder: the states of nouns predict what the image encoder sees of their objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refervos.errors import TrainingError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.text.encoder import TextConfig
from refervos.training.stages.language import LOOKS, LanguageSettings, LanguageStage, train_byte_level
from refervos.training.stages.noun_states import TEMPLATES, NounTokens, noun_states
from refervos.training.stages.word_looks import NamedCells, WordLooks, _similar_nouns
from refervos.training.stages.word_meanings import WordMeanings
from refervos.training.stages.world_tensors import UNLABELLED, cell_labels, draw_framed, place_frames
from refervos.worlds import KINDS, WorldConfig
from refervos.worlds.nouns import everyday_nouns
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


def looks_of(cells: NamedCells, meanings: WordMeanings | None = None) -> tuple[WordLooks, Any]:
    torch.manual_seed(0)
    model = trainable_micro_model()
    model.text.requires_grad_(True)
    assert model.tokenizer is not None
    looks = WordLooks(cells, model.tokenizer, model.text.config.width, model.text.config.pad, meanings, shared=16)
    return looks, model.text


def test_the_loss_compares_the_cells_with_the_nouns(cells: NamedCells) -> None:
    """All kinds are compared, since they are fewer than the nouns of a step."""
    looks, text = looks_of(cells)
    looks.eval()
    torch.manual_seed(5)
    found = looks(text)
    torch.manual_seed(5)
    chosen = torch.randint(len(cells.labels), (1024,))
    torch.randperm(len(cells.names))
    template = int(torch.randint(len(TEMPLATES), ()))
    # Which of its names each noun has is what the module wrote down.
    expected = 0.0
    for part in range(2):
        image = looks.image_heads[part](cells.tokens[part][chosen].float())
        logits = 0.25 * image @ looks.looks[part].T
        expected += float(F.cross_entropy(logits, cells.labels[chosen]).detach()) / 2
    assert float(found["looks"].detach()) == pytest.approx(expected, rel=1e-5)
    assert set(found) == {"looks"}
    names = [names[0] for names in looks.variants]
    states = looks.nouns[template].states(text, torch.from_numpy(looks.first[:-1]))
    own = looks.text_heads[0](states[0]).detach()  # (W, 16), of the first name of each noun
    same = (own - looks.looks[0]).abs().amax(1) < 1e-5
    assert len(names) / 4 < int(same.sum()) < len(names)  # about half of them: others go by a synonym


def test_training_lets_the_states_of_nouns_tell_their_objects_apart(cells: NamedCells) -> None:
    looks, text = looks_of(cells)
    optimiser = torch.optim.AdamW([*looks.parameters(), *text.parameters()], 3e-3)
    values = []
    for _ in range(40):
        loss = looks(text)["looks"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    assert not any("looks" in name for name in text.state_dict())


def test_other_words_learn_from_the_nouns_near_them(cells: NamedCells) -> None:
    rng = torch.Generator().manual_seed(3)
    words = (*KINDS, "hoop", "banner")
    vectors = F.normalize(torch.randn(len(words), 24, generator=rng), dim=1)
    vectors[len(KINDS)] = F.normalize(vectors[2] + 0.1 * vectors[5], dim=0)  # a hoop is much like the third shape
    meanings = WordMeanings(words, vectors)
    others, near = _similar_nouns(tuple(KINDS), meanings)
    assert others == ("hoop",)  # the other word is like no shape
    assert near.argmax(1).tolist() == [2]
    assert near.sum(1).tolist() == pytest.approx([1.0])
    looks, text = looks_of(cells, meanings)
    looks.looks.normal_(generator=rng)
    torch.manual_seed(5)
    losses = looks(text)
    assert set(losses) == {"looks", "words"}
    # The template follows the choice of cells and nouns.
    torch.manual_seed(5)
    torch.randint(len(cells.labels), (1024,))
    torch.randperm(len(cells.names))
    template = int(torch.randint(len(TEMPLATES), ()))
    states = looks.words[template].states(text, torch.tensor([0]))
    own = [looks.text_heads[part](states[part])[0] for part in range(2)]
    cosines = [float(F.cosine_similarity(own[part].detach(), near[0] @ looks.looks[part], dim=0)) for part in range(2)]
    assert float(losses["words"].detach()) == pytest.approx(1 - sum(cosines) / 2, abs=1e-5)
    losses["words"].backward()
    assert looks.text_heads[0].weight.grad is not None


def test_synonyms_that_test_a_model_are_compared_with_no_image() -> None:
    """They are known by the teacher only, like any other word of a list."""
    unseen = sorted({name for noun in everyday_nouns().values() for name in noun.unseen})
    names = tuple(everyday_nouns())
    words = (*names, *unseen, "something else")
    alike = F.normalize(torch.ones(len(words), 4), dim=1)  # all are similar to all
    others, weights = _similar_nouns(names, WordMeanings(words, alike))
    assert others == (*unseen, "something else")
    assert (weights == weights[:, :1]).all()  # nothing but the teacher says which noun is meant
    tokenizer = train_byte_level([f"the {word}" for word in words for _ in range(2)], 4000)
    cells = NamedCells((torch.zeros(2, 4), torch.zeros(2, 8)), torch.zeros(2, dtype=torch.int64), names)
    looks = WordLooks(cells, tokenizer, 32, 1)
    assert not {name for variants in looks.variants for name in variants} & set(unseen)


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
