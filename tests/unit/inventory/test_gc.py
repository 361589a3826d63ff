"""What `latte gc` shows and removes, and what it never does."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from latte import steps, storage, texts, uses
from latte.cli import cli
from latte.errors import StorageError, UserError
from latte.inventory import gc, needs
from latte.inventory.gc import Keep
from latte.inventory.verify import verify
from latte.steps import promoted
from latte.storage import manifest, registry, removal
from tests import nights

# The first night is promoted, the third is better; the others are refused.
VALUES = (5.0, 6.0, 4.0, 7.0, 8.0, 9.0, 9.5, 9.6)
PROMOTED = (0, 2)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    return nights.old(tmp_path_factory.mktemp("nights") / "root", VALUES)


@pytest.fixture
def sky(template: tuple[str, list[dict[str, str]]], tmp_path: Path) -> tuple[str, list[dict[str, str]]]:
    """A root in a folder after six nights."""
    shutil.copytree(storage.local_path(template[0]), tmp_path / "root")
    return (tmp_path / "root").as_uri(), template[1]


def going(root: str, wanted: Keep) -> set[str]:
    return {each.place for each in gc.survey(root, wanted).going}


def test_promoted_models_their_history_and_the_newest_stay_with_all_that_they_need(
    sky: tuple[str, list[dict[str, str]]],
) -> None:
    root, made = sky
    found = gc.survey(root, Keep(newest=2))
    gone = [1, 3, 4, 5]
    expected = {made[number][kind] for number in gone for kind in ("run", "set", "features", "score", "report")}
    # Of a promoted model, score, set, features, run and dataset stay; its night's page is nothing that anybody needs.
    pages = {made[number]["report"] for number in PROMOTED}
    assert {each.place for each in found.going} == expected | pages
    kinds = [each.kind for each in found.going]
    assert kinds == ["report"] * 6 + ["score"] * 4 + ["features"] * 4 + ["set"] * 4 + ["run"] * 4
    by_place = {each.place: each for each in found.going}
    assert by_place[made[1]["set"]].why == "6 newer of this name, and nothing that stays needs it"
    assert by_place[made[1]["features"]].why == "features of no score that stays"
    assert 30 < by_place[made[1]["run"]].age_s / 86_400 < 40
    assert by_place[made[1]["run"]].bytes > 0
    assert found.kept[made[0]["run"]].startswith("needed by ")
    assert found.kept[made[0]["dataset"]].startswith("needed by ")
    assert found.kept[made[2]["set"]].startswith("needed by ")
    assert found.kept["registry/sky"] == "promoted models"
    assert {name.split("/")[1] for name in found.kept if name.startswith("weights/")} == {"vae", "i3d"}


def test_what_keep_names_stays_with_all_that_it_was_made_from(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    assert made[1]["set"] in going(root, Keep())
    for name in (made[1]["set"], made[1]["set"][:-6], f"{made[1]['set']}/manifest.json"):
        left = going(root, Keep(names=(name,)))
        assert {made[1]["set"], made[1]["run"], made[1]["dataset"]}.isdisjoint(left)
        assert made[1]["score"] in left, "nothing of a set needs its score"
    assert not {each for each in going(root, Keep(names=("videos/sky",))) if each.startswith(("videos/", "runs/"))}
    assert going(root, Keep(names=("sky",))) < going(root, Keep(names=("videos/sky",)))
    with pytest.raises(UserError, match=r"--keep videos/sly: no place of this name; there are datasets/sky, "):
        gc.survey(root, Keep(names=("videos/sly",)))


def test_what_is_young_unfinished_being_written_or_in_use_stays(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    assert not going(root, Keep(young_s=60 * 86_400))
    first, third = made[1], made[3]
    folder = storage.local_path(storage.join(root, third["set"]))
    os.utime(folder / "clip-00000.mkv")
    assert {third["set"], third["run"], third["dataset"]}.isdisjoint(going(root, Keep())), "a job is at work there"
    nights.age(root, 3)
    assert {third["set"], third["run"]} <= going(root, Keep())
    # Without its manifest it stays for a week.
    os.utime(folder / "clip-00000.mkv")
    (folder / "manifest.json").unlink()
    nights.age(root, 3)
    assert third["set"] not in going(root, Keep())
    nights.age(root, 5)
    why = {each.place: each.why for each in gc.survey(root, Keep()).going}
    assert why[third["set"]] == "not finished, and nobody has gone on with it"
    # A temporary file of this process, however old the rest is.
    (folder / f".tmp-{uses.places.storage.local.owners.mark()}12345678").touch()
    assert gc.survey(root, Keep()).kept[third["set"]] == "being written"
    uses.note(root, [first["set"]])
    left = gc.survey(root, Keep())
    assert left.kept[first["set"]] == "in use within the last day"
    assert left.kept[first["run"]] == f"needed by {first['set']}"
    nights.age(root, 2)
    assert first["set"] in going(root, Keep())


def test_a_dry_run_changes_nothing_and_yes_removes_what_was_shown(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    before = storage.list_objects(root)
    shown = CliRunner().invoke(cli, ["gc", root, "--keep", "2"])
    assert shown.exit_code == 0
    assert storage.list_objects(root) == before
    assert made[1]["set"] in shown.output
    assert made[7]["set"] not in shown.output
    assert shown.output.splitlines()[-1] == "--yes removes them"
    asked = json.loads(CliRunner().invoke(cli, ["gc", root, "--keep", "2", "--json"]).output)
    current, history = registry.read_current(root, "sky")[0], registry.history(root, "sky")
    done = CliRunner().invoke(cli, ["gc", root, "--keep", "2", "--yes"])
    assert done.exit_code == 0, done.output
    assert f"{len(asked['going'])} places removed" in done.output
    names = {"/".join(uri.removeprefix(root + "/").split("/")[:3]) for uri in storage.list_objects(root)}
    assert names.isdisjoint(each["place"] for each in asked["going"])
    assert storage.list_objects(root) == {
        uri: info for uri, info in before.items() if uri.removeprefix(root + "/").startswith(tuple(asked["kept"]))
    }
    assert not [path for path in storage.local_path(root).rglob(".tmp-*") if path.parent.parent.name != "registry"]
    assert all(any(path.iterdir()) for path in storage.local_path(root).rglob("*") if path.is_dir())
    assert verify(root).damages == ()
    assert (registry.read_current(root, "sky")[0], registry.history(root, "sky")) == (current, history)
    assert current is not None
    for entry in (current, *history):
        assert manifest.find(entry.videos.rpartition("/")[0], "video_set")
        assert manifest.find(entry.checkpoint.rpartition("/")[0], "checkpoint")
    again = CliRunner().invoke(cli, ["gc", root, "--keep", "2", "--yes"])
    assert "nothing may go" in again.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "say what stays: --keep 5 (newest of each name), --keep 14d (age), --keep videos/NAME"),
        (["--keep", "14y"], "--keep 14y: expected a number, an age such as 12h, 14d, 4w, or a place's name"),
        (["--keep", "-1"], "--keep -1: expected a number, an age such as 12h, 14d, 4w, or a place's name"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    done = CliRunner().invoke(cli, ["gc", str(tmp_path), *words])
    assert (done.exit_code, done.output) == (2, f"error: {line}\n")


def test_words_are_read() -> None:
    assert gc.keep(["3", "2w", "videos/a"]) == Keep(newest=3, young_s=14 * 86_400, names=("videos/a",))
    assert gc.keep(["1h"]).young_s == uses.FRESH_S, "a day at least"


def test_a_root_of_another_version_is_one_line(sky: tuple[str, list[dict[str, str]]], tmp_path: Path) -> None:
    root, made = sky
    uri = storage.join(root, made[1]["set"], "manifest.json")
    told = storage.read_json(uri)
    for changed, words in (({"kind": "hologram"}, "a manifest of hologram, this version knows"), ({"x": 1}, "Extra")):
        storage.write_json(uri, {**told, **changed}, root, put=storage.write_bytes)
        for more in ([], ["--yes"]):
            done = CliRunner().invoke(cli, ["gc", root, "--keep", "1", *more])
            assert done.exit_code == 2
            assert done.output.startswith(f"error: {uri}: ")
            assert words in done.output
            assert done.output.count("\n") == 1
    assert storage.exists(storage.join(root, made[3]["set"], "manifest.json")), "nothing was removed"
    (tmp_path / "other").mkdir()
    done = CliRunner().invoke(cli, ["gc", str(tmp_path / "other"), "--keep", "1"])
    assert done.exit_code == 2
    assert "not a root" in done.output


def test_a_damaged_manifest_is_told_before_anything_is_removed(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    path = storage.local_path(storage.join(root, made[1]["run"], "manifest.json"))
    path.write_text(path.read_text().replace("step-00000006/ema", "step-00000005/ema"))
    before = storage.list_objects(root)
    done = CliRunner().invoke(cli, ["gc", root, "--keep", "1", "--yes"])
    assert done.exit_code == 1
    assert "latte verify ROOT --repair" in done.output
    assert storage.list_objects(root) == before


def kept_states(root: str, digest: str) -> str:
    """States of captions by a text encoder, as `latte.texts` keeps them."""
    place = texts.places_of(digest)[0]
    manifest.publish_shard(b"states", storage.join(root, place, "a.safetensors"), captions=[], tokens=[])
    return place


def test_states_of_captions_stay_with_the_sets_of_their_text_encoder(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    needed, other = (kept_states(root, manifest.fingerprint(label)) for label in ("t5", "another t5"))
    assert {needed, other}.isdisjoint(going(root, Keep())), "young"
    uri = storage.join(root, made[-1]["set"], "manifest.json")
    newest = manifest.read(uri)
    manifest.write(newest.model_copy(update={"inputs": {**newest.inputs, "text": manifest.fingerprint("t5")}}), uri)
    nights.age(root, 2)
    found = gc.survey(root, Keep())
    assert found.kept[needed] == f"needed by {made[-1]['set']}"
    assert {each.place: each.why for each in found.going}[other] == "no set that stays is of this text encoder"
    uses.note(root, [other])
    assert gc.survey(root, Keep()).kept[other] == "in use within the last day"
    nights.age(root, 2)
    gc.remove(root, Keep(), [each for each in found.going if each.place == other])
    assert storage.list_uris(storage.join(root, other)) == []
    assert verify(root).damages == ()


def test_what_jobs_were_asked_to_do_goes_a_day_after_its_last_word(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    place, work = "launched/0123456789abcdef", "launched/0123456789abcdef/fedcba9876543210"
    wired = {"videos": storage.join(root, made[1]["set"])}
    storage.write_json(storage.join(root, work, "work.json"), {"wired": wired}, root)
    nights.age(root, 2)
    why = {each.place: each.why for each in gc.survey(root, Keep()).going}
    assert why[place] == "of Jobs that have ended"
    assert made[1]["set"] in why
    # A step that waits for its Job writes the lease.
    storage.write_json(storage.join(root, work, "lease.json"), {"renewal": 1})
    found = gc.survey(root, Keep())
    assert (found.kept[place], found.kept[made[1]["set"]]) == ("young", f"needed by {place}")
    nights.age(root, 2)
    going_now = [each for each in gc.survey(root, Keep()).going if each.place == place]
    assert [each.place for each in gc.remove(root, Keep(), going_now).gone] == [place]
    assert storage.list_uris(storage.join(root, "launched")) == []


def test_uploads_go_only_where_the_schedules_were_asked(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    asked = Keep(knows_runs=True)
    names = [f"uploads/{digit * 16}" for digit in "abc"]
    uris = [storage.join(root, name, "vae.pt") for name in names]
    for uri in uris:
        storage.write_bytes(uri, b"weights")
    # Files of the user's that look like ours.
    storage.write_bytes(storage.join(root, names[0], "manifest.json"), b"no JSON")
    storage.write_bytes(storage.join(root, names[0], "captions.json"), b"no JSON")
    dataset = storage.join(root, made[-1]["dataset"], "manifest.json")
    latents = manifest.read(dataset)
    manifest.write(latents.model_copy(update={"config": {**latents.config, "videos": uris[1]}}), dataset)
    nights.age(root, 6)
    assert set(names).isdisjoint(going(root, asked)), "a run may wait for its turn"
    nights.age(root, 2)
    assert gc.survey(root, Keep()).kept[names[0]] == "schedules may name it: latte-pipeline gc --host asks them"
    found = gc.survey(root, Keep(knows_runs=True, others=((names[2], "needed by schedule nightly"),)))
    assert (found.kept[names[1]], found.kept[names[2]]) == (
        f"needed by {made[-1]['dataset']}",
        "needed by schedule nightly",
    )
    assert names[0] in {each.place for each in found.going}
    uses.note(root, uses.found_in(root, uris[0]))
    assert gc.survey(root, asked).kept[names[0]] == "in use within the last day"
    nights.age(root, 2)
    gc.remove(root, asked, [each for each in gc.survey(root, asked).going if each.place == names[0]])
    assert not storage.exists(uris[0])
    assert storage.exists(uris[1])


@pytest.fixture
def all_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store cannot be told to have written something long ago: nothing counts as young."""
    monkeypatch.setattr(uses, "FRESH_S", 0.0)
    monkeypatch.setattr(gc, "UNFINISHED_S", 0.0)


OLD = Keep(newest=0, young_s=0.0, names=("weights/vae", "weights/i3d"))


@pytest.mark.usefixtures("all_old")
def test_in_every_store_the_same_goes(registry_root: str) -> None:
    made = [nights.night(registry_root, number, value) for number, value in enumerate((5.0, 6.0))]
    found = gc.survey(registry_root, OLD)
    expected = {made[1][kind] for kind in ("run", "set", "features", "score", "report")} | {made[0]["report"]}
    assert {each.place for each in found.going} == expected
    removed = gc.remove(registry_root, OLD, found.going)
    assert (set(removed.gone), removed.spared) == (set(found.going), ())
    assert not [uri for uri in storage.list_uris(registry_root) if uri.startswith(tuple(
        storage.join(registry_root, place) + "/" for place in expected
    ))]  # fmt: skip
    assert verify(registry_root).damages == ()
    assert gc.survey(registry_root, OLD).going == ()


def test_whoever_uses_a_place_before_its_last_look_keeps_it(
    sky: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = sky
    used, written = made[1]["set"], made[3]["run"]
    read = needs.read

    def busy(uri: str) -> needs.Root:
        uses._write(root, [storage.join(root, used)])
        storage.write_bytes(storage.join(root, written, "metrics.jsonl"), b"{}\n")
        return read(uri)

    found = gc.survey(root, Keep())
    monkeypatch.setattr(gc.needs, "read", busy)
    removed = gc.remove(root, Keep(), found.going)
    spared = {each.place for each in removed.spared}
    assert spared == {used, made[1]["run"], written, made[3]["dataset"]}
    for place in spared:
        assert storage.exists(storage.join(root, place, "manifest.json"))
        assert not storage.exists(storage.join(root, place, removal.MARK))
    assert verify(root).damages == ()


def test_whoever_writes_between_the_last_look_and_the_removal_keeps_the_place(
    sky: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = sky
    place, take_away = made[1]["run"], gc._take_away

    def late(uri: str, found: needs.FoundPlace) -> None:
        if found.folder == "videos":
            storage.write_bytes(storage.join(root, place, "metrics.jsonl"), b"{}\n")
        take_away(uri, found)

    monkeypatch.setattr(gc, "_take_away", late)
    removed = gc.remove(root, Keep(), gc.survey(root, Keep()).going)
    assert [each.place for each in removed.spared] == [place]
    assert manifest.find(storage.join(root, place), "checkpoint")


def test_a_step_that_needs_what_is_being_removed_ends_in_one_line(sky: tuple[str, list[dict[str, str]]]) -> None:
    root, made = sky
    uri = storage.join(root, made[1]["run"])
    config = promoted.PromotedConfig(root=root, name="sky", checkpoint=storage.join(uri, "manifest.json"))
    storage.write_json(storage.join(uri, removal.MARK), {})
    with pytest.raises(StorageError, match=r"is being removed by `latte gc`; run again when that has ended \(one that"):
        steps.call("promoted", config, "fetch")
    # KFP's copy of the manifest means the same place.
    copy = storage.local_path(root).parent / "artifact"
    manifest.write(manifest.read(uri), copy)
    with pytest.raises(StorageError, match="is being removed"):
        steps.call("promoted", config.model_copy(update={"checkpoint": str(copy)}), "fetch")
    storage.delete(storage.join(uri, removal.MARK))
    assert steps.call("promoted", config, "fetch").uri == uri
    assert made[1]["run"] not in going(root, Keep())


def test_a_manifest_of_what_was_removed_while_it_was_made_does_not_stay(root: str) -> None:
    made = nights.publish(root, "video_set", "videos", "sky", "a", ("clip-00000.mkv",))
    storage.write_json(storage.join(made.uri, removal.MARK), {})
    with pytest.raises(StorageError, match="is being removed"):
        manifest.finish(made, root)
    assert not storage.exists(made.file)
    storage.delete(storage.join(made.uri, removal.MARK))
    storage.delete(made.shards[0].uri)
    with pytest.raises(StorageError, match="objects of it were removed meanwhile; run again"):
        manifest.finish(made, root)
    assert not storage.exists(made.file)
