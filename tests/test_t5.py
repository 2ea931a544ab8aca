"""T5's encoder and tokenizer: as transformers has them, from any folder, and trained small from sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_t5, load_text, save_text
from refervos.text.t5 import T5_PRESETS, T5Config, T5TextEncoder
from refervos.text.tokenizer import Tokenizer, has_tokenizer
from refervos.training.recipe import read_recipe
from refervos.training.stages.language import KINDS, LanguageSettings, LanguageStage, train_unigram
from refervos.training.trainer import train
from refervos.weights import count_parameters, read_tensors
from refervos.worlds import all_sentences

TINY = T5Config(vocabulary=500, width=24, head_width=8, heads=4, layers=2, feedforward=32)
IDS = torch.tensor([[5, 9, 7, 30, 1], [8, 6, 1, 0, 0]])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_unigram(all_sentences(), 1000)


def published_shape(**changed: Any) -> Any:
    """A tiny T5 as transformers describes it."""
    from transformers import T5Config as Published

    shape = {"vocab_size": 500, "d_model": 24, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 32}
    return Published(**{**shape, **changed})


def published_states(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        states: Tensor = model.eval().get_encoder()(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    return states


def assert_same_states(encoder: T5TextEncoder, model: Any) -> None:
    with torch.no_grad():
        mine = encoder(IDS)
    kept = IDS != 0
    torch.testing.assert_close(mine[kept], published_states(model)[kept], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), [("t5-small", 35_330_816), ("t5-3b", 1_240_909_824)])
def test_presets_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(T5TextEncoder(T5_PRESETS[name])) == parameters


def test_a_sentence_reads_the_same_alone_and_padded() -> None:
    encoder = T5TextEncoder(TINY).eval()
    with torch.no_grad():
        alone, padded = encoder(IDS[1:, :3]), encoder(IDS)
    torch.testing.assert_close(padded[1:, :3], alone, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(encoder(IDS.flip(0))[0, :3], encoder(IDS)[0, :3])


def test_nothing_is_dropped_in_training() -> None:
    encoder = T5TextEncoder(TINY).train()
    assert torch.equal(encoder(IDS), encoder(IDS))


def test_a_shape_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="layers is 0; a T5 encoder needs at least 1"):
        T5Config(layers=0)
    with pytest.raises(ConfigError, match="pad is 500; it must be one of the 500 token ids"):
        T5Config(vocabulary=500, pad=500)


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_a_hugging_face_t5_is_read(tmp_path: Path, tokenizer: Tokenizer, decoder: bool, feed_forward: str) -> None:
    from transformers import T5EncoderModel, T5ForConditionalGeneration

    # T5 v1.1 does not tie its output to its embedding.
    shape = published_shape(feed_forward_proj=feed_forward, tie_word_embeddings=feed_forward == "relu")
    model = (T5ForConditionalGeneration if decoder else T5EncoderModel)(shape)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder, own = load_t5(tmp_path)
    assert encoder.config.gated == (feed_forward != "relu")
    assert own.encode("the red ball") == tokenizer.encode("the red ball")
    assert_same_states(encoder, model)


def test_weights_in_shards_or_pickled_are_read_alike(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(published_shape())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert_same_states(load_t5(tmp_path)[0], model)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[0].name} is missing or unreadable"):
        load_t5(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is no index of weight files"):
        load_t5(tmp_path)
    index.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_states(load_t5(tmp_path)[0], model)


def test_our_own_folder_is_read_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoder = T5TextEncoder(TINY).eval()
    save_text(encoder, tokenizer, tmp_path)
    again, own = load_t5(tmp_path)
    assert again.config == TINY
    assert not again.training
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in again.state_dict().items())
    assert sum(tensor.numel() for tensor in read_tensors(tmp_path).values()) == count_parameters(encoder)
    assert own.encode("the square that moves", ["moves"]) == tokenizer.encode("the square that moves", ["moves"])


def test_each_kind_of_encoder_has_its_own_reader(tmp_path: Path, tokenizer: Tokenizer) -> None:
    roberta = TextEncoder(TextConfig(vocabulary=50, width=8, layers=4, heads=2, feedforward=8, positions=20,
                                     segment_ends=(1, 2, 3, 4)))  # fmt: skip
    save_text(roberta, tokenizer, tmp_path / "roberta")
    save_text(T5TextEncoder(TINY), tokenizer, tmp_path / "t5")
    with pytest.raises(CheckpointError, match="give the result of a language stage, or a T5"):
        load_t5(tmp_path / "roberta")
    with pytest.raises(CheckpointError, match="give the result of a language stage, or a RoBERTa"):
        load_text(tmp_path / "t5")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"d_kv": None}, "does not tell d_kv; give the folder of a T5"),
        ({"feed_forward_proj": "silu"}, "feed_forward_proj is 'silu', not 'relu' or 'gated-gelu'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05, not 1e-06"),
        ({"num_layers": 3}, "does not fit the model"),
    ],
)
def test_a_folder_that_is_no_such_t5(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    from transformers import T5EncoderModel

    T5EncoderModel(published_shape()).save_pretrained(tmp_path)
    header = {**json.loads((tmp_path / "config.json").read_text()), **changed}
    header = {name: value for name, value in header.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=sentence):
        load_t5(tmp_path)


def test_an_old_header_without_what_has_a_usual_value(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import T5EncoderModel

    model = T5EncoderModel(published_shape())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    for name in ("feed_forward_proj", "relative_attention_max_distance", "layer_norm_epsilon"):
        del header[name]
    (tmp_path / "config.json").write_text(json.dumps(header))
    encoder, _ = load_t5(tmp_path)
    assert encoder.config == TINY
    assert_same_states(encoder, model)


def test_sentences_end_but_do_not_start_with_a_token(tokenizer: Tokenizer) -> None:
    ids, flags = tokenizer.encode("  The RED \n circle ")
    assert tokenizer.fast.convert_ids_to_tokens(ids) == ["▁the", "▁red", "▁circle", "</s>"]
    assert not any(flags)
    assert tokenizer.fast.convert_ids_to_tokens([0, 1, 2, len(tokenizer) - 1]) == [
        "<pad>",
        "</s>",
        "<unk>",
        "<extra_id_0>",
    ]


def test_given_verbs_mark_their_pieces(tokenizer: Tokenizer) -> None:
    ids, flags = tokenizer.encode("the yak moving to the right", ["moving", "yak"])
    marked = [piece for piece, flag in zip(tokenizer.fast.convert_ids_to_tokens(ids), flags, strict=True) if flag]
    assert "".join(marked).replace("▁", " ").split() == ["yak", "moving"]
    with pytest.raises(PromptError, match="the verb 'jumps' is not a word"):
        tokenizer.encode("the square", ["jumps"])


def test_the_same_sentences_make_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = train_unigram(all_sentences(), 1000)
    assert again.fast.backend_tokenizer.to_str() == tokenizer.fast.backend_tokenizer.to_str()
    assert len(train_unigram(all_sentences(), 100)) <= 100


def test_a_tokenizer_as_sentencepiece_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 as published has ``spiece.model``, and a hundred sentinels that it does not list."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(all_sentences()), model_prefix=str(tmp_path / "spiece"), vocab_size=150,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    written = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    (tmp_path / "spiece.vocab").unlink()
    assert has_tokenizer(tmp_path)
    own = Tokenizer.from_pretrained(tmp_path)
    for sentence in all_sentences()[::500]:
        assert own.encode(sentence)[0] == [*written.encode(sentence), 1]
    assert own.fast.convert_tokens_to_ids("<extra_id_0>") == 249
    (tmp_path / "fast").mkdir()
    own.save_pretrained(tmp_path / "fast")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    again = Tokenizer.from_pretrained(tmp_path / "fast")
    assert len(again) == len(own) == 250
    assert again.encode("the squares moving up", ["moving"]) == own.encode("the squares moving up", ["moving"])
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[t5\]', or give a folder with"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_broken_sentencepiece_file(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "spiece.model").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="are not readable"):
        Tokenizer.from_pretrained(tmp_path)


RECIPE = """
name: small
seed: 1
stages:
  - name: language
    stage: language
    steps: 60
    batch: 32
    log_every: 10
    validation_batches: 0
    optimiser: {rate: 4.0e-3, final_rate: 4.0e-4, warmup: 5}
    settings:
      kind: t5
      t5: {width: 32, head_width: 8, heads: 4, layers: 2, feedforward: 64}
"""


def test_a_small_t5_learns_to_guess_hidden_words(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    train(read_recipe(tmp_path / "small.yaml"), tmp_path, show_progress=False)
    rows = [json.loads(line) for line in (tmp_path / "language" / "history.jsonl").read_text().splitlines()]
    guess = [row["train"]["guess"] for row in rows if "train" in row]
    assert guess[-1] < 0.75 * guess[0]
    encoder, tokenizer = load_t5(tmp_path / "language" / "model")
    assert encoder.config.vocabulary == len(tokenizer)
    settings = LanguageSettings(kind="t5")
    again = LanguageStage.build(settings, {"model": tmp_path / "language" / "model"}, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), encoder.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="or a RoBERTa"):
        LanguageStage.build(LanguageSettings(), {"model": tmp_path / "language" / "model"}, seed=1)


@pytest.fixture(scope="module")
def stage() -> LanguageStage:
    shape = T5Config(width=16, head_width=4, heads=2, layers=1, feedforward=16)
    return LanguageStage.build(LanguageSettings(kind="t5", t5=shape), {}, seed=1)


def test_only_words_are_hidden(stage: LanguageStage) -> None:
    special = set(stage.tokenizer.fast.all_special_ids)
    sentinel = stage.tokenizer.fast.convert_tokens_to_ids("<extra_id_0>")
    hidden = 0
    for index in range(200):
        shown, asked, ids = (part.numpy() for part in stage.source().draw(0, index, (1, 0, 0)))
        assert ids[-1] == shown[-1] == 1
        assert not special & set(asked[asked != -100])
        assert ((shown == ids) | (asked == ids)).all()
        assert not special - {sentinel} & set(shown[asked != -100])
        hidden += (shown == sentinel).sum()
    assert hidden > 200


def test_the_summary_of_a_t5_is_the_mean_without_padding() -> None:
    states = torch.randn(2, 4, 3)
    keep = torch.tensor([[True, True, True, True], [True, True, False, False]])
    mean = KINDS["t5"].summarise(states, keep)
    torch.testing.assert_close(mean, torch.stack([states[0].mean(0), states[1, :2].mean(0)]))
    assert torch.equal(KINDS["roberta"].summarise(states, keep), states[:, 0])
