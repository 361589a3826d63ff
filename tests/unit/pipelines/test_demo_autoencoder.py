import re
from pathlib import Path

import numpy as np
import pytest

from latte import checkpoints, device
from latte.models.autoencoder_kl import AutoencoderKL
from latte.models.configs import AutoencoderKLConfig
from pipelines.demo import data, train_autoencoder

FOLDER = Path(__file__).parents[3] / "configs" / "demo" / "autoencoder"
WEIGHTS = FOLDER / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def net():
    device.setup(seed=0)
    net = AutoencoderKL(AutoencoderKLConfig.from_json(FOLDER / "config.json"))
    checkpoints.load(net, str(WEIGHTS))
    return net


@pytest.fixture(scope="module")
def frames():
    return train_autoencoder.load_frames(0)


def test_weights_are_small_and_of_the_published_shape(net):
    assert WEIGHTS.stat().st_size <= 4 * 2**20
    assert net.config.downsampling == 8
    assert net.config.latent_channels == 4


def test_held_out_frames_have_the_psnr_that_the_card_states(net, frames):
    figures = train_autoencoder.evaluate(net, frames)
    stated = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE))
    measured = {**figures["psnr_by_class"], "mean of classes": figures["psnr"]}
    assert {label: float(value) for label, value in stated.items()} == pytest.approx(measured, abs=0.05)
    assert min(measured.values()) > 20  # dB
    assert figures["latent_std"] * net.config.scaling_factor == pytest.approx(1, abs=0.01)


def test_batches_follow_from_the_seed_and_leave_held_out_frames_alone(net, frames):
    stages = (train_autoencoder.Stage(2, 1, varied=True), train_autoencoder.Stage(3, 1, varied=False))
    drawn = [list(train_autoencoder._batches(frames, stages, net.config, seed)) for seed in (0, 0, 1)]
    for (images, noise), (again, noise_again) in zip(drawn[0], drawn[1], strict=True):
        assert np.array_equal(images, again) and np.array_equal(noise, noise_again)
    assert not np.array_equal(drawn[0][0][0], drawn[2][0][0])
    assert [images.shape for images, _ in drawn[0]] == [(2, 3, 64, 64), (3, 3, 64, 64)]
    assert [noise.shape for _, noise in drawn[0]] == [(2, 4, 8, 8), (3, 4, 8, 8)]
    assert max(np.abs(images).max() for images, _ in drawn[0]) <= 1
    trained_on = {frame.tobytes() for part in (frames.train, frames.random) for frame in part}
    for kept in frames.held_out.values():
        assert not trained_on & {frame.tobytes() for frame in kept}


def test_frames_survive_the_way_to_the_network_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, data.IMAGE_SIZE, data.IMAGE_SIZE, 3), np.uint8)
    assert np.array_equal(train_autoencoder.to_frames(train_autoencoder.to_network(frames)), frames)
