"""Saved sessions that were modified and given a valid digest: they are refused, or can be used safely."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from refervos import Prompt, Session, load
from refervos.errors import PromptError, StateError
from refervos.refsam.model import RefSam
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.session.state_files import _digest
from refervos.text.grounded import Phrase
from scenes import MICRO_SAM2, scene
from videoglamm_models import FOUND, NOT_FOUND, scripted_model

FRAMES = scene(6)


def samwise(path: Path, **options: Any) -> Any:
    """Save a session with a correction, a click on a first frame, and a new track with a box."""
    model: Any = load("miniature", device="cpu", **options)
    session = model.open(["the red circle", Prompt("the blue star", points=[(20, 40)])], keep_logits=True)
    for frame in FRAMES[:3]:
        session.step(frame)
    session.correct(0, points=[(60, 40)])
    session.add(Prompt("the green square", box=(5, 5, 60, 60)))
    session.save(path)
    return model


def clips(path: Path) -> Any:
    return samwise(path, time="clip", borders="bilinear")


def sam2(path: Path) -> Any:
    torch.manual_seed(0)
    model = Sam2Segmenter(Sam2Tracker(MICRO_SAM2))
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:70] = True
    session = model.open([Prompt(mask=mask), Prompt(points=[(20, 40), (30, 40)], labels=[1, 0])])
    for frame in FRAMES[:2]:
        session.step(frame)
    session.correct(1, box=(5, 5, 60, 60))
    session.save(path)
    return model


def refsam(path: Path) -> Any:
    model: Any = load("refsam-miniature", device="cpu")
    session = model.open(["the red circle", "the blue star"], on_cut="forget", on_repeat="reuse")
    for frame in FRAMES[:3]:
        session.step(frame)
    session.save(path)
    return model


def videoglamm(path: Path) -> Any:
    """Save a session with a correction, an object that was not found, a new sentence and a phrase with its token."""
    model = scripted_model(FOUND, NOT_FOUND, FOUND, ask_every=4)
    session = model.open(["the red circle", Prompt("the blue square")], on_cut="forget")
    for frame in FRAMES[:3]:
        session.step(frame)
    session.correct(0, points=[(60, 40)])
    session.add("one that turns back")
    session.follow(Prompt("it"), model.begin_phrase(Phrase("it", 0, 2), torch.ones(model.config.sam2.hidden)))
    session.save(path)
    return model


FAMILIES = {each.__name__: each for each in (samwise, clips, sam2, refsam, videoglamm)}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("saved") / "session"
    return FAMILIES[request.param](path), path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as content:
        tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
        return json.loads(content.metadata()["refervos_state"]), tensors


def write(path: Path, content: Any, tensors: dict[str, Tensor]) -> None:
    """Write a state with a matching digest."""
    text = json.dumps(content)
    save_file(tensors, path, {"refervos_state": text, "refervos_sha256": _digest(text, tensors)})


def use(session: Session) -> None:
    """Do everything that a user may do with a restored session."""
    for frame in FRAMES[3:5]:
        result = session.step(frame)
        assert np.isfinite(result.presence).all()
        assert ((result.presence >= 0) & (result.presence <= 1)).all()
    for number in list(session.expressions):
        if not isinstance(session.model, RefSam):
            with suppress(PromptError):  # there may be no correction
                session.undo(number)
            session.correct(number, points=[(20, 30)])
        if number:
            session.drop(number)
    session.mark_gap()
    session.step(np.zeros((50, 70, 3), np.uint8))


def restored(model: Any, path: Path) -> Session | str:
    """Restore a session, or return the error message."""
    try:
        session: Session = model.restore(path)
    except StateError as error:
        return str(error)
    return session


def places(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every node in a JSON tree."""
    yield way
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, part in items:
        yield from places(part, (*way, key))


REPLACEMENTS: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 7, 10**9, 2**70, 0.5, -3.5, "", "x", "ignore"),
    *([], [1], {}, {"tuple": []}, {"tuple": [1, 2]}, {"deque": [], "maxlen": 3}, {"dict": []}, {"tensor": 0}),
    *({"array": 1}, {"float": "7ff8000000000000"}, {"float": "7ff0000000000000"}),
)


def changed_tree(content: Any, rng: np.random.Generator) -> Any:
    """Copy a tree with one node replaced, removed or repeated."""
    content = copy.deepcopy(content)
    ways = list(places(content["tree"]))
    way = ways[int(rng.integers(1, len(ways)))]
    place = content["tree"]
    for key in way[:-1]:
        place = place[key]
    kind = int(rng.integers(4))
    if kind == 0 and isinstance(place, list):
        del place[way[-1]]
    elif kind == 1 and isinstance(place, list):
        place.append(copy.deepcopy(place[way[-1]]))
    elif kind == 2 and isinstance(place[way[-1]], int):
        place[way[-1]] = int(place[way[-1]]) + int(rng.choice([-2, -1, 1, 2]))
    else:
        place[way[-1]] = REPLACEMENTS[int(rng.integers(len(REPLACEMENTS)))]
    return content


def changed_tensor(value: Tensor, rng: np.random.Generator) -> Tensor:
    kind = int(rng.integers(9))
    if kind == 0:
        return value.to([torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool][int(rng.integers(5))])
    if kind == 1:
        return value.reshape(-1)
    if kind == 2:
        return value[:0] if value.ndim else value.reshape(1)
    if kind == 3:
        return torch.cat([value, value]) if value.ndim else value.repeat(2)
    if kind == 4:
        return value.unsqueeze(0)
    if kind == 5:
        return value.transpose(0, -1).contiguous() if value.ndim else -value
    if kind == 6 and value.is_floating_point():
        return torch.full_like(value, float(rng.choice([np.nan, np.inf, -np.inf])))
    if kind == 7 and not value.is_floating_point() and value.dtype != torch.bool:
        return torch.full_like(value, int(rng.choice([0, 1, 100])))
    return torch.zeros_like(value)


@pytest.mark.slow  # a few are in tests/fuzz
def test_a_modified_state_is_refused_or_can_be_used(saved: tuple[Any, Path], tmp_path: Path) -> None:
    """Makes 120 modifications: of the tree, of a tensor, or a swap of two tensors."""
    model, path = saved
    content, tensors = read(path)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        mine, stored = content, dict(tensors)
        kind = int(rng.integers(4))
        if kind <= 1:
            mine = changed_tree(content, rng)
        elif kind == 2:
            name = str(rng.choice(list(tensors)))
            stored[name] = changed_tensor(tensors[name], rng)
        else:
            one, other = (str(name) for name in rng.choice(list(tensors), 2))
            stored[one], stored[other] = tensors[other].clone(), tensors[one].clone()
        write(tmp_path / "changed", mine, stored)
        session = restored(model, tmp_path / "changed")
        if isinstance(session, str):
            assert len(session) < 500
            refused += 1
        else:
            use(session)
    assert refused > 40


def test_an_unmodified_state_can_be_used(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = saved
    write(tmp_path / "same", *read(path))
    use(model.restore(tmp_path / "same"))


@pytest.mark.parametrize("name", ["keep_logits", "on_cut", "on_repeat", "borders", "border_cells"])
@pytest.mark.parametrize("value", [None, "", "x", "-1", "2", "1e9", "None"])
def test_modified_settings_are_refused_or_can_be_used(
    name: str, value: str | None, saved: tuple[Any, Path], tmp_path: Path
) -> None:
    model, path = saved
    content, tensors = read(path)
    if value is None:
        del content["about"][name]
    else:
        content["about"][name] = value
    write(tmp_path / "changed", content, tensors)
    session = restored(model, tmp_path / "changed")
    if isinstance(session, str):
        assert "does not fit the model" in session
    else:
        use(session)


def test_the_error_names_the_value_that_does_not_fit(tmp_path: Path) -> None:
    model = samwise(tmp_path / "session")
    content, tensors = read(tmp_path / "session")
    text = json.dumps(content["tree"])
    maps = re.findall(r'"dataclass": "MemoryMap", "fields": {"frame": 0, "features": {"tensor": (\d+)', text)[0]
    write(tmp_path / "changed", content, {**tensors, maps: tensors[maps][:4].contiguous()})
    with pytest.raises(StateError, match=r"a memory map is float32 \(.*\) where float32 \(64, 8, 8\) is needed"):
        model.restore(tmp_path / "changed")
    write(tmp_path / "changed", content, {**tensors, maps: tensors[maps] * float("nan")})
    with pytest.raises(StateError, match=r"does not fit the model \(a memory map contains NaN or infinity\)"):
        model.restore(tmp_path / "changed")
