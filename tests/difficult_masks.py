"""A short segmented video with everything that export formats get wrong, for the round trips of the integrations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refervos.segmentation import Segmentation
from refervos.video import Frame

HEIGHT, WIDTH = 37, 53
"""An odd size, neither square nor a multiple of anything."""

INDICES = (3, 4, 5, 7, 8, 9)
"""The run starts at frame 3, and frame 6 was dropped."""

TIMES = (0.1, 0.14, 0.3, 0.42, 0.5, 1.25)
"""A variable frame rate."""

EXPRESSIONS = {4: "the ring and its shadow", 7: "東京タワーの前を歩く人 🦊", 9: 'der "kleine" Hund & <Katze>, links'}
"""The expression of each track. Track ids of a session are neither consecutive nor from 0 once tracks were dropped."""


def difficult_video(*, overlapping: bool = False) -> list[tuple[Frame, Segmentation]]:
    """Make frames with their segmentations.

    Track 4 has a hole and disjoint parts that touch the border, and is empty in one frame. Track 7 joins in the third
    frame, disappears and comes back. Track 9 is a single pixel in the first frame and is dropped in the fifth, where
    no track but 4 is visible. Track 7 comes before track 4 in the last frame.

    Args:
        overlapping: Whether track 7 covers a part of track 4; else the masks of a frame are disjoint.

    Returns:
        A frame with its segmentation for each of ``INDICES``.
    """
    rng = np.random.default_rng(0)
    video = []
    for k, (index, time) in enumerate(zip(INDICES, TIMES, strict=True)):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        masks = {4: ring_and_parts(k)}
        if k == 3:
            masks[4][:] = False
        if k >= 2:
            masks[7] = np.zeros((HEIGHT, WIDTH), bool)
            if k != 4:
                left = 8 if overlapping else 30
                masks[7][12:31, left : left + 11 + k] = True
        if k < 4:
            masks[9] = np.zeros((HEIGHT, WIDTH), bool)
            masks[9][35, 25 : 26 + 2 * k] = True
        order = sorted(masks, reverse=k == 5)
        segmentation = Segmentation(
            frame_index=k,
            track_ids=tuple(order),
            expressions=tuple(EXPRESSIONS[track] for track in order),
            masks=np.stack([masks[track] for track in order]),
            presence=np.array([0.9 if masks[track].any() else 0.125 for track in order], np.float32),
            switched=np.zeros(len(order), bool),
        )
        video.append((Frame(index, image, time), segmentation))
    return video


def ring_and_parts(k: int) -> npt.NDArray[np.bool_]:
    """Draw a ring that moves right, a diagonal of single pixels, and two corners of the frame."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    distance = (x - 13 - k) ** 2 + (y - 18) ** 2
    mask = (distance < 100) & (distance > 16)
    mask[range(5), range(20, 25)] = True
    mask[:2, :3] = True
    mask[-1, -4:] = True
    return np.asarray(mask)


def masks_of(video: list[tuple[Frame, Segmentation]]) -> dict[tuple[int, int], npt.NDArray[np.bool_]]:
    """Return the mask, bool (H, W), of each frame index and track id."""
    return {
        (frame.index, track): mask
        for frame, segmentation in video
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True)
    }


def visible_masks(video: list[tuple[Frame, Segmentation]]) -> dict[tuple[int, int], npt.NDArray[np.bool_]]:
    """Return the masks that are not empty, bool (H, W), by frame index and track id."""
    return {key: mask for key, mask in masks_of(video).items() if mask.any()}
