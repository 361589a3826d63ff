"""Names of tensors: what published files call them, and what the networks (the papers' current code) call them.

The networks carry the names of today's published code, so the tables are short: an older convention, a wrapper's
prefix, and the few tensors that no forward pass reads.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from latte.checkpoints import averages, foreign
from latte.checkpoints.stored import COUNTER_ENDING, Refusal, StoredTensor, is_counter, show
from latte.kinds import KINDS
from latte.terminal import shown

# Wrappers of whole networks: torch's DistributedDataParallel, Lightning's modules, the EMA of common training loops.
_WRAPPERS = ("module.", "model.", "ema_model.", "_orig_mod.")
_SHOWN = 4


def rename(
    kind: str, tensors: Mapping[str, StoredTensor], part: str = ""
) -> tuple[dict[str, StoredTensor], list[tuple[str, str]]]:
    """Give a published file's tensors the network's names and shapes.

    Args:
        kind: of the network, one of `KINDS`.
        tensors: by the file's names.
        part: of the file that they were taken of, for an error that says what to choose.

    Returns:
        Tensors by the network's names, and (name, why) of those that are left out.

    Raises:
        Refusal: the file holds weights of another kind or form, averages of which none is the network's or several are,
            or one that has not begun; or two tensors come to bear one name.
    """
    if words := foreign.by_names(tensors):
        raise Refusal(words)
    left_out: list[tuple[str, str]] = []
    tensors = _without_counter(tensors, left_out)
    unwrapped = _without_wrapper(_average(kind, tensors, left_out, part))
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in unwrapped.items():
        new_name, why = KINDS[kind].rename(name)
        if name.endswith(COUNTER_ENDING) and why and not is_counter(name, tensor.size, unwrapped):
            why = ""
        if why:
            left_out.append((name, why))
            continue
        if new_name in renamed:
            raise Refusal(f"tensor {show(new_name)} is there twice, under an old and a new name")
        renamed[new_name] = dataclasses.replace(KINDS[kind].reshape(new_name, tensor), widened=True)
    if not _is_of(kind, unwrapped):
        other = next((each for each in KINDS if _is_of(each, unwrapped)), None)
        what = f"it holds weights of kind {other}" if other else f"it has no tensor {KINDS[kind].marker}"
        what += "" if other else _choice(kind, tensors, part)
        raise Refusal(f"not weights of kind {kind}: {what}")
    return renamed, left_out


def _without_counter(tensors: Mapping[str, StoredTensor], left_out: list[tuple[str, str]]) -> dict[str, StoredTensor]:
    """Without what torch's AveragedModel counts in, beside `module.*`."""
    if averages.not_begun(tensors):
        raise Refusal(f"its average has not begun: {averages.COUNTER} is 0; choose the weights with part=…")
    counter = tensors.get(averages.COUNTER)
    if counter is None or counter.size != 1:
        return dict(tensors)
    left_out.append((averages.COUNTER, "a counter of training steps"))
    return {name: tensor for name, tensor in tensors.items() if name != averages.COUNTER}


def _average(
    kind: str, tensors: Mapping[str, StoredTensor], left_out: list[tuple[str, str]], part: str
) -> Mapping[str, StoredTensor]:
    """The tensors of the average where names tell of one (`ema.x`) beside others; those go to `left_out`."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        if prefix := averages.prefix(name):
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    weights = {prefix: group for prefix, group in groups.items() if any(tensor.size > 1 for tensor in group.values())}
    if not weights:
        return tensors
    fitting = []
    for prefix, group in weights.items():
        counted = {name: tensor for name, tensor in group.items() if name != averages.COUNTER}
        if _is_of(kind, _without_wrapper(counted)):
            fitting.append(prefix)
    if len(fitting) != 1:
        what = "their names are not the network's" if not fitting else "are several"
        listed = ", ".join(f"{prefix}*" for prefix in sorted(fitting or weights)[:_SHOWN])
        raise Refusal(
            f"tensors {listed} look like a moving average, but {what}"
            + (_choice(kind, tensors, part) or "; choose with part=, what names begin with")
        )
    (prefix,) = fitting
    left_out += [(name, f"{prefix}* is taken") for name in tensors if not name.startswith(prefix)]
    return _without_counter(weights[prefix], left_out)


def _choice(kind: str, names: Iterable[str], part: str) -> str:
    """The end of a refusal: the parts to choose, which are what names begin with that go on as the kind's do."""
    tails = ((name[:at], name[at + 1 :]) for name in names for at, sign in enumerate(name) if sign == ".")
    found = {begin for begin, tail in tails if KINDS[kind].rename(tail)[0] == KINDS[kind].marker}
    choices = [f"part={part}/{begin}" if part else f"part={begin}" for begin in sorted(found)[:_SHOWN]]
    return f"; choose with {' or '.join(map(shown, choices))}" if choices else ""


def _without_wrapper(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found = dict(tensors)
    # One wrapper may be in another: torch.compile inside of DistributedDataParallel, or the other way round.
    while prefix := next((p for p in _WRAPPERS if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _is_of(kind: str, names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names holds weights of the kind."""
    return any(new_name == KINDS[kind].marker and not why for new_name, why in map(KINDS[kind].rename, names))
