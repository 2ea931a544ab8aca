"""Data sets of grounded conversations: phrases and masks of every layout, and errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts_conversations as written
from layouts import DrawnVideo, change_json, drawn_videos, write_image, write_json
from refervos.data.catalogue import BENCHMARKS, open_dataset
from refervos.data.check import check_dataset
from refervos.data.conversations import (
    GCG_QUESTION,
    Conversation,
    GroundedPhrase,
    Turn,
    parse_marked,
    parse_numbered_tags,
)
from refervos.data.files import Problems
from refervos.errors import DataError

# The same options for all, so that the videos are rendered only once.
OPTIONS: dict[str, Any] = {"videos": 2, "frames": 4}

SETS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "mevis-gcg": ("valid_u", lambda folder: written.write_mevis_gcg(folder, **OPTIONS)),
    "ytvos-gcg": ("train", lambda folder: written.write_ytvos_gcg(folder, **OPTIONS)),
    "vidstg-gcg": ("val", lambda folder: written.write_segmented_gcg(folder, "vidstg_gcg", **OPTIONS)),
    "hcstvg-gcg": ("val", lambda folder: written.write_segmented_gcg(folder, "hcstvg_gcg", **OPTIONS)),
    "video-gcg": ("test", lambda folder: written.write_video_gcg(folder, **OPTIONS)),
    "anet-gcg": ("train", lambda folder: written.write_anet_gcg(folder, **OPTIONS)),
}


def conversations_of(name: str, folder: Path) -> tuple[Conversation, ...]:
    """Write a data set and return its conversations."""
    split, write = SETS[name]
    return open_dataset(name, write(folder), split).conversations


def videos_of(name: str) -> list[DrawnVideo]:
    """Return the rendered videos of a data set."""
    return drawn_videos("anet" if name == "anet-gcg" else SETS[name][0], **OPTIONS)


def masks_of(conversation: Conversation, phrase: GroundedPhrase) -> np.ndarray:
    """Return the masks of a phrase, bool (T, H, W)."""
    ground_truth = phrase.ground_truth
    assert ground_truth is not None
    assert list(ground_truth.annotated) == list(range(len(conversation.video)))
    return np.stack([ground_truth.mask(index) for index in ground_truth.annotated])


def test_every_benchmark_of_grounded_conversations_is_listed_here() -> None:
    assert set(SETS) == {name for name in BENCHMARKS if name.endswith("-gcg")}
    assert "gcg" in BENCHMARKS


@pytest.mark.parametrize("name", SETS)
def test_each_video_has_a_conversation_whose_phrases_are_samples(name: str, tmp_path: Path) -> None:
    split, write = SETS[name]
    dataset = open_dataset(name, write(tmp_path), split)
    assert len(dataset.conversations) == 2
    spoken = []
    for conversation, one in zip(dataset.conversations, videos_of(name), strict=True):
        (turn,) = conversation.turns
        assert turn.question == GCG_QUESTION
        assert len(conversation.video) == len(one.clip.frames)
        assert conversation.video.frames.read(0).shape == one.clip.frames[0].shape
        spoken += [(conversation.video.id, f"0-0-{k}", turn.text_of(phrase)) for k, phrase in enumerate(turn.phrases)]
    assert [(*sample.key, sample.expression) for sample in dataset.samples] == spoken


@pytest.mark.parametrize("name", ["mevis-gcg", "ytvos-gcg"])
def test_the_target_of_a_phrase_is_the_union_of_its_objects(name: str, tmp_path: Path) -> None:
    for conversation, one in zip(conversations_of(name, tmp_path), videos_of(name), strict=True):
        (turn,) = conversation.turns
        assert turn.answer == written.PLAIN_CAPTION
        assert [turn.text_of(phrase) for phrase in turn.phrases] == list(written.PHRASES)
        for phrase, objects in zip(turn.phrases, written.PHRASES.values(), strict=True):
            expected = np.any(one.clip.masks[list(objects)], axis=0)
            np.testing.assert_array_equal(masks_of(conversation, phrase), expected)


@pytest.mark.parametrize("name", ["vidstg-gcg", "hcstvg-gcg"])
def test_the_target_of_a_phrase_in_sets_made_from_boxes_is_its_first_object(name: str, tmp_path: Path) -> None:
    for conversation, one in zip(conversations_of(name, tmp_path), videos_of(name), strict=True):
        (turn,) = conversation.turns
        assert [phrase.object_ids for phrase in turn.phrases] == [("0",), ("1", "2")]
        for phrase, first in zip(turn.phrases, (0, 1), strict=True):
            np.testing.assert_array_equal(masks_of(conversation, phrase), one.clip.masks[first])


def test_the_target_of_a_word_of_video_gcg_is_the_union_of_its_annotations(tmp_path: Path) -> None:
    conversations = conversations_of("video-gcg", tmp_path)
    for conversation, one in zip(conversations, videos_of("video-gcg"), strict=True):
        (turn,) = conversation.turns
        assert turn.answer == "A shape, and other shapes."
        assert [turn.text_of(phrase) for phrase in turn.phrases] == ["shape,", "shapes."]
        for phrase, objects in zip(turn.phrases, ([0], [1, 2]), strict=True):
            expected = np.any(one.clip.masks[objects], axis=0)
            np.testing.assert_array_equal(masks_of(conversation, phrase), expected)
    assert "burst" in str(conversations[0].video.frames.folder)  # type: ignore[attr-defined]
    assert "ytvis" in str(conversations[1].video.frames.folder)  # type: ignore[attr-defined]


def test_videos_without_a_caption_are_left_out_with_a_note(tmp_path: Path) -> None:
    problems = Problems(keep_going=True)
    dataset = open_dataset("video-gcg", SETS["video-gcg"][1](tmp_path), "test", problems=problems)
    assert len(dataset.conversations) == 2
    assert problems.found == []
    assert "1 videos without a caption" in problems.notes[0]


def test_objects_of_anet_gcg_have_a_mask_in_one_frame(tmp_path: Path) -> None:
    for conversation, one in zip(conversations_of("anet-gcg", tmp_path), videos_of("anet-gcg"), strict=True):
        (turn,) = conversation.turns
        assert turn.answer == "One thing is near another. It moves."
        assert [turn.text_of(phrase) for phrase in turn.phrases] == ["One thing", "another", "It"]
        for phrase, k in zip(turn.phrases, (0, 1, 0), strict=True):
            assert phrase.ground_truth is not None
            assert list(phrase.ground_truth.annotated) == [written.ANET_FRAME]
            mask = phrase.ground_truth.mask(written.ANET_FRAME)
            np.testing.assert_array_equal(mask, one.clip.masks[k, written.ANET_FRAME])


@pytest.mark.parametrize("name", SETS)
def test_the_check_counts_phrases_and_finds_no_problems(name: str, tmp_path: Path) -> None:
    split, write = SETS[name]
    found = check_dataset(name, write(tmp_path), split)
    assert found.problems == ()
    assert found.splits[0].videos == 2
    assert found.expressions == (6 if name == "anet-gcg" else 4)


def test_the_published_test_set_is_made_of_three_sets(tmp_path: Path) -> None:
    dataset = open_dataset("gcg", written.write_gcg(tmp_path, **OPTIONS))
    sets = {name: open_dataset(name, tmp_path, SETS[name][0]) for name in ("video-gcg", "mevis-gcg", "vidstg-gcg")}
    expected = [
        (f"{name}_{one.video.id}", one.turns[0].answer) for name, of_set in sets.items() for one in of_set.conversations
    ]
    assert [(one.video.id, one.turns[0].answer) for one in dataset.conversations] == expected
    assert len(expected) == 6
    assert len(dataset.samples) == sum(len(of_set.samples) for of_set in sets.values())
    assert check_dataset("gcg", tmp_path).problems == ()


# Texts


def test_marks_are_removed_from_a_caption_as_in_the_released_code() -> None:
    text, phrases = parse_marked("A [dog](0) and [two big cats](1, 2), [x] (3) stay.")
    assert text == "A dog and two big cats, [x] (3) stay."
    assert [(text[phrase.start : phrase.end], phrase.ids) for phrase in phrases] == [
        ("dog", ("0",)),
        ("two big cats", ("1", "2")),
    ]


def test_numbered_tags_are_removed_from_a_caption() -> None:
    text, phrases = parse_numbered_tags("<p> He </p> [SEG:1] lifts <p>a bar</p>[SEG:0].")
    assert text == "He lifts a bar."
    assert [(text[phrase.start : phrase.end], phrase.ids) for phrase in phrases] == [("He", ("1",)), ("a bar", ("0",))]


def test_long_texts_of_brackets_are_parsed_in_linear_time() -> None:
    for text in ("[" * 100_000, "[a](" * 25_000, "<p>" * 30_000):
        assert parse_marked(text) == (text, ())
        assert parse_numbered_tags(text) == (text, ())


def test_a_tagged_answer_has_a_token_for_each_phrase() -> None:
    text, marked = parse_marked("There is a [white rabbit](0) leaning on an [adult](1).")
    turn = Turn("?", text, tuple(GroundedPhrase(phrase.start, phrase.end, phrase.ids) for phrase in marked))
    assert turn.tagged == "There is a <p> white rabbit </p> [SEG] leaning on an <p> adult </p> [SEG]."
    assert Turn("?", "Nothing.").tagged == "Nothing."


# Errors


def spoil_caption(name: str, folder: str) -> Callable[[Path, str], None]:
    """Return a function that replaces the first caption of a data set."""

    def spoil(root: Path, caption: str) -> None:
        write_json(sorted((root / folder).glob("*.json"))[0], {"caption": caption})

    return spoil


@pytest.mark.parametrize(
    ("name", "captions", "caption", "message"),
    [
        ("mevis-gcg", "mevis_gcg/valid_u", "A [dog](77).", "names object 77, which has no annotation"),
        ("mevis-gcg", "mevis_gcg/valid_u", "A dog.", "no phrase with objects"),
        ("mevis-gcg", "mevis_gcg/valid_u", "A [dog](../1).", "ids are separated by commas"),
        ("mevis-gcg", "mevis_gcg/valid_u", "[a](0)" * 20_000, "at most 100,000 are allowed"),
        ("ytvos-gcg", "ytvos_gcg/train", "A [dog](0).", "numbers from 1 to 254"),
        ("vidstg-gcg", "vidstg_gcg/val_captions", "A [dog](9).", r"009, named in .* is missing"),
        ("vidstg-gcg", "vidstg_gcg/val_captions", "A [dog](dog).", "objects are numbers"),
    ],
)
def test_captions_that_cannot_be_grounded_are_reported(
    name: str, captions: str, caption: str, message: str, tmp_path: Path
) -> None:
    split, write = SETS[name]
    write(tmp_path)
    spoil_caption(name, captions)(tmp_path, caption)
    with pytest.raises(DataError, match=message):
        open_dataset(name, tmp_path, split)
    problems = Problems(keep_going=True)
    assert len(open_dataset(name, tmp_path, split, problems=problems).conversations) == 1
    assert len(problems.found) == 1


def test_a_caption_about_an_unlisted_video_is_reported(tmp_path: Path) -> None:
    written.write_mevis_gcg(tmp_path, **OPTIONS)
    write_json(tmp_path / "mevis_gcg" / "valid_u" / "unknown.json", {"caption": written.CAPTION})
    with pytest.raises(DataError, match="does not list"):
        open_dataset("mevis-gcg", tmp_path, "valid_u")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video["dense_cap"].update(token_pos=[5, 4, 4]), "indices of the 5 words"),
        (lambda video: video["dense_cap"].update(mask_id=[0, 1, 999]), "annotation 999, which is missing"),
        (lambda video: video.update(file_names=["../../x.jpg"]), "is outside"),
        (lambda video: video["dense_cap"].update(caption=7), "'caption' must be text"),
        (lambda video: video.update(width=65), "states 65x48 pixels"),
    ],
)
def test_damage_in_video_gcg_is_reported(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    written.write_video_gcg(tmp_path, **OPTIONS)
    change_json(tmp_path / "video_gcg/instruction_data/test.json", lambda content: change(content["videos"][0]))
    with pytest.raises(DataError, match=message):
        open_dataset("video-gcg", tmp_path, "test")


def test_words_without_an_object_of_their_own_are_noted(tmp_path: Path) -> None:
    written.write_video_gcg(tmp_path, **OPTIONS)
    file = tmp_path / "video_gcg/instruction_data/test.json"
    change_json(file, lambda content: content["videos"][0]["dense_cap"]["mask_id"].pop())
    problems = Problems()
    dataset = open_dataset("video-gcg", tmp_path, "test", problems=problems)
    assert dataset.conversations[0].turns[0].phrases[1].object_ids == ("2",)
    assert any("3 words with objects and 2 objects" in note for note in problems.notes)


def test_damage_in_anet_gcg_is_reported(tmp_path: Path) -> None:
    written.write_anet_gcg(tmp_path, **OPTIONS)
    root = tmp_path / "activitynet_entities_gcg"
    file = sorted((root / "anns").glob("*.json"))[0]
    change_json(file, lambda content: content["seg_token_to_obj"]["[SEG:1]"].update(frame_id=40))
    with pytest.raises(DataError, match="annotated in frame 40"):
        open_dataset("anet-gcg", tmp_path, "train")
    change_json(file, lambda content: content["seg_token_to_obj"].pop("[SEG:1]"))
    with pytest.raises(DataError, match="must be an object"):
        open_dataset("anet-gcg", tmp_path, "train")
    shutil.copy(file, file.with_name("nowhere.json"))
    file.unlink()
    with pytest.raises(DataError, match="named by a video and its segment"):
        open_dataset("anet-gcg", tmp_path, "train")


def test_a_mask_of_another_size_is_reported(tmp_path: Path) -> None:
    written.write_anet_gcg(tmp_path, **OPTIONS)
    for path in (tmp_path / "activitynet_entities_gcg" / "masks").glob("*/00/mask.png"):
        write_image(path, np.zeros((3, 5), np.uint8))
    assert any("5x3" in problem for problem in check_dataset("anet-gcg", tmp_path).problems)
