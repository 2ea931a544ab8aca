"""Spoilt data sets of every layout, from files and names to values within files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sets import SMALL_DATA_SETS, read_everything
from judge import POSIX, command, fresh, inputs, judge
from refervos.data.catalogue import open_dataset
from spoil import Draw, one_of, spoil_folder

pytestmark = POSIX


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a small data set, written once per layout."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            split, write = SMALL_DATA_SETS[name]
            written[name] = tmp_path_factory.mktemp("good") / "data"
            write(written[name])
            assert read_everything(open_dataset(name, written[name], split))
        return written[name]

    return folder


@pytest.mark.parametrize("name", SMALL_DATA_SETS)
@inputs(4)
@given(data=st.data())
def test_a_spoilt_data_set_is_read_or_refused_in_one_sentence(
    name: str, good: Callable[[str], Path], tmp_path: Path, data: st.DataObject
) -> None:
    folder, split = fresh(tmp_path), SMALL_DATA_SETS[name][0]
    shutil.copytree(good(name), folder)
    draw: Draw = data.draw
    changes = [spoil_folder(draw, folder) for _ in range(one_of(draw, 1, 1, 2))]
    about = f"{name}: {'; '.join(changes)}"
    if one_of(draw, True, False):
        judge(lambda: read_everything(open_dataset(name, folder, split)), folder, about=about)
    else:
        judge(command("data", "check", name, folder, "--quiet"), folder, about=f"data check {about}")
