"""Changes to a running session: corrections, undo, new prompts, cuts, repeats, gaps, saving and restoring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refervos import Prompt, Segmentation, load
from refervos.errors import ConfigError, PromptError, StateError
from refervos.samwise.model import Samwise
from refervos.session.session import Session
from refervos.worlds import Clip
from refervos.worlds.benchmark import diagnostic_case
from scenes import CAPTION, SHORT_CAPTION, bytes_kept, iou, micro_model, prompt_of, scene, session_of, stack_logits

MODES = ("clip", "online")


@pytest.fixture(scope="module")
def miniature() -> Samwise:
    model = load("miniature", device="cpu")
    assert isinstance(model, Samwise)
    return model


def two_objects() -> tuple[Clip, int, int, str]:
    """Find a clip with two objects visible throughout; return it, both objects and a sentence about the first."""
    for index in range(60):
        case = diagnostic_case("appearance", index)
        if len(case.expression.targets) != 1:
            continue
        target = case.expression.targets[0]
        areas = case.clip.masks.sum(axis=(2, 3)).min(axis=1)  # (K,)
        for other in np.argsort(-areas):
            if other != target and areas[other] > 500 and areas[target] > 500:
                return case.clip, target, int(other), case.expression.text
    raise AssertionError("no such clip")


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Return the pixel x, y of the mask nearest to its centroid."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]), float(rows[nearest])


@pytest.mark.parametrize("how", ["click", "box", "mask"])
@pytest.mark.parametrize("time", MODES)
def test_a_correction_moves_the_track_to_the_marked_object(time: str, how: str) -> None:
    model = load("miniature", device="cpu", time=time)
    clip, target, other, text = two_objects()
    session = model.open(text)
    before = [session.step(frame) for frame in clip.frames[:8]][-1]
    assert iou(before.masks[0], clip.masks[target, 7]) > 0.5
    marked_mask = clip.masks[other, 7]
    rows, columns = np.nonzero(marked_mask)
    ways: dict[str, dict[str, Any]] = {
        "click": {"points": [centre(marked_mask)]},
        "box": {"box": [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]},
        "mask": {"mask": marked_mask},
    }
    corrected = session.correct(0, **ways[how])
    assert corrected.frame_index == 7
    assert iou(corrected.masks[0], marked_mask) > 0.6
    after = [session.step(frame) for frame in clip.frames[8:14]]
    assert after[0].frame_index == 8
    assert np.mean([iou(a.masks[0], clip.masks[other, 8 + k]) for k, a in enumerate(after)]) > 0.5


@pytest.mark.parametrize("time", MODES)
def test_undo_on_the_same_frame_restores_the_session_bit_by_bit(time: str) -> None:
    model = micro_model(time=time)
    frames = scene(8)
    plain, corrected = session_of(model, [CAPTION, SHORT_CAPTION]), session_of(model, [CAPTION, SHORT_CAPTION])
    for frame in frames[:5]:
        before = plain.step(frame)
        corrected.step(frame)
    changed = corrected.correct(1, points=[(100, 20)])
    assert not np.array_equal(changed.logits[1], before.logits[1])  # type: ignore[index]
    assert np.array_equal(changed.logits[0], before.logits[0])  # type: ignore[index]
    back = corrected.undo(1)
    assert back is not None
    assert np.array_equal(back.logits, before.logits)  # type: ignore[arg-type]
    for frame in frames[5:]:
        assert np.array_equal(corrected.step(frame).logits, plain.step(frame).logits)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no correction"):
        corrected.undo(1)


def test_clicks_on_one_frame_add_up_and_are_undone_one_by_one() -> None:
    model = micro_model()
    one_by_one, at_once = session_of(model, [CAPTION]), session_of(model, [CAPTION])
    for session in (one_by_one, at_once):
        for frame in scene(4):
            original = session.step(frame)
    first = one_by_one.correct(0, points=[(100, 20)])
    second = one_by_one.correct(0, points=[(30, 60), (60, 60)], labels=[0, 1])
    third = one_by_one.correct(0, box=(20, 20, 90, 70))
    joint = at_once.correct(0, points=[(100, 20), (30, 60), (60, 60)], labels=[1, 0, 1])
    assert np.array_equal(second.logits, joint.logits)  # type: ignore[arg-type]
    assert not np.array_equal(second.logits, first.logits)  # type: ignore[arg-type]
    for expected in (second, first, original):
        back = one_by_one.undo(0)
        assert back is not None
        assert np.array_equal(back.logits, expected.logits)  # type: ignore[arg-type]
    assert not np.array_equal(third.logits, second.logits)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no correction"):
        one_by_one.undo(0)
    # A mask is not merged with other prompts: neither with earlier nor with later clicks.
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:70] = True
    one_by_one.correct(0, points=[(100, 20)])
    masked = one_by_one.correct(0, mask=mask)
    fresh = session_of(model, [CAPTION])
    for frame in scene(4):
        fresh.step(frame)
    assert np.array_equal(masked.masks, fresh.correct(0, mask=mask).masks)
    assert np.array_equal(one_by_one.correct(0, points=[(100, 20)]).logits, first.logits)  # type: ignore[arg-type]


def test_corrections_of_earlier_frames_are_undone_frame_by_frame_and_at_most_sixteen() -> None:
    model = micro_model()
    session = session_of(model, [CAPTION])
    frames = scene(7)
    for number, frame in enumerate(frames[:6]):
        session.step(frame)
        if number in (2, 4):
            session.correct(0, points=[(100, 20)])
            session.correct(0, points=[(30, 60)])
    memory = session._tracks[0].state.memory
    assert [kept.frame for kept in memory.conditioning_maps] == [2, 4]
    assert session.undo(0) is None
    assert [kept.frame for kept in memory.conditioning_maps] == [2]
    assert session.undo(0) is None
    assert not memory.conditioning_maps
    with pytest.raises(PromptError, match="no correction"):
        session.undo(0)
    for _ in range(40):
        session.correct(0, points=[(100, 20)])
    for _ in range(16):
        assert session.undo(0) is not None
    with pytest.raises(PromptError, match="no correction"):
        session.undo(0)


def test_a_later_undo_removes_the_corrected_frame_from_memory() -> None:
    model = micro_model()
    session = session_of(model, [CAPTION])
    frames = scene(6)
    for frame in frames[:3]:
        session.step(frame)
    session.correct(0, box=(20, 20, 60, 60))
    session.step(frames[3])
    memory = session._tracks[0].state.memory
    assert [kept.frame for kept in memory.conditioning_maps] == [2]
    assert 2 not in [kept.frame for kept in memory.maps]
    assert session.undo(0) is None
    assert not memory.conditioning_maps
    assert not memory.conditioning_pointers


def test_the_sentence_still_guides_a_corrected_track() -> None:
    """Two tracks with the same correction and different sentences get equal masks, and different ones afterwards."""
    session = session_of(micro_model(), [CAPTION, SHORT_CAPTION])
    frames = scene(4)
    for frame in frames[:3]:
        session.step(frame)
    session.correct(0, points=[(50, 40)])
    both = stack_logits([session.correct(1, points=[(50, 40)])])[0]
    assert np.array_equal(both[0], both[1])
    after = stack_logits([session.step(frames[3])])[0]
    assert not np.allclose(after[0], after[1], atol=1e-3)


def test_a_click_with_a_sentence_selects_one_of_two_matching_objects(miniature: Samwise) -> None:
    clip, target, other, _ = two_objects()
    for marked in (target, other):
        session = miniature.open([Prompt("the shape", points=[centre(clip.masks[marked, 0])])])
        assert iou(session.step(clip.frames[0]).masks[0], clip.masks[marked, 0]) > 0.5
    with pytest.raises(PromptError, match="outside the frame"):
        miniature.open([Prompt("the shape", points=[(500, 3)])]).step(clip.frames[0])


@pytest.mark.parametrize("how", ["correction", "first click"])
@pytest.mark.parametrize("ways", [{"points": [(40, 40)]}, {"box": (20, 20, 60, 60)}])
def test_presence_after_a_click_is_calibrated_and_gates_the_mask(how: str, ways: dict[str, Any]) -> None:
    def clicked(**calibration: float) -> Segmentation:
        session = session_of(micro_model(**calibration), [CAPTION] if how == "correction" else [])
        if how == "correction":
            session.step(scene(1)[0])
            return session.correct(0, **ways)
        session.add(prompt_of(CAPTION, **ways))
        return session.step(scene(1)[0])

    raw = clicked()
    unprompted = session_of(micro_model(), [CAPTION]).step(scene(1)[0])
    assert not np.array_equal(raw.logits, unprompted.logits)  # type: ignore[arg-type]
    logit = float(np.log(raw.presence[0] / (1 - raw.presence[0])))
    assert logit > 0
    assert raw.masks.any()
    scale, shift = 0.5, -0.5 * logit - 1.0  # maps `logit` to a presence logit of -1
    for threshold, visible in ((0.2, True), (0.4, False)):
        found = clicked(presence_scale=scale, presence_shift=shift, presence_threshold=threshold)
        assert found.presence[0] == pytest.approx(1 / (1 + np.e), abs=1e-4)
        assert bool(found.masks.any()) is visible
        if visible:
            assert np.array_equal(found.masks, raw.masks)


def test_a_mask_from_the_user_is_returned_whatever_the_object_score() -> None:
    session = session_of(micro_model(presence_shift=-50.0), [CAPTION])
    assert not session.step(scene(1)[0]).masks.any()
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:70] = True
    found = session.correct(0, mask=mask)
    assert iou(found.masks[0], mask) > 0.9
    assert found.presence[0] > 0.99


@pytest.mark.parametrize("wrong", [{"points": [(500, 3)]}, {"box": (0, 0, 129, 5)}, {"mask": np.ones((96, 100), bool)}])
@pytest.mark.parametrize("policies", [{}, {"on_cut": "forget", "on_repeat": "reuse"}])
def test_a_first_prompt_outside_the_frame_drops_only_its_own_track(
    miniature: Samwise, wrong: dict[str, Any], policies: dict[str, Any]
) -> None:
    frames = scene(4)
    plain, session = (miniature.open("the red circle", keep_logits=True, **policies) for _ in range(2))
    for frame in frames[:2]:
        plain.step(frame)
        session.step(frame)
    added = session.add(Prompt("the blue star", **wrong))
    good = session.add("the green square")
    plain.add("the green square")
    with pytest.raises(PromptError, match=rf"frame.*\. Track {added} is dropped\."):
        session.step(frames[2])
    assert list(session.expressions) == [0, good]
    assert session.frame_index == 2
    for frame in frames[2:]:
        found = session.step(frame)
        assert np.array_equal(found.logits, plain.step(frame).logits)  # type: ignore[arg-type]
        assert found.frame_index == plain.frame_index - 1
        assert found.track_ids == (0, good)


def test_the_memory_of_corrections_is_bounded() -> None:
    session = session_of(micro_model(), [CAPTION])
    kept = []
    for frame in scene(14):
        session.step(frame)
        session.correct(0, box=(20, 20, 60, 60))
        kept.append(bytes_kept(session))
    assert len(session._tracks[0].state.memory.conditioning_maps) == 4
    assert kept[-1] == kept[-5]


def test_invalid_corrections_are_refused() -> None:
    session = session_of(micro_model(), [CAPTION])
    with pytest.raises(PromptError, match="before the first frame"):
        session.correct(0, points=[(1, 1)])
    session.step(scene(1)[0])
    with pytest.raises(PromptError, match="outside the frame"):
        session.correct(0, points=[(128, 1)])
    with pytest.raises(PromptError, match="no track 7"):
        session.correct(7, points=[(1, 1)])
    with pytest.raises(PromptError, match="prompt is empty"):
        session.correct(0)
    with pytest.raises(PromptError, match="mask prompt is empty"):
        session.correct(0, mask=np.zeros((96, 128), bool))


def test_a_new_prompt_changes_the_result_and_keeps_the_track_number(miniature: Samwise) -> None:
    clip, _, _, text = two_objects()
    session = miniature.open(text)
    session.step(clip.frames[0])
    session.set_prompt(0, "the red circle")
    assert session.expressions == {0: "the red circle"}
    renamed = session.step(clip.frames[1])
    assert renamed.expressions == ("the red circle",)
    kept = miniature.open(text)
    kept.step(clip.frames[0])
    assert not np.array_equal(renamed.presence, kept.step(clip.frames[1]).presence)
    with pytest.raises(PromptError, match="the new prompt of a track must be a sentence"):
        session.set_prompt(0, Prompt("x", points=[(1, 1)]))


@pytest.mark.parametrize("at_once", [1, 5])
def test_after_a_cut_the_results_are_those_of_a_new_session(at_once: int) -> None:
    model = micro_model(time="online")
    clips = [diagnostic_case("appearance", index).clip.frames[:6] for index in (0, 5)]
    frames = [frame for clip in clips for frame in clip]
    session, ignoring = (session_of(model, [CAPTION], on_cut=policy) for policy in ("forget", "ignore"))
    results = list(session.stream(frames, at_once))
    assert [result.cut for result in results] == [False] * 6 + [True] + [False] * 5
    assert session.counts.cuts == 1
    fresh = list(session_of(model, [CAPTION]).stream(clips[1], at_once))
    assert stack_logits(results[6:]) == pytest.approx(stack_logits(fresh), abs=1e-3)
    assert not np.allclose(stack_logits(list(ignoring.stream(frames, at_once)))[6:], stack_logits(fresh), atol=1e-3)


def test_a_repeated_frame_gets_the_previous_masks_and_is_not_stored() -> None:
    model = micro_model(time="online")
    frames = scene(4)
    doubled = [frames[0], frames[1], frames[1], frames[1], frames[2], frames[3]]
    session = session_of(model, [CAPTION], on_repeat="reuse")
    results = list(session.stream(doubled, 3))
    assert [result.repeated for result in results] == [False, False, True, True, False, False]
    assert [result.frame_index for result in results] == list(range(6))
    assert session.counts.repeats == 2
    once = list(session_of(model, [CAPTION]).stream(frames, 1))
    unique = [results[k] for k in (0, 1, 4, 5)]
    np.testing.assert_allclose(stack_logits(unique), stack_logits(once), atol=1e-3)
    assert np.array_equal(stack_logits(results[1:2]), stack_logits(results[2:3]))


def test_a_repeated_frame_is_segmented_when_a_track_is_new() -> None:
    session = session_of(micro_model(), [CAPTION], on_repeat="reuse")
    frame = scene(1)[0]
    session.step(frame)
    assert session.step(frame).repeated
    session.add(prompt_of(SHORT_CAPTION))
    result = session.step(frame)
    assert result.masks.shape[0] == 2
    assert not result.repeated
    assert session.step(frame).repeated


def test_a_gap_clears_the_windows_of_the_adapters_and_keeps_the_memory() -> None:
    model = micro_model(time="online")
    session = session_of(model, [CAPTION])
    for frame in scene(3):
        session.step(frame)
    windows = session._tracks[0].state.windows
    assert windows.length == 3
    session.mark_gap()
    assert windows.length == 0
    assert session.counts.gaps == 1
    assert session._tracks[0].state.memory.maps


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_cut is 'panic'"):
        micro_model().open(on_cut="panic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_repeat is 'skip'"):
        micro_model().open(on_repeat="skip")  # type: ignore[arg-type]


CONTINUE = """
import sys
import numpy as np
import torch
from refervos import load
from refervos.session.session import Session
path, frames, out, time, threads = sys.argv[1:]
torch.set_num_threads(int(threads))  # the order of summation depends on it
session = Session.restore(path, load("miniature", device="cpu", time=time))
results = [session.step(frame) for frame in np.load(frames)]
np.savez(out, masks=np.stack([a.masks for a in results]), presence=np.stack([a.presence for a in results]),
         index=[a.frame_index for a in results])
"""


@pytest.mark.parametrize("time", MODES)
def test_a_session_restored_in_another_process_gives_identical_masks(time: str, tmp_path: Path) -> None:
    model = load("miniature", device="cpu", time=time)
    clip, _, other, text = two_objects()
    session = model.open([text, "the red circle"], on_cut="forget", on_repeat="reuse")
    for frame in clip.frames[:9]:
        session.step(frame)
    session.correct(1, points=[centre(clip.masks[other, 8])])
    session.save(tmp_path / "session.refervos")
    np.save(tmp_path / "frames.npy", clip.frames[9:16])
    command = [sys.executable, "-c", CONTINUE, "session.refervos", "frames.npy", "out.npz", time]
    command.append(str(torch.get_num_threads()))
    subprocess.run(command, cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npz")
    here = [session.step(frame) for frame in clip.frames[9:16]]
    assert np.array_equal(found["masks"], np.stack([result.masks for result in here]))
    assert np.array_equal(found["presence"], np.stack([result.presence for result in here]))
    assert found["index"].tolist() == list(range(9, 16))


def test_a_restored_session_can_be_undone_and_extended(miniature: Samwise, tmp_path: Path) -> None:
    clip, _, other, text = two_objects()
    session = miniature.open(text, keep_logits=True)
    for frame in clip.frames[:4]:
        session.step(frame)
    session.correct(0, points=[centre(clip.masks[other, 3])])
    session.save(tmp_path / "s")
    again = miniature.restore(tmp_path / "s")
    assert again.expressions == session.expressions
    for one in (session, again):
        one.add("the blue star")
    ours, theirs = session.undo(0), again.undo(0)
    assert ours is not None
    assert theirs is not None
    assert np.array_equal(ours.logits, theirs.logits)  # type: ignore[arg-type]
    assert np.array_equal(session.step(clip.frames[4]).logits, again.step(clip.frames[4]).logits)  # type: ignore[arg-type]


def test_another_model_and_a_truncated_file_are_refused(miniature: Samwise, tmp_path: Path) -> None:
    session = miniature.open("the red circle")
    session.save(tmp_path / "s")
    with pytest.raises(StateError, match="another model"):
        Session.restore(tmp_path / "s", load("miniature", device="cpu", cme_window=7))
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-40])
    with pytest.raises(StateError, match="damaged or incomplete"):
        miniature.restore(tmp_path / "s")


def test_presence_is_calibrated_and_gates_the_mask() -> None:
    frames = scene(3)
    plain = session_of(micro_model(), [CAPTION]).step(frames[0])
    shifted_model = micro_model(presence_scale=0.5, presence_shift=-30.0)
    shifted = session_of(shifted_model, [CAPTION]).step(frames[0])
    logit = np.log(plain.presence / (1 - plain.presence))
    assert logit > 0
    assert plain.masks.any()
    assert torch.sigmoid(torch.tensor(0.5 * logit - 30.0)).numpy() == pytest.approx(shifted.presence, rel=1e-3)
    assert not shifted.masks.any()
