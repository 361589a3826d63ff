"""Decisions of curation: which shots of which videos stay, and why the others do not."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from latte.data.curation.config import CurateConfig
from latte.data.curation.doubles import doubles
from latte.data.curation.measuring import ShotNumbers, VideoNumbers
from latte.data.entries import Catalog, CatalogEntry
from latte.storage.manifest import Reject
from latte.video.views import View

# Beginning of the reason of a reject, before the rule's name.
PREFIX = "curate."


@dataclass(frozen=True)
class Reason:
    """A rule that leaves something out, its words, and of a near-double the id of what it is like."""

    rule: str
    text: str
    like: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A shot, or a whole video, that is judged.

    Attributes:
        entry: as it would be encoded.
        video: as the catalog lists it.
        shot: its numbers; None where it could not be decoded, which encoding tells.
        reasons: why it is left out, of all rules; empty: it stays.
    """

    entry: CatalogEntry
    video: CatalogEntry
    shot: ShotNumbers | None = None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Decisions:
    """Judged candidates in the order of the catalog, and the catalog that is left."""

    candidates: list[Candidate] = field(default_factory=list)
    catalog: Catalog = field(default_factory=lambda: Catalog([], [], []))

    @property
    def lost(self) -> list[str]:
        """Ids of the videos of which nothing stays."""
        stays = {each.video.id for each in self.candidates if not each.reasons}
        return list(dict.fromkeys(each.video.id for each in self.candidates if each.video.id not in stays))


def rule_of(reject: Reject) -> str | None:
    """The rule that has left something out; None for what was left out for another reason."""
    if not reject.reason.startswith(PREFIX):
        return None
    return reject.reason.removeprefix(PREFIX).partition(":")[0]


def judge(
    catalog: Catalog,
    rules: CurateConfig,
    measured: Mapping[str, VideoNumbers],
    frame_stride: int,
    taken: Sequence[str] = (),
) -> Decisions:
    """Judge the videos of a catalog.

    Args:
        catalog: as it was listed.
        rules: the settings.
        measured: numbers of each by its digest.
        frame_stride: every so many frames one was looked at.
        taken: contents that were taken in before; of near-doubles they stay, in this order; of the others the largest
            picture, then the largest file, then the first by name.
    """
    candidates = [
        each for entry in catalog.entries for each in _candidates(entry, measured[entry.digest], rules, frame_stride)
    ]
    if rules.doubles is not None:
        candidates = _without_doubles(candidates, rules.doubles.max_distance, measured, taken)
    entries = [each.entry for each in candidates if not each.reasons]
    rejects = [
        Reject(item=each.entry.id, reason=f"{PREFIX}{each.reasons[0].rule}: {each.reasons[0].text}")
        for each in candidates
        if each.reasons
    ]
    rejects = sorted([*catalog.rejects, *rejects], key=lambda reject: (reject.item, reject.reason))
    return Decisions(candidates, replace(catalog, entries=entries, rejects=rejects))


def _candidates(
    entry: CatalogEntry, measured: VideoNumbers, rules: CurateConfig, frame_stride: int
) -> Iterator[Candidate]:
    if measured.problem is not None or not measured.shots:
        yield Candidate(entry, entry)
        return
    shots, total = measured.shots, measured.shots[-1].stop
    whole = _seen(entry, View(crop=measured.crop), entry.id)
    if rules.shots is not None and len(shots) > 1:
        longest = max(shots, key=lambda shot: (shot.stop - shot.start, -shot.start))
        if rules.shots.on_cut == "reject":
            first = shots[1].start * frame_stride
            cut = Reason("shots", f"{_many(len(shots) - 1, 'cut')}, the first before frame {first}")
            yield Candidate(whole, entry, longest, (cut, *_reasons(longest, measured, rules)))
            return
        least = rules.shots.min_frames
        if longest.stop - longest.start < least:
            count = _many(longest.stop - longest.start, "frame")
            short = Reason("shots", f"its longest shot has {count}, min_frames is {least}")
            yield Candidate(whole, entry, longest, (short,))
            return
        for group in _neighbours(shots if rules.shots.on_cut == "split" else (longest,), least):
            start, stop = group[0].start * frame_stride, group[-1].stop * frame_stride
            name = f"{entry.id}#{start}-{stop}" if rules.shots.on_cut == "split" else entry.id
            part = _seen(entry, View(start, stop, measured.crop), name)
            part = replace(part, bytes=max(1, entry.bytes * (group[-1].stop - group[0].start) // total))
            if group[0].stop - group[0].start < least:
                short = Reason("shots", f"{_many(len(group), 'shot')} of fewer frames than min_frames, {least}")
                yield Candidate(part, entry, group[0], (short,))
            else:
                yield Candidate(part, entry, group[0], tuple(_reasons(group[0], measured, rules)))
        return
    yield Candidate(whole, entry, shots[0], tuple(_reasons(shots[0], measured, rules)))


def _seen(entry: CatalogEntry, view: View, name: str) -> CatalogEntry:
    """A view of a video as an entry; all of a video is the video, encoded before or not."""
    if view == View():
        return entry
    return replace(entry, id=name, digest=entry.digest + view.mark, view=view)


def _neighbours(shots: Sequence[ShotNumbers], least: int) -> Iterator[tuple[ShotNumbers, ...]]:
    """Each shot by itself, and those together that follow each other and are all too short: one line tells of them."""
    for short, group in itertools.groupby(shots, lambda shot: shot.stop - shot.start < least):
        if short:
            yield tuple(group)
        else:
            yield from ((shot,) for shot in group)


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _reasons(shot: ShotNumbers, measured: VideoNumbers, rules: CurateConfig) -> Iterator[Reason]:
    width, height = measured.picture
    if rules.size is not None and min(width, height) < rules.size.min_side:
        bars = "" if measured.crop is None else " without its bars"
        yield Reason("size", f"{width}x{height} pixels{bars}, min_side is {rules.size.min_side}")
    if rules.black is not None and shot.black > rules.black.max_share:
        yield Reason("black", f"{shot.black:.3g} of its frames are black, max_share is {rules.black.max_share:g}")
    if rules.frozen is not None and shot.frozen > rules.frozen.max_share:
        share = rules.frozen.max_share
        yield Reason("frozen", f"{shot.frozen:.3g} of its frames repeat the one before, max_share is {share:g}")
    if rules.flicker is not None and shot.flicker > rules.flicker.max_levels:
        levels = rules.flicker.max_levels
        yield Reason("flicker", f"brightness jumps by {shot.flicker:.3g} levels a frame, max_levels is {levels:g}")
    if rules.motion is not None and shot.motion is not None:
        least, most = rules.motion.min_percent, rules.motion.max_percent
        if least is not None and shot.motion < least:
            yield Reason("motion", f"too little: {shot.motion:.3g} % a frame, min_percent is {least:g}")
        if most is not None and shot.motion > most:
            yield Reason("motion", f"too much: {shot.motion:.3g} % a frame, max_percent is {most:g}")
    if rules.sharpness is not None and shot.sharpness < rules.sharpness.min_variance:
        least = rules.sharpness.min_variance
        yield Reason("sharpness", f"variance of the Laplacian {shot.sharpness:.3g}, min_variance is {least:g}")


def _without_doubles(
    candidates: list[Candidate], max_distance: float, measured: Mapping[str, VideoNumbers], taken: Sequence[str]
) -> list[Candidate]:
    def order(number: int) -> tuple[int, int, int, int]:
        video = candidates[number].video
        # Steps of 1.4 times as many pixels: a cropped line more or less says nothing of the quality.
        size = round(2 * math.log2(math.prod(measured[video.digest].picture)))
        return rank.get(video.digest, len(rank)), -size, -video.bytes, number

    rank = {content: number for number, content in enumerate(taken)}
    # What another rule leaves out drives nothing else out.
    asked = [number for number, each in enumerate(candidates) if each.shot is not None and not each.reasons]
    asked.sort(key=order)
    hashes = [shot.hashes for number in asked if (shot := candidates[number].shot) is not None]
    judged = list(candidates)
    for number, found in zip(asked, doubles(hashes, max_distance), strict=True):
        if found is not None:
            other, apart = candidates[asked[found[0]]].entry.id, found[1]
            reason = Reason("doubles", f"shows what {other!r} shows, {apart:.3g} of 64 bits apart", like=other)
            judged[number] = replace(judged[number], reasons=(reason,))
    return judged
