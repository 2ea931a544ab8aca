"""What is true of the objects of a clip: three-valued, with margins, so that no sentence is a close call.

Every question is answered for all K objects at once by an array of TRUE, UNCLEAR and FALSE. Sentences are made only
from descriptions that are TRUE of their targets and FALSE of everything else that can be seen at any time.

Rules that hold for all words:

* An object that is never visible is not in question: everything is FALSE of it.
* Place, size and relation must hold in *every* frame in which the objects concerned are seen, and must be false in
  every such frame to be FALSE. What changes in mid clip is UNCLEAR.
* Comparing words ("leftmost", "largest", "nearest to") compare with everything else that the noun might mean.
* A relation needs a reference that the noun phrase names without doubt. Where nothing at all fits the noun phrase,
  the relation is FALSE of everything.
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
    Appearance,
    movement_facts,
    path_length,
)
from refervos.worlds.nouns import may_be
from refervos.worlds.render import Clip
from refervos.worlds.scene import Thing
from refervos.worlds.shapes import COLOURS, ROUND_KINDS, TEXTURES

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Truths = npt.NDArray[np.int8]

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
COMPARISONS: dict[str, int] = {"larger than": 1, "smaller than": -1}
RELATIONS = (*POSITIONS, *COMPARISONS, "nearest to")
MOTIONS = (*MOVEMENTS, "fastest", "passes behind something", "passes behind")

CLAIM_FAMILIES: dict[str, str] = {
    **dict.fromkeys((*PLACES, *EXTREMES), "place"),
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(RELATIONS, "relation"),
    **dict.fromkeys(MOTIONS, "motion"),
}
"""Every claim's word and its family."""

WITH_REFERENCE = frozenset({*RELATIONS, "passes behind"})
"""The words that relate to another object."""

TARGET_PIXELS = 60
"""A target shows at least this many pixels per 128 x 128 ..."""

TARGET_SHARE = 0.4
"""... and this share of its largest silhouette, so that it can be recognised, ..."""

TARGET_FRAMES = 0.25
"""... in at least this share of the frames."""

_SEEN_PIXELS = 10  # per 128 x 128: less than that is not noticed
_APART = 0.1  # short sides by which "leftmost" and its like must lead
_BESIDE = 0.12  # short sides between the centres for "left of" and its like
_LARGER = 1.25  # ratio of radii
_LARGER_AREA = 1.15  # ratio of the roots of the areas; both must hold, for a star fills its circle less than a disc
_FASTER = 1.6


@dataclass(frozen=True, eq=False)
class Facts:
    """The answers for one clip.

    Attributes:
        clip: The clip.
        seen: Whether enough of each object is visible (K, T).
        ever: Whether each object is visible at all (K,).
        target: Whether each object shows enough to be asked for (K,).
        movements: Answers for each of ``MOVEMENTS``, (K,) each.
        answered: Answers that were given before: the same few phrases are asked about thousands of times.
    """

    clip: Clip
    seen: Bools
    ever: Bools
    target: Bools
    movements: dict[str, Truths]
    answered: dict[Hashable, Truths] = field(default_factory=dict)

    @classmethod
    def of(cls, clip: Clip) -> Facts:
        """Collect what the answers need.

        Args:
            clip: The clip.

        Returns:
            The facts.
        """
        frames, height, width = clip.frames.shape[:3]
        unit = (min(height, width) / 128) ** 2
        visible = clip.visible
        seen = visible >= max(1.0, _SEEN_PIXELS * unit)
        least = np.maximum(TARGET_PIXELS * unit, TARGET_SHARE * clip.areas.max(axis=1))
        well = (visible >= least[:, None]).sum(axis=1)
        each = [movement_facts(_appearance(clip, index, seen[index])) for index in range(len(visible))]
        return cls(
            clip,
            seen,
            np.any(visible > 0, axis=1),
            well >= max(1.0, TARGET_FRAMES * frames),
            {word: np.array([facts[word] for facts in each], np.int8) for word in MOVEMENTS},
        )

    def describe(self, description: Description) -> Truths:
        """Of which objects a description is true.

        Args:
            description: The description.

        Returns:
            TRUE, UNCLEAR or FALSE for each object (K,).
        """
        noun = self.noun(description.noun)
        if description.claim is None:
            return noun
        return np.minimum(noun, self.claim(description.claim, noun))

    def noun(self, noun: Noun) -> Truths:
        """Of which objects a noun phrase is true (K,)."""
        if noun not in self.answered:
            truths = [
                min(
                    _colour(noun.colour, thing),
                    _texture(noun.texture, thing.texture),
                    _kind(noun.kind, thing.kind),
                )
                for thing in self.clip.scene.objects
            ]
            self.answered[noun] = np.where(self.ever, np.array(truths, np.int8), np.int8(FALSE))
        return self.answered[noun]

    def claim(self, claim: Claim, noun: Truths) -> Truths:
        """Of which objects a claim is true.

        Args:
            claim: The claim.
            noun: Answers for the noun phrase that the claim is about (K,), which comparing words compare among.

        Returns:
            Answers (K,).
        """
        asked = (claim, noun.tobytes())
        if asked not in self.answered:
            self.answered[asked] = self._claim(claim, noun)
        return self.answered[asked]

    def _claim(self, claim: Claim, noun: Truths) -> Truths:
        word = claim.word
        if claim.reference is not None:
            truths = self._related(word, claim.reference, noun)
        elif word in PLACES:
            truths = self._place(word)
        elif word in EXTREMES:
            truths = _leads(self._further(*EXTREMES[word]), noun)
        elif word in SIZES:
            truths = _leads(self._larger if SIZES[word] > 0 else self._larger.T, noun)
        elif word == "fastest":
            truths = _leads(self._faster, noun)
        elif word == "passes behind something":
            truths = self._behind.max(axis=1, initial=FALSE)
        else:
            truths = self.movements[word]
        return np.where(self.ever, truths, FALSE).astype(np.int8)

    def reference(self, noun: Noun) -> int | None:
        """The one object that a noun phrase names.

        Args:
            noun: The noun phrase.

        Returns:
            Its index; -1 when nothing fits, None when it is not clear which is meant or the object shows too little.
        """
        truths = self.noun(noun)
        if (truths == FALSE).all():
            return -1
        fitting = np.flatnonzero(truths != FALSE)
        index = int(fitting[0])
        clear = fitting.size == 1 and truths[index] == TRUE and bool(self.target[index])
        return index if clear else None

    def _related(self, word: str, reference: Noun, noun: Truths) -> Truths:
        """A relation to a reference (K,)."""
        count = len(self.clip.scene.objects)
        other = self.reference(reference)
        if other is None:
            return np.full(count, UNCLEAR, np.int8)
        if other < 0:
            return np.full(count, FALSE, np.int8)
        if word in POSITIONS:
            truths = self._beside(*POSITIONS[word], other)
        elif word in COMPARISONS:
            larger = self._larger
            truths = larger[:, other] if COMPARISONS[word] > 0 else larger[other]
            truths = truths.copy()
        elif word == "nearest to":
            rivals = noun.copy()
            rivals[other] = FALSE
            truths = _leads(self._nearer(other), rivals)
        else:
            truths = self._behind[:, other].copy()
        truths[other] = FALSE  # nothing is beside itself
        return truths

    def _always(self, true: Bools, false: Bools, when: Bools) -> Truths:
        """TRUE where a condition holds in all the frames that count, FALSE where it fails in all of them.

        Args:
            true: Clearly so (..., T).
            false: Clearly not so (..., T).
            when: The frames that count (..., T).

        Returns:
            Answers (...); UNCLEAR where fewer than a quarter of the frames count.
        """
        enough = when.sum(axis=-1) >= max(1.0, TARGET_FRAMES * when.shape[-1])
        yes, no = (true | ~when).all(axis=-1), (false | ~when).all(axis=-1)
        return np.where(enough & yes, TRUE, np.where(enough & no, FALSE, UNCLEAR)).astype(np.int8)

    def _place(self, word: str) -> Truths:
        """Where in the frame (K,)."""
        height, width = self.clip.frames.shape[1:3]
        short = min(height, width)
        x, y = self.clip.centres[..., 0] * short / width, self.clip.centres[..., 1] * short / height  # shares, (K, T)
        if word == "middle":
            off = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))
            return self._always(off < 0.14, off > 0.24, self.seen)
        low = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
        corner = len(word.split()) > 1
        truths = [
            self._always(low[side] < (0.36 if corner else 0.4), low[side] > 0.53, self.seen) for side in word.split()
        ]
        return np.minimum.reduce(truths)

    def _together(self) -> Bools:
        """Frames in which two objects are both seen (K, K, T)."""
        return self.seen[:, None] & self.seen[None, :]

    def _further(self, axis: int, sign: int) -> Truths:
        """Whether the first object is further along an axis than the second (K, K)."""
        along = sign * self.clip.centres[..., axis]
        lead = along[:, None] - along[None, :]
        return self._always(lead > _APART, lead < -_APART, self._together())

    def _beside(self, axis: int, sign: int, other: int) -> Truths:
        """Whether objects lie to one side of another (K,)."""
        offset = self.clip.centres - self.clip.centres[other]  # (K, T, 2)
        lead, aside = sign * offset[..., axis], np.abs(offset[..., 1 - axis])
        return self._always((lead > _BESIDE) & (lead > 0.7 * aside), lead < 0, self.seen & self.seen[other])

    def _nearer(self, other: int) -> Truths:
        """Whether the first object is nearer to another than the second (K, K)."""
        distance = np.hypot(*np.moveaxis(self.clip.centres - self.clip.centres[other], -1, 0))  # (K, T)
        lead = distance[None, :] - distance[:, None]
        return self._always(lead > _APART, lead < -_APART, self._together() & self.seen[other])

    @cached_property
    def _larger(self) -> Truths:
        """Whether the first object is larger than the second throughout (K, K)."""
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
    def _faster(self) -> Truths:
        """Whether the first object is clearly faster than the second, on average while seen (K, K)."""
        count = len(self.clip.scene.objects)
        truths = []
        for camera in (np.zeros_like(self.clip.camera), self.clip.camera):
            speeds = np.full(count, np.nan)
            for index in range(count):
                when = np.flatnonzero(self.seen[index])
                if when.size and when[-1] - when[0] + 1 >= FEWEST_FRAMES:
                    path = (self.clip.centres[index] + camera)[when[0] : when[-1] + 1]
                    speeds[index] = path_length(path) / (len(path) - 1)
            faster = speeds[:, None] > _FASTER * speeds + 0.004  # nan compares false: unclear
            truths.append(np.where(faster, TRUE, np.where(faster.T, FALSE, UNCLEAR)))
        return np.where(truths[0] == truths[1], truths[0], UNCLEAR).astype(np.int8)

    @cached_property
    def _behind(self) -> Truths:
        """Whether the first object passes behind the second (K, K): in sight before and after, and moving."""
        areas = np.maximum(self.clip.areas, 1)
        hidden = self.clip.covered / areas[:, None]  # (K, K, T)
        open_ = (self.clip.visible > 0.7 * areas) & self.seen  # (K, T)
        before = np.logical_or.accumulate(open_, axis=1)
        after = np.logical_or.accumulate(open_[:, ::-1], axis=1)[:, ::-1]
        passes = ((hidden > 0.5) & before[:, None] & after[:, None]).any(axis=-1)
        passes &= (self.movements["moves"] == TRUE)[:, None]
        return np.where(passes, TRUE, np.where((hidden < 0.03).all(axis=-1), FALSE, UNCLEAR)).astype(np.int8)


def _appearance(clip: Clip, index: int, seen: Bools) -> Appearance:
    thing = clip.scene.objects[index]
    height, width = clip.frames.shape[1:3]
    short = min(height, width)
    # Growth changes the area too: what counts is the area for its size at the time.
    share = clip.areas[index] / clip.radii[index] ** 2
    return Appearance(
        centres=clip.centres[index],
        radii=clip.radii[index],
        angles=clip.angles[index],
        turning_shows=thing.kind not in ROUND_KINDS or thing.texture != TEXTURES[0],
        present=share / max(float(share.max()), 1e-9),
        seen=seen,
        extent=(width / short, height / short),
        camera=clip.camera,
    )


def _leads(better: Truths, noun: Truths) -> Truths:
    """Of which object a comparing word is true: it beats all others that the noun might mean, at least one.

    Args:
        better: Whether the first object beats the second (K, K).
        noun: Answers for the noun phrase (K,).

    Returns:
        Answers (K,).
    """
    rivals = (noun != FALSE) & ~np.eye(len(noun), dtype=np.bool_)  # (K, K): row by row, whom to beat
    wins = ((better == TRUE) | ~rivals).all(axis=1) & rivals.any(axis=1)
    loses = (better.T == TRUE) & (noun == TRUE)  # (K, K): beaten by one that certainly is meant
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
    return UNCLEAR if may_be(word, kind) else FALSE
