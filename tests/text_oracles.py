"""Comparison of text encoders and tokenizers with transformers'."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from refervos.prompts import normalise
from refervos.text.tokenizer import Tokenizer
from refervos.worlds import all_sentences

SENTENCES = [
    *all_sentences()[::40],
    "The RED, circle! that's moving?",
    "naïve café \u2013 Ünïcödé ﬁ ½ ①",
    "日本語 と 中文 한국어",
    "🙂 👨‍👩‍👧 flag 🇩🇪",
    "a" * 300,
    "long " * 600,
    "zero\u200bwidth and\u00a0fixed spaces",
    "<mask> <s></s><pad> a<extra_id_0>b <unk>",
    "$1,234.56 (50 %) [x] {y} \\ / @ #",
    "don't we'll I'm",
    "",
]


def assert_same_tokenizer(own: Tokenizer, published: Any) -> None:
    """Check that ids and character offsets equal those of transformers' tokenizer."""
    assert len(own) == len(published)
    assert own.special_ids == sorted(published.all_special_ids)
    for sentence in SENTENCES:
        read = published(sentence, return_offsets_mapping=True)
        encoded = own.model.encode(sentence)
        assert encoded.ids == read["input_ids"], sentence
        assert encoded.offsets == [tuple(span) for span in read["offset_mapping"]], sentence
        assert own.encode(sentence, limit=10_000)[0] == published(normalise(sentence))["input_ids"]


def assert_same_names_and_initialisation(ours: nn.Module, published: nn.Module) -> None:
    """Check that names, shapes and types are equal, and standard deviations of weights similar."""
    own, expected = ours.state_dict(), published.state_dict()
    assert own.keys() == expected.keys()
    for name, value in own.items():
        assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name
        if value.dim() == 1:
            assert value.equal(expected[name]), name  # biases and norms are not random
        else:
            assert value.mean().abs() < 0.1 * value.std(), name
            assert value.std().item() == pytest.approx(expected[name].std().item(), rel=0.1), name
