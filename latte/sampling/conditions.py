"""Conditions of a set's videos: a class or a caption each, a function of the seed and the video's number alone."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte import owners, rng, storage
from latte.errors import UserError
from latte.facts import LatentsFacts, LatteFacts
from latte.sampling.config import TEXT_KEYS, SampleConfig
from latte.storage import manifest


@dataclass(frozen=True)
class Conditions:
    """The conditions of a set; all empty where the model takes none.

    Attributes:
        seed: what drawn labels follow from.
        labels: classes that the videos take in turn.
        class_counts: videos of each class in a dataset, where labels are drawn by their shares.
        captions: texts that the videos take in turn.
    """

    seed: int = 0
    labels: list[int] | None = None
    class_counts: list[int] | None = None
    captions: list[str] | None = None

    def label(self, index: int) -> int | None:
        """The class of a video, or None without classes."""
        if self.class_counts is not None:
            ends = np.cumsum(self.class_counts)
            drawn = rng.stream(self.seed, "sample label", index).integers(ends[-1])
            return int(np.searchsorted(ends, drawn, side="right"))
        return self.labels[index % len(self.labels)] if self.labels is not None else None

    def caption(self, index: int) -> str | None:
        """The caption of a video, or None without captions."""
        return self.captions[index % len(self.captions)] if self.captions is not None else None

    @property
    def from_files(self) -> list[Any]:
        """Content of files that changes the videos, for a fingerprint."""
        return [part for part in (self.class_counts, self.captions) if part is not None]


def resolve(config: SampleConfig, facts: LatteFacts) -> Conditions:
    """Conditions of a set's videos, by its settings and the checkpoint's facts.

    Raises:
        UserError: a key that the model has no use for, or lacks; or classes and captions that are not there.
    """
    model = facts.latte
    condition = model.condition
    keys = {"class": ("labels", "latents"), "text": TEXT_KEYS}
    for other, names in keys.items():
        given = [key for key in names if getattr(config, key) is not None]
        if given and condition != other:
            what = "classes" if other == "class" else "text"
            raise UserError(f"{given[0]}: the model of {config.checkpoint} is not conditioned on {what}; leave it out")
    if condition == "none":
        if config.cfg_scale != 1.0:
            raise UserError(f"cfg_scale: the model of {config.checkpoint} has no condition; leave it out")
        return Conditions()
    if config.cfg_scale != 1.0 and model.class_dropout_prob == 0:
        raise UserError(f"cfg_scale: the model of {config.checkpoint} never had its condition dropped; set it to 1")
    if condition == "text":
        if config.captions is None:
            raise UserError(f"checkpoint {config.checkpoint}: conditioned on text; give {', '.join(TEXT_KEYS)}")
        return Conditions(captions=read_captions(str(config.captions)))
    if config.latents is not None:
        return Conditions(config.seed, class_counts=count_classes(config.latents, facts))
    chosen = None if config.labels is None else list(config.labels)
    return Conditions(config.seed, labels=classes_of(chosen, facts.classes, model.num_classes))


def classes_of(labels: Sequence[int | str] | None, classes: Sequence[str], num_classes: int) -> list[int]:
    """The classes that the videos take in turn; all of the model's where none are given.

    Args:
        labels: names or numbers.
        classes: names of the model's classes in the order of their numbers; empty where they have none.
        num_classes: how many there are then.

    Raises:
        UserError: not a class of the model.
    """
    count = len(classes) or num_classes
    if labels is None:
        return list(range(count))
    chosen = []
    for label in labels:
        if isinstance(label, str) and not classes:
            raise UserError(f"labels: {label!r}: the model's classes have no names; give numbers from 0 to {count - 1}")
        if isinstance(label, str) and label not in classes:
            raise UserError(f"labels: no class {label!r} (known: {', '.join(classes[:20])})")
        number = classes.index(label) if isinstance(label, str) else label
        if not 0 <= number < count:
            raise UserError(f"labels: {label} is not a class; there are {count}")
        chosen.append(number)
    return chosen


def count_classes(latents_uri: str, facts: LatteFacts) -> list[int]:
    """Number of videos of each class in an encoded dataset.

    Args:
        latents_uri: manifest of the dataset.
        facts: of the checkpoint.

    Raises:
        UserError: the dataset has other classes than the model, or none.
    """
    from latte.data.latents import LatentClips

    latents = manifest.read(latents_uri, "latents", "latents")
    classes = LatentsFacts.of(latents).classes
    if not classes or classes != facts.classes:
        raise UserError(f"latents {latents_uri}: classes {classes[:20]}, but the model has {facts.classes[:20]}")
    with owners.Folder("index") as cache:
        labels = [video.label for video in LatentClips(latents, cache).videos if video.label is not None]
    if not labels:
        raise UserError(f"latents {latents_uri}: no video there has a label")
    return [int(count) for count in np.bincount(labels, minlength=len(classes))]


def read_captions(uri: str) -> list[str]:
    """Captions from a text file, one a line, or from the column `caption` of a CSV file; empty ones are left out.

    Raises:
        UserError: no such file, not UTF-8, no such column, or no captions in it.
    """
    try:
        text = storage.read_bytes(storage.from_path(uri)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"captions {uri}: not UTF-8 text") from None
    if uri.lower().endswith(".csv"):
        try:
            rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            if "caption" not in (rows.fieldnames or ()):
                raise UserError(f"captions {uri}: no column caption, it has {', '.join(rows.fieldnames or ())}")
            lines = [row["caption"] or "" for row in rows]
        except csv.Error as error:
            raise UserError(f"captions {uri}: not CSV: {error}") from None
    else:
        lines = re.split("\r\n|\n|\r", text)  # splitlines() would cut at form feeds and Unicode's separators too
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"captions {uri}: no captions in it")
    return captions
