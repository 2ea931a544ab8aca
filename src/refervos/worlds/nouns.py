"""Everyday nouns that drawn worlds can show: what they are called, and which may be taken for each other.

The table is ``nouns.txt``. Pictures for it are made by ``refervos.worlds.drawings``; any other cut-out whose file name
is one of its nouns is called by it as well.
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
        synonyms: Other words for the same.
        unseen: Synonyms that training never uses: with them it is tested whether a model reads words it was not shown.
        drawings: Code points of its emoji drawings, such as ``1f436`` and ``1f415``; several are joined by ``-``.
        plural: The noun for several.
        many: Whether the noun itself is a plural, such as "scissors".
        recolourable: Whether it stays what it is in another colour.
        like: Nouns and shapes of which it is not clear whether they are true of it.
    """

    word: str
    synonyms: tuple[str, ...]
    unseen: tuple[str, ...]
    drawings: tuple[str, ...]
    plural: str
    many: bool
    recolourable: bool
    like: frozenset[str]


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
    told = {mark.split()[0]: mark.partition(" ")[2] for mark in marks}
    many = "many" in told
    return EverydayNoun(
        word,
        synonyms=tuple(name for name in names if not name.startswith("(")),
        unseen=tuple(name.strip("()") for name in names if name.startswith("(")),
        drawings=tuple(drawings.split()),
        plural=told.get("pl", word if many else regular_plural(word)),
        many=many,
        recolourable="hue" in told,
        like=frozenset(_parts(told.get("like", ""), ",")),
    )


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def plural(word: str) -> str:
    """Put a noun into the plural: "crosses", "butterflies", "mice", "cups of tea"."""
    known = everyday_nouns().get(word)
    return regular_plural(word) if known is None else known.plural


def regular_plural(word: str) -> str:
    """Put a noun into the plural by the rules alone."""
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
    """Tell whether a noun or one of its synonyms is a plural itself, such as "scissors" or "trousers"."""
    return word in _plurals()


@cache
def _plurals() -> frozenset[str]:
    counted = [noun for noun in everyday_nouns().values() if noun.many]
    names = {name for noun in counted for name in (noun.word, *noun.synonyms, *noun.unseen)}
    return frozenset(name for name in names if name.endswith("s") and " of " not in name)


def names_of(kind: str, *, unseen: bool = False) -> Sequence[str]:
    """Tell what a kind of thing is called.

    Args:
        kind: A shape, an everyday noun, or what else a sprite shows.
        unseen: Call it by the synonyms that training never uses, where there are any.

    Returns:
        The words; one that is there twice is used twice as often.
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
def may_be(word: str, kind: str) -> bool:
    """Tell whether people may call something of one kind by the name of another.

    Args:
        word: The kind that is asked for.
        kind: The kind that something is.

    Returns:
        Whether it is unclear that it is none: they share a name, one is the end of the other's name ("car" and "police
        car"), or the table says that they are alike.
    """
    nouns = everyday_nouns()
    one, other = nouns.get(word), nouns.get(kind)
    if (one is not None and kind in one.like) or (other is not None and word in other.like):
        return True
    called, calls = _all_names(kind), _all_names(word)
    return any(a == b or a.endswith(f" {b}") or b.endswith(f" {a}") for a in called for b in calls)


def _all_names(kind: str) -> set[str]:
    noun = everyday_nouns().get(kind)
    return set(names_of(kind)) if noun is None else {noun.word, *noun.synonyms, *noun.unseen}
