"""Plan of a training run: counted from its settings, and planned for Ascend by MindSpore's dry run."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from latte.errors import UserError
from latte.kinds import flops
from latte.kinds.latte import num_parameters, trained_shapes
from latte.models.configs import LatteConfig
from latte.planning import dry_run
from latte.training import memory
from latte.training.config import TrainConfig

DEVICE = "Ascend 910B, 64 GB"  # what the dry run takes for the device
_DEVICE_BYTES = 64 << 30


@dataclass(frozen=True)
class TrainingPlan:
    """Needs of a training run.

    Attributes:
        name: of the run.
        parameters: trained numbers.
        workers: processes that train together.
        clips: clips of one worker's step, over all parts.
        parts: micro-batches of a step.
        step_flops: operations of one worker's step.
        ranks: MindSpore's plans, by the number of the worker; of workers that differ, those with most and least.
        no_plan: why there are none.
        estimate: this project's own, for a worker whose device is a CPU.
        device_bytes: memory that a worker may take of its device.
    """

    name: str
    parameters: int
    workers: int
    clips: int
    parts: int
    step_flops: int
    ranks: Mapping[int, dry_run.Plan]
    no_plan: str
    estimate: memory.MemoryNeed
    device_bytes: int

    def check(self) -> None:
        """Refuse what the plan says cannot fit.

        Raises:
            UserError: says what to change.
        """
        for rank, plan in self.ranks.items():
            if plan.peak_bytes > self.device_bytes:
                raise UserError(
                    f"train {self.name}: a step of worker {rank} takes {plan.peak_bytes / 1e9:.1f} GB of "
                    f"{self.device_bytes / 1e9:.1f} GB ({DEVICE}); {memory.ADVICE}"
                )

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.parameters:,} trained"),
            ("a step", f"{self.clips} clips a worker; accumulation {self.parts}, workers {self.workers}"),
            ("operations", f"{self.step_flops / 1e12:.3g} TFLOP a worker, in matrix products"),
        ]
        if not self.ranks:
            rows.append(("Ascend", f"not planned: {self.no_plan}"))
        for rank, plan in self.ranks.items():
            who = f"worker {rank}" if len(self.ranks) > 1 else "each worker"
            rows += [
                (
                    "kernels",
                    f"{plan.launched:,} a micro-batch with its update, on {DEVICE}, {who}: "
                    f"{plan.number('acl')} of them aclop, {plan.casts} casts;"
                    f" {plan.number('hccl')} collectives; compiled in {plan.seconds:.0f} s",
                ),
                ("memory", f"{plan.peak_bytes / 1e9:.2f} GB planned of {self.device_bytes / 1e9:.1f} GB, {who}"),
            ]
        rows.append(("on a CPU", f"{self.estimate.host_bytes / 1e9:.2f} GB a worker, estimated ({self.estimate})"))
        return "\n".join([f"{self.name}: planned, nothing is trained", *(f"  {key:<10}  {text}" for key, text in rows)])


def training(config: TrainConfig, model: LatteConfig) -> TrainingPlan:
    """Plan the training of a model.

    Raises:
        DoesNotCompileError: with MindSpore's lines.
    """
    reason = dry_run.reason_against() or ""
    limit = None if config.max_device_memory_gb is None else round(config.max_device_memory_gb * (1 << 30))
    ranks = {} if reason else {rank: _planned(config, model, rank) for rank in differing(config, model)}
    return TrainingPlan(
        name=config.name,
        parameters=num_parameters(model, trained_only=True),
        workers=config.workers,
        clips=config.batch_size // config.workers,
        parts=config.accumulation,
        step_flops=flops.training_step(model, config.batch_size // config.workers, config.recompute),
        ranks=ranks,
        no_plan=reason,
        estimate=memory.of_run(config, model, config.workers),
        device_bytes=min(limit or _DEVICE_BYTES, _DEVICE_BYTES),
    )


def differing(config: TrainConfig, model: LatteConfig) -> list[int]:
    """Numbers of the workers whose plans differ: with a shared optimizer those of the largest and the smallest part."""
    if not config.shard_optimizer or config.workers == 1:
        return [0]
    from latte.training import optim

    sizes = [math.prod(shape) for shape in trained_shapes(model).values()]
    loads = [0] * config.workers
    for size, worker in zip(sizes, optim.owners(sizes, config.workers), strict=True):
        loads[worker] += size
    return sorted({loads.index(max(loads)), loads.index(min(loads))})


def _planned(config: TrainConfig, model: LatteConfig, rank: int) -> dry_run.Plan:
    settings = {
        "model": model.model_dump(),
        "clips": config.batch_size // (config.workers * config.accumulation),
        **{key: getattr(config, key) for key in ("precision", "accumulation", "recompute", "shard_optimizer")},
        **{key: getattr(config, key) for key in ("weight_decay", "noise_schedule", "jit_level")},
    }
    command = [sys.executable, "-m", "latte.planning.training_step", json.dumps(settings)]
    return dry_run.run(command, (rank, config.workers) if config.workers > 1 else None)
