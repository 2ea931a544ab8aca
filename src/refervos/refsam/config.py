"""Every hyper-parameter of RefSAM in one typed configuration, and the published sizes.

The model class of the published RefSAM (Li et al. 2024, arXiv 2307.00997, version 3) was never released. What is known
of it exactly, and what is a reconstruction from its figures, its parameter counts and the names of its parts, is told
field by field in ``docs/refsam.md``.
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
        adapters: Whether the last half of the image encoder's blocks have adapters.
        adapter_ratio: Width inside an adapter over the image encoder's.
        zero_adapters: Start the adapters at zero, so that an untrained image encoder equals SAM's. The released code
            starts them with random weights.
        mlp_layers: Hidden layers of the Cross-Modal MLP; 0 for a single linear layer.
        sparse: Whether the decoder reads the words; otherwise their tokens are zero, as in the released ablation.
        dense: What is added to the image features. ``hierarchical``: Hierarchical Dense Attention; ``attention``: Dense
            Attention over the last features alone; ``sentence``: the image features and the sentence vector, with no
            parameters; ``none``: SAM's "no mask" embedding.
        dense_sentence: Whether Dense Attention sees the sentence vector as one more word (the released code does; the
            paper's ablation prefers the words alone).
        lateral_norm: Reconstruction. Whether the features from between the blocks are brought to unit length, as the
            last ones are.
        fusion: Reconstruction. How the dense embeddings of both levels become one: ``weighted`` by one learnt number,
            ``sum``, or ``concatenated`` with a 1 x 1 convolution.
        tracking: What turns a frame's mask token into the next frame's track token: an ``mlp`` (published), the
            ``interaction`` layer of an earlier generation, or ``none``.
        tracking_layers: Reconstruction. Linear layers of that MLP.
        tracking_token: Reconstruction. Whether the track token is a token of its own; otherwise it is added to the
            mask token.
        mask_threshold: A pixel is on the object where its mask logit is above this (released Ref-YouTube-VOS script).
        first_short_side: Bring the short side of frames to this many pixels before they are brought to SAM's size, as
            the released Ref-YouTube-VOS script does with 360; None to leave that out.
        borders: Not in the paper. ``frame`` has masks follow the edges of the frame (``refervos.ops.borders``).
        words: The words that a model of drawn worlds was trained on; empty where the vocabulary is open.
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
            raise ConfigError(f"adapter_ratio is {self.adapter_ratio}; it leaves adapters no channel.")
        if self.dense == "hierarchical" and len(self.sam.vit_global_blocks) < 2:
            raise ConfigError(
                f"dense is 'hierarchical', which needs a global block before the last; vit_global_blocks is "
                f"{self.sam.vit_global_blocks}."
            )

    @property
    def adapted_blocks(self) -> range:
        """Positions of the blocks that have adapters."""
        layers = self.sam.vit_layers
        return range(layers // 2, layers) if self.adapters else range(0)


REFSAM_PRESETS: dict[str, RefSamConfig] = {name: RefSamConfig(sam=sam) for name, sam in SAM_PRESETS.items()}
"""RefSAM over each published SAM size, with T5-3b."""
