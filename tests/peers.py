"""What PyTorch, diffusers, transformers and cd-fvd answer: recorded in tests/data/peers, or asked live.

LATTE_PEERS says which: unset, the recordings are read and no peer is imported (`make test`); `live` asks the peers and
holds the recordings against them, too (`make test-peers`); `record` writes the recordings anew (`make record-peers`).
What goes into a peer is made by NumPy from a seed, so only what comes out is kept, and of large tensors some places.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data" / "peers"
MODE = os.environ.get("LATTE_PEERS", "recorded")
MAX_VALUES = 2048
# Two builds of PyTorch differ by this much of the largest value.
_BUILDS_DIFFER = 1e-4
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Answer:
    """An array of a peer's: its shape, and its values at these places (None: at all) of the flattened array."""

    shape: tuple[int, ...]
    places: np.ndarray | None
    values: np.ndarray

    @property
    def largest(self) -> float:
        """Largest absolute value among the kept ones."""
        return float(np.abs(self.values).max())

    def same_places(self, ours: np.ndarray) -> np.ndarray:
        """Our values where the peer's are known, to be compared with `values`."""
        assert ours.shape == self.shape
        return ours.reshape(-1) if self.places is None else ours.reshape(-1)[self.places]


def answer(name: str, ask: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, Answer]:
    """The arrays that `ask` returns: called in a live run, read from the recording NAME.npz otherwise."""
    path = FOLDER / f"{name}.npz"
    if MODE == "recorded":
        return _read(path)
    given = {key: np.asarray(array) for key, array in ask().items()}
    if MODE == "record":
        _write(path, given)
    for key, recorded in _read(path).items():
        live = recorded.same_places(given[key])
        if live.size:
            tolerance = _BUILDS_DIFFER * max(recorded.largest, 1e-30)
            np.testing.assert_allclose(live, recorded.values, rtol=0, atol=tolerance, err_msg=f"{path}: {key}")
    return {key: Answer(array.shape, None, array.reshape(-1)) for key, array in given.items()}


def one(name: str, ask: Callable[[], np.ndarray]) -> Answer:
    """As `answer`, for a single array."""
    return answer(name, lambda: {"value": ask()})["value"]


def shapes(name: str, ask: Callable[[], Mapping[str, object]]) -> Shapes:
    """Names and shapes of a published network's tensors, from its `state_dict` or the recording NAME.json."""
    path = FOLDER / f"{name}.json"
    if MODE != "recorded":
        text = json.dumps({key: list(value.shape) for key, value in ask().items()}, indent=0)  # type: ignore[attr-defined]
        if MODE == "record":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        assert path.read_text() == text + "\n", path
    return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}


def file(name: str, folder: Path, write: Callable[[Path], None]) -> Path:
    """A file that a peer writes: written into `folder` in a live run, the recorded one otherwise."""
    path = FOLDER / name
    if MODE == "record":
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    elif MODE == "live":
        path = folder / path.name
        write(path)
    assert path.is_file(), f"{path}: no such recording; `make record-peers` makes it"
    return path


def weights(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Weights that do something, float32: every norm, bias and matrix counts."""
    made = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
        if len(shape) > 1:
            draw *= np.float32(np.prod(shape[1:])) ** -0.5
        else:
            draw = np.float32(0.1) * draw + np.float32("norm" in name and name.endswith("weight"))
        made[name] = draw.astype(np.float32)
    return made


def _read(path: Path) -> dict[str, Answer]:
    assert path.is_file(), f"{path}: no such recording; `make record-peers` makes it"
    found = {}
    with np.load(path) as kept:
        for key in (name for name in kept.files if not name.startswith("_")):
            shape = tuple(kept[f"_shape_{key}"].tolist())
            places = _places(key, shape)
            found[key] = Answer(shape, places, kept[key])
    return found


def _write(path: Path, given: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    for key, array in given.items():
        places = _places(key, array.shape)
        kept[key] = array.reshape(-1) if places is None else array.reshape(-1)[places]
        kept[f"_shape_{key}"] = np.array(array.shape, np.int64)
    np.savez_compressed(path, **kept)


def _places(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which values of an array are kept: all of a small one, seeded ones of a large one."""
    size = int(np.prod(shape))
    if size <= MAX_VALUES:
        return None
    return np.sort(np.random.default_rng(zlib.crc32(key.encode())).choice(size, MAX_VALUES, replace=False))
