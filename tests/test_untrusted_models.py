"""Untrusted model files: errors name their content, and they cannot allocate more memory than their size."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from refervos import load
from refervos.checkpoints.weight_files import LONGEST_SETTINGS
from refervos.checkpoints.weights import SkipRandomInit, read_tensors
from refervos.errors import CheckpointError, ConfigError, RefervosError
from refervos.loading import ASSETS, BUNDLED, find_device, load_to_describe
from refervos.sam.checkpoints import load_sam
from refervos.sam2.checkpoints import SAM2_PRESETS, load_sam2, meta_names
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.checkpoints import load_official
from refervos.text.pretrained import load_t5, load_text
from scenes import FIRST_GENERATION, MICRO, micro_model, scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    micro_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(path: Path, read: Callable[[Path], Any] = load) -> str:
    """Return the message with which a file is refused: one line without advice to run the code in it."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert "weights_only" not in message
    assert "traceback" not in message.lower()
    assert len(message) < 1000
    return message


# File formats.

CONTENTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty; download or copy it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run 'git lfs pull'"),
    "page": (
        b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title></html>",
        "it is a web page; download the file",
    ),
    "error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
    "json": (b'{"error": "Repository not found"}', "it is a text file; give a weight file"),
    "text": (b"hello", "it is a text file; give a weight file"),
    "gzip": (gzip.compress(b"x" * 100), "it is a gzip archive; unpack it first"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(100), "it is a NumPy array"),
    "noise": (bytes(range(200, 256)) * 20, "it is damaged or not a weight file"),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "sam2.pt", "sam2.pth"])
def test_a_file_of_another_format_is_named(kind: str, name: str, folder: Path) -> None:
    content, reason = CONTENTS[kind]
    if name.startswith("sam2"):
        path = folder.parent / name
    else:
        (folder / "model.safetensors").unlink()
        path = folder / name
    path.write_bytes(content)
    message = refusal(path if name.startswith("sam2") else folder)
    assert f"{name} cannot be read as weights: " in message
    assert reason in message or kind == "noise"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def objects(path: Path) -> None:
    torch.save({"model": micro_model().state_dict(), "config": MICRO}, path)


def bomb(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Bomb()}, path)


def whole_model(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def old_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": MICRO}))


def old_format(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Bomb()}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (objects, "an object named refervos.samwise.config.SamwiseConfig"),
        (bomb, "an object named exec beside the weights"),
        (whole_model, "an object named torch.nn.modules.linear.Linear"),
        (old_pickle, "it contains more than tensors and plain values"),
        (old_format, "an object named exec beside the weights"),
        (script, "it is a TorchScript program"),
    ],
)
def test_objects_beside_the_weights_are_named_with_a_remedy(
    write: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    write(tmp_path / "sam2.pth")
    message = refusal(tmp_path / "sam2.pth")
    assert named in message
    assert "torch.save(model.state_dict(), FILE)" in message


def test_a_truncated_torch_file_is_refused_as_truncated(tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({"model": micro_model().state_dict()}, path)
    whole = path.read_bytes()
    for kept in (100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:kept])
        assert "it is truncated" in refusal(path)


def test_zip_archives_that_are_not_torch_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2**22)}}, tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in good.infolist():
            packed.writestr(part.filename, good.read(part))
    assert (tmp_path / "packed.pt").stat().st_size < 2**16  # contains sixteen megabytes of zeros
    assert "it was repacked with compression" in refusal(tmp_path / "packed.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("weights/readme.txt", "x")
    assert "it is a zip archive without torch weights; unpack it" in refusal(tmp_path / "other.pt")


def test_the_format_is_detected_from_the_content_and_not_the_name(folder: Path) -> None:
    weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(weights, folder / "model.safetensors")
    load(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "pytorch_model.bin")
    load(folder, device="cpu")


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_safetensors_length_that_looks_like_another_format_is_read(length: int, tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert read_tensors(tmp_path)["a"].tolist() == [0.0]


# Tensor names.


def published() -> dict[str, torch.Tensor]:
    """Return the state dict of SAM2 tiny with Meta's names."""
    with SkipRandomInit():
        tracker = Sam2Tracker(SAM2_PRESETS["tiny"])
    state = {}
    for name, value in tracker.sam.state_dict().items():
        names = meta_names(name)
        for part, rows in zip(names, value.chunk(len(names)), strict=True):
            state[part] = torch.zeros_like(rows)
    return state


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    return published()


PREFIXES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, reversed": lambda name: f"_orig_mod.module.{name}",
    "parts compiled": lambda name: name.replace("image_encoder.", "image_encoder._orig_mod.", 1),
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["mine.pth", "checkpoint.pt", "mine.ckpt", "mine.safetensors"])
def test_a_fine_tuned_sam2_loads_from_any_file_name_and_prefix(
    prefix: str, name: str, tiny: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = {PREFIXES[prefix](key): value for key, value in tiny.items()}
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, tmp_path / name)
    model: Any = load(tmp_path / name, device="cpu")
    assert model.config == replace(SAM2_PRESETS["tiny"], multimask_stability=True)


def test_state_dicts_under_other_keys_are_found(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for key in ("state_dict", "model_state_dict", "module"):
        torch.save({key: tiny, "epoch": 1}, tmp_path / "mine.pt")
        load(tmp_path / "mine.pt", device="cpu")


def test_a_duplicate_tensor_is_refused(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = "no_mem_embed"
    torch.save({"model": {**tiny, f"module.{name}": tiny[name] + 1}}, tmp_path / "mine.pt")
    assert f"has {name} twice" in refusal(tmp_path / "mine.pt")


def test_a_fine_tuned_file_can_be_described(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in tiny.items()}}, tmp_path / "mine.pth")
    assert load_to_describe(tmp_path / "mine.pth").describe()["family"] == "SAM2"
    for kind in CONTENTS:
        (tmp_path / "other.pth").write_bytes(CONTENTS[kind][0])
        assert "cannot be read as weights" in refusal(tmp_path / "other.pth", load_to_describe)


def test_official_samwise_and_sam_checkpoints_are_recognised(tmp_path: Path) -> None:
    torch.save({"model": {"cmt_adapters.0.proj_text_down.0.weight": torch.zeros(2, 2)}}, tmp_path / "a.pth")
    assert f"is an official SAMWISE checkpoint; run 'refervos convert {tmp_path / 'a.pth'} FOLDER'" in refusal(
        tmp_path / "a.pth"
    )
    torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(2, 2)}, tmp_path / "b.pth")
    assert "is a SAM, which takes neither videos nor sentences" in refusal(tmp_path / "b.pth")


# Shapes and sizes.


@contextmanager
def memory_limit(more: int = 2**30) -> Iterator[None]:
    """Limit the address space to ``more`` bytes above the current use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


HUGE = 10**9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text.vocabulary", HUGE),
        ("text.vocabulary", 10**7),
        ("text.positions", 2**17),
        ("text.layers", HUGE),
        ("text.feedforward", 2**17),
        ("text.width", 2**17),
        ("text.heads", 0),
        ("text.pad", -1),
        ("text.segment_ends", [1, 2, 3, HUGE]),
        ("sam2.image_size", 64 * HUGE),
        ("sam2.image_size", -64),
        ("sam2.hiera_width", HUGE),
        ("sam2.hiera_width", 0),
        ("sam2.hiera_width", -16),
        ("sam2.hiera_heads", 0),
        ("sam2.hiera_heads", 3),
        ("sam2.hiera_blocks", [HUGE, 2, 3, 1]),
        ("sam2.hiera_blocks", [0, 0, 0, 0]),
        ("sam2.hiera_windows", [0, 4, 8, 4]),
        ("sam2.hiera_windows", [8, 7, 8, 4]),
        ("sam2.hiera_windows", [12, 4, 8, 4]),
        ("sam2.hiera_global_blocks", [-1]),
        ("sam2.hiera_global_blocks", [99]),
        ("sam2.hiera_background", HUGE),
        ("sam2.hidden", 64 * 2**11),
        ("sam2.memory_layers", HUGE),
        ("sam2.memory_layers", 1000),
        ("sam2.memory_slots", 0),
        ("sam2.memory_slots", HUGE),
        ("sam2.pointer_limit", -5),
        ("sam2.decoder_heads", 0),
        ("sam2.decoder_heads", 7),
        ("sam2.decoder_downsample", 0),
        ("adapter_width", HUGE),
        ("adapter_width", 2**17),
        ("adapter_heads", 0),
        ("adapter_heads", 5),
        ("hsa_patches", [0, 4, 2]),
        ("hsa_patches", [-8, 4, 2]),
        ("cme_feedforward", HUGE),
        ("clip_length", HUGE),
        ("short_side", 0),
        ("presence_scale", float("inf")),
        ("presence_shift", float("nan")),
        ("cme_window", 10**400),
    ],
)
def test_sizes_in_a_configuration_allocate_no_memory(folder: Path, field: str, value: Any) -> None:
    header = json.loads((folder / "config.json").read_text())
    *parts, last = field.split(".")
    section = header["config"]
    for part in parts:
        section = section[part]
    section[last] = value
    (folder / "config.json").write_text(json.dumps(header))
    with memory_limit(), pytest.raises((ConfigError, CheckpointError)) as caught:
        load(folder, device="cpu")
    assert len(str(caught.value)) < 2100
    assert last in str(caught.value) or "does not fit the model" in str(caught.value)


def test_the_largest_allowed_image_size_loads_within_a_gigabyte(folder: Path) -> None:
    """Its position tables are in no file."""
    header = json.loads((folder / "config.json").read_text())
    header["config"]["sam2"]["image_size"] = 4096
    (folder / "config.json").write_text(json.dumps(header))
    with memory_limit(2**30):
        load(folder, device="cpu")


@pytest.mark.parametrize("read", [load_sam2, load_sam, load_official])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1), (2**40, 1, 1, 1)])
def test_shapes_in_a_torch_file_are_checked_before_memory_is_allocated(
    read: Callable[[Path], Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    names = [
        "image_encoder.trunk.patch_embed.proj.weight",
        "sam.image_encoder.trunk.patch_embed.proj.weight",
        "image_encoder.patch_embed.proj.weight",
        "image_encoder.pos_embed",
        "cmt_adapters.0.proj_text_down.0.weight",
        "cmt_adapters.0.hsa.linear.weight",
        "cmt_adapters.0.spatial_pos_embed",
        "text_encoder.model.encoder.sentence_encoder.embed_tokens.weight",
    ]
    torch.save({"model": {name: torch.zeros(()).expand(shape) for name in names}}, tmp_path / "x.pth")
    with memory_limit():
        refusal(tmp_path / "x.pth", read)


def test_expanded_and_sparse_tensors_are_refused(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = "memory_encoder.fuser.layers.0.pwconv1.weight"
    for strange in (torch.zeros(1, 1).expand(2**20, 2**20), torch.zeros(2, 2).to_sparse()):
        torch.save({"model": {**tiny, name: strange}}, tmp_path / "mine.pt")
        with memory_limit():
            assert f"{name} as a sparse, quantised or expanded tensor" in refusal(tmp_path / "mine.pt")


# Configurations.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ('{"model_type": "samwise", "config": ' + "[" * 400 + "]" * 400 + "}", "has no field 'config'"),
        ('{"model_type": "samwise", "config": {"hsa_patches": ' + "[" * 400 + "]" * 400 + "}}", "hsa_patches"),
        ('{"model_type": ' + "9" * 5000 + "}", "is not readable JSON"),
        ("\ud800", None),
        ("[]", "is not a JSON object"),
        ("", "not valid JSON"),
        ('{"model_type": "samwise", "model_type": "refsam"}', "twice"),
        ('{"model_type": "\\u001b[31m"}', "model_type"),
    ],
)
def test_an_invalid_configuration_is_refused_with_the_reason(folder: Path, text: str, reason: str | None) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        load(folder, device="cpu")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2100
    assert reason is None or reason in str(caught.value)


@pytest.mark.parametrize("config", [None, [], 3, "x", True])
def test_a_configuration_that_is_not_a_mapping_is_refused(config: Any, tmp_path: Path) -> None:
    for name, read in (("refervos-sam", load_sam), ("refervos-text", load_text), ("refervos-t5", load_t5)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name, "config": config}))
        with pytest.raises(ConfigError, match="for a configuration; a mapping of names to values is expected"):
            read(tmp_path)


def test_a_configuration_with_a_byte_order_mark_is_read(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text("\ufeff" + text, encoding="utf-8")
    load(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_among_the_files_is_refused_without_blocking(name: str, tmp_path: Path) -> None:
    model: Any = load("miniature", device="cpu")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    os.mkfifo(tmp_path / "model" / name)
    refusals: list[str] = []

    def use() -> None:
        try:
            loaded: Any = load(tmp_path / "model", device="cpu")
            loaded.open("the red circle")
        except RefervosError as error:
            refusals.append(str(error))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert refusals


def test_a_pipe_or_a_device_as_a_model_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/null")):
        assert "is neither a folder nor a file" in refusal(path)


def test_a_configuration_above_the_size_limit_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(LONGEST_SETTINGS + 1)  # a sparse file
    assert f"at most {LONGEST_SETTINGS}." in refusal(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_with_files_outside_its_folder_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "which is not in its folder" in refusal(folder)


# Errors of the system.


@pytest.mark.parametrize("number", [13, 5, 36])
def test_a_read_error_of_the_system_is_reported(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "config.json":
            raise OSError(number, os.strerror(number), str(path))
        return reading(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal(folder).endswith(f" cannot be read ({os.strerror(number)}).")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "x" * 300, "a\0b", "~nobody/x", ""])
def test_invalid_paths_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(name, device="cpu")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("out of memory")])
def test_lack_of_memory_while_loading_is_reported(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("safetensors.torch.load_file", full)
    assert refusal(folder).startswith(f"not enough memory to load {folder}")


def test_a_process_with_too_little_memory_reports_it() -> None:
    """The first miniature in a process limited to three megabytes above its use after the imports.

    Its tokenizer fits into them; for a larger one, tokenizers' Rust code would end the process.
    """
    code = (
        "import resource, sys, torch; from pathlib import Path; from refervos import load\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**6, -1))\n"
        "from refervos.errors import CheckpointError\n"
        "try: load(sys.argv[1], device='cpu')\n"
        "except CheckpointError as error: print(error)"
    )
    warm = "import refervos.samwise.model, refervos.text.tokenizer, safetensors.torch\n"
    done = subprocess.run(
        [sys.executable, "-c", warm + code, str(FIRST_GENERATION)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("not enough memory to load "), done.stderr[-2000:]


@pytest.mark.parametrize("device", ["banana", "meta", "xpu", "cuda:99", "cuda:-1", "cpu:x", "", "hpu:0", 7])
def test_an_unavailable_device_is_refused(device: Any) -> None:
    with pytest.raises(ConfigError, match=r"^device is "):
        find_device(device)


LARGEST_BUNDLED = 12 * 2**20
"""Bytes of a bundled model at most: the whole package has to stay small."""


def test_every_bundled_model_loads_completely() -> None:
    for name in BUNDLED:
        assert read_tensors(ASSETS / name)
        size = sum(path.stat().st_size for path in (ASSETS / name).iterdir())
        assert size <= LARGEST_BUNDLED, f"{name} has {size} bytes"
        loaded: Any = load(name, device="cpu")
        assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))
        assert loaded.open("the red circle").step(scene(1)[0]).masks.shape == (1, 96, 128)


def test_a_configuration_is_read_as_written(folder: Path) -> None:
    loaded: Any = load(folder, device="cpu")
    assert asdict(loaded.config) == asdict(MICRO)
