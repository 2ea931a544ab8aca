"""Spoilt files of saved sessions, also with a recomputed digest that matches."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from judge import POSIX, fresh, inputs, judge
from refervos import load
from refervos.errors import PromptError
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.session.state_files import _DIGEST, _STATE, _digest
from scenes import scene
from spoil import Draw, one_of, spoil_bytes, spoil_tensors, spoil_value
from test_fuzz_models import write_refsam, write_sam2, write_samwise, write_videoglamm

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]

FRAMES = scene(6, 48, 64)
WRITERS = {"samwise": write_samwise, "refsam": write_refsam, "sam2": write_sam2, "videoglamm": write_videoglamm}
SENTENCES = ("the red circle", "the big blue square")


def prompts(model: Any, *, click: bool) -> list[Prompt]:
    """Return two valid prompts of a model."""
    clicks = [Prompt(points=[[20, 20], [5, 5]], labels=[1, 0]), Prompt(box=[10, 10, 40, 40])]
    if isinstance(model, Sam2Segmenter):
        return clicks
    return [Prompt(SENTENCES[0]), Prompt(SENTENCES[1], points=[[30, 30]]) if click else Prompt(SENTENCES[1])]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a small model of a family, loaded once."""
    loaded: dict[str, Any] = {}

    def model(name: str) -> Any:
        if name not in loaded:
            folder = tmp_path_factory.mktemp("model") / "model"
            WRITERS[name](folder)
            loaded[name] = load(folder, device="cpu")
        return loaded[name]

    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Any]) -> Callable[[str, bool], Path]:
    """Return a saved session of a family, new or after frames and corrections, written once."""
    written: dict[tuple[str, bool], Path] = {}

    def place(name: str, begun: bool) -> Path:
        if (name, begun) not in written:
            model = model_of(name)
            click = name in ("samwise", "videoglamm") and not begun
            session = model.open(
                prompts(model, click=click), keep_logits=True, on_cut="forget", on_repeat="reuse", borders="frame"
            )
            for frame in FRAMES[: 3 * begun]:
                session.step(frame)
            if begun and name != "refsam":
                session.correct(0, points=[[20, 20]])
                session.step(FRAMES[3])
                session.correct(1, box=[10, 10, 30, 30])
            path = tmp_path_factory.mktemp("saved") / "a.session"
            session.save(path)
            use_session(model, path)
            written[name, begun] = path
        return written[name, begun]

    return place


def use_session(model: Any, path: Path) -> None:
    """Restore a session and call all of its methods."""
    session = model.restore(path)
    for frame in FRAMES[4:]:
        prediction = session.step(frame)
        assert prediction.masks.shape == (len(prediction.track_ids), *frame.shape[:2])
        assert prediction.masks.dtype == bool
        assert np.isfinite(prediction.presence).all()
        assert ((prediction.presence >= 0) & (prediction.presence <= 1)).all()
        assert all(isinstance(text, str) for text in prediction.expressions)
    for number in prediction.track_ids[:2]:
        for name, arguments in (
            ("correct", {"points": [[12, 13]]}),
            ("undo", {}),
            ("undo", {}),
            ("set_prompt", {"prompt": "the blue square"}),
        ):
            with contextlib.suppress(PromptError):  # such as when there is nothing to undo
                getattr(session, name)(number, **arguments)
    session.mark_gap()
    if not isinstance(model, Sam2Segmenter):
        session.add("the red square")
    session.clip(FRAMES[:2])
    session.save(path.with_name("again.session"))


def contents(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the texts and tensors in a file of saved state."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def spoil_state(draw: Draw, path: Path) -> str:
    """Change a file of saved state, mostly with a matching digest."""
    if one_of(draw, *[False] * 5, True):
        path.write_bytes(spoil_bytes(draw, path.read_bytes()))
        return "bytes"
    texts, tensors = contents(path)
    text = texts[_STATE]
    done = one_of(draw, "tree", "tree", "about", *(["tensors", "tensors", "numbers"] if tensors else []))
    if done == "tree":
        content = json.loads(text)
        content["tree"] = spoil_value(draw, content["tree"])
        text = json.dumps(content)
    elif done == "about":
        text = json.dumps(spoil_value(draw, json.loads(text)))
    elif done == "tensors":
        done = spoil_tensors(draw, tensors)
    else:
        # Other values in a tensor, which two places of the tree may share.
        name = one_of(draw, *sorted(tensors))
        tensors[name] = tensors[name] * one_of(draw, 0, -1, 1000)
    save_file(tensors, path, {_STATE: text, _DIGEST: _digest(text, tensors)})
    return done


@pytest.mark.filterwarnings("ignore::refervos.errors.UnknownWordsWarning")  # a tokenizer of few words
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "new"])
@pytest.mark.parametrize("name", WRITERS)
@inputs(6)
@given(data=st.data())
def test_a_spoilt_session_continues_or_is_refused_in_one_sentence(
    name: str,
    begun: bool,
    model_of: Callable[[str], Any],
    saved: Callable[[str, bool], Path],
    tmp_path: Path,
    data: st.DataObject,
) -> None:
    source, folder = saved(name, begun), fresh(tmp_path)
    folder.mkdir()
    path = folder / "a.session"
    shutil.copyfile(source, path)
    about = f"{name}, {'begun' if begun else 'new'}: {spoil_state(data.draw, path)}"
    judge(lambda: use_session(model_of(name), path), folder, about=about)
