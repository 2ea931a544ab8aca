"""Scoring of grounded conversations: texts, phrases and masks of any system against a data set of conversations."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refervos.data.conversations import Conversation, Turn
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.bootstrap import Interval, interval_around, resampled_ratios, span
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.grounded_answers import AnsweredPhrase, GroundedAnswer, answer_path, names_of, read_answer
from refervos.files.writing import prepare_folder, write_atomically
from refervos.markdown import NONE, markdown_table, number
from refervos.metrics.captions import CaptionScores, caption_scores
from refervos.metrics.grounded_conversation import (
    IouCounter,
    found_phrases,
    published_matches,
    published_miou,
    set_miou,
)
from refervos.metrics.phrase_similarity import BertSimilarity, TextSimilarity, word_similarity
from refervos.progress import Bar
from refervos.safe_text import one_line, table_cell
from refervos.text.grounded import tagged

Similarity = Literal["words", "bert"]
"""How the published recall compares phrases: by their words, or by BERT as published."""

WORST = 20
"""Number of answers in the table of the lowest scores."""


@dataclass(frozen=True)
class AnswerResult:
    """Result of one answer.

    Attributes:
        video: Id of the video.
        conversation: Id of the conversation within the video.
        turn: Index of the question in the conversation.
        kind: Kind of question, if the data set defines kinds.
        question: The question.
        reference: Text of the annotated answer.
        text: Text of the answer; empty if it is missing.
        missing: True if there is no answer.
        phrases: Number of ground-truth phrases.
        predicted: Number of predicted phrases.
        set_miou: Mean IoU over all phrases of the best matching.
        published_miou: Mean IoU over greedily matched pairs.
        found: Phrases with an IoU of at least 0.5, whatever their text.
        matched: Phrases that the published recall counts.
        is_true: True if the text is true of the video; None if the data set cannot decide that.
        cider: CIDEr, if it was computed and is defined.
        meteor: METEOR, if it was computed.
    """

    video: str
    conversation: str
    turn: int
    kind: str | None
    question: str
    reference: str
    text: str
    missing: bool
    phrases: int
    predicted: int
    set_miou: float
    published_miou: float
    found: int
    matched: int
    is_true: bool | None
    cider: float | None = None
    meteor: float | None = None

    @property
    def key(self) -> str:
        """Path of the answer among predictions."""
        return f"{self.video}/{self.conversation}-{self.turn}"


Column = tuple[str, Callable[[AnswerResult], float], Callable[[AnswerResult], float]]
"""Name of a measure, and what an answer adds to its numerator and its denominator."""


def _one(result: AnswerResult) -> float:
    return 1.0


COLUMNS: tuple[Column, ...] = (
    ("set mIoU", lambda result: result.set_miou, _one),
    ("recall", lambda result: result.found, lambda result: result.phrases),
    ("precision", lambda result: result.found, lambda result: result.predicted),
    ("true", lambda result: float(result.is_true is True), lambda result: float(result.is_true is not None)),
    ("published mIoU", lambda result: result.published_miou, _one),
    ("published recall", lambda result: result.matched, lambda result: result.phrases),
)
"""The columns of the table, the headline first, in percent."""


@dataclass(frozen=True)
class AnswerGroup:
    """Measures over some answers.

    Attributes:
        name: ``all``, or a kind of question.
        count: Number of answers.
        videos: Number of videos.
        values: Each measure by its name in percent; None if it has nothing to be about.
    """

    name: str
    count: int
    videos: int
    values: dict[str, Interval | None]


@dataclass(frozen=True)
class ConversationSummary:
    """Outcome of scoring conversations.

    Attributes:
        title: What was scored.
        similarity: How the published recall compared phrases.
        results: The result of each answer.
        groups: Measures over all answers first, then of each kind of question.
        captions: CIDEr and METEOR of all texts; None if they were not computed.
        cider: CIDEr with its interval; None if it was not computed or is undefined.
    """

    title: str
    similarity: Similarity
    results: tuple[AnswerResult, ...]
    groups: tuple[AnswerGroup, ...]
    captions: CaptionScores | None
    cider: Interval | None

    def markdown(self) -> str:
        """Return all tables, without a final line break. Percentages; intervals are 95 % over videos."""
        header = ["", "answers", "videos", COLUMNS[0][0], "95 %", *(name for name, _, _ in COLUMNS[1:])]
        rows = []
        for group in self.groups:
            first, *others = group.values.values()
            headline = [NONE, NONE] if first is None else [number(first.mean), span(first)]
            means = [number(None if value is None else value.mean) for value in others]
            rows.append([group.name, str(group.count), str(group.videos), *headline, *means])
        worst = sorted(self.results, key=lambda result: (result.set_miou, result.key))[:WORST]
        lowest = [
            [
                one_line(result.text, 80),
                result.key,
                f"{result.predicted} of {result.phrases}",
                number(100 * result.set_miou),
            ]
            for result in worst
        ]
        paragraphs = [
            one_line(self.title),
            "\n".join(self.notes()),
            markdown_table(header, rows),
            "\n".join(f"- {line}" for line in self.lines()),
            markdown_table(["lowest set mIoU", "answer", "phrases", "set mIoU"], lowest),
        ]
        return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

    def notes(self) -> list[str]:
        """Return sentences on what was scored and what was missing."""
        videos = len({result.video for result in self.results})
        phrases = sum(result.phrases for result in self.results)
        predicted = sum(result.predicted for result in self.results)
        notes = [
            f"{len(self.results)} answers about {videos} videos; {phrases} phrases, {predicted} predicted.",
            "The published recall compares phrases by "
            + (
                "bert-base-uncased."
                if self.similarity == "bert"
                else "their words, not by BERT as published numbers do."
            ),
        ]
        missing = [result for result in self.results if result.missing]
        if missing:
            few = ", ".join(one_line(result.key) for result in missing[:3])
            notes.append(f"{len(missing)} answers are missing ({few}{', ...' * (len(missing) > 3)}); they count 0.")
        return notes

    def lines(self) -> list[str]:
        """Return the measures of texts, which are not percentages."""
        if self.captions is None:
            return []
        cider, meteor = self.captions.names
        lines = [f"{meteor}: {self.captions.meteor:.3f}"]
        if self.cider is not None:
            lines.insert(0, f"{cider}: {self.cider.mean:.3f} ({self.cider.low:.3f} to {self.cider.high:.3f})")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the measures as plain values, each with the ends of its interval."""
        captions = self.captions
        return {
            "title": self.title,
            "answers": len(self.results),
            "missing": sum(result.missing for result in self.results),
            "similarity": self.similarity,
            "groups": [
                {
                    "name": group.name,
                    "answers": group.count,
                    "videos": group.videos,
                    "values": {name: None if value is None else list(value) for name, value in group.values.items()},
                }
                for group in self.groups
            ],
            "captions": None
            if captions is None
            else {
                captions.names[0]: None if self.cider is None else list(self.cider),
                captions.names[1]: captions.meteor,
            },
        }

    def csv(self) -> str:
        """Return a header and a line for each answer; text that looks like a formula is quoted."""
        names = [field.name for field in dataclasses.fields(AnswerResult)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for result in self.results:
            values = (getattr(result, name) for name in names)
            writer.writerow(["" if value is None else table_cell(value) for value in values])
        return text.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write ``answers.csv``, ``summary.md`` and ``summary.json``; existing files of these names are replaced.

        Args:
            folder: Folder to write to; created if missing.

        Returns:
            The paths.

        Raises:
            OutputError: When a file cannot be written.
        """
        prepare_folder(folder)
        contents = {
            "answers.csv": self.csv(),
            "summary.md": self.markdown() + "\n",
            "summary.json": json.dumps(self.to_json(), indent=1) + "\n",
        }
        for name, text in contents.items():
            write_atomically(folder / name, text.encode("utf-8", "replace"))
        return [folder / name for name in contents]


def score_conversations(
    folder: Path,
    part: Part,
    *,
    similarity: Similarity = "words",
    captions: bool = False,
    show_progress: bool | None = None,
) -> ConversationSummary:
    """Score answers in files.

    Args:
        folder: Folder of ``<video>/<conversation>-<turn>/answer.json`` (``refervos.evaluation.grounded_answers``).
        part: The data set, which must be one of conversations.
        similarity: How the published recall compares phrases.
        captions: Whether CIDEr and METEOR are computed.
        show_progress: True or False; default when standard error is a terminal.

    Returns:
        The results. Missing answers are no error: they have no phrase and no text.

    Raises:
        ConfigError: When the data set has no conversations.
        DataError: When the data set cannot be read.
        EvaluationError: When the folder is missing, or an answer is damaged or of another size.
        MissingDependencyError: When a package is missing.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; expected one of <video>/<conversation>-<turn>/answer.json.")
    opened = part.open()
    conversations = conversations_of(opened, part.videos)
    compare: TextSimilarity = BertSimilarity() if similarity == "bert" else word_similarity
    results: list[AnswerResult] = []
    with Bar("conversations", len(conversations), show_progress) as bar:
        for conversation in conversations:
            for turn in range(len(conversation.turns)):
                path = answer_path(folder, *conversation.key, turn)
                answer = read_answer(path) if path.is_file() else None
                try:
                    results.append(score_answer(conversation, turn, answer, compare))
                except EvaluationError as error:
                    raise EvaluationError(f"{path}: {error}") from error
            bar.advance()
    title = f"{folder.name} on {opened.dataset.name} {opened.dataset.split}"
    return summarise_answers(title, results, similarity=similarity, captions=captions)


def conversations_of(part: OpenPart, videos: int | None) -> tuple[Conversation, ...]:
    """Return the conversations about the first videos of a data set.

    Args:
        part: The data set.
        videos: Number of videos; default all.

    Returns:
        Conversations in the order of the data set.

    Raises:
        ConfigError: When the data set has none.
    """
    conversations = part.dataset.conversations
    if not conversations:
        raise ConfigError(f"{part.dataset.name} is no data set of conversations; its predictions are masks.")
    chosen = list(dict.fromkeys(conversation.video.id for conversation in conversations))[:videos]
    return tuple(conversation for conversation in conversations if conversation.video.id in set(chosen))


def score_answer(
    conversation: Conversation, turn: int, answer: GroundedAnswer | None, similarity: TextSimilarity = word_similarity
) -> AnswerResult:
    """Score one answer.

    Args:
        conversation: The conversation.
        turn: Index of the question.
        answer: The answer; None if it is missing.
        similarity: How the published recall compares phrases.

    Returns:
        Its result.

    Raises:
        DataError: When the ground truth cannot be read.
        EvaluationError: When phrases of the data set have no public masks, or a mask is damaged or of another size.
        MissingDependencyError: When SciPy is missing.
    """
    reference = conversation.turns[turn]
    phrases = () if answer is None else answer.phrases
    iou = phrase_ious(conversation, reference, answer)
    texts = [reference.text_of(phrase) for phrase in reference.phrases], [phrase.text for phrase in phrases]
    text = "" if answer is None else answer.text
    return AnswerResult(
        video=conversation.video.id,
        conversation=conversation.id,
        turn=turn,
        kind=reference.kind,
        question=reference.question,
        reference=reference.answer,
        text=text,
        missing=answer is None,
        phrases=len(reference.phrases),
        predicted=len(phrases),
        # A missing answer is wrong even where nothing is to be grounded.
        set_miou=0.0 if answer is None else set_miou(iou),
        published_miou=published_miou(iou),
        found=found_phrases(iou),
        matched=len(published_matches(iou, similarity(*texts))),
        is_true=None if reference.is_true is None else bool(text) and reference.is_true(_with_tags(text, phrases)),
    )


def _with_tags(text: str, phrases: Sequence[AnsweredPhrase]) -> str:
    """Return an answer with tags, but for phrases that overlap others."""
    spans: list[tuple[int, int]] = []
    for phrase in sorted(phrases, key=lambda phrase: (phrase.start, phrase.end)):
        if not spans or phrase.start >= spans[-1][1]:
            spans.append((phrase.start, phrase.end))
    return tagged(text, spans)


def phrase_ious(conversation: Conversation, turn: Turn, answer: GroundedAnswer | None) -> npt.NDArray[np.float64]:
    """Return the IoU of each ground-truth phrase with each predicted one.

    Args:
        conversation: The conversation.
        turn: One of its turns.
        answer: The answer; None if it is missing.

    Returns:
        float64 (G, P), over the frames in which the ground-truth phrase is annotated; a frame that the answer lacks is
        one without a mask. NaN where both are empty.

    Raises:
        DataError: When the ground truth cannot be read.
        EvaluationError: When a phrase has no public masks, or a mask is damaged or of another size.
    """
    phrases = () if answer is None else answer.phrases
    rows = []
    for phrase in turn.phrases:
        truth = phrase.ground_truth
        if truth is None:
            raise EvaluationError(
                f"the masks of video {conversation.video.id} are not public; answers cannot be scored."
            )
        rows.append(truth)
    counters = [IouCounter(1, len(phrases)) for _ in rows]
    frames = {} if answer is None else names_of(answer.frames)
    names = conversation.video.frames.names
    for index in sorted({index for truth in rows for index in truth.annotated}):
        predicted: list[npt.NDArray[np.bool_]] | None = None
        for truth, counter in zip(rows, counters, strict=True):
            if index not in truth.annotated:
                continue
            mask = truth.mask(index)
            if predicted is None:
                place = frames.get(names[index])
                predicted = [
                    np.zeros_like(mask) if answer is None or place is None else answer.mask(k, place)
                    for k in range(len(phrases))
                ]
            counter.add([mask], predicted)
    return np.concatenate([np.zeros((0, len(phrases))), *(counter.iou() for counter in counters)])


def summarise_answers(
    title: str, results: Sequence[AnswerResult], *, similarity: Similarity = "words", captions: bool = False
) -> ConversationSummary:
    """Combine results of answers.

    Args:
        title: What was scored.
        results: The result of each answer, at least one.
        similarity: How the published recall compared phrases.
        captions: Whether CIDEr and METEOR are computed.

    Returns:
        The tables.

    Raises:
        EvaluationError: When there are no results.
        MissingDependencyError: When a package for CIDEr and METEOR is missing.
    """
    if not results:
        raise EvaluationError("there are no answers to score.")
    scores, cider = None, None
    if captions:
        scores = caption_scores([result.reference for result in results], [result.text for result in results])
        ciders = scores.ciders or (None,) * len(results)
        results = [
            dataclasses.replace(result, cider=one, meteor=other)
            for result, one, other in zip(results, ciders, scores.meteors, strict=True)
        ]
        if scores.cider is not None:
            column = ("CIDEr", lambda result: result.cider or 0.0, _one)
            cider = _intervals(results, [column], unit=1)[0]
    return ConversationSummary(title, similarity, tuple(results), tuple(_groups(results)), scores, cider)


def _groups(results: Sequence[AnswerResult]) -> Iterator[AnswerGroup]:
    kinds = [kind for kind in dict.fromkeys(result.kind for result in results) if kind is not None]
    chosen = [("all", list(results))]
    if len(kinds) > 1:
        chosen += [(kind, [result for result in results if result.kind == kind]) for kind in kinds]
    for name, own in chosen:
        values = dict(zip((name for name, _, _ in COLUMNS), _intervals(own, COLUMNS), strict=True))
        yield AnswerGroup(name, len(own), len({result.video for result in own}), values)


def _intervals(results: Sequence[AnswerResult], columns: Sequence[Column], unit: float = 100) -> list[Interval | None]:
    """Return each measure with its interval from resampled videos; None where nothing is in the denominator."""
    above = np.array([[numerator(result) for _, numerator, _ in columns] for result in results], dtype=np.float64)
    below = np.array([[denominator(result) for _, _, denominator in columns] for result in results], dtype=np.float64)
    resamples = resampled_ratios(above, below, [result.video for result in results])
    found: list[Interval | None] = []
    for place, (one, other) in enumerate(zip(above.sum(axis=0), below.sum(axis=0), strict=True)):
        found.append(interval_around(float(unit * one / other), unit * resamples[:, place]) if other > 0 else None)
    return found
