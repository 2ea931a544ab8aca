"""Exported models: the same sessions, the same masks, and clear errors for models that cannot be exported."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import refervos
from refervos import Prompt, Segmentation, Session, load
from refervos.cli import entry as cli
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError, StateError
from refervos.export import graphs, onnx_export
from refervos.export.onnx_export import export_onnx
from refervos.export.onnx_model import OnnxSamwise
from refervos.loading import MINIATURE_FOLDER
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig
from refervos.text.tokenizer import Tokenizer
from refervos.worlds import WorldConfig, draw_clip, sample_expressions
from scenes import MICRO_SAM2, micro_model, scene
from video_files import write_video

onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DOCS = Path(refervos.__file__).parents[2] / "docs" / "export.md"

FRAMES = 9
"""More frames than the adapters' window and the memory hold."""


def small_model(**changes: Any) -> Samwise:
    """Make a model with motion, a tokenizer, and as few layers as possible, so that tracing is quick."""
    tokenizer = Tokenizer.from_pretrained(MINIATURE_FOLDER)
    model = micro_model(
        sam2=replace(MICRO_SAM2, hiera_blocks=(1, 1, 2, 1), hiera_global_blocks=(3,), hiera_background=7),
        text=TextConfig(
            vocabulary=len(tokenizer),
            width=32,
            layers=2,
            heads=2,
            feedforward=64,
            positions=66,
            segment_ends=(0, 1, 1, 2),
        ),
        time="online",
        clip_length=4,
        cme_window=2,
        **{"motion_prompt": True, "motion_features": True, **changes},
    )
    model.tokenizer = tokenizer
    return model


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a command; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model, saved, and exported by the command."""
    root = tmp_path_factory.mktemp("export")
    small_model().save_pretrained(root / "model")
    with pytest.MonkeyPatch.context() as patches:
        assert run(patches, "export", root / "model", "--format", "onnx", "--out", root / "onnx", "--quiet") == 0
    return root / "model", root / "onnx"


@pytest.fixture
def exported(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the exported folder, to damage."""
    return Path(shutil.copytree(folders[1], tmp_path / "copy"))


SPINS = Prompt("the red square that spins", verbs=["spins"])
STILL, LATE = Prompt("the blue circle", verbs=[]), Prompt("the large green star", verbs=[])


def segment(model: Any, frames: Sequence[np.ndarray]) -> list[Segmentation]:
    """Segment two sentences from the start, a third from the third frame, and without the first from the seventh."""
    session = model.open([SPINS, STILL])
    results = []
    for time, frame in enumerate(frames):
        if time == 2:
            session.add(LATE)
        if time == 6:
            session.drop(0)
        results.append(session.step(frame))
    return results


def check_same(results: Sequence[Segmentation], expected: Sequence[Segmentation]) -> None:
    """Compare track ids, presence, switches, and masks up to an IoU of 0.999 over all frames."""
    intersection = union = 0
    for result, reference in zip(results, expected, strict=True):
        assert result.track_ids == reference.track_ids
        intersection += int((result.masks & reference.masks).sum())
        union += int((result.masks | reference.masks).sum())
        np.testing.assert_allclose(result.presence, reference.presence, atol=1e-4)
        np.testing.assert_array_equal(result.switched, reference.switched)
    assert union > 100 * len(results)
    assert intersection / union >= 0.999


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[graphs.Graph]]:
    """A folder with three of the nine graphs, which take minutes to export, and these graphs."""
    folder, model = tmp_path_factory.mktemp("few") / "onnx", small_model()
    chosen = [graph for graph in graphs.streaming_step(model) if graph.name in ("pointer", "switch", "remember")]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(onnx_export, "streaming_step", lambda _: chosen)
        onnx_export.export_onnx(model, folder)
    return folder, chosen


def test_graphs_compute_the_same_as_their_functions(few: tuple[Path, list[graphs.Graph]]) -> None:
    for graph in few[1]:
        running = onnxruntime.InferenceSession(few[0] / f"{graph.name}.onnx")
        sizes = {"sentences": 3}
        inputs = {
            name: torch.rand([sizes[size] if isinstance(size, str) else size for size in shape])
            for name, shape in graph.inputs.items()
        }
        (found,) = running.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = graph.function(*inputs.values())
        assert isinstance(expected, torch.Tensor)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert list(graph.outputs) == [output.name for output in running.get_outputs()]


class GraphFunctions:
    """The graphs of a model, computed by their functions without an export, which takes minutes."""

    def __init__(self, model: Samwise) -> None:
        self.graphs = {graph.name: graph for graph in graphs.streaming_step(model)}

    def run(self, name: str, outputs: Sequence[str], **inputs: torch.Tensor) -> list[torch.Tensor]:
        graph = self.graphs[name]
        assert inputs.keys() == graph.inputs.keys()
        for key, shape in graph.inputs.items():
            sizes = zip(shape, inputs[key].shape, strict=True)
            assert all(isinstance(size, str) or size == found for size, found in sizes), key
        found = graph.function(*(inputs[key] for key in graph.inputs))
        values = dict(zip(graph.outputs, (found,) if isinstance(found, torch.Tensor) else found, strict=True))
        return [values[output] for output in outputs]


@pytest.mark.parametrize("motion_features", [False, True])
@pytest.mark.parametrize("motion_prompt", [False, True])
def test_the_loop_over_graphs_gives_the_masks_of_the_model(motion_features: bool, motion_prompt: bool) -> None:
    model = small_model(motion_features=motion_features, motion_prompt=motion_prompt)
    functions: Any = GraphFunctions(model)
    assert ("compared" in functions.graphs["tracks"].inputs) == motion_features
    described = model.describe()
    looped = OnnxSamwise(model.config, model.tokenizer, functions, source="", description=described)
    with torch.no_grad():
        check_same(segment(looped, scene(FRAMES)), segment(model, scene(FRAMES)))


POLICIES: list[dict[str, Any]] = [
    {"cme": False},
    {"cme_decision": "always", "memory_policy": "published", "switch_memory": "reweight"},
    {"cme_decision": "always", "memory_policy": "switch", "presence_threshold": 0.9},
]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=["no CME", "published", "switch"])
def test_masks_presence_and_switches_are_those_of_the_model(folders: tuple[Path, Path], policy: dict[str, Any]) -> None:
    onnx, original = (load(folder, device="cpu", **policy) for folder in reversed(folders))
    assert isinstance(onnx, OnnxSamwise)
    assert isinstance(original, Samwise)
    # In float64, so that the only rounding is that of the graphs: over eight frames untrained weights amplify it.
    results, expected = (segment(model, scene(FRAMES)) for model in (onnx, original.double()))
    check_same(results, expected)
    assert any(result.switched.any() for result in expected) == policy.get("cme", True)


@pytest.mark.slow
def test_a_clip_gives_the_results_of_single_steps(folders: tuple[Path, Path]) -> None:
    model = load(folders[1])
    clip = model.open([SPINS, STILL]).clip(scene(4))
    session = model.open([SPINS, STILL])
    check_same(clip, [session.step(frame) for frame in scene(4)])


@pytest.mark.slow
def test_a_session_of_an_exported_model_resumes_from_a_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(folders[1])
    session = model.open([SPINS, STILL])
    for frame in scene(FRAMES)[:4]:
        session.step(frame)
    session.save(tmp_path / "state")
    restored = load(folders[1]).restore(tmp_path / "state")
    for frame in scene(FRAMES)[4:]:
        result, expected = restored.step(frame), session.step(frame)
        assert np.array_equal(result.masks, expected.masks)
        assert np.array_equal(result.presence, expected.presence)
    with pytest.raises(StateError, match="was saved with another model"):
        Session.restore(tmp_path / "state", load(folders[0], device="cpu"))


@pytest.mark.slow
def test_the_command_line_segments_with_an_exported_folder(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in.mp4", 3, width=128, height=96, fps=25, images=scene(3))
    options = ("the red square", "--verb", "red", "--save", "rle", "--out", tmp_path / "out", "--quiet")
    assert run(monkeypatch, "segment", tmp_path / "in.mp4", *options, "--model", folders[1]) == 0
    lines = (tmp_path / "out" / "masks.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert run(monkeypatch, "info", folders[1]) == 0


@pytest.mark.slow
def test_every_graph_is_documented_with_its_inputs_and_outputs(folders: tuple[Path, Path]) -> None:
    import onnxruntime

    table = DOCS.read_text().split("| graph |")[1].split("\n\n")[0]
    documented = {line.split("|")[1].strip(" `"): line for line in table.splitlines() if line[:2] == "| "}
    for path in sorted(folders[1].glob("*.onnx")):
        graph = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for value in (*graph.get_inputs(), *graph.get_outputs()):
            assert f"`{value.name}`" in documented[path.stem]
            assert not [size for size in value.shape if isinstance(size, str) and size[1:].isdecimal()]


@pytest.mark.slow
def test_an_exported_model_refuses_clicks_and_corrections(folders: tuple[Path, Path]) -> None:
    model = load(folders[1])
    with pytest.raises(PromptError, match="for clicks, boxes and masks load the PyTorch model"):
        model.open([Prompt("the red square", points=[[3, 4]], verbs=[])])
    session = model.open([STILL])
    session.step(scene(1)[0])
    with pytest.raises(PromptError, match="for clicks, boxes and masks load the PyTorch model"):
        session.correct(0, points=[[3, 4]])
    with pytest.raises(PromptError, match="no correction to undo"):
        session.undo(0)


@pytest.mark.slow
def test_an_exported_model_refuses_other_types_devices_and_exported_fields(folders: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="is not an exported model; run 'refervos export"):
        load(folders[0], backend="onnx")
    with pytest.raises(CheckpointError, match="is an exported model; give the folder from which it was exported"):
        load(folders[1], backend="torch")
    unsupported: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"device": "cuda"}, {"compile": True}]
    for options in unsupported:
        with pytest.raises(ConfigError, match="runs only in float32 on the CPU, without compilation"):
            load(folders[1], **options)
    with pytest.raises(ConfigError, match="clip_length is part of the exported graphs"):
        load(folders[1], clip_length=2)
    with pytest.raises(ConfigError, match="unknown field cme_windows"):
        load(folders[1], cme_windows=2)
    model = load(folders[1], backend="onnx", memory_budget=1)
    assert model.memory_budget == 1


NAMES = ["condition", "decode", "early_token", "pointer", "remember", "shared", "switch", "tracks", "without_memory"]


def remove_digests(folder: Path) -> None:
    """Turn a folder into one of an early version, without digests of its graphs."""
    header = json.loads((folder / "config.json").read_text())
    assert sorted(header.pop("graphs")) == NAMES
    (folder / "config.json").write_text(json.dumps(header))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def test_a_damaged_graph_is_refused_by_name_when_loading_and_running(
    few: tuple[Path, list[graphs.Graph]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(few[0], tmp_path / "copy")
    path, whole = folder / "switch.onnx", (folder / "switch.onnx").read_bytes()
    load(folder)
    for damage in (flip_a_bit, truncate):
        path.write_bytes(whole)
        damage(path)
        with pytest.raises(CheckpointError, match=r"/switch\.onnx is not the graph that was exported"):
            load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"/switch\.onnx is missing; run 'refervos export' again"):
        load(folder)
    header = json.loads((folder / "config.json").read_text())
    assert sorted(header.pop("graphs")) == ["pointer", "remember", "switch"]
    (folder / "config.json").write_text(json.dumps(header))  # like folders of early versions
    for content, problem in (
        (b"nothing", "is not a readable graph"),
        (whole[:-10], "is not a readable graph"),
        ((folder / "pointer.onnx").read_bytes(), "cannot be run in this model"),
    ):
        path.write_bytes(content)
        model = load(folder, backend="onnx")
        token = torch.zeros(1, model.config.sam2.hidden)
        with pytest.raises(CheckpointError, match=rf"/switch\.onnx {problem} \(.*; run 'refervos export' again"):
            model.switch_logits(token, token)
    path.write_bytes(whole)
    model = load(folder, backend="onnx")
    assert model.switch_logits(token, token).shape == (1, 2)
    with pytest.raises(CheckpointError, match=r"/switch\.onnx cannot be run in this model \("):
        model.switch_logits(token[:, :3], token)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
@pytest.mark.parametrize("name", NAMES)
def test_every_changed_graph_is_refused_when_the_folder_is_loaded(name: str, damage: Any, exported: Path) -> None:
    """A graph with a changed weight would still run, and give other masks."""
    damage(exported / f"{name}.onnx")
    with pytest.raises(CheckpointError, match=rf"/{name}\.onnx is not the graph that was exported"):
        load(exported)
    (exported / f"{name}.onnx").unlink()
    with pytest.raises(CheckpointError, match=rf"/{name}\.onnx is missing; run 'refervos export' again"):
        load(exported)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_unreadable_or_swapped_graph_without_a_digest_is_refused_by_name(
    name: str, exported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For a swapped graph the runtime raises a plain ValueError."""
    remove_digests(exported)
    path, whole = exported / f"{name}.onnx", (exported / f"{name}.onnx").read_bytes()
    frames = scene(FRAMES)
    policy: dict[str, Any] = {"cme_decision": "always", "memory_policy": "switch"}
    truncate(path)
    with pytest.raises(CheckpointError, match=rf"/{name}\.onnx is not a readable graph \(.*; run 'refervos export'"):
        segment(load(exported, **policy), frames)
    for offset in (1, 4):
        other = NAMES[(NAMES.index(name) + offset) % len(NAMES)]
        path.write_bytes((exported / f"{other}.onnx").read_bytes())
        with pytest.raises(CheckpointError, match=rf"/{name}\.onnx cannot be run in this model \(") as caught:
            segment(load(exported, **policy), frames)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    segment(load(exported, **policy), frames)
    assert capfd.readouterr() == ("", "")


def test_running_out_of_memory_in_a_graph_is_a_memory_error(
    few: tuple[Path, list[graphs.Graph]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fail(Exception):
        """Like the runtime's own error, which is no RuntimeError."""

    def run(*_: Any) -> Any:
        raise Fail("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")

    model = load(few[0])
    assert isinstance(model, OnnxSamwise)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: SimpleNamespace(run=run))
    token = torch.zeros(1, model.config.sam2.hidden)
    with pytest.raises(MemoryError):
        model.switch_logits(token, token)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"source": None}, {"graphs": ["decode"]}, {"description": 1}])
def test_an_incomplete_header_is_refused(changes: dict[str, Any], exported: Path) -> None:
    header = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**header, **changes}))
    with pytest.raises(CheckpointError, match=r"config.json is incomplete; run 'refervos export' again"):
        load(exported)


@pytest.mark.slow
def test_missing_packages_are_named(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"need ONNX Runtime: pip install 'refervos\[onnx\]'"):
        load(folders[1])
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MissingDependencyError, match=r"export needs onnxscript: pip install 'refervos\[onnx\]'"):
        export_onnx(small_model(), tmp_path / "out")


def test_models_that_cannot_be_exported_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"attends over clips.*load it with time='online' \(--time online\)"):
        export_onnx(micro_model(), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"in training mode; call model.eval\(\)"):
        export_onnx(small_model().train(), tmp_path / "out")
    with pytest.raises(ConfigError, match="is not in float32 on the CPU"):
        export_onnx(small_model().double(), tmp_path / "out")
    with pytest.raises(ConfigError, match="is no SAMWISE model"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "out")  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="is not empty; give a new folder, or allow overwriting"):
        export_onnx(small_model(), tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.slow
def test_the_exported_miniature_segments_drawn_clips_like_the_original(tmp_path: Path) -> None:
    """Three clips have three sentences each, and every frame is compared."""
    model = load("miniature", device="cpu", time="online")
    assert isinstance(model, Samwise)
    export_onnx(model, tmp_path / "onnx")
    onnx = load(tmp_path / "onnx", backend="onnx")
    for seed in range(3):
        clip = draw_clip(seed, WorldConfig(frames=24))
        sentences = [expression.text for expression in sample_expressions(clip, np.random.default_rng(seed), 3)]
        results, expected = (list(each.open(sentences).stream(clip.frames)) for each in (onnx, model))
        check_same(results, expected)
