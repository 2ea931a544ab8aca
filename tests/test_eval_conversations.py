"""Scoring of answers in conversations: from files of any system to tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import layouts_conversations
from layouts import change_json
from refervos.cli.entry import app
from refervos.data.conversations import Conversation
from refervos.data.sample import Video
from refervos.errors import ConfigError, DataError, EvaluationError
from refervos.evaluation.conversation_inference import Ask, SpokenAnswer, answer_conversations, grounded_answer
from refervos.evaluation.conversation_scores import phrase_ious, score_answer, score_conversations
from refervos.evaluation.datasets import Part
from refervos.evaluation.grounded_answers import (
    AnsweredPhrase,
    GroundedAnswer,
    answer_path,
    read_answer,
    run_lengths,
    write_answer,
)

OPTIONS: dict[str, Any] = {"videos": 2, "frames": 4}


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """MeViS-GCG: two videos, whose captions have the phrases ``the first`` and ``two more``."""
    return Part("mevis-gcg", layouts_conversations.write_mevis_gcg(tmp_path / "data", **OPTIONS), "valid_u")


def right_answer(conversation: Conversation, turn: int = 0) -> GroundedAnswer:
    """The annotated answer as a prediction."""
    asked = conversation.turns[turn]
    phrases = []
    for phrase in asked.phrases:
        truth = phrase.ground_truth
        assert truth is not None
        masks = tuple(run_lengths(truth.mask(index)) for index in truth.annotated)
        phrases.append(AnsweredPhrase(asked.text_of(phrase), phrase.start, phrase.end, masks))
    height, width = conversation.video.frames.read(0).shape[:2]
    names = tuple(conversation.video.frames.names)
    return GroundedAnswer(asked.question, asked.answer, (height, width), names, tuple(phrases))


def write_answers(folder: Path, conversations: Sequence[Conversation], answers: Sequence[GroundedAnswer]) -> Path:
    """Write an answer to the first question of each conversation."""
    for conversation, answer in zip(conversations, answers, strict=True):
        path = answer_path(folder, *conversation.key, 0)
        path.parent.mkdir(parents=True)
        write_answer(path, answer)
    return folder


# Files


def test_an_answer_is_read_as_it_was_written(part: Part, tmp_path: Path) -> None:
    conversation = part.open().dataset.conversations[0]
    answer = right_answer(conversation)
    write_answer(tmp_path / "answer.json", answer)
    read = read_answer(tmp_path / "answer.json")
    assert read == answer
    for k, phrase in enumerate(conversation.turns[0].phrases):
        assert phrase.ground_truth is not None
        for index in phrase.ground_truth.annotated:
            np.testing.assert_array_equal(read.mask(k, index), phrase.ground_truth.mask(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answer: answer.pop("text"), "'text' must be text"),
        (lambda answer: answer.update(model=3), "'model' must be a name"),
        (lambda answer: answer.update(size=[48]), "'size' must be height and width"),
        (lambda answer: answer.update(size=[10**6, 10**6]), "an image cannot be"),
        (lambda answer: answer.update(frames=["a", "a"]), "each once"),
        (lambda answer: answer.update(frames=["../a"]), "names of frames"),
        (lambda answer: answer.update(text="x" * 100_001), "maximum is 100,000"),
        (lambda answer: answer.update(phrases=answer["phrases"] * 501), "maximum is 1,000"),
        (lambda answer: answer["phrases"][0].update(end=10_000), "are no characters of a text"),
        (lambda answer: answer["phrases"][0].update(start=-1), "are no characters of a text"),
        (lambda answer: answer["phrases"][0]["masks"].pop(), "each of the 4 frames"),
        (lambda answer: answer["phrases"][0].update(masks=[1, None, None, None]), "each of the 4 frames"),
    ],
)
def test_a_damaged_answer_is_reported(change: Any, message: str, part: Part, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    write_answer(path, right_answer(part.open().dataset.conversations[0]))
    change_json(path, change)
    with pytest.raises(EvaluationError, match=message):
        read_answer(path)


def set_first_mask(answer: Any, stored: Any) -> None:
    """Replace the first mask of an answer's file."""
    answer["phrases"][0]["masks"][0] = stored


def test_run_lengths_that_do_not_fit_are_reported_with_the_file(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    folder = write_answers(tmp_path / "answers", conversations, [right_answer(one) for one in conversations])
    path = answer_path(folder, *conversations[0].key, 0)
    for size, message in (([48, 64], "do not add up"), ([2, 2], "2x2")):
        change_json(path, partial(set_first_mask, stored={"size": size, "counts": "4"}))
        with pytest.raises(EvaluationError, match=message) as caught:
            score_conversations(folder, part, show_progress=False)
        assert str(path) in str(caught.value)


# Scores


def test_the_annotated_answers_score_100(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    folder = write_answers(tmp_path / "answers", conversations, [right_answer(one) for one in conversations])
    summary = score_conversations(folder, part, show_progress=False)
    values = summary.groups[0].values
    assert {name: value.mean for name, value in values.items() if value} == {
        name: pytest.approx(100) for name in ("set mIoU", "recall", "precision", "published mIoU", "published recall")
    }
    assert values["true"] is None  # nobody can judge these texts


def test_a_phrase_less_and_a_phrase_more_are_counted(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    first, second = (right_answer(one) for one in conversations)
    nothing = AnsweredPhrase("a ghost", 0, 2, (None,) * 4)
    fewer = dataclasses.replace(first, phrases=first.phrases[:1])
    more = dataclasses.replace(second, phrases=(*second.phrases, nothing))
    folder = write_answers(tmp_path / "answers", conversations, [fewer, more])
    summary = score_conversations(folder, part, show_progress=False)
    assert [result.set_miou for result in summary.results] == pytest.approx([1 / 2, 2 / 3])
    values = {name: value.mean for name, value in summary.groups[0].values.items() if value}
    assert values["set mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert values["published mIoU"] == pytest.approx(100)
    assert values["recall"] == values["published recall"] == pytest.approx(75)
    assert values["precision"] == pytest.approx(75)  # 3 of 4


def test_the_published_recall_needs_similar_words(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    answers = []
    for conversation in conversations:
        answer = right_answer(conversation)
        phrases = tuple(dataclasses.replace(phrase, text="something else") for phrase in answer.phrases)
        answers.append(dataclasses.replace(answer, phrases=phrases))
    summary = score_conversations(
        write_answers(tmp_path / "answers", conversations, answers), part, show_progress=False
    )
    values = {name: value.mean for name, value in summary.groups[0].values.items() if value}
    assert (values["published recall"], values["recall"]) == (0, 100)


def test_a_missing_answer_counts_0_and_is_noted(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    folder = write_answers(tmp_path / "answers", conversations[:1], [right_answer(conversations[0])])
    summary = score_conversations(folder, part, show_progress=False)
    assert [result.set_miou for result in summary.results] == [1, 0]
    assert [result.missing for result in summary.results] == [False, True]
    assert "1 answers are missing" in summary.markdown()


def test_frames_that_an_answer_lacks_have_no_mask(part: Part) -> None:
    conversation = part.open().dataset.conversations[0]
    answer = right_answer(conversation)
    half = dataclasses.replace(
        answer,
        frames=tuple(reversed(answer.frames[:2])),
        phrases=tuple(
            dataclasses.replace(phrase, masks=tuple(reversed(phrase.masks[:2]))) for phrase in answer.phrases
        ),
    )
    iou = phrase_ious(conversation, conversation.turns[0], half)
    for k, phrase in enumerate(conversation.turns[0].phrases):
        truth = phrase.ground_truth
        assert truth is not None
        areas = [truth.mask(index).sum() for index in truth.annotated]
        assert iou[k, k] == pytest.approx(sum(areas[:2]) / sum(areas))


def test_only_annotated_frames_count(tmp_path: Path) -> None:
    """Objects of ActivityNet-Entities-GCG have a mask in one frame; a prediction may have more."""
    part = Part("anet-gcg", layouts_conversations.write_anet_gcg(tmp_path, **OPTIONS), "train")
    conversation = part.open().dataset.conversations[0]
    turn = conversation.turns[0]
    height, width = conversation.video.frames.read(0).shape[:2]
    everything = run_lengths(np.ones((height, width), bool))
    phrases = []
    for phrase in turn.phrases:
        truth = phrase.ground_truth
        assert truth is not None
        (index,) = truth.annotated
        masks = [everything] * 4
        masks[index] = run_lengths(truth.mask(index))
        phrases.append(AnsweredPhrase(turn.text_of(phrase), phrase.start, phrase.end, tuple(masks)))
    names = tuple(conversation.video.frames.names)
    answer = GroundedAnswer(turn.question, turn.answer, (height, width), names, tuple(phrases))
    assert score_answer(conversation, 0, answer).set_miou == pytest.approx(1)


def test_cider_and_meteor_are_reported_when_wanted(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no Java, whose METEOR takes seconds
    conversations = part.open().dataset.conversations
    first, second = (right_answer(one) for one in conversations)
    second = dataclasses.replace(second, text="Nothing.", phrases=())
    folder = write_answers(tmp_path / "answers", conversations, [first, second])
    summary = score_conversations(folder, part, captions=True, show_progress=False)
    assert summary.captions is not None
    meteors = [result.meteor for result in summary.results]
    assert meteors == list(summary.captions.meteors)
    assert meteors == [1, 0]
    assert "METEOR (NLTK)" in summary.markdown()
    assert summary.to_json()["captions"]["METEOR (NLTK)"] == pytest.approx(np.mean(meteors))  # type: ignore[arg-type]


def test_scores_of_a_data_set_without_conversations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    with pytest.raises(ConfigError, match="no data set of conversations"):
        score_conversations(tmp_path / "answers", Part("worlds", split="appearance", videos=1), show_progress=False)
    with pytest.raises(EvaluationError, match="is no folder"):
        score_conversations(tmp_path / "nowhere", Part("worlds"), show_progress=False)


# Drawn conversations


@pytest.fixture(scope="module")
def drawn() -> Part:
    """All conversations about the first two held-out clips."""
    return Part("world-conversations", split="all", videos=2)


def test_drawn_conversations_score_100_and_are_true(drawn: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    from refervos.data.layouts import world_conversations

    monkeypatch.setattr(world_conversations, "CASES", 2)
    conversations = drawn.open().dataset.conversations
    kinds = {conversation.turns[0].kind for conversation in conversations}
    assert {"description", "referring", "which"} <= kinds
    for conversation in conversations:
        for number, turn in enumerate(conversation.turns):
            result = score_answer(conversation, number, right_answer(conversation, number))
            assert result.set_miou == 1, turn.answer
            assert result.is_true, (turn.question, turn.answer)
            assert turn.is_true is not None
            assert not turn.is_true("The purple hexagon explodes.")
            assert not score_answer(conversation, number, None).is_true
    captions = Part("world-conversations", videos=1).open().dataset
    assert [conversation.turns[0].kind for conversation in captions.conversations] == ["description"] * 2
    motion = Part("world-conversations", split="motion").open().dataset.conversations
    assert 0 < len(motion) < len(conversations)
    with pytest.raises(DataError, match="its splits are captions, questions"):
        Part("world-conversations", split="train").open()


# Command line


def test_the_command_line_scores_answers(part: Part, tmp_path: Path) -> None:
    conversations = part.open().dataset.conversations
    folder = write_answers(tmp_path / "answers", conversations, [right_answer(one) for one in conversations])
    out = tmp_path / "out"
    command = ["score", str(folder), "mevis-gcg", str(part.folder), "--split", "valid_u", "--out", str(out), "-q"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert "set mIoU" in ran.output
    assert sorted(path.name for path in out.iterdir()) == ["answers.csv", "summary.json", "summary.md"]
    assert json.loads((out / "summary.json").read_text())["groups"][0]["values"]["set mIoU"][0] == pytest.approx(100)
    assert len((out / "answers.csv").read_text().splitlines()) == 3
    refused = CliRunner().invoke(app, [*command, "--similarity", "feeling"])
    assert isinstance(refused.exception, ConfigError)


# From a model


def test_answers_of_a_model_are_written_scored_and_not_asked_again(part: Part, tmp_path: Path) -> None:
    conversations = {one.video.id: one for one in part.open().dataset.conversations}
    asked: list[str] = []

    def begin(video: Video) -> Ask:
        answer = right_answer(conversations[video.id])

        def ask(question: str) -> SpokenAnswer:
            asked.append(video.id)
            if len(asked) == 2:
                raise KeyboardInterrupt
            masks = (np.stack([answer.mask(k, index) for k in range(2)]) for index in range(4))
            return SpokenAnswer(answer.text, tuple((phrase.start, phrase.end) for phrase in answer.phrases), masks)

        return ask

    folder = tmp_path / "answers"
    with pytest.raises(KeyboardInterrupt):
        answer_conversations(begin, part, folder, show_progress=False)
    answer_conversations(begin, part, folder, show_progress=False)
    first, second = conversations
    assert asked == [first, second, second]
    summary = score_conversations(folder, part, show_progress=False)
    assert [result.set_miou for result in summary.results] == [1, 1]
    assert [result.missing for result in summary.results] == [False, False]


def test_later_questions_are_asked_in_the_same_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refervos.data.layouts import world_conversations

    monkeypatch.setattr(world_conversations, "CASES", 6)
    part = Part("world-conversations", split="all", videos=6)
    longer = [one for one in part.open().dataset.conversations if len(one.turns) > 1]
    assert longer
    held: list[list[str]] = []

    def begin(video: Video) -> Ask:
        questions: list[str] = []
        held.append(questions)

        def ask(question: str) -> SpokenAnswer:
            questions.append(question)
            return SpokenAnswer("I do not know.", (), ())

        return ask

    answer_conversations(begin, part, tmp_path, show_progress=False)
    for conversation in longer:
        assert [turn.question for turn in conversation.turns] in held
    path = answer_path(tmp_path, *longer[0].key, 1)
    assert read_answer(path).phrases == ()
    path.unlink()
    held.clear()
    answer_conversations(begin, part, tmp_path, show_progress=False)
    assert held == [[turn.question for turn in longer[0].turns]]


@pytest.mark.parametrize(
    ("frames", "masks", "message"), [(3, 2, "masks of 3 frames, not of 4"), (4, 1, "1 masks for 2")]
)
def test_answers_without_a_mask_for_each_phrase_and_frame_are_refused(
    frames: int, masks: int, message: str, part: Part
) -> None:
    conversation = part.open().dataset.conversations[0]
    answer = SpokenAnswer("It moves.", ((0, 2), (3, 8)), [np.zeros((masks, 48, 64), bool)] * frames)
    with pytest.raises(EvaluationError, match=message):
        grounded_answer(conversation, "What moves?", answer)
