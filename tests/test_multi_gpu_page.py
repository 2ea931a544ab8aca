"""The page about several GPUs and machines: its commands are understood, and its Slurm script does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

POSIX = pytest.mark.skipif(os.name != "posix", reason="a shell script")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "multi-gpu.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "examples" / "train.slurm"

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
}  # fmt: skip
"""Variables that Slurm sets in a batch script: https://slurm.schedmd.com/sbatch.html, output environment variables."""


def commands(program: str) -> list[list[str]]:
    """Return the page's commands that start with a program, without its name and comments."""
    blocks = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(program)]


def test_torchrun_understands_the_commands() -> None:
    from torch.distributed.run import get_args_parser

    found = commands("torchrun")
    assert len(found) == 2
    for arguments in found:
        read = get_args_parser().parse_args(arguments)
        assert (read.module, read.training_script) == (True, "refervos")
        assert read.training_script_args[0] == "train"


def test_accelerate_understands_the_commands() -> None:
    from accelerate.commands.launch import launch_command_parser

    found = commands("accelerate launch")
    assert len(found) == 2
    for arguments in found:
        read = launch_command_parser().parse_args(arguments[1:])
        assert (read.module, read.training_script) == (True, "refervos")


def test_recipes_of_the_commands_exist() -> None:
    for recipe in set(re.findall(r"recipes/[\w.-]+\.yaml", PAGE)):
        assert (ROOT / recipe).is_file(), recipe


@POSIX
def test_the_script_uses_variables_that_slurm_sets() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, check=False).returncode == 0
    used = set(re.findall(r"SLURM_\w+", text))
    assert used == set(SLURM)


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """Programs that stand in for Slurm's: scontrol lists two machines, srun writes its arguments and may wait."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text("""#!/bin/bash
        [ "$*" = 'show hostnames node[1-2]' ] && echo node1 && echo node2
    """)
    (folder / "srun").write_text(
        '#!/bin/bash\ntrap "echo saved > saved.txt; exit 143" TERM\n'
        'printf "%s\\n" "$OMP_NUM_THREADS" "$@" > srun.txt\n'
        '[ -z "$WAIT" ] || while true; do sleep 0.1; done\n'
    )
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


def started(folder: Path, stand_ins: Path, **more: str) -> Any:
    environment = {**os.environ, **SLURM, **more, "PATH": f"{stand_ins}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", SCRIPT, "recipes/mine.yaml"], cwd=folder, env=environment)


@POSIX
def test_the_script_starts_one_launcher_on_each_machine(stand_ins: Path, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    assert started(tmp_path, stand_ins).wait(60) == 0
    threads, launcher, *arguments = (tmp_path / "srun.txt").read_text().splitlines()
    assert (threads, launcher) == ("8", "torchrun")
    read = get_args_parser().parse_args(arguments)
    assert (read.nnodes, read.nproc_per_node, read.rdzv_endpoint, read.rdzv_id) == ("2", "4", "node1:24711", "4711")
    assert read.training_script_args == ["train", "recipes/mine.yaml", "--out", "runs/mine"]


@POSIX
def test_the_script_hands_on_the_signal_before_the_time_limit_and_waits(stand_ins: Path, tmp_path: Path) -> None:
    script = started(tmp_path, stand_ins, WAIT="yes")
    while not (tmp_path / "srun.txt").exists():
        assert script.poll() is None
        time.sleep(0.05)
    script.terminate()
    assert script.wait(60) == 143
    assert (tmp_path / "saved.txt").exists()
