"""All benchmarks by name: how each is read, into which splits it is divided, how it is scored."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from refervos.data.files import Problems
from refervos.data.layouts.coco_objects import ANNOTATION_FILES, WHOLE_FILES
from refervos.data.layouts.coco_objects import SPLITS as COCO_SPLITS
from refervos.data.sample import Dataset
from refervos.errors import ConfigError, DataError

Reader = Callable[[Path, str, Problems], Dataset]
"""Reads a split from a folder and reports what is wrong with single items."""

Scoring = Literal["video", "ref-davis17", "revos", "long-rvos", "image"]
"""How a benchmark is scored.

- ``video``: J and F over all frames, and N-acc and T-acc where there are expressions without target;
- ``ref-davis17``: J and F by object, each annotator apart, matched as published and by expression;
- ``revos``: as ``video``, by kind, with the robustness R; the truths have a ``foreground``;
- ``long-rvos``: as ``video``, by kind, with tIoU and vIoU;
- ``image``: IoU of each annotated frame: oIoU, mIoU, precision.
"""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, or a way in which your own data may be stored.

    Attributes:
        name: As it is called at the command line.
        title: As people call it.
        module: Where it is read; imported when it is needed.
        reader: A ``Reader`` in that module.
        splits: Its splits.
        default_split: The one that is evaluated when none is named.
        scoring: How it is scored.
        signs: Paths below its folder, with ``{split}`` and ``*``; a split is there where one of them is.
        more_splits: Whether there may be splits of other names, which the reader then knows or refuses.
        default_signs: Paths that tell of the default split alone.
    """

    name: str
    title: str
    module: str
    reader: str
    splits: tuple[str, ...]
    default_split: str
    scoring: Scoring
    signs: tuple[str, ...]
    more_splits: bool = False
    default_signs: tuple[str, ...] = ()

    def read(self, folder: Path, split: str, problems: Problems) -> Dataset:
        """Read a split; see ``Reader``."""
        reader = cast(Reader, getattr(importlib.import_module(f"refervos.data.layouts.{self.module}"), self.reader))
        try:
            return reader(folder, split, problems)
        except RecursionError:
            raise DataError(f"{folder}: the annotations of {self.title} are nested too deep to be read.") from None

    def splits_in(self, folder: Path) -> list[str]:
        """Which splits are there; a file is the one split that it holds. DataError when the folder is missing."""
        self.require(folder)
        if folder.is_file():
            return [self.default_split]
        signs = {split: [sign.format(split=split) for sign in self.signs] for split in self.splits}
        signs[self.default_split].extend(self.default_signs)
        return [split for split in self.splits if any(any(folder.glob(sign)) for sign in signs[split])]

    def require(self, folder: Path) -> None:
        """DataError when a folder of the benchmark is missing."""
        if not folder.exists():
            raise DataError(f"{folder} is missing; it should be the folder of {self.title}.")


def _refcoco(name: str, title: str, reader: str, splits: tuple[str, ...], partition: str) -> Benchmark:
    files = (f"*refs({partition}).*", f"instances_{name}_{{split}}.json", f"finetune_{name}_{{split}}.json")
    signs = (*files, *(f"{name}/{file}" for file in files))
    return Benchmark(name, title, "refcoco", reader, splits, "val", "image", signs, more_splits=True)


_UNC, _UMD = ("train", "val", "testA", "testB"), ("train", "val", "test")

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "mevis",
            "MeViS",
            "mevis",
            "read_mevis",
            ("train", "valid_u", "valid", "test"),
            "valid_u",
            "video",
            ("{split}",),
        ),
        Benchmark(
            "ref-youtube-vos",
            "Ref-YouTube-VOS",
            "ref_youtube_vos",
            "read_ref_youtube_vos",
            ("train", "valid", "test"),
            "valid",
            "video",
            ("{split}",),
        ),
        Benchmark(
            "ref-davis17",
            "Ref-DAVIS17",
            "ref_davis",
            "read_ref_davis17",
            ("train", "val"),
            "val",
            "ref-davis17",
            ("DAVIS/ImageSets/2017/{split}.txt", "meta_expressions/{split}*"),  # val is valid there
        ),
        Benchmark(
            "revos",
            "ReVOS",
            "revos",
            "read_revos",
            ("train", "valid"),
            "valid",
            "revos",
            ("meta_expressions_{split}_.json",),
        ),
        Benchmark(
            "long-rvos",
            "Long-RVOS",
            "long_rvos",
            "read_long_rvos",
            ("train", "valid", "test"),
            "valid",
            "long-rvos",
            ("{split}",),
        ),
        Benchmark(
            "a2d-sentences",
            "A2D-Sentences",
            "a2d",
            "read_a2d_sentences",
            ("train", "test"),
            "test",
            "image",
            ("Release",),
        ),
        Benchmark(
            "jhmdb-sentences",
            "JHMDB-Sentences",
            "jhmdb",
            "read_jhmdb_sentences",
            ("test",),
            "test",
            "image",
            ("Rename_Images",),
        ),
        _refcoco("refcoco", "RefCOCO", "read_refcoco", _UNC, "unc"),
        _refcoco("refcoco+", "RefCOCO+", "read_refcoco_plus", _UNC, "unc"),
        _refcoco("refcocog", "RefCOCOg", "read_refcocog", _UMD, "umd"),
        _refcoco("grefcoco", "gRefCOCO", "read_grefcoco", _UNC, "unc"),
        Benchmark(
            "json-lines",
            "your own data as JSON lines",
            "json_lines",
            "read_json_lines",
            ("all",),
            "all",
            "video",
            ("expressions.jsonl",),
            more_splits=True,
        ),
        Benchmark(
            "coco-video",
            "your own data as a COCO export",
            "coco_video",
            "read_coco_video",
            COCO_SPLITS,
            "all",
            "video",
            ANNOTATION_FILES,
            more_splits=True,
            default_signs=WHOLE_FILES,
        ),
        Benchmark(
            "cvat",
            "your own data as CVAT exports",
            "cvat",
            "read_cvat",
            ("all",),
            "all",
            "video",
            ("annotations.xml", "*/annotations.xml"),
        ),
    )
}
"""By name."""


def find_benchmark(name: str) -> Benchmark:
    """Look a benchmark up.

    Args:
        name: Such as ``mevis``.

    Returns:
        What is known about it.

    Raises:
        ConfigError: When there is none of that name; the sentence lists all.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"data set {name!r} is unknown; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def open_dataset(
    name: str,
    folder: Path,
    split: str | None = None,
    *,
    allow_outside: bool = False,
    problems: Problems | None = None,
) -> Dataset:
    """Open a split of a benchmark: its annotations are read, its frames and masks when they are asked for.

    Args:
        name: Of the benchmark, such as ``mevis``.
        folder: Where it is, in its published layout.
        split: Which part; the benchmark's default when not given.
        allow_outside: Read files that its annotations name although they are outside its folder.
        problems: Collects what is wrong with single items, which are left out; without it, the first problem is raised.

    Returns:
        The samples.

    Raises:
        ConfigError: When there is no such benchmark or split.
        DataError: When it is not there, not in its layout, or something of it is missing or damaged.
    """
    benchmark = find_benchmark(name)
    split = benchmark.default_split if split is None else split
    if split not in benchmark.splits and not benchmark.more_splits:
        raise ConfigError(f"{benchmark.title} has no split {split!r}; there are {', '.join(benchmark.splits)}.")
    benchmark.require(folder)
    problems = problems or Problems(allow_outside=allow_outside)
    dataset = benchmark.read(folder, split, problems)
    if not dataset.samples and not problems.found:
        problems.report(f"{folder} holds no expression of split {split!r} of {benchmark.title}.")
    return dataset
