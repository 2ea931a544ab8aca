"""The diagnostic splits: each meets its condition, checked by the masks, and shares no seed with training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest

from refervos.errors import ConfigError
from refervos.worlds import Clip, Description, WorldConfig, benchmark, draw_clip
from refervos.worlds.benchmark import BENCHMARK_SEED, SPLITS, TARGET_SPLITS, DiagnosticCase, diagnostic_cases

CASES = {split: 1 if split == "long" else 5 for split in SPLITS}

FIRST_CASES: dict[str, list[tuple[str, int]]] = {
    "appearance": [("a ring", 10_804), ("the pink heart", 32_450)],
    "spatial": [("the red star on the left side", 25_934), ("red shape at the top", 15_648)],
    "relation": [
        ("the plain shape that is left of the pink heart", 8_424),
        ("the orange object that is above the orange triangle", 21_092),
    ],
    "motion": [("the thing that moves right", 35_012), ("the object going downwards", 4_535)],
    "late entry": [("white striped thing", 13_362), ("the triangle that is dotted", 2_060)],
    "occlusion": [("the plain triangle", 4_735), ("a heart with dots", 6_057)],
    "look-alikes": [("white heart that is the largest", 25_942), ("the plain orange object", 21_000)],
    "long": [("a thing that is purple", 181_777)],
    "multi-target": [("both red dotted shapes", 31_984), ("each pink star that does not move", 35_328)],
    "no-target": [("the box which is purple", 0), ("the plain square which is green", 0)],
}
"""Expressions and pixels of the ground truth; published results are about exactly these cases."""


@pytest.fixture(scope="module")
def cases() -> dict[str, list[DiagnosticCase]]:
    """A few cases of every split."""
    return {split: list(diagnostic_cases(split, count)) for split, count in CASES.items()}


def shown(case: DiagnosticCase) -> np.ndarray:
    """Count the visible pixels of the only target in every frame (T,)."""
    (target,) = case.expression.targets
    return case.clip.masks[target].sum(axis=(1, 2))


def has_no_claim(case: DiagnosticCase) -> bool:
    return isinstance(case.expression.description, Description) and case.expression.description.claim is None


def test_cases_have_the_index_size_and_length_of_their_split(cases: dict[str, list[DiagnosticCase]]) -> None:
    for split, drawn in cases.items():
        assert [(case.split, case.index) for case in drawn] == [(split, index) for index in range(CASES[split])]
        for case in drawn:
            assert case.clip.frames.shape == (200 if split == "long" else 24, 128, 128, 3)


def test_cases_with_a_target_have_an_expression_about_other_objects(cases: dict[str, list[DiagnosticCase]]) -> None:
    assert set(SPLITS) - set(TARGET_SPLITS) == {"no-target"}
    for split in TARGET_SPLITS:
        for case in cases[split]:
            assert case.expression.targets
            assert case.other is not None
            assert case.other.targets
            assert not set(case.other.targets) & set(case.expression.targets)


def test_the_benchmark_does_not_change(cases: dict[str, list[DiagnosticCase]]) -> None:
    """A failure here means a new benchmark, on which published results no longer hold."""
    assert set(FIRST_CASES) == set(SPLITS)
    for split, expected in FIRST_CASES.items():
        for case, (text, pixels) in zip(cases[split], expected, strict=False):
            assert case.expression.text == text
            assert case.clip.target_masks(case.expression).sum() == pytest.approx(pixels, rel=0.01)


def test_cases_are_reproducible_and_do_not_depend_on_the_count(cases: dict[str, list[DiagnosticCase]]) -> None:
    for split in ("motion", "multi-target"):
        again = list(islice(diagnostic_cases(split), 2))
        for one, two in zip(cases[split], again, strict=False):
            assert (one.expression, one.other) == (two.expression, two.other)
            np.testing.assert_array_equal(one.clip.frames, two.clip.frames)


def test_seeds_of_the_benchmark_cannot_occur_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[Sequence[int]] = []

    def recorded(seed: Sequence[int], config: WorldConfig, *rest: Any) -> Clip:
        seeds.append(seed)
        return draw_clip(seed, config, *rest)

    monkeypatch.setattr(benchmark, "draw_clip", recorded)
    for split in ("appearance", "no-target"):
        list(diagnostic_cases(split, 2))
    assert len(set(map(tuple, seeds))) == len(seeds) >= 4
    for seed in seeds:
        # NumPy pads seeds with zeros, so only zeros could make a seed equal to a shorter one of training.
        assert seed[0] == BENCHMARK_SEED
        assert all(number > 0 for number in seed)
        assert len(seed) > 1


def test_appearance_shows_all_objects_and_hardly_hides_the_target(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["appearance"]:
        assert has_no_claim(case)
        assert case.clip.masks[:, [0, -1]].any(axis=(2, 3)).all()
        assert (shown(case) > 0.5 * shown(case).max()).all()


@pytest.mark.parametrize(("split", "family"), [("spatial", "place"), ("relation", "relation"), ("motion", "motion")])
def test_only_the_claim_identifies_the_target(cases: dict[str, list[DiagnosticCase]], split: str, family: str) -> None:
    words = set()
    for case in cases[split]:
        assert case.expression.family == family
        description = case.expression.description
        assert isinstance(description, Description)
        assert description.claim is not None
        words.add(description.claim.word)
        noun = description.noun
        fitting = [
            thing
            for thing, mask in zip(case.clip.scene.objects, case.clip.masks, strict=True)
            if mask.any()
            and noun.colour in ("", thing.colour)
            and noun.texture in ("", thing.texture)
            and noun.kind in ("", thing.kind)
        ]
        assert len(fitting) >= 2, case.expression.text
    assert len(words) >= 4


def test_late_targets_enter_beside_a_similar_object(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["late entry"]:
        assert has_no_claim(case)
        (target,) = case.expression.targets
        assert not case.clip.masks[target, :6].any()
        assert case.clip.masks[target].any()
        things = case.clip.scene.objects
        early = [thing for thing, mask in zip(things, case.clip.masks, strict=True) if mask[0].any()]
        assert any(thing.colour == things[target].colour or thing.kind == things[target].kind for thing in early)


def test_occluded_targets_disappear_and_return(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["occlusion"]:
        assert has_no_claim(case)
        share = shown(case) / shown(case).max()
        gone = np.flatnonzero(share < 0.2)
        assert (share[: gone[-1]] > 0.6).any()
        assert (share[gone[0] :] > 0.6).sum() >= 2
        (target,) = case.expression.targets
        assert (case.clip.areas[target] > 0).all() == (case.index % 3 != 2)  # behind something, or out of the frame


def test_look_alikes_share_colour_or_kind_with_the_target(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["look-alikes"]:
        (target,) = case.expression.targets
        things = case.clip.scene.objects
        others = [thing for index, thing in enumerate(things) if index != target]
        assert len(others) >= 2
        assert all(thing.colour == things[target].colour or thing.kind == things[target].kind for thing in others)


def test_targets_of_long_clips_move_and_are_visible_late(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["long"]:
        assert has_no_claim(case)
        (target,) = case.expression.targets
        assert np.ptp(case.clip.centres[target], axis=0).max() > 0.3
        assert (shown(case)[150:] > 60).any()


def test_multi_target_cases_have_several_targets(cases: dict[str, list[DiagnosticCase]]) -> None:
    assert all(len(case.expression.targets) >= 2 for case in cases["multi-target"])


def test_two_of_three_absent_objects_resemble_a_visible_one(cases: dict[str, list[DiagnosticCase]]) -> None:
    for case in cases["no-target"]:
        assert case.expression.targets == ()
        assert not case.clip.target_masks(case.expression).any()
        assert isinstance(case.expression.description, Description)
        noun = case.expression.description.noun
        similar = any(noun.colour == thing.colour or noun.kind == thing.kind for thing in case.clip.scene.objects)
        assert (similar or not has_no_claim(case)) == (case.index % 3 != 0), case.expression.text


def test_cases_are_drawn_at_other_sizes() -> None:
    (case,) = diagnostic_cases("appearance", 1, height=64, width=96)
    assert case.clip.frames.shape == (24, 64, 96, 3)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="'fog' is unknown; the splits are appearance"):
        list(diagnostic_cases("fog"))


def test_a_condition_that_no_clip_meets_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_MAX_ATTEMPTS", 2)
    monkeypatch.setitem(benchmark._SPLITS, "spatial", (WorldConfig(height=32, width=32), lambda *_: False))
    with pytest.raises(ConfigError, match="none of 2 clips of 128x128 meets its condition"):
        next(diagnostic_cases("spatial"))
