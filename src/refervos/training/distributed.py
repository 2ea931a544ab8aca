"""Reductions over several processes, so that they learn what one process would from the whole batch.

All functions work with any backend (gloo on CPUs, NCCL on GPUs) and reduce to plain arithmetic with one process.
All processes must call them equally often and in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from refervos.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = timedelta(minutes=10)
"""Time that a process waits for the others. A process that was killed is noticed at once, a lost machine after this."""

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
"""Parts of gloo's messages, which have no exception of their own."""


def make_accelerator(precision: str | None = None) -> Accelerator:
    """Set up devices and the process group, as ``accelerate launch`` or ``torchrun`` configured them.

    Args:
        precision: Mixed precision, ``no``, ``bf16`` or ``fp16``; None for the launcher's setting.

    Returns:
        The accelerator.

    Raises:
        TrainingError: When this machine or this trainer does not support the requested setup.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    # Precision belongs to a stage, but accelerate keeps it for the whole program unless its state is reset.
    AcceleratorState._reset_state()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without cpu=True accelerate starts each of several CPU ranks as a single-process run. On a Mac several processes
    # train on the CPU, too: no backend can all-reduce gradients on its GPU.
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=launched > 1 and (gpu is None or gpu.type == "mps"),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy of the gradients
                InitProcessGroupKwargs(timeout=TIMEOUT),
            ],
        )
    except (ValueError, ImportError, dist.DistError) as error:
        raise TrainingError(f"accelerate cannot be set up ({' '.join(str(error).split())}).") from error
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
    if accelerator.distributed_type in sharded:
        raise TrainingError(
            f"training under {accelerator.distributed_type.value} is not supported; the models fit on one device, "
            "so choose plain multi-GPU in 'accelerate config'."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # accelerate would silently use float32
        raise TrainingError("fp16 needs a GPU; on a CPU choose the precision bf16 or no.")
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}; "
            "launch one for each GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPUs."
        )
    return accelerator


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn the failure of an exchange between processes into one sentence.

    Raises:
        TrainingError: When another process has ended, or has not answered for the time limit.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not (isinstance(error, dist.DistError) or any(s in str(error) for s in _LOST)):
            raise
        raise TrainingError(
            f"process {dist.get_rank()} of {process_count()} lost its connection to another one, which has ended or "
            f"has not answered for {TIMEOUT.total_seconds() / 60:g} minutes; see what that one reports, and the same "
            "command resumes from the last checkpoint."
        ) from error


class GradientCheck:
    """Check that every parameter of a stage gets a gradient, for which other processes would wait.

    Args:
        stage: The stage, before its first step.
    """

    def __init__(self, stage: nn.Module) -> None:
        self.names = {parameter: name for name, parameter in stage.named_parameters() if parameter.requires_grad}
        self.seen: set[Tensor] = set()
        for parameter in self.names:
            parameter.register_post_accumulate_grad_hook(self.seen.add)

    def start(self) -> None:
        """Forget the gradients so far, before the backward pass after which gradients are exchanged."""
        self.seen.clear()

    def check(self) -> None:
        """Check after that backward pass.

        Raises:
            TrainingError: When a parameter got no gradient.
        """
        missing = [name for parameter, name in self.names.items() if parameter not in self.seen]
        if missing:
            raise TrainingError(
                f"{len(missing)} parameters of the stage got no gradient, {missing[0]} among them, and several "
                "processes would wait for it; freeze what the stage never uses, or let its trains_everything_always "
                "return False."
            )


def destroy_process_group() -> None:
    """Destroy the process group at the end of a program, if there is one."""
    if process_count() > 1:
        dist.destroy_process_group()


def process_count() -> int:
    """Return the number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes whose gradient is also summed: each process's part reaches every loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, differentiably.

    Args:
        value: A tensor of the same shape in each process.

    Returns:
        The sum, the same in each process. Its gradient is that of the sum of all processes' losses, which DDP's
        averaging turns into the gradient of their mean.
    """
    if process_count() == 1:
        return value
    total: Tensor = _SumOverProcesses.apply(value)
    return total


def mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """Average over items whose number varies between processes, such as visible objects.

    Losses of a stage use its ``mean`` instead, which also averages over accumulated batches.

    Args:
        total: A scalar, the sum over this process's items. Without items it must still be computed from the model's
            outputs (times zero), because DDP needs a gradient from every process.
        count: A scalar, the number of items (or the sum of their weights).

    Returns:
        A scalar whose value is the mean over the items of all processes. DDP's average of its gradients over processes
        is the gradient of that mean. Zero when no process has items.
    """
    total = total.to(torch.promote_types(total.dtype, torch.float32))  # counts easily exceed half precision
    count = count.detach().to(total.dtype)
    least = torch.finfo(total.dtype).tiny
    processes = process_count()
    if processes == 1:
        return total / count.clamp(min=least)
    sums = torch.stack([total.detach(), count])
    dist.all_reduce(sums)
    global_total, items = sums[0], sums[1].clamp(min=least)
    own = total * (processes / items)
    return own + (global_total / items - own).detach()


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics come from the batches of all processes.

    Runs on CPUs, which torch's own ``SyncBatchNorm`` does not support. Names in the state dict and behaviour with one
    process are those of ``nn.BatchNorm2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            input: (N, C, H, W); N, H and W may differ between processes.

        Returns:
            The same shape and type.
        """
        if process_count() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        # At least float32, even under autocast: these are sums over many pixels.
        pixels = input.to(torch.promote_types(input.dtype, torch.float32))
        count = torch.full((1,), pixels.numel() / pixels.shape[1], dtype=pixels.dtype, device=pixels.device)
        sums = sum_over_processes(torch.cat([pixels.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = pixels - mean[:, None, None]
        # A second all-reduce instead of the mean of squares, which loses precision where the mean is large.
        variance = sum_over_processes(centred.square().sum((0, 2, 3))) / total
        if self.training and self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach() * total / (total - 1))
        scaled = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            scaled = scaled * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as ``nn.BatchNorm2d`` does; a momentum of None is a plain average."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every ``nn.BatchNorm2d`` by one whose statistics come from all processes.

    Args:
        module: Changed in place; parameters and buffers stay the same objects.
        device: Device the module will be moved to. On a CUDA GPU torch's own fused ``SyncBatchNorm`` is used.

    Returns:
        The module, or its replacement when it is itself a batch norm.
    """
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronised
    if isinstance(module, nn.BatchNorm2d) and not isinstance(module, SyncedBatchNorm2d):
        synced = SyncedBatchNorm2d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced._parameters, synced._buffers = module._parameters, module._buffers
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child, device))
    return module
