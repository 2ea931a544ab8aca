"""Plans: the stages of a recipe, resolved before training, so that a mistake in the last is found before the first."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.checkpoints.card import CARD
from refervos.checkpoints.hub import fetch, is_hub_id
from refervos.errors import TrainingError
from refervos.files.writing import write_atomically
from refervos.models.registry import BY_NAME, bundled_folder
from refervos.training.checkpoint import PREFIX, checkpoints_in
from refervos.training.recipe import PREVIOUS, Recipe, StageRecipe, differences, is_extended, read_yaml, stored_text
from refervos.training.stage import Stage, stage_class
from refervos.typed_config import config_from_mapping

RECIPE, CHECKPOINTS, HISTORY, BOARD, MODEL = "recipe.yaml", "checkpoints", "history.jsonl", "tensorboard", "model"
REPORT, DRAWING = "report.md", "loss.png"


@dataclass(frozen=True)
class Plan:
    """A stage of a recipe, resolved.

    Attributes:
        recipe: The whole recipe.
        stage: The recipe of this stage.
        kind: The stage's class.
        settings: The stage's settings, an instance of ``kind.Settings``.
        init: Model folders to start from, by role; those of earlier stages may not exist yet.
        folder: Folder for the stage's results.
    """

    recipe: Recipe
    stage: StageRecipe
    kind: type[Stage]
    settings: Any
    init: Mapping[str, Path]
    folder: Path

    @property
    def number(self) -> int:
        """Position in the recipe; part of the key from which samples are drawn."""
        return self.recipe.stages.index(self.stage)

    @property
    def model(self) -> Path:
        """Folder of the finished model."""
        return self.folder / MODEL

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def finished(self) -> bool:
        """True if the stage's model has been written."""
        return self.model.is_dir()

    @property
    def extended(self) -> bool:
        """True if the stage is finished, but the recipe now has more steps or epochs."""
        return self.finished and is_extended(self._stored(), self.stage, str(self.folder / RECIPE))

    def with_steps(self, steps: int) -> Plan:
        """Return the same plan with another number of steps."""
        stage = dataclasses.replace(self.stage, steps=steps, epochs=None)
        stages = tuple(stage if other is self.stage else other for other in self.recipe.stages)
        return dataclasses.replace(self, stage=stage, recipe=dataclasses.replace(self.recipe, stages=stages))

    def archive_model(self) -> Path:
        """Rename the model of an extended stage after its steps, so that the stage is no longer finished.

        Returns:
            The renamed folder.
        """
        kept = self.folder / f"{MODEL}-{checkpoints_in(self.checkpoints)[-1].name}"
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(self.model, kept)
        return kept

    def _stored(self) -> dict[str, Any]:
        """Read the recipe with which the stage was started."""
        return read_yaml(self.folder / RECIPE, "the recipe of earlier results")

    def write_recipe(self) -> None:
        """Write the stage's full recipe to its folder."""
        text = stored_text(self.recipe, self.stage, self.settings, _fingerprints(self.init))
        write_atomically(self.folder / RECIPE, text.encode(), error=TrainingError)

    def check_unchanged(self) -> None:
        """Check that a stage that was started before still has the same recipe.

        Raises:
            TrainingError: When it does not; names the differences.
        """
        stored, saved = self.folder / RECIPE, checkpoints_in(self.checkpoints)
        if not (self.finished or saved):
            return  # nothing has been trained yet
        if not stored.is_file():
            raise TrainingError(f"{self.folder} has results but no {RECIPE}; give another folder with --out.")
        values = self._stored()
        changed = differences(values, self.recipe, self.stage, self.settings, str(stored))
        began_from, now = values.get("began_from"), _fingerprints(self.init)
        before = began_from if isinstance(began_from, Mapping) else {}
        changed += [f"{self.init[role]} holds another model" for role in now if now[role] != before.get(role)]
        if changed:
            name = self.stage.name
            raise TrainingError(
                f"stage {name!r} was started with another recipe: {'; '.join(changed)}; change it back, give another "
                f"folder with --out, or start the stage over with --stage {name} --restart."
            )
        if self.extended and not saved:
            raise TrainingError(
                f"stage {self.stage.name!r} is finished and cannot be extended, because its checkpoints are gone; put "
                f"them back in {self.checkpoints}, or add a stage that starts from {self.model}."
            )

    def delete_results(self) -> None:
        """Delete the stage's results, and nothing else that may be in its folder."""
        archived = [path.name for path in self.folder.glob(f"{MODEL}-{PREFIX}*")]
        for name in (MODEL, CHECKPOINTS, BOARD, *archived):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (RECIPE, HISTORY, REPORT, DRAWING):
            (self.folder / name).unlink(missing_ok=True)


def make_plans(recipe: Recipe, out: Path, stages: Sequence[str] | None = None) -> list[Plan]:
    """Resolve every stage of a recipe.

    Args:
        recipe: A checked recipe.
        out: Folder for the results.
        stages: Names of the requested stages, default all.

    Returns:
        A plan for each requested stage, in the recipe's order.

    Raises:
        TrainingError: When a stage or a model that it starts from does not exist.
        ConfigError: When settings are wrong.
        CheckpointError: When a hub model that it starts from is not available.
    """
    names = [stage.name for stage in recipe.stages]
    for name in stages or ():
        if name not in names:
            raise TrainingError(f"the recipe has no stage {name!r}; it has {', '.join(names)}.")
    requested = set(names if stages is None else stages)
    plans = []
    for stage in recipe.stages:
        if stage.name not in requested:
            continue
        kind = stage_class(stage.stage)
        settings: Any = config_from_mapping(kind.Settings, stage.settings, f"settings of stage {stage.name!r}")
        init = {role: _init_folder(stage, source, names, out, requested) for role, source in stage.inits.items()}
        plans.append(Plan(recipe, stage, kind, settings, init, out / stage.name))
    return plans


def _init_folder(stage: StageRecipe, source: str, names: Sequence[str], out: Path, requested: set[str]) -> Path:
    """Find the model folder that one entry of ``init`` names."""
    name = names[names.index(stage.name) - 1] if source == PREVIOUS else source
    if name in names:
        model = out / name / MODEL
        if name not in requested and not model.is_dir():
            raise TrainingError(f"stage {stage.name!r} starts from {name!r}, which is not trained yet; train it first.")
        return model
    try:
        path = bundled_folder(source) or Path(source).expanduser()
        if source and path.exists():
            return path  # a folder, or a checkpoint file of SAM or SAM2
    except (OSError, RuntimeError) as error:  # too long, not allowed, or the home of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"stage {stage.name!r} starts from {source!r}, which cannot be read ({reason}).") from error
    if source in BY_NAME:
        from refervos.models.fetching import fetch_model

        return fetch_model(source)
    if source and is_hub_id(source):
        advice = f"stage {stage.name!r} needs an earlier stage, a model folder or a hub id to start from"
        folder = fetch(source, ["*.json", "*.safetensors", "*.txt", "spiece.model"], advice)
        if not any(folder.glob("*.safetensors")):  # some older models, T5 among them, have pickled weights only
            folder = fetch(source, ["pytorch_model*"], advice)
        return folder
    raise TrainingError(
        f"stage {stage.name!r} starts from {source!r}, which is no earlier stage, no folder and no file."
    )


def _fingerprints(init: Mapping[str, Path]) -> dict[str, str]:
    """Hash the models that exist, so that a stage does not resume on top of a retrained one."""
    found: dict[str, str] = {}
    for role, folder in init.items():
        if not folder.exists():
            continue
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.is_dir() or path.name == CARD:  # the model card may be edited at any time
                continue
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        found[role] = digest.hexdigest()[:16]
    return found
