"""napari: labels layers without a window, read back equal to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from difficult_masks import EXPRESSIONS, HEIGHT, INDICES, TIMES, WIDTH, difficult_video, masks_of
from refervos.errors import VideoError
from refervos.integrations.napari import add_video, read_masks
from refervos.video import Frame
from video_files import segmentation as segmentation_of

components = pytest.importorskip("napari.components", reason="napari has 90 packages: install the extra 'napari'")


@pytest.fixture
def viewer() -> Any:
    return components.ViewerModel()


@pytest.mark.parametrize("overlapping", [False, True])
def test_masks_are_read_back_equal_to_the_pixel(viewer: Any, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    layers = add_video(viewer, video)
    assert len(layers) == 1 + overlapping
    assert [layer.name for layer in viewer.layers] == ["video", "masks", "masks 2"][: 2 + overlapping]
    found = {(index, track): mask for index, masks in read_masks(layers) for track, mask in masks.items()}
    expected = {key: mask for key, mask in masks_of(video).items() if mask.any()}
    assert set(found) == set(expected)
    for key, mask in expected.items():
        assert np.array_equal(found[key], mask), key


def test_the_slider_shows_the_index_of_the_frame_in_the_video(viewer: Any) -> None:
    video = difficult_video()
    (layer,) = add_video(viewer, video)
    for (frame, segmentation), time in zip(video, TIMES, strict=True):
        viewer.dims.set_point(0, frame.index)
        assert viewer.dims.point[0] == frame.index
        k = int(layer.world_to_data(viewer.dims.point)[0])
        assert np.array_equal(viewer.layers["video"].data[k], frame.image)
        assert np.array_equal(layer.data[k] > 0, segmentation.masks.any(0))
        assert layer.metadata["times"][k] == time
    missing = 6 - INDICES[0]  # the dropped frame
    assert layer.data.shape == (7, HEIGHT, WIDTH)
    assert not layer.data[missing].any()
    assert not viewer.layers["video"].data[missing].any()
    assert layer.metadata["times"][missing] is None


def test_the_table_names_each_label(viewer: Any) -> None:
    (layer,) = add_video(viewer, difficult_video())
    table = layer.features
    assert table["label"].tolist() == [0, 1, 2, 3]
    assert table["track"].tolist() == [-1, 4, 9, 7]
    assert table["expression"].tolist() == ["background", *(EXPRESSIONS[track] for track in (4, 9, 7))]
    assert table["presence"][1] == pytest.approx((5 * 0.9 + 0.125) / 6)


def test_colours_are_those_of_the_overlay(viewer: Any) -> None:
    from refervos.video import palette

    (layer,) = add_video(viewer, difficult_video())
    for label, colour in enumerate(palette(3), 1):
        assert np.round(layer.get_color(label) * 255).tolist() == [*colour, 255]
    assert layer.colormap.color_dict[0][3] == 0


def test_what_a_user_paints_is_read_back(viewer: Any) -> None:
    video = difficult_video()
    (layer,) = add_video(viewer, video)
    layer.data_setitem((np.array([2, 2]), np.array([0, 1]), np.array([50, 50])), 3)
    painted = dict(read_masks([layer]))[INDICES[2]][7]
    expected = masks_of(video)[INDICES[2], 7].copy()
    expected[[0, 1], 50] = True
    assert np.array_equal(painted, expected)


def test_more_than_255_tracks_keep_their_labels(viewer: Any) -> None:
    masks = np.zeros((300, 2, 300), bool)
    masks[range(300), 1, range(300)] = True
    layers = add_video(viewer, [(Frame(0, np.zeros((2, 300, 3), np.uint8)), segmentation_of(0, masks))])
    assert [layer.data.dtype for layer in layers] == [np.uint16]
    assert layers[0].data[0, 1].tolist() == list(range(1, 301))


def test_a_video_without_tracks_has_an_empty_layer_to_paint_on(viewer: Any) -> None:
    empty = segmentation_of(0, np.zeros((0, 4, 6), bool))
    (layer,) = add_video(viewer, [(Frame(0, np.zeros((4, 6, 3), np.uint8)), empty)])
    assert layer.data.shape == (1, 4, 6)
    assert list(read_masks([layer])) == [(0, {})]


def test_no_frames_and_frames_of_several_sizes_are_refused(viewer: Any) -> None:
    with pytest.raises(VideoError, match="there are no frames"):
        add_video(viewer, [])
    sizes = [
        (Frame(k, np.zeros((4, 6 + k, 3), np.uint8)), segmentation_of(k, np.zeros((1, 4, 6 + k), bool)))
        for k in range(2)
    ]
    with pytest.raises(VideoError, match="frame 1 is 7x4, but the first is 6x4"):
        add_video(viewer, sizes)
    assert len(viewer.layers) == 0
