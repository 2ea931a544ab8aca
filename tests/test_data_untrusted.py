"""Untrusted annotations cannot exhaust memory or time, or read files outside the data set."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import layouts
import layouts_images
from data_sets import SMALL_DATA_SETS, read_everything
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.files import Problems
from refervos.data.ground_truth import decode_polygons
from refervos.data.pickles import read_plain_pickle
from refervos.errors import DataError

# Memory and time.

LIMITED = """
import resource, sys
from pathlib import Path
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.layouts import a2d
from refervos.data.layouts import coco_video
from refervos.data.layouts import cvat
from refervos.data.layouts import jhmdb
from refervos.data.layouts import json_lines
from refervos.data.layouts import refcoco
from refervos.errors import DataError
import h5py, scipy.io

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)  # a check has eight threads, each with a stack
name, folder, split = sys.argv[1:]
for problem in check_dataset(name, Path(folder), split).problems:
    print(problem)
try:
    for sample in open_dataset(name, Path(folder), split).samples:
        for index in sample.ground_truth.annotated:
            sample.ground_truth.mask(index)
except DataError as error:
    print(error)
"""


def coco(root: Path, segmentation: Any, size: tuple[int, int] = (48, 64)) -> tuple[str, str]:
    layouts_images.write_coco_video(root)

    def change(content: Any) -> None:
        content["videos"][0].update(height=size[0], width=size[1])
        content["annotations"][0]["segmentations"][0] = segmentation

    layouts.change_json(root / "train" / "instances.json", change)
    return "coco-video", "train"


def cvat(root: Path, old: str, new: str) -> tuple[str, str]:
    layouts_images.write_cvat(root)
    file = root / "annotations.xml"
    text = file.read_text()
    start = text.index(old)
    file.write_text(text[:start] + new + text[text.index('"', start + len(old)) :])
    return "cvat", "all"


def lines(root: Path, rle: Any) -> tuple[str, str]:
    layouts_images.write_json_lines(root)
    record = {"video": "clips/shapes", "expression": "x", "masks": {"00000": rle}}
    (root / "expressions.jsonl").write_text(json.dumps(record))
    return "json-lines", "all"


def refcoco(root: Path, size: int) -> tuple[str, str]:
    layouts_images.write_refcoco(root, splits=("val",))

    def change(content: Any) -> None:
        content["images"][0].update(height=size, width=size)
        for annotation in content["annotations"]:
            annotation["segmentation"] = {"size": [size, size], "counts": [0, size * size]}

    layouts.change_json(root / "refcoco" / "instances.json", change)
    return "refcoco", "val"


def pickled(root: Path, data: bytes) -> tuple[str, str]:
    layouts_images.write_refcoco(root, splits=("val",))
    (root / "refcoco" / "refs(unc).p").write_bytes(data)
    return "refcoco", "val"


def hdf5(root: Path, shape: tuple[int, ...]) -> tuple[str, str]:
    import h5py

    layouts.write_a2d_sentences(root, videos=1)
    file = next(root.rglob("*.h5"))
    with h5py.File(file, "w") as written:
        written["instance"] = np.array([1.0, 2.0, 3.0, 4.0])
        written.create_dataset("reMask", shape=shape, dtype="u1", chunks=(1,) * (len(shape) - 2) + (64, 64))
    return "a2d-sentences", "test"


def matlab(root: Path, shape: tuple[int, ...]) -> tuple[str, str]:
    import scipy.io

    layouts.write_jhmdb_sentences(root, videos=1)
    scipy.io.savemat(next(root.rglob("*.mat")), {"part_mask": np.zeros(shape, np.uint8)}, do_compression=True)
    return "jhmdb-sentences", "test"


FAR = [-99999, -99999, 99999, 99999] * 3000
LONG = ";".join(["99999,99999;0,0"] * 5000)
SIDE = 65535

ATTACKS: dict[str, tuple[Callable[[Path], tuple[str, str]], str]] = {
    "polygon far outside": (lambda root: coco(root, [FAR]), "1,199,988,000 pixels long"),
    "many long polygons": (lambda root: coco(root, [[0, 0, 64, 0, 64, 48]] * 9000), "pixels long"),
    "very many polygons": (lambda root: coco(root, [[0, 0, 1, 0, 1, 1]] * 20000), "20,000 polygons"),
    "stated size": (lambda root: coco(root, [[1, 1, 20, 1, 20, 20]], (SIDE, SIDE)), "65535x65535"),
    "stated size within the limit": (lambda root: coco(root, [[1, 1, 20, 1, 20, 20]], (8000, 8000)), "8000x8000"),
    "run lengths of that size": (
        lambda root: coco(root, {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}, (SIDE, SIDE)),
        "65535x65535",
    ),
    "polygon of CVAT": (lambda root: cvat(root, 'points="', f'points="{LONG}'), "pixels long"),
    "size of CVAT": (
        lambda root: cvat(
            root,
            "<frame_filter></frame_filter>",
            f"<original_size><width>{SIDE}</width><height>{SIDE}</height></original_size></task></meta><!-- ",
        ),
        "annotations.xml",
    ),
    "run lengths in a line": (lambda root: lines(root, {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}), "65535x65535"),
    "run of endless length": (lambda root: lines(root, {"size": [48, 64], "counts": "o" * 3_000_000}), "add up"),
    "image of RefCOCO": (lambda root: refcoco(root, 8000), "8000x8000"),
    "memo index in a pickle": (lambda root: pickled(root, b"\x80\x02]r\xff\xff\xff\x0f."), "refs(unc).p"),
    "bytes in a pickle": (lambda root: pickled(root, b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"."), "refs"),
    "nested tuples as a key": (
        lambda root: pickled(root, b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."),
        "refs(unc).p",
    ),
    "masks in HDF5": (lambda root: hdf5(root, (2, 10**6, 10**6)), "1000000x1000000"),
    "masks with four dimensions in HDF5": (lambda root: hdf5(root, (2, 2, 64, 64)), "dimensions"),
    "masks of MATLAB": (lambda root: matlab(root, (2000, 2000, 68)), "272,000,000 bytes"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_small_files_take_neither_much_memory_nor_time(tmp_path: Path, attack: str) -> None:
    spoil, reason = ATTACKS[attack]
    name, split = spoil(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, name, str(tmp_path), split],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert reason in ran.stdout
    assert "memory" not in ran.stdout.lower()


def test_the_longest_outline_suffices_for_a_comb_of_480_teeth_in_a_4k_frame() -> None:
    teeth = [point for x in range(0, 3840, 8) for point in ((x, 0), (x, 900), (x + 4, 900), (x + 4, 0))]
    mask = decode_polygons([[float(value) for point in teeth for value in point]], (2160, 3840), "a comb")
    assert mask[100].sum() == pytest.approx(480 * 4, abs=480)


# Files outside the data set.


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Write a folder with images beside the data set."""
    layouts_images.write_frames(tmp_path / "outside", layouts_images.own_clip(1))
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "outside" / "mask.png")
    (tmp_path / "set").mkdir()
    return tmp_path / "outside"


def linked(root: Path, outside: Path) -> str:
    (root / "link").symlink_to(outside)
    return "link"


PATHS_OUTSIDE: dict[str, Callable[[Path, Path], str]] = {
    "upwards": lambda root, outside: f"../{outside.name}",
    "upwards from a folder": lambda root, outside: f"inner/../../{outside.name}",
    "by an absolute path": lambda root, outside: str(outside),
    "by a link": linked,
}


@pytest.mark.parametrize("way", PATHS_OUTSIDE)
def test_files_outside_the_data_set_are_read_only_with_allow_outside(tmp_path: Path, outside: Path, way: str) -> None:
    root = tmp_path / "set"
    (root / "inner").mkdir()
    path = PATHS_OUTSIDE[way](root, outside)
    layouts_images.write_frames(root / "v", layouts_images.own_clip(1))
    size = {"width": 64, "height": 48}
    video = {"id": 1, **size, "file_names": [f"{path}/00000.jpg"]}
    written: list[tuple[str, str, Any]] = [
        ("json-lines", "expressions.jsonl", {"video": path, "expression": "x"}),
        ("json-lines", "expressions.jsonl", {"video": f"{path}/00000.jpg", "expression": "x"}),
        ("json-lines", "expressions.jsonl", {"video": "v", "expression": "x", "masks": [f"{path}/mask.png"]}),
        ("json-lines", "expressions.jsonl", {"video": "v", "expression": "x", "masks": f"{path}/mask.png"}),
        ("coco-video", "all.json", {"videos": [video], "annotations": [], "expressions": []}),
    ]
    for name, file, content in written:
        (root / file).write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"is outside .*set"):
            open_dataset(name, root, "all")
        assert any("is outside" in problem for problem in check_dataset(name, root, "all").problems)
        problems = Problems(keep_going=True, allow_outside=True)
        open_dataset(name, root, "all", problems=problems)
        assert not [problem for problem in problems.found if "contains no expression" not in problem]


def test_absolute_paths_and_links_inside_a_data_set_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    layouts_images.write_frames(root / "v", layouts_images.own_clip(1))
    (root / "link").symlink_to("v")
    records = [{"video": str(root / "v"), "expression": "x"}, {"video": "link", "expression": "x"}]
    (root / "expressions.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert len(open_dataset("json-lines", root)) == 2
    (tmp_path / "moved").symlink_to(root)
    assert len(open_dataset("json-lines", tmp_path / "moved")) == 2


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 3000, "a\0b", "\ud83d", "loop", "n" * 300, ".\\v"])
def test_an_invalid_path_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    layouts_images.write_frames(tmp_path / "v", layouts_images.own_clip(1))
    for record in ({"video": path, "expression": "x"}, {"video": "v", "expression": "x", "masks": [path]}):
        (tmp_path / "expressions.jsonl").write_text(json.dumps(record))
        with pytest.raises(DataError, match="line 1"):
            open_dataset("json-lines", tmp_path)


@pytest.mark.parametrize("name", ["a2d-sentences", "ref-davis17", "mevis"])
def test_a_video_name_with_a_path_is_refused(tmp_path: Path, name: str) -> None:
    layouts.WRITERS[name](tmp_path / "set")
    files = {
        "a2d-sentences": ["Release/videoset.csv", "text_annotations/a2d_annotation.txt"],
        "ref-davis17": ["DAVIS/ImageSets/2017/val.txt"],
        "mevis": ["valid_u/meta_expressions.json"],
    }
    old = {"a2d-sentences": "test00", "ref-davis17": "blackswan", "mevis": "valid_u00"}[name]
    for file in files[name]:
        path = tmp_path / "set" / file
        path.write_text(path.read_text().replace(old, "../outside"))
    with pytest.raises(DataError, match="outside"):
        open_dataset(name, tmp_path / "set")


# Random values anywhere.

NASTY: list[Any] = [
    json.loads("[" * 600 + "]" * 600),
    json.loads('{"a": ' * 600 + "1" + "}" * 600),
    10**4000,
    -1,
    2**40,
    float("nan"),
    1e308,
    True,
    None,
    "",
    ".",
    "../../etc",
    "x" * 5000,
    "half \ud83d",
    "\x1b[31mred\x07",
    "\0",
    [],
    {},
    [[]],
    {"size": [2**31, 2**31], "counts": [2**62]},
    {"size": [48, 64], "counts": "\x00\xff"},
    {"size": [48, 64], "counts": "\ud83d"},
    {"size": [48, 64], "counts": [10**30, -(10**30) + 3072]},
]

WITH_JSON = (
    *("mevis", "ref-youtube-vos", "revos", "long-rvos", "jhmdb-sentences", "refcoco", "grefcoco", "coco-video"),
    "json-lines",
)


def places(content: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON document with the key or index of each entry."""
    if isinstance(content, dict | list) and depth < 9:
        entries = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
        for name, inner in entries:
            yield content, name
            yield from places(inner, depth + 1)


@pytest.mark.slow  # tests/fuzz tries a few of each kind
@pytest.mark.parametrize("name", WITH_JSON)
def test_any_value_anywhere_in_json_annotations_is_read_or_refused(tmp_path: Path, name: str) -> None:
    split, write = SMALL_DATA_SETS[name]
    root = tmp_path / "data"
    write(root)
    rng = random.Random(name)
    files = sorted([*root.rglob("*.json"), *root.rglob("*.jsonl")])
    refused = 0
    for turn in range(120):
        file = files[turn % len(files)]
        whole = file.read_text()
        records = [json.loads(line) for line in whole.splitlines()]
        container, entry = rng.choice(list(places(records[0] if len(records) == 1 else records)))
        nasty = rng.choice(NASTY)
        if isinstance(container, dict) and isinstance(nasty, str) and rng.random() < 0.3:
            container[nasty] = container.pop(entry)
        else:
            container[entry] = nasty
        file.write_text("\n".join(json.dumps(record) for record in records))
        try:
            read_everything(open_dataset(name, root, split))
        except DataError as error:
            refused += 1
            sentence = str(error)
            assert sentence.endswith(".")
            assert len(sentence) < 2_010
            assert sentence.isprintable()
        for problem in check_dataset(name, root, split).problems:
            assert problem.isprintable()
        file.write_text(whole)
    assert refused > 20


WORDS = [
    "",
    "-1",
    "9" * 5000,
    "1e999",
    "nan",
    "\u0663",  # a non-ASCII digit
    "../../etc",
    "x" * 5000,
    "a,b;c,d",
    "0,0;0,0;0,0",
    "0,0;99999,0;0,99999",
    '"',
    "\x9b31m",
    "frame_000000",
    "1",
]


@pytest.mark.slow  # tests/fuzz tries a few of each kind
@pytest.mark.parametrize("form", [{}, {"brush": True}, {"video": True}])
def test_any_value_anywhere_in_a_cvat_export_is_read_or_refused(tmp_path: Path, form: dict[str, bool]) -> None:
    layouts_images.write_cvat(tmp_path, **form)
    file = tmp_path / "annotations.xml"
    whole = file.read_text()
    rng = random.Random(str(form))
    refused = 0
    for _ in range(100):
        root = ElementTree.fromstring(whole)
        element = rng.choice(list(root.iter()))
        nasty = rng.choice(WORDS)
        turn = rng.random()
        if turn < 0.1:
            element.clear()
        elif turn < 0.2:
            element.tag = rng.choice(["mask", "polygon", "image", "track", "task", "job", "box"])
        elif element.attrib and turn < 0.8:
            element.set(rng.choice(list(element.attrib)), nasty)
        else:
            element.text = nasty
        file.write_text(ElementTree.tostring(root, encoding="unicode"))
        problems = check_dataset("cvat", tmp_path).problems
        refused += bool(problems)
        assert all(problem.isprintable() and problem.endswith(".") for problem in problems)
    assert refused > 20


TEXTS = {
    "ref-davis17": ["davis_text_annotations/Davis17_annot1.txt", "DAVIS/ImageSets/2017/val.txt"],
    "a2d-sentences": ["Release/videoset.csv", "text_annotations/a2d_annotation.txt"],
    "jhmdb-sentences": ["jhmdb_annotation.txt"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_word_anywhere_in_a_text_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    layouts.WRITERS[name](tmp_path, **({"images": True} if name == "a2d-sentences" else {}))
    split = {"ref-davis17": "val"}.get(name, "test")
    refused = 0
    rng = random.Random(name)
    for turn in range(60):
        file = tmp_path / TEXTS[name][turn % len(TEXTS[name])]
        whole = file.read_bytes()
        words = re.split(r"([\s,]+)", whole.decode())
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        file.write_text("".join(words))
        problems = check_dataset(name, tmp_path, split).problems
        refused += bool(problems)
        assert all(problem.isprintable() and problem.endswith(".") for problem in problems)
        file.write_bytes(whole)
    assert refused > 10


@pytest.mark.parametrize("protocol", range(6))
def test_random_bytes_in_a_pickle_are_read_or_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "refs.p"
    whole = pickle.dumps(layouts_images.referring_images(("val",)).refs, protocol)
    rng = random.Random(protocol)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data))
        try:
            read_plain_pickle(path)
        except DataError:
            refused += 1
    assert refused > 100
