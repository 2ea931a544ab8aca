"""Every data set that can be read can also be trained on, evaluated and scored: the whole way, on generated files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import layouts
import layouts_conversations
import layouts_images
from refervos.data.catalogue import BENCHMARKS
from refervos.evaluation.datasets import Part
from refervos.evaluation.evaluate import Request, evaluate
from refervos.evaluation.scoring import score
from refervos.training.recipe import recipe_from_mapping
from refervos.training.trainer import train

WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "mevis": ("valid_u", lambda folder: layouts.write_mevis(folder, "valid_u", videos=1, frames=3)),
    "ref-youtube-vos": ("train", lambda folder: layouts.write_ref_youtube_vos(folder, "train", videos=1, frames=3)),
    "ref-davis17": ("val", lambda folder: layouts.write_ref_davis17(folder, "val", videos=1, frames=3)),
    "revos": ("valid", lambda folder: layouts.write_revos(folder, "valid", videos=1, frames=3)),
    "long-rvos": ("valid", lambda folder: layouts.write_long_rvos(folder, "valid", videos=1, frames=3)),
    "a2d-sentences": ("test", lambda folder: layouts.write_a2d_sentences(folder, "test", videos=1, frames=4)),
    "jhmdb-sentences": ("test", lambda folder: layouts.write_jhmdb_sentences(folder, videos=1)),
    "refcoco": ("val", lambda folder: layouts_images.write_refcoco(folder, "refcoco", ("train", "val"))),
    "refcoco+": ("val", lambda folder: layouts_images.write_refcoco(folder, "refcoco+", ("train", "val"))),
    "refcocog": ("val", lambda folder: layouts_images.write_refcoco(folder, "refcocog", ("train", "val"), "umd")),
    "grefcoco": ("val", lambda folder: layouts_images.write_grefcoco(folder, ("train", "val"))),
    "json-lines": ("all", layouts_images.write_json_lines),
    "coco-video": ("train", layouts_images.write_coco_video),
    "cvat": ("all", layouts_images.write_cvat),
    "vidstg": ("test", lambda folder: layouts_conversations.write_vidstg(folder, videos=1)),
    "hc-stvg": ("val", lambda folder: layouts_conversations.write_hcstvg(folder, videos=1)),
    "hc-stvg1": ("test", lambda folder: layouts_conversations.write_hcstvg(folder, "test", version=1, videos=1)),
    "gcg": ("test", lambda folder: layouts_conversations.write_gcg(folder, videos=1, frames=3)),
    "video-gcg": ("test", lambda folder: layouts_conversations.write_video_gcg(folder, videos=1, frames=3)),
    "mevis-gcg": ("valid_u", lambda folder: layouts_conversations.write_mevis_gcg(folder, videos=1, frames=3)),
    "vidstg-gcg": (
        "val",
        lambda folder: layouts_conversations.write_segmented_gcg(folder, "vidstg_gcg", videos=1, frames=3),
    ),
    "hcstvg-gcg": (
        "val",
        lambda folder: layouts_conversations.write_segmented_gcg(folder, "hcstvg_gcg", videos=1, frames=3),
    ),
    "ytvos-gcg": ("train", lambda folder: layouts_conversations.write_ytvos_gcg(folder, videos=1, frames=3)),
    "anet-gcg": ("train", lambda folder: layouts_conversations.write_anet_gcg(folder, videos=1, frames=3)),
}


def test_no_data_set_is_forgotten() -> None:
    assert set(WRITERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", WRITERS)
def test_train_eval_and_score(name: str, tmp_path: Path) -> None:
    split, write = WRITERS[name]
    write(tmp_path / "data")
    source = {"name": name, "folder": str(tmp_path / "data"), "split": split}
    stage = {
        "name": "adapters",
        "stage": "images",
        "init": {"frozen": "miniature"},
        "steps": 1,
        "batch": 2,
        "validation_batches": 1,
        "settings": {
            "model": {"adapter_width": 16, "adapter_heads": 2, "short_side": 128, "hsa": False},
            "data": [source],
            "validation": [source],
            "sentences": 1,
            "object_score": True,
        },
    }
    train(recipe_from_mapping({"name": "any", "stages": [stage]}), tmp_path / "run", show_progress=False)

    part = Part(name, tmp_path / "data", split, videos=1)
    request = Request(str(tmp_path / "run" / "adapters" / "model"), part, tmp_path / "results", device="cpu")
    answered = evaluate(request, show_progress=False)
    overall = answered.summary.groups[0]
    assert overall.count > 0
    assert all(value is None or 0 <= value.mean <= 100 for value in overall.values.values())

    again = score(tmp_path / "results" / "predictions", part, show_progress=False).summary.groups[0]
    assert {measure: value for measure, value in again.values.items() if "matched" not in measure} == {
        measure: value for measure, value in overall.values.items() if "matched" not in measure
    }
    assert dataclasses.asdict(again)["count"] == overall.count
