"""Interrupted runs, two runs in one folder and outputs that cannot be written: results stay complete and separate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from refervos.cli import entry as cli
from refervos.cli.entry import app
from refervos.cli.segment import refuse_files, verbs_of
from refervos.cli.stopping import StopSignals
from refervos.errors import PromptError, VideoError
from refervos.files.locks import FolderClaim
from video_files import write_video

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and file locks of POSIX")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty frames in which a red disc moves to the right."""
    folder = tmp_path_factory.mktemp("film") / "walk"
    folder.mkdir()
    y, x = np.mgrid[:96, :128]
    for number in range(40):
        frame = np.full((96, 128, 3), 110, np.uint8)
        frame[np.hypot(x - 24 - 2 * number, y - 50) < 16] = (218, 44, 44)
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "refervos", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.glob("*.png"))}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


SIGNALS = [
    signal.SIGTERM,
    *(pytest.param(s, marks=pytest.mark.slow) for s in (getattr(signal, "SIGHUP", signal.SIGINT), signal.SIGINT)),
]


@POSIX
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_run_keeps_its_results_and_can_be_resumed(
    film: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    saved = ("-s", "rle", "-s", "masks")
    session = tmp_path / "a" / "session.state"
    arguments = ("segment", film, "the red circle", "--out", out, *saved, "-q")
    process = subprocess.Popen(command(*arguments, "--session", session), stderr=subprocess.PIPE, text=True)
    wait_for(out / "masks" / "005.png", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors == ""
    rows = [json.loads(line) for line in (out / "masks.jsonl").read_text().splitlines()]
    assert 5 <= len(rows) < 40
    assert session.exists()
    assert not list(out.glob(".*part*"))
    # The same command says what to do; with --resume it ends with the results of an uninterrupted run.
    again = run(*arguments)
    assert again.returncode == 2
    assert "holds an interrupted run; continue it with --resume or start over with --overwrite" in again.stderr
    resumed = run(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not list(out.glob("*.session"))
    uninterrupted = run("segment", film, "the red circle", "--out", whole, *saved, "-q")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert (out / "masks.jsonl").read_text() == (whole / "masks.jsonl").read_text()
    assert pixels(out / "masks") == pixels(whole / "masks")
    nothing = run(*arguments, "--resume")
    assert nothing.returncode == 2
    assert "holds no interrupted run; omit --resume to start one" in nothing.stderr


@pytest.mark.parametrize("form", ["file", "folder"])
def test_resuming_a_run_interrupted_after_its_last_frame_finishes_it(form: str, film: Path, tmp_path: Path) -> None:
    source, out, session = film, tmp_path / "out", tmp_path / "session.state"
    if form == "file":
        source = tmp_path / "film.mp4"
        write_video(source, 3)
    arguments = ("segment", source, "the red circle", "--out", out, "-s", "rle", "-s", "masks", "-q")
    first = CliRunner().invoke(app, [*map(str, arguments), "--session", str(session)])
    assert first.exit_code == 0, first.output
    frames = len(pixels(out / "masks"))
    unfinished = session.rename(out / f"{frames:06d}.unfinished.session")
    before = (out / "masks.jsonl").read_text()
    resumed = CliRunner().invoke(app, [*map(str, arguments[:-1]), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert f"nothing left to do: all {frames} frames were segmented" in resumed.stderr
    assert not unfinished.exists()
    assert (out / "masks.jsonl").read_text() == before
    assert len(pixels(out / "masks")) == frames


def test_a_run_from_a_later_frame_keeps_the_frame_numbers_of_the_video(film: Path, tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\ufeffthe red circle\n\nthe blue square\n", encoding="utf-8")
    arguments = ["segment", film, "--sentences", sentences, "--out", tmp_path / "o", "-s", "rle", "-q"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--start", "7", "--frames", "2"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "o" / "masks.jsonl").read_text().splitlines()]
    assert [(row["frame"], row["expression"]) for row in rows] == [
        (frame, text) for frame in (7, 8) for text in ("the red circle", "the blue square")
    ]


@POSIX
def test_a_second_run_into_the_same_folder_is_refused_before_it_starts(film: Path, tmp_path: Path) -> None:
    claim = FolderClaim(tmp_path, "writing results", VideoError)
    with pytest.raises(VideoError, match="another process is writing results in"):
        FolderClaim(tmp_path, "writing results", VideoError)
    held = run("segment", film, "the red circle", "--out", tmp_path, "-s", "masks", "-q")
    assert held.returncode == 2
    assert held.stderr.count("\n") == 1
    assert "wait for it, or choose another folder" in held.stderr
    assert not (tmp_path / "masks").exists()
    claim.release()
    FolderClaim(tmp_path, "writing results", VideoError).release()
    assert not list(tmp_path.iterdir())


def test_overwriting_removes_the_frames_and_tracks_of_a_longer_run(film: Path, tmp_path: Path) -> None:
    arguments = ["segment", str(film), "--out", str(tmp_path), "-s", "masks", "-s", "binary", "-q"]
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "notes.txt").write_text("mine")
    first = CliRunner().invoke(app, [*arguments, "the red circle", "a square", "--frames", "6"])
    assert first.exit_code == 0, first.output
    assert len(list((tmp_path / "binary").glob("*/*.png"))) == 12
    second = CliRunner().invoke(app, [*arguments, "the red circle", "--frames", "3", "--overwrite"])
    assert second.exit_code == 0, second.output
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
        "notes.txt",
    ]
    assert sorted(path.name for path in (tmp_path / "binary").iterdir()) == ["0"]
    assert len(list((tmp_path / "binary").glob("*/*.png"))) == 3


def test_a_path_in_place_of_a_sentence_is_refused(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match=r"000.png' is a file, not a sentence; run the command once for each video"):
        refuse_files(["the red circle", str(film / "000.png")])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    refuse_files(["the red circle", "x" * 5000, "a sentence. With dots", "nul\0", "cat"])


def test_verbs_are_found_beside_punctuation() -> None:
    assert verbs_of(["The dog jumps, then sits."], ["jumps", "sits"]) == [
        ("The dog jumps, then sits.", ["jumps", "sits"])
    ]


@POSIX
def test_a_signal_raises_once_and_the_next_one_ends_the_process() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done = []

    def work() -> None:
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            done.append("completely")

    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signals.exit_code == 130
    assert done == ["completely"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert StopSignals().exit_code == 130


# Errors that nothing else handles.


def in_process(code: str, *arguments: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    begin = f"import sys; from refervos.cli import entry as cli; sys.argv = ['refervos', *{list(arguments)!r}]"
    program = f"{begin}; {code}; cli.main()"
    return subprocess.run(
        [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )


def test_an_unexpected_exception_is_one_sentence_and_a_log(tmp_path: Path) -> None:
    def failing(error: str) -> str:
        return f"cli.app = lambda **_: (_ for _ in ()).throw({error})"

    done = in_process(failing("KeyError('\\x1b[31mx')"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "an unexpected error occurred (KeyError" in done.stderr
    log = Path(done.stderr.split("the details are in ")[1].split(";")[0])
    assert "Traceback" in log.read_text()
    log.unlink()
    assert "not enough memory" in in_process(failing("MemoryError()")).stderr
    assert "not enough memory" in in_process(failing("RuntimeError('CUDA out of memory. Tried')")).stderr
    full = in_process(failing("OSError(28, 'No space left on device', 'x.mp4')"))
    assert full.stderr == "refervos: the operating system reports an error ('x.mp4'): No space left on device.\n"
    assert full.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("info", "--no-such-option"), "--no-such-option"),
        (("inform",), "inform"),
        (("segment",), "video"),
        (("segment", "a.mp4", "a", "--clip", "0\x1b[31m"), "--clip"),
        (("segment", "a.mp4", "a", "--dtype", "int8"), "'int8' is not one of 'float32'"),
        (("data", "check", "mevis"), "path"),
    ],
)
def test_an_invalid_command_line_is_reported_in_one_sentence(
    arguments: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["refervos", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("refervos: ")
    assert named.lower() in errors.lower()
    help_of = " ".join(("refervos", *arguments[: {"data": 2, "inform": 0}.get(arguments[0], 1)]))
    assert errors.endswith(f"; '{help_of} --help' lists the arguments and options.\n")
    assert errors.count("\n") == 1
    assert errors.strip().isprintable()


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["refervos"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    assert "Usage: refervos" in printed.out + printed.err
    assert "unexpected error" not in printed.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_standard_output_is_reported_in_one_sentence_and_a_closed_one_ignored() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("--version"), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("refervos: ")
    assert done.stderr.endswith(": No space left on device.\n")
    assert done.stderr.count("\n") == 1
    closed = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m refervos --version >&-"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert closed.returncode == 0
    assert closed.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "x" * 5000, "a"),
        ("segment", "FILM", "a", "--out", "x" * 5000),
        ("info", "x" * 5000),
        ("score", ".", "json-lines", "x" * 5000),
        ("data", "check", "mevis", "x" * 5000),
    ],
    ids=["source", "output", "model", "data set to score", "data set to check"],
)
def test_a_path_that_is_too_long_is_reported_in_one_sentence(
    arguments: tuple[str, ...],
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["refervos", *(str(film) if word == "FILM" else word for word in arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("refervos: ")
    assert "xxx" in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1
    assert len(errors) < 3000


def test_each_video_of_a_folder_gets_its_own_results(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("one", "two"):
        write_video(tmp_path / "videos" / f"{name}.mp4", 3, width=64, height=48)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "videos" / "notes.txt").write_text("mine")
    arguments = ["segment", str(tmp_path / "videos"), "the red circle", "-s", "rle", "-q", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, VideoError)
    assert "1 of the 3 videos" in str(done.exception)
    assert "broken.mp4" in done.stderr
    assert sorted(path.parent.name for path in (tmp_path / "o").glob("*/masks.jsonl")) == ["one", "two"]
    refused = CliRunner().invoke(app, [*arguments, "--session", str(tmp_path / "s")])
    assert "but --session needs a single video" in str(refused.exception)


def test_run_length_encoded_masks_go_to_standard_output(film: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("segment", film, "the red \x1b[31mcircle", "--frames", 3, "--out", "-"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert "3 frames" in done.stderr
    assert "\x1b" not in done.stderr
    assert not list(tmp_path.iterdir())
    refused = run("segment", film, "a", "--out", "-", "-s", "masks")
    assert refused.returncode == 2
    assert "writes only run-length encoded masks to standard output" in refused.stderr
