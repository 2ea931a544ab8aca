"""Text files are read with byte order marks, any line endings and older encodings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import layouts
import layouts_images
from data_sets import SMALL_DATA_SETS
from refervos.data.catalogue import open_dataset
from refervos.data.files import Problems, read_text
from refervos.data.layouts.json_lines import read_json_lines
from refervos.data.pickles import read_plain_pickle
from refervos.data.sample import Dataset
from refervos.errors import DataError

SAME_READER = {"refcoco+", "refcocog", "hc-stvg1", "gcg", "hcstvg-gcg"}
"""Data sets whose text files another data set covers."""

DATA_SETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{name: entry for name, entry in SMALL_DATA_SETS.items() if name not in SAME_READER},
    "refcoco": ("val", partial(layouts_images.write_converted_refcoco, splits=("val",))),
}

TEXTS = (".json", ".jsonl", ".txt", ".csv", ".xml")

SAVED: dict[str, Callable[[str], bytes]] = {
    "with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "as UTF-16": lambda text: text.replace('encoding="utf-8"', 'encoding="utf-16"').encode("utf-16"),
    "with Windows line endings": lambda text: text.replace("\n", "\r\n").encode(),
}


def contents(dataset: Dataset) -> list[tuple[str, str, str, tuple[str, ...], int]]:
    """Return the ids, text, objects and number of annotated frames of each expression."""
    return [
        (
            *sample.key,
            sample.expression,
            sample.object_ids,
            len(sample.ground_truth.annotated) if sample.ground_truth else 0,
        )
        for sample in dataset.samples
    ]


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_layout_is_read_from_text_files_saved_in_any_encoding(tmp_path: Path, name: str, saved: str) -> None:
    split, write = DATA_SETS[name]
    write(tmp_path)
    before = contents(open_dataset(name, tmp_path, split))
    assert before
    for path in tmp_path.rglob("*"):
        if path.suffix in TEXTS:
            path.write_bytes(SAVED[saved](path.read_bytes().decode("latin-1")))
    assert contents(open_dataset(name, tmp_path, split)) == before


def davis_text(root: Path, data: bytes) -> str:
    """Write an annotator's file of Ref-DAVIS17 and return its first expression."""
    (root / "davis_text_annotations" / "Davis17_annot1.txt").write_bytes(data)
    dataset = open_dataset("ref-davis17", root, problems=Problems(keep_going=True))
    return next(sample.expression for sample in dataset.samples if sample.annotator == "0")


def test_windows_1252_quotes_are_decoded(tmp_path: Path) -> None:
    layouts.write_ref_davis17(tmp_path, frames=2, videos=1)
    assert (
        davis_text(tmp_path, b'blackswan 1 "the swan\x92s \x93white\x94 neck\x85"\n')
        == "the swan\u2019s \u201cwhite\u201d neck\u2026"
    )
    assert davis_text(tmp_path, 'blackswan 1 "the swan\u2019s café"\n'.encode()) == "the swan\u2019s café"
    assert davis_text(tmp_path, b'blackswan 1 "a caf\xe9 \x81"\n') == "a caf\xe9 \x81"


def test_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    layouts.write_ref_davis17(tmp_path, frames=2, videos=1)
    text = 'blackswan 1 "the swan\u2028and its neck\x0b"\n'
    assert davis_text(tmp_path, text.encode()).startswith("the swan and its neck")
    layouts_images.write_frames(tmp_path / "v", layouts_images.own_clip(1))
    (tmp_path / "expressions.jsonl").write_text('{"video": "v", "expression": "a\u2028b"}\r\n\r\n', encoding="utf-8")
    (sample,) = read_json_lines(tmp_path, "all", Problems()).samples
    assert sample.expression == "a\u2028b"


def test_a_csv_file_may_be_in_windows_1252(tmp_path: Path) -> None:
    layouts.write_a2d_sentences(tmp_path, images=True, videos=1, frames=3)
    file = tmp_path / "text_annotations" / "a2d_annotation.txt"
    first, *others = file.read_bytes().split(b"\n")[1:-1]
    instance = first.split(b",")[1]
    file.write_bytes(b"video_id,instance_id,query\ntest00," + instance + b',"the man\x92s caf\xe9"\n')
    (sample,) = open_dataset("a2d-sentences", tmp_path).samples
    assert sample.expression == "the man\u2019s café"
    assert others


def test_concatenated_files_may_have_several_byte_order_marks(tmp_path: Path) -> None:
    layouts_images.write_frames(tmp_path / "v", layouts_images.own_clip(1))
    line = '\ufeff{"video": "v", "expression": "x"}\n'.encode()
    (tmp_path / "expressions.jsonl").write_bytes(line * 2)
    assert len(read_json_lines(tmp_path, "all", Problems())) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_python_2_strings_are_decoded(tmp_path: Path, encoding: str) -> None:
    text = "the café\u2019s left window"
    data = text.encode(encoding)
    path = tmp_path / "refs.p"
    path.write_bytes(b"\x80\x02]q\x00U" + bytes([len(data)]) + data + b"a.")
    assert read_plain_pickle(path) == [text]
    path.write_bytes(b"(lp0\nS" + repr(data)[1:].encode() + b"\np1\na.")
    assert read_plain_pickle(path) == [text]


def test_the_error_for_undecodable_text_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for data in (b"caf\xe9", b"\xff\xfea", b"\xfe\xff\xd8\x3d"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"x\.json cannot be read as text"):
            read_text(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"x\.json is not a regular file"):
        read_text(path)
