"""Read and check weight files: no code is executed, and no tensor is skipped silently."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refervos.checkpoints.weight_files import check_archive, is_torch_file, read_settings, unreadable_error
from refervos.errors import CheckpointError, is_out_of_memory
from refervos.files.writing import atomic_folder

WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
CONFIG = "config.json"

TYPE_PREFIX = "refervos-"
"""Prefix of ``model_type`` in our folders, so that a family of that name in transformers is another type."""

SHARD_BYTES = 5 * 10**9
"""Largest weight file that is written; more weights are split into several, as the hub recommends."""

WEIGHT_FILES = (
    *(WEIGHTS, "model-*-of-*.safetensors", f"{WEIGHTS}.index.json"),
    *(PICKLED_WEIGHTS, "pytorch_model-*-of-*.bin", f"{PICKLED_WEIGHTS}.index.json"),
)
"""Patterns of the weight files of a model folder; new ones replace all old ones."""

NUMBERS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Data types accepted for weights; narrower types need scales that are stored elsewhere."""

_NAMED = 20
"""Maximum number of tensors listed in an error, per kind of fault."""

Model = TypeVar("Model", bound=nn.Module)

Rules = Sequence[tuple[str, str]]
"""Regular expressions and their replacements, applied in order."""


def rename(name: str, rules: Rules) -> str:
    """Apply every rule to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a ``.pt`` or ``.pth`` file without executing code in it.

    Args:
        path: The file.

    Returns:
        Its content, a dict.

    Raises:
        CheckpointError: When torch is too old to do this safely, or the file is missing, unreadable, or contains
            objects other than tensors, plain values and ``argparse.Namespace``.
    """
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise CheckpointError(f"torch {torch.__version__} cannot load weights safely; install torch 2.6 or newer.")
    with as_checkpoint_error(path):
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is not a file; give a checkpoint file (.pt or .pth).")
        check_archive(path)
        try:
            with (
                torch.serialization.safe_globals([argparse.Namespace]),
                warnings.catch_warnings(action="ignore"),
                path.open("rb") as file,
            ):
                named = path.suffix == ".safetensors"  # torch would parse it by that suffix
                whole, mapped = (file, False) if named else (path, _can_map(path))
                loaded = torch.load(whole, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise unreadable_error(path, error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} contains a {type(loaded).__name__}; expected a dict with the key 'model'.")
    return loaded


@contextmanager
def as_checkpoint_error(model: str | os.PathLike[str]) -> Iterator[None]:
    """Turn read errors of the system and lack of memory inside the block into a ``CheckpointError``.

    Args:
        model: The model, as named by the user.

    Raises:
        CheckpointError: When such an error occurs.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise CheckpointError(
                f"not enough memory to load {model}; close other programs, or use a smaller model."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(f"{model} cannot be read ({error.strerror or error}).") from error


def _can_map(path: Path) -> bool:
    """Return whether a file has the zip format of torch 1.6 and later, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training code stores a state dict."""


def model_tensors(loaded: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, with the model's tensor names.

    Args:
        loaded: Content of the file: ``{"model": state_dict, ...}``, or a state dict itself.
        path: The file, for error messages.

    Returns:
        Names, without the prefixes of data parallelism and compilation, and tensors.

    Raises:
        CheckpointError: When there is no state dict, or a tensor does not store all of its values.
    """
    state = next((loaded[key] for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} has no state dict under the key 'model'; its keys are {sorted(map(str, loaded))[:5]}."
        )
    for name, value in state.items():
        plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path} has {name} as a sparse, quantised or expanded tensor; save it with all of its values."
            )
    return plain_names(state, path)


def plain_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Strip the prefixes of data parallelism (``module.``) and compilation (``_orig_mod.``) from tensor names.

    Args:
        state: Names and tensors.
        path: Their file, for error messages.

    Raises:
        CheckpointError: When two names become equal.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = str(name).replace("_orig_mod.", "")
        while short.startswith("module."):
            short = short.removeprefix("module.")
        if short in plain:
            raise CheckpointError(f"{path} has {short} twice, once as {name}; each tensor must be stored once.")
        plain[short] = value
    return plain


def require_shape(source: Mapping[str, Tensor], name: str, axes: int, where: str, kind: str) -> tuple[int, ...]:
    """Return the shape of a tensor from which the model's configuration is inferred.

    Args:
        source: Names and tensors.
        name: Name of the tensor.
        axes: Required number of axes.
        where: The checkpoint, for the error.
        kind: Expected kind of checkpoint, such as ``SAM checkpoint``.

    Raises:
        CheckpointError: When the tensor is missing, empty, or has another number of axes.
    """
    sizes = tuple(source[name].shape) if name in source else ()
    if len(sizes) != axes or 0 in sizes:
        raise CheckpointError(f"{where} has no {name} with {axes} axes; it is not a {kind}.")
    return sizes


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensor names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: nn.Module, config: Any) -> str:
    """Return the SHA-256 of a model's configuration and weights.

    Args:
        model: The model.
        config: Its configuration, a dataclass.
    """
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(f"{settings} {weights_digest(model)}".encode()).hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def short_message(error: Exception) -> str:
    """Return the first line of another package's error, shortened to fit into a sentence."""
    return str(error).strip().split("\n")[0][:200].rstrip(".:")


def build_from_weights(
    build: Callable[[], Model],
    source: Mapping[str, Tensor],
    sources_of: Callable[[str], Sequence[str]],
    *,
    inside: Callable[[Model], nn.Module] | None = None,
    unused: Iterable[str] = (),
    where: str,
) -> Model:
    """Build a model and load its weights; shapes are compared before any memory is allocated.

    Args:
        build: Function that builds the model; random initialisation is skipped.
        source: See ``load_renamed``.
        sources_of: See ``load_renamed``.
        inside: Returns the part of the model to load; default the whole model.
        unused: See ``load_renamed``.
        where: The checkpoint, for error messages.

    Returns:
        The model.

    Raises:
        CheckpointError: See ``load_renamed``; also when the model cannot be built.
    """
    patterns = list(unused)
    part: Callable[[Model], nn.Module] = inside or (lambda model: model)
    try:
        with torch.device("meta"), SkipRandomInit(), torch.random.fork_rng(devices=[]):
            outline = build()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        raise CheckpointError(f"the model of {where} cannot be built ({short_message(error)}).") from error
    check_fit(part(outline), source, sources_of, unused=patterns, where=where)
    with SkipRandomInit():
        model = build()
    load_renamed(part(model), source, sources_of, unused=patterns, where=where)
    return model


def load_renamed(
    model: nn.Module,
    source: Mapping[str, Tensor],
    sources_of: Callable[[str], Sequence[str]],
    *,
    unused: Iterable[str] = (),
    where: str,
) -> None:
    """Load every tensor of a model from a checkpoint with other names; any mismatch is an error.

    Args:
        model: The model, filled in place.
        source: Names and tensors of the checkpoint.
        sources_of: Maps a name of the model to names of the checkpoint: one, several to concatenate along the first
            axis, or none for a tensor that the published model lacks, which becomes zero.
        unused: Regular expressions of checkpoint names that the model does not use, by design.
        where: The checkpoint, for error messages.

    Raises:
        CheckpointError: Lists the mismatches (see ``check_fit``), or the tensors with NaN or infinity.
    """
    check_fit(model, source, sources_of, unused=unused, where=where)
    filled: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # by id, so that shared tensors stay shared
    infinite: list[str] = []
    for name, target in model.state_dict(keep_vars=True).items():
        names = sources_of(name)
        if id(target) not in made:
            parts = [source[part] for part in names]
            value = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(target)
            made[id(target)] = _replacement(target, value.reshape(target.shape))
            if not is_finite(made[id(target)]):
                infinite.append(" + ".join(names))
        filled[name] = made[id(target)]
    if infinite:
        raise CheckpointError(f"{where} has NaN or infinity in {_listed(infinite)}; its weights are damaged.")
    model.load_state_dict(filled, strict=False, assign=True)


def check_fit(
    model: nn.Module,
    source: Mapping[str, Tensor],
    sources_of: Callable[[str], Sequence[str]],
    *,
    unused: Iterable[str] = (),
    where: str,
) -> None:
    """Check that names, shapes and data types of a checkpoint match a model; values are not read.

    Args:
        model: The model, possibly on the device ``meta``.
        source: See ``load_renamed``.
        sources_of: See ``load_renamed``.
        unused: See ``load_renamed``.
        where: See ``load_renamed``.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen tensors, and those of a wrong data type.
    """
    used: set[str] = set()
    found: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": [], "of another type": []}
    for name, target in model.state_dict(keep_vars=True).items():
        names = sources_of(name)
        used.update(names)
        absent = [part for part in names if part not in source]
        found["missing"] += absent
        if absent or not names:
            continue
        for part in names:
            if not _right_type(source[part], target):
                kinds = _type_name(source[part]), _type_name(target)
                found["of another type"].append(f"{part} is {kinds[0]}, {kinds[1]} expected")
        shapes = [tuple(source[part].shape) for part in names]
        if _joined(shapes) != _squeezed(target.shape):  # axes of length one may differ
            found["misshapen"].append(f"{names[0]} is {shapes[0]}, {tuple(target.shape)} expected")
    known = [re.compile(pattern) for pattern in unused]
    found["unexpected"] += [n for n in source if n not in used and not any(pattern.fullmatch(n) for pattern in known)]
    problems = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{where} does not fit the model; {'; '.join(problems)}.")


def _joined(shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Return the shape of tensors concatenated along axis 0, without axes of length one; None if impossible."""
    if len(shapes) == 1:
        return _squeezed(shapes[0])
    if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
        return None
    return _squeezed((sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _squeezed(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in tensor.detach().aminmax())  # one pass without a copy


def check_finite(model: nn.Module, where: str, advice: str) -> None:
    """Check that a model's weights are finite after a conversion to another data type.

    Args:
        model: The model.
        where: Name of the model in the error.
        advice: Remedy for the error.

    Raises:
        CheckpointError: Lists the tensors with NaN or infinity.
    """
    infinite = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if infinite:
        raise CheckpointError(f"{where} has NaN or infinity in {_listed(infinite)}; {advice}.")


def _right_type(value: Tensor, target: Tensor) -> bool:
    """Return whether a stored data type is accepted: any floating-point type for weights, otherwise the same type."""
    return value.dtype in NUMBERS if target.is_floating_point() else value.dtype == target.dtype


def _type_name(tensor: Tensor) -> str:
    return _short_name(tensor.dtype)


def _listed(names: Iterable[str]) -> str:
    """List names in order, shortened when there are many."""
    every = sorted(set(names))
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")


def _replacement(target: Tensor, value: Tensor) -> Tensor:
    """Return a copy of a value with the data type and device of a model's tensor, independent of any mapped file."""
    copied = value.detach().to(target.device, target.dtype, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(copied, target.requires_grad) if isinstance(target, nn.Parameter) else copied


class SkipRandomInit(TorchFunctionMode):
    """Context in which a model is built without random initialisation, as a checkpoint replaces all weights.

    Initialising the 210 million weights of base-plus takes seconds. In this context their memory is allocated, but not
    written; other values, such as position tables, are computed as usual.
    """

    # The functions of ``nn.init`` that torch dispatches as a whole; the others call the tensors' own methods.
    _RANDOM = (
        *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Skip functions that fill a tensor with random values."""
        given = kwargs or {}
        if func in self._RANDOM:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def model_folder(folder: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Write a model folder atomically.

    If the process is killed, the target is either the old or the new model. On file systems that cannot exchange two
    folders, an old one lacks its ``config.json``, and so is not a model, while its files are replaced.

    Args:
        folder: The target, created if missing. Other files in it are kept, except for old weights beside new ones.
        overwrite: Whether existing files may be replaced.

    Returns:
        Context manager that yields an empty folder to fill, which then replaces the target.

    Raises:
        CheckpointError: When the folder has files and ``overwrite`` is False, another process is writing it, or it
            cannot be written.
    """
    return atomic_folder(
        folder, overwrite=overwrite, keep=True, obsolete=WEIGHT_FILES, marker=CONFIG, error=CheckpointError
    )


def write_model(
    folder: Path,
    model: nn.Module,
    model_type: str,
    config: Any,
    dtype: torch.dtype | None = None,
    *,
    card: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``config.json`` and ``model.safetensors``, or several weight files and their index.

    Args:
        folder: An existing folder; see ``model_folder``.
        model: The model, whose state dict is written.
        model_type: Value of ``model_type`` in ``config.json``.
        config: Its configuration, a dataclass.
        dtype: Data type to round the weights to; default none.
        card: Plain values for the field ``card`` of ``config.json``; default none.
        shard_bytes: Largest size of the tensors in one file; a single tensor may be larger.

    Raises:
        CheckpointError: When a weight is NaN or infinite, perhaps only after rounding, or the size is not positive.
    """
    import refervos

    if shard_bytes <= 0:
        raise CheckpointError(f"the largest weight file has {shard_bytes} bytes; it must be a positive number.")
    state = model.state_dict()
    infinite = [name for name, tensor in state.items() if not is_finite(_rounded(tensor, dtype))]
    if infinite:
        kind = "" if dtype is None else f" in {_short_name(dtype)}"
        raise CheckpointError(
            f"the weights are not written: {_listed(infinite)} would have NaN or infinity{kind}; save a model with "
            "finite weights, in a data type with enough range."
        )
    header = {
        "architectures": [type(model).__name__],
        "model_type": model_type,
        "dtype": _short_name(dtype or _main_dtype(state.values())),
        "refervos_version": refervos.__version__,
        **({"card": dict(card)} if card else {}),
        "config": dataclasses.asdict(config),
    }
    (folder / CONFIG).write_text(json.dumps(header, indent=2) + "\n")
    _write_weights(folder, state, dtype, shard_bytes)


def _write_weights(folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None, shard_bytes: int) -> None:
    """Write weights to one file, or to several with an index in transformers' format."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    outline = {name: _rounded_type(tensor, dtype) for name, tensor in state.items()}
    split = split_torch_state_dict_into_shards(outline, max_shard_size=shard_bytes)
    mode = (folder / CONFIG).stat().st_mode
    for file, names in split.filename_to_tensors.items():
        # Copied one file at a time: safetensors refuses shared storage.
        save_file({name: _rounded(state[name], dtype).clone() for name in names}, folder / file, {"format": "pt"})
        (folder / file).chmod(mode)  # safetensors creates files that only their owner can read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor in main memory, with floats in the requested data type."""
    rounded = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return rounded.detach().cpu().contiguous()


def _rounded_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor without values that has the shape and data type of the rounded one."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=kind, device="meta")


def _short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _main_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the floating-point type of most values; position tables may have another one."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


def read_header(folder: Path, advice: str) -> dict[str, Any]:
    """Read a model folder's ``config.json``.

    Args:
        folder: The folder.
        advice: Remedy for error messages.

    Raises:
        CheckpointError: When it is missing or not a JSON object.
    """
    with as_checkpoint_error(folder):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; {advice}.")
        if not (folder / CONFIG).exists():
            raise CheckpointError(f"{folder} has no {CONFIG}; {advice}.")
        header = read_settings(folder / CONFIG)
    if not isinstance(header, dict):
        raise CheckpointError(f"{folder / CONFIG} is not a JSON object; {advice}.")
    return header


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a model folder: ``model.safetensors`` or else ``pytorch_model.bin``, single or sharded.

    Raises:
        CheckpointError: When they are missing or unreadable.
    """
    with as_checkpoint_error(folder):
        for name in (WEIGHTS, PICKLED_WEIGHTS):
            if (folder / name).is_file():
                return read_weights(folder / name)
            if (folder / f"{name}.index.json").is_file():
                shards = [read_weights(folder / shard) for shard in _shards(folder / f"{name}.index.json")]
                return {key: tensor for shard in shards for key, tensor in shard.items()}
        raise CheckpointError(f"{folder / WEIGHTS} is missing; {folder} has no weights.")


def _shards(index: Path) -> list[str]:
    """List the files in an index of shards, without duplicates; they must be beside it."""
    content = read_settings(index)
    files = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(files, Mapping):
        raise CheckpointError(f"{index} is not an index of weight files; it has no 'weight_map'.")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(f"{index} lists {name!r}, which is not in its folder.")
    return names


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read one weight file, safetensors or torch; unused tensors of a safetensors file stay on disk.

    Raises:
        CheckpointError: When it is missing, unreadable, or not a weight file.
    """
    from safetensors.torch import load_file

    with as_checkpoint_error(path):
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is not a file; give a weight file.")
        if is_torch_file(path):
            return model_tensors(read_torch_file(path), path)
        try:
            return plain_names(load_file(path), path)
        except Exception as error:  # also KeyError for a data type unknown to torch
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise unreadable_error(path, error) from error
