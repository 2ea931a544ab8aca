"""Results on CPUs with fewer instruction sets, which use other kernels.

A separate process imitates such a CPU with the environment variables that torch and oneDNN read when they are loaded:
only AVX2, like most desktop CPUs. oneDNN then has no bfloat16, the largest difference from a server.
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
    platform.machine().lower() not in ("x86_64", "amd64"), reason="AVX2 can be imitated on x86-64 only"
)

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run ``other_cpu`` in such a process and return its results."""
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


def result_of(found: dict[str, Any], name: str) -> Any:
    """Return one of the results; fail if it is an error."""
    assert "error" not in found[name], found[name]["error"]
    return found[name]


def test_the_process_has_only_avx2_and_no_bfloat16(found: dict[str, Any]) -> None:
    assert found["torch"] == "AVX2"
    assert found["bfloat16 in oneDNN"] is False


@pytest.mark.parametrize("name", MINIATURES)
def test_a_session_in_float32_finds_the_object(name: str, found: dict[str, Any]) -> None:
    result = result_of(found, f"{name} float32")
    assert result["iou"] > 0.6  # with the ground truth
    assert min(result["pixels"]) > 0


@pytest.mark.parametrize("name", MINIATURES)
def test_a_session_in_bfloat16_agrees_with_float32(name: str, found: dict[str, Any]) -> None:
    assert result_of(found, f"{name} bfloat16")["iou"] >= 0.9  # with float32's masks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["images", "video"])
def test_a_training_step_lowers_the_loss(stage: str, dtype: str, found: dict[str, Any]) -> None:
    step = result_of(found, f"{stage} {dtype}")
    assert step["gradient"] > 0
    assert step["after"] < step["loss"]
    assert step["loss"] == pytest.approx(result_of(found, f"{stage} float32")["loss"], rel=0.05)
