"""The report as a person sees it: written by the real step from a real run, opened in headless Chromium."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latte.config import build
from latte.errors import UserError
from latte.steps import report
from latte.storage import manifest
from tests import report_run
from tests.browser import Browser

CELLS = 2 * 2 * 4  # classes, rows of each, columns
PREVIEWS = len(report_run.CLASSES) * len(report_run.PREVIEW_STEPS)
RUN_AGAIN = """
import json, sys
from latte.steps import report
report.run(report.ReportConfig(**json.loads(sys.argv[1])))
print("mindspore" in sys.modules)
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return {**report_run.make_run(folder), "output": str(folder / "page.html"), "timings": {"train": 230.5}}


@pytest.fixture(scope="module")
def made(keys):
    return report.run(build(report.ReportConfig, keys, "test"))


@pytest.fixture(scope="module")
def page(keys, made):
    return Path(keys["output"])


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def keep(picture: np.ndarray, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LATTE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"report-{name}.png")


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("desktop", 1280, False), ("phone", 390, False), ("dark", 1280, True)]
)
def test_page_is_whole_and_fits_its_window(browser, page, tmp_path, name, width, dark):
    browser.open(page, width, dark=dark)
    keep(browser.screenshot(full_page=True), name, tmp_path)
    assert browser.problems == []
    assert browser.requests == [page.resolve().as_uri()]
    images = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt])")
    assert len(images) == CELLS + PREVIEWS
    for complete, natural_width, natural_height, text in images:
        assert complete
        assert (natural_width, natural_height) == (report_run.SIDE, report_run.SIDE * report_run.NUM_FRAMES)
        assert text
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 300) == dark


@pytest.mark.parametrize("width", [1280, 390])
def test_every_clip_moves(browser, page, width):
    browser.open(page, width, height=5000)
    cells = film_boxes(browser)
    assert len(cells) == CELLS + PREVIEWS
    before = browser.screenshot()
    time.sleep(0.3)
    after = browser.screenshot()
    for left, top, size in cells:
        window = np.s_[top : top + size, left : left + size]
        assert np.abs(before[window].astype(int) - after[window]).mean() > 0.5, (
            f"the clip at {left}, {top} stands still"
        )


def test_clips_can_be_held(browser, page):
    browser.open(page, 1280, height=4000)
    browser.evaluate("document.getElementById('pause').click()")
    before = browser.screenshot()
    time.sleep(0.3)
    assert np.array_equal(before, browser.screenshot())


def test_clips_stand_still_where_less_motion_is_asked_for(browser, page):
    browser.open(page, 1280, height=4000, calm=True)
    before = browser.screenshot()
    time.sleep(0.3)
    assert np.array_equal(before, browser.screenshot())


def test_a_window_shows_one_frame_and_nothing_of_its_neighbours(browser, page):
    browser.open(page, 1280, height=4000, calm=True)
    left, top, size = film_boxes(browser)[3]  # noise: untrained, so any shift by a line is seen
    assert size % report_run.SIDE == 0
    shown = browser.screenshot()[top : top + size, left : left + size]
    step = size // report_run.SIDE
    blocks = shown.reshape(report_run.SIDE, step, report_run.SIDE, step, 3)
    assert np.abs(blocks.astype(int) - blocks[:, :1, :, :1]).max(axis=(1, 3))[2:-2, 2:-2].max() <= 2


def test_hostile_names_stay_text(browser, page):
    browser.open(page, 1280)
    assert browser.evaluate("document.title") == "demo <i>&amp;: Latte report"
    assert browser.evaluate("document.querySelectorAll('script, iframe, object, img[onerror]').length") == 0
    assert browser.evaluate("[...document.images].every(image => image.src.startsWith('data:image/webp'))")
    text = browser.evaluate("document.body.textContent")
    for name in (*report_run.CLASSES, report_run.TRUNCATED):
        assert name in text
    alts = browser.evaluate("[...document.images].map(image => image.alt)")
    assert any(report_run.CLASSES[1] in alt and "film 0 <b>.mp4" in alt for alt in alts)
    assert alts[-PREVIEWS:] == [
        f"Step {step}: clip {clip} {name}"
        for clip, name in enumerate(report_run.CLASSES)
        for step in report_run.PREVIEW_STEPS
    ]


def test_page_tells_what_matters(browser, page):
    browser.open(page, 1280)
    text = " ".join(browser.evaluate("document.body.innerText").split())
    assert browser.evaluate("document.querySelector('h1').textContent").startswith("Training brought generated video")
    for part in (
        "188 before training, 41.2 after",
        "This is not FVD",
        "Kernel inception distance of frames (KID) to the real clips",
        "e" * 64,
        "4 videos with 80 frames",
        "1 file was left out",
        "4.61 million",
        "3 min 41 s",
        "3 min 50 s",
        "training step",
        "The model while it learned",
        "Step 100 Step 200",
    ):
        assert part in text
    for source in ("latents", "weights", "checkpoint", "video set", "score"):
        assert browser.evaluate(
            f"[...document.querySelectorAll('summary')].some(s => s.textContent.startsWith('{source}'))"
        )


def test_manifest_and_file(keys, made, page):
    shard = made.shard("/report.html")
    assert made.kind == "report"
    assert page.read_bytes() == Path(shard.uri.removeprefix("file://")).read_bytes()
    assert len(page.read_bytes()) == shard.bytes < 8_000_000
    assert b'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page.read_bytes()
    assert made.counts == {"clips": CELLS}
    assert made.metrics["frechet_random_i3d Generated, trained"] == 41.2


def test_second_run_writes_the_same_page_without_starting_mindspore(keys, made, tmp_path):
    again = {**keys, "timings": {}, "output": str(tmp_path / "again.html")}
    done = subprocess.run(
        [sys.executable, "-c", RUN_AGAIN, json.dumps(again)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[-1] == "False"
    assert (tmp_path / "again.html").read_bytes() == Path(keys["output"]).read_bytes()


def test_sets_of_other_runs_are_refused(keys, tmp_path):
    latents = manifest.read(keys["latents"])
    manifest.write(latents.model_copy(update={"inputs": {**latents.inputs, "vae": "0" * 64}}), tmp_path / "l.json")
    with pytest.raises(UserError, match="made by another autoencoder"):
        report.run(build(report.ReportConfig, {**keys, "latents": str(tmp_path / "l.json")}, "test"))
    alone = {**keys, "video_sets": keys["video_sets"][:1]}
    with pytest.raises(UserError, match="not among video_sets"):
        report.run(build(report.ReportConfig, alone, "test"))


def test_missing_browser_is_told_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="chromium is not installed: run `apt-get install -y chromium`"):
        Browser().__enter__()


def test_report_without_scores_says_so(keys, browser, tmp_path):
    page = tmp_path / "page.html"
    report.run(build(report.ReportConfig, {**keys, "scores": [], "clips_per_class": 1, "output": str(page)}, "test"))
    browser.open(page, 1280)
    assert browser.evaluate("document.querySelector('h1').textContent") == "This run has no score"
    assert browser.evaluate("document.images.length") == CELLS // 2 + PREVIEWS


def film_boxes(browser: Browser) -> list[tuple[int, int, int]]:
    """Left, top and width of every clip's window, in pixels."""
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.film')].map(f => f.getBoundingClientRect()).map(b => [b.x, b.y, b.width])"
    )
    return [(round(x), round(y), round(size)) for x, y, size in boxes]
