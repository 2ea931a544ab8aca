"""What SAM and SAM2 have in common as files: the tensor names of their prompt encoders and mask decoders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from refervos.weights import Rules, load_renamed

_SHARED_TABLE = "shared_image_embedding.positional_embedding"
_SHARED_TABLE_AGAIN = "prompt_encoder.shared_embedding.positional_embedding"

PROMPT_ENCODER_TO_META: Rules = (
    (
        rf"^({re.escape(_SHARED_TABLE)}|{re.escape(_SHARED_TABLE_AGAIN)})$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"\.point_embed\.(\d+)\.", r".point_embeddings.\1."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
)
"""From transformers' names of the prompt encoder's tensors, and of the Fourier table, to Meta's."""

MASK_DECODER_TO_META: Rules = (
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"^(mask_decoder\.transformer\..*)\blayer_norm", r"\1norm"),
)
"""The same for the mask decoder, without its heads."""


def heads_to_meta(heads: str) -> Rules:
    """The same for heads of three layers, whose middle one is ``layers.0`` for transformers and ``layers.1`` for Meta.

    Args:
        heads: A regular expression of their names, without groups.
    """
    return (
        (rf"({heads})\.layers\.0\.", r"\1.layers.1."),
        (rf"({heads})\.proj_in\.", r"\1.layers.0."),
        (rf"({heads})\.proj_out\.", r"\1.layers.2."),
    )


def load_hf_tensors(model: nn.Module, source: Mapping[str, Tensor], where: str) -> None:
    """Fill transformers' SAM or SAM2 from the tensors of a Hugging Face folder; every mismatch is an error.

    Args:
        model: One of transformers' models, filled in place.
        source: Names and tensors. The Fourier table has two names, of which folders hold one or both.
        where: The folder, for error messages.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen tensors.
    """
    tables = (_SHARED_TABLE, _SHARED_TABLE_AGAIN)
    held = next((name for name in tables if name in source), _SHARED_TABLE)

    def names(name: str) -> Sequence[str]:
        return (held,) if name in tables else (name,)

    load_renamed(model, source, names, unused=[re.escape(_SHARED_TABLE_AGAIN)], where=where)
