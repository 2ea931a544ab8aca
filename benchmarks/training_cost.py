"""Memory and communication of a training step, calculated from the model's sizes.

    python benchmarks/training_cost.py                        # published sizes, 8 processes
    python benchmarks/training_cost.py --processes 2 4 16

Memory of parameters, gradients and optimiser follows from their numbers. Activations are estimated: torch reports the
bytes of the tensors that it keeps for the backward pass, on a CPU and for small images, and these grow in proportion to
pixels and frames. The time of the exchange is that of a ring all-reduce at a given bandwidth, without latency and
without its overlap with the backward pass. Nothing is measured on several devices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from refervos.bench.random_models import HashTokenizer
from refervos.loading import MINIATURE_FOLDER, load
from refervos.markdown import markdown_table
from refervos.refsam.config import REFSAM_PRESETS
from refervos.refsam.model import RefSam
from refervos.samwise.config import SAMWISE_PRESETS, SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS
from refervos.videoglamm.model import VideoGlamm

FLOAT = 4
"""Bytes of a number in float32: parameters, gradients and AdamW's two averages have it in mixed precision, too."""

BANDWIDTHS = {"1 Gbit/s": 0.125, "10 Gbit/s": 1.25, "100 Gbit/s": 12.5, "PCIe 4.0 x16": 25.0, "NVLink": 300.0}
"""Bandwidths between two neighbours of the ring, in GB/s and in one direction; nominal values."""

SENTENCE = 20
"""Tokens of a sentence in the estimate of activations."""


@dataclass(frozen=True)
class Size:
    """A model to train.

    Attributes:
        name: Name in the table.
        parameters: Number of all parameters.
        trained: Number of trained parameters.
        activations: Bytes of activations of a sample in float32; None if not estimated.
    """

    name: str
    parameters: int
    trained: int
    activations: float | None = None

    @property
    def weights(self) -> int:
        """Bytes of the weights of each process."""
        return FLOAT * self.parameters

    @property
    def gradients(self) -> int:
        """Bytes of the gradients, which DDP keeps in the buckets that it exchanges."""
        return FLOAT * self.trained

    @property
    def optimiser(self) -> int:
        """Bytes of AdamW's averages of gradients and of their squares."""
        return 2 * FLOAT * self.trained

    def sent(self, processes: int) -> float:
        """Return the bytes that each process sends in a step: a ring all-reduce of the gradients."""
        return 2 * (processes - 1) / processes * self.gradients

    def seconds(self, processes: int, bandwidth: float) -> float:
        """Return the time of that exchange.

        Args:
            processes: Number of processes.
            bandwidth: In GB/s.
        """
        return self.sent(processes) / (bandwidth * 1e9)


def size_of(name: str, model: nn.Module, activations: float | None = None) -> Size:
    """Count the parameters of a model, on any device."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Size(name, sum(parameter.numel() for parameter in model.parameters()), trained, activations)


def kept_bytes(forward: Callable[[], object], parameters: Sequence[Tensor] = ()) -> int:
    """Return the bytes of the tensors that torch keeps for the backward pass of a computation.

    Args:
        forward: The computation.
        parameters: Tensors that exist anyway, which do not count.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


def samwise_activations(config: SamwiseConfig, image_size: int, frames: int) -> int:
    """Count the bytes kept for one clip with one sentence, by running a model of random weights on the CPU."""
    share = image_size / config.sam2.image_size
    sam2 = replace(config.sam2, image_size=image_size)
    small = replace(config, sam2=sam2, short_side=round(config.short_side * share))
    model = Samwise(small, HashTokenizer(small.text.vocabulary, start=(0,), end=(2,))).train()
    pixels = torch.zeros(1, frames, 3, image_size, image_size)
    ids = torch.full((1, SENTENCE), 5)
    return kept_bytes(lambda: model.upsample(model(pixels, ids).mask_logits), list(model.parameters()))


def extrapolated(bytes_at: Callable[[int], int], sides: tuple[int, int], side: int) -> float:
    """Extrapolate from two image sizes in proportion to the number of pixels.

    Args:
        bytes_at: Bytes for an image side.
        sides: Two image sides to compute.
        side: The image side to extrapolate to.
    """
    small, large = sides
    first, second = bytes_at(small), bytes_at(large)
    per_pixel = (second - first) / (large**2 - small**2)
    return first + per_pixel * (side**2 - small**2)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build models without memory for their weights."""
    with torch.device("meta"):
        yield


def published_sizes(frames: int = 8) -> list[Size]:
    """Return the models of the published recipes, and the miniature."""
    published, miniature = SAMWISE_PRESETS["base-plus"], load(MINIATURE_FOLDER, device="cpu").config
    per_frame = extrapolated(lambda side: samwise_activations(published, side, 2), (128, 256), 1024) / 2
    small = samwise_activations(miniature, miniature.sam2.image_size, frames)
    with without_memory():
        models: list[tuple[str, Any, float | None]] = [
            ("SAMWISE, MeViS", Samwise(published), per_frame * frames),
            ("SAMWISE, miniature", Samwise(miniature), small),
            ("RefSAM", RefSam(REFSAM_PRESETS["vit-h"]), None),
            ("VideoGLaMM", VideoGlamm(VIDEOGLAMM_PRESETS["published"]), None),
        ]
        models[-1][1].choose_trained()
    return [size_of(*model) for model in models]


def memory_table(sizes: Sequence[Size]) -> str:
    """Return what each process holds, in Markdown."""
    rows = [
        [
            size.name,
            f"{size.parameters / 1e6:,.1f} M",
            f"{size.trained / 1e6:,.1f} M",
            _amount(size.weights),
            _amount(size.gradients),
            _amount(size.optimiser),
            "not estimated" if size.activations is None else _amount(size.activations),
        ]
        for size in sizes
    ]
    header = ["", "parameters", "trained", "weights", "gradients", "AdamW", "activations of a clip"]
    return markdown_table(header, rows)


def exchange_table(sizes: Sequence[Size], processes: int) -> str:
    """Return bytes and time of the exchange of gradients of a step, in Markdown."""
    rows = [
        [size.name, _amount(size.sent(processes))]
        + [_duration(size.seconds(processes, bandwidth)) for bandwidth in BANDWIDTHS.values()]
        for size in sizes
    ]
    return markdown_table([f"{processes} processes", "sent by each", *BANDWIDTHS], rows)


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Memory and communication of a training step, calculated.")
    parser.add_argument("--processes", type=int, nargs="+", default=[8], help="numbers of processes; default 8")
    parser.add_argument("--frames", type=int, default=8, help="frames of SAMWISE's clips; default 8")
    options = parser.parse_args()
    sizes = published_sizes(options.frames)
    print(memory_table(sizes))
    for processes in options.processes:
        print(f"\n{exchange_table(sizes, processes)}")


if __name__ == "__main__":
    main()
