"""A small random autoencoder in the published layout, as the convert step leaves it."""

from latte import device, storage
from latte.checkpoints import store
from latte.storage import manifest

MODEL = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}


def publish(root: str, seed: int = 1) -> str:
    """Publish weights; returns the URI of their manifest."""
    from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

    device.setup(seed=seed)
    net = AutoencoderKL(AutoencoderKLConfig(**MODEL))
    uri = storage.join(root, "weights", "small-vae", str(seed))
    ref = store.save({p.name: p.asnumpy() for p in net.get_parameters()}, storage.join(uri, "model.safetensors"))
    shard = manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256)
    facts = {"kind": "vae", "model": MODEL, "random": False}
    manifest.finish(
        manifest.Manifest(
            kind="weights", name="small-vae", uri=uri, fingerprint=ref.sha256, shards=[shard], config=facts
        )
    )
    return storage.join(uri, "manifest.json")
