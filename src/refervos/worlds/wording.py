"""Wording of descriptions: nouns, phrases and their paraphrases, all in lower case.

In ``PHRASES``, ``{}`` stands for the noun phrase and ``{ref}`` for the other object of a relation with its article.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.nouns import is_plural, names_of, plural
from refervos.worlds.shapes import COLOURS, KINDS, TEXTURES

GENERIC = ("object", "one", "shape", "thing")
"""Nouns for objects of any kind; "shape" is not used with sprites."""

TEXTURE_TAILS = {"striped": "with stripes", "dotted": "with dots", "plain": "without a pattern"}

PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("{} on the left", "{} at the left", "{} on the left side", "{} that is on the left"),
    "right": ("{} on the right", "{} at the right", "{} on the right side", "{} that is on the right"),
    "top": ("{} at the top", "{} in the upper part", "{} up at the top", "{} that is at the top"),
    "bottom": ("{} at the bottom", "{} in the lower part", "{} down at the bottom", "{} that is at the bottom"),
    "middle": ("{} in the middle", "{} in the centre", "{} that is in the middle"),
    "top left": ("{} at the top left", "{} in the upper left corner", "{} in the top left corner"),
    "top right": ("{} at the top right", "{} in the upper right corner", "{} in the top right corner"),
    "bottom left": ("{} at the bottom left", "{} in the lower left corner", "{} in the bottom left corner"),
    "bottom right": ("{} at the bottom right", "{} in the lower right corner", "{} in the bottom right corner"),
    "leftmost": ("leftmost {}", "{} furthest to the left", "{} that is leftmost"),
    "rightmost": ("rightmost {}", "{} furthest to the right", "{} that is rightmost"),
    "topmost": ("topmost {}", "highest {}", "{} closest to the top"),
    "bottommost": ("bottommost {}", "lowest {}", "{} closest to the bottom"),
    "largest": ("largest {}", "biggest {}", "large {}", "big {}", "{} that is the largest"),
    "smallest": ("smallest {}", "small {}", "little {}", "tiniest {}", "{} that is the smallest"),
    "left of": ("{} left of {ref}", "{} to the left of {ref}", "{} that is left of {ref}"),
    "right of": ("{} right of {ref}", "{} to the right of {ref}", "{} that is right of {ref}"),
    "above": ("{} above {ref}", "{} higher than {ref}", "{} that is above {ref}"),
    "below": ("{} below {ref}", "{} under {ref}", "{} lower than {ref}", "{} that is below {ref}"),
    "larger than": ("{} larger than {ref}", "{} that is bigger than {ref}"),
    "smaller than": ("{} smaller than {ref}", "{} that is smaller than {ref}"),
    "nearest to": ("{} nearest to {ref}", "{} closest to {ref}", "{} that is nearest to {ref}"),
    "moves": ("{} that moves", "moving {}", "{} that is moving", "{} in motion"),
    "stays still": ("{} that stays still", "{} that does not move", "{} standing still", "{} that is not moving"),
    "moves left": ("{} that moves left", "{} moving to the left", "{} going left", "{} that moves to the left"),
    "moves right": ("{} that moves right", "{} moving to the right", "{} going right", "{} that moves to the right"),
    "moves up": ("{} that moves up", "{} moving up", "{} going upwards", "{} that rises"),
    "moves down": ("{} that moves down", "{} moving down", "{} going downwards", "{} that falls"),
    "moves up and left": ("{} that moves up and to the left", "{} moving diagonally up and left"),
    "moves up and right": ("{} that moves up and to the right", "{} moving diagonally up and right"),
    "moves down and left": ("{} that moves down and to the left", "{} moving diagonally down and left"),
    "moves down and right": ("{} that moves down and to the right", "{} moving diagonally down and right"),
    "turns back": ("{} that turns back", "{} turning around", "{} that goes back the way it came"),
    "bounces": ("{} that bounces off the border", "{} that bounces", "{} bouncing off the edge"),
    "curves": ("{} that moves along a curve", "{} moving in a curve", "{} going around in a circle"),
    "grows": ("{} that grows", "growing {}", "{} getting bigger", "{} that gets larger"),
    "shrinks": ("{} that shrinks", "shrinking {}", "{} getting smaller"),
    "spins": ("{} that spins", "spinning {}", "rotating {}", "{} that rotates"),
    "speeds up": ("{} that speeds up", "{} getting faster", "{} that accelerates"),
    "stops": ("{} that stops", "{} that moves and then stops", "{} coming to a stop"),
    "starts": ("{} that starts to move", "{} that waits and then moves", "{} that sets off later"),
    "enters": ("{} that enters", "{} that comes in", "{} that comes into view", "{} entering the frame"),
    "enters from the left": ("{} that enters from the left", "{} coming in from the left"),
    "enters from the right": ("{} that enters from the right", "{} coming in from the right"),
    "enters from the top": ("{} that enters from the top", "{} coming in from above"),
    "enters from the bottom": ("{} that enters from the bottom", "{} coming in from below"),
    "leaves": ("{} that leaves", "{} that goes out of view", "{} leaving the frame"),
    "leaves and returns": ("{} that leaves and comes back", "{} that leaves the frame and returns"),
    "fastest": ("fastest {}", "{} that moves fastest", "quickest {}"),
    "passes behind something": ("{} that passes behind something", "{} that goes behind another object"),
    "passes behind": ("{} that passes behind {ref}", "{} going behind {ref}", "{} that is hidden by {ref}"),
}
"""Paraphrases of each claim about one object."""

PLURAL_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("{} on the left", "{} on the left side"),
    "right": ("{} on the right", "{} on the right side"),
    "top": ("{} at the top", "{} in the upper part"),
    "bottom": ("{} at the bottom", "{} in the lower part"),
    "left of": ("{} left of {ref}", "{} to the left of {ref}"),
    "right of": ("{} right of {ref}", "{} to the right of {ref}"),
    "above": ("{} above {ref}",),
    "below": ("{} below {ref}",),
    "larger than": ("{} larger than {ref}",),
    "smaller than": ("{} smaller than {ref}",),
    "moves": ("{} that move", "moving {}", "{} that are moving"),
    "stays still": ("{} that stay still", "{} that do not move", "{} standing still"),
    "moves left": ("{} that move left", "{} moving to the left", "{} going left"),
    "moves right": ("{} that move right", "{} moving to the right", "{} going right"),
    "moves up": ("{} that move up", "{} moving up", "{} going upwards"),
    "moves down": ("{} that move down", "{} moving down", "{} going downwards"),
    "spins": ("{} that spin", "spinning {}"),
    "enters": ("{} that enter", "{} entering the frame"),
    "leaves": ("{} that leave", "{} leaving the frame"),
}
"""Paraphrases of each claim about several objects."""

COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
"""Numbers as words."""


@dataclass(frozen=True)
class Lexicon:
    """Choice of nouns.

    Attributes:
        generic: Nouns for an unspecified kind.
        unseen: Use the synonyms that training never uses, if there are any.
    """

    generic: Sequence[str] = GENERIC
    unseen: bool = False

    def names(self, kind: str) -> Sequence[str]:
        """Return the nouns for a kind, or the generic nouns for an empty one."""
        return names_of(kind, unseen=self.unseen) if kind else self.generic


LEXICON = Lexicon()


def word_noun(noun: Noun, rng: np.random.Generator, several: bool = False, lexicon: Lexicon = LEXICON) -> str:
    """Word a noun phrase without an article, such as "striped red circle".

    Args:
        noun: Its meaning.
        rng: Chooses among synonyms and orders.
        several: Whether to use the plural.
        lexicon: Choice of nouns.

    Returns:
        The words.
    """
    head = str(rng.choice(lexicon.names(noun.kind)))
    before = [word for word in (noun.colour, noun.texture) if word]
    if len(before) > 1 and rng.random() < 0.5:
        before.reverse()
    return " ".join([*before, plural(head) if several else head])


def word_description(description: Description, rng: np.random.Generator, lexicon: Lexicon = LEXICON) -> str:
    """Word a description of one object.

    Args:
        description: Its meaning.
        rng: Chooses among paraphrases.
        lexicon: Choice of nouns.

    Returns:
        The expression.
    """
    if description.claim is None:
        return _word_look(description.noun, rng, lexicon)
    noun = word_noun(description.noun, rng, lexicon=lexicon)
    sentence = _word_claim(PHRASES, description.claim, noun, rng, lexicon)
    return f"the {sentence}" if rng.random() < 0.85 else sentence


def word_group(description: Description, count: int, rng: np.random.Generator, lexicon: Lexicon = LEXICON) -> str:
    """Word a description of several objects.

    Args:
        description: Its meaning; a claim is one of ``PLURAL_PHRASES``.
        count: Number of objects, at least 2.
        rng: Chooses among paraphrases.
        lexicon: Choice of nouns.

    Returns:
        The expression.
    """
    noun, claim = description.noun, description.claim
    u = rng.random()
    if u < 0.3 and noun == Noun():
        return "everything" if claim is None else _word_claim(PHRASES, claim, "everything", rng, lexicon, tails=True)
    if u < 0.45 and noun.kind:
        each = str(rng.choice(("every {}", "each {}"))).format(word_noun(noun, rng))
        return each if claim is None else _word_claim(PHRASES, claim, each, rng, lexicon, tails=True)
    if noun == Noun():
        # "all ones" is not English.
        lexicon = replace(lexicon, generic=[word for word in lexicon.generic if word != "one"])
    starts = ["the {}", "all the {}", "all {}"]
    if count in COUNTS:
        starts.append(f"the {COUNTS[count]} {{}}")
    if count == 2:
        starts.append("both {}")
    words = word_noun(noun, rng, several=True, lexicon=lexicon)
    if claim is not None:
        words = _word_claim(PLURAL_PHRASES, claim, words, rng, lexicon)
    return str(rng.choice(starts)).format(words)


def _word_look(noun: Noun, rng: np.random.Generator, lexicon: Lexicon) -> str:
    """Word a description without a claim: "the red circle", "a circle that is red", "something striped"."""
    words = [word_noun(noun, rng, lexicon=lexicon)] * 3
    rest = Noun(kind=noun.kind)
    if noun.colour:
        rest = Noun(texture=noun.texture, kind=noun.kind)
        for pronoun in ("that", "which"):
            head = word_noun(rest, rng, lexicon=lexicon)
            words.append(f"{head} {pronoun} {_to_be(head)} {noun.colour}")
    elif noun.texture:
        head = word_noun(rest, rng, lexicon=lexicon)
        words.append(f"{head} that {_to_be(head)} {noun.texture}")
    if noun.texture:
        rest = Noun(colour=noun.colour, kind=noun.kind)
        words += [f"{word_noun(rest, rng, lexicon=lexicon)} {TEXTURE_TAILS[noun.texture]}"] * 2
    phrase = str(rng.choice(words))
    u = rng.random()
    if not noun.kind and u < 0.15 and bool(noun.colour) != bool(noun.texture):
        return f"something {noun.colour or noun.texture}"
    if u < 0.65:
        return f"the {phrase}"
    if u < 0.8:
        return with_article(phrase)
    return phrase


def _to_be(noun: str) -> str:
    return "are" if _has_plural_head(noun) else "is"


def _word_claim(
    phrases: dict[str, tuple[str, ...]],
    claim: Claim,
    noun: str,
    rng: np.random.Generator,
    lexicon: Lexicon,
    tails: bool = False,
) -> str:
    """Word a noun phrase with a claim; with ``tails`` only by paraphrases that begin with the noun."""
    options = [phrase for phrase in phrases[claim.word] if not tails or phrase.startswith("{}")]
    other = "" if claim.reference is None else f"the {word_noun(claim.reference, rng, lexicon=lexicon)}"
    phrase = str(rng.choice(options))
    return (_pluralise_phrase(phrase) if _has_plural_head(noun) else phrase).format(noun, ref=other)


def _pluralise_phrase(phrase: str) -> str:
    """Change a phrase for use with a plural such as "scissors": "{} that move"."""
    start, that, end = phrase.partition(" that ")
    return start + that + pluralise_verbs(end)


def pluralise_verbs(words: str) -> str:
    """Change verbs from the singular to the plural: "leave and come back", "are on the left"."""
    return " ".join(_PLURAL_VERBS.get(word, word) for word in words.split(" "))


_PLURAL_VERBS = {"is": "are", "does": "do", "goes": "go", "passes": "pass"} | {
    verb: verb.removesuffix("s")
    for verb in (
        *("moves", "stays", "rises", "falls", "turns", "bounces", "grows", "gets", "shrinks", "spins", "rotates"),
        *("speeds", "accelerates", "stops", "waits", "starts", "sets", "enters", "comes", "leaves", "returns"),
    )
}
"""Verbs of the phrases in the third person singular, and their plurals."""


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase, or "the" before "one" and plurals such as "scissors"."""
    if phrase.split()[0] == "one" or _has_plural_head(re.split(r" (?:that|which|with|without) ", phrase)[0]):
        return f"the {phrase}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _has_plural_head(noun: str) -> bool:
    """Return whether a noun phrase, such as "red scissors", ends with a noun that is a plural itself."""
    words = noun.split()
    return any(is_plural(" ".join(words[-count:])) for count in (1, 2, 3))


def known_words(subjects: Sequence[str] = ()) -> tuple[str, ...]:
    """List the words of all expressions about drawn clips.

    Args:
        subjects: Subjects of sprites, if there are any.

    Returns:
        The words in alphabetical order, including plurals.
    """
    named = {name for subject in subjects for name in names_of(subject)}
    return tuple(sorted({word for sentence in all_sentences(sorted(named)) for word in sentence.split()}))


def all_sentences(subjects: Sequence[str] = ()) -> list[str]:
    """List sentences that together contain every word and phrase, for training a tokenizer.

    Args:
        subjects: Subjects of sprites, if there are any.

    Returns:
        The sentences.
    """
    kinds = sorted({noun for nouns in KINDS.values() for noun in nouns} | set(subjects))
    nouns = [*kinds, *GENERIC]
    sentences = [*nouns, *COLOURS, *TEXTURES]
    for noun in nouns:
        sentences += [f"the {colour} {noun}" for colour in COLOURS]
        sentences += [f"{with_article(noun)} that is {colour} which is {colour}" for colour in COLOURS]
        sentences += [f"the {texture} {noun} {tail}" for texture, tail in TEXTURE_TAILS.items()]
        sentences += [f"{start} {plural(noun)}" for start in ("all the", "all", "both")]
        sentences += [f"the {count} {plural(noun)}" for count in COUNTS.values()]
        sentences += [f"{start} {noun}" for start in ("every", "each")]
        sentences += [
            f"the {phrase.format(noun, ref=f'the {noun}')}" for phrases in PHRASES.values() for phrase in phrases
        ]
    for noun in (*kinds, *GENERIC):
        sentences += [
            phrase.format(plural(noun), ref=f"the {noun}") for phrases in PLURAL_PHRASES.values() for phrase in phrases
        ]
    for colour in COLOURS:
        sentences += [with_article(f"{colour} one"), f"something {colour}"]
        sentences += [f"the {colour} circle and the {texture} {colour} square" for texture in TEXTURES]
    sentences += [f"something {texture}" for texture in TEXTURES]
    sentences += [
        phrase.format("everything", ref="the circle")
        for phrases in PHRASES.values()
        for phrase in phrases
        if phrase.startswith("{}")
    ]
    return sentences
