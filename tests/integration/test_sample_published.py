"""Published weights become videos: a file as the authors of Latte leave it, `latte convert`, `latte sample`.

The same weights in a plain PyTorch loop with diffusers' autoencoder must give the same frames.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from latte import checkpoints, rng, storage
from latte.cli import cli
from latte.errors import UserError
from latte.steps import promoted, sample
from latte.storage import manifest
from latte.video import clip_files
from tests import peers

# The tiny checkpoint of tests/data, laid out as published ones are.
PUBLISHED = Path(__file__).parents[1] / "data" / "uncond.pt"
LATTE = {"input_size": 8, "patch_size": 2, "hidden_size": 48, "depth": 4, "num_heads": 4, "num_frames": 4}
VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
STEPS, SEED, SCALING_FACTOR = 5, 3, 0.18215


def latte(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def published_vae():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return AutoencoderKL(**VAE, **blocks).eval()


def vae_weights() -> dict[str, np.ndarray]:
    return peers.weights(peers.shapes("sd-vae-small-shapes", lambda: published_vae().state_dict()), seed=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint and an autoencoder as they are published, and both converted with the command."""
    folder = tmp_path_factory.mktemp("published")
    weights = folder / "sd-vae-ft-ema" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    save_file(vae_weights(), weights, metadata={"format": "pt"})

    def write(path: Path) -> None:
        published_vae().save_config(folder / "written")
        path.write_text((folder / "written" / "config.json").read_text())

    config = peers.file("sd-vae-small/config.json", folder, write)
    (weights.parent / "config.json").write_text(config.read_text())
    sources = {"latte": PUBLISHED, "vae": weights}
    targets = {kind: str(folder / f"{kind}.safetensors") for kind in sources}
    for kind, source in sources.items():
        heads = ["model.num_heads=4"] if kind == "latte" else []
        done = latte("convert", "--kind", kind, "--source", str(source), "--target", targets[kind], *heads)
        assert done.exit_code == 0, done.output
    settings = {
        "root": (folder / "root").as_uri(),
        "name": "sky",
        "vae": targets["vae"] + ".manifest.json",
        "num_videos": 3,
        "batch_size": 2,
        "num_sampling_steps": STEPS,
        "seed": SEED,
    }
    (folder / "sample.yaml").write_text(yaml.safe_dump(settings))
    return SimpleNamespace(
        folder=folder,
        settings=settings,
        sources=sources,
        config=str(folder / "sample.yaml"),
        checkpoint=targets["latte"] + ".manifest.json",
    )


def by_torch(method: str) -> np.ndarray:
    """The videos of a plain loop with the same noise, (N, F, H, W, 3) uint8."""
    import torch
    from torch_twin import LatteTwin

    net, vae = LatteTwin(**LATTE).eval(), published_vae()
    # The position tables are no parameters of the twin.
    given = {name: torch.from_numpy(array.copy()) for name, array in checkpoints.read(str(PUBLISHED)).items()}
    assert set(net.state_dict()) <= set(given)
    net.load_state_dict({name: given[name] for name in net.state_dict()})
    vae.load_state_dict({name: torch.from_numpy(value) for name, value in vae_weights().items()})
    kept = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    stride = 999 / (STEPS - 1)
    steps = [round(i * stride) for i in range(STEPS)]
    shape = (LATTE["num_frames"], 4, LATTE["input_size"], LATTE["input_size"])

    def noise(purpose: str, *more: int) -> Any:
        streams = [rng.stream(SEED, purpose, index, *more) for index in range(3)]
        return torch.from_numpy(np.stack([stream.standard_normal(shape, np.float32) for stream in streams]))

    x = noise("sample noise")  # (N, F, C, h, w)
    for number, position in enumerate(reversed(range(STEPS))):
        now, left = kept[steps[position]], kept[steps[position - 1]] if position else 1.0
        predicted, share = net(x, torch.full((3,), steps[position])).chunk(2, dim=2)
        clean = (x - (1 - now) ** 0.5 * predicted) / now**0.5
        if method == "ddim":
            x = left**0.5 * clean + (1 - left) ** 0.5 * predicted
            continue
        beta = 1 - now / left
        x = beta * left**0.5 / (1 - now) * clean + (1 - left) * (1 - beta) ** 0.5 / (1 - now) * x
        if position:
            smallest = np.log(beta * (1 - left) / (1 - now))
            share = (share + 1) / 2
            log_variance = share * np.log(beta) + (1 - share) * smallest
            x = x + torch.exp(log_variance / 2) * noise("sample step noise", number)
    images = vae.decode(x.flatten(0, 1) / SCALING_FACTOR).sample  # (N F, 3, H, W)
    pixels = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels.reshape(3, -1, *pixels.shape[1:])


@pytest.mark.peers
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_converted_weights_give_the_videos_of_the_published_code(world: SimpleNamespace, method: str) -> None:
    output = world.folder / f"{method}.json"
    done = latte(
        "sample", "-c", world.config, f"checkpoint={world.checkpoint}", f"method={method}", "--manifest", str(output)
    )
    assert done.exit_code == 0, done.output
    made = manifest.read(output, "video_set")
    assert (made.config["image_size"], made.config["step"], made.config["vae_known_by"]) == (64, None, "name")
    items = storage.read_json(storage.join(made.uri, "items.json"))
    ours = np.stack([clip_files.read_lossless(item["video"]) for item in items])  # (N, F, H, W, 3)

    def ask() -> np.ndarray:
        import torch

        with torch.inference_mode():
            return by_torch(method)

    theirs = peers.one(f"sampled-{method}", ask)
    assert ours.shape == (3, 4, 64, 64, 3)
    assert ours.std() > 10
    apart = np.abs(theirs.same_places(ours).astype(int) - theirs.values)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


def config(world: SimpleNamespace, **changes: Any) -> sample.SampleConfig:
    return sample.SampleConfig(**{**world.settings, "checkpoint": world.checkpoint, **changes})


def test_the_moving_average_was_taken_and_half_precision_is_near_it(world: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path.as_uri()

    def frames(**changes: Any) -> np.ndarray:
        made = sample.run(config(world, root=root, num_videos=1, **changes))
        return clip_files.read_lossless(storage.join(made.uri, "clip-00000.mkv")).astype(int)

    whole, half = frames(), frames(precision="fp16")
    assert np.abs(whole - half).max() > 0
    assert np.abs(whole - half).mean() < 2
    with pytest.raises(UserError, match="precision=bf16"):
        frames(precision="bf16")


def test_the_pipeline_hands_the_manifest_of_converted_weights_on(world: SimpleNamespace, tmp_path: Path) -> None:
    named = promoted.fetch(promoted.PromotedConfig(root=tmp_path.as_uri(), name="demo", checkpoint=world.checkpoint))
    artifact = tmp_path / "checkpoint"  # KFP's copies have no ending
    manifest.write(named, artifact)
    planned = sample.plan(config(world, root=tmp_path.as_uri(), checkpoint=str(artifact)))
    assert planned.uri.partition("/plan/")[0].endswith(sample._resolve(config(world)).place.fingerprint[:16])
    with pytest.raises(UserError, match=r"weights of vae, expected latte"):
        promoted.fetch(promoted.PromotedConfig(root=tmp_path.as_uri(), name="demo", checkpoint=world.settings["vae"]))


def test_what_does_not_belong_together_is_refused_before_work(world: SimpleNamespace, tmp_path: Path) -> None:
    def converted(name: str, *words: str) -> str:
        target = str(tmp_path / f"{name}.safetensors")
        source = str(world.sources["latte"])
        done = latte("convert", "--kind", "latte", "--source", source, "--target", target, "model.num_heads=4", *words)
        assert done.exit_code == 0, done.output
        return target + ".manifest.json"

    old = manifest.read(world.checkpoint)
    manifest.write(old.model_copy(update={"config": {"kind": "latte"}}), tmp_path / "old.json")
    cases = [
        ({"step": 7}, "step 7: .* have no steps"),
        ({"weights": "model"}, r"holds the moving average alone \(part ema\)"),
        ({"checkpoint": world.settings["vae"]}, "weights of vae, expected latte"),
        ({"checkpoint": str(tmp_path / "old.json")}, "convert again"),
        ({"checkpoint": converted("scale", "trained_on.scaling_factor=0.5")}, r"scaling_factor 0\.18215, .* 0\.5"),
        ({"checkpoint": converted("size", "trained_on.image_size=16")}, r"pixels of a frame 64, .* 16 \(sd-vae-ft-ema"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            sample.plan(config(world, root=tmp_path.as_uri(), **changes))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "videos").exists()
    names = "trained_on.classes=[a, b]"
    refused = latte(
        "convert", "--kind", "latte", "--source", str(world.sources["latte"]), "--target", str(tmp_path / "x.ckpt"),
        "model.num_heads=4", names,
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "trained_on.classes has 2 names" in refused.output
    assert not (tmp_path / "x.ckpt").exists()
