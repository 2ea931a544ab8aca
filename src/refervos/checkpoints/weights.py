"""Reading and checking weight files: nothing is executed, nothing is skipped in silence."""

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

NUMBERS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types in which weights are stored. Narrower ones mean something only together with scales that stand elsewhere."""

_NAMED = 20
"""How many tensors an error names, of each kind of fault."""

Model = TypeVar("Model", bound=nn.Module)

Rules = Sequence[tuple[str, str]]
"""Regular expressions and what each is replaced by, applied in order."""


def rename(name: str, rules: Rules) -> str:
    """Apply every rule to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a ``.pt`` or ``.pth`` file without executing anything in it.

    Args:
        path: The file.

    Returns:
        What it holds, a dict.

    Raises:
        CheckpointError: When torch is too old to do this safely, or the file is missing, unreadable, or holds objects
            other than tensors, plain values and ``argparse.Namespace``.
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
                named = path.suffix == ".safetensors"  # torch would go by that
                whole, mapped = (file, False) if named else (path, _can_map(path))
                loaded = torch.load(whole, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise unreadable_error(path, error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; a dict with the key 'model' is expected.")
    return loaded


@contextmanager
def as_checkpoint_error(what: str | os.PathLike[str]) -> Iterator[None]:
    """Say in a sentence that the system does not let a model be read, or has no memory for it.

    Args:
        what: The model, as the user named it.

    Raises:
        CheckpointError: When that happens inside.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise CheckpointError(
                f"there is too little memory to load {what}; end other programs, or take a smaller model."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(f"{what} cannot be read ({error.strerror or error}).") from error


def _can_map(path: Path) -> bool:
    """Only the zip format of torch 1.6 and later can be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


_UNDER = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training programs keep a state dict."""


def model_tensors(loaded: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, by the names that its tensors have in the model.

    Args:
        loaded: What the file holds: ``{"model": state_dict, ...}``, or a state dict itself.
        path: The file, for error messages.

    Returns:
        Names, without what data parallelism and compilation put before them, and tensors.

    Raises:
        CheckpointError: When there is no state dict, or a tensor in it is not as large as it says.
    """
    state = next((loaded[key] for key in _UNDER if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} has no state dict under the key 'model'; it holds {sorted(map(str, loaded))[:5]}."
        )
    for name, value in state.items():
        plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path} has {name} as a sparse, quantised or repeating tensor; save it with all of its numbers."
            )
    return plain_names(state, path)


def plain_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors without what data parallelism (``module.``) and compilation (``_orig_mod.``) put before their names.

    Args:
        state: Names and tensors.
        path: Their file, for error messages.

    Raises:
        CheckpointError: When two names become one.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = str(name).replace("_orig_mod.", "")
        while short.startswith("module."):
            short = short.removeprefix("module.")
        if short in plain:
            raise CheckpointError(f"{path} has {short} twice, once as {name}; give one that has each tensor once.")
        plain[short] = value
    return plain


def require_shape(source: Mapping[str, Tensor], name: str, axes: int, where: str, what: str) -> tuple[int, ...]:
    """The shape of a tensor from which a model's shape is told.

    Args:
        source: Names and tensors.
        name: Of the tensor.
        axes: How many it must have.
        where: The checkpoint, for the error.
        what: What the checkpoint should be, such as ``SAM checkpoint``.

    Raises:
        CheckpointError: When there is no such tensor, or it is empty or has other axes.
    """
    sizes = tuple(source[name].shape) if name in source else ()
    if len(sizes) != axes or 0 in sizes:
        raise CheckpointError(f"{where} has no {name} with {axes} axes; it is no {what}.")
    return sizes


def weights_digest(model: nn.Module) -> str:
    """A number that tells a model's weights from any others: SHA-256 of their names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: nn.Module, config: Any) -> str:
    """SHA-256 of a configuration and of the weights.

    Args:
        model: The weights.
        config: A dataclass.
    """
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(f"{settings} {weights_digest(model)}".encode()).hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def short_message(error: Exception) -> str:
    """What went wrong in another package, short enough to stand inside a sentence."""
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
    """Build a model and fill it, after its shape was compared with the weights: before that no memory is taken for it.

    Args:
        build: Makes the model, whose random weights are not drawn.
        source: See ``load_renamed``, like ``sources_of`` and ``unused``.
        sources_of: See ``load_renamed``.
        inside: The part of the model that is filled; default all of it.
        unused: See ``load_renamed``.
        where: The checkpoint, for error messages.

    Returns:
        The model.

    Raises:
        CheckpointError: As ``load_renamed``, and when such a model cannot be built.
    """
    patterns = list(unused)
    part: Callable[[Model], nn.Module] = inside or (lambda model: model)
    try:
        with torch.device("meta"), SkipRandomInit(), torch.random.fork_rng(devices=[]):
            outline = build()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        raise CheckpointError(f"no model can be built as {where} says ({short_message(error)}).") from error
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
    """Fill every tensor of a model from differently named ones; every mismatch is an error.

    Args:
        model: The model, filled in place.
        source: Names and tensors of the checkpoint.
        sources_of: For a name of the model, the checkpoint's names that hold it: one, several to be concatenated along
            the first axis, or none for a tensor that the published model does not have: it becomes zero.
        unused: Regular expressions of checkpoint names that the model has no place for, by design.
        where: The checkpoint, for error messages.

    Raises:
        CheckpointError: Lists what does not fit (see ``check_fit``), or the tensors with numbers that are not finite.
    """
    check_fit(model, source, sources_of, unused=unused, where=where)
    filled: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # what two names share they go on sharing
    infinite: list[str] = []
    for name, target in model.state_dict(keep_vars=True).items():
        names = sources_of(name)
        if id(target) not in made:
            parts = [source[part] for part in names]
            value = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(target)
            made[id(target)] = _in_place_of(target, value.reshape(target.shape))
            if not is_finite(made[id(target)]):
                infinite.append(" + ".join(names))
        filled[name] = made[id(target)]
    if infinite:
        raise CheckpointError(f"{where} has NaN or infinity in {_listed(infinite)}; its numbers are damaged.")
    model.load_state_dict(filled, strict=False, assign=True)


def check_fit(
    model: nn.Module,
    source: Mapping[str, Tensor],
    sources_of: Callable[[str], Sequence[str]],
    *,
    unused: Iterable[str] = (),
    where: str,
) -> None:
    """Check that a checkpoint has what a model needs, by names, shapes and types; no numbers are looked at.

    Args:
        model: The model, perhaps without memory (on the device ``meta``).
        source: See ``load_renamed``, like the other arguments.
        sources_of: See ``load_renamed``.
        unused: See ``load_renamed``.
        where: See ``load_renamed``.

    Raises:
        CheckpointError: Lists missing, unexpected and misshapen tensors, and those of a type that holds no weights.
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
    """The shape of tensors that are put together along their first axis, without axes of length one; None if none."""
    if len(shapes) == 1:
        return _squeezed(shapes[0])
    if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
        return None
    return _squeezed((sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _squeezed(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in tensor.detach().aminmax())  # one pass that takes no memory


def check_finite(model: nn.Module, where: str, advice: str) -> None:
    """Check that a model's weights are numbers, after they were converted to another type.

    Args:
        model: The model.
        where: What holds them, for the error.
        advice: What would be right.

    Raises:
        CheckpointError: Names the tensors that hold NaN or infinity.
    """
    infinite = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if infinite:
        raise CheckpointError(f"{where} has NaN or infinity in {_listed(infinite)}; {advice}.")


def _right_type(value: Tensor, target: Tensor) -> bool:
    """Whether a stored tensor can fill a model's: any type of weights for weights, and its own for anything else."""
    return value.dtype in NUMBERS if target.is_floating_point() else value.dtype == target.dtype


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(names: Iterable[str]) -> str:
    """Names in order, the first of many."""
    every = sorted(set(names))
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")


def _in_place_of(target: Tensor, value: Tensor) -> Tensor:
    """A value to be assigned instead of a model's tensor: its type and device, and memory apart from any file."""
    copied = value.detach().to(target.device, target.dtype, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(copied, target.requires_grad) if isinstance(target, nn.Parameter) else copied


class SkipRandomInit(TorchFunctionMode):
    """Build a model without drawing its random weights, because a checkpoint is about to replace them all.

    Drawing the 210 million of base-plus takes seconds. Inside this context memory is allocated for them and not
    touched; whatever else a model computes when it is built, such as position tables, is computed as ever.
    """

    # Of ``nn.init`` those that torch hands over as a whole; the others come down to the tensors' own methods.
    _DRAWING = (
        *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave tensors that are to be filled with random numbers as they are."""
        given = kwargs or {}
        if func in self._DRAWING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def model_folder(folder: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Write a model's folder in one step.

    Killed at any moment, the target is what it was or what it becomes. Where a file system cannot exchange two folders,
    an old one is without its ``config.json``, and so no model, while its files are replaced.

    Args:
        folder: The target, created when absent. Files in it that are not written anew stay.
        overwrite: Whether files that exist may be replaced.

    Returns:
        A context that gives an empty folder to fill, which then takes the target's place.

    Raises:
        CheckpointError: When the folder has files and ``overwrite`` is off, another process is writing it, or it cannot
            be written.
    """
    return atomic_folder(folder, overwrite=overwrite, keep=True, marker=CONFIG, error=CheckpointError)


def write_model(folder: Path, model: nn.Module, model_type: str, config: Any, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        folder: Exists; see ``model_folder``.
        model: Its state dict is written.
        model_type: What ``config.json`` says that it is.
        config: A dataclass, the model's shape.
        dtype: Round the weights to this type; default as they are.

    Raises:
        CheckpointError: When a weight is NaN or infinite, perhaps only once it is rounded.
    """
    from safetensors.torch import save_file

    import refervos

    header = {
        "model_type": model_type,
        "refervos_version": refervos.__version__,
        "config": dataclasses.asdict(config),
    }
    (folder / CONFIG).write_text(json.dumps(header, indent=2) + "\n")
    tensors = {name: _rounded(tensor, dtype) for name, tensor in model.state_dict().items()}
    infinite = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if infinite:
        kind = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
        raise CheckpointError(
            f"the weights are not written: {_listed(infinite)} would hold NaN or infinity{kind}; a model that answers "
            "with numbers can be saved, in a type that holds them."
        )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read; this one is as public as its neighbour.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of its own (safetensors refuses shared storage), floats in the wanted type."""
    rounded = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return rounded.detach().cpu().contiguous().clone()


def read_header(folder: Path, advice: str) -> dict[str, Any]:
    """Read a model folder's ``config.json``.

    Args:
        folder: The folder.
        advice: What would be right, for error messages.

    Raises:
        CheckpointError: When it is missing or no JSON object.
    """
    with as_checkpoint_error(folder):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder; {advice}.")
        if not (folder / CONFIG).exists():
            raise CheckpointError(f"{folder} has no {CONFIG}; {advice}.")
        header = read_settings(folder / CONFIG)
    if not isinstance(header, dict):
        raise CheckpointError(f"{folder / CONFIG} holds no JSON object; {advice}.")
    return header


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read a model folder's weights: ``model.safetensors``, or else ``pytorch_model.bin``, either whole or in shards.

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
    """The files that an index names, each once; they are beside it."""
    content = read_settings(index)
    files = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(files, Mapping):
        raise CheckpointError(f"{index} is no index of weight files; it has no 'weight_map'.")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(f"{index} names {name!r}, which is not in its folder.")
    return names


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read one file of weights, safetensors or torch's, whichever it is; of the first, what nobody uses stays on disk.

    Raises:
        CheckpointError: When it is missing, unreadable or something else.
    """
    from safetensors.torch import load_file

    with as_checkpoint_error(path):
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is not a file; give a file of weights.")
        if is_torch_file(path):
            return model_tensors(read_torch_file(path), path)
        try:
            return plain_names(load_file(path), path)
        except Exception as error:  # besides the library's own, KeyError for a type that torch does not know
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise unreadable_error(path, error) from error
