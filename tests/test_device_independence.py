"""Device-independent guarantees, tested on the CPU: resizing, memory, caching, rounding, loading and compilation."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import refervos.model_base
from refervos import load
from refervos import placement as frames
from refervos.errors import ConfigError
from refervos.ops import compilation
from refervos.ops.derived import Derived
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.sam.config import SamConfig
from refervos.sam.layers import FourierPositions
from refervos.sam.model import Sam
from refervos.sam2 import hiera
from refervos.sam2.config import as_version_2_1
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise import cmt
from refervos.samwise.cme import IGNORED_LABEL, cme_loss
from refervos.segmenter import CPU_BUDGET, SHARE_OF_FREE, batch_budget
from refervos.session.state_files import load_state, save_state
from scenes import CAPTION, MICRO_SAM2, SHORT_CAPTION, micro_model, scene, session_of

pytestmark = pytest.mark.usefixtures("one_thread")

PLACE = Placement(frame_size=(60, 80), resized=(48, 64), image_size=64)


# Frames in, masks out.


def test_bytes_are_resized_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices have a kernel with antialiasing for floating-point types only."""
    resized: list[tuple[str, torch.dtype]] = []
    interpolate = F.interpolate

    def recorded(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        resized.append((image.device.type, image.dtype))
        return interpolate(image, *args, **kwargs)

    monkeypatch.setattr(frames.F, "interpolate", recorded)
    frame = torch.zeros(3, 60, 80, dtype=torch.uint8)
    assert PLACE.place(frame, torch.device("meta")).device.type == "meta"  # resized before the upload
    assert PLACE.place(frame.to("meta")).shape == (3, 64, 64)  # resized on its device
    assert resized == [("cpu", torch.uint8), ("meta", torch.float32)]


def test_a_frame_resized_in_floats_is_within_a_grey_level(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = torch.from_numpy(scene(1, 60, 80)[0]).permute(2, 0, 1)
    own = frames._resize(frame, (48, 64)).int()
    real = F.interpolate(frame[None].float(), size=(48, 64), mode="bilinear", antialias=True)[0].round().int()
    assert (own - real).abs().max() <= 1


def test_all_results_of_a_frame_are_downloaded_in_one_transfer() -> None:
    results = [
        torch.rand(3, 5, 7) > 0.5,
        torch.rand(3),
        torch.rand(3) > 0.5,
        torch.rand(3, 5, 7),
        torch.rand(2).double(),
    ]
    packed = frames._packed(results)
    assert packed.dtype == torch.uint8
    for before, after in zip(results, frames._unpacked(packed, results), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    assert all(
        np.array_equal(array, tensor.numpy()) for array, tensor in zip(frames.download(results), results, strict=True)
    )


def test_masks_of_many_tracks_are_restored_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 16, 16)
    whole = PLACE.restore(logits) > 0
    sizes: list[int] = []
    restore = Placement.restore

    def counted(place: Placement, some: Tensor, *others: Any) -> Tensor:
        sizes.append(len(some))
        return restore(place, some, *others)

    monkeypatch.setattr(Placement, "restore", counted)
    assert torch.equal(PLACE.masks(logits), whole)
    assert sizes == [7]
    monkeypatch.setattr(frames, "RESTORED_AT_ONCE", 4 * 2 * (64 * 64 + 60 * 80))
    sizes.clear()
    assert torch.equal(PLACE.masks(logits), whole)
    assert sizes == [2, 2, 2, 1]


# Memory.


def test_the_memory_budget_is_a_share_of_the_devices_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device, queried = torch.device("cuda:1"), Counter[torch.device]()

    def returning(value: Any) -> Any:
        def query(of: torch.device) -> Any:
            queried[of] += 1
            return value

        return query

    monkeypatch.setattr(torch.cuda, "mem_get_info", returning((60 * 2**30, 80 * 2**30)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", returning(12 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", returning(2 * 2**30))
    assert batch_budget(device) == SHARE_OF_FREE * 70 * 2**30
    assert set(queried) == {device}
    assert batch_budget(device, 5) == 5
    assert batch_budget(torch.device("cpu")) == CPU_BUDGET


# Cached values.


def test_derived_values_are_recomputed_when_their_weights_change() -> None:
    layer, derived, computed = nn.Linear(2, 2), Derived(), Counter[str]()

    def doubled() -> Tensor:
        computed["doubled"] += 1
        return 2 * layer.weight

    def get() -> Tensor:
        return derived.get("doubled", [layer.weight], doubled)

    with torch.inference_mode():
        first = get()
        assert get() is first
    with torch.no_grad():
        assert get() is first
        assert not first.is_inference()
        layer.weight.add_(1)
        assert torch.equal(get(), 2 * layer.weight)
        assert computed["doubled"] == 2
        layer.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, assign=True)
        gc.collect()
        assert torch.equal(get(), torch.full((2, 2), 2.0))
        layer.to(torch.float64)
        assert get().dtype == torch.float64
    assert get().requires_grad  # with gradients nothing is cached
    get()
    assert computed["doubled"] == 6


def test_tables_and_folded_weights_are_cached_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter[str]()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            made[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    model = micro_model(time="online")
    count(hiera.Hiera, "positions")
    count(hiera.Windows, "order")
    count(cmt, "time_embedding")
    count(FourierPositions, "grid")
    folds = torch.sqrt

    def folding(x: Tensor) -> Tensor:
        made["fold"] += 1
        return folds(x)

    monkeypatch.setattr(cmt.torch, "sqrt", folding)
    session = session_of(model, [CAPTION])
    frames_of_video = scene(24)
    for frame in frames_of_video[:12]:
        session.step(frame)
    assert {"positions", "order", "time_embedding", "grid", "fold"} <= set(made)
    before = Counter(made)
    found = (getattr(part, "derived", None) for part in model.modules())
    kept = [derived for derived in found if isinstance(derived, Derived)]
    entries = {id(derived): dict(derived.entries) for derived in kept}
    assert sum(map(len, entries.values())) > 30
    for frame in frames_of_video[12:]:
        session.step(frame)
    assert made == before
    for derived in kept:  # none was recomputed or added
        assert derived.entries.keys() == entries[id(derived)].keys()
        assert all(derived.entries[name] is entry for name, entry in entries[id(derived)].items())


# Rounding.


def exactness(mask_logits: Tensor) -> float:
    """Compute the share of logits that are not representable in bfloat16."""
    return float((mask_logits != mask_logits.bfloat16().float()).float().mean())


def test_positions_and_mask_logits_are_exact_under_autocast() -> None:
    tracker = micro_model().tracker
    backbone = tracker.sam.vision_encoder.backbone
    points, labels = torch.tensor([[[3.0, 100.0], [77.0, 20.0]]]), torch.tensor([[1, 0]])

    def numbers() -> list[Tensor]:
        tracker.derived = Derived()
        return [
            backbone.positions(32, 32),
            tracker._image_positions(),
            tracker.embed_points(points, labels),
        ]

    exact = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = numbers()
        features = tracker.pyramid(tracker.encode(torch.randn(1, 3, 128, 128)))
        decoded = tracker.decode(tracker.without_memory(features.top), features, mixed[2])
    for one, other in zip(exact, mixed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert exactness(decoded.mask_logits) > 0.9


def test_sams_positions_and_mask_logits_are_exact_under_autocast() -> None:
    torch.manual_seed(0)
    config = SamConfig(
        image_size=64, vit_width=32, vit_layers=2, vit_heads=2, vit_global_blocks=(1,), vit_window=2, hidden=32
    )
    sam = Sam(replace(config, decoder_heads=2, decoder_feedforward=32)).eval()
    points, labels = torch.tensor([[[3.0, 60.0], [33.0, 20.0]]]), torch.tensor([[1, 0]])

    def numbers() -> list[Tensor]:
        sam.derived = Derived()
        return [sam.sam.shared_image_embedding.grid(8), sam.embed_points(points, labels)]

    exact = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = numbers()
        decoded = sam.decode(sam.encode(torch.randn(1, 3, 64, 64)).top, mixed[1])
    for one, other in zip(exact, mixed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert exactness(decoded.mask_logits) > 0.9


def test_the_cme_loss_needs_no_synchronisation() -> None:
    logits, labels = torch.randn(5, 2), torch.tensor([1, 0, IGNORED_LABEL, 1, 0])
    kept = labels != IGNORED_LABEL
    expected = F.cross_entropy(logits[kept], labels[kept], torch.tensor([1.0, 2.0]))
    assert float(cme_loss(logits, labels, lambda total, weight: weight)) == 6.0
    torch.testing.assert_close(cme_loss(logits, labels), expected)
    assert cme_loss(logits.to("meta"), labels.to("meta")).device.type == "meta"  # no size depends on values


# State.


def test_token_ids_of_a_restored_track_stay_in_main_memory(tmp_path: Path) -> None:
    """So a track restored on a GPU can be batched with one added later."""
    model = micro_model(time="online")
    session = session_of(model, [CAPTION])
    session.clip(scene(3))
    track = session._tracks[0].state
    save_state(tmp_path / "track", track, kind="track", about={})
    restored, _ = load_state(tmp_path / "track", model.state_types, kind="track", device="meta")
    assert restored.memory.maps[0].features.device.type == "meta"
    assert restored.windows.frames[0][0].device.type == "meta"
    assert restored.last.pixels.device.type == "meta"
    ids, verbs = model.text_batch([restored, model.begin_tokens(SHORT_CAPTION)])
    assert ids.tolist() == [CAPTION, [*SHORT_CAPTION, *[model.pad] * (len(CAPTION) - len(SHORT_CAPTION))]]
    assert verbs.shape == ids.shape


# Loading.


class Drawn(TorchDispatchMode):
    """Mode that counts random numbers drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_, torch.ops.aten.randn):
            self.numbers += made.numel()
        return made


def test_loading_draws_no_random_weights(tmp_path: Path) -> None:
    model = micro_model()
    model.save_pretrained(tmp_path / "samwise")
    sam2 = Sam2Segmenter(Sam2Tracker(MICRO_SAM2))
    sam2.save_pretrained(tmp_path / "sam2")
    for folder, saved in ((tmp_path / "samwise", model), (tmp_path / "sam2", sam2)):
        with Drawn() as drawn:
            loaded = load(folder, device="cpu")
        assert drawn.numbers < 1000  # of half a million
        theirs = loaded.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in saved.state_dict().items())
        expected = {name: parameter.requires_grad for name, parameter in saved.named_parameters()}
        assert expected == {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path: Path) -> None:
    micro_model().save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_the_fingerprint_is_recomputed_only_when_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    fingerprint = refervos.model_base.fingerprint

    def counted(*args: Any) -> str:
        read.append(fingerprint(*args))
        return read[-1]

    monkeypatch.setattr(refervos.model_base, "fingerprint", counted)
    model = micro_model()
    session = session_of(model, [CAPTION])
    for _ in range(3):
        session.save(tmp_path / "session")
    assert len(read) == 1
    with torch.no_grad():
        model.get_parameter("text_prompt.layers.0.bias").add_(1)
    assert model.fingerprint() == fingerprint(model, model.config)
    assert len(set(read)) == len(read) == 2


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "banana"])
def test_an_unavailable_device_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"device is '{device}'(, which is not available|; it must be cpu)"):
        load(device=device)


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_best_device_is_the_default(cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from refervos import loading

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert loading.find_device(None) == torch.device(chosen)


# Compiled stages.


def test_a_click_does_not_cause_recompilation_at_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The age of the clicked frame's pointer grows with every frame and must not be part of a graph."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Sam2Segmenter(Sam2Tracker(as_version_2_1(MICRO_SAM2)))
    memory = [stage for stage in model.stages_to_compile() if stage.recurs is not None]
    monkeypatch.setattr(model, "stages_to_compile", lambda: memory)
    compilation.compile_stages(model, "eager")
    session = model.open([Prompt(points=[(30, 40)])])
    frames_of_video = scene(20 + MICRO_SAM2.pointer_limit)
    graphs: list[int] = []
    for frame in frames_of_video:
        session.step(frame)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    full = MICRO_SAM2.pointer_limit + 1
    assert graphs[full] > 0  # the full memory was compiled
    assert graphs[full:] == [graphs[full]] * len(graphs[full:])


@pytest.mark.parametrize(("time", "cme"), [pytest.param("clip", True, marks=pytest.mark.slow), ("online", False)])
def test_every_stage_compiles_to_one_graph(time: str, cme: bool) -> None:
    """It has no graph breaks and recompiles only for each number of tracks and memories, as CUDA graphs need it."""
    torch._dynamo.reset()
    short = replace(MICRO_SAM2, memory_slots=3, pointer_limit=3)
    model, plain = (micro_model(sam2=short, time=time, cme=cme, clip_length=2) for _ in range(2))
    for stage in model.stages_to_compile():
        method = getattr(stage.owner, stage.method)
        compiled = torch.compile(method, fullgraph=True, dynamic=False, backend="eager")
        setattr(stage.owner, stage.method, compiled)
    sentences = [CAPTION, SHORT_CAPTION]
    session, expected = session_of(model, sentences), session_of(plain, sentences)
    graphs: list[int] = []
    with torch._dynamo.config.patch(cache_size_limit=64):
        for frame in scene(10):
            assert np.array_equal(session.step(frame).masks, expected.step(frame).masks)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    torch._dynamo.reset()
    assert not breaks
    assert graphs[-1] == graphs[-4] > 0  # no new graphs once the memory is full


def test_without_a_device_a_frame_stays_on_its_own() -> None:
    assert stretch((60, 80), 64).place(torch.zeros(3, 60, 80, dtype=torch.uint8)).device.type == "cpu"
