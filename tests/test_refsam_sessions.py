"""RefSAM in sessions: independent sentences, one track token of memory, saving and loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos import Prompt, load
from refervos.errors import CheckpointError, ConfigError, PromptError, StateError
from refervos.ops.linear import make_column_major
from refervos.refsam.model import RefSam
from refervos.segmenter import CPU_BUDGET, BatchSegmenter
from refervos.session.session import Session
from refsam_models import SENTENCES, TINY, placed, tiny_model
from scenes import scene, stack_logits

SIZE = (48, 64)


@pytest.fixture(scope="module")
def model() -> RefSam:
    """Make a model in double precision, where the order of summation does not matter; do not modify it."""
    return tiny_model().double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the model in single precision."""
    path = tmp_path_factory.mktemp("refsam") / "model"
    tiny_model().save_pretrained(path)
    return path


def segment(model: RefSam, sentences: tuple[str, ...], frames: list[np.ndarray]) -> np.ndarray:
    """Follow sentences from the first frame on; return mask logits."""
    session = model.open(list(sentences), keep_logits=True)
    return stack_logits([session.step(frame) for frame in frames])


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Check equality up to single precision, in which sessions return logits."""
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_several_sentences_give_the_results_of_each_alone(model: RefSam) -> None:
    frames = scene(4, *SIZE)
    joint = segment(model, SENTENCES, frames)
    assert len({len(model.read(sentence)[0]) for sentence in SENTENCES}) == len(SENTENCES)
    for index, sentence in enumerate(SENTENCES):
        assert_same(segment(model, (sentence,), frames)[:, 0], joint[:, index])
    assert np.abs(joint[:, 0] - joint[:, 1]).max() > 0.1


def test_tracks_added_and_dropped_between_frames(model: RefSam) -> None:
    frames = scene(6, *SIZE)
    session = model.open(SENTENCES[0], keep_logits=True)
    first = [session.step(frame) for frame in frames[:2]]
    assert [session.add(sentence) for sentence in SENTENCES[1:]] == [1, 2]
    late = [session.step(frame) for frame in frames[2:4]]
    session.drop(0)
    last = [session.step(frame) for frame in frames[4:]]
    assert [results[0].track_ids for results in (first, late, last)] == [(0,), (0, 1, 2), (1, 2)]
    old = segment(model, SENTENCES[:1], frames[:4])
    assert_same(np.concatenate([stack_logits(first), stack_logits(late)[:, :1]]), old)
    new = segment(model, SENTENCES[1:], frames[2:])
    assert_same(np.concatenate([stack_logits(late)[:, 1:], stack_logits(last)]), new)


def test_frames_in_clips_give_the_results_of_frames_one_by_one(model: RefSam) -> None:
    frames = scene(4, *SIZE)
    joint = model.open(list(SENTENCES), keep_logits=True).clip(frames)
    assert_same(stack_logits(joint), segment(model, SENTENCES, frames))
    assert model.clip_length == 1


def test_a_batch_of_videos_gives_the_results_of_each_alone(model: RefSam) -> None:
    assert isinstance(model, BatchSegmenter)
    videos = torch.stack([placed(model, 3, seed) for seed in (0, 1, 2)])
    place = model.placement(SIZE)
    joint = [model.begin(Prompt(sentence)) for sentence in SENTENCES]
    results = torch.stack([result.mask_logits for result in model.segment_clips(videos, joint)], dim=1)  # (N, T, ...)
    for row, sentence in enumerate(SENTENCES):
        track = model.begin(Prompt(sentence))
        alone = [result.mask_logits[0] for result in model.segment_clip(videos[row], [track], [place] * 3)]
        torch.testing.assert_close(results[row], torch.stack(alone), atol=1e-9, rtol=1e-9)
        assert track.token is not None
        torch.testing.assert_close(joint[row].token, track.token, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("videos", [1, 3])
def test_a_small_memory_budget_splits_the_batch_and_changes_no_result(
    videos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().double()
    pixels = torch.stack([placed(model, 2, seed) for seed in range(videos)])
    batches: list[int] = []
    decode = model.decode

    def counted(features: Any, sentences: Any, *others: Any) -> Any:
        batches.append(len(sentences.words))
        return decode(features, sentences, *others)

    def results() -> Tensor:
        batches.clear()
        tracks = [model.begin(Prompt(sentence)) for sentence in SENTENCES]
        several = model.segment_clips(pixels, tracks)
        one = model.segment_clip(pixels[0], tracks, [model.placement(SIZE)] * 2)
        return torch.stack([result.mask_logits for result in (one if videos == 1 else several)])

    monkeypatch.setattr(model, "decode", counted)
    whole = results()
    assert batches == [3, 3]
    one_track = CPU_BUDGET // model._tracks_at_once(3, frames_too=videos > 1)
    for budget, expected in ((1, [1] * 6), (2 * one_track, [2, 1] * 2)):
        model.memory_budget = budget
        torch.testing.assert_close(results(), whole, atol=1e-9, rtol=1e-9)
        assert batches == expected


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
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from reachable(item)
    else:
        assert value is None or isinstance(value, (bool, int, float, str)), type(value)


def memory_of(session: Session) -> tuple[int, int]:
    """Count the tensors that a session keeps, and the bytes of the storages behind them."""
    tensors = list(reachable(session._state))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(storages.values())


def test_the_memory_of_a_session_stays_constant() -> None:
    smallest = replace(TINY.sam, image_size=32, vit_width=16, vit_layers=1, vit_global_blocks=(0,), decoder_layers=1)
    session = tiny_model(sam=smallest, dense="attention").open(list(SENTENCES[:2]))
    frames = scene(8, 32, 32)
    sizes = {}
    for index in range(2000):
        session.step(frames[index % 8])
        if index in (1, 100, 1999):
            sizes[index] = memory_of(session)
    assert session.frame_index == 2000
    assert sizes[1] == sizes[100] == sizes[1999]
    for track in session._tracks.values():
        assert [tensor.shape for tensor in reachable(track.state)][1:] == [(32,), (32,)]  # the sentence and one token


def test_a_restored_session_gives_identical_masks(tmp_path: Path) -> None:
    model, frames = tiny_model(), scene(6, *SIZE)
    session = model.open(list(SENTENCES[:2]), keep_logits=True)
    for frame in frames[:3]:
        session.step(frame)
    session.add(SENTENCES[2])  # has no token yet
    session.save(tmp_path / "session")
    restored = tiny_model().restore(tmp_path / "session")
    assert restored.expressions == session.expressions
    on = stack_logits([session.step(frame) for frame in frames[3:]])
    assert np.array_equal(stack_logits([restored.step(frame) for frame in frames[3:]]), on)
    assert [result.masks.shape for result in restored.clip(frames[:1])] == [(3, *SIZE)]


def test_a_session_is_not_restored_on_another_model(tmp_path: Path) -> None:
    tiny_model().open(SENTENCES[0]).save(tmp_path / "session")
    with pytest.raises(StateError, match="was saved with another model"):
        tiny_model(mask_threshold=0.1).restore(tmp_path / "session")


def test_after_a_cut_the_results_are_those_of_a_new_session(model: RefSam) -> None:
    before = scene(3, *SIZE)
    after = [255 - frame[::-1] for frame in scene(3, *SIZE, seed=4)]
    forgetting = model.open(list(SENTENCES), keep_logits=True, on_cut="forget")
    results = [forgetting.step(frame) for frame in before + after]
    assert [result.cut for result in results] == [False, False, False, True, False, False]
    assert_same(stack_logits(results[:3]), segment(model, SENTENCES, before))
    assert_same(stack_logits(results[3:]), segment(model, SENTENCES, after))
    through = segment(model, SENTENCES, before + after)
    assert np.abs(through[3:] - stack_logits(results[3:])).max() > 1e-2


def test_a_gap_does_not_change_the_results(model: RefSam) -> None:
    frames = scene(4, *SIZE)
    session = model.open(SENTENCES[0], keep_logits=True)
    results = [session.step(frame) for frame in frames[:2]]
    session.mark_gap()
    results += [session.step(frame) for frame in frames[2:]]
    assert_same(stack_logits(results), segment(model, SENTENCES[:1], frames))


def test_a_track_with_a_new_prompt_keeps_its_track_token(model: RefSam) -> None:
    frames = scene(3, *SIZE)
    session = model.open(SENTENCES[0], keep_logits=True)
    session.step(frames[0])
    token = session._tracks[0].state.token
    session.set_prompt(0, SENTENCES[1])
    assert session.expressions == {0: SENTENCES[1]}
    assert session._tracks[0].state.token is token
    track = model.begin(Prompt(SENTENCES[1]))
    track.token = token
    expected = next(model.segment_clip(placed(model, 3)[1:2], [track], [model.placement(SIZE)]))
    renamed = stack_logits([session.step(frames[1])])[0]
    assert_same(renamed, model.placement(SIZE).restore(expected.mask_logits).numpy())
    assert np.abs(renamed - segment(model, SENTENCES[:1], frames[:2])[1]).max() > 1e-2


def test_only_sentences_are_accepted_as_prompts(model: RefSam) -> None:
    for prompt in (Prompt(box=(1, 2, 30, 40)), Prompt(SENTENCES[0], points=[(3, 4)])):
        with pytest.raises(PromptError, match=r"RefSAM takes sentences only and was given .*; for clicks[^.]*\.$"):
            model.open([prompt])
    session = model.open(SENTENCES[0])
    with pytest.raises(PromptError, match="sentences only and was given points;"):
        model.begin(Prompt(SENTENCES[0], points=[(3, 4)]))
    with pytest.raises(PromptError, match="sentences only and was given box"):
        session.set_prompt(0, Prompt(box=(1, 2, 30, 40)))
    result = session.step(scene(1, *SIZE)[0])
    with pytest.raises(
        PromptError, match=r"^RefSAM cannot be corrected by clicks, a box or a mask; use set_prompt [^.]*\.$"
    ):
        session.correct(0, points=[(3, 4)])
    with pytest.raises(PromptError, match=r"^there is no correction to undo\.$"):
        session.undo(0)
    assert session.expressions == {0: SENTENCES[0]}
    assert np.array_equal(session._state.last.masks, result.masks)  # type: ignore[union-attr]


def test_sentences_without_tokenizer_or_too_long_are_refused(model: RefSam) -> None:
    with pytest.raises(PromptError, match="has no tokenizer files, so it cannot read sentences"):
        RefSam(TINY).open(SENTENCES[0])
    short = tiny_model(text=replace(TINY.text, max_tokens=4))
    with pytest.raises(PromptError, match=r"the expression has \d+ tokens; this model reads at most 4\."):
        short.open(SENTENCES[1])


def test_presence_is_one_for_a_mask_and_zero_for_an_empty_one(model: RefSam) -> None:
    frame = scene(1, *SIZE)[0]
    seen = model.open(SENTENCES[0]).step(frame)
    blind = tiny_model(mask_threshold=1e6).open(SENTENCES[0]).step(frame)
    assert (seen.masks.any(), seen.presence.tolist()) == (True, [1.0])
    assert (blind.masks.any(), blind.presence.tolist()) == (False, [0.0])
    assert not seen.switched.any()


# Folders.


def test_a_saved_model_is_loaded_with_identical_masks(folder: Path) -> None:
    model, loaded, frames = tiny_model(), load(folder, device="cpu"), scene(3, *SIZE)
    assert isinstance(loaded, RefSam)
    assert loaded.config == model.config
    assert loaded.fingerprint() == model.fingerprint()
    make_column_major(model)  # as load does; with another memory layout, products differ in rounding on some processors
    expected = segment(model, SENTENCES, frames)
    assert expected.std() > 0.1
    assert np.array_equal(segment(loaded, SENTENCES, frames), expected)


@pytest.mark.parametrize("options", [{"tracking": "none"}, {"dense": "attention"}, {"adapters": False}], ids=str)
def test_options_that_drop_a_saved_part_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit the model; .*unexpected: "):
        load(folder, device="cpu", **options)


def test_settings_without_weights_can_be_changed_at_loading(folder: Path) -> None:
    changed = load(folder, device="cpu", mask_threshold=0.51, first_short_side=24)
    assert changed.placement(SIZE).first == (24, 32)
    changed = load(folder, device="cpu", mask_threshold=0.51)
    frames = scene(1, *SIZE)
    expected = segment(tiny_model(), SENTENCES, frames) - 0.5
    assert_same(segment(changed, SENTENCES, frames), expected)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown field protocol"):
        load(folder, device="cpu", protocol="published")
    with pytest.raises(ConfigError, match="dense is 'both' where one of"):
        load(folder, device="cpu", dense="both")


def test_a_memory_budget_can_be_set_at_loading(folder: Path) -> None:
    assert load(folder, device="cpu", memory_budget=12345).memory_budget == 12345


def test_bfloat16_agrees_with_float32(folder: Path) -> None:
    frames = scene(3, *SIZE)
    exact = segment(tiny_model(), SENTENCES, frames)
    rounded = load(folder, device="cpu", dtype="bfloat16")
    assert isinstance(rounded, RefSam)
    types = {parameter.dtype for part in rounded.children() for parameter in part.parameters()}
    table = rounded.sam.sam.shared_image_embedding.positional_embedding
    assert types == {torch.bfloat16, torch.float32}
    assert [own for own in rounded.parameters() if own.dtype == torch.float32] == [table]
    found = segment(rounded, SENTENCES, frames)
    assert 0 < np.abs(found - exact).mean() < 0.1 * exact.std()


def test_models_that_give_different_results_have_different_fingerprints() -> None:
    changes: list[dict[str, Any]] = [{}, {"mask_threshold": 0.1}, {"sparse": False}, {"tracking": "none"}]
    prints = [tiny_model(**change).fingerprint() for change in changes]
    assert len(set(prints)) == len(prints)
    assert tiny_model().fingerprint() == prints[0]
