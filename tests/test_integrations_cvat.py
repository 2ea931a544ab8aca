"""CVAT's functions, loaded as its command line loads them and checked with its SDK; a CVAT server is not needed."""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import refervos
from refervos.errors import PromptError
from refervos.integrations.cvat.detection import SentenceDetection
from refervos.integrations.cvat.interaction import ClickSegmentation
from refervos.integrations.cvat.tracking import ShapeTracking
from refervos.integrations.cvat.video import CvatSink
from refervos.integrations.run_lengths import Box
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.segmentation import Segmentation
from refervos.video import Frame, SourceInfo
from scenes import MICRO_SAM2
from video_files import box_masks, numbered_frame, segmentation

cvataa = pytest.importorskip("cvat_sdk.auto_annotation", reason="the extra 'cvat' installs cvat-sdk")
common = pytest.importorskip("cvat_cli._internal.common", reason="the extra 'cvat' installs cvat-cli")

from cvat_cli._internal import commands_all  # noqa: E402
from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402
from cvat_sdk.masks import decode_mask, encode_mask  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"


class Prompts:
    """Clicks and a box of a user."""

    def __init__(self, positive: Any = (), negative: Any = (), box: Any = None) -> None:
        self._values = positive, negative, box

    @property
    def pos_points(self) -> Any:
        return self._values[0]

    @property
    def neg_points(self) -> Any:
        return self._values[1]

    @property
    def bounding_box(self) -> Any:
        return self._values[2]


class ShapeContext:
    """The type of the shape that is tracked."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    @property
    def original_shape_type(self) -> str:
        return self._kind


class CountingModel:
    """A model whose masks tell how many frames its session has seen.

    Attributes:
        opened: The prompts of each session.
    """

    def __init__(self, masks: np.ndarray | None = None) -> None:
        self.opened: list[list[Any]] = []
        self._masks = masks

    def open(self, prompts: Sequence[Any]) -> CountingSession:
        self.opened.append(list(prompts))
        return CountingSession(len(prompts), self._masks)


class CountingSession:
    """A session of ``CountingModel``."""

    def __init__(self, tracks: int, masks: np.ndarray | None) -> None:
        self._tracks, self._masks, self._seen = tracks, masks, 0

    def step(self, image: np.ndarray) -> Segmentation:
        self._seen += 1
        masks = np.zeros((self._tracks, *image.shape[:2]), bool)
        masks[:, 0, : self._seen] = True
        masks = masks if self._masks is None else self._masks
        return segmentation(self._seen - 1, masks, presence=[0.9, 0.4][: len(masks)])


def context(name: str = "frame_000000", threshold: float | None = None, polygons: bool = False) -> Any:
    return driver._DetectionFunctionContextImpl(frame_name=name, conf_threshold=threshold, conv_mask_to_poly=polygons)


def image(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(numbered_frame(0, width, height))


def accepted(function: Any, shapes: Sequence[Any], polygons: bool = False) -> list[Any]:
    """Check shapes as CVAT's command line does before it sends them; return them."""
    names = [label.name for label in function.spec.labels]
    mapper = driver._AnnotationMapper(
        logging.getLogger("test"),
        function.spec.labels,
        [models.Label(name=name, id=100 + k, type="any", attributes=[], sublabels=[]) for k, name in enumerate(names)],
        allow_unmatched_labels=False,
        spec_nm=driver._SpecNameMapping(),
        conv_mask_to_poly=polygons,
    )
    _, mapped = mapper.validate_and_remap(list(shapes), 7)
    return list(mapped)


def decoded(points: Sequence[float], width: int = 64, height: int = 48) -> np.ndarray:
    return np.asarray(decode_mask(points, image_width=width, image_height=height))


# Detection by sentences


def test_the_command_line_of_cvat_loads_the_detection_and_its_masks_are_those_of_a_session() -> None:
    sentences = ["the red circle", "the blue star"]
    parameters = {"sentences": " | ".join(sentences), "model": "miniature", "device": "cpu"}
    function = common.FunctionLoader("refervos.integrations.cvat.detection", None, parameters).load()
    assert [label.name for label in function.spec.labels] == sentences
    with refervos.open_source(EXAMPLE, stop=3) as source:
        frames = [frame.image for frame in source]
    session = refervos.load("miniature", device="cpu").open(sentences)
    visible = 0
    for number, frame in enumerate(frames):
        result = session.step(frame)
        shapes = accepted(function, function.detect(context(f"frame_{number:06d}"), Image.fromarray(frame)))
        found = {shape.label_id - 100: decoded(shape.points, 480, 320) for shape in shapes}
        assert sorted(found) == [track for track, mask in enumerate(result.masks) if mask.any()]
        for track, mask in found.items():
            np.testing.assert_array_equal(mask, result.masks[track])
            visible += 1
        assert {shape.frame for shape in shapes} <= {7}
    assert visible >= 3


def test_frames_in_order_belong_to_one_session_and_a_jump_starts_anew() -> None:
    model = CountingModel()
    function = SentenceDetection(model, ["the dog"])
    names = ["frame_000003", "frame_000004", "frame_000005", "frame_000009", "frame_000010", "frame_000010", "a", "b"]
    seen = [decoded(function.detect(context(name), image())[0].points).sum() for name in names]
    assert seen == [1, 2, 3, 1, 2, 1, 1, 1]
    assert model.opened == [["the dog"]] * 5


def test_another_folder_or_size_starts_anew_and_the_step_of_the_task_counts() -> None:
    function = SentenceDetection(CountingModel(), ["the dog"], step=5)
    for name, size, expected in (
        ("a/000.jpg", (64, 48), 1),
        ("a/005.jpg", (64, 48), 2),
        ("a/006.jpg", (64, 48), 1),
        ("b/011.jpg", (64, 48), 1),
        ("b/016.jpg", (32, 24), 1),
        ("b/021.jpg", (32, 24), 2),
    ):
        (shape,) = function.detect(context(name), image(*size))
        assert decoded(shape.points, *size).sum() == expected, name


@pytest.mark.parametrize(("threshold", "labels"), [(None, [0, 1]), (0.3, [0, 1]), (0.5, [0]), (0.95, [])])
def test_the_threshold_is_compared_with_the_presence(threshold: float | None, labels: list[int]) -> None:
    function = SentenceDetection(CountingModel(), ["the dog", "the cat"])
    assert [shape.label_id for shape in function.detect(context(threshold=threshold), image())] == labels


def test_an_object_that_is_not_visible_has_no_shape() -> None:
    masks = box_masks(64, 48, 2)
    masks[0] = False
    function = SentenceDetection(CountingModel(masks), ["the dog", "the cat"])
    assert [shape.label_id for shape in accepted(function, function.detect(context(), image()))] == [101]


def test_polygons_cover_the_pixels_of_the_mask() -> None:
    masks = box_masks(64, 48)
    masks[0, 20:25, 20:28] = False  # a hole
    function = SentenceDetection(CountingModel(masks), ["the dog"])
    shapes = accepted(function, function.detect(context(polygons=True), image()), polygons=True)
    assert {str(shape.type) for shape in shapes} == {"polygon"}
    assert len(shapes) == 4
    assert {shape.group for shape in shapes} == {1}
    drawn = coco.decode(coco.merge(coco.frPyObjects([shape.points for shape in shapes], 48, 64)))
    np.testing.assert_array_equal(drawn.astype(bool), masks[0])


def test_long_sentences_have_short_labels_which_must_differ() -> None:
    long = "the dog that " + "really " * 10 + "jumps"
    (label,) = SentenceDetection(CountingModel(), [long]).spec.labels
    assert len(label.name) == 64
    with pytest.raises(PromptError, match="CVAT needs a label of its own for each"):
        SentenceDetection(CountingModel(), [long + " high", long + " far"])


@pytest.mark.parametrize(
    ("module", "parameters", "words"),
    [
        ("detection", {"sentences": " | "}, "give one or more sentences, separated by '|'"),
        ("tracking", {"model": "miniature", "device": "cpu"}, "use a SAM2, such as 'sam2.1-tiny'"),
        ("interaction", {"model": "miniature", "device": "cpu"}, "use a SAM2, such as 'sam2.1-tiny'"),
    ],
)
def test_mistakes_are_found_when_a_function_is_loaded(module: str, parameters: dict[str, Any], words: str) -> None:
    loader = common.FunctionLoader(f"refervos.integrations.cvat.{module}", None, parameters)
    with pytest.raises(PromptError, match=words):
        loader.load()


def test_detection_refuses_a_model_of_clicks(sam2_folder: str) -> None:
    parameters = {"sentences": "the dog", "model": sam2_folder, "device": "cpu"}
    with pytest.raises(PromptError, match="sentence"):
        common.FunctionLoader("refervos.integrations.cvat.detection", None, parameters).load()


def test_functions_are_imported_without_the_sdk_and_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['cvat_sdk'] = None\n"
        "from refervos.integrations.cvat import detection, interaction, tracking\n"
        "assert 'torch' not in sys.modules\n"
        "try: detection.create('the dog')\n"
        "except Exception as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "a function of CVAT needs cvat_sdk: pip install 'refervos[cvat]'.\n"


# Tracking and interaction by SAM2


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SAM2 of random weights, as a folder."""
    folder = tmp_path_factory.mktemp("sam2")
    torch.manual_seed(0)  # not every draw finds something
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(folder / "model")
    return str(folder / "model")


def test_the_command_line_loads_the_tracking_whose_masks_are_those_of_a_session(sam2_folder: str) -> None:
    parameters = {"model": sam2_folder, "device": "cpu"}
    function = common.FunctionLoader("refervos.integrations.cvat.tracking", None, parameters).load()
    assert function.spec.supported_shape_types == {"mask", "rectangle"}
    mask = box_masks(64, 48)[0]
    frames = [numbered_frame(k) for k in range(3)]
    for kind, points, prompt in (
        ("mask", encode_mask(mask), Prompt(mask=mask)),
        ("rectangle", [10.0, 8.0, 40.0, 30.0], Prompt(box=(10, 8, 40, 30))),
    ):
        session = function._model.open([prompt])
        session.step(frames[0])
        pictures = [function.preprocess_image(None, Image.fromarray(frame)) for frame in frames]
        shape = cvataa.TrackableShape(type=kind, points=points)
        state = function.init_tracking_state(ShapeContext(kind), pictures[0], shape)
        for picture, frame in zip(pictures[1:], frames[1:], strict=True):
            expected = session.step(frame).masks[0]
            found = function.track(ShapeContext(kind), picture, state)
            if not expected.any():
                assert found is None
            elif kind == "mask":
                np.testing.assert_array_equal(decoded(found.points), expected)
            else:
                box = Box.around(expected)
                assert (found.type, found.points) == (kind, [box.left, box.top, box.right, box.bottom])


def test_an_object_out_of_sight_is_not_tracked_and_comes_back() -> None:
    masks = box_masks(64, 48)
    function = ShapeTracking(CountingModel(masks))
    shape = cvataa.TrackableShape(type="rectangle", points=[1, 2, 3, 4])
    state = function.init_tracking_state(ShapeContext("rectangle"), numbered_frame(0), shape)
    seen = []
    for here in (True, False, True):
        masks[:] = box_masks(64, 48) if here else False
        seen.append(function.track(ShapeContext("rectangle"), numbered_frame(1), state))
    assert [found and found.points for found in seen] == [[16, 16, 37, 32], None, [16, 16, 37, 32]]


def test_the_command_line_loads_the_interaction_whose_masks_are_those_of_a_session(sam2_folder: str) -> None:
    parameters = {"model": sam2_folder, "device": "cpu"}
    function = common.FunctionLoader("refervos.integrations.cvat.interaction", None, parameters).load()
    picture = function.preprocess_image(None, image())
    model = function._model  # a second copy in memory may differ in the last bits, and so in pixels on the border
    found_any = False
    for prompts, prompt in (
        (Prompts([(30.0, 20.0)]), Prompt(points=[(30, 20)])),
        (Prompts([(30.0, 20.0)], [(2.0, 3.0)]), Prompt(points=[(30, 20), (2, 3)], labels=[1, 0])),
        (Prompts(box=((10.0, 8.0), (40.0, 30.0))), Prompt(box=(10, 8, 40, 30))),
    ):
        result = model.open([prompt]).step(numbered_frame(0))
        shapes = function.detect(None, picture, prompts)
        assert len(shapes) == int(result.masks[0].any())
        for shape in shapes:
            found_any = True
            np.testing.assert_array_equal(decoded(shape.points), result.masks[0])
            assert float(shape.attributes[0].value) == pytest.approx(float(result.presence[0]), abs=1e-4)
    assert found_any


def test_an_interaction_without_a_positive_prompt_finds_nothing() -> None:
    model = CountingModel()
    assert ClickSegmentation(model).detect(None, numbered_frame(0), Prompts(negative=[(1.0, 1.0)])) == []
    assert model.opened == []
    nothing = CountingModel(np.zeros((1, 48, 64), bool))
    assert ClickSegmentation(nothing).detect(None, numbered_frame(0), Prompts([(1.0, 1.0)])) == []


def page_commands() -> list[str]:
    """The commands of ``cvat-cli`` on the page, with a number for ID."""
    page = (Path(__file__).parents[1] / "docs" / "integrations" / "cvat.md").read_text(encoding="utf-8")
    commands = re.findall(r"^cvat-cli (.+)$", page.replace("\\\n", " "), re.MULTILINE)
    return [re.sub(r"\bID\b", "7", command) for command in commands]


@pytest.mark.parametrize("command", page_commands())
def test_the_command_line_of_cvat_knows_the_commands_of_the_page(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with CvatSink("dog_refervos/cvat", SourceInfo("dog.mp4")) as sink:
        sink.write(Frame(0, numbered_frame(0)), segmentation(0, box_masks(64, 48)))
    parser = argparse.ArgumentParser()
    common.configure_common_arguments(parser)
    commands_all.COMMANDS.configure_parser(parser)
    parsed = parser.parse_args(shlex.split(command))
    if getattr(parsed, "function_module", None):
        create = importlib.import_module(parsed.function_module).create
        inspect.signature(create).bind_partial(**parsed.function_parameters)


def test_the_page_has_commands() -> None:
    assert len(page_commands()) == 6
