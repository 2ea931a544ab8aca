"""The child process that decodes videos for the server and for batch: its messages, and its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refervos.errors import EndOfVideoError, VideoError
from refervos.video.decoder_process import DecoderProcess, Message, frame_of, raise_error

CHILD = """
import os, sys, time
import numpy as np
from refervos.errors import EndOfVideoError
from refervos.video import Frame
from refervos.video.decoder_process import answer_requests, frame_message

def answer(request):
    do = request["do"]
    if do == "frames":
        os.write(1, b"a library prints")
        for index in range(3):
            image = np.full((4, 6, 3), index, np.uint8)[:, ::-1]
            yield frame_message(Frame(index, image, index / 2, "name", index == 1), outages=index)
        yield {"end": True}, b""
    elif do == "fail":
        raise EndOfVideoError("The video has ended.")
    elif do == "memory":
        raise MemoryError
    elif do == "pid":
        yield {"pid": os.getpid(), "arguments": sys.argv[1:]}, b""
    elif do == "exit":
        os._exit(3)
    else:
        time.sleep(600)

answer_requests(answer)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    """Return a child process with the answers of ``CHILD``."""
    (tmp_path / "answering_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    process = DecoderProcess("answering_child", 7, 1.5, quiet=True)
    yield process
    process.close()


def ask(child: DecoderProcess, do: str, wait: float | None = None) -> Message | None:
    child.send({"do": do})
    return child.receive(wait)


def test_frames_pass_the_pipe_unchanged_and_prints_do_not_mix_with_them(child: DecoderProcess) -> None:
    child.send({"do": "frames"})
    for index in range(3):
        message = child.receive()
        assert message is not None
        assert message[0]["outages"] == index
        frame = frame_of(message)
        assert (frame.index, frame.time, frame.name, frame.after_gap) == (index, index / 2, "name", index == 1)
        assert np.array_equal(frame.image, np.full((4, 6, 3), index, np.uint8))
    assert child.receive() == ({"end": True}, b"")


def test_errors_are_messages_and_the_process_goes_on(child: DecoderProcess) -> None:
    message = ask(child, "fail")
    assert message is not None
    with pytest.raises(EndOfVideoError, match=r"^The video has ended\.$"):
        raise_error(message[0], EndOfVideoError)
    with pytest.raises(VideoError) as raised:
        raise_error(message[0])
    assert type(raised.value) is VideoError
    message = ask(child, "memory")
    assert message is not None
    with pytest.raises(VideoError, match="too much memory"):
        raise_error(message[0])
    message = ask(child, "pid")
    assert message is not None
    assert message[0]["arguments"] == ["7", "1.5"]


def test_a_silent_process_is_killed_and_a_dead_one_gives_nothing(child: DecoderProcess) -> None:
    assert ask(child, "pid") is not None
    assert ask(child, "sleep", wait=0.2) is None
    assert child.ending() == "killed by SIGKILL"
    assert not child.running
    assert ask(child, "pid") is None
    child.close()
    assert ask(child, "pid") is None


def test_a_process_that_ends_by_itself_is_reported(child: DecoderProcess) -> None:
    assert ask(child, "exit") is None
    assert child.ending() == "exit code 3"


def test_a_process_that_hangs_ends_with_its_parent(child: DecoderProcess) -> None:
    message = ask(child, "pid")
    assert message is not None
    child.send({"do": "sleep"})
    pipe = child._child.stdin
    assert pipe is not None
    pipe.close()  # as the system does when the parent is killed
    deadline = time.monotonic() + 60
    while child.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.ending() == "exit code 0"
