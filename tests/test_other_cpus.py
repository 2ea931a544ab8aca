"""A CPU without this one's newest instructions computes the same, by other kernels.

A process of its own imitates one by the environment variables that torch and oneDNN read when they are loaded: AVX2
alone, as most desktop CPUs have it. oneDNN then has no bfloat16, where such machines differ most from a server.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device_models import MINIATURES
from other_cpu import main

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="AVX2 is imitated on x86-64 alone"
)

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``other_cpu`` finds there."""
    out = tmp_path_factory.mktemp("other cpu") / "found.json"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    script = sys.modules[main.__module__].__file__
    assert script is not None
    subprocess.run(
        [sys.executable, script, str(out)],
        check=True,
        env={**os.environ, **OLDER, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        timeout=550,
    )
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def of(found: dict[str, Any], what: str) -> Any:
    """One of the findings; fails where there was an error instead."""
    assert "error" not in found[what], found[what]["error"]
    return found[what]


def test_the_imitation_is_one(found: dict[str, Any]) -> None:
    assert found["torch"] == "AVX2"
    assert found["bfloat16 in oneDNN"] is False


@pytest.mark.parametrize("name", MINIATURES)
def test_a_session_in_float32(name: str, found: dict[str, Any]) -> None:
    answered = of(found, f"{name} float32")
    assert answered["iou"] > 0.6  # with the truth
    assert min(answered["pixels"]) > 0


@pytest.mark.parametrize("name", MINIATURES)
def test_a_session_in_bfloat16(name: str, found: dict[str, Any]) -> None:
    assert of(found, f"{name} bfloat16")["iou"] >= 0.9  # with float32's masks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["images", "video"])
def test_a_training_step(stage: str, dtype: str, found: dict[str, Any]) -> None:
    step = of(found, f"{stage} {dtype}")
    assert step["gradient"] > 0
    assert step["after"] < step["loss"]
    assert step["loss"] == pytest.approx(of(found, f"{stage} float32")["loss"], rel=0.05)
