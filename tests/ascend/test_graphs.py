"""Every graph that a user can run compiles for Ascend, of aclnn kernels alone, in MindSpore's dry run.

Small networks: kernels do not depend on sizes, but for heads that are padded. The step in bf16 is that of
tests/ascend/test_plan.py, the published sizes are those of `make soak` and of benchmarks/ascend.py.
"""

from typing import Any

import pytest

from latte.planning import stand_ins
from latte.planning.dry_run import DoesNotCompileError
from tests import soak
from tests.ascend import graphs

pytestmark = pytest.mark.skipif(bool(stand_ins.other_machine()), reason=stand_ins.other_machine())

LATTE = {"hidden_size": 32, "num_heads": 2, "depth": 2, "input_size": 8, "num_frames": 4, "num_classes": 3}
WIDE_HEADS = {**LATTE, "hidden_size": 48}  # 24 channels, padded to 32 as those of Latte-XL, 72, are to 80
VAE = {"block_out_channels": [32, 32], "layers_per_block": 1, "norm_num_groups": 8}
CLIP = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100}
T2V = {"num_attention_heads": 2, "num_layers": 1, "sample_size": 4, "caption_channels": 16, "video_length": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "vocab_size": 50, "tokens": 8}
MAE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_frames": 2,
    "image_size": 28, "num_classes": 5,
}  # fmt: skip
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "guided, with classes": ("latte_forward", {**LATTE, "condition": "class", "guided": True}),
    "guided, with text, bf16": (
        "latte_forward",
        {**WIDE_HEADS, "condition": "text", "guided": True, "precision": "bf16"},
    ),
    "training in fp32, rank 3 of 8, sharded": (
        "train_step",
        {**LATTE, "rank": (3, 8), "shard_optimizer": True},
    ),
    "encoding": ("autoencoder", {"direction": "encode", "size": 32, **VAE}),
    "decoding": ("autoencoder", {"direction": "decode", "size": 32, **VAE}),
    "text": ("clip_text", CLIP),
    "i3d": ("i3d_parts", {"width": 0.125}),
    "captioned, guided, bf16": ("latte_t2v", {**T2V, "attention_head_dim": 24, "precision": "bf16"}),
    "captions in bf16": ("t5", {**T5, "precision": "bf16"}),
    "videomae": ("videomae", MAE),
    "inception": ("inception_parts", {"width": 0.05}),
}
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "captioned, guided, fp32": ("latte_t2v", {**T2V, "attention_head_dim": 16}),
    "captions in fp32": ("t5", T5),
    "small i3d": ("i3d", {"width": 0.125, "image_size": 64, "num_classes": 5}),
    "small inception": ("inception", {"width": 0.05, "image_size": 75, "num_classes": 5}),
    "training in fp16 with text": ("train_step", {**LATTE, "condition": "text", "precision": "fp16"}),
    "a step as deep as Latte-XL/2": ("train_step", {**LATTE, "depth": 28, "precision": "bf16"}),
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
    "Latte-1": ("latte_t2v", {}),
    "Latte-1 in bf16": ("latte_t2v", {"precision": "bf16"}),
    "T5 XXL": ("t5", {}),
    "published videomae": ("videomae", {}),
    "published inception": ("inception", {}),
    "torchvision's inception": ("inception", {"form": "torchvision"}),
}
CASES = {**QUICK, **(SLOW if soak.FULL else {})}


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_of_aclnn_kernels_alone(case: str) -> None:
    graph, settings = CASES[case]
    plan = graphs.count(graph, **settings)
    assert plan.number("opapi") > 0
    assert plan.of_kind("acl") == {}, "compiled by CANN at first use"
    # In float32 nothing is cast but labels and steps; in half precision what comes in and goes out of the network, and
    # around the softmax of captions, which is float32.
    captions = settings.get("num_layers", 28) if graph == "latte_t2v" else 0
    assert plan.casts <= 12 + 2 * captions, plan
    assert bool(plan.of_kind("hccl")) == ("rank" in settings)
    if graph in ("latte_forward", "train_step", "latte_t2v"):
        half = settings.get("precision", "fp32") != "fp32"
        assert ("FlashAttentionScore" in plan.of_kind("opapi")) == half, "the fused kernel takes half precision"


def test_a_graph_that_does_not_compile_fails_with_the_reason_as_it_was_said() -> None:
    with pytest.raises(DoesNotCompileError, match=r"images \(1, 3, 33, 33\) do not fit"):
        graphs.count("autoencoder", direction="encode", size=33, **VAE)


def test_a_kernel_that_cann_would_compile_is_counted() -> None:
    plan = graphs.count("old_kernels")
    assert plan.of_kind("acl") == {"Split": 1}
    assert plan.of_kind("opapi") == {"Muls": 1}
