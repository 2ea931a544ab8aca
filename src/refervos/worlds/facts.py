"""Three-valued facts about the objects of a clip, with margins, so that no expression is a close call.

Each evaluation gives one truth value (TRUE, UNCLEAR or FALSE) per object, an array (K,). Expressions are made only from
descriptions that are TRUE of their targets and FALSE of all other objects that are visible at any time.

Rules for all words:

* Everything is FALSE of an object that is never visible.
* Place, size and relation are TRUE if they hold in *every* frame in which the objects concerned are visible, FALSE if
  they fail in every such frame, and UNCLEAR if that changes within the clip.
* Superlatives ("leftmost", "largest", "nearest to") compare with all other objects that the noun phrase may refer to.
* A relation needs a reference that its noun phrase identifies beyond doubt. If the noun phrase matches no object, the
  relation is FALSE of everything.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.movement_facts import (
    FALSE,
    FEWEST_FRAMES,
    MOVEMENTS,
    TRUE,
    UNCLEAR,
    ObjectTimeline,
    movement_facts,
    path_length,
)
from refervos.worlds.nouns import nouns_overlap
from refervos.worlds.render import Clip
from refervos.worlds.scene import Thing
from refervos.worlds.shapes import COLOURS, ROUND_KINDS, TEXTURES

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
TruthValues = npt.NDArray[np.int8]

PLACES = ("left", "right", "top", "bottom", "middle", "top left", "top right", "bottom left", "bottom right")
EXTREMES: dict[str, tuple[int, int]] = {
    "leftmost": (0, -1),
    "rightmost": (0, 1),
    "topmost": (1, -1),
    "bottommost": (1, 1),
}
SIZES: dict[str, int] = {"largest": 1, "smallest": -1}
POSITIONS: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
SIZE_RELATIONS: dict[str, int] = {"larger than": 1, "smaller than": -1}
RELATIONS = (*POSITIONS, *SIZE_RELATIONS, "nearest to")
MOTIONS = (*MOVEMENTS, "fastest", "passes behind something", "passes behind")

CLAIM_FAMILIES: dict[str, str] = {
    **dict.fromkeys((*PLACES, *EXTREMES), "place"),
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(RELATIONS, "relation"),
    **dict.fromkeys(MOTIONS, "motion"),
}
"""Family of each claim, by its word."""

WITH_REFERENCE = frozenset({*RELATIONS, "passes behind"})
"""Words that relate to another object."""

TARGET_PIXELS = 60
"""Minimum visible pixels of a target, for frames of 128 x 128."""

TARGET_SHARE = 0.4
"""Minimum visible share of a target's largest silhouette."""

TARGET_FRAMES = 0.25
"""Share of the frames in which a target must show that much."""

_SEEN_PIXELS = 10  # for frames of 128 x 128: fewer visible pixels are not noticed
_APART = 0.1  # short sides by which "leftmost" etc. must lead
_BESIDE = 0.12  # short sides between the centres for "left of" etc.
_LARGER = 1.25  # ratio of radii
_LARGER_AREA = (
    1.15  # ratio of the roots of the areas; both must hold, because a star fills less of its circle than a disc
)
_FASTER = 1.6  # ratio of speeds


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts about one clip of K objects and T frames.

    Attributes:
        clip: The clip.
        seen: Whether enough of each object is visible (K, T).
        ever_visible: Whether each object is visible in any frame (K,).
        recognisable: Whether each object shows enough to be a target (K,).
        movements: Truth values of each of ``MOVEMENTS``, (K,) each.
        cache: Earlier results; the same few phrases are evaluated thousands of times.
    """

    clip: Clip
    seen: Bools
    ever_visible: Bools
    recognisable: Bools
    movements: dict[str, TruthValues]
    cache: dict[Hashable, TruthValues] = field(default_factory=dict)

    @classmethod
    def of(cls, clip: Clip) -> Facts:
        """Compute the facts of a clip."""
        frames, height, width = clip.frames.shape[:3]
        unit = (min(height, width) / 128) ** 2
        visible = clip.visible
        seen = visible >= max(1.0, _SEEN_PIXELS * unit)
        least = np.maximum(TARGET_PIXELS * unit, TARGET_SHARE * clip.areas.max(axis=1))
        clear_frames = (visible >= least[:, None]).sum(axis=1)
        each = [movement_facts(_timeline(clip, index, seen[index])) for index in range(len(visible))]
        return cls(
            clip,
            seen,
            np.any(visible > 0, axis=1),
            clear_frames >= max(1.0, TARGET_FRAMES * frames),
            {word: np.array([facts[word] for facts in each], np.int8) for word in MOVEMENTS},
        )

    def evaluate(self, description: Description) -> TruthValues:
        """Evaluate a description for every object.

        Args:
            description: The description.

        Returns:
            Truth values (K,).
        """
        noun = self.evaluate_noun(description.noun)
        if description.claim is None:
            return noun
        return np.minimum(noun, self.evaluate_claim(description.claim, noun))

    def evaluate_noun(self, noun: Noun) -> TruthValues:
        """Evaluate a noun phrase for every object (K,)."""
        if noun not in self.cache:
            truths = [
                min(
                    _colour(noun.colour, thing),
                    _texture(noun.texture, thing.texture),
                    _kind(noun.kind, thing.kind),
                )
                for thing in self.clip.scene.objects
            ]
            self.cache[noun] = np.where(self.ever_visible, np.array(truths, np.int8), np.int8(FALSE))
        return self.cache[noun]

    def evaluate_claim(self, claim: Claim, noun: TruthValues) -> TruthValues:
        """Evaluate a claim for every object.

        Args:
            claim: The claim.
            noun: Truth values of the noun phrase (K,); superlatives compare the objects to which it may apply.

        Returns:
            Truth values (K,).
        """
        key = (claim, noun.tobytes())
        if key not in self.cache:
            self.cache[key] = self._compute_claim(claim, noun)
        return self.cache[key]

    def _compute_claim(self, claim: Claim, noun: TruthValues) -> TruthValues:
        word = claim.word
        if claim.reference is not None:
            truths = self._relation(word, claim.reference, noun)
        elif word in PLACES:
            truths = self._place(word)
        elif word in EXTREMES:
            truths = _superlative(self._further(*EXTREMES[word]), noun)
        elif word in SIZES:
            truths = _superlative(self._larger if SIZES[word] > 0 else self._larger.T, noun)
        elif word == "fastest":
            truths = _superlative(self._faster, noun)
        elif word == "passes behind something":
            truths = self._behind.max(axis=1, initial=FALSE)
        else:
            truths = self.movements[word]
        return np.where(self.ever_visible, truths, FALSE).astype(np.int8)

    def find_reference(self, noun: Noun) -> int | None:
        """Find the one object to which a noun phrase refers.

        Args:
            noun: The noun phrase.

        Returns:
            Its index; -1 if no object matches, None if several may be meant or the object shows too little.
        """
        truths = self.evaluate_noun(noun)
        if (truths == FALSE).all():
            return -1
        fitting = np.flatnonzero(truths != FALSE)
        index = int(fitting[0])
        clear = fitting.size == 1 and truths[index] == TRUE and bool(self.recognisable[index])
        return index if clear else None

    def _relation(self, word: str, reference: Noun, noun: TruthValues) -> TruthValues:
        """Evaluate a relation to a reference (K,)."""
        count = len(self.clip.scene.objects)
        other = self.find_reference(reference)
        if other is None:
            return np.full(count, UNCLEAR, np.int8)
        if other < 0:
            return np.full(count, FALSE, np.int8)
        if word in POSITIONS:
            truths = self._beside(*POSITIONS[word], other)
        elif word in SIZE_RELATIONS:
            larger = self._larger
            truths = larger[:, other] if SIZE_RELATIONS[word] > 0 else larger[other]
            truths = truths.copy()
        elif word == "nearest to":
            rivals = noun.copy()
            rivals[other] = FALSE
            truths = _superlative(self._nearer(other), rivals)
        else:
            truths = self._behind[:, other].copy()
        truths[other] = FALSE  # no object is related to itself
        return truths

    def _always(self, true: Bools, false: Bools, when: Bools) -> TruthValues:
        """Reduce a condition over time: TRUE if it holds in all relevant frames, FALSE if it fails in all of them.

        Args:
            true: Frames in which it clearly holds (..., T).
            false: Frames in which it clearly fails (..., T).
            when: The relevant frames (..., T).

        Returns:
            Truth values (...); UNCLEAR where fewer than a quarter of the frames are relevant.
        """
        enough = when.sum(axis=-1) >= max(1.0, TARGET_FRAMES * when.shape[-1])
        yes, no = (true | ~when).all(axis=-1), (false | ~when).all(axis=-1)
        return np.where(enough & yes, TRUE, np.where(enough & no, FALSE, UNCLEAR)).astype(np.int8)

    def _place(self, word: str) -> TruthValues:
        """Evaluate a place in the frame (K,)."""
        height, width = self.clip.frames.shape[1:3]
        short = min(height, width)
        x, y = self.clip.centres[..., 0] * short / width, self.clip.centres[..., 1] * short / height  # shares, (K, T)
        if word == "middle":
            off = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))
            return self._always(off < 0.14, off > 0.24, self.seen)
        distance = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}  # from each border
        sides = word.split()
        limit = 0.36 if len(sides) > 1 else 0.4
        return np.minimum.reduce(
            [self._always(distance[side] < limit, distance[side] > 0.53, self.seen) for side in sides]
        )

    def _both_seen(self) -> Bools:
        """Return the frames in which both of two objects are seen (K, K, T)."""
        return self.seen[:, None] & self.seen[None, :]

    def _further(self, axis: int, sign: int) -> TruthValues:
        """Evaluate whether object i is further along an axis than object j (K, K)."""
        along = sign * self.clip.centres[..., axis]
        lead = along[:, None] - along[None, :]
        return self._always(lead > _APART, lead < -_APART, self._both_seen())

    def _beside(self, axis: int, sign: int, other: int) -> TruthValues:
        """Evaluate whether objects lie to one side of another (K,)."""
        offset = self.clip.centres - self.clip.centres[other]  # (K, T, 2)
        lead, aside = sign * offset[..., axis], np.abs(offset[..., 1 - axis])
        return self._always((lead > _BESIDE) & (lead > 0.7 * aside), lead < 0, self.seen & self.seen[other])

    def _nearer(self, other: int) -> TruthValues:
        """Evaluate whether object i is nearer to ``other`` than object j (K, K)."""
        distance = np.hypot(*np.moveaxis(self.clip.centres - self.clip.centres[other], -1, 0))  # (K, T)
        lead = distance[None, :] - distance[:, None]
        return self._always(lead > _APART, lead < -_APART, self._both_seen() & self.seen[other])

    @cached_property
    def _larger(self) -> TruthValues:
        """Truth values of "object i is larger than object j throughout" (K, K)."""
        seen = self.seen
        least = np.where(seen, self.clip.radii, np.inf).min(axis=1)
        most = np.where(seen, self.clip.radii, 0).max(axis=1)
        root = np.sqrt(self.clip.areas.max(axis=1))
        larger = (least[:, None] > _LARGER * most) & (root[:, None] > _LARGER_AREA * root)
        comparable: Bools = np.any(seen, axis=1)
        larger &= comparable[:, None] & comparable
        smaller_or_same = (
            (most[:, None] < 1.03 * least) & (root[:, None] < 1.03 * root) & comparable[:, None] & comparable
        )
        return np.where(larger, TRUE, np.where(smaller_or_same | larger.T, FALSE, UNCLEAR)).astype(np.int8)

    @cached_property
    def _faster(self) -> TruthValues:
        """Truth values of "object i is faster than object j, on average while seen" (K, K)."""
        count = len(self.clip.scene.objects)
        truths = []
        for camera in (np.zeros_like(self.clip.camera), self.clip.camera):
            speeds = np.full(count, np.nan)
            for index in range(count):
                when = np.flatnonzero(self.seen[index])
                if when.size and when[-1] - when[0] + 1 >= FEWEST_FRAMES:
                    path = (self.clip.centres[index] + camera)[when[0] : when[-1] + 1]
                    speeds[index] = path_length(path) / (len(path) - 1)
            faster = speeds[:, None] > _FASTER * speeds + 0.004  # comparisons with nan are false, hence unclear
            truths.append(np.where(faster, TRUE, np.where(faster.T, FALSE, UNCLEAR)))
        return np.where(truths[0] == truths[1], truths[0], UNCLEAR).astype(np.int8)

    @cached_property
    def _behind(self) -> TruthValues:
        """Truth values of "object i moves behind object j and is in plain view before and after" (K, K)."""
        areas = np.maximum(self.clip.areas, 1)
        hidden = self.clip.covered / areas[:, None]  # (K, K, T)
        in_view = (self.clip.visible > 0.7 * areas) & self.seen  # (K, T)
        before = np.logical_or.accumulate(in_view, axis=1)
        after = np.logical_or.accumulate(in_view[:, ::-1], axis=1)[:, ::-1]
        passes = ((hidden > 0.5) & before[:, None] & after[:, None]).any(axis=-1)
        passes &= (self.movements["moves"] == TRUE)[:, None]
        return np.where(passes, TRUE, np.where((hidden < 0.03).all(axis=-1), FALSE, UNCLEAR)).astype(np.int8)


def _timeline(clip: Clip, index: int, seen: Bools) -> ObjectTimeline:
    thing = clip.scene.objects[index]
    height, width = clip.frames.shape[1:3]
    short = min(height, width)
    # Growth changes the area, too, so the area is divided by the squared radius at the time.
    share = clip.areas[index] / clip.radii[index] ** 2
    return ObjectTimeline(
        centres=clip.centres[index],
        radii=clip.radii[index],
        angles=clip.angles[index],
        turning_shows=thing.kind not in ROUND_KINDS or thing.texture != TEXTURES[0],
        present=share / max(float(share.max()), 1e-9),
        seen=seen,
        extent=(width / short, height / short),
        camera=clip.camera,
    )


def _superlative(better: TruthValues, noun: TruthValues) -> TruthValues:
    """Evaluate a superlative: an object must beat all others to which the noun phrase may apply, at least one.

    Args:
        better: Truth values of "object i beats object j" (K, K).
        noun: Truth values of the noun phrase (K,).

    Returns:
        Truth values (K,).
    """
    rivals = (noun != FALSE) & ~np.eye(len(noun), dtype=np.bool_)  # (K, K): row i holds the rivals of object i
    wins = ((better == TRUE) | ~rivals).all(axis=1) & rivals.any(axis=1)
    loses = (better.T == TRUE) & (noun == TRUE)  # (K, K): beaten by an object to which the noun certainly applies
    return np.where(
        noun == FALSE, FALSE, np.where(wins & (noun == TRUE), TRUE, np.where(loses.any(axis=1), FALSE, UNCLEAR))
    ).astype(np.int8)


def _colour(word: str, thing: Thing) -> int:
    if not word or word == thing.colour:
        return TRUE
    if thing.sprite is not None:
        return UNCLEAR if thing.sprite.may_be_called(word) else FALSE
    return FALSE if thing.colour in COLOURS else UNCLEAR


def _texture(word: str, texture: str) -> int:
    if not word or word == texture:
        return TRUE
    return FALSE if texture in TEXTURES else UNCLEAR


def _kind(word: str, kind: str) -> int:
    if not word or word == kind:
        return TRUE
    return UNCLEAR if nouns_overlap(word, kind) else FALSE
