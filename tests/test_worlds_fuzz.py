"""Random clips: masks and words of the expressions are checked by code independent of the generator."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from refervos.worlds import (
    COLOURS,
    FAMILIES,
    KINDS,
    TEXTURES,
    Clip,
    Description,
    Expression,
    WorldConfig,
    draw_clip,
    referring_expressions,
    sample_expressions,
)

CLIPS = 240
TEXTURE_WORDS = {"stripes": "striped", "dots": "dotted", "pattern": "plain", **{word: word for word in TEXTURES}}
NOUNS = {noun.split()[0]: kind for kind, nouns in KINDS.items() for noun in nouns}  # "plus" stands for "plus sign"
PLURALS = {word: kind for noun, kind in NOUNS.items() for word in (noun + "s", noun + "es")}  # one of them is English


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Clip, Expression]]:
    """All expressions about a few hundred clips of three kinds."""
    configs = [
        WorldConfig(height=96, width=96),
        WorldConfig(height=80, width=112, frames=16, speed=(0.01, 0.035), twins=0.4, pan=0.3, late=0.2),
        WorldConfig(
            height=96, width=96, frames=24, speed=(0.008, 0.03), alike=0.3, same_kind=0.3, pan=0.0, occlude=0.4
        ),
    ]
    clips = [draw_clip((seed, 7), configs[seed % 3]) for seed in range(1, CLIPS + 1)]
    return [
        (clip, expression)
        for seed, clip in enumerate(clips)
        for expression in referring_expressions(clip, np.random.default_rng(seed))
    ]


def named_looks(text: str) -> tuple[set[str], set[str], set[str]]:
    """Find the colours, textures and kinds in the words of an expression."""
    words = text.split()
    return (
        {word for word in words if word in COLOURS},
        {TEXTURE_WORDS[word] for word in words if word in TEXTURE_WORDS},
        {kind for word in words if (kind := NOUNS.get(word) or PLURALS.get(word))},
    )


def visible_centres(clip: Clip) -> npt.NDArray[np.floating]:
    """Return the centroid of each object's visible pixels in short sides (K, T, 2); NaN where it is hardly visible."""
    height, width = clip.frames.shape[1:3]
    y, x = np.mgrid[:height, :width] + 0.5
    counts = clip.masks.sum(axis=(2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.stack([(clip.masks * grid).sum(axis=(2, 3)) / counts for grid in (x, y)], axis=-1)
    middle[counts < 20] = np.nan
    return middle / min(height, width)


def has_no_claim(expression: Expression) -> bool:
    """Return whether an expression consists of one noun phrase."""
    return isinstance(expression.description, Description) and expression.description.claim is None


def test_every_family_occurs_often(drawn: list[tuple[Clip, Expression]]) -> None:
    counts = Counter(expression.family for _, expression in drawn)
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) > CLIPS // 5


def test_looks_match_exactly_the_targets(drawn: list[tuple[Clip, Expression]]) -> None:
    checked = 0
    for clip, expression in drawn:
        if not has_no_claim(expression):
            continue
        colours, textures, kinds = named_looks(expression.text)
        assert max(len(colours), len(textures), len(kinds)) <= 1, expression.text
        fitting = {
            index
            for index, thing in enumerate(clip.scene.objects)
            if (not colours or thing.colour in colours)
            and (not textures or thing.texture in textures)
            and (not kinds or thing.kind in kinds)
            and clip.masks[index].any()
        }
        assert fitting == set(expression.targets), expression.text
        checked += 1
    assert checked > 5 * CLIPS


def test_the_number_of_targets_matches_the_family(drawn: list[tuple[Clip, Expression]]) -> None:
    for _, expression in drawn:
        least, most = {"none": (0, 0), "group": (2, 16)}.get(expression.family, (1, 1))
        assert least <= len(expression.targets) <= most
        assert list(expression.targets) == sorted(set(expression.targets))


def test_targets_are_visible_in_a_quarter_of_the_frames(drawn: list[tuple[Clip, Expression]]) -> None:
    for clip, expression in drawn:
        unit = (min(clip.frames.shape[1:3]) / 128) ** 2
        for target in expression.targets:
            assert (clip.masks[target].sum(axis=(1, 2)) >= 60 * unit).mean() >= 0.25, expression.text


def test_every_clip_has_easy_and_hard_expressions_without_a_target(drawn: list[tuple[Clip, Expression]]) -> None:
    per_clip = Counter(id(clip) for clip, expression in drawn if expression.family == "none")
    assert len(per_clip) == CLIPS
    assert min(per_clip.values()) >= 2
    hard = [
        any(thing.colour in colours or thing.kind in kinds for thing in clip.scene.objects)
        for clip, expression in drawn
        if expression.family == "none"
        for colours, _, kinds in [named_looks(expression.text)]
    ]
    assert 0.4 < np.mean(hard) < 0.95


def test_directions_match_the_paths_of_the_targets(drawn: list[tuple[Clip, Expression]]) -> None:
    axes = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "upwards": (1, -1), "down": (1, 1), "downwards": (1, 1)}
    axes |= {"rises": (1, -1), "falls": (1, 1)}
    checked = 0
    for clip, expression in drawn:
        words = expression.text.split()
        verbs = {"moves", "moving", "going", "rises", "falls", "move"} & set(words)
        if (
            not verbs
            or {"behind", "diagonally", "and", "then", "curve", "circle", "in"} & set(words)
            or expression.family == "none"
        ):
            continue
        directions = [axes[word] for word in words if word in axes]
        if len(directions) != 1 or not isinstance(expression.description, Description):
            continue
        axis, sign = directions[0]
        for target in expression.targets:
            seen = np.flatnonzero(clip.masks[target].any(axis=(1, 2)))
            way = sign * np.diff(clip.centres[target, seen[0] : seen[-1] + 1, axis])
            assert way.sum() > 0.08, expression.text
            assert (way > -0.01).all(), expression.text
        checked += 1
    assert checked > 40


def test_places_match_the_visible_pixels(drawn: list[tuple[Clip, Expression]]) -> None:
    checked = 0
    for clip, expression in drawn:
        if (
            not isinstance(expression.description, Description)
            or expression.description.claim is None
            or not expression.targets
        ):
            continue
        word = expression.description.claim.word
        sides = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
        if word not in sides:
            continue
        axis, sign = sides[word]
        size = clip.frames.shape[2 - axis] / min(clip.frames.shape[1:3])
        for target in expression.targets:
            # The centroid of a partly covered object is shifted, so those frames are left out.
            whole = clip.masks[target].sum(axis=(1, 2)) > 0.9 * clip.areas[target]
            middle = visible_centres(clip)[target, whole, axis] / size
            middle = middle[np.isfinite(middle)]
            assert (sign * (middle - 0.5) < 0).all(), expression.text
        checked += 1
    assert checked > 100


def test_superlatives_match_the_masks(drawn: list[tuple[Clip, Expression]]) -> None:
    measures = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
    checked: Counter[str] = Counter()
    for clip, expression in drawn:
        if not isinstance(expression.description, Description) or expression.description.claim is None:
            continue
        word, noun = expression.description.claim.word, expression.description.noun
        if not expression.targets or word not in (*measures, "largest", "smallest"):
            continue
        (target,) = expression.targets
        rivals = [
            index
            for index, thing in enumerate(clip.scene.objects)
            if index != target
            and noun.colour in ("", thing.colour)
            and noun.texture in ("", thing.texture)
            and noun.kind in ("", thing.kind)
            and clip.masks[index].any()
        ]
        assert rivals, expression.text
        for rival in rivals:
            if word in measures:
                axis, sign = measures[word]
                both = clip.masks[[target, rival]].sum(axis=(2, 3)).min(axis=0) > 30
                gap = sign * (clip.centres[rival, both, axis] - clip.centres[target, both, axis])
                assert (gap > 0.05).all(), expression.text
            else:
                largest = clip.areas.max(axis=1)
                ratio = largest[target] / largest[rival]
                assert ratio > 1.2 if word == "largest" else ratio < 1 / 1.2, expression.text
        checked[word] += 1
    assert min(checked[word] for word in (*measures, "largest", "smallest")) > 20


def test_still_targets_do_not_move_in_the_masks(drawn: list[tuple[Clip, Expression]]) -> None:
    checked = 0
    for clip, expression in drawn:
        if not isinstance(expression.description, Description) or expression.description.claim is None:
            continue
        if expression.description.claim.word == "stays still" and expression.targets:
            for target in expression.targets:
                assert np.ptp(clip.areas[target]) == 0
                assert clip.masks[target].any(axis=0).sum() <= clip.areas[target, 0]
            checked += 1
    assert checked > 30


def test_targets_that_enter_or_leave_are_absent_at_that_end(drawn: list[tuple[Clip, Expression]]) -> None:
    checked = 0
    for clip, expression in drawn:
        if not isinstance(expression.description, Description) or expression.description.claim is None:
            continue
        word = expression.description.claim.word
        for target in expression.targets:
            shown = clip.masks[target].any(axis=(1, 2))
            if word.startswith("enters"):
                assert not shown[0], expression.text
                checked += 1
            elif word == "leaves":
                assert shown[0], expression.text
                assert not shown[-1], expression.text
                checked += 1
            elif word == "leaves and returns":
                assert shown[0], expression.text
                assert shown[-1], expression.text
                assert not shown.all(), expression.text
                checked += 1
    assert checked > 30


def test_no_object_moves_as_an_expression_without_a_target_claims(drawn: list[tuple[Clip, Expression]]) -> None:
    axes = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (1, -1), "moves down": (1, 1)}
    checked = 0
    for clip, expression in drawn:
        if not isinstance(expression.description, Description) or expression.description.claim is None:
            continue
        if expression.family != "none" or expression.description.claim.word not in axes:
            continue
        axis, sign = axes[expression.description.claim.word]
        colours, textures, kinds = named_looks(expression.text)
        for index, thing in enumerate(clip.scene.objects):
            fits = thing.colour in (colours or {thing.colour}) and thing.texture in (textures or {thing.texture})
            if fits and thing.kind in (kinds or {thing.kind}):
                seen = np.flatnonzero(clip.masks[index].sum(axis=(1, 2)) > 20)
                if seen.size > 1:
                    way = sign * np.diff(clip.centres[index, seen[0] : seen[-1] + 1, axis])
                    assert np.maximum(way, 0).sum() < 0.02, expression.text
        checked += 1
    assert checked > 5


def test_sampled_expressions_belong_to_the_requested_families() -> None:
    for seed in range(20):
        clip = draw_clip(seed, WorldConfig(height=64, width=64))
        sampled = sample_expressions(
            clip, np.random.default_rng(seed), 3, {"motion": 1.0, "colour+kind": 1.0, "none": 0.5}
        )
        assert 1 <= len(sampled) <= 3
        assert {expression.family for expression in sampled} <= {"motion", "colour+kind", "none"}
        assert len({expression.targets for expression in sampled}) == len(sampled)
