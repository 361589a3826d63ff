"""Moving averages of weights: how their names look, and where in a training checkpoint they lie."""

import re
from collections.abc import Iterator
from typing import Any

from latte.checkpoints.pickles import Inert
from latte.checkpoints.stored import StoredTensor

_WORDS = {
    "ema", "emas", "ewma", "polyak", "swa", "shadow", "average", "averages", "averaged", "averaging", "avg", "mavg",
    "smoothed",
}  # fmt: skip
# Beside them a name is that of moments, a layer or a loss: exp_avg, avg_pool, loss_avg.
_OTHERS = {"exp", "square", "sq", "grad", "pool", "loss"}
# In names without a border between words: emamodel, modelema, swamodel.
_WITH = "(model|net|network|unet|weights?|params?|state|dict)"
_JOINED = re.compile(rf"{_WITH}*(ema|swa|avg){_WITH}*")
# Below the checkpoint itself: callbacks/EMA, optimizer_states/0/ema.
_LEVELS = 3
_LISTED = 64  # a list of optimizers is short, one of losses may be endless
# What torch's AveragedModel and Lightning's callback count their updates in.
COUNTER = "n_averaged"


def is_average(name: str) -> bool:
    """Whether a key looks like that of an average: ema, emaModel, EMACallback, ema2, averaged_model, avg_model."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+", name)}
    return words.isdisjoint(_OTHERS) and any(word in _WORDS or _JOINED.fullmatch(word) for word in words)


def below(value: Any, levels: int = _LEVELS) -> Iterator[tuple[str, Any]]:
    """Path and value of everything that looks like an average, the nearest first, none within another.

    Yields what is looked at besides as ("", None), for whoever counts the work.
    """
    holders = [("", value)]
    for level in range(levels):
        following = []
        for path, holder in holders:
            for key, item in _members(holder):
                yield "", None
                # Further down a tensor alone is one of a state dict, whose names are looked at when it is taken.
                if not isinstance(item, dict | list | tuple | Inert) and not (
                    level == 0 and isinstance(item, StoredTensor)
                ):
                    continue
                place = f"{path}/{key}" if path else key
                if is_average(key):
                    yield place, item
                elif not isinstance(item, StoredTensor):
                    following.append((place, item))
        holders = following


def _members(holder: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, dict):
        yield from ((key, item) for key, item in holder.items() if isinstance(key, str))
    elif isinstance(holder, list | tuple):
        yield from ((str(number), item) for number, item in enumerate(holder[:_LISTED]))


def prefix(name: str) -> str:
    """The beginning of a tensor's name, dot included, that makes it one of an average; empty where none does."""
    parts = name.split(".")[:-1]
    count = next((number for number, part in enumerate(parts, start=1) if is_average(part)), 0)
    return ".".join(parts[:count]) + "." if count else ""


def not_begun(value: Any) -> bool:
    """Whether an average says of itself that nothing has been averaged yet: it may be the untrained weights."""
    counter = value.get(COUNTER) if isinstance(value, dict) else None
    if isinstance(counter, StoredTensor):
        return counter.size == 1 and not counter.array().any()
    return isinstance(counter, int | float) and counter == 0
