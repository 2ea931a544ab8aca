"""Sentences to tokens, verbs for the motion prompt, and prompts that make no sense."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(Path(refervos.__file__).parent / "assets" / "miniature")


def test_sentences_are_lower_cased_and_their_spaces_single(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode("the red circle")
    assert tokenizer.encode("  The RED \n circle ")[0] == ids
    assert ids[0] == 0
    assert ids[-1] == 2
    assert tokenizer.encode("the blue circle")[0] != ids


def test_given_verbs_mark_their_tokens(tokenizer: Tokenizer) -> None:
    ids, plain = tokenizer.encode("the square moving to the right")
    assert not any(plain)
    marked = tokenizer.encode("the square moving to the right", ["moving"])[1]
    words = [tokenizer.fast.decode([i]).strip() for i, flag in zip(ids, marked, strict=True) if flag]
    assert "".join(words) == "moving"
    assert sum(tokenizer.encode("the square moving to the right", ["Moving", "right"])[1]) > sum(marked)
    with pytest.raises(PromptError, match="the verb 'jumps' is not a word of the expression 'the square'"):
        tokenizer.encode("the square", ["jumps"])
    with pytest.raises(PromptError, match="the verb 'are' is not a word"):
        tokenizer.encode("the square", ["are"])


def test_too_long_sentences_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"the expression has \d+ tokens; this model reads at most 10"):
        tokenizer.encode("the red circle " * 20, limit=10)


def test_tokenizers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json or vocab.json"):
        Tokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing is no folder here and cannot be had from the hub"):
        Tokenizer.from_pretrained("nobody/nothing")


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens and the text encoder 100"):
        Samwise(MICRO, tokenizer)


def test_a_broken_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="are not readable"):
        Tokenizer.from_pretrained(tmp_path)


def test_verbs_without_spacy(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingDependencyError, match=r"pass them as Prompt\(verbs=\[...\]\)"):
        find_verbs("the dog that jumps")
    model = micro_model(motion_prompt=True)
    model.tokenizer = tokenizer
    with pytest.raises(MissingDependencyError):
        model.begin(Prompt("the red circle"))
    assert model.begin(Prompt("the red circle", verbs=["red"])).verbs.any()
    assert not model.begin(Prompt("the red circle", verbs=[])).verbs.any()


def test_verbs_with_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With spaCy's interface, since its English model is not on the package registries."""
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


def test_motion_prompt_takes_the_mean_of_the_verbs_and_the_first_in_the_published_protocol() -> None:
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


def test_layers_in_segments_are_the_whole_encoder() -> None:
    encoder = TextEncoder(TextConfig(vocabulary=50, width=32, layers=4, heads=2, feedforward=64, positions=20,
                                     segment_ends=(1, 2, 3, 4))).eval()  # fmt: skip
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
    keep = ids != 1
    tokens = encoder.embed(ids)
    assert not tokens[~keep].any()
    for segment in range(4):
        tokens = encoder.run_segment(segment, tokens, keep)
    whole = encoder.roberta(input_ids=ids, attention_mask=keep.long()).last_hidden_state
    assert torch.allclose(tokens[keep], whole[keep], atol=1e-5)


@pytest.mark.parametrize("head", [True, False])
def test_a_hugging_face_roberta_is_read(tmp_path: Path, tokenizer: Tokenizer, head: bool) -> None:
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


def test_no_other_model_is_taken_for_a_roberta(tmp_path: Path) -> None:
    for header, sentence in (
        ({"model_type": "bert"}, "no text encoder"),
        ({"model_type": "roberta"}, "does not tell vocab_size"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(header))
        with pytest.raises(CheckpointError, match=sentence):
            load_text(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "the prompt is empty"),
        ({"expression": "  "}, "the expression is empty"),
        ({"points": []}, "non-empty list of x, y pairs"),
        ({"points": [(1, 2, 3)]}, "non-empty list of x, y pairs"),
        ({"points": [(1, 2)], "labels": [1, 0]}, r"there are 1 points and labels \[1, 0\]"),
        ({"points": [(1, 2)], "labels": [2]}, "give a 0 or 1 for each point"),
        ({"expression": "a", "labels": [1]}, "labels are given without points"),
        ({"box": (1, 2, 3)}, "the box has 3 numbers"),
        ({"box": (3, 2, 1, 4)}, "is empty; x0 < x1"),
        ({"mask": np.zeros((2, 2, 2), bool)}, r"the mask has shape \(2, 2, 2\)"),
        ({"mask": np.zeros((2, 2), bool), "box": (1, 2, 3, 4)}, "a mask prompt stands alone"),
    ],
)
def test_prompts_that_make_no_sense(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        Prompt(**arguments)  # type: ignore[arg-type]
