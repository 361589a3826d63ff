"""Facts about weights, about a Latte and about a training run."""

from typing import Any

import pydantic

from latte.config import build
from latte.facts.base import Facts, Metrics
from latte.kinds import KINDS
from latte.kinds.scheduler import PublishedScheduler


class WeightsFacts(Facts):
    """Origin of converted weights.

    Attributes:
        kind: of the model (`latte.kinds`); "" where the manifest does not tell.
        model: settings of the network.
        left_out: (name, why) of tensors of the source that were not taken.
        random: whether they are of a seed; None where nobody knows.
        seed: of random weights.
        source: file that they were converted from.
        source_bytes: its size.
        layout: its format, in words.
        part: part of a training checkpoint that was taken, keys joined by /.
        page: page that the source comes from.
    """

    kind: str = ""
    model: dict[str, Any] = {}
    left_out: list[list[str]] = []
    random: bool | None = None
    seed: int | None = None
    source: str = ""
    source_bytes: int = 0
    layout: str = ""
    part: str | None = None
    page: str | None = None


class DiffusionFacts(Facts):
    """The diffusion that a Latte was trained with.

    Attributes:
        noise_schedule: its name.
        scheduler: settings of the scheduler that was published with the weights; None where there was none.
    """

    noise_schedule: str
    scheduler: PublishedScheduler | None = None


class LatteFacts(Facts):
    """Facts about a Latte that whoever samples needs; of a training run's checkpoints and of converted weights.

    Attributes:
        kind: of the network, one of `latte.kinds` that generates.
        model: its settings.
        diffusion: that it was trained with.
        classes: names of the classes in the order of their numbers; empty where they have none.
        image_size: side of a frame in pixels.
        latent_size: side of a frame's latents.
        scaling_factor: that latents were multiplied by.
        vae: SHA-256 of the weights of the autoencoder whose latents they were; None where only its name is known.
        vae_name: its name, where there is no SHA-256.
        text: digest of the text encoder and tokenizer; None without text.
    """

    kind: str = "latte"
    model: dict[str, Any]
    diffusion: DiffusionFacts
    classes: list[str] = []
    image_size: int
    latent_size: int | None = None
    scaling_factor: float
    vae: str | None = None
    vae_name: str = ""
    text: str | None = None

    @property
    def latte(self) -> Any:
        """Config of the network: a `LatteConfig`, or another one that answers the same questions."""
        return build(KINDS[self.kind].config, self.model, "a Latte's manifest")


class TrainSettings(Facts):
    """Settings of a training run that others read; the manifest has all of them."""

    model_config = pydantic.ConfigDict(extra="allow")

    latents: str = ""
    init_from: str | None = None
    frame_stride: int = 1


class RunFacts(LatteFacts):
    """Facts about a training run.

    Attributes:
        train: settings of the step, with the places of what it was made from.
        reinitialised: tensors that were not taken from `init_from`.
        log_sha256: of the loss log; None where the run did not tell.
        notes: for whoever runs it.
    """

    train: TrainSettings = TrainSettings()
    reinitialised: list[str] = []
    log_sha256: str | None = None
    notes: list[str] = []


class RunMetrics(Metrics):
    """State of a training run: its step, its last loss, and the places of its loss log and previews."""

    step: int
    loss: float | None = None
    metrics_uri: str = ""
    previews_uri: str | None = None
