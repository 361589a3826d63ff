"""What training, encoding and sampling of Latte-XL/2 should cost on Ascend NPUs: estimates on paper, nothing is run.

    python benchmarks/scaling.py [--peak-tflops 313] [--memory-gbps 1600] [--node-gbps 196] [--network-gbps 25] [--json]

Operations are counted from the configs (`latte.kinds.flops`), bytes from the shapes of what is stored and sent. The
options say what a device and its links can do; the defaults are assumptions about an Atlas 800T A2 (eight 910B of 64 GB
each), not measurements. The share of the peak that a step reaches is taken from two published steps of MindONE's Latte
on such devices. The tables are those of docs/scaling.md.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from latte.kinds import flops
from latte.kinds.latte import num_parameters
from latte.models.configs import AutoencoderKLConfig, LatteConfig
from latte.training import memory

VAE = AutoencoderKLConfig()
TERA, GIGA = 1e12, 1e9
DEVICES_PER_NODE = 8
NPUS = (8, 64, 512)
VIDEOS, FRAMES_PER_VIDEO = 1_000_000, 256


@dataclass(frozen=True)
class Device:
    """An accelerator and its links.

    Attributes:
        peak_tflops: matrix products in half precision, 1e12 operations a second.
        memory_gbps: its memory, 1e9 bytes a second.
        node_gbps: to the other devices of its node, 1e9 bytes a second in one direction.
        network_gbps: to other nodes, 1e9 bytes a second in one direction.
    """

    peak_tflops: float = 313.0
    memory_gbps: float = 1600.0
    node_gbps: float = 196.0
    network_gbps: float = 25.0


@dataclass(frozen=True)
class Setting:
    """Work of one device in a training step of Latte-XL/2; `recompute` and `clips` as in training."""

    side: int
    num_frames: int
    clips: int
    recompute: bool = False

    @property
    def model(self) -> LatteConfig:
        """The network, for latents of these videos."""
        return LatteConfig.preset("Latte-XL/2", input_size=self.side // VAE.downsampling, num_frames=self.num_frames)

    @property
    def step_flops(self) -> int:
        """Operations of a step on latents."""
        return flops.training_step(self.model, self.clips, self.recompute)

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip's stored latents: mean and log-variance of each frame in float16."""
        return self.num_frames * 2 * VAE.latent_channels * self.model.input_size**2 * 2

    def __str__(self) -> str:
        return f"{self.side}x{self.side}, {self.num_frames} frames"


SETTINGS = (Setting(256, 16, 5), Setting(256, 128, 1, True), Setting(512, 16, 1), Setting(512, 128, 1, True))


@dataclass(frozen=True)
class Published:
    """A training step that MindONE states for a 910*, with what it computes besides the step on latents."""

    setting: Setting
    encodes: bool
    seconds: float

    @property
    def flops(self) -> int:
        """Operations of the step, and of encoding its frames where that happens within it."""
        frames = self.setting.clips * self.setting.num_frames
        return self.setting.step_flops + (flops.vae_encode(VAE, self.setting.side, frames) if self.encodes else 0)


PUBLISHED = (Published(SETTINGS[0], True, 1.03), Published(SETTINGS[1], False, 1.21))


def main() -> None:
    """Print the tables; with --json the last line is one JSON object of what they are computed from."""
    parser = argparse.ArgumentParser(description="estimates of Latte-XL/2 on Ascend NPUs")
    for name, value in asdict(Device()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    device = Device(**options)
    print(report(device))
    if as_json:
        print(json.dumps({"benchmark": "scaling", "share_of_peak": share_of_peak(device), **asdict(device)}))


def share_of_peak(device: Device) -> float:
    """Share of the peak that the published steps reach: the geometric mean of both."""
    shares = [each.flops / each.seconds / (device.peak_tflops * TERA) for each in PUBLISHED]
    return math.prod(shares) ** (1 / len(shares))


def report(device: Device) -> str:
    """All tables, as Markdown."""
    return "\n\n".join((_checks(device), _steps(device), _exchange(device), _feeding(device), _encoding(device)))


def _checks(device: Device) -> str:
    rows = [
        (
            str(each.setting),
            each.setting.clips,
            "yes" if each.encodes else "no",
            "yes" if each.setting.recompute else "no",
            f"{each.flops / TERA:.0f}",
            f"{each.flops / TERA / device.peak_tflops:.2f} s",
            f"{each.seconds:.2f} s",
            f"{each.flops / each.seconds / TERA / device.peak_tflops:.0%}",
        )
        for each in PUBLISHED
    ]
    heads = (
        "MindONE's step",
        "clips",
        "encodes",
        "recomputes",
        "TFLOP",
        "at the peak",
        "published",
        "share of the peak",
    )
    return _table("Check of the formulas", heads, rows)


def _steps(device: Device) -> str:
    share = share_of_peak(device)
    rows = []
    for setting in SETTINGS:
        parameters = num_parameters(setting.model, trained_only=True)
        need = memory.estimate(setting.model, parameters, setting.clips, DEVICES_PER_NODE, setting.recompute)
        rows.append(
            (
                str(setting),
                f"{setting.clips}{', recompute' if setting.recompute else ''}",
                f"{flops.latte_forward(setting.model) / TERA:.1f}",
                f"{setting.step_flops / TERA:.0f}",
                f"{need.activations_bytes / 2 / GIGA:.0f}",
                f"{_update_bytes(parameters) / GIGA / device.memory_gbps * 1e3:.0f} ms",
                f"{setting.step_flops / TERA / device.peak_tflops:.2f} s",
                f"{_step_seconds(setting, share, device):.2f} s",
            )
        )
    heads = (
        "a step of one NPU", "clips", "TFLOP forward, a clip", "TFLOP a step", "GB of activations in half precision",
        "update, bound by memory", "products at the peak", f"at {share:.0%} of it",
    )  # fmt: skip
    return _table("A training step", heads, rows)


def _exchange(device: Device) -> str:
    share = share_of_peak(device)
    parameters = num_parameters(SETTINGS[0].model, trained_only=True)
    rows = []
    for setting in SETTINGS[:2]:
        backward = _step_seconds(setting, share, device) * 2 / 3
        for count in NPUS:
            seconds = _all_reduce_seconds(parameters * 4, count, device)
            alone = _step_seconds(setting, share, device)
            rows.append(
                (
                    str(setting),
                    count,
                    f"{2 * (count - 1) / count * parameters * 4 / GIGA:.2f} GB",
                    f"{seconds * 1e3:.0f} ms",
                    f"{alone / (alone + seconds):.0%}",
                    f"{alone / (alone + max(0.0, seconds - backward)):.0%}",
                )
            )
    heads = (
        "a step", "NPUs", "sent and received by each, float32", "time on the links",
        "efficiency, after the backward pass", "efficiency, hidden behind it",
    )  # fmt: skip
    return _table("All-reduce of the gradients", heads, rows)


def _feeding(device: Device) -> str:
    share = share_of_peak(device)
    rows = []
    for setting in SETTINGS:
        each = setting.clips * setting.clip_bytes / _step_seconds(setting, share, device)
        rows.append(
            (str(setting), f"{setting.clip_bytes / 1e6:.2f} MB", *(f"{each * count / 1e6:.1f} MB/s" for count in NPUS))
        )
    return _table("Bandwidth of the bucket", ("latents of", "a clip", *(f"{count} NPUs" for count in NPUS)), rows)


def _encoding(device: Device) -> str:
    share = share_of_peak(device)
    rows = []
    for side in (256, 512):
        frame = flops.vae_encode(VAE, side)
        hours = VIDEOS * FRAMES_PER_VIDEO * frame / (device.peak_tflops * TERA * share) / 3600
        stored = VIDEOS * FRAMES_PER_VIDEO * 2 * VAE.latent_channels * (side // VAE.downsampling) ** 2 * 2
        rows.append(
            (
                f"{side}x{side}",
                f"{frame / TERA:.2f}",
                f"{hours:,.0f}",
                *(f"{hours / count:,.1f} h" for count in NPUS),
                f"{stored / TERA:.1f} TB",
            )
        )
    heads = ("frames of", "TFLOP a frame", "NPU hours", *(f"on {count} NPUs" for count in NPUS), "latents")
    return _table(f"Encoding {VIDEOS:,} videos of {FRAMES_PER_VIDEO} frames", heads, rows)


def _step_seconds(setting: Setting, share: float, device: Device) -> float:
    """Products at that share of the peak; the share has all else of a step in it."""
    return setting.step_flops / (device.peak_tflops * TERA * share)


def _update_bytes(parameters: int) -> int:
    """Bytes that AdamW and the moving average move: weights, moments and average both ways, gradients read."""
    return parameters * 4 * (2 * 4 + 1)


def _all_reduce_seconds(size: int, count: int, device: Device) -> float:
    """Ring within each node, then over the nodes with a part for each device of a node (Thakur et al. 2005)."""
    within = min(count, DEVICES_PER_NODE)
    nodes = count // within
    seconds = 2 * (within - 1) / within * size / (device.node_gbps * GIGA)
    return seconds + 2 * (nodes - 1) / nodes * size / within / (device.network_gbps * GIGA)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def lines() -> Iterator[str]:
        yield f"**{title}**\n"
        yield f"| {' | '.join(heads)} |"
        yield f"|{'---|' * len(heads)}"
        for row in rows:
            yield f"| {' | '.join(map(str, row))} |"

    return "\n".join(lines())


if __name__ == "__main__":
    main()
