"""Find all expressions of a data set that no model can take as a prompt, before anything is computed."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from refervos.data.sample import Sample
from refervos.errors import DataError, PromptError
from refervos.safe_text import printable

MOST_WORDS = 510
"""Maximum number of words; common text encoders take 512 tokens, and each word is at least one."""

MOST_LETTERS = 5000
"""Maximum number of characters; a token rarely has more than ten."""

_LISTED = 5
"""Number of expressions listed in an error."""

_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of invisible characters


def expression_fault(text: str) -> str | None:
    """Return why a text cannot be a prompt of any model.

    Args:
        text: The expression.

    Returns:
        The reason in a few words; None when the text is valid.
    """
    if all(unicodedata.category(letter) in _UNSEEN for letter in text):
        return "it is empty"
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        return "it contains a lone surrogate, such as half of an emoji"
    words = len(text.split())
    if words > MOST_WORDS or len(text) > MOST_LETTERS:
        return f"it has {words:,} words and {len(text):,} characters; the limits are {MOST_WORDS} and {MOST_LETTERS:,}"
    return None


def require_sentences(samples: Iterable[Sample], read: Callable[[str], object] | None = None) -> None:
    """Check that all expressions can be used as prompts, before anything is computed.

    Args:
        samples: The samples.
        read: The model's text processing, which raises PromptError for an expression that it does not accept.

    Raises:
        DataError: When some cannot be used; it lists the first few and their total number.
    """
    faults = []
    for sample in samples:
        fault = expression_fault(sample.expression)
        if fault is None and read is not None:
            try:
                read(sample.expression)
            except PromptError as error:
                fault = str(error).rstrip(".")
        if fault is not None:
            faults.append(f"{describe_expression(sample)}: {fault}")
    if faults:
        more = f"; and {len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
        listed = f"{'; '.join(faults[:_LISTED])}{more}"
        raise DataError(f"{len(faults):,} of the expressions cannot be used, so nothing was started: {listed}.")


def describe_expression(sample: Sample) -> str:
    """Name an expression in an error message by its ids and its first words."""
    return f"expression {sample.expression_id} about video {sample.video.id} ({printable(sample.expression, 40)!r})"
