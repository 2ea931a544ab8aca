"""What a sentence says, before it is put into words.

A description is a noun phrase (any of colour, texture and kind) and at most one claim about place, size, relation or
motion. ``facts.py`` decides of which objects it is true, ``sentences.py`` words it.
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("colour+kind", "colour", "kind", "texture", "size", "place", "relation", "motion", "group", "none")
"""What a sentence tells its targets by: the family that is needed. "group" has several targets and "none" has none."""


MOTION_VERBS = frozenset(
    (
        *("move", "moves", "moving", "stay", "stays", "standing", "go", "goes", "going", "rises", "falls", "turns"),
        *("turning", "bounces", "bouncing", "grows", "growing", "gets", "getting", "shrinks", "shrinking", "spin"),
        *("spins", "spinning", "rotates", "rotating", "speeds", "accelerates", "stops", "starts", "waits", "sets"),
        *("come", "comes", "coming", "enter", "enters", "entering", "leave", "leaves", "leaving", "returns"),
        *("passes", "hidden"),
    )
)
"""The verbs with which the sentences tell motion."""


@dataclass(frozen=True)
class Noun:
    """A noun phrase; what is empty is left open.

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
    """Something said about the noun.

    Attributes:
        word: One of ``facts.CLAIMS``, such as "leftmost", "left of" or "turns back".
        reference: The other object that a relation is about.
    """

    word: str
    reference: Noun | None = None


@dataclass(frozen=True)
class Description:
    """A noun phrase and perhaps a claim; true of one object, of several, or of none."""

    noun: Noun = Noun()
    claim: Claim | None = None


@dataclass(frozen=True)
class Pair:
    """Two descriptions joined by "and", each true of one object."""

    first: Description
    second: Description


@dataclass(frozen=True)
class Expression:
    """A sentence about a clip.

    Attributes:
        text: The sentence, in lower case.
        targets: Indices of the objects it is true of, in ascending order; empty when there is none.
        family: One of ``FAMILIES``.
        description: What it was made from.
    """

    text: str
    targets: tuple[int, ...]
    family: str
    description: Description | Pair

    @property
    def verbs(self) -> tuple[str, ...]:
        """The words of the text that tell motion, for models with a motion prompt."""
        return tuple(dict.fromkeys(word for word in self.text.split() if word in MOTION_VERBS))
