"""Small networks as diffusers and transformers publish them: weights and config.json; and comparing tensors by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests import peers


def published_vae():
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=16,
    )


def published_clip():
    import transformers

    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**text, "vocab_size": 30, "eos_token_id": 29}, vision_config=vision)
    )


T2V = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1,
    "sample_size": 4, "patch_size": 2, "caption_channels": 24, "video_length": 2,
}  # fmt: skip
T5 = {"vocab_size": 500, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}


def published_t2v():
    import diffusers

    fixed = {"norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_bias": True}
    fixed |= {
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "num_embeds_ada_norm": 1000,
        "cross_attention_dim": 16,
    }
    return diffusers.LatteTransformer3DModel(**T2V, **fixed)


def published_t5():
    import transformers

    return transformers.T5EncoderModel(transformers.T5Config(**T5, feed_forward_proj="gated-gelu", dropout_rate=0.0))


def save_sharded(weights: dict[str, np.ndarray], folder: Path, name: str = "model", parts: int = 2) -> Path:
    """Weights in several files with an index, as large ones are published; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    places = {key: f"{name}-{i % parts + 1:05d}-of-{parts:05d}.safetensors" for i, key in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({key: weights[key] for key in names if places[key] == file}, folder / file)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@dataclass(frozen=True)
class Published:
    """Weights by the published names, and the config.json that is published with them."""

    weights: dict[str, np.ndarray]
    config: Path

    def save_pretrained(self, folder: Path, file: str = "diffusion_pytorch_model.safetensors") -> None:
        """Leave both as a published folder holds them."""
        save_file(self.weights, folder / file, metadata={"format": "pt"})
        (folder / "config.json").write_text(self.config.read_text())


def published(name: str, build: Callable[[], Any], folder: Path) -> Published:
    def write(path: Path) -> None:
        build().save_pretrained(folder / name)
        path.write_text((folder / name / "config.json").read_text())

    shapes = peers.shapes(f"{name}-shapes", lambda: build().state_dict())
    weights = peers.weights({key: shape for key, shape in shapes.items() if shape}, seed=0)
    return Published(weights, peers.file(f"{name}-config.json", folder, write))


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return set(ours) == set(theirs) and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]) for name in theirs
    )


def same_in_order(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return list(ours) == list(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )
