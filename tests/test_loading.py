"""Model folders: a saved model loads unchanged, and a folder that does not match is refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from refervos import load
from refervos.checkpoints import weights
from refervos.errors import CheckpointError, ConfigError
from refervos.files import writing
from refervos.ops.linear import make_column_major
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.model import Samwise
from scenes import CAPTION, micro_model, scene, session_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    micro_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def masks(model: Any) -> np.ndarray:
    return np.stack([answer.masks for answer in session_of(model, [CAPTION]).stream(scene(4))])


def test_a_saved_model_loads_unchanged(folder: Path) -> None:
    model, loaded = micro_model(), load(folder, device="cpu")
    assert isinstance(loaded, Samwise)
    assert loaded.config == model.config
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    make_column_major(model)  # as load does; with another memory layout, products differ in rounding on some processors
    assert np.array_equal(masks(model), masks(loaded))
    assert not loaded.training
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # both files have the same permissions
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]  # no temporary files are left


def test_weights_saved_in_half_precision_load_in_float32(tmp_path: Path) -> None:
    micro_model().save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    loaded = load(tmp_path / "half", device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_saving_overwrites_a_folder_only_on_request(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="is not empty; give a new folder, or allow overwriting"):
        micro_model(cme=False).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    micro_model(cme=False).save_pretrained(folder, overwrite=True)
    again: Any = load(folder, device="cpu")
    assert again.config.cme is False


EXCHANGES = [True, False]
"""Whether the file system can exchange two folders atomically."""


def set_exchange(monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(writing, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("exchanges", EXCHANGES)
def test_overwriting_keeps_other_files(folder: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_exchange(monkeypatch, exchanges)
    (folder / "README.md").write_text("mine")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "deep" / "a.txt").write_text("also mine")
    (folder / "link").symlink_to("notes")
    link = folder.parent / "by-link"
    link.symlink_to(folder)
    micro_model(cme=False).save_pretrained(link, overwrite=True)
    assert link.is_symlink()
    again: Any = load(folder, device="cpu")
    assert again.config.cme is False
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "notes" / "deep" / "a.txt").read_text() == "also mine"
    assert (folder / "link").is_symlink()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["by-link", "model"]


class Killed(BaseException):
    """Stand-in for a kill: not caught by ``except Exception``."""


class KillSwitch:
    """Wrapper of system calls that raises ``Killed`` before or after one of them."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, call: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            self.count_down()
            result = call(*arguments, **options)
            self.count_down()
            return result

        return called

    def count_down(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed


def write_model_files(folder: Path, content: str) -> None:
    """Write a model folder whose files all have the same content."""
    with weights.model_folder(folder, overwrite=True) as staged:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (staged / name).write_text(content)


@pytest.mark.parametrize("exchanges", EXCHANGES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_killed_save_never_pairs_a_configuration_with_other_weights(
    exists: bool, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each system call in turn; the next save removes all temporary files."""
    set_exchange(monkeypatch, exchanges)
    found, finished = set(), False
    for moment in range(1, 200):
        folder = tmp_path / f"at-{moment}" / "model"
        folder.parent.mkdir()
        if exists:
            write_model_files(folder, "old")
            (folder / "README.md").write_text("mine")
        switch = KillSwitch(moment)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", switch(shutil.rmtree))
            patch.setattr(writing, "_exchange", switch(writing._exchange))
            for name in ("replace", "link", "unlink", "mkdir"):
                patch.setattr(os, name, switch(getattr(os, name)))
            try:
                write_model_files(folder, "new")
                finished = True
            except Killed:
                pass
        present = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
        if "config.json" in present:  # otherwise the folder is not a model
            assert present["config.json"] == present["model.safetensors"] == present["tokenizer.json"]
        else:
            assert not exists or not exchanges
        assert not exists or present["README.md"] == "mine"
        found.add(present.get("config.json"))
        write_model_files(folder, "newer")
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            **dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), "newer"),
            **({"README.md": "mine"} if exists else {}),
        }
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        if finished:
            break
    assert finished
    assert found == {"new"} | ({"old"} if exists else set()) | ({None} if not exists or not exchanges else set())


def test_a_folder_is_written_by_one_process_at_a_time(folder: Path) -> None:
    code = (
        "import sys, pathlib; from refervos.checkpoints.weights import model_folder\n"
        "with model_folder(pathlib.Path(sys.argv[1]), overwrite=True): print('in', flush=True), sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(CheckpointError, match="another process is writing"):
            micro_model().save_pretrained(folder, overwrite=True)
        other.communicate("")
    assert other.returncode == 0
    load(folder, device="cpu")


def test_a_mounted_folder_is_written_in_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount, such as a container volume, cannot be renamed."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    micro_model(cme=False).save_pretrained(folder, overwrite=True)
    again: Any = load(folder, device="cpu")
    assert again.config.cme is False
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_overrides_change_the_configuration(folder: Path) -> None:
    model: Any = load(folder, device="cpu", protocol="published", cme_window=6)
    assert (model.config.protocol, model.config.cme_window) == ("published", 6)
    with pytest.raises(ConfigError, match=r"unknown field protocoll; known fields are adapter_heads"):
        load(folder, protocoll="published")
    with pytest.raises(ConfigError, match=r"protocol is 'exact' where one of 'default', 'published' is expected"):
        load(folder, protocol="exact")
    with pytest.raises(ConfigError, match="clip_length is 0; it must be at least 1"):
        load(folder, clip_length=0)
    with pytest.raises(ConfigError, match=r"dtype is torch.int8; it must be float32"):
        load(folder, dtype="int8")


def edit(folder: Path, change: Any) -> None:
    header = json.loads((folder / "config.json").read_text())
    change(header)
    (folder / "config.json").write_text(json.dumps(header))


def test_invalid_folders_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json; give a folder written by 'refervos convert'"):
        load(tmp_path / "empty")
    edit(folder, lambda header: header["config"]["sam2"].update(hiera_width="wide"))
    with pytest.raises(ConfigError, match=r"config.json.sam2: hiera_width is 'wide' where int is expected"):
        load(folder)
    edit(folder, lambda header: header.update(model_type="resnet"))
    with pytest.raises(CheckpointError, match="has model_type 'resnet'; supported are refervos-samwise"):
        load(folder)
    (folder / "config.json").write_text("{,}")
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        load(folder)


def test_weights_that_do_not_match_the_model_are_listed(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = load_file(file)
    state = dict(whole)
    del state["cme.head.bias"]
    state["extra"] = torch.zeros(1)
    state["text_prompt.layers.0.bias"] = torch.zeros(3)
    save_file(state, file)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    sentence = str(caught.value)
    assert "1 missing: cme.head.bias" in sentence
    assert "1 unexpected: extra" in sentence
    assert "1 misshapen: text_prompt.layers.0.bias is (3,), (64,) expected" in sentence
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors cannot be read as weights: it is truncated; download"
    ):
        load(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load(folder)


def test_a_missing_model_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a model folder"):
        load("nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="someone/something is not a local folder and cannot be downloaded from the hub"
    ):
        load("someone/something")


def test_a_saved_sam2_segmenter_loads_unchanged(tmp_path: Path) -> None:
    model = Sam2Segmenter(Sam2Tracker(micro_model().config.sam2))
    model.save_pretrained(tmp_path / "sam2")
    loaded = load(tmp_path / "sam2", device="cpu")
    assert isinstance(loaded, Sam2Segmenter)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_memory_budget_is_set_on_models_that_have_one(folder: Path, tmp_path: Path) -> None:
    assert load(folder, device="cpu", memory_budget=2**20).memory_budget == 2**20
    with pytest.raises(ConfigError, match="memory_budget is 0; it must be a positive number of bytes"):
        load(folder, memory_budget=0)
    Sam2Segmenter(Sam2Tracker(micro_model().config.sam2)).save_pretrained(tmp_path / "sam2")
    with pytest.raises(ConfigError, match="SAM2 has no memory_budget"):
        load(tmp_path / "sam2", device="cpu", memory_budget=1)


def test_stages_are_compiled_only_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr("refervos.loading.compile_stages", compiled.append)
    model = load(folder, device="cpu")
    assert compiled == []
    model = load(folder, device="cpu", compile=True)
    assert compiled == [model]


def test_a_backend_that_does_not_fit_the_model_is_refused(folder: Path) -> None:
    assert isinstance(load(folder, device="cpu", backend="torch"), Samwise)
    with pytest.raises(CheckpointError, match=r"is not an exported model; run 'refervos export .* --out FOLDER' first"):
        load(folder, backend="onnx")
    with pytest.raises(ConfigError, match="backend is 'jax'; it must be 'torch' or 'onnx'"):
        load(folder, backend="jax")  # type: ignore[call-overload]
