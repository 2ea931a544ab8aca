"""Tensor names shared by SAM and SAM2: prompt encoder and mask decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from refervos.checkpoints.weights import Rules

_SHARED_TABLE = "shared_image_embedding.positional_embedding"
_SHARED_TABLE_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"

PROMPT_ENCODER_TO_META: Rules = (
    (
        rf"^({re.escape(_SHARED_TABLE)}|{re.escape(_SHARED_TABLE_ALIAS)})$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"\.point_embed\.(\d+)\.", r".point_embeddings.\1."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
)
"""Rules from transformers' tensor names of the prompt encoder and the Fourier table to Meta's."""

MASK_DECODER_TO_META: Rules = (
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"^(mask_decoder\.transformer\..*)\blayer_norm", r"\1norm"),
)
"""Rules for the mask decoder without its heads."""


def heads_to_meta(heads: str) -> Rules:
    """Return the rules for three-layer heads; the middle one is ``layers.0`` in transformers, ``layers.1`` at Meta.

    Args:
        heads: Regular expression of their names, without groups.
    """
    return (
        (rf"({heads})\.layers\.0\.", r"\1.layers.1."),
        (rf"({heads})\.proj_in\.", r"\1.layers.0."),
        (rf"({heads})\.proj_out\.", r"\1.layers.2."),
    )


HF_UNUSED = (re.escape(_SHARED_TABLE_ALIAS),)
"""Names that a Hugging Face folder may also have: the Fourier table has two names, of which one or both are stored."""


def hf_names(source: Mapping[str, Tensor]) -> Callable[[str], Sequence[str]]:
    """Return the mapping from transformers' tensor names to those in a Hugging Face folder of SAM or SAM2.

    Args:
        source: The folder's names and tensors.

    Returns:
        The mapping; see ``sources_of`` of ``weights.load_renamed``.
    """
    tables = (_SHARED_TABLE, _SHARED_TABLE_ALIAS)
    stored = next((name for name in tables if name in source), _SHARED_TABLE)
    return lambda name: (stored,) if name in tables else (name,)
