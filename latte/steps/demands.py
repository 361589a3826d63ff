"""Demands of the settings of a pipeline's steps on each other, before any of them starts.

What cannot work together is refused with the key to change and a value that works. What they ask of the data is held
against it in `latte.steps.dataset_demands`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latte.config import Config, build
from latte.data.config import EncodeConfig
from latte.errors import UserError
from latte.kinds import KINDS
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Protocol
from latte.models.configs import AutoencoderKLConfig, LatteConfig, nearest_multiple
from latte.networks import TextSource
from latte.steps.sample import SampleConfig
from latte.steps.score import ScoreConfig
from latte.steps.train import TrainConfig

# section: the keys of its step's config, as the user wrote them; a step that the pipeline has not is left out
Sections = Mapping[str, Mapping[str, Any]]
_LATER = "file:///later"
# What a Latte's weights decide; the rest follows from the data.
_OF_THE_ARCHITECTURE = ("hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio", "learn_sigma")
# section: its step's config, and the keys besides root and name that a pipeline fills in
_STEPS: dict[str, tuple[type[Config], tuple[str, ...]]] = {
    "train": (TrainConfig, ("latents",)),
    "sample": (SampleConfig, ("checkpoint", "vae")),
    "score": (ScoreConfig, ("videos", "real", "detector")),
}


@dataclass(frozen=True)
class Asked:
    """The settings of a pipeline's steps, each by itself in order; None for a step that the pipeline has not.

    `text` is the text encoder of encode, where that is resolved already.
    """

    encode: EncodeConfig | None = None
    train: TrainConfig | None = None
    sample: SampleConfig | None = None
    score: ScoreConfig | None = None
    promotes: bool = False
    text: TextSource | None = None


def read(sections: Sections, encode: EncodeConfig | None = None, text: TextSource | None = None) -> Asked:
    """Settings from the sections of a pipeline.

    Args:
        sections: the steps' keys.
        encode: settings of the encode step.
        text: its text encoder, where that is resolved already.

    Raises:
        UserError: a section is none of these, or a key is unknown or bad in it.
    """
    steps: dict[str, Any] = {}
    for section, given in sections.items():
        cls, wired = _STEPS[section]
        filled = {"root": _LATER, "name": section, **dict.fromkeys(wired, _LATER)}
        steps[section] = build(cls, {**given, **filled}, prefix=f"{section}.")
    return Asked(encode, text=text, **steps)


def check_settings(
    asked: Asked, autoencoder: AutoencoderKLConfig | None = None, can_read: Callable[[str], bool] = lambda uri: True
) -> None:
    """Hold the settings of the steps against each other, as far as they say by themselves.

    Args:
        asked: the settings.
        autoencoder: whose latents the model is to know; None before that can be said.
        can_read: whether a file that they name (path or URI) may be read here. One that only the step sees is left
            alone.

    Raises:
        UserError: two of them contradict each other; the line names the key and a value that works.
    """
    protocol = protocol_of(asked, can_read)
    if asked.train is not None and asked.train.dry_run:
        raise UserError("train.dry_run=true: a pipeline trains; `latte-pipeline check --plan` shows the plan")
    if asked.encode is not None and autoencoder is not None:
        _check_image_size(asked, asked.encode.image_size, autoencoder)
    if asked.train is not None:
        model = model_of(asked.train, _known_of_latents(asked, autoencoder))
        _check_latents(asked, model, autoencoder)
        if protocol is not None and model.num_frames < protocol.generated_span_frames:
            raise UserError(
                f"train.model.num_frames={model.num_frames}: score.protocol compares clips of "
                f"{protocol.generated_span_frames} frames; train.model.num_frames={protocol.generated_span_frames} "
                "works"
            )
        _check_text(asked, asked.train, can_read)
        if asked.sample is not None:
            _check_condition(asked.train, asked.sample)
            if asked.sample.num_frames not in (None, model.num_frames):
                raise UserError(
                    f"sample.num_frames={asked.sample.num_frames}: the model makes videos of {model.num_frames} "
                    f"frames; train.model.num_frames={asked.sample.num_frames} works, or leave sample.num_frames out"
                )
    if asked.sample is not None and asked.promotes and asked.sample.weights != "ema":
        raise UserError(
            f"sample.weights={asked.sample.weights}: only the averaged weights are promoted; sample.weights=ema works"
        )
    if asked.sample is not None and asked.score is not None and protocol is not None:
        _check_generated_clips(asked.sample.num_videos, asked.score, protocol)
    _check_max_frames(asked, protocol)


def _resolution(protocol: Protocol, detector: Any) -> int:
    """Resolution of the clips that a detector gets: the protocol's, or that of its own published scores."""
    scorings = (kind.scoring for kind in KINDS.values() if isinstance(detector, kind.config))
    own = next(scoring for scoring in scorings if scoring is not None).protocol(detector)
    return int(own.get("resolution", protocol.resolution))


def check_weights(
    asked: Asked,
    detector: Any = None,
    pretrained: LatteConfig | None = None,
    can_read: Callable[[str], bool] = lambda uri: True,
) -> None:
    """Hold the settings of the steps against the weights that they use.

    Args:
        asked: the settings.
        detector: config of the network that scores; None where it cannot be looked at.
        pretrained: that training starts from; None without such, or where it cannot be looked at.
        can_read: as for `check_settings`.

    Raises:
        UserError: the weights are for something else; the line names the key and a value that works.
    """
    protocol = protocol_of(asked, can_read)
    if protocol is not None and detector is not None and _resolution(protocol, detector) != detector.image_size:
        raise UserError(
            f"score.protocol.resolution={protocol.resolution}: the detector is for clips of {detector.image_size} "
            f"pixels; score.protocol.resolution={detector.image_size} works"
        )
    if asked.train is None or pretrained is None:
        return
    if asked.train.init_from is not None:
        raise UserError("train.init_from: training starts from the weights of pretrained; leave one of them out")
    model = model_of(asked.train, {})
    for key in _OF_THE_ARCHITECTURE:
        wanted, given = getattr(model, key), getattr(pretrained, key)
        if wanted != given:
            raise UserError(
                f"train.model.{key}={wanted}: the weights of pretrained.source have {key} {given}; "
                f"train.model.{key}={given} works, or pretrained={{}} for fresh weights"
            )


def protocol_of(asked: Asked, can_read: Callable[[str], bool] = lambda uri: True) -> Protocol | None:
    """The protocol of the score, `auto` as the fewest clips; None without a score or where its file is not here.

    Raises:
        UserError: its file is missing or has a bad field.
    """
    if asked.score is None:
        return None
    given = asked.score.protocol
    preset = given if isinstance(given, str) else str(given.get("preset", ""))
    if protocols.is_file(preset) and not can_read(preset):
        return None
    return protocols.resolve(given, key="score.protocol")


def model_of(train: TrainConfig, known: Mapping[str, Any]) -> LatteConfig:
    """The network that a training run's settings ask for.

    Args:
        train: the settings.
        known: keys that follow from the data, as far as it is known.

    Raises:
        UserError: a key is bad or does not fit the others.
    """
    try:
        return LatteConfig.of_settings(train.model, known, "train.model.")
    except UserError as error:
        raise UserError(f"train.model.{error}" if str(error).startswith("preset") else str(error)) from None


def planned_model(asked: Asked, autoencoder: AutoencoderKLConfig | None, num_classes: int) -> LatteConfig:
    """The network that the train step will build on a dataset with so many classes, none of them 0.

    Raises:
        UserError: a key is bad or does not fit the others.
    """
    if asked.train is None:
        raise TypeError("no train step")
    of_classes = {"condition": "class" if num_classes else "none", "num_classes": num_classes}
    return model_of(asked.train, {**_known_of_latents(asked, autoencoder), **of_classes})


def condition_of(train: TrainConfig) -> str | None:
    """Condition of the model, none, class or text; None where that follows from the dataset's classes."""
    condition = train.model.get("condition")
    return None if condition is None else str(condition)


def clip_span(train: TrainConfig) -> tuple[int, int]:
    """Frames of a training clip, and encoded frames that a video needs for one."""
    num_frames = model_of(train, {}).num_frames
    return num_frames, (num_frames - 1) * train.frame_stride + 1


def _known_of_latents(asked: Asked, autoencoder: AutoencoderKLConfig | None) -> dict[str, Any]:
    """Settings of the model that follow from the latents, where they are not given."""
    if autoencoder is None or asked.encode is None:
        return {}
    return {
        "input_size": asked.encode.image_size // autoencoder.downsampling,
        "in_channels": autoencoder.latent_channels,
    }


def _check_image_size(asked: Asked, image_size: int, autoencoder: AutoencoderKLConfig) -> None:
    down = autoencoder.downsampling
    patch_size = 1 if asked.train is None else model_of(asked.train, {}).patch_size
    works = f"encode.image_size={nearest_multiple(image_size, down * patch_size)} works"
    if image_size % down:
        raise UserError(
            f"encode.image_size={image_size}: not a multiple of {down}, the autoencoder's downsampling; {works}"
        )
    if image_size // down % patch_size:
        raise UserError(
            f"encode.image_size={image_size}: its latents of {image_size // down} x {image_size // down} cannot be cut "
            f"into patches of train.model.patch_size={patch_size}; {works}"
        )


def _check_latents(asked: Asked, model: LatteConfig, autoencoder: AutoencoderKLConfig | None) -> None:
    known = _known_of_latents(asked, autoencoder)
    for key, why in (("input_size", "the latents' side"), ("in_channels", "the autoencoder's latent channels")):
        given = getattr(model, key)
        if key in known and given != known[key]:
            raise UserError(f"train.model.{key}={given}: {why}: {known[key]}; train.model.{key}={known[key]} works")


def _check_text(asked: Asked, train: TrainConfig, can_read: Callable[[str], bool]) -> None:
    """Whether text can be trained on and sampled with, by one and the same encoder."""
    digests = {}
    known = {} if asked.encode is None or asked.text is None else {_files(asked.encode): asked.text.digest}
    for section in ("encode", "sample"):
        step = getattr(asked, section)
        if step is None:
            continue
        if condition_of(train) == "text" and step.text_encoder is None:
            captions = "" if section == "encode" else f"{section}.captions, "
            raise UserError(
                f"train.model.condition=text: give {captions}{section}.text_encoder and {section}.tokenizer, or "
                "train.model.condition=none works"
            )
        if step.text_encoder is None or not (can_read(step.text_encoder) and can_read(step.tokenizer)):
            continue
        try:
            if _files(step) not in known:
                known[_files(step)] = TextSource.checked(step.text_encoder, step.tokenizer).digest
        except UserError as error:
            raise UserError(f"{section}.{error}") from None
        digests[section] = known[_files(step)]
    if len(set(digests.values())) > 1:
        raise UserError(
            "sample.text_encoder: another encoder or tokenizer than in encode; "
            "give sample.text_encoder and sample.tokenizer the values of encode"
        )


def _files(step: EncodeConfig | SampleConfig) -> tuple[str | None, str | None]:
    return step.text_encoder, step.tokenizer


def _check_condition(train: TrainConfig, sample: SampleConfig) -> None:
    condition = condition_of(train)
    if condition == "none" and sample.cfg_scale != 1.0:
        raise UserError(
            f"sample.cfg_scale={sample.cfg_scale:g}: train.model.condition is none; sample.cfg_scale=1 works"
        )
    if condition not in (None, "class") and sample.labels is not None:
        raise UserError(f"sample.labels: train.model.condition is {condition}; leave sample.labels out")
    if condition != "text" and sample.captions is not None:
        clause = f"is {condition}" if condition else "does not say text"
        raise UserError(f"sample.captions: train.model.condition {clause}; leave sample.captions out")
    if sample.cfg_scale != 1.0 and train.model.get("class_dropout_prob") == 0:
        raise UserError(
            f"sample.cfg_scale={sample.cfg_scale:g}: train.model.class_dropout_prob is 0, so that there is nothing to "
            "guide from; sample.cfg_scale=1 works"
        )


def _check_generated_clips(count: int, score: ScoreConfig, protocol: Protocol) -> None:
    wanted = protocol.num_clips
    if count >= wanted:
        return
    if protocols.is_adaptive(score.protocol, "num_clips"):
        raise UserError(f"sample.num_videos={count}: a score needs {wanted} clips; sample.num_videos={wanted} works")
    fewer = f", or score.protocol.num_clips={count} works" if count >= protocols.FEWEST_CLIPS else ""
    raise UserError(
        f"sample.num_videos={count}: score.protocol.num_clips is {wanted}; sample.num_videos={wanted} works{fewer}"
    )


def _check_max_frames(asked: Asked, protocol: Protocol | None) -> None:
    """Whether clips fit into what is encoded of a video at most."""
    if asked.encode is None or asked.encode.max_frames is None:
        return
    needs = {
        "a clip of train": 0 if asked.train is None else clip_span(asked.train)[1],
        "a real clip of score": 0 if protocol is None else protocol.real_span_frames,
    }
    what = max(needs, key=lambda name: needs[name])
    if asked.encode.max_frames < needs[what]:
        raise UserError(
            f"encode.max_frames={asked.encode.max_frames}: {what} needs {needs[what]} encoded frames; "
            f"encode.max_frames={needs[what]} works"
        )
