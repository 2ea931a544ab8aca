"""Spoilt model folders and checkpoints: configuration, tokenizer, tensor names, shapes, types, bytes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from judge import POSIX, command, fresh, inputs, judge
from refervos import load
from refervos.bench.plain_sam2 import hf_config
from refervos.prompts import Prompt
from refervos.sam.checkpoints import load_sam, save_sam
from refervos.sam2.config import SAM2_PRESETS
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.checkpoints import official_names
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.pretrained import load_t5, load_text, save_text
from refervos.text.t5 import T5TextEncoder
from refervos.training.stages.language import train_byte_level
from refsam_models import SENTENCES, TINY, tiny_model, tokenizer
from scenes import MICRO, MICRO_SAM2, micro_model, scene
from spoil import Draw, odd_value, one_of, spoil_bytes, spoil_folder, spoil_tensors
from test_sam2_checkpoints import meta_state
from test_sam_checkpoints import meta_state as sam_meta_state
from videoglamm_models import random_model

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]

FRAME = scene(1, 48, 64)[0]


def segment(folder: Path) -> None:
    """Load a model and segment a frame, with an expression or else a click."""
    model: Any = load(folder, device="cpu")
    session = model.open([Prompt(points=[[20, 20]]) if isinstance(model, Sam2Segmenter) else SENTENCES[0]])
    prediction = session.step(FRAME)
    assert prediction.masks.shape == (1, *FRAME.shape[:2])
    assert prediction.masks.dtype == bool
    assert np.isfinite(prediction.presence).all()
    assert ((prediction.presence >= 0) & (prediction.presence <= 1)).all()
    model.describe()


# Folders.


def write_samwise(folder: Path) -> None:
    words = train_byte_level(2 * SENTENCES, 300)
    model = micro_model(text=replace(MICRO.text, vocabulary=len(words)))
    Samwise(model.config, words).save_pretrained(folder)


def write_refsam(folder: Path) -> None:
    tiny_model().save_pretrained(folder)


def write_sam2(folder: Path) -> None:
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(folder)


def write_hf_sam2(folder: Path) -> None:
    from transformers import Sam2VideoModel

    Sam2VideoModel(hf_config(MICRO_SAM2)).save_pretrained(folder)


def write_sam(folder: Path) -> None:
    save_sam(tiny_model().sam, folder)


def write_text(folder: Path) -> None:
    words = train_byte_level(2 * SENTENCES, 300)
    save_text(TextEncoder(replace(MICRO.text, vocabulary=len(words))), words, folder)


def write_t5(folder: Path) -> None:
    save_text(T5TextEncoder(TINY.text), tokenizer(), folder)


@dataclass(frozen=True)
class Kind:
    """Kind of model, with functions that write a valid one and use any."""

    write: Callable[[Path], None]
    use: Callable[[Path], object]


def write_videoglamm(folder: Path) -> None:
    random_model().save_pretrained(folder)


def converse(folder: Path) -> None:
    """Load a model, ask it a question about a frame, have it segment a phrase, and follow a sentence."""
    model: Any = load(folder, device="cpu")
    model.converse([FRAME]).ask("what is this ?", limit=3).finish()
    tokens = torch.zeros(1, model.config.sam2.hidden)
    place = model.placement(FRAME.shape[:2])
    pixels = place.place(torch.from_numpy(FRAME).permute(2, 0, 1))
    (predicted,) = model.segment([pixels], tokens)
    assert place.masks(predicted.mask_logits).shape == (1, *FRAME.shape[:2])
    session = model.open([SENTENCES[0], Prompt(points=[[20, 20]])])
    answer = session.step(FRAME)
    assert answer.masks.shape == (2, *FRAME.shape[:2])
    assert ((answer.presence >= 0) & (answer.presence <= 1)).all()
    model.describe()


FOLDERS = {
    "samwise": Kind(write_samwise, segment),
    "refsam": Kind(write_refsam, segment),
    "sam2": Kind(write_sam2, segment),
    "published sam2": Kind(write_hf_sam2, segment),
    "videoglamm": Kind(write_videoglamm, converse),
    "sam": Kind(write_sam, load_sam),
    "text": Kind(write_text, load_text),
    "t5": Kind(write_t5, load_t5),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Kind]], Path]:
    """Return the path of a small model, written and used once per kind."""
    written: dict[str, Path] = {}

    def place(name: str, kinds: dict[str, Kind]) -> Path:
        if name not in written:
            path = tmp_path_factory.mktemp("good") / ("model" if kinds is FOLDERS else "model.pth")
            kinds[name].write(path)
            kinds[name].use(path)
            written[name] = path
        return written[name]

    return place


def spoil_weights(draw: Draw, file: Path) -> str:
    """Change a safetensors file: its tensors, the bytes of its header, or an entry of its header."""
    kind = one_of(draw, "tensors", "tensors", "header", "entry", "length", "bytes")
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    if kind == "tensors":
        state = dict(load_file(file))
        done = spoil_tensors(draw, state)
        save_file(state, file)
        return done
    if kind == "header":
        header = spoil_bytes(draw, header)
    elif kind == "entry":
        entries = json.loads(header)
        name = one_of(draw, *sorted(entries))
        part = entries[name]
        if "shape" in part:
            part[one_of(draw, "shape", "dtype", "data_offsets")] = one_of(
                draw, odd_value(draw), [2**40], [0, 2**62], [1, 1], "F8_E4M3", "I64", [-1, 4], [0, 0]
            )
        else:
            entries[name] = odd_value(draw)
        header = json.dumps(entries).encode()
    elif kind == "length":
        file.write_bytes(struct.pack("<Q", one_of(draw, 0, 1, size - 1, size + 1, 2**40, 2**64 - 1)) + header + data)
        return "length of the header"
    if kind == "bytes":
        file.write_bytes(spoil_bytes(draw, content))
    else:
        file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return kind


@pytest.mark.parametrize("name", FOLDERS)
@inputs(5)
@given(data=st.data())
def test_a_spoilt_model_folder_works_or_is_refused_in_one_sentence(
    name: str, good: Callable[[str, dict[str, Kind]], Path], tmp_path: Path, data: st.DataObject
) -> None:
    source, folder, draw = good(name, FOLDERS), fresh(tmp_path), data.draw
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    done = [spoil_weights(draw, weights) if one_of(draw, True, False, False) else spoil_folder(draw, folder)]
    if one_of(draw, True, False, False):
        done.append(spoil_folder(draw, folder))
    about = f"{name}: {'; '.join(done)}"
    if FOLDERS[name].use is segment and one_of(draw, False, False, True):
        judge(command("info", folder), folder, about=f"info {about}")
    else:
        judge(lambda: FOLDERS[name].use(folder), folder, about=about)


# Checkpoints that torch pickles.


def as_published(state: dict[str, Tensor], names_of: Callable[[str], tuple[str, ...]]) -> dict[str, Tensor]:
    """Rename a state dict to published names, several of which may store a part each."""
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = names_of(name)
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor] * len(names)
        published.update(zip(names, parts, strict=True))
    return {name: tensor.clone() for name, tensor in published.items()}


LARGE_FRAMES = replace(MICRO_SAM2, image_size=1024)
"""Small model with the published frame size."""


def write_official(path: Path) -> None:
    text = TextConfig(vocabulary=100, width=24, feedforward=48, positions=40)
    model = Samwise(SamwiseConfig(sam2=LARGE_FRAMES, text=text, adapter_width=32))
    state = as_published(model.state_dict(), official_names)
    torch.save({"model": state, "args": argparse.Namespace(cme_decision_window=4, use_cme_head=True)}, path)


def write_meta_sam2(path: Path) -> None:
    torch.save({"model": meta_state(Sam2Tracker(MICRO_SAM2))}, path)


def write_meta_sam(path: Path) -> None:
    from test_sam_checkpoints import MICRO, published_model

    torch.save(sam_meta_state(published_model("micro"), MICRO), path)


def convert(path: Path) -> None:
    from refervos.conversion import convert as run

    run(path, path.with_name("converted"), tokenizer=None, overwrite=True)


CHECKPOINTS = {
    "official samwise": Kind(write_official, convert),
    "meta sam2": Kind(write_meta_sam2, segment),
    "meta sam": Kind(write_meta_sam, load_sam),
}


class Foreign:
    """Object that is not plain data."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def spoil_checkpoint(draw: Draw, path: Path) -> str:
    """Change the content or the bytes of a torch file."""
    if one_of(draw, True, False, False):
        path.write_bytes(spoil_bytes(draw, path.read_bytes()))
        return "bytes"
    loaded: Any = torch.load(path, weights_only=False)
    state = loaded.get("model", loaded)
    kind = one_of(draw, "tensors", "tensors", "tensors", "foreign", "inside", "whole", "args", "old", "nested")
    done = kind
    if kind == "tensors":
        done = spoil_tensors(draw, state)
    elif kind == "foreign":
        loaded["extra"] = Foreign()
    elif kind == "inside":
        state[one_of(draw, *sorted(state))] = one_of(draw, odd_value(draw), Foreign(), np.zeros(3), [torch.zeros(3)])
    elif kind == "whole":
        loaded = one_of(
            draw, odd_value(draw), [state], torch.zeros(3), {"model": odd_value(draw)}, {"state_dict": state}
        )
    elif kind == "args":
        args = {one_of(draw, "cme_decision_window", "use_cme_head", "switch_mem"): odd_value(draw)}
        loaded["args"] = one_of(draw, odd_value(draw), argparse.Namespace(**args))
    elif kind == "nested":
        loaded = {"model": loaded}
    torch.save(loaded, path, _use_new_zipfile_serialization=kind != "old")
    return done


@pytest.mark.parametrize("name", CHECKPOINTS)
@inputs(5)
@given(data=st.data())
def test_a_spoilt_checkpoint_is_read_or_refused_in_one_sentence(
    name: str,
    good: Callable[[str, dict[str, Kind]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:
    # Register the small model as a published size.
    monkeypatch.setitem(SAM2_PRESETS, "micro", LARGE_FRAMES if "official" in name else MICRO_SAM2)
    source, folder, draw = good(name, CHECKPOINTS), fresh(tmp_path), data.draw
    folder.mkdir()
    path = folder / one_of(draw, "model.pth", "model.pth", "model.pt", "model.bin", "model.ckpt", "model")
    shutil.copyfile(source, path)
    about = f"{name} in {path.name}: {spoil_checkpoint(draw, path)}"
    judge(lambda: CHECKPOINTS[name].use(path), folder, about=about)
