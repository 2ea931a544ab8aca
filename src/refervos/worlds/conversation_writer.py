"""Generation of captions, questions and answers about one clip from its facts."""

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
    parse_question,
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
"""Maximum number of words, punctuation marks and tags of a caption of two to five objects; a few have two more."""

MOTION_ONLY: dict[str, float] = {"motion": 1.0}
"""Weights of families for "which", "whether" and "referring" questions about motion alone."""

_FOLLOW_UP = 0.35  # share of conversations about one object that have a second turn
_ABSENT = 0.15  # share of "which" questions without a matching object
_MAX_ATTEMPTS = 12
_TEMPLATE = re.compile(r"\[SEG:([\d,]*)\]")


@dataclass(frozen=True)
class Turn:
    """Question and answer.

    Attributes:
        kind: One of ``QUESTION_KINDS``.
        question: The question.
        answer: The answer, with ``<p> phrase </p> [SEG]`` for the objects; "It is [SEG]." etc. for published questions.
        targets: Indices of the objects of each ``[SEG]`` of the answer.
        motion: Whether the answer, or the meaning of its "it", depends on motion.
    """

    kind: str
    question: str
    answer: str
    targets: tuple[Objects, ...]
    motion: bool


Conversation = tuple[Turn, ...]
"""One turn, or two of which the second refers to the object of the first as "it"."""


def count_tokens(text: str) -> int:
    """Count the words, punctuation marks and tags of a text."""
    return len(re.findall(r"</?p>|\[SEG[^\]]*\]|\w+|[.,?!]", text))


def sentence_case(text: str) -> str:
    """Capitalise the first letter of each sentence, also inside a phrase."""
    return re.sub(r"(^|[.!?]\s+)((?:<p>\s*)?)([a-z])", lambda m: m[1] + m[2] + m[3].upper(), text)


class ConversationWriter:
    """Writer of true statements and questions about one clip.

    Args:
        facts: Facts of the clip.
        rng: Chooses the statements and their wording.
        variety: Probability of another wording than the plainest.
        families: Weight of each family of claims in questions.
        detail: Content of captions for each object, from 0 to 2.
        vague: Share of objects of which captions say only that they are there, or that they move, and of objects that
            look like another one of which they describe both together.
        patterns: Share of captions that name the pattern of every object, also where nothing else looks like it.

    Raises:
        ConfigError: When no object is recognisable.
    """

    def __init__(
        self,
        facts: Facts,
        rng: np.random.Generator,
        variety: float,
        families: Mapping[str, float],
        detail: int = 2,
        vague: float = 0.0,
        patterns: float = 0.0,
    ) -> None:
        self.facts, self.rng, self.variety, self.families = facts, rng, variety, families
        self.detail, self.vague, self.patterns = detail, vague, patterns
        self.names_patterns = False
        self.clip = facts.clip
        self.things = self.clip.scene.objects
        self.targets = [int(index) for index in np.flatnonzero(self.facts.recognisable)]
        if not self.targets:
            raise ConfigError("the clip shows no object well enough to describe it; draw another one.")

    def conversations(self, count: int, kinds: Mapping[str, float]) -> tuple[Conversation, ...]:
        """Write between one and ``count`` conversations."""
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
        """Decide at random whether to depart from the plainest wording."""
        return bool(self.rng.random() < share * self.variety)

    def _wording(self, options: Sequence[Item]) -> Item:
        """Return the first option or, with variety, a random one."""
        return options[int(self.rng.integers(len(options)))] if self._varies() else options[0]

    def _question_wording(self, options: Sequence[Item]) -> Item:
        """Return a random wording of a question unless variety is 0: questions vary more than answers."""
        return options[0] if self.variety == 0 else self._choose(options)

    def _choose(self, options: Sequence[Item]) -> Item:
        return options[int(self.rng.integers(len(options)))]

    def _shuffled(self, items: Iterable[Item]) -> list[Item]:
        pool = list(items)
        return [pool[index] for index in self.rng.permutation(len(pool))]

    def _noun(self, noun: Noun, several: bool = False) -> str:
        """Word a noun phrase without its article."""
        if self._varies():
            words = word_noun(noun, self.rng, several)
            if noun != Noun() or not words.startswith("one"):
                return words
        head = KINDS[noun.kind][0] if noun.kind else GENERIC[0]
        return " ".join(word for word in (noun.texture, noun.colour, plural(head) if several else head) if word)

    def _described(self, description: Description) -> str:
        """Word a description without its article: "circle on the left"."""
        noun, claim = self._noun(description.noun), description.claim
        if claim is None:
            return noun
        other = "" if claim.reference is None else f"the {self._noun(claim.reference)}"
        return self._wording(PHRASES[claim.word]).format(noun, ref=other)

    def _mark(self, words: str, objects: Objects) -> str:
        """Add the tags to a phrase."""
        return f"<p> {words} </p> [SEG:{','.join(map(str, objects))}]"

    def _verb_phrase(self, claim: Claim, *, many: bool = False, marked: bool = False, question: bool = False) -> str:
        """Word a claim as a verb phrase, for questions or answers; ``marked`` adds tags to its reference."""
        phrases = list(verb_phrases(claim.word))
        if many:  # "they go back the way it came"
            phrases = [p for p in phrases if " it " not in p.text]
        phrase = self._question_wording(phrases) if question else self._wording(phrases)
        return phrase.form(many=many).format(ref=self._reference(claim, marked))

    def _reference(self, claim: Claim, marked: bool) -> str:
        if claim.reference is None:
            return ""
        words, index = f"the {self._noun(claim.reference)}", self.facts.find_reference(claim.reference)
        return self._mark(words, (index,)) if marked and index is not None and index >= 0 else words

    def _turn(self, kind: str, question: str, answer: str, before: Turn | None = None) -> Turn:
        """Make a turn from an answer whose tags contain object indices; ``before`` is the turn that defines "it"."""
        parsed = parse_question(question)
        motion = kind == "description" or bool(parsed and parsed.motion) or bool(before and before.motion)
        targets = tuple(tuple(map(int, match[1].split(","))) for match in _TEMPLATE.finditer(answer))
        return Turn(kind, sentence_case(question), sentence_case(_TEMPLATE.sub("[SEG]", answer)), targets, motion)

    # --- naming ---

    def _looks(self, index: int) -> list[Noun]:
        """List noun phrases with a kind that are true of an object, from general to specific."""
        thing = self.things[index]
        nouns = [Noun(thing.colour, thing.texture, thing.kind)]
        if self.names_patterns:
            return nouns
        nouns.insert(0, Noun(thing.colour, "", thing.kind))
        if self._varies(0.5):
            nouns.insert(0, Noun(kind=thing.kind))
        return nouns

    def _identifies(self, description: Description, index: int) -> bool:
        """Return whether a description is true of one object and clearly false of all others."""
        truths = self.facts.evaluate(description)
        return bool(truths[index] == TRUE) and int((truths != FALSE).sum()) == 1

    def _name(self, index: int, avoid: str = "", nouns: Sequence[Noun] | None = None) -> Description | None:
        """Find a description that identifies one object, by its looks or else by a claim other than ``avoid``."""
        nouns = self._looks(index) if nouns is None else nouns
        for noun in nouns:
            if self._identifies(Description(noun), index):
                return Description(noun)
        for word in _DISTINGUISHING:
            for noun in nouns:
                description = Description(noun, Claim(word))
                if word != avoid and self._identifies(description, index):
                    return description
        return None

    def _phrase(self, index: int, avoid: str) -> str | None:
        """Return a phrase with tags that identifies one object."""
        name = self._name(index, avoid)
        return None if name is None else self._marked_name(name, index, "the")

    def _marked_name(self, name: Description, index: int, article: str) -> str:
        """Return a phrase with tags for an object's description; superlatives always take "the"."""
        words = self._described(name)
        single = name.claim is not None and name.claim.word in _SUPERLATIVE
        return self._mark(with_article(words) if article == "a" and not single else f"the {words}", (index,))

    def _group(self, objects: Sequence[int], nouns: Iterable[Noun]) -> str | None:
        """Return a phrase with tags that refers to several objects by one of the nouns."""
        for noun in nouns:
            truths = self.facts.evaluate_noun(noun)
            if tuple(np.flatnonzero(truths == TRUE)) == tuple(objects) and not (truths == UNCLEAR).any():
                starts = [f"the {NUMBERS[len(objects)]}"] if len(objects) in NUMBERS else ["the"]
                starts += ["all the", "the", *(["both"] if len(objects) == 2 else [])]
                return self._mark(f"{self._wording(starts)} {self._noun(noun, several=True)}", tuple(objects))
        return None

    def _plain_names(self) -> list[tuple[int, Noun]]:
        """List the objects that a noun phrase alone identifies, as required for the reference of a relation."""
        named = []
        for index in self.targets:
            for noun in self._looks(index):
                if self.facts.find_reference(noun) == index:
                    named.append((index, noun))
                    break
        return named

    # --- captions ---

    def caption(self) -> Turn:
        """Describe the clip, with less detail if the caption would be too long."""
        question = self._question_wording(DESCRIPTION_QUESTIONS)
        self.names_patterns = bool(self.patterns) and bool(self.rng.random() < self.patterns)
        state = self.rng.bit_generator.state
        answer = ""
        variety = self.variety
        for detail in range(self.detail, -1, -1):
            self.rng.bit_generator.state = state
            self.variety = variety if detail else 0.0
            answer = self._caption(detail)
            if count_tokens(answer) <= CAPTION_TOKENS:
                break
        self.variety, self.names_patterns = variety, False
        return self._turn("description", question, answer)

    def _caption(self, detail: int) -> str:
        """Describe the clip with places and two movements per object (2), two movements (1), or one movement (0)."""
        clauses: list[str] = []
        covered: set[int] = set()
        named = self._plain_names()
        movements = {index: self._movements(index, named)[: 2 if detail else 1] for index in self.targets}
        vague = [index for index in self.targets if self.vague and self.rng.random() < self.vague]
        for index in vague:
            movements[index] = (
                [Claim("moves")] if self._holds(Claim("moves"), index) and self.rng.random() < 0.5 else []
            )
        for index in self.targets:
            for claim in movements[index]:  # this clause also covers the object in front, unless that one moves
                front = None if claim.reference is None else self.facts.find_reference(claim.reference)
                rests = front is not None and all(
                    movement.word == "stays still" for movement in movements.get(front, [])
                )
                if front is not None and rests and self._name(index) is not None:
                    covered.add(front)
        for index in sorted(self.targets, key=self._mean_x):
            if index in covered:
                continue
            together = self._vague_group(index, covered) if index in vague else ""
            covered.add(index)
            level = 0 if index in vague else detail
            clauses.append(together or self._clause(index, movements[index], named, covered, level))
        clauses = [clause for clause in clauses if clause]
        if detail and self._varies(0.4):
            clauses.insert(0, self._opening())
        return self._join([clause for clause in clauses if clause])

    def _vague_group(self, index: int, covered: set[int]) -> str:
        """Describe an object together with those that look like it; empty if its looks identify it."""
        name = self._name(index)
        if name is not None and name.claim is None:
            return ""
        together: set[int] = set()
        clause = self._group_clause(index, together)
        if not clause or together & covered:
            return ""
        covered |= together
        return clause

    def _mean_x(self, index: int) -> float:
        """Return the mean x of an object while it is seen."""
        return float(self.clip.centres[index, self.facts.seen[index], 0].mean())

    def _opening(self) -> str:
        """Return a clause with the number of all objects, or an empty string."""
        everything = np.flatnonzero(self.facts.ever_visible)
        if len(everything) not in NUMBERS or len(everything) < 2 or len(everything) != len(self.targets):
            return ""
        return f"there are {NUMBERS[len(everything)]} {self._wording(['objects', 'shapes', 'things'])}"

    def _clause(
        self, index: int, movements: Sequence[Claim], named: Sequence[tuple[int, Noun]], covered: set[int], detail: int
    ) -> str:
        """Write a clause about one object and add the objects that it mentions to ``covered``."""
        name = self._name(index)
        if name is None:
            return self._group_clause(index, covered)
        if len(movements) == 1 and self._varies(0.3):
            joint = self._joint_clause(index, movements[0], covered)
            if joint:
                return joint
        still = not movements or movements[0].word == "stays still"
        phrases = [self._verb_phrase(claim, marked=True) for claim in movements]
        if still and detail == 2:
            relation = self._relation(index, named, covered) if self._varies(0.6) else None
            place = None if name.claim is not None and name.claim.word in _PLACE_WORDS else self._place(index)
            if relation is not None:
                phrases.insert(0, self._verb_phrase(relation, marked=True))
            elif place is not None and (phrases or not self._varies()):
                phrases.insert(0, self._verb_phrase(Claim(place)))
        if not phrases:
            return f"there is {self._marked_name(name, index, 'a')}"
        return f"{self._marked_name(name, index, self._wording(['the', 'the', 'a']))} {' and '.join(phrases)}"

    def _group_clause(self, index: int, covered: set[int]) -> str:
        """Write a clause about look-alikes that no claim distinguishes; empty if nothing is certain."""
        thing = self.things[index]
        for noun in (Noun(thing.colour, "", thing.kind), Noun(thing.colour, thing.texture, thing.kind)):
            objects = [int(i) for i in np.flatnonzero(self.facts.evaluate_noun(noun) == TRUE)]
            subject = self._group(objects, [noun]) if set(objects) <= set(self.targets) else None
            if subject is None or len(objects) < 2:
                continue
            shared = [
                word
                for word in (*_MOVEMENTS, *PLACES)
                if all(self._holds(Claim(word), each) for each in objects) and word not in ENTRIES
            ]
            covered |= set(objects)
            if shared:
                return f"{subject} {self._verb_phrase(Claim(shared[0]), many=True)}"
            words = f"{NUMBERS[len(objects)]} {self._noun(noun, several=True)}"
            return f"there are {self._mark(words, tuple(objects))}" if len(objects) in NUMBERS else ""
        return ""

    def _joint_clause(self, index: int, movement: Claim, covered: set[int]) -> str | None:
        """Write one clause about several objects with the same movement and a common noun."""
        if movement.reference is not None:
            return None
        thing = self.things[index]
        for noun in self._shuffled([Noun(kind=thing.kind), Noun(colour=thing.colour)]):
            objects = [int(i) for i in np.flatnonzero(self.facts.evaluate_noun(noun) == TRUE)]
            fits = len(objects) > 1 and set(objects) <= set(self.targets) and not (set(objects) - {index}) & covered
            if fits and all(self._holds(movement, each) for each in objects):
                subject = self._group(objects, [noun])
                if subject is not None:
                    covered |= set(objects)
                    return f"{subject} {self._verb_phrase(movement, many=True)}"
        return None

    def _join(self, clauses: Sequence[str]) -> str:
        """Join clauses into sentences, sometimes two into one."""
        text = ""
        joined = False
        for number, clause in enumerate(clauses):
            follows = number > 0 and not joined and self._varies(0.5) and not clause.startswith("there ")
            text += "" if number == 0 else " while " if follows else ". "
            joined = follows
            text += clause
        if not text:  # look-alikes, some of them hardly visible: no phrase identifies one of them
            text = f"there is {with_article(self._noun(self._looks(self.targets[0])[0]))}"
        return f"{text}."

    def _holds(self, claim: Claim, index: int) -> bool:
        """Return whether a claim is true of an object, compared with all objects of the clip."""
        return bool(self.facts.evaluate_claim(claim, self.facts.evaluate_noun(Noun()))[index] == TRUE)

    def _movements(self, index: int, named: Sequence[tuple[int, Noun]]) -> list[Claim]:
        """Return the two most noticeable movements of an object, in the order of the sentence."""
        words = [word for word in _MOVEMENTS if self._holds(Claim(word), index)]
        claims = [Claim(word) for word in words]
        behind = [Claim("passes behind", noun) for other, noun in named if other != index]
        behind = [claim for claim in behind if self._holds(claim, index)]
        if behind:
            claims = [*behind[:1], *(claim for claim in claims if claim.word != "passes behind something")]
        if any(word.startswith("enters") for word in words):  # the side of entry implies the direction
            claims = [claim for claim in claims if claim.word not in _DIRECTIONS]
        if any(word in ENTRIES for word in words):
            claims = [claim for claim in claims if claim.word != "enters"]
        if any(claim.word != "moves" for claim in claims):
            claims = [claim for claim in claims if claim.word != "moves"]
        return sorted(claims[:2], key=lambda claim: _ORDER.index(claim.word))

    def _place(self, index: int) -> str | None:
        """Return the part of the frame in which an object is whenever it is seen."""
        return next((word for word in _PLACES if self._holds(Claim(word), index)), None)

    def _relation(self, index: int, named: Sequence[tuple[int, Noun]], covered: set[int]) -> Claim | None:
        """Find a position relative to a still object that is not covered yet, and add that object to ``covered``."""
        for other, noun in self._shuffled(named):
            if other in covered or not self._holds(Claim("stays still"), other):
                continue
            for word in POSITIONS:
                if self._holds(Claim(word, noun), index):
                    covered.add(other)
                    return Claim(word, noun)
        return None

    # --- questions ---

    def conversation(self, kind: str) -> Conversation | None:
        """Write a conversation that begins with a question of a kind; None if the clip has none."""
        first: dict[str, Callable[[], tuple[Turn, int | None] | None]] = {
            "description": lambda: (self.caption(), None),
            "referring": self._referring,
            "absent": lambda: self._referring({"none": 1.0}),
            "which": self._which,
            "count": self._count,
            "colour": lambda: self._look("colour"),
            "shape": lambda: self._look("shape"),
            "pattern": lambda: self._look("pattern"),
            "place": self._place_question,
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

    def _referring(self, families: Mapping[str, float] | None = None) -> tuple[Turn, int | None] | None:
        """Ask a published question about an expression, of some families."""
        if families is None:
            families = _REFERRING_FAMILIES if self.families != MOTION_ONLY else MOTION_ONLY
        (expression,) = sample_expressions(self.clip, self.rng, 1, families, facts=self.facts)
        question = self._question_wording(REFERRING_QUESTIONS).format(expression.text)
        if not expression.targets:
            return self._turn("referring", question, ABSENT_ANSWER), None
        seg = f"[SEG:{','.join(map(str, expression.targets))}]"
        answer = self._wording(REFERRING_ANSWERS).replace("[SEG]", seg)
        focus = expression.targets[0] if len(expression.targets) == 1 else None
        return self._turn("referring", question, answer), focus

    def _claims(self) -> list[Claim]:
        """List the claims of one random family, in random order."""
        names = list(self.families)
        odds = np.array([self.families[name] for name in names])
        family = names[int(self.rng.choice(len(names), p=odds / odds.sum()))]
        named = [noun for _, noun in self._plain_names()]
        words = [word for word, of in CLAIM_FAMILIES.items() if of == family]
        claims = [Claim(word) for word in words if word not in WITH_REFERENCE]
        claims += [Claim(word, noun) for word in words if word in WITH_REFERENCE for noun in self._shuffled(named)[:2]]
        return self._shuffled(claims)

    def _which(self) -> tuple[Turn, int | None] | None:
        """Ask for the objects of which a claim is true."""
        absent = self.rng.random() < _ABSENT
        for claim in (*self._claims(), *self._claims()):
            noun = Noun() if claim.reference is not None or self.rng.random() < 0.6 else self._random_kind()
            truths = self.facts.evaluate(Description(noun, claim))
            objects = [int(index) for index in np.flatnonzero(truths == TRUE)]
            if (truths == UNCLEAR).any() or bool(objects) == absent or not self.facts.recognisable[objects].all():
                continue
            if noun != Noun() and not (self.facts.evaluate_noun(noun) == TRUE).any():
                continue
            verb_phrase = self._verb_phrase(claim, question=True)
            openings = ["which one", "which object", "what"] if noun == Noun() else [f"which {self._noun(noun)}"]
            question = f"{self._question_wording(openings)} {verb_phrase}?"
            if absent:
                answer = f"{self._no_object(noun)} {self._verb_phrase(claim)}."
                return self._turn("which", question, answer), None
            found = [self._phrase(index, avoid=claim.word) for index in sorted(objects, key=self._mean_x)]
            phrases = [phrase for phrase in found if phrase is not None]
            if len(phrases) != len(objects) or len(objects) > 3:
                continue
            if len(objects) > 1 and self._varies():
                phrases = [self._group(objects, self._shared_nouns(objects)) or " and ".join(phrases)]
            answer = f"{'it is' if len(objects) == 1 else 'they are'} {' and '.join(phrases)}."
            return self._turn("which", question, answer), objects[0] if len(objects) == 1 else None
        return None

    def _no_object(self, noun: Noun) -> str:
        return "nothing" if noun == Noun() else f"no {self._noun(noun)}"

    def _random_kind(self) -> Noun:
        return Noun(kind=self.things[self._choose(self.targets)].kind)

    def _shared_nouns(self, objects: Sequence[int]) -> list[Noun]:
        """List nouns that are true of all of several objects."""
        things = [self.things[index] for index in objects]
        colours, kinds = {thing.colour for thing in things}, {thing.kind for thing in things}
        nouns = [Noun(colour=thing.colour, kind=thing.kind) for thing in things[:1] if len(colours) == len(kinds) == 1]
        nouns += [Noun(kind=things[0].kind)] if len(kinds) == 1 else []
        return nouns + ([Noun(colour=things[0].colour)] if len(colours) == 1 else [])

    def _count(self) -> tuple[Turn, int | None] | None:
        """Ask for a number."""
        for _ in range(_MAX_ATTEMPTS):
            thing = self.things[self._choose(self.targets)]
            u = self.rng.random()
            noun = Noun(kind=thing.kind) if u < 0.4 else Noun(colour=thing.colour) if u < 0.6 else Noun()
            if u > 0.8:
                noun = self._choose(
                    [Noun(kind=str(self._choose(list(KINDS)))), Noun(colour=str(self._choose(list(COLOURS))))]
                )
            claim = Claim(self._choose(_COUNTED)) if self.rng.random() < 0.4 else None
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
                question = self._question_wording(COUNT_QUESTIONS).format(many)
                answer = (
                    f"there {'are' if len(objects) > 1 else 'is'} {phrase}." if objects else f"there are no {many}."
                )
            else:
                question = f"how many {many} {self._verb_phrase(claim, many=True, question=True)}?"
                verb_phrase = self._verb_phrase(claim, many=len(objects) > 1)
                answer = f"{phrase} {verb_phrase}." if objects else f"{self._no_object(noun)} {verb_phrase}."
            return self._turn("count", question, answer), None
        return None

    def _subject(self, index: int, nouns: Sequence[Noun] | None = None) -> str | None:
        """Name the object in question, without tags."""
        name = self._name(index, nouns=nouns)
        return None if name is None else f"the {self._described(name)}"

    def _answer(self, index: int, subject: str, verb_phrase: str) -> str:
        """Answer about the object in question, as "it" or by a phrase with tags."""
        return f"{'it' if self.rng.random() < 0.5 else self._mark(subject, (index,))} {verb_phrase}."

    def _look(self, kind: str) -> tuple[Turn, int | None] | None:
        """Ask for a colour, a shape or a pattern, by a name that does not reveal it."""
        for index in self._shuffled(self.targets):
            thing = self.things[index]
            left = {"colour": thing.colour, "texture": thing.texture, "kind": thing.kind} | {_LOOKS[kind]: ""}
            nouns = [replace(Noun(**left), texture=""), Noun(**left)]
            subject = self._subject(
                index, list(dict.fromkeys(noun for noun in nouns if kind != "pattern" or noun.kind))
            )
            if subject is not None:
                question = self._question_wording(NAME_QUESTIONS[kind]).format(subject)
                return self._turn(kind, question, self._answer(index, subject, self._look_phrase(index, kind))), index
        return None

    def _look_phrase(self, index: int, kind: str) -> str:
        """Word the colour, shape or pattern of an object as a verb phrase."""
        thing = self.things[index]
        look = {"colour": Noun(colour=thing.colour), "pattern": Noun(texture=thing.texture)}.get(kind)
        return f"is {with_article(self._noun(Noun(kind=thing.kind)))}" if look is None else look_phrase(look).text

    def _place_question(self) -> tuple[Turn, int | None] | None:
        """Ask for a place."""
        for index in self._shuffled(self.targets):
            subject, verb_phrase = self._subject(index), self._place_phrase(index)
            if subject is not None and verb_phrase is not None and not set(_SIDE_WORDS) & set(subject.split()):
                question = self._question_wording(NAME_QUESTIONS["place"]).format(subject)
                return self._turn("place", question, self._answer(index, subject, verb_phrase)), index
        return None

    def _place_phrase(self, index: int) -> str | None:
        """Word the place of an object as a verb phrase: in the frame, or relative to another object."""
        place = self._place(index)
        if place is not None and self.rng.random() < 0.7:
            return self._verb_phrase(Claim(place))
        for other, noun in self._shuffled(self._plain_names()):
            for word in POSITIONS:
                if other != index and self._holds(Claim(word, noun), index):
                    return self._verb_phrase(Claim(word, noun), marked=True)
        return None if place is None else self._verb_phrase(Claim(place))

    def _action(self) -> tuple[Turn, int | None] | None:
        """Ask for the movement of an object."""
        for index in self._shuffled(self.targets):
            subject, verb_phrase = self._subject(index), self._movement_phrase(index)
            if subject is not None and verb_phrase is not None:
                question = self._question_wording(NAME_QUESTIONS["action"]).format(subject)
                return self._turn("action", question, self._answer(index, subject, verb_phrase)), index
        return None

    def _movement_phrase(self, index: int) -> str | None:
        """Word the movements of an object as verb phrases."""
        movements = self._movements(index, self._plain_names())
        return " and ".join(self._verb_phrase(claim, marked=True) for claim in movements) or None

    def _whether(self) -> tuple[Turn, int | None] | None:
        """Ask whether an object exists, or whether a claim is true of an object."""
        if self.families != MOTION_ONLY and self.rng.random() < 0.4:
            return self._whether_there()
        for index in self._shuffled(self.targets):
            subject = self._subject(index)
            turn = None if subject is None else self._whether_true(index, subject)
            if turn is not None:
                return turn, index
        return None

    def _whether_there(self) -> tuple[Turn, int | None] | None:
        wanted = self.rng.random() < 0.5
        for _ in range(_MAX_ATTEMPTS):
            one, other = self.things[self._choose(self.targets)], self.things[self._choose(self.targets)]
            u = self.rng.random()
            colour = one.colour if wanted or u < 0.6 else self._choose(list(COLOURS))
            kind = (one if wanted else other).kind if wanted or u > 0.3 else self._choose(list(KINDS))
            noun = Noun(colour if self.rng.random() < 0.8 else "", "", kind)
            truths = self.facts.evaluate_noun(noun)
            objects = np.flatnonzero(truths == TRUE)
            words = self._noun(noun)
            question = f"is there {with_article(words)}?"
            if not wanted and (truths == FALSE).all():
                return self._turn("whether", question, f"no, there is no {words}."), None
            if wanted and len(objects) == 1 and self._identifies(Description(noun), int(objects[0])):
                index = int(objects[0])
                if self.facts.recognisable[index]:
                    phrase = self._mark(with_article(words), (index,))
                    return self._turn("whether", question, f"yes, there is {phrase}."), index
        return None

    def _whether_true(self, index: int, subject: str) -> Turn | None:
        """Ask whether a claim is true of an object."""
        wanted = TRUE if self.rng.random() < 0.5 else FALSE
        for claim in self._claims():
            phrases = [phrase for phrase in verb_phrases(claim.word) if phrase.has_question_form]
            truth = self.facts.evaluate_claim(claim, self.facts.evaluate_noun(Noun()))[index]
            own = claim.reference is not None and self.facts.find_reference(claim.reference) == index
            if truth != wanted or own or not phrases or claim.word in _NOT_IN_QUESTIONS:
                continue
            phrase = self._question_wording(phrases)
            question = phrase.question(subject, many=False).format(ref=self._reference(claim, marked=False))
            answer = self._yes_or_no(index, subject, claim, phrase, truth=bool(wanted == TRUE))
            return self._turn("whether", f"{question}?", answer)
        return None

    def _yes_or_no(self, index: int, subject: str, claim: Claim, phrase: VerbPhrase, *, truth: bool) -> str:
        """Answer yes or no, followed by a true statement."""
        verb_phrase = phrase.form(negated=not truth).format(ref=self._reference(claim, marked=True))
        if not truth and CLAIM_FAMILIES[claim.word] == "motion" and self.rng.random() < 0.5:
            verb_phrase = self._movement_phrase(index) or verb_phrase
        repeat_name = subject != "it" and self.rng.random() >= 0.5
        return f"{'yes' if truth else 'no'}, {self._mark(subject, (index,)) if repeat_name else 'it'} {verb_phrase}."

    def _follow_up(self, before: Turn, index: int) -> Turn | None:
        """Ask a second question about the same object, whose answer was not given yet."""
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
            verb_phrase = {
                "colour": lambda: self._look_phrase(index, "colour"),
                "shape": lambda: self._look_phrase(index, "shape"),
                "place": lambda: self._place_phrase(index),
                "action": lambda: self._movement_phrase(index),
            }[kind]()
            if verb_phrase is not None:
                question = f"and {self._question_wording(NAME_QUESTIONS[kind]).format('it').lower()}"
                return self._turn(kind, question, f"it {verb_phrase}.", before)
        return None


_PLACES = ("top left", "top right", "bottom left", "bottom right", "middle", "left", "right", "top", "bottom")
"""Places, the more specific ones first."""

_SIDE_WORDS = frozenset(("left", "right", "top", "bottom", "middle", "leftmost", "rightmost", "topmost", "bottommost"))

_PLACE_WORDS = frozenset((*PLACES, *EXTREMES))

_DIRECTIONS = frozenset((*DIRECTIONS, *DIAGONALS))

_MOVEMENTS = (
    *("passes behind something", "leaves and returns", "turns back", "bounces", "curves"),
    *(*ENTRIES, "enters", "leaves", "stops", "starts", "speeds up", "spins", "grows", "shrinks"),
    *(*DIRECTIONS, *DIAGONALS, "stays still", "moves"),
)
"""Movements, the most noticeable first."""

_ORDER = (
    *(*ENTRIES, "enters", *DIRECTIONS, *DIAGONALS, "turns back", "bounces", "curves", "starts", "speeds up", "stops"),
    *("passes behind", "passes behind something", "stays still", "moves", "grows", "shrinks", "spins"),
    *("leaves and returns", "leaves"),
)
"""Order of two movements in a sentence."""

_SUPERLATIVE = frozenset((*EXTREMES, *SIZES, "fastest"))
"""Words that require "the"."""

_DISTINGUISHING = (
    *_PLACES[5:],
    *EXTREMES,
    *SIZES,
    *_PLACES[:5],
    *DIRECTIONS,
    "stays still",
    "moves",
    "spins",
    "enters",
)
"""Claims that distinguish objects with the same looks, in order of preference."""

_COUNTED = ("moves", "stays still", "moves left", "moves right", "moves up", "moves down", "spins", "leaves", "enters")

_NOT_IN_QUESTIONS = frozenset(("stays still",))
"""Claims without yes/no questions: "does it not move" is not a simple question."""

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
"""Weight of each family of expressions in the published questions."""
