"""Linear layers on a CPU: by torch, which asks MKL in float32, or straight to oneDNN, whichever is faster there.

A call of oneDNN costs about 0.1 ms before it multiplies anything, so small products stay with torch. Of large ones, in
float32: on an AMD EPYC with AVX-512 oneDNN reaches 150 to 215 GFLOP/s where MKL has 70 to 95, and a GELU costs next to
nothing because it is applied while a tile is in the cache; on an Intel Xeon with AVX-512 both are alike; on an AMD
Zen 3 with AVX2 oneDNN has 60 where MKL has 60 to 78, and its GELU is slower than torch's. The choice follows from the
instruction set and the size alone, never from a clock: the same frame must give the same bits in another process.
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
"""Products of fewer multiplications than this stay with torch: MKL takes 0.02 ms for the smallest, oneDNN 0.12, and on
an Intel Xeon MKL is the faster one up to here."""

SMALL_WEIGHT = 2**16
"""Weights of up to this many values are laid out for small products; a large product can afford to undo it."""


def linear(x: Tensor, layer: nn.Linear, activation: Activation = "none") -> Tensor:
    """Apply a linear layer and what follows it.

    Args:
        x: (..., C).
        layer: What to apply (C -> D).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D).
    """
    return product(x, layer.weight, layer.bias, activation)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """``x`` times ``weight`` transposed, plus a bias, and what follows.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D).
    """
    # While a graph is traced sizes are not asked for: they may be open.
    if (
        not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= SMALL
        and _suits(x)
        and weight.dtype == x.dtype
        and one_dnn_is_faster(x.dtype)
    ):
        weight = weight.contiguous()  # laid out for small products, oneDNN would take a hundred times as long
        if not torch.is_grad_enabled():
            return one_dnn_product(x, weight, bias, activation)
        x = _Product.apply(x, weight, bias)
    else:
        x = F.linear(x, weight, bias)
    return F.gelu(x) if activation == "gelu" else F.relu(x) if activation == "relu" else x


def laid_out(weight: Tensor) -> Tensor:
    """Lay a weight out in memory column after column; shape and values stay the same.

    MKL multiplies a few rows by it in 0.4 to 0.9 of the time (AVX-512), most where there are many columns.

    Args:
        weight: (D, C).

    Returns:
        The same weight, or where it would gain nothing the tensor that was given.
    """
    small = weight.numel() <= SMALL_WEIGHT and weight.dtype == torch.float32
    if not small or weight.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return weight
    return weight.t().contiguous().t()


def lay_out(model: nn.Module) -> None:
    """Lay the weights of a model's linear layers out for inference, see ``laid_out``."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.weight.is_floating_point():  # quantised ones have their own
                layer.weight.data = laid_out(layer.weight.data)


def fast(x: Tensor) -> bool:
    """Whether inference shortcuts hold for a tensor: on a CPU, no gradients, no autocast, not while compiling."""
    return _suits(x) and not torch.is_grad_enabled()


@cache
def has_one_dnn(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies matrices of a type on this processor.

    Its bfloat16 products need AVX-512 on x86; without, creating one raises an error. torch then has a slower one.

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
    """Tell whether large products are oneDNN's on this processor: see above.

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
    """Compute ``product`` straight with oneDNN, whatever torch would choose; only where ``has_one_dnn``.

    Args:
        x: (..., C).
        weight: (D, C), contiguous: in any other layout it takes a hundred times as long.
        bias: (D,).
        activation: ``gelu`` is the exact one.

    Returns:
        (..., D), without gradients.
    """
    algorithm = "none" if activation == "gelu" else ""
    done: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return done


class _Product(torch.autograd.Function):
    """``product`` with gradients. Theirs with respect to the weight stays with MKL, which is as fast at that shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return one_dnn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # (R, D)
        return (
            one_dnn_product(grad.contiguous(), weight.t().contiguous()) if wanted[0] else None,
            rows.t() @ x.flatten(0, -2) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )
