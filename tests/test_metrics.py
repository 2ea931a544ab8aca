"""J and F against the DAVIS toolkit's own numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from golden import DATA, Golden
from refervos.errors import MissingDependencyError
from refervos.metrics import boundary_accuracy, region_similarity

GOLDEN = Golden(DATA / "metrics.npz")
NAMES = [str(name) for name in GOLDEN["names"]]


def masks(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    shape = tuple(GOLDEN[f"{name}.shape"])

    def unpack(kind: str) -> np.ndarray:
        return np.unpackbits(GOLDEN[f"{name}.{kind}"])[: shape[0] * shape[1]].reshape(shape).astype(bool)

    return unpack("gt"), unpack("pred"), unpack("void") if f"{name}.void" in GOLDEN else None


@pytest.mark.parametrize("name", NAMES)
def test_golden_pairs(name: str) -> None:
    truth, predicted, void = masks(name)
    assert region_similarity(truth, predicted, void) == pytest.approx(GOLDEN[f"{name}.J"].item(), abs=1e-9)
    assert boundary_accuracy(truth, predicted, void) == pytest.approx(GOLDEN[f"{name}.F"].item(), abs=1e-9)


def test_golden_stack_and_tolerance_in_pixels() -> None:
    names = [str(name) for name in GOLDEN["stack.names"]]
    assert len(names) == 10
    for index, name in enumerate(names):
        truth, predicted, _ = masks(name)
        assert region_similarity(truth, predicted) == pytest.approx(GOLDEN["stack.J"][index], abs=1e-9)
        assert boundary_accuracy(truth, predicted) == pytest.approx(GOLDEN["stack.F"][index], abs=1e-9)
        three = boundary_accuracy(truth, predicted, tolerance=3)
        assert three == pytest.approx(GOLDEN["stack.F_bound3px"][index], abs=1e-9)


def test_missing_scipy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    mask = np.eye(5, dtype=bool)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[eval\]'"):
        boundary_accuracy(mask, ~mask)
