"""Train the Latte that the demo finetunes, on the demo's clips: `python -m pipelines.demo.train_latte --output DIR`.

It stands in for published weights where none can be fetched: the product's own steps convert the autoencoder, encode
the clips, train, and generate; then the average of the weights is written as the published checkpoints are (a PyTorch
file with `ema`, in half precision), with a card and a picture. It has seen three short videos and knows nothing else.
Stopped, it goes on where it was. Only writing the file needs PyTorch (the peers extra).
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from latte import checkpoints, config, storage
from latte.cli import guarded
from latte.errors import UserError
from latte.facts import RunFacts, RunMetrics
from latte.sampling import contact_sheet
from latte.steps import convert, encode, sample, train
from latte.storage import manifest
from pipelines.demo import data
from pipelines.demo.nearest import nearest_classes, read_clip, share_right
from pipelines.demo.train_detector import AUTOENCODER

# What the demo repeats of it, it must repeat exactly: configs/demo/pipeline.yaml.
MODEL = {"patch_size": 2, "hidden_size": 192, "depth": 6, "num_heads": 4, "num_frames": data.CLIP_FRAMES}
TRAIN = {
    "model": MODEL,
    "batch_size": 8,
    "frame_stride": 1,
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
@click.option("--learning-rate", default=1e-3, help="Of the first updates; it falls by a cosine.")
@click.option("--start", type=click.Path(path_type=Path), help="An earlier latte-demo.pt to train on.")
def main(output: Path, root: Path, steps: int, learning_rate: float, start: Path | None) -> None:
    """Train the demo's Latte and write it as a published checkpoint."""
    guarded(lambda: make(output, root, steps, learning_rate, start))


def make(output: Path, root: Path, steps: int, learning_rate: float = 1e-3, start: Path | None = None) -> None:
    """Run the steps under `root`, those that are done already not again, and write weights, card and picture.

    Raises:
        UserError: the clips' package is missing, or `output` cannot be written.
    """
    digest = "" if start is None else storage.sha256_file(start)  # `output` may be its folder
    videos = root.absolute() / "demo-clips"
    data.cut_demo_clips(videos)
    common = {"root": str(root.absolute()), "name": "demo"}
    vae = convert.run(config.build(convert.ConvertConfig, {**common, "kind": "vae", "source": str(AUTOENCODER)}, "vae"))
    encoding = {**common, "dataset": {"videos": str(videos)}, "vae": vae.file, "image_size": data.IMAGE_SIZE}
    latents = encode.run(config.build(encode.EncodeConfig, {**encoding, "shard_mb": 0.8, "num_tasks": 2}, "encode"))
    training = {**common, **TRAIN, "steps": steps, "learning_rate": learning_rate, "latents": latents.file}
    if start is not None:
        given = convert.run(config.build(convert.ConvertConfig, _converting(common, start), "start"))
        training["init_from"] = given.file
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
        (output / "README.md").write_text(card(trained, found, digest))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from None


def _converting(common: dict[str, str], start: Path) -> dict[str, Any]:
    """Settings that convert weights which this script wrote before."""
    classes = [source.label for source in data.SHOWN]
    scaling = json.loads((AUTOENCODER.parent / "config.json").read_text())["scaling_factor"]
    known = {"scaling_factor": scaling, "image_size": data.IMAGE_SIZE, "classes": classes}
    heads = {"num_heads": MODEL["num_heads"]}
    return {**common, "name": "start", "kind": "latte", "source": str(start), "model": heads, "trained_on": known}


def write_published(weights: dict[str, np.ndarray], path: Path) -> None:
    """Write weights as published Latte checkpoints are, in half precision: a PyTorch file that holds `ema`."""
    import torch

    torch.save({"ema": {name: torch.from_numpy(value).half() for name, value in sorted(weights.items())}}, path)


def card(trained: manifest.Manifest, found: list[tuple[str, str]], start: str = "") -> str:
    """The README beside the weights."""
    rows = "\n".join(
        f"| {label} | {100 * share_right([pair for pair in found if pair[0] == label]):.0f} % |"
        for label in RunFacts.of(trained).classes
    )
    settings = trained.config["train"]
    steps, batch, rate, decay = (settings[key] for key in ("steps", "batch_size", "learning_rate", "ema_decay"))
    sizes = ", ".join(f"{key} {value}" for key, value in MODEL.items())
    began, options = "", f"--steps {steps} --learning-rate {rate:g}"
    if start:
        began = f"- Began with an earlier file of this script, in the repository's history: SHA-256\n  {start}.\n"
        options += " --start FILE"
    generated, denoising, scale = SAMPLE["num_videos"], SAMPLE["num_sampling_steps"], SAMPLE["cfg_scale"]
    return f"""# The demo's Latte

A Latte of {trained.counts["parameters"]:,} parameters ({sizes})
in the file layout of the published checkpoints: a PyTorch file with `ema`, half precision. For the demo and the tests
only: it has seen three short videos, the held-out ends of their shots included, and nothing else, and it generates
hardly anything but them.

- Data: the demo's clips (`pipelines/demo/data.py`), encoded by the demo's autoencoder; the classes are
  {", ".join(RunFacts.of(trained).classes)}, in this order.
{began}- AdamW, {steps:,} updates of {batch} clips, learning rate {rate:g} falling by a cosine; EMA {decay:g}.
- Made by `python -m pipelines.demo.train_latte --output DIR --root DIR {options}`:
  the product's own steps on two cores, {trained.seconds / 60:.0f} minutes beside other work; only the file is written
  by PyTorch (the peers extra).
- Last loss {RunMetrics.of(trained).loss:.4f}.

{generated} generated clips ({denoising} steps, cfg_scale {scale}): whether the nearest real clip, by latents, is of the
class that was asked for:

| class | right |
|---|---|
{rows}

![Generated clips, one in a row](generated.png)
"""


if __name__ == "__main__":
    main()
