"""Samples of a model in training, always from the same noise, so that one sees it learn."""

import tempfile
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from safetensors.numpy import save_file

from latte import checkpoints, manifest, optim, rng, storage, video
from latte.diffusion import Diffusion
from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, decode_in_chunks
from latte.models.latte import Latte, LatteConfig

_FPS = 8
_DECODE_FRAMES = 8


class Previews:
    """Draws samples with the moving average of the weights and publishes them under `<run>/previews/`.

    `step-00001000.safetensors` holds the latents, (N, F, C, h, w) float32, scaled as in training;
    `step-00001000-0.mp4` and so on are the decoded clips, where an autoencoder is given. Labels are 0, 1, … in turn.

    Args:
        run_uri: the run's place.
        model: config of the network in training.
        vae: manifest of the autoencoder's weights, or None for latents alone.
        scaling_factor: of the latents.
        noise_schedule: of the diffusion.
        clips: how many samples.
        steps: denoising steps (DDIM).
        seed: what the noise follows from.
    """

    def __init__(
        self,
        run_uri: str,
        model: LatteConfig,
        vae: manifest.Manifest | None,
        scaling_factor: float,
        noise_schedule: str,
        clips: int,
        steps: int,
        seed: int,
    ) -> None:
        self._uri = storage.join(run_uri, "previews")
        self._scaling_factor = scaling_factor
        self._diffusion = Diffusion(steps, noise_schedule)
        self._net = Latte(model)
        self._net.set_train(False)
        shape = (model.num_frames, model.in_channels, model.input_size, model.input_size)
        draws = [rng.stream(seed, "preview", clip).standard_normal(shape, np.float32) for clip in range(clips)]
        self._noise = np.stack(draws)  # (N, F, C, h, w)
        labels = np.arange(clips, dtype=np.int32) % max(1, model.num_classes)  # (N,)
        self._condition: dict[str, Any] = {"y": labels} if model.condition == "class" else {}
        self._vae = None if vae is None else _load_vae(vae)

    def publish(self, step: int, state: optim.OptimizerState) -> None:
        """Draw and write the samples of the present weights; equal weights make equal bytes."""
        own = {param.name: param for param in self._net.get_parameters()}
        for param, average in zip(state.params, state.ema, strict=True):
            # A compiled graph does not see set_data.
            ops.assign(own[param.name], ms.Tensor(average.asnumpy()))
        latents = self._diffusion.sample(self._net, self._noise, method="ddim", **self._condition)
        name = f"step-{step:08d}"
        with tempfile.TemporaryDirectory(prefix="latte-previews-") as folder:
            path = Path(folder) / f"{name}.safetensors"
            save_file({"latents": np.ascontiguousarray(latents, np.float32)}, path)
            storage.upload(path, storage.join(self._uri, path.name))
            if self._vae is None:
                return
            for number, clip in enumerate(latents):
                images = decode_in_chunks(self._vae, clip / np.float32(self._scaling_factor), _DECODE_FRAMES)
                pixels = np.clip(images * 127.5 + 128.0, 0, 255).astype(np.uint8)  # (F, 3, H, W)
                path = Path(folder) / f"{name}-{number}.mp4"
                video.write_preview(path, pixels.transpose(0, 2, 3, 1), _FPS)
                storage.upload(path, storage.join(self._uri, path.name))


def _load_vae(weights: manifest.Manifest) -> AutoencoderKL:
    shard = weights.weights_file()
    net = AutoencoderKL(AutoencoderKLConfig(**weights.config["model"]))
    with storage.as_local_file(shard.uri, shard.sha256) as path:
        checkpoints.load(net, str(path))
    net.set_train(False)
    return net
