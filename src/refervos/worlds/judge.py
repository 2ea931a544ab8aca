"""Judge of free text about a clip: it evaluates each sentence by the facts of the scene.

The text may come from a model. It is parsed by the grammar of the conversations; a sentence outside of the grammar does
not count as true, and neither does one whose truth value is unclear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from refervos.worlds.facts import Facts
from refervos.worlds.grammar import normalise, parse_mention, parse_question, parse_sentence
from refervos.worlds.movement_facts import FALSE, UNCLEAR
from refervos.worlds.statements import Assertion, Objects, Question, Statement


class Verdict(StrEnum):
    """Verdict on a sentence."""

    TRUE = "true"
    FALSE = "false"
    UNDECIDABLE = "undecidable"
    NOT_UNDERSTOOD = "not understood"


@dataclass(frozen=True)
class JudgedPhrase:
    """Phrase between ``<p>`` and ``</p>``.

    Attributes:
        text: Its words.
        objects: The objects to which it refers; empty if none matches, None if it is unclear or not understood.
        has_mask: Whether ``[SEG]`` follows it.
    """

    text: str
    objects: Objects | None
    has_mask: bool


@dataclass(frozen=True)
class JudgedSentence:
    """Sentence and its verdict.

    Attributes:
        text: The sentence without tags, in lower case.
        verdict: The verdict on the conjunction of its clauses.
        answers: Whether it addresses the question, true or not.
        phrases: Its phrases in order.
    """

    text: str
    verdict: Verdict
    answers: bool
    phrases: tuple[JudgedPhrase, ...]


@dataclass(frozen=True)
class JudgedText:
    """Verdicts on the sentences of a text."""

    sentences: tuple[JudgedSentence, ...]

    @property
    def all_true(self) -> bool:
        """True if there is at least one sentence and all are true."""
        return bool(self.sentences) and all(sentence.verdict is Verdict.TRUE for sentence in self.sentences)

    @property
    def correct(self) -> bool:
        """True if all sentences are true and one of them answers the question."""
        return self.all_true and any(sentence.answers for sentence in self.sentences)

    @property
    def phrases(self) -> tuple[JudgedPhrase, ...]:
        """All phrases in order."""
        return tuple(phrase for sentence in self.sentences for phrase in sentence.phrases)


def judge(text: str, facts: Facts, question: str = "", earlier: Sequence[str] = ()) -> JudgedText:
    """Judge each sentence of an answer or of a caption.

    Args:
        text: The text, with or without tags.
        facts: Facts of the clip.
        question: The question, needed for answers such as "Yes." or "It is red."; default a request for a description.
        earlier: The questions before it; "it" may refer to their objects.

    Returns:
        The verdicts. The meaning of "it" follows from the questions and the facts, not from earlier answers.
    """
    focus: Objects | None = ()
    for earlier_question in earlier:
        parsed = parse_question(earlier_question)
        focus = None if parsed is None else parsed.focus(facts, focus)
    current = parse_question(question) if question.strip() else Question("description")
    if current is None:
        current, focus = Question("description"), None
    return JudgedText(tuple(_judge_sentence(sentence, facts, current, focus) for sentence in split_sentences(text)))


def split_sentences(text: str) -> list[str]:
    """Split a text into its non-empty sentences, each with its final punctuation mark."""
    parts = re.findall(r"[^.!?]*[.!?]?", text)
    return [part.strip() for part in parts if re.search(r"\w", part)]


_PHRASE = re.compile(r"<p>(.{0,400}?)</p>\s*(\[seg\])?", re.IGNORECASE | re.DOTALL)


def _judge_sentence(sentence: str, facts: Facts, question: Question, before: Objects | None) -> JudgedSentence:
    assertions = parse_sentence(sentence)
    truths = [None if assertion is None else question.truth_of(assertion, facts, before) for assertion in assertions]
    known = [truth for truth in truths if truth is not None]
    if FALSE in known:
        verdict = Verdict.FALSE
    elif not assertions or None in truths:
        verdict = Verdict.NOT_UNDERSTOOD
    else:
        verdict = Verdict.UNDECIDABLE if UNCLEAR in known else Verdict.TRUE
    phrases = []
    for match in _PHRASE.finditer(sentence):
        text = normalise(match[1])
        objects = _resolve_phrase(text, assertions, facts, question, before)
        phrases.append(JudgedPhrase(text, objects, has_mask=match[2] is not None))
    answers = any(assertion is not None and question.answered_by(assertion) for assertion in assertions)
    return JudgedSentence(normalise(sentence), verdict, answers, tuple(phrases))


def _resolve_phrase(
    text: str, assertions: Sequence[Assertion | None], facts: Facts, question: Question, before: Objects | None
) -> Objects | None:
    """Find the objects to which a phrase of a sentence refers."""
    mention = parse_mention(text)
    if mention is None:
        return None
    for assertion in assertions:
        if isinstance(assertion, Statement):
            for phrase in assertion.subject.phrases:
                if mention.phrases == (phrase,):
                    return assertion.resolve_phrase(facts, phrase)
    return mention.resolve(facts, question.focus(facts, before))
