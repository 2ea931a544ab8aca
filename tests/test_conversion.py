"""Official checkpoints are converted completely and safely, or refused with the names of wrong tensors."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import refervos
from golden import DATA, Golden, synthetic_frame, write_official
from refervos.checkpoints.weights import read_torch_file
from refervos.conversion import convert
from refervos.errors import CheckpointError
from refervos.samwise.checkpoints import infer_samwise_config, load_official, official_names
from refervos.samwise.config import SAMWISE_PRESETS
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer

MINIATURE = Path(refervos.__file__).parent / "assets" / "miniature"

States = Callable[[str], dict[str, Tensor]]


@pytest.fixture
def official(official_states: States, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an official checkpoint, optionally with a tensor missing."""

    def write(variant: str = "tiny_ris", *, without: str = "", prefix: str = "", **extra: Any) -> Path:
        state = {prefix + name: value for name, value in official_states(variant).items() if name != without}
        return write_official(tmp_path / "official.pth", state, {}, **extra)

    return write


def test_conversion_keeps_every_weight(official_states: States, tmp_path: Path) -> None:
    golden = Golden(DATA / "synth256_switch.npz")
    state = {f"module.{name}": value for name, value in official_states("tiny_hsa_cme").items()}
    overrides = {f"module.{name}": value for name, value in golden.meta["overrides"].items()}
    args = Namespace(cme_decision_window=5, switch_mem="avg", use_cme_head=True, lr=1e-5, output_dir="output")
    path = write_official(tmp_path / "official.pth", state, overrides, args=args, epoch=3, optimizer={"state": {}})
    written = convert(path, tmp_path / "model", tokenizer=MINIATURE)
    path.unlink()
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    loaded = refervos.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, Samwise)
    assert loaded.config == written.config
    assert loaded.config.sam2 == SAMWISE_PRESETS["tiny"].sam2
    assert (loaded.config.cme_window, loaded.config.switch_memory, loaded.config.motion_prompt) == (5, "avg", False)
    assert loaded.tokenizer is not None
    converted = loaded.state_dict()
    assert all(torch.equal(converted[name], value) for name, value in written.state_dict().items())
    for name, value in converted.items():
        sources = official_names(name)
        if not sources:
            assert not value.any()
            continue
        kept = torch.cat([state[f"module.{s}"] for s in sources]) if len(sources) > 1 else state[f"module.{sources[0]}"]
        if sources[0] not in golden.meta["overrides"]:
            assert torch.equal(value.flatten(), kept.flatten()), name


def test_a_converted_model_segments_frames_at_the_published_size(official: Callable[..., Path]) -> None:
    model = load_official(official("tiny_ris"), Tokenizer.from_pretrained(MINIATURE))
    session = refervos.Session(model, ["the red circle"])
    assert model.placement((480, 854)).resized == (575, 1024)
    assert model.config.sam2.image_size == 1024
    prediction = session.step(synthetic_frame(0))
    assert prediction.masks.shape == (1, 144, 256)
    assert prediction.presence[0] == prediction.masks.any()  # this variant has no object score


@pytest.mark.parametrize(
    ("variant", "preset", "differences"),
    [
        ("tiny_hsa_cme", "tiny", {}),
        ("tiny_hsa_cme_motion", "tiny", {"motion_prompt": True}),
        ("tiny_ris", "tiny", {"hsa": False, "cme": False}),
        ("base_hsa_cme", "base-plus", {}),
        ("base_hsa_cme_motion", "base-plus", {"motion_prompt": True}),
        ("base_ris", "base-plus", {"hsa": False, "cme": False}),
        ("large_hsa_cme", "large", {}),
    ],
)
def test_every_published_variant_matches_by_names_and_shapes(
    variant: str, preset: str, differences: dict[str, Any]
) -> None:
    """The configuration is inferred from the weights; all tensors are used, and none is missing."""
    from golden import manifest

    entries = manifest(variant)["entries"]
    source = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in entries}
    config = infer_samwise_config(source, None, "file")
    expected = SAMWISE_PRESETS[preset]
    assert config.sam2.hiera_blocks == expected.sam2.hiera_blocks
    assert config.sam2.hiera_global_blocks == expected.sam2.hiera_global_blocks
    assert config.sam2.object_score == (not variant.endswith("ris"))
    for name in ("hsa", "cme", "motion_prompt", "hsa_patches", "text", "adapter_width"):
        assert getattr(config, name) == differences.get(name, getattr(expected, name)), name
    with torch.device("meta"):
        model = Samwise(config)
    used: set[str] = set()
    for name, tensor in model.state_dict().items():
        sources = official_names(name)
        used.update(sources)
        assert sum(source[s].numel() for s in sources) == (tensor.numel() if sources else 0), name
    unused = set(source) - used
    assert all("lm_head" in n or n.endswith((".version", "._float_tensor")) for n in unused), unused


def test_missing_unexpected_and_misshapen_names_are_listed(official_states: States, tmp_path: Path) -> None:
    state = dict(official_states("tiny_ris"))
    del state["sam.no_mem_embed"]
    state["sam.surprise"] = torch.zeros(1)
    state["cmt_adapters.1.proj_text_up.0.weight"] = torch.zeros(2, 3)
    path = write_official(tmp_path / "official.pth", state, {})
    with pytest.raises(CheckpointError) as caught:
        load_official(path)
    sentence = str(caught.value)
    assert "1 missing: sam.no_mem_embed" in sentence
    assert "1 unexpected: sam.surprise" in sentence
    assert "1 misshapen: cmt_adapters.1.proj_text_up.0.weight is (2, 3), (768, 256) expected" in sentence


class Bomb:
    """Object that runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Bomb()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights: "):
        read_torch_file(tmp_path / "hostile.pth")


def test_a_torch_version_without_safe_loading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(
        CheckpointError, match=r"torch 2.5.1\+cpu cannot load weights safely; install torch 2.6 or newer"
    ):
        read_torch_file(tmp_path / "any.pth")


def test_files_that_are_not_checkpoints_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist or is not a file"):
        load_official(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read as weights: "):
        load_official(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="contains a list; expected a dict with the key 'model'"):
        load_official(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(CheckpointError, match="has no state dict under the key 'model'"):
        load_official(tmp_path / "epoch.pth")
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"has no cmt_adapters.\*; it is not a SAMWISE checkpoint"):
        load_official(tmp_path / "other.pth")


def test_a_folder_with_files_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(tmp_path / "absent.pth", tmp_path / "full")
    with pytest.raises(CheckpointError, match=r"no tokenizer.json or vocab.json"):
        convert(tmp_path / "absent.pth", tmp_path / "new", tokenizer=tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
