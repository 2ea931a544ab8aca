"""Motion words of a sentence, for the motion prompt (SAMWISE paper, section 3.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from refervos.errors import MissingDependencyError

SPACY_MODEL = "en_core_web_sm"


def find_verbs(sentence: str) -> list[tuple[int, int]]:
    """Find the character spans of the verbs of an English sentence.

    Args:
        sentence: The sentence, normalised.

    Returns:
        Start and stop of each verb, in order.

    Raises:
        MissingDependencyError: When spaCy or its English model is not installed.
    """
    document = _english()(sentence)
    return [(token.idx, token.idx + len(token.text)) for token in document if token.pos_ == "VERB"]


@lru_cache(maxsize=1)
def _english() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise MissingDependencyError(
            "this model has a motion prompt, which needs the verbs of the sentence; pass them as Prompt(verbs=[...]) "
            "(--verb at the command line) or install spaCy: pip install 'refervos[motion]'."
        ) from error
    try:
        return spacy.load(SPACY_MODEL)
    except OSError as error:
        raise MissingDependencyError(
            f"spaCy is installed but its English model is not: python -m spacy download {SPACY_MODEL}, "
            "or pass the verbs as Prompt(verbs=[...]) (--verb at the command line)."
        ) from error
