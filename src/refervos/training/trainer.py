"""Trainer: takes the stages of a recipe, one after the other, from the first step to a model folder.

It may be stopped at any moment: the same call resumes from the newest checkpoint and ends (on a CPU, bit for bit) with
the result of an uninterrupted run. It runs unchanged under ``accelerate launch`` and ``torchrun``, on several processes
and machines that share the output folder.

Results of a stage, in a folder of its name::

    recipe.yaml      the full recipe of the stage
    checkpoints/     step-000200, ...: see refervos.training.checkpoint
    history.jsonl    measurements, a row of JSON each
    tensorboard/     the same for TensorBoard
    report.md        the final table, with loss.png
    model/           the finished model; a stage that has it is finished, unless its recipe is extended
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from refervos.errors import TrainingError, is_out_of_memory, require_installed
from refervos.files.locks import FolderLock
from refervos.files.writing import atomic_folder, remove_leftovers, write_atomically, write_error
from refervos.training.checkpoint import (
    checkpoints_in,
    random_state,
    read_newest,
    restore_random_state,
    seed_random,
    torch_random_state_kept,
    write_checkpoint,
)
from refervos.training.devices import device_name, read_back
from refervos.training.distributed import (
    GradientCheck,
    explain_lost_processes,
    make_accelerator,
    synchronise_batch_norm,
)
from refervos.training.frozen import FrozenGuard
from refervos.training.history import History, Means
from refervos.training.interruption import Interruption
from refervos.training.plan import BOARD, DRAWING, HISTORY, REPORT, Plan, make_plans
from refervos.training.progress import TrainingProgress
from refervos.training.recipe import Recipe, check_recipe, shortened, with_steps
from refervos.training.report import StageReport, draw_losses
from refervos.training.sampler import ShareSampler, iterate_batches, make_loader, to_device
from refervos.training.schedule import learning_rate
from refervos.training.stage import TRAIN, VALIDATION, Stage
from refervos.training.step_means import as_ratio

BUILDING, STEPPING, RESUMING, VALIDATING = range(4)
"""Purposes of random numbers; each has its own seed."""

WARM_UP = 5
"""Number of untimed first steps, which also choose kernels and start the data workers."""

TIMED_AFTER = (20, 100, 400)
"""Steps after which a stage with a time limit is shortened to fit it."""

TIME_FOR_STEPS = 0.95
"""Share of the remaining time for steps; the rest is for the last validation and for writing the model."""


@explain_lost_processes()
def train(
    recipe: Recipe,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    restart: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    show_progress: bool | None = None,
) -> list[StageReport]:
    """Train the stages of a recipe; a repeated call resumes where the last one stopped.

    Args:
        recipe: The recipe.
        out: Folder for the results, with a folder for each stage. All machines must share it.
        stages: Names of the stages to train, default all.
        restart: Delete the results of ``stages``, which must be given, and start them over.
        steps: Limit of the steps of each stage, for a trial run.
        minutes: Approximate time limit of each stage. Once its speed is known, a stage that would take longer gets
            fewer steps, so that its schedule still runs to the end; it then counts as finished.
        show_progress: True for a progress bar, False for silence, None for a bar in a terminal and lines elsewhere.

    Returns:
        A report for each stage that this call trained; finished ones are skipped.

    Raises:
        TrainingError: When the recipe cannot be trained, or training fails.
        ConfigError: When the recipe or a stage's settings are wrong.
        CheckpointError: When checkpoints are damaged or cannot be written.
        MissingDependencyError: When packages for training are missing.
        KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is written.
    """
    require_packages()
    recipe = recipe if steps is None else shortened(recipe, steps)
    check_recipe(recipe)
    plans = make_plans(recipe, out, stages)
    accelerator = make_accelerator()
    verbose = accelerator.is_main_process and show_progress is not False
    if restart:
        if stages is None:
            raise TrainingError("restarting deletes the results of a stage; name the stages with --stage.")
        if accelerator.is_main_process:
            for plan in plans:
                plan.delete_results()
        accelerator.wait_for_everyone()
    for plan in plans:
        plan.check_unchanged()
    reports = []
    for plan in plans:
        plan.check_unchanged()  # again: stages that it starts from may have been trained meanwhile
        finished = plan.finished and (minutes is not None or not plan.extended)
        accelerator.wait_for_everyone()  # before the main process changes files that the others check
        if finished:
            if verbose:
                print(f"{plan.stage.name} is finished: {plan.model}", flush=True)
            continue
        report = StageRun(plan, show_progress, minutes).run()
        if verbose:
            print(report.table(), flush=True)
        reports.append(report)
        if report.interrupted:
            raise KeyboardInterrupt(f"stopped after {report.stage}, which is finished; the same command resumes.")
    return reports


def require_packages() -> None:
    """Check before hours of work that all packages for training are installed.

    Raises:
        MissingDependencyError: When one is missing.
    """
    require_installed("training", "train", "accelerate", "tensorboard", "matplotlib", "ruamel.yaml")


class StageRun:
    """Training of one stage, from its first step or newest checkpoint to its end.

    Args:
        plan: The resolved stage.
        show_progress: See ``train``.
        minutes: See ``train``.

    Attributes:
        plan: The resolved stage.
        recipe: The stage's recipe, with steps instead of epochs.
        accelerator: Devices, processes and precision.
        stage: The stage itself, which is saved.
        wrapped: The stage wrapped for several processes, which is called.
        optimiser: The optimiser.
        guard: Guard of the frozen parts.
        gradients: Check that several processes exchange all gradients; None if they need not.
        deadline: End of the time limit by the monotonic clock; None for no limit.
        step: Number of optimiser steps made.
        seconds: Duration of all steps, those of earlier runs included.
        means: Means of the training scalars since the last row of the history, in this process.
        unread: Scalars not yet read from the device: number, names and ratios (n, 2) of each step.
        history: Measurements of the run.
        board: TensorBoard writer; None except in the main process.
        progress: Progress bar or lines.
        interruption: Requests of the user to stop.
        lock: Lock of the folder against other runs; held by the main process.
    """

    def __init__(self, plan: Plan, show_progress: bool | None = None, minutes: float | None = None) -> None:
        self.plan = plan
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.recipe = plan.stage
        self.accelerator = make_accelerator(self.recipe.precision)
        self.main = bool(self.accelerator.is_main_process)
        self._sampler(range(0))  # refuses an indivisible batch before anything is built or written
        self.step, self.seconds, self.means = 0, 0.0, Means()
        self.unread: list[tuple[int, list[str], Tensor]] = []
        self.lock: FolderLock | None = None
        messages = self._make_folder()
        with self._explain_out_of_memory():
            self._build()
        messages += self._resume()
        self.history = History(plan.folder / HISTORY, self.step, write=self.main)
        self.board = self._open_board()
        self.interruption = Interruption(ignore_repeats=self.accelerator.num_processes > 1)
        self.progress = TrainingProgress(
            self.recipe.name, self.recipe.steps, self.step, show_progress if self.main else False
        )
        for message in messages:
            self.progress.say(message)

    def run(self) -> StageReport:
        """Train to the end.

        Returns:
            The report; the model is written.
        """
        try:
            with self.progress, self.interruption, self._explain_out_of_memory():
                self._loop()
                return self._finish()
        finally:
            if self.board is not None:
                self.board.close()
            if self.lock is not None:
                self.lock.release()
            self.accelerator.free_memory()

    @contextmanager
    def _explain_out_of_memory(self) -> Iterator[None]:
        """Turn out-of-memory errors into one that says which settings to change."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            recipe, saved = self.recipe, checkpoints_in(self.plan.checkpoints)
            restart = f" and start over with --stage {recipe.name} --restart" if saved else ""
            raise TrainingError(
                f"{device_name(self.accelerator.device)} ran out of memory in {recipe.name} after {self.step} steps; "
                f"set accumulate, which is {recipe.accumulate}, to a greater divisor of the batch of {recipe.batch}, "
                f"or use shorter clips{restart}; or train on more devices or with fewer workers, and the same command "
                f"resumes{f' from {saved[-1]}' if saved else ''}."
            ) from error

    # Before the first step.

    def _make_folder(self) -> list[str]:
        """Make the stage's folder or take it over; return messages for the user."""
        messages: list[str] = []
        if self.main:
            try:
                self.plan.folder.mkdir(parents=True, exist_ok=True)
                self.lock = FolderLock(self.plan.folder, "training", TrainingError)
                if self.plan.extended:
                    kept = self.plan.archive_model()  # before the new length is written: a run killed here can resume
                    messages.append(f"{self.recipe.name} is extended; its model so far is kept in {kept}.")
                self.plan.write_recipe()
            except OSError as error:
                raise write_error(self.plan.folder, error, TrainingError) from error
            for folder in (self.plan.folder, self.plan.checkpoints):
                remove_leftovers(folder)
        self.accelerator.wait_for_everyone()
        if not self.plan.folder.is_dir():
            raise TrainingError(f"{self.plan.folder} is not shared by all machines; give a shared folder with --out.")
        return messages

    def _build(self) -> None:
        self._seed(BUILDING)  # the same weights in each process
        self.stage = self.plan.kind.build(self.plan.settings, self.plan.init, self.plan.recipe.seed)
        epoch = self.stage.prepare_data(self.recipe.batch, self.recipe.validation_batches)
        self.recipe = with_steps(self.recipe, epoch)
        if self.accelerator.num_processes > 1:
            synchronise_batch_norm(self.stage, self.accelerator.device)
        recipe = self.recipe.optimiser
        optimiser = optimiser_for(self.stage, lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
        self.guard = FrozenGuard(self.stage, optimiser)
        learnt = {parameter for group in optimiser.param_groups for parameter in group["params"]}
        for parameter in set(self.stage.parameters()) - learnt:
            parameter.requires_grad_(False)  # else gradients that nobody uses would be computed and exchanged
        everything = self.stage.trains_everything_always()
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = not everything
        several = self.accelerator.num_processes > 1
        self.gradients = GradientCheck(self.stage) if several and everything else None
        self.wrapped, self.optimiser = self.accelerator.prepare(self.stage, optimiser)
        self._seed(STEPPING, self.accelerator.process_index)  # but different dropout in each process

    def _seed(self, purpose: int, *numbers: int) -> None:
        seed_random(self.plan.recipe.seed, self.plan.number, purpose, *numbers)

    def _open_board(self) -> Any:
        """Open a TensorBoard writer in the main process; rows of an earlier run after this step are hidden."""
        if not self.main:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.plan.folder / BOARD), purge_step=self.step + 1 if self.step else None)

    # Steps.

    def _loop(self) -> None:
        recipe = self.recipe
        self.wrapped.train()
        with iterate_batches(self._loader(range(self.step, recipe.steps), TRAIN)) as batches:
            self._steps(batches)

    def _steps(self, batches: Iterator[Any]) -> None:
        before = warm = time.monotonic()
        first = self.step
        while self.step < self.recipe.steps:
            stop = self._make_step(batches)
            self.step += 1
            self.progress.step()
            if self.deadline is not None and self.step - first == WARM_UP:
                warm = time.monotonic()
            if self.deadline is not None and self.step - first in TIMED_AFTER:
                self._fit_to_deadline((time.monotonic() - warm) / (self.step - first - WARM_UP))
            recipe = self.recipe
            last = self.step == recipe.steps
            validate = last or (recipe.validate_every is not None and self.step % recipe.validate_every == 0)
            save = last or stop or self.step % recipe.checkpoint_every == 0
            log = last or self.step % recipe.log_every == 0
            if log or validate or save:
                self._read_scalars()
            if log:
                self._log()
            if validate or save:
                self.guard.check(self.step)
            if validate and recipe.validation_batches:
                self._validate()
            now = time.monotonic()
            self.seconds, before = self.seconds + now - before, now
            if save:
                path = self._save()
            if stop and not last:
                raise KeyboardInterrupt(
                    f"stopped at step {self.step} of {recipe.name}; {path} is written, and the same command resumes."
                )

    def _fit_to_deadline(self, seconds: float) -> None:
        """Reduce the number of steps if, at this many seconds each, they would exceed the time limit."""
        from accelerate.utils import gather_object

        assert self.deadline is not None
        left = TIME_FOR_STEPS * (self.deadline - time.monotonic())
        fitting = min(gather_object([self.step + int(left / max(seconds, 1e-9))]))
        steps = max(fitting, self.step + 1, self.recipe.optimiser.warmup + 1)
        if steps < self.recipe.steps:
            self.recipe = replace(self.recipe, steps=steps)
            self.plan = self.plan.with_steps(steps)
            self.progress.shorten(steps)
            if self.main:
                self.plan.write_recipe()

    def _make_step(self, batches: Iterator[Any]) -> bool:
        """Make one optimiser step; return True if training should stop after it."""
        rate = learning_rate(self.recipe, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate_scale"]
        parts = [next(batches) for _ in range(self.recipe.accumulate)]
        processes = self.accelerator.num_processes
        scalars: list[tuple[str, Tensor]] = []
        with self._means_over(parts):
            for number, batch in enumerate(parts):
                last = number == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                    outputs = self._add_gradients(batch)
                scalars += [(name, as_ratio(value, 1 / (processes * len(parts)))) for name, value in outputs.items()]
        scalars.append(("gradient_norm", as_ratio(self._clip_gradients(), 1 / processes)))
        # They stay on the device until a row is due: reading them now would wait for the step to finish.
        values = torch.stack([value for _, value in scalars])
        self.unread.append((self.step + 1, [name for name, _ in scalars], values))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return self._in_any_process(self.interruption.requested)[0]

    def _means_over(self, parts: Sequence[Any]) -> AbstractContextManager[None]:
        """Let losses be means over all batches of a step, whose numbers of items must be known before the first."""
        if len(parts) == 1:
            return nullcontext()
        counts = [self.stage.counts(batch) for batch in parts]
        if any(known is None for known in counts):
            counts = self._count_by_forward(parts)
        device = self.accelerator.device
        return self.stage.mean.over([{n: to_device(c, device) for n, c in (known or {}).items()} for known in counts])

    def _count_by_forward(self, parts: Sequence[Any]) -> list[dict[str, Tensor] | None]:
        """Count the items of batches by computing their losses, and leave no trace of that."""
        norms = [module for module in self.stage.modules() if isinstance(module, _BatchNorm)]
        statistics = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
        counts: list[dict[str, Tensor] | None] = []
        with torch_random_state_kept():
            for batch in parts:
                with self.stage.mean.recording() as recorded:
                    # With gradients enabled and then dropped, so that the numbers are those of the second time.
                    self.stage(to_device(batch, self.accelerator.device))
                counts.append(recorded)
        with torch.no_grad():
            for norm, saved in zip(norms, statistics, strict=True):
                for buffer, value in zip(norm.buffers(), saved, strict=True):
                    buffer.copy_(value)
        return counts

    def _add_gradients(self, batch: Any) -> dict[str, Tensor]:
        """Accumulate a batch's gradients; return the scalars that the stage computed."""
        outputs: dict[str, Tensor] = self.wrapped(to_device(batch, self.accelerator.device))
        if "loss" not in outputs:
            raise TrainingError(f"the forward of {self.plan.kind.__name__} returns no 'loss'; the trainer needs it.")
        if self.gradients is not None:
            self.gradients.start()
        self.accelerator.backward(outputs["loss"] / self.recipe.accumulate)
        if self.gradients is not None:
            self.gradients.check()
        return outputs

    def _clip_gradients(self) -> Tensor:
        """Clip the total gradient as the recipe says; return its norm before."""
        clip_norm = self.recipe.optimiser.clip_norm
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm: Tensor = self.accelerator.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
        return norm

    def _read_scalars(self) -> None:
        """Read the scalars of the last steps from the device in one copy and add them to the means.

        Called before anything is logged, validated or saved, so that broken weights never reach the disk.

        Raises:
            TrainingError: When a loss or, unless gradients are scaled, a gradient was not finite in any process.
        """
        # In fp16 gradients are scaled, and the scaler skips steps whose gradients overflow.
        watched = {"loss"} if self.accelerator.scaler is not None else {"loss", "gradient_norm"}
        broken: tuple[int, str] | None = None
        read = read_back([values for _, _, values in self.unread])
        for (step, names, _), values in zip(self.unread, read, strict=True):
            for name, (total, count) in zip(names, values.tolist(), strict=True):
                if math.isfinite(total) and count:  # an fp16 gradient may overflow; a ratio may have no items
                    self.means.add(name, total, count)
                elif name in watched and broken is None:
                    broken = step, name
        first, last = self.unread[0][0], self.unread[-1][0]
        self.unread.clear()
        if self._in_any_process(broken is not None)[0]:
            steps = f"one of the steps {first} to {last}" if broken is None else f"step {broken[0]}"
            saved = checkpoints_in(self.plan.checkpoints)
            raise TrainingError(
                f"the {broken[1].replace('_', ' ') if broken else 'loss'} is not finite at {steps} of "
                f"{self.recipe.name} ({f'the last checkpoint is {saved[-1]}' if saved else 'there is no checkpoint'}); "
                "try a lower rate or clip_norm, or another precision."
            )

    def _in_any_process(self, *flags: bool) -> list[bool]:
        """Combine flags over processes: True where any process has True."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return [count > 0 for count in self.accelerator.reduce(counts, "sum").tolist()]

    # Data.

    def _sampler(self, steps: range) -> ShareSampler:
        accelerator, recipe = self.accelerator, self.recipe
        return ShareSampler(
            steps, recipe.batch, recipe.accumulate, accelerator.process_index, accelerator.num_processes
        )

    def _loader(self, steps: range, purpose: int) -> Any:
        return make_loader(
            self.stage.source(),
            (self.plan.recipe.seed, self.plan.number, purpose),
            self._sampler(steps),
            workers=self.recipe.workers,
            device=self.accelerator.device,
        )

    # Measuring.

    def _log(self) -> None:
        """Add the means since the last row to the history."""
        means = self._mean_over_processes(self.means) | {"rate": learning_rate(self.recipe, self.step - 1)}
        self.means = Means()
        self._record("train", means)
        self.progress.row(self.step, means)

    def _validate(self) -> None:
        """Validate on samples that training never draws, and leave training's random numbers untouched."""
        before = random_state()
        self._seed(VALIDATING, self.accelerator.process_index)
        self.stage.eval()
        with (
            iterate_batches(self._loader(range(self.recipe.validation_batches), VALIDATION)) as batches,
            torch.no_grad(),
            self.accelerator.autocast(),
        ):
            means = self.stage.validate(to_device(batch, self.accelerator.device) for batch in batches)
        self.stage.train()
        restore_random_state(before)
        self._record("validation", self._mean_over_processes(means))

    def _mean_over_processes(self, means: Means) -> dict[str, float]:
        """Merge the means of all processes."""
        from accelerate.utils import gather_object

        total = Means()
        for sums in gather_object([means.sums()]):
            total.merge(Means(sums))
        return total.values()

    def _record(self, kind: str, scalars: Mapping[str, float]) -> None:
        """Write scalars to the history and to TensorBoard."""
        self.history.add(self.step, kind, scalars)
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(f"{kind}/{name}", value, self.step)

    # Checkpoints.

    def _save(self) -> Path:
        """Write a checkpoint in the main process; return its folder."""
        from accelerate.utils import gather_object

        processes = gather_object([{"random": random_state(), "means": self.means.sums()}])
        if self.main:
            scaler = self.accelerator.scaler
            frozen = self.guard.checksums
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "precision": self.accelerator.mixed_precision,
                # Frozen weights, often hundreds of times the trained ones, are loaded from init again.
                "stage": {name: value for name, value in self.stage.state_dict().items() if name not in frozen},
                "frozen": frozen,
                "optimiser": self.optimiser.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "processes": processes,
            }
            write_checkpoint(self.plan.checkpoints, self.step, state, self.recipe.keep)
        self.accelerator.wait_for_everyone()
        return checkpoints_in(self.plan.checkpoints)[-1]

    def _resume(self) -> list[str]:
        """Restore the newest checkpoint, if there is one; return messages for the user."""
        messages: list[str] = []
        state = read_newest(self.plan.checkpoints, messages.append)
        if state is None:
            return messages
        self.step, self.seconds = state["step"], state["seconds"]
        self._load_weights(state)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["precision"] != self.accelerator.mixed_precision:
            messages.append(f"the precision was {state['precision']} and is {self.accelerator.mixed_precision} now.")
        saved, index = state["processes"], self.accelerator.process_index
        if len(saved) == self.accelerator.num_processes:
            self.means = Means(saved[index]["means"])
            restore_random_state(saved[index]["random"])
        else:
            for process in saved if self.main else ():
                self.means.merge(Means(process["means"]))
            self._seed(RESUMING, index, self.step)
            messages.append(
                f"the checkpoint is of {len(saved)} processes, not {self.accelerator.num_processes}: "
                "random numbers are seeded again."
            )
        return [*messages, f"{self.recipe.name} resumes from step {self.step}."]

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        where = f"the checkpoint of step {self.step} of {self.recipe.name}"
        if state["frozen"] != self.guard.checksums:
            raise TrainingError(f"{where} was made with other frozen weights; start the stage over with --restart.")
        try:
            missing, unexpected = self.stage.load_state_dict(state["stage"], strict=False)
            lost = [*(name for name in missing if name not in state["frozen"]), *unexpected]
            if lost:
                raise ValueError(f"missing or unexpected: {', '.join(lost[:5])}")
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainingError(f"{where} does not fit the stage ({reason}).") from error

    # The end.

    def _finish(self) -> StageReport:
        """Write report and model; the model last, because it marks the stage as finished."""
        report = self._report()
        if self.main:
            draw_losses(self.history, self.plan.folder / DRAWING)
            write_atomically(self.plan.folder / REPORT, report.markdown().encode(), error=TrainingError)
            self.stage.eval()
            write_model(self.stage, self.plan.model)
        self.accelerator.wait_for_everyone()
        return report

    def _report(self) -> StageReport:
        trained = sum(p.numel() for p in self.stage.parameters() if p.requires_grad)
        return StageReport(
            stage=self.recipe.name,
            folder=self.plan.folder,
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=self.step * self.recipe.batch / max(self.seconds, 1e-9),
            device=device_name(self.accelerator.device),
            processes=self.accelerator.num_processes,
            precision=self.accelerator.mixed_precision,
            trained=trained,
            frozen=sum(p.numel() for p in self.stage.parameters()) - trained,
            train=self.history.last("train"),
            validation=self.history.last("validation"),
            interrupted=self._in_any_process(self.interruption.requested)[0],
        )


def optimiser_for(stage: Stage, **defaults: Any) -> torch.optim.AdamW:
    """Make AdamW over the stage's parameter groups; each group keeps its ``rate_scale``.

    Args:
        stage: The stage.
        **defaults: Arguments of AdamW.

    Raises:
        TrainingError: When the stage has no trainable parameter.
    """
    groups = [{"rate_scale": 1.0, **group, "params": list(group["params"])} for group in stage.parameter_groups()]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError(f"the stage {type(stage).__name__} has no parameter to train.")
    return torch.optim.AdamW(groups, **defaults)


def write_model(stage: Stage, folder: Path) -> None:
    """Write a stage's model so that the folder is complete from the moment it exists.

    Args:
        stage: The stage, whose ``save`` is called.
        folder: The model's folder.

    Raises:
        TrainingError: When ``save`` wrote nothing.
    """
    with atomic_folder(folder, error=TrainingError) as staged:
        staged.rmdir()
        stage.save(staged)
        if not staged.is_dir():
            raise TrainingError(f"the stage's save wrote no folder {staged}; it must write the folder it is given.")
