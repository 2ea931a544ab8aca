"""transformers' AutoConfig, AutoModel and pipeline load this project's models, without remote code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, pipeline

import refervos
import refervos.hf
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from scenes import FIRST_GENERATION, MICRO_SAM2, micro_model, scene
from stand_ins import TOKEN, World, connect, serve

CLIP = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"
TEXT = ["the red circle", "the purple triangle"]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    refervos.hf.register()
    refervos.hf.register()  # again: changes nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The miniature as it is saved today."""
    target = tmp_path_factory.mktemp("hf") / "miniature"
    refervos.load("miniature", device="cpu").save_pretrained(target)
    return str(target)


def test_the_import_needs_no_transformers() -> None:
    code = "import sys, refervos.hf; assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_transformers_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(MissingDependencyError, match=r"needs transformers: pip install 'refervos\[transformers\]'"):
        refervos.hf.register()


def test_auto_classes_load_a_folder(folder: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "refervos-samwise"
    assert config.config == json.loads((Path(folder) / "config.json").read_text())["config"]
    model = AutoModel.from_pretrained(folder)
    expected: Any = refervos.load(folder, device="cpu")
    assert model.segmenter.fingerprint() == expected.fingerprint()
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    model.save_pretrained(tmp_path / "copy")
    again: Any = refervos.load(tmp_path / "copy", device="cpu")
    assert again.fingerprint() == expected.fingerprint()
    assert AutoModel.from_pretrained(tmp_path / "copy").segmenter.fingerprint() == expected.fingerprint()


def test_folders_with_the_first_names_of_types_load() -> None:
    assert json.loads((FIRST_GENERATION / "config.json").read_text())["model_type"] == "samwise"
    assert AutoConfig.from_pretrained(FIRST_GENERATION).model_type == "samwise"
    expected: Any = refervos.load(FIRST_GENERATION, device="cpu")
    assert AutoModel.from_pretrained(FIRST_GENERATION).segmenter.fingerprint() == expected.fingerprint()


def test_other_families_load(tmp_path: Path) -> None:
    refervos.load("refsam-miniature", device="cpu").save_pretrained(tmp_path / "refsam")
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(tmp_path / "sam2")
    assert type(AutoModel.from_pretrained(tmp_path / "refsam").segmenter).__name__ == "RefSam"
    assert type(AutoModel.from_pretrained(tmp_path / "sam2").segmenter).__name__ == "Sam2Segmenter"


def test_half_precision_keeps_positions_exact(folder: str) -> None:
    whole, half = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    names = [name for name in whole.state_dict() if name.endswith("positional_embedding")]
    assert names
    for converted in (half, whole.to(torch.bfloat16)):
        assert converted.segmenter.compute_dtype == torch.bfloat16
        assert all(converted.state_dict()[name].dtype == torch.float32 for name in names)


def test_the_pipeline_yields_the_masks_of_every_frame(folder: str) -> None:
    segmenter = pipeline("referring-video-segmentation", model=folder, device="cpu")
    answers = segmenter(str(CLIP), text=TEXT)
    session = refervos.load(folder, device="cpu").open(TEXT)
    with refervos.open_source(str(CLIP), stop=5) as source:
        for frame in source:
            expected, answer = session.step(frame.image), next(answers)  # as they come, not at the end
            assert [each["label"] for each in answer] == TEXT
            for each, presence, mask in zip(answer, expected.presence, expected.masks, strict=True):
                assert each["score"] == pytest.approx(float(presence), abs=1e-6)
                assert each["mask"].mode == "L"
                assert np.array_equal(np.asarray(each["mask"]), mask * np.uint8(255))
    answers.close()


def test_the_pipeline_takes_frames_and_lists_of_videos(folder: str) -> None:
    segmenter = pipeline("referring-video-segmentation", model=folder, device="cpu")
    (one,) = list(segmenter(np.stack(scene(1)), text="the red circle"))
    assert [each["label"] for each in one] == ["the red circle"]
    first, second = segmenter([np.stack(scene(2)), np.stack(scene(3))], text="the red circle", on_cut="forget")
    assert (len(list(first)), len(list(second))) == (2, 3)


def test_bad_input_of_the_pipeline_is_refused_in_a_sentence(folder: str) -> None:
    segmenter = pipeline("referring-video-segmentation", model=folder, device="cpu")
    with pytest.raises(PromptError, match="there is no sentence; call the pipeline with text='the dog'"):
        segmenter(str(CLIP))
    with pytest.raises(PromptError, match="empty"):
        segmenter(str(CLIP), text="")
    with pytest.raises(refervos.errors.VideoError, match=r"nowhere\.mp4"):
        list(segmenter("nowhere.mp4", text="the dog"))


def test_a_model_is_loaded_by_its_hub_id_and_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = micro_model()
    with serve(World()) as world:
        connect(monkeypatch, world.port, tmp_path / "home")
        model.push_to_hub("someone/tiny", token=TOKEN)
        model.push_to_hub("someone/tiny", revision="second", token=TOKEN)
        loaded = AutoModel.from_pretrained("someone/tiny", revision="second")
        assert loaded.segmenter.fingerprint() == model.fingerprint()
        assert loaded.segmenter.hub_commit.commit == world.repositories["someone/tiny"].refs["second"]
        assert "/commit/" in loaded.push_to_hub("someone/other", token=TOKEN)
        assert "model.safetensors" in world.repositories["someone/other"].files()


def test_what_is_not_supported_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocl"):
        AutoModel.from_pretrained(folder, protocl="published")
    with pytest.raises(CheckpointError, match="cannot be made from a configuration; use AutoModel"):
        AutoModel.from_config(AutoConfig.from_pretrained(folder))
    with pytest.raises(ConfigError, match="call push_to_hub"):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "copy", push_to_hub=True)
