"""A judge of free text about a clip: which of its sentences are true by the facts of the scene.

The text may come from a model. It is read by the grammar of the conversations; a sentence that the grammar does not
understand is not true, and neither is one that the facts leave unclear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from refervos.worlds.facts import Facts
from refervos.worlds.grammar import plain, read_mention, read_question, read_sentence
from refervos.worlds.movement_facts import FALSE, UNCLEAR
from refervos.worlds.statements import Objects, Question, Said, Statement


class Verdict(StrEnum):
    """The verdict on a sentence."""

    TRUE = "true"
    FALSE = "false"
    UNDECIDABLE = "undecidable"
    NOT_UNDERSTOOD = "not understood"


@dataclass(frozen=True)
class JudgedPhrase:
    """A phrase between ``<p>`` and ``</p>``.

    Attributes:
        text: Its words.
        objects: The objects that it names; none where nothing fits, and None where it is not understood or unclear.
        has_mask: Whether ``[SEG]`` follows it.
    """

    text: str
    objects: Objects | None
    has_mask: bool


@dataclass(frozen=True)
class JudgedSentence:
    """A sentence and its verdict.

    Attributes:
        text: The sentence without tags, in lower case.
        verdict: On all clauses together.
        answers: Whether it addresses the question, be it true or not.
        phrases: Its phrases in their order.
    """

    text: str
    verdict: Verdict
    answers: bool
    phrases: tuple[JudgedPhrase, ...]


@dataclass(frozen=True)
class JudgedText:
    """The verdicts of a text, sentence by sentence."""

    sentences: tuple[JudgedSentence, ...]

    @property
    def all_true(self) -> bool:
        """Whether there is a sentence and every sentence is true."""
        return bool(self.sentences) and all(sentence.verdict is Verdict.TRUE for sentence in self.sentences)

    @property
    def correct(self) -> bool:
        """Whether every sentence is true and one of them answers the question."""
        return self.all_true and any(sentence.answers for sentence in self.sentences)

    @property
    def phrases(self) -> tuple[JudgedPhrase, ...]:
        """All phrases in their order."""
        return tuple(phrase for sentence in self.sentences for phrase in sentence.phrases)


def judge(text: str, facts: Facts, question: str = "", earlier: Sequence[str] = ()) -> JudgedText:
    """Judge each sentence of an answer or of a caption.

    Args:
        text: The text, with or without phrases and tags.
        facts: Of the clip.
        question: The question, which answers such as "Yes." or "It is red." need; without one, a description is judged.
        earlier: The questions before it, to whose objects "it" may refer.

    Returns:
        The verdicts. The meaning of "it" follows from the questions and the facts, not from earlier answers.
    """
    focus: Objects | None = ()
    for asked in earlier:
        before = read_question(asked)
        focus = None if before is None else before.focus(facts, focus)
    now = read_question(question) if question.strip() else Question("description")
    if now is None:
        now, focus = Question("description"), None
    return JudgedText(tuple(_judged(sentence, facts, now, focus) for sentence in sentences_of(text)))


def sentences_of(text: str) -> list[str]:
    """Split a text at the ends of its sentences; empty ones are left out.

    Args:
        text: The text.

    Returns:
        Its sentences, each with its full stop.
    """
    parts = re.findall(r"[^.!?]*[.!?]?", text)
    return [part.strip() for part in parts if re.search(r"\w", part)]


_PHRASE = re.compile(r"<p>(.{0,400}?)</p>\s*(\[seg\])?", re.IGNORECASE | re.DOTALL)


def _judged(sentence: str, facts: Facts, question: Question, before: Objects | None) -> JudgedSentence:
    said = read_sentence(sentence)
    truths = [None if one is None else question.truth_of(one, facts, before) for one in said]
    known = [truth for truth in truths if truth is not None]
    if FALSE in known:
        verdict = Verdict.FALSE
    elif not said or None in truths:
        verdict = Verdict.NOT_UNDERSTOOD
    else:
        verdict = Verdict.UNDECIDABLE if UNCLEAR in known else Verdict.TRUE
    phrases = tuple(
        JudgedPhrase(plain(match[1]), _named(plain(match[1]), said, facts, question, before), match[2] is not None)
        for match in _PHRASE.finditer(sentence)
    )
    answers = any(one is not None and question.answered_by(one) for one in said)
    return JudgedSentence(plain(sentence), verdict, answers, phrases)


def _named(
    text: str, said: Sequence[Said | None], facts: Facts, question: Question, before: Objects | None
) -> Objects | None:
    """The objects that a phrase of a sentence names."""
    mention = read_mention(text)
    if mention is None:
        return None
    for one in said:
        if isinstance(one, Statement):
            for phrase in one.subject.phrases:
                if mention.phrases == (phrase,):
                    return one.named(facts, phrase)
    return mention.named(facts, question.focus(facts, before))
