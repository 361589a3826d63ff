"""Which part of a training checkpoint is taken, and what an index or a path may not lead to."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from latte import checkpoints
from latte.checkpoints import reader, store
from latte.errors import UserError
from tests import torch_files

_ONES = np.ones(2, np.float32)
_W, _RAW = {"w": 2 * _ONES}, {"w": _ONES}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"model": _RAW, "ema": {"module": _W}}, "ema/module"),
        ({"model": _RAW, "ema": {"decay": 0.99, "updates": np.array(5), "shadow": _W}}, "ema/shadow"),
        ({"model": _RAW, "ema": {"state_dict": {"module": _W}, "optimizer": {"m": _W}}}, "ema/state_dict/module"),
        ({"model": _RAW, "state_dict_ema": _W}, "state_dict_ema"),
        ({"model": _RAW, "ema_model": _W}, "ema_model"),
        ({"model": _RAW, "model_ema_state_dict": _W}, "model_ema_state_dict"),
        ({"model": _RAW, "EMA": _W}, "EMA"),
        ({"params": _RAW, "params_ema": _W}, "params_ema"),
        ({"model": _RAW, "ema": _W, "step": np.array(5)}, "ema"),
        ({"model": _W, "ema_decay": 0.99, "ema": None, "ema_rate": np.array(0.9), "ema_args": {"a": 1}}, "model"),
        ({"model": _W, "step": np.arange(9), "schema": _RAW, "cinema": _RAW, "semantic": _RAW}, "model"),
        ({"model": _RAW, "ema_state_dict": _W}, "ema_state_dict"),
        ({"model": _RAW, "model_ema": _W}, "model_ema"),
        ({"model": _RAW, "emaModel": _W}, "emaModel"),
        ({"model": _RAW, "modelEMA": _W}, "modelEMA"),
        ({"model": _RAW, "emamodel": _W}, "emamodel"),
        ({"model": _RAW, "ema2": _W}, "ema2"),
        ({"model": _RAW, "ema": _W, "ema2": _RAW}, "ema"),
        ({"model": _RAW, "averaged_model": _W}, "averaged_model"),
        ({"model": _RAW, "avg_model": _W}, "avg_model"),
        ({"model": _RAW, "modelAvg": _W}, "modelAvg"),
        ({"model": _RAW, "swamodel": _W}, "swamodel"),
        ({"model": _W, "exp_avg": _RAW, "loss_avg": {"a": _ONES}}, "model"),
        ({"model": _RAW, "swa_model": {**_W, "n_averaged": np.array(5)}}, "swa_model"),
        (
            {"state_dict": _RAW, "callbacks": {"EMACallback": {"ema_state_dict": _W}}},
            "callbacks/EMACallback/ema_state_dict",
        ),
        ({"state_dict": _RAW, "callbacks": {"EMA": _W, "ModelCheckpoint": {"best": "a"}}}, "callbacks/EMA"),
        ({"state_dict": _RAW, "callbacks": {"EMA{'decay': 0.9}": {"state": _W}}}, "callbacks/EMA{'decay': 0.9}/state"),
        (
            {
                "state_dict": _RAW,
                "callbacks": {"StochasticWeightAveraging": {"n_averaged": 3, "average_model_state": _W}},
            },
            "callbacks/StochasticWeightAveraging/average_model_state",
        ),
        ({"state_dict": _W, "averaging_state": {"n_averaged": np.array(5)}, "current_model_state": _RAW}, "state_dict"),
        (
            {"model": _W, "optimizer": {"state": [{"exp_avg": _ONES}]}, "ema": {"on": True}, "losses": [0.5] * 99},
            "model",
        ),
    ],
)
def test_takes_the_ema_wherever_it_lies(tmp_path, content, part):
    torch_files.save(content, tmp_path / "training.pt")
    found = checkpoints.open_checkpoint(str(tmp_path / "training.pt"))
    assert (found.part, [name for name in found.tensors if name != "n_averaged"]) == (part, ["w"])
    assert found.tensors["w"].array().tolist() == [2, 2]
    assert {name for name, _ in found.left_out} == set(content) - {part.partition("/")[0]}


@pytest.mark.parametrize("average", [{"shadow_params": [_ONES]}, {"a": _W, "b": _W}, [_ONES], _ONES])
def test_an_ema_that_cannot_be_used_is_not_passed_over(tmp_path, average):
    path = tmp_path / "training.pt"
    torch_files.save({"model": _RAW, "my_ema": average}, path)
    with pytest.raises(UserError, match="its moving average 'my_ema' is not tensors by name, but model would be"):
        checkpoints.read(str(path))
    assert checkpoints.open_checkpoint(str(path), "model").tensors["w"].array().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": _RAW, "callbacks": {"EMA": {"ema_weights": [_ONES]}}},
            r"its moving average 'callbacks/EMA' is not tensors by name, but state_dict would be the raw weights; "
            r"nothing is taken; `latte convert` takes them with part=state_dict$",
        ),
        (
            {"state_dict": _RAW, "optimizer_states": [{"opt": {}, "ema": [_ONES]}]},
            "its moving average 'optimizer_states/0/ema' is not tensors by name, but state_dict would be",
        ),
        (
            {"model": _RAW, "ema_0.99": _W, "ema_0.999": _W},
            "it has 2 moving averages, 'ema_0.99', 'ema_0.999'; choose with part=ema_0.99$",
        ),
        (
            {"model": _RAW, "swa_model": {**_W, "n_averaged": np.array(0)}},
            r"its moving average 'swa_model' has not begun \(n_averaged is 0\), and model would be the raw",
        ),
        (
            {"model": _RAW | {"b": _ONES}, "teacher": _W | {"b": _ONES + 1}},
            "it has two sets of the same weights, 'model' and 'teacher'; choose with part=model or part=teacher$",
        ),
        ({"net": _W, "epoch": 3}, "it holds no tensors by name, but in net; choose with part=net$"),
        (
            {"state_dict": _RAW, "callbacks": {"SWA": {"n_averaged": 0, "average_model_state": _W}}},
            "its moving average 'callbacks/SWA' has not begun",
        ),
    ],
)
def test_an_average_that_is_not_the_one_is_named_with_the_way_to_choose(tmp_path, content, message):
    path = tmp_path / "training.pt"
    torch_files.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.read(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_same_weights_under_two_names_are_one_set(tmp_path):
    weights = _W | {"b": np.ones(2, np.float32)}
    torch_files.save({"model": weights, "generator": weights}, tmp_path / "tied.pt")
    assert checkpoints.open_checkpoint(str(tmp_path / "tied.pt")).part == "model"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("model", "w"), ("ema_0.99", "w"), ("callbacks/a/b", "w"), ("callbacks/a/b/w", None), ("lists/1", "w"),
        ("state/net", "w"), ("state/net.deep", "w"), ("state/ne", None), ("none", None), ("callbacks", None),
    ],
)  # fmt: skip
def test_the_part_that_is_asked_for_is_taken(tmp_path, part, name):
    path = tmp_path / "training.pt"
    content = {
        "model": _W, "ema": _RAW, "ema_0.99": _W, "callbacks": {"a/b": _W}, "lists": [_RAW, _W],
        "state": {"net.w": 2 * _ONES, "net.deep.w": 2 * _ONES, "other.w": _ONES},
    }  # fmt: skip
    torch_files.save(content, path)
    if name is None:
        with pytest.raises(
            UserError, match=f"part={part}: no tensors by name there; it has model, ema, ema_0.99, call"
        ):
            checkpoints.open_checkpoint(str(path), part)
        return
    found = checkpoints.open_checkpoint(str(path), part)
    assert found.part == part
    assert found.tensors[name].array().tolist() == [2, 2]
    assert {name for name, _ in found.left_out} == set(content) - {part.partition("/")[0]}


@pytest.mark.parametrize("ending", ["pt", "safetensors", "ckpt"])
def test_a_part_of_a_file_without_parts_is_what_names_begin_with(tmp_path, ending):
    path = tmp_path / f"flat.{ending}"
    content = {"model.w": _ONES, "ema.w": 2 * _ONES}
    torch_files.save(content, path) if ending == "pt" else store.save(content, path)
    found = checkpoints.open_checkpoint(str(path), "ema")
    assert (found.part, {name: tensor.array().tolist() for name, tensor in found.tensors.items()}) == (
        "ema",
        {"w": [2, 2]},
    )
    assert [name for name, _ in found.left_out] == ["model.w"]
    with pytest.raises(UserError, match="part=em: no tensor"):
        checkpoints.open_checkpoint(str(path), "em")


def write_index(folder: Path, places: object) -> str:
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    return str(path)


def test_an_index_tells_the_format_of_its_files(tmp_path):
    torch_files.save({"w": _ONES}, tmp_path / "a.bin")
    found = checkpoints.open_checkpoint(write_index(tmp_path, {"w": "a.bin"}))
    assert found.layout == "sharded PyTorch zip"
    assert found.uris == [str(tmp_path / "pytorch_model.bin.index.json"), str(tmp_path / "a.bin")]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin.index.json", "which is an index itself"),
        ("a\0.bin", "which is not a file beside it"),
        ("a" * 300, "which is not a file beside it"),
        ("pipe", "pipe: not a regular file"),
    ],
)
def test_an_index_names_what_is_no_file_of_weights(tmp_path, file, message):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.read(write_index(tmp_path, {"w": file}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.pt", "pipe.index.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: not a regular file"):
        checkpoints.read(str(tmp_path / name))


def test_an_index_as_large_as_memory_is_not_read(tmp_path):
    path = tmp_path / "large.index.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"large\.index\.json: it has 1099511627776 bytes"):
        checkpoints.read(str(path))


def test_many_values_that_are_no_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_TENSORS", 3)
    text = b"\x0a\x01t\x12\x05\x12\x03str"
    path = tmp_path / "texts.ckpt"
    path.write_bytes((b"\x0a" + bytes([len(text)]) + text) * 5)
    with pytest.raises(UserError, match="more than 3 values that are no tensors"):
        checkpoints.read(str(path))
