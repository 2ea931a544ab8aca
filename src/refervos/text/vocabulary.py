"""Words that a model with a closed vocabulary was never trained on."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from refervos.errors import UnknownWordsWarning

_APOSTROPHE = "\u2019"
"""The typographic apostrophe."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

_LISTED = 10
"""Maximum number of words in a warning."""

FOR_SENTENCES = (
    "masks for these words are guesses. Run 'refervos models fetch samwise-mevis' for weights trained on real videos, "
    "then use --model samwise-mevis or refervos.load('samwise-mevis')."
)
"""Consequence of unknown words in a referring expression."""

_FUNCTION_WORDS = (
    "a about above across after against all along also am an and another any are around as at away be because been "
    "before behind being below beneath beside besides between beyond both but by can could did do does doing done "
    "down during each either else every few first for from had has have having he her here hers herself him himself "
    "his how i if in inside into is it its itself just last least less like many may me might mine more most much "
    "must my near neither next no nor not of off on once one only onto opposite or other others our ours out "
    "outside over own past per same second shall she should since so some such than that the their theirs them "
    "themselves then there these they third this those through to together too toward towards under underneath "
    "until up upon us very was we were what when where whether which while who whom whose will with within without "
    "would yet you your yours"
)

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that say nothing about an object's looks; no model needs to have seen them to be trusted."""


def unknown_words(expression: str, words: Collection[str]) -> tuple[str, ...]:
    """List the words of a sentence that are not in a vocabulary, each once and in order.

    Capitals, punctuation, the endings of plurals and verbs, and function words do not count.

    Args:
        expression: The sentence.
        words: The vocabulary in lower case; an empty one is open and has all words.

    Returns:
        The words in lower case.
    """
    if not words:
        return ()
    return tuple(dict.fromkeys(word for word in words_of(expression) if not _is_known(word, words)))


def word_level_words(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a word-level tokenizer's vocabulary, without markup, in alphabetical order."""
    return tuple(sorted(token for token in vocabulary if _WORD.fullmatch(token)))


def words_of(expression: str) -> list[str]:
    """Return the words of a sentence in order, in lower case and without the ending of the genitive."""
    return [match.removesuffix("'s") for match in _WORD.findall(expression.lower().replace(_APOSTROPHE, "'"))]


def _is_known(word: str, words: Collection[str]) -> bool:
    return word in FUNCTION_WORDS or any(form in words for form in _forms(word))


def _forms(word: str) -> list[str]:
    """Return a word with and without the endings of plurals and verbs: circle, circles; box, boxes; berry, berries."""
    forms = [word, f"{word}s", f"{word}es"]
    if word.endswith("s"):
        forms.append(word[:-1])
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("ies"):
        forms.append(f"{word[:-3]}y")
    if word.endswith("y"):
        forms.append(f"{word[:-1]}ies")
    return forms


def warn_of_unknown_words(expressions: Iterable[str], words: Collection[str], *, stacklevel: int = 2) -> None:
    """Warn once if sentences have words that a model with a closed vocabulary was never trained on.

    Args:
        expressions: The sentences.
        words: The model's vocabulary; empty for an open one, which never warns.
        stacklevel: Whose line the warning names, as for ``warnings.warn``.
    """
    if not words:
        return
    vocabulary = frozenset(words)
    warn_of_words([unknown_words(expression, vocabulary) for expression in expressions], stacklevel=stacklevel + 1)


def warn_of_words(unknown: Sequence[Sequence[str]], *, advice: str = FOR_SENTENCES, stacklevel: int = 2) -> None:
    """Warn once of unknown words, if there are any.

    Args:
        unknown: The unknown words of each sentence.
        advice: What follows from them, and what to use instead.
        stacklevel: See ``warn_of_unknown_words``.
    """
    counts = Counter(word for each in unknown for word in each)
    if not counts:
        return
    listed = [word[:40] for word, _ in counts.most_common(_LISTED)]
    more = f" and {len(counts) - len(listed)} more" if len(counts) > len(listed) else ""
    several = f" ({sum(map(bool, unknown))} of {len(unknown)} sentences)" if len(unknown) > 1 else ""
    warnings.warn(
        f"the model was trained on synthetic drawings only and does not know {', '.join(listed)}{more}{several}: "
        f"{advice}",
        UnknownWordsWarning,
        stacklevel=stacklevel + 1,
    )
