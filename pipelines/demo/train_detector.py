"""Train the demo's small detector on the demo's clips: `python -m pipelines.demo.train_detector --output DIR`.

It stands in for I3D with Kinetics weights where none can be fetched: the same network with an eighth of the channels,
taught to tell which class a clip is of and what was done to it (`pipelines.demo.degradations`). So its class scores
move with what the eye sees, which those of random weights do not. It has seen three short videos and knows nothing
else. The updates are computed in PyTorch (the peers extra); the figures of the card are MindSpore's.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from PIL import Image
from safetensors.numpy import save

from latte import metrics, rng
from latte.cli import guarded
from latte.errors import UserError
from latte.metrics.protocol import prepare
from latte.models.configs import I3DConfig
from latte.progress import progress
from pipelines.demo import data, degradations

if TYPE_CHECKING:
    from latte.models.i3d import I3D

WIDTH = 0.125
BATCH = 16
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.01
MUSHY_VERSIONS = 4
CLASSES = tuple(source.label for source in data.SOURCES)
CONFIG = I3DConfig(num_classes=len(CLASSES) + len(degradations.KINDS), width=WIDTH, image_size=data.IMAGE_SIZE)
AUTOENCODER = Path(__file__).parents[2] / "configs" / "demo" / "autoencoder" / "diffusion_pytorch_model.safetensors"
_CHUNK = 64


@dataclass(frozen=True)
class Clips:
    """The demo's clips in versions.

    Attributes:
        real: (N, F, H, W, 3) uint8.
        labels: (N,) numbers of their classes.
        reconstructed: as real, through the autoencoder.
        mushy: (N, versions, F, H, W, 3) uint8, from spoilt latents.
    """

    real: np.ndarray
    labels: np.ndarray
    reconstructed: np.ndarray
    mushy: np.ndarray

    def version(self, index: int, kind: str, random: np.random.Generator) -> np.ndarray:
        """Clip `index` (F, H, W, 3) uint8 with what `kind` names done to it."""
        clip = self.real[index]
        if kind == "real":
            return clip
        if kind == "reconstructed":
            return self.reconstructed[index]
        if kind == "mushy":
            return self.mushy[index, int(random.integers(self.mushy.shape[1]))]
        if kind == "blended":
            others = np.flatnonzero(self.labels != self.labels[index])
            return degradations.blended(clip, self.real[int(random.choice(others))], random)
        return degradations.OF_FRAMES[kind](clip, random)


@click.command(context_settings={"show_default": True})
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for weights, card and picture.")
@click.option("--steps", default=2500, help="Updates.")
@click.option("--seed", default=0, help="Fresh weights, what is done to clips, and order follow from it.")
def main(output: Path, steps: int, seed: int) -> None:
    """Train the demo's detector and write it in the layout of a published I3D."""
    guarded(lambda: train(output, steps, seed))


def train(output: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train in PyTorch, evaluate in MindSpore, and return the figures of the card.

    The loss is the sum of two cross entropies: over the classes and over the kinds of `degradations`.

    Raises:
        UserError: the clips' package is missing, or `output` cannot be written.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from latte.training.optim import learning_rate_at
    from pipelines.demo import torch_i3d

    started = time.monotonic()
    seen, held_out = load_clips(seed)
    torch.manual_seed(seed)
    net = torch_i3d.TorchI3D(CONFIG)
    adam = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    recent: list[float] = []
    bar = progress(range(1, steps + 1), desc="train detector", unit="step")
    for step in bar:
        for group in adam.param_groups:
            group["lr"] = learning_rate_at(step, PEAK_LEARNING_RATE, "cosine", WARMUP_STEPS, steps)
        clips, labels, kinds = _batch(seen, seed, step)
        logits = net(torch.from_numpy(clips))  # (B, classes + kinds)
        loss = cross_entropy(logits[:, : len(CLASSES)], torch.from_numpy(labels))
        loss = loss + cross_entropy(logits[:, len(CLASSES) :], torch.from_numpy(kinds))
        adam.zero_grad()
        loss.backward()
        adam.step()
        recent.append(float(loss))
        bar.set_postfix(loss=f"{np.mean(recent[-20:]):.3f}", refresh=False)
    weights = {name: value.numpy() for name, value in net.state_dict().items() if value.ndim}
    figures: dict[str, Any] = {"steps": steps, "seed": seed, "minutes": (time.monotonic() - started) / 60}
    figures |= {"loss": float(np.mean(recent[-100:])), **evaluate(weights, seen, held_out, seed)}
    write(output, weights, held_out, figures)
    return figures


def load_clips(seed: int) -> tuple[Clips, Clips]:
    """The demo's clips before coding: those that the autoencoder was trained on, and those that were held out."""
    net = _autoencoder()
    seen, held_out = (_versions(net, *real_clips(held_out=part), seed) for part in (False, True))
    return seen, held_out


def real_clips(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """The demo's clips before coding (N, F, H, W, 3) uint8 and the numbers of their classes (N,).

    Args:
        held_out: those that the autoencoder was not trained on, or those that it was.
    """
    clips, labels = [], []
    for label, source in enumerate(data.SOURCES):
        for name, frames in data.windows(source):
            if data.is_held_out(name) == held_out:
                clips.append(np.stack(frames))
                labels.append(label)
    return np.stack(clips), np.array(labels)


def features(net: "I3D", clips: np.ndarray) -> np.ndarray:
    """Class scores (N, D) float32 of clips (N, F, H, W, 3) uint8."""
    import mindspore as ms

    rows = []
    for first in range(0, len(clips), BATCH):
        part = np.stack([prepare(clip, CONFIG.image_size) for clip in clips[first : first + BATCH]])
        padded = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])  # one shape, one graph
        rows.append(net(ms.Tensor(padded)).asnumpy()[: len(part)])
    return np.concatenate(rows)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of two sets of features (N, D), (M, D)."""
    sides = [metrics.Moments.of(rows).statistics("n") for rows in (one, other)]
    return float(metrics.frechet_distance(*sides[0], *sides[1]))


def evaluate(weights: dict[str, np.ndarray], seen: Clips, held_out: Clips, seed: int) -> dict[str, Any]:
    """Accuracy on held-out clips, by class and by kind, and the distance of each kind to the real clips."""
    net = detector(weights)
    right_class, right_kind, distances = [], {}, {}
    count = len(seen.real)
    order = rng.stream(seed, "detector halves").permutation(count)
    real = features(net, seen.real)  # (N, D)
    distances["the other half"] = distance(real[order[: count // 2]], real[order[count // 2 :]])
    for kind in degradations.KINDS:
        random = rng.stream(seed, "detector evaluation", kind)
        rows = features(net, np.stack([held_out.version(i, kind, random) for i in range(len(held_out.real))]))
        right_class.append(np.mean(rows[:, : len(CLASSES)].argmax(1) == held_out.labels))
        right_kind[kind] = float(np.mean(rows[:, len(CLASSES) :].argmax(1) == degradations.KINDS.index(kind)))
        if kind != "real":
            spoilt = np.stack([seen.version(i, kind, random) for i in range(count)])
            distances[kind] = distance(features(net, spoilt), real)
    return {"class_accuracy": float(np.mean(right_class)), "kind_accuracy": right_kind, "distances": distances}


def detector(weights: dict[str, np.ndarray]) -> "I3D":
    """The network in MindSpore with these weights."""
    import mindspore as ms

    from latte import device
    from latte.models.i3d import I3D

    device.setup()
    net = I3D(CONFIG)
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    net.set_train(False)
    return net


def write(output: Path, weights: dict[str, np.ndarray], held_out: Clips, figures: dict[str, Any]) -> None:
    """Write the weights, the card and a picture of what the detector tells apart."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "i3d.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (output / "README.md").write_text(card(figures, sum(value.size for value in weights.values())))
        kinds_shown(held_out, int(figures["seed"])).save(output / "kinds.png")
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from None


def kinds_shown(clips: Clips, seed: int, zoom: int = 2) -> Image.Image:
    """A frame of one clip of each class, in a row; a column for each kind."""
    rows = []
    for label in range(len(CLASSES)):
        index = int(np.flatnonzero(clips.labels == label)[0])
        random = rng.stream(seed, "kinds shown", label)
        frames = [clips.version(index, kind, random)[data.CLIP_FRAMES // 2] for kind in degradations.KINDS]
        rows.append(np.concatenate(frames, axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)


def card(figures: dict[str, Any], parameters: int) -> str:
    """The README beside the weights."""
    spoilt = degradations.KINDS[1:]
    accuracy = "\n".join(f"| {kind} | {100 * value:.0f} % |" for kind, value in figures["kind_accuracy"].items())
    distances = "\n".join(f"| {kind} | {value:.2f} |" for kind, value in figures["distances"].items())
    return f"""# The demo's detector

An Inception I3D (Carreira & Zisserman 2017) with {WIDTH:g} of its channels ({parameters:,} numbers), for clips of
{data.IMAGE_SIZE}x{data.IMAGE_SIZE} pixels and {CONFIG.num_classes} class scores, for the demo and the tests only:
it has seen three short videos and nothing else. The distance in its class scores is called `frechet_small_i3d`; it is
no FVD.

- Data: clips of every shot of the demo's videos (`SOURCES` in `pipelines/demo/data.py`), as they are and spoilt in
  {len(spoilt)} ways
  (`pipelines/demo/degradations.py`, the columns of the picture): {", ".join(spoilt)}.
- Taught to tell the {len(CLASSES)} classes ({", ".join(CLASSES)}) and the {len(spoilt) + 1} kinds apart: two cross
  entropies.
  AdamW, learning rate {PEAK_LEARNING_RATE} falling by a cosine, batches of {BATCH}.
- Made by `python -m pipelines.demo.train_detector --output DIR --seed {figures["seed"]} --steps {figures["steps"]}`
  (peers extra; PyTorch on a CPU); {figures["minutes"]:.0f} minutes.

Clips that were held out: the class is told right for {100 * figures["class_accuracy"]:.0f} %, the kind for

| kind | told right |
|---|---|
{accuracy}

Fréchet distance of its class scores to those of the real clips it was trained on (first line: of one half of them to
the other):

| kind | distance |
|---|---|
{distances}

![A clip of each class, real and spoilt](kinds.png)
"""


def _autoencoder() -> Any:
    import mindspore as ms
    from safetensors.numpy import load_file

    from latte import device
    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig

    device.setup()
    net = AutoencoderKL(AutoencoderKLConfig.from_json(AUTOENCODER.with_name("config.json")))
    weights = load_file(AUTOENCODER)
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    return net


def _versions(net: Any, real: np.ndarray, labels: np.ndarray, seed: int) -> Clips:
    """The clips with what goes through the autoencoder: once as they are, several times from spoilt latents."""
    from latte.models.autoencoder_kl import decode_in_chunks, encode_in_chunks
    from pipelines.demo.train_autoencoder import to_frames, to_network

    count, frames = real.shape[:2]
    images = to_network(real.reshape(-1, *real.shape[2:]))  # (N F, 3, H, W)
    latents, _ = encode_in_chunks(net, images, _CHUNK)  # (N F, C, h, w)
    reconstructed = to_frames(decode_in_chunks(net, latents, _CHUNK)).reshape(real.shape)
    latents = latents.reshape(count, frames, *latents.shape[1:])
    mushy = []
    for version in progress(range(MUSHY_VERSIONS), desc="spoil latents", unit="version"):
        spoilt = []
        for index in range(count):
            random = rng.stream(seed, "mushy", version, index)
            alike = np.flatnonzero(labels == labels[index])
            others = latents[random.choice(alike, size=int(random.integers(1, 4)))]
            spoilt.append(degradations.mushy(latents[index], others, random))
        decoded = decode_in_chunks(net, np.concatenate(spoilt), _CHUNK)
        mushy.append(to_frames(decoded).reshape(real.shape))
    return Clips(real, labels, reconstructed, np.stack(mushy, axis=1))


def _batch(clips: Clips, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips (B, 3, F, H, W) float32 in [-1, 1], their classes (B,) and their kinds (B,), int64."""
    random = rng.stream(seed, "detector batch", step)
    # As many of each class, although some have more clips.
    labels = random.integers(len(CLASSES), size=BATCH)
    indices = [int(random.choice(np.flatnonzero(clips.labels == label))) for label in labels]
    kinds = random.integers(len(degradations.KINDS), size=BATCH)
    versions = [clips.version(i, degradations.KINDS[kind], random) for i, kind in zip(indices, kinds, strict=True)]
    batch = np.stack([prepare(version, CONFIG.image_size) for version in versions])
    return batch, labels.astype(np.int64), kinds.astype(np.int64)


if __name__ == "__main__":
    main()
