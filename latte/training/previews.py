"""Samples of a model in training, always from the same noise, so that one sees it learn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from safetensors import safe_open
from safetensors.numpy import save

from latte import finite, networks, owners, rng, storage
from latte.diffusion import Diffusion
from latte.errors import LatteError
from latte.models.autoencoder_kl import decode_in_chunks
from latte.models.latte import Latte, LatteConfig
from latte.storage import manifest
from latte.video import clip_files

_FPS = 8
_DECODE_FRAMES = 8


class Previews:
    """Draws samples with the moving average of the weights and publishes them under `<run>/previews/`.

    `step-00001000.safetensors` holds the latents, (N, F, C, h, w) float32, scaled as in training, and the titles;
    `step-00001000-0.mp4` and so on are the decoded clips, where an autoencoder is given.

    Args:
        run_uri: the run's place.
        model: config of the network in training.
        vae: manifest of the autoencoder's weights, or None for latents alone.
        scaling_factor: of the latents.
        noise_schedule: of the diffusion.
        steps: denoising steps (DDIM).
        seed: what the noise follows from.
        titles: what each of the N samples is to show, in words.
        conditions: the same for the network: y (N,) or text (N, 77, 768), or nothing.
    """

    def __init__(
        self,
        run_uri: str,
        model: LatteConfig,
        vae: manifest.Manifest | None,
        scaling_factor: float,
        noise_schedule: str,
        steps: int,
        seed: int,
        titles: Sequence[str],
        conditions: Mapping[str, np.ndarray],
    ) -> None:
        self._uri = storage.join(run_uri, "previews")
        self._scaling_factor = scaling_factor
        self._diffusion = Diffusion(steps, noise_schedule)
        self._net = Latte(model)
        self._net.set_train(False)
        shape = (model.num_frames, model.in_channels, model.input_size, model.input_size)
        draws = [rng.stream(seed, "preview", clip).standard_normal(shape, np.float32) for clip in range(len(titles))]
        self._noise = np.stack(draws)  # (N, F, C, h, w)
        self._titles = list(titles)
        self._conditions: dict[str, Any] = dict(conditions)
        self._vae = None if vae is None else networks.converted("vae", vae)

    def publish(self, step: int, weights: Mapping[str, np.ndarray], put: storage.Put = storage.write_bytes) -> None:
        """Draw and write the samples of these weights, by parameter, by `put`; equal weights make equal bytes.

        Raises:
            LatteError: a sample is not finite.
        """
        own = {param.name: param for param in self._net.get_parameters()}
        for name, values in weights.items():
            # A compiled graph does not see set_data.
            ops.assign(own[name], ms.Tensor(values))
        try:
            self._publish(step, put)
        except ArithmeticError as error:
            raise LatteError(f"preview of step {step}: {error}; preview_every=0 trains on without any") from None

    def _publish(self, step: int, put: storage.Put) -> None:
        latents = self._diffusion.sample(self._net, self._noise, method="ddim", **self._conditions)
        write(self._uri, step, latents, self._titles, put)
        if self._vae is None:
            return
        with owners.Folder("previews") as folder:
            for number, clip in enumerate(latents):
                images = decode_in_chunks(self._vae, clip / np.float32(self._scaling_factor), _DECODE_FRAMES)
                path = Path(folder) / f"step-{step:08d}-{number}.mp4"
                clip_files.write_preview(path, finite.pixels(images), _FPS)
                put(storage.join(self._uri, path.name), path.read_bytes())


def write(
    previews_uri: str, step: int, latents: np.ndarray, titles: Sequence[str], put: storage.Put = storage.write_bytes
) -> None:
    """Publish the latents of a preview, (N, F, C, h, w), scaled as in training, with the titles of its N clips."""
    data = save({"latents": np.ascontiguousarray(latents, np.float32)}, metadata={"titles": json.dumps(list(titles))})
    put(storage.join(previews_uri, f"step-{step:08d}.safetensors"), data)


def listed(previews_uri: str) -> dict[int, str]:
    """The latents of every preview of a run, by step."""
    found = {}
    for uri in storage.list_uris(previews_uri):
        if uri.endswith(".safetensors"):
            found[int(uri.removesuffix(".safetensors").rpartition("/step-")[2])] = uri
    return found


def read(uri: str) -> tuple[np.ndarray, list[str]]:
    """The latents of a preview, (N, F, C, h, w), scaled as in training, and the titles of its N clips."""
    with storage.as_local_file(uri) as path, safe_open(path, "numpy") as file:
        return file.get_tensor("latents"), json.loads(file.metadata()["titles"])
