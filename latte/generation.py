"""From numbers to videos: denoise latents with a Latte, decode them with the autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte import finite, manifest, rng, storage
from latte.conditions import Conditions
from latte.config import build
from latte.errors import UserError
from latte.models.configs import ClipTextConfig

EMBEDDING_SHAPE = (77, 768)  # tokens and channels of a text, as Latte takes them
_networks: dict[tuple[str, str, str, str], Any] = {}


@dataclass(frozen=True)
class TextSource:
    """What turns captions into embeddings.

    Attributes:
        weights: of the CLIP text encoder.
        model: its settings.
        tokenizer: URI of `tokenizer.json`, or local one of `vocab.json` with `merges.txt` beside it.
        digest: SHA-256 over the contents of all of them.
    """

    weights: manifest.Shard
    model: dict[str, Any]
    tokenizer: str
    digest: str

    @classmethod
    def checked(cls, text_encoder: str, tokenizer: str) -> "TextSource":
        """From the URI of the weights' manifest and the path or URI of the tokenizer's file, checked for a Latte.

        Raises:
            UserError: the weights are of something else or of another width, or the tokenizer's file is not there.
        """
        encoder = manifest.read(text_encoder, "weights", "text_encoder")
        if encoder.config.get("kind") != "clip":
            raise UserError(f"text_encoder {text_encoder}: weights of {encoder.config.get('kind')}, expected clip")
        settings = build(ClipTextConfig, encoder.config["model"], text_encoder)
        shape = (settings.max_position_embeddings, settings.hidden_size)
        if shape != EMBEDDING_SHAPE:
            raise UserError(f"text_encoder {text_encoder}: embeddings {shape}, the model takes {EMBEDDING_SHAPE}")
        weights, uri = encoder.weights_file(), storage.from_path(tokenizer)
        files = [uri]
        if uri.endswith("vocab.json"):
            if storage.is_s3(uri):
                raise UserError(f"tokenizer {uri}: vocab.json is taken from a local disk only; give tokenizer.json")
            files.append(uri.removesuffix("vocab.json") + "merges.txt")
        digests = []
        for file in files:
            if not storage.exists(file) or (not storage.is_s3(file) and not storage.local_path(file).is_file()):
                raise UserError(f"tokenizer {file}: no such file")
            digests.append(storage.sha256_bytes(storage.read_bytes(file)))
        return cls(weights, encoder.config["model"], uri, manifest.fingerprint(weights.sha256, digests))


@dataclass(frozen=True)
class Recipe:
    """All that a video follows from, beside its number.

    Attributes:
        weights: of the Latte.
        model: its settings.
        vae: weights of the autoencoder.
        vae_model: its settings.
        scaling_factor: of the latents.
        noise_schedule: of the diffusion.
        method: sampler.
        num_sampling_steps: a count, "ddimN" or sections.
        cfg_scale: guidance, 1 is none.
        cfg_channels: what is guided, "noise" or "all".
        precision: of the Latte's matrix products.
        seed: what all noise follows from.
        conditions: what the videos show.
        text: for captions.
        decode_frames: frames decoded together.
    """

    weights: manifest.Shard
    model: dict[str, Any]
    vae: manifest.Shard
    vae_model: dict[str, Any]
    scaling_factor: float
    noise_schedule: str
    method: str
    num_sampling_steps: int | str
    cfg_scale: float
    cfg_channels: str
    precision: str
    seed: int
    conditions: Conditions
    text: TextSource | None
    decode_frames: int


def sampler(recipe: Recipe) -> Callable[[list[int], Callable[[int], None]], list[np.ndarray]]:
    """A function from the numbers of videos to these videos, each (F, H, W, 3) uint8; loads the networks.

    The function raises UserError, with the number of the video, where latents or pixels are not finite.

    Raises:
        UserError: the weights do not fit the settings, the sampling steps do not fit the schedule, or the device does
            not have the precision.
    """
    from latte import device
    from latte.diffusion import Diffusion, NotFiniteError
    from latte.models.autoencoder_kl import decode_in_chunks

    device.setup(seed=recipe.seed)
    net = network("latte", recipe.model, recipe.weights, recipe.precision)
    vae = network("vae", recipe.vae_model, recipe.vae)
    model = net.config
    try:
        diffusion = Diffusion(recipe.num_sampling_steps, recipe.noise_schedule)
    except ValueError as error:
        raise UserError(str(error)) from None
    shape = (model.num_frames, model.in_channels, model.input_size, model.input_size)
    embed = None if recipe.text is None else embedder(recipe.text)

    def noise(indices: list[int], purpose: str, *more: int) -> np.ndarray:
        streams = [rng.stream(recipe.seed, purpose, index, *more) for index in indices]
        return np.stack([stream.standard_normal(shape, np.float32) for stream in streams])  # (N, F, C, h, w)

    def sample(indices: list[int], on_step: Callable[[int], None]) -> list[np.ndarray]:
        condition: dict[str, Any] = {}
        if model.condition == "class":
            condition["y"] = np.array([recipe.conditions.label(index) for index in indices], np.int32)  # (N,)
        if embed is not None:
            condition["text"] = embed([recipe.conditions.caption(index) or "" for index in indices])  # (N, 77, 768)
            condition["null_text"] = embed([""] * len(indices))[0]  # (77, 768)
        if condition:
            condition["cfg_scale"] = recipe.cfg_scale
            condition["all_channels"] = recipe.cfg_channels == "all"
        try:
            latents = diffusion.sample(
                net,
                noise(indices, "sample noise"),
                method=recipe.method,
                step_noise=lambda step, _shape: noise(indices, "sample step noise", step),
                on_step=on_step,
                **condition,
            )
        except NotFiniteError as error:
            overflow = (
                ": too much for fp16; use precision=fp32, or bf16 on Ascend" if recipe.precision == "fp16" else ""
            )
            raise UserError(
                f"video {indices[error.samples[0]]}: its latents are not finite from denoising step {error.step + 1} "
                f"on{overflow or ': this checkpoint makes no videos; take an earlier one'}"
            ) from None
        frames = latents.reshape(-1, *shape[1:]) / np.float32(recipe.scaling_factor)  # (N F, C, h, w)
        images = decode_in_chunks(vae, frames.astype(np.float32), recipe.decode_frames)  # (N F, 3, H, W)
        videos = []
        for index, clip in zip(indices, images.reshape(len(indices), model.num_frames, *images.shape[1:]), strict=True):
            try:
                videos.append(finite.pixels(clip))  # (F, H, W, 3)
            except ArithmeticError as error:
                raise UserError(f"video {index}: {error}; are checkpoint and vae right?") from None
        return videos

    return sample


def embedder(text: TextSource) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to their embeddings (N, 77, 768) float32; loads the network.

    Raises:
        UserError: the weights do not fit their settings, or the tokenizer's file is not one.
    """
    from latte.models.clip_text import ClipTokenizer

    net = network("clip", text.model, text.weights)
    with storage.as_local_file(text.tokenizer) as path:
        tokenize = ClipTokenizer(path, net.config.max_position_embeddings)

    def embed(texts: list[str]) -> np.ndarray:
        return np.asarray(net.encode(tokenize(texts)).asnumpy())

    return embed


def network(kind: str, settings: dict[str, Any], weights: manifest.Shard, precision: str = "fp32") -> Any:
    """The network of this kind (latte, vae, clip) and these settings with these weights; kept while the process lives.

    MindSpore keeps compiled graphs by object: a graph would not notice other weights in its network, and the graph of a
    network that is gone can be taken for that of a new one at the same address.
    """
    key = (kind, weights.sha256, manifest.fingerprint(settings), precision)
    if key not in _networks:
        from latte import checkpoints, device
        from latte.models import layers

        compute_type = device.compute_type(precision)
        net = _fresh(kind, settings, weights.uri)
        layers.set_compute_type(net, compute_type)
        with storage.as_local_file(weights.uri, weights.sha256) as path:
            checkpoints.load(net, str(path), weights.uri)
        net.set_train(False)
        _networks[key] = net
    return _networks[key]


def _fresh(kind: str, settings: dict[str, Any], where: str) -> Any:
    if kind == "latte":
        from latte.models.latte import Latte, LatteConfig

        return Latte(build(LatteConfig, settings, where))
    if kind == "vae":
        from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

        return AutoencoderKL(build(AutoencoderKLConfig, settings, where))
    from latte.models.clip_text import ClipTextModel

    return ClipTextModel(build(ClipTextConfig, settings, where))
