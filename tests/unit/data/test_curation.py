"""Rules of curation on small videos, each with one fault; what is measured, kept, and decided again."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from latte import cli, storage
from latte.config import build
from latte.data import encode_plan
from latte.data.catalog import scan
from latte.data.config import EncodeConfig
from latte.data.curation import gate, measured
from latte.data.curation.doubles import doubles
from latte.data.curation.measuring import ShotNumbers, VideoNumbers
from latte.data.curation.rules import Decisions, judge, rule_of
from latte.data.entries import Catalog, CatalogEntry
from latte.errors import UserError
from latte.video.decoders import Limits
from latte.video.views import View
from pipelines import cli as pipelines_cli
from tests import video_files

HEIGHT, WIDTH = 48, 64
RULES = {
    "letterbox": {}, "size": {"min_side": 30}, "black": {}, "frozen": {}, "flicker": {}, "motion": {}, "sharpness": {},
    "doubles": {}, "max_reject_share": 1,
}  # fmt: skip


def scaled(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def write_all(folder: Path) -> Path:
    """A video for each rule, and three that nothing is wrong with."""
    frames = {name: video_files.panned(20, HEIGHT, WIDTH, seed) for seed, name in enumerate("abcdefghi")}
    boxed = np.zeros_like(frames["b"])
    boxed[:, 8:40] = frames["b"][:, 8:40]
    flickering = frames["e"] // 2 + np.where(np.arange(20) % 2, 0, 30)[:, None, None, None]
    write = video_files.write
    write(folder / "whole.mp4", frames["a"])
    write(folder / "boxed.mp4", boxed)
    write(folder / "cut.mp4", np.concatenate([frames["c"], video_files.panned(12, HEIGHT, WIDTH, 20)]))
    write(folder / "black.mp4", np.concatenate([np.zeros_like(frames["a"]), frames["d"][:8]]))
    write(folder / "flicker.mp4", flickering.astype(np.uint8))
    write(folder / "frozen.mp4", np.repeat(frames["f"][:1], 20, axis=0))
    write(folder / "small.mp4", scaled(frames["g"], 36, 26))
    write(folder / "blurred.mp4", scaled(scaled(frames["h"], 6, 4), WIDTH, HEIGHT))
    write(folder / "fast.mp4", video_files.panned(20, HEIGHT, WIDTH, 9, speed=5))
    write(folder / "again.mp4", scaled(frames["a"], 48, 36), options={"crf": "34"}, fps=30)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("curation") / "videos")


@pytest.fixture(scope="module")
def root(videos: Path) -> str:
    """The numbers of all videos are measured once, for all tests that only read them."""
    root = (videos.parent / "root").as_uri()
    decided(videos, root)
    decided(videos, root, shots={"min_frames": 10})
    return root


def settings(videos: Path, root: str, rules: dict, **others: object) -> EncodeConfig:
    given = {"root": root, "name": "small", "vae": "none", "dataset": {"videos": str(videos)}, "curate": rules}
    return build(EncodeConfig, given | others, "test")


def decided(videos: Path, root: str, **rules: object) -> Decisions:
    config = settings(videos, root, RULES | rules)
    assert config.curate is not None
    return gate.decide(config, config.curate, scan(config.dataset))


def left_out(decisions: Decisions) -> dict[str, list[str]]:
    return {each.entry.id: [reason.rule for reason in each.reasons] for each in decisions.candidates if each.reasons}


def test_each_rule_leaves_out_the_video_with_its_fault_and_no_other(videos: Path, root: str) -> None:
    found = left_out(decided(videos, root))
    # What stands still has no motion either, and what is black no picture: the first reason is the manifest's.
    assert {name: rules[0] for name, rules in found.items()} == {
        "black.mp4": "black", "flicker.mp4": "flicker", "frozen.mp4": "frozen", "small.mp4": "size",
        "blurred.mp4": "sharpness", "fast.mp4": "motion", "again.mp4": "doubles",
    }  # fmt: skip
    assert found["frozen.mp4"] == ["frozen", "motion"]


@pytest.mark.parametrize("rule", ["size", "black", "frozen", "flicker", "sharpness", "doubles"])
def test_a_rule_that_is_off_leaves_nothing_out(videos: Path, root: str, rule: str) -> None:
    assert rule not in {name for rules in left_out(decided(videos, root, **{rule: None})).values() for name in rules}


def test_rejects_name_rule_number_and_limit(videos: Path, root: str) -> None:
    reasons = {reject.item: reject for reject in decided(videos, root).catalog.rejects}
    assert reasons["small.mp4"].reason == "curate.size: 36x26 pixels, min_side is 30"
    assert reasons["frozen.mp4"].reason == "curate.frozen: 1 of its frames repeat the one before, max_share is 0.5"
    assert reasons["again.mp4"].reason.startswith("curate.doubles: shows what 'whole.mp4' shows, ")
    assert {rule_of(reject) for reject in reasons.values()} == {
        "black", "flicker", "frozen", "size", "sharpness", "motion", "doubles"
    }  # fmt: skip


def test_bars_are_cropped_and_the_crop_is_part_of_the_digest(videos: Path, root: str) -> None:
    decisions = decided(videos, root)
    (boxed,) = (entry for entry in decisions.catalog.entries if entry.id == "boxed.mp4")
    assert boxed.view is not None
    left, top, width, height = boxed.view.crop or (0, 0, 0, 0)
    assert (left, width) == (0, WIDTH)
    assert 8 <= top <= 10
    assert 38 <= top + height <= 40
    assert boxed.digest == boxed.content + boxed.view.mark
    assert boxed.content in {entry.digest for entry in scan(settings(videos, root, RULES).dataset).entries}


def test_what_nothing_is_cut_from_is_the_video_that_was_encoded_before(videos: Path, root: str) -> None:
    listed = {entry.id: entry for entry in scan(settings(videos, root, RULES).dataset).entries}
    (whole,) = (entry for entry in decided(videos, root).catalog.entries if entry.id == "whole.mp4")
    assert whole == listed["whole.mp4"]


def cut_entries(decisions: Decisions) -> dict[str, View | None]:
    return {entry.id: entry.view for entry in decisions.catalog.entries if entry.id.startswith("cut.mp4")}


def test_a_video_with_a_cut_is_split_shortened_or_left_out(videos: Path, root: str) -> None:
    split = decided(videos, root, shots={"min_frames": 10})
    assert cut_entries(split) == {"cut.mp4#0-20": View(0, 20), "cut.mp4#20-32": View(20, 32)}
    sizes = [each.entry.bytes for each in split.candidates if each.video.id == "cut.mp4"]
    assert sum(sizes) <= (videos / "cut.mp4").stat().st_size
    longer = decided(videos, root, shots={"min_frames": 13})
    assert cut_entries(longer) == {"cut.mp4#0-20": View(0, 20)}
    reasons = {reject.item: reject.reason for reject in longer.catalog.rejects}
    assert reasons["cut.mp4#20-32"] == "curate.shots: 1 shot of fewer frames than min_frames, 13"
    assert cut_entries(decided(videos, root, shots={"on_cut": "longest"})) == {"cut.mp4": View(0, 20)}
    rejected = decided(videos, root, shots={"on_cut": "reject"})
    assert cut_entries(rejected) == {}
    reasons = {reject.item: reject.reason for reject in rejected.catalog.rejects}
    assert reasons["cut.mp4"] == "curate.shots: 1 cut, the first before frame 20"
    short = {reject.item: reject.reason for reject in decided(videos, root, shots={"min_frames": 30}).catalog.rejects}
    assert short["cut.mp4"] == "curate.shots: its longest shot has 20 frames, min_frames is 30"


def test_other_limits_measure_nothing_again(videos: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "measure", None)
    assert "small.mp4" not in left_out(decided(videos, root, size={"min_side": 26}))


def test_decisions_are_the_same_for_any_number_of_workers(videos: Path, root: str, tmp_path: Path) -> None:
    config = settings(videos, tmp_path.as_uri(), RULES, decode_workers=3, num_tasks=3)
    assert config.curate is not None
    assert gate.decide(config, config.curate, scan(config.dataset)) == decided(videos, root)


def test_what_cannot_be_decoded_is_left_to_encoding_which_tells_why(videos: Path, root: str) -> None:
    broken = [each for each in decided(videos, root).candidates if each.video.id == "broken.mp4"]
    assert [each.reasons for each in broken] == [()]


def test_one_more_video_and_what_a_crash_has_lost_is_all_that_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = tmp_path / "videos", (tmp_path / "root").as_uri()
    for seed in range(3):
        video_files.write(folder / f"{seed}.mp4", video_files.panned(4, seed=seed))
    looked_at: list[str] = []
    real = measured._Work.measured

    def watched(self: measured._Work, entry: CatalogEntry) -> object:
        looked_at.append(entry.id)
        if len(looked_at) == 3:
            raise KeyboardInterrupt
        return real(self, entry)

    monkeypatch.setattr(measured._Work, "measured", watched)
    monkeypatch.setattr(measured, "_GROUP", 1)
    with pytest.raises(KeyboardInterrupt):
        decided(folder, root)
    assert looked_at == ["0.mp4", "1.mp4", "2.mp4"]
    decided(folder, root)
    assert looked_at[3:] == ["2.mp4"]
    video_files.write(folder / "1b.mp4", video_files.panned(4, seed=9))
    decided(folder, root)
    assert looked_at[4:] == ["1b.mp4"]


def test_a_damaged_document_of_numbers_is_told_and_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, root = tmp_path / "videos", (tmp_path / "root").as_uri()
    video_files.write(folder / "a.mp4", video_files.panned(4))
    before = decided(folder, root)
    (document,) = (uri for uri in storage.list_uris(f"{root}/curation/small") if uri.endswith(".json"))
    data = storage.read_bytes(document)
    storage.write_bytes(document, data.replace(b'"stop": 4', b'"stop": 5'))
    assert decided(folder, root) == before
    assert document in capfd.readouterr().err
    assert storage.read_bytes(document) == data


def numbers(hashes: str, size: int = 64) -> VideoNumbers:
    return VideoNumbers(size, size, None, (ShotNumbers(0, 20, 0.0, 0.0, 0.0, 1.0, 100.0, hashes),))


def entry(name: str) -> CatalogEntry:
    return CatalogEntry(f"{name}.mp4", f"file:///{name}.mp4", f"digest-{name}", None, None, 10)


def test_a_night_leaves_out_doubles_of_what_was_taken_before() -> None:
    rules = settings(Path("/none"), "file:///none", {"doubles": {}}).curate
    assert rules is not None
    catalog = Catalog([entry("a"), entry("b"), entry("c")], [], [])
    same = {name: numbers("0f" * 32) for name in ("digest-a", "digest-c")} | {"digest-b": numbers("a3" * 32)}
    assert left_out(judge(catalog, rules, same, 1)) == {"c.mp4": ["doubles"]}
    assert left_out(judge(catalog, rules, same, 1, taken=["digest-c"])) == {"a.mp4": ["doubles"]}
    assert left_out(judge(catalog, rules, same, 1, taken=["digest-a", "digest-c"])) == {"c.mp4": ["doubles"]}
    larger = same | {"digest-c": numbers("0f" * 32, size=640)}
    assert left_out(judge(catalog, rules, larger, 1)) == {"a.mp4": ["doubles"]}


def test_the_gate_notes_what_it_takes_in_and_looking_does_not(tmp_path: Path) -> None:
    folder, root = tmp_path / "videos", (tmp_path / "root").as_uri()
    frames = video_files.panned(8)
    video_files.write(folder / "b.mp4", frames)
    config = settings(folder, root, {"doubles": {}})
    decided(folder, root)
    assert measured.taken(root, "small") == []
    (first,) = gate.curated(config, scan(config.dataset)).entries
    assert measured.taken(root, "small") == [first.digest]
    # It comes first by name and is larger, and is new all the same.
    video_files.write(folder / "a.mp4", scaled(frames, 128, 96))
    for _ in range(2):
        assert [each.id for each in gate.curated(config, scan(config.dataset)).entries] == ["b.mp4"]
    (folder / "b.mp4").unlink()
    assert [each.id for each in gate.curated(config, scan(config.dataset)).entries] == ["a.mp4"]


def test_doubles_are_of_what_stays_and_within_the_distance_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 256, (40, 32), np.uint8)
    near = rows.copy()
    near[:, 0] ^= 0b1111  # 4 of 256 bits: 1 of 64 on average
    texts = [row.tobytes().hex() for row in (*rows, *near)]
    whole = doubles(texts, 1.0)
    assert whole == [None] * 40 + [(number, 1.0) for number in range(40)]
    assert doubles(texts, 0.99) == [None] * 80
    monkeypatch.setattr("latte.data.curation.doubles._BLOCK", 7)
    assert doubles(texts, 1.0) == whole
    # The third is like the second, which is left out for the first.
    chain = [bytes(32), bytes([15]) + bytes(31), bytes([255]) + bytes(31)]
    assert doubles([row.hex() for row in chain], 1.0) == [None, (0, 1.0), None]


def test_views_survive_the_plan(tmp_path: Path, videos: Path, root: str) -> None:
    catalog = decided(videos, root, shots={"min_frames": 10}).catalog
    plan = encode_plan.make(catalog, encode_plan.Published({}, {}), 10**9, 1, mirrored=True)
    uri = (tmp_path / "plan.json").as_uri()
    encode_plan.write(plan, uri, tmp_path.as_uri())
    assert encode_plan.read(uri) == plan
    shards = encode_plan.task_shards(plan, tmp_path.as_uri(), 0, 1, by_etag=False)
    planned = {(video.id, video.mirrored): video for shard in shards for video in shard.videos}
    assert planned["cut.mp4#20-32", True].view == View(20, 32)
    assert planned["cut.mp4#20-32", True].content == planned["cut.mp4#0-20", False].content
    assert len({video.digest for video in planned.values()}) == len(planned)


def test_whole_frames_keep_their_shape_and_views_take_their_part(tmp_path: Path) -> None:
    frames = video_files.panned(12, 30, 80)
    path = video_files.write(tmp_path / "a.mkv", frames, "ffv1", "bgr0")
    source = measured.VideoSource(path.as_uri())
    with measured.Decoder(Limits()) as decoder:
        task = measured.DecodeTask("", 40, start=4, stride=3, count=2, whole=True)
        chunk, end = measured.decode_one(decoder, 0, source, task)
        assert chunk.frames.shape == (2, 15, 40, 3)
        assert chunk.size == (80, 30)
        halved = frames[4::3][:2].reshape(2, 15, 2, 40, 2, 3).mean((2, 4))
        assert np.abs(chunk.frames - halved).max() <= 1
        task = measured.DecodeTask("", 100, whole=True, crop=(10, 5, 50, 20))
        chunk, _ = measured.decode_one(decoder, 0, source, task)
        np.testing.assert_array_equal(chunk.frames, frames[:, 5:25, 10:60])
    ((got, end),) = video_files.decode(path, size=20, view=View(3, 9, (10, 5, 50, 20)), frame_stride=2)
    assert end.num_frames == 3
    np.testing.assert_array_equal(got, frames[3:9:2, 5:25, 25:45])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "curate: curate has no rule; name some of shots, letterbox"),
        ({"blck": {}}, "unknown key curate.blck (did you mean curate.black?)"),
        ({"black": {"max_share": 2}}, "curate.black.max_share: "),
        ({"motion": {"min_percent": 5}}, "curate.motion: min_percent 5 is more than max_percent 4"),
    ],
)
def test_mistakes_in_the_settings_are_one_line(rules: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(Path("/none"), "file:///none", rules)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_much_left_out_is_refused_before_anything_is_encoded(videos: Path, root: str) -> None:
    config = settings(videos, root, RULES | {"size": {"min_side": 40}, "max_reject_share": 0.25})
    with pytest.raises(UserError, match=r"8 of 11 videos would be left out, more than curate.max_reject_share=0.25"):
        gate.curated(config, scan(config.dataset))
    config = settings(videos, root, RULES | {"size": {"min_side": 4000}})
    (videos / "broken.mp4").rename(videos.parent / "broken.mp4")
    try:
        with pytest.raises(UserError, match=r"10 of 10 videos would be left out, so none is left"):
            gate.curated(config, scan(config.dataset))
    finally:
        (videos.parent / "broken.mp4").rename(videos / "broken.mp4")


def test_the_command_shows_what_each_rule_does_with_pictures(videos: Path, root: str, tmp_path: Path) -> None:
    given = tmp_path / "encode.yaml"
    given.write_text(f"name: small\nroot: {root}\ndataset: {{videos: {videos}}}\n")
    page = tmp_path / "page.html"
    rules = ["curate.size.min_side=30", "curate.letterbox={}", "curate.doubles={}"]
    done = CliRunner().invoke(cli.cli, ["curate", "-c", str(given), "--page", str(page), *rules])
    assert done.exit_code == 0, done.output
    assert "Of 11 videos, 2 would be left out; 9 clips would be encoded, 2 not" in done.output
    assert "size  leaves out 1, of which no other rule would 1" in done.output
    assert "crops 1 video" in done.output
    text = page.read_text()
    assert "36x26 pixels, min_side is 30" in text
    assert "http" not in text.replace("http-equiv", "")
    # Of the small one a strip; of the double and of the one with bars two.
    assert text.count("data:image/jpeg;base64,") == 5
    assert measured.taken(root, "small") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["curate.black={}", "--page", "/no/such/folder/page.html"], "no such folder"),
        ([], "curate: the section is not"),
    ],
)
def test_mistakes_of_the_command_are_one_line_and_exit_code_2(videos: Path, words: list[str], told: str) -> None:
    given = ["root=/tmp/none", "name=a", f"dataset.videos={videos}"]
    done = CliRunner().invoke(cli.cli, ["curate", *given, *words])
    assert done.exit_code == 2
    assert told in done.output


def test_a_pipelines_settings_are_looked_at_before_a_run(videos: Path, root: str, tmp_path: Path) -> None:
    demo = str(Path(__file__).parents[3] / "configs/demo/pipeline.yaml")
    page = tmp_path / "page.html"
    words = [f"encode.dataset.videos={videos}", "name=small", "encode.curate.black={}"]
    done = CliRunner().invoke(pipelines_cli.cli, ["curate", "-c", demo, "--root", root, "--page", str(page), *words])
    assert done.exit_code == 0, done.output
    assert "black  leaves out 1, of which no other rule would 1" in done.output
    assert "0.714 of its frames are black" in page.read_text()


def test_a_picture_of_another_size_than_was_asked_for_ends_its_decoder(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mkv", video_files.panned(2), "ffv1", "bgr0")
    with measured.Decoder(Limits()) as decoder:
        task = measured.DecodeTask("", 40, whole=True)
        decoder._line = lambda deadline: b'{"kind": "frames", "count": 1, "height": 41, "width": 1, "size": [1, 1]}'
        (end,) = measured.decode_one(decoder, 0, measured.VideoSource(path.as_uri()), task)
    assert end.reject is not None
    assert end.reject.startswith("its decoder ended by SIGKILL")
