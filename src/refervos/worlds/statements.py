"""Meaning of statements and questions about a clip, independent of their wording, and their truth values.

A statement applies predicates such as "turns back" to the objects of its subject, "the red circle". All truth values
are TRUE, FALSE or UNCLEAR, like the facts. ``grammar.py`` parses statements, ``conversation_writer.py`` writes text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.facts import CLAIM_FAMILIES, Facts, TruthValues
from refervos.worlds.movement_facts import FALSE, TRUE, UNCLEAR

Objects = tuple[int, ...]
"""Indices of objects in ascending order."""

Article = Literal["the", "a", "no"]


@dataclass(frozen=True)
class Phrase:
    """Noun phrase with its article.

    Attributes:
        description: The meaning of the noun phrase.
        article: "the" refers to all objects that match the description, "a" asserts that such objects exist, and "no"
            that none exists.
        many: Whether it is in the plural.
        count: The stated number, if any.
    """

    description: Description
    article: Article = "the"
    many: bool = False
    count: int | None = None

    def resolve(self, facts: Facts) -> Objects | None:
        """Find the objects that the phrase refers to.

        Args:
            facts: Facts of the clip.

        Returns:
            The objects; empty if clearly none matches, None if it is unclear which are meant.
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
        """Evaluate a predicate of the phrase.

        Args:
            facts: Facts of the clip.
            holds: Truth values of the predicate for each object (K,).

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        matches = facts.evaluate(self.description)
        if self.article == "the":
            objects = self.resolve(facts)
            if objects is not None:
                return int(holds[list(objects)].min()) if objects else FALSE
            # It is unclear which objects are meant, but the predicate may be false of all candidates.
            return FALSE if (holds[matches != FALSE] == FALSE).all() else UNCLEAR
        both = np.minimum(matches, holds)
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
    """Subject of a statement: noun phrases joined by "and", or a pronoun if there are none."""

    phrases: tuple[Phrase, ...] = ()

    def resolve(self, facts: Facts, focus: Objects | None) -> Objects | None:
        """Find the objects that the subject refers to, see ``Phrase.resolve``; "it" and "they" refer to ``focus``."""
        if not self.phrases:
            return focus
        resolved = [phrase.resolve(facts) for phrase in self.phrases]
        if any(objects == () for objects in resolved):
            return ()
        clear = [objects for objects in resolved if objects is not None]
        return tuple(sorted({i for objects in clear for i in objects})) if len(clear) == len(resolved) else None

    def truth(self, facts: Facts, holds: TruthValues, focus: Objects | None) -> int:
        """Evaluate a predicate of the subject, see ``Phrase.truth``."""
        if self.phrases:
            return min(phrase.truth(facts, holds) for phrase in self.phrases)
        if focus is None:
            return FALSE if (holds == FALSE).all() else UNCLEAR
        return int(holds[list(focus)].min()) if focus else FALSE


@dataclass(frozen=True)
class Predicate:
    """Predicate of a statement.

    Attributes:
        content: A claim about place, size, relation or motion, or a look such as "striped" or "a red circle".
        negated: Whether the predicate is negated.
    """

    content: Claim | Noun
    negated: bool = False

    @property
    def aspect(self) -> str:
        """Family of the predicate: "look", "place", "size", "relation" or "motion"."""
        return CLAIM_FAMILIES[self.content.word] if isinstance(self.content, Claim) else "look"

    def evaluate(self, facts: Facts) -> TruthValues:
        """Evaluate the predicate for every object (K,); superlatives compare with all objects of the clip."""
        if isinstance(self.content, Noun):
            truths = facts.evaluate_noun(self.content)
        else:
            truths = facts.evaluate_claim(self.content, facts.evaluate_noun(Noun()))
            if self.content.reference is not None and facts.find_reference(self.content.reference) == -1:
                return truths  # negation does not make a relation to an absent object true
        return (-truths).astype(np.int8) if self.negated else truths


@dataclass(frozen=True)
class Statement:
    """Subject and predicates; without predicates it asserts that the subject exists."""

    subject: Mention
    predicates: tuple[Predicate, ...] = ()

    def truth(self, facts: Facts, focus: Objects | None = None) -> int:
        """Evaluate the statement.

        Args:
            facts: Facts of the clip.
            focus: The objects of "it" and "they"; None if they are unclear.

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        return self.subject.truth(facts, self._holds(facts), focus)

    def resolve_phrase(self, facts: Facts, phrase: Phrase) -> Objects | None:
        """Find the objects of one of the subject's phrases; for "a", those for which the predicates are true."""
        if phrase.article != "a":
            return phrase.resolve(facts)
        both = np.minimum(facts.evaluate(phrase.description), self._holds(facts))
        objects = _indices(both == TRUE)
        if (both == UNCLEAR).any() or not facts.recognisable[list(objects)].all():
            return None
        return objects if phrase.many or len(objects) <= 1 else None

    def _holds(self, facts: Facts) -> TruthValues:
        """Evaluate the conjunction of the predicates for every object (K,)."""
        return np.minimum.reduce(
            [np.full(len(facts.ever_visible), TRUE, np.int8), *(p.evaluate(facts) for p in self.predicates)]
        )


@dataclass(frozen=True)
class Identification:
    """Answer to "which": "It is the red circle", or "It is [SEG]" with the mask alone."""

    mention: Mention | None


@dataclass(frozen=True)
class Absence:
    """Answer "there is no such object"."""


@dataclass(frozen=True)
class Polarity:
    """Answer "yes" or "no"."""

    yes: bool


Assertion = Statement | Identification | Absence | Polarity
"""Meaning of one clause of an answer."""

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
"""Kinds of questions: for a caption, an object, an object in the published wording, a number, three aspects of
appearance, a place, a movement, and yes or no."""


@dataclass(frozen=True)
class Question:
    """Question about a clip.

    Attributes:
        kind: One of ``QUESTION_KINDS``.
        statement: For "whether" the statement in question; for "which", "referring" and "count" a subject that
            describes the objects in question; for the other kinds the subject alone.
    """

    kind: str
    statement: Statement = Statement(Mention())

    @property
    def motion(self) -> bool:
        """True if the answer depends on motion."""
        claims = [phrase.description.claim for phrase in self.statement.subject.phrases]
        words = [claim.word for claim in claims if claim is not None]
        words += [p.content.word for p in self.statement.predicates if isinstance(p.content, Claim)]
        return self.kind == "action" or any(CLAIM_FAMILIES[word] == "motion" for word in words)

    def focus(self, facts: Facts, before: Objects | None = ()) -> Objects | None:
        """Find the objects to which "it" refers in answers and in the next question.

        Args:
            facts: Facts of the clip.
            before: The objects of "it" before this question.

        Returns:
            The objects; empty if none matches, None if they are unclear.
        """
        phrases = self.statement.subject.phrases
        if self.kind == "description" or not phrases:
            return before
        if len(phrases) > 1:
            return self.statement.subject.resolve(facts, before)
        if self.kind not in ("which", "referring", "count"):
            return self.statement.resolve_phrase(facts, phrases[0])
        truths = facts.evaluate(phrases[0].description)
        return None if (truths == UNCLEAR).any() else _indices(truths == TRUE)

    def truth_of(self, assertion: Assertion, facts: Facts, before: Objects | None = ()) -> int:
        """Evaluate an assertion made in answer to the question.

        Args:
            assertion: The assertion.
            facts: Facts of the clip.
            before: The objects of "it" before this question.

        Returns:
            TRUE, FALSE or UNCLEAR.
        """
        focus = self.focus(facts, before)
        if isinstance(assertion, Statement):
            return assertion.truth(facts, focus)
        if isinstance(assertion, Polarity):
            if self.kind != "whether":
                return UNCLEAR
            truth = self.statement.truth(facts, before)
            return truth if assertion.yes else -truth
        if self.kind not in ("which", "referring"):
            return UNCLEAR
        if isinstance(assertion, Absence):
            return UNCLEAR if focus is None else FALSE if focus else TRUE
        if assertion.mention is None:
            return UNCLEAR if focus is None else TRUE if focus else FALSE
        objects = assertion.mention.resolve(facts, focus)
        if objects == () or focus == ():
            return FALSE
        if objects is None or focus is None:
            return UNCLEAR
        return TRUE if objects == focus else FALSE

    def answered_by(self, assertion: Assertion) -> bool:
        """Return whether an assertion addresses the question, true or not."""
        if isinstance(assertion, Polarity):
            return self.kind == "whether"
        if isinstance(assertion, Identification | Absence):
            return self.kind in ("which", "referring")
        phrases = assertion.subject.phrases
        if self.kind == "description":
            return True
        if self.kind == "which":  # "Nothing turns back."
            return bool(phrases) and phrases[0].article == "no"
        if self.kind == "count":
            (phrase,) = self.statement.subject.phrases
            counted = bool(phrases) and (phrases[0].count is not None or phrases[0].article == "no")
            return counted and phrases[0].description.noun in (phrase.description.noun, Noun())
        if self.kind == "whether":
            return self.statement == assertion
        positive = [predicate for predicate in assertion.predicates if not predicate.negated]
        looks = [predicate.content for predicate in positive if isinstance(predicate.content, Noun)]
        if self.kind in ("colour", "pattern", "shape"):
            name = {"colour": "colour", "pattern": "texture", "shape": "kind"}[self.kind]
            return any(getattr(look, name) for look in looks)
        if self.kind == "place":
            return any(p.aspect in ("place", "relation") for p in positive)
        return any(p.aspect == "motion" for p in positive)


def _indices(chosen: np.ndarray) -> Objects:
    return tuple(int(index) for index in np.flatnonzero(chosen))
