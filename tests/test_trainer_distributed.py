"""Two processes train to the result of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.training.distributed import (
    SyncedBatchNorm2d,
    make_accelerator,
    mean_over_processes,
    process_count,
    sum_over_processes,
    synchronise_batch_norm,
)
from refervos.training.stages.samwise import VideoSettings, VideoStage
from test_trainer import run, toy
from training_runs import history, trainable_micro_model

PROCESSES = 2
CPU = torch.device("cpu")
TESTS = Path(__file__).parent


def images() -> Tensor:
    """Return a batch whose mean is far from zero, which makes the variance of a batch norm hard to compute."""
    return (
        torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3])[:, None, None]
        + torch.tensor([0.0, 10, -200])[:, None, None]
    )


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(3, momentum=0.3)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.0, 0.5, 2.0]))
        made.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    return made


def one_pass(layer: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Compute output and gradients of two losses: a mean over images, and one over the pixels above 0.5."""
    batch = batch.clone().requires_grad_()
    out = layer(batch)
    counts = out.detach() > 0.5
    counted = mean_over_processes((out.sin() * counts).sum(), counts.sum())
    (out.pow(3).mean() + counted).backward()
    assert batch.grad is not None
    found = {"out": out.detach(), "counted": counted.detach(), "input": batch.grad}
    return found | {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}


def in_one_of_two(rank: int, folder: str) -> None:
    """Run in each of two processes and write the results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    layer = synchronise_batch_norm(norm(), CPU)
    share = images()[:3] if rank == 0 else images()[3:]
    found = one_pass(layer, share)
    found |= {f"buffer {name}": value.clone() for name, value in layer.named_buffers()}
    with torch.no_grad():
        found["evaluated"] = layer.eval()(share)
    value = torch.tensor(float(rank + 1), requires_grad=True)
    total = sum_over_processes(value)
    ((rank + 1) * total.square()).backward()
    found |= {"sum": total.detach(), "sum gradient": value.grad if value.grad is not None else torch.zeros(())}
    empty = torch.zeros((), requires_grad=True)
    found["mean of nothing"] = mean_over_processes(empty * 0, torch.tensor(0)).detach()
    uneven = layer.train()(images()[: 1 + rank])  # processes may have different numbers of images
    found["uneven"] = uneven.detach()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(in_one_of_two, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def test_batch_norm_uses_the_statistics_of_the_whole_batch(shares: list[dict[str, Tensor]]) -> None:
    layer = norm()
    whole = one_pass(layer, images())
    both = {name: torch.stack([share[name] for share in shares]) for name in shares[0] if name != "uneven"}
    torch.testing.assert_close(both["out"].flatten(0, 1), whole["out"], rtol=1e-5, atol=1e-5)
    for name in ("weight", "bias"):  # DDP averages their gradients
        torch.testing.assert_close(both[name].mean(0), whole[name], rtol=1e-4, atol=1e-5)
    # An input belongs to one process; its gradient is that of the sum of the losses, twice that of their mean.
    torch.testing.assert_close(both["input"].flatten(0, 1) / PROCESSES, whole["input"], rtol=1e-3, atol=1e-5)
    for name, value in layer.named_buffers():
        for share in shares:
            torch.testing.assert_close(share[f"buffer {name}"], value, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        evaluated = layer.eval()(images())
    torch.testing.assert_close(both["evaluated"].flatten(0, 1), evaluated, rtol=1e-5, atol=1e-4)


def test_means_over_uneven_counts_are_those_of_the_whole_batch(shares: list[dict[str, Tensor]]) -> None:
    whole = one_pass(norm(), images())["counted"]
    for share in shares:
        torch.testing.assert_close(share["counted"], whole)
        assert share["mean of nothing"] == 0


def test_batch_norm_takes_different_numbers_of_images(shares: list[dict[str, Tensor]]) -> None:
    batch = torch.cat([images()[:1], images()[:2]])
    torch.testing.assert_close(
        torch.cat([share["uneven"] for share in shares]), norm()(batch).detach(), rtol=1e-4, atol=1e-4
    )


def test_a_sum_passes_gradients_to_all_processes(shares: list[dict[str, Tensor]]) -> None:
    # Losses are s^2 and 2 s^2 with s = 1 + 2, so each value's gradient is 2 s + 4 s.
    assert [share["sum"].item() for share in shares] == [3, 3]
    assert [share["sum gradient"].item() for share in shares] == [18, 18]


def test_with_one_process_everything_is_plain_arithmetic() -> None:
    assert process_count() == 1
    plain, synced = norm(), synchronise_batch_norm(norm(), CPU)
    assert type(synced) is SyncedBatchNorm2d
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert torch.equal(plain(images()), synced(images()))
    value = torch.tensor(2.0)
    assert sum_over_processes(value) is value
    assert mean_over_processes(torch.tensor(6.0), torch.tensor(4)) == 1.5
    assert mean_over_processes(torch.tensor(6.0, dtype=torch.bfloat16), torch.tensor(4)).dtype == torch.float32


def test_synchronised_batch_norms_keep_parameters_and_modes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), norm().eval(), nn.Sequential(norm()))
    before = list(net.parameters()), dict(net.state_dict(keep_vars=True))
    assert synchronise_batch_norm(net, CPU) is net
    assert all(one is other for one, other in zip(net.parameters(), before[0], strict=True))
    assert list(net.state_dict()) == list(before[1])
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    again = net[1]
    assert synchronise_batch_norm(net, CPU)[1] is again  # type: ignore[index]


def test_batch_norms_for_cuda_become_those_of_torch() -> None:
    """They are replaced before the model is moved, so the test needs no GPU."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), norm().eval(), nn.Sequential(norm()))
    before = list(net.parameters()), dict(net.state_dict(keep_vars=True))
    assert synchronise_batch_norm(net, torch.device("cuda:1")) is net
    assert [type(module) for module in net.modules()].count(nn.SyncBatchNorm) == 2
    assert all(one is other for one, other in zip(net.parameters(), before[0], strict=True))
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before[1])
    assert all(after[name] is value for name, value in before[1].items())
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert [module.momentum for module in net.modules() if isinstance(module, nn.SyncBatchNorm)] == [0.3, 0.3]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_synchronised_batch_norms_stay_frozen(device: str) -> None:
    model = trainable_micro_model()
    stage = VideoStage(VideoSettings(freeze_norms=True), model)
    synchronise_batch_norm(stage, torch.device(device))
    stage.train()
    norms = [module for module in model.adapters.modules() if isinstance(module, nn.SyncBatchNorm | SyncedBatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)


def test_batch_norms_of_the_adapters_have_the_momentum_of_the_settings() -> None:
    stage = VideoStage(VideoSettings(norm_momentum=0.02), trainable_micro_model())
    norms = [module for module in stage.model.adapters.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {module.momentum for module in norms} == {0.02}


@pytest.mark.parametrize(
    ("processes", "kind", "on_cpu"),
    [("1", None, False), ("2", None, True), ("2", "cuda", False), ("1", "mps", False), ("2", "mps", True)],
)
def test_several_processes_train_on_the_cpu_without_a_gpu_that_all_reduces(
    processes: str, kind: str | None, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[bool] = []

    def refuse(*, cpu: bool, **_: object) -> None:
        requested.append(cpu)
        raise ValueError("this is\na test")

    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr("accelerate.Accelerator", refuse)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind or "cuda"))
    with pytest.raises(TrainingError, match=r"accelerate cannot be set up \(this is a test\)"):
        make_accelerator()
    assert requested == [on_cpu]


def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    """The command runs under torchrun, with batch norm, varying counts and a batch split over two processes."""
    stage = toy(settings={"dropout": 0.0})
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "test", "seed": 3, "stages": [stage]}))  # JSON is YAML
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run(
        [*launcher, "-m", "refervos", "train", "recipe.yaml", "--out", "two"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters trained") == 1  # only the main process prints
    assert "cpu x 2, float32" in done.stdout
    run(tmp_path / "one", stage)
    one, two = history(tmp_path / "one" / "toy"), history(tmp_path / "two" / "toy")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for row, other in zip(one, two, strict=True):
        kind = "train" if "train" in row else "validation"
        assert other[kind] == pytest.approx(row[kind], rel=1e-3)
    expected = load_file(tmp_path / "one" / "toy" / "model" / "w.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "toy" / "model" / "w.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
