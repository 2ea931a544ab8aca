"""Prompts: accepted forms, and the error for anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from refervos import Prompt, load
from refervos.errors import PromptError
from refervos.prompts import MAX_POINTS, parse_box, parse_click
from scenes import micro_model, scene, session_of

MASK: Any = [[0, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        tuple(map(tuple, MASK)),
        np.array(MASK, bool),
        np.array(MASK, np.uint8) * 255,
        np.array(MASK, np.float32),
        torch.tensor(MASK),
        torch.tensor(MASK, dtype=torch.bool),
    ],
)
def test_a_mask_may_be_a_list_an_array_or_a_tensor(mask: Any) -> None:
    stored = Prompt(mask=mask).mask
    assert isinstance(stored, np.ndarray)
    assert stored.dtype == np.bool_
    assert stored.tolist() == np.array(MASK, bool).tolist()


def test_a_mask_as_a_list_gives_the_same_result_as_an_array() -> None:
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:70] = True
    found: list[Any] = []
    forms: list[Any] = [mask, mask.tolist()]
    for given in forms:
        session = session_of(micro_model(), [[0, 17, 2]])
        session.step(scene(1)[0])
        found.append(session.correct(0, mask=given).masks)
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mask": [[0.2, 0.9]]}, "the mask has fractional values; it must be boolean"),
        ({"mask": [[0, float("nan")]]}, "the mask has fractional values"),
        ({"mask": [[True], [True, False]]}, "the mask is .*; it must be boolean"),
        ({"mask": "abc"}, "the mask is 'abc'; it must be boolean"),
        ({"mask": {}}, "the mask is {}; it must be boolean"),
        ({}, "the prompt is empty"),
        ({"mask": True}, r"the mask has shape \(\); it must be \(height, width\)"),
        ({"mask": np.zeros((2, 3, 1), bool)}, r"the mask has shape \(2, 3, 1\)"),
        ({"points": [3, 4]}, "points must be a non-empty list of x, y pairs"),
        ({"points": [(3, 4), (5,)]}, "points must be a non-empty list of x, y pairs"),
        ({"points": [("a", "b")]}, "points must be a non-empty list of x, y pairs"),
        ({"points": [(float("nan"), 1)]}, "points must be a non-empty list of x, y pairs"),
        ({"points": [(10**400, 1)]}, "points must be a non-empty list of x, y pairs"),
        ({"points": np.zeros((0, 2))}, "points must be a non-empty list of x, y pairs"),
        ({"points": 7}, "points must be a non-empty list of x, y pairs"),
        ({"points": [(1, 2, 3)]}, "points must be a non-empty list of x, y pairs"),
        ({"points": [(1, 2)] * (MAX_POINTS + 1)}, "there are 257 points; at most 256 are allowed"),
        ({"points": [(1, 2)], "labels": [0.5]}, r"labels \[0.5\]; give a 0 or 1 for each point"),
        ({"points": [(1, 2)], "labels": 1}, "labels 1; give a 0 or 1 for each point"),
        ({"points": [(1, 2)], "labels": [1, 0]}, r"there are 1 points and labels \[1, 0\]"),
        ({"expression": "a", "labels": [1]}, "labels are given without points"),
        ({"points": [(1, 2)], "labels": ["on"]}, "give a 0 or 1 for each point"),
        ({"box": [1, 2, 3, "x"]}, "the box is .*; it must be x0, y0, x1, y1"),
        ({"box": [1, 2, 3]}, "the box has 3 numbers"),
        ({"box": [0, 0, float("inf"), 1]}, "the box is .*; it must be x0, y0, x1, y1"),
        ({"box": 5}, "the box is 5; it must be x0, y0, x1, y1"),
        ({"box": (3, 2, 1, 4)}, "is empty; x0 < x1"),
        ({"mask": np.zeros((2, 2), bool), "box": (1, 2, 3, 4)}, "a mask prompt stands alone"),
        ({"expression": "  "}, "the expression is empty"),
        ({"expression": 7}, "the expression is a int; it must be text"),
        ({"expression": ["the dog"]}, "the expression is a list; it must be text"),
        ({"expression": "the \ud83d dog"}, r"the expression .* is not valid Unicode \(it has a lone surrogate\)"),
        ({"expression": "the dog", "verbs": "runs"}, "verbs is 'runs'; give a list of words"),
        ({"expression": "the dog", "verbs": [1]}, "the verb is a int; it must be text"),
    ],
)
def test_an_invalid_prompt_is_refused_with_a_short_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence) as caught:
        Prompt(**given)
    assert len(str(caught.value)) < 250
    str(caught.value).encode()


def test_points_and_boxes_may_be_arrays() -> None:
    lists = Prompt(points=[(1, 2), (3, 4)], labels=[1, 0], box=[0, 0, 5, 5])
    given: dict[str, Any] = {"points": np.array([[1, 2], [3, 4]]), "labels": np.array([True, False])}
    given["box"] = torch.tensor([0, 0, 5, 5])
    arrays = Prompt(**given)
    assert lists.equals(arrays)
    assert not lists.equals(Prompt(points=[(1, 2), (3, 4)], labels=[1, 1], box=[0, 0, 5, 5]))
    assert Prompt(mask=MASK).equals(Prompt(mask=np.array(MASK, bool)))
    assert not Prompt(mask=MASK).equals(Prompt(mask=np.array(MASK, bool).T))


def test_the_maximum_number_of_points_is_accepted() -> None:
    session = session_of(micro_model(), [[0, 17, 2]])
    session.step(scene(1)[0])
    assert session.correct(0, points=[(x % 128, x % 96) for x in range(MAX_POINTS)]).masks.shape == (1, 96, 128)


def test_clicks_and_boxes_are_parsed_from_text() -> None:
    assert parse_click("10, 20.5") == (10.0, 20.5, 1)
    assert parse_click("10,20,0") == (10.0, 20.0, 0)
    assert parse_box("1,2,3,4") == (1.0, 2.0, 3.0, 4.0)
    for text in ("10,20,0.5", "10,20,-1", "10", "1,2,3,4", "a,b", "", "1,inf", "nan,1", "1;2"):
        with pytest.raises(PromptError, match=f"^the click is '{text}'; "):
            parse_click(text)
    for text in ("1,2,3", "1,2,3,nan", "1,2,3,4,5"):
        with pytest.raises(PromptError, match=f"^--box is '{text}'; give 4 numbers"):
            parse_box(text, "--box")


def test_results_carry_the_expression_as_the_user_wrote_it() -> None:
    """So that results can be joined with the user's own table; the model reads it in lower case."""
    model = load("miniature", device="cpu")
    expression = "  The RED\tcircle "
    session = model.open([expression, "the red circle"])
    result = session.step(scene(1)[0])
    assert result.expressions == (expression, "the red circle")
    assert session.expressions[0] == expression
    assert np.array_equal(result.masks[0], result.masks[1])
    assert result.presence[0] == result.presence[1]
