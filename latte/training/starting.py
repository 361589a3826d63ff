"""Start of a training run: the network that its settings and its latents ask for, and given weights."""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import checkpoints, device, finite, storage
from latte.checkpoints import store
from latte.data.latents import LatentClips
from latte.errors import UserError
from latte.facts import LatentsFacts
from latte.models.configs import LatteConfig
from latte.storage import manifest
from latte.training.config import Start, TrainConfig

# Tensors whose shape follows from the classes, the frames or the latents' size, not from the architecture.
_MAY_DIFFER = ("y_embedder.", "text_embedding_projection.", "temp_embed", "pos_embed")
# Of these, what a model of another condition has no use for.
_OF_CONDITIONS = ("y_embedder.", "text_embedding_projection.")
_LABELS = "y_embedder.embedding_table.weight"


def prepare_device(config: TrainConfig) -> None:
    """Bring the device's settings, and the seed, into force before this process computes."""
    device.set_collective_timeouts(config.hccl_connect_timeout_s, config.hccl_exec_timeout_s)
    if config.max_device_memory_gb is not None:
        device.limit_memory(config.max_device_memory_gb)
    device.setup(seed=config.seed)


def resolve_model(given: dict[str, Any], latents: manifest.Manifest) -> LatteConfig:
    """The network's config: what the user set, sizes and classes from the latents where nothing is set.

    Raises:
        UserError: a key is unknown or bad, or contradicts the latents.
    """
    facts = LatentsFacts.of(latents)
    classes = facts.classes
    from_latents = {
        "input_size": facts.latent_size,
        "in_channels": facts.latent_channels,
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


def load(net: nn.Cell, start: Start, model: LatteConfig, classes: Sequence[str]) -> list[str]:
    """Load weights of the same architecture; return the names of what was left at its fresh value.

    Args:
        net: takes the weights.
        start: the weights, whose SHA-256 is verified.
        model: what `net` was built from.
        classes: names of the classes that the training data has, in the order of their numbers.

    Returns:
        Names of tensors, and of classes whose rows of the label table are fresh, as `tensor: class, class`.

    Raises:
        UserError: a tensor has numbers that are not finite, or is of another architecture. Only what follows from the
            condition, the number of classes, the number of frames and the latents' size may differ or be missing.
        StorageError: the weights are missing, or do not have their SHA-256.
    """
    with storage.as_local_file(start.uri, start.sha256) as path:
        given = checkpoints.read(str(path))
    for name, array in given.items():
        if what := finite.blemish(array):
            raise UserError(f"init_from {start.uri}: {store.unusable(name, what)}")
    own = {param.name: param for param in net.get_parameters()}
    unknown = sorted(name for name in set(given) - set(own) if not name.startswith(_OF_CONDITIONS))
    if unknown:
        raise UserError(f"init_from {start.uri}: tensor {unknown[0]} ({len(unknown)} in all) is not in this model")
    fresh = []
    for name, param in own.items():
        if name == _LABELS and name in given and start.classes is not None:
            rows, others = _label_rows(param.asnumpy(), given[name], start, model, classes)
            param.set_data(ms.Tensor(rows))
            fresh += [f"{name}: {', '.join(others)}"] if others else []
        elif name in given and given[name].shape == tuple(param.shape):
            param.set_data(ms.Tensor(np.array(given[name], np.float32)))
        elif name.startswith(_MAY_DIFFER):
            fresh.append(name)
        else:
            found = f"has shape {given[name].shape}" if name in given else "is missing"
            raise UserError(f"init_from {start.uri}: tensor {name} {found}, this model has {tuple(param.shape)}")
    return fresh


def _label_rows(
    own: np.ndarray, given: np.ndarray, start: Start, model: LatteConfig, classes: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """The label table (rows, D) with the given rows of the classes that both know, and the classes that are fresh."""
    rows = np.array(own, np.float32)  # (num_classes + null, D)
    if given.shape[1:] != rows.shape[1:]:
        raise UserError(f"init_from {start.uri}: tensor {_LABELS} has shape {given.shape}, this model has {rows.shape}")
    known = {name: row for row, name in enumerate(start.classes or ())}
    others = []
    for row, name in enumerate(classes):
        if name in known:
            rows[row] = given[known[name]]
        else:
            others.append(name)
    if start.has_null and model.class_dropout_prob > 0:
        rows[-1] = given[-1]
    return rows, others


def preview_conditions(
    model: LatteConfig, classes: Sequence[str], clips: LatentClips, count: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Conditions of `count` previews, in words and for the network: classes or the dataset's captions, in turn."""
    if model.condition == "class":
        labels = np.arange(count, dtype=np.int32) % model.num_classes  # (N,)
        return [classes[label] if label < len(classes) else f"class {label}" for label in labels], {"y": labels}
    if model.condition == "text":
        first = {video.caption: i for i, video in reversed(list(enumerate(clips.videos))) if video.caption}
        texts = sorted(first, key=lambda text: first[text])
        titles = [texts[i % len(texts)] for i in range(count)]
        return titles, {"text": np.stack([clips.text(first[title]) for title in titles])}  # (N, 77, 768)
    return [""] * count, {}
