"""What a training run starts from: the network that its settings and its latents ask for, and given weights."""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import checkpoints, manifest
from latte.errors import UserError
from latte.latents import LatentClips
from latte.models.configs import LatteConfig

# Tensors whose shape follows from the classes, the frames or the latents' size, not from the architecture.
_MAY_DIFFER = ("y_embedder.", "text_embedding_projection.", "temp_embed", "pos_embed")


def resolve_model(given: dict[str, Any], latents: manifest.Manifest) -> LatteConfig:
    """The network's config: what the user set, sizes and classes from the latents where nothing is set.

    Raises:
        UserError: a key is unknown or bad, or contradicts the latents.
    """
    classes = latents.config["classes"]
    from_latents = {
        "input_size": latents.config["latent_size"],
        "in_channels": latents.config["latent_channels"],
        "condition": "class" if classes else "none",
        "num_classes": len(classes),
    }
    model = LatteConfig.of_settings(given, from_latents, "model.")
    for key in ("input_size", "in_channels"):
        if getattr(model, key) != from_latents[key]:
            raise UserError(
                f"model.{key}={getattr(model, key)}, but the latents of {latents.name} have {key}={from_latents[key]}"
            )
    if model.condition == "class" and model.num_classes < len(classes):
        raise UserError(f"model.num_classes={model.num_classes}, but the latents have {len(classes)} classes")
    if model.condition == "text" and "text" not in latents.inputs:
        raise UserError(
            f"model.condition=text: the latents of {latents.name} carry no text embeddings; "
            "encode again with text_encoder and tokenizer"
        )
    return model


def load(net: nn.Cell, start: str) -> list[str]:
    """Load weights of the same architecture; return the names of what was left at its fresh value.

    Raises:
        UserError: a tensor is of another architecture. Only what follows from the number of classes, the number of
            frames and the latents' size may differ or be missing.
    """
    given = checkpoints.read(start)
    own = {param.name: param for param in net.get_parameters()}
    unknown = sorted(set(given) - set(own))
    if unknown:
        raise UserError(f"init_from {start}: tensor {unknown[0]} ({len(unknown)} in all) is not in this model")
    fresh = []
    for name, param in own.items():
        if name in given and given[name].shape == tuple(param.shape):
            param.set_data(ms.Tensor(np.array(given[name], np.float32)))
        elif name.startswith(_MAY_DIFFER):
            fresh.append(name)
        else:
            found = f"has shape {given[name].shape}" if name in given else "is missing"
            raise UserError(f"init_from {start}: tensor {name} {found}, this model has {tuple(param.shape)}")
    return fresh


def preview_conditions(
    model: LatteConfig, classes: Sequence[str], clips: LatentClips, count: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """What `count` previews are to show, in words and for the network: classes or the dataset's captions, in turn."""
    if model.condition == "class":
        labels = np.arange(count, dtype=np.int32) % model.num_classes  # (N,)
        return [classes[label] if label < len(classes) else f"class {label}" for label in labels], {"y": labels}
    if model.condition == "text":
        first = {video.caption: i for i, video in reversed(list(enumerate(clips.videos))) if video.caption}
        texts = sorted(first, key=lambda text: first[text])
        titles = [texts[i % len(texts)] for i in range(count)]
        return titles, {"text": np.stack([clips.text(first[title]) for title in titles])}  # (N, 77, 768)
    return [""] * count, {}
