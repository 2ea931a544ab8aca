"""Names of the release before this one still work, and warn."""

from __future__ import annotations

import pytest
import torch

from refervos import load
from scenes import CAPTION, micro_model, scene, session_of


def test_rename_is_set_prompt() -> None:
    session = load("miniature").open("the red circle")
    with pytest.warns(DeprecationWarning, match=r"Session\.set_prompt"):
        session.rename(0, "the blue star")
    assert session.step(scene(1)[0]).expressions == ("the blue star",)


def test_note_gap_is_mark_gap() -> None:
    session = session_of(micro_model(), [CAPTION])
    with pytest.warns(DeprecationWarning, match=r"Session\.mark_gap"):
        session.note_gap()
    assert session.counts.gaps == 1


def test_compute_in_is_to() -> None:
    model = micro_model()
    with pytest.warns(DeprecationWarning, match=r"to\(dtype\)"):
        assert model.compute_in(torch.bfloat16) is model
    assert model.compute_dtype == torch.bfloat16
