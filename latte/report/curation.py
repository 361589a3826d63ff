"""A page that shows what curation leaves out and changes, rule by rule, with pictures: one file, nothing beside it."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latte.config import Config
from latte.data.curation.config import CurateConfig
from latte.data.curation.rules import Candidate, Decisions
from latte.progress import progress
from latte.video.decoder_process import DecodeTask
from latte.video.decoders import Chunk, Decoder, Limits, decode_one
from latte.video.sources import VideoSource
from latte.video.views import View

# Of each rule; a page of all of them would be too large to open.
MOST_PICTURES = 24
_FRAMES = 3
_SIDE = 240
_QUALITY = 80

Frames = Callable[[Candidate, View, int], list[np.ndarray]]


def counts(decisions: Decisions, rules: CurateConfig) -> list[dict[str, Any]]:
    """Numbers of each rule that is on: what it leaves out, what only it does, and what it changes, in words."""
    rows = []
    for name in rules.rules:
        taken = [each for each in decisions.candidates if name in _names(each)]
        rows.append(
            {
                "name": name,
                "settings": _settings(getattr(rules, name)),
                "count": len(taken),
                "alone": sum(set(_names(each)) == {name} for each in taken),
                "changes": _changes(decisions, rules, name),
            }
        )
    return rows


def headline(decisions: Decisions) -> str:
    """Result of curation in a sentence."""
    stay = len(decisions.catalog.entries)
    left_out = sum(bool(each.reasons) for each in decisions.candidates)
    videos = len({each.video.id for each in decisions.candidates})
    return (
        f"Of {_many(videos, 'video')}, {len(decisions.lost):,} would be left out; "
        f"{_many(stay, 'clip')} would be encoded, {left_out:,} not"
    )


def page(decisions: Decisions, rules: CurateConfig, name: str, videos: str, limits: Limits) -> str:
    """The page as HTML.

    Args:
        decisions: to show.
        rules: the settings.
        name: of the dataset.
        videos: the dataset's place.
        limits: of decoding one video.

    Raises:
        StorageError: the store does not answer.
    """
    import jinja2

    rows = counts(decisions, rules)
    shown = {row["name"]: _shown(decisions, row["name"]) for row in rows}
    total = sum(len(cells) for cells in shown.values())
    with Decoder(limits) as decoder, progress(total=total, desc="pictures", unit="video") as bar:

        def frames(candidate: Candidate, view: View, count: int) -> list[np.ndarray]:
            return _frames(decoder, candidate, view, count)

        for row in rows:
            row["cells"] = []
            for candidate in shown[row["name"]]:
                row["cells"].append(_cell(candidate, decisions, row["name"], frames))
                bar.update(1)
            row["text"] = _text(row)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(name=name, videos=videos, headline=headline(decisions), rules=rows)


def _names(candidate: Candidate) -> list[str]:
    return [reason.rule for reason in candidate.reasons]


def _settings(rule: Config) -> str:
    return ", ".join(f"{key}={value}" for key, value in rule.model_dump().items())


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _changes(decisions: Decisions, rules: CurateConfig, name: str) -> str:
    """Changes that a rule makes to what stays, in words."""
    stay = [each for each in decisions.candidates if not each.reasons]
    if name == "letterbox":
        return f"crops {_many(len({each.video.id for each in stay if _is_cropped(each)}), 'video')}"
    if name == "shots" and rules.shots is not None and rules.shots.on_cut != "reject":
        cut = [each for each in stay if _is_cut(each)]
        videos = len({each.video.id for each in cut})
        return f"takes {_many(len(cut), 'shot')} of {_many(videos, 'video')}"
    return ""


def _is_cropped(candidate: Candidate) -> bool:
    return candidate.entry.view is not None and candidate.entry.view.crop is not None


def _is_cut(candidate: Candidate) -> bool:
    view = candidate.entry.view
    return view is not None and (view.start, view.stop) != (0, None)


def _shown(decisions: Decisions, name: str) -> list[Candidate]:
    """Candidates that a rule is shown by: those that it leaves out, then those that it changes."""
    found = [each for each in decisions.candidates if name in _names(each)]
    changed = {"letterbox": _is_cropped, "shots": _is_cut}.get(name)
    if changed is not None:
        found += [each for each in decisions.candidates if not each.reasons and changed(each)]
    return found[:MOST_PICTURES]


def _text(row: dict[str, Any]) -> str:
    more = "" if len(row["cells"]) < MOST_PICTURES else f" The first {MOST_PICTURES} are shown."
    done = f"It {row['changes']}. " if row["changes"] else ""
    return f"{done}It leaves out {row['count']:,}, of which no other rule would {row['alone']:,}.{more}"


def _cell(candidate: Candidate, decisions: Decisions, name: str, frames: Frames) -> dict[str, Any]:
    view = candidate.entry.view or View()
    reasons = [reason for reason in candidate.reasons if reason.rule == name]
    text = reasons[0].text if reasons else f"stays, {_told(view)}"
    # Bars are shown as they are, then what is kept.
    whole = name == "letterbox"
    pictures = [_strip(frames(candidate, View(view.start, view.stop) if whole else view, _FRAMES))]
    if whole and view.crop is not None:
        pictures.append(_strip(frames(candidate, view, _FRAMES)))
    for reason in reasons if name == "doubles" else ():
        others = (each for each in decisions.candidates if each.entry.id == reason.like)
        pictures += [_strip(frames(other, other.entry.view or View(), _FRAMES)) for other in others]
    return {"title": candidate.entry.id, "reason": text, "pictures": [picture for picture in pictures if picture]}


def _told(view: View) -> str:
    parts = []
    if (view.start, view.stop) != (0, None):
        parts.append(f"frames {view.start} to {view.stop}")
    if view.crop is not None:
        left, top, width, height = view.crop
        parts.append(f"cropped to {width}x{height} from {left}, {top}")
    return " and ".join(parts)


def _frames(decoder: Decoder, candidate: Candidate, view: View, count: int) -> list[np.ndarray]:
    """A few frames of a view; none where it cannot be decoded."""
    shot = candidate.shot
    length = count if shot is None else shot.stop - shot.start
    found: list[np.ndarray] = []
    task = DecodeTask("", _SIDE, 1, view.start, max(1, length // count), count, whole=True, crop=view.crop)
    for event in decode_one(decoder, 0, VideoSource(candidate.entry.uri), task):
        if isinstance(event, Chunk):
            found += list(event.frames)
    return found


def _strip(frames: Sequence[np.ndarray]) -> str:
    """Frames side by side as a data URI of a JPEG; "" without frames."""
    from PIL import Image

    if not frames:
        return ""
    written = io.BytesIO()
    Image.fromarray(np.concatenate(frames, axis=1)).save(written, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
