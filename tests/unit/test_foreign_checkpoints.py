"""Checkpoints in the form of other programs are told for what they are, with the way out."""

from pathlib import Path

import numpy as np
import pytest

from latte.checkpoints import store
from latte.errors import UserError
from latte.steps.convert import ConvertConfig, run
from tests import torch_files
from tests.unit.checkpoints import hostile

ONE = np.ones((2, 2), np.float32)
COMPVIS_VAE = ("encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight", "decoder.mid.attn_1.q.weight")
STABLE_DIFFUSION = (
    "model.diffusion_model.input_blocks.0.0.weight", "model_ema.diffusion_modelinput_blocks00weight",
    "model_ema.decay", *(f"first_stage_model.{name}" for name in COMPVIS_VAE), "cond_stage_model.transformer.x",
)  # fmt: skip
FLAT = ("_fsdp_wrapped_module._flat_param", "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._flat_param")


def refusal(source: Path, kind: str) -> str:
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError) as caught:
        run(ConvertConfig(kind=kind, source=str(source), target=str(source.parent / "o.safetensors")))
    assert sorted(source.parent.iterdir()) == before
    words = str(caught.value)
    assert words.startswith(f"{source}: ")
    assert "\n" not in words
    return words


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("names", [COMPVIS_VAE, STABLE_DIFFUSION], ids=["autoencoder", "whole"])
def test_a_checkpoint_of_compvis(tmp_path: Path, names: tuple[str, ...], wrapped: bool) -> None:
    state = dict.fromkeys(names, ONE)
    torch_files.save({"state_dict": state, "global_step": 3} if wrapped else state, tmp_path / "model.ckpt")
    store.save(state, tmp_path / "model.safetensors")
    for file in ("model.ckpt", "model.safetensors"):
        words = refusal(tmp_path / file, "vae")
        assert "a checkpoint in CompVis' form" in words
        assert "vae/diffusion_pytorch_model.safetensors" in words


@pytest.mark.parametrize("names", [FLAT, ("flat_param",), ("module.blocks.0.flat_param",)])
def test_a_checkpoint_with_flattened_parameters(tmp_path: Path, names: tuple[str, ...]) -> None:
    torch_files.save({"model": dict.fromkeys(names, np.ones(8, np.float32))}, tmp_path / "model.pt")
    assert "FSDP with flattened parameters" in refusal(tmp_path / "model.pt", "latte")


@pytest.mark.parametrize(
    "name", ["torch.distributed._shard.sharded_tensor.api\nShardedTensor", "torch.distributed.tensor._api\nDTensor"]
)
def test_a_part_of_a_checkpoint_that_was_shared_out(tmp_path: Path, name: str) -> None:
    shared = f"c{name}\n".encode() + b")\x81}" + hostile.text("a") + b"Nsb"
    pickled = b"\x80\x02}(" + hostile.text("blocks.0.weight") + shared + b"u."
    (tmp_path / "rank0.pt").write_bytes(hostile.archive(pickled))
    words = refusal(tmp_path / "rank0.pt", "latte")
    assert "a part of a checkpoint that PyTorch's FSDP has shared out" in words
    assert "dcp_to_torch" in words


def test_a_folder_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "step-100"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"\x80\x04N.")
    (folder / "__0_0.distcp").write_bytes(b"PK\x03\x04")
    assert "the folder of a checkpoint that PyTorch's FSDP has shared out" in refusal(folder, "latte")
    assert "a part of a checkpoint that PyTorch's FSDP" in refusal(folder / "__0_0.distcp", "latte")
    assert "a part of a checkpoint that PyTorch's FSDP" in refusal(folder / ".metadata", "latte")
