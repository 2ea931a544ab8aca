"""The language model's weights in 8 or 4 bits, by bitsandbytes, so that the published size fits smaller GPUs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from refervos.errors import ConfigError, require_installed
from refervos.videoglamm.language import merge_lora

Bits = Literal[4, 8]

BLOCK = 64
"""Weights that share a scale, in 4 bits."""


def quantise(model: nn.Module, bits: Bits) -> None:
    """Replace the linear layers of a language model's decoder by quantised ones.

    Token table and head stay as they are, as ``[SEG]`` hangs on them. Low-rank adaptation is merged first. The weights
    are quantised when the model is moved to its device, so that the device never holds them whole.

    Args:
        model: The language model, changed in place; it can then neither be trained nor saved.
        bits: 8 (LLM.int8) or 4 (NF4).

    Raises:
        ConfigError: When it is another number.
        MissingDependencyError: When bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ConfigError(f"the language model's weights cannot have {bits!r} bits; give 8 or 4, or leave it out.")
    require_installed("a language model in 8 or 4 bits", "quantised", "bitsandbytes")
    merge_lora(model)
    layers = {name: each for name, each in model.named_modules() if ".layers." in name and type(each) is nn.Linear}
    odd = [name for name, layer in layers.items() if bits == 4 and layer.in_features % BLOCK]
    if odd:
        inputs = layers[odd[0]].in_features
        raise ConfigError(f"{odd[0]} has {inputs} inputs; 4 bits need a multiple of {BLOCK}. Take 8 bits instead.")
    for name, module in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _quantised(module, bits))


def _quantised(layer: nn.Linear, bits: Bits) -> nn.Module:
    """A layer with the same weights, quantised at its first move."""
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
