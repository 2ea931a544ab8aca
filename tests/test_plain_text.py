"""Lists of sentences or words: saved by any editor, and refused with one sentence if unreadable."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from refervos.errors import PromptError, RefervosError, TrainingError
from refervos.files.plain_text import read_entries
from refervos.training.stages.language import read_sentences
from refervos.training.stages.word_meanings import taught_words

CONTENT = "the dog\n\n  a café on the left  \nきのこ\n"
ENTRIES = ["the dog", "a café on the left", "きのこ"]

SAVED: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "as UTF-16": lambda text: text.encode("utf-16"),
    "with Windows' line breaks": lambda text: text.replace("\n", "\r\n").encode(),
}

READERS: dict[str, Callable[[Path], Sequence[str]]] = {
    "sentences of the command line": lambda path: read_entries(path, "sentence", PromptError),
    "sentences of a language stage": lambda path: read_sentences(str(path)),
    "words of a language stage": lambda path: taught_words(path)[len(taught_words(None)) :],
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("reader", READERS)
def test_a_list_may_be_saved_by_any_editor(tmp_path: Path, reader: str, saved: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(SAVED[saved](CONTENT))
    assert list(READERS[reader](path)) == ENTRIES


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"list.txt' cannot be read \(No such file or directory\)"),
    "a folder": (lambda path: path.mkdir(), "list.txt' is not a file"),
    "a pipe": (a_pipe, "list.txt' is not a file"),
    "empty": (lambda path: path.write_text("\n \n"), "list.txt' has no (sentence|word)"),
    "no text": (lambda path: path.write_bytes(b"the caf\xe9\n"), r"cannot be read \(it is not UTF-8 text\)"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("reader", READERS)
def test_an_unreadable_list_is_refused_with_one_sentence(tmp_path: Path, reader: str, spoilt: str) -> None:
    make, message = SPOILT[spoilt]
    make(tmp_path / "list.txt")
    with pytest.raises(
        RefervosError, match=f"{message}; give a text file with one (sentence|word) per line"
    ) as refused:
        READERS[reader](tmp_path / "list.txt")
    assert isinstance(refused.value, PromptError if "command" in reader else TrainingError)
