"""The protocol of a Fréchet video distance: every choice that moves the number, written down and part of its digest.

Two scores are comparable only when their protocols have the same digest. docs/fvd.md explains each field.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from latte import rng
from latte.config import Config, build, read_yaml
from latte.errors import UserError
from latte.facts import ScoreValue
from latte.kinds import detectors
from latte.storage import manifest

# Part of the package, so that every image has them; configs/fvd links to them.
PRESETS = Path(__file__).with_name("presets")
# A number that follows from what there is; only fields given one by one may say so, no published protocol does.
AUTO = "auto"
ADAPTIVE = ("num_clips", "clips_per_video")
FEWEST_CLIPS = 2
# Section of a protocol with fields for one kind of detector each; and those that may be in it: how clips are prepared
# and compared, not which they are.
DETECTORS = "detectors"
OF_A_DETECTOR = ("resolution", "resize", "features", "covariance_divisor", "confidence", "jackknife_groups")


class Protocol(Config):
    """Choice and preparation of clips, and the comparison of two sets of their features."""

    num_clips: int = Field(default=2048, ge=2, description="generated clips: the first so many of the set")
    num_real_clips: int | None = Field(default=None, ge=2, description="real clips; null: as many as generated ones")
    clip_frames: int = Field(default=16, ge=16, description="frames of a clip, on both sides")
    frame_stride: int = Field(default=3, ge=1, description="distance of a real clip's frames in its video")
    generated_stride: int = Field(default=1, ge=1, description="distance of a generated clip's frames in its video")
    clips_per_video: int | None = Field(
        default=1, ge=1, description="most clips from one real video; null: as many as the number of clips asks for"
    )
    start: Literal["random", "first"] = Field(
        default="random", description="where a real clip starts: drawn from `seed`, or the video's first frame"
    )
    seed: int = Field(default=0, ge=0, description="which real videos are taken and where their clips start")
    resolution: int = Field(
        default=224, ge=32, description="side of the square that the detector sees, pixels; published: 224"
    )
    resize: Literal["bilinear"] = Field(
        default="bilinear", description="bilinear, half-pixel centres, no antialiasing: torch's F.interpolate"
    )
    features: Literal["logits", "pool"] = Field(
        default="logits", description="the detector's class scores (published: 400) or its pooled channels (1024)"
    )
    covariance_divisor: Literal["n", "n-1"] = Field(default="n", description="what covariance sums are divided by")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of the interval around the value")
    jackknife_groups: int = Field(default=20, ge=2, description="groups per side that the interval leaves out by turns")

    @field_validator("num_clips", "num_real_clips", "clips_per_video", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and not re.fullmatch(r"\s*[0-9]+\s*", value):
            default = cls.model_fields[str(info.field_name)].default
            words = f", or {AUTO}" if info.field_name in ADAPTIVE else ""
            raise ValueError(f"expected a whole number{words}; {default or 'null'} is the default")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Protocol":
        if self.start == "first" and self.clips_per_video != 1:
            raise ValueError("start: first gives one clip per video; set clips_per_video to 1")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all fields; scores are comparable only where it is equal."""
        return manifest.fingerprint("fvd protocol", self)

    @property
    def real_clips(self) -> int:
        """Number of real clips that are asked for."""
        return self.num_real_clips or self.num_clips

    @property
    def real_span_frames(self) -> int:
        """Frames that a real video needs; as published, every frame of a clip counts for a whole stride."""
        return self.clip_frames * self.frame_stride

    @property
    def generated_span_frames(self) -> int:
        """Frames that a generated video needs."""
        return (self.clip_frames - 1) * self.generated_stride + 1


class ClipStart(NamedTuple):
    """A clip of a real video: which one, and its first frame."""

    video: int
    start_frame: int


@dataclass(frozen=True)
class Available:
    """The videos there are to score: the number of generated ones, and the encoded frames of each real one."""

    num_videos: int
    frames: Sequence[int]


def resolve(protocol: str | dict[str, Any], available: Available | None = None, key: str = "protocol") -> Protocol:
    """A protocol from the name of a preset in configs/fvd, from a YAML file, or from its fields.

    A `preset` among the fields is taken first and the other fields replace its own. `num_clips: auto` becomes as many
    clips as both sides give without overlap, `clips_per_video: auto` as many as the number of clips asks for.

    Args:
        protocol: a name, a file or fields.
        available: what there is; None before it is known, `auto` then counts as the fewest clips.
        key: what the protocol is called in errors.

    Raises:
        UserError: no such preset or file, an unknown field or a bad value.
    """
    fields, source = _fields(protocol, key)
    for kind, own in _sections(fields.pop(DETECTORS, {}), key).items():
        build(Protocol, own, source, prefix=f"{'' if source else f'{key}.'}{DETECTORS}.{kind}.")
    adaptive = fields.get("num_clips") == AUTO
    if fields.get("clips_per_video") == AUTO:
        fields["clips_per_video"] = None
    if adaptive:
        fields["num_clips"] = FEWEST_CLIPS
    resolved = build(Protocol, fields, source, prefix="" if source else f"{key}.")
    if not adaptive or available is None:
        return resolved
    per_video = (frames // resolved.real_span_frames for frames in available.frames)
    most = resolved.clips_per_video
    real = sum(count if most is None else min(most, count) for count in per_video)
    count = available.num_videos if resolved.num_real_clips is not None else min(available.num_videos, real)
    return resolved.model_copy(update={"num_clips": max(FEWEST_CLIPS, count)})


def of_detector(given: str | Mapping[str, Any], base: Protocol, kind: str, published: Mapping[str, Any]) -> Protocol:
    """The protocol of a kind of detector's scores: `base` with the fields that differ for it.

    Args:
        given: the protocol as in `resolve`.
        base: what it was resolved to.
        kind: of the detector; `given` may have fields for it under `detectors`.
        published: fields of its published scores, which those replace.

    Raises:
        UserError: a field is unknown or bad.
    """
    fields, source = _fields(given, "protocol")
    own = _sections(fields.get(DETECTORS, {}), "protocol").get(kind, {})
    prefix = f"{'' if source else 'protocol.'}{DETECTORS}.{kind}."
    return build(Protocol, {**base.model_dump(), **published, **own}, source, prefix=prefix)


def as_given(value: ScoreValue) -> dict[str, Any]:
    """The protocol of a value, given so that its detector alone is compared under exactly this protocol again."""
    # Without a section of its own, fields of the detector's published scores would come over those of the value.
    own = {key: value.protocol[key] for key in OF_A_DETECTOR if key in value.protocol}
    return {**value.protocol, DETECTORS: {value.kind: own}} if value.kind else dict(value.protocol)


def _sections(sections: Any, key: str) -> dict[str, dict[str, Any]]:
    """Fields for kinds of detectors, checked to be such."""
    if not isinstance(sections, dict) or not all(isinstance(own, dict) for own in sections.values()):
        raise UserError(f"{key}.{DETECTORS}: expected a section of fields for each kind of detector")
    for kind, own in sections.items():
        if kind not in detectors():
            raise UserError(f"{key}.{DETECTORS}: no detector {kind!r} (known: {', '.join(detectors())})")
        if others := sorted(set(own) - set(OF_A_DETECTOR)):
            raise UserError(
                f"{key}.{DETECTORS}.{kind}.{others[0]}: all detectors see the same clips; of its own a detector may "
                f"have {', '.join(OF_A_DETECTOR)}"
            )
    return sections


def is_adaptive(protocol: str | dict[str, Any], field: str) -> bool:
    """Whether a field is `auto`: a number that follows from what there is."""
    return bool(_fields(protocol, "protocol")[0].get(field) == AUTO)


def adapted(protocol: str | dict[str, Any], available: Available) -> tuple[Protocol, str]:
    """The protocol with the number of clips that follows from what there is, and a line that says so."""
    resolved = resolve(protocol, available)
    usable = sum(count >= resolved.real_span_frames for count in available.frames)
    line = (
        f"num_clips {resolved.num_clips}, by the {available.num_videos} generated videos and the {usable} of "
        f"{len(available.frames)} real ones that have {resolved.real_span_frames} frames"
    )
    return resolved, line


def _fields(protocol: str | Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """All fields that are given, those of a preset included, and the file where they are of one, for errors."""
    if isinstance(protocol, str):
        return _read(protocol, key), f"{key}: {protocol}" if is_file(protocol) else ""
    fields = dict(protocol)
    preset = fields.pop("preset", None)
    preset_fields = _read(str(preset), key) if preset else {}
    if DETECTORS in fields and DETECTORS in preset_fields:
        ours, theirs = _sections(fields[DETECTORS], key), _sections(preset_fields[DETECTORS], key)
        fields[DETECTORS] = {kind: {**theirs.get(kind, {}), **ours.get(kind, {})} for kind in {**theirs, **ours}}
    return {**preset_fields, **fields}, ""


def without_file(protocol: str | dict[str, Any], key: str = "protocol") -> str | dict[str, Any]:
    """The same protocol for a machine that does not have its file: the file's fields in its place.

    Raises:
        UserError: there is no such file, or it is no YAML.
    """
    preset = protocol if isinstance(protocol, str) else str(protocol.get("preset", ""))
    if not is_file(preset):
        return protocol
    # Null is the default of every field that may be null, and KFP knows none.
    return {name: value for name, value in _fields(protocol, key)[0].items() if value is not None}


def is_file(name: str) -> bool:
    """Whether this names a file of protocol fields rather than a preset."""
    return Path(name).suffix in (".yaml", ".yml")


def _read(name: str, key: str) -> dict[str, Any]:
    path = Path(name)
    if not is_file(name):
        path = PRESETS / f"{name}.yaml"
        if Path(name).name != name or not path.is_file():
            known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
            raise UserError(f"{key}: no preset {name!r} (known: {known}); a file of your own ends in .yaml")
    try:
        return read_yaml(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def choose_real_clips(videos: Sequence[tuple[str, int]], protocol: Protocol) -> list[ClipStart]:
    """Choose the real clips: a function of the videos' ids, their lengths and the protocol alone.

    The videos that are long enough are put in an order drawn from the seed and visited in rounds; each visit takes one
    clip, until there are enough or every video has given `clips_per_video`.

    Args:
        videos: id and number of frames of each video; their order here does not matter.
        protocol: the protocol.

    Returns:
        At most `protocol.real_clips` clips, fewer where the videos do not give as many.
    """
    span = protocol.real_span_frames
    usable = sorted((name, index) for index, (name, num_frames) in enumerate(videos) if num_frames >= span)
    if not usable:
        return []
    order = rng.stream(protocol.seed, "real videos").permutation(len(usable))
    wanted = protocol.real_clips
    if protocol.clips_per_video is not None:
        wanted = min(wanted, protocol.clips_per_video * len(usable))
    clips = []
    for position in range(wanted):
        visit, place = divmod(position, len(usable))
        name, index = usable[order[place]]
        latest = videos[index][1] - span
        start = 0
        if protocol.start == "random":
            start = int(rng.stream(protocol.seed, "real clip start", name, visit).integers(latest + 1))
        clips.append(ClipStart(index, start))
    return clips


def prepare(frames: np.ndarray, resolution: int = 224) -> np.ndarray:
    """Input of the detector: frames (F, H, W, 3) uint8 -> (3, F, resolution, resolution) float32 in [-1, 1].

    Bilinear with half-pixel centres and without antialiasing, as the published scorers do (torch's F.interpolate with
    align_corners=False); the aspect ratio is not kept.
    """
    x = frames.astype(np.float32)  # (F, H, W, 3)
    x = _interpolate(x, 1, resolution)  # (F, resolution, W, 3)
    x = _interpolate(x, 2, resolution)  # (F, resolution, resolution, 3)
    return np.ascontiguousarray((x * np.float32(2 / 255) - np.float32(1)).transpose(3, 0, 1, 2))


def _interpolate(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    old = x.shape[axis]
    if old == size:
        return x
    centres = np.clip((np.arange(size) + 0.5) * (old / size) - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    share = (centres - low).astype(np.float32).reshape(shape)
    first = np.take(x, low, axis)
    return first + (np.take(x, high, axis) - first) * share
