"""Linear layers by oneDNN: the same numbers and gradients as torch's own, but for rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refervos.ops.linear import Activation, product

FUNCTIONS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 64), torch.randn(32, 64), torch.randn(32)


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_results_are_torchs(activation: Activation, grad: bool) -> None:
    x, weight, bias = operands()
    with torch.set_grad_enabled(grad):
        ours = product(x, weight, bias, activation)
    exact = FUNCTIONS[activation](F.linear(x.double(), weight.double(), bias.double()))
    assert torch.allclose(ours.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradients_are_torchs(activation: Activation) -> None:
    told = torch.randn(3, 5, 32)
    ours, exact = ([t.to(kind).requires_grad_() for t in operands()] for kind in (torch.float32, torch.float64))
    x, weight, bias = ours
    product(x, weight, bias, activation).backward(told)
    FUNCTIONS[activation](F.linear(*exact)).backward(told.double())
    for own, wanted in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(own.grad.double(), wanted.grad, atol=1e-3, rtol=1e-5)


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    x, weight, bias = operands()
    weight.requires_grad_()
    product(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    x.requires_grad_()
    product(x, weight.detach(), None).sum().backward()
    assert x.grad is not None


def test_a_transposed_gradient_is_taken() -> None:
    x, weight, bias = operands()
    x.requires_grad_()
    product(x, weight, bias).transpose(1, 2).square().sum().backward()
    ours, x.grad = x.grad, None
    F.linear(x, weight, bias).square().sum().backward()
    assert ours is not None
    assert x.grad is not None
    assert torch.allclose(ours, x.grad, atol=1e-3, rtol=1e-5)
