import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from latte import units
from latte.data.latents import EncodedVideo
from latte.errors import UserError
from latte.metrics import names
from latte.report import grid, metric_words, plots, words
from latte.report.words import SetLabel
from latte.steps import report
from latte.storage.manifest import Manifest

TRAINED = SetLabel("Generated, trained", "trained")
SVG = "{http://www.w3.org/2000/svg}"
positive = st.floats(1e-6, 1e9)


def score(value, low=None, high=None, metric="frechet_random_i3d", **protocol):
    interval = {"interval_low": low, "interval_high": high} if low is not None else {}
    return Manifest(
        kind="score",
        name="s",
        uri="file:///s",
        fingerprint="f",
        config={"protocol": {"resolution": 64, **protocol}},
        inputs={"videos": f"digest of {value}"},
        metrics={metric: value, "clips": 48, **interval},
    )


def board(trained, untrained):
    return drawn((trained, TRAINED), (untrained, SetLabel("Generated, untrained", "untrained", True)))


def drawn(*pairs):
    """The board of the first metric of scores with their labels."""
    members = [words.Member(score, names.values_of(score)[names.metric_of(score)], label) for score, label in pairs]
    return words.board(names.metric_of(pairs[0][0]), members)


def parse(svg):
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


# The curve


@given(low=positive, factor=st.floats(1.0, 1e6), count=st.integers(2, 9))
@example(low=1.0, factor=1.0000000000000002, count=2)
def test_ticks_enclose_the_values_and_are_few(low, factor, count):
    high = low * factor
    ticks = plots.nice_ticks(low, high, count)
    assert ticks[0] <= low * (1 + 1e-6)
    assert ticks[-1] >= high * (1 - 1e-6)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= count + 2


@given(low=positive, factor=st.floats(1.0, 1e6))
@example(low=999999.9999999999, factor=1.0)
def test_log_ticks_enclose_the_values(low, factor):
    ticks = plots.log_ticks(low, low * factor)
    assert ticks[0] <= low
    assert ticks[-1] >= low * factor
    assert ticks == sorted(set(ticks))


@given(losses=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), width=st.sampled_from([350, 844]))
def test_every_point_of_a_curve_lies_inside_its_drawing(losses, width):
    svg = parse(plots.line_chart(range(1, len(losses) + 1), losses, "t", "step", "loss", width=width, height=300))
    for line in svg.findall(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == len(losses)
        assert all(0 <= x <= width and 0 <= y <= 300 for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_a_curve_has_title_and_axis_labels_and_no_markup_of_others():
    svg = parse(plots.line_chart([1, 100], [1.0, 0.01], "<b>loss</b> & more", "training step", "loss"))
    assert svg.find(f"{SVG}title").text == "<b>loss</b> & more"
    labels = [text.text for text in svg.findall(f"{SVG}text") if text.get("class") == "label"]
    assert labels == ["training step", "loss (log scale)"]
    falling = next(line.get("points").split() for line in svg.findall(f"{SVG}polyline"))
    assert float(falling[0].split(",")[1]) < float(falling[1].split(",")[1])  # y runs down in SVG


def test_a_curve_without_points_is_refused():
    with pytest.raises(ValueError, match="got 0 and 0"):
        plots.line_chart([], [], "t", "x", "y")


def test_moving_average_keeps_constants_and_smooths_noise():
    assert plots.moving_average([3.0] * 7) == [3.0] * 7
    noise = np.random.default_rng(0).normal(size=200)
    assert np.std(plots.moving_average(noise)) < 0.5 * np.std(noise)


# The strips


def test_a_strip_holds_every_frame_in_order():
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[np.arange(5), ..., 0] = np.arange(5)[:, None, None] * 50
    strip = np.asarray(Image.open(io.BytesIO(plots.filmstrip(frames, 90, 64))))
    assert strip.shape == (160, 48, 3)
    for index in range(5):
        assert abs(strip[index * 32 : index * 32 + 32, ..., 0].astype(int) - index * 50).mean() < 6


@pytest.mark.parametrize(("shape", "size"), [((16, 256, 128, 3), (32, 1024)), ((200, 200, 200, 3), (64, 12800))])
def test_a_strip_of_large_frames_is_scaled_down(shape, size):
    strip = Image.open(io.BytesIO(plots.filmstrip(np.zeros(shape, np.uint8), 90, 64)))
    assert strip.size == size


def test_a_strip_never_exceeds_what_webp_can_hold():
    strip = Image.open(io.BytesIO(plots.filmstrip(np.zeros((300, 96, 96, 3), np.uint8), 60, 192)))
    assert strip.size[1] % 300 == 0
    assert strip.size[1] <= 16383


# Which clips


def entries(labels, num_frames):
    return [
        EncodedVideo(str(i), label, frames, f"file:///{i}", 0, 0)
        for i, (label, frames) in enumerate(zip(labels, num_frames, strict=True))
    ]


@given(
    videos=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 60)), min_size=1, max_size=40),
    stride=st.integers(1, 3),
    per_class=st.integers(1, 3),
    max_rows=st.integers(1, 9),
)
def test_rows_are_whole_clips_of_as_many_classes_as_fit(videos, stride, per_class, max_rows):
    made = entries(*zip(*videos, strict=True))
    span = 7 * stride + 1
    usable = {label for label, frames in videos if frames >= span}
    if not usable:
        with pytest.raises(UserError, match=f"has the {span} frames"):
            grid.pick_real(made, 8, stride, per_class, max_rows)
        return
    rows = grid.pick_real(made, 8, stride, per_class, max_rows)
    assert len({row.index for row in rows}) == len(rows) <= max_rows
    assert {row.label for row in rows} == set(sorted(usable)[:max_rows])
    assert [row.label for row in rows] == sorted(row.label for row in rows)
    assert all(row.start >= 0 and row.start + span <= made[row.index].num_frames for row in rows)


def test_generated_clips_go_to_rows_of_their_class_once():
    rows = grid.pick_real(entries([0, 0, 1], [8, 8, 8]), 8, 1, 2, 9)
    items = [{"index": i, "label": i % 2, "video": f"file:///{i}", "sha256": ""} for i in range(3)]
    picked = grid.pick_generated(items, rows)
    assert [(clip.index, clip.label) for clip in picked] == [(0, 0), (2, 0), (1, 1)]
    assert grid.pick_generated(items[:1], rows)[1:] == [None, None]


def test_sets_and_data_without_classes():
    rows = grid.pick_real(entries([None, None], [8, 8]), 8, 1, 2, 9)
    items = [{"index": 5, "label": None, "video": "file:///5", "sha256": ""}]
    assert [row.label for row in rows] == [None, None]
    assert [clip and clip.index for clip in grid.pick_generated(items, rows)] == [5, None]


def test_pack_leaves_gaps_and_keeps_the_clips_form():
    clip = np.zeros((4, 30, 40, 3), np.uint8)
    (first, gap), (second, _) = grid.pack([[clip, None], [clip, clip]])
    assert gap is None
    assert first == second
    assert (first.frames, first.aspect) == (4, "40 / 30")


# The words


def test_verdict_tells_a_clear_gain():
    text = words.verdict(board(score(41.2, 38, 45), score(187.5, 172, 206)))
    assert text["tone"] == "good"
    assert "clearly closer" in text["headline"]
    assert "188 before training, 41.2 after" in text["sentence"]


@pytest.mark.parametrize(
    ("trained", "untrained", "tone"),
    [
        (score(90, 80, 110), score(100, 95, 120), "open"),  # the intervals overlap
        (score(90), score(100), "open"),  # no intervals
        (score(120, 110, 130), score(100, 95, 105), "bad"),
        (score(100, 95, 105), score(100, 95, 105), "open"),  # nothing was lost
    ],
)
def test_verdict_does_not_claim_more_than_the_numbers(trained, untrained, tone):
    text = words.verdict(board(trained, untrained))
    assert text["tone"] == tone
    assert "clearly" not in text["headline"]


def test_verdict_without_comparison_or_score():
    alone = drawn((score(345.6, metric="fvd"), TRAINED))
    assert words.verdict(alone)["headline"] == "FVD to real clips: 346"
    assert "no score" in words.verdict(None)["headline"]


@given(
    after=st.floats(0, 1e5),
    before=st.floats(0, 1e5),
    widths=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_bars_stay_on_their_track(after, before, widths):
    made = board(
        score(after, after - widths[0], after + widths[0]), score(before, before - widths[1], before + widths[1])
    )
    for bar in made["bars"]:
        assert 0 <= bar["low_percent"] <= bar["high_percent"] <= 100
        assert 0 <= bar["value_percent"] <= 100
    assert words.verdict(made)["tone"] in ("good", "open", "bad")


def test_random_features_are_never_called_fvd():
    random = drawn((score(5.0), TRAINED))
    assert random["note"].startswith("This is not FVD")
    assert "FVD" not in random["title"] + random["short"]
    assert "does not rank models" in random["note"]
    small = drawn((score(5.0, metric="frechet_small_i3d"), TRAINED))
    assert small["note"].startswith("This is not FVD")
    assert drawn((score(5.0, metric="fvd"), TRAINED))["note"] is None
    other = drawn((score(5.0, metric="frechet_i3d_01234567"), TRAINED))
    assert "It is no FVD" in other["text"]
    assert "FVD" not in other["title"] + other["short"]


def of_several(label, values, notes=()):
    """A score with these values, each by a detector of its own."""
    made = {
        name: {"value": value, "interval_low": value - 1, "interval_high": value + 1, "unbiased_estimate": value,
               "detector": name[1:], "protocol": {"resolution": size}}
        for name, (value, size) in values.items()
    }  # fmt: skip
    first = next(iter(values))
    return score(values[first][0], metric=first).model_copy(
        update={
            "metrics": {first: values[first][0], "values": made},
            "config": {"protocol": {"resolution": values[first][1]}, "notes": list(notes)},
        }
    ), label


def test_every_value_of_a_score_is_drawn_with_its_own_protocol_and_notes():
    notes = ("fvd: few clips", "fid: not published", "of both")
    pairs = [
        of_several(0, {"fvd": (40.0, 224), "kvd": (-2.0, 224), "fid": (90.0, 299), "kid": (-3.0, 299)}, notes),
        of_several(1, {"fvd": (50.0, 224), "kvd": (-2.0, 224), "fid": (80.0, 299), "kid": (-3.0, 299)}, notes),
    ]
    labels = [TRAINED, SetLabel("Generated, untrained", "untrained", True)]
    boards = report.score_boards(pairs, labels)
    assert [(board["metric"], [bar["value"] for bar in board["bars"]]) for board in boards] == [
        ("fvd", [40.0, 50.0]), ("kvd", [-2.0, -2.0]), ("fid", [90.0, 80.0]), ("kid", [-3.0, -3.0]),
    ]  # fmt: skip
    assert [bar["notes"] for board in boards for bar in board["bars"][:1]] == [
        ["few clips", "of both"], ["of both"], ["not published", "of both"], ["of both"],
    ]  # fmt: skip
    protocols = [
        board["protocol"] and {row["key"]: row["values"] for row in board["protocol"]["rows"]} for board in boards
    ]
    assert [rows and rows["resolution"] for rows in protocols] == [["224"], None, ["299"], None]
    for bar in boards[3]["bars"]:
        assert (bar["value_percent"], bar["low_percent"], bar["high_percent"]) == (0, 0, 0)
    assert report.score_boards(pairs[:1], labels)[0]["comparable"] == boards[0]["comparable"]


@pytest.mark.parametrize("metric", ["kvd", "fid", "kid", "kernel_i3d_01234567", "kernel_random_inception"])
def test_every_metric_has_words(metric):
    short, title, text = metric_words.named(metric)
    assert metric not in (short, title)
    assert "Lower is better" in text
    assert ("fall below zero" in text) == (metric[0] == "k")
    assert (metric_words.note(metric) is not None) == ("random" in metric)


def test_a_difference_that_cannot_be_measured_is_no_failure():
    near = words.verdict(board(score(5.2, 4.0, 6.0), score(5.0, 4.0, 6.0)))
    assert (near["tone"], "as far as can be measured" in near["headline"]) == ("open", True)
    assert words.verdict(board(score(9.0, 8.0, 10.0), score(5.0, 4.0, 6.0)))["tone"] == "bad"


def test_protocol_shows_a_value_once_where_scores_agree():
    rows = {row["key"]: row["values"] for row in board(score(1.0), score(2.0))["protocol"]["rows"]}
    assert rows["resolution"] == ["64"]
    assert rows["digest.videos"] == ["digest of 1.0", "digest of 2.0"]


def videos(step, name="v"):
    return Manifest(kind="video_set", name=name, uri="file:///v", fingerprint="f", config={"step": step})


def titles(*sets):
    return [label.title for label in words.set_labels(sets)]


def test_labels_of_sets():
    assert titles(videos(200), videos(0)) == ["Generated, trained", "Generated, untrained"]
    assert titles(videos(20_000), videos(100), videos(0))[:2] == ["Generated, 20,000 steps", "Generated, 100 steps"]
    assert titles(videos(9, "ddim"), videos(9, "ddpm")) == ["Generated, 9 steps (ddim)", "Generated, 9 steps (ddpm)"]
    assert [label.is_before for label in words.set_labels([videos(200), videos(0)])] == [False, True]


def test_settings_are_flattened_and_readable():
    nested = {"a": {"b": 1e-4, "c": None}, "d": [1, 2], "e": True, "f": "x"}
    assert words.flat(nested, leave_out=("f",)) == [
        ("a.b", "0.0001"),
        ("a.c", "none"),
        ("d", "1, 2"),
        ("e", "yes"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.314, "0.31 s"),
        (12.34, "12.3 s"),
        (59.99, "60.0 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


def test_numbers_counts_and_sizes():
    assert [words.number(v) for v in (0, 0.01234, 1.234, 41.24, 1234.5)] == ["0", "0.0123", "1.23", "41.2", "1,234"]
    assert [words.count(v) for v in (999, 4_612_352, 1_000_000_000)] == ["999", "4.61 million", "1 billion"]
    assert [units.size(v) for v in (0, 999, 3_100_000, 5 * 10**9)] == ["0 bytes", "999 bytes", "3.1 MB", "5 GB"]
