"""Load a model by folder, file, name or hub id."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import torch

from refervos.checkpoints.card import CardDetails, read_details
from refervos.checkpoints.hub import HubOptions, commit_of, fetch, is_hub_id
from refervos.checkpoints.weight_files import read_settings
from refervos.checkpoints.weights import (
    CONFIG,
    TYPE_PREFIX,
    WEIGHTS,
    as_checkpoint_error,
    build_from_weights,
    check_finite,
    read_header,
    read_tensors,
)
from refervos.errors import CheckpointError, ConfigError, RefervosError
from refervos.models.registry import ASSETS, BY_NAME, MODELS, Bundled, bundled_folder, suggestion
from refervos.models.store import HUB_FILES, find_on_disk
from refervos.ops.compilation import compile_stages
from refervos.ops.linear import make_column_major
from refervos.text.vocabulary import word_level_words
from refervos.typed_config import config_from_mapping

if TYPE_CHECKING:
    from refervos.export.onnx_model import OnnxSamwise
    from refervos.model_base import TrainableModel
    from refervos.refsam.model import RefSam
    from refervos.sam2.segmenter import Sam2Segmenter
    from refervos.samwise.model import Samwise
    from refervos.videoglamm.model import VideoGlamm

CONVERT_FIRST = "give a folder written by 'refervos convert'"

Model = TypeVar("Model", bound=Any)

Family = TypeVar("Family", bound="TrainableModel")

Backend = Literal["torch", "onnx"]

MINIATURE = "miniature"
"""Name of the small default model of ``load``."""

MINIATURE_FOLDER = ASSETS / MINIATURE
"""Folder of ``miniature``, a SAMWISE model."""

BUNDLED = tuple(model.name for model in MODELS if isinstance(model.origin, Bundled))
"""Names of the bundled models."""

UNPUBLISHED = ("refsam-vit-b", "refsam-vit-l", "refsam-vit-h")
"""Names of published systems whose weights were never released."""


@overload
def load(
    model: str | os.PathLike[str] = ...,
    *,
    device: str | torch.device | None = ...,
    dtype: torch.dtype | str | None = ...,
    backend: Literal["torch"] | None = ...,
    compile: bool = ...,
    memory_budget: int | None = ...,
    bits: Literal[4, 8] | None = ...,
    revision: str | None = ...,
    token: str | bool | None = ...,
    cache_dir: str | os.PathLike[str] | None = ...,
    local_files_only: bool = ...,
    subfolder: str = ...,
    **overrides: Any,
) -> Samwise | Sam2Segmenter | RefSam | VideoGlamm: ...


@overload
def load(
    model: str | os.PathLike[str],
    *,
    device: str | torch.device | None = ...,
    dtype: torch.dtype | str | None = ...,
    backend: Literal["onnx"],
    compile: bool = ...,
    memory_budget: int | None = ...,
    bits: Literal[4, 8] | None = ...,
    revision: str | None = ...,
    token: str | bool | None = ...,
    cache_dir: str | os.PathLike[str] | None = ...,
    local_files_only: bool = ...,
    subfolder: str = ...,
    **overrides: Any,
) -> OnnxSamwise: ...


def load(
    model: str | os.PathLike[str] = MINIATURE,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    backend: Backend | None = None,
    compile: bool = False,
    memory_budget: int | None = None,
    bits: Literal[4, 8] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    **overrides: Any,
) -> Samwise | Sam2Segmenter | RefSam | VideoGlamm | OnnxSamwise:
    """Load a model, ready for ``open``.

    Args:
        model: A folder written by ``save_pretrained``, ``refervos train`` or ``refervos convert``; a Hugging Face SAM2
            folder or Meta ``.pt`` file (for clicks, boxes and masks); a folder written by ``refervos export``; a hub id
            ``owner/name``; or a name listed by ``refervos models``, such as ``miniature`` (bundled) or
            ``samwise-mevis`` (downloaded on first use). A local folder of that name takes precedence.
        device: Device such as ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; default a GPU if available.
        dtype: Data type of the computation: ``torch.bfloat16``, ``torch.float16`` or their names; default float32.
        backend: ``onnx`` for exported folders, ``torch`` for all others; default the one that fits the model.
        compile: Whether to compile the stages with ``torch.compile``, which makes the first frames slow.
        memory_budget: Maximum size in bytes of one batch of expressions; default 1 GiB on a CPU and half of the free
            memory on a GPU.
        bits: Quantise VideoGLaMM's language model to 8 or 4 bits with bitsandbytes; the default data type is then
            bfloat16.
        revision: For a hub id, the branch, tag or commit; default the main branch. The commit is the model's
            ``hub_commit``.
        token: For a hub id, the access token, ``False`` for none; default the one stored by ``hf auth login``.
        cache_dir: For a hub id, the cache to use; default huggingface_hub's, which ``HF_HOME`` moves.
        local_files_only: Make no request: load only what is on disk. ``HF_HUB_OFFLINE=1`` does the same everywhere.
        subfolder: Folder of the model inside the repository or folder.
        **overrides: Fields of the model's configuration to change, such as ``protocol="published"``.

    Returns:
        The model in evaluation mode, on the device; ``OnnxSamwise`` for an exported folder.

    Raises:
        CheckpointError: When the model is missing, its files do not match, or it does not fit the backend.
        ConfigError: When an override, the data type or the backend is unknown, or cannot be used with the model.
        MissingDependencyError: When a package that the model needs is not installed, such as ONNX Runtime.
    """
    # Before reading large files.
    compute_dtype = _dtype(torch.bfloat16 if dtype is None and bits is not None else dtype)
    if backend not in (None, *get_args(Backend)):
        raise ConfigError(f"backend is {backend!r}; it must be 'torch' or 'onnx'.")
    if memory_budget is not None and memory_budget <= 0:
        raise ConfigError(f"memory_budget is {memory_budget}; it must be a positive number of bytes.")
    options = HubOptions(revision, token, cache_dir, local_files_only, subfolder)
    with as_checkpoint_error(model):
        path = _locate(model, options)
        exported = _is_exported(path)
        if backend == "onnx" and not exported:
            raise CheckpointError(f"{path} is not an exported model; run 'refervos export {model} --out FOLDER' first.")
        if backend == "torch" and exported:
            raise CheckpointError(f"{path} is an exported model; give the folder from which it was exported.")
        if exported:
            if compile or bits is not None or compute_dtype != torch.float32 or str(device or "cpu") != "cpu":
                raise ConfigError(
                    f"{path} is an exported model, which runs only in float32 on the CPU, without compilation."
                )
            return _within(_read_exported(path, overrides), memory_budget)
        target = find_device(device)
        loaded = _within(_read(path, overrides, compute_dtype), memory_budget).to(compute_dtype)
        if compute_dtype != torch.float32:
            name = str(compute_dtype).removeprefix("torch.")
            advice = "its weights exceed the range of that data type, load it in float32"
            check_finite(loaded, f"{path}, in {name},", advice)
        if bits is not None:
            _quantise(loaded, bits)
        loaded = loaded.to(target).eval()
        loaded.hub_commit = commit_of(path)
        loaded.card = _card(model, path)
        make_column_major(loaded)
        if compile:
            compile_stages(loaded)
        return loaded


def load_to_describe(model: str | os.PathLike[str]) -> Samwise | Sam2Segmenter | RefSam | VideoGlamm | OnnxSamwise:
    """Load a model to describe it; accepts official SAMWISE checkpoints in addition to the inputs of ``load``.

    Args:
        model: See ``load``.

    Returns:
        The model, on the CPU; an official checkpoint without a tokenizer.

    Raises:
        CheckpointError: See ``load``.
    """
    with as_checkpoint_error(model):
        path = Path(model)
        if path.is_file():
            from refervos.samwise.checkpoints import is_official, load_official

            if is_official(path):
                return load_official(path)
    return load(model, device="cpu")


def _within(model: Model, memory_budget: int | None) -> Model:
    """Set the memory budget of a model."""
    if memory_budget is not None:
        if not hasattr(model, "memory_budget"):
            family = model.describe()["family"]
            raise ConfigError(f"{family} has no memory_budget: its image encoder runs once for any number of objects.")
        model.memory_budget = memory_budget
    return model


def _quantise(model: object, bits: Literal[4, 8]) -> None:
    """Quantise the weights of a language model."""
    from refervos.videoglamm.model import VideoGlamm

    if not isinstance(model, VideoGlamm):
        raise ConfigError(f"bits is {bits}, which applies only to VideoGLaMM's language model; omit it.")
    model.quantise(bits)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None) or dtype
    if dtype is None:
        return torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype is {dtype}; it must be float32, bfloat16 or float16.")
    return dtype


def find_device(device: str | torch.device | None) -> torch.device:
    """Check the requested device, or choose the best available one.

    Args:
        device: Device such as ``cpu``, ``cuda:1`` or ``mps``; None for a GPU if available.

    Returns:
        The device.

    Raises:
        ConfigError: When the device is not available.
    """
    if device is None:
        found = [kind for kind, module in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if module.is_available()]
        return torch.device(found[0] if found else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"device is {device!r}; it must be cpu, cuda, cuda:N or mps.") from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if other is not None and other.type not in ("cuda", "mps"):
        available += [f"{other.type}:{index}" for index in range(torch.accelerator.device_count())]
    name = "mps" if chosen.type == "mps" else f"{chosen.type}:{chosen.index or 0}"
    # A ``torch.device`` of another type, such as an accelerator's, is the caller's choice.
    known = chosen.type in ("cuda", "mps") or not isinstance(device, torch.device)
    if known and name not in available:
        raise ConfigError(f"device is {str(device)!r}, which is not available; available are {', '.join(available)}.")
    return chosen


def _locate(model: str | os.PathLike[str], options: HubOptions | None = None) -> Path:
    """Return the folder or file of a model; a name or hub id is downloaded."""
    options = options or HubOptions()
    inside = bundled_folder(model)
    if inside is not None:
        return _part(inside, options)
    path = Path(model)
    if path.exists():
        if not (path.is_dir() or path.is_file()):
            raise CheckpointError(f"{model} is neither a folder nor a file; give a model folder or a SAM2 checkpoint.")
        return _part(path, options)
    if str(model) in UNPUBLISHED:
        raise CheckpointError(
            f"{model} has no published weights; train it with recipes/refsam-refcoco.yaml and give the folder, "
            "or use the bundled refsam-miniature."
        )
    if str(model) in BY_NAME:
        return _part(_fetch_named(str(model), options), options)
    if not is_hub_id(str(model)):
        raise CheckpointError(
            f"{model} does not exist{suggestion(str(model))}; give a model folder, a SAM2 checkpoint, a hub id "
            "owner/name, or a name listed by 'refervos models'."
        )
    return fetch(str(model), HUB_FILES, "give a model folder, or a hub id owner/name", options)


def _part(path: Path, options: HubOptions) -> Path:
    """Return the subfolder of a model on disk, which has no revisions."""
    if options.revision is not None:
        raise CheckpointError(
            f"revision is {options.revision!r}, but {path} is on this disk and has no revisions; omit it, or give a "
            "hub id owner/name."
        )
    part = path / options.subfolder
    if not part.exists():
        raise CheckpointError(f"{path} has no folder {options.subfolder}; give a folder inside it, or no subfolder.")
    return part


def _fetch_named(name: str, options: HubOptions) -> Path:
    """Return the folder of a model known by name, which is pinned to the revision of its first download."""
    from refervos.models.fetching import fetch_model

    if options.local_files_only and find_on_disk(BY_NAME[name]) is None:
        raise CheckpointError(
            f"{name} is not on disk, and local_files_only forbids to fetch it; run 'refervos models fetch {name}'."
        )
    if options.cache_dir is not None:
        raise CheckpointError(
            f"cache_dir is given, but {name} is kept in the cache of all models known by name; set HF_HOME instead."
        )
    return fetch_model(name)


def trained_words(model: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the closed vocabulary of a model without loading it.

    Args:
        model: See ``load``.

    Returns:
        The words; empty for an open vocabulary, and for a model that cannot be read, about which ``load`` says more.
    """
    try:
        path = _locate(model)
        header = read_header(path, CONVERT_FIRST) if path.is_dir() else {}
        config = header.get("config")
        words = config.get("words") if isinstance(config, dict) else None
        if not isinstance(words, list):
            return _tokenizer_words(path / "tokenizer.json")
    except (RefervosError, OSError):
        return ()
    return tuple(word for word in words if isinstance(word, str))


def _tokenizer_words(file: Path) -> tuple[str, ...]:
    """Return the words of a tokenizer file with a word-level vocabulary; none of another kind."""
    settings = read_settings(file) if file.is_file() else {}
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or model.get("type") != "WordLevel" or not isinstance(model.get("vocab"), dict):
        return ()
    return word_level_words(model["vocab"])


def _is_exported(path: Path) -> bool:
    if not (path / CONFIG).exists():
        return False
    return read_header(path, CONVERT_FIRST).get("model_type") == "samwise-onnx"


def _read_exported(path: Path, overrides: dict[str, Any]) -> OnnxSamwise:
    from refervos.export.onnx_model import OnnxSamwise

    return OnnxSamwise.from_folder(path, read_header(path, CONVERT_FIRST), overrides)


def _read(path: Path, overrides: dict[str, Any], dtype: torch.dtype) -> Samwise | Sam2Segmenter | RefSam | VideoGlamm:
    if path.is_file():
        return _read_sam2(path, overrides)
    header = read_header(path, CONVERT_FIRST)
    kind = header.get("model_type")
    if kind in ("sam2_video", "sam2"):
        return _read_sam2(path, overrides)
    if kind == "refervos-sam2":
        return _read_own_sam2(path, header, overrides)
    family = str(kind).removeprefix(TYPE_PREFIX)  # which the first folders lack
    if family == "samwise":
        return _read_samwise(path, header, overrides)
    if family == "refsam":
        return _read_refsam(path, header, overrides)
    if family == "videoglamm":
        return _read_videoglamm(path, header, overrides, dtype)
    if kind == "VideoGPT+":
        raise CheckpointError(f"{path} is a checkpoint of the released VideoGLaMM code; {CONVERT_FIRST}.")
    raise CheckpointError(
        f"{path / CONFIG} has model_type {kind!r}; supported are refervos-samwise, refervos-refsam, "
        "refervos-videoglamm, refervos-sam2 and sam2_video."
    )


def _card(model: str | os.PathLike[str], path: Path) -> CardDetails:
    """Return what is known about a model besides its weights: of its folder, or else of its name."""
    stored = read_details(read_header(path, CONVERT_FIRST), str(path / CONFIG)) if path.is_dir() else CardDetails()
    named = BY_NAME.get(str(model))
    if named is None or stored.license is not None:
        return stored
    return replace(stored, license=named.licence.lower())


def _read_sam2(path: Path, overrides: dict[str, Any]) -> Sam2Segmenter:
    from refervos.sam2.checkpoints import load_sam2
    from refervos.sam2.segmenter import Sam2Segmenter

    if overrides:
        raise ConfigError(f"SAM2 has no field {sorted(overrides)[0]} to override.")
    return Sam2Segmenter(load_sam2(path))


def _read_own_sam2(path: Path, header: dict[str, Any], overrides: dict[str, Any]) -> Sam2Segmenter:
    from refervos.sam2.config import Sam2Config
    from refervos.sam2.segmenter import Sam2Segmenter
    from refervos.sam2.tracker import Sam2Tracker

    config = config_from_mapping(Sam2Config, {**_config_of(header, path), **overrides}, str(path / CONFIG))
    return build_from_weights(
        lambda: Sam2Segmenter(Sam2Tracker(config)),
        read_tensors(path),
        lambda name: (name,),
        where=str(path / WEIGHTS),
    )


def _read_samwise(path: Path, header: dict[str, Any], overrides: dict[str, Any]) -> Samwise:
    from refervos.samwise.config import AS_PUBLISHED, SamwiseConfig
    from refervos.samwise.model import Samwise

    published = AS_PUBLISHED if overrides.get("protocol") == "published" else {}
    return _read_family(Samwise, SamwiseConfig, path, {**_config_of(header, path), **published, **overrides})


def _read_refsam(path: Path, header: dict[str, Any], overrides: dict[str, Any]) -> RefSam:
    from refervos.refsam.config import RefSamConfig
    from refervos.refsam.model import RefSam

    return _read_family(RefSam, RefSamConfig, path, {**_config_of(header, path), **overrides})


def _read_videoglamm(path: Path, header: dict[str, Any], overrides: dict[str, Any], dtype: torch.dtype) -> VideoGlamm:
    from refervos.videoglamm.config import VideoGlammConfig
    from refervos.videoglamm.conversation import ChatTokenizer
    from refervos.videoglamm.model import VideoGlamm

    config = config_from_mapping(VideoGlammConfig, {**_config_of(header, path), **overrides}, str(path / CONFIG))
    tokenizer = ChatTokenizer.from_pretrained(path) if (path / "tokenizer.json").is_file() else None
    # Built directly in its data type: in float32 the published size would take 22 GB.
    return build_from_weights(
        lambda: VideoGlamm(config, tokenizer).to(dtype),
        read_tensors(path),
        lambda name: (name,),
        where=str(path / WEIGHTS),
    )


def _read_family(family: type[Family], config_class: type, path: Path, values: dict[str, Any]) -> Family:
    """Read a model with text prompts: configuration, tokenizer, weights."""
    from refervos.text.tokenizer import Tokenizer, has_tokenizer

    config: Any = config_from_mapping(config_class, values, str(path / CONFIG))
    tokenizer = Tokenizer.from_pretrained(path) if has_tokenizer(path) else None
    return build_from_weights(
        lambda: family(config, tokenizer), read_tensors(path), lambda name: (name,), where=str(path / WEIGHTS)
    )


def _config_of(header: dict[str, Any], path: Path) -> dict[str, Any]:
    values = header.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{path / CONFIG} has no field 'config'; it was not written by refervos.")
    return values
