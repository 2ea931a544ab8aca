"""Quantisation of the language model to 8 or 4 bits by bitsandbytes, for GPUs with less memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from refervos.errors import ConfigError, require_installed
from refervos.videoglamm.language import merge_lora

Bits = Literal[4, 8]

BLOCK = 64
"""Block size of 4-bit quantisation."""


def quantise(model: nn.Module, bits: Bits) -> None:
    """Replace the linear layers of the decoder layers by quantised ones.

    Token embeddings and head, which are trained for ``[SEG]``, are not quantised. LoRA weights are merged first. The
    weights are quantised when the model is moved to its device, so that the device never holds the original ones.

    Args:
        model: The language model, changed in place; it can no longer be trained or saved.
        bits: 8 (LLM.int8) or 4 (NF4).

    Raises:
        ConfigError: When the number of bits is not supported, or a layer's width.
        MissingDependencyError: When bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits is {bits!r}; it must be 8 or 4, or None for no quantisation.")
    require_installed("quantisation", "quantised", "bitsandbytes")
    merge_lora(model)
    layers = {name: each for name, each in model.named_modules() if ".layers." in name and type(each) is nn.Linear}
    odd = [name for name, layer in layers.items() if bits == 4 and layer.in_features % BLOCK]
    if odd:
        inputs = layers[odd[0]].in_features
        raise ConfigError(f"{odd[0]} has {inputs} inputs; 4-bit quantisation needs a multiple of {BLOCK}. Use 8 bits.")
    for name, module in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _quantised(module, bits))


def _quantised(layer: nn.Linear, bits: Bits) -> nn.Module:
    """Return a layer with the same weights, which are quantised when it is moved."""
    import bitsandbytes as bnb

    weight, bias = layer.weight.data, layer.bias is not None
    made: nn.Module
    if bits == 8:
        made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, bias, has_fp16_weights=False, device="meta")
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        dtype = weight.dtype if weight.dtype != torch.float32 else None
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    if bias:
        made.bias = layer.bias
    return made.requires_grad_(False)
