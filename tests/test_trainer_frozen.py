"""The guard of frozen weights: detected changes, copies from the device, and checksums equal on all devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from host_reads import HostReads
from refervos.errors import CheckpointError, TrainingError
from refervos.training import checkpoint, frozen
from refervos.training.frozen import FrozenGuard, checksums_of
from refervos.training.trainer import optimiser_for
from test_trainer import run, toy
from training_stages import ToySettings, ToyStage

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool]


def random_tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return values > 0 if dtype == torch.bool else (10 * values).to(dtype)


def checksum(tensor: Tensor) -> int:
    return checksums_of({"it": tensor})["it"]


def reference_checksum(tensor: Tensor) -> int:
    """Compute the checksum in Python's integers: SplitMix64 of each word of eight bytes with its position, summed."""
    raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    raw += bytes(-len(raw) % 8)
    total = 0
    for position in range(len(raw) // 8):
        word = int.from_bytes(raw[8 * position : 8 * position + 8], "little")
        word = (word + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ word >> shift) * factor % 2**64
        total += word ^ word >> 31
    total %= 2**64
    return total if total < 2**63 else total - 2**64


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (7, 2, 9), (0, 4)])
def test_a_checksum_is_exact_arithmetic(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = random_tensor(dtype, *shape)
    expected = reference_checksum(tensor)
    for words in (1, 4, 2**15):  # devices mix different numbers of words at once
        monkeypatch.setattr(frozen, "WORDS_AT_ONCE", {"cpu": words})
        assert checksum(tensor) == expected


def test_memory_layout_and_offset_do_not_change_a_checksum() -> None:
    images = random_tensor(torch.float32, 2, 3, 4, 5)
    assert checksum(images.to(memory_format=torch.channels_last)) == checksum(images)
    odd = torch.cat([torch.zeros(1), images.flatten()])[1:]  # at an offset of four bytes
    assert odd.storage_offset() == 1
    assert checksum(odd) == checksum(images)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_gpu_computes_the_same_checksums(dtype: torch.dtype) -> None:
    device = torch.accelerator.current_accelerator()
    if dtype == torch.float64 and device is not None and device.type == "mps":
        pytest.skip("MPS has no float64")
    for shape in ((), (3, 5), (1001, 999)):
        tensor = random_tensor(dtype, *shape)
        assert checksum(tensor.to(device)) == checksum(tensor)


@pytest.mark.parametrize("dtype", TYPES)
def test_flipping_any_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    tensor = random_tensor(dtype, 3, 3)
    raw = tensor.view(torch.uint8)
    found = {checksum(tensor)}
    bits = [0] if dtype == torch.bool else range(8)
    places = [(place, bit) for place in range(raw.numel()) for bit in bits]
    for place, bit in places:
        raw.view(-1)[place] ^= 1 << bit
        found.add(checksum(tensor))
        raw.view(-1)[place] ^= 1 << bit
    assert len(found) == len(places) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_changes_that_cancel_in_a_sum_are_detected(dtype: torch.dtype) -> None:
    tensor = random_tensor(dtype, 64)
    swapped, flipped = tensor.clone(), tensor.clone()
    swapped[[3, 40]] = swapped[[40, 3]]
    flipped[[3, 40]] *= -1
    assert len({checksum(changed) for changed in (tensor, swapped, flipped, -tensor, tensor.flip(0))}) == 5


def test_all_checksums_are_read_back_in_one_copy() -> None:
    stage = ToyStage(ToySettings(width=16))
    guard = FrozenGuard(stage, optimiser_for(stage))
    with HostReads() as reads:
        guard.check(1)
    # Weight and bias; the norm's weight and bias, its two statistics and its number of batches.
    assert reads.sizes == [7]
    assert not reads.sized
    twice = {"one": stage.head.weight, "the same": stage.head.weight}
    with HostReads() as reads:
        assert len(set(checksums_of(twice).values())) == 1
    assert reads.sizes == [1]
    assert checksums_of({}) == {}


@pytest.mark.parametrize(
    "name", ["model.frozen.0.bias", "model.frozen.1.running_var", "model.frozen.1.num_batches_tracked"]
)
def test_the_first_tensor_that_changed_is_named(name: str) -> None:
    stage = ToyStage(ToySettings())
    stage.model.frozen.to(torch.bfloat16)
    guard = FrozenGuard(stage, optimiser_for(stage))
    guard.check(1)
    with torch.no_grad():
        stage.state_dict()[name].view(-1)[-1:].view(torch.uint8)[:1] ^= 1  # the lowest bit of its last value
        stage.state_dict()["model.frozen.1.num_batches_tracked"].add_(2)
    with pytest.raises(TrainingError, match=f"{name} is in a frozen part but changed before step 9"):
        guard.check(9)


def test_checkpoints_of_an_older_format_are_refused(tmp_path: Path) -> None:
    run(tmp_path, toy(steps=2))
    folder = tmp_path / "toy"
    (written,) = checkpoint.checkpoints_in(folder / "checkpoints")
    manifest = json.loads((written / "manifest.json").read_text())
    (written / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    (folder / "model").rename(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"over with --restart \(.*step-000002 has format 1; .* reads format 2"):
        run(tmp_path, toy(steps=2))
