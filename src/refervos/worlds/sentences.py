"""Everything that can be asked well about a clip, and some things that are true of nothing in it."""

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

PER_FAMILY = 2
"""The most sentences of one family about one object."""

GROUPS = 4
"""The most sentences about several objects of a clip."""

NONE_LEAST, NONE_MOST = 2, 6
"""The least and the most sentences about nothing in a clip."""

_AMONG = frozenset({*EXTREMES, *SIZES, "fastest", "nearest to"})
"""The words that compare with what else the noun may mean."""

_OTHER_KINDS = 8
"""Of so many of what sprites show a near miss may speak instead."""

_REDUNDANT = 0.2
"""How often a claim is made although the noun phrase tells enough, as people do."""


def referring_expressions(
    clip: Clip, rng: np.random.Generator, subjects: Sequence[str] = (), *, unseen: bool = False
) -> list[Expression]:
    """Sentences about a clip, each checked: clearly true of exactly its targets, clearly false of everything else.

    Args:
        clip: The clip.
        rng: Chooses what is said and how.
        subjects: Subjects of sprites, from which the nouns of what is absent are chosen as well.
        unseen: Call things by the synonyms that training never uses, where there are any.

    Returns:
        About each object that shows enough, at most ``PER_FAMILY`` sentences of each family; then at most ``GROUPS``
        about several objects, and ``NONE_LEAST`` to ``NONE_MOST`` about nothing that is there.
    """
    speaker = _Speaker(clip, rng, subjects, unseen=unseen)
    asked: list[Expression] = []
    for index in np.flatnonzero(speaker.facts.recognisable):
        asked += speaker.about(int(index))
    asked += speaker.groups()
    asked += speaker.absent()
    return asked


def sample_expressions(
    clip: Clip,
    rng: np.random.Generator,
    count: int,
    families: Mapping[str, float] | None = None,
    subjects: Sequence[str] = (),
    pairs: float = 0.0,
    facts: Facts | None = None,
) -> list[Expression]:
    """A few sentences about a clip, chosen by family and about different targets; much cheaper than all of them.

    Args:
        clip: The clip.
        rng: Chooses what is said and how.
        count: How many sentences.
        families: Weight of each family, by name; default all alike. A family that the clip has no sentence of is passed
            over.
        subjects: See ``referring_expressions``.
        pairs: Share of the sentences about one object that are followed by their near miss: the same sentence with one
            thing changed, so that it is true of nothing. Who hears both about one picture must tell them apart.
        facts: Of the clip, where they are known already.

    Returns:
        At most ``count`` sentences, at least one; but for near misses no two have the same targets.
    """
    speaker = _Speaker(clip, rng, subjects, facts=facts)
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
            fresh = speaker.of_family(family, taken)
            if fresh:
                chosen.append(fresh[int(rng.integers(len(fresh)))])
                break
            del left[family]
        if pairs and left and len(chosen) < count and rng.random() < pairs:
            chosen += speaker.near_miss(chosen[-1])
    return chosen or speaker.absent()[:1]


def decidable_from(clip: Clip, expression: Expression, every: int = 2) -> int:
    """Find the first frame from which what was seen so far settles which objects a sentence is about.

    Sentences that tell no motion are settled at once. For the others the facts of the clip's beginnings are asked:
    before, several objects may still turn out to be meant, and no model that sees the frames as they arrive can know.

    Args:
        clip: The clip, of T frames.
        expression: A sentence about it.
        every: Beginnings whose length is a multiple of this are tried.

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
    """Which family a description of one object belongs to: the last thing said that is needed.

    Args:
        facts: Of the clip.
        description: True of exactly one object.

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
    """Whether a description is true of one object and of nothing else."""
    return int((truths == TRUE).sum()) == 1 and not (truths == UNCLEAR).any()


class _Speaker:
    """Finds what can be said about one clip.

    Attributes:
        facts: What is true.
        rng: Chooses what is said and how.
        things: The objects.
        subjects: What sprites show, from which the nouns of what is absent are chosen as well.
        lexicon: What things are called.
        claims: Answers for all claims that do not depend on the noun phrase.
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
            if claim.word not in _AMONG
        }

    def _all_claims(self) -> Iterator[Claim]:
        """Every claim that can be made with the objects that can be named."""
        named = [
            noun
            for index in np.flatnonzero(self.facts.recognisable)
            for noun in self._names(int(index))
            if _settles(self.facts.evaluate_noun(noun))
        ]
        for word in CLAIM_FAMILIES:
            if word not in WITH_REFERENCE:
                yield Claim(word)
            else:
                yield from (Claim(word, noun) for noun in named)

    def _names(self, index: int) -> list[Noun]:
        """The two ways to name an object as the reference of a relation."""
        thing = self.things[index]
        return [Noun(colour=thing.colour, kind=thing.kind), Noun(kind=thing.kind)] if thing.kind else []

    def _nouns(self, thing: Thing) -> list[Noun]:
        """The noun phrases that are true of an object, from "object" to everything about it."""
        options = [
            Noun(colour, texture, kind)
            for colour in dict.fromkeys(("", thing.colour))
            for texture in dict.fromkeys(("", thing.texture))
            for kind in dict.fromkeys(("", thing.kind))
        ]
        # Nobody says "plain" unless something else that might be meant is not.
        return [noun for noun in options if noun.texture != "plain" or self._contrasts(noun)]

    def _contrasts(self, noun: Noun) -> bool:
        """Whether the texture of a noun phrase rules anything out."""
        without = self.facts.evaluate_noun(replace(noun, texture=""))
        return bool(((without != FALSE) & (self.facts.evaluate_noun(noun) == FALSE)).any())

    def _shuffled(self, items: Iterable[Item]) -> list[Item]:
        """The items in random order."""
        pool = list(items)
        return [pool[i] for i in self.rng.permutation(len(pool))]

    def of_family(self, family: str, taken: Collection[tuple[int, ...]]) -> list[Expression]:
        """Sentences of one family whose targets are not taken yet: all about one object, except for "group"."""
        if family == "none":
            return [] if () in taken else self.absent()
        if family == "group":
            return [expression for expression in self.groups() if expression.targets not in taken]
        for index in self._shuffled(np.flatnonzero(self.facts.recognisable)):
            if (int(index),) not in taken:
                found = [expression for expression in self.about(int(index), family) if expression.family == family]
                if found:
                    return found
        return []

    def about(self, index: int, wanted: str | None = None) -> list[Expression]:
        """Sentences about one object; with ``wanted``, only what may belong to that family is looked for."""
        asked: dict[str, list[Expression]] = {}
        thing = self.things[index]
        looks = [Description(noun) for noun in self._nouns(thing) if noun != Noun()]
        true = [claim for claim, truths in self.claims.items() if truths[index] == TRUE]
        among = [claim for claim in self._all_claims() if claim.word in _AMONG]
        nouns = self._nouns(thing)
        told = []
        for family in ("place", "size", "relation", "motion"):
            if wanted not in (None, family):
                continue
            pool = [claim for claim in (*true, *among) if CLAIM_FAMILIES[claim.word] == family]
            pairs = [Description(noun, claim) for claim in pool for noun in nouns]
            told += self._chosen(pairs, index)
        for description in (*self._shuffled(looks), *told):
            if not self._true_of(description, (index,)):
                continue
            family = family_of(self.facts, description)
            if len(asked.setdefault(family, [])) < PER_FAMILY:
                text = word_description(description, self.rng, self.lexicon)
                asked[family].append(Expression(text, (index,), family, description))
        return [expression for family in asked.values() for expression in family]

    def _chosen(self, pairs: Sequence[Description], index: int) -> list[Description]:
        """A few descriptions of one family, told by different words when possible."""
        chosen: list[Description] = []
        redundant = self.rng.random() < _REDUNDANT
        words: set[str] = set()
        for description in self._shuffled(pairs):
            assert description.claim is not None
            if description.claim.word in words or self._circular(description):
                continue
            needed = not _settles(self.facts.evaluate_noun(description.noun))
            if (needed or redundant) and self._true_of(description, (index,)):
                chosen.append(description)
                words.add(description.claim.word)
                redundant = redundant and needed
            if len(chosen) > PER_FAMILY:
                break
        return chosen

    def _answers(self, description: Description) -> TruthValues:
        """Of which objects a description is true; claims that were answered before are looked up."""
        known = self.claims.get(description.claim) if description.claim is not None else None
        if known is None:
            return self.facts.evaluate(description)
        return np.minimum(self.facts.evaluate_noun(description.noun), known)

    def _true_of(self, description: Description, targets: tuple[int, ...]) -> bool:
        """Whether a description is clearly true of exactly these objects."""
        truths = self._answers(description)
        return tuple(np.flatnonzero(truths == TRUE)) == targets and not (truths == UNCLEAR).any()

    def _circular(self, description: Description) -> bool:
        """Whether the subject of a relation can only be its reference: "the star left of the red star"."""
        if description.claim is None or description.claim.reference is None:
            return False
        subject = self.facts.evaluate_noun(description.noun) != FALSE
        reference = self.facts.evaluate_noun(description.claim.reference) != FALSE
        return description.noun == description.claim.reference or (
            bool(subject.any()) and not (subject & ~reference).any()
        )

    def groups(self) -> list[Expression]:
        """Sentences about several objects: all that fit a description, or two that are named."""
        nouns = list(dict.fromkeys(noun for thing in self.things for noun in self._nouns(thing)))
        claims = [claim for claim in self.claims if claim.word in PLURAL_PHRASES]
        options = [Description(noun) for noun in self._shuffled(nouns)]
        # Looks first, then what needs a claim: there are many more of those.
        told = [Description(noun, claim) for claim in self._shuffled(claims)[:12] for noun in nouns]
        asked: list[Expression] = []
        seen: set[tuple[int, ...]] = set()
        for description in (*options, *self._shuffled(told)):
            truths = self._answers(description)
            targets = tuple(int(i) for i in np.flatnonzero(truths == TRUE))
            if len(targets) < 2 or targets in seen or (truths == UNCLEAR).any() or self._circular(description):
                continue
            if not self.facts.recognisable[list(targets)].all():
                continue
            seen.add(targets)
            text = word_group(description, len(targets), self.rng, self.lexicon)
            asked.append(Expression(text, targets, "group", description))
        asked = self._shuffled(asked)[: GROUPS - 1]
        return asked + self._pairs()

    def _pairs(self) -> list[Expression]:
        """Perhaps a sentence about two objects that are named one by one."""
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
        """Sentences that are clearly false of everything: most are nearly true of something."""
        asked: dict[str, Expression] = {}
        for _ in range(8 * NONE_MOST):
            description = self._nearly()
            if not self._circular(description) and (self._answers(description) == FALSE).all():
                text = word_description(description, self.rng, self.lexicon)
                asked.setdefault(text, Expression(text, (), "none", description))
            if len(asked) == NONE_MOST:
                break
        looks = iter(self._shuffled((colour, kind) for colour in COLOURS for kind in KINDS))
        while len(asked) < NONE_LEAST:  # with at most 16 objects, most looks are absent
            colour, kind = next(looks)
            description = Description(Noun(colour=colour, kind=kind))
            if (self.facts.evaluate(description) == FALSE).all():
                text = word_description(description, self.rng, self.lexicon)
                asked.setdefault(text, Expression(text, (), "none", description))
        return list(asked.values())

    def near_miss(self, expression: Expression) -> list[Expression]:
        """A sentence about one object with one thing changed that makes it false of everything; nothing if none is."""
        description = expression.description
        if len(expression.targets) != 1 or not isinstance(description, Description):
            return []
        for changed in self._shuffled(self._changed(description)):
            if not self._circular(changed) and (self._answers(changed) == FALSE).all():
                text = word_description(changed, self.rng, self.lexicon)
                return [Expression(text, (), "none", changed)]
        return []

    def _changed(self, description: Description) -> Iterator[Description]:
        """Descriptions that differ from one in a single thing."""
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
        """Noun phrases that say the same but for another colour, texture or kind."""
        kinds: Iterable[str] = KINDS
        if noun.kind not in KINDS and self.subjects:
            kinds = [self.subjects[int(index)] for index in self.rng.integers(len(self.subjects), size=_OTHER_KINDS)]
        for name, words in (("colour", COLOURS), ("texture", TEXTURES), ("kind", kinds)):
            said = getattr(noun, name)
            for word in words:
                if said and word != said:
                    yield replace(noun, **{name: word})

    def _nearly(self) -> Description:
        """A description of something that may or may not be there."""
        rng = self.rng
        thing, other = (self.things[int(rng.integers(len(self.things)))] for _ in range(2))
        colour, texture = str(rng.choice(list(COLOURS))), str(rng.choice(TEXTURES))
        kinds = (*KINDS, *self.subjects)
        kind = kinds[int(rng.integers(len(kinds)))]
        u = rng.random()
        if u < 0.1:  # far off
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
        if u < 0.62:  # a relation to something that is not there
            word = str(rng.choice(sorted(WITH_REFERENCE)))
            return Description(noun, Claim(word, Noun(colour=colour, kind=thing.kind)))
        # The right object and a wrong claim.
        family = str(rng.choice(("place", "relation", "motion", "motion")))
        claims = [claim for claim in self.claims if CLAIM_FAMILIES[claim.word] == family]
        return Description(noun, self._shuffled(claims)[0]) if claims else Description(noun)
