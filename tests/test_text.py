"""RoBERTa: its tokenizer and encoder, and verbs for the motion prompt."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import refervos
from refervos import Prompt
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_text
from refervos.text.tokenizer import Tokenizer
from refervos.text.verbs import find_verbs
from scenes import MICRO, micro_model
from text_oracles import assert_same_names_and_initialisation, assert_same_tokenizer

ASSETS = Path(refervos.__file__).parent / "assets"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(ASSETS / "miniature")


def test_sentences_are_lower_cased_and_their_spaces_normalised(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode("the red circle")
    assert tokenizer.encode("  The RED \n circle ")[0] == ids
    assert ids[0] == 0
    assert ids[-1] == 2
    assert tokenizer.encode("the blue circle")[0] != ids


def test_given_verbs_flag_their_tokens(tokenizer: Tokenizer) -> None:
    ids, plain = tokenizer.encode("the square moving to the right")
    assert not any(plain)
    marked = tokenizer.encode("the square moving to the right", ["moving"])[1]
    words = tokenizer.tokens([i for i, flag in zip(ids, marked, strict=True) if flag])
    assert "".join(words).lstrip("Ġ") == "moving"
    assert sum(tokenizer.encode("the square moving to the right", ["Moving", "right"])[1]) > sum(marked)
    with pytest.raises(PromptError, match="the verb 'jumps' is not a word of the expression 'the square'"):
        tokenizer.encode("the square", ["jumps"])
    with pytest.raises(PromptError, match="the verb 'are' is not a word"):
        tokenizer.encode("the square", ["are"])


def test_too_long_sentences_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"the expression has \d+ tokens; this model reads at most 10"):
        tokenizer.encode("the red circle " * 20, limit=10)


def test_missing_tokenizers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json or vocab.json"):
        Tokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="nobody/nothing is not a local folder and cannot be downloaded from the hub"
    ):
        Tokenizer.from_pretrained("nobody/nothing")


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens and the text encoder 100"):
        Samwise(MICRO, tokenizer)


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="are not readable"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["miniature", "refsam-miniature"])
def test_the_bundled_tokenizers_agree_with_transformers(name: str) -> None:
    from transformers import PreTrainedTokenizerFast, RobertaTokenizerFast

    published = RobertaTokenizerFast if name == "miniature" else PreTrainedTokenizerFast
    assert_same_tokenizer(Tokenizer.from_pretrained(ASSETS / name), published.from_pretrained(ASSETS / name))


@pytest.mark.parametrize("name", ["miniature", "refsam-miniature"])
def test_transformers_loads_saved_tokenizers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    own = Tokenizer.from_pretrained(ASSETS / name)
    own.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (ASSETS / name / "tokenizer.json").read_text()
    (tmp_path / "config.json").write_text((ASSETS / name / "config.json").read_text())  # with an unknown model_type
    published = AutoTokenizer.from_pretrained(tmp_path)
    assert_same_tokenizer(own, published)
    assert published.pad_token_id == own.id_of("<pad>")
    assert published.mask_token == ("<mask>" if name == "miniature" else None)
    assert_same_tokenizer(Tokenizer.from_pretrained(tmp_path), published)


def byte_level_files(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Save a tokenizer as ``vocab.json`` and ``merges.txt``, like the first RoBERTas; return its ``tokenizer.json``."""
    written: dict[str, Any] = json.loads(tokenizer.model.to_str())
    (folder / "vocab.json").write_text(json.dumps(written["model"]["vocab"]))
    merges = [" ".join(pair) for pair in written["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return written


def test_vocabulary_and_merges_give_a_roberta_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import RobertaTokenizerFast

    byte_level_files(tmp_path, tokenizer)
    own, published = Tokenizer.from_pretrained(tmp_path), RobertaTokenizerFast.from_pretrained(tmp_path)
    assert own.model.to_str() == published.backend_tokenizer.to_str() == tokenizer.model.to_str()
    assert_same_tokenizer(own, published)


def test_an_old_tokenizer_file_is_loaded_without_its_truncation_and_padding(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """It has merges as strings, and a length to truncate and pad to."""
    from transformers import RobertaTokenizerFast

    written = byte_level_files(tmp_path, tokenizer)
    written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]
    written["model"] = {name: written["model"][name] for name in ("type", "vocab", "merges")}
    written["pre_tokenizer"].pop("use_regex")
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
            "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip
    written.update(truncation=cut, padding=fill)
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    own = Tokenizer.from_pretrained(tmp_path)
    assert own.encode("a") == tokenizer.encode("a")
    assert own.encode("the red circle " * 20) == tokenizer.encode("the red circle " * 20)
    assert_same_tokenizer(own, RobertaTokenizerFast.from_pretrained(tmp_path))


def test_tokenizers_of_other_kinds_or_without_special_tokens_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from tokenizers import Tokenizer as Any_
    from tokenizers.models import WordLevel

    Any_(WordLevel({"the": 0, "<unk>": 1}, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="is a WordLevel, neither a BPE nor a Unigram; give the folder"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    byte_level_files(tmp_path, tokenizer)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    del vocabulary["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match=r"are not readable \(there is no token <mask>\)"):
        Tokenizer.from_pretrained(tmp_path)


def test_unknown_tokens_and_ids_are_refused(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens([tokenizer.id_of("<mask>"), 0]) == ["<mask>", "<s>"]
    with pytest.raises(ConfigError, match="the tokenizer has no token '<extra_id_0>'"):
        tokenizer.id_of("<extra_id_0>")
    for index in (-1, len(tokenizer)):
        with pytest.raises(ConfigError, match=r"are not all in the vocabulary, which has \d+ tokens"):
            tokenizer.tokens([0, index])


def test_an_expression_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    """Command lines in another encoding give such strings."""
    with pytest.raises(PromptError, match=r"'the \\udce9' is not valid Unicode \(it has a lone surrogate\)"):
        tokenizer.encode("the \udce9")


def test_a_tokenizer_can_be_pickled(tokenizer: Tokenizer) -> None:
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the red ball") == tokenizer.encode("the red ball")


def test_without_spacy_verbs_must_be_given(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingDependencyError, match=r"pass them as Prompt\(verbs=\[...\]\)"):
        find_verbs("the dog that jumps")
    model = micro_model(motion_prompt=True)
    model.tokenizer = tokenizer
    with pytest.raises(MissingDependencyError):
        model.begin(Prompt("the red circle"))
    assert model.begin(Prompt("the red circle", verbs=["red"])).verbs.any()
    assert not model.begin(Prompt("the red circle", verbs=[])).verbs.any()


def test_spacy_finds_verbs_if_its_english_model_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a stand-in for spaCy, whose English model is not on the package registries."""
    from types import SimpleNamespace

    from refervos.text import verbs

    def english(sentence: str) -> list[SimpleNamespace]:
        words, tokens, at = sentence.split(), [], 0
        for word in words:
            tokens.append(SimpleNamespace(text=word, idx=at, pos_="VERB" if word == "jumps" else "NOUN"))
            at += len(word) + 1
        return tokens

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: english))
    verbs._english.cache_clear()
    assert find_verbs("the dog that jumps over") == [(13, 18)]

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=absent))
    verbs._english.cache_clear()
    with pytest.raises(MissingDependencyError, match="its English model is not: python -m spacy download"):
        find_verbs("the dog")
    verbs._english.cache_clear()


def test_the_motion_prompt_uses_the_mean_of_the_verbs_or_as_published_the_first() -> None:
    text = torch.randn(2, 5, 32)
    flags = torch.tensor([[False, True, False, True, False], [False] * 5])
    model = micro_model(motion_prompt=True)
    assert model.motion_prompt is not None
    (moving, still), (unbiased, _) = model._prompt_tokens(text, flags)
    assert (len(moving), len(still)) == (4, 3)
    assert torch.allclose(moving[3], model.motion_prompt(text[0, [1, 3]].mean(0, keepdim=True))[0], atol=1e-6)
    assert torch.equal(unbiased, moving)
    released = micro_model(motion_prompt=True, protocol="published")
    (moving, _), (unbiased, _) = released._prompt_tokens(text, flags)
    assert torch.allclose(moving[3], model.motion_prompt(text[:1, 1])[0], atol=1e-6)
    assert len(unbiased) == 3


SHAPE = TextConfig(vocabulary=50, width=32, layers=4, heads=2, feedforward=64, positions=20,
                   segment_ends=(1, 2, 3, 4))  # fmt: skip
IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
KEEP = IDS != 1


def published_roberta(**changed: Any) -> Any:
    """Make the RoBERTa of ``SHAPE`` with transformers."""
    from transformers import RobertaConfig, RobertaModel

    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 20, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
             "pad_token_id": 1}  # fmt: skip
    return RobertaModel(RobertaConfig(**{**shape, **changed}), add_pooling_layer=False).eval()


def same_weights(published: Any, dtype: torch.dtype = torch.float64) -> TextEncoder:
    """Make an encoder with the weights of transformers' model, and convert both to one type."""
    encoder = TextEncoder(SHAPE).eval()
    encoder.roberta.load_state_dict(published.state_dict())
    published.to(dtype)
    return encoder.to(dtype)


@torch.no_grad()
def test_the_encoder_equals_transformers_also_in_segments() -> None:
    published = published_roberta()
    encoder = same_weights(published)
    tokens = encoder.embed(IDS)
    assert not tokens[~KEEP].any()
    for segment in range(4):
        tokens = encoder.run_segment(segment, tokens, KEEP)
    assert torch.equal(tokens, encoder(IDS))
    whole = published(input_ids=IDS, attention_mask=KEEP.long()).last_hidden_state
    torch.testing.assert_close(tokens[KEEP], whole[KEEP], atol=1e-6, rtol=0)


def test_gradients_equal_those_of_transformers() -> None:
    published = published_roberta()
    encoder = same_weights(published, torch.float32)
    weights = torch.randn(2, 5, 32) * KEEP[..., None]
    (encoder(IDS) * weights).sum().backward()
    (published(input_ids=IDS, attention_mask=KEEP.long()).last_hidden_state * weights).sum().backward()
    expected = dict(published.named_parameters())
    for name, parameter in encoder.roberta.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4)


def test_dropout_in_training_equals_that_of_transformers() -> None:
    published = published_roberta()
    encoder = same_weights(published)
    assert torch.equal(encoder(IDS), encoder(IDS))
    encoder.train()
    published.train()
    torch.manual_seed(1)
    dropped = encoder(IDS)
    torch.manual_seed(1)
    whole = published(input_ids=IDS, attention_mask=KEEP.long()).last_hidden_state
    torch.testing.assert_close(dropped[KEEP], whole[KEEP], atol=1e-6, rtol=0)
    assert (encoder.embed(IDS)[KEEP] == 0).any()


def test_names_and_initialisation_equal_those_of_transformers() -> None:
    torch.manual_seed(0)
    shape = replace(SHAPE, vocabulary=500, width=512, positions=100)  # large enough for reliable standard deviations
    encoder = TextEncoder(shape)
    published = published_roberta(vocab_size=500, hidden_size=512, max_position_embeddings=100)
    assert_same_names_and_initialisation(encoder.roberta, published)
    for table in (encoder.roberta.embeddings.word_embeddings, encoder.roberta.embeddings.position_embeddings):
        assert not table.weight[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_padding_does_not_change_results_in_any_precision(dtype: torch.dtype) -> None:
    encoder = TextEncoder(SHAPE).eval()
    exact = encoder(IDS)
    encoder.to(dtype)
    padded, alone = encoder(IDS), encoder(IDS[1:, :3])
    assert padded.dtype == dtype
    assert padded.isfinite().all()
    bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    torch.testing.assert_close(padded[1:, :3], alone, atol=bound, rtol=0)
    torch.testing.assert_close(padded[KEEP].float(), exact[KEEP], atol=bound, rtol=0)
    other = encoder(torch.cat([IDS, torch.full((2, 30), 1)], 1))
    assert other.isfinite().all()
    torch.testing.assert_close(other[:, :5][KEEP], padded[KEEP], atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast_agrees_with_float32(dtype: torch.dtype) -> None:
    encoder = TextEncoder(SHAPE).eval()
    with torch.autocast("cpu", dtype):
        cast = encoder(IDS)
    torch.testing.assert_close(cast[KEEP].float(), encoder(IDS)[KEEP], atol=8e-2, rtol=0)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads is 5; it must divide width = 32"):
        replace(SHAPE, heads=5)


def test_transformers_is_not_imported() -> None:
    """Importing it takes seconds."""
    program = f"""
import sys, torch
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_text
from refervos.text.t5 import T5Config, T5TextEncoder
from refervos.text.tokenizer import Tokenizer
ids = torch.tensor([Tokenizer.from_pretrained({str(ASSETS / "miniature")!r}).encode("the red ball")[0]])
TextEncoder(TextConfig(vocabulary=1000, width=8, layers=4, heads=2, segment_ends=(1, 2, 3, 4)))(ids)
T5TextEncoder(T5Config(vocabulary=1000, width=8, layers=1, heads=2))(ids)
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("head", [True, False])
def test_a_hugging_face_roberta_is_loaded(tmp_path: Path, tokenizer: Tokenizer, head: bool) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

    shape = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    published = (RobertaForMaskedLM if head else RobertaModel)(shape).eval()
    published.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder, own = load_text(tmp_path)
    ids = torch.tensor([own.encode("the red ball")[0]])
    keep = torch.ones_like(ids, dtype=torch.bool)
    tokens = encoder.embed(ids)
    for segment in range(4):
        tokens = encoder.run_segment(segment, tokens, keep)
    with torch.no_grad():
        whole = (published.roberta if head else published)(input_ids=ids).last_hidden_state
    torch.testing.assert_close(tokens, whole, atol=1e-5, rtol=1e-5)


def test_other_models_are_not_loaded_as_a_roberta(tmp_path: Path) -> None:
    for header, sentence in (
        ({"model_type": "bert"}, "has model_type 'bert'; give the result of a language stage, or a RoBERTa"),
        ({"model_type": "roberta"}, "has no vocab_size; give the folder of a RoBERTa"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(header))
        with pytest.raises(CheckpointError, match=sentence):
            load_text(tmp_path)
