"""Reading and checking weight files: nothing is executed, nothing is skipped in silence."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refervos.errors import CheckpointError
from refervos.folder_lock import FolderLock

WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
CONFIG = "config.json"

NUMBERS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types in which weights are stored. Narrower ones mean something only together with scales that stand elsewhere."""

_NAMED = 20
"""How many tensors an error names, of each kind of fault."""

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
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file; give a checkpoint file (.pt or .pth).")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable weights-only checkpoint ({first_line(error)}).") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; a dict with the key 'model' is expected.")
    return loaded


def first_line(error: Exception) -> str:
    """What went wrong in another package, short enough to stand inside a sentence."""
    return str(error).strip().split("\n")[0][:200].rstrip(".:")


def _can_map(path: Path) -> bool:
    """Only the zip format of torch 1.6 and later can be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def model_tensors(loaded: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without ``module.`` prefixes.

    Args:
        loaded: What the file holds: ``{"model": state_dict, ...}``, or a state dict itself.
        path: The file, for error messages.

    Returns:
        Names and tensors.

    Raises:
        CheckpointError: When there is no state dict.
    """
    state = loaded.get("model", loaded.get("state_dict", loaded))
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} has no state dict under the key 'model'; it holds {sorted(map(str, loaded))[:5]}."
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


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
        CheckpointError: Lists missing, unexpected and misshapen tensors, those of a type that holds no weights, and
            those with numbers that are not finite.
    """
    filled: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # what two names share they go on sharing
    used: set[str] = set()
    missing: list[str] = []
    misshapen: list[str] = []
    mistyped: list[str] = []
    infinite: list[str] = []
    for name, target in model.state_dict(keep_vars=True).items():
        names = sources_of(name)
        used.update(names)
        absent = [part for part in names if part not in source]
        if absent:
            missing.extend(absent)
            continue
        if not names:
            filled[name] = made.setdefault(id(target), _in_place_of(target, torch.zeros_like(target)))
            continue
        wrong = [part for part in names if not _right_type(source[part], target)]
        if wrong:
            mistyped.extend(f"{part} is {_type_name(source[part])}, {_type_name(target)} expected" for part in wrong)
            continue
        value = source[names[0]] if len(names) == 1 else torch.cat([source[part] for part in names])
        if value.shape != target.shape and value.numel() == target.numel() and _squeezed(value) == _squeezed(target):
            value = value.reshape(target.shape)  # only axes of length one differ
        if value.shape != target.shape:
            misshapen.append(f"{names[0]} is {tuple(value.shape)}, {tuple(target.shape)} expected")
            continue
        if id(target) not in made:
            made[id(target)] = _in_place_of(target, value)
            if not is_finite(made[id(target)]):
                infinite.append(" + ".join(names))
        filled[name] = made[id(target)]
    known = [re.compile(pattern) for pattern in unused]
    unexpected = [n for n in source if n not in used and not any(pattern.fullmatch(n) for pattern in known)]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": misshapen,
        "of another type": mistyped,
        "with NaN or infinity": infinite,
    }
    problems = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{where} does not fit the model; {'; '.join(problems)}.")
    model.load_state_dict(filled, strict=False, assign=True)


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


class Undrawn(TorchFunctionMode):
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


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def write_folder_atomically(folder: Path, write: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Let ``write`` fill a folder beside the target, then put it in the target's place in one step.

    Killed at any moment, the target is what it was or what it becomes. Where a file system cannot exchange two folders,
    an old one is without its ``config.json``, and so no model, while its files are replaced.

    Args:
        folder: The target, created when absent. Files in it that are not written anew stay.
        write: Gets a folder to fill.
        overwrite: Whether files that exist may be replaced.

    Raises:
        CheckpointError: When the folder has files and ``overwrite`` is off, another process is writing it, or it cannot
            be written.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder to write to.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(f"{folder} is not empty; give a new folder, or allow overwriting.")
    try:
        target = folder.resolve()  # where a link leads
        target.parent.mkdir(parents=True, exist_ok=True)
        # Always of the same name, so that the next run finds what a killed one has left.
        unfinished = _beside(target) / f".{target.name}.unfinished"
        unfinished.mkdir(exist_ok=True)
        lock = FolderLock(unfinished, f"writing {folder}", CheckpointError)
        try:
            staged = unfinished / "staged"
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            write(staged)
            _put_in_place(staged, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            lock.release()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror or error}).") from error


def _beside(folder: Path) -> Path:
    """Where a folder can be prepared that shall take another one's place: beside it, or else in it."""
    beside = os.access(folder.parent, os.W_OK) and not folder.is_mount()
    return folder.parent if beside or not folder.is_dir() else folder


def _put_in_place(staged: Path, target: Path) -> None:
    """Make a complete folder the target."""
    if not target.exists():
        os.replace(staged, target)
        return
    for other in target.iterdir():
        if not (staged / other.name).exists() and other != staged.parent:
            _link(other, staged / other.name)
    if _exchange(staged, target):
        return
    (target / CONFIG).unlink(missing_ok=True)
    for file in sorted(staged.iterdir(), key=lambda file: file.name == CONFIG):  # that one last
        if not (target / file.name).is_dir():
            os.replace(file, target / file.name)


def _link(source: Path, target: Path) -> None:
    """The same file or folder under another name, copied where it cannot be linked."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for inside in source.iterdir():
            _link(inside, target / inside.name)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's place in one step; False where the system cannot."""
    if sys.platform != "linux" or other in one.parents:
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def write_model(folder: Path, model: nn.Module, model_type: str, config: Any, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        folder: Exists; see ``write_folder_atomically``.
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
    try:
        header = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG}; {advice}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not valid JSON ({error}).") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{folder / CONFIG} holds no JSON object; {advice}.")
    return header


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read a model folder's weights: ``model.safetensors``, or else ``pytorch_model.bin``, either whole or in shards.

    Raises:
        CheckpointError: When they are missing or unreadable.
    """
    for name in (WEIGHTS, PICKLED_WEIGHTS):
        if (folder / name).is_file():
            return _read_weights(folder / name)
        if (folder / f"{name}.index.json").is_file():
            shards = [_read_weights(folder / shard) for shard in _shards(folder / f"{name}.index.json")]
            return {key: tensor for shard in shards for key, tensor in shard.items()}
    raise CheckpointError(f"{folder / WEIGHTS} is missing or unreadable (there is no such file).")


def _shards(index: Path) -> list[str]:
    """The files that an index names, each once."""
    try:
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weight files; it has no 'weight_map'.") from error
    return sorted(names)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """One file of weights; tensors that nobody looks at are not read from disk."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".bin":
        return model_tensors(read_torch_file(path), path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or unreadable ({error}).") from error
