"""All benchmarks by name, with their readers, splits and scoring."""

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
"""Function that reads a split from a folder and reports problems with single items."""

Scoring = Literal["video", "ref-davis17", "revos", "long-rvos", "image", "boxes"]
"""Scoring protocol of a benchmark.

- ``video``: J and F over all frames, with N-acc and T-acc when there are expressions without target;
- ``ref-davis17``: J and F per object and annotator, by the published matching and by expression;
- ``revos``: like ``video``, per kind, with the robustness R; the ground truth has a ``foreground``;
- ``long-rvos``: like ``video``, per kind, with tIoU and vIoU;
- ``image``: IoU of each annotated frame: oIoU, mIoU, precision.
- ``boxes``: IoU of the box around the predicted mask with the annotated box, mean over the annotated frames: mIoU, and
  the share of expressions above 0.3 and 0.5.
"""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, or a layout for your own data.

    Attributes:
        name: Name on the command line.
        title: Usual name in print.
        module: Module in ``layouts`` that reads it, imported when needed.
        reader: Name of the ``Reader`` in that module.
        splits: Its splits.
        default_split: Split used when none is given.
        scoring: Scoring protocol.
        split_paths: Paths below its folder, with ``{split}`` and ``*``; a split is present when one of them exists.
        more_splits: Whether other split names are allowed; the reader then checks them.
        default_split_paths: Paths that show that the default split is present.
    """

    name: str
    title: str
    module: str
    reader: str
    splits: tuple[str, ...]
    default_split: str
    scoring: Scoring
    split_paths: tuple[str, ...]
    more_splits: bool = False
    default_split_paths: tuple[str, ...] = ()

    def read(self, folder: Path, split: str, problems: Problems) -> Dataset:
        """Read a split."""
        reader = cast(Reader, getattr(importlib.import_module(f"refervos.data.layouts.{self.module}"), self.reader))
        try:
            return reader(folder, split, problems)
        except RecursionError:
            raise DataError(f"{folder}: the annotations of {self.title} are nested too deeply.") from None

    def splits_in(self, folder: Path) -> list[str]:
        """List the splits present; a single file is the default split. DataError when the folder is missing."""
        self.require(folder)
        if folder.is_file():
            return [self.default_split]
        paths = {split: [path.format(split=split) for path in self.split_paths] for split in self.splits}
        paths[self.default_split].extend(self.default_split_paths)
        return [split for split in self.splits if any(any(folder.glob(path)) for path in paths[split])]

    def require(self, folder: Path) -> None:
        """Raise DataError when the folder of the benchmark is missing."""
        if not folder.exists():
            raise DataError(f"{folder} is missing; it should be the folder of {self.title}.")


def _refcoco(name: str, title: str, reader: str, splits: tuple[str, ...], partition: str) -> Benchmark:
    files = (f"*refs({partition}).*", f"instances_{name}_{{split}}.json", f"finetune_{name}_{{split}}.json")
    paths = (*files, *(f"{name}/{file}" for file in files))
    return Benchmark(name, title, "refcoco", reader, splits, "val", "image", paths, more_splits=True)


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
            ("DAVIS/ImageSets/2017/{split}.txt", "meta_expressions/{split}*"),  # named valid there
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
            "vidstg",
            "VidSTG",
            "vidstg",
            "read_vidstg",
            ("train", "val", "test"),
            "test",
            "boxes",
            ("vidstg_annotations/{split}_annotations.json", "annotations/{split}_annotations.json"),
        ),
        Benchmark(
            "hc-stvg",
            "HC-STVG, version 2",
            "hcstvg",
            "read_hcstvg",
            ("train", "val"),
            "val",
            "boxes",
            ("{split}_v2.json", "anno/{split}_v2.json", "anno_v2/{split}_v2.json"),
        ),
        Benchmark(
            "hc-stvg1",
            "HC-STVG, version 1",
            "hcstvg",
            "read_hcstvg1",
            ("train", "test"),
            "test",
            "boxes",
            ("{split}.json", "anno/{split}.json", "anno_v2/{split}.json"),
        ),
        Benchmark(
            "gcg",
            "the published test set of grounded conversations",
            "gcg_test",
            "read_gcg",
            ("test",),
            "test",
            "video",
            ("video_gcg/instruction_data/{split}.json",),
        ),
        Benchmark(
            "video-gcg",
            "the grounded captions of BURST and YouTube-VIS",
            "video_gcg",
            "read_video_gcg",
            ("train", "val", "test"),
            "test",
            "video",
            ("video_gcg/instruction_data/{split}.json",),
        ),
        Benchmark(
            "mevis-gcg",
            "MeViS-GCG",
            "gcg_captions",
            "read_mevis_gcg",
            ("train", "valid_u"),
            "valid_u",
            "video",
            ("mevis_gcg/{split}",),
        ),
        Benchmark(
            "vidstg-gcg",
            "VidSTG-GCG",
            "gcg_captions",
            "read_vidstg_gcg",
            ("train", "val", "test"),
            "val",
            "video",
            ("vidstg_gcg/{split}_captions",),
        ),
        Benchmark(
            "hcstvg-gcg",
            "HC-STVG-GCG",
            "gcg_captions",
            "read_hcstvg_gcg",
            ("train", "val"),
            "train",
            "video",
            ("hcstvg_gcg/{split}_captions",),
        ),
        Benchmark(
            "ytvos-gcg",
            "Refer-YouTube-VOS-GCG",
            "gcg_captions",
            "read_ytvos_gcg",
            ("train",),
            "train",
            "video",
            ("ytvos_gcg/{split}",),
        ),
        Benchmark(
            "anet-gcg",
            "ActivityNet-Entities-GCG",
            "anet_gcg",
            "read_anet_gcg",
            ("train",),
            "train",
            "video",
            ("activitynet_entities_gcg/anns",),
        ),
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
            default_split_paths=WHOLE_FILES,
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
"""Benchmarks by name."""


def find_benchmark(name: str) -> Benchmark:
    """Look up a benchmark by name.

    Args:
        name: Such as ``mevis``.

    Returns:
        The benchmark.

    Raises:
        ConfigError: When the name is unknown; the message lists all names.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"data set {name!r} is unknown; choose from {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def open_dataset(
    name: str,
    folder: Path,
    split: str | None = None,
    *,
    allow_outside: bool = False,
    problems: Problems | None = None,
) -> Dataset:
    """Open a split of a benchmark: annotations are read now, frames and masks on demand.

    Args:
        name: Name of the benchmark, such as ``mevis``.
        folder: Its folder, in the published layout.
        split: Name of the split; the benchmark's default when not given.
        allow_outside: Allow annotations to name files outside its folder.
        problems: Collects problems with single items, which are left out; without it, the first problem is raised.

    Returns:
        The samples.

    Raises:
        ConfigError: When the benchmark or the split is unknown.
        DataError: When it is missing, not in its layout, or partly missing or damaged.
    """
    benchmark = find_benchmark(name)
    split = benchmark.default_split if split is None else split
    if split not in benchmark.splits and not benchmark.more_splits:
        raise ConfigError(f"{benchmark.title} has no split {split!r}; choose from {', '.join(benchmark.splits)}.")
    benchmark.require(folder)
    problems = problems or Problems(allow_outside=allow_outside)
    dataset = benchmark.read(folder, split, problems)
    if not dataset.samples and not problems.found:
        problems.report(f"{folder} contains no expression of split {split!r} of {benchmark.title}.")
    return dataset
