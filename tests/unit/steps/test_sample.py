"""The sample step's plan: what is refused before work, and what a set's place depends on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from latte import networks, storage
from latte.config import build, load, read_yaml
from latte.errors import UserError
from latte.kinds import KINDS
from latte.steps import sample
from latte.storage import manifest

SAMPLING = Path(__file__).parents[3] / "configs" / "sampling"

MODEL = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_frames": 16,
    "num_classes": 3,
    "class_dropout_prob": 0.1,
    "condition": "class",
}
CLASSES = ["cat", "dog", "fish"]


def finish(root: Path, place: str, kind: str, objects: list[str], **fields: Any) -> str:
    uri = (root / place).as_uri()
    shards = [manifest.publish_shard(f"{place} {name}".encode(), storage.join(uri, name)) for name in objects]
    manifest.finish(manifest.Manifest(kind=kind, name=kind, uri=uri, fingerprint=place, shards=shards, **fields))
    return storage.join(uri, "manifest.json")


def autoencoder(root: Path, kind: str = "vae") -> str:
    return finish(root, f"weights/{kind}", "weights", ["model.safetensors"], config={"kind": kind, "model": {}})


def checkpoint(root: Path, classes: list[str] = CLASSES, **model: Any) -> str:
    vae = manifest.read(autoencoder(root)).shards[0].sha256
    facts = {
        "model": {**MODEL, **model},
        "diffusion": {"noise_schedule": "linear"},
        "classes": classes,
        "image_size": 64,
        "scaling_factor": 0.18215,
        "vae": vae,
    }
    objects = [f"checkpoints/step-{s:08d}/{role}.safetensors" for s in (0, 50, 60) for role in ("model", "ema")]
    place = "runs/" + manifest.fingerprint(classes, model)[:8]
    return finish(root, place, "checkpoint", objects, config=facts, metrics={"step": 60})


TEXT = {"captions": "c.txt", "text_encoder": "t.json", "tokenizer": "tokenizer.json"}


def config(root: Path, **changes: Any) -> sample.SampleConfig:
    values = {"root": root.as_uri(), "name": "set", "vae": autoencoder(root), **changes}
    if "checkpoint" not in values:
        values["checkpoint"] = checkpoint(root)
    return sample.SampleConfig(**values)


@pytest.mark.parametrize(
    ("changes", "model", "words"),
    [
        ({"step": 55}, {}, r"step 55: not kept in .*; there are 0, 50, 60"),
        ({"labels": ["bird"]}, {}, r"no class 'bird' \(known: cat, dog, fish\)"),
        ({"labels": [3]}, {}, r"labels: 3 is not a class; there are 3"),
        ({"cfg_scale": 7.0}, {"class_dropout_prob": 0.0}, r"cfg_scale: .* never had its condition dropped"),
        ({"cfg_scale": 7.0}, {"class_dropout_prob": 0.0, "condition": "text"}, r"never had its condition dropped"),
        ({"cfg_scale": 7.0}, {"condition": "none"}, r"cfg_scale: .* has no condition"),
        ({"labels": [0]}, {"condition": "none"}, r"labels: .* not conditioned on classes"),
        (TEXT, {}, r"captions: .* not conditioned on text"),
        (TEXT, {"condition": "none"}, r"captions: .* not conditioned on text"),
        ({}, {"condition": "text"}, r"conditioned on text; give captions, text_encoder, tokenizer"),
        ({"labels": [0]}, {"condition": "text"}, r"labels: .* not conditioned on classes"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(
    tmp_path: Path, changes: dict[str, Any], model: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        sample.plan(config(tmp_path, checkpoint=checkpoint(tmp_path, **model), **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "videos").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ("num_sampling_steps=0", "num_sampling_steps: the diffusion has 1 to 1000 steps; 1 works (got 0)"),
        ("num_sampling_steps=-3", "num_sampling_steps: the diffusion has 1 to 1000 steps; 1 works (got -3)"),
        ("num_sampling_steps=1001", "num_sampling_steps: the diffusion has 1 to 1000 steps; 1000 works (got 1001)"),
        (
            "num_sampling_steps=fast",
            'num_sampling_steps: expected a count, "ddimN" or sections "a,b,…"; 250 works (got \'fast\')',
        ),
        (
            "num_sampling_steps=ddim501",
            "num_sampling_steps: no integer stride takes 501 of 1000 steps; ddim500 works (got 'ddim501')",
        ),
        ("num_sampling_steps='600,10'", "num_sampling_steps: cannot take 600 of 500 steps (got '600,10')"),
        ("num_sampling_steps='0,10'", "num_sampling_steps: a section needs at least one step (got '0,10')"),
        ("labels=[]", "labels: no classes in the list; leave labels out for all of them (got [])"),
        (
            "labels=dataset",
            "labels=dataset and latents (the manifest of that dataset) go together; give both or neither",
        ),
        (
            "latents=l.json",
            "labels=dataset and latents (the manifest of that dataset) go together; give both or neither",
        ),
        ("captions=c.txt", "captions, text_encoder, tokenizer go together; text_encoder is not given"),
    ],
)
def test_settings_that_no_model_can_take_are_refused_when_they_are_read(changes: str, line: str) -> None:
    given = ["root=/tmp/r", "name=n", "checkpoint=c", "vae=v"]
    with pytest.raises(UserError) as caught:
        load(sample.SampleConfig, None, [*given, changes])
    assert str(caught.value) == f"command line: {line}"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("[on]", r"labels: .* put a name that YAML reads as true or false in quotes \(got \[True\]\)"),
        ("[1.5]", r"labels: a class is a name or a number \(got \[1\.5\]\)"),
        ("dog", r"labels: expected a list of classes, or dataset \(got 'dog'\)"),
    ],
)
def test_labels_that_are_none_are_named_by_their_key(labels: str, words: str) -> None:
    given = ["root=file:///r", "name=n", "checkpoint=c", "vae=v"]
    with pytest.raises(UserError, match=f"^command line: {words}$"):
        load(sample.SampleConfig, None, [*given, f"labels={labels}"])
    taken = load(sample.SampleConfig, None, [*given, "labels=[dog, 3, 2.0]"])
    assert taken.labels == ["dog", 3, 2]


def test_another_autoencoder_or_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights of i3d, expected vae"):
        sample.plan(config(tmp_path, vae=autoencoder(tmp_path, "i3d")))
    other = finish(tmp_path, "weights/other", "weights", ["model.safetensors"], config={"kind": "vae", "model": {}})
    with pytest.raises(UserError, match="latents of another autoencoder"):
        sample.plan(config(tmp_path, vae=other))
    with pytest.raises(UserError, match="weights of vae, expected latte"):
        sample.plan(config(tmp_path, checkpoint=autoencoder(tmp_path)))
    nothing = finish(tmp_path, "scores/one", "score", [])
    with pytest.raises(UserError, match="a manifest of score, expected checkpoint or weights"):
        sample.plan(config(tmp_path, checkpoint=nothing))


@pytest.mark.parametrize(
    ("num_videos", "batch_size", "num_tasks", "expected"),
    [(48, 8, 8, 6), (1, 8, 8, 1), (2048, 8, 32, 32), (9, 8, 1, 1)],
)
def test_no_task_is_left_without_work(
    tmp_path: Path, num_videos: int, batch_size: int, num_tasks: int, expected: int
) -> None:
    planned = sample.plan(config(tmp_path, num_videos=num_videos, batch_size=batch_size, num_tasks=num_tasks))
    assert planned.metrics["num_tasks"] == expected


def test_the_place_depends_on_what_makes_a_video_and_on_nothing_else(tmp_path: Path) -> None:
    def place_of(**changes: Any) -> str:
        return sample.plan(config(tmp_path, **changes)).uri.partition("/plan/")[0]

    place = place_of()
    same: list[dict[str, Any]] = [
        {"num_videos": 99}, {"batch_size": 2}, {"decode_frames": 5}, {"num_tasks": 1}, {"step": 60},
    ]  # fmt: skip
    other = [
        {"seed": 1}, {"step": 50}, {"weights": "model"}, {"cfg_scale": 2.0}, {"method": "ddpm"},
        {"num_sampling_steps": 50}, {"labels": [1]}, {"fps": 10.0}, {"cfg_channels": "all"}, {"precision": "fp16"},
    ]  # fmt: skip
    for changes in same:
        assert place_of(**changes) == place, changes
    places = {place_of(**changes) for changes in other}
    assert len(places | {place}) == len(other) + 1


def test_a_tokenizer_that_cannot_be_loaded_is_refused_before_work(tmp_path: Path) -> None:
    clip = finish(tmp_path, "weights/clip", "weights", ["model.safetensors"], config={"kind": "clip", "model": {}})
    (tmp_path / "vocab.json").write_text("{}")
    for tokenizer, words in (
        (str(tmp_path / "vocab.json"), "merges.txt: no such file"),
        (str(tmp_path / "tokenizer.json"), "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            networks.TextSource.checked(clip, tokenizer)


def test_published_weights_converted_with_other_settings_are_another_place(tmp_path: Path) -> None:
    def place(heads: int, groups: int, classes: list[str]) -> str:
        facts = {
            "kind": "latte",
            "model": {**MODEL, "in_channels": 4, "input_size": 8, "num_heads": heads},
            "diffusion": {"noise_schedule": "linear"},
            "classes": classes,
            "image_size": 64,
            "scaling_factor": 0.18215,
            "vae": None,
            "vae_name": "sd-vae-ft-ema",
        }
        vae = {"kind": "vae", "model": {"norm_num_groups": groups}}
        uris = [
            finish(tmp_path, f"published/{part['kind']}", "weights", ["model.safetensors"], config=part)
            for part in (facts, vae)
        ]
        return sample.plan(config(tmp_path, checkpoint=uris[0], vae=uris[1], labels=["dog"])).uri

    ways = [(2, 32, CLASSES), (4, 32, CLASSES), (2, 16, CLASSES), (2, 32, CLASSES[::-1])]
    assert len({place(*way) for way in [*ways, *ways]}) == len(ways)


def test_a_plan_of_other_settings_is_refused(tmp_path: Path) -> None:
    plan_uri = storage.join(sample.plan(config(tmp_path)).uri, "manifest.json")
    for changes in ({"seed": 1}, {"num_videos": 17}):
        with pytest.raises(UserError, match="a plan of other settings"):
            sample.sample_shards(config(tmp_path, **changes), plan_uri, 0, 1)
    with pytest.raises(UserError, match="task 2: expected 0 to 1"):
        sample.sample_shards(config(tmp_path), plan_uri, 2, 2)
    with pytest.raises(UserError, match=r"clip-00000\.mkv: not generated yet"):
        sample.merge(config(tmp_path), plan_uri)


def test_classes_without_names_count(tmp_path: Path) -> None:
    made = sample._resolve(config(tmp_path, checkpoint=checkpoint(tmp_path, classes=[])))
    assert made.conditions.labels == [0, 1, 2]
    named = sample._resolve(config(tmp_path, labels=["fish", 0]))
    assert named.conditions.labels == [2, 0]


@pytest.mark.parametrize("path", sorted(SAMPLING.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sampling_preset_takes_what_its_model_preset_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    given = load(sample.SampleConfig, path, [f"root={tmp_path.as_uri()}"])
    presets = [read_yaml(file) for file in (SAMPLING.parent / "models").glob("latte-*.yaml")]
    model = next(preset for preset in presets if preset["target"] + ".manifest.json" == given.checkpoint)
    others = [read_yaml(file) for file in (SAMPLING.parent / "models").glob("*.yaml")]
    (vae,) = [each for each in others if given.vae == each["target"] + ".manifest.json"]
    assert vae["kind"] == "vae"
    trained_on = model["trained_on"]
    kind = KINDS[model["kind"]]
    settings = build(kind.config, kind.expand(model["model"])).model_dump()
    facts = {
        "model": settings,
        "classes": [],
        "diffusion": {"noise_schedule": trained_on["noise_schedule"]},
        "image_size": trained_on["image_size"],
        "scaling_factor": trained_on["scaling_factor"],
        "vae": None,
        "vae_name": trained_on["vae"],
    }
    made_of = [(model, {"kind": model["kind"], **facts}), (vae, {"kind": "vae", "model": vae["model"]})]
    if given.text_encoder is not None:
        (text,) = [each for each in others if given.text_encoder == each["target"] + ".manifest.json"]
        made_of.append((text, {"kind": "t5", "model": text["model"]}))
        tokenizer = tmp_path / str(given.tokenizer)
        tokenizer.parent.mkdir(parents=True)
        shutil.copy(Path(__file__).parents[2] / "data" / "t5" / "spiece.model", tokenizer)
        (tmp_path / str(given.captions)).write_text("a small cactus\n")
    for preset, config in made_of:
        shard = manifest.publish_shard(b"weights", (tmp_path / preset["target"]).as_uri())
        made = manifest.Manifest(
            kind="weights", name="w", uri=tmp_path.as_uri(), fingerprint="w", shards=[shard], config=config
        )
        manifest.write(made, tmp_path / (preset["target"] + ".manifest.json"))
    monkeypatch.chdir(tmp_path)
    planned = sample.plan(given)
    expected = (16, 8) if given.captions else (2048, 32)
    assert (planned.counts["videos"], planned.metrics["num_tasks"]) == expected
    condition = build(kind.config, settings).condition
    assert given.cfg_scale == {"none": 1.0, "class": 7.0, "text": 7.5}[condition]
