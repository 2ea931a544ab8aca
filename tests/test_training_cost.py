"""``benchmarks/training_cost.py``: figures compared with formulas, and with what torch and a ring all-reduce do."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scenes import MICRO, micro_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: its other files have common names
cost: Any = import_module("training_cost")


def test_each_process_holds_weights_gradients_and_two_averages() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5).requires_grad_(False))
    size = cost.size_of("net", net)
    assert (size.parameters, size.trained) == (220 + 105, 220)
    loss = net(torch.ones(3, 10)).sum()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
    loss.backward()
    optimiser.step()
    assert size.weights == sum(p.nbytes for p in net.parameters())
    assert size.gradients == sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    averages = [value for state in optimiser.state.values() for value in state.values() if value.ndim]
    assert size.optimiser == sum(value.nbytes for value in averages)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_the_bytes_sent_are_those_of_a_simulated_ring(processes: int) -> None:
    """In each of 2 (n - 1) rounds every process sends one chunk to the next: first to add up, then to hand round."""
    chunk = 64
    values = torch.arange(processes * processes * chunk, dtype=torch.float32).reshape(processes, processes, chunk)
    expected, sent, held = values.sum(0), 0, values.clone()
    for handed_round in (False, True):
        for step in range(processes - 1):
            chunks = [(rank + handed_round - step) % processes for rank in range(processes)]
            moved = [held[rank, number].clone() for rank, number in enumerate(chunks)]
            for rank, (number, data) in enumerate(zip(chunks, moved, strict=True)):
                target = held[(rank + 1) % processes, number]
                target.copy_(data if handed_round else target + data)
                sent += data.nbytes
    assert all(torch.equal(held[rank], expected) for rank in range(processes))
    size = cost.Size("", 0, trained=processes * chunk)
    assert size.sent(processes) * processes == sent
    assert size.seconds(processes, bandwidth=2.0) == pytest.approx(sent / processes / 2e9)


def test_what_torch_keeps_is_counted_once_and_without_parameters() -> None:
    weight, bias = torch.ones(20, 10, requires_grad=True), torch.ones(20, requires_grad=True)
    inputs = torch.ones(3, 10, requires_grad=True)

    def forward() -> torch.Tensor:
        hidden = torch.nn.functional.linear(inputs, weight, bias)  # keeps inputs (120 bytes), weight
        return hidden.sigmoid().exp()  # keep their results (240 bytes each)

    assert cost.kept_bytes(forward, [weight, bias]) == 120 + 240 + 240
    assert cost.kept_bytes(forward, [weight, bias, inputs]) == 480


def test_activations_grow_in_proportion_to_pixels_and_frames() -> None:
    """The estimate from two small sizes is right for a larger one."""
    found = {side: cost.samwise_activations(MICRO, side, 2) for side in (64, 128, 192)}
    assert cost.extrapolated(found.__getitem__, (64, 128), 192) == pytest.approx(found[192], rel=0.1)
    assert cost.samwise_activations(MICRO, 64, 4) == pytest.approx(2 * found[64], rel=0.25)


def test_the_tables_name_every_model() -> None:
    sizes = [cost.size_of("a", micro_model(), 1e9), cost.Size("b", 10, 5)]
    memory, exchange = cost.memory_table(sizes), cost.exchange_table(sizes, 4)
    assert "not estimated" in memory
    assert "1.0 GB" in memory
    for table in (memory, exchange):
        assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["a", "b"]
