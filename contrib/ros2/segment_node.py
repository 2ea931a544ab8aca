"""A ROS 2 node: images and sentences in, label images and detections out. An example, see README.md."""

from __future__ import annotations

import rclpy
from geometry_msgs.msg import PoseWithCovariance
from messages import detections, label_image, read_image
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vision_msgs import msg as vision
from vision_msgs.msg import Detection2DArray

import refervos
from refervos.errors import RefervosError
from refervos.video.tracks import TrackNumbers

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Only the newest image is kept: images that arrive while one is segmented are dropped."""


class SegmentNode(Node):
    """Node that segments what sentences describe in a stream of images.

    Subscribes to ``image`` (sensor_msgs/Image) and ``sentence`` (std_msgs/String), which adds a sentence. Publishes
    ``labels`` (sensor_msgs/Image, 16UC1) and ``detections`` (vision_msgs/Detection2DArray) with the image's header.
    Parameters: ``model``, ``device`` and ``sentences``.
    """

    def __init__(self) -> None:
        super().__init__("refervos")
        model = self.declare_parameter("model", "miniature").value
        device = self.declare_parameter("device", "").value
        sentences = self.declare_parameter("sentences", [""]).value
        self._session = refervos.load(model, device=device or None).open(
            [sentence for sentence in sentences if sentence], on_cut="forget"
        )
        self._numbers = TrackNumbers()
        self._labels = self.create_publisher(Image, "labels", 1)
        self._detections = self.create_publisher(Detection2DArray, "detections", 1)
        self.create_subscription(Image, "image", self._segment, NEWEST)
        self.create_subscription(String, "sentence", self._add, 10)

    def _segment(self, image: Image) -> None:
        if not self._session.expressions:
            return
        try:
            segmentation = self._session.step(read_image(image))
        except RefervosError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        self._labels.publish(label_image(image.header, segmentation, self._numbers, Image))
        self._detections.publish(detections(image.header, segmentation, vision, PoseWithCovariance))

    def _add(self, sentence: String) -> None:
        try:
            self._session.add(sentence.data)
        except RefervosError as error:
            self.get_logger().error(str(error))


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = SegmentNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
