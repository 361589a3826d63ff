"""Every graph that a user can run compiles for Ascend, of aclnn kernels alone, in MindSpore's dry run.

Small networks: kernels do not depend on sizes, but for heads that are padded. The published sizes are those of
`make soak` and of benchmarks/ascend.py.
"""

from typing import Any

import pytest

from tests import soak
from tests.ascend import dry_run, stand_ins

pytestmark = pytest.mark.skipif(bool(stand_ins.other_machine()), reason=stand_ins.other_machine())

LATTE = {"hidden_size": 32, "num_heads": 2, "depth": 2, "input_size": 8, "num_frames": 4, "num_classes": 3}
WIDE_HEADS = {**LATTE, "hidden_size": 48}  # 24 channels, padded to 32 as those of Latte-XL, 72, are to 80
VAE = {"block_out_channels": [32, 32], "layers_per_block": 1, "norm_num_groups": 8}
CLIP = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100}
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "guided, with classes": ("latte_forward", {**LATTE, "condition": "class", "guided": True}),
    "guided, with text, bf16": (
        "latte_forward",
        {**WIDE_HEADS, "condition": "text", "guided": True, "precision": "bf16"},
    ),
    "training in bf16": (
        "train_step",
        {**WIDE_HEADS, "condition": "class", "precision": "bf16", "accumulation": 2, "weight_decay": 0.01},
    ),
    "training in fp32, rank 3 of 8, sharded": (
        "train_step",
        {**LATTE, "rank": (3, 8), "shard_optimizer": True},
    ),
    "encoding": ("autoencoder", {"direction": "encode", "size": 32, **VAE}),
    "decoding": ("autoencoder", {"direction": "decode", "size": 32, **VAE}),
    "text": ("clip_text", CLIP),
    "i3d": ("i3d", {"width": 0.125, "image_size": 64, "num_classes": 5}),
}
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "training in fp16 with text": ("train_step", {**LATTE, "condition": "text", "precision": "fp16"}),
    "training with recompute": ("train_step", {**LATTE, "recompute": True, "precision": "bf16"}),
    "rank 3 of 8, bf16, sharded": (
        "train_step",
        {**WIDE_HEADS, "rank": (3, 8), "shard_optimizer": True, "precision": "bf16"},
    ),
    "rank 3 of 8": ("train_step", {**LATTE, "rank": (3, 8)}),
    "Latte-S/2 with classes": ("latte_forward", {"preset": "Latte-S/2", "condition": "class", "guided": True}),
    "512 pixels": ("latte_forward", {"preset": "Latte-S/2", "input_size": 64, "precision": "bf16"}),
    "128 frames": ("latte_forward", {"preset": "Latte-S/2", "num_frames": 128, "precision": "bf16"}),
    "Latte-S/2, a step": ("train_step", {"preset": "Latte-S/2", "precision": "bf16"}),
    "encoding 256 pixels": ("autoencoder", {"direction": "encode", "size": 256}),
    "decoding 512 pixels": ("autoencoder", {"direction": "decode", "size": 512}),
    "published text encoder": ("clip_text", {}),
    "published i3d": ("i3d", {}),
}
CASES = {**QUICK, **(SLOW if soak.FULL else {})}


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_of_aclnn_kernels_alone(case: str) -> None:
    graph, settings = CASES[case]
    plan = dry_run.count(graph, **settings)
    assert plan.number("opapi") > 0
    assert plan.of_kind("acl") == {}, "compiled by CANN at first use"
    # In float32 nothing is cast but labels and steps; in half precision what comes in and goes out of the network.
    assert plan.casts <= 12, plan
    assert bool(plan.of_kind("hccl")) == ("rank" in settings)
    if graph in ("latte_forward", "train_step"):
        half = settings.get("precision", "fp32") != "fp32"
        assert ("FlashAttentionScore" in plan.of_kind("opapi")) == half, "the fused kernel takes half precision"


def test_a_graph_that_does_not_compile_fails_with_the_reason_as_it_was_said() -> None:
    with pytest.raises(dry_run.DoesNotCompileError, match=r"images \(1, 3, 33, 33\) do not fit"):
        dry_run.count("autoencoder", direction="encode", size=33, **VAE)


def test_a_kernel_that_cann_would_compile_is_counted() -> None:
    plan = dry_run.count("old_kernels")
    assert plan.of_kind("acl") == {"Split": 1}
    assert plan.of_kind("opapi") == {"Muls": 1}
