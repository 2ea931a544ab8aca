"""State files: bit-exact round trips, no code executed, and a one-sentence error for every invalid file."""

from __future__ import annotations

import dataclasses
import importlib
import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos.errors import StateError
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.session.scene_changes import FrameChanges, Picture
from refervos.session.state_files import FORMAT, _digest, load_state, save_state
from scenes import CAPTION, MICRO_SAM2, SHORT_CAPTION, micro_model, scene


@dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclass
class Window:
    limit: int
    kept: deque[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = deque(maxlen=self.limit)


@dataclass(frozen=True, slots=True)
class Slotted:
    value: Tensor


class Policy(StrEnum):
    FORGET = "forget"


TYPES = (Point, Window, Slotted)


def round_trip(path: Path, value: Any, types: tuple[type, ...] = TYPES) -> Any:
    save_state(path, value, kind="test", about={})
    return load_state(path, types, kind="test", device="cpu")[0]


def identical(one: Any, other: Any) -> bool:
    """Compare two trees by types, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and bits(one) == bits(other)
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one):
        return all(identical(getattr(one, entry.name), getattr(other, entry.name)) for entry in dataclasses.fields(one))
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        limits = isinstance(one, deque) and one.maxlen != other.maxlen
        return not limits and len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


PLAIN = {
    "constants": [None, True, False, [], (), {}, deque()],
    "whole numbers": [0, 1, -1, 2**63, -(10**40)],
    "floats": [0.0, -0.0, 1.0, 0.1, 5e-324, 1.7976931348623157e308, float("inf"), -float("inf"), float("nan")],
    "a nan with a payload": struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))[0],
    "text": ["", "a dog", 'quotes " and \\', "Zoë \U0001f415", "\x00", "\ud800", "NaN"],
    "containers": {"list": [1, [2, (3, [4])]], "tuple": ((),), "deque": deque([1, (2,)], maxlen=3), 3: {0: {}, -1: 2}},
    "values that look like the format": [{"tensor": 0}, {"tuple": [1]}, {"dataclass": "Point", "fields": {}}],
    "order of keys": {"b": 1, "a": 2, 10: 3, 9: 4},
    "objects": [Point(1.5, float("nan")), {"inside": (Point(0, -0.0),)}],
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_are_restored_exactly(tmp_path: Path, value: Any) -> None:
    assert identical(round_trip(tmp_path / "state", value), value)


def test_string_enums_and_numpy_scalars_are_restored_as_plain_values(tmp_path: Path) -> None:
    value = [Policy.FORGET, np.float32(0.1), np.int64(7), np.bool_(True), np.float64("inf")]
    assert identical(round_trip(tmp_path / "state", value), ["forget", float(np.float32(0.1)), 7, True, float("inf")])


BASE = torch.arange(-60, 60).reshape(2, 3, 4, 5)

TENSORS = {
    **{
        str(dtype): BASE.to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
        )
    },
    "no axes": torch.tensor(3.5),
    "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    "a view": BASE[1, :, 1:3],
    "strided": BASE[..., ::2],
    "expanded": BASE[:1, :1].expand(4, 5, 4, 5),
    "trainable": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_are_restored_exactly(tmp_path: Path, tensor: Tensor) -> None:
    back = round_trip(tmp_path / "state", Slotted(tensor)).value
    assert identical(back, tensor.detach())
    back.fill_(1)  # restored tensors are not mapped to the file
    assert identical(load_state(tmp_path / "state", TYPES, kind="test", device="cpu")[0].value, tensor.detach())


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 2, 3)])
def test_tensors_keep_the_memory_order_of_their_axes(tmp_path: Path, order: tuple[int, ...]) -> None:
    tensor = BASE.permute(order)
    back = round_trip(tmp_path / "state", [tensor])[0]
    assert identical(back, tensor)
    assert back.stride() == tensor.stride()


ARRAYS = {
    "mask": np.eye(5, dtype=bool),
    "turned": np.arange(12.0).reshape(3, 4).T,
    "backwards": np.arange(5, dtype=np.uint8)[::-1],
    "no axes": np.array(2, np.int16),
    "empty": np.zeros((2, 0), np.float32),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_restored_exactly_and_writeable(tmp_path: Path, array: np.ndarray) -> None:
    back = round_trip(tmp_path / "state", [array])[0]
    assert identical(back, array)
    assert back.flags.writeable


def test_shared_tensors_are_stored_once_and_restored_shared(tmp_path: Path) -> None:
    tensor, array = torch.zeros(1000), np.zeros(1000, np.float32)
    shared = [tensor, {"again": tensor}, Slotted(tensor), array, (array,)]
    back = round_trip(tmp_path / "state", shared)
    assert back[0] is back[1]["again"] is back[2].value
    assert back[3] is back[4][0]
    assert (tmp_path / "state").stat().st_size < 2 * 4000 + 1000
    separate = round_trip(tmp_path / "state", [tensor, tensor[:], tensor.clone()])
    assert len({part.data_ptr() for part in separate}) == 3


def test_only_the_visible_elements_of_a_view_are_stored(tmp_path: Path) -> None:
    save_state(tmp_path / "state", torch.zeros(1000, 1000)[3], kind="test", about={})
    assert (tmp_path / "state").stat().st_size < 4000 + 1000


def test_objects_are_restored_with_their_fields_without_being_initialised(tmp_path: Path) -> None:
    window = Window(limit=2)
    window.kept = deque([Point(1, 2)], maxlen=5)
    back = round_trip(tmp_path / "state", window)
    assert identical(back, window)
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.kept[0].x = 3


def test_tensors_are_moved_to_the_device_and_arrays_are_not(tmp_path: Path) -> None:
    save_state(tmp_path / "state", [torch.ones(2), np.ones(2)], kind="test", about={"model": "micro"})
    (tensor, array), about = load_state(tmp_path / "state", (), kind="test", device="meta")
    assert tensor.device.type == "meta"
    assert identical(array, np.ones(2))
    assert about == {"model": "micro"}


# Values that cannot be saved.


class Child(tuple):
    __slots__ = ()


def self_containing() -> list[Any]:
    value: list[Any] = []
    value.append([value])
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tracks": [Window]}, r"the state\['tracks'\]\[0\] is a type; dataclasses, lists"),
        (Point(1, print), r"the state.y is a builtin_function_or_method;"),  # type: ignore[arg-type]
        ([Child()], r"the state\[0\] is a Child;"),
        ({1.5: 0}, "the state is a dict with other keys;"),
        ({True: 0}, "the state is a dict with other keys;"),
        (np.array(["text"]), "the state is a ndarray of type <U4, which cannot be saved; dense ones of numbers"),
        (np.zeros(1, np.complex128), "type complex128, which cannot be saved"),
        (torch.zeros(2, 2).to_sparse(), "the state is a Tensor of type torch.float32, which cannot be saved"),
        (torch.zeros(2, device="meta"), "which cannot be saved"),
        (self_containing(), "is nested too deeply to be saved; does an object contain itself?"),
    ],
)
def test_values_that_cannot_be_restored_are_not_saved(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "state"
    save_state(path, 1, kind="test", about={})
    with pytest.raises(StateError, match=message):
        save_state(path, value, kind="test", about={})
    assert load_state(path, (), kind="test", device="cpu")[0] == 1  # the earlier file stays
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"absent/state' cannot be written \(No such file or directory\)"):
        save_state(tmp_path / "absent" / "state", 1, kind="test", about={})


# Invalid files.


def written(path: Path, tree: Any, *tensors: Tensor, text: str | None = None, **content: Any) -> Path:
    """Write a file with a valid checksum and any tree."""
    import json

    from safetensors.torch import save_file

    if text is None:
        text = json.dumps({"format": FORMAT, "kind": "test", "about": {}, "tree": tree, **content})
    numbered = {str(number): tensor for number, tensor in enumerate(tensors)}
    save_file(numbered, path, {"refervos_state": text, "refervos_sha256": _digest(text, numbered)})
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(StateError, match=message) as refusal:
        load_state(path, TYPES, kind="test", device="cpu")
    assert "\n" not in str(refusal.value)


def test_missing_files_and_files_of_another_format_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert_refused(
        tmp_path / "absent", r"absent' cannot be read \(No such file or directory\); give a file that refervos saved\."
    )
    assert_refused(tmp_path, r"cannot be read \(Is a directory\)")
    for content in (b"", b"x", b"not a state at all " * 9):
        (tmp_path / "other").write_bytes(content)
        assert_refused(tmp_path / "other", "other' is not a file of saved state; give one that refervos saved")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert_refused(tmp_path / "model.safetensors", "is not a file of saved state")


def test_another_kind_of_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state", 1, kind="track", about={})
    assert_refused(tmp_path / "state", r"state' contains the state of a track; give a file with the state of a test\.")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "state", {"new": 1}, format=FORMAT + 1, kind=7, about=[])
    assert_refused(path, "has version 2 of the state format and this refervos reads versions up to 1; update")


def test_unknown_types_and_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, [Prompt("a dog")], kind="test", about={})
    assert_refused(
        path, r"contains a Prompt, which does not belong in this state; allowed are Point, Slotted, Window\."
    )
    fields = {"x": 1.0, "z": 2.0}
    assert_refused(
        written(path, {"dataclass": "Point", "fields": fields}), "its Point lacks y and has the unknown z; save"
    )
    code = {"__class__": 1, "x": 1, "y": 2}
    assert_refused(written(path, {"dataclass": "Point", "fields": code}), "its Point has the unknown __class__; save")
    assert_refused(
        written(path, {"dataclass": "os.system", "fields": {}}), "contains a os.system, which does not belong"
    )


def nested(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    "tree",
    [
        nested(70),
        {"unknown": 1},
        {"tuple": 1},
        {"deque": [], "maxlen": -1},
        {"deque": [], "maxlen": 2**70},
        {"deque": [], "maxlen": "3"},
        {"dict": [[[1], 2]]},
        {"dict": [[1.5, 2]]},
        {"dict": [[1]]},
        {"dict": [3]},
        {"float": "zz"},
        {"float": "7ff0"},
        {"tensor": 1},
        {"tensor": -1},
        {"tensor": 2**70},
        {"tensor": "0"},
        {"tensor": 0, "order": [0, 0]},
        {"tensor": 0, "order": [2, 1]},
        {"tensor": 0, "order": [0]},
        {"tensor": 0, "order": "10"},
        {"tensor": 0, "order": [1, 0, 2]},
        {"array": 0},  # bfloat16
        {"dataclass": "Point", "fields": []},
        {"dataclass": ["Point"], "fields": {}},
    ],
    ids=lambda tree: str(tree)[:40],
)
def test_invalid_trees_count_as_damage(tmp_path: Path, tree: Any) -> None:
    assert_refused(
        written(tmp_path / "state", tree, torch.zeros(2, 3, dtype=torch.bfloat16)), "is damaged or incomplete"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "kind": "test", "about": {}, "tree": NaN}',
        '{"format": 1, "kind": "test", "about": {}, "tree": ' + "9" * 5000 + "}",
        '{"format": 1, "kind": "test", "about": {}, "tree": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"format": "1", "kind": "test", "about": {}, "tree": 1}',
        '{"format": 0, "kind": "test", "about": {}, "tree": 1}',
        '{"format": 1, "kind": "test", "about": [], "tree": 1}',
    ],
    ids=lambda text: text[:60],
)
def test_invalid_text_counts_as_damage(tmp_path: Path, text: str) -> None:
    assert_refused(written(tmp_path / "state", None, text=text), r"state' is damaged or incomplete; its state cannot")


def test_any_flipped_bit_or_truncation_is_detected(tmp_path: Path) -> None:
    window = Window(limit=2)
    window.kept.append({"point": Point(1.5, float("inf")), 3: (BASE.float(), np.eye(3), "a dog")})
    save_state(tmp_path / "state", window, kind="test", about={"model": "micro"})
    whole = (tmp_path / "state").read_bytes()
    rng = np.random.default_rng(11)
    for trial in range(200):
        damaged = bytearray(whole)
        place = int(rng.integers(len(whole)))
        if trial % 4 == 0:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            value, about = load_state(tmp_path / "damaged", TYPES, kind="test", device="cpu")
        except StateError:
            continue
        assert identical(
            (value, about), (window, {"model": "micro"})
        )  # the damage was in the padding between header and tensors


# State of models.


def types_within(value: Any) -> Iterator[type]:
    """Yield the dataclasses that make up a state."""
    if dataclasses.is_dataclass(value):
        yield type(value)
        value = [getattr(value, entry.name) for entry in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = value.values()
    if not isinstance(value, (str, Tensor, np.ndarray)) and hasattr(value, "__iter__"):
        for part in value:
            yield from types_within(part)


def segment(model: Any, tracks: list[Any], frames: list[np.ndarray]) -> np.ndarray:
    """Segment the next frames as one clip; return mask logits (T, N, h, w)."""
    places = [model.placement(frame.shape[:2]) for frame in frames]
    images = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    pixels = torch.stack([place.place(image) for place, image in zip(places, images, strict=True)])
    return np.stack([prediction.mask_logits.numpy() for prediction in model.segment_clip(pixels, tracks, places)])


def continue_tracks(path: str, out: str, threads: str, *types: str) -> None:
    """Continue tracks, in the other process of the next test."""
    torch.set_num_threads(int(threads))
    classes = [getattr(importlib.import_module(module), name) for module, name in (t.split(":") for t in types)]
    tracks, _ = load_state(path, classes, kind="tracks", device="cpu")
    np.save(out, segment(micro_model(), tracks, scene(12)[8:]))


def test_tracks_restored_in_another_process_give_identical_masks(tmp_path: Path) -> None:
    model = micro_model()
    tracks = [model.begin_tokens(CAPTION), model.begin_tokens(SHORT_CAPTION)]
    segment(model, tracks[:1], scene(12)[:3])  # of different age
    segment(model, tracks, scene(12)[3:8])
    save_state(tmp_path / "tracks", tracks, kind="tracks", about={})
    expected = segment(model, tracks, scene(12)[8:])
    names = sorted({f"{cls.__module__}:{cls.__name__}" for cls in types_within(tracks)})
    arguments = [str(tmp_path / "tracks"), str(tmp_path / "logits.npy"), str(torch.get_num_threads()), *names]
    code = "import sys; from test_state_files import continue_tracks; continue_tracks(*sys.argv[1:])"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, env={**os.environ, "PYTHONPATH": paths}, timeout=300
    )
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)
    assert np.abs(expected).max() > 0
    fresh = [model.begin_tokens(CAPTION), model.begin_tokens(SHORT_CAPTION)]
    assert not np.array_equal(segment(model, fresh, scene(12)[8:]), expected)  # the memory matters


def test_restored_sam2_tracks_give_identical_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sam2Segmenter(Sam2Tracker(MICRO_SAM2))
    mask = np.zeros((96, 128), dtype=bool)
    mask[30:50, 10:40] = True
    tracks = [model.begin(Prompt(mask=mask)), model.begin(Prompt(points=[(20, 40)], labels=[1]))]
    segment(model, tracks, scene(8)[:5])
    restored = round_trip(tmp_path / "state", tracks, tuple(set(types_within(tracks))))
    assert identical(restored, tracks)
    assert np.array_equal(segment(model, restored, scene(8)[5:]), segment(model, tracks, scene(8)[5:]))


def test_a_restored_detector_finds_the_same_changes(tmp_path: Path) -> None:
    frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in [*scene(4), *scene(4, seed=2)]]
    detector = FrameChanges()
    for frame in frames[:4]:
        detector.update(frame)
    restored = round_trip(tmp_path / "state", detector, (FrameChanges, Picture))
    frames.insert(4, frames[3])  # repeated
    assert [restored.update(frame) for frame in frames[4:]] == [detector.update(frame) for frame in frames[4:]]
