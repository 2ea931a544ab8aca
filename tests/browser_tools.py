"""Node and Chromium for the tests of the studio's page. Where they are missing the tests are skipped, but not in CI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = Path(__file__).parent / "browser"
MODULES = BROWSER / "node_modules"
PAGE = Path(__file__).parent.parent / "src" / "refervos" / "studio" / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")
IN_CI = bool(os.environ.get("CI"))


def _needed(found: bool, sentence: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not found and not IN_CI, reason=sentence)


needs_node = _needed(NODE is not None, "Node is not installed")
needs_npm_packages = _needed(MODULES.is_dir(), "the packages of tests/browser are missing: run 'make browser-tools'")
needs_chromium = _needed(CHROMIUM is not None, "Chromium is not installed")


def run_modules(script: str, argument: Any = None) -> Any:
    """Run a script of ES modules in Node.

    Args:
        script: Statements that may import the page's modules by name, as in ``import { pace } from "./pacing.js"``, and
            call ``answer`` with a value of JSON; ``given`` is the argument.
        argument: A value of JSON.

    Returns:
        What the script answered.
    """
    assert NODE is not None, "Node is not installed"
    program = script.replace('from "./', f'from "{PAGE.as_uri()}/')
    prelude = "import { readFileSync } from 'node:fs'; const given = JSON.parse(readFileSync(0, 'utf8'));"
    answer = "const answer = (value) => console.log(JSON.stringify(value));"
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", f"{prelude}\n{answer}\n{program}"],
        input=json.dumps(argument),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
