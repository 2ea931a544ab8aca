"""Data sets with something wrong in them: every layout that can be read, from files to values within files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge import POSIX, command, fresh, inputs, judge
from refervos.data.catalogue import open_dataset
from spoil import Draw, one_of, spoil_folder
from test_every_layout import WRITERS

pytestmark = POSIX


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small data set of each layout, written once."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = tmp_path_factory.mktemp("good") / "data"
            WRITERS[name][1](written[name])
            assert read_all(name, written[name], WRITERS[name][0])
        return written[name]

    return folder


def read_all(name: str, folder: Path, split: str) -> int:
    """Read a data set as trainings and evaluations do: strictly, every frame and mask."""
    samples = open_dataset(name, folder, split).samples
    for sample in samples:
        for index in range(len(sample.video)):
            frame = sample.video.frames.read(index)
            assert frame.ndim == 3, frame.shape
            assert frame.dtype == "uint8"
        truth = sample.ground_truth
        for index in truth.annotated if truth is not None else ():
            assert truth is not None
            mask, void = truth.mask(index), truth.void(index)
            assert mask.dtype == bool, mask.dtype
            assert void is None or void.shape == mask.shape
    return len(samples)


@pytest.mark.parametrize("name", WRITERS)
@inputs(4)
@given(data=st.data())
def test_a_data_set_is_read_or_refused(
    name: str, good: Callable[[str], Path], tmp_path: Path, data: st.DataObject
) -> None:
    folder, split = fresh(tmp_path), WRITERS[name][0]
    shutil.copytree(good(name), folder)
    draw: Draw = data.draw
    done = [spoil_folder(draw, folder) for _ in range(one_of(draw, 1, 1, 2))]
    about = f"{name}: {'; '.join(done)}"
    if one_of(draw, True, False):
        judge(lambda: read_all(name, folder, split), folder, about=about)
    else:
        judge(command("data", "check", name, folder, "--quiet"), folder, about=f"data check {about}")
