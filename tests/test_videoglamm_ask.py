"""Grounded conversations about videos, images and streams: text, phrases, masks, boxes, follow-up questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import layouts_conversations
from refervos import loading, open_source
from refervos.cli import ask as ask_command
from refervos.cli import entry as cli
from refervos.errors import ConfigError, OutputError, PromptError, UnknownWordsWarning, VideoError
from refervos.evaluation.answer_sink import AnswerSink
from refervos.evaluation.conversation_inference import answer_conversations, conversations_with
from refervos.evaluation.conversation_scores import score_conversations
from refervos.evaluation.datasets import Part
from refervos.evaluation.grounded_answers import read_answer
from refervos.segmentation import Segmentation
from refervos.text.grounded import Phrase
from refervos.video import Frame
from refervos.videoglamm.conversation import Conversation
from refervos.videoglamm.frames import EncoderView, encoder_view
from refervos.videoglamm.model import VisualTokens
from refervos.videoglamm.video_conversation import MOST_VIEWS
from scenes import scene
from video_files import write_video
from videoglamm_models import FOUND, NOT_FOUND, ScriptedModel, random_model, scripted_model, see_nothing

SIZE = (48, 64)
TWO = "<p> the red circle </p> [SEG] passes behind <p> the blue square </p> [SEG] . <|end|>"


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return scene(6, *SIZE)


def test_an_answer_comes_as_text_and_its_phrases_have_masks(frames: list[np.ndarray]) -> None:
    model = scripted_model(TWO)
    talk = model.converse(np.stack(frames))
    answer = talk.ask("what is happening here ?")
    pieces = [piece.text for piece in answer]
    assert pieces == ["the red circle", " passes", " behind", " ", "the blue square", "."]
    assert answer.text == "the red circle passes behind the blue square."
    assert answer.phrases == (Phrase("the red circle", 0, 14), Phrase("the blue square", 29, 44))
    masks = list(answer.masks())
    assert [mask.shape for mask in masks] == [(2, *SIZE)] * 6
    # The same as with the parts of the model.
    place = model.placement(SIZE)
    placed = [place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]
    predicted = list(model.segment(placed, talk.turns[0].prompt_tokens))
    assert np.array_equal(np.stack(masks), np.stack([place.masks(one.mask_logits).numpy() for one in predicted]))
    for boxes, mask in zip(answer.boxes(), masks, strict=True):
        for box, one in zip(boxes, mask, strict=True):
            rows, columns = np.nonzero(one)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert talk.frame_names == tuple(f"{number:05d}" for number in range(6))


def test_phrases_that_the_first_frame_does_not_show_are_looked_for_in_later_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = scripted_model(TWO, FOUND, clip_length=6, retry_every=4, reads="onwards")
    see_nothing(model)
    read: list[int] = []
    encode = model.encode_views

    def encode_and_count(views: Sequence[EncoderView]) -> VisualTokens:
        read.append(len(views))
        return encode(views)

    monkeypatch.setattr(model, "encode_views", encode_and_count)
    answer = model.converse(scene(10, *SIZE)).ask("what is happening here ?")
    assert not any(mask.any() for mask in answer.masks())
    assert read == [10, 2, 2]  # the recording; frames 4 and 5 of the first clip, frames 8 and 9 of the second
    assert len(model.lengths) == 1 + 2 * 2


def test_an_answer_without_phrases_has_no_masks(frames: list[np.ndarray]) -> None:
    answer = scripted_model(NOT_FOUND).converse(frames).ask("what is this ?")
    assert (answer.text, answer.phrases, list(answer.masks())) == ("which one ?", (), [])


def test_a_follow_up_question_has_the_earlier_turns_as_context(frames: list[np.ndarray]) -> None:
    model = scripted_model(TWO, FOUND)
    talk = model.converse(frames)
    first = talk.ask("what is happening here ?")
    second = talk.ask("which one turns back ?")  # the first answer is generated to its end before
    assert first.text.endswith("blue square.")
    assert second.text == "it is."
    assert [turn.question for turn in talk.turns] == ["what is happening here ?", "which one turns back ?"]
    assert model.lengths[1] > model.lengths[0] + 15
    alone = scripted_model(FOUND).converse(frames)
    alone.ask("which one turns back ?").finish()
    assert not torch.allclose(alone.turns[0].prompt_tokens, talk.turns[1].prompt_tokens, atol=1e-3)


def test_an_answer_can_be_stopped(frames: list[np.ndarray]) -> None:
    talk = scripted_model(TWO, FOUND).converse(frames)
    answer = talk.ask("what is happening here ?")
    assert next(iter(answer)).text == "the red circle"
    answer.stop()
    assert answer.text.startswith("the red circle")
    assert "square" not in answer.text
    untouched = talk.ask("which one ?")
    untouched.stop()
    assert len(talk.turns) == 2


class Rows:
    """Frames that can be iterated over any number of times."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.frames)


def test_a_video_may_be_a_path_an_array_frames_or_an_iterator(frames: list[np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"f{number}.png")
    write_video(tmp_path / "film.mp4", 6, width=64, height=48, images=frames)
    model = scripted_model(FOUND)
    stacked = np.stack(frames)
    kinds: dict[str, Any] = {
        "array": stacked,
        "list": frames,
        "iterable": Rows(frames),
        "iterator": iter(frames),
        "generator": (frame for frame in frames),
        "tensor": torch.from_numpy(stacked),
        "source": open_source(folder),
        "folder": folder,
    }
    expected = np.stack(list(model.converse(stacked).ask("what is this ?").masks()))
    assert expected.any()
    for kind, video in kinds.items():
        answer = model.converse(video).ask("what is this ?")
        assert np.array_equal(np.stack(list(answer.masks())), expected), kind
    assert model.converse(folder).frame_names == tuple(f"f{number}" for number in range(6))
    film = model.converse(str(tmp_path / "film.mp4"), start=2, stop=5).ask("what is this ?")
    assert [mask.shape for mask in film.masks()] == [(1, *SIZE)] * 3


def test_an_image_is_read_by_the_image_encoder_alone(frames: list[np.ndarray], tmp_path: Path) -> None:
    model = scripted_model(FOUND)
    Image.fromarray(frames[0]).save(tmp_path / "image.png")
    with torch.no_grad():
        talk = Conversation(model, model.encode_image(frames[0]))
    list(talk.ask("what is this ?"))
    for image in (frames[0], Image.fromarray(frames[0]), tmp_path / "image.png"):
        about = model.converse(image)
        answer = about.ask("what is this ?")
        assert [mask.shape for mask in answer.masks()] == [(1, *SIZE)]
        assert torch.equal(about.turns[0].prompt_tokens, talk.turns[0].prompt_tokens)


def test_a_film_of_one_frame_is_a_video(frames: list[np.ndarray], tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", 1, width=64, height=48, images=frames)
    model = scripted_model(FOUND)
    answer = model.converse(tmp_path / "film.mp4").ask("what is this ?")
    assert [mask.shape for mask in answer.masks()] == [(1, *SIZE)]


def test_of_a_long_video_evenly_spread_frames_are_kept() -> None:
    frames = [np.full((16, 16, 3), number % 251, np.uint8) for number in range(4 * MOST_VIEWS + 5)]
    model = scripted_model(FOUND)
    read: list[Any] = []
    encode = model.encode_views

    def encoded(views: Any) -> Any:
        read.append(views)
        return encode(views)

    model.encode_views = encoded  # type: ignore[method-assign]
    talk = model.converse(frames)
    (views,) = read
    assert MOST_VIEWS / 2 < len(views) <= MOST_VIEWS
    assert [int(view.clip[0, 0, 0]) for view in views] == [frame[0, 0, 0] for frame in frames[::8]]
    assert len(talk.frame_names) == len(frames)


def test_what_cannot_be_talked_about_is_one_sentence(frames: list[np.ndarray]) -> None:
    model = scripted_model(FOUND)
    with pytest.raises(VideoError, match="does not exist"):
        model.converse("absent.mp4")
    with pytest.raises(VideoError, match="'frames' is live; a conversation needs a recording"):
        model.converse(open_source(iter(frames), live=True))
    with pytest.raises(PromptError, match="has no tokenizer"):
        random_model(tokenizer=False).converse(frames)
    talk = model.converse(frames)
    for question, problem in (("  ", "is empty"), ("<|end|>", "contains <|end|>"), ("red " * 10_000, "at most 512")):
        with pytest.raises(PromptError, match=problem.replace("|", r"\|")):
            talk.ask(question)
    with pytest.warns(UnknownWordsWarning, match="does not know łł, qqq"):
        assert talk.ask("ŁŁ ??? qqq").text == "it is."  # nonsense is answered
    with pytest.raises(ConfigError, match="need a session to be followed in"):
        talk.ask("what is this ?").follow()


# Streams.


def test_a_conversation_about_a_stream_reads_its_last_frames(frames: list[np.ndarray]) -> None:
    model = scripted_model(TWO)
    session = model.open()
    with pytest.raises(ConfigError, match="has no frames yet"):
        model.converse(session)
    for frame in frames[:3]:
        session.step(frame)
    talk = model.converse(session)
    answer = talk.ask("what is happening here ?")
    assert answer.follow() == [0, 1]
    assert session.expressions == {0: "the red circle", 1: "the blue square"}
    assert session.step(frames[3]).masks.shape == (2, *SIZE)
    expected = model.converse(frames[:3])
    expected.ask("what is happening here ?").finish()
    torch.testing.assert_close(expected.turns[0].prompt_tokens, talk.turns[0].prompt_tokens)
    with pytest.raises(ConfigError, match="call follow"):
        next(answer.masks())
    with pytest.raises(ConfigError, match="runs on another model"):
        scripted_model().converse(session)


def test_a_phrase_is_asked_for_again_after_a_cut(frames: list[np.ndarray]) -> None:
    model = scripted_model(TWO, FOUND)
    session = model.open(on_cut="forget")
    session.step(frames[0])
    model.converse(session).ask("what is happening here ?").follow()
    session.step(frames[1])
    assert len(model.lengths) == 1
    session.step(255 - frames[2][::-1])
    assert session.counts.cuts == 1
    assert len(model.lengths) == 3


def test_masks_without_a_phrase_have_a_number(frames: list[np.ndarray]) -> None:
    model = scripted_model(FOUND)
    answer = model.converse(frames).ask("what is this ?")
    assert answer.phrases == (Phrase("", 5, 5),)
    ((_, first), *_) = answer.segmentations()
    assert first.expressions == ("object 1",)


def test_views_are_those_of_the_frames(frames: list[np.ndarray]) -> None:
    model: ScriptedModel = scripted_model(FOUND)
    with torch.inference_mode():
        one = model.encode_views([encoder_view(frame, model.config) for frame in frames])
        other = model.encode_video(frames)
    assert torch.equal(one.tokens, other.tokens)


# Evaluation.


@pytest.mark.filterwarnings("ignore::refervos.errors.UnknownWordsWarning")
def test_the_answers_of_a_model_to_a_data_set_can_be_scored(tmp_path: Path) -> None:
    part = Part("mevis-gcg", layouts_conversations.write_mevis_gcg(tmp_path / "data", videos=1, frames=4), "valid_u")
    answer_conversations(conversations_with(scripted_model(TWO)), part, tmp_path / "out", show_progress=False)
    (path,) = (tmp_path / "out").glob("*/*/answer.json")
    written = read_answer(path)
    assert [phrase.text for phrase in written.phrases] == ["the red circle", "the blue square"]
    assert any(written.mask(0, frame).any() for frame in range(len(written.frames)))
    values = score_conversations(tmp_path / "out", part).groups[0].values
    assert {"set mIoU", "recall"} <= set(values)


# The command line.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run a command in an empty folder with a film; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "film.mp4", 5, width=64, height=48, images=scene(5, *SIZE))

    def command(*arguments: object, texts: tuple[str, ...] = (TWO,)) -> tuple[int, str, str]:
        monkeypatch.setattr(loading, "load", lambda *_, **__: scripted_model(*texts))
        monkeypatch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return command


def test_ask_prints_the_answer_and_writes_its_masks(run: Any, tmp_path: Path) -> None:
    code, out, err = run("ask", "film.mp4", "What is happening here?", "--frames", 4, "--start", 1)
    assert (code, out) == (0, "the red circle passes behind the blue square.\n")
    assert "4 frames" in err
    folder = tmp_path / "film_refervos"
    assert sorted(path.name for path in folder.iterdir()) == ["answer.json", "masks.jsonl", "overlay.mp4"]
    answer = read_answer(folder / "answer.json")
    assert (answer.question, answer.text) == ("What is happening here?", out.strip())
    assert [(phrase.text, phrase.start) for phrase in answer.phrases] == [
        ("the red circle", 0),
        ("the blue square", 29),
    ]
    assert (answer.frames, answer.size) == (("00001", "00002", "00003", "00004"), SIZE)
    assert answer.model == "videoglamm-miniature"
    lines = [json.loads(line) for line in (folder / "masks.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["expression"]) for line in lines[:3]] == [
        (1, "the red circle"),
        (1, "the blue square"),
        (2, "the red circle"),
    ]
    first = answer.phrases[0].masks[0]
    assert first is not None
    assert lines[0]["counts"] == first["counts"]


def test_several_questions_are_a_conversation(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("ask", "film.mp4", "What is this?", "Which one?", "-o", "out", texts=(TWO, NOT_FOUND))
    assert code == 0
    assert out == "> What is this?\nthe red circle passes behind the blue square.\n> Which one?\nwhich one ?\n"
    assert {path.name for path in (tmp_path / "out" / "1").iterdir()} == {"answer.json", "masks.jsonl", "overlay.mp4"}
    assert {path.name for path in (tmp_path / "out" / "2").iterdir()} == {"answer.json"}
    answer = read_answer(tmp_path / "out" / "2" / "answer.json")
    assert (answer.phrases, len(answer.frames), answer.size) == ((), 5, SIZE)


def test_existing_answers_are_only_replaced_with_overwrite(run: Any, tmp_path: Path) -> None:
    assert run("ask", "film.mp4", "what is this ?", "-q")[2] == ""
    code, out, err = run("ask", "film.mp4", "What is this?")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert run("ask", "film.mp4", "And now?", "--overwrite", texts=(NOT_FOUND,))[0] == 0
    assert [path.name for path in (tmp_path / "film_refervos").iterdir()] == ["answer.json"]  # nothing of the first


def test_phrases_are_coloured_on_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    assert not ask_command.has_colours()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Terminal())
        assert ask_command.has_colours()
        patched.setenv("NO_COLOR", "1")
        assert not ask_command.has_colours()
        patched.delenv("NO_COLOR")
        patched.setenv("TERM", "dumb")
        assert not ask_command.has_colours()
    monkeypatch.setattr(ask_command, "has_colours", lambda: True)
    _, out, _ = run("ask", "film.mp4", "What is this?")
    orange, blue = "\x1b[38;2;255;106;0m\x1b[1m", "\x1b[38;2;0;150;255m\x1b[1m"  # of the overlay
    assert out == f"{orange}the red circle\x1b[0m passes behind {blue}the blue square\x1b[0m.\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("film.mp4",), "there is no question"),
        (("film.mp4", ""), "the question is empty"),
        (("film.mp4", " \t "), "the question is empty"),
        (("film.mp4", "red " * 10_000), "at most 512"),
        (("film.mp4", "<|end|>"), "contains <|end|>"),
        (("film.mp4", "film.mp4"), "is a file, not a sentence"),
        (("absent.mp4", "What is this?"), "does not exist"),
        (("film.mp4", "What is this?", "--start", "99"), "99"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(run: Any, tmp_path: Path, arguments: Any, problem: str) -> None:
    code, out, err = run("ask", *arguments)
    assert (code, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("answer.json"))


def test_nonsense_and_an_image_get_an_answer(run: Any, tmp_path: Path) -> None:
    Image.fromarray(scene(1, *SIZE)[0]).save(tmp_path / "image.png")
    code, out, err = run("ask", "image.png", "xyzzy \u2603 ?! 42", "-o", "out", texts=(FOUND,))
    assert (code, out) == (0, "it is.\n")
    assert err.startswith("warning: the model was trained on synthetic drawings only and does not know xyzzy, 42: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"answer.json", "masks.jsonl", "overlay.png"}


def test_a_model_that_answers_no_questions_is_named(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["refervos", "ask", "film.mp4", "What is this?", "-m", "miniature"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "miniature answers no questions; give a model that does" in capsys.readouterr().err


def test_a_random_model_from_a_folder_answers(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    random_model().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(
        sys, "argv", ["refervos", "ask", "film.mp4", "What is this?", "-m", "model", "--limit", "5", "--device", "cpu"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, capsys.readouterr().err
    assert read_answer(tmp_path / "film_refervos" / "answer.json").model == "model"


def test_answers_with_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    def segmentation(size: tuple[int, int]) -> Segmentation:
        one = np.zeros(1, np.float32)
        return Segmentation(0, (0,), ("it",), np.ones((1, *size), bool), one, one > 0)

    sink = AnswerSink(tmp_path / "answer.json", "what ?", "it", [(0, 2)])
    sink.write(Frame(0, np.zeros((4, 5, 3), np.uint8)), segmentation((4, 5)))
    with pytest.raises(OutputError, match="frames differ in size"):
        sink.write(Frame(1, np.zeros((5, 4, 3), np.uint8)), segmentation((5, 4)))
    assert sink.close() == [tmp_path / "answer.json"]
    assert sink.close() == [tmp_path / "answer.json"]
    assert read_answer(tmp_path / "answer.json").mask(0, 0).all()
    aborted = AnswerSink(tmp_path / "other.json", "what ?", "it", [(0, 2)])
    aborted.abort()
    assert aborted.close() == []
