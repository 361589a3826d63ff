"""Demands of a pipeline's steps on a dataset: refused as soon as it can be said, with a value that works.

Once the dataset is listed its videos, classes and captions are known, and how many frames its files can give at most;
once it is encoded its frames are, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from latte.data import frame_bounds
from latte.data.entries import Catalog
from latte.errors import UserError
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Protocol
from latte.steps import demands
from latte.steps.demands import Asked
from latte.steps.sample import SampleConfig, guidance_left_out
from latte.steps.score import ScoreConfig
from latte.steps.train import TrainConfig


@dataclass(frozen=True)
class Dataset:
    """Known facts about a dataset.

    Attributes:
        classes: names of its classes, empty where it has none.
        has_captions: whether some video has one.
        num_videos: videos that are listed or, once their frames are known, that can be used.
        frames: encoded frames of each video; None before that can be said.
        at_most: the frames are the most that the files can give, not what decoding gave.
    """

    classes: Sequence[str]
    has_captions: bool
    num_videos: int
    frames: Sequence[int] | None = None
    at_most: bool = False


def listed(catalog: Catalog) -> Dataset:
    """Facts about a dataset once it is listed."""
    has_captions = any(entry.caption for entry in catalog.entries)
    return Dataset(catalog.classes, has_captions, len(catalog.entries))


def check(dataset: Dataset, asked: Asked) -> None:
    """Hold a dataset against what the steps ask of it.

    Raises:
        UserError: a setting asks for more than the dataset has; the line names the key and a value that works.
    """
    if asked.encode is not None and asked.encode.text_encoder is not None and not dataset.has_captions:
        raise UserError(
            "encode.text_encoder: the dataset has no captions; name a CSV file with some in encode.dataset.csv, or "
            "leave text_encoder and tokenizer out"
        )
    if asked.train is not None:
        _check_training(dataset, asked, asked.train)
        if asked.sample is not None:
            _check_labels(dataset, asked.train, asked.sample)
    protocol = demands.protocol_of(asked)
    if asked.score is not None and protocol is not None:
        _check_real_clips(dataset, asked, asked.score, protocol)


def counted(catalog: Catalog, asked: Asked, known: Mapping[str, int] | None = None, whole: bool = False) -> Dataset:
    """The listed dataset with the most frames that its videos can give, and a refusal where they are too few.

    The longest files are counted first, and only until there is all that is asked for: most datasets have it in their
    first video, and need no more.

    Args:
        catalog: the dataset.
        asked: the settings.
        known: encoded frames by the digest of a content that is encoded already.
        whole: count all videos, for `notes`.

    Returns:
        The dataset; its frames are None where not all were counted, because there is enough or it would take too long.

    Raises:
        UserError: as `check`.
        StorageError: the store does not answer.
    """
    dataset, encode = listed(catalog), asked.encode
    if encode is None:
        return dataset
    most = max(encode.min_frames, _longest_clip(asked, whole))
    frames: list[int] = []
    longest = 0
    with frame_bounds.counter((most - 1) * encode.frame_stride + 1) as count:
        for entry in sorted(catalog.entries, key=lambda entry: -entry.bytes):
            bound = (known or {}).get(entry.digest)
            if bound is None:
                shot = None if entry.view is None else entry.view.count(1)
                read = count(entry) if shot is None else shot
                if read is None:
                    return dataset
                bound = min(-(-read // encode.frame_stride), encode.max_frames or read)
            longest = max(longest, bound)
            if bound >= encode.min_frames:
                frames.append(bound)
                if not whole and _is_enough(replace(dataset, frames=frames), asked):
                    return dataset
    if not longest:  # no file is a video: encoding tells why of each
        return dataset
    if not frames:
        raise UserError(
            f"encode.min_frames={encode.min_frames}: the longest video has at most {longest} frames; "
            f"encode.min_frames={longest} works"
        )
    dataset = replace(dataset, num_videos=len(frames), frames=frames, at_most=True)
    check(dataset, asked)
    return dataset


def notes(dataset: Dataset, asked: Asked) -> list[str]:
    """Settings that will follow from this dataset, a line each, as the steps will say it."""
    lines = []
    if asked.encode is not None and asked.encode.curate is not None:
        rules = ", ".join(asked.encode.curate.rules)
        lines.append(f"encode.curate: {rules}; `latte curate` shows what they leave out, and counts it")
    if asked.train is not None and demands.condition_of(asked.train) is None:
        condition = _condition(asked.train, dataset)
        by = f"by the dataset's {_classes(dataset)}" if dataset.classes else "the dataset has no classes"
        lines.append(f"train.model.condition: {condition}, {by}")
        if condition == "none" and asked.sample is not None and asked.sample.cfg_scale != 1.0:
            lines.append(f"sample.{guidance_left_out(asked.sample.cfg_scale)}")
    if asked.score is not None and asked.sample is not None:
        given, count = asked.score.protocol, asked.sample.num_videos
        if protocols.is_adaptive(given, "num_clips") and dataset.frames is None:
            lines.append(f"score.protocol.num_clips: as many as both sides give, {count} at most")
        elif protocols.is_adaptive(given, "num_clips"):
            lines.append(
                f"score.protocol.{protocols.adapted(given, protocols.Available(count, dataset.frames or ()))[1]}"
            )
    return lines


def _condition(train: TrainConfig, dataset: Dataset) -> str:
    return demands.condition_of(train) or ("class" if dataset.classes else "none")


def _classes(dataset: Dataset) -> str:
    return f"{len(dataset.classes)} {'class' if len(dataset.classes) == 1 else 'classes'}"


def _longest_clip(asked: Asked, whole: bool) -> int:
    """Encoded frames of a video that may still matter."""
    protocol = demands.protocol_of(asked)
    training = 1 if asked.train is None else demands.clip_span(asked.train)[1]
    scoring = 1 if protocol is None else protocol.real_span_frames
    return max(training, scoring * (asked.sample.num_videos if whole and asked.sample is not None else 1))


def _is_enough(dataset: Dataset, asked: Asked) -> bool:
    try:
        check(dataset, asked)
    except UserError:
        return False
    return True


def _check_training(dataset: Dataset, asked: Asked, train: TrainConfig) -> None:
    condition = _condition(train, dataset)
    if condition == "class" and not dataset.classes:
        raise UserError("train.model.condition=class: the dataset has no classes; train.model.condition=none works")
    if condition == "text" and not dataset.has_captions:
        other = "class" if dataset.classes else "none"
        raise UserError(f"train.model.condition=text: the dataset has no captions; train.model.condition={other} works")
    count = len(dataset.classes)
    num_classes = train.model.get("num_classes", count)
    if condition == "class" and num_classes < count:
        raise UserError(
            f"train.model.num_classes={num_classes}: the dataset has {_classes(dataset)}; "
            f"train.model.num_classes={count} works"
        )
    num_frames, span = demands.clip_span(train)
    longest = max(dataset.frames or (), default=0)
    if dataset.frames is None or longest >= span:
        return
    stride = train.frame_stride
    remedy = _smaller_encode_stride(asked, longest, span)
    if longest >= num_frames > 1:
        remedy = f"train.frame_stride={(longest - 1) // (num_frames - 1)} works"
    elif remedy is None and asked.score is None:
        remedy = f"train.model.num_frames={longest} with train.frame_stride=1 works"
    raise UserError(
        f"train.frame_stride={stride}: a clip of {num_frames} frames at stride {stride} needs {span}, "
        f"{_longest(dataset, longest)}; {remedy or 'longer videos are needed'}"
    )


def _longest(dataset: Dataset, frames: int) -> str:
    return f"the longest video has {'at most ' if dataset.at_most else ''}{frames}"


def _smaller_encode_stride(asked: Asked, longest: int, wanted: int) -> str | None:
    """Advice for `wanted` encoded frames where strides of encoding have left `longest`; None where that is no way."""
    encode = asked.encode
    if encode is None or encode.frame_stride == 1 or (encode.max_frames or wanted) < wanted:
        return None
    stride = (longest - 1) * encode.frame_stride // (wanted - 1)
    return f"encode.frame_stride={stride} works" if stride else None


def _check_labels(dataset: Dataset, train: TrainConfig, sample: SampleConfig) -> None:
    if sample.labels is None:
        return
    if _condition(train, dataset) != "class":
        raise UserError("sample.labels: the dataset has no classes; leave it out")
    count = max(len(dataset.classes), train.model.get("num_classes", 0))
    for label in sample.labels if isinstance(sample.labels, list) else ():
        if isinstance(label, str) and label not in dataset.classes:
            raise UserError(f"sample.labels: no class {label!r} (known: {', '.join(dataset.classes[:20])})")
        if not isinstance(label, str) and not 0 <= label < count:
            raise UserError(f"sample.labels: {label} is not a class; 0 to {count - 1} work")


def _check_real_clips(dataset: Dataset, asked: Asked, score: ScoreConfig, protocol: Protocol) -> None:
    """Whether the videos give the real clips; before the frames are known every video is taken to be long enough."""
    span = protocol.real_span_frames
    usable = dataset.num_videos if dataset.frames is None else sum(frames >= span for frames in dataset.frames)
    if not usable:
        longest = max(dataset.frames or (), default=0)
        possible = longest // protocol.clip_frames
        remedy = f"score.protocol.frame_stride={possible} works" if possible else None
        remedy = remedy or _smaller_encode_stride(asked, longest, span) or "longer videos are needed"
        raise UserError(
            f"score.protocol.frame_stride={protocol.frame_stride}: a real clip needs videos of {span} frames, "
            f"{_longest(dataset, longest)}; {remedy}"
        )
    if protocol.clips_per_video is None:
        return
    most = usable * protocol.clips_per_video
    if most >= protocol.real_clips:
        return
    long_enough = "" if dataset.frames is None else f" of {span} frames or more"
    counted = f"the only video{long_enough} gives" if usable == 1 else f"the {usable} videos{long_enough} give"
    key = "num_clips" if protocol.num_real_clips is None else "num_real_clips"
    wanted = "auto" if protocols.is_adaptive(score.protocol, key) else protocol.real_clips
    needed = -(-protocol.real_clips // usable)
    works = [f"score.protocol.{key}={most} works"] if most >= protocols.FEWEST_CLIPS else []
    if protocol.start == "random":
        works.append(f"score.protocol.clips_per_video={needed} works")
    raise UserError(
        f"score.protocol.{key}={wanted}: {counted} {most} real clips (clips_per_video "
        f"{protocol.clips_per_video}); {', or '.join(works) or f'{protocols.FEWEST_CLIPS} videos are needed'}"
    )
