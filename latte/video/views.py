"""Parts of videos: some of the frames, without what lies around the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Left and top edge, width and height, in pixels of an upright frame.
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class View:
    """A part of a video that stands for a video of its own.

    Attributes:
        start: first frame, counted in the video.
        stop: the frame behind the last one; None: all to the end.
        crop: what is left of every frame; None: all of it.
    """

    start: int = 0
    stop: int | None = None
    crop: Box | None = None

    @classmethod
    def of(cls, row: Sequence[Any] | None) -> "View | None":
        """The view that a document's row is of; None where there is none."""
        if row is None:
            return None
        start, stop, crop = row
        return cls(start, stop, None if crop is None else _box(crop))

    @property
    def row(self) -> list[Any]:
        """The view as documents keep it."""
        return [self.start, self.stop, None if self.crop is None else list(self.crop)]

    @property
    def mark(self) -> str:
        """End of the digest of what lies in the view, behind that of the video's content."""
        frames = "" if (self.start, self.stop) == (0, None) else f"-frames{self.start}to{self.stop}"
        return frames + ("" if self.crop is None else "-crop" + "x".join(map(str, self.crop)))

    def count(self, stride: int) -> int | None:
        """Number of frames in it when every `stride`-th is taken; None where it goes on to the end."""
        return None if self.stop is None else -(-(self.stop - self.start) // stride)


def _box(values: Sequence[int]) -> Box:
    left, top, width, height = values
    return left, top, width, height
