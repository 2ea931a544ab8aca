"""Messages of the ROS 2 example: serialised and read back by rosbags, equal to the pixel. The node is not run."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difficult_masks import EXPRESSIONS, HEIGHT, WIDTH, difficult_video
from refervos.errors import FrameError
from refervos.video.tracks import TrackNumbers

typesys = pytest.importorskip("rosbags.typesys", reason="pip install rosbags to run these tests")

VISION_MSGS = {
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}
"""Definitions of vision_msgs 4.1, which rosbags does not bring."""


@pytest.fixture(scope="module")
def messages() -> Any:
    path = Path(__file__).parents[1] / "contrib" / "ros2" / "messages.py"
    spec = importlib.util.spec_from_file_location("ros2_messages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store() -> Any:
    store = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        store.register(typesys.get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    return store


def header(store: Any, k: int) -> Any:
    stamp = store.types["builtin_interfaces/msg/Time"](sec=17, nanosec=1000 + k)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def sent(store: Any, message: Any) -> Any:
    """Serialise a message as ROS 2 does, and read it back."""
    name = message.__msgtype__
    return store.deserialize_cdr(store.serialize_cdr(message, name), name)


def as_uint8(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def test_labels_are_received_equal_to_the_pixel(messages: Any, store: Any) -> None:
    numbers = TrackNumbers()
    for k, (_, segmentation) in enumerate(difficult_video()):
        image = messages.label_image(
            header(store, k), segmentation, numbers, store.types["sensor_msgs/msg/Image"], as_uint8
        )
        received = sent(store, image)
        assert received.header == header(store, k)
        assert (received.height, received.width, received.encoding) == (HEIGHT, WIDTH, "16UC1")
        order = ">u2" if received.is_bigendian else "<u2"
        labels = received.data.view(order).reshape(received.height, received.step // 2)
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
            assert np.array_equal(labels == {4: 1, 9: 2, 7: 3}[track], mask)


def test_detections_have_track_sentence_presence_and_box(messages: Any, store: Any) -> None:
    vision = types.SimpleNamespace(**{name: store.types[f"vision_msgs/msg/{name}"] for name in VISION_MSGS})
    kinds = {name: store.types[f"geometry_msgs/msg/{name}"] for name in ("Point", "Quaternion", "Pose")}

    def pose() -> Any:
        place = kinds["Pose"](
            position=kinds["Point"](0.0, 0.0, 0.0), orientation=kinds["Quaternion"](0.0, 0.0, 0.0, 1.0)
        )
        return store.types["geometry_msgs/msg/PoseWithCovariance"](pose=place, covariance=np.zeros(36))

    for k, (_, segmentation) in enumerate(difficult_video()):
        received = sent(store, messages.detections(header(store, k), segmentation, vision, pose))
        assert received.header == header(store, k)
        visible = [n for n, mask in enumerate(segmentation.masks) if mask.any()]
        assert [found.id for found in received.detections] == [str(segmentation.track_ids[n]) for n in visible]
        for n, found in zip(visible, received.detections, strict=True):
            (result,) = found.results
            assert result.hypothesis.class_id == EXPRESSIONS[segmentation.track_ids[n]]
            assert result.hypothesis.score == pytest.approx(0.9)
            box, size = found.bbox.center.position, (found.bbox.size_x, found.bbox.size_y)
            inside = np.zeros((HEIGHT, WIDTH), bool)
            inside[round(box.y - size[1] / 2) : round(box.y + size[1] / 2), :] = True
            columns = slice(round(box.x - size[0] / 2), round(box.x + size[0] / 2))
            assert segmentation.masks[n][:, columns].sum() == segmentation.masks[n].sum()
            assert not segmentation.masks[n][~inside].any()
            assert segmentation.masks[n][:, columns].any(0)[[0, -1]].all()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_images_of_every_encoding_are_read(messages: Any, store: Any, encoding: str, padding: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    channels = {name: rgb[..., k] for k, name in enumerate("rgb")} | {"a": np.full((HEIGHT, WIDTH), 7, np.uint8)}
    if encoding == "mono8":
        rgb[:] = rgb[..., :1]
        stored = rgb[..., :1]
    else:
        stored = np.stack([channels[name] for name in encoding[:-1]], -1)
    rows = np.pad(stored.reshape(HEIGHT, -1), ((0, 0), (0, padding)), constant_values=9)
    kind = store.types["sensor_msgs/msg/Image"]
    image = kind(header(store, 0), HEIGHT, WIDTH, encoding, 0, rows.shape[1], rows.ravel())
    read = messages.read_image(sent(store, image))
    assert np.array_equal(read, rgb)
    assert read.flags.c_contiguous


def test_images_that_cannot_be_read_are_refused(messages: Any) -> None:
    image = types.SimpleNamespace(encoding="bayer_rggb8", height=2, width=2, step=2, data=b"abcd")
    with pytest.raises(FrameError, match="the encoding 'bayer_rggb8'; publish one of rgb8"):
        messages.read_image(image)
    for height, step, size in ((2, 6, 11), (2, 5, 12), (0, 6, 0)):
        short = types.SimpleNamespace(encoding="rgb8", height=height, width=2, step=step, data=bytes(size))
        with pytest.raises(FrameError, match=f"has {size} bytes"):
            messages.read_image(short)
