"""Names of tensors: what published files call them, and what the networks (the papers' current code) call them.

The networks carry the names of today's published code, so the tables are short: an older convention, a wrapper's
prefix, and the few tensors that no forward pass reads.
"""

import dataclasses
import re
from collections.abc import Callable, Container, Mapping

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
# Wrappers of whole networks: torch's DistributedDataParallel, and the EMA of common training loops.
_WRAPPERS = ("module.", "ema_model.", "_orig_mod.")
_AVERAGED = "n_averaged"  # what torch's AveragedModel has beside `module.*`
# Diffusers before 0.18 named the autoencoder's attention so, some files with 1x1 convolutions as weights.
_OLD_VAE = re.compile(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_LINEAR = re.compile(r".*\.mid_block\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight")
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
        Refusal: the file holds weights of another kind, or two tensors come to bear one name.
    """
    left_out: list[tuple[str, str]] = []
    if _AVERAGED in tensors and tensors[_AVERAGED].size == 1:
        tensors = {name: tensor for name, tensor in tensors.items() if name != _AVERAGED}
        left_out.append((_AVERAGED, "a counter of training steps"))
    unwrapped = _without_wrapper(tensors)
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
