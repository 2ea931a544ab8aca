"""T5's encoder and tokenizer: equal to transformers', loaded from any folder, and trained from sentences."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refervos.checkpoints.weights import count_parameters, read_tensors
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_t5, load_text, save_text
from refervos.text.t5 import T5_PRESETS, T5Config, T5TextEncoder, distance_bucket
from refervos.text.tokenizer import Tokenizer, has_tokenizer
from refervos.training.recipe import read_recipe
from refervos.training.stages.language import KINDS, LanguageSettings, LanguageStage, train_unigram
from refervos.training.trainer import train
from refervos.worlds import all_sentences
from text_oracles import SENTENCES, assert_same_names_and_initialisation

TINY = T5Config(vocabulary=500, width=24, head_width=8, heads=4, layers=2, feedforward=32)
IDS = torch.tensor([[5, 9, 7, 30, 1], [8, 6, 1, 0, 0]])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_unigram(all_sentences(), 1000)


def published_shape(**changed: Any) -> Any:
    """Make the configuration of a tiny T5 of transformers."""
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


def test_a_sentence_gives_the_same_states_alone_and_padded() -> None:
    encoder = T5TextEncoder(TINY).eval()
    with torch.no_grad():
        alone, padded = encoder(IDS[1:, :3]), encoder(IDS)
    torch.testing.assert_close(padded[1:, :3], alone, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(encoder(IDS.flip(0))[0, :3], encoder(IDS)[0, :3])


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_the_encoder_equals_transformers(feed_forward: str) -> None:
    """Includes sentences long enough for distances to share a bias."""
    from transformers import T5EncoderModel

    gated = feed_forward != "relu"
    torch.manual_seed(0)
    published = T5EncoderModel(published_shape(feed_forward_proj=feed_forward)).double().eval()
    encoder = T5TextEncoder(replace(TINY, gated=gated)).double().eval()
    encoder.t5.load_state_dict(published.encoder.state_dict())
    ids = torch.randint(1, 500, (2, 300))
    ids[1, 200:] = 0
    with torch.no_grad():
        states = encoder(ids)
    torch.testing.assert_close(states[ids != 0], published_states(published, ids)[ids != 0], atol=1e-6, rtol=0)


def test_gradients_equal_those_of_transformers() -> None:
    from transformers import T5EncoderModel

    published = T5EncoderModel(published_shape()).encoder.eval()
    encoder = T5TextEncoder(TINY)
    encoder.t5.load_state_dict(published.state_dict())
    kept = IDS != 0
    weights = torch.randn(2, 5, 24) * kept[..., None]
    (encoder(IDS) * weights).sum().backward()
    (published(input_ids=IDS, attention_mask=kept.long()).last_hidden_state * weights).sum().backward()
    expected = dict(published.named_parameters())
    for name, parameter in encoder.t5.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_names_and_initialisation_equal_those_of_transformers(feed_forward: str) -> None:
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    published = T5EncoderModel(
        published_shape(feed_forward_proj=feed_forward, d_model=128, d_kv=32, num_heads=64, d_ff=256)
    )
    shape = replace(TINY, gated=feed_forward != "relu", width=128, head_width=32, heads=64, feedforward=256)
    assert_same_names_and_initialisation(T5TextEncoder(shape).t5, published.encoder)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (64, 512), (8, 20), (33, 100), (4, 2)])
def test_distance_buckets_equal_those_of_transformers(buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-1000, 1001)
    published = T5Attention._relative_position_bucket(distance, True, buckets, farthest)
    assert torch.equal(distance_bucket(distance, buckets, farthest), published)


def beyond_float16(gated: bool) -> T5TextEncoder:
    """Make an encoder whose feed-forward networks exceed float16 although no weight does, like the large T5s."""
    torch.manual_seed(0)
    encoder = T5TextEncoder(replace(TINY, gated=gated)).eval()
    for name, parameter in encoder.named_parameters():
        if ".wi" in name:
            parameter.data.mul_(300 if gated else 10)  # gated, their product exceeds it already
        elif ".wo." in name and not gated:
            parameter.data.mul_(3e4)
        elif "embed_tokens" in name:
            parameter.data.mul_(400)  # exceeds it when squared
    return encoder.half().float()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_float16_does_not_overflow(gated: bool, autocast: bool) -> None:
    encoder = beyond_float16(gated)
    added: list[Tensor] = []
    for name, part in encoder.named_modules():
        if name.endswith("DenseReluDense"):
            part.register_forward_hook(lambda part, given, result: added.append(result))
    exact = encoder(IDS)
    assert all(result.abs().max() > torch.finfo(torch.float16).max for result in added)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        half = encoder(IDS) if autocast else encoder.half()(IDS)
    assert autocast or half.dtype == torch.float16
    torch.testing.assert_close(half[IDS != 0].float(), exact[IDS != 0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_padding_does_not_change_results_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = T5TextEncoder(TINY).eval()
    exact = encoder(IDS)
    with torch.autocast("cpu", dtype):
        cast = encoder(IDS)
    encoder.to(dtype)
    alone, padded = encoder(IDS[1:, :3]), encoder(IDS)
    bound = 1e-2 if dtype == torch.float16 else 8e-2
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[1:, :3], alone, atol=bound, rtol=0)
    for close in (padded, cast):
        torch.testing.assert_close(close[IDS != 0].float(), exact[IDS != 0], atol=bound, rtol=0)


def test_there_is_no_dropout_in_training() -> None:
    encoder = T5TextEncoder(TINY).train()
    assert torch.equal(encoder(IDS), encoder(IDS))


def test_invalid_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers is 0; a T5 encoder needs at least 1"):
        T5Config(layers=0)
    with pytest.raises(
        ConfigError, match="position_buckets is 2 and position_distance 128; a T5 encoder needs at least 4"
    ):
        T5Config(position_buckets=2)
    with pytest.raises(ConfigError, match=r"position_distance 8; .* a distance of more than a quarter of them"):
        T5Config(position_distance=8)
    with pytest.raises(ConfigError, match="pad is 500; it must be one of the 500 token ids"):
        T5Config(vocabulary=500, pad=500)


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_a_hugging_face_t5_is_loaded(tmp_path: Path, tokenizer: Tokenizer, decoder: bool, feed_forward: str) -> None:
    from transformers import T5EncoderModel, T5ForConditionalGeneration

    # T5 v1.1 does not tie its output layer to its embedding.
    shape = published_shape(feed_forward_proj=feed_forward, tie_word_embeddings=feed_forward == "relu")
    model = (T5ForConditionalGeneration if decoder else T5EncoderModel)(shape)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder, own = load_t5(tmp_path)
    assert encoder.config.gated == (feed_forward != "relu")
    assert own.encode("the red ball") == tokenizer.encode("the red ball")
    assert_same_states(encoder, model)


def test_sharded_and_pickled_weights_are_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(published_shape())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert_same_states(load_t5(tmp_path)[0], model)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[0].name} does not exist or is not a file"):
        load_t5(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is not an index of weight files"):
        load_t5(tmp_path)
    index.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_states(load_t5(tmp_path)[0], model)


def test_our_own_folder_is_saved_and_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoder = T5TextEncoder(TINY).eval()
    save_text(encoder, tokenizer, tmp_path)
    again, own = load_t5(tmp_path)
    assert again.config == TINY
    assert not again.training
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in again.state_dict().items())
    assert sum(tensor.numel() for tensor in read_tensors(tmp_path).values()) == count_parameters(encoder)
    assert own.encode("the square that moves", ["moves"]) == tokenizer.encode("the square that moves", ["moves"])


def test_each_kind_of_encoder_is_loaded_only_by_its_own_function(tmp_path: Path, tokenizer: Tokenizer) -> None:
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
        ({"d_kv": None}, "has no d_kv; give the folder of a T5"),
        ({"feed_forward_proj": "silu"}, "feed_forward_proj is 'silu'; it must be 'relu' or 'gated-gelu'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; it must be 1e-06"),
        ({"num_layers": 3}, "does not fit the model"),
    ],
)
def test_unsupported_t5_folders_are_refused(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    from transformers import T5EncoderModel

    T5EncoderModel(published_shape()).save_pretrained(tmp_path)
    header = {**json.loads((tmp_path / "config.json").read_text()), **changed}
    header = {name: value for name, value in header.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=sentence):
        load_t5(tmp_path)


def test_an_old_config_without_optional_fields_is_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
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


def test_sentences_have_an_end_token_and_no_start_token(tokenizer: Tokenizer) -> None:
    ids, flags = tokenizer.encode("  The RED \n circle ")
    assert tokenizer.tokens(ids) == ["▁the", "▁red", "▁circle", "</s>"]
    assert not any(flags)
    assert tokenizer.tokens([0, 1, 2, len(tokenizer) - 1]) == [
        "<pad>",
        "</s>",
        "<unk>",
        "<extra_id_0>",
    ]


def test_given_verbs_flag_their_pieces(tokenizer: Tokenizer) -> None:
    ids, flags = tokenizer.encode("the yak moving to the right", ["moving", "yak"])
    marked = [piece for piece, flag in zip(tokenizer.tokens(ids), flags, strict=True) if flag]
    assert "".join(marked).replace("▁", " ").split() == ["yak", "moving"]
    with pytest.raises(PromptError, match="the verb 'jumps' is not a word"):
        tokenizer.encode("the square", ["jumps"])


def test_training_a_tokenizer_is_deterministic(tokenizer: Tokenizer) -> None:
    again = train_unigram(all_sentences(), 1000)
    assert again.model.to_str() == tokenizer.model.to_str()
    assert len(train_unigram(all_sentences(), 100)) <= 100


def test_a_sentencepiece_file_is_loaded_with_its_unlisted_sentinels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published T5s have a ``spiece.model`` that does not list their hundred sentinels."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(all_sentences()), model_prefix=str(tmp_path / "spiece"), vocab_size=150,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    (tmp_path / "spiece.vocab").unlink()
    assert has_tokenizer(tmp_path)
    own = Tokenizer.from_pretrained(tmp_path)
    for sentence in all_sentences()[::500]:
        assert own.encode(sentence)[0] == [*processor.encode(sentence), 1]
    assert own.id_of("<extra_id_0>") == 249
    (tmp_path / "fast").mkdir()
    own.save_pretrained(tmp_path / "fast")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    again = Tokenizer.from_pretrained(tmp_path / "fast")
    assert len(again) == len(own) == 250
    assert again.encode("the squares moving up", ["moving"]) == own.encode("the squares moving up", ["moving"])
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[t5\]', or give a folder with"):
        Tokenizer.from_pretrained(tmp_path)


def sentencepiece_file(folder: Path, **options: Any) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    kind = {"vocab_size": 250, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2, **options}
    sentences = iter([*all_sentences(), *SENTENCES * 5])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_prefix=str(folder / "spiece"), **kind)


@pytest.mark.parametrize(
    "options",
    [{}, {"normalization_rule_name": "identity"}, {"user_defined_symbols": ["circle", "qq"], "control_symbols": "<c>"}],
)
def test_sentencepiece_files_give_the_same_tokenizer_as_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    import transformers
    from transformers import T5TokenizerFast

    if options.get("normalization_rule_name") and transformers.__version__ < "5.20":
        pytest.skip("transformers before 5.20 cannot read a file without normalisation itself")
    sentencepiece_file(tmp_path, **options)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 7}))
    own, published = Tokenizer.from_pretrained(tmp_path), T5TokenizerFast.from_pretrained(tmp_path)
    assert len(own) == 257
    assert own.model.to_str() == published.backend_tokenizer.to_str()
    for sentence in SENTENCES:
        read = published(sentence, return_offsets_mapping=True)
        encoded = own.model.encode(sentence)
        assert (encoded.ids, encoded.offsets) == (read["input_ids"], [tuple(span) for span in read["offset_mapping"]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model_type": "bpe"}, "spiece.model is not a Unigram model"),
        ({"pad_id": -1, "unk_id": 0}, "there is no token <pad>"),
    ],
)
def test_sentencepiece_files_of_other_models_are_refused(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    sentencepiece_file(tmp_path, **options)
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_pretrained(tmp_path)


def test_a_damaged_sentencepiece_file_is_refused(tmp_path: Path) -> None:
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


def test_a_small_t5_learns_to_predict_masked_words(tmp_path: Path) -> None:
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


def test_only_words_are_masked(stage: LanguageStage) -> None:
    special = set(stage.tokenizer.special_ids)
    sentinel = stage.tokenizer.id_of("<extra_id_0>")
    hidden = 0
    for index in range(200):
        shown, targets, ids = (part.numpy() for part in stage.source().draw(0, index, (1, 0, 0))[:3])
        assert ids[-1] == shown[-1] == 1
        assert not special & set(targets[targets != -100])
        assert ((shown == ids) | (targets == ids)).all()
        assert not special - {sentinel} & set(shown[targets != -100])
        hidden += (shown == sentinel).sum()
    assert hidden > 200


def test_the_summary_of_a_t5_is_its_mean_without_padding_and_of_roberta_its_first_token() -> None:
    states = torch.randn(2, 4, 3)
    keep = torch.tensor([[True, True, True, True], [True, True, False, False]])
    mean = KINDS["t5"].summarise(states, keep)
    torch.testing.assert_close(mean, torch.stack([states[0].mean(0), states[1, :2].mean(0)]))
    assert torch.equal(KINDS["roberta"].summarise(states, keep), states[:, 0])
