"""Diagnosis: scores of known predictions, batches against sessions, controls, intervals, tables and sheets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import refervos
from predicted import KnownSegmenter
from refervos.cli import diagnose as command
from refervos.diagnosis.ablation import ablation_table, check_same_cases, target_difference
from refervos.diagnosis.contact_sheets import Extremes, draw_sheet
from refervos.diagnosis.controls import (
    RULES,
    WRONG_SENTENCE,
    best_rule,
    centroids,
    chosen_object,
    run_controls,
    single_objects,
)
from refervos.diagnosis.diagnose import ScoredCase, batch_by_shape, check_splits, diagnose
from refervos.diagnosis.results import CaseResult, Diagnosis, read_diagnosis, scores_of_clip
from refervos.diagnosis.tables import diagnosis_table, markdown_table
from refervos.errors import ConfigError, EvaluationError, PromptError, RefervosError
from refervos.evaluation.bootstrap import mean_interval, paired_difference
from refervos.evaluation.contact_sheets import TINT, draw_frame
from refervos.evaluation.inference import (
    PromptedClip,
    clip_length_of,
    predict_batch,
    predict_clip,
    predict_clips,
    supports_batches,
)
from refervos.export.onnx_model import OnnxSamwise
from refervos.metrics import boundary_accuracy, region_similarity
from refervos.placement import Placement, as_rgb
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer
from refervos.worlds.benchmark import ALL_SPLITS, DiagnosticCase
from scenes import MICRO, MICRO_SAM2, micro_model, scene

SIDE, LENGTH = 32, 10


# Simple clips.


@dataclass(frozen=True)
class Expression:
    text: str
    targets: tuple[int, ...]
    family: str = "colour"
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray
    masks: np.ndarray

    def target_masks(self, expression: Expression) -> np.ndarray:
        return np.asarray(self.masks[list(expression.targets)].any(axis=0))


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def make_case(
    split: str, index: int, masks: np.ndarray, targets: tuple[int, ...], other: int | None = None
) -> DiagnosticCase:
    clip: Any = Clip(np.full((*masks.shape[1:], 3), 90, np.uint8), masks)
    expression: Any = Expression(f"{split} {index}", targets)
    wrong: Any = None if other is None else Expression(f"{split} {index} other", (other,))
    return DiagnosticCase(split=split, index=index, clip=clip, expression=expression, other=wrong)


def two_objects(late: int = 0) -> np.ndarray:
    """Return masks of a square that moves right from frame ``late`` on, 8 x 8, and of a still rectangle, 12 x 6."""
    masks = np.zeros((2, LENGTH, SIDE, SIDE), dtype=bool)
    for time in range(LENGTH):
        masks[0, time] = rectangle(2, 2 + 2 * time, 8, 8) if time >= late else False
        masks[1, time] = rectangle(18, 10, 12, 6)
    return masks


def simple_cases(split: str, count: int | None = None) -> Iterator[DiagnosticCase]:
    for index in range(count or 3):
        if split == "no-target":
            yield make_case(split, index, two_objects(), (), other=1)
        else:
            yield make_case(split, index, two_objects(late=4 * (split == "late entry")), (0,), other=1)


SPLITS = ("appearance", "late entry", "no-target")


def known_masks(masks: dict[str, np.ndarray] | None = None) -> KnownSegmenter:
    """Return a segmenter with these masks bool (T, SIDE, SIDE) by sentence, and empty ones for other sentences."""
    logits = {sentence: 2.0 * mask - 1 for sentence, mask in (masks or {}).items()}
    return KnownSegmenter(logits, default=-np.ones((LENGTH, SIDE, SIDE)))


def perfect() -> KnownSegmenter:
    cases = [case for split in SPLITS for case in simple_cases(split, 10)]
    masks = {case.expression.text: case.clip.target_masks(case.expression) for case in cases}
    return known_masks(masks | {c.other.text: c.clip.target_masks(c.other) for c in cases if c.other is not None})


def diagnose_simple_cases(model: KnownSegmenter, **options: Any) -> Diagnosis:
    return diagnose(model, SPLITS, draw=simple_cases, **options)


def result_of(split: str, index: int, quality: float) -> CaseResult:
    """Return a result with this J and F."""
    return CaseResult(
        split=split,
        index=index,
        text=f"sentence {index}",
        family="colour",
        frames=LENGTH,
        has_target=True,
        j=quality,
        f=quality,
        empty=False,
        visible=LENGTH,
        missed=0,
        false_alarms=0,
    )


# Scores.


def test_perfect_predictions_score_100_everywhere() -> None:
    reported: list[ScoredCase] = []
    found = diagnose_simple_cases(perfect(), progress=reported.append)
    assert found.splits == SPLITS
    assert [len(found.of_split(split)) for split in SPLITS] == [3, 3, 3]
    for split in SPLITS:
        summary = found.summary(split)
        assert (summary.count, summary.j, summary.f, summary.j_and_f) == (3, 100, 100, 100)
    assert (found.target_mean, found.target_case_mean, found.n_acc, found.t_acc, found.final) == (100,) * 5
    assert found.summary("late entry").missed == 0
    assert found.summary("late entry").false_alarms == 0
    assert found.summary("no-target").missed is None  # the target never shows
    assert found.frames_per_second is not None
    assert found.frames_per_second > 0
    assert [scored.result for scored in reported] == list(found.cases)
    assert found.cases[0].switches == LENGTH
    assert (found.model, found.clip_length) == ("known", 4)


def test_empty_predictions_score_only_where_the_target_is_absent() -> None:
    found = diagnose_simple_cases(known_masks())
    assert (found.n_acc, found.t_acc) == (100, 0)
    assert (found.summary("appearance").j, found.summary("no-target").j) == (0, 100)
    late = found.summary("late entry")
    assert late.j == pytest.approx(40)  # four of ten frames do not show it
    assert late.f == pytest.approx(40)
    assert (late.missed, late.false_alarms) == (100, 0)
    assert found.target_mean == pytest.approx(20)
    assert found.final == pytest.approx((20 + 100 + 0) / 3)
    assert all(case.empty for case in found.cases)


def test_scores_are_means_over_frames() -> None:
    ground_truth = np.stack(
        [rectangle(4, 4, 8, 8), rectangle(4, 4, 8, 8), rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)]
    )
    predicted = np.stack([rectangle(4, 8, 8, 8), rectangle(4, 4, 8, 8), rectangle(0, 0, 2, 2), rectangle(0, 0, 0, 0)])
    found = diagnose(
        known_masks({"spatial 0": predicted}),
        ("spatial",),
        draw=lambda split, count: [make_case(split, 0, ground_truth[None], (0,))],
    )
    case = found.cases[0]
    assert case.j == pytest.approx((32 / 96 + 1 + 0 + 1) / 4)
    by_frame = [boundary_accuracy(one, other) for one, other in zip(ground_truth, predicted, strict=True)]
    assert case.f == pytest.approx(np.mean(by_frame))
    assert (by_frame[1:], 0 < by_frame[0] < 1) == ([1.0, 0.0, 1.0], True)
    assert (case.visible, case.missed, case.false_alarms, case.empty) == (2, 0, 1, False)


def test_clip_scores_are_means_of_the_frame_metrics() -> None:
    generator = np.random.default_rng(0)
    ground_truth, predicted = np.zeros((2, 40, 37, 53), dtype=bool)
    for time in range(40):
        for masks in (ground_truth, predicted):
            top, left = (
                generator.integers(-6, 37),
                generator.integers(-6, 53),
            )  # some touch the border or leave the frame
            height, width = generator.integers(1, 20, size=2)
            masks[time, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
    ground_truth[:2], predicted[1:3] = True, True
    j, f = scores_of_clip(ground_truth, predicted)
    frames = list(zip(ground_truth, predicted, strict=True))
    assert j == pytest.approx(np.mean([region_similarity(*frame) for frame in frames]), abs=1e-12)
    assert f == pytest.approx(np.mean([boundary_accuracy(*frame) for frame in frames]), abs=1e-12)


def test_the_headline_weights_splits_equally_and_not_cases() -> None:
    cases = [result_of("long", 0, 1.0), *(result_of("motion", index, 0.5) for index in range(3))]
    found = Diagnosis("a model", 8, tuple(cases))
    assert found.target_mean == pytest.approx(75)
    assert found.target_case_mean == pytest.approx(62.5)
    assert found.n_acc is None
    assert found.final is None


# Running a model.


def reading_model(**changes: Any) -> Samwise:
    """Return the micro model with the miniature's tokenizer."""
    tokenizer = Tokenizer.from_pretrained(Path(refervos.__file__).parent / "assets" / "miniature")
    model = micro_model(text=replace(MICRO.text, vocabulary=len(tokenizer)), **changes)
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("clip_length", [4, 1])
def test_a_batch_predicts_the_masks_of_sessions(clip_length: int) -> None:
    model = reading_model(cme_window=2)
    sentences = ["the red circle", "the blue square that is moving to the left", "the star"]
    clips = [PromptedClip(np.stack(scene(10, seed=seed)), Prompt(text)) for seed, text in enumerate(sentences)]
    batch = predict_batch(model, clips, clip_length)
    alone = [predict_clip(model, clip, clip_length) for clip in clips]
    for one, other in zip(batch, alone, strict=True):
        assert one.masks.shape == (10, 96, 128)
        assert 0.01 < one.masks.mean() < 0.99
        assert (one.masks != other.masks).mean() < 1e-4  # logits within rounding of zero
        assert one.switches == other.switches
    assert sum(prediction.switches for prediction in batch) > 0
    assert (batch[0].masks != batch[1].masks).mean() > 0.01


def placed_clips(count: int) -> tuple[list[PromptedClip], Tensor, Placement]:
    """Return clips of four frames with prompts, their pixels in the model's square (N, 4, 3, S, S) and placement."""
    sentences = ["the red circle", "the blue square that is moving to the left", "the star"]
    clips = [np.stack(scene(4, seed=seed)) for seed in range(count)]
    place = micro_model().placement((96, 128))
    pixels = torch.stack([torch.stack([place.place(as_rgb(frame)) for frame in clip]) for clip in clips])
    return [PromptedClip(clip, Prompt(text)) for clip, text in zip(clips, sentences, strict=False)], pixels, place


@pytest.mark.parametrize("changes", [{}, {"time": "online"}])
def test_tracks_of_a_batch_continue_as_if_alone(changes: dict[str, Any]) -> None:
    model = reading_model(**changes).double()  # where the order of summation does not matter
    clips, pixels, place = placed_clips(3)
    pixels = pixels.double()
    batched, alone = ([model.begin(clip.prompt) for clip in clips] for _ in range(2))
    # One is older than the others, so that its window online is longer; a budget of 1 fits one track at a time.
    for track in (batched[1], alone[1]):
        list(model.segment_clip(pixels[1, :2], [track], [place] * 2))
    for budget in (2**30, 1):
        model.memory_budget = budget
        predictions = list(model.segment_clips(pixels, batched))
        for row, track in enumerate(alone):
            own = model.segment_clip(pixels[row], [track], [place] * 4)
            for found, expected in zip(predictions, own, strict=True):
                torch.testing.assert_close(found.mask_logits[row], expected.mask_logits[0], atol=1e-8, rtol=0)
        assert [track.frame for track in batched] == [track.frame for track in alone]
    for track, other in zip(batched, alone, strict=True):
        assert track.last is not None
        assert other.last is not None
        assert torch.equal(track.last.pixels, other.last.pixels)  # a correction uses the track's own frame
        torch.testing.assert_close(track.last.mask_logits, other.last.mask_logits, atol=1e-8, rtol=0)


def test_models_that_mix_sentences_or_take_clicks_support_no_batches() -> None:
    assert supports_batches(reading_model())
    assert not supports_batches(reading_model(protocol="published"))
    assert not supports_batches(Sam2Segmenter(Sam2Tracker(MICRO_SAM2)))
    assert not supports_batches(known_masks())
    assert not hasattr(OnnxSamwise, "segment_clips")  # its graphs take one video


def test_clips_with_clicks_are_segmented_one_by_one() -> None:
    model = reading_model()
    clips, pixels, _ = placed_clips(2)
    clicked = [replace(one, prompt=replace(one.prompt, points=[(40.0, 40.0)], labels=[1])) for one in clips]
    predictions = predict_clips(model, clicked, clip_length=4)
    for found, clip in zip(predictions, clicked, strict=True):
        assert np.array_equal(found.masks, predict_clip(model, clip, clip_length=4).masks)
    with pytest.raises(PromptError, match="batches of clips take sentences only"):
        model.segment_clips(pixels, [model.begin(clip.prompt) for clip in clicked])


def test_results_do_not_depend_on_the_batch_size() -> None:
    def draw(split: str, count: int | None) -> Iterator[DiagnosticCase]:
        for index, case in enumerate(simple_cases(split, 3)):
            short = make_case(split, index, case.clip.masks[:, :6], (0,)) if index == 1 else case  # another shape
            short.clip.frames[:, ::2] = 200
            yield short

    model = reading_model()
    one, other = (diagnose(model, ("motion",), batch=batch, draw=draw) for batch in (1, 3))
    assert [case.index for case in other.cases] == [0, 1, 2]
    assert [case.frames for case in other.cases] == [10, 6, 10]
    for a, b in zip(one.cases, other.cases, strict=True):
        assert (a.text, a.empty, a.switches) == (b.text, b.empty, b.switches)
        assert a.j_and_f == pytest.approx(b.j_and_f, abs=0.01)


def test_cases_are_grouped_by_shape() -> None:
    shapes = [10, 6, 10, 10, 6, 10]
    cases = [make_case("long", index, two_objects()[:, :length], (0,)) for index, length in enumerate(shapes)]
    groups = [[case.index for case in group] for group in batch_by_shape(cases, 3)]
    assert groups == [[0, 2, 3], [1, 4], [5]]


def test_modes_give_clip_lengths() -> None:
    assert [clip_length_of(known_masks(), mode) for mode in ("clips", "online", 6)] == [4, 1, 6]
    with pytest.raises(ConfigError, match="mode is 'fast'"):
        clip_length_of(known_masks(), "fast")  # type: ignore[arg-type]
    assert diagnose_simple_cases(perfect(), mode="online").target_mean == 100


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no split 'colour'; the splits are appearance, spatial"):
        check_splits(["colour"])
    with pytest.raises(ConfigError, match="no split to diagnose on"):
        check_splits([])
    assert check_splits(["motion", "long", "motion"]) == ("motion", "long")
    with pytest.raises(ConfigError, match="batch is 0"):
        diagnose_simple_cases(known_masks(), batch=0)
    with pytest.raises(ConfigError, match="training mode"):
        diagnose(reading_model().train(), ("motion",), draw=simple_cases)


# Controls.


def test_the_wrong_sentence_is_scored_against_the_original_target() -> None:
    found = diagnose_simple_cases(perfect(), prompt_with="other")
    assert {case.split for case in found.cases} == {"appearance", "late entry"}  # the other split has no targets
    assert found.cases[0].text == "appearance 0 other"
    assert found.summary("appearance").j == 0
    assert found.t_acc == 100


def test_each_rule_chooses_the_object_of_its_criterion() -> None:
    masks = np.zeros((4, LENGTH, SIDE, SIDE), dtype=bool)
    for time in range(LENGTH):
        masks[1, time] = rectangle(2, time, 4, 4)  # moves
        masks[2, time] = rectangle(13, 13, 6, 6) if time < 8 else False  # central, but leaves
        masks[3, time] = rectangle(20, 20, 12, 12) if time % 2 else False  # large, but visible in every other frame
    chosen = {name: chosen_object(masks, criterion) for name, criterion in RULES.items()}
    assert chosen == {  # the first object is never visible, so no rule chooses it
        "largest": 3,
        "most central": 2,
        "first drawn": 1,
        "moves most": 1,
        "stays longest visible": 1,
    }
    assert chosen_object(masks[:1], RULES["largest"]) is None
    centres = centroids(masks)
    assert np.isnan(centres[0]).all()
    assert centres[1, 3].tolist() == [3.5, 4.5]
    assert np.isnan(centres[3, 0]).all()


def test_single_objects_are_scored_against_the_target() -> None:
    masks = two_objects()
    results = single_objects(make_case("motion", 0, masks, (0,), other=1))
    assert {name: result.j for name, result in results.items()} == {
        "largest": 0,  # 72 pixels against 64
        "most central": 0,
        "first drawn": 1,
        "moves most": 1,
        "stays longest visible": 1,  # both are always visible: the first
    }
    both = single_objects(make_case("multi-target", 0, masks, (0, 1)))
    assert both["largest"].j == pytest.approx(72 / 136)
    assert both["first drawn"].j == pytest.approx(64 / 136)


def test_controls_appear_beside_the_model_in_the_table() -> None:
    controls = run_controls(perfect(), SPLITS, draw=simple_cases)
    assert set(controls) == {WRONG_SENTENCE, *RULES}
    assert all(case.has_target for cases in controls.values() for case in cases)
    assert best_rule(controls, "appearance") == ("first drawn", 100)
    assert best_rule(controls) == ("first drawn", 100)
    assert best_rule(controls, "no-target") is None
    table = diagnosis_table(replace(diagnose_simple_cases(perfect()), controls=controls))
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:6]]
    assert header[-2:] == ["wrong sentence", "best single object"]
    assert rows[0] == [
        "appearance",
        "3",
        "100.0",
        "100.0",
        "100.0",
        "100.0 to 100.0",
        "0.0",
        "-",
        "0.0",
        "100.0 (first drawn)",
    ]
    assert rows[2][-2:] == ["-", "-"]
    assert rows[3][0] == "target splits"
    assert "- N-acc: 100.0" in table


# Intervals.


def test_intervals_cover_the_expected_difference_as_often_as_their_level() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        easy = generator.normal(0, 3, size=60)  # shared by both: how easy a clip is
        a, b = easy + generator.normal(1.0, 1, size=60), easy + generator.normal(0.5, 1, size=60)
        found = paired_difference(a, b, resamples=500, seed=trial)
        assert found.low <= found.mean <= found.high
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_paired_intervals_are_narrow_and_change_sign_with_the_order() -> None:
    generator = np.random.default_rng(2)
    easy = generator.normal(50, 20, size=60)
    a, b = easy + 3 + generator.normal(0, 1, size=60), easy
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(np.mean(a - b))
    assert found.low > 2
    assert found.excludes_zero
    assert paired_difference(b, a).high == pytest.approx(-found.low, abs=0.02)
    unpaired = mean_interval(a)
    assert found.high - found.low < 0.2 * (unpaired.high - unpaired.low)
    assert not paired_difference(a, a).excludes_zero
    assert paired_difference(a, b) == found  # same seed


def test_an_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = mean_interval(values)
    expected = 2 * 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(expected, rel=0.05)
    assert mean_interval(values, level=0.5).high < found.high


def test_strata_are_weighted_equally() -> None:
    found = mean_interval([0, 0, 0, 0, 1], ["a", "a", "a", "a", "b"])
    assert found == (0.5, 0.5, 0.5)  # clips are resampled within their stratum, where these are constant


def test_values_without_a_partner_are_refused() -> None:
    with pytest.raises(EvaluationError, match="2 clips on one side and 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(EvaluationError, match="give one number per clip, and at least one"):
        mean_interval([])
    with pytest.raises(EvaluationError, match="2 values and 1 group"):
        mean_interval([1, 2], ["a"])


# Files and tables.


def test_a_saved_diagnosis_is_read_back_unchanged(tmp_path: Path) -> None:
    found = replace(diagnose_simple_cases(known_masks()), controls=run_controls(perfect(), SPLITS, draw=simple_cases))
    found.save(tmp_path / "new" / "found.json")
    assert read_diagnosis(tmp_path / "new" / "found.json") == found
    summary = json.loads((tmp_path / "new" / "found.json").read_text())["summary"]
    assert summary["target_mean"] == found.target_mean
    assert summary["splits"]["appearance"]["count"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no valid 'format'"),
        ('{"format": 1, "model": "m", "clip_length": 8, "cases": 3, "controls": {}}', "no valid 'cases'"),
        ('{"format": 1, "model": "m", "clip_length": 8, "cases": [3], "controls": {}}', "not a list of mappings"),
        ('{"format": 1, "model": "m", "clip_length": 8, "cases": [{"j": 1.0}], "controls": {}}', "case 0: .* missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=f"broken.json.*{message}"):
        read_diagnosis(path)


def test_values_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    values = diagnose_simple_cases(known_masks()).to_json()
    values["cases"][0]["j"] = "high"
    with pytest.raises(EvaluationError, match="j is 'high' where float is expected"):
        Diagnosis.from_json(values)
    with pytest.raises(EvaluationError, match=r"none\.json cannot be read"):
        read_diagnosis(tmp_path / "none.json")


def test_an_ablation_shows_scores_and_differences_with_intervals(tmp_path: Path) -> None:
    reference, variant = (diagnose_simple_cases(model, count=10) for model in (perfect(), known_masks()))
    variant.save(tmp_path / "variant.json")
    table = ablation_table({"nothing": tmp_path / "variant.json", "whole": reference}, "whole")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == ["variant", "appearance", "late entry", "no-target", "target splits", "N-acc", "T-acc"]
    assert lines[2] == ["whole", "100.0", "100.0", "100.0", "100.0", "100.0", "100.0"]
    assert lines[3] == ["nothing", "0.0", "40.0", "100.0", "20.0", "100.0", "0.0"]
    assert lines[5][0] == "minus whole"
    assert lines[7][1:] == [
        "**-100.0 [-100.0, -100.0]**",
        "**-60.0 [-60.0, -60.0]**",
        "+0.0 [+0.0, +0.0]",
        "**-80.0 [-80.0, -80.0]**",
        "+0.0 [+0.0, +0.0]",
    ]
    few = {
        name: diagnose_simple_cases(model, count=9)
        for name, model in (("whole", perfect()), ("nothing", known_masks()))
    }
    assert "**" not in ablation_table(few, "whole")  # too few clips to be sure
    difference = target_difference(variant, reference)
    assert difference is not None
    assert difference.mean == pytest.approx(-80)
    with pytest.raises(EvaluationError, match="no variant 'other'; the variants are whole"):
        ablation_table({"whole": reference}, "other")
    assert ablation_table({"whole": reference}, "whole").count("\n") == 2


def test_diagnoses_of_different_cases_are_not_compared() -> None:
    whole = diagnose_simple_cases(perfect())
    check_same_cases(whole, diagnose_simple_cases(known_masks(), mode="online"))
    with pytest.raises(
        EvaluationError, match=r"whole and short .*one has late entry 2 .*, where the other has no-target 0"
    ):
        ablation_table({"whole": whole, "short": replace(whole, cases=whole.cases[:5] + whole.cases[6:])}, "whole")
    with pytest.raises(EvaluationError, match="where the other has nothing"):
        check_same_cases(whole, replace(whole, cases=whole.cases[:-1]))
    renamed = (replace(whole.cases[0], text="another sentence"), *whole.cases[1:])
    with pytest.raises(EvaluationError, match="'another sentence'"):
        check_same_cases(whole, replace(whole, cases=renamed))


def test_tables_are_aligned() -> None:
    assert markdown_table(["split", "J"], [["a", "100.0"], ["longer", "1.0"]]).splitlines() == [
        "| split  |     J |",
        "| :----- | ----: |",
        "| a      | 100.0 |",
        "| longer |   1.0 |",
    ]
    assert markdown_table(["", "n"], [["a", "1"]]).splitlines() == ["|    |  n |", "| :- | -: |", "| a  |  1 |"]


# Contact sheets.


def scored(index: int, quality: float) -> ScoredCase:
    case = make_case("spatial", index, two_objects(), (0,))
    return ScoredCase(case, case.clip.masks[1], result_of("spatial", index, quality))


def test_the_lowest_and_highest_scores_are_kept(tmp_path: Path) -> None:
    extremes = Extremes(2)
    for index, quality in enumerate([0.5, 0.1, 0.9, 0.4, 0.7, 0.2]):
        extremes.add(scored(index, quality))
    assert [(rank, kept.result.index) for rank, kept in extremes.ranked()] == [
        ("worst 1", 1),
        ("worst 2", 5),
        ("best 1", 2),
        ("best 2", 4),
    ]
    paths = extremes.write(tmp_path / "sheets")
    assert [path.name for path in paths][::3] == ["spatial-worst-1.png", "spatial-best-2.png"]
    with Image.open(paths[0]) as image:
        assert image.width > 3 * 8 * SIDE  # frames 0, 4 and 8
    few = Extremes(2)
    few.add(scored(0, 0.5))
    assert [rank for rank, _ in few.ranked()] == ["worst 1"]
    with pytest.raises(EvaluationError, match="cannot be written"):
        extremes.write(paths[0])


def test_a_drawn_frame_shows_ground_truth_and_prediction() -> None:
    frame = np.full((64, 64, 3), 100, np.uint8)
    ground_truth, predicted = np.zeros((2, 64, 64), dtype=bool)
    ground_truth[10:20, 10:20], predicted[15:40, 15:40] = True, True
    image = draw_frame(frame, ground_truth, predicted)
    assert image.shape == (256, 256, 3)
    assert image[40, 60].tolist() == [255, 255, 255]  # top edge of the ground truth
    assert image[50, 50].tolist() == [100, 100, 100]  # inside the ground truth only
    assert image[120, 124].tolist() == [round(0.6 * 100 + 0.4 * part) for part in TINT]
    assert image[120, 120].tolist() == image[121, 119].tolist() == list(TINT)  # a line of the hatching
    assert image[159, 124].tolist() == list(TINT)  # the prediction's bottom edge
    assert image[10, 10].tolist() == [100, 100, 100]


def test_frames_of_long_clips_wrap_into_rows() -> None:
    sheet = draw_sheet(scored(0, 0.5), "worst 1", every=1, columns=4)
    assert sheet.width < 5 * 8 * SIDE
    assert sheet.height > 3 * 8 * SIDE


# The command.


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command.diagnose)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_diagnoses_the_miniature(tmp_path: Path) -> None:
    out, sheets = tmp_path / "found.json", tmp_path / "sheets"
    options = ["--split", "appearance", "--split", "no-target", "--count", 2, "--controls", "--set", "cme=true"]
    found = run("miniature", *options, "--out", out, "--sheet", sheets, "--sheet-count", 1, "--quiet")
    assert found.exit_code == 0, found.output
    assert "| appearance " in found.output
    assert "best single object" in found.output
    read = read_diagnosis(out)
    assert read.model == "miniature cme=true"
    assert [(case.split, case.index) for case in read.cases] == [
        ("appearance", 0), ("appearance", 1), ("no-target", 0), ("no-target", 1)
    ]  # fmt: skip
    assert set(read.controls) == {WRONG_SENTENCE, *RULES}
    assert len(list(sheets.glob("*.png"))) == 4
    assert "exists" in str(run("miniature", "--out", out).exception)
    other = tmp_path / "other.json"
    replace(read, cases=tuple(replace(case, j=1.0) for case in read.cases)).save(other)
    compared = run("--compare", out, other)
    assert compared.exit_code == 0
    assert compared.output.startswith("| variant")
    assert "| other " in compared.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "colour"], f"there is no split 'colour'; the splits are {', '.join(ALL_SPLITS)}."),
        (["--set", "cme"], "is not a setting; give name=value"),
        (["--set", "device=cuda"], "is not a field of the configuration"),
        (["--set", "size=3"], "unknown field size; known fields are adapter_heads"),
        (["--set", "cme=maybe"], "cme is 'maybe' where bool is expected"),
        (["--online", "--clip", "4"], "give only one of them"),
        (["one", "two"], "there are 2 models"),
        (["nowhere"], "nowhere does not exist"),
        (["--compare", "one.json"], "at least two result files"),
        (["--compare", "one.json", "one.json"], "the same file twice"),
        (["--compare", "one.json", "two.json"], "one.json cannot be read"),
    ],
)
def test_invalid_command_lines_raise_an_error_that_says_why(arguments: list[str], message: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, RefervosError), error
    assert message in str(error)


def test_settings_are_parsed_as_json_if_possible() -> None:
    texts = ["cme=false", "cme_window=8", "protocol=published", "hsa_patches=[4,4,2]"]
    assert command.parse_settings(texts) == {
        "cme": False,
        "cme_window": 8,
        "protocol": "published",
        "hsa_patches": [4, 4, 2],
    }
