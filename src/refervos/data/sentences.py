"""Which sentences of a data set nothing can be asked with: found before anything is computed, all at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from refervos.data.sample import Sample
from refervos.errors import DataError, PromptError
from refervos.safe_text import printable

MOST_WORDS = 510
"""Words in a sentence; text encoders of the field read 512 tokens, of which each word is one at least."""

MOST_LETTERS = 5000
"""Letters in a sentence, of which a token has ten at most as a rule."""

_LISTED = 5
"""How many sentences are told one by one."""

_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of characters that show nothing


def fault_of(text: str) -> str | None:
    """Tell why nothing can be asked with a sentence, whatever the model.

    Args:
        text: The sentence.

    Returns:
        What is wrong in a few words; None where nothing is.
    """
    if all(unicodedata.category(letter) in _UNSEEN for letter in text):
        return "it is empty"
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        return "it has half a character (a lone surrogate), as is left of an emoji that is cut in two"
    words = len(text.split())
    if words > MOST_WORDS or len(text) > MOST_LETTERS:
        return (
            f"it has {words:,} words and {len(text):,} letters; at most {MOST_WORDS} and {MOST_LETTERS:,} can be read"
        )
    return None


def require_sentences(samples: Iterable[Sample], read: Callable[[str], object] | None = None) -> None:
    """Make sure that sentences can be asked with, before anything is computed.

    Args:
        samples: Whose sentences.
        read: Reads a sentence as a model does, which raises PromptError where it cannot.

    Raises:
        DataError: When some cannot, naming the first few and how many there are.
    """
    faults = []
    for sample in samples:
        fault = fault_of(sample.expression)
        if fault is None and read is not None:
            try:
                read(sample.expression)
            except PromptError as error:
                fault = str(error).rstrip(".")
        if fault is not None:
            faults.append(f"{described(sample)}: {fault}")
    if faults:
        more = f"; and {len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
        told = f"{'; '.join(faults[:_LISTED])}{more}"
        raise DataError(f"{len(faults):,} of the sentences cannot be asked, so nothing was begun: {told}.")


def described(sample: Sample) -> str:
    """What to call a sentence in an error: by its ids, and as it begins."""
    return f"expression {sample.expression_id} about video {sample.video.id} ({printable(sample.expression, 40)!r})"
