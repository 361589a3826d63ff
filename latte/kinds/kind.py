"""Everything that the product has to know about a kind of model, in one value; and how shapes tell settings."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte.checkpoints.script import Program
from latte.checkpoints.stored import Refusal, StoredTensor, show
from latte.config import Config, build

Shapes = dict[str, tuple[int, ...]]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Scoring:
    """Scores in the features of a kind of model.

    Attributes:
        metrics: names of the scores' values, the one that counts first.
        metric: name of a score's value from (config of the network, the protocol's features, SHA-256 of the published
            file that the weights come from, SHA-256 of the weights); None for the file where the weights are random.
        published: SHA-256 of the published files whose scores compare with those of papers.
        protocol: fields of the protocol that its published scores are made with where they are not a clip's, from the
            config of the network; none of a detector that takes the protocol as it is.
    """

    metrics: tuple[str, ...]
    metric: Callable[[Any, str, str | None, str], str]
    published: tuple[str, ...]
    protocol: Callable[[Any], dict[str, Any]] = lambda config: {}


def _as_it_is(name: str) -> tuple[str, str]:
    return name, ""


def _unchanged(name: str, tensor: StoredTensor) -> StoredTensor:
    return tensor


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: what it is built from, and how its published files are read.

    Attributes:
        name: what settings and manifests call it.
        config: class of its settings.
        network: its network, "module:class", taken from the config alone. Imported when the first one is built:
            MindSpore takes seconds.
        marker: a tensor that every file of the kind has and no other kind does, by the network's name.
        tell: settings that the shapes of a file's tensors tell, from (shapes, what is known otherwise).
        shapes: shape of every tensor of the network by its name, from the config.
        rename: (the network's name, why the tensor is left out or "") of a file's name.
        reshape: a file's tensor in the network's shape, from (the network's name, tensor).
        build: the config, from (settings, their source for errors); also where some of them are guessed.
        expand: settings in full, of those that a user wrote.
        own_settings: settings that a published file itself tells besides shapes, of those stored in it.
        settings_beside: settings in the config.json that is published beside a file; None where there is no such.
        read_program: (tensors by the network's names, settings) of a TorchScript archive's code; None where names tell.
        random: weights of (a seed, a config), where some are of use; float32 by the network's names.
        folder: part of a folder as diffusers publishes it that holds the kind's weights; "" where there is none.
        generates: makes latents, so that a manifest of its weights says what they were trained on.
        scoring: of a detector, whose features of clips are compared; None for another kind.
        remark: a line on weights from a source of this SHA-256, or "".
    """

    name: str
    config: type[Config]
    network: str
    marker: str
    tell: Callable[[Shapes, Settings], dict[str, Any]]
    shapes: Callable[[Any], Shapes]
    rename: Callable[[str], tuple[str, str]] = _as_it_is
    reshape: Callable[[str, StoredTensor], StoredTensor] = _unchanged
    build: Callable[[dict[str, Any], str], Config] | None = None
    expand: Callable[[Settings], dict[str, Any]] = dict
    own_settings: Callable[[Settings], dict[str, Any]] | None = None
    settings_beside: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    read_program: Callable[[Program], tuple[dict[str, StoredTensor], dict[str, Any]]] | None = None
    random: Callable[[int, Any], dict[str, np.ndarray]] | None = None
    folder: str = ""
    generates: bool = False
    scoring: Scoring | None = None
    remark: Callable[[str], str] = lambda sha256: ""

    def configured(self, settings: Settings, source: str) -> Any:
        """The config of these settings; `source` is named in errors.

        Raises:
            UserError: a key is unknown or bad.
        """
        return self.build(dict(settings), source) if self.build else build(self.config, settings, source)

    def describe(self, found: Shapes, given: Settings, source: str) -> tuple[dict[str, Any], Shapes]:
        """Settings of the network that a file is of, and the shapes that its tensors must then have.

        No network is built: Latte-XL/2 would take 2.7 GB.

        Args:
            found: shapes of the file's tensors by the network's names.
            given: settings that are known otherwise; they must not contradict what the shapes tell.
            source: the file, for errors.

        Raises:
            UserError: a given setting is unknown or does not fit.
            Refusal: a tensor that tells a setting is missing or has another number of axes.
        """
        given = self.expand(given)
        deduced = self.tell(found, given)
        for key, value in given.items():
            value = list(value) if isinstance(value, tuple) else value
            if key in deduced and deduced[key] != value:
                raise Refusal(f"its tensors say {key} {deduced[key]}, the settings say {show(value)}")
        config = self.configured({**deduced, **given}, source)
        return config.model_dump(mode="json", exclude_none=True), self.shapes(config)

    def fresh(self, settings: Settings, source: str) -> Any:
        """A network of these settings with fresh weights; imports MindSpore.

        Raises:
            UserError: a key is unknown or bad.
        """
        module, _, name = self.network.partition(":")
        return getattr(importlib.import_module(module), name)(build(self.config, settings, source))


def axis(found: Shapes, name: str, axes: int, index: int) -> int:
    """Size of a tensor along an axis.

    Raises:
        Refusal: there is no such tensor, or it has not so many axes.
    """
    if name not in found:
        raise Refusal(f"tensor {name} is missing")
    if len(found[name]) != axes:
        raise Refusal(f"tensor {name} has shape {found[name]}, expected {axes} axes")
    return found[name][index]


def count(found: Shapes, pattern: str) -> int:
    """Number of different numbers in the names that match."""
    return len({match[1] for match in (re.match(pattern, name) for name in found) if match})


def seeded(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Seeded random weights of a network of convolutions with batch normalisation: float32 arrays of these shapes."""
    rng = np.random.RandomState(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("running_var"):
            values = 0.5 + rng.random_sample(shape)
        elif name.endswith("bn.weight"):
            values = 0.8 + 0.4 * rng.random_sample(shape)
        elif len(shape) > 1:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            values = rng.standard_normal(shape) * 0.1
        weights[name] = values.astype(np.float32)
    return weights
