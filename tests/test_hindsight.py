"""Hindsight: the object is decided at the end of a recording and segmented from its first frame on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import refervos
from refervos.cli.entry import app
from refervos.diagnosis.diagnose import diagnose
from refervos.diagnosis.results import read_diagnosis
from refervos.errors import FrameError, OutputError, PromptError, RefervosError, VideoError
from refervos.evaluation.inference import PromptedClip, predict_clip
from refervos.loading import load
from refervos.pipeline import refuse_live
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.segmenter import FramePrediction
from refervos.session import answer_file, hindsight
from refervos.session.answer_file import Answer, AnswerFile
from refervos.session.hindsight import answer_in_hindsight, settle
from refervos.session.tracklets import TrackletSearch
from refervos.video import SourceInfo, open_source
from refervos.worlds.benchmark import diagnostic_case
from scenes import FIRST_GENERATION, Uncorrectable, iou

SIDE, LENGTH = 32, 12
RED, GREEN = 0, 1


def draw_squares(frame: int) -> np.ndarray:
    """Draw a red square that moves right above a green one that moves left, uint8 (SIDE, SIDE, 3)."""
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    image[4:12, frame : frame + 8, RED] = 255
    image[20:28, 24 - frame : 32 - frame, GREEN] = 255
    return image


FRAMES = np.stack([draw_squares(frame) for frame in range(LENGTH)])
MASKS = {colour: FRAMES[..., colour] > 0 for colour in (RED, GREEN)}  # bool (T, SIDE, SIDE) each


@dataclass
class SquareTrack:
    """State of a stand-in's track: its prompt, the frames seen, and the followed colour."""

    prompt: Prompt
    frame: int = 0
    colour: int | None = None


@dataclass
class LateSegmenter(Uncorrectable):
    """Stand-in that understands a sentence late: it shows the other square in the first frames.

    A sentence is a colour and the frame from which on it is understood, such as "green 8"; "nothing" finds nothing.
    Prompted with a mask, it follows the square under the mask.
    """

    clip_length: int = 1
    prompted: list[Prompt] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        return stretch(frame_size, SIDE)

    def check(self, track: SquareTrack, frame_size: tuple[int, int]) -> None:
        assert track.prompt.mask is not None
        assert track.prompt.mask.shape == frame_size

    def begin(self, prompt: Prompt) -> SquareTrack:
        self.prompted.append(prompt)
        return SquareTrack(prompt)

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[SquareTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        for image in pixels > 0:  # (3, S, S)
            rows, scores = zip(*(self._predict(image, track) for track in tracks), strict=True)
            switched = torch.zeros(len(tracks), dtype=torch.bool)
            yield FramePrediction(torch.stack(rows), torch.tensor(scores), switched)

    def _predict(self, image: Tensor, track: SquareTrack) -> tuple[Tensor, float]:
        """Return the logits (S, S) and the score of one track."""
        track.frame += 1
        if track.prompt.mask is not None:
            if track.colour is None:
                mask = torch.from_numpy(np.array(track.prompt.mask))
                track.colour = RED if (image[RED] & mask).any() else GREEN
            return image[track.colour] * 12.0 - 6, 4.0
        if track.prompt.expression == "nothing":
            return torch.full((SIDE, SIDE), -6.0), -4.0
        name, late = str(track.prompt.expression).split()
        meant = RED if name == "red" else GREEN
        understood = track.frame > int(late)
        return image[meant if understood else 1 - meant] * 12.0 - 6, 3.0 if understood else 0.5


class ReadFrames:
    """Read frames like ``FRAMES[start:stop]`` and keep the ranges that were read."""

    def __init__(self, frames: np.ndarray = FRAMES) -> None:
        self.frames, self.ranges = frames, list[tuple[int, int | None]]()

    def __call__(self, start: int, stop: int | None) -> Iterable[np.ndarray]:
        self.ranges.append((start, stop))
        return self.frames[start:stop]


def answers(sentences: Sequence[str], read: Any = None, **options: Any) -> list[Segmentation]:
    """Answer in hindsight by the stand-in."""
    pairs = answer_in_hindsight(read or ReadFrames(), sentences, LateSegmenter().open, **options)
    return [segmentation for _, segmentation in pairs]


def masks_of(results: Sequence[Segmentation], row: int = 0) -> np.ndarray:
    return np.stack([result.masks[row] for result in results])


@pytest.mark.parametrize("clip_length", [None, 1, 5])
def test_an_object_that_is_understood_late_is_right_from_the_first_frame(clip_length: int | None) -> None:
    online = [result.masks[0] for result in LateSegmenter().open("green 7").stream(FRAMES)]
    assert np.array_equal(np.stack(online[:7]), MASKS[RED][:7])
    results = answers(["green 7"], clip_length=clip_length)
    assert np.array_equal(masks_of(results), MASKS[GREEN])
    assert [result.frame_index for result in results] == list(range(LENGTH))
    assert {result.expressions for result in results} == {("green 7",)}
    assert all(result.presence[0] > 0.9 for result in results)


def test_sentences_are_decided_one_by_one() -> None:
    # The last one is understood too late: most of the evidence is for the other square, whose past is kept.
    results = answers(["green 7", "nothing", "red 0", "red 11"])
    assert np.array_equal(masks_of(results, 0), MASKS[GREEN])
    assert not masks_of(results, 1).any()
    assert max(result.presence[1] for result in results) < 0.1
    assert np.array_equal(masks_of(results, 2), MASKS[RED])
    assert np.array_equal(masks_of(results, 3), np.concatenate([MASKS[GREEN][:11], MASKS[RED][11:]]))


def test_two_runs_are_identical() -> None:
    one, other = answers(["green 7", "red 3"]), answers(["green 7", "red 3"])
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.masks, b.masks)
        assert np.array_equal(a.presence, b.presence)


def test_frames_are_read_backwards_in_blocks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ReadFrames()
    whole = answers(["green 7"], read)
    assert read.ranges == [(0, None), (0, LENGTH), (0, None)]
    monkeypatch.setattr(hindsight, "BLOCK_BYTES", 5 * FRAMES[0].nbytes)
    read = ReadFrames()
    in_blocks = answers(["green 7"], read)
    assert read.ranges == [(0, None), (7, 12), (2, 7), (0, 2), (0, None)]
    assert np.array_equal(masks_of(in_blocks), masks_of(whole))


def test_from_the_most_certain_frame_on_the_search_is_kept() -> None:
    class Forgetful(LateSegmenter):
        """Loses the square that it follows after its first frame."""

        def _predict(self, image: Tensor, track: SquareTrack) -> tuple[Tensor, float]:
            logits, score = super()._predict(image, track)
            return (logits, score) if track.prompt.mask is None or track.frame == 1 else (0 * logits - 6, 4.0)

    pairs = answer_in_hindsight(ReadFrames(), ["green 0"], Forgetful().open)
    masks = masks_of([segmentation for _, segmentation in pairs])
    assert np.array_equal(masks[-1], MASKS[GREEN][-1])
    assert not masks[:-1].any()


def test_nothing_is_read_backwards_for_an_object_that_is_never_shown() -> None:
    read = ReadFrames()
    answers(["nothing"], read)
    assert read.ranges == [(0, None), (0, None)]


def test_the_object_is_followed_by_the_sentence_with_the_most_certain_mask() -> None:
    model = LateSegmenter()
    prompt = Prompt("green 7", verbs=())
    list(answer_in_hindsight(ReadFrames(), [prompt], model.open))
    sentence, checked, followed = model.prompted
    assert sentence.equals(prompt)
    assert checked.equals(replace(prompt, mask=np.ones((1, 1), dtype=bool)))
    assert followed.equals(replace(prompt, mask=MASKS[GREEN][-1]))


def test_a_recording_that_changes_between_the_passes_is_refused() -> None:
    class Shrinking(ReadFrames):
        def __call__(self, start: int, stop: int | None) -> Iterable[np.ndarray]:
            self.frames = FRAMES if not self.ranges else FRAMES[:9]
            return super().__call__(start, stop)

    for sentence in ("green 7", "nothing"):
        with pytest.raises(FrameError, match=r"^the recording had 12 frames and now has 9; it must not change"):
            answers([sentence], Shrinking())


def test_prompts_and_recordings_that_cannot_be_decided_are_refused() -> None:
    with pytest.raises(PromptError, match="there is no sentence to segment in hindsight"):
        answers([])
    with pytest.raises(FrameError, match="the recording has no frames"):
        answers(["red 0"], ReadFrames(FRAMES[:0]))
    click = Prompt("red 0", points=[(3, 3)])
    with pytest.raises(PromptError, match="decides which object a sentence means, but a prompt is marked by points; "):
        list(answer_in_hindsight(ReadFrames(), [click], LateSegmenter().open))
    refsam = load("refsam-miniature", device="cpu")
    read = ReadFrames()
    with pytest.raises(PromptError, match="RefSAM takes sentences only and was given mask"):
        list(answer_in_hindsight(read, ["the red square"], refsam.open))
    assert not read.ranges  # refused before the search


# The parts.


def square(left: int, width: int = 8) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[4:12, left : left + width] = True
    return mask


def test_masks_that_overlap_form_a_tracklet_and_the_evidence_decides() -> None:
    search = TrackletSearch()
    assert search.winner() is None
    for frame in range(3):
        search.add(frame, square(frame), 0.5)  # evidence 1.5
    search.add(3, square(20), 0.8)
    search.add(4, square(21), 0.8)  # evidence 1.6
    winner = search.winner()
    assert winner is not None
    assert (winner.frame, winner.presence, round(winner.evidence, 6)) == (4, 0.8, 1.6)
    assert np.array_equal(winner.mask, square(21))
    for frame in range(5, 8):  # gone, and then the first object again
        search.add(frame, np.zeros((SIDE, SIDE), dtype=bool), 0.0)
    search.add(8, square(0), 0.9)
    assert search.winner() is winner


def test_a_frame_of_another_size_begins_a_tracklet() -> None:
    search = TrackletSearch()
    search.add(0, np.ones((4, 4), dtype=bool), 0.6)
    search.add(1, np.ones((6, 4), dtype=bool), 0.5)
    winner = search.winner()
    assert winner is not None
    assert (winner.frame, winner.evidence) == (0, 0.6)


def test_the_pass_whose_mask_fits_the_chosen_one_is_kept() -> None:
    nothing, share = np.zeros((SIDE, SIDE), dtype=bool), float(square(0).mean())
    good, wider, narrower, elsewhere = square(0), square(0, 16), square(0, 5), square(20)
    for searched, followed, presence, expected in (
        (wider, good, 0.9, good),  # the search showed two candidates
        (good, narrower, 0.5, good),  # only a part was followed
        (elsewhere, good, 0.99, good),  # the search showed another object
        (nothing, good, 0.1, good),
        (nothing, good, 0.04, nothing),  # the search is certain that it is absent
        (good, nothing, 0.95, nothing),  # followed out of the frame
        (nothing, nothing, 0.1, nothing),
    ):
        settled = settle(Answer(searched, presence), Answer(followed, 0.7), share)
        assert np.array_equal(settled.mask, expected)


def test_answers_of_any_size_survive_the_file() -> None:
    rng = np.random.default_rng(0)
    with AnswerFile() as file:
        stored = {
            (frame, row): Answer(rng.random((frame + 1, 2 * row + 3)) > 0.5, row / 4)
            for frame in range(5)
            for row in range(3)
        }
        for place, answer in stored.items():
            file.write(*place, answer)
        file.write(2, 1, stored[4, 2])  # in place of an earlier one
        stored[2, 1] = stored[4, 2]
        for place, answer in stored.items():
            read = file.read(*place)
            assert np.array_equal(read.mask, answer.mask)
            assert read.presence == answer.presence
        with pytest.raises(KeyError):
            file.read(5, 0)


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile:
        def seek(self, offset: int) -> int:
            return offset

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(answer_file.tempfile, "TemporaryFile", lambda **_: FullFile())
    with pytest.raises(OutputError, match=r"^masks cannot be kept in '.+' \(No space left on device\); free some"):
        answers(["red 0"])


# A trained model on a drawn clip.

CASE = ("motion", 42)
"""Split and index of a clip in which that model finds the target only after some frames."""


def test_a_trained_model_is_right_from_the_first_frame() -> None:
    case = diagnostic_case(*CASE)
    target = case.clip.target_masks(case.expression)
    model = load(FIRST_GENERATION, device="cpu")
    clip = PromptedClip(case.clip.frames, Prompt(case.expression.text))
    online, decided = (predict_clip(model, clip, 1, hindsight=late).masks for late in (False, True))
    assert iou(target[0], online[0]) < 0.1
    assert np.mean([iou(*pair) for pair in zip(target[:5], online[:5], strict=True)]) < 0.4
    assert iou(target[-1], online[-1]) > 0.85
    assert min(iou(*pair) for pair in zip(target, decided, strict=True)) > 0.85
    pairs = refervos.segment_in_hindsight(model, case.clip.frames, case.expression.text)
    assert np.array_equal(masks_of([segmentation for _, segmentation in pairs]), decided)


def test_diagnose_measures_hindsight(tmp_path: Path) -> None:
    arguments = ("diagnose", "--split", "late entry", "--count", 1, "--online", *ON_CPU)
    done = run(*arguments, "--hindsight", "--out", tmp_path / "decided.json")
    assert done.exit_code == 0, done.output
    assert "miniature in hindsight, online" in done.output
    model = load("miniature", device="cpu")
    (decided,) = diagnose(model, ["late entry"], 1, mode="online", hindsight=True).cases
    (online,) = diagnose(model, ["late entry"], 1, mode="online").cases
    assert replace(read_diagnosis(tmp_path / "decided.json").cases[0], seconds=0.0) == replace(decided, seconds=0.0)
    assert decided.j != online.j


# Command line and files.

SHAPES = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"
ON_CPU = ("--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_segment_decides_at_the_end_of_the_selected_part(tmp_path: Path) -> None:
    options = ("--start", 4, "--frames", 6, "--hindsight", "--save", "rle", "--save", "binary", *ON_CPU)
    done = run("segment", SHAPES, "the red circle", "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert "6 frames" in done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "masks.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(4, 10))
    assert len(list((tmp_path / "out" / "binary").rglob("*.png"))) == 6
    assert not list((tmp_path / "out").glob("*.session"))


def test_segment_refuses_what_hindsight_cannot_do(tmp_path: Path) -> None:
    for extra, sentence in (
        (("--session", tmp_path / "s"), "--hindsight decides at the end of a recording"),
        (("--resume",), "--hindsight decides at the end of a recording"),
        (("--point", "3,4"), "hindsight decides which object a sentence means, but a prompt is marked by points"),
        (("--model", "refsam-miniature"), "RefSAM takes sentences only"),
    ):
        done = run("segment", SHAPES, "the red circle", "--hindsight", "--out", tmp_path / "out", *extra, *ON_CPU)
        assert isinstance(done.exception, (RefervosError, SystemExit))
        assert sentence in str(done.exception) + done.output
    assert not list(tmp_path.rglob("*.jsonl"))


def test_live_sources_and_iterators_are_refused() -> None:
    model = LateSegmenter()
    with pytest.raises(VideoError, match=r"^'camera' is live and can be read only once, but hindsight reads"):
        refuse_live(SourceInfo("camera", live=True))
    with pytest.raises(VideoError, match="the frames come from an iterator, which can be read only once"):
        refervos.segment_in_hindsight(model, iter(FRAMES), "red 0")


def test_files_folders_lists_and_arrays_can_be_read_twice(tmp_path: Path) -> None:
    from PIL import Image

    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    for recording in (FRAMES, list(FRAMES), tmp_path):
        pairs = list(refervos.segment_in_hindsight(LateSegmenter(), recording, ["green 5"], start=2, limit=9))
        assert [frame.index for frame, _ in pairs] == list(range(2, 11))
        assert np.array_equal(masks_of([result for _, result in pairs]), MASKS[GREEN][2:11])
    first = next(iter(open_source(SHAPES)))
    decided = refervos.segment_in_hindsight(load("miniature", device="cpu"), SHAPES, "the red circle", limit=2)
    assert np.array_equal(next(decided)[0].image, first.image)


def test_eval_in_hindsight_has_its_own_results(tmp_path: Path) -> None:
    arguments = (
        "eval",
        "miniature",
        "worlds",
        "--split",
        "motion",
        "--count",
        1,
        "--online",
        "--out",
        tmp_path / "out",
    )
    decided = run(*arguments, "--hindsight", *ON_CPU)
    assert decided.exit_code == 0, decided.output
    assert "miniature on worlds motion, online, in hindsight" in decided.output
    assert "hindsight" in str(run(*arguments, *ON_CPU).exception)
    assert "--online --hindsight" in (tmp_path / "out" / "settings.json").read_text()
