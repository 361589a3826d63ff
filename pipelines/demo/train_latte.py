"""Train the Latte that the demo finetunes, on the demo's clips: `python -m pipelines.demo.train_latte --output DIR`.

It stands in for published weights where none can be fetched: the product's own steps convert the autoencoder, encode
the clips, train, and generate; then the average of the weights is written as the published checkpoints are (a PyTorch
file with `ema`, in half precision), with a card and a picture. It has seen three short videos and knows nothing else.
Stopped, it goes on where it was. Only writing the file needs PyTorch (the peers extra).
"""

from pathlib import Path

import click
import numpy as np

from latte import checkpoints, config, contact_sheet, manifest, storage
from latte.cli import guarded
from latte.errors import UserError
from latte.steps import convert, encode, sample, train
from pipelines.demo import data
from pipelines.demo.nearest import nearest_classes, read_clip, share_right
from pipelines.demo.train_detector import AUTOENCODER

# What the demo repeats of it, it must repeat exactly: configs/demo/pipeline.yaml.
MODEL = {"patch_size": 2, "hidden_size": 192, "depth": 6, "num_heads": 4, "num_frames": data.CLIP_FRAMES}
TRAIN = {
    "model": MODEL,
    "batch_size": 8,
    "frame_stride": 1,
    "learning_rate": 1e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 100,
    "ema_decay": 0.998,
    "log_every": 100,
    "checkpoint_every": 1000,
}
CLIPS_SHOWN = 9
SAMPLE = {"num_videos": 48, "num_sampling_steps": 25, "cfg_scale": 1.5}


@click.command(context_settings={"show_default": True})
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for weights, card and picture.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder for all that the steps write.")
@click.option("--steps", default=10_000, help="Updates.")
def main(output: Path, root: Path, steps: int) -> None:
    """Train the demo's Latte and write it as a published checkpoint."""
    guarded(lambda: make(output, root, steps))


def make(output: Path, root: Path, steps: int) -> None:
    """Run the steps under `root`, those that are done already not again, and write weights, card and picture.

    Raises:
        UserError: the clips' package is missing, or `output` cannot be written.
    """
    videos = root.absolute() / "demo-clips"
    data.cut_demo_clips(videos)
    common = {"root": str(root.absolute()), "name": "demo"}
    vae = convert.run(config.build(convert.ConvertConfig, {**common, "kind": "vae", "source": str(AUTOENCODER)}, "vae"))
    encoding = {**common, "dataset": {"videos": str(videos)}, "vae": vae.file, "image_size": data.IMAGE_SIZE}
    latents = encode.run(config.build(encode.EncodeConfig, {**encoding, "shard_mb": 0.8, "num_tasks": 2}, "encode"))
    training = {**common, **TRAIN, "steps": steps, "latents": latents.file}
    trained = train.run(config.build(train.TrainConfig, training, "train"))
    sampling = {**common, **SAMPLE, "checkpoint": trained.file, "vae": vae.file}
    generated = sample.run(config.build(sample.SampleConfig, sampling, "sample"))
    found = nearest_classes(latents, generated, vae)
    shown = storage.read_json(storage.join(generated.uri, "items.json"))[:CLIPS_SHOWN]
    weights = checkpoints.read(trained.shard(f"step-{steps:08d}/ema.safetensors").uri)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_published(weights, output / "latte-demo.pt")
        (output / "generated.png").write_bytes(contact_sheet.draw([read_clip(item) for item in shown]))
        (output / "README.md").write_text(card(trained, found))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from None


def write_published(weights: dict[str, np.ndarray], path: Path) -> None:
    """Write weights as published Latte checkpoints are, in half precision: a PyTorch file that holds `ema`."""
    import torch

    torch.save({"ema": {name: torch.from_numpy(value).half() for name, value in sorted(weights.items())}}, path)


def card(trained: manifest.Manifest, found: list[tuple[str, str]]) -> str:
    """The README beside the weights."""
    rows = "\n".join(
        f"| {label} | {100 * share_right([pair for pair in found if pair[0] == label]):.0f} % |"
        for label in trained.config["classes"]
    )
    settings = trained.config["train"]
    steps, batch, rate, decay = (settings[key] for key in ("steps", "batch_size", "learning_rate", "ema_decay"))
    sizes = ", ".join(f"{key} {value}" for key, value in MODEL.items())
    generated, denoising, scale = SAMPLE["num_videos"], SAMPLE["num_sampling_steps"], SAMPLE["cfg_scale"]
    return f"""# The demo's Latte

A Latte of {trained.counts["parameters"]:,} parameters ({sizes})
in the file layout of the published checkpoints: a PyTorch file with `ema`, half precision. For the demo and the tests
only: it has seen three short videos, the held-out ends of their shots included, and nothing else, and it generates
hardly anything but them.

- Data: the demo's clips (`pipelines/demo/data.py`), encoded by the demo's autoencoder; the classes are
  {", ".join(trained.config["classes"])}, in this order.
- AdamW, {steps:,} updates of {batch} clips, learning rate {rate:g} falling by a cosine; EMA {decay:g}.
- Made by `python -m pipelines.demo.train_latte --output DIR --root DIR --steps {steps}`: the product's own steps on two
  cores, {trained.seconds / 60:.0f} minutes beside other work; only the file is written by PyTorch (the peers extra).
- Last loss {trained.metrics["loss"]:.4f}.

{generated} generated clips ({denoising} steps, cfg_scale {scale}): whether the nearest real clip, by latents, is of the
class that was asked for:

| class | right |
|---|---|
{rows}

![Generated clips, one in a row](generated.png)
"""


if __name__ == "__main__":
    main()
