"""Fixtures that several test files share."""

from __future__ import annotations

import dataclasses
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import golden
from imitated_device import DEVICE, Imitation, imitation
from refervos.samwise.checkpoints import load_official
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from systems import NOT_IMPORTED_ON_WINDOWS, lacking

collect_ignore = list(NOT_IMPORTED_ON_WINDOWS) if sys.platform == "win32" else []

SLOW_FILES = (
    "test_export_onnx.py",
    "test_gpu_script.py",
    "test_devices.py",
    "test_stages.py",
    "test_bench.py",
    "test_parity.py",
    "test_refsam_training.py",
    "test_eval_run.py",
    "test_session.py",
    "test_other_cpus.py",
    "test_training_workers.py",
    "test_trainer_distributed.py",
    "test_examples.py",
)
"""The slowest test files, in this order."""


def pytest_configure() -> None:
    """Restore the default signal handlers, also under nohup and in the background, because tests send signals."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so that two processes end together; skip tests that cannot run here."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items if sys.platform != "linux" else ():
        reason = lacking(inspect.getsource(item.function), sys.platform) if isinstance(item, pytest.Function) else None
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def official_states() -> Callable[[str], dict[str, Tensor]]:
    """Return a function that rebuilds official state dicts, each once."""
    made: dict[str, dict[str, Tensor]] = {}

    def state(variant: str) -> dict[str, Tensor]:
        if variant not in made:
            made[variant] = golden.official_state(variant)
        return made[variant]

    return state


@pytest.fixture(scope="session")
def golden_model(
    official_states: Callable[[str], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Samwise]:
    """Return a function that loads a model with a golden's weights from an official-format ``.pth``.

    The file is written and loaded once for each variant and size; the few biases that a golden overrides and settings
    that are not in the weights are then set on the same model, so that a test must not keep it.
    """
    made: dict[tuple[str, int], tuple[Samwise, SamwiseConfig, dict[str, Tensor]]] = {}

    def make(variant: str, overrides: dict[str, Any], *, image_size: int = 1024, **config: Any) -> Samwise:
        if (variant, image_size) not in made:
            path = tmp_path_factory.mktemp("official") / f"{variant}.pth"
            golden.write_official(path, official_states(variant), {})
            loaded = load_official(path, image_size=image_size)
            path.unlink()  # 700 MB each
            pristine = {name: tensor.clone() for name, tensor in loaded.state_dict().items() if tensor.numel() < 3000}
            made[variant, image_size] = loaded, loaded.config, pristine
        model, inferred, pristine = made[variant, image_size]
        state = model.state_dict()
        biases = {n: golden.official_names(n)[0] for n in pristine}
        for name, value in pristine.items():
            changed = overrides.get(biases[name])
            state[name].copy_(value if changed is None else torch.tensor(changed))
        model.config = dataclasses.replace(inferred, **{"protocol": "published", **config})
        model.zero_grad()
        return model.float().eval()

    return make


@pytest.fixture
def plain_kernels() -> Iterator[None]:
    """Compute attention as plain matrix products, as in the released code, instead of with fused kernels."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Keep runs repeatable on machines with many cores."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, the fastest for small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


DEVICES = ("imitated", "cuda", "mps")
"""Devices of tests that take a ``device``, by default; devices that the machine lacks are skipped."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Yield each device in turn; ``imitated`` stands in for an accelerator (see ``imitated_device``)."""
    if request.param == "imitated":
        with imitation():
            yield DEVICE
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "mps" and not torch.backends.mps.is_available():
        pytest.skip("no MPS device")
    if request.param != "cuda":
        yield torch.device(request.param)
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False  # plain float32, so that only the order of summation differs
    yield torch.device("cuda", 0)
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture
def imitated() -> Iterator[Imitation]:
    """Enable the imitated device, which records synchronisations."""
    with imitation() as found:
        yield found


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach servers on this machine directly, not through a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
