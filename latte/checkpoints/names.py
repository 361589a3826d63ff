"""Names of tensors: what published files call them, and what the networks (the papers' current code) call them.

The networks carry the names of today's published code, so the tables are short: an older convention, a wrapper's
prefix, and the few tensors that no forward pass reads.
"""

import dataclasses
import re
from collections.abc import Callable, Container, Mapping

from latte.checkpoints import averages
from latte.checkpoints.stored import Refusal, StoredTensor, show

KINDS = ("latte", "vae", "i3d", "clip")
COUNTER_ENDING = ".num_batches_tracked"
# A tensor that every file of the kind has and no other kind does.
MARKERS = {
    "latte": "x_embedder.proj.weight",
    "vae": "encoder.conv_in.weight",
    "i3d": "Conv3d_1a_7x7.conv3d.weight",
    "clip": "text_model.embeddings.token_embedding.weight",
}
# Wrappers of whole networks: torch's DistributedDataParallel, Lightning's modules, the EMA of common training loops.
_WRAPPERS = ("module.", "model.", "ema_model.", "_orig_mod.")
# Diffusers before 0.18 named the autoencoder's attention so, some files with 1x1 convolutions as weights.
_OLD_VAE = re.compile(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_LINEAR = re.compile(r".*\.mid_block\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight")
_SHOWN = 4
# Parts of a whole CLIP that its text encoder does without.
_CLIP_REST = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


def rename(kind: str, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], list[tuple[str, str]]]:
    """Give a published file's tensors the network's names and shapes.

    Args:
        kind: "latte", "vae", "i3d" or "clip".
        tensors: by the file's names.

    Returns:
        Tensors by the network's names, and (name, why) of those that are left out.

    Raises:
        Refusal: the file holds weights of another kind, averages of which none is the network's or several are, or one
            that has not begun; or two tensors come to bear one name.
    """
    left_out: list[tuple[str, str]] = []
    tensors = _without_counter(tensors, left_out)
    unwrapped = _without_wrapper(_average(kind, tensors, left_out))
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in unwrapped.items():
        new_name, why = _RULES[kind](name)
        if name.endswith(COUNTER_ENDING) and why and not is_counter(name, tensor.size, unwrapped):
            why = ""
        if why:
            left_out.append((name, why))
            continue
        if new_name in renamed:
            raise Refusal(f"tensor {show(new_name)} is there twice, under an old and a new name")
        if kind == "vae" and len(tensor.shape) == 4 and _VAE_LINEAR.fullmatch(new_name):
            tensor = tensor.squeezed(2)
        renamed[new_name] = dataclasses.replace(tensor, widened=True)
    if MARKERS[kind] not in renamed:
        other = next((k for k in KINDS if MARKERS[k] in _renamed_names(k, unwrapped)), None)
        what = f"it holds weights of kind {other}" if other else f"it has no tensor {MARKERS[kind]}"
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
    kind: str, tensors: Mapping[str, StoredTensor], left_out: list[tuple[str, str]]
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
        if MARKERS[kind] in _renamed_names(kind, _without_wrapper(counted)):
            fitting.append(prefix)
    if len(fitting) != 1:
        what = "their names are not the network's" if not fitting else "are several"
        listed = ", ".join(f"{prefix}*" for prefix in sorted(fitting or weights)[:_SHOWN])
        raise Refusal(
            f"tensors {listed} look like a moving average, but {what}; choose with part=, what names begin with"
        )
    (prefix,) = fitting
    left_out += [(name, f"{prefix}* is taken") for name in tensors if not name.startswith(prefix)]
    return _without_counter(weights[prefix], left_out)


def is_counter(name: str, size: int, names: Container[str]) -> bool:
    """Whether a tensor is the counter of a batch normalisation in `names`, which no forward pass reads."""
    layer = name.removesuffix(COUNTER_ENDING)
    return layer != name and size == 1 and f"{layer}.running_mean" in names


def to_old_vae(name: str) -> str:
    """The name that Diffusers before 0.18 gave a tensor of the autoencoder; the inverse of the renaming."""
    for old, new in _NEW_VAE.items():
        name = re.sub(rf"(\.mid_block\.attentions\.0)\.{re.escape(new)}\.", rf"\1.{old}.", name)
    return name


def _without_wrapper(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found = dict(tensors)
    # One wrapper may be in another: torch.compile inside of DistributedDataParallel, or the other way round.
    while prefix := next((p for p in _WRAPPERS if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _renamed_names(kind: str, tensors: Mapping[str, StoredTensor]) -> set[str]:
    return {new_name for new_name, why in map(_RULES[kind], tensors) if not why}


def _latte(name: str) -> tuple[str, str]:
    return name, ""


def _vae(name: str) -> tuple[str, str]:
    match = _OLD_VAE.fullmatch(name)
    return (f"{match[1]}.{_NEW_VAE[match[2]]}.{match[3]}" if match else name), ""


def _i3d(name: str) -> tuple[str, str]:
    return name, "a counter of training steps" if name.endswith(COUNTER_ENDING) else ""


def _clip(name: str) -> tuple[str, str]:
    if name.startswith(_CLIP_REST):
        return name, "not part of the text encoder"
    if name.endswith("embeddings.position_ids"):
        return name, "0, 1, 2, …"
    # transformers 5 dropped the prefix from the text encoder's own names.
    return name if name.startswith("text_model.") else f"text_model.{name}", ""


# kind: (the network's name, why the tensor is left out or "") of a file's name
_RULES: dict[str, Callable[[str], tuple[str, str]]] = {"latte": _latte, "vae": _vae, "i3d": _i3d, "clip": _clip}
