"""From numbers to videos: denoise latents with a Latte, decode them with the autoencoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte import facts, finite, networks, rng, texts
from latte.errors import UserError
from latte.sampling.conditions import Conditions
from latte.storage import manifest


@dataclass(frozen=True)
class Recipe:
    """All that a video follows from, beside its number.

    Attributes:
        root: where embedded captions are kept.
        kind: of the Latte, one of `latte.kinds`.
        weights: of the Latte.
        model: its settings.
        num_frames: of a video; 1 for images.
        vae: weights of the autoencoder.
        vae_model: its settings.
        scaling_factor: of the latents.
        diffusion: that the Latte was trained with.
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

    root: str
    kind: str
    weights: manifest.Shard
    model: dict[str, Any]
    num_frames: int
    vae: manifest.Shard
    vae_model: dict[str, Any]
    scaling_factor: float
    diffusion: facts.DiffusionFacts
    method: str
    num_sampling_steps: int | str
    cfg_scale: float
    cfg_channels: str
    precision: str
    seed: int
    conditions: Conditions
    text: networks.TextSource | None
    decode_frames: int


Sampler = Callable[[list[int], Callable[[int], None]], list[np.ndarray]]


def sampler(recipe: Recipe, numbers: Sequence[int]) -> Sampler:
    """A function from the numbers of videos, some of `numbers`, to these videos, each (F, H, W, 3) uint8.

    Loads the networks.

    The function raises UserError, with the number of the video, where latents or pixels are not finite.

    Raises:
        UserError: the weights do not fit the settings, the sampling steps do not fit the schedule, or the device does
            not have the precision.
    """
    from latte import device
    from latte.diffusion import Diffusion, NotFiniteError
    from latte.models.autoencoder_kl import decode_in_chunks

    device.setup(seed=recipe.seed)
    describe = _describer(recipe, numbers)
    net = networks.network(recipe.kind, recipe.model, recipe.weights, recipe.precision)
    vae = networks.network("vae", recipe.vae_model, recipe.vae)
    model = net.config
    try:
        diffusion = Diffusion(recipe.num_sampling_steps, recipe.diffusion.noise_schedule, recipe.diffusion.scheduler)
    except ValueError as error:
        raise UserError(str(error)) from None
    shape = (recipe.num_frames, model.in_channels, model.input_size, model.input_size)

    def noise(indices: list[int], purpose: str, *more: int) -> np.ndarray:
        streams = [rng.stream(recipe.seed, purpose, index, *more) for index in indices]
        return np.stack([stream.standard_normal(shape, np.float32) for stream in streams])  # (N, F, C, h, w)

    def sample(indices: list[int], on_step: Callable[[int], None]) -> list[np.ndarray]:
        condition = describe(indices)
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
        clips = images.reshape(len(indices), recipe.num_frames, *images.shape[1:])  # (N, F, 3, H, W)
        for index, clip in zip(indices, clips, strict=True):
            try:
                videos.append(finite.pixels(clip))  # (F, H, W, 3)
            except ArithmeticError as error:
                raise UserError(f"video {index}: {error}; are checkpoint and vae right?") from None
        return videos

    return sample


def _describer(recipe: Recipe, numbers: Sequence[int]) -> Callable[[list[int]], dict[str, Any]]:
    """A function from the numbers of videos to what the network's condition takes of them."""
    conditions, text = recipe.conditions, recipe.text

    def captions(indices: Sequence[int]) -> list[str]:
        return [conditions.caption(index) or "" for index in indices]

    def classes(indices: list[int]) -> dict[str, Any]:
        labels = [conditions.label(index) for index in indices]
        return {} if None in labels else {"y": np.array(labels, np.int32)}  # (N,)

    if text is None:
        return classes
    if text.kind == "t5":
        # Before the Latte is loaded, and for all videos: the encoder's blocks come and go once.
        states = texts.embed(recipe.root, text, captions(numbers), recipe.precision)

        def masked(indices: list[int]) -> dict[str, Any]:
            rows, mask = states.batch(captions(indices))  # (N, S, C), (N, S)
            return {"text": rows, "text_mask": mask, "null_text": states.null}

        return masked
    embed = networks.embedder(text)

    def whole(indices: list[int]) -> dict[str, Any]:
        return {"text": embed(captions(indices)), "null_text": embed([""] * len(indices))[0]}  # (N, 77, 768), (77, 768)

    return whole
