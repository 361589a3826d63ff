"""Facts about encoded datasets and sets of generated videos."""

from typing import Any

from latte.facts.base import Facts


class LatentsFacts(Facts):
    """Facts about an encoded dataset.

    Attributes:
        classes: names of the classes in the order of their numbers.
        image_size: side of the encoded frames in pixels.
        latent_channels: channels of the latents.
        latent_size: side of a frame's latents.
        scaling_factor: what the autoencoder's latents are multiplied by; the stored ones are not.
        dtype: how they are stored.
        frame_stride: distance between encoded frames in the video; None where it was not told: 1.
        min_frames: fewest encoded frames of a video.
        max_frames: most encoded frames of a video.
        mirrored: whether there is a mirrored copy of each video.
        videos: URI of the real videos.
        split: of the dataset.
        curate: settings of its curation, rule by rule; None where all of it was taken.
    """

    classes: list[str] = []
    image_size: int
    latent_channels: int | None = None
    latent_size: int | None = None
    scaling_factor: float
    dtype: str = "float16"
    frame_stride: int | None = None
    min_frames: int = 1
    max_frames: int | None = None
    mirrored: bool = False
    videos: str | None = None
    split: str | None = None
    curate: dict[str, Any] | None = None


class VideoSetFacts(Facts):
    """Facts about a set of generated videos.

    Attributes:
        checkpoint: manifest of the weights that generated it.
        step: their training step; None for published weights.
        vae_known_by: see `latte.sampling.sources.WeightsSource`.
        classes: names of the model's classes.
        num_frames: frames of each video.
        image_size: side of a frame in pixels.
        weights: "ema" or "model".
        method: of sampling.
        num_sampling_steps: a count, or sections of steps.
        cfg_scale: guidance, 1 for none.
        cfg_channels: what is guided.
        precision: of matrix products.
        labels: that were asked for; None for all.
        fps: frames per second of the files.
        seed: of all noise.
        notes: what was adapted to the model.
    """

    checkpoint: str = ""
    step: int | None = None
    vae_known_by: str = "sha256"
    classes: list[str] = []
    num_frames: int = 0
    image_size: int | None = None
    weights: str = "ema"
    method: str = ""
    num_sampling_steps: int | str = ""
    cfg_scale: float | None = None
    cfg_channels: str = "noise"
    precision: str = "fp32"
    labels: list[int | str] | str | None = None
    fps: float = 8.0
    seed: int = 0
    notes: list[str] = []
