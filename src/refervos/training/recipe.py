"""Recipes: YAML files of the stages to train one after the other, and their hyper-parameters.

.. code-block:: yaml

    name: miniature
    seed: 1
    stages:
      - name: track-images      # the folder of its results
        stage: track            # one of refervos.training.stage.STAGES, or package.module:Class
        steps: 3000
        batch: 32
        optimiser: {rate: 1e-3, warmup: 100}
        settings: {...}         # fields of the stage's own settings
      - name: track-clips
        stage: track
        init: previous          # or the name of an earlier stage, a model folder, a hub id, or several by role
        ...
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from refervos.errors import ConfigError, MissingDependencyError, TrainingError
from refervos.files.plain_text import decode_text
from refervos.typed_config import config_from_mapping

PREVIOUS = "previous"
"""Value of ``init`` that names the stage before this one."""


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW and its learning rate.

    Attributes:
        rate: Learning rate after the warm-up.
        final_rate: Learning rate of the last step, unless the schedule is constant.
        warmup: Number of warm-up steps, in which the rate rises linearly from near zero.
        weight_decay: Decoupled weight decay.
        clip_norm: Largest norm of the total gradient, None for no clipping.
        betas: Decay rates of the two running means.
    """

    rate: float = 1e-4
    final_rate: float = 0.0
    warmup: int = 0
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class StageRecipe:
    """One stage of a recipe.

    Attributes:
        name: Unique name of the stage and of the folder of its results.
        stage: Kind of stage: one of ``STAGES``, or ``package.module:Class``.
        batch: Samples in an optimiser step, over all processes and accumulated batches.
        steps: Number of optimiser steps.
        epochs: Number of passes over the data, instead of ``steps``, for data sets of finite size.
        init: Initial weights: None for random ones, ``previous``, the name of an earlier stage, a model folder or a
            hub id; or several of these by role.
        accumulate: Number of batches whose gradients are accumulated in a step.
        optimiser: Optimiser and learning rate.
        schedule: Shape of the learning rate between ``rate`` and ``final_rate``.
        precision: Mixed precision, None for the setting of ``accelerate launch``.
        workers: Data worker processes beside each training process; 0 to draw samples in the training process.
        checkpoint_every: Steps between checkpoints.
        keep: Number of checkpoints to keep.
        validate_every: Steps between validations, None for only one at the end.
        validation_batches: Batches to validate on; 0 for no validation.
        log_every: Steps over which logged scalars are averaged.
        settings: Settings of the stage itself.
    """

    name: str
    stage: str
    batch: int
    steps: int = 0
    epochs: float | None = None
    init: str | Mapping[str, str] | None = None
    accumulate: int = 1
    optimiser: OptimiserRecipe = OptimiserRecipe()
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    precision: Literal["no", "bf16", "fp16"] | None = None
    workers: int = 0
    checkpoint_every: int = 200
    keep: int = 2
    validate_every: int | None = None
    validation_batches: int = 4
    log_every: int = 20
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inits(self) -> dict[str, str]:
        """Initial weights by role; a single entry has the role ``model``."""
        if self.init is None:
            return {}
        return {"model": self.init} if isinstance(self.init, str) else dict(self.init)


@dataclass(frozen=True)
class Recipe:
    """Stages to train one after the other.

    Attributes:
        name: Name of the run.
        stages: Stages in order.
        seed: Seed of all random numbers.
    """

    name: str
    stages: tuple[StageRecipe, ...]
    seed: int = 0


COSMETIC = frozenset(
    {"workers", "checkpoint_every", "keep", "validate_every", "validation_batches", "log_every"},
)
"""Fields of a stage that do not change the trained weights, so that they may differ when a run resumes."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.

    Returns:
        The recipe, checked for consistency.

    Raises:
        TrainingError: When the file cannot be read.
        ConfigError: When a field is unknown, missing, of the wrong type or out of range.
        MissingDependencyError: When ruamel.yaml is not installed.
    """
    return recipe_from_mapping(read_yaml(path, "the recipe"), str(path))


def read_yaml(path: Path, description: str) -> dict[str, Any]:
    """Read a YAML file from an untrusted source.

    Args:
        path: The file.
        description: Description of the file, for error messages.

    Returns:
        Names and plain values.

    Raises:
        TrainingError: When the file cannot be read.
        ConfigError: When it is no YAML, or exceeds the limits on its size.
        MissingDependencyError: When ruamel.yaml is not installed.
    """
    reader = yaml_text()
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block forever
            raise TrainingError(f"{description} {path} is no file; give a YAML file.")
        with path.open("rb") as file:
            text = decode_text(file.read(4 * reader.MAX_CHARACTERS))  # a character takes up to four bytes
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise TrainingError(f"{description} {path} cannot be read ({reason}); give a YAML file.") from error
    values: dict[str, Any] = reader.parse(text, str(path))
    return values


def recipe_from_mapping(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from the contents of its YAML file.

    Args:
        values: Plain values.
        where: The recipe's file, for error messages.

    Returns:
        The recipe, checked for consistency.

    Raises:
        ConfigError: When a field is unknown, missing, of the wrong type or out of range.
    """
    recipe = config_from_mapping(Recipe, values, where)
    check_recipe(recipe, where)
    return recipe


def check_recipe(recipe: Recipe, where: str = "recipe") -> None:
    """Check that values are in range and that stages start only from earlier stages.

    Raises:
        ConfigError: When they are not; one sentence about the first problem.
    """
    _check_name(recipe.name, where)
    if not recipe.stages:
        raise ConfigError(f"{where}: stages is empty; give at least one.")
    if not 0 <= recipe.seed < 2**63:
        raise ConfigError(f"{where}: seed is {recipe.seed}; it must be 0 or more, and less than 2^63.")
    earlier: list[str] = []
    for stage in recipe.stages:
        _check_name(stage.name, where)
        if stage.name in earlier:
            raise ConfigError(f"{where}: two stages are called {stage.name!r}; give each stage its own name.")
        problem = _problem(stage)
        if problem:
            raise ConfigError(f"{where}: stage {stage.name!r}: {problem}.")
        later = {other.name for other in recipe.stages} - set(earlier)
        for source in stage.inits.values():
            if (source == PREVIOUS and not earlier) or source in later:
                raise ConfigError(
                    f"{where}: stage {stage.name!r} starts from {source!r}, which does not come before it."
                )
        earlier.append(stage.name)


def _check_name(name: str, where: str) -> None:
    # Names become folders; "previous" would be ambiguous in init.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) or name == PREVIOUS:
        raise ConfigError(
            f"{where}: the name {name[:120]!r} is no folder name of up to 100 letters, digits, '-', '_' and '.'."
        )


_MAXIMA = {"workers": 256, "batch": 2**20, "accumulate": 2**20}
"""Largest values of fields that take memory."""


def _problem(stage: StageRecipe) -> str | None:
    """Describe the first value that is out of range, or return None."""
    minima = {"steps": 0, "batch": 1, "accumulate": 1, "workers": 0, "checkpoint_every": 1, "keep": 1, "log_every": 1}
    for name, least in {**minima, "validate_every": 1, "validation_batches": 0}.items():
        value = getattr(stage, name)
        if value is not None and value < least:
            return f"{name} is {value}; it must be {least} or more"
        greatest = _MAXIMA.get(name, 10**9)
        if value is not None and value > greatest:
            return f"{name} is {value}; it must be {greatest} or less"
    optimiser = stage.optimiser
    if bool(stage.steps) == (stage.epochs is not None):
        return "it needs steps, 1 or more, or else epochs"
    if stage.epochs is not None and not 0 < stage.epochs <= 10**6:
        return f"epochs is {stage.epochs}; it must be more than 0 and at most a million"
    if stage.batch % stage.accumulate:
        return f"batch is {stage.batch}, which accumulate ({stage.accumulate}) does not divide"
    if not optimiser.rate > 0:
        return f"optimiser.rate is {optimiser.rate}; it must be more than 0"
    if not 0 <= optimiser.final_rate <= optimiser.rate:
        return f"optimiser.final_rate is {optimiser.final_rate}; it must be between 0 and rate ({optimiser.rate})"
    if optimiser.warmup < 0 or (stage.steps and optimiser.warmup >= stage.steps):
        return f"optimiser.warmup is {optimiser.warmup}; it must be 0 or more and less than steps ({stage.steps})"
    if optimiser.weight_decay < 0:
        return f"optimiser.weight_decay is {optimiser.weight_decay}; it must be 0 or more"
    if optimiser.clip_norm is not None and not optimiser.clip_norm > 0:
        return f"optimiser.clip_norm is {optimiser.clip_norm}; it must be more than 0, or null for no clipping"
    if not all(0 <= beta < 1 for beta in optimiser.betas):
        return f"optimiser.betas is {list(optimiser.betas)}; both must be at least 0 and less than 1"
    return None


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """Limit the steps of each stage, for a trial run; stages with epochs get exactly this many steps.

    Args:
        recipe: The recipe.
        steps: At least 1.

    Returns:
        A recipe whose warm-ups are at most a tenth of the steps.

    Raises:
        ConfigError: When ``steps`` is less than 1.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be 1 or more.")

    def short(stage: StageRecipe) -> StageRecipe:
        if 0 < stage.steps <= steps:
            return stage
        optimiser = dataclasses.replace(stage.optimiser, warmup=min(stage.optimiser.warmup, steps // 10))
        return dataclasses.replace(stage, steps=steps, epochs=None, optimiser=optimiser)

    return dataclasses.replace(recipe, stages=tuple(short(stage) for stage in recipe.stages))


def with_steps(recipe: StageRecipe, epoch: int | None) -> StageRecipe:
    """Convert the epochs of a stage's recipe to steps.

    Args:
        recipe: The stage's recipe.
        epoch: Number of samples in an epoch; None for an endless source.

    Returns:
        A recipe with steps, rounded up to whole steps.

    Raises:
        TrainingError: When the source is endless, or the warm-up takes longer than all epochs.
    """
    if recipe.epochs is None:
        return recipe
    if epoch is None:
        raise TrainingError(
            f"stage {recipe.name!r}: its samples are drawn endlessly, so they have no epochs; give steps."
        )
    steps = math.ceil(recipe.epochs * epoch / recipe.batch)
    if recipe.optimiser.warmup >= steps:
        raise TrainingError(
            f"stage {recipe.name!r}: {recipe.epochs:g} epochs are {steps} steps, and optimiser.warmup is "
            f"{recipe.optimiser.warmup}; it must be less."
        )
    return dataclasses.replace(recipe, steps=steps)


# The recipe stored beside the results, to check that a resumed run is still the same.


def stored_text(recipe: Recipe, stage: StageRecipe, settings: Any, began_from: Mapping[str, str]) -> str:
    """Return the full recipe of a stage as YAML.

    Args:
        recipe: The recipe.
        stage: One of its stages.
        settings: The stage's settings, a dataclass; defaults are written, too.
        began_from: Hashes of the models it started from, by role.
    """
    full = dataclasses.replace(stage, settings=dataclasses.asdict(settings))
    values = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "number": recipe.stages.index(stage),
        "stage": _plain(dataclasses.asdict(full)),
        "began_from": dict(began_from),
    }
    return f"# Full recipe of this stage, written by refervos train.\n{yaml_text().write(values)}"


def is_extended(stored: Mapping[str, Any], stage: StageRecipe, where: str) -> bool:
    """Return True if a stage now has more steps, or epochs, than its stored recipe.

    Args:
        stored: The stored recipe, written by ``stored_text``.
        stage: The stage's current recipe.
        where: The stored file, for error messages.

    Raises:
        ConfigError: When the stored recipe has unknown fields.
    """
    before = config_from_mapping(StageRecipe, stored.get("stage", {}), where)
    if before.epochs is None or stage.epochs is None:
        return before.epochs is stage.epochs and stage.steps > before.steps
    return stage.epochs > before.epochs


def differences(stored: Mapping[str, Any], recipe: Recipe, stage: StageRecipe, settings: Any, where: str) -> list[str]:
    """List the differences between a stored recipe and the current one; extending a stage is none.

    Fields missing from the stored recipe count as their defaults, so that a newer version can resume it.

    Args:
        stored: The stored recipe, written by ``stored_text``.
        recipe: The current recipe.
        stage: The stage's current recipe.
        settings: The stage's settings, a dataclass.
        where: The stored file, for error messages.

    Returns:
        Phrases such as ``batch is 32 and was 16``; empty when only cosmetic fields differ.

    Raises:
        ConfigError: When the stored recipe has unknown fields.
    """
    before = config_from_mapping(StageRecipe, stored.get("stage", {}), where)
    before_settings = config_from_mapping(type(settings), before.settings, f"{where}: settings")
    was = _facts(stored.get("seed"), stored.get("number"), before, before_settings)
    now = _facts(recipe.seed, recipe.stages.index(stage), stage, settings)
    length = {"steps", "epochs"} if is_extended(stored, stage, where) else set()
    changed = [name for name in {**was, **now} if was.get(name) != now.get(name) and name not in length]
    return [f"{name} is {_plain(now.get(name))} and was {_plain(was.get(name))}" for name in changed]


def _facts(seed: int | None, number: int | None, stage: StageRecipe, settings: Any) -> dict[str, Any]:
    """Collect the values that determine the trained weights, by dotted names."""
    values = _flat(dataclasses.asdict(dataclasses.replace(stage, settings={})))
    facts = {name: value for name, value in values.items() if name not in COSMETIC}
    return {
        "seed": seed,
        "the position in the recipe": number,
        **facts,
        **_flat(dataclasses.asdict(settings), "settings."),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _plain(value: Any) -> Any:
    """Convert tuples to lists, because YAML's safe writer has no tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def yaml_text() -> ModuleType:
    """Import the module that reads and writes YAML.

    Raises:
        MissingDependencyError: When ruamel.yaml is not installed.
    """
    try:
        from refervos.training import yaml_text
    except ImportError as error:
        raise MissingDependencyError("training recipes need ruamel.yaml: pip install 'refervos[train]'.") from error
    return yaml_text
