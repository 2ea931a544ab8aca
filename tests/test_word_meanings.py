"""Distillation of word vectors from a large text encoder into a small one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from refervos.errors import TrainingError
from refervos.text.encoder import TextConfig
from refervos.training.stages.language import LanguageSettings, LanguageStage, read_sentences, train_byte_level
from refervos.training.stages.word_meanings import (
    MeaningHeads,
    WordMeanings,
    draw_word_sample,
    initialise_embeddings,
    sentence_about,
    taught_words,
)
from refervos.worlds.nouns import everyday_nouns

transformers = pytest.importorskip("transformers")

SHAPE = TextConfig(width=32, layers=4, heads=2, feedforward=32, positions=66, segment_ends=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights and a tokenizer of single letters, in a folder of the hub's format."""
    folder = tmp_path_factory.mktemp("teacher")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "-"]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("bunny\nautomobile\nblanket\n\ncar\n")
    return file


def test_the_taught_words_are_those_of_the_worlds_and_of_a_file(words: Path) -> None:
    plain, more = taught_words(None), taught_words(words)
    assert {"circle", "red", "car", "rabbit", "scissors", "smartphone"} <= set(plain)
    assert set(more) - set(plain) == {"bunny", "automobile", "blanket"}
    assert len(set(more)) == len(more)
    unseen = {name for noun in everyday_nouns().values() for name in noun.unseen}
    assert not unseen & set(plain)
    with pytest.raises(TrainingError, match=r"nothing.txt' cannot be read"):
        taught_words(words.parent / "nothing.txt")


def test_a_teachers_vectors_are_means_over_its_tokens(teacher: Path, words: Path) -> None:
    meanings = WordMeanings.from_teacher(teacher, words)
    assert meanings.vectors.shape == (len(meanings.words), 24)
    torch.testing.assert_close(meanings.vectors.norm(dim=1), torch.ones(len(meanings.words)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    model = transformers.AutoModel.from_pretrained(teacher).eval()
    alone = []
    for word in meanings.words:
        with torch.no_grad():
            alone.append(model(**tokenizer(word, return_tensors="pt")).last_hidden_state[0].mean(0))
    vectors = torch.stack(alone)
    expected = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    torch.testing.assert_close(meanings.vectors, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(TrainingError, match="is no sentence encoder that transformers can load"):
        WordMeanings.from_teacher(words.parent, None)


def test_the_tokens_of_a_word_are_marked_in_its_sentence() -> None:
    tokenizer = train_byte_level([*read_sentences(None), "the tin can", "the car", "the bunny"], 600)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ids, in_word, index = draw_word_sample(["car", "tin can", "bunny"], tokenizer, 66, rng)
        word = ["car", "tin can", "bunny"][index]
        assert tokenizer.model.decode(ids[in_word].tolist()).strip() == word
    sentences = {sentence_about("car", np.random.default_rng(seed)) for seed in range(200)}
    assert any("car" in text.partition("thing")[2] for text in sentences)  # as the other object of a relation
    assert all("{" not in text and "  " not in text for text in sentences)


def test_a_small_encoder_learns_the_vectors_of_a_teacher(teacher: Path, words: Path) -> None:
    settings = LanguageSettings(model=SHAPE, vocabulary=1200, nouns=True, teacher=str(teacher), words=str(words))
    stage = LanguageStage.build(settings, {}, seed=1)
    source = stage.source()
    assert {"bunny", "car"} <= set(source.taught)
    optimiser = torch.optim.AdamW(stage.parameters(), 3e-3)
    few = ["car", "rabbit", "red", "scissors"]
    values = []
    for step in range(60):
        samples = []
        for index in range(16):
            rng = np.random.default_rng([step, index])
            ids, in_word, word = draw_word_sample(few, stage.tokenizer, 66, rng)
            taught = stage.taught.index(few[word])
            tokens = torch.from_numpy(ids)
            samples.append((tokens, torch.full_like(tokens, -100), tokens, torch.from_numpy(in_word), taught))
        losses = stage(source.collate(samples))
        optimiser.zero_grad()
        losses["meaning"].backward()
        optimiser.step()
        values.append(float(losses["meaning"].detach()))
    assert np.mean(values[-5:]) < 0.4 * np.mean(values[:5])
    assert not any("meaning" in name for name in stage.model.state_dict())
    mixed = source.collate([source.draw(0, index, (1, 2, 0)) for index in range(40)])
    about_word = mixed["word"] >= 0
    assert 8 < int(about_word.sum()) < 32
    assert torch.equal(mixed["in_word"].any(1), about_word)
    assert ((mixed["inputs"] == mixed["ids"]) | ~mixed["in_word"]).all()  # the word itself is never masked
    assert stage(mixed)["loss"].isfinite()


def test_sentences_without_a_taught_word_do_not_change_the_distillation_loss() -> None:
    heads = MeaningHeads(8, WordMeanings(("a", "b"), torch.eye(2, 4)))
    states, summary = torch.randn(3, 5, 8), torch.randn(3, 8)
    in_word = torch.zeros(3, 5, dtype=torch.bool)
    in_word[0, 2] = True
    one = heads(states, summary, in_word, torch.tensor([1, -1, -1]))
    alone = heads(states[:1], summary[:1], in_word[:1], torch.tensor([1]))
    torch.testing.assert_close(one["meaning"], alone["meaning"])
    nothing = heads(states, summary, torch.zeros_like(in_word), torch.full((3,), -1))
    assert nothing["meaning"] == 0


def test_embeddings_of_whole_words_are_initialised_with_the_teachers_vectors() -> None:
    words = ("car", "automobile", "banana", "tin can")
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0], [1, 0, 0.1], [-1, 0.5, 0], [0, -1, 1]]), dim=1)
    meanings = WordMeanings(words, vectors)
    tokenizer = train_byte_level([f"the {word}" for word in words] * 5 + list(words) * 5, 400)
    embeddings = torch.nn.Embedding(len(tokenizer), 8)
    before = embeddings.weight.detach().clone()
    assert initialise_embeddings(embeddings, tokenizer, meanings) == 3  # a tin can is two words

    def row(word: str) -> torch.Tensor:
        ids, in_word = tokenizer.encode(f"the {word}", [word])
        return embeddings.weight[[token for token, within in zip(ids, in_word, strict=True) if within]].squeeze(0)[:3]

    near = torch.nn.functional.cosine_similarity(row("car"), row("automobile"), dim=0)
    far = torch.nn.functional.cosine_similarity(row("car"), row("banana"), dim=0)
    assert near > 0.9
    assert far < 0
    (tin,) = tokenizer.encode("the tin")[0][2:-1]
    assert torch.equal(embeddings.weight[tin], before[tin])
