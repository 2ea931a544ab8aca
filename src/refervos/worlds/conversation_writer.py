"""Captions, questions and answers about one clip, worded from the facts that hold in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from refervos.errors import ConfigError
from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.facts import CLAIM_FAMILIES, EXTREMES, PLACES, POSITIONS, SIZES, WITH_REFERENCE, Facts
from refervos.worlds.grammar import (
    ABSENT_ANSWER,
    COUNT_QUESTIONS,
    DESCRIPTION_QUESTIONS,
    NAME_QUESTIONS,
    NUMBERS,
    REFERRING_ANSWERS,
    REFERRING_QUESTIONS,
    VerbPhrase,
    look_phrase,
    read_question,
    verb_phrases,
)
from refervos.worlds.movement_facts import DIAGONALS, DIRECTIONS, ENTRIES, FALSE, TRUE, UNCLEAR
from refervos.worlds.nouns import plural
from refervos.worlds.sentences import sample_expressions
from refervos.worlds.shapes import COLOURS, KINDS
from refervos.worlds.statements import Objects
from refervos.worlds.wording import GENERIC, PHRASES, with_article, word_noun

Item = TypeVar("Item")

CAPTION_TOKENS = 60
"""The most words, punctuation marks and tags of a caption of two to five objects; a few have two more."""

MOTION_ONLY: dict[str, float] = {"motion": 1.0}
"""The weights of ``ConversationWriter`` with which "which", "whether" and "referring" ask about motion alone."""

_FOLLOW_UP = 0.35  # conversations about one object that go on
_ABSENT = 0.15  # "which" questions that nothing answers
_TRIES = 12
_TEMPLATE = re.compile(r"\[SEG:([\d,]*)\]")


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        kind: One of ``QUESTION_KINDS``.
        question: The question.
        answer: The answer, with ``<p> phrase </p> [SEG]`` for what it names; "It is [SEG]." to published questions.
        targets: For each ``[SEG]`` of the answer the numbers of its objects.
        motion: Whether motion must be seen to answer it, or to know what its "it" is.
    """

    kind: str
    question: str
    answer: str
    targets: tuple[Objects, ...]
    motion: bool


Conversation = tuple[Turn, ...]
"""One turn, or two of which the second speaks of the first one's object as "it"."""


def count_tokens(text: str) -> int:
    """Count the words, punctuation marks and tags of a text."""
    return len(re.findall(r"</?p>|\[SEG[^\]]*\]|\w+|[.,?!]", text))


def sentence_case(text: str) -> str:
    """Write the first letter of each sentence as a capital, also inside a phrase."""
    return re.sub(r"(^|[.!?]\s+)((?:<p>\s*)?)([a-z])", lambda m: m[1] + m[2] + m[3].upper(), text)


class ConversationWriter:
    """Speaker about one clip: finds true statements and words them.

    Args:
        facts: Of the clip.
        rng: Chooses the statements and their wording.
        variety: How often another wording than the plainest is used.
        families: Weight of each family of claims in questions.
        detail: How much captions say of each object, from 0 to 2.

    Raises:
        ConfigError: When no object shows enough to be spoken of.
    """

    def __init__(
        self, facts: Facts, rng: np.random.Generator, variety: float, families: Mapping[str, float], detail: int = 2
    ) -> None:
        self.facts, self.rng, self.variety, self.families, self.detail = facts, rng, variety, families, detail
        self.clip = facts.clip
        self.things = self.clip.scene.objects
        self.main = [int(index) for index in np.flatnonzero(self.facts.recognisable)]
        if not self.main:
            raise ConfigError("the clip shows no object well enough to speak of it; draw another one.")

    def conversations(self, count: int, kinds: Mapping[str, float]) -> tuple[Conversation, ...]:
        """At most ``count`` conversations, at least one."""
        found: list[Conversation] = []
        left = {kind: weight for kind, weight in kinds.items() if weight > 0}
        for _ in range(4 * count):
            if len(found) == count or not left:
                break
            odds = np.array(list(left.values()))
            kind = list(left)[int(self.rng.choice(len(left), p=odds / odds.sum()))]
            conversation = self.conversation(kind)
            if conversation is None or kind == "description":
                del left[kind]
            if conversation is not None and all(conversation[0].question != other[0].question for other in found):
                found.append(conversation)
        return tuple(found) or ((self.caption(),),)

    # --- wording ---

    def _varies(self, share: float = 1.0) -> bool:
        """Choose whether to depart from the plainest wording."""
        return bool(self.rng.random() < share * self.variety)

    def _option(self, options: Sequence[Item]) -> Item:
        """The first, or with variety any."""
        return options[int(self.rng.integers(len(options)))] if self._varies() else options[0]

    def _asked(self, options: Sequence[Item]) -> Item:
        """Any wording of a question: questions vary more than answers."""
        return options[0] if self.variety == 0 else self._any(options)

    def _any(self, options: Sequence[Item]) -> Item:
        return options[int(self.rng.integers(len(options)))]

    def _shuffled(self, items: Iterable[Item]) -> list[Item]:
        pool = list(items)
        return [pool[index] for index in self.rng.permutation(len(pool))]

    def _noun(self, noun: Noun, several: bool = False) -> str:
        """A noun phrase without its article."""
        if self._varies():
            words = word_noun(noun, self.rng, several)
            if noun != Noun() or not words.startswith("one"):
                return words
        head = KINDS[noun.kind][0] if noun.kind else GENERIC[0]
        return " ".join(word for word in (noun.texture, noun.colour, plural(head) if several else head) if word)

    def _described(self, description: Description) -> str:
        """A description without its article: "circle on the left"."""
        noun, claim = self._noun(description.noun), description.claim
        if claim is None:
            return noun
        other = "" if claim.reference is None else f"the {self._noun(claim.reference)}"
        return self._option(PHRASES[claim.word]).format(noun, ref=other)

    def _mark(self, words: str, objects: Objects) -> str:
        """A phrase with its tags."""
        return f"<p> {words} </p> [SEG:{','.join(map(str, objects))}]"

    def _say(self, claim: Claim, *, many: bool = False, marked: bool = False, asked: bool = False) -> str:
        """A claim as a verb phrase; with ``marked`` its reference has a mask, ``asked`` is for questions."""
        phrases = list(verb_phrases(claim.word))
        if many:  # "they go back the way it came"
            phrases = [p for p in phrases if " it " not in p.text]
        phrase = self._asked(phrases) if asked else self._option(phrases)
        return phrase.form(many=many).format(ref=self._reference(claim, marked))

    def _reference(self, claim: Claim, marked: bool) -> str:
        if claim.reference is None:
            return ""
        words, index = f"the {self._noun(claim.reference)}", self.facts.find_reference(claim.reference)
        return self._mark(words, (index,)) if marked and index is not None and index >= 0 else words

    def _turn(self, kind: str, question: str, answer: str, before: Turn | None = None) -> Turn:
        """Take the objects of the phrases out of the answer; ``before`` is the turn that tells what "it" is."""
        read = read_question(question)
        motion = kind == "description" or bool(read and read.motion) or bool(before and before.motion)
        targets = tuple(tuple(map(int, match[1].split(","))) for match in _TEMPLATE.finditer(answer))
        return Turn(kind, sentence_case(question), sentence_case(_TEMPLATE.sub("[SEG]", answer)), targets, motion)

    # --- naming ---

    def _looks(self, index: int) -> list[Noun]:
        """Noun phrases with a kind that are true of an object, from the plainest to the fullest."""
        thing = self.things[index]
        nouns = [Noun(thing.colour, "", thing.kind), Noun(thing.colour, thing.texture, thing.kind)]
        if self._varies(0.5):
            nouns.insert(0, Noun(kind=thing.kind))
        return nouns

    def _is(self, description: Description, index: int) -> bool:
        """Whether a description is true of one object and clearly false of everything else."""
        truths = self.facts.evaluate(description)
        return bool(truths[index] == TRUE) and int((truths != FALSE).sum()) == 1

    def _name(self, index: int, avoid: str = "", nouns: Sequence[Noun] | None = None) -> Description | None:
        """A description that names one object: by its looks, or else by a claim other than ``avoid``."""
        nouns = self._looks(index) if nouns is None else nouns
        for noun in nouns:
            if self._is(Description(noun), index):
                return Description(noun)
        for word in _TELLING:
            for noun in nouns:
                description = Description(noun, Claim(word))
                if word != avoid and self._is(description, index):
                    return description
        return None

    def _phrase(self, index: int, avoid: str) -> str | None:
        """A phrase with tags that names one object."""
        name = self._name(index, avoid)
        return None if name is None else self._called(name, index, "the")

    def _called(self, name: Description, index: int, article: str) -> str:
        """A phrase with tags from an object's name; "the" where "a" will not do."""
        words = self._described(name)
        single = name.claim is not None and name.claim.word in _SUPERLATIVE
        return self._mark(with_article(words) if article == "a" and not single else f"the {words}", (index,))

    def _group(self, objects: Sequence[int], nouns: Iterable[Noun]) -> str | None:
        """A phrase with tags that names several objects together by one of the nouns."""
        for noun in nouns:
            truths = self.facts.evaluate_noun(noun)
            if tuple(np.flatnonzero(truths == TRUE)) == tuple(objects) and not (truths == UNCLEAR).any():
                starts = [f"the {NUMBERS[len(objects)]}"] if len(objects) in NUMBERS else ["the"]
                starts += ["all the", "the", *(["both"] if len(objects) == 2 else [])]
                return self._mark(f"{self._option(starts)} {self._noun(noun, several=True)}", tuple(objects))
        return None

    def _plain_names(self) -> list[tuple[int, Noun]]:
        """The objects that a noun phrase names without a claim, as the reference of a relation must be named."""
        named = []
        for index in self.main:
            for noun in self._looks(index):
                if self.facts.find_reference(noun) == index:
                    named.append((index, noun))
                    break
        return named

    # --- captions ---

    def caption(self) -> Turn:
        """Describe the clip, in fewer words where there is much to say."""
        question = self._asked(DESCRIPTION_QUESTIONS)
        state = self.rng.bit_generator.state
        answer = ""
        variety = self.variety
        for detail in range(self.detail, -1, -1):
            self.rng.bit_generator.state = state
            self.variety = variety if detail else 0.0
            answer = self._caption(detail)
            if count_tokens(answer) <= CAPTION_TOKENS:
                break
        self.variety = variety
        return self._turn("description", question, answer)

    def _caption(self, detail: int) -> str:
        """A description with places and second movements (2), with the movements only (1), or the least (0)."""
        clauses: list[str] = []
        told: set[int] = set()
        named = self._plain_names()
        doings = {index: self._doings(index, named)[: 2 if detail else 1] for index in self.main}
        for index in self.main:
            for claim in doings[index]:  # the object in front is described there, unless it moves itself
                front = None if claim.reference is None else self.facts.find_reference(claim.reference)
                rests = front is not None and all(doing.word == "stays still" for doing in doings.get(front, []))
                if front is not None and rests and self._name(index) is not None:
                    told.add(front)
        for index in sorted(self.main, key=self._across):
            if index in told:
                continue
            told.add(index)
            clauses.append(self._clause(index, doings[index], named, told, detail))
        clauses = [clause for clause in clauses if clause]
        if detail and self._varies(0.4):
            clauses.insert(0, self._opening())
        return self._joined([clause for clause in clauses if clause])

    def _across(self, index: int) -> float:
        """How far to the right an object is, on average while it is seen."""
        return float(self.clip.centres[index, self.facts.seen[index], 0].mean())

    def _opening(self) -> str:
        """The number of all objects."""
        everything = np.flatnonzero(self.facts.ever_visible)
        if len(everything) not in NUMBERS or len(everything) < 2 or len(everything) != len(self.main):
            return ""
        return f"there are {NUMBERS[len(everything)]} {self._option(['objects', 'shapes', 'things'])}"

    def _clause(
        self, index: int, doings: Sequence[Claim], named: Sequence[tuple[int, Noun]], told: set[int], detail: int
    ) -> str:
        """A clause about one object; the objects that it covers are added to ``told``."""
        name = self._name(index)
        if name is None:
            return self._clause_of_many(index, told)
        if len(doings) == 1 and self._varies(0.3):
            together = self._together(index, doings[0], told)
            if together:
                return together
        still = not doings or doings[0].word == "stays still"
        said = [self._say(claim, marked=True) for claim in doings]
        if still and detail == 2:
            relation = self._relation(index, named, told) if self._varies(0.6) else None
            place = None if name.claim is not None and name.claim.word in _WHERE else self._place(index)
            if relation is not None:
                said.insert(0, self._say(relation, marked=True))
            elif place is not None and (said or not self._varies()):
                said.insert(0, self._say(Claim(place)))
        if not said:
            return f"there is {self._called(name, index, 'a')}"
        return f"{self._called(name, index, self._option(['the', 'the', 'a']))} {' and '.join(said)}"

    def _clause_of_many(self, index: int, told: set[int]) -> str:
        """A clause about look-alikes that no claim tells apart; empty when none is certain."""
        thing = self.things[index]
        for noun in (Noun(thing.colour, "", thing.kind), Noun(thing.colour, thing.texture, thing.kind)):
            objects = [int(i) for i in np.flatnonzero(self.facts.evaluate_noun(noun) == TRUE)]
            subject = self._group(objects, [noun]) if set(objects) <= set(self.main) else None
            if subject is None or len(objects) < 2:
                continue
            shared = [
                word
                for word in (*_DOINGS, *PLACES)
                if all(self._true(Claim(word), each) for each in objects) and word not in ENTRIES
            ]
            told |= set(objects)
            if shared:
                return f"{subject} {self._say(Claim(shared[0]), many=True)}"
            words = f"{NUMBERS[len(objects)]} {self._noun(noun, several=True)}"
            return f"there are {self._mark(words, tuple(objects))}" if len(objects) in NUMBERS else ""
        return ""

    def _together(self, index: int, doing: Claim, told: set[int]) -> str | None:
        """One clause about several objects that do the same and have a noun in common."""
        if doing.reference is not None:
            return None
        thing = self.things[index]
        for noun in self._shuffled([Noun(kind=thing.kind), Noun(colour=thing.colour)]):
            objects = [int(i) for i in np.flatnonzero(self.facts.evaluate_noun(noun) == TRUE)]
            fits = len(objects) > 1 and set(objects) <= set(self.main) and not (set(objects) - {index}) & told
            if fits and all(self._true(doing, each) for each in objects):
                subject = self._group(objects, [noun])
                if subject is not None:
                    told |= set(objects)
                    return f"{subject} {self._say(doing, many=True)}"
        return None

    def _joined(self, clauses: Sequence[str]) -> str:
        """Clauses as sentences, now and then two in one."""
        text = ""
        joined = False
        for number, clause in enumerate(clauses):
            follows = number > 0 and not joined and self._varies(0.5) and not clause.startswith("there ")
            text += "" if number == 0 else " while " if follows else ". "
            joined = follows
            text += clause
        if not text:  # look-alikes of which some hardly show: no phrase can name one of them
            text = f"there is {with_article(self._noun(self._looks(self.main[0])[0]))}"
        return f"{text}."

    def _true(self, claim: Claim, index: int) -> bool:
        """Whether a claim is true of an object, in comparison with all objects."""
        return bool(self.facts.evaluate_claim(claim, self.facts.evaluate_noun(Noun()))[index] == TRUE)

    def _doings(self, index: int, named: Sequence[tuple[int, Noun]]) -> list[Claim]:
        """The two most remarkable movements of an object, in the order of the sentence."""
        words = [word for word in _DOINGS if self._true(Claim(word), index)]
        claims = [Claim(word) for word in words]
        behind = [Claim("passes behind", noun) for other, noun in named if other != index]
        behind = [claim for claim in behind if self._true(claim, index)]
        if behind:
            claims = [*behind[:1], *(claim for claim in claims if claim.word != "passes behind something")]
        if any(word.startswith("enters") for word in words):  # the side of entry implies the direction
            claims = [claim for claim in claims if claim.word not in _WAYS]
        if any(word in ENTRIES for word in words):
            claims = [claim for claim in claims if claim.word != "enters"]
        if any(claim.word != "moves" for claim in claims):
            claims = [claim for claim in claims if claim.word != "moves"]
        return sorted(claims[:2], key=lambda claim: _ORDER.index(claim.word))

    def _place(self, index: int) -> str | None:
        """The part of the frame in which an object is whenever it is seen."""
        return next((word for word in _PLACES if self._true(Claim(word), index)), None)

    def _relation(self, index: int, named: Sequence[tuple[int, Noun]], told: set[int]) -> Claim | None:
        """A position relative to a still object that no clause covers yet; it is added to ``told``."""
        for other, noun in self._shuffled(named):
            if other in told or not self._true(Claim("stays still"), other):
                continue
            for word in POSITIONS:
                if self._true(Claim(word, noun), index):
                    told.add(other)
                    return Claim(word, noun)
        return None

    # --- questions ---

    def conversation(self, kind: str) -> Conversation | None:
        """A conversation that begins with a question of some kind; None when the clip has none."""
        first: dict[str, Callable[[], tuple[Turn, int | None] | None]] = {
            "description": lambda: (self.caption(), None),
            "referring": self._referring,
            "which": self._which,
            "count": self._count,
            "colour": lambda: self._look("colour"),
            "shape": lambda: self._look("shape"),
            "pattern": lambda: self._look("pattern"),
            "place": self._where,
            "action": self._action,
            "whether": self._whether,
        }
        if kind not in first:
            raise ConfigError(f"kind of question {kind!r} is unknown; the kinds are {', '.join(first)}.")
        found = first[kind]()
        if found is None:
            return None
        turn, focus = found
        if focus is not None and self.rng.random() < _FOLLOW_UP:
            more = self._follow_up(turn, focus)
            if more is not None:
                return (turn, more)
        return (turn,)

    def _referring(self) -> tuple[Turn, int | None] | None:
        """A published question about an expression."""
        families = _REFERRING_FAMILIES if self.families != MOTION_ONLY else MOTION_ONLY
        (expression,) = sample_expressions(self.clip, self.rng, 1, families, facts=self.facts)
        question = self._asked(REFERRING_QUESTIONS).format(expression.text)
        if not expression.targets:
            return self._turn("referring", question, ABSENT_ANSWER), None
        seg = f"[SEG:{','.join(map(str, expression.targets))}]"
        answer = self._option(REFERRING_ANSWERS).replace("[SEG]", seg)
        focus = expression.targets[0] if len(expression.targets) == 1 else None
        return self._turn("referring", question, answer), focus

    def _claims(self) -> list[Claim]:
        """Claims of one family, in random order."""
        names = list(self.families)
        odds = np.array([self.families[name] for name in names])
        family = names[int(self.rng.choice(len(names), p=odds / odds.sum()))]
        named = [noun for _, noun in self._plain_names()]
        words = [word for word, of in CLAIM_FAMILIES.items() if of == family]
        claims = [Claim(word) for word in words if word not in WITH_REFERENCE]
        claims += [Claim(word, noun) for word in words if word in WITH_REFERENCE for noun in self._shuffled(named)[:2]]
        return self._shuffled(claims)

    def _which(self) -> tuple[Turn, int | None] | None:
        """A question for the objects of which a claim is true."""
        absent = self.rng.random() < _ABSENT
        for claim in (*self._claims(), *self._claims()):
            noun = Noun() if claim.reference is not None or self.rng.random() < 0.6 else self._kind()
            truths = self.facts.evaluate(Description(noun, claim))
            objects = [int(index) for index in np.flatnonzero(truths == TRUE)]
            if (truths == UNCLEAR).any() or bool(objects) == absent or not self.facts.recognisable[objects].all():
                continue
            if noun != Noun() and not (self.facts.evaluate_noun(noun) == TRUE).any():
                continue
            says = self._say(claim, asked=True)
            openings = ["which one", "which object", "what"] if noun == Noun() else [f"which {self._noun(noun)}"]
            question = f"{self._asked(openings)} {says}?"
            if absent:
                answer = f"{self._none(noun)} {self._say(claim)}."
                return self._turn("which", question, answer), None
            found = [self._phrase(index, avoid=claim.word) for index in sorted(objects, key=self._across)]
            phrases = [phrase for phrase in found if phrase is not None]
            if len(phrases) != len(objects) or len(objects) > 3:
                continue
            if len(objects) > 1 and self._varies():
                phrases = [self._group(objects, self._shared(objects)) or " and ".join(phrases)]
            answer = f"{'it is' if len(objects) == 1 else 'they are'} {' and '.join(phrases)}."
            return self._turn("which", question, answer), objects[0] if len(objects) == 1 else None
        return None

    def _none(self, noun: Noun) -> str:
        return "nothing" if noun == Noun() else f"no {self._noun(noun)}"

    def _kind(self) -> Noun:
        return Noun(kind=self.things[self._any(self.main)].kind)

    def _shared(self, objects: Sequence[int]) -> list[Noun]:
        """Nouns that are true of several objects."""
        things = [self.things[index] for index in objects]
        colours, kinds = {thing.colour for thing in things}, {thing.kind for thing in things}
        nouns = [Noun(colour=thing.colour, kind=thing.kind) for thing in things[:1] if len(colours) == len(kinds) == 1]
        nouns += [Noun(kind=things[0].kind)] if len(kinds) == 1 else []
        return nouns + ([Noun(colour=things[0].colour)] if len(colours) == 1 else [])

    def _count(self) -> tuple[Turn, int | None] | None:
        """A question for a number."""
        for _ in range(_TRIES):
            thing = self.things[self._any(self.main)]
            u = self.rng.random()
            noun = Noun(kind=thing.kind) if u < 0.4 else Noun(colour=thing.colour) if u < 0.6 else Noun()
            if u > 0.8:
                noun = self._any([Noun(kind=str(self._any(list(KINDS)))), Noun(colour=str(self._any(list(COLOURS))))])
            claim = Claim(self._any(_COUNTED)) if self.rng.random() < 0.4 else None
            truths = self.facts.evaluate(Description(noun, claim))
            objects = [int(index) for index in np.flatnonzero(truths == TRUE)]
            clear = not (truths == UNCLEAR).any() and self.facts.recognisable[objects].all()
            if not clear or len(objects) > max(NUMBERS):
                continue
            many = self._noun(noun, several=True)
            one = self._noun(noun)
            words = f"{NUMBERS[len(objects)]} {many if len(objects) > 1 else one}" if objects else ""
            phrase = self._mark(words, tuple(objects))
            if claim is None:
                question = self._asked(COUNT_QUESTIONS).format(many)
                answer = (
                    f"there {'are' if len(objects) > 1 else 'is'} {phrase}." if objects else f"there are no {many}."
                )
            else:
                question = f"how many {many} {self._say(claim, many=True, asked=True)}?"
                said = self._say(claim, many=len(objects) > 1)
                answer = f"{phrase} {said}." if objects else f"{self._none(noun)} {said}."
            return self._turn("count", question, answer), None
        return None

    def _subject(self, index: int, nouns: Sequence[Noun] | None = None) -> str | None:
        """The name of the object in question, without tags."""
        name = self._name(index, nouns=nouns)
        return None if name is None else f"the {self._described(name)}"

    def _answered(self, index: int, subject: str, said: str) -> str:
        """A statement about the object in question, which is "it" or a phrase with a mask."""
        return f"{'it' if self.rng.random() < 0.5 else self._mark(subject, (index,))} {said}."

    def _look(self, kind: str) -> tuple[Turn, int | None] | None:
        """A question for a colour, a shape or a pattern, by a name that does not tell it."""
        for index in self._shuffled(self.main):
            thing = self.things[index]
            left = {"colour": thing.colour, "texture": thing.texture, "kind": thing.kind} | {_LOOKS[kind]: ""}
            nouns = [replace(Noun(**left), texture=""), Noun(**left)]
            subject = self._subject(
                index, list(dict.fromkeys(noun for noun in nouns if kind != "pattern" or noun.kind))
            )
            if subject is not None:
                question = self._asked(NAME_QUESTIONS[kind]).format(subject)
                return self._turn(kind, question, self._answered(index, subject, self._looking(index, kind))), index
        return None

    def _looking(self, index: int, kind: str) -> str:
        """The colour, shape or pattern of an object as a verb phrase."""
        thing = self.things[index]
        look = {"colour": Noun(colour=thing.colour), "pattern": Noun(texture=thing.texture)}.get(kind)
        return f"is {with_article(self._noun(Noun(kind=thing.kind)))}" if look is None else look_phrase(look).text

    def _where(self) -> tuple[Turn, int | None] | None:
        """A question for a place."""
        for index in self._shuffled(self.main):
            subject, said = self._subject(index), self._standing(index)
            if subject is not None and said is not None and not set(_SIDE_WORDS) & set(subject.split()):
                question = self._asked(NAME_QUESTIONS["place"]).format(subject)
                return self._turn("place", question, self._answered(index, subject, said)), index
        return None

    def _standing(self, index: int) -> str | None:
        """The place of an object as a verb phrase: in the frame, or relative to another object."""
        place = self._place(index)
        if place is not None and self.rng.random() < 0.7:
            return self._say(Claim(place))
        for other, noun in self._shuffled(self._plain_names()):
            for word in POSITIONS:
                if other != index and self._true(Claim(word, noun), index):
                    return self._say(Claim(word, noun), marked=True)
        return None if place is None else self._say(Claim(place))

    def _action(self) -> tuple[Turn, int | None] | None:
        """A question for the movement of an object."""
        for index in self._shuffled(self.main):
            subject, said = self._subject(index), self._doing(index)
            if subject is not None and said is not None:
                question = self._asked(NAME_QUESTIONS["action"]).format(subject)
                return self._turn("action", question, self._answered(index, subject, said)), index
        return None

    def _doing(self, index: int) -> str | None:
        """The movements of an object as verb phrases."""
        doings = self._doings(index, self._plain_names())
        return " and ".join(self._say(claim, marked=True) for claim in doings) or None

    def _whether(self) -> tuple[Turn, int | None] | None:
        """A question whether something is there, or whether something is true of an object."""
        if self.families != MOTION_ONLY and self.rng.random() < 0.4:
            return self._whether_there()
        for index in self._shuffled(self.main):
            subject = self._subject(index)
            turn = None if subject is None else self._whether_true(index, subject)
            if turn is not None:
                return turn, index
        return None

    def _whether_there(self) -> tuple[Turn, int | None] | None:
        wanted = self.rng.random() < 0.5
        for _ in range(_TRIES):
            one, other = self.things[self._any(self.main)], self.things[self._any(self.main)]
            u = self.rng.random()
            colour = one.colour if wanted or u < 0.6 else self._any(list(COLOURS))
            kind = (one if wanted else other).kind if wanted or u > 0.3 else self._any(list(KINDS))
            noun = Noun(colour if self.rng.random() < 0.8 else "", "", kind)
            truths = self.facts.evaluate_noun(noun)
            objects = np.flatnonzero(truths == TRUE)
            words = self._noun(noun)
            question = f"is there {with_article(words)}?"
            if not wanted and (truths == FALSE).all():
                return self._turn("whether", question, f"no, there is no {words}."), None
            if wanted and len(objects) == 1 and self._is(Description(noun), int(objects[0])):
                index = int(objects[0])
                if self.facts.recognisable[index]:
                    phrase = self._mark(with_article(words), (index,))
                    return self._turn("whether", question, f"yes, there is {phrase}."), index
        return None

    def _whether_true(self, index: int, subject: str) -> Turn | None:
        """A question whether a claim is true of an object."""
        wanted = TRUE if self.rng.random() < 0.5 else FALSE
        for claim in self._claims():
            phrases = [phrase for phrase in verb_phrases(claim.word) if phrase.askable]
            truth = self.facts.evaluate_claim(claim, self.facts.evaluate_noun(Noun()))[index]
            own = claim.reference is not None and self.facts.find_reference(claim.reference) == index
            if truth != wanted or own or not phrases or claim.word in _UNASKED:
                continue
            phrase = self._asked(phrases)
            question = phrase.question(subject, many=False).format(ref=self._reference(claim, marked=False))
            answer = self._confirmed(index, subject, claim, phrase, truth=bool(wanted == TRUE))
            return self._turn("whether", f"{question}?", answer)
        return None

    def _confirmed(self, index: int, subject: str, claim: Claim, phrase: VerbPhrase, *, truth: bool) -> str:
        """Yes or no, followed by the statement that holds."""
        said = phrase.form(negated=not truth).format(ref=self._reference(claim, marked=True))
        if not truth and CLAIM_FAMILIES[claim.word] == "motion" and self.rng.random() < 0.5:
            said = self._doing(index) or said
        named = subject != "it" and self.rng.random() >= 0.5
        return f"{'yes' if truth else 'no'}, {self._mark(subject, (index,)) if named else 'it'} {said}."

    def _follow_up(self, before: Turn, index: int) -> Turn | None:
        """A second question about the same object, whose answer was not given yet."""
        thing, words = self.things[index], set(re.findall(r"\w+", f"{before.question} {before.answer}".lower()))
        for kind in self._shuffled(("colour", "shape", "place", "action", "whether")):
            if kind == before.kind or (kind == "colour" and thing.colour in words):
                continue
            if kind == "shape" and words & {word for name in KINDS[thing.kind] for word in name.split()}:
                continue
            if kind == "whether":
                turn = self._whether_true(index, "it")
                if turn is not None:
                    return replace(turn, motion=turn.motion or before.motion)
                continue
            said = {
                "colour": lambda: self._looking(index, "colour"),
                "shape": lambda: self._looking(index, "shape"),
                "place": lambda: self._standing(index),
                "action": lambda: self._doing(index),
            }[kind]()
            if said is not None:
                question = f"and {self._asked(NAME_QUESTIONS[kind]).format('it').lower()}"
                return self._turn(kind, question, f"it {said}.", before)
        return None


_PLACES = ("top left", "top right", "bottom left", "bottom right", "middle", "left", "right", "top", "bottom")
"""Places, the more exact ones first."""

_SIDE_WORDS = frozenset(("left", "right", "top", "bottom", "middle", "leftmost", "rightmost", "topmost", "bottommost"))

_WHERE = frozenset((*PLACES, *EXTREMES))

_WAYS = frozenset((*DIRECTIONS, *DIAGONALS))

_DOINGS = (
    *("passes behind something", "leaves and returns", "turns back", "bounces", "curves"),
    *(*ENTRIES, "enters", "leaves", "stops", "starts", "speeds up", "spins", "grows", "shrinks"),
    *(*DIRECTIONS, *DIAGONALS, "stays still", "moves"),
)
"""The movements, the most remarkable first."""

_ORDER = (
    *(*ENTRIES, "enters", *DIRECTIONS, *DIAGONALS, "turns back", "bounces", "curves", "starts", "speeds up", "stops"),
    *("passes behind", "passes behind something", "stays still", "moves", "grows", "shrinks", "spins"),
    *("leaves and returns", "leaves"),
)
"""The order of two movements in a sentence."""

_SUPERLATIVE = frozenset((*EXTREMES, *SIZES, "fastest"))
"""Words that go with "the" and not with "a"."""

_TELLING = (*_PLACES[5:], *EXTREMES, *SIZES, *_PLACES[:5], *DIRECTIONS, "stays still", "moves", "spins", "enters")
"""The claims by which objects that look alike are told apart, in this order."""

_COUNTED = ("moves", "stays still", "moves left", "moves right", "moves up", "moves down", "spins", "leaves", "enters")

_UNASKED = frozenset(("stays still",))
"""Not asked about: "does it not move" is no plain question."""

_LOOKS = {"colour": "colour", "shape": "kind", "pattern": "texture"}

_REFERRING_FAMILIES: dict[str, float] = {
    "colour+kind": 0.2,
    "colour": 0.05,
    "kind": 0.12,
    "texture": 0.08,
    "size": 0.06,
    "place": 0.1,
    "relation": 0.12,
    "motion": 0.15,
    "group": 0.06,
    "none": 0.06,
}
"""How often the published questions ask with each family of expressions."""
