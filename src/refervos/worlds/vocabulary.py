"""The closed vocabulary of conversations about drawn clips, and a tokenizer of whole words over it.

Text is lower-cased; words and punctuation marks are one token each, and so are ``<p>``, ``</p>``, ``[SEG]`` and the
marks of the roles in Phi-3's template. Every other word is ``<unk>``. The files are those that transformers'
``AutoTokenizer`` reads.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from refervos.files.writing import write_atomically
from refervos.worlds.grammar import (
    ABSENT_ANSWER,
    COUNT_QUESTIONS,
    DESCRIPTION_QUESTIONS,
    NAME_QUESTIONS,
    NUMBERS,
    REFERRING_ANSWERS,
    REFERRING_QUESTIONS,
    verb_phrases,
)
from refervos.worlds.shapes import COLOURS, TEXTURES
from refervos.worlds.wording import PHRASES, known_words

PAD, UNKNOWN, END = "<pad>", "<unk>", "<|end|>"
"""Padding, words that are not in the vocabulary, and the end of a turn, which ends the generation too."""

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
"""The marks with which turns begin."""

TAGS = ("[SEG]", "<p>", "</p>")
"""The marks of grounded answers; they are ordinary tokens that stay when special ones are left out of decoded text."""

SYSTEM_PROMPT = "You are a helpful AI assistant."
"""The published first turn."""

_MARKS = (".", ",", "?", "!", ":")
_JOINTS = "yes no there is are nothing it they a an one and while which what how many"
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def conversation_words() -> tuple[str, ...]:
    """List the words of conversations and of the referring sentences about drawn shapes, in alphabetical order."""
    texts = [*known_words(), _JOINTS, *NUMBERS.values(), *COLOURS, *TEXTURES, SYSTEM_PROMPT, ABSENT_ANSWER]
    texts += [*DESCRIPTION_QUESTIONS, *REFERRING_QUESTIONS, *REFERRING_ANSWERS, *COUNT_QUESTIONS]
    texts += [question for questions in NAME_QUESTIONS.values() for question in questions]
    for word in PHRASES:
        for phrase in verb_phrases(word):
            texts += [phrase.form(many=many, negated=negated) for many in (False, True) for negated in (False, True)]
    found = {word for text in texts for word in re.findall(r"[a-z]+", _without_tags(text).lower())}
    return tuple(sorted(found))


def _without_tags(text: str) -> str:
    return re.sub(r"\[SEG\]|</?p>|\{\w*\}", " ", text)


def conversation_tokenizer() -> tokenizers.Tokenizer:
    """Make the tokenizer.

    Returns:
        A tokenizer of whole words: padding is 0, unknown words are 1; decoded text is in lower case, with its
        punctuation set close.
    """
    tokens = (PAD, UNKNOWN, END, *ROLES, *TAGS, *_MARKS, *conversation_words())
    model = tokenizers.Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # at spaces, and each punctuation mark alone
    model.decoder = decoders.WordPiece(cleanup=True)  # there are no pieces; it sets punctuation close
    model.add_special_tokens([_token(token, special=True) for token in (PAD, UNKNOWN, END, *ROLES)])
    model.add_tokens([_token(token, special=False) for token in TAGS])
    return model


def _token(text: str, *, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(text, special=special, normalized=False)


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, with Phi-3's template of a conversation.

    Args:
        folder: An existing folder; files of these names are replaced.

    Raises:
        OutputError: When they cannot be written.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    write_atomically(folder / "tokenizer.json", conversation_tokenizer().to_str(pretty=True).encode())
    write_atomically(folder / "tokenizer_config.json", (json.dumps(settings, indent=2) + "\n").encode())


def unknown_words(text: str) -> tuple[str, ...]:
    """List the words of a text that the vocabulary does not have, each once and in their order.

    Args:
        text: A question, for instance.

    Returns:
        The words, as they are written; punctuation marks among them.
    """
    encoded = _tokenizer().encode(text)
    spans = [span for token, span in zip(encoded.tokens, encoded.offsets, strict=True) if token == UNKNOWN]
    found: dict[str, str] = {}
    for start, stop in spans:
        found.setdefault(text[start:stop].lower(), text[start:stop])
    return tuple(found.values())


@cache
def _tokenizer() -> tokenizers.Tokenizer:
    return conversation_tokenizer()
