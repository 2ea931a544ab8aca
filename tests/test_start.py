"""Cost of starting: the imported packages, none of which may be an optional one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import layouts

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples/data/shapes.mp4"

STARTS_WITH = {"refervos", "typer", "pydantic", "annotated_types", "numpy"}
"""Packages imported before a command runs; some versions of typer import pydantic."""

SEGMENT_IMPORTS = {*STARTS_WITH, "torch", "av", "safetensors", "tokenizers", "tqdm", "pycocotools", "PIL"}
"""Packages imported by ``segment`` with the bundled model."""

PROBE = """
import sys
before = set(sys.modules)
{imports}
known = {{name.split(".")[0] for name in set(sys.modules) - before}}
{run}
import json
names = {{name.split(".")[0] for name in sys.modules}} - known - sys.stdlib_module_names
print("FOUND", json.dumps(sorted(name for name in names if not name.startswith("_"))))
"""


def third_party(run: str, known: set[str]) -> set[str]:
    """List the top-level packages that code imports, except the known ones and their own imports."""
    imports = "import contextlib\n"
    imports += "".join(f"with contextlib.suppress(ImportError): import {name}\n" for name in sorted(known))
    code = PROBE.format(imports=imports, run=run)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found: list[str] = json.loads(out.split("FOUND ")[1])
    return set(found)


def command(*arguments: object) -> str:
    """Return code that runs the command line."""
    words = ["refervos", *map(str, arguments)]
    return (
        f"import sys\nsys.argv = {words!r}\nfrom refervos.cli.entry import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


@pytest.mark.parametrize("run", ["import refervos", command("--help"), command("segment", "--help")])
def test_help_does_not_import_torch(run: str) -> None:
    assert not third_party(run, STARTS_WITH - {"refervos"}) & {"torch", "av", "safetensors", "tokenizers"}


def test_segment_imports_no_other_packages(tmp_path: Path) -> None:
    run = command("segment", CLIP, "the red circle", "--frames", 2, "--out", tmp_path / "out", "--device", "cpu", "-q")
    assert third_party(run, SEGMENT_IMPORTS) == set()
    assert (tmp_path / "out").is_dir()


def test_segment_does_not_import_compilers(tmp_path: Path) -> None:
    """Importing them takes longer than computing the first mask."""
    run = command("segment", CLIP, "the red circle", "--frames", 2, "--out", tmp_path / "out", "--device", "cpu", "-q")
    run += "\nassert not {'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)"
    third_party(run, {"torch"})


MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def refervos_without_transformers(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the command line while transformers cannot be imported, also in child processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MISSING)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT / 'src'}"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "refervos", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return run


def test_no_command_needs_transformers(
    refervos_without_transformers: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    layouts.write_mevis(tmp_path / "mevis")
    recipe = yaml.safe_load((ROOT / "recipes" / "smallest.yaml").read_text())
    for stage in recipe["stages"]:
        stage.update(steps=2, batch=2, checkpoint_every=2, log_every=1)
        stage["optimiser"]["warmup"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for arguments in (
        ("segment", CLIP, "the red circle", "--frames", 2, "--out", "out", "--device", "cpu", "-q"),
        ("eval", "miniature", "mevis", "mevis", "--split", "valid_u", "--device", "cpu", "--out", "scores", "-q"),
        ("bench", "--frames", 1, "--warm-up", 1, "--mode", "online", "--device", "cpu", "-q"),
        ("train", "recipe.yaml", "--out", "trained", "-q"),
    ):
        done = refervos_without_transformers(*arguments)
        assert done.returncode == 0, (arguments[0], done.stderr)
    assert (tmp_path / "trained" / "video" / "model").is_dir()
    done = refervos_without_transformers("bench", "tiny", "--size", 64, "--frames", 1, "--warm-up", 1, "--baseline")
    assert "pip install 'refervos[transformers]'" in done.stdout + done.stderr
