"""Settings of curation: each rule is a section, and is off where its section is not there."""

from typing import Literal

from pydantic import Field, model_validator

from latte.config import Config


class ShotsRule(Config):
    """Cuts, as PySceneDetect's content detector finds them: no clip spans one."""

    on_cut: Literal["split", "longest", "reject"] = Field(
        default="split",
        description="split: each shot becomes a video of its own; longest: only the longest one stays; reject: a video "
        "with a cut is left out",
    )
    threshold: float = Field(
        default=27.0, gt=0, le=255, description="change of hue, saturation and brightness, on average, that is a cut"
    )
    min_frames: int = Field(
        default=16, gt=0, description="encoded frames of a shot at least; shorter ones are left out"
    )


class ShareRule(Config):
    """Most that a share of bad frames may be."""

    max_share: float = Field(default=0.5, ge=0, lt=1, description="share of such frames that a video may have")


class FlickerRule(Config):
    """Brightness that jumps up and down from frame to frame."""

    max_levels: float = Field(
        default=4.0,
        gt=0,
        le=255,
        description="levels of 0 to 255 by which a frame's brightness may differ from the mean of its neighbours'",
    )


class MotionRule(Config):
    """Speed of what is seen, by optical flow: per cent of the longer side from frame to frame, on average."""

    min_percent: float | None = Field(default=0.02, ge=0, le=100, description="least motion; null: any")
    max_percent: float | None = Field(default=4.0, gt=0, le=100, description="most motion; null: any")

    @model_validator(mode="after")
    def _in_order(self) -> "MotionRule":
        if self.min_percent is not None and self.max_percent is not None and self.min_percent > self.max_percent:
            raise ValueError(f"min_percent {self.min_percent:g} is more than max_percent {self.max_percent:g}")
        return self


class SizeRule(Config):
    """Resolution of the video, after bars are cropped."""

    min_side: int = Field(default=256, gt=0, description="pixels of a frame's shorter side at least")


class SharpnessRule(Config):
    """Variance of the Laplacian of frames of `frame_side`, the median of a video's frames."""

    min_variance: float = Field(default=20.0, gt=0, description="least variance; blurred frames have little")


class DoublesRule(Config):
    """Videos that show what another one shows, whatever their size and compression, by perceptual hashes."""

    max_distance: float = Field(
        default=6.0, ge=0, lt=32, description="bits of 64 in which the hashes of two videos differ at most, on average"
    )


class LetterboxRule(Config):
    """Black bars around the picture: cropped, for encoding as for the real clips of scores."""

    level: float = Field(
        default=24.0, ge=0, lt=255, description="mean level of 0 to 255 that a row of a bar has at most"
    )


class CurateConfig(Config):
    """Rules by which videos are looked at, cut, cropped and left out."""

    shots: ShotsRule | None = Field(default=None, description="cuts: split videos at them, or leave such videos out")
    letterbox: LetterboxRule | None = Field(default=None, description="crop black bars")
    size: SizeRule | None = Field(default=None, description="leave small videos out")
    black: ShareRule | None = Field(default=None, description="leave black videos out")
    frozen: ShareRule | None = Field(default=None, description="leave videos out whose frames repeat")
    flicker: FlickerRule | None = Field(default=None, description="leave flickering videos out")
    motion: MotionRule | None = Field(default=None, description="leave out what hardly moves, or moves too fast")
    sharpness: SharpnessRule | None = Field(default=None, description="leave blurred videos out")
    doubles: DoublesRule | None = Field(default=None, description="leave near-doubles out; what came first stays")
    frame_side: int = Field(default=256, ge=32, le=1024, description="longer side of the frames that are looked at")
    max_reject_share: float = Field(
        default=0.5, ge=0, le=1, description="larger shares of videos of which nothing would be left are fatal"
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> "CurateConfig":
        if not self.rules:
            raise ValueError(f"curate has no rule; name some of {', '.join(RULES)}, or leave curate out")
        return self

    @property
    def rules(self) -> list[str]:
        """Names of the rules that are on."""
        return [name for name in RULES if getattr(self, name) is not None]


RULES = ("shots", "letterbox", "size", "black", "frozen", "flicker", "motion", "sharpness", "doubles")
