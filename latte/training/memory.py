"""Memory that a training process will need, said before the first step instead of by the kernel's OOM killer."""

import os
from dataclasses import dataclass
from pathlib import Path

from latte import device
from latte.errors import UserError
from latte.kinds.latte import num_parameters
from latte.models.configs import LatteConfig
from latte.training.config import TrainConfig

_FLOAT_BYTES = 4
# Floats that the backward pass finds for each token and channel of a block: inputs, norms, q, k, v in two orders, MLP.
# Measured on a CPU; the attention's weights come on top.
_SAVED_PER_TOKEN = 36
_PROCESS_BYTES = 1100 << 20  # interpreter, MindSpore, compiled graphs
_HEADROOM = 0.95
ADVICE = (
    "lower batch_size, raise accumulation or workers' memory, set recompute=true, with several workers "
    "shard_optimizer=true, or choose a smaller model"
)


@dataclass(frozen=True)
class MemoryNeed:
    """Estimated bytes of one training process.

    Attributes:
        weights_bytes: parameters, their moving average and the gradients, summed and fresh.
        optimizer_bytes: the two moments of AdamW.
        activations_bytes: what one micro-batch leaves for its backward pass.
        copies_bytes: copies of weights, average and moments while a checkpoint is being written, in host memory.
    """

    weights_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    copies_bytes: int

    @property
    def device_bytes(self) -> int:
        """Bytes on the device during a step."""
        return self.weights_bytes + self.optimizer_bytes + self.activations_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of a process whose device is the host's CPU."""
        return self.device_bytes + self.copies_bytes + _PROCESS_BYTES

    def __str__(self) -> str:
        parts = {
            "weights and gradients": self.weights_bytes,
            "optimizer": self.optimizer_bytes,
            "activations": self.activations_bytes,
            "checkpoint copies": self.copies_bytes,
        }
        return ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items())


def estimate(
    model: LatteConfig, parameters: int, clips: int, workers: int = 1, recompute: bool = False, shards: int = 1
) -> MemoryNeed:
    """Memory of one process.

    Args:
        model: the network.
        parameters: trained numbers in it.
        clips: clips of one micro-batch of one worker.
        workers: more than one exchange gradients through one more copy of them.
        recompute: activations are computed again in the backward pass, block by block.
        shards: workers that share the moments and the moving average.
    """
    weights = parameters * _FLOAT_BYTES
    tokens = clips * model.num_frames * model.num_patches
    per_block = tokens * model.hidden_size * _SAVED_PER_TOKEN
    # Softmax weights: over the patches of a frame in one half of the blocks, over the frames in the other.
    per_block += tokens * model.num_heads * (model.num_patches + model.num_frames) // 2 * 2
    blocks = per_block + model.depth * tokens * model.hidden_size if recompute else model.depth * per_block
    return MemoryNeed(
        weights_bytes=weights * (3 + (2 if workers > 1 else 0)) + weights // shards,
        optimizer_bytes=weights * 2 // shards,
        activations_bytes=(blocks + tokens * model.hidden_size * 4) * _FLOAT_BYTES,
        copies_bytes=weights * 4,
    )


def of_run(config: TrainConfig, model: LatteConfig, workers: int) -> MemoryNeed:
    """The estimate of one worker of a run."""
    clips = config.batch_size // (config.accumulation * workers)
    parameters = num_parameters(model, trained_only=True)
    return estimate(model, parameters, clips, workers, config.recompute, workers if config.shard_optimizer else 1)


def state_on_device(parameters: int, half: bool, shards: int = 1) -> MemoryNeed:
    """Bytes that lie on an Ascend device whatever the batch: its weights, `half` in half precision, and the flat state.

    Activations are not in it: how many stay is MindSpore's to say (`latte train dry_run=true`).
    """
    own = parameters * _FLOAT_BYTES // shards
    weights = parameters * (_FLOAT_BYTES // 2 if half else _FLOAT_BYTES) + parameters * _FLOAT_BYTES
    return MemoryNeed(weights + 2 * own, 2 * own, 0, 0)


def check_start(config: TrainConfig, model: LatteConfig, workers: int) -> None:
    """Refuse a run that cannot fit where this process is, before it builds anything.

    Raises:
        UserError: it does not fit; says what to change.
    """
    device_bytes = device.memory_bytes()
    if device_bytes is not None:
        parameters, shards = num_parameters(model, trained_only=True), workers if config.shard_optimizer else 1
        check(state_on_device(parameters, config.precision != "fp32", shards), 1, device_bytes)
        return
    check(of_run(config, model, workers), int(os.environ.get("LATTE_WORKERS_PER_NODE", workers)))


def available_bytes() -> int:
    """Memory that this process may still take: what the machine has free, or its control group if that is less.

    The group's files may be missing or say "max": then the machine's figure counts.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if texts[0].isdigit():
            free = min(free, int(texts[0]) - int(texts[1]) + _reclaimable_bytes())
    return free


def check(need: MemoryNeed, processes: int, device_bytes: int | None = None) -> None:
    """Refuse a run that cannot fit.

    Args:
        need: of one process.
        processes: how many share this machine's memory.
        device_bytes: memory of an accelerator; None where the CPU computes.

    Raises:
        UserError: it does not fit; says what to change.
    """
    if device_bytes is not None:
        if need.device_bytes > device_bytes * _HEADROOM:
            about = "about" if need.activations_bytes else "at least"
            raise UserError(
                f"a training step needs {about} {need.device_bytes / 1e9:.1f} GB of the device's "
                f"{device_bytes / 1e9:.1f} GB ({need}); {ADVICE}"
            )
        return
    there = available_bytes()
    total = need.host_bytes * processes
    if total > there * _HEADROOM:
        shared = f" in {processes} processes" if processes > 1 else ""
        raise UserError(
            f"training needs about {total / 1e9:.1f} GB of memory{shared}, {there / 1e9:.1f} GB are free ({need}); "
            f"{ADVICE}"
        )


def _reclaimable_bytes() -> int:
    """Cached file pages of the control group, which the kernel gives back before it kills."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
