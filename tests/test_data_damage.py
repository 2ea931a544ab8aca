"""Damage in a data set is reported in one sentence that names the file, by readers and by ``data check``."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_sets import read_everything, refusal
from layouts import WRITERS, change_json, drawn_videos
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.errors import DataError

SPLITS = {
    "mevis": "valid_u",
    "ref-youtube-vos": "train",
    "ref-davis17": "val",
    "revos": "valid",
    "long-rvos": "valid",
    "a2d-sentences": "test",
    "jhmdb-sentences": "test",
}
"""Split written by each writer."""

FRAMES = {
    "mevis": "valid_u/JPEGImages/valid_u00/00002.jpg",
    "ref-youtube-vos": "train/JPEGImages/train00/00010.jpg",
    "ref-davis17": "DAVIS/JPEGImages/480p/blackswan/00002.jpg",
    "revos": "JPEGImages/UVO/all/valid00/00002.jpg",
    "long-rvos": "valid/JPEGImages/valid00/00002.jpg",
    "a2d-sentences": "Release/clips320H/test00.mp4",
    "jhmdb-sentences": "Rename_Images/wave/jhmdb00/00003.png",
}

MASKS = {
    "ref-youtube-vos": "train/Annotations/train00/00010.png",
    "ref-davis17": "DAVIS/Annotations_unsupervised/480p/blackswan/00002.png",
    "long-rvos": f"valid/Annotations/valid00/{drawn_videos('valid')[0].expressions[0].targets[0] + 1}/00005.png",
    "a2d-sentences": "text_annotations/a2d_annotation_with_instances/test00/00002.h5",
    "jhmdb-sentences": "puppet_mask/wave/jhmdb00/puppet_mask.mat",
}
"""Mask files of target objects; the other benchmarks have run lengths."""

JSON_FILES = {
    "mevis": ("valid_u/meta_expressions.json", "valid_u/mask_dict.json"),
    "ref-youtube-vos": ("meta_expressions/train/meta_expressions.json", "train/meta.json"),
    "revos": ("meta_expressions_valid_.json", "mask_dict.json", "mask_dict_foreground.json"),
    "long-rvos": ("valid/meta_expressions.json",),
    "jhmdb-sentences": ("jhmdb_sentences_samples_metadata.json",),
}


@dataclass(frozen=True)
class Damage:
    """Damage to a file of a data set, and the file name that the error must contain."""

    name: str
    kind: str
    file: str
    do: Callable[[Path], object]
    named: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}, {Path(self.file).name}"


def damages() -> list[Damage]:
    """List all kinds of damage."""
    made: list[Damage] = []

    def add(name: str, kind: str, file: str, do: Callable[[Path], object], named: str | None = None) -> None:
        made.append(Damage(name, kind, file, do, named or file))

    for name, file in FRAMES.items():
        add(name, "missing frame", file, Path.unlink)
        add(name, "half a frame", file, halve)
        add(name, "frame that is not an image", file, lambda path: path.write_text("no"))
        if name != "a2d-sentences":
            add(name, "missing folder", str(Path(file).parent), shutil.rmtree, Path(file).parent.name)
    for name, file in MASKS.items():
        add(name, "half a mask", file, halve)
        if name not in ("long-rvos", "a2d-sentences"):  # there it means that the object is not visible
            add(name, "missing mask", file, Path.unlink)
        if file.endswith(".png"):
            add(name, "mask of a wrong size", file, Image.fromarray(np.zeros((9, 7), np.uint8)).save)
            add(name, "mask in colours", file, Image.new("RGB", (64, 48)).save)
    for name, files in JSON_FILES.items():
        for file in files:
            add(name, "trailing comma", file, add_comma)
            add(name, "half a file", file, halve)
            add(name, "list of a number", file, lambda path: path.write_text("[0]"))
            if name != "jhmdb-sentences" and Path(file).name != "meta.json":
                add(name, "missing file", file, Path.unlink)
        if "meta_expressions" in files[0]:
            add(name, "duplicated expression id", files[0], repeat_first_expression)
            for kind, change in listing_changes(name).items():
                named = "Annotations" if (name, kind) == ("long-rvos", "unknown object") else None
                add(name, kind, files[0], changing(change), named)
    for name, file in (("mevis", "valid_u/mask_dict.json"), ("revos", "mask_dict.json")):
        for kind, change in track_changes().items():
            add(name, kind, file, changing(change))
    for kind, change in foreground_changes().items():
        add("revos", kind, "mask_dict_foreground.json", changing(change))

    texts, listed = "davis_text_annotations/Davis17_annot1_full_video.txt", "DAVIS/ImageSets/2017/val.txt"
    add("ref-davis17", "duplicated expression", texts, repeat_last_line)
    add("ref-davis17", "line of two words", texts, adding("blackswan 1"))
    add("ref-davis17", "object that is not a number", texts, adding('blackswan one "the swan"'))
    add("ref-davis17", "missing file", texts, Path.unlink)
    add("ref-davis17", "missing file", listed, Path.unlink)
    add("ref-davis17", "video without expressions", listed, adding("goat"), "goat")
    sentences = "text_annotations/a2d_annotation.txt"
    add("a2d-sentences", "duplicated sentence", sentences, repeat_last_line)
    add("a2d-sentences", "fourth column", sentences, adding("test00,1,a ring,more"))
    add("a2d-sentences", "instance that is not a number", sentences, adding("test00,one,a ring"))
    add("a2d-sentences", "open quote", sentences, adding('test00,3,"a'))
    add("a2d-sentences", "missing folder", str(Path(MASKS["a2d-sentences"]).parent), shutil.rmtree)
    for file in ("Release/videoset.csv", "text_annotations/a2d_missed_videos.txt", sentences):
        add("a2d-sentences", "missing file", file, Path.unlink)
    add("jhmdb-sentences", "duplicated sentence", "jhmdb_annotation.txt", repeat_last_line)
    add("jhmdb-sentences", "unknown video", "jhmdb_annotation.txt", adding("gone,a man"))
    return made


Change = Callable[[Any], Any]


def listing_changes(name: str) -> dict[str, Change]:
    """List changes that make ``meta_expressions.json`` invalid."""

    def in_video(change: Change) -> Change:
        return lambda content: change(next(iter(content["videos"].values())))

    def in_expression(change: Change) -> Change:
        return in_video(lambda video: change(next(iter(video["expressions"].values()))))

    changes: dict[str, Change] = {
        "no videos": lambda content: content.pop("videos"),
        "expression without text": in_expression(lambda record: record.pop("exp")),
        "expression of a wrong type": in_video(lambda video: video["expressions"].update({"0": "a ring"})),
        "path as an expression's id": in_video(lambda video: video["expressions"].update({"../0": {"exp": "a ring"}})),
        "parent as an expression's id": in_video(lambda video: video["expressions"].update({"..": {"exp": "a ring"}})),
        "nothing as an expression's id": in_video(lambda video: video["expressions"].update({"": {"exp": "a ring"}})),
        "path as a video's id": lambda content: content["videos"].update({"../up": content["videos"].popitem()[1]}),
        "path as a frame's name": in_video(lambda video: video.update(frames=["../00000"])),
        "video without frames": in_video(lambda video: video.update(frames=[])),
        "frame listed twice": in_video(lambda video: video["frames"].append(video["frames"][0])),
    }
    if name in ("mevis", "revos"):
        changes["unknown annotation"] = in_expression(lambda record: record.update(anno_id=[999]))
        changes["no annotations"] = in_expression(lambda record: record.pop("anno_id"))
        changes["frames out of order"] = in_video(lambda video: video["frames"].reverse())
    else:
        changes["unknown object"] = in_expression(lambda record: record.update(obj_id="99"))
        changes["no object"] = in_expression(lambda record: record.pop("obj_id"))
    if name == "revos":
        changes["unknown kind"] = in_expression(lambda record: record.update(type_id=7))
        changes["impossible size"] = in_video(lambda video: video.update(height=-1))
    if name == "long-rvos":
        changes["unknown kind"] = in_expression(lambda record: record.update(type="spoken"))
    return changes


def track_changes() -> dict[str, Change]:
    """List changes that make ``mask_dict.json`` invalid."""

    def in_last(**fields: Any) -> Change:
        return in_tracks(lambda track: track[-1] and track[-1].update(fields))

    def in_tracks(change: Change) -> Change:
        return lambda content: [change(track) for track in content.values()]

    return {
        "wrong RLE size": in_last(size=[64, 48]),
        "RLE of another area": in_last(counts="1"),
        "RLE without size": in_last(size=None),
        "RLE that is text": in_tracks(lambda track: track.__setitem__(-1, "text")),
        "track too short": in_tracks(lambda track: track.pop()),
        "track of a wrong type": lambda content: content.update(dict.fromkeys(content, "text")),
    }


def foreground_changes() -> dict[str, Change]:
    """List changes that make ``mask_dict_foreground.json`` invalid."""

    def in_video(change: Change) -> Change:
        return lambda content: change(next(iter(content.values())))

    return {
        "foreground of a wrong size": in_video(lambda record: record["masks_rle"][0].update(size=[64, 48])),
        "foreground too short": in_video(lambda record: record["masks_rle"].pop()),
        "video without foreground": lambda content: content.popitem(),
    }


def changing(change: Change) -> Callable[[Path], object]:
    return lambda path: change_json(path, change)


def adding(line: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(f"{path.read_text()}{line}\n")


def halve(path: Path) -> None:
    """Keep only the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def add_comma(path: Path) -> None:
    text = path.read_text()
    path.write_text(f"{text[:-1]},{text[-1]}")


def repeat_first_expression(path: Path) -> None:
    """Write a duplicate key, which only a text editor can do."""
    path.write_text(path.read_text().replace('"expressions": {', '"expressions": {"0": {"exp": "twice"}, ', 1))


def repeat_last_line(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


def read_split(name: str, folder: Path) -> None:
    """Open the written split and read all frames and masks."""
    read_everything(open_dataset(name, folder, SPLITS[name]))


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a data set, written once per benchmark."""
    written: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in written:
            written[name] = WRITERS[name](tmp_path_factory.mktemp(name))
        return written[name]

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_an_undamaged_data_set_is_read_without_problems(undamaged: Callable[[str], Path], name: str) -> None:
    read_split(name, undamaged(name))
    assert check_dataset(name, undamaged(name), SPLITS[name]).problems == ()


@pytest.mark.parametrize("damage", damages(), ids=str)
def test_damage_is_reported_with_the_file(undamaged: Callable[[str], Path], tmp_path: Path, damage: Damage) -> None:
    folder = shutil.copytree(undamaged(damage.name), tmp_path / "copy")
    damage.do(folder / damage.file)
    assert damage.named in refusal(lambda: read_split(damage.name, folder))
    problems = check_dataset(damage.name, folder, SPLITS[damage.name]).problems
    assert any(damage.named in problem for problem in problems)
    assert len(set(problems)) == len(problems)


@pytest.mark.parametrize(
    ("name", "file"), [*FRAMES.items(), *((name, MASKS[name]) for name in ("ref-youtube-vos", "ref-davis17"))]
)
def test_a_missing_file_is_reported_before_anything_is_decoded(
    undamaged: Callable[[str], Path], tmp_path: Path, name: str, file: str
) -> None:
    folder = shutil.copytree(undamaged(name), tmp_path / "copy")
    (folder / file).unlink()
    with pytest.raises(DataError, match=Path(file).name):
        open_dataset(name, folder, SPLITS[name])


def test_one_damaged_item_does_not_hide_the_others(undamaged: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(undamaged("mevis"), tmp_path / "copy")
    frame = folder / "valid_u/JPEGImages/valid_u01/00004.jpg"
    frame.unlink()
    change_json(folder / "valid_u/meta_expressions.json", listing_changes("mevis")["unknown annotation"])
    change_json(folder / "valid_u/mask_dict.json", lambda tracks: tracks["1"].__setitem__(5, "text"))
    found = check_dataset("mevis", folder, "valid_u")
    assert len(found.problems) == 3
    assert f"{frame} is missing." in found.problems
    assert (found.splits[0].videos, found.splits[0].expressions) == (2, 7)


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_truncated_json_file_is_refused(undamaged: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(undamaged(name), tmp_path / "copy")
    rng = random.Random(name)
    for file in JSON_FILES[name]:
        whole = (folder / file).read_bytes()
        for _ in range(20):
            (folder / file).write_bytes(whole[: rng.randrange(len(whole))])
            with pytest.raises(DataError, match=Path(file).name):
                open_dataset(name, folder, SPLITS[name])
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize("name", WRITERS)
def test_random_damage_to_any_file_is_read_or_refused(
    undamaged: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Changed or truncated files raise a DataError or are read, but never raise another exception."""
    folder = shutil.copytree(undamaged(name), tmp_path / "copy")
    rng = random.Random(f"bytes of {name}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    refused = []
    for _ in range(25):
        file = rng.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))]))
        try:
            read_split(name, folder)
        except DataError as error:
            refused.append(str(error))
        finally:
            file.write_bytes(whole)
    assert refused
    assert all(str(folder) in sentence for sentence in refused)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"videos": ' + "9" * 10_000 + "}", "\ufeff{}"],
    ids=["nested", "long number", "byte order mark"],
)
def test_json_that_breaks_the_parser_is_refused(tmp_path: Path, text: str) -> None:
    WRITERS["mevis"](tmp_path)
    (tmp_path / "valid_u/meta_expressions.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"meta_expressions\.json"):
        open_dataset("mevis", tmp_path)
