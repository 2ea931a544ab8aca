"""Markdown table of a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence

from refervos.diagnosis.controls import WRONG_SENTENCE, best_rule
from refervos.diagnosis.results import CaseResult, Diagnosis, mean_over_splits
from refervos.evaluation.bootstrap import mean_interval, span
from refervos.markdown import NONE, markdown_table, number


def diagnosis_table(diagnosis: Diagnosis) -> str:
    """Format a diagnosis: a row per split with the controls beside the model, and the summary below.

    Args:
        diagnosis: A diagnosis of at least one case.

    Returns:
        Markdown without a final line break, in percent with 95 % intervals over clips.
    """
    controls = diagnosis.controls
    header = ["split", "clips", "J", "F", "J&F", "95 %", "missed", "false alarms"]
    if controls:
        header += [WRONG_SENTENCE, "best single object"]
    rows = []
    for split in diagnosis.splits:
        cases, summary = diagnosis.of_split(split), diagnosis.summary(split)
        row = [split, str(summary.count), number(summary.j), number(summary.f), number(summary.j_and_f)]
        row += [span(mean_interval(percentages(cases))), number(summary.missed), number(summary.false_alarms)]
        rows.append(row + (_control_cells(diagnosis, split) if controls else []))
    targets = diagnosis.target_cases
    if targets:
        interval = mean_interval(percentages(targets), [case.split for case in targets])
        row = ["target splits", str(len(targets)), "", "", number(interval.mean), span(interval), "", ""]
        rows.append(row + (_control_cells(diagnosis, None) if controls else []))
    return "\n".join([markdown_table(header, rows), "", *_summary_lines(diagnosis)])


def percentages(cases: Sequence[CaseResult]) -> list[float]:
    """Return J&F of each case in percent."""
    return [100 * case.j_and_f for case in cases]


def _control_cells(diagnosis: Diagnosis, split: str | None) -> list[str]:
    """Return the cells with the scores of the controls in one split, or over all."""
    wrong = diagnosis.controls.get(WRONG_SENTENCE, ())
    rule = best_rule(diagnosis.controls, split)
    return [
        number(mean_over_splits(case for case in wrong if split is None or case.split == split)),
        NONE if rule is None else f"{rule[1]:.1f} ({rule[0]})",
    ]


def _summary_lines(diagnosis: Diagnosis) -> list[str]:
    """Return the lines below the table."""
    switches = sum(case.switches for case in diagnosis.cases)
    speed = diagnosis.frames_per_second
    mode = "online" if diagnosis.clip_length == 1 else f"clips of {diagnosis.clip_length}"
    facts = {
        "J&F, mean of the target splits": number(diagnosis.target_mean),
        "J&F, mean of all target cases": number(diagnosis.target_case_mean),
        "N-acc": number(diagnosis.n_acc),
        "T-acc": number(diagnosis.t_acc),
        "final (mean of J&F over the target splits, N-acc and T-acc)": number(diagnosis.final),
        "memory switches": f"{switches} in {sum(case.frames for case in diagnosis.cases)} frames",
        "frames per second": NONE if speed is None else f"{speed:.0f}",
    }
    return [f"{diagnosis.model}, {mode}", "", *(f"- {name}: {value}" for name, value in facts.items())]
