"""Three nights of `nightly_retrain` on growing data, the last one made worse on purpose, then a set in bulk."""

import html
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from latte import storage, units
from latte.facts import ReportFacts
from latte.storage import manifest, registry
from pipelines.demo.data import cut_demo_clips
from pipelines.store import BUCKET, Store
from tests.e2e import runs

ROOT = f"s3://{BUCKET}/nightly"
# So small a model makes nothing that the demo's detector could tell apart; random weights tell noise from less noise.
DETECTOR = {"detector": {"kind": "i3d", "source": "random", "seed": 21, "model": {"image_size": 64}}}
SETTINGS = {**runs.TINY, **DETECTOR, "encode.num_tasks": 1, "sample.num_tasks": 1, "train.ema_decay": 0.5}
# Hardly trained at all, then trained, then shaken.
NIGHTS = [
    {"train.steps": 1, "train.learning_rate": 1e-6},
    {"train.steps": 60, "train.learning_rate": 2e-3, "train.batch_size": 4},
    {"train.steps": 6, "train.learning_rate": 0.1},
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """All clips of the demo, by class."""
    folder = tmp_path_factory.mktemp("all-clips")
    cut_demo_clips(folder)
    return {group.name: sorted(group.glob("*.mp4")) for group in sorted(folder.iterdir()) if group.is_dir()}


def add_clips(clips: dict[str, list[Path]], folder: Path, places: slice) -> int:
    added = [(name, clip) for name, group in clips.items() for clip in group[places]]
    for name, clip in added:
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    return len(added)


def told(run_dir: Path) -> str:
    """The text of a run's report, without what only a browser makes of it."""
    page = (run_dir / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.partition("</style>")[2])).split())


def manifests(kind: str) -> dict[str, manifest.Manifest]:
    found = {uri: manifest.read(uri) for uri in storage.list_uris(ROOT) if uri.endswith("/manifest.json")}
    return {uri: made for uri, made in found.items() if made.kind == kind and "/registry/" not in uri}


def encoded_items() -> dict[str, int]:
    records = [uri for uri in storage.list_uris(f"{ROOT}/datasets") if uri.endswith(manifest.RECORD_SUFFIX)]
    return {uri: storage.read_json(uri)["shard"]["items"] for uri in records}


def test_three_nights_and_a_set_in_bulk(store: Store, clips: dict[str, list[Path]], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    entries, items, sets, pages = [], [], [], []
    for number, night in enumerate(NIGHTS):
        added = add_clips(clips, videos, slice(0, 2) if number == 0 else slice(number + 1, number + 2))
        before = encoded_items()
        run = runs.start(
            tmp_path / f"night-{number}",
            "--pipeline", "nightly_retrain", "--root", ROOT,
            settings={**SETTINGS, **night, "encode.dataset.videos": str(videos)},
        )  # fmt: skip
        assert run.finish() == 0, run.output
        assert not runs.torch_imports(run.run_dir).exists()
        pages.append(told(run.run_dir))
        entry, _ = registry.read_current(ROOT, "demo")
        assert entry is not None
        entries.append(entry)
        sets.append(manifests("video_set"))
        items.append(sum(count for uri, count in encoded_items().items() if uri not in before))
        assert items[-1] == added, "a night encodes what is new, nothing else"
        assert ("promotion: promoted: " in run.output) == (number < 2), run.output

    day = units.day(datetime.now(UTC).isoformat())
    for page, headline, before in zip(
        pages,
        ("was promoted, as the first", "was promoted", "was not promoted"),
        ("Untrained", f"Promoted until tonight, {day}", f"Promoted model, {day}"),
        strict=True,
    ):
        assert f"Tonight's model {headline}" in page
        assert f"Tonight's model, {day}" in page
        assert before in page
    assert "The last nights" not in pages[0]
    for page in pages[1:]:
        assert "Since the report of" in page
        assert "3 new videos" in page
        assert "Nights, the newest first" in page
    reports = [ReportFacts.of(made).night for made in manifests("report").values()]
    assert sorted(night.promoted for night in reports) == [False, True, True]
    assert all(None not in (night.value, night.before, night.loss) for night in reports)

    first, second, third = entries
    assert (first.number, second.number, third.number) == (1, 2, 2)
    assert third == second, "the worse model of the third night left the pointer as it was"
    trained = {made.inputs["init_from"]: made for made in manifests("checkpoint").values()}
    assert set(trained) == {"", first.weights_sha256, second.weights_sha256}, "every night went on from the promoted"
    # The model before a night is the one of the night that promoted it: its videos were not generated again.
    assert [len(each) for each in sets] == [2, 3, 4]
    decisions = [
        manifest.read(uri)
        for uri in storage.list_uris(f"{ROOT}/registry/demo/decisions")
        if uri.endswith("/manifest.json")
    ]
    compared = {made.metrics["promoted"]: made.metrics for made in decisions if "promoted_value" in made.metrics}
    assert compared[1]["value"] < compared[1]["limit"]
    assert compared[0]["value"] >= compared[0]["limit"]

    bulk = runs.start(
        tmp_path / "bulk",
        "--pipeline", "bulk_sample", "--root", ROOT,
        config="configs/demo/bulk_sample.yaml",
        settings={
            **DETECTOR, "encode.dataset.videos": str(videos),
            "sample.num_videos": 4, "sample.num_sampling_steps": 4, "sample.seed": 9, "score.protocol.num_clips": 4,
        },
    )  # fmt: skip
    assert bulk.finish() == 0, bulk.output
    assert f"4 clips of the model demo that was promoted on {day}" in told(bulk.run_dir)
    made = next(made for uri, made in manifests("video_set").items() if "/videos/bulk/" in uri)
    assert made.inputs["weights"] == second.weights_sha256
    assert any("/scores/bulk/" in uri for uri in manifests("score"))
