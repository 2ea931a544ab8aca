"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from refervos.samwise.checkpoints import load_official
from refervos.samwise.model import Samwise


@pytest.fixture(scope="session")
def official_states() -> Callable[[str], dict[str, Tensor]]:
    """Official state dicts, each rebuilt once."""
    made: dict[str, dict[str, Tensor]] = {}

    def state(variant: str) -> dict[str, Tensor]:
        if variant not in made:
            made[variant] = golden.official_state(variant)
        return made[variant]

    return state


@pytest.fixture(scope="session")
def golden_model(
    official_states: Callable[[str], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Samwise]:
    """A model with a golden's weights, read from an official-format ``.pth`` that is written for it."""

    def make(variant: str, overrides: dict[str, Any], **config: Any) -> Samwise:
        path = tmp_path_factory.mktemp("official") / f"{variant}.pth"
        golden.write_official(path, official_states(variant), overrides)
        model = load_official(path, **{"protocol": "published", **config})
        Path(path).unlink()  # 700 MB each
        return model

    return make


@pytest.fixture
def plain_kernels() -> Iterator[None]:
    """Attention as plain matrix products, the arithmetic of the released code, instead of fused kernels."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Keep runs repeatable on machines with many cores."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
