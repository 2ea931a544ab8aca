"""VideoGLaMM in sessions: when the language model is asked, what it reads, corrections, saving and loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos import Prompt, Segmentation, Session, load
from refervos.errors import ConfigError, PromptError, StateError
from refervos.text.grounded import Phrase
from refervos.videoglamm.conversation import Conversation, referring_question
from refervos.videoglamm.frames import encoder_view
from refervos.videoglamm.model import VideoGlamm
from scenes import scene
from videoglamm_models import (
    FOUND,
    NOT_FOUND,
    SMALL,
    ScriptedModel,
    random_model,
    script,
    scripted_model,
    see_nothing,
)

SIZE = (48, 64)
SENTENCES = ("the red circle", "the blue square", "one that turns back")


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    """Make a model in double precision, where the order of summation does not matter; do not modify it."""
    return scripted_model().double()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return scene(8, *SIZE)


def logits(results: Sequence[Segmentation]) -> np.ndarray:
    """Stack mask logits (T, N, H, W)."""
    return np.stack([result.logits for result in results if result.logits is not None])


def segment(model: VideoGlamm, sentences: Sequence[str], frames: Sequence[np.ndarray], **options: Any) -> np.ndarray:
    """Follow sentences from the first frame on, frame by frame; return mask logits."""
    session = model.open(list(sentences), keep_logits=True, **options)
    return logits([session.step(frame) for frame in frames])


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Check equality up to single precision, in which sessions return logits."""
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def published(model: VideoGlamm, sentence: str, read: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> np.ndarray:
    """Segment with the parts of the model: a conversation about some frames, then SAM2 from the first frame on."""
    with torch.no_grad():
        talk = Conversation(model, model.encode_video(read))
    list(talk.ask(referring_question(sentence), rule=script(model, FOUND)))
    place = model.placement(SIZE)
    placed = [place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]
    predicted = model.segment(placed, talk.turns[0].prompt_tokens[:1])
    return np.stack([place.restore(one.mask_logits).numpy() for one in predicted])


# What is read, and when.


def test_a_clip_of_the_whole_video_is_segmented_as_published(model: ScriptedModel) -> None:
    frames = scene(20, *SIZE)  # more than the 16 that the language model reads
    joint = model.open(SENTENCES[0], keep_logits=True).clip(frames)
    assert_same(logits(joint), published(model, SENTENCES[0], frames, frames))


def test_on_a_stream_the_first_frame_alone_is_read(model: ScriptedModel, frames: list[np.ndarray]) -> None:
    streamed = segment(model, SENTENCES[:1], frames)
    assert_same(streamed, published(model, SENTENCES[0], frames[:1], frames))
    assert np.abs(streamed - published(model, SENTENCES[0], frames, frames)).max() > 1e-3


def test_a_sentence_added_later_is_read_with_the_last_frames(model: ScriptedModel) -> None:
    frames = scene(20, *SIZE)
    session = model.open(keep_logits=True)
    for frame in frames[:18]:
        session.step(frame)  # without any track
    session.add(SENTENCES[0])
    late = [session.step(frame) for frame in frames[18:]]
    assert_same(logits(late), published(model, SENTENCES[0], frames[3:19], frames[18:]))


def test_a_model_that_points_in_the_first_frame_reads_from_the_prompted_one_on() -> None:
    model = scripted_model(reads="onwards").double()
    frames = scene(20, *SIZE)
    session = model.open(keep_logits=True)
    for frame in frames[:16]:
        session.step(frame)
    session.add(SENTENCES[0])
    late = list(session.clip(frames[16:]))
    assert_same(logits(late), published(model, SENTENCES[0], frames[16:], frames[16:]))
    around = published(model, SENTENCES[0], frames[4:], frames[16:])
    assert np.abs(logits(late) - around).max() > 1e-3


@pytest.mark.parametrize(("ask_every", "questions"), [(None, [0, 3, 6, 9]), (2, [0, 2, 4, 6, 8, 10])])
def test_an_object_that_is_not_seen_where_it_is_prompted_is_asked_for_again(
    ask_every: int | None, questions: list[int]
) -> None:
    model = scripted_model(retry_every=3, ask_every=ask_every)
    see_nothing(model)
    session = model.open([SENTENCES[0], Prompt(points=[(20, 20)])])
    asked = []
    for index, frame in enumerate(scene(11, *SIZE)):
        before = len(getattr(model, "lengths", ()))
        result = session.step(frame)
        asked += [index] * (len(model.lengths) - before)
        assert not result.masks.any()
        assert not len(session._tracks[0].state.memory.conditioning_maps)
        assert len(session._tracks[1].state.memory.conditioning_maps) == 1  # a click has no question to ask again
    assert asked == questions


def test_an_object_that_comes_late_is_followed_from_the_frame_in_which_it_is_seen() -> None:
    model = scripted_model(retry_every=3, reads="onwards")
    unseeing = scripted_model(retry_every=3, reads="onwards")
    see_nothing(unseeing)
    frames = scene(8, *SIZE)
    session = unseeing.open(SENTENCES[0])
    before = [session.step(frame).masks.any() for frame in frames[:3]]
    unseeing.load_state_dict(model.state_dict())
    found = [session.step(frame).masks[0] for frame in frames[3:]]
    assert before == [False] * 3
    fresh = model.open(SENTENCES[0])
    assert np.array_equal(np.stack(found), np.stack([fresh.step(frame).masks[0] for frame in frames[3:]]))
    assert np.stack(found).any()


def test_as_published_an_object_that_is_not_seen_at_first_is_not_asked_for_again() -> None:
    model = scripted_model()
    see_nothing(model)
    session = model.open(SENTENCES[0])
    for frame in scene(20, *SIZE):
        session.step(frame)
    assert len(model.lengths) == 1


def test_the_language_model_is_asked_once_for_an_object_that_it_finds() -> None:
    model = scripted_model()
    segment(model, SENTENCES[:2], scene(20, *SIZE))
    assert len(model.lengths) == 2


def test_an_object_that_is_not_found_is_absent_and_asked_for_again() -> None:
    model = scripted_model(NOT_FOUND, FOUND)
    session = model.open(SENTENCES[0])
    results = [session.step(frame) for frame in scene(20, *SIZE)]
    assert [result.presence[0] for result in results[:16]] == [0.0] * 16
    assert not any(result.masks.any() for result in results[:16])
    assert all(result.presence[0] > 0.9 for result in results[16:])
    assert all(result.masks.any() for result in results[16:])
    assert len(model.lengths) == 2
    assert session._tracks[0].state.answer == "it is"


def test_within_a_clip_that_was_read_an_absent_object_stays_absent() -> None:
    model = scripted_model(NOT_FOUND, FOUND)
    session = model.open(SENTENCES[0])
    assert not any(result.masks.any() for result in session.clip(scene(20, *SIZE)))
    assert len(model.lengths) == 1
    assert session.step(scene(1, *SIZE)[0]).masks.any()


def test_the_language_model_is_asked_every_so_many_frames_if_wanted() -> None:
    model = scripted_model(FOUND, FOUND, NOT_FOUND, FOUND, ask_every=3)
    session = model.open(SENTENCES[0])
    present = [bool(session.step(frame).presence[0] > 0.5) for frame in scene(12, *SIZE)]
    assert len(model.lengths) == 4
    assert present == [True] * 6 + [False] * 3 + [True] * 3


def test_asking_again_keeps_the_memory_of_the_same_object(frames: list[np.ndarray]) -> None:
    model = scripted_model(ask_every=4)
    session = model.open(SENTENCES[0])
    for frame in frames[:5]:
        session.step(frame)
    memory = session._tracks[0].state.memory
    assert [entry.frame for entry in memory.conditioning_maps] == [0, 4]
    assert [entry.frame for entry in memory.maps] == [1, 2, 3]


def test_setting_the_same_prompt_asks_again(frames: list[np.ndarray]) -> None:
    model = scripted_model()
    session = model.open(SENTENCES[0])
    for frame in frames[:3]:
        session.step(frame)
    session.set_prompt(0, SENTENCES[0])
    session.step(frames[3])
    assert len(model.lengths) == 2
    assert [entry.frame for entry in session._tracks[0].state.memory.conditioning_maps] == [0, 3]
    session.set_prompt(0, SENTENCES[1])
    assert session.expressions == {0: SENTENCES[1]}
    session.step(frames[4])
    assert len(model.lengths) == 3
    with pytest.raises(PromptError, match="must be a sentence"):
        session.set_prompt(0, Prompt(points=[(3, 4)]))


def test_after_a_cut_the_results_are_those_of_a_new_session(model: ScriptedModel) -> None:
    before = scene(3, *SIZE)
    after = [255 - frame[::-1] for frame in scene(3, *SIZE, seed=4)]
    forgetting = model.open(list(SENTENCES[:2]), keep_logits=True, on_cut="forget")
    results = [forgetting.step(frame) for frame in before + after]
    assert [result.cut for result in results] == [False, False, False, True, False, False]
    assert_same(logits(results[3:]), segment(model, SENTENCES[:2], after))
    through = segment(model, SENTENCES[:2], before + after)
    assert np.abs(through[3:] - logits(results[3:])).max() > 1e-2


def test_several_sentences_give_the_results_of_each_alone(model: ScriptedModel, frames: list[np.ndarray]) -> None:
    joint = segment(model, SENTENCES, frames[:4])
    for index, sentence in enumerate(SENTENCES):
        assert_same(segment(model, [sentence], frames[:4])[:, 0], joint[:, index])
    assert np.abs(joint[:, 0] - joint[:, 1]).max() > 1e-2


def test_found_and_absent_objects_keep_their_order(frames: list[np.ndarray]) -> None:
    model = scripted_model(NOT_FOUND, FOUND, NOT_FOUND)
    session = model.open(list(SENTENCES))
    for frame in frames[:2]:
        result = session.step(frame)
        assert [bool(mask.any()) for mask in result.masks] == [False, True, False]
        assert [bool(presence > 0.5) for presence in result.presence] == [False, True, False]


def test_a_question_is_asked_as_it_is_and_an_expression_as_published() -> None:
    model = scripted_model()
    assert model.begin(Prompt("The Red Circle")).question == (
        "What is the red circle in this video? Please respond with segmentation masks."
    )
    assert model.begin(Prompt("Which one  turns back?")).question == (
        "Which one turns back? Please respond with segmentation masks."
    )
    grounding = scripted_model(question="grounding")
    assert grounding.begin(Prompt("a circle moves")).question == "Can you segment a circle moves in this video?"


def test_sentences_that_cannot_be_asked_are_refused_at_once() -> None:
    model = scripted_model()
    with pytest.raises(PromptError, match=r"needs a prompt of \d+ tokens, 208 of them for the video"):
        model.open("red " * 10_000)
    with pytest.raises(PromptError, match=r"contains \[SEG\]"):
        model.open("the [SEG]")
    with pytest.raises(PromptError, match="has no tokenizer"):
        random_model(tokenizer=False).open("the red circle")
    with pytest.raises(ConfigError, match="ask_every is 0; it must be from 1"):
        replace(SMALL, ask_every=0)


# Clicks, boxes and masks.


def test_a_correction_replaces_the_mask_and_can_be_undone(frames: list[np.ndarray]) -> None:
    model = scripted_model(ask_every=2)
    session = model.open(SENTENCES[0], keep_logits=True)
    before = session.step(frames[0])
    mask = np.zeros(SIZE, bool)
    mask[10:20, 10:30] = True
    corrected = session.correct(0, mask=mask)
    assert (corrected.masks[0] & mask).sum() > 0.8 * mask.sum()
    for frame in frames[1:4]:
        session.step(frame)
    assert len(model.lengths) == 1  # what the user said counts more than the next question
    assert session.undo(0) is None
    session.step(frames[4])
    assert len(model.lengths) == 2
    again = model.open(SENTENCES[0], keep_logits=True)
    again.step(frames[0])
    again.correct(0, points=[(20, 20)])
    undone = again.undo(0)
    assert undone is not None
    assert np.array_equal(logits([undone]), logits([before]))


def test_an_absent_object_can_be_shown_by_a_click(frames: list[np.ndarray]) -> None:
    model = scripted_model(NOT_FOUND)
    session = model.open(SENTENCES[0])
    assert not session.step(frames[0]).masks.any()
    assert session.correct(0, box=(10, 10, 40, 40)).masks.any()
    assert session.step(frames[1]).masks.any()
    session.undo(0)
    session.step(frames[2])


def test_clicks_boxes_and_masks_can_start_a_track(frames: list[np.ndarray]) -> None:
    model = scripted_model()
    mask = np.zeros(SIZE, bool)
    mask[10:30, 10:30] = True
    prompts = [Prompt(points=[(20, 20)]), Prompt(SENTENCES[0], box=(5, 5, 40, 40)), Prompt(mask=mask)]
    session = model.open(prompts, on_cut="forget")
    first = session.step(frames[0])
    assert (first.masks[2] & mask).sum() > 0.8 * mask.sum()
    session.step(frames[1])
    assert not hasattr(model, "lengths")  # the language model was not asked
    session.step(255 - frames[2][::-1])  # a cut, after which only the sentence can be found again
    assert session.counts.cuts == 1
    assert len(model.lengths) == 1
    with pytest.raises(PromptError, match="outside the frame"):
        model.open([Prompt(points=[(200, 20)])]).step(frames[0])


def test_a_phrase_of_an_answer_is_followed_from_the_next_frame_on(
    model: ScriptedModel, frames: list[np.ndarray]
) -> None:
    with torch.no_grad():
        talk = Conversation(model, model.encode_video(frames))
    list(talk.ask("what is this ?", rule=script(model, FOUND)))
    token = talk.turns[0].prompt_tokens[0]
    session = model.open(keep_logits=True)
    session.step(frames[0])
    session.follow(Prompt("it"), model.begin_phrase(Phrase("it", 0, 2), token))
    found = logits([session.step(frame) for frame in frames[1:4]])
    place = model.placement(SIZE)
    placed = [place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames[1:4]]
    expected = [place.restore(one.mask_logits).numpy() for one in model.segment(placed, token.unsqueeze(0))]
    assert_same(found, np.stack(expected))


# Memory, saving and loading.


def reachable(value: Any) -> Iterator[Tensor]:
    """Yield every tensor and array in a session's state."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield torch.as_tensor(value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from reachable(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from reachable(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from reachable(item)
    elif hasattr(value, "popleft"):
        yield from reachable(list(value))
    else:
        assert value is None or isinstance(value, (bool, int, float, str)), type(value)


def memory_of(session: Session) -> tuple[int, int]:
    """Count the tensors that a session keeps, and the bytes of the storages behind them."""
    tensors = list(reachable(session._state))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_memory_of_a_session_stays_constant(count: int) -> None:
    smallest = replace(
        SMALL.sam2, hiera_blocks=(1, 1, 1, 1), hiera_global_blocks=(2,), hiera_windows=(2, 2, 2, 2), memory_layers=1
    )
    model = scripted_model(FOUND, NOT_FOUND, FOUND, sam2=smallest, ask_every=count // 20)
    session = model.open(SENTENCES[0])
    frames = scene(8, 32, 32)
    sizes = {}
    for index in range(count):
        session.step(frames[index % 8])
        if index in (7 * count // 20, count // 2, count - 1):
            sizes[index] = memory_of(session)
    assert len(model.lengths) == 20
    assert len(set(sizes.values())) == 1


def test_a_restored_session_gives_identical_masks(tmp_path: Path, frames: list[np.ndarray]) -> None:
    model = scripted_model(FOUND, NOT_FOUND, FOUND, ask_every=5)
    session = model.open(list(SENTENCES[:2]), keep_logits=True)
    for frame in frames[:3]:
        session.step(frame)
    session.correct(0, points=[(20, 20)])
    session.add(SENTENCES[2])  # will be asked for with the frames that the session keeps
    session.save(tmp_path / "session")
    other = scripted_model(FOUND, ask_every=5)
    restored = other.restore(tmp_path / "session")
    assert restored.expressions == session.expressions
    on = logits([session.step(frame) for frame in frames[3:]])
    assert np.array_equal(logits([restored.step(frame) for frame in frames[3:]]), on)
    assert on[:, 2].std() > 0.01
    assert model.lengths[2:] == other.lengths
    assert len(other.lengths) == 2  # the new sentence, and the one that was not found
    with pytest.raises(StateError, match="was saved with another model"):
        scripted_model(ask_every=6).restore(tmp_path / "session")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_loaded_and_follows_sentences(tmp_path: Path, frames: list[np.ndarray], dtype: str) -> None:
    random_model(SMALL).save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu", dtype=dtype, ask_every=7, clip_length=3)
    assert isinstance(loaded, VideoGlamm)
    assert (loaded.clip_length, loaded.config.ask_every) == (3, 7)
    session = loaded.open(SENTENCES[0])
    results = list(session.stream(frames[:4]))
    assert [result.masks.shape for result in results] == [(1, *SIZE)] * 4
    session.correct(0, points=[(20, 20)])
    session.save(tmp_path / "session")
    result = loaded.restore(tmp_path / "session").step(frames[4])
    assert np.isfinite(result.presence).all()
    with pytest.raises(ConfigError, match="question is 'which' where one of"):
        load(tmp_path / "model", device="cpu", question="which")


def test_kept_frames_are_small_copies(model: ScriptedModel) -> None:
    session = model.open()
    frame = scene(1, 480, 640)[0].copy()
    session.step(frame)
    frame[:] = 0
    (kept,) = session.past
    expected = encoder_view(scene(1, 480, 640)[0], model.config)
    assert torch.equal(kept.clip, expected.clip)
    assert (kept.clip.shape, kept.internvideo.shape) == ((3, 84, 84), (3, 56, 56))
    for _ in range(20):
        session.step(frame)
    assert len(session.past) == 15
