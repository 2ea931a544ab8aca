"""napari (https://napari.org): segmentations as labels layers, to look at, to correct by hand, and to read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refervos.errors import VideoError, require_installed
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame
from refervos.video.overlay import palette
from refervos.video.tracks import check_fit

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

Mask = npt.NDArray[np.bool_]


def add_video(viewer: ViewerModel, frames: Iterable[tuple[Frame, Segmentation]]) -> list[Labels]:
    """Add the frames of a run and their masks to a viewer of napari.

    The frames become an image layer named ``video`` and the masks a labels layer named ``masks``: 0 is background, and
    tracks are numbered from 1 in order of first appearance. A track that overlaps others in any frame is placed in a
    further layer, so that no pixel is lost. The first axis is the frame's index in the video; it starts at the first
    frame given, and frames that are missing in between are black and without masks.

    Args:
        viewer: A window, ``napari.Viewer()``, or a ``ViewerModel`` without one.
        frames: Frames with their segmentations, all of one size and in order. All are held in memory.

    Returns:
        The labels layers, at least one. ``features`` has a row per label: ``label``, ``track`` (its id in the session),
        ``expression`` and ``presence`` (its mean). ``metadata["times"]`` has the time of each frame in seconds, None
        for missing frames and sources without times.

    Raises:
        VideoError: There are no frames, or their sizes differ.
        MissingDependencyError: napari is not installed.
    """
    require_installed("the labels layer of napari", "napari", "napari")
    run = _Run.of(frames)
    place: dict[str, Any] = {"translate": (run.first, 0, 0), "metadata": {"times": run.times}}
    viewer.add_image(run.images, name="video", rgb=True, **place)
    colours = palette(len(run.tracks))
    layers = []
    for number, tracks in enumerate(run.layers()):
        labels = {track: list(run.tracks).index(track) + 1 for track in tracks}
        layers.append(
            viewer.add_labels(
                run.draw(labels),
                name="masks" if number == 0 else f"masks {number + 1}",
                features=run.features(labels),
                colormap=_colormap({label: colours[label - 1] for label in labels.values()}),
                **place,
            )
        )
    return layers


def read_masks(layers: Iterable[Labels]) -> Iterator[tuple[int, dict[int, Mask]]]:
    """Read masks back from labels layers of ``add_video``, for example after they were corrected by hand.

    Args:
        layers: The labels layers of a video.

    Yields:
        For each frame its index in the video, and the mask, bool (H, W), of each track id that is visible in it.
    """
    layers = list(layers)
    if not layers:
        return
    first = round(float(layers[0].translate[0]))
    for k in range(len(layers[0].data)):
        masks = {}
        for layer in layers:
            labels = np.asarray(layer.data[k])
            for label, track in zip(layer.features["label"], layer.features["track"], strict=True):
                if label and (labels == label).any():
                    masks[int(track)] = labels == label
        yield first + k, masks


@dataclass(frozen=True)
class _Run:
    """Frames and masks of a run in memory.

    Attributes:
        first: Index of the first frame in the video.
        images: uint8 (T, H, W, 3).
        times: Time of each frame in seconds.
        tracks: For each track its masks, bool (T, H, W).
        expressions: Last expression of each track.
        presences: Presences of each track.
    """

    first: int
    images: npt.NDArray[np.uint8]
    times: list[float | None]
    tracks: dict[int, Mask]
    expressions: dict[int, str]
    presences: dict[int, list[float]]

    @classmethod
    def of(cls, frames: Iterable[tuple[Frame, Segmentation]]) -> _Run:
        video = list(frames)
        if not video:
            raise VideoError("there are no frames to show in napari; give at least one.")
        first, last = video[0][0].index, video[-1][0].index
        shape = video[0][0].image.shape
        run = cls(first, np.zeros((last - first + 1, *shape), np.uint8), [None] * (last - first + 1), {}, {}, {})
        for frame, segmentation in video:
            check_fit(frame, segmentation)
            if frame.image.shape != shape:
                size = "{1}x{0}".format(*frame.image.shape)
                raise VideoError(
                    f"frame {frame.index} is {size}, but the first is {shape[1]}x{shape[0]}; napari needs frames of "
                    "one size."
                )
            k = frame.index - first
            run.images[k], run.times[k] = frame.image, frame.time
            for n, track in enumerate(segmentation.track_ids):
                masks = run.tracks.setdefault(track, np.zeros(run.images.shape[:3], bool))
                masks[k] = segmentation.masks[n]
                run.expressions[track] = segmentation.expressions[n]
                run.presences.setdefault(track, []).append(float(segmentation.presence[n]))
        return run

    def layers(self) -> list[list[int]]:
        """Distribute the tracks over as few layers as a first fit needs, none overlapping another in its layer."""
        layers: list[list[int]] = [[]]
        covered = [np.zeros(self.images.shape[:3], bool)]
        for track, masks in self.tracks.items():
            fitting = (k for k, others in enumerate(covered) if not (others & masks).any())
            k = next(fitting, len(layers))
            if k == len(layers):
                layers.append([])
                covered.append(np.zeros_like(masks))
            layers[k].append(track)
            covered[k] |= masks
        return layers

    def draw(self, labels: dict[int, int]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """Draw tracks as their labels, (T, H, W)."""
        ids = np.zeros(self.images.shape[:3], np.uint8 if len(self.tracks) < 256 else np.uint16)
        for track, label in labels.items():
            ids[self.tracks[track]] = label
        return ids

    def features(self, labels: dict[int, int]) -> dict[str, list[Any]]:
        """Return the table of a layer's labels; its first row is the background."""
        means = [float(np.mean(self.presences[track])) for track in labels]
        return {
            "label": [0, *labels.values()],
            "track": [-1, *labels],
            "expression": ["background", *(self.expressions[track] for track in labels)],
            "presence": [float("nan"), *means],
        }


def _colormap(colours: dict[int, tuple[int, int, int]]) -> Any:
    """Return the colours of the labels, as in overlays; labels that a user adds are white."""
    from napari.utils.colormaps import DirectLabelColormap

    color_dict: dict[int | None, npt.NDArray[Any]] = {None: np.ones(4), 0: np.zeros(4)}
    color_dict.update({label: np.array([*colour, 255]) / 255 for label, colour in colours.items()})
    return DirectLabelColormap(color_dict=color_dict)
