"""VideoMAE V2 (Wang et al. 2023), finetuned: a detector of clips, as cd-fvd uses it (Ge et al. 2024)."""

from typing import Any

from latte.config import build
from latte.kinds.kind import ModelKind, Scoring, Settings, Shapes, axis, count
from latte.models.detector_configs import VideoMAEConfig

RANDOM, SMALL, OTHER = "frechet_random_videomae", "frechet_small_videomae", "frechet_videomae"
_PATCHES = "patch_embed.proj.weight"
_HEAD_CHANNELS = 64  # of every published size but giant, which has 16 heads of 88


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    return {
        "num_classes": axis(found, "head.weight", 2, 0),
        "hidden_size": axis(found, _PATCHES, 5, 0),
        "tubelet_size": axis(found, _PATCHES, 5, 2),
        "patch_size": axis(found, _PATCHES, 5, 3),
        "num_hidden_layers": count(found, r"blocks\.(\d+)\."),
        "intermediate_size": axis(found, "blocks.0.mlp.fc1.weight", 2, 0),
    }


def _build(settings: dict[str, Any], source: str) -> VideoMAEConfig:
    """Heads leave no trace in the shapes."""
    giant = VideoMAEConfig()
    width = settings.get("hidden_size", giant.hidden_size)
    heads = giant.num_attention_heads if width == giant.hidden_size else max(1, width // _HEAD_CHANNELS)
    return build(VideoMAEConfig, {"num_attention_heads": heads, **settings}, source)


def shapes_of(config: VideoMAEConfig) -> Shapes:
    """Tensors of a finetuned VideoMAE V2, as its published files name them."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        _PATCHES: (width, 3, config.tubelet_size, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(config.num_hidden_layers):
        block = f"blocks.{i}"
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.q_bias", "attn.v_bias"):
            shapes[f"{block}.{part}"] = (width,)
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        for part, rows, columns in (("attn.proj", width, width), ("mlp.fc1", inner, width), ("mlp.fc2", width, inner)):
            shapes[f"{block}.{part}.weight"], shapes[f"{block}.{part}.bias"] = (rows, columns), (rows,)
    shapes["fc_norm.weight"] = shapes["fc_norm.bias"] = (width,)
    shapes["head.weight"], shapes["head.bias"] = (config.num_classes, width), (config.num_classes,)
    return shapes


def _metric(config: VideoMAEConfig, features: str, source: str | None, weights: str) -> str:
    """Name of the distance; no file is known by its SHA-256 yet, so all have the digits of their weights."""
    if source is None:
        return RANDOM
    if not config.is_published:
        return SMALL
    return f"{OTHER}{'_logits' if features == 'logits' else ''}_{weights[:8]}"


def _protocol(config: VideoMAEConfig) -> dict[str, Any]:
    """As cd-fvd: the tokens' normalised mean, covariance divided by the number of clips."""
    return {"resolution": config.image_size, "features": "pool", "covariance_divisor": "n"}


KIND = ModelKind(
    name="videomae",
    config=VideoMAEConfig,
    network="latte.models.videomae:VideoMAE",
    marker=_PATCHES,
    tell=_tell,
    shapes=shapes_of,
    build=_build,
    scoring=Scoring((RANDOM, SMALL), _metric, (), _protocol),
)
