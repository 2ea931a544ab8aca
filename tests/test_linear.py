"""Linear layers by oneDNN: the same results and gradients as torch's own, up to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import refervos.ops.linear
from refervos.ops.linear import Activation, column_major, has_one_dnn, product

pytestmark = pytest.mark.skipif(not has_one_dnn(torch.float32), reason="torch has no oneDNN")

FUNCTIONS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send products of any size to oneDNN, on any CPU, and record them."""
    recorded: list[str] = []
    multiply = refervos.ops.linear.one_dnn_product

    def record(x: torch.Tensor, weight: torch.Tensor, *others: object) -> torch.Tensor:
        recorded.append(f"{tuple(x.shape)} x {tuple(weight.shape)}")
        return multiply(x, weight, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(refervos.ops.linear, "SMALL", 0)
    monkeypatch.setattr(refervos.ops.linear, "one_dnn_is_faster", lambda dtype: True)
    monkeypatch.setattr(refervos.ops.linear, "one_dnn_product", record)
    return recorded


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 64), torch.randn(32, 64), torch.randn(32)


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_results_equal_torchs(activation: Activation, grad: bool, calls: list[str]) -> None:
    x, weight, bias = operands()
    with torch.set_grad_enabled(grad):
        ours = product(x, weight, bias, activation)
        transposed = product(x, column_major(weight), bias, activation)
    exact = FUNCTIONS[activation](F.linear(x.double(), weight.double(), bias.double()))
    assert torch.allclose(ours.double(), exact, atol=1e-4, rtol=0)
    assert torch.allclose(transposed.double(), exact, atol=1e-4, rtol=0)
    assert calls == ["(3, 5, 64) x (32, 64)"] * 2


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradients_equal_torchs(activation: Activation, calls: list[str]) -> None:
    gradient = torch.randn(3, 5, 32)
    ours, exact = ([t.to(kind).requires_grad_() for t in operands()] for kind in (torch.float32, torch.float64))
    x, weight, bias = ours
    product(x, weight, bias, activation).backward(gradient)
    assert calls == ["(3, 5, 64) x (32, 64)", "(3, 5, 32) x (64, 32)"]
    FUNCTIONS[activation](F.linear(*exact)).backward(gradient.double())
    for own, expected in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert expected.grad is not None
        assert torch.allclose(own.grad.double(), expected.grad, atol=1e-3, rtol=1e-5)


def test_gradients_that_are_not_needed_are_not_computed(calls: list[str]) -> None:
    x, weight, bias = operands()
    weight.requires_grad_()
    product(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert len(calls) == 1  # of the input there is no gradient
    calls.clear()
    x.requires_grad_()
    product(x, weight.detach(), None).sum().backward()
    assert x.grad is not None
    assert len(calls) == 2


def test_a_transposed_gradient_is_accepted() -> None:
    x, weight, bias = operands()
    x.requires_grad_()
    product(x, weight, bias).transpose(1, 2).square().sum().backward()
    ours, x.grad = x.grad, None
    F.linear(x, weight, bias).square().sum().backward()
    assert ours is not None
    assert x.grad is not None
    assert torch.allclose(ours, x.grad, atol=1e-3, rtol=1e-5)
