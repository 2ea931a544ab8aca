"""Models go to the hub and come back: revisions, pull requests, caches without a network, shards, and model cards."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn

import refervos
from layouts_images import write_json_lines
from refervos.checkpoints.card import CardDetails, MeasuredResult
from refervos.checkpoints.hub import HubCommit, commit_of
from refervos.checkpoints.weights import weights_digest
from refervos.cli.entry import main
from refervos.errors import CheckpointError, ConfigError, EvaluationError
from refervos.evaluation.card_results import read_results
from refervos.refsam.model import RefSam
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.model import Samwise
from scenes import MICRO_SAM2, micro_model, scene
from stand_ins import COMMIT, TOKEN, Repository, World, connect, forbid_requests, serve

ID = "someone/tiny-samwise"
SHARD = 700_000
"""Bytes; the largest tensor of the tiny model has 590,000, and all have 3.8 million."""


@pytest.fixture(scope="module")
def model() -> Samwise:
    return micro_model()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty hub, and an empty cache."""
    with serve(World()) as up:
        connect(monkeypatch, up.port, tmp_path / "home")
        yield up


def other_model() -> Samwise:
    """Make a model with other weights."""
    other = micro_model()
    with torch.no_grad():
        other.state_dict()["text_prompt.layers.0.bias"].add_(1)
    return other


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def load(name: object, **options: Any) -> Any:
    return refervos.load(str(name), device="cpu", **options)


def run(*arguments: object) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["refervos", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def test_a_model_that_is_pushed_comes_back_by_its_id(world: World, model: Samwise) -> None:
    address = model.push_to_hub(ID, commit_message="First weights", private=True, token=TOKEN)
    repository = world.repositories[ID]
    commit = repository.refs["main"]
    assert address.endswith(f"/{ID}/commit/{commit}")
    assert repository.private
    assert repository.messages == ["First weights"]
    assert set(repository.files()) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert len(world.uploads) == 1  # the weights go by Git LFS
    assert f'refervos.load("{ID}")' in repository.files()["README.md"].decode()
    for loaded in (load(ID), Samwise.from_pretrained(ID, device="cpu")):
        assert isinstance(loaded, Samwise)
        assert loaded.hub_commit == HubCommit(ID, commit)
        assert_equal(loaded, model)


def test_branches_commits_and_pull_requests_are_separate(world: World, model: Samwise) -> None:
    model.push_to_hub(ID, token=TOKEN)
    other = other_model()
    first = world.repositories[ID].refs["main"]
    other.push_to_hub(ID, revision="second", token=TOKEN)
    address = other.push_to_hub(ID, create_pr=True, commit_message="Better", token=TOKEN)
    assert address.endswith(f"/{ID}/discussions/1")
    assert world.repositories[ID].refs["main"] == first
    for revision, expected in ((None, model), ("main", model), (first, model), ("second", other), ("refs/pr/1", other)):
        loaded = load(ID, revision=revision)
        assert_equal(loaded, expected)
        assert loaded.hub_commit.commit == world.repositories[ID].commit_at(revision or "main")
    with pytest.raises(CheckpointError, match="it has no revision third: give a branch, a tag or a commit"):
        load(ID, revision="third")


def test_new_weights_replace_all_old_weight_files_of_a_repository(world: World, model: Samwise) -> None:
    model.push_to_hub(ID, token=TOKEN)
    other_model().push_to_hub(ID, max_shard_size=SHARD, token=TOKEN)
    names = set(world.repositories[ID].files())
    assert "model.safetensors" not in names
    assert len([name for name in names if name.startswith("model-")]) > 2
    assert_equal(load(ID), other_model())
    assert len(world.repositories[ID].messages) == 2  # one commit each: nobody sees half of a model


def test_a_model_in_a_subfolder_is_loaded(world: World, model: Samwise, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "all" / "large")
    files = {f"large/{path.name}": path.read_bytes() for path in (tmp_path / "all" / "large").iterdir()}
    world.repositories[ID] = Repository.of({**files, "small/config.json": b"{}"})
    loaded = load(ID, subfolder="large")
    assert_equal(loaded, model)
    assert loaded.hub_commit == HubCommit(ID, COMMIT)
    assert not any("small" in path for path, _ in world.requests if "resolve" in path)
    assert_equal(load(tmp_path / "all", subfolder="large"), model)
    with pytest.raises(CheckpointError, match="someone/tiny-samwise has no folder middle with a model"):
        load(ID, subfolder="middle")
    with pytest.raises(CheckpointError, match="all has no folder middle; give a folder inside it"):
        load(tmp_path / "all", subfolder="middle")
    for outside in ("../all", "/etc", "a/../../b", "..\\all"):
        with pytest.raises(CheckpointError, match="it must be a folder inside the model's"):
            load(tmp_path / "all" / "large", subfolder=outside)


def test_a_model_in_the_cache_needs_no_network(
    world: World, model: Samwise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub(ID, token=TOKEN)
    commit = world.repositories[ID].refs["main"]
    load(ID)
    load(ID, cache_dir=tmp_path / "elsewhere")
    forbid_requests(monkeypatch)
    assert_equal(load(ID, local_files_only=True), model)
    assert_equal(load(ID, local_files_only=True, revision=commit), model)
    assert commit_of(tmp_path / "elsewhere" / "models--someone--tiny-samwise" / "snapshots" / commit) is not None
    assert_equal(load(ID, local_files_only=True, cache_dir=tmp_path / "elsewhere"), model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_equal(load(ID), model)
    assert load(ID).hub_commit == HubCommit(ID, commit)


def test_what_is_not_in_the_cache_is_named_and_not_fetched(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_requests(monkeypatch)
    with pytest.raises(CheckpointError, match=r"it is not in the cache .*hub, and local_files_only forbids"):
        load(ID, local_files_only=True)
    with pytest.raises(CheckpointError, match=r"not in the cache .*elsewhere in revision v1, and local_files_only"):
        load(ID, local_files_only=True, cache_dir=tmp_path / "elsewhere", revision="v1")
    with pytest.raises(CheckpointError, match="samwise-mevis is not on disk, and local_files_only forbids to fetch it"):
        load("samwise-mevis", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="it is not in the cache, and HF_HUB_OFFLINE is set"):
        load(ID)


def test_a_misspelt_path_is_never_looked_up(
    world: World, model: Samwise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    forbid_requests(monkeypatch)
    for name in (
        "runs/modle",
        "modle",
        "runs/modle/",
        "./runs/modle",
        "../modle",
        "weights/modle.safetensors",
        "a/b/c",
    ):
        with pytest.raises(CheckpointError, match="does not exist"):
            load(name, revision="main", token=TOKEN)
        with pytest.raises(CheckpointError, match="does not exist"):
            Samwise.from_pretrained(name, subfolder="large")


def test_options_of_the_hub_are_refused_where_they_mean_nothing(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"revision is 'v1', but .*model is on this disk and has no revisions"):
        load(tmp_path / "model", revision="v1")
    with pytest.raises(CheckpointError, match=r"revision is 'v1', but .*miniature is on this disk"):
        load("miniature", revision="v1")
    with pytest.raises(CheckpointError, match="cache_dir is given, but samwise-mevis is kept in the cache"):
        load("samwise-mevis", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="revison"):
        load(tmp_path / "model", revison="v1")


def test_from_pretrained_of_another_family_is_refused(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "samwise")
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(tmp_path / "sam2")
    assert isinstance(Samwise.from_pretrained(tmp_path / "samwise", device="cpu"), Samwise)
    assert isinstance(Sam2Segmenter.from_pretrained(tmp_path / "sam2", device="cpu"), Sam2Segmenter)
    assert isinstance(RefSam.from_pretrained("refsam-miniature", device="cpu"), RefSam)
    with pytest.raises(CheckpointError, match=r"is a Samwise, not a RefSam; use Samwise or refervos.load"):
        RefSam.from_pretrained(tmp_path / "samwise", device="cpu")


def unreachable(*_: Any) -> None:
    raise ConnectionRefusedError("Connection refused")


@pytest.mark.parametrize(
    ("status", "token", "sentence"),
    [
        (200, "hf_reader", "the hub needs an access token: run 'hf auth login', or give token"),
        (403, TOKEN, "the token may not write there: use one with write access, or create_pr=True"),
        (503, TOKEN, "the hub replies with status 503: try again later"),
    ],
)
def test_a_refused_upload_is_explained(world: World, model: Samwise, status: int, token: str, sentence: str) -> None:
    world.hub = status
    with pytest.raises(CheckpointError, match=f"{ID} cannot be written on the hub .{sentence}"):
        model.push_to_hub(ID, token=token)
    assert world.repositories == {}


def test_an_upload_without_a_network_is_explained(
    world: World, model: Samwise, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"a/b/c cannot be written on the hub .it is not owner/name"):
        model.push_to_hub("a/b/c", token=TOKEN)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", unreachable)
        with pytest.raises(CheckpointError, match="the hub cannot be reached: check the network"):
            model.push_to_hub(ID, token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"):
        model.push_to_hub(ID, token=TOKEN)


def test_the_commit_is_shown_by_info(world: World, model: Samwise, capsys: pytest.CaptureFixture[str]) -> None:
    model.push_to_hub(ID, token=TOKEN)
    commit = world.repositories[ID].refs["main"]
    assert run("info", ID) == 0
    assert capsys.readouterr().out.startswith(f"SAMWISE, {ID}@{commit}\n")
    assert run("info", ID, "--json") == 0
    assert json.loads(capsys.readouterr().out)["hub"] == f"{ID}@{commit}"


CONVERSIONS: dict[str, Callable[[Samwise], Samwise]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_positions_stay_exact_on_the_way_through_the_hub(world: World, model: Samwise, conversion: str) -> None:
    exact = {name: value for name, value in model.state_dict().items() if is_position(name)}
    assert len(exact) > 1
    model.push_to_hub(ID, token=TOKEN)
    converted = CONVERSIONS[conversion](Samwise.from_pretrained(ID, device="cpu"))
    dtype = torch.float16 if conversion == "half" else torch.bfloat16
    assert converted.compute_dtype == dtype
    converted.push_to_hub(ID, revision="rounded", token=TOKEN)
    again = load(ID, revision="rounded", dtype=dtype)
    for state in (converted.state_dict(), again.state_dict()):
        assert state["text_prompt.layers.0.weight"].dtype == dtype
        for name, value in exact.items():
            assert state[name].dtype == torch.float32, name
            assert torch.equal(state[name], value), name
    assert json.loads(world.repositories[ID].files("rounded")["config.json"])["dtype"] == str(dtype).removeprefix(
        "torch."
    )


def is_position(name: str) -> bool:
    return name.endswith(("positional_embedding", "shared_image_embedding.positional_embedding"))


# Shards.


def test_weights_above_the_limit_are_split_into_files_with_an_index(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model", max_shard_size=SHARD)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(path.name for path in (tmp_path / "model").glob("*.safetensors")) == files
    sizes = [sum(value.nbytes for value in load_file(tmp_path / "model" / name).values()) for name in files]
    assert all(size <= SHARD for size in sizes)
    assert sum(sizes) == index["metadata"]["total_size"] == sum(value.nbytes for value in model.state_dict().values())
    assert_equal(load(tmp_path / "model"), model)
    model.save_pretrained(tmp_path / "half", dtype=torch.float16, max_shard_size=SHARD)
    assert len(list((tmp_path / "half").glob("*.safetensors"))) < len(files)  # rounded before they are split
    with pytest.raises(CheckpointError, match="the largest weight file has 0 bytes; it must be a positive number"):
        model.save_pretrained(tmp_path / "none", max_shard_size=0)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_whole_and_split_weights_replace_each_other(
    tmp_path: Path, model: Samwise, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("refervos.files.writing._exchange", lambda one, other: False)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (folder / "notes.txt").write_text("kept")
    for limit in (SHARD, SHARD // 2, 10**9):
        other = other_model() if limit == SHARD else model
        other.save_pretrained(folder, overwrite=True, max_shard_size=limit)
        assert_equal(load(folder), other)
        assert (folder / "notes.txt").read_text() == "kept"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_kill_between_two_shards_leaves_the_old_model(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model")
    other = other_model()
    child = os.fork()
    if not child:
        try:
            die_at_the_second_file(pytest.MonkeyPatch())
            other.save_pretrained(tmp_path / "model", overwrite=True, max_shard_size=SHARD)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert_equal(load(tmp_path / "model"), model)
    other.save_pretrained(tmp_path / "model", overwrite=True, max_shard_size=SHARD)
    assert_equal(load(tmp_path / "model"), other)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def die_at_the_second_file(patch: pytest.MonkeyPatch) -> None:
    """Kill this process when it begins to write its second weight file."""
    import safetensors.torch

    write = safetensors.torch.save_file

    def counted(tensors: Any, path: Path, *arguments: Any) -> None:
        if "00002" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, path, *arguments)

    patch.setattr(safetensors.torch, "save_file", counted)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: sorted(folder.glob("model-*"))[1].unlink(), "model-00002-of-.* does not exist"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "it has no 'weight_map'"),
    ],
)
def test_a_folder_with_a_missing_shard_is_refused(
    tmp_path: Path, model: Samwise, spoil: Callable[[Path], object], sentence: str
) -> None:
    model.save_pretrained(tmp_path / "model", max_shard_size=SHARD)
    spoil(tmp_path / "model")
    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path / "model")


# Model cards and config.json.

DETAILS = CardDetails(
    license="cc-by-4.0", base_model=("facebook/sam2-hiera-tiny", "FacebookAI/roberta-base"), datasets=("my/clips",)
)


def test_config_json_names_class_and_data_type_and_keeps_the_hyper_parameters(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model")
    header = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (header["architectures"], header["model_type"], header["dtype"]) == (
        ["Samwise"],
        "refervos-samwise",
        "float32",
    )
    assert header["config"]["adapter_width"] == model.config.adapter_width
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_folders_without_the_new_fields_load(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model")
    header = json.loads((tmp_path / "model" / "config.json").read_text())
    old = {"model_type": "samwise", "refervos_version": "0.1.0", "config": header["config"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(old))
    loaded = load(tmp_path / "model")
    assert_equal(loaded, model)
    assert loaded.card == CardDetails()


def test_the_card_has_the_metadata_of_the_hub(tmp_path: Path, model: Samwise) -> None:
    model.save_pretrained(tmp_path / "model", card=DETAILS)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["library_name"] == "refervos"
    assert data["pipeline_tag"] == "mask-generation"
    assert data["tags"] == ["referring-video-object-segmentation", "video-segmentation"]
    assert data["base_model"] == ["facebook/sam2-hiera-tiny", "FacebookAI/roberta-base"]
    assert (data["datasets"], data["language"]) == (["my/clips"], ["en"])
    assert "model-index" not in data
    for sentence in ("The weights are safetensors", "has no code", "cc-by-4.0", "Made from facebook/sam2-hiera-tiny"):
        assert sentence in card.text
    loaded = load(tmp_path / "model")
    assert loaded.card == DETAILS
    loaded.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == (tmp_path / "model" / "README.md").read_text()


def test_a_model_from_the_hub_names_its_base(world: World, model: Samwise, tmp_path: Path) -> None:
    model.push_to_hub(ID, token=TOKEN)
    loaded = load(ID)
    loaded.save_pretrained(tmp_path / "copy")
    assert ModelCard.load(tmp_path / "copy" / "README.md").data.base_model == [ID]
    loaded.push_to_hub(ID, token=TOKEN)
    assert b"base_model" not in world.repositories[ID].files()["README.md"]


def test_a_model_of_drawings_says_so_and_keeps_its_licence(tmp_path: Path, model: Samwise) -> None:
    load("miniature").save_pretrained(tmp_path / "drawn")
    card = ModelCard.load(tmp_path / "drawn" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "Drawings only" in card.text
    assert 'model.open(["the red circle"])' in card.text
    model.save_pretrained(tmp_path / "open")
    assert "Drawings only" not in (tmp_path / "open" / "README.md").read_text()
    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(tmp_path / "sam2")
    sam2 = ModelCard.load(tmp_path / "sam2" / "README.md")
    assert "referring-video-object-segmentation" not in sam2.data.tags
    assert "refervos.Prompt(points=" in sam2.text


def test_results_are_in_the_card_with_interval_and_command(tmp_path: Path, model: Samwise) -> None:
    command = "refervos eval mine mevis mevis --split valid_u"
    result = MeasuredResult("mevis", "valid_u", "J&F", 49.512, 47.25, 51.75, command, weights_digest(model))
    results = [result, replace(result, measure="J", value=45.0)]
    model.save_pretrained(tmp_path / "model", results=results)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.eval_results is not None
    first, second = card.data.eval_results
    assert (first.dataset_name, first.dataset_split, first.metric_name, first.metric_value) == (
        "mevis", "valid_u", "J&F", 49.51
    )  # fmt: skip
    assert first.metric_args == {"interval_95": [47.25, 51.75], "command": command}
    assert second.metric_name == "J"
    assert "47.2 to 51.8" in card.text
    assert card.text.count(command) == 1
    with pytest.raises(CheckpointError, match="was measured with other weights than this model's"):
        other_model().save_pretrained(tmp_path / "other", results=results)
    assert not (tmp_path / "other").exists()


def test_a_card_that_a_person_wrote_or_edited_is_kept(tmp_path: Path, model: Samwise) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    model.save_pretrained(folder, overwrite=True, card=DETAILS)
    assert "cc-by-4.0" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    model.save_pretrained(folder, overwrite=True)
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("card", ["text", {"licence": "mit"}, {"license": 3}, {"base_model": [1]}])
def test_a_malformed_card_in_config_json_is_refused(tmp_path: Path, model: Samwise, card: object) -> None:
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "card": card}))
    with pytest.raises(CheckpointError, match="card"):
        load(tmp_path / "model")


def test_a_card_cannot_be_broken_by_its_details(tmp_path: Path, model: Samwise) -> None:
    hostile = CardDetails(license="mit\n---\nevil: true", datasets=("a: [b", "| c |", "\u202e"))
    model.save_pretrained(tmp_path / "model", card=hostile)
    data = ModelCard.load(tmp_path / "model" / "README.md").data.to_dict()
    assert (data["license"], data["datasets"]) == (hostile.license, list(hostile.datasets))
    assert "evil" not in data


# Results of evaluations, and the examples of the page.


def write_results(folder: Path, model: nn.Module) -> None:
    """Write the files of an evaluation that a card needs."""
    folder.mkdir(parents=True)
    binding = {"dataset": "mevis", "split": "valid_u", "weights": weights_digest(model)}
    settings = {"model": "mine", "commit": None, "command": "refervos eval mine mevis", "binding": binding}
    groups = [{"by": "all", "values": {"J&F": [49.5, 47.2, 51.8], "J": [45.0, 43.0, 47.0], "F": None}}]
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "summary.json").write_text(json.dumps({"groups": groups, "measures": {"N-acc": [70.0, 60.0, 80.0]}}))


def test_results_are_read_from_the_folder_of_an_evaluation(tmp_path: Path, model: Samwise) -> None:
    write_results(tmp_path / "results", model)
    read = read_results(tmp_path / "results")
    assert [(each.measure, each.value) for each in read] == [("J&F", 49.5), ("J", 45.0), ("N-acc", 70.0)]
    assert read[0] == MeasuredResult(
        "mevis", "valid_u", "J&F", 49.5, 47.2, 51.8, "refervos eval mine mevis", weights_digest(model)
    )
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_results(tmp_path)
    damages: list[Any] = [{"groups": []}, {"groups": [{"values": {"J": [1]}}], "measures": {}}, []]
    for damage in damages:
        (tmp_path / "results" / "summary.json").write_text(json.dumps(damage))
        with pytest.raises(EvaluationError, match="has no complete results of an evaluation; run 'refervos eval'"):
            read_results(tmp_path / "results")


def test_an_evaluation_records_the_commit_and_the_command(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json_lines(tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    load("miniature").push_to_hub(ID, token=TOKEN)
    options = ("--split", "all", "--online", "--set", "cme=false", "--device", "cpu", "--quiet")
    assert run("eval", ID, "json-lines", tmp_path / "clips", "--out", tmp_path / "out", *options) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["commit"] == f"{ID}@{world.repositories[ID].refs['main']}"
    assert settings["command"] == f"refervos eval {ID} json-lines clips --split all --online --set cme=false"
    assert {each.measure for each in read_results(tmp_path / "out")} > {"J&F"}


def test_the_examples_of_the_page_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    publishing, describing, using = snippets[1:4]
    miniature = load("miniature")
    write_results(tmp_path / "results" / "mevis", miniature)
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in scene(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for snippet in (publishing, describing):
        exec(compile(snippet, "checkpoints.md", "exec"), {"model": miniature})
    repository = world.repositories["owner/name"]
    assert set(repository.refs) == {"main", "experiment", "refs/pr/1"}
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert (card.data.license, card.data.datasets) == ("cc-by-4.0", ["owner/clips"])
    names: dict[str, Any] = {}
    exec(compile(using, "checkpoints.md", "exec"), names)
    assert names["frame"][0]["label"] == "the dog"
    assert names["session"].expressions == {0: "the dog"}
