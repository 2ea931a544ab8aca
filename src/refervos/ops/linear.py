"""Linear layers; on a CPU through torch, which uses MKL in float32, or directly through oneDNN, whichever is faster.

A call of oneDNN has an overhead of about 0.1 ms, so small products stay with torch. Large ones in float32: on an AMD
EPYC with AVX-512 oneDNN reaches 150 to 215 GFLOP/s and MKL 70 to 95, and a GELU costs almost nothing because it is
applied while a tile is in the cache; on an Intel Xeon with AVX-512 both are equal; on an AMD Zen 3 with AVX2 oneDNN
reaches 60 and MKL 60 to 78, and oneDNN's GELU is slower than torch's. The choice depends only on the instruction set
and the size, never on timing: the same frame must give the same bits in another process.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["none", "gelu", "relu"]


SMALL = 2**24
"""Products of fewer multiplications than this stay with torch: MKL takes 0.02 ms for the smallest, oneDNN 0.12 ms, and
on an Intel Xeon MKL is faster up to this size."""

SMALL_WEIGHT = 2**16
"""Weights of at most this many values are stored column-major, for small products; large ones can afford to undo it."""


def linear(x: Tensor, layer: nn.Linear, activation: Activation = "none") -> Tensor:
    """Apply a linear layer and an activation.

    Args:
        x: (..., C).
        layer: Linear layer (C -> D).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D).
    """
    return product(x, layer.weight, layer.bias, activation)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """Multiply ``x`` by ``weight`` transposed, add a bias and apply an activation.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D).
    """
    # Sizes are not read while a graph is traced, because they may be dynamic.
    if (
        not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= SMALL
        and _suits(x)
        and weight.dtype == x.dtype
        and one_dnn_is_faster(x.dtype)
    ):
        weight = weight.contiguous()  # with column-major weights oneDNN would take a hundred times as long
        if not torch.is_grad_enabled():
            return one_dnn_product(x, weight, bias, activation)
        x = _Product.apply(x, weight, bias)
    else:
        x = F.linear(x, weight, bias)
    return F.gelu(x) if activation == "gelu" else F.relu(x) if activation == "relu" else x


def column_major(weight: Tensor) -> Tensor:
    """Store a small weight column-major; shape and values stay the same.

    MKL then takes 0.4 to 0.9 of the time for products with few rows (AVX-512), least with many columns.

    Args:
        weight: (D, C).

    Returns:
        The weight in the new layout, or unchanged where that would not help.
    """
    small = weight.numel() <= SMALL_WEIGHT and weight.dtype == torch.float32
    if not small or weight.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return weight
    return weight.t().contiguous().t()


def make_column_major(model: nn.Module) -> None:
    """Store the weights of a model's linear layers for inference, see ``column_major``."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.weight.is_floating_point():  # not if quantised
                layer.weight.data = column_major(layer.weight.data)


def on_cpu_path(x: Tensor) -> bool:
    """Return True where CPU inference shortcuts apply: on a CPU, without gradients, autocast or compilation."""
    return _suits(x) and not torch.is_grad_enabled()


@cache
def has_one_dnn(dtype: torch.dtype) -> bool:
    """Return True if oneDNN can multiply matrices of a type on this processor.

    In bfloat16 it needs AVX-512 on x86 and raises an error without; torch then uses a slower kernel.

    Args:
        dtype: The type of the matrices.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@cache
def one_dnn_is_faster(dtype: torch.dtype) -> bool:
    """Return True if oneDNN is preferred for large products on this processor, see the top of this file.

    Args:
        dtype: The type of the matrices.
    """
    return dtype == torch.bfloat16 or "AVX512" in torch.backends.cpu.get_cpu_capability()


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and has_one_dnn(x.dtype)
        and not torch.is_autocast_enabled("cpu")
    )


def one_dnn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """Compute ``product`` directly with oneDNN; only where ``has_one_dnn``.

    Args:
        x: (..., C).
        weight: (D, C), contiguous: in any other layout it takes a hundred times as long.
        bias: (D,).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D), without gradients.
    """
    algorithm = "none" if activation == "gelu" else ""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return result


class _Product(torch.autograd.Function):
    """``product`` with gradients; the weight's gradient stays with MKL, which is as fast at that shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return one_dnn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # (R, D)
        return (
            one_dnn_product(grad.contiguous(), weight.t().contiguous()) if needs_grad[0] else None,
            rows.t() @ x.flatten(0, -2) if needs_grad[1] else None,
            rows.sum(0) if needs_grad[2] else None,
        )
