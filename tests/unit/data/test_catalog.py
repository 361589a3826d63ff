import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte import storage
from latte.data.catalog import Catalog, DatasetConfig, scan
from latte.errors import UserError
from latte.video.decoder_process import natural_key

# The catalog reads names, sizes and bytes, never frames: these files need not be videos.


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())
    return folder


def catalog(folder: Path | str, **settings: object) -> Catalog:
    return scan(DatasetConfig(videos=str(folder), **settings))


def ids(found: Catalog) -> list[str]:
    return [entry.id for entry in found.entries]


def reasons(found: Catalog) -> dict[str, str]:
    return {reject.item: reject.reason for reject in found.rejects}


def test_all_kinds_of_videos_nested_sorted_by_bytes(tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.AVI", "a/b/c.webm", "B.mkv", "é.mov", "a b\nc.gif"]
    fill(tmp_path, *names, "notes.txt", ".hidden.mp4", ".git/x.mp4", "a/._z.avi")
    found = catalog(tmp_path)
    assert ids(found) == sorted(names, key=os.fsencode)
    assert found.classes == []
    assert not found.rejects
    first = next(entry for entry in found.entries if entry.id == "a b\nc.gif")
    assert first.digest == storage.sha256_bytes(b"content of a b\nc.gif")
    assert first.bytes == len(b"content of a b\nc.gif")
    assert storage.read_bytes(first.uri) == b"content of a b\nc.gif"


def test_labels_come_from_folders_when_every_video_lies_in_one(tmp_path: Path) -> None:
    fill(tmp_path, "class10/a.mp4", "class2/x/b.mp4", "class2/c.mp4")
    found = catalog(tmp_path)
    assert found.classes == ["class2", "class10"]
    assert {entry.id: entry.label for entry in found.entries} == {
        "class10/a.mp4": 1, "class2/x/b.mp4": 0, "class2/c.mp4": 0
    }  # fmt: skip
    assert catalog(tmp_path, labels="none").classes == []
    fill(tmp_path, "loose.mp4")
    assert catalog(tmp_path).classes == []
    with pytest.raises(UserError, match=r"dataset\.labels: folder, but 'loose\.mp4'"):
        catalog(tmp_path, labels="folder")


def test_the_digest_follows_content_names_and_labels_but_not_the_place(tmp_path: Path) -> None:
    one = catalog(fill(tmp_path / "one", "a/x.mp4", "b/y.mp4"))
    other = catalog(fill(tmp_path / "other", "a/x.mp4", "b/y.mp4"))
    assert one.digest == other.digest
    assert catalog(tmp_path / "one", labels="none").digest != one.digest
    (tmp_path / "other/a/x.mp4").write_bytes(b"new")
    assert catalog(tmp_path / "other").digest != one.digest


def test_what_cannot_be_read_is_rejected_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path, "good.mp4", "empty.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"x")
    found = catalog(tmp_path)
    assert ids(found) == ["good.mp4"]
    assert reasons(found) == {
        "empty.mp4": "the file is empty",
        "pipe.mp4": "not a regular file",
        "dangling.mp4": "cannot be read: No such file or directory",
        "self.mp4": "cannot be read: Too many levels of symbolic links",
        "\\xff.mp4": "its name is not UTF-8",
    }


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "b.mp4")
    folder = fill(tmp_path / "videos", "x/a.mp4")
    (folder / "x" / "up").symlink_to(folder)
    (folder / "x" / "here").symlink_to(".")
    fill(folder, "y/b.mp4")
    (folder / "other").symlink_to(folder / "y")
    (folder / "x" / "c.mp4").symlink_to("../y/b.mp4")
    found = catalog(folder)
    assert ids(found) == ["x/a.mp4", "x/c.mp4", "y/b.mp4"]
    assert not found.rejects


def test_links_that_leave_the_folder_are_rejects(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "b.mp4", "0.png", "notes.txt")
    folder = fill(tmp_path / "videos", "x/a.mp4", "y/0.png")
    (folder / "x" / "b.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    (folder / "x" / "c.mp4").symlink_to("../../elsewhere/b.mp4")
    (folder / "x" / "notes.txt").symlink_to(tmp_path / "elsewhere" / "notes.txt")
    (folder / "others").symlink_to(tmp_path / "elsewhere")
    (folder / "y" / "1.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    a_file = "a link to a file outside of dataset.videos; put the file itself there"
    a_folder = "a link to a folder outside of dataset.videos; put the folder itself there"
    found = catalog(folder)
    assert ids(found) == ["x/a.mp4"]
    assert reasons(found) == {"x/b.mp4": a_file, "x/c.mp4": a_file, "others": a_folder}
    assert reasons(catalog(folder, layout="frames")) == {"y": a_file, "others": a_folder}
    (tmp_path / "rows.csv").write_text("path,label\nothers/b.mp4,1\nx/b.mp4,1\n")
    assert reasons(catalog(folder, csv=str(tmp_path / "rows.csv"))) == {
        "others/b.mp4": f"CSV line 2: {a_folder}", "x/b.mp4": a_file
    }  # fmt: skip
    (tmp_path / "link").symlink_to(folder)  # the dataset's own folder may be named by a link
    assert ids(catalog(tmp_path / "link")) == ["x/a.mp4"]


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.videos: .*/none: no such folder"):
        catalog(tmp_path / "none")
    fill(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"no video \(\.avi, \.flv, .*\) there"):
        catalog(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        catalog(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"no folder of frames \(\.bmp"):
        catalog(tmp_path, layout="frames")
    fill(tmp_path, "v1/f0.jpg", "v2/f0.jpg")
    with pytest.raises(UserError, match=r"there; dataset\.layout=frames finds 2$"):
        catalog(tmp_path)
    (tmp_path / "none.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"no video that .*none\.csv names there$"):
        catalog(tmp_path, csv=str(tmp_path / "none.csv"))


def test_folders_of_frames(tmp_path: Path) -> None:
    fill(tmp_path, "v1/f2.jpg", "v1/f10.jpg", "v1/notes.txt", "deep/v2/0.PNG", "loose.jpg")
    found = catalog(tmp_path, layout="frames", labels="none")
    assert ids(found) == ["deep/v2", "v1"]
    assert found.entries[1].uri == (tmp_path / "v1").as_uri()
    assert found.entries[1].bytes == len("content of v1/f2.jpg") + len("content of v1/f10.jpg")
    before = found.entries[1].digest
    (tmp_path / "v1/f2.jpg").rename(tmp_path / "v1/f11.jpg")  # another order of the same frames
    assert catalog(tmp_path, layout="frames", labels="none").entries[1].digest != before


def test_csv_with_labels_captions_and_every_mistake(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos", "a.mp4", "b c.mp4", "odd.dat", "unlisted.mp4", "d.mp4")
    table = tmp_path / "list.csv"
    table.write_text(
        "path,label,caption\na.mp4,10,A dog\n"
        '"b c.mp4",2,"Two, cats"\nmissing.mp4,2,x\n./odd.dat,2,y\na.mp4,3,again\nd.mp4,,no label\n../a.mp4,1,out\n'
        "d.mp4,1,x,more\n,1,x\n"
    )
    found = catalog(folder, csv=str(table))
    assert found.classes == ["2", "10"]
    assert [(e.id, e.label, e.caption) for e in found.entries] == [
        ("a.mp4", 1, "A dog"), ("b c.mp4", 0, "Two, cats"), ("odd.dat", 0, "y")
    ]  # fmt: skip
    assert [(r.item, r.reason) for r in found.rejects] == [
        (".", "CSV line 10: path is empty"),
        ("../a.mp4", "CSV line 8: not a path below dataset.videos"),
        ("a.mp4", "CSV line 6: the path is listed twice; the first row counts"),
        ("d.mp4", "CSV line 7: label is empty"),
        ("d.mp4", "CSV line 9: more values than columns"),
        ("missing.mp4", "CSV line 4: no such file"),
    ]


def test_csv_rows_are_named_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos", "a.mp4")
    table = tmp_path / "list.csv"
    table.write_bytes(
        b'\r\npath,caption\r\n"a.mp4","two\r\nlines"\r\n\r\n"none.mp4","three\r\nmore\r\nlines"\r\nlast.mp4,x\r\n'
    )
    found = catalog(folder, csv=str(table))
    assert [entry.caption for entry in found.entries] == ["two\r\nlines"]
    assert reasons(found) == {"none.mp4": "CSV line 6: no such file", "last.mp4": "CSV line 9: no such file"}
    table.write_text('path,label\na.mp4,1\nb.mp4,"1\nc.mp4,1\n')
    with pytest.raises(UserError, match=r"list\.csv, line 3: unexpected end of data"):
        catalog(folder, csv=str(table))


def test_the_folder_of_one_clip_is_told_from_a_folder_of_clips(tmp_path: Path) -> None:
    fill(tmp_path / "clips", "one/0.png", "one/1.png")
    with pytest.raises(UserError) as caught:
        catalog(tmp_path / "clips" / "one", layout="frames")
    assert str(caught.value) == (
        f"dataset.videos: {tmp_path}/clips/one: no folder of frames (.bmp, .jpeg, .jpg, .png, .webp) there, "
        f"but 2 pictures: they are one video, and dataset.videos={tmp_path}/clips is the folder to name"
    )
    assert ids(catalog(tmp_path / "clips", layout="frames")) == ["one"]


def test_csv_that_cannot_be_used(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos", "a.mp4")
    table = tmp_path / "list.csv"
    with pytest.raises(UserError, match=r"dataset\.csv: .*list\.csv: no such file"):
        catalog(folder, csv=str(table))
    for text, message in [
        ("", "needs a column path and a column label or caption, has none"),
        ("file,label\na.mp4,1\n", "has file, label"),
        ('path,label\n"a.mp4,1\n', "unexpected end of data"),
    ]:
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            catalog(folder, csv=str(table))
    table.write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="not UTF-8"):
        catalog(folder, csv=str(table))


def test_split_lists_name_paths_with_or_without_ending_and_number(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos", "A/v 1.avi", "A/v2.avi", "B/v3.avi", "B/v4.avi")
    split = tmp_path / "trainlist01.txt"
    split.write_text("A/v 1.avi 1\nB/v3\n\n# a remark\nB/none.avi 2\n")
    found = catalog(folder, split=str(split))
    assert ids(found) == ["A/v 1.avi", "B/v3.avi"]
    assert found.classes == ["A", "B"]
    assert reasons(found) == {"B/none.avi 2": "listed in trainlist01.txt, line 5, but there is no such video"}
    split.write_text("x\n")
    with pytest.raises(UserError, match=r"trainlist01\.txt: names none of the dataset's 4 videos; 'x' is listed in"):
        catalog(folder, split=str(split))
    with pytest.raises(UserError, match=r"^dataset\.split: .*/videos: Is a directory$"):
        catalog(folder, split=str(folder))


def test_a_limit_takes_from_the_classes_in_turn(tmp_path: Path) -> None:
    fill(tmp_path, *[f"{name}/{i}.mp4" for name in "abc" for i in range(5)])
    assert ids(catalog(tmp_path, limit=4)) == ["a/0.mp4", "a/1.mp4", "b/0.mp4", "c/0.mp4"]
    assert len(ids(catalog(tmp_path, limit=100))) == 15


def test_a_limit_says_how_many_it_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    assert catalog(tmp_path, limit=1).left_out == 2
    assert catalog(tmp_path).left_out == 0


def test_labels_from_folders_beside_captions(tmp_path: Path) -> None:
    fill(tmp_path / "videos", "x/a.mp4", "y/b.mp4")
    (tmp_path / "c.csv").write_text("path,caption\nx/a.mp4,one\ny/b.mp4,two\n")
    found = catalog(tmp_path / "videos", csv=str(tmp_path / "c.csv"), labels="folder")
    assert found.classes == ["x", "y"]
    assert [entry.caption for entry in found.entries] == ["one", "two"]
    (tmp_path / "l.csv").write_text("path,label\nx/a.mp4,one\n")
    with pytest.raises(UserError, match=r"dataset\.labels"):
        catalog(tmp_path / "videos", csv=str(tmp_path / "l.csv"), labels="folder")
    (tmp_path / "twice.csv").write_text("path,label,path\nx/a.mp4,one,y/b.mp4\n")
    with pytest.raises(UserError, match="same name"):
        catalog(tmp_path / "videos", csv=str(tmp_path / "twice.csv"))


def test_a_split_never_takes_another_video(tmp_path: Path) -> None:
    for name in ("take.1", "take.2"):
        fill(tmp_path / "frames", f"{name}/0.png")
    split = tmp_path / "split.txt"
    split.write_text("take.3\ntake.2\n")
    found = catalog(tmp_path / "frames", layout="frames", split=str(split))
    assert ids(found) == ["take.2"]
    assert [r.item for r in found.rejects] == ["take.3"]
    fill(tmp_path / "videos", "a.mp4", "a.avi", "b.mp4", "c.mp4")
    split.write_text("b.mp4.bak\n.\n/\n, 1\nc.avi 7\nc.mov\nc 8\nb.mp4\n/data/a.avi 3\nvideos/a.mp4\n")
    found = catalog(tmp_path / "videos", split=str(split))
    assert ids(found) == ["b.mp4"]
    assert set(reasons(found)) == {
        "b.mp4.bak", ".", "/", ", 1", "c.avi 7", "c.mov", "c 8", "/data/a.avi 3", "videos/a.mp4"
    }  # fmt: skip
    words = "but there is no such video; 'c.mp4' has another ending: where that is meant, leave the ending out"
    assert reasons(found)["c.avi 7"] == f"listed in split.txt, line 5, {words}"
    assert reasons(found)["c.mov"] == f"listed in split.txt, line 6, {words}"
    for line, name in (("/data/a.avi 3", "a.avi"), ("videos/a.mp4", "a.mp4")):
        assert reasons(found)[line].endswith(f"no such video; paths begin below dataset.videos: {name!r}")


@pytest.mark.parametrize(
    ("names", "lines", "chosen", "rejected"),
    [
        (["clip.mp4", "clip 1.mp4", "clip 2.mp4"], "clip 1\nclip 2", ["clip 1.mp4", "clip 2.mp4"], []),
        (["clip.mp4", "clip 1.mp4"], "clip.mp4 1\nclip 1.mp4 2", ["clip.mp4", "clip 1.mp4"], []),
        (["clip.mp4", "clip 1.mp4"], "clip 3\nclip 1", ["clip 1.mp4"], [("clip 3", 1)]),
        (["clip.mp4", "clip.mp4 1.avi"], "clip.mp4 1", ["clip.mp4 1.avi"], []),
        (["clip.mp4", "clip.avi"], "clip.avi 0", ["clip.avi"], []),
        (["a.mp4.mp4", "a.mp4"], "a.mp4", ["a.mp4"], []),
        (["#1.mp4", "clip.mp4"], "#1.mp4\nclip.mp4\n# 2 clips", ["#1.mp4", "clip.mp4"], []),
        (["#1.mp4", "#2.mp4"], "#1\n#3.mp4", ["#1.mp4"], []),
        (["a\u2028b.mp4", " c.mp4"], "a\u2028b.mp4\r\n c.mp4\r\nd", [" c.mp4", "a\u2028b.mp4"], [("d", 3)]),
    ],
)
def test_a_line_of_a_split_names_a_video_exactly(
    tmp_path: Path, names: list[str], lines: str, chosen: list[str], rejected: list[tuple[str, int]]
) -> None:
    fill(tmp_path / "videos", *names)
    split = tmp_path / "split.txt"
    split.write_bytes(lines.encode())
    found = catalog(tmp_path / "videos", split=str(split))
    assert sorted(ids(found)) == sorted(chosen)
    assert reasons(found) == {
        item: f"listed in split.txt, line {number}, but there is no such video" for item, number in rejected
    }


def test_names_as_other_machines_write_them(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos", "a.mp4", "sub/\xe9.mp4", "x\\y.mp4")
    split, table = tmp_path / "split.txt", tmp_path / "list.csv"
    split.write_bytes(
        "sub\\\xe9.mp4 1\r\nx\\y.mp4\r\nA.mp4\r\nsub/e\u0301.mp4\r\n\xe9.mp4\r\nC:\\v\\a.mp4\r\n".encode()
    )
    found = catalog(folder, split=str(split))
    assert ids(found) == ["sub/\xe9.mp4", "x\\y.mp4"]
    told = {item: reason.partition("no such video; ")[2] for item, reason in reasons(found).items()}
    words = "is there, with other capitals or another form of an accent"
    assert told == {
        "A.mp4": f"'a.mp4' {words}",
        "sub/e\u0301.mp4": f"'sub/\xe9.mp4' {words}",
        "\xe9.mp4": "paths begin below dataset.videos: 'sub/\xe9.mp4'",
        "C:\\v\\a.mp4": "paths begin below dataset.videos: 'a.mp4'",
    }
    table.write_bytes("path, label\r\n.\\sub\\\xe9.mp4,x\r\nx\\y.mp4,y\r\nA.mp4,z\r\n".encode("utf-8-sig"))
    found = catalog(folder, csv=str(table))
    assert (ids(found), found.classes) == (["sub/\xe9.mp4", "x\\y.mp4"], ["x", "y"])
    assert reasons(found) == {"A.mp4": f"CSV line 4: no such file; 'a.mp4' {words}"}
    table.write_text("path;label\na.mp4;x\n")
    with pytest.raises(UserError, match=r"has path;label; commas separate columns$"):
        catalog(folder, csv=str(table))


def test_a_line_of_a_split_that_could_be_two_videos_is_refused(tmp_path: Path) -> None:
    line, others = "a", "'a.avi' and 'a.mp4'"
    fill(tmp_path / "videos", "a.mp4", "a.avi", "b.mp4")
    split = tmp_path / "split.txt"
    split.write_text(f"b.mp4\n{line}\n")
    words = f"dataset.split: {split}, line 2: '{line}' could be {others}; write the whole name"
    with pytest.raises(UserError) as caught:
        catalog(tmp_path / "videos", split=str(split))
    assert str(caught.value) == words


def test_folders_that_link_to_each_other_count_once(tmp_path: Path) -> None:
    for one in range(8):
        fill(tmp_path, f"{one}/v.mp4")
        for other in range(8):
            if other != one:
                (tmp_path / str(one) / f"to-{other}").symlink_to(tmp_path / str(other))
    assert ids(catalog(tmp_path)) == [f"{one}/v.mp4" for one in range(8)]


def test_names_of_equal_value_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, "001/a.mp4", "1/b.mp4", "01/c.mp4", "2/d.mp4")
    assert catalog(tmp_path).classes == ["001", "01", "1", "2"]


def test_a_prefix_in_s3(s3_root: str) -> None:
    for name in ["a/x 1.mp4", "b/y\u00e9.mp4", "b/empty.mp4", "b/notes.txt", "b/.tmp-1.mp4"]:
        storage.write_bytes(storage.join(s3_root, name), b"" if "empty" in name else name.encode())
    found = catalog(s3_root)
    assert ids(found) == ["a/x 1.mp4", "b/y\u00e9.mp4"]
    assert found.classes == ["a", "b"]
    assert reasons(found) == {"b/empty.mp4": "the file is empty"}
    assert [storage.read_bytes(entry.uri).decode() for entry in found.entries] == ids(found)
    whole = catalog(s3_root, s3_digest="sha256")
    assert whole.entries[0].digest == storage.sha256_bytes(b"a/x 1.mp4")
    storage.write_bytes(storage.join(s3_root, "a", "x 1.mp4"), b"a/x 2.mp4")
    assert catalog(s3_root).entries[0].digest != found.entries[0].digest
    with pytest.raises(UserError, match="no video"):
        catalog(storage.join(s3_root, "elsewhere"))


@given(st.lists(st.text(), max_size=8))
def test_natural_order_compares_any_names(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    assert sorted(ordered, key=natural_key) == ordered


def test_natural_order_goes_by_value() -> None:
    assert sorted(["f10", "f2", "f1b", "f01a", "²"], key=natural_key) == ["f01a", "f1b", "f2", "f10", "²"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "configs/datasets").glob("*.yaml")), ids=lambda path: path.stem
)
def test_presets_of_datasets_are_settings_of_the_encode_step(path: Path) -> None:
    from latte.config import load
    from latte.steps.encode import EncodeConfig

    config = load(EncodeConfig, path, ["root=file:///data", "vae=file:///vae.json"])
    assert config.name == path.stem
    with pytest.raises(UserError, match="no such folder"):
        scan(config.dataset)
