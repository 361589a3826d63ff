"""What training, sampling and scoring ask of each other and of a dataset, before any of them starts.

Settings are held against each other when they are read. Once the dataset is listed its videos, classes and captions are
known; once it is encoded its frames are, too. What cannot work is refused then, with the key to change and a value that
works.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latte.errors import UserError
from latte.metrics import protocol as protocols
from latte.models.configs import LatteConfig
from latte.steps.sample import SampleConfig
from latte.steps.score import ScoreConfig
from latte.steps.train import TrainConfig

# section: the keys of its step's config, as the user wrote them; a step that the pipeline has not is left out
Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset.

    Attributes:
        classes: names of its classes, empty where it has none.
        has_captions: whether some video has one.
        num_videos: videos that are listed or, once encoded, that can be used.
        frames: encoded frames of each video; None before it is encoded.
    """

    classes: Sequence[str]
    has_captions: bool
    num_videos: int
    frames: Sequence[int] | None = None


def check(dataset: Dataset, sections: Sections) -> None:
    """Hold a dataset against what the later steps ask of it.

    Raises:
        UserError: a setting asks for more than the dataset has; the line names the key and a value that works.
    """
    if "train" in sections:
        _check_training(dataset, sections["train"])
        _check_labels(dataset, sections["train"], sections.get("sample", {}))
    if "score" in sections:
        _check_real_clips(dataset, sections["score"])


def check_settings(sections: Sections, read_files: bool = True) -> None:
    """Hold the settings of the steps against each other, as far as they say by themselves.

    Args:
        sections: the settings.
        read_files: whether a protocol may be read from a file; one that only the step sees is left alone otherwise.

    Raises:
        UserError: two of them contradict each other; the line names the key and a value that works.
    """
    train, sample, score = (sections.get(name) for name in ("train", "sample", "score"))
    if score is not None and not read_files and protocols.is_file(_preset(score)):
        score = None
    if sample is not None and score is not None:
        _check_generated_clips(sample, score)
    if train is None or sample is None:
        return
    model = train.get("model", {})
    condition = model.get("condition")
    cfg_scale = float(sample.get("cfg_scale", 1.0))
    if condition == "none" and cfg_scale != 1.0:
        raise UserError(f"sample.cfg_scale={cfg_scale:g}: train.model.condition is none; sample.cfg_scale=1 works")
    if condition is not None and condition != "class" and sample.get("labels") is not None:
        raise UserError(f"sample.labels: train.model.condition is {condition}; leave sample.labels out")
    if condition is not None and condition != "text" and sample.get("captions") is not None:
        raise UserError(f"sample.captions: train.model.condition is {condition}; leave sample.captions out")
    if cfg_scale != 1.0 and model.get("class_dropout_prob", 0.1) == 0:
        raise UserError(
            f"sample.cfg_scale={cfg_scale:g}: train.model.class_dropout_prob is 0, so that there is nothing to guide "
            "from; sample.cfg_scale=1 works"
        )
    if score is not None:
        _check_lengths(model, score)


def _protocol(score: Mapping[str, Any]) -> Any:
    return score.get("protocol", ScoreConfig.model_fields["protocol"].default)


def _preset(score: Mapping[str, Any]) -> str:
    given = _protocol(score)
    return given if isinstance(given, str) else str(given.get("preset", ""))


def _check_generated_clips(sample: Mapping[str, Any], score: Mapping[str, Any]) -> None:
    given = _protocol(score)
    if protocols.is_adaptive(given, "num_clips"):
        return
    wanted = protocols.resolve(given).num_clips
    count = int(sample.get("num_videos", SampleConfig.model_fields["num_videos"].default))
    if count < wanted:
        fewer = f", or score.protocol.num_clips={count} works" if count >= protocols.FEWEST_CLIPS else ""
        raise UserError(
            f"sample.num_videos={count}: score.protocol.num_clips is {wanted}; sample.num_videos={wanted} works{fewer}"
        )


def _check_lengths(model: Mapping[str, Any], score: Mapping[str, Any]) -> None:
    protocol = protocols.resolve(_protocol(score))
    num_frames = int(model.get("num_frames", LatteConfig.model_fields["num_frames"].default))
    if num_frames < protocol.generated_span_frames:
        raise UserError(
            f"train.model.num_frames={num_frames}: score.protocol compares clips of {protocol.generated_span_frames} "
            f"frames; train.model.num_frames={protocol.generated_span_frames} works"
        )


def condition_of(train: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What a model that is trained with these settings on these classes is conditioned on: none, class or text."""
    return str(train.get("model", {}).get("condition") or ("class" if classes else "none"))


def _check_training(dataset: Dataset, train: Mapping[str, Any]) -> None:
    model = train.get("model", {})
    condition = condition_of(train, dataset.classes)
    if condition == "class" and not dataset.classes:
        raise UserError("train.model.condition=class: the dataset has no classes; train.model.condition=none works")
    if condition == "text" and not dataset.has_captions:
        other = "class" if dataset.classes else "none"
        raise UserError(f"train.model.condition=text: the dataset has no captions; train.model.condition={other} works")
    if condition == "class" and model.get("num_classes", len(dataset.classes)) < len(dataset.classes):
        count = len(dataset.classes)
        raise UserError(
            f"train.model.num_classes={model['num_classes']}: the dataset has {count} classes; "
            f"train.model.num_classes={count} works"
        )
    if dataset.frames is None:
        return
    num_frames = int(model.get("num_frames", LatteConfig.model_fields["num_frames"].default))
    stride = int(train.get("frame_stride", TrainConfig.model_fields["frame_stride"].default))
    longest = max(dataset.frames, default=0)
    if longest >= (num_frames - 1) * stride + 1:
        return
    needs = f"a clip of {num_frames} frames at stride {stride} needs {(num_frames - 1) * stride + 1}"
    if stride > 1 and longest >= num_frames:
        remedy = f"train.frame_stride={(longest - 1) // max(1, num_frames - 1)} works"
    else:
        remedy = f"train.model.num_frames={longest} with train.frame_stride=1 works"
    raise UserError(f"train.frame_stride={stride}: {needs}, the longest video has {longest}; {remedy}")


def _check_labels(dataset: Dataset, train: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
    condition = condition_of(train, dataset.classes)
    labels = sample.get("labels")
    if labels is not None and condition != "class":
        raise UserError("sample.labels: the dataset has no classes; leave it out")
    for label in labels if isinstance(labels, list) else []:
        count = max(len(dataset.classes), int(train.get("model", {}).get("num_classes", 0)))
        if isinstance(label, str) and label not in dataset.classes:
            raise UserError(f"sample.labels: no class {label!r} (known: {', '.join(dataset.classes[:20])})")
        if not isinstance(label, str) and not 0 <= label < count:
            raise UserError(f"sample.labels: {label} is not a class; there are {count}")


def _check_real_clips(dataset: Dataset, score: Mapping[str, Any]) -> None:
    """Whether the videos give the real clips; before the frames are known every video is taken to be long enough."""
    given = _protocol(score)
    protocol = protocols.resolve(given)
    span = protocol.real_span_frames
    usable = dataset.num_videos if dataset.frames is None else sum(frames >= span for frames in dataset.frames)
    if not usable:
        longest = max(dataset.frames or (), default=0)
        possible = longest // protocol.clip_frames
        remedy = f"score.protocol.frame_stride={possible} works" if possible else "longer videos are needed"
        raise UserError(
            f"score.protocol.frame_stride={protocol.frame_stride}: a real clip needs videos of {span} frames, "
            f"the longest has {longest}; {remedy}"
        )
    if protocol.clips_per_video is None or protocols.is_adaptive(given, "num_clips"):
        return
    most = usable * protocol.clips_per_video
    if most >= protocol.real_clips:
        return
    key = "num_clips" if protocol.num_real_clips is None else "num_real_clips"
    counted = f"the {usable} videos" if dataset.frames is None else f"the {usable} videos of {span} frames or more"
    needed = -(-protocol.real_clips // usable)
    works = f"score.protocol.{key}={most} works" if most >= protocols.FEWEST_CLIPS else ""
    other = f"score.protocol.clips_per_video={needed} works" if protocol.start == "random" else ""
    raise UserError(
        f"score.protocol.{key}={protocol.real_clips}: {counted} give {most} real clips (clips_per_video "
        f"{protocol.clips_per_video}); {', or '.join(filter(None, (works, other)))}"
    )
