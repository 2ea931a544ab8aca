"""A model with a closed vocabulary says which words of a sentence it was never trained on, and what to use instead."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts
import refervos
from refervos.cli.entry import main
from refervos.errors import UnknownWordsWarning
from refervos.loading import bundled_folder, trained_words
from refervos.samwise.model import Samwise
from refervos.text.vocabulary import unknown_words
from refervos.worlds import known_words
from refervos.worlds.nouns import everyday_nouns

CLIP = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"

KNOWN = (
    "the red circle",
    "The Red Circle",
    "THE RED CIRCLE!",
    "the red circles",
    "red circle",
    "the blue star that moves to the right",
    "the blue stars that move to the right.",
    "a green triangle",
    "an orange square?",
    "the square's left side",
    "the square\u2019s left side",
    "the biggest of all shapes",
    "the smaller one",
    "the two yellow rings",
    "the cross (on the right)",
    "the shape which is behind the purple heart",
    "the hearts that spin",
    "the moon that stops; then it moves",
    "the striped triangle in the middle",
    "it has been there before: the pink disc",
    "they should have been white squares",
    "the circle and the square, both of them",
    "everything that moves",
    "the leftmost and the rightmost crescents",
    "the thing that leaves the view",
)

UNKNOWN = {
    "the walrus": ("walrus",),
    "The Walrus": ("walrus",),
    "a walrus on the grass": ("walrus", "grass"),
    "the red wagon": ("wagon",),
    "the red wagons": ("wagons",),
    "the lynx that jumps over the fence": ("lynx", "jumps", "fence"),
    "the man in the blue sweater": ("man", "sweater"),
    "the woman's left hand": ("woman", "hand"),
    "a puffin, a puffin and a puffin": ("puffin",),
    "the circle that sings": ("sings",),
    "the turquoise square": ("turquoise",),
    "red-haired girl": ("haired", "girl"),
    "the hexagon": ("hexagon",),
    "the person holding a pebble": ("person", "holding", "pebble"),
    "2 circles": ("2",),
    "the player number 10": ("player", "number", "10"),
    "café": ("café",),
    "das rote Quadrat": ("das", "rote", "quadrat"),
    "红色的圆": ("红色的圆",),
    "the iguana 🦎 on the left": ("iguana",),
    "a tank that turns left": ("tank",),
    "the iguana's tail": ("iguana", "tail"),
    "two pebbles": ("pebbles",),
    "black": ("black",),
    "trampoline!": ("trampoline",),
}
"""Sentences with the words that neither miniature nor refsam-miniature knows."""

ONLY_SHAPES = {
    "the horse": ("horse",),
    "The red cars!": ("cars",),
    "a zebra behind the elephant": ("zebra", "elephant"),
    "two dogs": ("dogs",),
    "the cat's umbrella": ("cat", "umbrella"),
    "the butterfly that is turning": ("butterfly",),
}
"""Sentences that miniature knows, with the words that refsam-miniature does not know: it learned only shapes."""


def test_fifty_sentences_are_tried() -> None:
    assert len(set(KNOWN)) + len(UNKNOWN) == 50


@pytest.mark.parametrize("model", ["miniature", "refsam-miniature"])
def test_known_and_unknown_words_are_told_apart(model: str) -> None:
    words = trained_words(model)
    assert {sentence: found for sentence in KNOWN if (found := unknown_words(sentence, words))} == {}
    assert {sentence: unknown_words(sentence, words) for sentence in UNKNOWN} == UNKNOWN


def test_everyday_nouns_are_known_to_the_miniature_alone() -> None:
    shapes, nouns = trained_words("refsam-miniature"), trained_words("miniature")
    assert {sentence: unknown_words(sentence, shapes) for sentence in ONLY_SHAPES} == ONLY_SHAPES
    assert {sentence: found for sentence in ONLY_SHAPES if (found := unknown_words(sentence, nouns))} == {}


def test_the_bundled_models_carry_the_words_of_the_worlds_and_an_open_vocabulary_has_all_words() -> None:
    assert set(trained_words("refsam-miniature")) == set(known_words())
    assert set(trained_words("miniature")) == set(known_words(tuple(everyday_nouns())))
    assert unknown_words("the horse", ()) == ()


@pytest.fixture(scope="module")
def miniature() -> Samwise:
    model = refervos.load("miniature", device="cpu")
    assert isinstance(model, Samwise)
    return model


def test_the_conversation_model_knows_the_words_of_its_tokenizer() -> None:
    model: Any = refervos.load("videoglamm-miniature", device="cpu")
    assert trained_words("videoglamm-miniature") == model.words
    assert {"circle", "circles", "nothing", "enters"} <= set(model.words)
    assert not {"<unk>", "<p>", "?", "seg"} & set(model.words)
    assert model.unknown_words("Is the Horse red? No zebra, no \u7ea2 horse!") == ("horse", "zebra", "\u7ea2")
    assert model.unknown_words("Whose red circle sings?") == ("sings",)
    talk = model.converse(np.zeros((2, 96, 128, 3), np.uint8))
    with pytest.warns(UnknownWordsWarning, match="does not know whose, horse, zebra: it cannot read these words, and"):
        talk.ask("Whose horse is a zebra?", limit=1).finish()
    with pytest.warns(UnknownWordsWarning, match="does not know horse: masks for these words are guesses"):
        model.open(["the red horse"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        talk.ask("Is the zebra red?", limit=1).finish()  # each word once
        talk.ask("What is happening here?", limit=1).finish()
        model.open(["the red circle"])


def test_a_tokenizer_that_reads_any_word_has_no_closed_vocabulary(tmp_path: Path) -> None:
    shutil.copytree(bundled_folder("videoglamm-miniature") or "", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy((bundled_folder("miniature") or Path()) / name, tmp_path / "model" / name)
    assert trained_words(tmp_path / "model") == ()
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    assert trained_words(tmp_path / "model") == ()


def test_a_session_warns_once_about_each_word(miniature: Samwise) -> None:
    with pytest.warns(UnknownWordsWarning) as first:
        session = miniature.open(["the walrus", "the red circle", "a beige lynx"])
    (warning,) = [str(each.message) for each in first]
    assert "does not know walrus, beige, lynx (2 of 3 sentences)" in warning
    assert "'refervos models fetch samwise-mevis'" in warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.add("the beige lynx")
        session.set_prompt(1, "the blue star")
        session.add_missing(["the walrus", "the red circles"])
    with pytest.warns(UnknownWordsWarning, match="does not know iguana:"):
        session.set_prompt(1, "the iguana")
    with pytest.warns(UnknownWordsWarning, match="does not know wagon:"):
        session.add("the wagon")


def test_models_without_a_list_of_words_never_warn(miniature: Samwise, tmp_path: Path) -> None:
    shutil.copytree(bundled_folder("miniature") or "", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["config"]["words"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    old = refervos.load(tmp_path / "old", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old.open(["the walrus"])
        miniature.open([refervos.Prompt("the red circle", points=[(10, 10)])])
    assert trained_words(tmp_path / "old") == trained_words(tmp_path / "nowhere") == ()


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run the command line in this process, and return what it says on standard error."""
    monkeypatch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    return capsys.readouterr().err


def test_segment_says_it_once_for_a_folder_of_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(CLIP, tmp_path / "clips" / name)
    options = ("--frames", 1, "--save", "rle", "--device", "cpu", "--quiet")
    out = ("--out", tmp_path / "out")
    said = run(capsys, monkeypatch, "segment", tmp_path / "clips", "the walrus", "the red circle", *out, *options)
    assert said.count("warning: the model was trained on synthetic drawings only and does not know walrus") == 1
    assert said.count("\n") == 1
    assert run(capsys, monkeypatch, "segment", CLIP, "The red circles!", "--out", tmp_path / "b", *options) == ""


def test_eval_says_it_once_for_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.write_mevis(tmp_path / "mevis")
    for file in (tmp_path / "mevis").rglob("meta_expressions.json"):
        file.write_text(file.read_text().replace('"exp": "', '"exp": "the puffin and '))
    out = ("--out", tmp_path / "out", "--device", "cpu", "--quiet")
    said = run(capsys, monkeypatch, "eval", "miniature", "mevis", tmp_path / "mevis", "--split", "valid_u", *out)
    assert said.count("the model was trained on synthetic drawings only and does not know puffin") == 1
