"""Scores of known masks in every benchmark's layout: reported measures, and the cost of missing masks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

import layouts
from layouts_images import write_grefcoco, write_json_lines, write_refcoco
from predicted import everything, lines, means, nothing, perfect, scored, write_masks
from refervos.data.sample import Sample
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.bootstrap import interval_around, mean_interval, resampled_ratios
from refervos.evaluation.datasets import Part
from refervos.evaluation.expression_scores import PRECISION_THRESHOLDS, ExpressionResult, Scores
from refervos.evaluation.measures import measure, summary_measures
from refervos.evaluation.predictions import Predictions, read_mask
from refervos.evaluation.scoring import score
from refervos.evaluation.summary import summarise
from refervos.metrics import boundary_accuracy, region_similarity
from refervos.metrics.longvideo import temporal_iou, video_iou
from refervos.metrics.revos import robustness

WRITERS: dict[str, Callable[[Path], object]] = {
    **layouts.WRITERS,
    "ref-youtube-vos": lambda folder: layouts.write_ref_youtube_vos(folder, "train"),
    "refcoco": lambda folder: write_refcoco(folder, "refcoco"),
    "refcoco+": lambda folder: write_refcoco(folder, "refcoco+"),
    "grefcoco": write_grefcoco,
    "json-lines": write_json_lines,
}
SPLITS = {"ref-youtube-vos": "train"}


def shifted(sample: Sample, index: int) -> np.ndarray:
    """Return the ground truth, shifted two pixels to the right."""
    return np.roll(perfect(sample, index), 2, axis=1)


def part_of(name: str, folder: Path) -> Part:
    WRITERS[name](folder)
    return Part(name, folder, SPLITS.get(name))


@pytest.mark.parametrize("name", WRITERS)
def test_perfect_masks_reach_100_in_every_layout(tmp_path: Path, name: str) -> None:
    found = scored(tmp_path / "masks", part_of(name, tmp_path / "data"), perfect)
    assert found.summary.groups[0].count == sum(sample.ground_truth is not None for sample in found.part.samples())
    assert all(value == pytest.approx(100) for value in means(found).values())
    # In the published protocol objects that no expression is about count, too.
    assert all(value == pytest.approx(100) for name, value in lines(found).items() if "matched" not in name)


@pytest.mark.parametrize("name", ["mevis", "grefcoco", "ref-davis17", "a2d-sentences"])
def test_missing_masks_score_0_in_every_measure(tmp_path: Path, name: str) -> None:
    part = part_of(name, tmp_path / "data")
    (tmp_path / "masks").mkdir()
    found = score(tmp_path / "masks", part)
    assert set(means(found).values()) == {0.0}
    strict = {name: value for name, value in lines(found).items() if "matched" not in name}
    assert all(value == 0 for value in strict.values())
    assert "are missing" in found.summary.notes()[-1]


def test_mevis_averages_frames_then_expressions(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    found = scored(tmp_path / "masks", part, shifted)
    regions, boundaries = [], []
    for video in layouts.drawn_videos("valid_u"):
        for expression in range(len(video.expressions)):
            truth = video.masks(expression)
            pairs = list(zip(truth, np.roll(truth, 2, axis=2), strict=True))
            regions.append(fmean(region_similarity(*pair) for pair in pairs))
            boundaries.append(fmean(boundary_accuracy(*pair) for pair in pairs))
    expected = 100 * fmean(regions), 100 * fmean(boundaries)
    assert (means(found)["J"], means(found)["F"]) == pytest.approx(expected)
    assert means(found)["J&F"] == pytest.approx(fmean(expected))
    assert means(found, "without target") == pytest.approx({"J": 100, "F": 100, "J&F": 100})


def test_one_pixel_in_one_frame_makes_a_prediction_non_empty(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")

    def last_pixel(sample: Sample, index: int) -> np.ndarray:
        mask = nothing(sample, index)
        mask[-1, -1] = index == len(sample.video) - 1
        return mask

    for name, predict, expected in (("a", last_pixel, (0, 100)), ("b", nothing, (100, 0))):
        found = lines(scored(tmp_path / name, part, predict))
        assert (found["N-acc"], found["T-acc"]) == expected


def test_the_final_score_is_the_mean_of_three(tmp_path: Path) -> None:
    found = scored(tmp_path / "masks", part_of("mevis", tmp_path / "data"), everything)
    j_and_f = means(found)["J&F"]
    assert j_and_f is not None
    (final,) = [value for name, value in lines(found).items() if name.startswith("final")]
    assert final == pytest.approx((j_and_f + 0 + 100) / 3)


def test_a_frame_without_mask_scores_0_and_is_reported(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    found = scored(tmp_path / "masks", part, lambda sample, index: None if index == 3 else perfect(sample, index))
    assert means(found)["J"] == pytest.approx(100 * 5 / 6)
    assert means(found, "without target")["J"] == pytest.approx(100 * 5 / 6)
    assert lines(found)["N-acc"] == 0  # a missing mask is not an empty one
    (note,) = [note for note in found.summary.notes() if "missing" in note]
    assert note.startswith("8 masks of 8 expressions are missing")
    assert all(result.missing == 1 for result in found.summary.results)


def test_an_expression_without_masks_is_wrong_in_every_measure(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    found = scored(
        tmp_path / "masks", part, lambda sample, index: None if sample.has_target else nothing(sample, index)
    )
    assert (lines(found)["N-acc"], lines(found)["T-acc"]) == (100, 0)
    assert means(found, "with target")["J&F"] == 0


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        ([[0, 255], [255, 0]], "L"),
        ([[0, 1], [1, 0]], "L"),
        ([[0, 1], [1, 0]], "P"),
        ([[False, True], [True, False]], "1"),
    ],
)
def test_masks_of_any_system_are_read(tmp_path: Path, pixels: list[list[int]], mode: str) -> None:
    image = Image.fromarray(np.array(pixels, dtype=bool if mode == "1" else np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 10, 10])
    assert image.mode == mode
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (2, 2)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([[0, 128], [255, 0]], "is not binary"),
        ([[0, 7], [7, 0]], "is not binary"),
        ([[0, 255, 0]], "is 3x1; the frames are 2x2"),
        ([[[0, 0, 0], [255, 255, 255]]], "stores colours"),
    ],
)
def test_a_file_that_is_no_mask_is_named(tmp_path: Path, pixels: list[list[int]], message: str) -> None:
    path = tmp_path / "00007.png"
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path)
    with pytest.raises(EvaluationError, match=f"00007.png {message}"):
        read_mask(path, (2, 2))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EvaluationError, match=r"00007\.png"):
        read_mask(path, (2, 2))


def test_masks_are_found_in_folders_of_eval_and_of_submissions(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    for inner in ("predictions", "Annotations"):
        write_masks(tmp_path / inner / inner, part.open().samples(), perfect)
        assert means(score(tmp_path / inner, part))["J&F"] == pytest.approx(100)
    with pytest.raises(EvaluationError, match="nowhere"):
        score(tmp_path / "nowhere", part)


# Measures of single benchmarks.


def test_ref_davis_forgives_swapped_expressions_in_the_published_protocol_only(tmp_path: Path) -> None:
    part = part_of("ref-davis17", tmp_path / "data")
    samples = {sample.key: sample for sample in part.open().samples()}

    def swapped(sample: Sample, index: int) -> np.ndarray:
        other = (int(sample.expression_id) + 4) % 8
        return perfect(samples[sample.video.id, str(other)], index)

    found = scored(tmp_path / "masks", part, swapped)
    measured = lines(found)
    void = np.zeros((48, 64), bool)
    void[layouts.DAVIS_VOID] = True
    per_object = []
    for video in layouts.drawn_videos("val"):
        described = {expression.targets[0] for expression in video.expressions[:2]}
        for number, masks in enumerate(video.clip.masks):
            undescribed = 100 * fmean(float(not (mask & ~void).any()) for mask in masks)
            if (video.clip.masks[number:, 0] & ~void).any():  # only objects up to the last in the first frame count
                per_object.append(100.0 if number in described else undescribed)
    assert measured["J, published (matched)"] == pytest.approx(fmean(per_object))
    assert measured["J&F, strict (by expression)"] == means(found)["J&F"]
    assert measured["J&F, strict (by expression)"] < 60 < measured["J&F, published (matched)"]
    assert [group.name for group in found.summary.grouped("kind")] == ["first frame", "full video"]


def test_ref_davis_gives_a_pixel_of_two_predictions_to_the_first(tmp_path: Path) -> None:
    part = part_of("ref-davis17", tmp_path / "data")

    def greedy(sample: Sample, index: int) -> np.ndarray:
        return everything(sample, index) if int(sample.expression_id) < 4 else perfect(sample, index)

    found = scored(tmp_path / "masks", part, greedy)
    assert lines(found)["J, published (matched)"] < lines(found)["J, strict (by expression)"]


def test_long_rvos_reports_temporal_overlap_by_kind(tmp_path: Path) -> None:
    part = part_of("long-rvos", tmp_path / "data")
    found = scored(tmp_path / "masks", part, lambda sample, index: perfect(sample, index) & (index % 2 == 0))
    expected: dict[str, list[float]] = {"tIoU": [], "vIoU": []}
    for video in layouts.drawn_videos("valid"):
        for expression in (0, 1):
            truth = video.masks(expression)
            predicted = truth & (np.arange(len(truth)) % 2 == 0)[:, None, None]
            visible, non_empty = (np.array([mask.any() for mask in masks]) for masks in (truth, predicted))
            j = np.array([region_similarity(*pair) for pair in zip(truth, predicted, strict=True)])
            expected["tIoU"].append(100 * temporal_iou(visible, non_empty))
            expected["vIoU"].append(100 * video_iou(j, visible, non_empty))
    assert {name: means(found)[name] for name in expected} == pytest.approx(
        {name: fmean(values) for name, values in expected.items()}
    )
    assert [group.name for group in found.summary.grouped("kind")] == ["static", "dynamic", "hybrid"]
    assert means(found, "hybrid") == pytest.approx(means(found, "static"))  # the same objects


def test_revos_averages_referring_and_reasoning_and_shows_r_of_hallucinations(tmp_path: Path) -> None:
    part = part_of("revos", tmp_path / "data")
    found = scored(tmp_path / "masks", part, shifted)
    kinds = [means(found, kind)["J&F"] or 0 for kind in ("referring", "reasoning")]
    assert lines(found)["J&F, overall (mean of referring and reasoning)"] == pytest.approx(fmean(kinds))
    referring = (0, 2)
    expected = []
    for video in layouts.drawn_videos("valid"):
        all_objects = np.any(video.clip.masks, axis=0)
        for expression in referring:
            truth = video.masks(expression)
            frames = zip(truth, np.roll(truth, 2, axis=2), list(all_objects), strict=True)
            expected.append(100 * fmean(robustness(*frame) for frame in frames))
    assert means(found, "referring")["R"] == pytest.approx(fmean(expected))
    assert lines(found)["R (hallucination)"] == pytest.approx(100)
    assert lines(scored(tmp_path / "masks", part, everything))["R (hallucination)"] < 1


def test_images_report_overall_and_mean_iou_and_precision(tmp_path: Path) -> None:
    part = part_of("grefcoco", tmp_path / "data")
    samples = list(part.open().samples())
    found = scored(tmp_path / "masks", part, shifted)
    pairs = [(perfect(sample, 0), shifted(sample, 0)) for sample in samples]
    shared, either = (sum(int(way(*pair).sum()) for pair in pairs) for way in (np.logical_and, np.logical_or))
    ious = [region_similarity(*pair) for pair in pairs]
    of_targets = [iou for iou, sample in zip(ious, samples, strict=True) if sample.has_target]
    named = {"oIoU": shared / either, "mIoU": fmean(ious)}
    named |= {f"P@{k}": fmean(iou > k for iou in of_targets) for k in PRECISION_THRESHOLDS}
    assert means(found) == pytest.approx({name: 100 * value for name, value in named.items()})
    assert len(set(named.values())) > 2
    assert any(sample.has_target is False for sample in samples)
    assert lines(found) == {"N-acc": 100, "T-acc": 100}


def test_only_annotated_frames_count(tmp_path: Path) -> None:
    part = part_of("a2d-sentences", tmp_path / "data")
    found = scored(tmp_path / "masks", part, shifted)
    ious = [
        region_similarity(perfect(sample, index), shifted(sample, index))
        for sample in part.open().samples()
        if sample.ground_truth
        for index in sample.ground_truth.annotated
    ]
    assert means(found)["mIoU"] == pytest.approx(100 * fmean(ious))
    assert means(found)["P@0.7"] == pytest.approx(100 * fmean(iou > 0.7 for iou in ious))


def test_masks_without_public_ground_truth_are_not_scored(tmp_path: Path) -> None:
    layouts.write_mevis(tmp_path / "data", "valid")
    part = Part("mevis", tmp_path / "data", "valid")
    found = scored(tmp_path / "masks", part, nothing)
    assert not found.summary.scored
    assert "The ground truth of 8 expressions is not public: their masks are not scored." in found.summary.markdown()
    assert all(result.empty for result in found.summary.results)


def test_a_data_set_without_folder_or_of_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MeViS needs the folder of the data set; give it after the name mevis"):
        Part("mevis").open()
    with pytest.raises(ConfigError, match="'mavis' is unknown"):
        Part("mavis", tmp_path).open()
    assert len(Part("worlds", videos=3).open().videos) == 3


# Tables and intervals.


def result_of(video: str, quality: float, *, size: float | None = 0.1, **changes: object) -> ExpressionResult:
    scores = Scores(10, quality, quality, 10, 0, 0, size, 1, 2, (0,) * 5, 1.0, 1.0)
    made = ExpressionResult(video, "0", f"about {video}", None, None, True, 10, 0, False, scores)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_resampled_ratios_are_resampled_means_where_every_row_is_a_cluster() -> None:
    values = np.random.default_rng(1).random(80)
    drawn = resampled_ratios(values[:, None], np.ones((80, 1)), list(range(80)))[:, 0]
    assert len(drawn) == 10_000
    assert interval_around(values.mean(), drawn) == pytest.approx(mean_interval(values), abs=0.004)


def test_intervals_are_over_videos_and_not_over_expressions() -> None:
    values = np.random.default_rng(2).random(40)
    videos = [result_of(str(number), value) for number, value in enumerate(values)]
    repeated = [replace(result, expression_id=str(n)) for result in videos for n in range(9)]
    one, nine = (summarise("t", "video", results).groups[0].headline for results in (videos, repeated))
    assert one is not None
    assert one == pytest.approx(nine)
    assert one.high - one.low == pytest.approx(100 * 2 * 1.96 * values.std() / 40**0.5, rel=0.1)


def test_measures_without_samples_are_left_out() -> None:
    found = summarise("t", "video", [result_of("a", 0.5), result_of("b", 0.7)])
    assert {name for name, value in found.lines.items() if value} == {"T-acc"}
    assert measure([], summary_measures("video")) == [None] * 3


def test_worlds_weights_splits_equally_and_not_clips() -> None:
    results = [result_of(str(n), 0.2, kind="motion") for n in range(9)] + [result_of("x", 0.8, kind="spatial")]
    found = summarise("t", "worlds", results).lines["J&F, mean of the target splits"]
    assert found is not None
    assert found.mean == pytest.approx(50)


def test_groups_are_formed_by_kind_and_length() -> None:
    results = [
        result_of("a", 0.5, frames=1, kind="easy"),
        result_of("b", 0.6, frames=16, kind="hard"),
        result_of("c", 0.7, frames=17, kind="hard"),
        result_of("d", 0.8, frames=900),
    ]
    found = summarise("t", "video", results)
    assert [(group.name, group.count) for group in found.groups] == [
        ("all", 4),
        ("easy", 1),
        ("hard", 2),
        ("1 frame", 1),
        ("2 to 16 frames", 1),
        ("17 to 32 frames", 1),
        ("over 512 frames", 1),
    ]
    assert found.grouped("kind")[1].headline == pytest.approx((65, 60, 70), abs=0.1)
    assert found.worst[0][0].video == "a"


def test_groups_by_target_size_include_their_upper_end() -> None:
    sizes = (0.005, 0.01, 0.011, 0.2, 0.201, None)
    found = summarise("t", "video", [result_of(str(n), 0.5, size=size) for n, size in enumerate(sizes)])
    assert [(group.name, group.count) for group in found.grouped("size")] == [
        ("0 to 1 % of the frame", 2),
        ("1 to 2 % of the frame", 1),
        ("10 to 20 % of the frame", 1),
        ("over 20 % of the frame", 1),
    ]


def test_markdown_csv_and_json_hold_the_same_numbers() -> None:
    found = summarise("a title", "video", [result_of("a", 0.5), result_of("b", 0.75, expression="one | two\nthree")])
    text = found.markdown()
    assert text.startswith("a title\n")
    assert "| all |           2 |      2 | 62.5 | 50.0 to 75.0 | 62.5 | 62.5 |" in text
    assert "one \\| two three" in text
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [float(row["j"]) for row in rows] == [0.5, 0.75]
    assert rows[1]["expression"] == "one | two\nthree"
    values = json.loads(json.dumps(found.to_json()))
    assert values["groups"][0]["values"]["J&F"] == pytest.approx([62.5, 50, 75])


def test_predictions_list_and_read_the_masks_of_an_expression(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    first, *_ = part.open().samples()
    write_masks(tmp_path / "masks", [first], perfect)
    predictions = Predictions.open(tmp_path / "masks")
    assert predictions.names(first) == set(first.video.frames.names)
    assert predictions.mask(first, "00001").shape == (48, 64)
