"""Diagnostic benchmark: ten splits of held-out clips, each with one difficulty, and four of everyday objects.

Split and index determine a case: clips are drawn until one meets the split's condition. All seeds begin with a number
that is reserved for the benchmark, so that its clips never occur in training.
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
"""Splits, in the order of the tables."""

TARGET_SPLITS = tuple(split for split in SPLITS if split != "no-target")
"""Splits whose expressions have a target."""

NOUN_SPLITS = ("nouns", "unseen drawings", "synonyms", "synonyms by noun")
"""Splits of everyday objects, which need drawings: objects identified by their noun; the same in a design that no model
of the project was trained on; by synonyms that training never uses; and the same clips by the nouns themselves."""

ALL_SPLITS = (*SPLITS, *NOUN_SPLITS)

BENCHMARK_SEED = 241117646
"""First number of every seed of the benchmark; training must not use it as a first number."""

CASES, LONG_CASES = 60, 20
FRAMES, LONG_FRAMES = 24, 200

_MAX_ATTEMPTS = 400

_LOOKS = ("colour+kind", "colour", "kind", "texture")

_WORD_GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
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
"""Groups of words by family; the splits of these families take turns over the groups, so that no claim dominates."""


@dataclass(frozen=True, eq=False)
class DiagnosticCase:
    """Clip and referring expression of the benchmark.

    Attributes:
        split: One of ``ALL_SPLITS``.
        index: Index within the split.
        clip: The clip.
        expression: The expression.
        other: An expression about other objects of the clip, none of them a target: a model that predicts the same
            masks for it ignores the text. It may be missing in the split "no-target" only.
    """

    split: str
    index: int
    clip: Clip
    expression: Expression
    other: Expression | None


@dataclass(frozen=True, eq=False)
class BenchmarkDrawings:
    """Drawings of everyday objects for the noun splits.

    Attributes:
        known: The designs that may be used for training.
        unseen: The design that is reserved for testing.
    """

    known: Sprites
    unseen: Sprites

    @classmethod
    def open(cls, folder: str | Path) -> BenchmarkDrawings:
        """Read a folder written by ``python -m refervos.worlds.drawings``.

        Raises:
            ConfigError: When the folder or one of the designs is missing.
        """
        known = [design.name for design in DESIGNS if design.name != UNSEEN_DESIGN]
        return cls(Sprites.open(folder, known), Sprites.open(folder, [UNSEEN_DESIGN]))

    def for_split(self, split: str) -> Sprites:
        """Return the drawings of one of the noun splits."""
        return self.unseen if split == "unseen drawings" else self.known


Condition = Callable[[Clip, Expression, int], bool]
"""Predicate of clip, expression and index: whether they form the case of that index of a split."""


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
        count: Number of cases; default all 60 (20 of "long"). The first cases are the same for every count.
        height: Height of the frames, pixels. Other sizes give other clips.
        width: Width of the frames, pixels.
        drawings: Drawings for the noun splits; the others need none.

    Yields:
        The cases.

    Raises:
        ConfigError: When there is no such split, clips of this size cannot meet its condition, or drawings are missing.
    """
    for index in range(case_count(split) if count is None else count):
        yield diagnostic_case(split, index, height=height, width=width, drawings=drawings)


def case_count(split: str) -> int:
    """Return the number of cases of a split: 60, or 20 of "long"; ConfigError when there is no such split."""
    _check_split(split)
    return LONG_CASES if split == "long" else CASES


def frame_count(split: str) -> int:
    """Return the frames per clip of a split: 24, or 200 of "long"; ConfigError when there is no such split."""
    _check_split(split)
    return LONG_FRAMES if split == "long" else FRAMES


def diagnostic_case(
    split: str, index: int, *, height: int = 128, width: int = 128, drawings: BenchmarkDrawings | None = None
) -> DiagnosticCase:
    """Draw one case, independent of the others: clips are drawn until one meets the condition.

    Args:
        split: One of ``ALL_SPLITS``.
        index: Index within the split.
        height: Height of the frames, pixels. Other sizes give other clips.
        width: Width of the frames, pixels.
        drawings: Drawings for the noun splits; the others need none.

    Returns:
        The case.

    Raises:
        ConfigError: When there is no such split, clips of this size cannot meet its condition, or drawings are missing.
    """
    _check_split(split)
    if split == "synonyms by noun":
        case = diagnostic_case("synonyms", index, height=height, width=width, drawings=drawings)
        return replace(case, split=split, expression=_replace_synonym(case.expression))
    sprites: Sprites | None = None
    if split in NOUN_SPLITS:
        if drawings is None:
            raise ConfigError(
                f"split {split!r} needs drawings of everyday objects; make them with "
                "python -m refervos.worlds.drawings FOLDER and give that folder."
            )
        sprites = drawings.for_split(split)
    subjects = () if sprites is None else sprites.subjects
    config, condition = _SPLITS[split]
    config = replace(config, height=height, width=width)
    for attempt in range(_MAX_ATTEMPTS):
        # No zeros, because numpy ignores zeros at the end of a seed.
        seed = (BENCHMARK_SEED, ALL_SPLITS.index(split) + 1, index + 1, attempt + 1)
        clip = draw_clip((*seed, 1), config, sprites)
        rng = np.random.default_rng((*seed, 2))
        expressions = referring_expressions(clip, rng, subjects, unseen=split == "synonyms")
        fitting = [expression for expression in expressions if condition(clip, expression, index)]
        rng.shuffle(fitting)
        for expression in fitting:
            others = [
                other for other in expressions if other.targets and not set(other.targets) & set(expression.targets)
            ]
            if others or split == "no-target":
                other = others[int(rng.integers(len(others)))] if others else None
                return DiagnosticCase(split, index, clip, expression, other)
    raise ConfigError(
        f"split {split!r}: none of {_MAX_ATTEMPTS} clips of {config.width}x{config.height} meets its condition; "
        "use a larger frame or one closer to a square."
    )


def _check_split(split: str) -> None:
    if split not in ALL_SPLITS:
        raise ConfigError(f"split {split!r} is unknown; the splits are {', '.join(ALL_SPLITS)}.")


def _is_appearance_only(expression: Expression) -> bool:
    """Return whether an expression identifies one object by colour, kind and texture and makes no claim."""
    return (
        expression.family in _LOOKS
        and isinstance(expression.description, Description)
        and expression.description.claim is None
    )


def _visible_share(clip: Clip, index: int) -> npt.NDArray[np.floating[Any]]:
    """Return the visible pixels of an object in every frame, as a share of their maximum (T,)."""
    visible = clip.visible[index]
    return visible / max(1, int(visible.max()))


def _shown_well(clip: Clip) -> npt.NDArray[np.bool_]:
    """Return the frames in which objects show as much as a target must (K, T)."""
    unit = (min(clip.frames.shape[1:3]) / 128) ** 2
    return clip.visible >= TARGET_PIXELS * unit


def _appearance(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that all objects are visible at the start and at the end, and that the target is hardly hidden."""
    if not _is_appearance_only(expression):
        return False
    (target,) = expression.targets
    return bool(_shown_well(clip)[:, [0, -1]].all() and (_visible_share(clip, target) > 0.5).all())


def _needs_claim(family: str) -> Condition:
    """Require that a claim of this family is needed, and that its word is of the group for this index."""

    def condition(clip: Clip, expression: Expression, index: int) -> bool:
        if expression.family != family or not isinstance(expression.description, Description):
            return False
        claim = expression.description.claim
        return claim is not None and claim.word in _WORD_GROUPS[family][index % len(_WORD_GROUPS[family])]

    return condition


def _group(clip: Clip, expression: Expression, index: int) -> bool:
    """Require several targets."""
    return expression.family == "group"


def _late_entry(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that the target enters after a quarter of the clip, and a similar object is visible from the start."""
    if not _is_appearance_only(expression):
        return False
    (target,) = expression.targets
    frames = len(clip.frames)
    if (clip.areas[target, : frames // 4] > 0).any():
        return False
    return any(
        _shown_well(clip)[other, 0] and _shares_appearance(clip, target, other) for other in range(len(clip.masks))
    )


def _occlusion(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that the target is well visible, then to less than a fifth, then well visible again.

    In two of three cases it is hidden behind another object, in the third it leaves the frame.
    """
    if not _is_appearance_only(expression):
        return False
    (target,) = expression.targets
    shown = _visible_share(clip, target)
    well = np.flatnonzero(shown > 0.6)
    gone = np.flatnonzero(shown < 0.2)
    gone = gone[gone > well[0]]
    hidden = bool((clip.areas[target] > 0).all())
    return bool(gone.size) and int((well > gone[0]).sum()) >= max(2, len(shown) // 8) and hidden == (index % 3 != 2)


def _look_alikes(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that all other objects share the target's colour or kind, and that no word can be left out."""
    things = clip.scene.objects
    if len(things) < 3 or len(expression.targets) != 1 or not isinstance(expression.description, Description):
        return False
    (target,) = expression.targets
    others = [other for other in range(len(things)) if other != target]
    if not all(_shares_appearance(clip, target, other) for other in others):
        return False
    noun, claim = expression.description.noun, expression.description.claim
    if claim is not None:  # identical objects that differ in size or place
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


def _shares_appearance(clip: Clip, target: int, other: int) -> bool:
    """Return whether another object has the target's colour or kind."""
    one, two = clip.scene.objects[target], clip.scene.objects[other]
    return other != target and (one.colour == two.colour or one.kind == two.kind)


def _long(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that the target moves and overlaps other objects at least three times, in front of them or behind."""
    if not _is_appearance_only(expression):
        return False
    (target,) = expression.targets
    overlaps = (clip.covered[target] + clip.covered[:, target]).sum(axis=0) > 0.1 * clip.areas[target].max()
    count = int((np.diff(overlaps.astype(np.int8), prepend=0) == 1).sum())
    return count >= 3 and clip.scene.objects[target].motion.velocity != (0.0, 0.0)


def _no_target(clip: Clip, expression: Expression, index: int) -> bool:
    """Require no target: in two of three cases part of the description matches an object, in the third none does."""
    if expression.family != "none" or not isinstance(expression.description, Description):
        return False
    noun, claim = expression.description.noun, expression.description.claim
    near = any(
        (noun.colour and thing.colour == noun.colour) or (noun.kind and thing.kind == noun.kind)
        for thing in clip.scene.objects
    )
    return bool(near or claim is not None) == (index % 3 != 0)


def _noun(clip: Clip, expression: Expression, index: int) -> bool:
    """Require that the expression contains the target's noun, and the same visibility as ``_appearance``."""
    if not isinstance(expression.description, Description) or not expression.description.noun.kind:
        return False
    return _appearance(clip, expression, index)


def _synonym(clip: Clip, expression: Expression, index: int) -> bool:
    """Require the same as ``_noun``, by a synonym that training never uses."""
    return _noun(clip, expression, index) and _find_unseen_synonym(expression) is not None


def _find_unseen_synonym(expression: Expression) -> tuple[str, str] | None:
    """Find a synonym that training never uses in an expression, and the noun that it replaces."""
    if not isinstance(expression.description, Description):
        return None
    noun = everyday_nouns().get(expression.description.noun.kind)
    synonyms = () if noun is None else noun.unseen
    found = [name for name in synonyms if re.search(rf"\b{re.escape(name)}\b", expression.text)]
    return (found[0], expression.description.noun.kind) if found else None


def _replace_synonym(expression: Expression) -> Expression:
    """Replace the unseen synonym of an expression by the noun itself."""
    found = _find_unseen_synonym(expression)
    assert found is not None  # a condition of the split "synonyms"
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
"""Clips of average difficulty in which all objects stay in the frame."""

_EVERYDAY = replace(_STEADY, sprite_share=1.0, near_misses=0.0)
"""Clips of average difficulty of different everyday objects."""

_SPLITS: dict[str, tuple[WorldConfig, Condition]] = {
    "appearance": (_STEADY, _appearance),
    "spatial": (replace(_STEADY, twins=0.5, still=0.5, speed=(0.006, 0.018)), _needs_claim("place")),
    "relation": (replace(_STEADY, twins=0.3, still=0.5, speed=(0.006, 0.018)), _needs_claim("relation")),
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
        _needs_claim("motion"),
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
    "nouns": (_EVERYDAY, _noun),
    "unseen drawings": (_EVERYDAY, _noun),
    "synonyms": (_EVERYDAY, _synonym),
}
"""Distribution of the clips of each split, and the condition for its expressions."""
