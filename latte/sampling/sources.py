"""The Latte and the autoencoder that make a set's videos: a training run's checkpoint, or converted published weights.

Both say the same facts in their manifest's config, so that whoever samples reads one kind: model, diffusion, classes,
image_size, scaling_factor and vae, the SHA-256 of the autoencoder whose latents the model was trained on. Published
weights know that one by its name only (`vae` is None, `vae_name` says which): there the settings must fit instead.
"""

from dataclasses import dataclass
from typing import Any

from latte.config import build
from latte.errors import UserError
from latte.facts import LatteFacts, RunMetrics, WeightsFacts
from latte.kinds import KINDS
from latte.models.configs import AutoencoderKLConfig
from latte.storage import manifest


@dataclass(frozen=True)
class WeightsSource:
    """Networks that generate a set's videos.

    Attributes:
        checkpoint: manifest that the weights are of.
        step: training step of the weights; None where they were published without one.
        weights: of the Latte.
        vae: weights of the autoencoder.
        vae_model: its settings.
        vae_known_by: "sha256", or "name" where the Latte's manifest has no digest of its autoencoder.
        facts: of the Latte's manifest.
    """

    checkpoint: manifest.Manifest
    step: int | None
    weights: manifest.Shard
    vae: manifest.Shard
    vae_model: dict[str, Any]
    vae_known_by: str
    facts: LatteFacts


def resolve(checkpoint_uri: str, vae_uri: str, step: int | None, role: str) -> WeightsSource:
    """Find the weights and check that they and the autoencoder belong together.

    Args:
        checkpoint_uri: manifest of a training run's checkpoints, or of converted Latte weights.
        vae_uri: manifest of the autoencoder's weights.
        step: training step; None for the newest.
        role: "ema" or "model".

    Raises:
        UserError: a manifest of something else, such weights are not there, or another autoencoder.
    """
    checkpoint = read_checkpoint(checkpoint_uri)
    vae_manifest = manifest.read_weights(vae_uri, "vae", "vae")
    if checkpoint.kind == "weights":
        found, weights = None, _converted(checkpoint, checkpoint_uri, step, role)
    else:
        found, weights = _trained(checkpoint, checkpoint_uri, step, role)
    vae = vae_manifest.weights_file()
    facts, vae_model = LatteFacts.of(checkpoint), WeightsFacts.of(vae_manifest).model
    if facts.vae is None:
        _check_settings(facts, build(AutoencoderKLConfig, vae_model, vae_uri), vae_uri)
    elif facts.vae != vae.sha256:
        raise UserError(f"vae {vae_uri}: the model was trained on latents of another autoencoder ({facts.vae[:12]}…)")
    return WeightsSource(
        checkpoint=checkpoint,
        step=found,
        weights=weights,
        vae=vae,
        vae_model=vae_model,
        vae_known_by="name" if facts.vae is None else "sha256",
        facts=facts,
    )


def read_checkpoint(uri: str) -> manifest.Manifest:
    """The manifest of a training run's checkpoints, or of converted Latte weights.

    Raises:
        UserError: a manifest of something else.
    """
    found = manifest.read(uri, key="checkpoint")
    if found.kind == "weights":
        kind = WeightsFacts.of(found).kind
        if kind not in KINDS or not KINDS[kind].generates:
            able = " or ".join(name for name, each in KINDS.items() if each.generates)
            raise UserError(f"checkpoint {uri}: weights of {kind}, expected {able}")
        if "diffusion" not in found.config:
            raise UserError(
                f"checkpoint {uri}: converted by an older version, without what sampling needs; convert again"
            )
    elif found.kind != "checkpoint":
        raise UserError(f"checkpoint {uri}: a manifest of {found.kind}, expected checkpoint or weights")
    return found


def _trained(checkpoint: manifest.Manifest, uri: str, wanted: int | None, role: str) -> tuple[int, manifest.Shard]:
    step = RunMetrics.of(checkpoint).step if wanted is None else wanted
    ending = f"step-{step:08d}/{role}.safetensors"
    found = [shard for shard in checkpoint.shards if shard.uri.endswith("/" + ending)]
    if not found:
        kept = sorted({int(shard.uri.split("/step-")[-1][:8]) for shard in checkpoint.shards if "/step-" in shard.uri})
        raise UserError(f"step {step}: not kept in {uri}; there are {', '.join(map(str, kept)) or 'none'}")
    return step, found[0]


def _converted(weights: manifest.Manifest, uri: str, wanted: int | None, role: str) -> manifest.Shard:
    if wanted is not None:
        raise UserError(f"step {wanted}: {uri} holds converted weights, which have no steps; leave it out")
    part = WeightsFacts.of(weights).part or ""
    if role == "model" and "ema" in part:
        raise UserError(f"weights model: {uri} holds the moving average alone (part {part}); leave weights out")
    return weights.weights_file()


def _check_settings(facts: LatteFacts, vae: AutoencoderKLConfig, uri: str) -> None:
    """For lack of a digest: latents of the same shape and scale."""
    model = facts.latte
    pairs = {
        "scaling_factor": (vae.scaling_factor, facts.scaling_factor),
        "latent_channels": (vae.latent_channels, model.in_channels),
        "pixels of a frame": (vae.downsampling * model.input_size, facts.image_size),
    }
    for what, (ours, wanted) in pairs.items():
        if ours != wanted:
            raise UserError(f"vae {uri}: {what} {ours}, but the model was trained with {wanted} ({facts.vae_name})")
