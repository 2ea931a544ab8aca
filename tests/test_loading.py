"""Model folders: what is saved is what is loaded, and what does not fit is refused with a reason."""

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


def test_round_trip(folder: Path) -> None:
    model, loaded = micro_model(), load(folder, device="cpu")
    assert isinstance(loaded, Samwise)
    assert loaded.config == model.config
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    make_column_major(model)  # as load does; with another memory layout, products differ in rounding on some processors
    assert np.array_equal(masks(model), masks(loaded))
    assert not loaded.training
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # others may read what they may read
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]  # nothing temporary is left


def test_half_precision_on_disk(tmp_path: Path) -> None:
    micro_model().save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    loaded = load(tmp_path / "half", device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_saving_does_not_overwrite_unless_told(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="is not empty; give a new folder, or allow overwriting"):
        micro_model(cme=False).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    micro_model(cme=False).save_pretrained(folder, overwrite=True)
    again: Any = load(folder, device="cpu")
    assert again.config.cme is False


EXCHANGES = [True, False]
"""Whether the file system can exchange two folders."""


def other_system(monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(writing, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("exchanges", EXCHANGES)
def test_overwriting_keeps_what_is_not_written_anew(
    folder: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_system(monkeypatch, exchanges)
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
    """A process that is killed does nothing more, not even clean up."""


class Mortal:
    """Lets calls of the system through until one of them is the last, before or after it has had its effect."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, call: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            self.pass_time()
            result = call(*arguments, **options)
            self.pass_time()
            return result

        return called

    def pass_time(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed


def write_pair(folder: Path, what: str) -> None:
    """A configuration and weights that belong together."""
    with weights.model_folder(folder, overwrite=True) as staged:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (staged / name).write_text(what)


@pytest.mark.parametrize("exchanges", EXCHANGES)
@pytest.mark.parametrize("there", [True, False])
def test_a_save_that_is_killed_anywhere_pairs_no_configuration_with_other_weights(
    there: bool, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call of the system in turn; the next save clears away what was left."""
    other_system(monkeypatch, exchanges)
    found, finished = set(), False
    for moment in range(1, 200):
        folder = tmp_path / f"at-{moment}" / "model"
        folder.parent.mkdir()
        if there:
            write_pair(folder, "old")
            (folder / "README.md").write_text("mine")
        mortal = Mortal(moment)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", mortal(shutil.rmtree))
            patch.setattr(writing, "_exchange", mortal(writing._exchange))
            for name in ("replace", "link", "unlink", "mkdir"):
                patch.setattr(os, name, mortal(getattr(os, name)))
            try:
                write_pair(folder, "new")
                finished = True
            except Killed:
                pass
        held = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
        if "config.json" in held:  # else it is no model
            assert held["config.json"] == held["model.safetensors"] == held["tokenizer.json"]
        else:
            assert not there or not exchanges
        assert not there or held["README.md"] == "mine"
        found.add(held.get("config.json"))
        write_pair(folder, "newer")
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            **dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), "newer"),
            **({"README.md": "mine"} if there else {}),
        }
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        if finished:
            break
    assert finished
    assert found == {"new"} | ({"old"} if there else set()) | ({None} if not there or not exchanges else set())


def test_two_processes_do_not_write_one_folder_at_once(folder: Path) -> None:
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


def test_a_folder_whose_neighbourhood_cannot_be_written_is_written_inside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume of a container, which is a mount and cannot be renamed either."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    micro_model(cme=False).save_pretrained(folder, overwrite=True)
    again: Any = load(folder, device="cpu")
    assert again.config.cme is False
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


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


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json; give a folder written by 'refervos convert'"):
        load(tmp_path / "empty")
    edit(folder, lambda header: header["config"]["sam2"].update(hiera_width="wide"))
    with pytest.raises(ConfigError, match=r"config.json.sam2: hiera_width is 'wide' where int is expected"):
        load(folder)
    edit(folder, lambda header: header.update(model_type="resnet"))
    with pytest.raises(CheckpointError, match="has model_type 'resnet'; supported are samwise"):
        load(folder)
    (folder / "config.json").write_text("{,}")
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        load(folder)


def test_weights_that_do_not_fit(folder: Path) -> None:
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


def test_names_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a model folder"):
        load("nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="someone/something is not a local folder and cannot be downloaded from the hub"
    ):
        load("someone/something")


def test_hub_id_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert isinstance(load("someone/samwise", device="cpu"), Samwise)
    assert asked["repository"] == "someone/samwise"
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py")) for pattern in asked["patterns"])


def test_push_to_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            uploaded["token"] = token

        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
            uploaded.update(repository=repository, private=private, exist_ok=exist_ok)

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            uploaded["files"] = sorted(path.name for path in folder_path.iterdir())
            assert isinstance(load(folder_path, device="cpu"), Samwise)
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = load("miniature", device="cpu").push_to_hub("someone/samwise", private=True, token="t")
    assert address == "https://huggingface.co/someone/samwise/commit/1"
    assert uploaded["private"] is True
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(uploaded["files"])


def test_sam2_folder_of_our_own(tmp_path: Path) -> None:
    model = Sam2Segmenter(Sam2Tracker(micro_model().config.sam2))
    model.save_pretrained(tmp_path / "sam2")
    loaded = load(tmp_path / "sam2", device="cpu")
    assert isinstance(loaded, Sam2Segmenter)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_importing_the_package_is_light() -> None:
    import subprocess
    import sys

    heavy = "('torch', 'transformers', 'av')"
    code = f"import sys, refervos, refervos.cli.entry; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_memory_budget_is_kept(folder: Path, tmp_path: Path) -> None:
    assert load(folder, device="cpu", memory_budget=2**20).memory_budget == 2**20
    with pytest.raises(ConfigError, match="memory_budget is 0; it must be a positive number of bytes"):
        load(folder, memory_budget=0)
    Sam2Segmenter(Sam2Tracker(micro_model().config.sam2)).save_pretrained(tmp_path / "sam2")
    with pytest.raises(ConfigError, match="SAM2 has no memory_budget"):
        load(tmp_path / "sam2", device="cpu", memory_budget=1)


def test_stages_are_compiled_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr("refervos.loading.compile_stages", compiled.append)
    model = load(folder, device="cpu")
    assert compiled == []
    model = load(folder, device="cpu", compile=True)
    assert compiled == [model]


def test_backends(folder: Path) -> None:
    assert isinstance(load(folder, device="cpu", backend="torch"), Samwise)
    with pytest.raises(CheckpointError, match=r"is not an exported model; run 'refervos export .* --out FOLDER' first"):
        load(folder, backend="onnx")
    with pytest.raises(ConfigError, match="backend is 'jax'; it must be 'torch' or 'onnx'"):
        load(folder, backend="jax")  # type: ignore[call-overload]
