"""What a person sees every morning: reports of three nights and of a set in bulk, opened in headless Chromium."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latte import units
from latte.config import build
from latte.errors import UserError
from latte.facts import ReportFacts
from latte.steps import report
from latte.storage import manifest
from tests import report_run
from tests.browser import Browser

TITLES = "[...document.querySelectorAll('.titles')][0].innerText.split('\\n').filter(Boolean)"
BARS = "[...document.querySelector('.bars').querySelectorAll('li > span:first-child')].map(bar => bar.textContent)"
CHARTS = (
    "[...document.querySelectorAll('svg.trend')].map(s => [...s.querySelectorAll('circle')])"
    ".map(circles => circles.map(c => c.className.baseVal))"
)
WIDTHS = "[...document.querySelector('.bars').querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, manifest.Manifest, dict[str, Any]]]:
    """Three nights: the first model, a better one on more videos, a worse one; then a set in bulk."""
    folder = tmp_path_factory.mktemp("nights")
    nights = report_run.Nights.begun(folder)
    made = {}
    for name, value, before, new in [("first", 100.0, 180.0, 0), ("second", 60.0, 101.0, 1), ("third", 75.0, 61.5, 2)]:
        keys = {**nights.night(value, before, new), "output": str(folder / f"{name}.html")}
        made[name] = (folder / f"{name}.html", report.run(build(report.ReportConfig, keys, "test")), keys)
    keys = {**nights.set_in_bulk(62.0), "output": str(folder / "bulk.html")}
    made["bulk"] = (folder / "bulk.html", report.run(build(report.ReportConfig, keys, "test")), keys)
    return made


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def today() -> str:
    return units.day(datetime.now(UTC).isoformat())


def text_of(browser: Browser) -> str:
    return " ".join(browser.evaluate("document.body.innerText").split())


def opened(browser: Browser, page: Path, width: int = 1280) -> str:
    browser.open(page, width, height=1000)
    assert browser.problems == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(os.environ.get("LATTE_SCREENSHOTS") or page.parent)
    Image.fromarray(browser.screenshot(full_page=True)).save(folder / f"night-{page.stem}-{width}.png")
    return text_of(browser)


def test_the_first_night_says_that_nothing_was_promoted_before(browser, pages, today):
    text = opened(browser, pages["first"][0])
    assert browser.evaluate("document.querySelector('h1').textContent") == "Tonight's model was promoted, as the first"
    assert "The first model under this name" in text
    assert "no score to hold tonight's against" in text
    assert "Clips of the untrained model" in text
    assert browser.evaluate(TITLES) == ["Real", "Reconstructed", f"Tonight's model, {today}", "Untrained"]
    assert "The last nights" not in text, "there is no trend of one night"


def test_the_second_night_names_both_models_and_tells_the_decision_first(browser, pages, today):
    text = opened(browser, pages["second"][0])
    assert browser.evaluate("document.querySelector('h1').textContent") == "Tonight's model was promoted"
    roles = [f"Tonight's model, {today}", f"Promoted until tonight, {today}"]
    assert browser.evaluate(TITLES) == ["Real", "Reconstructed", *roles]
    assert browser.evaluate(BARS) == roles
    shorter, longer = browser.evaluate(WIDTHS)
    assert 0.5 < shorter / longer < 0.65
    for part in (
        "Fréchet distance 60 is within the limit 100 (promoted: 100)",
        "its interval lies below the promoted one's",
        f"new videos since {today} 2",
        f"Since the report of {today}: 2 new videos with 40 frames, none newly left out.",
        "entry 1, promoted on",
    ):
        assert part in text
    assert "no score of the model before" not in text
    made = pages["second"][1]
    assert made.metrics["verdict"] == "Tonight's model was promoted"
    assert {key: made.metrics[f"frechet_random_i3d {key}"] for key in roles} == {roles[0]: 60.0, roles[1]: 101.0}


def test_the_third_night_was_refused_and_says_why_with_the_trend_of_all_three(browser, pages, today):
    text = opened(browser, pages["third"][0])
    assert browser.evaluate("document.querySelector('h1').textContent") == "Tonight's model was not promoted"
    roles = [f"Tonight's model, {today}", f"Promoted model, {today}"]
    assert browser.evaluate(BARS) == roles
    for part in (
        "Fréchet distance 75 is above the limit 60 (promoted: 60)",
        "Promoted still entry 2, promoted on",
        "new videos since",
        f"Since the report of {today}: 4 new videos",
        "Nights, the newest first",
    ):
        assert part in text
    assert browser.evaluate(CHARTS) == [["filled", "filled", "hollow"]] * 3  # score, loss, time
    rows = browser.evaluate(
        "[...document.querySelectorAll('.nights tbody tr')].map(r => r.innerText.split('\\t').slice(1, 4))"
    )
    assert rows == [["not promoted", "75.0", "61.5"], ["promoted", "60.0", "101"], ["promoted", "100", "180"]]
    night = ReportFacts.of(pages["third"][1]).night
    assert night is not None
    assert (night.value, night.before, night.promoted, night.videos) == (75.0, 61.5, False, 10)


def test_what_the_page_links_to_is_on_it_and_says_its_place(browser, pages):
    opened(browser, pages["third"][0], 390)
    links = browser.evaluate(
        "[...document.querySelectorAll('#decision a')].map(a => [a.textContent, !!document.querySelector(a.hash), "
        "a.closest('tr').querySelector('code').textContent])"
    )
    assert len(links) == 5
    assert all(there for _, there, _ in links)
    assert links[0][0] == "The decision"
    assert links[0][2].startswith("registry/demo/decisions/")
    assert [place.split("/")[0] for _, _, place in links[1:]] == ["videos", "videos", "scores", "scores"]


def test_a_set_in_bulk_has_a_page_of_its_own(browser, pages, today):
    text = opened(browser, pages["bulk"][0])
    headline = browser.evaluate("document.querySelector('h1').textContent")
    assert headline == f"6 clips of the model demo that was promoted on {today}"
    assert "Fréchet distance to real clips: 62.0 (95 % interval 57.0 to 68.2)." in text
    assert browser.evaluate(TITLES) == ["Real", "Reconstructed", f"Promoted model, {today}"]
    assert "The decision" not in text
    assert "Loss" not in text
    clips = browser.evaluate("[...document.images].filter(i => i.alt.includes('clip 0 of class')).length")
    assert clips == 1


def test_the_clips_of_both_models_are_those_of_their_sets(browser, pages):
    browser.open(pages["third"][0], 1280, height=6000, calm=True)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.group .row')].slice(0, 1).flatMap(r => [...r.querySelectorAll('.film')])"
        ".map(f => f.getBoundingClientRect()).map(b => [b.x, b.y, b.width].map(Math.round))"
    )
    picture = browser.screenshot()
    after, before = (picture[y : y + size, x : x + size].astype(int) for x, y, size in boxes[2:])
    assert np.abs(after - before).mean() > 1, "one set in both columns"


def test_the_same_night_again_is_the_same_page(pages):
    page, made, keys = pages["third"]
    assert report.run(build(report.ReportConfig, keys, "test")) == made
    assert page.read_bytes() == Path(made.shard("/report.html").uri.removeprefix("file://")).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promotion": None}, "about=night and promotion go together"),
        ({"about": "training"}, "about=night and promotion go together"),
        ({"about": "set", "promotion": None}, "about=set takes one of video_sets"),
    ],
)
def test_what_does_not_go_together_is_refused(pages, change, message):
    with pytest.raises(UserError, match=message):
        build(report.ReportConfig, {**pages["second"][2], **change}, "test")
