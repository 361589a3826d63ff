"""A shallow random CLIP text encoder of the published width with a tokenizer of single letters."""

import json
from pathlib import Path

import tokenizers

from latte import device, storage
from latte.checkpoints import store
from latte.models.configs import ClipTextConfig
from latte.storage import manifest

LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
MODEL = {"vocab_size": len(TOKENS), "num_hidden_layers": 1, "intermediate_size": 32}


def publish(root: Path, name: str = "clip", seed: int = 1, **model: int) -> tuple[str, str]:
    """Publish weights and tokenizer; returns the URI of the weights' manifest and the path of the tokenizer."""
    from latte.models.clip_text import ClipTextModel

    device.setup(seed=seed)
    config = {**MODEL, **model}
    net = ClipTextModel(ClipTextConfig(**config))
    uri = storage.join(root.as_uri(), name)
    ref = store.save({p.name: p.asnumpy() for p in net.get_parameters()}, storage.join(uri, "model.safetensors"))
    shard = manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256)
    facts = {"kind": "clip", "model": config}
    manifest.finish(
        manifest.Manifest(kind="weights", name=name, uri=uri, fingerprint=ref.sha256, shards=[shard], config=facts)
    )
    (root / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    return storage.join(uri, "manifest.json"), str(root / "vocab.json")
