"""Manifests are read in three formats and checked as a whole; units are named by their inputs and packed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from refervos.batch.inputs import InputFacts
from refervos.batch.manifest import Entry, read_manifest
from refervos.batch.units import Cost, Unit, make_unit, pack
from refervos.errors import DataError


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        'video,expression,start,end\na.mp4,the dog,,\nb.mp4,"a cat, asleep",8,20\na.mp4,the ball,,\n'
    )
    rows = [
        {"video": "a.mp4", "expressions": ["the dog", "the ball"]},
        {"video": "b.mp4", "expression": "a cat, asleep", "start": 8, "end": 20},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pyarrow.Table.from_pylist(
        [
            {"video": "a.mp4", "expressions": ["the dog", "the ball"], "start": None, "end": None},
            {"video": "b.mp4", "expressions": ["a cat, asleep"], "start": 8, "end": 20},
        ]
    )
    parquet.write_table(table, tmp_path / "m.parquet")
    for name in ("m.csv", "m.jsonl", "m.parquet"):
        one, other = read_manifest(tmp_path / name)
        assert (one.uri, one.expressions, one.start, one.end) == (
            str(tmp_path / "a.mp4"),
            ("the dog", "the ball"),
            0,
            None,
        )
        assert (other.uri, other.expressions, other.start, other.end) == (
            str(tmp_path / "b.mp4"),
            ("a cat, asleep",),
            8,
            20,
        )


def test_a_cell_may_hold_a_list_of_sentences(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('video,expressions\ns3://b/a.mp4,"[""the dog"", ""the ball""]"\n')
    (entry,) = read_manifest(tmp_path / "m.csv")
    assert (entry.uri, entry.expressions) == ("s3://b/a.mp4", ("the dog", "the ball"))


FAULTS = [
    ({"video": "", "expression": "the dog"}, "it names no video"),
    ({"video": "a.mp4"}, "it needs either an expression or a list"),
    ({"video": "a.mp4", "expression": "  "}, "the expression is empty"),
    ({"video": "a.mp4", "expressions": []}, "not a list of sentences"),
    ({"video": "a.mp4", "expressions": "the dog"}, "not a list of sentences"),
    ({"video": "a.mp4", "expressions": [1]}, "not a text"),
    ({"video": "a.mp4", "expressions": ["x", "x"]}, "appears twice"),
    ({"video": "a.mp4", "expression": "x", "start": -1}, "start is -1"),
    ({"video": "a.mp4", "expression": "x", "start": 9, "end": 9}, "end is 9, but must be greater than start"),
    ({"video": "a.mp4", "expression": "x", "end": "1.5"}, "end is '1.5'"),
    ({"video": "a.mp4", "expression": "x", "frames": True}, "frames is True"),
    ({"video": "a\u0007.mp4", "expression": "x"}, "control characters"),
    ({"video": "https://me:secret@host/a.mp4", "expression": "x"}, "give credentials in environment variables"),
]


def test_every_fault_is_listed_with_its_line(tmp_path: Path) -> None:
    good = {"video": "good.mp4", "expression": "the dog"}
    lines = [good, *(row for row, _ in FAULTS), good | {"expression": "the ball"}]
    (tmp_path / "m.jsonl").write_text("\n".join([*map(json.dumps, lines), "{", "[]"]))
    with pytest.raises(DataError) as raised:
        read_manifest(tmp_path / "m.jsonl")
    first, *listed = str(raised.value).splitlines()
    assert f"has {len(FAULTS) + 2} faults" in first
    for line, ((_, sentence), text) in enumerate(zip(FAULTS, listed, strict=False), 2):
        assert text.strip().startswith(f"line {line}: ")
        assert sentence in text
    assert "secret" not in str(raised.value)
    assert "line 16 is not valid JSON" in listed[-2]
    assert "line 17 is not a JSON object" in listed[-1]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.txt", b"", "give a .csv, .jsonl or .parquet file"),
        ("none.csv", None, "does not exist"),
        ("m.csv", b"", "the columns are video"),
        ("m.csv", b"film,text\na,b\n", "has the columns film, text"),
        ("m.csv", b"video,video,expression\n", "has a column twice"),
        ("m.csv", b"video,expression\n", "lists no video"),
        ("m.csv", b"video,expression\na.mp4\n", "line 2: it has 1 cells, but the header has 2"),
        ("m.csv", b'video,expression\na.mp4,"x"y\n', "it is not valid CSV"),
        ("m.csv", b"video,expression\n\xff\xfe\xfa,x\n", "is not UTF-8"),
        ("m.parquet", b"PAR1", "is not a readable Parquet file"),
    ],
)
def test_an_unreadable_manifest_is_one_sentence(
    name: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_manifest(tmp_path / name)


def test_lines_of_a_csv_are_counted_with_line_breaks_in_cells(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('video,expression\na.mp4,"the\ndog"\nb.mp4,\n')
    with pytest.raises(DataError, match="line 4: it needs either"):
        read_manifest(tmp_path / "m.csv")


ENTRY = Entry(1, "/videos/a.mp4", ("the dog",))
FACTS = InputFacts("12-34", 80_000)


def test_a_unit_is_named_by_all_its_inputs() -> None:
    stamp = {"fingerprint": "f", "options": {"clip": None}}
    first = make_unit(ENTRY, FACTS, 30, stamp, Cost())
    assert first == make_unit(ENTRY, FACTS, 30, stamp, Cost())
    assert make_unit(ENTRY, FACTS, 99, stamp, Cost()).name == first.name  # an estimate
    others = [
        make_unit(Entry(1, "/videos/b.mp4", ("the dog",)), FACTS, 30, stamp, Cost()),
        make_unit(Entry(1, "/videos/a.mp4", ("the cat",)), FACTS, 30, stamp, Cost()),
        make_unit(Entry(1, "/videos/a.mp4", ("the dog",), start=1), FACTS, 30, stamp, Cost()),
        make_unit(Entry(1, "/videos/a.mp4", ("the dog",), end=9), FACTS, 30, stamp, Cost()),
        make_unit(ENTRY, InputFacts("12-35", 80_000), 30, stamp, Cost()),
        make_unit(ENTRY, FACTS, 30, {**stamp, "fingerprint": "g"}, Cost()),
        make_unit(ENTRY, FACTS, 30, {**stamp, "options": {"clip": 1}}, Cost()),
    ]
    assert len({first.name, *(unit.name for unit in others)}) == 8


def test_work_is_estimated_from_frames_or_else_from_the_size() -> None:
    cost = Cost(overhead=1.0, shared=0.1, sentence=0.2)
    two = Entry(1, "/a.mp4", ("x", "y"), start=10, end=20)
    assert make_unit(two, FACTS, 100, {}, cost).work == pytest.approx(1 + 10 * (0.1 + 2 * 0.2))
    assert make_unit(two, FACTS, 15, {}, cost).frames == 5
    assert make_unit(ENTRY, InputFacts("v", 800_000), None, {}, cost).frames == 101
    assert make_unit(Entry(1, "/a.mp4", ("x",), frames=7), FACTS, 100, {}, cost).frames == 7


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 400), min_size=1, max_size=60), st.floats(1, 200))
def test_shards_hold_every_unit_once_and_enough_work(works: list[float], seconds: float) -> None:
    units = [Unit(f"{index:03d}", "u", "v", 0, None, ("x",), 1, work) for index, work in enumerate(works)]
    shards = pack(units, seconds)
    assert sorted(unit.name for shard in shards for unit in shard) == [unit.name for unit in units]
    totals = [sum(unit.work for unit in shard) for shard in shards]
    assert totals == sorted(totals, reverse=True)
    assert all(total >= seconds for total in totals[:-1])
    assert all(unit.work < seconds for shard in shards if len(shard) > 1 for unit in shard)
    assert pack(units[::-1], seconds) == shards
