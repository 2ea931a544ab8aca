"""A diagnostic benchmark: ten splits of held-out clips, each with one difficulty, and four of everyday things.

Every case follows from its split and its index: clips are drawn until one meets the split's condition. The seeds begin
with a number that training must not begin its seeds with, so no clip of the benchmark is ever trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError
from refervos.worlds.descriptions import Description, Expression
from refervos.worlds.drawings import DESIGNS, UNSEEN_DESIGN
from refervos.worlds.facts import TARGET_PIXELS
from refervos.worlds.nouns import everyday_nouns
from refervos.worlds.render import Clip, draw_clip
from refervos.worlds.scene import WorldConfig
from refervos.worlds.sentences import referring_expressions
from refervos.worlds.sprites import Sprites

SPLITS = (
    "appearance",
    "spatial",
    "relation",
    "motion",
    "late entry",
    "occlusion",
    "look-alikes",
    "long",
    "multi-target",
    "no-target",
)
"""The splits, in the order of the tables."""

TARGET_SPLITS = tuple(split for split in SPLITS if split != "no-target")
"""The splits whose sentences are about something that is there."""

NOUN_SPLITS = ("nouns", "unseen drawings", "synonyms", "synonyms by noun")
"""Splits of everyday things, which need their drawings: objects told by their noun; the same in a design that no model
of the project was trained on; by synonyms that training never uses; and the clips of these by the nouns themselves."""

ALL_SPLITS = (*SPLITS, *NOUN_SPLITS)

BENCHMARK_SEED = 241117646
"""The first number of every seed of the benchmark; seeds for training begin with another."""

CASES, LONG_CASES = 60, 20
FRAMES, LONG_FRAMES = 24, 200

_MOST_ATTEMPTS = 400

_LOOKS = ("colour+kind", "colour", "kind", "texture")

_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "place": (
        ("left", "right"),
        ("top", "bottom"),
        ("leftmost", "rightmost"),
        ("topmost", "bottommost"),
        ("middle", "top left", "top right", "bottom left", "bottom right"),
    ),
    "relation": (
        ("left of", "right of"),
        ("above", "below"),
        ("larger than", "smaller than"),
        ("nearest to",),
    ),
    "motion": (
        ("moves left", "moves right"),
        ("moves up", "moves down"),
        ("stays still", "moves"),
        ("turns back", "bounces", "curves"),
        ("grows", "shrinks", "spins"),
        ("speeds up", "stops", "starts"),
        ("enters", "leaves", "leaves and returns", "enters from the left", "enters from the right"),
        ("fastest", "passes behind", "passes behind something"),
    ),
}
"""The splits of these families go through the groups of words in turn, so that no kind of claim dominates."""


@dataclass(frozen=True, eq=False)
class DiagnosticCase:
    """One clip and the sentence to ask about it.

    Attributes:
        split: One of ``ALL_SPLITS``.
        index: From 0, within the split.
        clip: The clip.
        expression: The sentence.
        other: A sentence about other objects of the clip, none of them a target: a model that segments the same with
            it does not read. There always is one, except in "no-target", where it may be missing.
    """

    split: str
    index: int
    clip: Clip
    expression: Expression
    other: Expression | None


@dataclass(frozen=True, eq=False)
class BenchmarkDrawings:
    """The drawings of everyday things that the noun splits show.

    Attributes:
        known: The designs that models may be trained on.
        unseen: The design that they may not.
    """

    known: Sprites
    unseen: Sprites

    @classmethod
    def open(cls, folder: str | Path) -> BenchmarkDrawings:
        """Read what ``python -m refervos.worlds.drawings`` made.

        Raises:
            ConfigError: When the folder is missing, or one of the designs.
        """
        known = [design.name for design in DESIGNS if design.name != UNSEEN_DESIGN]
        return cls(Sprites.open(folder, known), Sprites.open(folder, [UNSEEN_DESIGN]))

    def of(self, split: str) -> Sprites:
        """The drawings of one of the noun splits."""
        return self.unseen if split == "unseen drawings" else self.known


Condition = Callable[[Clip, Expression, int], bool]
"""Whether a sentence about a clip belongs into a split as the case of that index."""


def diagnostic_cases(
    split: str,
    count: int | None = None,
    *,
    height: int = 128,
    width: int = 128,
    drawings: BenchmarkDrawings | None = None,
) -> Iterator[DiagnosticCase]:
    """Draw the cases of a split, one by one.

    Args:
        split: One of ``ALL_SPLITS``.
        count: How many; all 60 (20 of "long") when not given. The first cases are the same for every count.
        height: Of the frames, pixels. Other sizes are other clips.
        width: Of the frames, pixels.
        drawings: What the noun splits show; the others need none.

    Yields:
        The cases.

    Raises:
        ConfigError: When there is no such split, clips of this size cannot meet its condition, or drawings are missing.
    """
    for index in range(case_count(split) if count is None else count):
        yield diagnostic_case(split, index, height=height, width=width, drawings=drawings)


def case_count(split: str) -> int:
    """How many cases a split has: 60, or 20 of "long"; ConfigError when there is no such split."""
    _check_split(split)
    return LONG_CASES if split == "long" else CASES


def frame_count(split: str) -> int:
    """How many frames each clip of a split has: 24, or 200 of "long"; ConfigError when there is no such split."""
    _check_split(split)
    return LONG_FRAMES if split == "long" else FRAMES


def diagnostic_case(
    split: str, index: int, *, height: int = 128, width: int = 128, drawings: BenchmarkDrawings | None = None
) -> DiagnosticCase:
    """Draw one case, whatever the others are: clips are drawn until one fits.

    Args:
        split: One of ``ALL_SPLITS``.
        index: From 0.
        height: Of the frames, pixels. Other sizes are other clips.
        width: Of the frames, pixels.
        drawings: What the noun splits show; the others need none.

    Returns:
        The case.

    Raises:
        ConfigError: When there is no such split, clips of this size cannot meet its condition, or drawings are missing.
    """
    _check_split(split)
    if split == "synonyms by noun":
        case = diagnostic_case("synonyms", index, height=height, width=width, drawings=drawings)
        return replace(case, split=split, expression=_by_noun(case.expression))
    sprites: Sprites | None = None
    if split in NOUN_SPLITS:
        if drawings is None:
            raise ConfigError(
                f"split {split!r} shows drawings of everyday things, and none are given; make them with "
                "python -m refervos.worlds.drawings FOLDER, and name the folder."
            )
        sprites = drawings.of(split)
    subjects = () if sprites is None else sprites.subjects
    config, condition = _SPLITS[split]
    config = replace(config, height=height, width=width)
    for attempt in range(_MOST_ATTEMPTS):
        # Never zero: numpy takes a seed that ends with zeros for a shorter one.
        seed = (BENCHMARK_SEED, ALL_SPLITS.index(split) + 1, index + 1, attempt + 1)
        clip = draw_clip((*seed, 1), config, sprites)
        rng = np.random.default_rng((*seed, 2))
        asked = referring_expressions(clip, rng, subjects, unseen=split == "synonyms")
        fitting = [expression for expression in asked if condition(clip, expression, index)]
        rng.shuffle(fitting)
        for expression in fitting:
            others = [other for other in asked if other.targets and not set(other.targets) & set(expression.targets)]
            if others or split == "no-target":
                other = others[int(rng.integers(len(others)))] if others else None
                return DiagnosticCase(split, index, clip, expression, other)
    raise ConfigError(
        f"split {split!r}: none of {_MOST_ATTEMPTS} clips of {config.width}x{config.height} meets its condition; "
        "use a frame that is larger or nearer to square."
    )


def _check_split(split: str) -> None:
    if split not in ALL_SPLITS:
        raise ConfigError(f"split {split!r} is unknown; the splits are {', '.join(ALL_SPLITS)}.")


def _by_looks(expression: Expression) -> bool:
    """Whether a sentence tells one object by colour, kind and texture and says nothing else."""
    return (
        expression.family in _LOOKS
        and isinstance(expression.description, Description)
        and expression.description.claim is None
    )


def _shown(clip: Clip, index: int) -> npt.NDArray[np.floating[Any]]:
    """The visible part of an object in every frame, as a share of its largest (T,)."""
    visible = clip.visible[index]
    return visible / max(1, int(visible.max()))


def _enough(clip: Clip) -> npt.NDArray[np.bool_]:
    """Where objects show as much as a target must (K, T)."""
    unit = (min(clip.frames.shape[1:3]) / 128) ** 2
    return clip.visible >= TARGET_PIXELS * unit


def _appearance(clip: Clip, expression: Expression, index: int) -> bool:
    """All objects are there from the start to the end, and the target is hardly hidden."""
    if not _by_looks(expression):
        return False
    (target,) = expression.targets
    return bool(_enough(clip)[:, [0, -1]].all() and (_shown(clip, target) > 0.5).all())


def _told_by(family: str) -> Condition:
    """Only a claim of this family tells the target, and its word is of the group whose turn it is."""

    def condition(clip: Clip, expression: Expression, index: int) -> bool:
        if expression.family != family or not isinstance(expression.description, Description):
            return False
        claim = expression.description.claim
        return claim is not None and claim.word in _WORDS[family][index % len(_WORDS[family])]

    return condition


def _group(clip: Clip, expression: Expression, index: int) -> bool:
    """The sentence has several targets."""
    return expression.family == "group"


def _late_entry(clip: Clip, expression: Expression, index: int) -> bool:
    """The target enters after a quarter of the clip; something of its colour or kind is there from the start."""
    if not _by_looks(expression):
        return False
    (target,) = expression.targets
    frames = len(clip.frames)
    if (clip.areas[target, : frames // 4] > 0).any():
        return False
    return any(_enough(clip)[other, 0] and _alike(clip, target, other) for other in range(len(clip.masks)))


def _occlusion(clip: Clip, expression: Expression, index: int) -> bool:
    """The target is well visible, then less than a fifth of it is, then it is well visible again.

    In two of three cases it is hidden behind another object, in the third it leaves the frame.
    """
    if not _by_looks(expression):
        return False
    (target,) = expression.targets
    shown = _shown(clip, target)
    well = np.flatnonzero(shown > 0.6)
    gone = np.flatnonzero(shown < 0.2)
    gone = gone[gone > well[0]]
    hidden = bool((clip.areas[target] > 0).all())
    return bool(gone.size) and int((well > gone[0]).sum()) >= max(2, len(shown) // 8) and hidden == (index % 3 != 2)


def _look_alikes(clip: Clip, expression: Expression, index: int) -> bool:
    """Everything else shares the target's colour or kind, and no word of the sentence could be left out."""
    things = clip.scene.objects
    if len(things) < 3 or len(expression.targets) != 1 or not isinstance(expression.description, Description):
        return False
    (target,) = expression.targets
    others = [other for other in range(len(things)) if other != target]
    if not all(_alike(clip, target, other) for other in others):
        return False
    noun, claim = expression.description.noun, expression.description.claim
    if claim is not None:  # exact twins, told by size or place
        twins = [
            other
            for other in others
            if (things[other].colour, things[other].kind, things[other].texture)
            == (things[target].colour, things[target].kind, things[target].texture)
        ]
        return expression.family in ("size", "place") and bool(twins) and bool(noun.colour and noun.kind)
    words = [name for name in ("colour", "texture", "kind") if getattr(noun, name)]
    if len(words) < 2:
        return False
    for dropped in words:
        kept = [name for name in words if name != dropped]
        if not any(all(getattr(things[other], name) == getattr(noun, name) for name in kept) for other in others):
            return False
    return True


def _alike(clip: Clip, target: int, other: int) -> bool:
    """Whether another object has the target's colour or kind."""
    one, two = clip.scene.objects[target], clip.scene.objects[other]
    return other != target and (one.colour == two.colour or one.kind == two.kind)


def _long(clip: Clip, expression: Expression, index: int) -> bool:
    """The target moves, and meets other objects at least three times: in front of them or behind."""
    if not _by_looks(expression):
        return False
    (target,) = expression.targets
    meets = (clip.covered[target] + clip.covered[:, target]).sum(axis=0) > 0.1 * clip.areas[target].max()
    meetings = int((np.diff(meets.astype(np.int8), prepend=0) == 1).sum())
    return meetings >= 3 and clip.scene.objects[target].motion.velocity != (0.0, 0.0)


def _no_target(clip: Clip, expression: Expression, index: int) -> bool:
    """Two of three are hard: part of the description fits something. The others are easy: no word of them does."""
    if expression.family != "none" or not isinstance(expression.description, Description):
        return False
    noun, claim = expression.description.noun, expression.description.claim
    near = any(
        (noun.colour and thing.colour == noun.colour) or (noun.kind and thing.kind == noun.kind)
        for thing in clip.scene.objects
    )
    return bool(near or claim is not None) == (index % 3 != 0)


def _noun(clip: Clip, expression: Expression, index: int) -> bool:
    """The sentence names what its target is, and the target is there from the start to the end and hardly hidden."""
    if not isinstance(expression.description, Description) or not expression.description.noun.kind:
        return False
    return _appearance(clip, expression, index)


def _synonym(clip: Clip, expression: Expression, index: int) -> bool:
    """Likewise, and the noun has synonyms that training never uses, one of which is in the sentence."""
    return _noun(clip, expression, index) and _unseen_in(expression) is not None


def _unseen_in(expression: Expression) -> tuple[str, str] | None:
    """The synonym that training never uses in a sentence, and the noun that it stands for."""
    if not isinstance(expression.description, Description):
        return None
    noun = everyday_nouns().get(expression.description.noun.kind)
    said = (
        [] if noun is None else [name for name in noun.unseen if re.search(rf"\b{re.escape(name)}\b", expression.text)]
    )
    return (said[0], expression.description.noun.kind) if said else None


def _by_noun(expression: Expression) -> Expression:
    """The same sentence with the noun itself."""
    found = _unseen_in(expression)
    assert found is not None  # or it would not be a case
    return replace(expression, text=re.sub(rf"\b{re.escape(found[0])}\b", found[1], expression.text))


_STEADY = WorldConfig(
    frames=FRAMES,
    objects=(3, 5),
    speed=(0.01, 0.028),
    late=0.0,
    leave=0.0,
    leave_and_return=0.0,
    occlude=0.0,
    twins=0.0,
)
"""Clips of average difficulty in which everything stays in sight."""

_THINGS = replace(_STEADY, sprite_share=1.0, near_misses=0.0)
"""Clips of average difficulty of different everyday things."""

_SPLITS: dict[str, tuple[WorldConfig, Condition]] = {
    "appearance": (_STEADY, _appearance),
    "spatial": (replace(_STEADY, twins=0.5, still=0.5, speed=(0.006, 0.018)), _told_by("place")),
    "relation": (replace(_STEADY, twins=0.3, still=0.5, speed=(0.006, 0.018)), _told_by("relation")),
    "motion": (
        replace(
            _STEADY,
            objects=(2, 4),
            twins=0.5,
            still=0.2,
            turn_back=0.12,
            curve=0.1,
            pace=0.2,
            late=0.08,
            leave=0.06,
            leave_and_return=0.04,
            grow=0.1,
            spin=0.2,
            occlude=0.3,
        ),
        _told_by("motion"),
    ),
    "late entry": (replace(_STEADY, late=0.4, near_misses=1.0), _late_entry),
    "occlusion": (replace(_STEADY, leave_and_return=0.15, occlude=0.7, near_misses=0.6), _occlusion),
    "look-alikes": (replace(_STEADY, near_misses=1.0, twins=0.2, textured=0.4, objects=(3, 4)), _look_alikes),
    "long": (
        replace(_STEADY, frames=LONG_FRAMES, still=0.1, pace=0.0, turn_back=0.0, bounce=1.0, speed=(0.008, 0.02)),
        _long,
    ),
    "multi-target": (replace(_STEADY, twins=0.3, alike=0.15, same_kind=0.15), _group),
    "no-target": (replace(_STEADY, twins=0.12, late=0.1, leave=0.05), _no_target),
    "nouns": (_THINGS, _noun),
    "unseen drawings": (_THINGS, _noun),
    "synonyms": (_THINGS, _synonym),
}
"""What clips of each split are like, and when a sentence belongs into it."""
