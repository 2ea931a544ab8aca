"""Referring expressions about a clip, for one object, for several, and for objects that are absent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from refervos.worlds.descriptions import FAMILIES, Claim, Description, Expression, Noun, Pair
from refervos.worlds.facts import (
    CLAIM_FAMILIES,
    EXTREMES,
    FALSE,
    SIZES,
    TRUE,
    UNCLEAR,
    WITH_REFERENCE,
    Facts,
)
from refervos.worlds.movement_facts import FEWEST_FRAMES
from refervos.worlds.render import Clip
from refervos.worlds.scene import Thing
from refervos.worlds.shapes import COLOURS, KINDS, TEXTURES
from refervos.worlds.wording import GENERIC, PLURAL_PHRASES, Lexicon, word_description, word_group

TruthValues = npt.NDArray[np.int8]
Item = TypeVar("Item")

MAX_PER_FAMILY = 2
"""Maximum number of expressions of one family about one object."""

MAX_GROUPS = 4
"""Maximum number of expressions about several objects of a clip."""

MIN_ABSENT, MAX_ABSENT = 2, 6
"""Minimum and maximum number of expressions about absent objects of a clip."""

_SUPERLATIVES = frozenset({*EXTREMES, *SIZES, "fastest", "nearest to"})
"""Words that compare with the other objects to which the noun phrase may apply."""

_OTHER_KINDS = 8
"""Number of subjects of sprites that are tried in the place of another one for a near miss."""

_REDUNDANT = 0.2
"""Probability of a claim that is not needed to identify the object; people add such claims, too."""


def referring_expressions(
    clip: Clip, rng: np.random.Generator, subjects: Sequence[str] = (), *, unseen: bool = False
) -> list[Expression]:
    """Generate expressions that are clearly true of exactly their targets and clearly false of everything else.

    Args:
        clip: The clip.
        rng: Chooses meanings and wordings.
        subjects: Subjects of sprites, used as nouns for absent objects.
        unseen: Use the synonyms that training never uses, if there are any.

    Returns:
        For each recognisable object at most ``MAX_PER_FAMILY`` expressions of each family; then at most ``MAX_GROUPS``
        about several objects, and ``MIN_ABSENT`` to ``MAX_ABSENT`` about absent objects.
    """
    finder = _Finder(clip, rng, subjects, unseen=unseen)
    found: list[Expression] = []
    for index in np.flatnonzero(finder.facts.recognisable):
        found += finder.for_object(int(index))
    found += finder.groups()
    found += finder.absent()
    return found


def sample_expressions(
    clip: Clip,
    rng: np.random.Generator,
    count: int,
    families: Mapping[str, float] | None = None,
    subjects: Sequence[str] = (),
    pairs: float = 0.0,
    facts: Facts | None = None,
) -> list[Expression]:
    """Sample a few expressions by family; much cheaper than ``referring_expressions``.

    Args:
        clip: The clip.
        rng: Chooses meanings and wordings.
        count: Number of expressions.
        families: Weight of each family, by name; default equal weights. A family without an expression about the clip
            is skipped.
        subjects: See ``referring_expressions``.
        pairs: Share of the expressions about one object that are followed by a near miss: the same expression with one
            word changed, so that it applies to no object. A model must learn to distinguish the two.
        facts: Facts of the clip, if they are known already.

    Returns:
        Between one and ``count`` expressions; except for near misses, all have different targets.
    """
    finder = _Finder(clip, rng, subjects, facts=facts)
    weights = families or dict.fromkeys(FAMILIES, 1.0)
    chosen: list[Expression] = []
    for _ in range(count):
        if len(chosen) == count:  # near misses came with some
            break
        left = {family: weight for family, weight in weights.items() if weight > 0}
        taken = {expression.targets for expression in chosen}
        while left:
            odds = np.array(list(left.values()))
            family = list(left)[int(rng.choice(len(left), p=odds / odds.sum()))]
            fresh = finder.of_family(family, taken)
            if fresh:
                chosen.append(fresh[int(rng.integers(len(fresh)))])
                break
            del left[family]
        if pairs and left and len(chosen) < count and rng.random() < pairs:
            chosen += finder.near_miss(chosen[-1])
    return chosen or finder.absent()[:1]


def decidable_from(clip: Clip, expression: Expression, every: int = 2) -> int:
    """Find the first frame at which the frames so far determine the targets of an expression.

    Expressions without motion are decidable at once. For the others the facts of the first frames alone are evaluated:
    earlier, no online model can know which of several objects is meant.

    Args:
        clip: The clip, of T frames.
        expression: An expression about it.
        every: Step between the lengths that are tried.

    Returns:
        The frame's index, at most T - 1.
    """
    parts = expression.description
    descriptions = (parts.first, parts.second) if isinstance(parts, Pair) else (parts,)
    claims = [description.claim for description in descriptions if description.claim is not None]
    last = len(clip.frames) - 1
    if not any(CLAIM_FAMILIES[claim.word] == "motion" for claim in claims):
        return 0
    for length in range(FEWEST_FRAMES, last + 1, every):
        facts = Facts.of(clip.at(np.arange(length)))
        truths = np.stack([facts.evaluate(description) for description in descriptions]).max(axis=0)
        settled = expression.targets or (truths == FALSE).all()
        if settled and tuple(np.flatnonzero(truths == TRUE)) == expression.targets:
            return length - 1
    return last


def family_of(facts: Facts, description: Description) -> str:
    """Determine the family of a description of one object: the last of its parts that is needed.

    Args:
        facts: Facts of the clip.
        description: A description that is true of exactly one object.

    Returns:
        One of ``FAMILIES``.
    """
    noun, claim = description.noun, description.claim
    if claim is not None and not _settles(facts.evaluate_noun(noun)):
        return CLAIM_FAMILIES[claim.word]
    if noun.texture and not _settles(facts.evaluate_noun(replace(noun, texture=""))):
        return "texture"
    if noun.colour and noun.kind:
        return "colour+kind"
    return "colour" if noun.colour else "kind" if noun.kind else "texture"


def _settles(truths: TruthValues) -> bool:
    """Return whether truth values single out one object."""
    return int((truths == TRUE).sum()) == 1 and not (truths == UNCLEAR).any()


class _Finder:
    """Finder of true and false expressions about one clip.

    Attributes:
        facts: Facts of the clip.
        rng: Chooses meanings and wordings.
        things: The objects.
        subjects: Subjects of sprites, used as nouns for absent objects.
        lexicon: Nouns for each kind.
        claims: Truth values of all claims that do not depend on the noun phrase.
    """

    def __init__(
        self,
        clip: Clip,
        rng: np.random.Generator,
        subjects: Sequence[str] = (),
        *,
        unseen: bool = False,
        facts: Facts | None = None,
    ) -> None:
        self.facts = Facts.of(clip) if facts is None else facts
        self.rng = rng
        self.things = clip.scene.objects
        cut_outs = any(thing.sprite is not None for thing in self.things)
        self.subjects = subjects
        generic = tuple(word for word in GENERIC if not (cut_outs and word == "shape"))
        self.lexicon = Lexicon(generic, unseen)
        everything = self.facts.evaluate_noun(Noun())
        self.claims: dict[Claim, TruthValues] = {
            claim: self.facts.evaluate_claim(claim, everything)
            for claim in self._all_claims()
            if claim.word not in _SUPERLATIVES
        }

    def _all_claims(self) -> Iterator[Claim]:
        """Yield every claim, with each reference that a noun phrase identifies."""
        references = [
            noun
            for index in np.flatnonzero(self.facts.recognisable)
            for noun in self._names(int(index))
            if _settles(self.facts.evaluate_noun(noun))
        ]
        for word in CLAIM_FAMILIES:
            if word not in WITH_REFERENCE:
                yield Claim(word)
            else:
                yield from (Claim(word, noun) for noun in references)

    def _names(self, index: int) -> list[Noun]:
        """List the noun phrases for an object as the reference of a relation."""
        thing = self.things[index]
        return [Noun(colour=thing.colour, kind=thing.kind), Noun(kind=thing.kind)] if thing.kind else []

    def _nouns(self, thing: Thing) -> list[Noun]:
        """List the noun phrases that are true of an object, from "object" to the most specific."""
        options = [
            Noun(colour, texture, kind)
            for colour in dict.fromkeys(("", thing.colour))
            for texture in dict.fromkeys(("", thing.texture))
            for kind in dict.fromkeys(("", thing.kind))
        ]
        # People say "plain" only in contrast to a similar object that is not plain.
        return [noun for noun in options if noun.texture != "plain" or self._contrasts(noun)]

    def _contrasts(self, noun: Noun) -> bool:
        """Return whether the texture of a noun phrase excludes any object."""
        without = self.facts.evaluate_noun(replace(noun, texture=""))
        return bool(((without != FALSE) & (self.facts.evaluate_noun(noun) == FALSE)).any())

    def _shuffled(self, items: Iterable[Item]) -> list[Item]:
        """Return the items in random order."""
        pool = list(items)
        return [pool[i] for i in self.rng.permutation(len(pool))]

    def of_family(self, family: str, taken: Collection[tuple[int, ...]]) -> list[Expression]:
        """Find expressions of one family whose targets are not taken yet: all of one object, except for "group"."""
        if family == "none":
            return [] if () in taken else self.absent()
        if family == "group":
            return [expression for expression in self.groups() if expression.targets not in taken]
        for index in self._shuffled(np.flatnonzero(self.facts.recognisable)):
            if (int(index),) not in taken:
                found = [
                    expression for expression in self.for_object(int(index), family) if expression.family == family
                ]
                if found:
                    return found
        return []

    def for_object(self, index: int, wanted: str | None = None) -> list[Expression]:
        """Find expressions about one object; with ``wanted``, only candidates for that family are evaluated."""
        found: dict[str, list[Expression]] = {}
        thing = self.things[index]
        looks = [Description(noun) for noun in self._nouns(thing) if noun != Noun()]
        true = [claim for claim, truths in self.claims.items() if truths[index] == TRUE]
        superlatives = [claim for claim in self._all_claims() if claim.word in _SUPERLATIVES]
        nouns = self._nouns(thing)
        claimed = []
        for family in ("place", "size", "relation", "motion"):
            if wanted not in (None, family):
                continue
            pool = [claim for claim in (*true, *superlatives) if CLAIM_FAMILIES[claim.word] == family]
            candidates = [Description(noun, claim) for claim in pool for noun in nouns]
            claimed += self._select(candidates, index)
        for description in (*self._shuffled(looks), *claimed):
            if not self._true_of(description, (index,)):
                continue
            family = family_of(self.facts, description)
            if len(found.setdefault(family, [])) < MAX_PER_FAMILY:
                text = word_description(description, self.rng, self.lexicon)
                found[family].append(Expression(text, (index,), family, description))
        return [expression for family in found.values() for expression in family]

    def _select(self, candidates: Sequence[Description], index: int) -> list[Description]:
        """Select a few of the descriptions that are true of one object alone, with different claims."""
        chosen: list[Description] = []
        redundant = self.rng.random() < _REDUNDANT
        words: set[str] = set()
        for description in self._shuffled(candidates):
            assert description.claim is not None
            if description.claim.word in words or self._circular(description):
                continue
            needed = not _settles(self.facts.evaluate_noun(description.noun))
            if (needed or redundant) and self._true_of(description, (index,)):
                chosen.append(description)
                words.add(description.claim.word)
                redundant = redundant and needed
            if len(chosen) > MAX_PER_FAMILY:
                break
        return chosen

    def _evaluate(self, description: Description) -> TruthValues:
        """Evaluate a description for every object, with the precomputed claims (K,)."""
        known = self.claims.get(description.claim) if description.claim is not None else None
        if known is None:
            return self.facts.evaluate(description)
        return np.minimum(self.facts.evaluate_noun(description.noun), known)

    def _true_of(self, description: Description, targets: tuple[int, ...]) -> bool:
        """Return whether a description is clearly true of exactly these objects."""
        truths = self._evaluate(description)
        return tuple(np.flatnonzero(truths == TRUE)) == targets and not (truths == UNCLEAR).any()

    def _circular(self, description: Description) -> bool:
        """Return whether the subject of a relation can only be its reference: "the star left of the red star"."""
        if description.claim is None or description.claim.reference is None:
            return False
        subject = self.facts.evaluate_noun(description.noun) != FALSE
        reference = self.facts.evaluate_noun(description.claim.reference) != FALSE
        return description.noun == description.claim.reference or (
            bool(subject.any()) and not (subject & ~reference).any()
        )

    def groups(self) -> list[Expression]:
        """Find expressions about several objects: all that match a description, or two named objects."""
        nouns = list(dict.fromkeys(noun for thing in self.things for noun in self._nouns(thing)))
        claims = [claim for claim in self.claims if claim.word in PLURAL_PHRASES]
        options = [Description(noun) for noun in self._shuffled(nouns)]
        # Noun phrases first, because there are many more descriptions with claims.
        claimed = [Description(noun, claim) for claim in self._shuffled(claims)[:12] for noun in nouns]
        found: list[Expression] = []
        seen: set[tuple[int, ...]] = set()
        for description in (*options, *self._shuffled(claimed)):
            truths = self._evaluate(description)
            targets = tuple(int(i) for i in np.flatnonzero(truths == TRUE))
            if len(targets) < 2 or targets in seen or (truths == UNCLEAR).any() or self._circular(description):
                continue
            if not self.facts.recognisable[list(targets)].all():
                continue
            seen.add(targets)
            text = word_group(description, len(targets), self.rng, self.lexicon)
            found.append(Expression(text, targets, "group", description))
        found = self._shuffled(found)[: MAX_GROUPS - 1]
        return found + self._pairs()

    def _pairs(self) -> list[Expression]:
        """Name two objects, joined by "and"; empty if fewer than two can be named without a claim."""
        named = []
        for index in np.flatnonzero(self.facts.recognisable):
            nouns = [
                noun
                for noun in self._nouns(self.things[index])
                if noun.kind and _settles(self.facts.evaluate_noun(noun))
            ]
            if nouns:
                named.append((int(index), Description(self._shuffled(nouns)[0])))
        if len(named) < 2:
            return []
        (one, first), (two, second) = self._shuffled(named)[:2]
        words = [word_description(each, self.rng, self.lexicon) for each in (first, second)]
        words = [text if text.startswith(("the ", "a ", "an ")) else f"the {text}" for text in words]
        pair = Pair(first, second)
        return [Expression(" and ".join(words), (min(one, two), max(one, two)), "group", pair)]

    def absent(self) -> list[Expression]:
        """Find expressions that are clearly false of every object; most are almost true of one."""
        found: dict[str, Expression] = {}
        for _ in range(8 * MAX_ABSENT):
            description = self._near_description()
            if not self._circular(description) and (self._evaluate(description) == FALSE).all():
                text = word_description(description, self.rng, self.lexicon)
                found.setdefault(text, Expression(text, (), "none", description))
            if len(found) == MAX_ABSENT:
                break
        looks = iter(self._shuffled((colour, kind) for colour in COLOURS for kind in KINDS))
        while len(found) < MIN_ABSENT:  # with at most 16 objects, most pairs of colour and kind are absent
            colour, kind = next(looks)
            description = Description(Noun(colour=colour, kind=kind))
            if (self.facts.evaluate(description) == FALSE).all():
                text = word_description(description, self.rng, self.lexicon)
                found.setdefault(text, Expression(text, (), "none", description))
        return list(found.values())

    def near_miss(self, expression: Expression) -> list[Expression]:
        """Change one part of an expression so that it is false of every object; empty if no change does that."""
        description = expression.description
        if len(expression.targets) != 1 or not isinstance(description, Description):
            return []
        for changed in self._shuffled(self._changed(description)):
            if not self._circular(changed) and (self._evaluate(changed) == FALSE).all():
                text = word_description(changed, self.rng, self.lexicon)
                return [Expression(text, (), "none", changed)]
        return []

    def _changed(self, description: Description) -> Iterator[Description]:
        """Yield the descriptions that differ from one in a single part."""
        noun, claim = description.noun, description.claim
        for other in self._other_nouns(noun):
            yield replace(description, noun=other)
        if claim is None:
            return
        for word, family in CLAIM_FAMILIES.items():
            alike = family == CLAIM_FAMILIES[claim.word] and (word in WITH_REFERENCE) == (claim.word in WITH_REFERENCE)
            if alike and word != claim.word:
                yield replace(description, claim=replace(claim, word=word))
        if claim.reference is not None:
            for reference in self._other_nouns(claim.reference):
                yield replace(description, claim=replace(claim, reference=reference))

    def _other_nouns(self, noun: Noun) -> Iterator[Noun]:
        """Yield the noun phrases that differ in colour, texture or kind."""
        kinds: Iterable[str] = KINDS
        if noun.kind not in KINDS and self.subjects:
            kinds = [self.subjects[int(index)] for index in self.rng.integers(len(self.subjects), size=_OTHER_KINDS)]
        for name, words in (("colour", COLOURS), ("texture", TEXTURES), ("kind", kinds)):
            current = getattr(noun, name)
            for word in words:
                if current and word != current:
                    yield replace(noun, **{name: word})

    def _near_description(self) -> Description:
        """Draw a description that may or may not match an object; most are close to one."""
        rng = self.rng
        thing, other = (self.things[int(rng.integers(len(self.things)))] for _ in range(2))
        colour, texture = str(rng.choice(list(COLOURS))), str(rng.choice(TEXTURES))
        kinds = (*KINDS, *self.subjects)
        kind = kinds[int(rng.integers(len(kinds)))]
        u = rng.random()
        if u < 0.1:  # an unrelated object
            return Description(Noun(colour=colour, kind=kind if kind in KINDS else ""))
        if u < 0.2:
            return Description(self._shuffled([Noun(kind=kind), Noun(colour=colour), Noun(texture=texture)])[0])
        if u < 0.35:  # the right colour and another kind
            return Description(Noun(colour=thing.colour or colour, kind=other.kind if rng.random() < 0.5 else kind))
        if u < 0.45:  # the right kind and another colour
            return Description(Noun(colour=colour, kind=thing.kind))
        if u < 0.55:  # another texture
            noun = self._shuffled([Noun("", texture, thing.kind), Noun(thing.colour, texture, thing.kind)])[0]
            return Description(noun)
        noun = self._shuffled(noun for noun in self._nouns(thing) if noun != Noun() or rng.random() < 0.3)[0]
        if u < 0.62:  # a relation to an absent object
            word = str(rng.choice(sorted(WITH_REFERENCE)))
            return Description(noun, Claim(word, Noun(colour=colour, kind=thing.kind)))
        # The right object and a wrong claim.
        family = str(rng.choice(("place", "relation", "motion", "motion")))
        claims = [claim for claim in self.claims if CLAIM_FAMILIES[claim.word] == family]
        return Description(noun, self._shuffled(claims)[0]) if claims else Description(noun)
