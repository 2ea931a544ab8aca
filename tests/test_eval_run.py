"""Evaluating a model: grouping of expressions, reading of frames, and resuming after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import layouts
from predicted import KnownSegmenter, lines, means, perfect, write_masks
from refervos.checkpoints.weights import weights_digest
from refervos.cli.entry import app
from refervos.data.sample import Frames, Sample
from refervos.diagnosis.diagnose import diagnose
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation import evaluate as evaluation
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.evaluate import Evaluator, Request, ResultFolder, Settings, evaluate, group_expressions
from refervos.evaluation.inference import predict_video
from refervos.evaluation.scoring import score
from refervos.evaluation.summary import summarise
from refervos.loading import load
from refervos.processes import run_in_processes
from refervos.prompts import Prompt
from refervos.samwise.model import Samwise
from scenes import FIRST_GENERATION
from shared_work import begin_doubling, begin_dying, begin_failing, begin_meeting

SIDE = 48
SQUARE = (SIDE, SIDE)


class CountingFrames:
    """Frames that count how often they are read."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.names, self.reads = frames, frames.names, 0

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.frames.read(index)


def oracle(part: OpenPart) -> KnownSegmenter:
    """Return a segmenter that predicts the ground truth of a data set."""
    logits = {
        sample.expression: np.stack([12.0 * perfect(sample, index) - 6 for index in range(len(sample.video))])
        for sample in part.samples()
    }
    return KnownSegmenter(logits)


def run_all(model: KnownSegmenter, part: OpenPart, root: Path, group_size: int = 8) -> ResultFolder:
    """Segment and score a whole data set in this process."""
    evaluator = Evaluator(model, part, ResultFolder(root), 4)
    for _, samples in part.videos:
        for group in group_expressions(samples, group_size, matching=part.scoring == "ref-davis17"):
            list(evaluator.run(group))
    return evaluator.folder


def test_an_evaluation_writes_masks_and_results(tmp_path: Path) -> None:
    part = Part("mevis", layouts.write_mevis(tmp_path / "data", size=SQUARE)).open()
    folder = run_all(oracle(part), part, tmp_path / "out")
    results = folder.results(part)
    assert [result.scores and (result.scores.j, result.scores.f) for result in results] == [(1.0, 1.0)] * 8
    assert all(result.switches == result.frames == 6 for result in results)
    assert all(result.seconds > 0 for result in results)
    for sample in part.samples():
        for index, name in enumerate(sample.video.frames.names):
            with Image.open(folder.predictions.of(sample) / f"{name}.png") as image:
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), perfect(sample, index) * np.uint8(255))
    assert not list((tmp_path / "out").rglob(".*"))


def test_frames_are_read_once_for_each_group(tmp_path: Path) -> None:
    opened = Part("mevis", layouts.write_mevis(tmp_path / "data", size=SQUARE)).open()
    frames = CountingFrames(opened.videos[0][0].frames)
    video = replace(opened.videos[0][0], frames=frames)
    part = replace(opened, videos=((video, [replace(sample, video=video) for sample in opened.videos[0][1]]),))
    model = oracle(part)
    run_all(model, part, tmp_path / "one")
    assert (frames.reads, model.tracks_per_clip) == (6, [4, 4])
    frames.reads, model.tracks_per_clip = 0, []
    run_all(model, part, tmp_path / "two", group_size=3)
    assert (frames.reads, model.tracks_per_clip) == (12, [3, 3, 1, 1])


def test_ref_davis_groups_by_annotator_and_merges_probabilities(tmp_path: Path) -> None:
    part = Part("ref-davis17", layouts.write_ref_davis17(tmp_path / "data", size=SQUARE)).open()
    model = oracle(part)
    # The first prediction for annotator 0 claims all pixels, but with less probability than the second in its object.
    first, second = (sample for sample in part.videos[0][1] if sample.annotator == "0")
    model.logits[first.expression] = np.where(model.logits[first.expression] > 0, 6, 0.5)
    folder = run_all(model, part, tmp_path / "out", group_size=1)
    assert folder.is_complete([first, second], matching=True)
    assert model.tracks_per_clip == [2] * 16  # two objects; two clips of each of two videos and four annotators
    merged = folder.merged(first.video.id, "0")
    with Image.open(merged / "00000.png") as image:
        assert image.mode == "P"
        numbers = np.asarray(image)
    target = perfect(second, 0)
    assert target.any()
    assert np.array_equal(numbers, np.where(target, 2, 1))
    from_eval = summarise("t", part.scoring, folder.results(part), folder.matched_results(part)).lines
    again = score(tmp_path / "out", Part("ref-davis17", tmp_path / "data")).summary.lines
    assert from_eval == again
    masks_only = score(folder.predictions.folder, Part("ref-davis17", tmp_path / "data")).summary.lines
    better, worse = (found["J&F, published (matched)"] for found in (from_eval, masks_only))
    assert better is not None
    assert worse is not None
    assert better.mean > worse.mean  # masks do not contain the probabilities
    folder.matched(first.video.id, "0").unlink()
    assert not folder.is_complete([first, second], matching=True)


def test_a_group_is_complete_with_all_results_and_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    part = Part("mevis", layouts.write_mevis(tmp_path / "data", size=SQUARE)).open()
    folder = run_all(oracle(part), part, tmp_path / "out")
    group = part.videos[0][1]
    assert folder.is_complete(group, matching=False)
    folder.result(group[1]).unlink()
    assert not folder.is_complete(group, matching=False)
    left_behind = folder.predictions.of(group[0]).with_name(".0.part")
    left_behind.mkdir()
    (left_behind / "00000.png").write_bytes(b"half")
    run_all(oracle(part), part, tmp_path / "out")
    assert folder.is_complete(group, matching=False)
    assert not left_behind.exists()


def test_an_expression_that_the_model_does_not_support_is_named(tmp_path: Path) -> None:
    part = Part("mevis", layouts.write_mevis(tmp_path / "data", size=SQUARE)).open()
    video, samples = part.videos[0]
    blank = replace(samples[0], sentence=" ")
    with pytest.raises(EvaluationError, match=f"expressions 0 about video {video.id}"):
        list(Evaluator(oracle(part), part, ResultFolder(tmp_path), 4).run([blank]))


def test_the_published_protocol_segments_one_expression_at_a_time() -> None:
    model: Any = load(FIRST_GENERATION, device="cpu", protocol="published")
    frames = [np.random.default_rng(n).integers(0, 255, (128, 128, 3), np.uint8) for n in range(3)]
    prompts = [Prompt("red one"), Prompt("the striped square that is left of the blue ring")]
    joint = [chunk.masks for chunk in predict_video(model, frames, prompts, 8, keep_logits=True)]
    separate = [list(predict_video(model, frames, [prompt], 8, keep_logits=True)) for prompt in prompts]
    assert len(joint) == 1
    for position, (alone,) in enumerate(separate):
        assert np.array_equal(joint[0][:, position], alone.masks[:, 0])
        assert alone.logits is not None
        assert alone.logits.shape == (3, 1, 128, 128)


# Settings that results depend on.


def claim(tmp_path: Path, **binding: Any) -> None:
    Settings("m", Part("worlds"), {"clip length": 8, "split": "all", **binding}).claim(ResultFolder(tmp_path))


def test_other_settings_are_refused_in_one_sentence(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path)
    with pytest.raises(EvaluationError, match=r"holds results with clip length 8, not 1; give another folder"):
        claim(tmp_path, **{"clip length": 1})
    with pytest.raises(EvaluationError, match=r"holds results with cme null, not true"):
        claim(tmp_path, cme=True)
    ResultFolder(tmp_path).settings.write_text("[]")
    with pytest.raises(EvaluationError, match=r"settings\.json"):
        claim(tmp_path)


def test_changed_weights_have_another_digest() -> None:
    model = torch.nn.Linear(3, 2)
    before = weights_digest(model)
    assert before == weights_digest(model)
    with torch.no_grad():
        model.bias[1] += 1
    assert before != weights_digest(model)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def worlds_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted evaluation of the miniature on three clips."""
    out = tmp_path_factory.mktemp("eval") / "whole"
    found = run("eval", "miniature", "worlds", "--split", "multi-target", "--count", 3, "--out", out, *ON_CPU)
    assert found.exit_code == 0, found.output
    assert "on worlds multi-target, online" in found.output
    assert "masks per second" in found.output
    return out


ON_CPU = ("--device", "cpu", "--quiet")


def test_eval_gives_the_numbers_of_diagnose(worlds_eval: Path) -> None:
    model = load("miniature", device="cpu")
    assert isinstance(model, Samwise)
    summary = diagnose(model, ["multi-target"], 3).summary("multi-target")
    values = json.loads((worlds_eval / "summary.json").read_text())["groups"][0]["values"]
    assert values["J&F"][0] == pytest.approx(summary.j_and_f, abs=0.05)
    assert values["J"][0] == pytest.approx(summary.j, abs=0.05)
    assert values["F"][0] == pytest.approx(summary.f, abs=0.05)


def test_complete_results_are_not_computed_again(worlds_eval: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmented: list[str] = []

    def run_group(self: Evaluator, group: Sequence[Sample]) -> Iterator[int]:
        segmented.extend(sample.video.id for sample in group)
        yield 1

    monkeypatch.setattr(Evaluator, "run", run_group)
    request = Request("miniature", Part("worlds", None, "multi-target", 3), worlds_eval, device="cpu")
    again = evaluate(request, show_progress=False).summary
    assert not segmented
    assert again.markdown() + "\n" == (worlds_eval / "summary.md").read_text()
    with pytest.raises(EvaluationError, match="cme true, not false"):
        evaluate(replace(request, overrides={"cme": False}), show_progress=False)
    with pytest.raises(EvaluationError, match='split "multi-target", not "motion"'):
        evaluate(replace(request, part=Part("worlds", None, "motion", 1)), show_progress=False)


def without_times(folder: Path) -> dict[str, bytes]:
    """Read the files of an evaluation, without the seconds in them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):  # a killed run may leave a hidden file
            content = path.read_bytes()
            if path.suffix == ".json" and "results" in path.parts:
                content = json.dumps({**json.loads(content), "seconds": 0}).encode()
            if path.name == "expressions.csv":
                continue  # derived from the results, with their times
            files[str(path.relative_to(folder))] = content
    return files


def test_a_killed_and_resumed_evaluation_ends_with_the_same_files(worlds_eval: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = ("eval", "miniature", "worlds", "--split", "multi-target", "--count", 3, "--out", out, *ON_CPU)
    # Two processes before the kill and one after: the files may not depend on it.
    arguments = [sys.executable, "-m", "refervos", *map(str, command), "--processes", "2"]
    first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ})
    deadline = time.monotonic() + 300
    while not list(out.rglob("results/*/*.json")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("results/*/*.json")}
    assert finished
    assert not (out / "report.html").exists()
    time.sleep(1)  # for the other processes to end
    remaining = len(list(out.rglob("results/*/*.json")))
    assert run(*command).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert remaining < 3 or len(finished) == 3
    assert without_times(out) == without_times(worlds_eval)


def test_ctrl_c_ends_with_130_and_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_group(self: Evaluator, group: Sequence[Sample]) -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "run", run_group)
    found = run("eval", "miniature", "worlds", "--split", "spatial", "--count", 1, "--out", tmp_path, *ON_CPU)
    assert found.exit_code == 130
    assert "the same command continues from here" in found.output


def test_work_is_shared_among_processes() -> None:
    assert list(run_in_processes([begin_doubling], [3, 4], 1)) == [6, 7, 8, 9]
    assert sorted(run_in_processes([begin_doubling], [3, 4, 5], 2)) == [6, 7, 8, 9, 10, 11]
    assert list(run_in_processes([begin_failing], [], 4)) == []


def test_processes_use_the_prepared_functions_in_turn(tmp_path: Path) -> None:
    begins = [partial(begin_meeting, tmp_path, name, 3) for name in ("first GPU", "second GPU")]
    found = set(run_in_processes(begins, range(30), 3))
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["first GPU", "first GPU", "second GPU"]
    assert found <= {"first GPU", "second GPU"}


@pytest.mark.parametrize(
    ("device", "gpus", "processes", "expected"),
    [
        (None, 3, 5, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 3, 2, ["cuda:0", "cuda:1"]),
        (None, 1, 2, [None]),
        ("cuda", 0, 2, ["cuda"]),  # refused by torch when the model is loaded
        (None, 0, 2, [None]),
        ("cuda:1", 3, 2, ["cuda:1"]),
        ("cpu", 3, 2, ["cpu"]),
        (None, 3, 1, [None]),
    ],
)
def test_processes_are_distributed_over_gpus(
    device: str | None,
    gpus: int,
    processes: int,
    expected: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: list[tuple[list[str | None], int]] = []

    def share(begins: Sequence[Any], pieces: Sequence[Any], count: int) -> Iterator[int]:
        shared.append(([getattr(begin, "func", begin).__self__.device for begin in begins], count))
        return iter(())

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(evaluation, "run_in_processes", share)
    request = Request("miniature", Part("worlds", None, "motion", 2), tmp_path, device=device)
    with pytest.raises(EvaluationError, match=r"settings\.json cannot be read"):  # nobody wrote results
        evaluate(request, processes=processes, show_progress=False)
    assert shared == [(expected, processes)]
    assert not torch.cuda.is_initialized()


def test_a_second_evaluation_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from refervos.files.locks import FolderLock;"
        "lock = FolderLock(Path(sys.argv[1]), 'x', ValueError); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(EvaluationError, match="another process is evaluating in"):
            evaluate(Request("miniature", Part("worlds", None, "motion", 1), tmp_path), show_progress=False)
    finally:
        other.communicate("")


@pytest.mark.parametrize(("begin", "message"), [(begin_failing, "this is wrong"), (begin_dying, "fewer --processes")])
def test_an_error_in_a_process_reaches_the_caller(begin: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        list(run_in_processes([begin], [1, 2], 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval", "miniature", "mevis", "--out", "x"],
            "MeViS needs the folder of the data set",
        ),
        (["eval", "miniature", "nothing", "--out", "x"], "'nothing' is unknown"),
        (["eval", "miniature", "worlds", "--out", "x", "--online", "--clip", "4"], "give only one of them"),
        (
            ["eval", "miniature", "worlds", "--out", "x", "--protocol", "published", "--set", "protocol=default"],
            "--set",
        ),
        (["eval", "miniature", "worlds", "--out", "x", "--split", "easy"], "no split 'easy'"),
        (["score", "nowhere", "worlds"], "nowhere"),
    ],
)
def test_invalid_command_lines_raise_an_error_that_says_why(arguments: list[str], message: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 1  # an exception, which main prints as a sentence
    assert message in str(found.exception)


def test_score_writes_the_tables_of_eval(worlds_eval: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    found = run("score", worlds_eval, "worlds", "--split", "multi-target", "--count", 3, "--out", out, "--quiet")
    assert found.exit_code == 0, found.output
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (out, worlds_eval))
    assert one["groups"] == other["groups"]
    assert one["measures"] == other["measures"]


def test_scoring_in_several_processes_gives_the_same_results(tmp_path: Path) -> None:
    layouts.write_mevis(tmp_path / "data")
    part = Part("mevis", tmp_path / "data")
    write_masks(tmp_path / "masks", part.open().samples(), lambda sample, index: np.roll(perfect(sample, index), 1))
    one, two = (score(tmp_path / "masks", part, processes=count) for count in (1, 2))
    assert means(one) == means(two)
    assert lines(one) == lines(two)
    assert one.summary.results == two.summary.results


def test_an_invalid_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode is 0"):
        Request("miniature", Part("worlds", None, "spatial", 1), Path("unused"), mode=0).begin()
