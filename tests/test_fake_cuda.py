"""Frames on an imitated accelerator: no mixed devices and no unnecessary synchronisation.

On the imitated device (see ``imitated_device``, also for why it is not torch's ``FakeTensorMode``) whole sessions run
with real values and decisions. The tests find operations that mix devices, integer operations without a CUDA kernel,
and every place where the CPU waits for the device. They cannot find errors of the kernels themselves, their rounding,
speed, and shapes or types that only they refuse; for those, ``test_devices.py`` must run on a real device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from device_models import (
    MINIATURES,
    SENTENCES,
    SIZE,
    circle,
    devices_of,
    packaged,
    packaged_on,
    placed,
    sam2_model,
    shapes,
)
from imitated_device import DEVICE, Imitation
from refervos.placement import Placement, as_rgb, letterbox, place_for_sam
from refervos.prompts import Prompt
from refervos.samwise.model import Samwise
from refervos.segmenter import Segmenter
from refervos.session.session import Session
from scenes import CAPTION, SHORT_CAPTION, micro_model


@pytest.fixture(autouse=True, scope="module")
def _prepared(one_thread: None) -> None:
    """Use one thread, and build the models before the imitation starts, for speed."""
    for name in MINIATURES:
        packaged(name)
    packaged("miniature", time="clip", memory_policy="gated", cme_window=2)
    sam2_model(torch.float32)


# The imitation itself: it refuses what CUDA refuses and records synchronisations.


def test_the_imitation_computes_values(imitated: Imitation) -> None:
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=DEVICE)
    assert numbers.device == DEVICE
    assert (numbers @ numbers)[[1, 0], 1:].cpu().tolist() == [[22.0], [10.0]]
    numbers[0] = numbers[1] * 2
    moved = torch.nn.Linear(2, 1, bias=False).to(DEVICE)
    assert {parameter.device for parameter in moved.parameters()} == {DEVICE}
    moved(numbers).sum().backward()
    assert moved.weight.grad is not None
    assert moved.weight.grad.tolist() == [[9.0, 12.0]]
    with torch.inference_mode():
        attended = F.scaled_dot_product_attention(numbers[None, None], numbers[None, None], numbers[None, None])
        assert attended.to(numbers).device == DEVICE


MIXTURES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda here, there: here + there,
    "cat": lambda here, there: torch.cat([here, there]),
    "stack of numbers": lambda here, there: torch.stack([here[0], there[0]]),
    "where": lambda here, there: torch.where(here > 0, here, there),
    "linear": lambda here, there: F.linear(here, torch.ones(2, 3)),
    "indices on the device": lambda here, there: there[torch.tensor([0], device=DEVICE)],
    "number on the device": lambda here, there: here[0] * there,
    "in place": lambda here, there: there.add_(here),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_the_imitation_refuses_to_mix_devices(mixture: Callable[[Tensor, Tensor], object], imitated: Imitation) -> None:
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        mixture(here, there)


def test_the_imitation_allows_the_mixtures_that_cuda_allows(imitated: Imitation) -> None:
    """Scalars on the CPU, indices on the CPU, and copies in either direction."""
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    assert (here * torch.tensor(2.0)).device == DEVICE
    assert here[torch.tensor([0, 2])].shape == (2,)
    here[1:] = there[1:]
    assert there.copy_(here).device.type == "cpu"


def test_the_imitation_refuses_types_without_a_cuda_kernel(imitated: Imitation) -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(NotImplementedError, match=r"_upsample_bilinear2d_aa.*uint8"):
        F.interpolate(image, size=(4, 4), mode="bilinear", antialias=True)
    F.interpolate(image.float(), size=(4, 4), mode="bilinear", antialias=True)
    F.interpolate(image.cpu(), size=(4, 4), mode="bilinear", antialias=True)
    with pytest.raises(NotImplementedError, match="mm"):
        torch.ones(2, 2, dtype=torch.long, device=DEVICE) @ torch.ones(2, 2, dtype=torch.long, device=DEVICE)
    with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
        torch.rand(3, device=DEVICE, generator=torch.Generator())


def test_the_imitation_refuses_conversion_to_numpy(imitated: Imitation) -> None:
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        torch.ones(3, device=DEVICE).numpy()


def test_the_imitation_records_every_synchronisation(imitated: Imitation) -> None:
    here = torch.arange(4.0, device=DEVICE)
    assert imitated.reads == []  # copies to the device do not synchronise
    waits: dict[str, Any] = {
        "bool": lambda: bool(here.sum() > 0),
        "number": lambda: here[0].item(),
        "list": lambda: here.tolist(),
        "array": lambda: here.cpu().numpy(),
        "array by force": lambda: here.numpy(force=True),
        "copy": lambda: torch.zeros(4).copy_(here),
        "mask": lambda: here[here > 1],
        "assigned by mask": lambda: here.index_put_((here > 1,), torch.zeros((), device=DEVICE)),
        "nonzero": lambda: here.nonzero(),
        "repeat": lambda: here.repeat_interleave(torch.ones(4, dtype=torch.long, device=DEVICE)),
        "equal": lambda: torch.equal(here, here),
    }
    for name, wait in waits.items():
        imitated.reads.clear()
        wait()
        assert len(imitated.reads) == 1, name
        assert imitated.reads[0].where.startswith("test_fake_cuda.py:"), imitated.reads
    imitated.reads.clear()
    for free in (lambda: here[[0, 2]], lambda: here[1:], lambda: torch.where(here > 1, here, 0), lambda: here.max(0)):
        free()
    assert imitated.reads == []


# Frames in, masks out.


FRAMES: dict[str, Any] = {
    "colour": shapes(1)[0],
    "gray": shapes(1)[0][..., 0],
    "read backwards": shapes(1)[0][::-1, ::-1],
    "tensor": torch.from_numpy(shapes(1)[0]),
}

PLACEMENTS = {
    "letterbox": letterbox(SIZE, 64, 60),
    "enlarged": letterbox(SIZE, 256, 250),
    "same size": Placement(SIZE, SIZE, 128),
    "resized twice": place_for_sam(SIZE, 64, first_short_side=80),
}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_frames_are_placed_on_the_device_without_synchronisation(
    frame: Any, placement: Placement, imitated: Imitation
) -> None:
    """They are within a grey level of the CPU's (two if resized twice)."""
    image = as_rgb(frame)
    pixels = placement.place(image.to(DEVICE))
    assert pixels.device == DEVICE
    assert imitated.reads == []
    levels = 2 if placement.first else 1
    difference = (pixels.cpu() - placement.place(image)).abs().max()
    assert float(difference) <= levels / 255 / 0.224 + 1e-5


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_logits_are_restored_on_the_device_without_synchronisation(placement: Placement, imitated: Imitation) -> None:
    logits = torch.linspace(-3, 3, 2 * 32 * 32).reshape(2, 32, 32)
    restored = placement.restore(logits.to(DEVICE))
    assert restored.device == DEVICE
    assert imitated.reads == []
    torch.testing.assert_close(restored.cpu(), placement.restore(logits))


# A frame's work.


@contextmanager
def synchronising_at_most(imitated: Imitation, times: int) -> Iterator[None]:
    """Fail if the CPU waits for the device more often."""
    before = len(imitated.reads)
    yield
    waits = imitated.reads[before:]
    assert len(waits) <= times, Counter((read.operation, read.where) for read in waits)


def follow(model: Segmenter[Any], tracks: Sequence[Any], count: int, imitated: Imitation, waits: int) -> list[Tensor]:
    """Follow tracks through frames one by one; return the switches of each frame, (N,) each."""
    pixels = placed(model, shapes(count))
    switched = []
    for time in range(count):
        with synchronising_at_most(imitated, waits):
            (prediction,) = model.segment_clip(pixels[time : time + 1], tracks, [model.placement(SIZE)])
        for tensor in (prediction.mask_logits, prediction.switched, prediction.score):
            assert tensor is None or tensor.device == DEVICE
        switched.append(prediction.switched.cpu())
    return switched


POLICIES = ("published", "gated", "switch")


def model_that_decides(policy: str, *, switch: bool) -> tuple[Any, list[Any]]:
    """Make a model whose CME runs on the fourth frame and always or never switches, with three tracks."""
    model = micro_model(time="online", memory_policy=policy, cme_window=2)
    with torch.no_grad():
        model.cme.head.bias.copy_(torch.tensor([0.0, 100.0] if switch else [100.0, 0.0]))
    tracks = [model.begin_tokens(caption) for caption in (CAPTION, SHORT_CAPTION, [0, 50, 51, 2])]
    return model.to(DEVICE), tracks


@pytest.mark.parametrize("policy", POLICIES)
def test_a_frame_of_samwise_synchronises_once(policy: str, imitated: Imitation) -> None:
    """The decisions to switch and to store are read for all sentences at once."""
    model, tracks = model_that_decides(policy, switch=False)
    switched = follow(model, tracks, 4, imitated, waits=1)
    assert not any(frame.any() for frame in switched)
    assert model.cme_applies(tracks[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_frame_with_a_switch_synchronises_twice(policy: str, imitated: Imitation) -> None:
    """The memory-free pass runs after the decision, and it must find an object."""
    model, tracks = model_that_decides(policy, switch=True)
    switched = follow(model, tracks, 4, imitated, waits=2)
    assert switched[-1].any()


def test_motion_prompts_need_no_further_synchronisation(imitated: Imitation) -> None:
    """The motion flags are in main memory."""
    model = micro_model(motion_prompt=True, time="online").to(DEVICE)
    marks = [False, True, True] + [False] * (len(CAPTION) - 3)
    tracks = [model.begin_tokens(CAPTION, marks), model.begin_tokens(SHORT_CAPTION)]
    follow(model, tracks, 2, imitated, waits=1)


def test_clips_synchronise_once_per_frame(imitated: Imitation) -> None:
    model = packaged_on(DEVICE, "miniature", time="clip", memory_policy="gated", cme_window=2)
    tracks = [model.begin(Prompt(sentence)) for sentence in SENTENCES]
    pixels = placed(model, shapes(4))
    with synchronising_at_most(imitated, 4):
        predictions = list(model.segment_clip(pixels, tracks, [model.placement(SIZE)] * 4))
    assert {prediction.mask_logits.device for prediction in predictions} == {DEVICE}


def test_a_frame_of_refsam_does_not_synchronise(imitated: Imitation) -> None:
    model = packaged_on(DEVICE, "refsam-miniature")
    follow(model, [model.begin(Prompt(sentence)) for sentence in SENTENCES], 2, imitated, waits=0)


def test_a_frame_of_sam2_does_not_synchronise(imitated: Imitation) -> None:
    """A correction synchronises once, to compare the objects before and after."""
    model = sam2_model(torch.float32).to(DEVICE)
    prompts = [
        Prompt(points=[(30, 45)]),
        Prompt(points=[(30, 45), (5, 5)], labels=[1, 0]),
        Prompt(box=(85, 58, 115, 88), points=[(100, 70)]),
        Prompt(mask=circle(0)),
    ]
    tracks = [model.begin(prompt) for prompt in prompts]
    follow(model, tracks, 3, imitated, waits=0)
    for prompt in (prompts[0], Prompt(mask=circle(2))):
        with synchronising_at_most(imitated, 1):
            assert model.correct(tracks[0], prompt, model.placement(SIZE)).mask_logits.device == DEVICE


# State on disk.


@pytest.mark.parametrize("name", MINIATURES)
def test_new_prompts_of_a_restored_session_are_on_the_devices_of_the_others(
    name: str, tmp_path: Path, imitated: Imitation
) -> None:
    """Saved and new sentences are processed in one batch, without further synchronisation."""
    model = packaged_on(DEVICE, name)
    session = model.open(list(SENTENCES))
    session.step(shapes(1)[0])
    fresh = devices_of(session)
    session.save(tmp_path / "session")
    for change in (
        lambda restored: restored.add("the circle"),
        lambda restored: restored.set_prompt(0, "the square"),
        lambda restored: restored.set_prompt(1, "the square"),
    ):
        restored = model.restore(tmp_path / "session")
        change(restored)
        assert text_devices_of(restored) == text_devices_of(session), "sentences are on different devices"
        assert devices_of(restored) == fresh
        tracks = [track.state for track in restored._tracks.values()]
        with synchronising_at_most(imitated, 1):
            list(model.segment_clip(placed(model, shapes(1)), tracks, [model.placement(SIZE)]))


def text_devices_of(session: Session) -> set[torch.device]:
    """Find the devices of the text tensors of a session's tracks."""
    states = [track.state for track in session._tracks.values()]
    names = ("ids", "verbs", "words", "sentence")
    return {getattr(state, name).device for state in states for name in names if hasattr(state, name)}


def test_all_tensors_of_a_samwise_move_to_its_device(imitated: Imitation) -> None:
    """This includes tensors that are not parameters."""
    model = micro_model(motion_prompt=True).to(DEVICE)
    assert isinstance(model, Samwise)
    for module in model.modules():
        for name, value in vars(module).items():
            assert not isinstance(value, Tensor) or value.device == DEVICE, f"{type(module).__name__}.{name}"
    assert np.isfinite(model.tracker.sine_top.cpu().numpy()).all()
