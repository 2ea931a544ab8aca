"""Spoilt files of predicted answers in conversations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge import POSIX, fresh, inputs, judge
from layouts_conversations import write_mevis_gcg
from refervos.evaluation.conversation_scores import score_conversations
from refervos.evaluation.datasets import Part
from spoil import Draw, one_of, spoil_folder
from test_eval_conversations import right_answer, write_answers

pytestmark = POSIX


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, Path]:
    """Write a data set and correct answers to its questions."""
    root = tmp_path_factory.mktemp("good")
    part = Part("mevis-gcg", write_mevis_gcg(root / "data", videos=2, frames=3), "valid_u")
    conversations = part.open().dataset.conversations
    return part, write_answers(root / "answers", conversations, [right_answer(one) for one in conversations])


@inputs(12)
@given(data=st.data())
def test_spoilt_answers_are_scored_or_refused_in_one_sentence(
    good: tuple[Part, Path], tmp_path: Path, data: st.DataObject
) -> None:
    part, answers = good
    folder = fresh(tmp_path)
    shutil.copytree(answers, folder)
    draw: Draw = data.draw
    changes = [spoil_folder(draw, folder) for _ in range(one_of(draw, 1, 1, 2))]

    def scored() -> None:
        summary = score_conversations(folder, part, captions=False, show_progress=False)
        assert len(summary.results) == 2
        assert all(0 <= result.set_miou <= 1 for result in summary.results)
        summary.markdown()
        summary.csv()

    judge(scored, folder, about="; ".join(changes))
