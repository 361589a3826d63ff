"""From the value of a PyTorch pickle to tensors by name: which part of a training checkpoint is taken, and why."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from latte.checkpoints import averages, foreign
from latte.checkpoints.pickles import Inert
from latte.checkpoints.stored import (
    MAX_NAME_LENGTH,
    MAX_TENSORS,
    Checkpoint,
    Refusal,
    Storage,
    StoredTensor,
    check_name,
    show,
)

MAX_DEPTH = 64
# Everything that is looked at in one file, counted: a pickle can name one large object a hundred thousand times.
MAX_ITEMS = 10 * MAX_TENSORS
# What a training loop wraps its state dict in. The moving average is taken before any of the others: first under a
# name of these, then under any other that looks like an average's.
AVERAGES = ("ema", "ema_state_dict", "model_ema")
PARTS = ("model", "state_dict", "model_state_dict", "module", "params", "weights")
# Lightning's WeightAveraging keeps the raw weights under this name, and the average as the state dict.
_KNOWN_RAW = ("current_model_state",)
# What an EMA's own object keeps its tensors in.
_INSIDE = ("module", "shadow", "ema_model", "model", "state_dict", "params")
_INSIDE_LEVELS = 2
_SHOWN = 8

# Counts the items that were looked at.
Work = Iterator[int]


def choose(layout: str, value: Any, storages: list[Storage], asked: str = "") -> Checkpoint:
    """The tensors of a pickle's value: of its EMA, else of its weights, else those that it holds itself.

    Args:
        layout: the kind of file.
        value: what the pickle holds.
        storages: all that its tensors are views of.
        asked: the part to take in place of that, its keys joined by "/".

    Raises:
        Refusal: it holds no tensors or no such part, or averages that are not tensors by name or of which no one is the
            one: the raw weights are not what was asked for.
    """
    work: Work = itertools.count()
    taken, part, found = "", "", value
    if asked:
        taken, part, found = _asked(value, asked, work)
    elif isinstance(value, dict):
        taken, part, found = _part(value, work)
    left_out: list[tuple[str, str]] = []
    settings: dict[str, Any] = {}
    if part:
        for key, item in value.items():
            if isinstance(key, str) and key != taken and (taken or not key.startswith(f"{asked}.")):
                wins = f"{part} is taken" if _has_weights(item, work) else "no weights"
                left_out.append((_bare(key), wins))
            if key in ("args", "hyper_parameters", "config"):
                settings = plain_settings(item)
    tensors: dict[str, StoredTensor] = {}
    for name, item in entries(found, work):
        if isinstance(item, StoredTensor):
            _check_tensor(name, item)
            tensors[name] = item
        elif len(left_out) < MAX_TENSORS:
            left_out.append((name, f"not a tensor but a {type(item).__name__.lower()}"))
        if len(tensors) > MAX_TENSORS:
            raise Refusal(f"it has more than {MAX_TENSORS:,} tensors")
    if not tensors:
        told = foreign.by_objects(item for _, item in entries(found, work))
        raise Refusal(told or "it holds no tensors by name" + ("" if asked else _parts_with_weights(value, work)))
    # Tied weights share a storage; what repeats one storage a hundred times is there to fill the memory.
    if sum(tensor.read_bytes for tensor in tensors.values()) > 4 * sum(s.num_bytes for s in storages) + (1 << 20):
        raise Refusal("its tensors share their storage too often to be weights")
    return Checkpoint(layout, part, tensors, left_out, settings)


def _part(value: dict[Any, Any], work: Work) -> tuple[str, str, Any]:
    """Entry that is taken of a training checkpoint: key, path ("ema/shadow"), value; of a state dict itself."""
    candidates = []
    for path, item in averages.below(value):
        _count(work)
        if path:
            candidates.append((path, item))
    candidates.sort(key=lambda found: AVERAGES.index(found[0]) if found[0] in AVERAGES else len(AVERAGES))
    raw = next((key for key in PARTS if key in value and _has_tensors(value[key], work)), "")
    choice = f"; `latte convert` takes them with part={raw}" if raw else ""
    usable = [(path, item, inside) for path, item in candidates if (inside := _inside(item, _INSIDE_LEVELS, work))]
    if len(usable) > 1 and usable[0][0] not in AVERAGES:
        listed = ", ".join(show(path) for path, *_ in usable[:_SHOWN])
        raise Refusal(f"it has {len(usable)} moving averages, {listed}; choose with part={_bare(usable[0][0])}")
    for path, item, inside in usable[:1]:
        if averages.not_begun(item) or averages.not_begun(inside[1]):
            raise Refusal(
                f"its moving average {show(path)} has not begun ({averages.COUNTER} is 0)"
                + (f", and {raw} would be the raw weights{choice}" if raw else "")
            )
        return path.partition("/")[0], path + inside[0], inside[1]
    for path, item in candidates:
        # A tensor alone is a setting such as the decay, or one of many in a flat state dict.
        is_flat = isinstance(item, StoredTensor) and (not raw or item.size <= 1)
        if not is_flat and _holds_tensors(item, work):
            what = f"but {raw} would be the raw weights" if raw else "and nothing else is"
            raise Refusal(f"its moving average {show(path)} is not tensors by name, {what}; nothing is taken{choice}")
    if raw:
        _check_alone(value, raw, work)
    return raw, raw, value[raw] if raw else value


def _check_alone(value: dict[Any, Any], raw: str, work: Work) -> None:
    """Refuse to choose between the weights and another set of the same network, which may be their average."""
    own = _sets(value[raw], work)
    if len(own[0]) < 2:  # one tensor alone is like any other of its size
        return
    for key, item in value.items():
        if not isinstance(key, str) or key == raw or key in _KNOWN_RAW or not isinstance(item, dict | Inert):
            continue
        other = _sets(item, work)
        if other[0] == own[0] and other[1] != own[1]:
            listed = f"{show(raw)} and {show(key)}; choose with part={_bare(raw)} or part={_bare(key)}"
            raise Refusal(f"it has two sets of the same weights, {listed}")


def _sets(value: Any, work: Work) -> tuple[dict[str, tuple[int, ...]], list[tuple[int, int]]]:
    """Shapes of the tensors by name, and where each lies: of tied sets in the same place."""
    found = {name: item for name, item in entries(value, work) if isinstance(item, StoredTensor)}
    places = [(id(found[name].storage), found[name].offset) for name in sorted(found)]
    return {name: item.shape for name, item in found.items()}, places


def _parts_with_weights(value: Any, work: Work) -> str:
    """The end of a refusal: the parts of a file that hold tensors by name, though under no name that is known."""
    items = value.items() if isinstance(value, dict) else ()
    keys = [_bare(key) for key, item in items if isinstance(key, str) and _has_tensors(item, work)]
    return f", but in {', '.join(keys[:_SHOWN])}; choose with part={keys[0]}" if keys else ""


def _asked(value: Any, asked: str, work: Work) -> tuple[str, str, Any]:
    """The part that was asked for: key, path, value. Its last key may be what names of tensors begin with."""
    found, rest, taken = value, asked, ""
    while rest:
        inside = found.state if isinstance(found, Inert) else found
        members = inside if isinstance(inside, dict) else dict(enumerate(inside)) if isinstance(inside, list) else {}
        keys = [str(key) for key in members if f"{rest}/".startswith(f"{key}/")]
        if not keys:
            break
        key = max(keys, key=len)
        found = members[int(key) if isinstance(inside, list) else key]
        taken, rest = taken or key, rest[len(key) + 1 :]
    if not rest and _has_tensors(found, work):
        return taken, asked, found
    named = dict(entries(found, work)) if rest else {}
    beginning = {name: item for name, item in named.items() if name.startswith(f"{rest}.")}
    if not any(isinstance(item, StoredTensor) for item in beginning.values()):
        has = ", ".join(_bare(key) for key in list(value)[:_SHOWN]) if isinstance(value, dict) else "no parts"
        raise Refusal(f"part={_bare(asked)}: no tensors by name there; it has {has}")
    return taken, asked, {name[len(rest) + 1 :]: item for name, item in beginning.items()}


def with_prefix(tensors: Mapping[str, StoredTensor], asked: str) -> dict[str, StoredTensor]:
    """Of tensors by name those whose names begin with a part's and a dot, without both.

    Raises:
        Refusal: there are none.
    """
    found = {name[len(asked) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{asked}.")}
    if not found:
        begin = ", ".join(sorted({_bare(name.partition(".")[0]) for name in tensors})[:_SHOWN])
        raise Refusal(f"part={_bare(asked)}: no tensor's name begins so; names begin with {begin}")
    return found


def _bare(value: Any) -> str:
    return show(value).strip("'")


def _inside(value: Any, levels: int, work: Work) -> tuple[str, Any] | None:
    """Path and value of the tensors by name in an EMA or `levels` below; None where there are none or several sets."""
    if isinstance(value, Inert):
        if _has_tensors(value, work):
            return "", value
        value = value.state
    if not isinstance(value, dict):
        return None
    below: dict[str, tuple[str, Any]] = {}
    for key, item in value.items():
        _count(work)
        if levels > 0 and isinstance(key, str) and isinstance(item, dict | Inert):
            inside = _inside(item, levels - 1, work)
            if inside is not None:
                below[key] = (f"/{key}{inside[0]}", inside[1])
    known = [below[key] for key in _INSIDE if key in below]
    if known:
        return known[0]
    if any(isinstance(item, StoredTensor) and item.size > 1 for item in value.values()):
        return "", value
    return next(iter(below.values())) if len(below) == 1 else None


def _holds_tensors(value: Any, work: Work) -> bool:
    """Whether there is a tensor of more than one element anywhere in it."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        _count(work)
        if isinstance(item, StoredTensor) and item.size > 1:
            return True
        if id(item) in seen or not isinstance(item, dict | list | tuple | Inert):
            continue
        seen.add(id(item))
        if isinstance(item, Inert):
            pending += [item.state, item.args, item.elements, item.entries]
        else:
            pending += item.values() if isinstance(item, dict) else item
    return False


def _check_tensor(name: str, tensor: StoredTensor) -> None:
    try:
        check_name(name)
        tensor.check()
    except Refusal as error:
        raise Refusal(f"tensor {show(name)}: {error}") from None


def _has_tensors(value: Any, work: Work) -> bool:
    """Whether it is tensors by name."""
    if isinstance(value, dict | Inert):
        return any(isinstance(item, StoredTensor) for _, item in entries(value, work))
    return False


def _has_weights(value: Any, work: Work) -> bool:
    return value.size > 1 if isinstance(value, StoredTensor) else _has_tensors(value, work)


def entries(value: Any, work: Work) -> Iterator[tuple[str, Any]]:
    """Entries by name of a state dict, or of a module that was pickled whole (its parts' names joined by dots)."""
    if isinstance(value, Inert):
        yield from _module_entries(value, work)
    elif isinstance(value, dict):
        for key, item in value.items():
            _count(work)
            if isinstance(key, str):
                yield key, item
            elif isinstance(item, StoredTensor):
                raise Refusal("a tensor is named by what is no text")


def _module_entries(module: Inert, work: Work) -> Iterator[tuple[str, Any]]:
    """Tensors of a pickled nn.Module or a TorchScript module, depth first, without recursion."""
    pending: list[Iterator[tuple[str, Any]]] = [iter([("", module)])]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        name, value = entry
        if isinstance(value, StoredTensor):
            yield name, value
        elif isinstance(value, Inert):
            if len(pending) > MAX_DEPTH or len(name) > MAX_NAME_LENGTH:
                raise Refusal("its modules are nested without end")
            pending.append(_members(f"{name}." if name else "", value, work))


def _members(prefix: str, module: Inert, work: Work) -> Iterator[tuple[str, Any]]:
    _count(work)
    state = module.state if isinstance(module.state, dict) else {}
    parts = [state[name] for name in ("_parameters", "_buffers", "_modules") if isinstance(state.get(name), dict)]
    for part in (module.entries, *(parts or [state])):
        for key, item in part.items():
            _count(work)
            if isinstance(key, str) and len(key) <= MAX_NAME_LENGTH:
                yield f"{prefix}{key}", item


def _count(work: Work) -> None:
    if next(work) >= MAX_ITEMS:
        raise Refusal("its parts are nested or repeated without end")


def plain_settings(value: Any) -> dict[str, Any]:
    """Plain numbers and texts of the training arguments, unwrapped from the inert objects that hold them.

    Argparse's Namespace keeps them as its state, OmegaConf's DictConfig as nodes under `_content` with `_val`.
    """
    if isinstance(value, Inert):
        value = value.state
    if isinstance(value, dict) and isinstance(value.get("_content"), dict):
        value = value["_content"]
    if not isinstance(value, dict):
        return {}
    unwrapped = {}
    for key, item in value.items():
        if isinstance(item, Inert) and isinstance(item.state, dict):
            item = item.state.get("_val")
        if isinstance(key, str) and isinstance(item, str | int | float | bool) and len(show(item)) < 100:
            unwrapped[key] = item
    return unwrapped
