"""Lists of sentences or words mean the same whatever editor saved them, and one sentence tells what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from refervos.errors import PromptError, RefervosError, TrainingError
from refervos.files.plain_text import read_entries
from refervos.training.stages.language import read_sentences
from refervos.training.stages.word_meanings import words_of

LISTED = "the dog\n\n  a café on the left  \nきのこ\n"
ENTRIES = ["the dog", "a café on the left", "きのこ"]

SAVED: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "as UTF-16": lambda text: text.encode("utf-16"),
    "with Windows' line ends": lambda text: text.replace("\n", "\r\n").encode(),
}

READERS: dict[str, Callable[[Path], Sequence[str]]] = {
    "sentences of the command line": lambda path: read_entries(path, "sentence", PromptError),
    "sentences of a language stage": lambda path: read_sentences(str(path)),
    "words of a language stage": lambda path: words_of(path)[len(words_of(None)) :],
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("reader", READERS)
def test_a_list_may_be_saved_by_any_editor(tmp_path: Path, reader: str, saved: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(SAVED[saved](LISTED))
    assert list(READERS[reader](path)) == ENTRIES


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"list.txt' cannot be read \(No such file or directory\)"),
    "a folder": (lambda path: path.mkdir(), "list.txt' is no file"),
    "a pipe": (a_pipe, "list.txt' is no file"),
    "empty": (lambda path: path.write_text("\n \n"), "list.txt' has no (sentence|word)"),
    "no text": (lambda path: path.write_bytes(b"the caf\xe9\n"), r"cannot be read \(it is no text in UTF-8\)"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("reader", READERS)
def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path: Path, reader: str, spoilt: str) -> None:
    make, told = SPOILT[spoilt]
    make(tmp_path / "list.txt")
    with pytest.raises(RefervosError, match=f"{told}; give a text file with one (sentence|word) a line") as refused:
        READERS[reader](tmp_path / "list.txt")
    assert isinstance(refused.value, PromptError if "command" in reader else TrainingError)
