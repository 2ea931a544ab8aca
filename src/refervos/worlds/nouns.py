"""Everyday nouns for drawn objects: their synonyms and plurals, and which of them may apply to the same object.

The table is ``nouns.txt``. ``refervos.worlds.drawings`` makes images for it; any other cut-out whose subject is one of
these nouns gets its synonyms, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from refervos.worlds.shapes import KINDS


@dataclass(frozen=True)
class EverydayNoun:
    """One noun of the table.

    Attributes:
        word: The noun.
        synonyms: Other words with the same meaning.
        unseen: Synonyms that no sentence about an image uses in training; they test whether a model understands words
            that it knows from a teacher of meanings at most.
        drawings: Code points of its emoji drawings, such as ``1f436`` and ``1f415``; several are joined by ``-``.
        plural: Its plural.
        plural_only: Whether the noun itself is a plural, such as "scissors".
        recolourable: Whether such an object may have any colour.
        ambiguous_with: Nouns and shapes that may or may not apply to such an object.
    """

    word: str
    synonyms: tuple[str, ...]
    unseen: tuple[str, ...]
    drawings: tuple[str, ...]
    plural: str
    plural_only: bool
    recolourable: bool
    ambiguous_with: frozenset[str]


@cache
def everyday_nouns() -> Mapping[str, EverydayNoun]:
    """Read the table of nouns.

    Returns:
        The nouns by their words, in the table's order.
    """
    text = files(__package__).joinpath("nouns.txt").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line and not line.startswith("#")]
    nouns = [_noun(*(part.strip() for part in row)) for row in rows]
    return {noun.word: noun for noun in nouns}


def _noun(word: str, synonyms: str, drawings: str, notes: str) -> EverydayNoun:
    names = _parts(synonyms, ",")
    marks = _parts(notes, ";")
    values = {mark.split()[0]: mark.partition(" ")[2] for mark in marks}
    plural_only = "many" in values
    return EverydayNoun(
        word,
        synonyms=tuple(name for name in names if not name.startswith("(")),
        unseen=tuple(name.strip("()") for name in names if name.startswith("(")),
        drawings=tuple(drawings.split()),
        plural=values.get("pl", word if plural_only else regular_plural(word)),
        plural_only=plural_only,
        recolourable="hue" in values,
        ambiguous_with=frozenset(_parts(values.get("like", ""), ",")),
    )


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def plural(word: str) -> str:
    """Return the plural of a noun: "crosses", "butterflies", "mice", "cups of tea"."""
    known = everyday_nouns().get(word)
    return regular_plural(word) if known is None else known.plural


def regular_plural(word: str) -> str:
    """Return the regular plural of a noun, without the table of irregular ones."""
    for joint in (" of ", " with ", " on "):
        head, found, rest = word.partition(joint)
        if found:
            return f"{regular_plural(head)}{joint}{rest}"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def is_plural(word: str) -> bool:
    """Return whether a noun is a plural itself, such as "scissors" or "trousers"."""
    return word in _plurals()


@cache
def _plurals() -> frozenset[str]:
    counted = [noun for noun in everyday_nouns().values() if noun.plural_only]
    names = {name for noun in counted for name in (noun.word, *noun.synonyms, *noun.unseen)}
    return frozenset(name for name in names if name.endswith("s") and " of " not in name)


def names_of(kind: str, *, unseen: bool = False) -> Sequence[str]:
    """List the nouns for a kind of object.

    Args:
        kind: A shape, an everyday noun, or another subject of a sprite.
        unseen: Return the synonyms that training never uses, if there are any.

    Returns:
        The nouns; one that is listed twice is used twice as often.
    """
    if kind in KINDS:
        return KINDS[kind]
    noun = everyday_nouns().get(kind)
    if noun is None:
        return (kind,)
    if unseen and noun.unseen:
        return noun.unseen
    # The noun itself as often as all synonyms together.
    return (*(noun.word,) * max(1, len(noun.synonyms)), *noun.synonyms)


@cache
def nouns_overlap(first: str, second: str) -> bool:
    """Return whether two kinds may apply to the same object.

    Args:
        first: A shape, an everyday noun, or another subject of a sprite.
        second: Likewise.

    Returns:
        True if they share a name, one name ends with the other ("police car" and "car"), or the table marks them as
        ambiguous.
    """
    nouns = everyday_nouns()
    one, other = nouns.get(first), nouns.get(second)
    if (one is not None and second in one.ambiguous_with) or (other is not None and first in other.ambiguous_with):
        return True
    return any(
        a == b or a.endswith(f" {b}") or b.endswith(f" {a}") for a in _all_names(first) for b in _all_names(second)
    )


def _all_names(kind: str) -> set[str]:
    noun = everyday_nouns().get(kind)
    return set(names_of(kind)) if noun is None else {noun.word, *noun.synonyms, *noun.unseen}
