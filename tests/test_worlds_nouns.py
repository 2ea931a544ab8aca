"""Everyday nouns: the table, synonyms and plurals, their drawings, and the splits of the benchmark that show them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from refervos.cli.entry import app
from refervos.diagnosis.diagnose import diagnose
from refervos.diagnosis.results import read_diagnosis
from refervos.diagnosis.tables import diagnosis_table
from refervos.errors import ConfigError, DataError
from refervos.loading import load
from refervos.worlds import (
    KINDS,
    Claim,
    Description,
    Facts,
    Motion,
    Noun,
    Scene,
    Sprites,
    Thing,
    WorldConfig,
    draw_clip,
    draw_scene,
    known_words,
    referring_expressions,
    sample_expressions,
)
from refervos.worlds.benchmark import NOUN_SPLITS, BenchmarkDrawings, diagnostic_case, diagnostic_cases
from refervos.worlds.drawings import DESIGNS, PHOTOGRAPHS, UNSEEN_DESIGN, Design, main, make_drawings, make_photographs
from refervos.worlds.facts import FALSE, TRUE, UNCLEAR
from refervos.worlds.nouns import everyday_nouns, names_of, nouns_overlap, plural
from refervos.worlds.sprites import PHOTOGRAPH_FOLDER, Sprite
from refervos.worlds.wording import PHRASES, Lexicon, word_description

NOUNS = everyday_nouns()


def test_the_table_is_large_and_consistent() -> None:
    assert len(NOUNS) >= 500
    assert sum(len(noun.unseen) for noun in NOUNS.values()) >= 30
    names = Counter(name for noun in NOUNS.values() for name in (noun.word, *noun.synonyms, *noun.unseen))
    assert not [name for name, count in names.items() if count > 1], "a word for two nouns"
    shapes = {name for kind, called in KINDS.items() for name in (kind, *called)}
    assert not shapes & set(names)
    for noun in NOUNS.values():
        assert noun.drawings, noun.word
        assert noun.ambiguous_with <= set(NOUNS) | set(KINDS), noun.word
    codes = Counter(code for noun in NOUNS.values() for code in noun.drawings)
    assert not [code for code, count in codes.items() if count > 1]


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        *(("mouse", "mice"), ("cup of tea", "cups of tea"), ("berry", "berries"), ("box", "boxes"), ("sheep", "sheep")),
        *(("circle", "circles"), ("cross", "crosses"), ("toy", "toys"), ("plus sign", "plus signs")),
    ],
)
def test_nouns_get_their_plurals(noun: str, several: str) -> None:
    assert plural(noun) == several


def test_kinds_are_named_by_nouns_and_synonyms() -> None:
    assert set(names_of("car")) == {"car"}
    assert names_of("car", unseen=True) == ("automobile",)
    assert names_of("gorilla", unseen=True) == names_of("gorilla") == ("gorilla", "ape")
    assert names_of("red fox") == ("red fox",)


def test_a_noun_that_may_apply_to_an_object_of_another_kind_is_unclear() -> None:
    for one, other in (("car", "police car"), ("dog", "poodle"), ("circle", "football")):
        assert nouns_overlap(one, other), (one, other)
        assert nouns_overlap(other, one), (one, other)
    assert not nouns_overlap("dog", "cat")
    image = Sprite("police car", "x", (Image.new("RGBa", (12, 12), (9, 9, 9, 255)),))
    things = tuple(
        Thing(kind, "", 0.15, Motion((0.25 + 0.5 * index, 0.5)), texture="", sprite=image)
        for index, kind in enumerate(("police car", "cat"))
    )
    facts = Facts.of(draw_scene(Scene(things), 4, (64, 64)))
    assert facts.evaluate_noun(Noun(kind="car")).tolist() == [UNCLEAR, FALSE]
    assert facts.evaluate_noun(Noun(kind="police car")).tolist() == [TRUE, FALSE]


def test_verbs_and_articles_agree_with_plural_nouns() -> None:
    rng = np.random.default_rng(0)
    for word in PHRASES:
        reference = Noun(kind="dog") if any("{ref}" in phrase for phrase in PHRASES[word]) else None
        for _ in range(12):
            text = word_description(Description(Noun("red", "", "scissors"), Claim(word, reference)), rng)
            end = text.partition(" that ")[2].split()
            assert not end or end[0] not in {"is", "moves", "does", "stays", "goes", "grows", "leaves", "comes"}, text
    looks = {word_description(Description(Noun("red", "", "scissors")), rng) for _ in range(60)}
    assert not any(text.startswith("a ") for text in looks), looks
    assert {"the red scissors", "the scissors that are red", "red scissors"} <= looks
    assert word_description(Description(Noun(kind="car")), rng, Lexicon(unseen=True)).endswith("automobile")


def write_cutout(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(image).rounded_rectangle((4, 4, 35, 35), 8, fill=(*colour, 255))
    image.save(path)


@pytest.fixture
def drawings_folder(tmp_path: Path) -> Path:
    """Two designs of four objects, and a photograph."""
    for design in ("one", "two"):
        for index, word in enumerate(("car", "dog", "cup of tea", "scissors")):
            write_cutout(tmp_path / design / word / "0.png", (220, 30, 30) if index % 2 else (30, 60, 230))
    (tmp_path / PHOTOGRAPH_FOLDER).mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(tmp_path / PHOTOGRAPH_FOLDER / "wood.jpg")
    return tmp_path


def test_designs_are_chosen_by_name(drawings_folder: Path) -> None:
    everything, one = Sprites.open(drawings_folder), Sprites.open(drawings_folder, ["one"])
    assert len(everything.cutouts) == 8
    assert len(one.cutouts) == 4
    assert everything.subjects == one.subjects == ("car", "cup of tea", "dog", "scissors")
    assert len(one.photographs) == 1
    with pytest.raises(ConfigError, match="has no sub-folder 'three'; its sub-folders are grounds, one, two"):
        Sprites.open(drawings_folder, ["three"])


def test_photographs_become_backgrounds(drawings_folder: Path) -> None:
    sprites = Sprites.open(drawings_folder)
    config = WorldConfig(height=48, width=64, frames=3, pan=1.0, sprites=str(drawings_folder), photographs=1.0)
    config = replace(config, background_strength=(0.0, 0.0))
    clips = [draw_clip(seed, config, sprites) for seed in range(6)]
    plain = [draw_clip(seed, replace(config, photographs=0.0), sprites) for seed in range(6)]
    for clip, other in zip(clips, plain, strict=True):
        assert clip.scene.photograph is not None
        assert other.scene.photograph is None
        ground = clip.frames[0][~clip.masks[:, 0].any(axis=0)].astype(int)
        smooth = other.frames[0][~other.masks[:, 0].any(axis=0)].astype(int)
        assert (
            np.abs(np.diff(ground, axis=0)).mean() > 2 * np.abs(np.diff(smooth, axis=0)).mean()
        )  # noise, not a gradient
        assert ground.min() >= 20
    assert not np.array_equal(clips[0].frames[0], clips[0].frames[2])  # the camera moves over it


def test_expressions_for_training_contain_no_unseen_synonym(drawings_folder: Path) -> None:
    sprites = Sprites.open(drawings_folder)
    unseen = {name for noun in NOUNS.values() for name in noun.unseen}
    config = WorldConfig(height=48, width=64, frames=4, sprites=str(drawings_folder), sprite_share=1.0)
    texts = set()
    for seed in range(60):
        clip, rng = draw_clip(seed, config, sprites), np.random.default_rng(seed)
        texts |= {expression.text for expression in referring_expressions(clip, rng, sprites.subjects)}
        texts |= {
            expression.text for expression in sample_expressions(clip, rng, 4, subjects=sprites.subjects, pairs=0.5)
        }
    words = {word for text in texts for word in text.split()}
    assert not words & unseen, words & unseen
    assert {"car", "dog", "scissors", "tea"} <= words


def test_near_misses_of_cutouts_name_other_subjects(drawings_folder: Path) -> None:
    sprites = Sprites.open(drawings_folder)
    config = WorldConfig(height=48, width=64, frames=1, sprites=str(drawings_folder), sprite_share=1.0, objects=(2, 2))
    kinds = set()
    for seed in range(80):
        clip = draw_clip(seed, config, sprites)
        sampled = sample_expressions(clip, np.random.default_rng(seed), 2, {"kind": 1.0}, sprites.subjects, pairs=1.0)
        for near in sampled[1:]:  # follows the expression that it resembles
            assert isinstance(near.description, Description)
            noun = near.description.noun
            kinds.add(noun.kind)
            assert not any((noun.colour in ("", t.colour)) and noun.kind == t.kind for t in clip.scene.objects)
    assert kinds == set(sprites.subjects), kinds


# The download of drawings, from archives with the layout of the registry's.


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return out.getvalue()


def icons(names: dict[str, str], listed: dict[str, str], aliases: dict[str, dict[str, str]] | None = None) -> bytes:
    bodies = {name: {"body": f'<circle cx="64" cy="64" r="50" fill="{colour}"/>'} for name, colour in names.items()}
    index = {"prefix": "x", "icons": bodies, "aliases": aliases or {}, "width": 128, "height": 128}
    files = {"package/icons.json": json.dumps(index).encode(), "package/chars.json": json.dumps(listed).encode()}
    return archive(files)


def webp(colour: tuple[int, int, int]) -> bytes:
    image, out = Image.new("RGBA", (64, 64)), io.BytesIO()
    ImageDraw.Draw(image).ellipse((5, 5, 58, 58), fill=(*colour, 255))
    image.save(out, "WEBP", lossless=True)
    return out.getvalue()


def published(name: str, package: str, data: bytes) -> tuple[Design, bytes]:
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return Design(name, package, "1.0.0", digest, "MIT", "nobody"), data


def test_drawings_are_made_of_archives(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    rendered = {f"package/assets/{code}.webp": webp((230, 30, 30)) for code in ("1f697", "1f436")}
    pairs = [
        published("rendered", "@a/rendered", archive(rendered)),
        published(
            "listing",
            "@a/listing",
            icons({"car": "#e01010", "dog-face": "#888"}, {"1f697": "car", "1f436-fe0f": "dog-face"}),
        ),
        # Lists no code points: its drawings are found by the names in the other packages, or their aliases.
        published("silent", "@a/silent", icons({"autocar": "#1010e0"}, {}, {"car": {"parent": "autocar"}})),
    ]
    by_address = {design.url: data for design, data in pairs}
    assert "https://registry.npmjs.org/@a/listing/-/listing-1.0.0.tgz" in by_address
    few = {word: NOUNS[word] for word in ("car", "dog", "cat")}
    messages: list[str] = []
    counts = make_drawings(
        tmp_path, size=32, designs=[d for d, _ in pairs], nouns=few, fetch=by_address.__getitem__, log=messages.append
    )
    # Cars are recolourable: three more of each; dogs are not.
    assert counts == {"rendered": 5, "listing": 5, "silent": 4}
    assert len(messages) == 3
    sprites = Sprites.open(tmp_path)
    assert sprites.subjects == ("car", "dog")
    colours = {image.colour for image in Sprites.open(tmp_path, ["listing"]).by_subject["car"]}
    assert "red" in colours
    assert len(colours) >= 3
    assert "@a/silent 1.0.0" in (tmp_path / "LICENCES.md").read_text()


def test_photographs_are_extracted_from_a_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"./usr/share/backgrounds/{name}": name.encode() for name, _ in PHOTOGRAPHS}
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": archive(files)}
    package = b"!<arch>\n"
    for name, data in members.items():
        package += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    with pytest.raises(DataError, match="differs from the published package"):
        make_photographs(tmp_path, fetch=lambda address: package)
    monkeypatch.setattr("refervos.worlds.drawings.PHOTOGRAPH_DIGEST", hashlib.sha256(package).hexdigest())
    assert make_photographs(tmp_path, fetch=lambda address: package) == len(PHOTOGRAPHS)
    for name, _ in PHOTOGRAPHS:
        assert (tmp_path / PHOTOGRAPH_FOLDER / name).read_text() == name
        assert name in (tmp_path / "LICENCES.md").read_text()


def test_an_archive_that_differs_from_the_published_one_is_refused(tmp_path: Path) -> None:
    design, data = published("rendered", "@a/rendered", archive({}))
    with pytest.raises(DataError, match="differs from the published archive"):
        make_drawings(tmp_path, designs=[design], fetch=lambda address: data + b"x")
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("refervos.worlds.drawings.REGISTRY", "http://127.0.0.1:9")
    assert main([str(tmp_path)]) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


def test_the_unseen_design_is_one_of_six() -> None:
    assert len(DESIGNS) == 6
    assert UNSEEN_DESIGN in {design.name for design in DESIGNS}


# The benchmark's splits of everyday objects.


@pytest.fixture(scope="module")
def six_designs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight objects in every design; some have synonyms that training never uses."""
    folder = tmp_path_factory.mktemp("drawings")
    for number, design in enumerate(DESIGNS):
        for index, word in enumerate(("car", "dog", "cup of tea", "scissors", "rabbit", "apple", "sofa", "gorilla")):
            write_cutout(folder / design.name / word / "0.png", (255 - 20 * number, 30 + 25 * index, 40 * number))
    return folder


def test_each_noun_split_shows_its_drawings_and_uses_its_nouns(six_designs: Path) -> None:
    drawings = BenchmarkDrawings.open(six_designs)
    unseen = {name for noun in NOUNS.values() for name in noun.unseen}
    cases = {split: list(diagnostic_cases(split, 4, height=64, width=64, drawings=drawings)) for split in NOUN_SPLITS}
    again = diagnostic_case("synonyms", 3, height=64, width=64, drawings=drawings)
    assert np.array_equal(again.clip.frames, cases["synonyms"][3].clip.frames)
    assert again.expression == cases["synonyms"][3].expression
    for split, found in cases.items():
        shown = drawings.unseen if split == "unseen drawings" else drawings.known
        for case in found:
            assert case.split == split
            (target,) = case.expression.targets
            kind = case.clip.scene.objects[target].kind
            assert isinstance(case.expression.description, Description)
            assert case.expression.description.noun.kind == kind
            assert case.expression.description.claim is None
            assert all(thing.sprite in shown.cutouts for thing in case.clip.scene.objects)
            said = {name for name in unseen if name in case.expression.text.split()}
            assert bool(said) == (split == "synonyms"), case.expression.text
            assert case.other is not None
    for one, two in zip(cases["synonyms"], cases["synonyms by noun"], strict=True):
        assert np.array_equal(one.clip.frames, two.clip.frames)
        assert one.expression.description == two.expression.description
        (target,) = two.expression.targets
        assert two.clip.scene.objects[target].kind in two.expression.text
    with pytest.raises(ConfigError, match="split 'nouns' needs drawings of everyday objects; make them with"):
        diagnostic_case("nouns", 0)


def test_headline_figures_are_means_over_the_first_ten_splits(six_designs: Path) -> None:
    drawings = BenchmarkDrawings.open(six_designs)
    model = load(device="cpu")
    draw = partial(diagnostic_cases, height=64, width=64, drawings=drawings)
    both = diagnose(model, ["appearance", "nouns"], 2, draw=draw)
    alone = diagnose(model, ["appearance"], 2, draw=draw)
    nouns = diagnose(model, ["nouns"], 2, draw=draw)
    assert both.splits == ("appearance", "nouns")
    assert both.target_mean == alone.target_mean
    assert both.t_acc == alone.t_acc
    assert nouns.target_mean is not None
    table = diagnosis_table(both)
    assert "| nouns " in table
    assert "| target splits | 2 " in " ".join(table.split()).replace("  ", " ")


def test_diagnose_runs_the_noun_splits_with_a_folder_of_drawings(six_designs: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    arguments = ["diagnose", "miniature", "--split", "nouns", "--count", "1", "--quiet", "--out", str(out)]
    failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code != 0
    assert "needs drawings of everyday objects" in str(failed.exception)
    done = CliRunner().invoke(app, [*arguments, "--drawings", str(six_designs)])
    assert done.exit_code == 0, done.output
    assert read_diagnosis(out).splits == ("nouns",)


def test_bundled_models_list_the_words_of_their_training() -> None:
    subjects = {"miniature": tuple(NOUNS), "refsam-miniature": ()}
    for name, drawn in subjects.items():
        model: Any = load(name, device="cpu")
        assert model.config.words == known_words(drawn)
    assert {"circle", "leftmost", "spins", "everything", "circles"} <= set(known_words())
    assert {"car", "cars", "mice", "smartphone"} <= set(known_words(["car", "mouse", "phone"]))
    assert "automobile" not in known_words(["car"])
