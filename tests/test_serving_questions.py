"""Questions over a session: a streamed answer whose phrases become tracks. The model is a small stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from refervos.errors import PromptError
from refervos.text.grounded import Phrase
from served import drawn_video, miniature, open_session, serving, watching


class Piece:
    def __init__(self, text: str, phrase: Phrase | None = None) -> None:
        self.text, self.phrase = text, phrase
        self.prompt_token = None if phrase is None else torch.tensor([0.25, -1.5])


class Talk:
    def __init__(self, frames: list[Any]) -> None:
        self.frames = frames
        self.questions: list[str] = []

    def ask(self, question: str) -> Iterator[Piece]:
        if question == "?":
            raise PromptError("the question has no words; ask one.")
        self.questions.append(question)
        return iter([Piece("There is "), Piece("a red circle", Phrase("a red circle", 9, 21)), Piece(".")])


class Talking:
    """The miniature, which answers every question alike; a phrase is followed like a sentence."""

    def __init__(self) -> None:
        self.talks: list[Talk] = []
        self.tokens: list[list[float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(miniature(), name)

    def converse(self, frames: list[Any]) -> Talk:
        self.talks.append(Talk(frames))
        return self.talks[-1]

    def begin_phrase(self, phrase: Phrase, token: torch.Tensor) -> Any:
        from refervos.prompts import Prompt

        self.tokens.append(token.tolist())
        return miniature().begin(Prompt(phrase.text))


def asked(client: Any, session: str, question: str) -> list[dict[str, Any]]:
    answer = client.post(f"/v1/sessions/{session}/questions", json={"question": question})
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_an_answer_is_streamed_and_its_phrases_are_followed(tmp_path: Path) -> None:
    video, model = drawn_video(tmp_path, 6), Talking()
    with serving(tmp_path / "server", model=model) as client:
        assert client.get("/v1/models").json()[0]["conversation"] is True
        session = open_session(client, video)
        with watching(client, session) as watcher:
            pieces = asked(client, session, "What is there?")
            assert "".join(piece.get("text", "") for piece in pieces) == "There is a red circle."
            assert pieces[1]["track"] == 0
            assert pieces[-1] == {
                "done": True,
                "question": "What is there?",
                "answer": "There is a red circle.",
                "unknown_words": [],
            }
            assert len(model.talks[0].frames) == 6
            watcher.do("step", frames=3)
            watcher.until_frame(2)
            first = watcher.frames[1].masks
            seen = len(watcher.frames)
            asked(client, session, "And now?")  # the same conversation
            assert model.talks[0].questions == ["What is there?", "And now?"]
            watcher.until(lambda w: w.indices[seen:][-1:] == [2])  # once more, for the new phrase
            watcher.do("correct", track=0, frame=1, points=[[23, 40, 1]])  # its token is kept for going back
            watcher.until_frame(2)
            assert model.tokens == [[0.25, -1.5]] * len(model.tokens)
            assert len(model.tokens) >= 3
            assert watcher.frames[-1].masks.shape == (2, *first.shape[1:])
        refused = client.post(f"/v1/sessions/{session}/questions", json={"question": "?"})
        assert refused.json()["detail"] == "the question has no words; ask one."


KEPT = {
    "question": "What is there?",
    "parts": [
        {"text": "There is ", "track": None, "colour": None},
        {"text": "a red circle", "track": 0, "colour": [255, 106, 0]},
        {"text": ".", "track": None, "colour": None},
    ],
    "unknown_words": [],
    "problem": None,
}


def test_questions_are_kept_with_their_answers_over_a_restart_and_in_the_file(tmp_path: Path) -> None:
    video, model = drawn_video(tmp_path, 3), Talking()
    with serving(tmp_path / "server", model=model) as client:
        session = open_session(client, video)
        assert client.get(f"/v1/sessions/{session}/questions").json() == []
        asked(client, session, "What is there?")
        with watching(client, session) as watcher:
            watcher.do("pause")  # is done after what was asked before
        assert client.get(f"/v1/sessions/{session}/questions").json() == [KEPT]
        saved = client.get(f"/v1/sessions/{session}/file").content
    with serving(tmp_path / "server", model=model) as client:
        assert client.get(f"/v1/sessions/{session}/questions").json() == [KEPT]
        opened = client.post("/v1/sessions/open", content=saved).json()["id"]
        assert client.get(f"/v1/sessions/{opened}/questions").json() == [KEPT]


class Breaking(Talk):
    def ask(self, question: str) -> Iterator[Piece]:
        yield Piece("There is ")
        raise PromptError("the answer is too long.")


def test_an_answer_that_broke_off_is_kept_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Talking()
    monkeypatch.setattr(model, "converse", Breaking, raising=False)
    with serving(tmp_path / "server", model=model) as client:
        session = open_session(client, drawn_video(tmp_path, 2))
        asked(client, session, "What is there?")
        with watching(client, session) as watcher:
            watcher.do("pause")
        (kept,) = client.get(f"/v1/sessions/{session}/questions").json()
    assert [part["text"] for part in kept["parts"]] == ["There is "]
    assert kept["problem"] == "the answer is too long."


def test_a_model_that_answers_no_questions_says_so(tmp_path: Path) -> None:
    with serving(tmp_path / "server") as client:
        session = open_session(client, drawn_video(tmp_path, 2))
        refused = client.post(f"/v1/sessions/{session}/questions", json={"question": "What?"})
        assert (refused.status_code, refused.json()["code"]) == (409, "no-conversation")


def test_the_phrases_of_a_video_that_has_been_segmented_are_followed_from_its_first_frame(tmp_path: Path) -> None:
    video = drawn_video(tmp_path, 4)
    with serving(tmp_path / "server", model=Talking()) as client:
        session = open_session(client, video)
        with watching(client, session) as watcher:
            asked(client, session, "What is there?")
            watcher.do("step", frames=4)
            watcher.until_frame(3)
            seen = len(watcher.frames)
            asked(client, session, "And now?")
            watcher.until(lambda w: w.indices[seen:][-1:] == [3])
            again = watcher.frames[seen:]
            assert again[0].header["frame"] == 0
            assert [len(frame.masks) for frame in again] == [2] * len(again)
