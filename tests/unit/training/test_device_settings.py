"""Settings of a training run for its device, and what of a plan is refused."""

import os
from typing import Any

import pytest

from latte import device
from latte.config import build
from latte.errors import UserError
from latte.models.configs import LatteConfig
from latte.steps import train
from latte.training import memory, starting
from latte.training.config import TrainConfig


def settings(**given: Any) -> TrainConfig:
    return build(TrainConfig, {"root": "file:///r", "name": "n", "latents": "l", "steps": 20, **given}, "test")


def test_traced_steps_lie_within_the_run() -> None:
    assert settings(profile_steps="10:12").profiled == (10, 12)
    assert settings().profiled == (0, 0)
    for steps in ("12:10", "19:21"):
        with pytest.raises(UserError, match="expected first:last within the 20 steps of the run"):
            settings(profile_steps=steps)
    with pytest.raises(UserError, match="profile_steps"):
        settings(profile_steps="0:3")


def test_waiting_for_others_is_told_to_hccl_and_else_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "300")
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "")
    starting.prepare_device(settings(hccl_exec_timeout_s=600))
    assert (os.environ["HCCL_CONNECT_TIMEOUT"], os.environ["HCCL_EXEC_TIMEOUT"]) == ("300", "600")
    with pytest.raises(UserError, match="hccl_connect_timeout_s"):
        settings(hccl_connect_timeout_s=60)


def test_on_ascend_only_what_cannot_fit_whatever_the_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LatteConfig.preset("Latte-XL/2")
    config = settings(batch_size=40, workers=8, precision="bf16")
    # A published setting on 64 GB: the estimate, made for CPUs, would not have let it pass.
    assert memory.of_run(config, model, 8).device_bytes > 64 << 30
    monkeypatch.setattr(device, "memory_bytes", lambda: 64 << 30)
    memory.check_start(config, model, 8)
    monkeypatch.setattr(device, "memory_bytes", lambda: 8 << 30)
    with pytest.raises(UserError, match=r"at least 14\.8 GB of the device's 8\.6 GB"):
        memory.check_start(config, model, 8)


def test_a_plan_is_not_a_run() -> None:
    with pytest.raises(UserError, match="nothing is trained; the command `latte train` prints the plan"):
        train.run(settings(dry_run=True))
