"""Closed vocabulary of conversations about drawn clips, and a word-level tokenizer for it.

Text is lower-cased; each word and punctuation mark is one token, and so are ``<p>``, ``</p>``, ``[SEG]`` and the role
tokens of Phi-3's chat template. All other words become ``<unk>``. The files can be read by transformers'
``AutoTokenizer``.
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
"""Padding, unknown words, and the end of a turn, which also ends generation."""

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
"""First tokens of turns."""

TAGS = ("[SEG]", "<p>", "</p>")
"""Tags of grounded answers; they are ordinary tokens, so that decoding without special tokens keeps them."""

SYSTEM_PROMPT = "You are a helpful AI assistant."
"""Published system prompt."""

_PUNCTUATION = (".", ",", "?", "!", ":")
_FUNCTION_WORDS = "yes no there is are nothing it they a an one and while which what how many"
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def conversation_words() -> tuple[str, ...]:
    """List the words of conversations and referring expressions about drawn shapes, in alphabetical order."""
    texts = [*known_words(), _FUNCTION_WORDS, *NUMBERS.values(), *COLOURS, *TEXTURES, SYSTEM_PROMPT, ABSENT_ANSWER]
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
    """Build the tokenizer.

    Returns:
        A word-level tokenizer: padding is 0, unknown words are 1; decoded text is in lower case, without spaces before
        punctuation.
    """
    tokens = (PAD, UNKNOWN, END, *ROLES, *TAGS, *_PUNCTUATION, *conversation_words())
    model = tokenizers.Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # splits at spaces and around punctuation
    model.decoder = decoders.WordPiece(cleanup=True)  # for its removal of spaces before punctuation
    model.add_special_tokens([_token(token, special=True) for token in (PAD, UNKNOWN, END, *ROLES)])
    model.add_tokens([_token(token, special=False) for token in TAGS])
    return model


def _token(text: str, *, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(text, special=special, normalized=False)


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, with Phi-3's chat template.

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
    """List the words of a text that are not in the vocabulary, each once and in order.

    Args:
        text: Any text, such as a question.

    Returns:
        The words in their original spelling, including punctuation marks.
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
