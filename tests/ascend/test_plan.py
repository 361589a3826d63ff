"""A training run is planned before it starts, by the step that it would make."""

import dataclasses

import pytest

from latte.errors import UserError
from latte.models.configs import LatteConfig
from latte.planning import plans, stand_ins
from latte.training.config import TrainConfig
from tests.ascend.test_graphs import WIDE_HEADS

pytestmark = pytest.mark.skipif(bool(stand_ins.other_machine()), reason=stand_ins.other_machine())
SETTINGS = {"root": "file:///root", "name": "small", "latents": "file:///latents"}


def test_a_step_in_bf16_is_planned_and_what_does_not_fit_is_refused() -> None:
    config = TrainConfig(**SETTINGS, precision="bf16", batch_size=4, accumulation=2, weight_decay=0.01)
    planned = plans.training(config, LatteConfig(**WIDE_HEADS, condition="class"))
    (plan,) = planned.ranks.values()
    assert plan.of_kind("acl") == {}, "compiled by CANN at first use"
    assert plan.casts <= 12
    assert {"FlashAttentionScore", "FlashAttentionScoreGrad", "AdamW"} <= set(plan.of_kind("opapi"))
    planned.check()
    assert f"kernels     {plan.launched} a micro-batch with its update, on Ascend 910B" in str(planned)
    assert f"{planned.parameters:,} trained" in str(planned)
    with pytest.raises(UserError, match=r"^train small: a step of worker 0 takes .* GB of .*; lower batch_size"):
        dataclasses.replace(planned, device_bytes=plan.peak_bytes - 1).check()


def test_of_workers_that_share_the_optimizer_the_largest_and_the_smallest_are_planned() -> None:
    model = LatteConfig(**WIDE_HEADS)
    assert plans.differing(TrainConfig(**SETTINGS, workers=4), model) == [0]
    first, last = plans.differing(TrainConfig(**SETTINGS, workers=4, shard_optimizer=True), model)
    assert 0 <= first < last < 4
