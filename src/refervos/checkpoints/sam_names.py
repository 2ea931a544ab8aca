"""What SAM and SAM2 have in common as files: the tensor names of their prompt encoders and mask decoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from refervos.checkpoints.weights import Rules

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


HF_UNUSED = (re.escape(_SHARED_TABLE_AGAIN),)
"""What a Hugging Face folder may hold besides: the Fourier table has two names, of which folders hold one or both."""


def hf_names(source: Mapping[str, Tensor]) -> Callable[[str], Sequence[str]]:
    """Where a Hugging Face folder has the tensors of a SAM or a SAM2.

    Args:
        source: The folder's names and tensors.

    Returns:
        From a name of transformers' model to the folder's, see ``weights.load_renamed``.
    """
    tables = (_SHARED_TABLE, _SHARED_TABLE_AGAIN)
    held = next((name for name in tables if name in source), _SHARED_TABLE)
    return lambda name: (held,) if name in tables else (name,)
