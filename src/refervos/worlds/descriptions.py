"""Meaning of a referring expression, independent of its wording.

A description is a noun phrase (any of colour, texture and kind) and at most one claim about place, size, relation or
motion. ``facts.py`` decides for which objects it holds; ``wording.py`` puts it into words.
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("colour+kind", "colour", "kind", "texture", "size", "place", "relation", "motion", "group", "none")
"""Families of expressions, by what identifies the target; "group" has several targets and "none" has none."""

MOTION_VERBS = frozenset(
    (
        *("move", "moves", "moving", "stay", "stays", "standing", "go", "goes", "going", "rises", "falls", "turns"),
        *("turning", "bounces", "bouncing", "grows", "growing", "gets", "getting", "shrinks", "shrinking", "spin"),
        *("spins", "spinning", "rotates", "rotating", "speeds", "accelerates", "stops", "starts", "waits", "sets"),
        *("come", "comes", "coming", "enter", "enters", "entering", "leave", "leaves", "leaving", "returns"),
        *("passes", "hidden"),
    )
)
"""Verbs that express motion."""


@dataclass(frozen=True)
class Noun:
    """Noun phrase; empty fields are unspecified.

    Attributes:
        colour: One of ``COLOURS``, or empty.
        texture: One of ``TEXTURES``, or empty.
        kind: One of ``KINDS`` or a sprite's subject, or empty for "object".
    """

    colour: str = ""
    texture: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Claim:
    """Claim about the object of a noun phrase.

    Attributes:
        word: A key of ``facts.CLAIM_FAMILIES``, such as "leftmost", "left of" or "turns back".
        reference: The other object of a relation.
    """

    word: str
    reference: Noun | None = None


@dataclass(frozen=True)
class Description:
    """Noun phrase with an optional claim; it may hold for one object, for several or for none."""

    noun: Noun = Noun()
    claim: Claim | None = None


@dataclass(frozen=True)
class Pair:
    """Two descriptions joined by "and", each true of one object."""

    first: Description
    second: Description


@dataclass(frozen=True)
class Expression:
    """Referring expression about a clip.

    Attributes:
        text: The expression, in lower case.
        targets: Indices of the target objects, in ascending order; empty when there is none.
        family: One of ``FAMILIES``.
        description: Its meaning.
    """

    text: str
    targets: tuple[int, ...]
    family: str
    description: Description | Pair

    @property
    def verbs(self) -> tuple[str, ...]:
        """Motion verbs of the text, for models with a motion prompt."""
        return tuple(dict.fromkeys(word for word in self.text.split() if word in MOTION_VERBS))
