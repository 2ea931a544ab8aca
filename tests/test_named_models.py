"""Models known by name: listed, fetched once, checked, resumed, and refused with a sentence that says what to do."""

from __future__ import annotations

import builtins
import errno
import hashlib
import importlib.util
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import refervos
from golden import write_official
from refervos.cli.entry import main
from refervos.errors import CheckpointError, MissingDependencyError
from refervos.models.fetching import fetch_model
from refervos.models.registry import BY_NAME, MODELS, DriveFile, HubRepository
from refervos.models.store import cache_folder, find_on_disk, locked, remove_model
from refervos.sam2.config import SAM2_PRESETS
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.checkpoints import load_official
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer
from scenes import MICRO_SAM2
from stand_ins import (
    COMMIT,
    Repository,
    World,
    connect,
    forbid_requests,
    serve,
    use_small_base_plus,
    write_small_release,
)

MINIATURE = Path(refervos.__file__).parent / "assets" / "miniature"
CLIP = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"
MEVIS, YOUTUBE = "samwise-mevis", "samwise-ref-youtube-vos"
ROBERTA = "FacebookAI/roberta-base"
SAM2 = "sam2.1-tiny"

CHUNK = 512 * 1024
"""Bytes that gdown keeps at once; of a connection that breaks, it keeps whole chunks."""


def drive_id(name: str) -> str:
    """Google Drive's id of a model's file."""
    origin = BY_NAME[name].origin
    assert isinstance(origin, DriveFile)
    return origin.id


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released checkpoint at miniature size."""
    vocabulary = len(Tokenizer.from_pretrained(MINIATURE))
    return write_small_release(tmp_path_factory.mktemp("release") / "final_model.pth", vocabulary)


@pytest.fixture
def world(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Google Drive with the released files, and the hub with RoBERTa's tokenizer and a SAM2."""
    tokenizer = {name: (MINIATURE / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    sam2 = tmp_path / "sam2"
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(sam2)
    origin = BY_NAME[SAM2].origin
    assert isinstance(origin, HubRepository)
    files = {path.name: path.read_bytes() for path in sam2.iterdir()}
    with serve(
        World(
            {drive_id(MEVIS): release.read_bytes()},
            repositories={ROBERTA: Repository.of(tokenizer), origin.id: Repository.of(files)},
        )
    ) as up:
        connect(monkeypatch, up.port, tmp_path / "home")
        use_small_base_plus(monkeypatch)
        yield up


def run(*arguments: object) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def test_every_model_is_listed_with_its_origin_and_whether_it_is_on_disk(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"miniature", "refsam-miniature", MEVIS, YOUTUBE, "samwise-refcoco", "videoglamm"} < set(rows)
    assert {f"{version}-{size}" for version in ("sam2", "sam2.1") for size in SAM2_PRESETS} < set(rows)
    assert {name for name, row in rows.items() if row["on_disk"]} == {
        "miniature",
        "refsam-miniature",
        "videoglamm-miniature",
    }
    for row in rows.values():
        assert all(row[column] for column in ("task", "size", "licence", "results", "source", "origin")), row["name"]
    assert rows[MEVIS]["origin"] == "https://drive.google.com/file/d/1Molt2up2bP41ekeczXWQU-LWTskKJOV2"
    assert run("models") == 0
    table = capsys.readouterr().out
    assert all(f"{name} " in table for name in rows)
    assert world.requests == []


def test_a_name_is_fetched_converted_kept_and_run_and_then_needs_no_network(
    world: World, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", MEVIS, "--device", "cpu", "--frames", 1, "--save", "rle", "--quiet")
    assert run("segment", CLIP, "the red circle", "--out", tmp_path / "one", *options) == 0
    assert world.downloads == [None]
    digest = hashlib.sha256(release.read_bytes()).hexdigest()
    assert f"sha256 {digest}" in capsys.readouterr().err
    record = json.loads((cache_folder() / "records" / f"{MEVIS}.json").read_text())
    assert (record["sha256"], record["bytes"]) == (digest, release.stat().st_size)
    assert cache_folder() == tmp_path / "home" / "refervos"
    assert find_on_disk(BY_NAME[MEVIS]) == cache_folder() / MEVIS
    assert not list(cache_folder().rglob("*.pth*"))
    with monkeypatch.context() as patch:
        forbid_requests(patch)
        assert run("segment", CLIP, "the red circle", "--out", tmp_path / "two", *options) == 0
        loaded: Any = refervos.load(MEVIS, device="cpu")
    first, second = ((tmp_path / each / "masks.jsonl").read_text() for each in ("one", "two"))
    assert first == second
    official = load_official(release).state_dict()
    kept = loaded.state_dict()
    assert isinstance(loaded, Samwise)
    assert kept.keys() == official.keys()
    assert all(torch.equal(kept[name], value) for name, value in official.items())
    assert loaded.tokenizer is not None


def test_a_folder_of_the_same_name_comes_first(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refervos.load("miniature", device="cpu").save_pretrained(tmp_path / MEVIS)
    monkeypatch.chdir(tmp_path)
    loaded: Any = refervos.load(MEVIS, device="cpu")
    assert loaded.config.words
    assert world.requests == []


def test_a_small_file_comes_by_redirect(world: World, release: Path) -> None:
    world.drive = "redirect"
    assert refervos.load(MEVIS, device="cpu").describe()["family"]
    assert [path.split("?")[0] for path, _ in world.requests if "google" in path] == [
        "/drive.google.com/uc",
        "/drive.usercontent.google.com/download",
    ]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(world: World) -> None:
    world.breaks = [6 * CHUNK, 2 * CHUNK]
    fetch_model(MEVIS)
    assert world.downloads == [None, f"bytes={6 * CHUNK}-", f"bytes={8 * CHUNK}-"]


def test_a_download_that_gave_up_is_continued_by_the_next_command(world: World) -> None:
    world.breaks = [2 * CHUNK, 0, 0, 0]
    with pytest.raises(CheckpointError, match=r"the connection broke .* and the same command continues"):
        fetch_model(MEVIS)
    assert find_on_disk(BY_NAME[MEVIS]) is None
    before = len(world.downloads)
    fetch_model(MEVIS)
    assert world.downloads[before:] == [None, f"bytes={2 * CHUNK}-"]  # gdown reads the head of the first and closes it


def test_a_server_that_cannot_continue_sends_the_file_again(world: World) -> None:
    world.breaks, world.ranges = [2 * CHUNK], False
    fetch_model(MEVIS)
    assert world.downloads == [None, f"bytes={2 * CHUNK}-", None]


@pytest.mark.parametrize(
    ("drive", "sentence"),
    [
        ("quota", "quota for this file is exhausted; try again in a day, or open https://drive.google.com/file/d/1Mol"),
        (
            "missing",
            "shows a web page instead of the file, .* open https://.* run 'refervos models fetch samwise-mevis",
        ),
        ("page", "shows a web page instead of the file, which was removed, is not public any more"),
    ],
)
def test_what_google_drive_shows_instead_of_the_file_is_explained(world: World, drive: str, sentence: str) -> None:
    world.drive = drive
    with pytest.raises(CheckpointError, match=sentence):
        refervos.load(MEVIS)
    assert find_on_disk(BY_NAME[MEVIS]) is None
    assert not list(cache_folder().rglob("*.part"))
    assert not (cache_folder() / "records").exists()


def test_without_a_network_the_sentence_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    with pytest.raises(CheckpointError, match=f"{ROBERTA} .* .the hub cannot be reached .* check the network"):
        fetch_model(MEVIS)
    with pytest.raises(
        CheckpointError, match=r"Google Drive cannot be reached .* check the network, or .* --from FILE"
    ):
        fetch_model(MEVIS, tokenizer=MINIATURE)


def test_offline_mode_forbids_requests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids to fetch it; unset HF_HUB_OFFLINE, or download"):
        fetch_model(MEVIS, tokenizer=MINIATURE)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"):
        fetch_model(SAM2)
    assert world.requests == []


def test_gdown_is_named_when_it_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gdown" else find(name))
    with pytest.raises(MissingDependencyError, match=r"needs gdown: pip install 'refervos\[drive\]'"):
        fetch_model(MEVIS)


class FullDisk(io.BytesIO):
    """A file on a disk that is full."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_with_the_space_that_is_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        return FullDisk() if str(path).endswith(".part") else builtins.open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["gdown.download"], "open", opened, raising=False)
        with pytest.raises(CheckpointError, match=r"no space is left on the disk of .* about 1\.7 GB .* HF_HOME"):
            fetch_model(MEVIS)
    fetch_model(MEVIS)


def test_a_disk_that_fills_up_during_the_conversion_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", write)
        with pytest.raises(CheckpointError, match=r"no space is left on the disk of"):
            fetch_model(MEVIS)
    before = len(world.downloads)
    fetch_model(MEVIS)
    assert len(world.downloads) == before + 1  # asks for the head, and takes the file that is there


def test_a_file_that_changed_is_refused_until_the_first_one_is_forgotten(
    world: World, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_model(MEVIS)
    first = hashlib.sha256(release.read_bytes()).hexdigest()
    content = torch.load(release, weights_only=False)
    torch.save({**content, "epoch": 2}, tmp_path / "changed.pth")
    world.files[drive_id(MEVIS)] = (tmp_path / "changed.pth").read_bytes()
    second = hashlib.sha256(world.files[drive_id(MEVIS)]).hexdigest()
    assert run("models", "remove", MEVIS) == 0
    assert find_on_disk(BY_NAME[MEVIS]) is None
    assert run("models", "fetch", MEVIS) == 2
    said = capsys.readouterr().err
    assert f"its sha256 is {second}, pinned is {first}" in said
    assert f"refervos models remove {MEVIS} --forget" in said
    assert not list(cache_folder().rglob("*.pth"))
    assert run("models", "remove", MEVIS, "--forget") == 0
    assert run("models", "fetch", MEVIS) == 0
    assert str(cache_folder() / MEVIS) in capsys.readouterr().out


def test_a_file_fetched_by_hand_goes_through_the_same_checks(
    world: World, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models", "fetch", MEVIS, "--from", release, "--tokenizer", MINIATURE) == 0
    assert world.requests == []
    assert release.is_file()
    assert run("models", "fetch", MEVIS, "--from", release) == 0
    (tmp_path / "other.pth").write_bytes(release.read_bytes() + b" ")
    assert run("models", "fetch", MEVIS, "--from", tmp_path / "other.pth") == 2
    assert "differs from the file" in capsys.readouterr().err
    assert run("models", "fetch", YOUTUBE, "--from", release, "--tokenizer", MINIATURE) == 2
    assert f"is the checkpoint of {MEVIS}, not of {YOUTUBE}" in capsys.readouterr().err


def damaged(release: Path, target: Path) -> None:
    """Change one byte of the largest part of an archive."""
    content = bytearray(release.read_bytes())
    with zipfile.ZipFile(release) as archive:
        part = max(archive.infolist(), key=lambda each: each.file_size)
    content[part.header_offset + part.file_size // 2 + 200] ^= 1
    target.write_bytes(content)


def sam2_instead(release: Path, target: Path) -> None:
    write_official(target, Sam2Tracker(MICRO_SAM2).state_dict(), {})


NO_MODELS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "page": (lambda release, target: target.write_text("<!DOCTYPE html><html>Sign in</html>"), "it is a web page"),
    "cut": (lambda release, target: target.write_bytes(release.read_bytes()[:500_000]), "it is truncated"),
    "damaged": (damaged, "is damaged: its part .* has another checksum; download it again"),
    "sam2": (sam2_instead, "it is not a SAMWISE checkpoint"),
    "absent": (lambda release, target: None, "does not exist or is not a file; give the checkpoint of samwise-mevis"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_files_that_are_not_the_model_are_refused_and_not_pinned(
    kind: str, world: World, release: Path, tmp_path: Path
) -> None:
    write, sentence = NO_MODELS[kind]
    write(release, tmp_path / "given.pth")
    with pytest.raises(CheckpointError, match=sentence):
        fetch_model(MEVIS, file=tmp_path / "given.pth", tokenizer=MINIATURE)
    assert (tmp_path / "given.pth").exists() == (kind != "absent")
    assert not (cache_folder() / "records").exists()
    fetch_model(MEVIS)


def test_a_samwise_of_another_size_is_refused(world: World, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAM2_PRESETS, "tiny", SAM2_PRESETS["base-plus"])
    monkeypatch.setitem(SAM2_PRESETS, "base-plus", SAM2_PRESETS["large"])
    with pytest.raises(CheckpointError, match="is a SAMWISE of another size than samwise-mevis, which is base-plus"):
        fetch_model(MEVIS, file=release, tokenizer=MINIATURE)


def test_a_downloaded_file_that_is_refused_is_fetched_anew(world: World, release: Path) -> None:
    world.files[drive_id(MEVIS)] = b"no weights" * 1000
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        fetch_model(MEVIS)
    world.files[drive_id(MEVIS)] = release.read_bytes()
    fetch_model(MEVIS)


def test_a_hub_model_is_pinned_to_its_first_revision(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(refervos.load(SAM2, device="cpu"), Sam2Segmenter)
    assert f"its revision {COMMIT} is pinned" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        forbid_requests(patch)
        assert isinstance(refervos.load(SAM2, device="cpu"), Sam2Segmenter)
    assert run("models", "remove", SAM2) == 0
    assert find_on_disk(BY_NAME[SAM2]) is None
    world.requests.clear()
    fetch_model(SAM2)
    assert not any("/revision/main" in path for path, _ in world.requests)  # the pinned one, whatever main is by now


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "the hub has no such public repository: check the name"),
        (403, "its owners grant access on request: ask at https://huggingface.co/facebook/sam2.1-hiera-tiny"),
        (503, "the hub replies with status 503: try again later"),
    ],
)
def test_what_the_hub_refuses_is_explained(world: World, status: int, sentence: str) -> None:
    world.hub = status
    with pytest.raises(CheckpointError, match=sentence):
        fetch_model(SAM2)
    assert find_on_disk(BY_NAME[SAM2]) is None


def test_models_that_no_program_can_fetch_say_how_to_get_them(world: World) -> None:
    with pytest.raises(
        CheckpointError, match=r"SharePoint, which only a browser can open; .* 'refervos convert FOLDER"
    ):
        refervos.load("videoglamm")
    assert world.requests == []


def test_a_misspelt_name_or_path_makes_no_request(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (
        "samwise-mevsi",
        "runs/modle",
        "./runs",
        "checkpoint/sam2.1_hiera_tiny.pt",
        "~/model",
        "a/b/c",
        "runs/",
    ):
        if name != "./runs":
            with pytest.raises(CheckpointError, match=r"does not exist|has no config"):
                refervos.load(name)
    with pytest.raises(CheckpointError, match=r"did you mean samwise-mevis\?"):
        refervos.load("samwise-mevsi")
    with pytest.raises(CheckpointError, match="the folder runs exists, so it counts as a path"):
        Tokenizer.from_pretrained("runs/tokeniser")
    with pytest.raises(CheckpointError, match="tokeniser does not exist and is not a hub id"):
        Tokenizer.from_pretrained("tokeniser")
    assert world.requests == []


def test_the_second_of_two_waits_for_the_first(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(fetch_model(MEVIS, tokenizer=MINIATURE)))
    with locked(BY_NAME[MEVIS]):
        second.start()
        deadline = time.monotonic() + 60
        said = ""
        while "waiting for it" not in said and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capfd.readouterr().err
        assert f"another process is fetching {MEVIS}; waiting for it" in said
        assert world.downloads == []
        with pytest.raises(CheckpointError, match="another process is fetching samwise-mevis"):
            remove_model(MEVIS)
    second.join(60)
    assert found == [cache_folder() / MEVIS]


def test_two_at_once_download_once(world: World) -> None:
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(fetch_model(MEVIS, tokenizer=MINIATURE))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(120)
    assert found == [cache_folder() / MEVIS] * 2
    assert len(world.downloads) == 1


def test_what_is_in_the_package_cannot_be_removed() -> None:
    with pytest.raises(CheckpointError, match="miniature is part of the package"):
        remove_model("miniature")
    assert [model.name for model in MODELS if find_on_disk(model)][:3] == [
        "miniature",
        "refsam-miniature",
        "videoglamm-miniature",
    ]


MOMENTS = {
    "before the checks": "refervos.models.fetching._check_whole",
    "before the weights are read": "refervos.models.fetching.load_official",
    "before the checksum is pinned": "refervos.models.fetching.write_record",
    "before the model is written": "refervos.model_base.write_model",
    "before the weights are written": "safetensors.torch.save_file",
    "before it is put in place": "refervos.files.writing.PartialFolder.put_in_place",
    "after it is put in place": "refervos.models.fetching.discard_download",
}
"""Functions at whose call a process is killed."""


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fetch_in_child(patched: str | None) -> int:
    """Fetch in a forked process, which a function kills; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        if patched is not None:
            pytest.MonkeyPatch().setattr(patched, die)
        fetch_model(MEVIS, tokenizer=MINIATURE)
    finally:
        os._exit(0)


def is_repaired(world: World) -> None:
    """The next run makes the model whole and leaves nothing besides."""
    refervos.load(MEVIS, device="cpu")
    left = {str(path.relative_to(cache_folder())) for path in cache_folder().rglob("*") if path.is_file()}
    model = {
        f"{MEVIS}/{name}"
        for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert left - {f"downloads/{MEVIS}/.lock"} == model | {f"records/{MEVIS}.json"}


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


@POSIX
def test_a_run_killed_while_it_fetches_is_continued(world: World) -> None:
    world.hold = 2_000_000
    child = fetch_in_child(None)
    assert world.held.wait(60)
    time.sleep(0.5)  # what was sent arrives
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    world.release.set()
    world.hold = None
    assert find_on_disk(BY_NAME[MEVIS]) is None
    is_repaired(world)
    assert str(world.downloads[-1]).startswith("bytes=")


@POSIX
@pytest.mark.parametrize(
    "moment",
    [
        each if "weights are written" in each or "after" in each else pytest.param(each, marks=pytest.mark.slow)
        for each in MOMENTS
    ],
)
def test_a_run_killed_while_it_converts_is_repaired(world: World, moment: str) -> None:
    child = fetch_in_child(MOMENTS[moment])
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert (find_on_disk(BY_NAME[MEVIS]) is not None) == moment.startswith("after")
    is_repaired(world)
