"""The command line as users see it: results for valid input, one sentence and exit code 2 for invalid input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from refervos import load, loading
from refervos.cli import entry as cli
from refervos.cli import segment
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.video import Frame, open_source
from refervos.video.media import MediaReader
from scenes import MICRO, scene
from video_files import add_cover, rotate, write_tone, write_video

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty folder and return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return (0 if code is None else int(code)), captured.out, captured.err

    return command


def disc_frames(count: int, width: int = 128, height: int = 96) -> list[np.ndarray]:
    """Return frames of a red disc that moves to the right over grey, with a blue square."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for t in range(count):
        frame = np.full((height, width, 3), 110, np.uint8)
        frame[(x - width // 4 - t) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 5) ** 2] = (220, 40, 40)
        frame[-height // 4 : -4, -width // 4 : -4] = (40, 90, 220)
        frames.append(frame)
    return frames


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sizes(path: Path) -> tuple[int, int, int]:
    """Return number of frames, width and height of a video, read without the code under test."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].width, frames[0].height


def test_segment_writes_every_kind_of_output(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 10, width=128, height=96, fps=25, images=disc_frames(10), audio="aac")
    installed = [output for output in segment.Output if output != "rerun" or find_spec("rerun")]
    outputs = [option for output in installed for option in ("--save", output)]
    code, out, err = run("segment", "in.mp4", "the red circle", "the blue square", "--out", "out", *outputs)
    assert (code, err) == (0, "")
    assert "10 frames" in out
    assert "the red circle: seen in 10 of 10" in out
    assert sizes(tmp_path / "out" / "overlay.mp4") == (10, 128, 96)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        assert len(container.streams.audio) == 1
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == 25
    rows = read_rows(tmp_path / "out" / "masks.jsonl")
    assert len(rows) == 20
    first = rows[0]
    assert (first["frame"], first["track"], first["expression"], first["size"]) == (0, 0, "the red circle", [96, 128])
    mask = coco.decode({"size": first["size"], "counts": first["counts"]}).astype(bool)
    with Image.open(tmp_path / "out" / "masks" / "00000.png") as image:
        assert image.mode == "P"
        indices = np.array(image)
    assert np.array_equal(mask & (indices != 2), indices == 1)
    disc = disc_frames(1)[0][..., 0] > 200
    assert (mask & disc).sum() / (mask | disc).sum() > 0.5
    assert len(list((tmp_path / "out" / "binary" / "0").iterdir())) == 10
    with Image.open(tmp_path / "out" / "cutout" / "0" / "00000.png") as image:
        assert image.mode == "RGBA"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_existing_results_are_only_replaced_with_overwrite(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 2, width=64, height=48)
    assert run("segment", "in.mp4", "the red circle", "-q")[0] == 0
    before = (tmp_path / "in_refervos" / "masks.jsonl").read_bytes()
    code, out, err = run("segment", "in.mp4", "the blue circle")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "exist" in err
    assert (tmp_path / "in_refervos" / "masks.jsonl").read_bytes() == before
    assert run("segment", "in.mp4", "the blue circle", "--overwrite")[0] == 0
    assert (tmp_path / "in_refervos" / "masks.jsonl").read_bytes() != before


def test_one_model_segments_the_videos_of_a_folder_as_if_each_were_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "a.mp4", 4, width=128, height=96, images=disc_frames(4))
    (tmp_path / "films" / "b.mp4").write_bytes(b"no video")
    write_video(tmp_path / "films" / "c.mp4", 4, width=128, height=96, images=disc_frames(12)[8:])
    arguments = ("the red circle", "--save", "rle", "--quiet")
    for name in "ac":
        assert run("segment", f"films/{name}.mp4", *arguments, "--out", f"alone/{name}")[0] == 0
    loads = []

    def counted(*given: Any, **options: Any) -> Any:
        loads.append(given)
        return load(*given, **options)

    monkeypatch.setattr(loading, "load", counted)
    code, out, err = run("segment", "films", *arguments, "--out", "together")
    assert (code, out) == (2, "")
    first, last = err.splitlines()
    assert "b.mp4" in first
    assert last == "refervos: 1 of the 3 videos in 'films' could not be segmented."
    assert len(loads) == 1
    for name in "ac":
        together, alone = (read_rows(tmp_path / how / name / "masks.jsonl") for how in ("together", "alone"))
        assert len(together) == 4
        assert together == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "absent"), "absent"),
        (("--verb", "jumps"), "the verb 'jumps' is in no sentence"),
        (("--session", "a.session"), "'films' is a folder of 2 videos, but --session needs a single video."),
        (("--out", "-"), "'films' is a folder of 2 videos, but --out - needs a single video."),
    ],
)
def test_an_error_common_to_all_videos_of_a_folder_is_reported_once(
    options: tuple[str, ...], message: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "films").mkdir()
    for name in "ab":
        write_video(tmp_path / "films" / f"{name}.mp4", 2, width=64, height=48)
    code, out, err = run("segment", "films", "the red circle", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def good_one_second(folder: Path) -> Path:
    return write_video(folder / "second.mp4", 25, width=64, height=48, fps=25)


def good_vertical(folder: Path) -> Path:
    return write_video(folder / "vertical.mp4", 5, width=54, height=96)


def good_rotated(folder: Path) -> Path:
    return rotate(write_video(folder / "rotated.mp4", 5, width=64, height=48), 90)


def good_variable(folder: Path) -> Path:
    return write_video(folder / "variable.mp4", 5, times=[0, 0.1, 0.5, 0.6, 1.5], width=64, height=48)


def good_odd(folder: Path) -> Path:
    images = disc_frames(5, 65, 49)
    return write_video(folder / "odd.mkv", 5, width=65, height=49, images=images, pix_fmt="yuv444p")


def good_webm(folder: Path) -> Path:
    return write_video(folder / "clip.webm", 5)


def good_gif(folder: Path) -> Path:
    return write_video(folder / "clip.gif", 5)


def good_avi(folder: Path) -> Path:
    return write_video(folder / "clip.avi", 5)


def good_mov(folder: Path) -> Path:
    return write_video(folder / "clip.mov", 5)


def good_image(folder: Path) -> Path:
    Image.fromarray(disc_frames(1)[0]).save(folder / "image.jpg")
    return folder / "image.jpg"


def good_folder(folder: Path) -> Path:
    (folder / "frames").mkdir()
    for index, frame in enumerate(disc_frames(11)):
        Image.fromarray(frame).save(folder / "frames" / f"{index}.png")
    return folder / "frames"


@pytest.mark.parametrize(
    ("make", "frames", "width", "height"),
    [
        (good_one_second, 25, 64, 48),
        (good_vertical, 5, 54, 96),
        (good_rotated, 5, 48, 64),
        (good_variable, 5, 64, 48),
        (good_odd, 5, 65, 49),
        (good_webm, 5, 64, 48),
        (good_gif, 5, 64, 48),
        (good_avi, 5, 64, 48),
        (good_mov, 5, 64, 48),
        (good_image, 1, 128, 96),
        (good_folder, 11, 128, 96),
    ],
)
def test_every_kind_of_video_is_segmented(
    make: Callable[[Path], Path], frames: int, width: int, height: int, run: Run, tmp_path: Path
) -> None:
    path = make(tmp_path)
    code, out, err = run("segment", path, "the red circle", "--out", "out")
    assert (code, err) == (0, "")
    assert f"{frames} frames" in out
    rows = read_rows(tmp_path / "out" / "masks.jsonl")
    assert len(rows) == frames
    assert rows[0]["size"] == [height, width]
    if make is good_image:  # the overlay of an image is an image
        with Image.open(tmp_path / "out" / "overlay.png") as image:
            assert image.size == (width, height)
        return
    even = (frames, width + width % 2, height + height % 2)
    assert sizes(tmp_path / "out" / "overlay.mp4") == even


def test_a_variable_frame_rate_is_kept(run: Run, tmp_path: Path) -> None:
    run("segment", good_variable(tmp_path), "the red circle", "--out", "out")
    assert [a["time"] for a in read_rows(tmp_path / "out" / "masks.jsonl")] == pytest.approx([0, 0.1, 0.5, 0.6, 1.5])
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 0.5, 0.6, 1.5], abs=0.01)


def test_a_truncated_file_gives_its_readable_frames_and_a_warning(run: Run, tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", 20, width=64, height=48, movflags="faststart", gop=5)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    code, _, err = run("segment", path, "the red circle", "--out", "out")
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    rows = read_rows(tmp_path / "out" / "masks.jsonl")
    assert 5 <= len(rows) < 20
    assert sizes(tmp_path / "out" / "overlay.mp4")[0] == len(rows)


def bad_audio(folder: Path) -> Path:
    return write_tone(folder / "tone.m4a", "aac")


def bad_cover(folder: Path) -> Path:
    return add_cover(write_tone(folder / "song.mp3", "mp3"))


def bad_empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def bad_garbage(folder: Path) -> Path:
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    return folder / "noise.mp4"


def bad_headless(folder: Path) -> Path:
    """Write a recording without its end, which holds the index."""
    path = write_video(folder / "crashed.mp4", 20, width=64, height=48)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def bad_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


def bad_missing(folder: Path) -> Path:
    return folder / "absent.mp4"


@pytest.mark.parametrize("make", [bad_audio, bad_cover, bad_empty, bad_garbage, bad_headless, bad_folder, bad_missing])
def test_a_source_without_video_is_refused_in_one_sentence(
    make: Callable[[Path], Path], run: Run, tmp_path: Path
) -> None:
    path = make(tmp_path)
    code, out, err = run("segment", path, "the red circle", "--out", "out")
    assert (code, out) == (2, "")
    assert err.startswith("refervos: ")
    assert err.count("\n") == 1
    assert path.name in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "there is no object to segment; give a sentence in quotes"),
        (("  ",), "the expression is empty"),
        (("the dog", "--model", "nowhere"), "nowhere does not exist"),
        (("the dog", "--box", "1,2,3"), "--box is '1,2,3'; give 4 numbers separated by commas"),
        (("--point", "a,b"), "--point is 'a,b'; give 2 or 3 numbers"),
        (("--point", "10,20,0.5"), "--point is '10,20,0.5'; its third number is 0.5 and must be 0 or 1"),
        (("--point", "nan,20"), "--point is 'nan,20'; give 2 or 3 numbers"),
        (("--box", "1,2,30,40"), "SAMWISE needs a sentence and was given box alone"),
        (("the dog", "--protocol", "odd"), "protocol is 'odd' where one of 'default', 'published' is expected"),
        (("the dog", "--verb", "runs"), "the verb 'runs' is in no sentence"),
    ],
)
def test_invalid_prompts_and_models_are_refused_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, run: Run, tmp_path: Path
) -> None:
    write_video(tmp_path / "in.mp4", 2)
    code, out, err = run("segment", "in.mp4", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_invalid_command_lines_end_with_exit_code_2(run: Run) -> None:
    assert run("segment", "in.mp4", "the dog", "--sharpen")[0] == 2
    assert run("segment", "in.mp4", "the dog", "--clip", "0")[0] == 2
    assert run("polish")[0] == 2


@pytest.fixture
def interrupted_at_frame_10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while frame 10 is read."""
    advance = MediaReader.__next__

    def interrupted(self: MediaReader) -> Frame:
        frame = advance(self)
        if frame.index == 10:
            raise KeyboardInterrupt
        return frame

    monkeypatch.setattr(MediaReader, "__next__", interrupted)


@pytest.mark.usefixtures("interrupted_at_frame_10")
def test_ctrl_c_leaves_complete_outputs(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 40, width=64, height=48)
    code, out, _ = run("segment", "in.mp4", "the red circle", "--out", "out", "--clip", "2")
    assert code == 130
    assert "10 frames, interrupted" in out
    assert len(read_rows(tmp_path / "out" / "masks.jsonl")) == 10
    assert sizes(tmp_path / "out" / "overlay.mp4") == (10, 64, 48)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_missing_camera_is_reported_in_one_sentence(run: Run) -> None:
    code, _, err = run("segment", "camera:9", "the dog")
    assert code == 2
    assert err.count("\n") == 1
    assert "camera:9" in err


def test_info_describes_a_model(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    assert "CMT adapters" in out
    code, out, _ = run("info", "miniature", "--json")
    described = json.loads(out)
    assert described["total"] == sum(described["parts"].values())
    assert described["settings"]["tokenizer"] is True


def test_convert_reports_a_missing_checkpoint_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    code, _, err = run("convert", "absent.pth", "model", "--tokenizer", "none")
    assert (code, err.count("\n")) == (2, 1)
    assert "absent.pth does not exist" in err
    assert list(tmp_path.iterdir()) == []


COMMANDS = ("segment", "convert", "info", "train", "diagnose", "eval", "score", "submit", "compare", "bench", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_shows_an_example(command: str, run: Run) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: refervos {command}" in " ".join(out.split())


@pytest.mark.parametrize("command", ["score", "submit"])
def test_the_help_shows_the_layout_of_mask_folders(command: str, run: Run) -> None:
    assert "VIDEO/EXPRESSION/FRAME.png" in run(command, "--help")[1]  # Markdown drops what is in angle brackets


def test_version_and_help_are_printed(run: Run) -> None:
    assert run("--version")[1].startswith("refervos 0.")
    assert "segment" in run("--help")[1]


def test_a_repeated_sentence_is_counted_once_in_the_summary(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 4, width=128, height=96, images=disc_frames(4))
    code, out, _ = run("segment", "in.mp4", "the red circle", "the red circle", "--out", "out", "--save", "rle")
    assert code == 0
    assert "the red circle: seen in 4 of 4" in out
    assert len(read_rows(tmp_path / "out" / "masks.jsonl")) == 8


def test_the_number_of_frames_can_be_limited(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 9)
    run("segment", "in.mp4", "the red circle", "--out", "out", "--frames", "3", "--save", "rle", "-q")
    assert len(read_rows(tmp_path / "out" / "masks.jsonl")) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_a_real_ctrl_c_leaves_complete_outputs(tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 600, width=64, height=48)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "refervos",
        "segment",
        str(tmp_path / "in.mp4"),
        "the red circle",
        "--out",
        str(out),
    ]
    wanted = ["--save", "overlay", "--save", "rle", "--save", "masks"]
    process = subprocess.Popen(
        [*command, *wanted],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background inherits that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and len(list((out / "masks").glob("0*.png")) if out.is_dir() else []) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    count = int(stdout.split(" frames, interrupted")[0])
    assert 20 <= count < 600
    # One output may be a frame ahead of the others.
    found = [len(read_rows(out / "masks.jsonl")), sizes(out / "overlay.mp4")[0], len(list((out / "masks").iterdir()))]
    assert all(count <= number <= count + 1 for number in found)
    assert not list(out.rglob(".*"))


def test_clicks_and_boxes_prompt_a_sam2_model(run: Run, tmp_path: Path) -> None:
    Sam2Segmenter(Sam2Tracker(MICRO.sam2)).save_pretrained(tmp_path / "sam2")
    write_video(tmp_path / "in.mp4", 3)
    code, out, err = run(
        "segment", "in.mp4", "--point", "20,20", "--point", "40,5,0", "--model", "sam2", "--out", "out"
    )
    assert (code, err) == (0, "")
    assert "points: seen in" in out
    assert len(read_rows(tmp_path / "out" / "masks.jsonl")) == 3
    code, _, err = run("segment", "in.mp4", "--box", "20,20,100,40", "--model", "sam2", "--out", "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "100" in err
    assert not list((tmp_path / "other").rglob("*"))
    code, _, err = run("segment", "in.mp4", "the dog", "--model", "sam2", "--out", "third")
    assert code == 2
    assert "SAM2 takes points, boxes and masks, not sentences" in err


def test_a_click_can_accompany_one_sentence(run: Run, tmp_path: Path) -> None:
    """It selects one of the objects that fit the sentence; with two sentences it would be ambiguous."""
    path = write_video(tmp_path / "v.mp4", 3, width=128, height=96, images=scene(3))
    assert run("segment", path, "the shape", "--point", "60,40", "--out", tmp_path / "r", "--save", "rle")[0] == 0
    code, _, error = run("segment", path, "the shape", "the dog", "--point", "60,40", "--out", tmp_path / "q")
    assert code == 2
    assert "need one sentence or none, but there are 2" in error


def test_sentences_that_the_session_has_already_are_not_added_again(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.mkdir()
    for index, image in enumerate(scene(2)):
        Image.fromarray(image).save(path / f"{index}.png")
    session = ("--session", tmp_path / "s.refervos", "--save", "rle", "--quiet", "--overwrite")

    def tracks(*sentences: str) -> list[tuple[int, str]]:
        assert run("segment", path, *sentences, "--out", tmp_path / "r", *session)[0] == 0
        lines = [json.loads(line) for line in (tmp_path / "r" / "masks.jsonl").read_text().splitlines()]
        return sorted({(line["track"], line["expression"]) for line in lines})

    first = [(0, "The red circle"), (1, "the blue star")]
    assert tracks("The red circle", "the blue star") == first
    assert tracks("The red circle", "the blue star") == first
    assert tracks("the blue star", "the green square") == [*first, (2, "the green square")]
    assert tracks() == [*first, (2, "the green square")]


def test_a_session_continues_with_the_next_file(run: Run, tmp_path: Path) -> None:
    """Two halves of a video with a session file in between give the masks of the whole."""
    frames = scene(8)
    for name, images in (("whole", frames), ("first", frames[:4]), ("second", frames[4:])):
        folder = tmp_path / name
        folder.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:02d}.png")
    options = ("--save", "binary", "--clip", "1", "--quiet")
    sentence = "a grey circle"
    assert run("segment", tmp_path / "whole", sentence, "--out", tmp_path / "w", *options)[0] == 0
    session = ("--session", tmp_path / "s.refervos")
    assert run("segment", tmp_path / "first", sentence, "--out", tmp_path / "a", *session, *options)[0] == 0
    assert run("segment", tmp_path / "second", "--out", tmp_path / "b", *session, *options)[0] == 0
    for index in range(4):
        one = sorted((tmp_path / "w").rglob(f"{index + 4:02d}.png"))
        other = sorted((tmp_path / "b").rglob(f"{index:02d}.png"))
        assert len(one) == len(other) == 1
        assert one[0].read_bytes() == other[0].read_bytes()


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "film.mp4", 2)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["segment", "", "a dog"])
    assert "path of the source is empty" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_folder_of_videos_is_resumed_at_the_interrupted_video(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for name in ("a.mp4", "a.mkv", "b.mp4"):
        write_video(films / name, 3)
    arguments = ["segment", str(films), "the red circle", "--out", str(out), "-s", "rle", "-q"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_mkv", "a_mp4", "b"]
    before = {path: path.read_text() for path in out.rglob("*.jsonl")}
    # As if it had been interrupted in the first video, with the last one not begun.
    shutil.rmtree(out / "b")
    first = out / "a_mkv" / "masks.jsonl"
    first.write_text("".join(before[first].splitlines(keepends=True)[:1]))
    model = load("miniature", device="cpu")
    session = model.open(["the red circle"])
    session.clip([frame.image for frame in open_source(films / "a.mkv", stop=1)])
    session.save(out / "a_mkv" / "000001.unfinished.session")
    finished = (out / "a_mp4" / "masks.jsonl").stat().st_mtime_ns
    resumed = CliRunner().invoke(cli.app, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert (out / "a_mp4" / "masks.jsonl").stat().st_mtime_ns == finished
    after = {path: path.read_text() for path in out.rglob("*.jsonl")}
    assert {path: len(text.splitlines()) for path, text in after.items()} == dict.fromkeys(before, 3)
    assert not list(out.rglob("*.session"))
