"""The presets of configs/train: they load, and say what was published."""

from pathlib import Path

import pytest

from latte import yaml_text
from latte.config import load
from latte.models.configs import LatteConfig
from latte.steps.train import TrainConfig

PRESETS = Path(__file__).parents[2] / "configs/train"
CLIP_START = {"ffs": 20_000, "sky": 20_000, "taichi": 500_000, "ucf101": 100_000}


def test_there_is_one_for_each_published_model() -> None:
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {*CLIP_START, "sky-128"}


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 4), (8, 32)])
def test_clips_of_128_frames_are_computed_one_at_a_time_and_recomputed(workers: int, batch_size: int) -> None:
    given = ["root=file:///data", "latents=latents.json", f"workers={workers}", f"batch_size={batch_size}"]
    config = load(TrainConfig, PRESETS / "sky-128.yaml", given)
    assert config.batch_size == config.workers * config.accumulation
    assert config.recompute
    assert (config.frame_stride, config.learning_rate, config.clip_grad_norm) == (1, 1e-4, None)
    model = dict(config.model)
    assert LatteConfig.preset(model.pop("preset"), **model).num_frames == 128
    dataset = yaml_text.parse((PRESETS.parent / "datasets" / "skytimelapse-128.yaml").read_text())
    assert dataset["min_frames"] == 128


@pytest.mark.parametrize("name", sorted(CLIP_START))
def test_a_preset_is_the_published_recipe(name: str) -> None:
    config = load(TrainConfig, PRESETS / f"{name}.yaml", ["root=file:///data", "latents=latents.json"])
    assert config.batch_size == 5 * config.workers == 40
    assert (config.learning_rate, config.weight_decay, config.ema_decay, config.seed) == (1e-4, 0.0, 0.9999, 3407)
    assert (config.steps, config.frame_stride, config.warmup_steps) == (1_000_000, 3, 0)
    assert (config.clip_grad_norm, config.clip_start_step) == (0.1, CLIP_START[name])
    assert config.precision == "fp32"
    model = dict(config.model)
    built = LatteConfig.preset(model.pop("preset"), **model)
    assert (built.hidden_size, built.depth, built.num_heads, built.patch_size) == (1152, 28, 16, 2)
    assert (built.num_frames, built.learn_sigma) == (16, True)
    assert built.condition == ("class" if name == "ucf101" else "none")
