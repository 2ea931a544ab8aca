"""Statements and questions about a clip, before they are put into words, and their truth by the facts of the clip.

A statement applies predicates to the objects that its subject names: "the red circle" and "turns back". Everything is
three-valued like the facts: TRUE, FALSE or UNCLEAR. ``grammar.py`` reads statements from text, and ``writer.py`` writes
text from facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.facts import CLAIM_FAMILIES, Facts, TruthValues
from refervos.worlds.movement_facts import FALSE, TRUE, UNCLEAR

Objects = tuple[int, ...]
"""Numbers of objects in ascending order."""

Article = Literal["the", "a", "no"]


@dataclass(frozen=True)
class Phrase:
    """One noun phrase with its article.

    Attributes:
        description: The meaning of the noun phrase.
        article: "the" refers to all that the description is true of, "a" says that there are such objects, and "no"
            that there are none.
        many: Whether it is in the plural.
        count: The number that it gives, if any.
    """

    description: Description
    article: Article = "the"
    many: bool = False
    count: int | None = None

    def named(self, facts: Facts) -> Objects | None:
        """Find the objects that the phrase refers to.

        Args:
            facts: Of the clip.

        Returns:
            The objects; none where it is clear that nothing fits, and None where it is unclear which are meant.
        """
        truths = facts.evaluate(self.description)
        if (truths == FALSE).all():
            return ()
        objects = _indices(truths == TRUE)
        if (truths == UNCLEAR).any() or not facts.recognisable[list(objects)].all():
            return None
        if self.count is not None and self.count != len(objects):
            return ()
        if self.many:
            return objects
        return objects if len(objects) == 1 else None

    def truth(self, facts: Facts, holds: TruthValues) -> int:
        """Decide whether something holds of the objects that the phrase names.

        Args:
            facts: Of the clip.
            holds: Whether it holds of each object (K,).

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        fits = facts.evaluate(self.description)
        if self.article == "the":
            objects = self.named(facts)
            if objects is not None:
                return int(holds[list(objects)].min()) if objects else FALSE
            # It is unclear which are meant, but the statement is false of them all.
            return FALSE if (holds[fits != FALSE] == FALSE).all() else UNCLEAR
        both = np.minimum(fits, holds)
        if self.article == "no":
            return -int(both.max(initial=FALSE))
        clear = int(((both == TRUE) & facts.recognisable).sum())
        possible = int((both != FALSE).sum())
        least = self.count if self.count is not None else 2 if self.many else 1
        most = possible if self.count is None else self.count
        if clear >= least and possible <= most:
            return TRUE
        return FALSE if possible < least or int((both == TRUE).sum()) > most else UNCLEAR


@dataclass(frozen=True)
class Mention:
    """The subject of a statement: noun phrases joined by "and", or a pronoun when there are none."""

    phrases: tuple[Phrase, ...] = ()

    def named(self, facts: Facts, focus: Objects | None) -> Objects | None:
        """Find the objects that are meant, see ``Phrase.named``; ``focus`` are the objects of "it" and "they"."""
        if not self.phrases:
            return focus
        named = [phrase.named(facts) for phrase in self.phrases]
        if any(objects == () for objects in named):
            return ()
        clear = [objects for objects in named if objects is not None]
        return tuple(sorted({i for objects in clear for i in objects})) if len(clear) == len(named) else None

    def truth(self, facts: Facts, holds: TruthValues, focus: Objects | None) -> int:
        """Decide whether something holds of all objects that are meant, see ``Phrase.truth``."""
        if self.phrases:
            return min(phrase.truth(facts, holds) for phrase in self.phrases)
        if focus is None:
            return FALSE if (holds == FALSE).all() else UNCLEAR
        return int(holds[list(focus)].min()) if focus else FALSE


@dataclass(frozen=True)
class Predicate:
    """A property that a statement gives to its subject.

    Attributes:
        said: A claim about place, size, relation or motion, or a look such as "striped" or "a red circle".
        negated: Whether it is said not to be so.
    """

    said: Claim | Noun
    negated: bool = False

    @property
    def aspect(self) -> str:
        """Its family: "look", "place", "size", "relation" or "motion"."""
        return CLAIM_FAMILIES[self.said.word] if isinstance(self.said, Claim) else "look"

    def truths(self, facts: Facts) -> TruthValues:
        """Decide of which objects it is true (K,); comparing words compare with everything in the clip."""
        if isinstance(self.said, Noun):
            truths = facts.evaluate_noun(self.said)
        else:
            truths = facts.evaluate_claim(self.said, facts.evaluate_noun(Noun()))
            if self.said.reference is not None and facts.find_reference(self.said.reference) == -1:
                return truths  # nobody says that something is not left of what is not there
        return (-truths).astype(np.int8) if self.negated else truths


@dataclass(frozen=True)
class Statement:
    """A subject and its predicates; without predicates it says that the subject is there."""

    subject: Mention
    predicates: tuple[Predicate, ...] = ()

    def truth(self, facts: Facts, focus: Objects | None = None) -> int:
        """Decide the statement.

        Args:
            facts: Of the clip.
            focus: The objects of "it" and "they"; None where they are unclear.

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        return self.subject.truth(facts, self._holds(facts), focus)

    def named(self, facts: Facts, phrase: Phrase) -> Objects | None:
        """Find the objects of one of the subject's phrases; after "a", those of which the predicates are true."""
        if phrase.article != "a":
            return phrase.named(facts)
        both = np.minimum(facts.evaluate(phrase.description), self._holds(facts))
        objects = _indices(both == TRUE)
        if (both == UNCLEAR).any() or not facts.recognisable[list(objects)].all():
            return None
        return objects if phrase.many or len(objects) <= 1 else None

    def _holds(self, facts: Facts) -> TruthValues:
        """Of which objects all predicates are true (K,)."""
        return np.minimum.reduce(
            [np.full(len(facts.ever_visible), TRUE, np.int8), *(p.truths(facts) for p in self.predicates)]
        )


@dataclass(frozen=True)
class Identification:
    """An answer to "which": "It is the red circle", or "It is [SEG]" when the mask alone says which."""

    named: Mention | None


@dataclass(frozen=True)
class Absence:
    """The answer that no such object is there."""


@dataclass(frozen=True)
class Polarity:
    """The answer "yes" or "no"."""

    yes: bool


Said = Statement | Identification | Absence | Polarity

QUESTION_KINDS = (
    "description",
    "which",
    "referring",
    "count",
    "colour",
    "shape",
    "pattern",
    "place",
    "action",
    "whether",
)
"""Questions for a caption, for an object, for an object in the published words, for a number, for three looks, for a
place, for a movement, and for yes or no."""


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        kind: One of ``QUESTION_KINDS``.
        statement: The subject alone for looks, places and actions; the statement in question for "whether"; and for
            "which", "referring" and "count" a subject that describes the objects in question.
    """

    kind: str
    statement: Statement = Statement(Mention())

    @property
    def motion(self) -> bool:
        """Whether motion must be seen to answer it."""
        said = [phrase.description.claim for phrase in self.statement.subject.phrases]
        words = [claim.word for claim in said if claim is not None]
        words += [p.said.word for p in self.statement.predicates if isinstance(p.said, Claim)]
        return self.kind == "action" or any(CLAIM_FAMILIES[word] == "motion" for word in words)

    def focus(self, facts: Facts, before: Objects | None = ()) -> Objects | None:
        """Find the objects of "it" in answers and in the next question.

        Args:
            facts: Of the clip.
            before: The objects of "it" before this question.

        Returns:
            The objects; none where nothing fits, None where it is unclear.
        """
        phrases = self.statement.subject.phrases
        if self.kind == "description" or not phrases:
            return before
        if len(phrases) > 1:
            return self.statement.subject.named(facts, before)
        if self.kind not in ("which", "referring", "count"):
            return self.statement.named(facts, phrases[0])
        truths = facts.evaluate(phrases[0].description)
        return None if (truths == UNCLEAR).any() else _indices(truths == TRUE)

    def truth_of(self, said: Said, facts: Facts, before: Objects | None = ()) -> int:
        """Decide a statement that is made in answer to the question.

        Args:
            said: The statement.
            facts: Of the clip.
            before: The objects of "it" before this question.

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        focus = self.focus(facts, before)
        if isinstance(said, Statement):
            return said.truth(facts, focus)
        if isinstance(said, Polarity):
            if self.kind != "whether":
                return UNCLEAR
            truth = self.statement.truth(facts, before)
            return truth if said.yes else -truth
        if self.kind not in ("which", "referring"):
            return UNCLEAR
        if isinstance(said, Absence):
            return UNCLEAR if focus is None else FALSE if focus else TRUE
        if said.named is None:
            return UNCLEAR if focus is None else TRUE if focus else FALSE
        named = said.named.named(facts, focus)
        if named == () or focus == ():
            return FALSE
        if named is None or focus is None:
            return UNCLEAR
        return TRUE if named == focus else FALSE

    def answered_by(self, said: Said) -> bool:
        """Tell whether a statement addresses the question, true or not."""
        if isinstance(said, Polarity):
            return self.kind == "whether"
        if isinstance(said, Identification | Absence):
            return self.kind in ("which", "referring")
        phrases = said.subject.phrases
        if self.kind == "description":
            return True
        if self.kind == "which":  # "Nothing turns back."
            return bool(phrases) and phrases[0].article == "no"
        if self.kind == "count":
            (asked,) = self.statement.subject.phrases
            counted = bool(phrases) and (phrases[0].count is not None or phrases[0].article == "no")
            return counted and phrases[0].description.noun in (asked.description.noun, Noun())
        if self.kind == "whether":
            return self.statement == said
        told = [predicate for predicate in said.predicates if not predicate.negated]
        looks = [predicate.said for predicate in told if isinstance(predicate.said, Noun)]
        if self.kind in ("colour", "pattern", "shape"):
            name = {"colour": "colour", "pattern": "texture", "shape": "kind"}[self.kind]
            return any(getattr(look, name) for look in looks)
        if self.kind == "place":
            return any(p.aspect in ("place", "relation") for p in told)
        return any(p.aspect == "motion" for p in told)


def _indices(chosen: np.ndarray) -> Objects:
    return tuple(int(index) for index in np.flatnonzero(chosen))
