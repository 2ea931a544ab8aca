"""Configuration of RefSAM with all its hyper-parameters, and the published sizes.

The model class of the published RefSAM (Li et al. 2024, arXiv 2307.00997, version 3) was never released. For each
field, ``docs/refsam.md`` says whether it is known exactly or reconstructed from the paper's figures, its parameter
counts and the names of its parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from refervos.errors import ConfigError
from refervos.ops.borders import Borders
from refervos.sam.config import SAM_PRESETS, SamConfig
from refervos.text.t5 import T5Config
from refervos.typed_config import LAYERS, check_range

Dense = Literal["none", "sentence", "attention", "hierarchical"]

Fusion = Literal["weighted", "sum", "concatenated"]

Tracking = Literal["none", "mlp", "interaction"]


@dataclass(frozen=True)
class RefSamConfig:
    """Hyper-parameters of RefSAM. Defaults: the published model over ViT-B and T5-3b.

    Attributes:
        sam: Shape of SAM.
        text: Shape of the frozen text encoder.
        adapters: Whether the second half of the image encoder's blocks have adapters.
        adapter_ratio: Width inside an adapter relative to the image encoder's.
        zero_adapters: Initialise the adapters to zero, so that an untrained image encoder equals SAM's. The released
            code initialises them randomly.
        mlp_layers: Hidden layers of the Cross-Modal MLP; 0 for a single linear layer.
        sparse: Whether the decoder reads the words; otherwise their tokens are zero, as in the released ablation.
        dense: Embedding added to the image features. ``hierarchical``: Hierarchical Dense Attention; ``attention``:
            Dense Attention on the last features only; ``sentence``: the image features and the sentence vector, with no
            parameters; ``none``: SAM's "no mask" embedding.
        dense_sentence: Whether Dense Attention uses the sentence vector as one more word (released code; the paper's
            ablation favours words alone).
        lateral_norm: Reconstruction. Whether the intermediate features are normalised to unit length, like the last.
        fusion: Reconstruction. How the dense embeddings of both levels are merged: ``weighted`` by one learned number,
            ``sum``, or ``concatenated`` with a 1 x 1 convolution.
        tracking: Module from a frame's mask token to the next frame's track token: an ``mlp`` (published), the
            ``interaction`` layer of an earlier version, or ``none``.
        tracking_layers: Reconstruction. Number of linear layers of that MLP.
        tracking_token: Reconstruction. Whether the track token is a separate token; otherwise it is added to the mask
            token.
        mask_threshold: Mask logits above this are on the object (released Ref-YouTube-VOS script).
        first_short_side: Resize frames to this short side before resizing them to SAM's size, as the released
            Ref-YouTube-VOS script does with 360; None for no such resize.
        borders: Not in the paper. With ``frame``, mask borders follow the frame's edges (``refervos.ops.borders``).
        words: The words that a model of synthetic worlds was trained on; empty for an open vocabulary.
    """

    sam: SamConfig = field(default_factory=SamConfig)
    text: T5Config = field(default_factory=T5Config)
    adapters: bool = True
    adapter_ratio: float = 0.25
    zero_adapters: bool = False
    mlp_layers: int = 1
    sparse: bool = True
    dense: Dense = "hierarchical"
    dense_sentence: bool = False
    lateral_norm: bool = True
    fusion: Fusion = "weighted"
    tracking: Tracking = "mlp"
    tracking_layers: int = 2
    tracking_token: bool = True
    mask_threshold: float = 0.01
    first_short_side: int | None = None
    borders: Borders = "bilinear"
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.adapter_ratio <= 1:
            raise ConfigError(f"adapter_ratio is {self.adapter_ratio}; it must be above 0 and at most 1.")
        if self.mlp_layers < 0:
            raise ConfigError(f"mlp_layers is {self.mlp_layers}; it must be 0 or more.")
        if self.tracking_layers < 1:
            raise ConfigError(f"tracking_layers is {self.tracking_layers}; it must be at least 1.")
        if self.first_short_side is not None and self.first_short_side < 1:
            raise ConfigError(f"first_short_side is {self.first_short_side}; it must be at least 1, or null.")
        check_range(self, mlp_layers=(0, LAYERS[1]), tracking_layers=LAYERS, mask_threshold=(-1e6, 1e6))
        if self.first_short_side is not None:
            check_range(self, first_short_side=(1, 2**14))
        if self.adapters and int(self.adapter_ratio * self.sam.vit_width) < 1:
            raise ConfigError(f"adapter_ratio is {self.adapter_ratio}; it leaves the adapters no channels.")
        if self.dense == "hierarchical" and len(self.sam.vit_global_blocks) < 2:
            raise ConfigError(
                f"dense is 'hierarchical', which needs a global-attention block before the last; vit_global_blocks is "
                f"{self.sam.vit_global_blocks}."
            )

    @property
    def adapted_blocks(self) -> range:
        """Indices of the blocks that have adapters."""
        layers = self.sam.vit_layers
        return range(layers // 2, layers) if self.adapters else range(0)


REFSAM_PRESETS: dict[str, RefSamConfig] = {name: RefSamConfig(sam=sam) for name, sam in SAM_PRESETS.items()}
"""RefSAM over each published SAM size, with T5-3b."""
