"""What the steps of a pipeline ask of each other is refused before work, with a key and a value that works."""

from pathlib import Path
from typing import Any

import pytest

from latte.config import load
from latte.errors import UserError
from latte.metrics.protocol import Protocol
from latte.models.configs import AutoencoderKLConfig, I3DConfig, LatteConfig
from latte.models.detector_configs import InceptionConfig
from latte.steps import dataset_demands, demands
from latte.steps.convert import ConvertConfig
from latte.steps.dataset_demands import Dataset
from latte.steps.encode import EncodeConfig
from latte.steps.promote import PromoteConfig
from latte.steps.report import ReportConfig
from latte.steps.sample import SampleConfig
from latte.steps.score import ScoreConfig
from latte.steps.tell import TellConfig
from latte.steps.train import TrainConfig
from pipelines import settings as pipelines
from pipelines.cluster import Cluster
from tests import small_clip

DEMO = {"num_clips": 48, "frame_stride": 1, "clips_per_video": 4}
TEXT = {"text_encoder": "s3://b/clip/manifest.json", "tokenizer": "s3://b/tokenizer.json"}
SIZES = {"hidden_size": 16, "num_heads": 2, "depth": 2, "patch_size": 4}
AUTOENCODER = AutoencoderKLConfig()

Given = dict[str, dict[str, Any]]


def asked_of(sections: Given) -> demands.Asked:
    """The settings of these sections, as a pipeline reads them."""
    encode = {"root": "/r", "name": "n", "dataset": {"videos": "/videos"}, "vae": "v", **sections.get("encode", {})}
    steps = {name: keys for name, keys in sections.items() if name not in ("encode", "promote")}
    read = demands.read(steps, EncodeConfig(**encode) if "encode" in sections else None)
    return demands.Asked(read.encode, read.train, read.sample, read.score, "promote" in sections)


def check(sections: Given, autoencoder: AutoencoderKLConfig | None = None) -> None:
    demands.check_settings(asked_of(sections), autoencoder, can_read=lambda uri: False)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert "://" not in str(caught.value)
    return str(caught.value)


# What contradicts itself or another section, and what is said of it.
MISTAKES: list[tuple[Given, str]] = [
    (
        {"encode": {}, "train": {"model": SIZES}, "sample": {"num_frames": 64}},
        "sample.num_frames=64: the model makes videos of 16 frames; train.model.num_frames=64 works, "
        "or leave sample.num_frames out",
    ),
    (
        {"sample": {"num_videos": 16}, "score": {"protocol": DEMO}},
        "sample.num_videos=16: score.protocol.num_clips is 48; sample.num_videos=48 works, "
        "or score.protocol.num_clips=16 works",
    ),
    (
        {"sample": {"num_videos": 1}, "score": {"protocol": DEMO}},
        "sample.num_videos=1: score.protocol.num_clips is 48; sample.num_videos=48 works",
    ),
    (
        {"sample": {"num_videos": 1}, "score": {"protocol": {"num_clips": "auto"}}},
        "sample.num_videos=1: a score needs 2 clips; sample.num_videos=2 works",
    ),
    (
        {"train": {"model": {"condition": "none"}}, "sample": {"cfg_scale": 1.5}},
        "sample.cfg_scale=1.5: train.model.condition is none; sample.cfg_scale=1 works",
    ),
    (
        {"train": {"model": {"class_dropout_prob": 0}}, "sample": {"cfg_scale": 7}},
        "sample.cfg_scale=7: train.model.class_dropout_prob is 0, so that there is nothing to guide from; "
        "sample.cfg_scale=1 works",
    ),
    (
        {"train": {"model": {"condition": "text"}}, "sample": {"labels": ["a"], "captions": "c", **TEXT}},
        "sample.labels: train.model.condition is text; leave sample.labels out",
    ),
    (
        {"train": {"model": {"condition": "none"}}, "sample": {"labels": "dataset", "latents": "l"}},
        "sample.labels: train.model.condition is none; leave sample.labels out",
    ),
    (
        {"train": {"model": {"condition": "class"}}, "sample": {"captions": "a.txt", **TEXT}},
        "sample.captions: train.model.condition is class; leave sample.captions out",
    ),
    (
        {"train": {}, "sample": {"captions": "a.txt", **TEXT}},
        "sample.captions: train.model.condition does not say text; leave sample.captions out",
    ),
    (
        {"train": {"model": {"condition": "text"}}, "encode": {}},
        "train.model.condition=text: give encode.text_encoder and encode.tokenizer, or "
        "train.model.condition=none works",
    ),
    (
        {"train": {"model": {"condition": "text"}}, "encode": TEXT, "sample": {}},
        "train.model.condition=text: give sample.captions, sample.text_encoder and sample.tokenizer, or "
        "train.model.condition=none works",
    ),
    (
        {"train": {"model": {"num_frames": 8}}, "sample": {"num_videos": 48}, "score": {"protocol": DEMO}},
        "train.model.num_frames=8: score.protocol compares clips of 16 frames; train.model.num_frames=16 works",
    ),
    (
        {"train": {"frame_stride": 3}, "encode": {"max_frames": 32}},
        "encode.max_frames=32: a clip of train needs 46 encoded frames; encode.max_frames=46 works",
    ),
    (
        {"train": {"frame_stride": 2}, "score": {"protocol": {"frame_stride": 3}}, "encode": {"max_frames": 32}},
        "encode.max_frames=32: a real clip of score needs 48 encoded frames; encode.max_frames=48 works",
    ),
    (
        {"sample": {"weights": "model"}, "promote": {}},
        "sample.weights=model: only the averaged weights are promoted; sample.weights=ema works",
    ),
    (
        {"train": {"model": {"depth": 7}}},
        "train.model.depth=7: odd, but blocks come in pairs, space and time; train.model.depth=8 works",
    ),
    (
        {"train": {"model": {"preset": "Latte-S/2", "num_heads": 5}}},
        "train.model.hidden_size=384: not divisible by num_heads 5 and by 4, which position features need; "
        "train.model.hidden_size=380 works",
    ),
    (
        {"train": {"model": {"hidden_size": 2, "num_heads": 1}}},
        "train.model.hidden_size=2: not divisible by num_heads 1 and by 4, which position features need; "
        "train.model.hidden_size=4 works",
    ),
    (
        {"train": {"model": {"condition": "class", "num_classes": 0}}},
        "train.model.num_classes=0: leaves nothing to condition on; train.model.condition=none works",
    ),
    (
        {"train": {"model": {"input_size": 15, "patch_size": 6}}},
        "train.model.patch_size=6: does not divide input_size 15; train.model.patch_size=3 works",
    ),
]
# The same where the autoencoder is known: it makes 4 channels of every 8 x 8 pixels.
SIZE_MISTAKES: list[tuple[Given, str]] = [
    (
        {"encode": {"image_size": 100}},
        "encode.image_size=100: not a multiple of 8, the autoencoder's downsampling; encode.image_size=96 works",
    ),
    (
        {"encode": {"image_size": 3}},
        "encode.image_size=3: not a multiple of 8, the autoencoder's downsampling; encode.image_size=8 works",
    ),
    (
        {"encode": {"image_size": 100}, "train": {"model": SIZES}},
        "encode.image_size=100: not a multiple of 8, the autoencoder's downsampling; encode.image_size=96 works",
    ),
    (
        {"encode": {"image_size": 120}, "train": {"model": SIZES}},
        "encode.image_size=120: its latents of 15 x 15 cannot be cut into patches of train.model.patch_size=4; "
        "encode.image_size=128 works",
    ),
    (
        {"encode": {"image_size": 72}, "train": {"model": {"preset": "Latte-S/2"}}},
        "encode.image_size=72: its latents of 9 x 9 cannot be cut into patches of train.model.patch_size=2; "
        "encode.image_size=64 works",
    ),
    (
        {"encode": {"image_size": 64}, "train": {"model": {**SIZES, "input_size": 32}}},
        "train.model.input_size=32: the latents' side: 8; train.model.input_size=8 works",
    ),
    (
        {"encode": {"image_size": 64}, "train": {"model": {**SIZES, "in_channels": 3}}},
        "train.model.in_channels=3: the autoencoder's latent channels: 4; train.model.in_channels=4 works",
    ),
]


@pytest.mark.parametrize(("sections", "line"), MISTAKES, ids=[line.partition(":")[0] for _, line in MISTAKES])
def test_settings_that_contradict_each_other(sections: Given, line: str) -> None:
    assert refused(check, sections) == line


@pytest.mark.parametrize(("sections", "line"), SIZE_MISTAKES)
def test_sizes_that_do_not_fit_the_autoencoder(sections: Given, line: str) -> None:
    assert refused(check, sections, AUTOENCODER) == line
    if "input_size" not in line:
        check(sections)


PRETRAINED = LatteConfig(hidden_size=16, num_heads=2, depth=2, patch_size=4)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"train": {"model": {**SIZES, "patch_size": 2}}},
            "train.model.patch_size=2: the weights of pretrained.source have patch_size 4; train.model.patch_size=4 "
            "works, or pretrained={} for fresh weights",
        ),
        (
            {"train": {"model": {"preset": "Latte-S/2"}}},
            "train.model.hidden_size=384: .* train.model.hidden_size=16 works",
        ),
        (
            {"train": {"model": SIZES, "init_from": "s3://b/m.json"}},
            "train.init_from: training starts from the weights",
        ),
        (
            {"score": {"protocol": DEMO}},
            "score.protocol.resolution=224: .* 64 pixels; score.protocol.resolution=64 works",
        ),
    ],
)
def test_settings_that_the_weights_are_not_for(sections: Given, line: str) -> None:
    with pytest.raises(UserError, match=line.replace("{}", r"\{\}")) as caught:
        demands.check_weights(asked_of(sections), I3DConfig(image_size=64), PRETRAINED)
    assert "\n" not in str(caught.value)


def test_weights_that_fit_are_let_through() -> None:
    sections = {"train": {"model": SIZES}, "score": {"protocol": {**DEMO, "resolution": 64}}}
    demands.check_weights(asked_of(sections), I3DConfig(image_size=64), PRETRAINED)
    demands.check_weights(asked_of({"score": {"protocol": DEMO}}), InceptionConfig())
    demands.check_weights(asked_of({"train": {"model": {"preset": "Latte-S/2"}}, "score": {"protocol": DEMO}}))


def test_a_preset_that_is_not_there_is_named_by_its_section() -> None:
    line = refused(check, {"train": {"model": {"preset": "Latte-M/2"}}})
    assert line.startswith("train.model.preset 'Latte-M/2' is unknown; known: Latte-XL/2, ")


def test_sampling_with_another_text_encoder_than_training_is_refused(tmp_path: Path) -> None:
    shape: dict[str, int] = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}
    first, second = (small_clip.publish(tmp_path, f"clip{seed}", seed, **shape) for seed in (1, 2))
    keys = [dict(zip(("text_encoder", "tokenizer"), each, strict=True)) for each in (first, second)]
    sections: Given = {"train": {"model": {"condition": "text"}}, "encode": keys[0]}
    same = asked_of({**sections, "sample": {"captions": "c.txt", **keys[0]}})
    other = asked_of({**sections, "sample": {"captions": "c.txt", **keys[1]}})
    demands.check_settings(same)
    assert refused(demands.check_settings, other).startswith("sample.text_encoder: another encoder or tokenizer than")
    demands.check_settings(other, can_read=lambda uri: False)


SECTIONS: dict[str, dict[str, Any]] = {
    "vae": {**ConvertConfig.model_fields, **dict.fromkeys(AutoencoderKLConfig.model_fields)},
    "detector": ConvertConfig.model_fields,
    "pretrained": ConvertConfig.model_fields,
    "encode": EncodeConfig.model_fields,
    "train": {**TrainConfig.model_fields, **dict.fromkeys(LatteConfig.model_fields)},
    "sample": SampleConfig.model_fields,
    "score": {**ScoreConfig.model_fields, **dict.fromkeys(Protocol.model_fields)},
    "promote": PromoteConfig.model_fields,
    "report": ReportConfig.model_fields,
    "notify": TellConfig.model_fields,
    "cluster": Cluster.model_fields,
}
# Keys of two sections by the same name. Filled in by the pipeline, the same for all that have them:
FILLED_IN = {"root", "name", "vae", "latents", "videos", "checkpoint", "detector", "real", "step", "output"}
# Each section's own business: what is converted, how its own work is shared out, drawn or computed.
OWN = {
    "kind", "source", "part", "target", "page", "sha256", "trained_on", "batch_size", "num_tasks", "workers",
    "precision", "seed",
    # A gate that names a metric of its own may score again by detectors of its own.
    "detectors",
    # Of vae, detector and pretrained, of train and of Volcano: a network each.
    "model",
    # The pictures' channels of the autoencoder; the latents' of the model.
    "in_channels",
    # Encoded frames are counted from then on, so that strides multiply and never have to be equal.
    "frame_stride",
}  # fmt: skip
# Keys, of whatever names, that speak of the same thing or of what is known of the data: each pair with a mistake that
# is refused. The line says both, or the word for it that stands here.
RELATED: dict[tuple[str, str], Given] = {
    ("sample.num_videos", "score.num_clips"): {"sample": {"num_videos": 16}, "score": {"protocol": DEMO}},
    ("train.condition", "sample.cfg_scale"): {"train": {"model": {"condition": "none"}}, "sample": {"cfg_scale": 2}},
    ("train.class_dropout_prob", "sample.cfg_scale"): {
        "train": {"model": {"class_dropout_prob": 0}}, "sample": {"cfg_scale": 2},
    },
    ("train.condition", "sample.labels"): {"train": {"model": {"condition": "none"}}, "sample": {"labels": [0]}},
    ("train.condition", "sample.captions"): {"train": {}, "sample": {"captions": "a.txt", **TEXT}},
    ("train.condition", "encode.text_encoder"): {"train": {"model": {"condition": "text"}}, "encode": {}},
    ("train.condition", "sample.text_encoder"): {
        "train": {"model": {"condition": "text"}}, "encode": TEXT, "sample": {},
    },
    ("train.condition", "sample.tokenizer"): {"train": {"model": {"condition": "text"}}, "encode": TEXT, "sample": {}},
    ("train.num_frames", "score.protocol"): {"train": {"model": {"num_frames": 8}}, "score": {"protocol": DEMO}},
    ("train.clip", "encode.max_frames"): {"train": {"frame_stride": 3}, "encode": {"max_frames": 32}},
    ("score.clip", "encode.max_frames"): {"score": {}, "encode": {"max_frames": 32}},
    ("encode.image_size", "train.patch_size"): {"encode": {"image_size": 120}, "train": {"model": SIZES}},
    ("encode.image_size", "vae.downsampling"): {"encode": {"image_size": 100}},
    ("train.input_size", "vae.latents"): {"encode": {"image_size": 64}, "train": {"model": {**SIZES, "input_size": 4}}},
    ("train.in_channels", "vae.latent channels"): {
        "encode": {"image_size": 64}, "train": {"model": {**SIZES, "in_channels": 3}},
    },
    ("promote.promoted", "sample.weights"): {"promote": {}, "sample": {"weights": "model"}},
    ("train.num_classes", "dataset.classes"): {"train": {"model": {"num_classes": 1}}},
    ("train.frame_stride", "dataset.longest"): {"train": {"frame_stride": 30}},
    ("score.frame_stride", "dataset.longest"): {"score": {"protocol": {**DEMO, "frame_stride": 30}}},
    ("score.num_clips", "dataset.videos"): {"score": {"protocol": DEMO}},
    ("score.clips_per_video", "dataset.videos"): {"score": {"protocol": DEMO}},
    ("sample.labels", "dataset.known"): {"train": {}, "sample": {"labels": ["c"]}},
    ("encode.text_encoder", "dataset.captions"): {"encode": TEXT},
}  # fmt: skip


def test_every_key_that_two_sections_share_is_filled_in_their_own_business_or_held_together() -> None:
    together = {key for pair in RELATED for _, _, key in (name.partition(".") for name in pair)}
    shared = {key for a in SECTIONS for b in SECTIONS if a < b for key in SECTIONS[a] if key in SECTIONS[b]}
    # The cluster's keys are the names of steps; those of vae, of train and of sample are not.
    shared -= set(SECTIONS["cluster"])
    assert shared <= FILLED_IN | OWN | together, "say of the new key whether it is held together"
    assert shared >= OWN
    assert not together & (OWN - {"in_channels", "frame_stride"})


@pytest.mark.parametrize("pair", RELATED, ids=" and ".join)
def test_keys_that_speak_of_the_same_thing_are_held_together(pair: tuple[str, str]) -> None:
    def run(sections: Given) -> None:
        check(sections, AUTOENCODER)
        dataset_demands.check(Dataset(["a", "b"], False, 2, [60, 50]), asked_of(sections))

    line = refused(run, RELATED[pair])
    for name in pair:
        assert name.rpartition(".")[2].split(" ")[0] in line, line


def test_an_override_reaches_into_a_protocol_that_is_named_by_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "score.yaml"
    path.write_text("{root: /r, name: n, videos: v, real: r, detector: d, protocol: taichi-hd}")
    protocol = load(ScoreConfig, path, ["protocol.num_clips=36", "protocol.seed=2"]).protocol
    assert protocol == {"preset": "taichi-hd", "num_clips": 36, "seed": 2}
    again = load(ScoreConfig, None, [f"{key}=x" for key in ("name", "videos", "real", "detector")] + [
        "root=/r", "protocol=demo", "protocol.num_clips=36",
    ])  # fmt: skip
    assert again.protocol == {"preset": "demo", "num_clips": 36}
    with pytest.raises(UserError, match=r"override root\.x: root is a value, not a section"):
        load(ScoreConfig, path, ["root.x=1"])


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("num_clips=aut", "num_clips: expected a whole number, or auto; 2048 is the default (got 'aut')"),
        ("clips_per_video=all", "clips_per_video: expected a whole number, or auto; 1 is the default (got 'all')"),
        ("num_real_clips=auto", "num_real_clips: expected a whole number; null is the default (got 'auto')"),
    ],
)
def test_a_misspelt_auto_is_told_with_what_can_stand_there(field: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(
            ScoreConfig,
            None,
            [f"{key}=x" for key in ("root", "name", "videos", "real", "detector")] + [f"protocol.{field}"],
        )
    assert str(caught.value) == f"command line: protocol.{line}"


def test_every_key_that_a_component_fills_in_is_refused_in_the_settings() -> None:
    for section, (_, wired) in pipelines.SECTIONS.items():
        for key in wired:
            assert key in SECTIONS[section], f"{section}.{key}"
