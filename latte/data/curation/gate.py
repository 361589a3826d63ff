"""The gate between the catalog and the plan: measure what is new, judge, hand on what stays."""

from latte import storage
from latte.data.config import EncodeConfig
from latte.data.curation import measured
from latte.data.curation.config import CurateConfig
from latte.data.curation.measuring import Measure
from latte.data.curation.rules import Decisions, judge
from latte.data.entries import Catalog
from latte.errors import UserError
from latte.storage import manifest
from latte.video.decoders import Limits


def decide(config: EncodeConfig, rules: CurateConfig, catalog: Catalog) -> Decisions:
    """Decide what of a catalog stays; nothing but the numbers is kept.

    Raises:
        StorageError: the store does not answer.
    """
    # Shots are counted after the cut, so that all of a video has to be looked at.
    whole = rules.shots is not None and rules.shots.on_cut != "reject"
    settings = Measure(
        frame_side=rules.frame_side,
        frame_stride=config.frame_stride,
        max_frames=None if whole else config.max_frames,
        threshold=None if rules.shots is None else rules.shots.threshold,
        bar_level=None if rules.letterbox is None else rules.letterbox.level,
    )
    by_etag = storage.etags_tell_content(config.dataset.videos) and config.dataset.s3_digest == "etag"
    folder = measured.place(config.root, config.name, settings)
    limits = Limits(config.decode_limit_s, config.decode_memory_gb)
    numbers = measured.measure_all(catalog.entries, folder, settings, config.decode_workers, limits, by_etag)
    taken = [] if rules.doubles is None else measured.taken(config.root, config.name)
    return judge(catalog, rules, numbers, config.frame_stride, taken)


def curated(config: EncodeConfig, catalog: Catalog) -> Catalog:
    """The catalog that is left, and a note of what was taken in, for later near-doubles of it.

    Raises:
        UserError: too many videos would be left out.
        StorageError: the store does not answer.
    """
    if config.curate is None:
        return catalog
    decisions = decide(config, config.curate, catalog)
    lost, total, most = len(decisions.lost), len(catalog.entries), config.curate.max_reject_share
    if total and (lost > most * total or lost == total):
        allowed = "so none is left" if lost == total else f"more than curate.max_reject_share={most:g} allows"
        raise UserError(
            f"encode.curate: {lost} of {total} videos would be left out, {allowed}; `latte curate` shows them:\n"
            + "\n".join(manifest.reject_rows([r for r in decisions.catalog.rejects if r not in catalog.rejects]))
        )
    if config.curate.doubles is not None:
        contents = [entry.content for entry in decisions.catalog.entries]
        measured.take(config.root, config.name, contents)
    return decisions.catalog
