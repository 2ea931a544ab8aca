"""Report of a finished stage: a table, and a plot of its losses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refervos.errors import TrainingError
from refervos.files.writing import write_atomically
from refervos.training.history import History
from refervos.training.progress import duration

NOT_REPORTED = ("rate", "gradient_norm")
"""Training scalars whose last value says nothing about the result."""


@dataclass(frozen=True)
class StageReport:
    """Result of training a stage.

    Attributes:
        stage: Name of the stage.
        folder: Folder of its results; the model is in ``model``.
        steps: Number of optimiser steps made.
        seconds: Their duration, validation included, summed over resumed runs.
        samples_per_second: Throughput of all processes.
        device: Name of the device.
        processes: Number of training processes.
        precision: ``no`` for float32, or the type of mixed precision.
        trained: Number of trained parameters.
        frozen: Number of the other parameters.
        train: Last means of the training scalars.
        validation: Scalars of the last validation.
        interrupted: True if the user asked to stop during the last step.
    """

    stage: str
    folder: Path
    steps: int
    seconds: float
    samples_per_second: float
    device: str
    processes: int
    precision: str
    trained: int
    frozen: int
    train: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    interrupted: bool = False

    def rows(self) -> list[tuple[str, str]]:
        """Return labels and values, ready to print."""
        processes = f" x {self.processes}" if self.processes > 1 else ""
        precision = "float32" if self.precision == "no" else f"mixed {self.precision}"
        return [
            *((f"train {name}", f"{value:.4g}") for name, value in self.train.items() if name not in NOT_REPORTED),
            *((f"validation {name}", f"{value:.4g}") for name, value in self.validation.items()),
            ("steps", f"{self.steps:,}"),
            ("time", duration(self.seconds)),
            ("samples per second", f"{self.samples_per_second:.3g}"),
            ("device", f"{self.device}{processes}, {precision}"),
            ("parameters trained", f"{self.trained:,}"),
            ("parameters frozen", f"{self.frozen:,}"),
        ]

    def table(self) -> str:
        """Return the rows as aligned text."""
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join([self.stage, *(f"  {label:<{width}}  {value}" for label, value in rows)])

    def markdown(self) -> str:
        """Return the rows as a Markdown page with the loss plot."""
        table = "\n".join(f"| {label} | {value} |" for label, value in self.rows())
        return f"# {self.stage}\n\n| | |\n|---|---|\n{table}\n\n![loss](loss.png)\n"


def draw_losses(history: History, path: Path) -> None:
    """Draw the training loss, smoothed, and the validation loss over the steps.

    Args:
        history: Measurements of the run.
        path: The PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot, which keeps figures in a global list
    axes = figure.add_subplot()
    train = [(step, scalars["loss"]) for step, scalars in history.of("train") if "loss" in scalars]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
        axes.plot(steps, smoothed(losses), color="tab:blue", label="training, smoothed")
    validation = [(step, scalars["loss"]) for step, scalars in history.of("validation") if "loss" in scalars]
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    drawing = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawing)
    write_atomically(path, drawing.getvalue(), error=TrainingError)


def smoothed(values: Sequence[float], memory: float = 0.9) -> list[float]:
    """Compute the exponential moving average, corrected for its initial bias."""
    mean = weight = 0.0
    means = []
    for value in values:
        mean = memory * mean + (1 - memory) * value
        weight = memory * weight + (1 - memory)
        means.append(mean / weight)
    return means
