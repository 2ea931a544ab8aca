"""Each claim and noun phrase, tested in a scene in which it holds and in scenes in which it just fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from refervos.training.stages.clip_sources import WorldClips
from refervos.worlds import (
    FAMILIES,
    Claim,
    Clip,
    Description,
    Expression,
    Facts,
    Motion,
    Noun,
    Pair,
    Scene,
    Thing,
    WorldConfig,
    draw_clip,
    draw_scene,
    referring_expressions,
    sample_expressions,
)
from refervos.worlds.facts import CLAIM_FAMILIES, FALSE, TRUE, UNCLEAR, WITH_REFERENCE
from refervos.worlds.sentences import family_of
from refervos.worlds.wording import PHRASES, PLURAL_PHRASES, word_description

FRAMES = 12
SIZE = (96, 96)
SQUARE = Noun(kind="square")
CIRCLE = Noun(kind="circle")


def square(x: float, y: float, vx: float = 0.0, vy: float = 0.0, r: float = 0.13, **motion: object) -> Thing:
    """Make a red square, the subject of all claims below."""
    return Thing("square", "red", r, Motion((x, y), (vx, vy), **motion))  # type: ignore[arg-type]


def circle(x: float, y: float, vx: float = 0.0, vy: float = 0.0, r: float = 0.13, **motion: object) -> Thing:
    """Make a blue circle, the reference of all relations below."""
    return Thing("circle", "blue", r, Motion((x, y), (vx, vy), **motion))  # type: ignore[arg-type]


def draw(*things: Thing, pan: tuple[float, float] = (0.0, 0.0), frames: int = FRAMES) -> Clip:
    return draw_scene(Scene(things, pan=pan, background="checks"), frames, SIZE)


def truth_values(clip: Clip, word: str, noun: Noun = SQUARE) -> list[int]:
    claim = Claim(word, CIRCLE if word in WITH_REFERENCE else None)
    return [int(truth) for truth in Facts.of(clip).evaluate(Description(noun, claim))]


def expressions_of(clip: Clip, seeds: Iterable[int]) -> Iterable[Expression]:
    for seed in seeds:
        yield from referring_expressions(clip, np.random.default_rng(seed))


def claims_of(expression: Expression) -> list[str]:
    """List the words of the claims of an expression."""
    parts = (
        (expression.description.first, expression.description.second)
        if isinstance(expression.description, Pair)
        else (expression.description,)
    )
    return [part.claim.word for part in parts if part.claim is not None]


STILL = square(0.7, 0.75)

# For each word a scene in which it is true of object 0 and of no other square, and scenes in which it is not.
PROOFS: dict[str, tuple[tuple[Thing, ...], list[tuple[Thing, ...]]]] = {
    # Broken by another square on the same side, by one near the middle, and by moving away.
    "left": (
        (square(0.2, 0.5), square(0.8, 0.5)),
        [(square(0.2, 0.3), square(0.25, 0.7)), (square(0.2, 0.3), square(0.47, 0.7)), (square(0.2, 0.5, 0.05), STILL)],
    ),
    "right": (
        (square(0.8, 0.5), square(0.2, 0.5)),
        [(square(0.8, 0.3), square(0.75, 0.7)), (square(0.55, 0.5), STILL)],
    ),
    "top": ((square(0.5, 0.2), square(0.5, 0.8)), [(square(0.3, 0.2), square(0.7, 0.25)), (square(0.3, 0.45), STILL)]),
    "bottom": ((square(0.5, 0.8), square(0.5, 0.2)), [(square(0.2, 0.8), square(0.7, 0.75))]),
    "middle": (
        (square(0.5, 0.5), square(0.15, 0.2)),
        [(square(0.4, 0.5), square(0.6, 0.5)), (square(0.3, 0.5), STILL)],
    ),
    "top left": ((square(0.2, 0.2), STILL), [(square(0.2, 0.2, 0.05), STILL), (square(0.2, 0.2), square(0.25, 0.45))]),
    "top right": ((square(0.8, 0.2), square(0.2, 0.8)), [(square(0.8, 0.45), square(0.2, 0.8))]),
    "bottom left": ((square(0.2, 0.8), square(0.8, 0.2)), [(square(0.2, 0.8, 0.05), square(0.8, 0.2))]),
    "bottom right": ((square(0.8, 0.8), square(0.2, 0.2)), [(square(0.8, 0.8), square(0.55, 0.6))]),
    # Broken by a tie, and by one square overtaking the other.
    "leftmost": (
        (square(0.3, 0.5), square(0.6, 0.5)),
        [(square(0.3, 0.3), square(0.33, 0.7)), (square(0.2, 0.3, 0.05), square(0.5, 0.7)), (square(0.3, 0.3),)],
    ),
    "rightmost": ((square(0.6, 0.5), square(0.3, 0.5)), [(square(0.6, 0.3), square(0.57, 0.7))]),
    "topmost": ((square(0.5, 0.3), square(0.5, 0.6)), [(square(0.3, 0.3), square(0.7, 0.33))]),
    "bottommost": ((square(0.5, 0.6), square(0.5, 0.3)), [(square(0.3, 0.6), square(0.7, 0.6))]),
    # Broken by the same size, by a small difference, and by growing past the other.
    "largest": (
        (square(0.3, 0.5, r=0.2), square(0.75, 0.5, r=0.12)),
        [
            (square(0.3, 0.5, r=0.15), square(0.7, 0.5, r=0.15)),
            (square(0.3, 0.5, r=0.15), square(0.7, 0.5, r=0.135)),
            (square(0.3, 0.5, r=0.15), square(0.7, 0.5, r=0.124)),
            (square(0.3, 0.5, r=0.2, growth=0.92), square(0.75, 0.5, r=0.12)),
        ],
    ),
    "smallest": (
        (square(0.3, 0.5, r=0.12), square(0.7, 0.5, r=0.2)),
        [(square(0.3, 0.5, r=0.15), square(0.7, 0.5, r=0.15))],
    ),
    # Broken by another square on the same side, by a nearer vertical offset, and by changing sides.
    "left of": (
        (square(0.2, 0.5), circle(0.5, 0.5), square(0.8, 0.5)),
        [
            (square(0.2, 0.3), circle(0.6, 0.5), square(0.2, 0.7)),
            (square(0.45, 0.2), circle(0.5, 0.6), square(0.85, 0.5)),
            (square(0.15, 0.3, 0.07), circle(0.5, 0.5), square(0.85, 0.5)),
            (square(0.2, 0.5), circle(0.5, 0.5), square(0.8, 0.5), circle(0.5, 0.85)),  # which circle?
        ],
    ),
    "right of": (
        (square(0.8, 0.5), circle(0.5, 0.5), square(0.2, 0.5)),
        [(square(0.8, 0.3), circle(0.4, 0.5), square(0.8, 0.7))],
    ),
    "above": (
        (square(0.5, 0.2), circle(0.5, 0.5), square(0.5, 0.8)),
        [(square(0.3, 0.2), circle(0.5, 0.6), square(0.7, 0.2))],
    ),
    "below": (
        (square(0.5, 0.8), circle(0.5, 0.5), square(0.5, 0.2)),
        [
            (square(0.3, 0.8), circle(0.5, 0.4), square(0.7, 0.8)),
            (square(0.2, 0.55), circle(0.7, 0.5), square(0.2, 0.2)),
        ],
    ),
    "larger than": (
        (square(0.3, 0.3, r=0.24), circle(0.7, 0.3, r=0.13), square(0.6, 0.75, r=0.11)),
        [(square(0.3, 0.3, r=0.16), circle(0.7, 0.3, r=0.14), square(0.6, 0.75, r=0.11))],
    ),
    "smaller than": (
        (square(0.3, 0.3, r=0.11), circle(0.7, 0.3, r=0.16), square(0.4, 0.7, r=0.24)),
        [(square(0.3, 0.3, r=0.15), circle(0.7, 0.3, r=0.15), square(0.4, 0.7, r=0.24))],
    ),
    "nearest to": (
        (square(0.3, 0.3), circle(0.5, 0.3), square(0.8, 0.85)),
        [(square(0.2, 0.3), circle(0.5, 0.3), square(0.8, 0.3)), (square(0.2, 0.3), circle(0.5, 0.3))],
    ),
    # Broken by hardly moving, by all moving, and by a panning camera (see below).
    "moves": (
        (square(0.2, 0.3, 0.03), STILL),
        [(square(0.2, 0.3, 0.004), STILL), (square(0.2, 0.3, 0.03), square(0.7, 0.7, -0.03))],
    ),
    "stays still": (
        (STILL, square(0.2, 0.3, 0.03)),
        [
            (STILL, square(0.2, 0.3)),
            (STILL, square(0.2, 0.3, 0.002)),
            (square(0.7, 0.7, spin=0.1), square(0.2, 0.3, 0.03)),
        ],
    ),
    "moves left": (
        (square(0.7, 0.3, -0.03), STILL),
        [
            (square(0.7, 0.3, -0.004), STILL),
            (square(0.7, 0.3, -0.03), square(0.8, 0.7, -0.03)),
            (square(0.7, 0.3, -0.03, 0.03), STILL),  # as much down as left
            (square(0.6, 0.3, -0.04, pace=((6, -1.0),)), STILL),  # and back again
            (square(0.7, 0.3, -0.03), square(0.3, 0.7, 0.04, pace=((8, -1.0),))),  # the other goes left too, in the end
        ],
    ),
    "moves right": (
        (square(0.2, 0.3, 0.03), STILL),
        [(square(0.2, 0.3, 0.003), STILL), (square(0.5, 0.3, 0.06), STILL)],
    ),
    "moves up": ((square(0.2, 0.8, 0.0, -0.03), STILL), [(square(0.2, 0.8, 0.02, -0.03), STILL)]),
    "moves down": ((square(0.2, 0.2, 0.0, 0.03), STILL), [(square(0.2, 0.2, 0.0, 0.005), STILL)]),
    "moves up and left": ((square(0.5, 0.6, -0.03, -0.03), STILL), [(square(0.5, 0.6, -0.03, -0.008), STILL)]),
    "moves up and right": ((square(0.2, 0.6, 0.03, -0.03), STILL), [(square(0.2, 0.6, 0.0, -0.03), STILL)]),
    "moves down and left": ((square(0.6, 0.2, -0.03, 0.03), STILL), [(square(0.6, 0.2, -0.004, 0.004), STILL)]),
    "moves down and right": (
        (square(0.2, 0.2, 0.03, 0.03), STILL),
        [(square(0.2, 0.2, 0.03, 0.03), square(0.5, 0.2, 0.03, 0.03))],
    ),
    # Broken by a bounce, which may be called turning back, too, and by turning back at once.
    "turns back": (
        (square(0.3, 0.3, 0.04, pace=((6, -1.0),)), STILL),
        [
            (square(0.3, 0.3, 0.04, pace=((6, -1.0),)), square(0.5, 0.7, 0.06)),
            (square(0.3, 0.3, 0.04, pace=((11, -1.0),)), STILL),
            (square(0.3, 0.3, 0.04), STILL),
        ],
    ),
    "bounces": (
        (square(0.65, 0.3, 0.05), STILL),
        [
            (square(0.2, 0.3, 0.03), STILL),
            (square(0.65, 0.3, 0.05), square(0.65, 0.7, 0.05)),
            (square(0.4, 0.3, 0.04, pace=((6, -1.0),)), STILL),
        ],
    ),
    "curves": (
        (square(0.3, 0.3, 0.05, turn=0.35), STILL),
        [
            (square(0.3, 0.3, 0.05, turn=0.02), STILL),
            (square(0.3, 0.3, 0.05, turn=0.35), square(0.6, 0.6, 0.05, turn=0.35)),
        ],
    ),
    "grows": (
        (square(0.3, 0.3, growth=1.05), STILL),
        [(square(0.3, 0.3, growth=1.015), STILL), (square(0.3, 0.3, growth=1.05), square(0.7, 0.7, growth=1.02))],
    ),
    "shrinks": ((square(0.3, 0.3, r=0.2, growth=0.95), STILL), [(square(0.3, 0.3, growth=0.99), STILL)]),
    "spins": (
        (square(0.3, 0.3, spin=0.15), STILL),
        [(square(0.3, 0.3, spin=0.01), STILL), (square(0.3, 0.3, spin=0.15), square(0.7, 0.7, spin=-0.02))],
    ),
    "speeds up": (
        (square(0.2, 0.3, 0.02, pace=((6, 3.0),)), square(0.3, 0.7, 0.03)),
        [(square(0.2, 0.3, 0.02, pace=((6, 1.4),)), square(0.3, 0.7, 0.03))],
    ),
    "stops": (
        (square(0.2, 0.3, 0.04, pace=((6, 0.0),)), square(0.2, 0.7, 0.03)),
        [
            (square(0.2, 0.3, 0.04, pace=((11, 0.0),)), square(0.2, 0.7, 0.03)),
            (square(0.2, 0.3, 0.03), square(0.2, 0.7)),
            (square(0.2, 0.3, 0.04, pace=((6, 0.0),), spin=0.1), square(0.2, 0.7, 0.03)),  # it still spins
        ],
    ),
    "starts": (
        (square(0.2, 0.3, 0.05, pace=((0, 0.0), (5, 1.0))), square(0.2, 0.7, 0.03)),
        [(square(0.2, 0.3, 0.05, pace=((0, 0.0), (1, 1.0))), square(0.2, 0.7, 0.03))],
    ),
    # Broken by being at the border from the start, by another that enters, and by leaving again.
    "enters": (
        (square(-0.3, 0.3, 0.06), STILL),
        [(square(-0.02, 0.3, 0.06), STILL), (square(-0.3, 0.3, 0.06), square(1.3, 0.7, -0.06))],
    ),
    "enters from the left": (
        (square(-0.3, 0.3, 0.06), square(1.3, 0.7, -0.06)),
        [(square(-0.3, 0.2, 0.06), square(-0.3, 0.8, 0.06)), (square(-0.2, -0.2, 0.05, 0.05), STILL)],
    ),
    "enters from the right": ((square(1.3, 0.3, -0.06), STILL), [(square(1.05, 0.3, -0.06), STILL)]),
    "enters from the top": ((square(0.3, -0.3, 0.0, 0.06), STILL), [(square(0.3, -0.05, 0.0, 0.06), STILL)]),
    "enters from the bottom": (
        (square(0.3, 1.3, 0.0, -0.06), square(0.7, 0.3)),
        [(square(0.3, 1.0, 0.0, -0.06), STILL)],
    ),
    "leaves": (
        (square(0.8, 0.3, 0.05, walls=False), STILL),
        [
            (square(0.75, 0.3, 0.02, walls=False), STILL),  # half of it is still there
            (square(0.8, 0.3, 0.05, walls=False), square(0.2, 0.7, -0.05, walls=False)),
            (square(0.85, 0.3, 0.08, walls=False, pace=((5, -1.0),)), STILL),  # and comes back
        ],
    ),
    "leaves and returns": (
        (square(0.85, 0.3, 0.08, walls=False, pace=((5, -1.0),)), STILL),
        [
            (square(0.85, 0.3, 0.04, walls=False, pace=((5, -1.0),)), STILL),
            (square(0.8, 0.3, 0.05, walls=False), STILL),
        ],
    ),
    "fastest": (
        (square(0.2, 0.3, 0.05), square(0.2, 0.7, 0.02)),
        [(square(0.2, 0.3, 0.03), square(0.2, 0.7, 0.025)), (square(0.2, 0.3, 0.05),)],
    ),
    # Broken by passing in front, by stopping behind it, and by being passed over while standing still.
    "passes behind something": (
        (square(0.15, 0.5, 0.065, r=0.12), square(0.2, 0.85, r=0.12), circle(0.5, 0.5, r=0.2)),
        [
            (circle(0.5, 0.5, r=0.2), square(0.15, 0.5, 0.065, r=0.12), square(0.2, 0.85, r=0.12)),
            (square(0.15, 0.5, 0.065, r=0.12, pace=((6, 0.0),)), square(0.2, 0.85, r=0.12), circle(0.5, 0.5, r=0.2)),
            (square(0.5, 0.5, r=0.1), square(0.2, 0.88, r=0.1), circle(0.15, 0.5, 0.065, r=0.2)),
        ],
    ),
    "passes behind": (
        (square(0.15, 0.5, 0.065, r=0.12), square(0.2, 0.85, r=0.12), circle(0.5, 0.5, r=0.2)),
        [
            (circle(0.5, 0.5, r=0.2), square(0.15, 0.5, 0.065, r=0.12), square(0.2, 0.85, r=0.12)),
            (square(0.15, 0.5, 0.065, r=0.12), square(0.15, 0.5, 0.065, r=0.12), circle(0.5, 0.5, r=0.2)),
        ],
    ),
}


def test_every_claim_has_a_proof_and_phrases() -> None:
    assert set(PROOFS) == set(CLAIM_FAMILIES) == set(PHRASES)
    assert set(PLURAL_PHRASES) <= set(PHRASES)
    assert set(CLAIM_FAMILIES.values()) < set(FAMILIES)
    for word, phrases in (*PHRASES.items(), *PLURAL_PHRASES.items()):
        for phrase in phrases:
            assert phrase.count("{}") == 1, phrase
            assert ("{ref}" in phrase) == (word in WITH_REFERENCE), phrase


@pytest.mark.parametrize("word", PROOFS)
def test_a_claim_is_made_where_it_is_clearly_true(word: str) -> None:
    things, _ = PROOFS[word]
    clip = draw(*things)
    assert truth_values(clip, word) == [TRUE] + [FALSE] * (len(things) - 1)
    for expression in expressions_of(clip, range(150)):
        if word in claims_of(expression) and expression.targets == (0,) and expression.family == CLAIM_FAMILIES[word]:
            return
    pytest.fail(f"{word!r} is never used")


@pytest.mark.parametrize("word", PROOFS)
def test_a_claim_is_not_made_when_unclear(word: str) -> None:
    doubtful = Description(SQUARE, Claim(word, CIRCLE if word in WITH_REFERENCE else None))
    for things in PROOFS[word][1]:
        clip = draw(*things)
        answers = truth_values(clip, word)
        assert answers[0] != TRUE or answers.count(FALSE) < len(things) - 1 or len(things) == 1, (things, answers)
        for expression in expressions_of(clip, range(6)):
            assert (expression.targets, expression.description) != ((0,), doubtful), expression.text


@pytest.mark.parametrize("word", PHRASES)
def test_every_paraphrase_is_used(word: str) -> None:
    claim = Claim(word, CIRCLE if word in WITH_REFERENCE else None)
    rng = np.random.default_rng(0)
    said = {word_description(Description(Noun("red", "", "triangle"), claim), rng) for _ in range(300)}
    for phrase in PHRASES[word]:
        start, _, end = phrase.format("red triangle", ref="\n").partition("\n")
        assert any(start in text and text.endswith(end) for text in said), phrase


def test_it_is_unclear_if_a_bounce_is_turning_back() -> None:
    assert truth_values(draw(square(0.65, 0.3, 0.05)), "turns back") == [UNCLEAR]


@pytest.mark.parametrize("word", sorted(WITH_REFERENCE))
def test_a_reference_is_not_related_to_itself(word: str) -> None:
    things, _ = PROOFS[word]
    answers = truth_values(draw(*things), word, Noun())
    assert [answer for thing, answer in zip(things, answers, strict=True) if thing.kind == "circle"] == [FALSE]


# A moving camera.


def test_motion_words_under_a_moving_camera_need_both_paths() -> None:
    # Moving left relative to the frame and to the background.
    assert truth_values(draw(square(0.8, 0.3, -0.03), circle(0.5, 0.7, 0.03), pan=(0.01, 0.0)), "moves left")[0] == TRUE
    # The background slides right faster than the square goes left: it moves right in the frame.
    assert truth_values(draw(square(0.4, 0.3, -0.02), pan=(-0.04, 0.0)), "moves left")[0] == UNCLEAR
    assert truth_values(draw(square(0.4, 0.3, -0.02), pan=(-0.04, 0.0)), "moves right")[0] == UNCLEAR
    # An object that is fixed to the moving background neither clearly moves nor clearly stays still.
    for word in ("moves", "stays still", "moves right", "fastest"):
        assert truth_values(draw(square(0.3, 0.3), square(0.3, 0.7), pan=(-0.03, 0.0)), word) == [UNCLEAR] * 2, word
    # An object that follows the camera moves relative to the background.
    assert truth_values(draw(square(0.3, 0.3, 0.03), pan=(0.03, 0.0)), "stays still")[0] == UNCLEAR
    # Spinning and growing do not depend on the camera.
    assert truth_values(draw(square(0.3, 0.3, growth=1.05, spin=0.15), pan=(0.02, 0.0)), "grows")[0] == TRUE
    assert truth_values(draw(square(0.3, 0.3, growth=1.05, spin=0.15), pan=(0.02, 0.0)), "spins")[0] == TRUE


# Hidden and absent objects.


def test_a_hidden_object_is_no_reference() -> None:
    cover = Thing("square", "green", 0.16, Motion((0.5, 0.5)))  # the circle shows a little on its four sides
    clip = draw(square(0.1, 0.5, r=0.1), circle(0.5, 0.5), square(0.9, 0.5, r=0.1), cover)
    assert 0 < clip.visible[1].min() < 0.3 * clip.areas[1].min()
    assert truth_values(clip, "left of")[0] == UNCLEAR
    for expression in expressions_of(clip, range(20)):
        if expression.targets and isinstance(expression.description, Description) and expression.description.claim:
            reference = expression.description.claim.reference
            assert reference is None or reference.kind != "circle"


def test_relations_to_an_absent_reference_are_false() -> None:
    assert truth_values(draw(square(0.2, 0.5), square(0.8, 0.5)), "left of") == [FALSE, FALSE]


def test_a_hardly_visible_object_is_no_target_but_still_a_distractor() -> None:
    sliver = Thing("triangle", "red", 0.15, Motion((-0.08, 0.5)))
    clip = draw(square(0.5, 0.5), sliver, circle(0.8, 0.2))
    assert (clip.visible[1] > 0).all()
    for expression in expressions_of(clip, range(20)):
        assert 1 not in expression.targets
        assert (expression.family, expression.targets) != ("colour", (0,))  # two red things can be seen


def test_an_object_outside_the_frame_is_no_distractor() -> None:
    clip = draw(square(0.5, 0.5), Thing("triangle", "red", 0.15, Motion((3.0, 0.5))))
    families = {expression.family for expression in expressions_of(clip, range(20)) if expression.targets == (0,)}
    assert {"colour", "kind", "colour+kind"} <= families
    assert all(1 not in expression.targets for expression in expressions_of(clip, range(20)))


def test_the_place_of_an_object_that_leaves_counts_while_it_is_visible() -> None:
    clip = draw(square(0.85, 0.3, 0.06, walls=False), square(0.2, 0.7))
    assert truth_values(clip, "right") == [TRUE, FALSE]


def test_it_is_unclear_if_a_plain_round_object_spins() -> None:
    clip = draw(circle(0.3, 0.3, spin=0.2), square(0.7, 0.7))
    assert truth_values(clip, "spins", CIRCLE)[0] == UNCLEAR
    striped = Thing("circle", "blue", 0.2, Motion((0.3, 0.3), spin=0.2), texture="striped")
    assert truth_values(draw(striped, square(0.7, 0.7)), "spins", CIRCLE)[0] == TRUE


# Nouns, families and groups.

LOOKS = {
    "colour+kind": (
        (square(0.2, 0.2), circle(0.7, 0.2), Thing("circle", "red", 0.13, Motion((0.5, 0.8)))),
        (square(0.2, 0.2), square(0.7, 0.2), Thing("circle", "red", 0.13, Motion((0.5, 0.8)))),
    ),
    "colour": (
        (square(0.2, 0.2), circle(0.7, 0.2)),
        (square(0.2, 0.2), Thing("star", "red", 0.13, Motion((0.7, 0.7)))),
    ),
    "kind": (
        (square(0.2, 0.2), circle(0.7, 0.2)),
        (square(0.2, 0.2), Thing("square", "white", 0.13, Motion((0.7, 0.7)))),
    ),
    "texture": (
        (square(0.2, 0.2), Thing("square", "red", 0.13, Motion((0.7, 0.7)), texture="striped")),
        (square(0.2, 0.2), square(0.7, 0.7)),
    ),
}


@pytest.mark.parametrize("family", LOOKS)
def test_looks_are_used_only_where_they_identify_the_target(family: str) -> None:
    distinct, twins = LOOKS[family]
    assert any(r.family == family and r.targets == (0,) for r in expressions_of(draw(*distinct), range(30)))
    assert not any(r.family == family and r.targets == (0,) for r in expressions_of(draw(*twins), range(30)))


def test_plain_is_used_only_in_contrast_to_a_pattern() -> None:
    for expression in expressions_of(draw(square(0.2, 0.2), circle(0.7, 0.2)), range(20)):
        assert not expression.targets or not {"plain", "without"} & set(expression.text.split())


def test_the_family_is_the_information_that_is_needed() -> None:
    facts = Facts.of(draw(square(0.2, 0.5), square(0.8, 0.5), circle(0.5, 0.2)))
    assert family_of(facts, Description(SQUARE, Claim("left"))) == "place"
    assert family_of(facts, Description(CIRCLE, Claim("top"))) == "kind"
    assert family_of(facts, Description(Noun("blue", "", "circle"), Claim("stays still"))) == "colour+kind"


def test_groups_contain_exactly_the_matching_objects() -> None:
    clip = draw(square(0.2, 0.2), square(0.2, 0.8), circle(0.7, 0.2), Thing("star", "red", 0.13, Motion((0.7, 0.7))))
    expected = {
        Noun(kind="square"): (0, 1),
        Noun(colour="red", kind="square"): (0, 1),
        Noun(colour="red"): (0, 1, 3),
        Noun(): (0, 1, 2, 3),
    }
    seen = set()
    for expression in expressions_of(clip, range(40)):
        if expression.family == "group" and isinstance(expression.description, Description):
            if expression.description.claim is None:
                assert expression.targets == expected[expression.description.noun], expression
                seen.add(expression.description.noun)
            elif expression.description.claim.word == "left":
                assert expression.targets == (0, 1)
        elif expression.family == "group":
            assert len(expression.targets) == 2
            assert " and " in expression.text
    assert {Noun(colour="red"), Noun()} <= seen


def test_a_group_with_an_unclear_member_is_no_target() -> None:
    barely = square(-0.08, 0.5)
    clip = draw(square(0.3, 0.2), square(0.3, 0.8), barely, circle(0.7, 0.5))
    for expression in expressions_of(clip, range(20)):
        assert set(expression.targets) not in ({0, 1}, {0, 1, 2}) or expression.description != Description(SQUARE)
        assert 2 not in expression.targets
    moving = draw(square(0.2, 0.2, 0.03), square(0.2, 0.5, 0.03), square(0.2, 0.8, 0.03, pace=((6, -1.0),)))
    for expression in expressions_of(moving, range(20)):
        assert not (expression.family == "group" and claims_of(expression) == ["moves right"])


def test_no_object_is_related_to_itself_by_its_noun() -> None:
    for seed in range(10):
        clip = draw(square(0.2, 0.5), circle(0.5, 0.5), square(0.8, 0.5))
        for expression in expressions_of(clip, [seed]):
            if isinstance(expression.description, Description) and expression.description.claim is not None:
                assert expression.description.claim.reference != expression.description.noun, expression.text


# Near misses.


def differences(one: Description, other: Description) -> int:
    """Count the parts in which two descriptions differ."""
    changed = sum(getattr(one.noun, name) != getattr(other.noun, name) for name in ("colour", "texture", "kind"))
    if one.claim is None or other.claim is None:
        return changed + (one.claim is not other.claim)
    changed += one.claim.word != other.claim.word
    first, second = one.claim.reference or Noun(), other.claim.reference or Noun()
    return changed + sum(getattr(first, name) != getattr(second, name) for name in ("colour", "texture", "kind"))


def test_a_near_miss_follows_its_expression_and_has_no_target() -> None:
    kinds = {"none", "group"}
    families = {family: 1.0 for family in FAMILIES if family not in kinds}
    found: list[tuple[str, Description, Description]] = []
    for seed in range(30):
        clip = draw_clip(seed, WorldConfig(frames=8))
        facts = Facts.of(clip)
        chosen = sample_expressions(clip, np.random.default_rng(seed), 4, families, pairs=1.0)
        assert 1 <= len(chosen) <= 4
        for true, near in itertools.pairwise(chosen):
            if near.targets or not true.targets:
                continue
            assert near.family == "none"
            assert isinstance(true.description, Description)
            assert isinstance(near.description, Description)
            assert differences(true.description, near.description) == 1
            assert (facts.evaluate(near.description) == FALSE).all()
            assert near.text != true.text
            found.append((true.family, true.description, near.description))
    assert len(found) > 40
    assert {family for family, _, _ in found} == set(families)
    assert any(one.claim != other.claim for _, one, other in found)
    assert any(one.noun != other.noun for _, one, other in found)


def test_pairs_are_as_frequent_as_requested_and_change_nothing_at_zero() -> None:
    clips = [draw_clip(seed, WorldConfig(frames=1)) for seed in range(40)]
    families = {"colour+kind": 1.0, "kind": 1.0}

    def families_at(pairs: float) -> list[list[str]]:
        rngs = [np.random.default_rng(seed) for seed in range(len(clips))]
        sampled = [sample_expressions(c, rng, 3, families, pairs=pairs) for c, rng in zip(clips, rngs, strict=True)]
        return [[expression.family for expression in each] for each in sampled]

    plain = [
        [r.family for r in sample_expressions(clip, np.random.default_rng(seed), 3, families)]
        for seed, clip in enumerate(clips)
    ]
    assert families_at(0.0) == plain
    few, often = (sum(each.count("none") for each in families_at(share)) for share in (0.0, 0.5))
    always = sum(each.count("none") for each in families_at(1.0))
    assert few < often < always
    assert all(each[1] == "none" for each in families_at(1.0) if len(each) > 1)


def test_training_clips_contain_pairs() -> None:
    clips = WorldClips(WorldConfig(), (1.0,), {"colour+kind": 1.0, "kind": 1.0}, image_size=64, pairs=1.0)
    families = [clips.draw(0, index, (1, 2, 0), 1, 3).families for index in range(8)]
    assert sum(each.count("none") for each in families) >= 8
    masks = clips.draw(0, 0, (1, 2, 0), 1, 3).masks
    assert [bool(mask.any()) for mask in masks] == [family != "none" for family in families[0]]
