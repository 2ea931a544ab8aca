"""``benchmarks/videoglamm_cost.py``: figures compared with formulas from the literature and with counted operations."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refervos.bench.measuring import flop_formulas
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS
from refervos.videoglamm.language import Context, read_on
from videoglamm_models import MINIATURE, random_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: its other files have common names
cost: Any = import_module("videoglamm_cost")

PUBLISHED = VIDEOGLAMM_PRESETS["published"]


def transformer(layers: int, width: int, feedforward: int, tokens: int, rows: int) -> float:
    """Operations of a vision transformer: products of its layers, and attention among all tokens of a row."""
    products = 2 * rows * tokens * layers * (4 * width**2 + 2 * width * feedforward)
    return products + 4 * rows * layers * width * tokens**2


def test_the_encoders_cost_what_the_formula_of_a_transformer_says() -> None:
    found = {step.name: step for step in cost.steps(PUBLISHED)}
    image = found["image encoder, 16 frames"]
    assert image.tokens == 2304
    assert image.operations == pytest.approx(transformer(23, 1024, 4096, 577, 16), rel=0.01)
    video = found["video encoder, 4 chunks of 4 frames"]
    assert video.tokens == 1024
    assert video.operations == pytest.approx(transformer(39, 1408, 6144, 1025, 4), rel=0.01)
    assert sum(step.tokens or 0 for step in (image, video)) == found["projectors"].tokens == 3328


def test_the_language_model_costs_what_torch_counts() -> None:
    model = random_model(replace(MINIATURE, lora=None))
    length, phi = 20, MINIATURE.phi
    context = Context(cached=False)
    context.add(torch.zeros(length, phi.width))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        read_on(model.language, context)
    whole = 4 * phi.layers * phi.width * length**2  # torch counts attention to later tokens, too, which is masked
    assert counter.get_total_flops() == length * cost.per_token(MINIATURE) + whole
    assert cost.attention(MINIATURE, 0, length) == 4 * phi.layers * phi.width * length * (length + 1) / 2
    windowed = replace(MINIATURE, phi=replace(phi, window=8))
    assert cost.attention(windowed, 10, length) == 4 * phi.layers * phi.width * 10 * 8


def test_memory_is_that_of_the_weights() -> None:
    model = random_model(replace(MINIATURE, lora=None))
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = model.language.model.layers
    linear = sum(module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear))
    sizes = {one.name: one for one in cost.footprints(MINIATURE)}
    assert sizes["float32"].weights == pytest.approx(4 * total / 1e9)
    assert sizes["8 bits"].weights == pytest.approx((2 * (total - linear) + linear) / 1e9)
    published = {one.name: one for one in cost.footprints(PUBLISHED)}
    assert [published[name].card for name in ("bfloat16", "8 bits", "4 bits")] == [16, 12, 8]
    assert published["bfloat16"].cache == 2 * 2 * 32 * 3072 * 2048 / 1e9


def test_the_tables_are_those_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    cost.main(["--preset", "published"])
    printed = capsys.readouterr().out.strip()
    page = (Path(__file__).parents[1] / "docs" / "videoglamm.md").read_text(encoding="utf-8")
    for table in printed.split("\n\n"):
        assert table in page
