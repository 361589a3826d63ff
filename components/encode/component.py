"""Encode: a dataset's videos become latents. In one task, or fanned out: plan, shards, merge."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def convert_and_encode(
    root: str,
    name: str,
    vae: dict,
    detector: dict,
    pretrained: dict,
    encode: dict,
    train: dict,
    sample: dict,
    score: dict,
    latents: dsl.Output[dsl.Dataset],
) -> NamedTuple("Made", [("vae", str), ("i3d", str), ("pretrained", str), ("of_latents", str)]):  # type: ignore[valid-type]
    """Convert the weights of a pipeline, encode what is new in the dataset, and list its latents, all in one task.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset; its latents go to datasets/<name>/.
        vae: Keys of latte.steps.convert.ConvertConfig for the autoencoder.
        detector: The same for the detector that scores.
        pretrained: The same for the Latte that training starts from; empty where it starts from fresh weights.
        encode: Keys of latte.steps.encode.EncodeConfig: dataset, image_size, …
        train: Keys of TrainConfig, for what training asks of the dataset; empty where nothing is trained.
        sample: Keys of SampleConfig, for what the sets ask of it.
        score: Keys of ScoreConfig, for what scoring asks of it.
        latents: Manifest of the latents: shards, counts, rejects with reasons.

    Returns:
        URIs of the manifests of the weights, nothing for what has no settings, and of the latents.
    """
    from components.convert.wiring import convert_all
    from components.encode.wiring import stage

    made = convert_all(root, vae, detector, pretrained)
    return *made, stage(root, name, encode, made[0], train, sample, score).whole(latents)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_plan(
    root: str,
    name: str,
    settings: dict,
    vae: str,
    plan: dsl.Output[dsl.Artifact],
    train: dict,
    sample: dict,
    score: dict,
) -> NamedTuple("Planned", [("Output", list[str]), ("work", str)]):  # type: ignore[valid-type]
    """List the dataset and plan which videos are encoded into which shard; at most 32 tasks.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset; its latents go to datasets/<name>/.
        settings: Keys of latte.steps.encode.EncodeConfig: dataset, image_size, …
        vae: Manifest of the autoencoder's weights.
        plan: Manifest of the plan.
        train: Keys of TrainConfig, for what training asks of the dataset; empty where nothing is trained.
        sample: Keys of SampleConfig, for what the sets ask of it.
        score: Keys of ScoreConfig, for what scoring asks of it.

    Returns:
        The tasks to fan out over, "0/2 s3://…" for the first of two; the URI of what they have to do, for the merge.
    """
    from components.encode.wiring import stage

    return stage(root, name, settings, vae, train, sample, score).plan(plan)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_shards(task: str) -> int:
    """Encode one task's range of shards; shards that are published already are skipped.

    Args:
        task: Which task of how many, counted from 0, and the URI of what they have to do: "0/2 s3://…".

    Returns:
        Number of shards that this task answers for.
    """
    from components import stage

    return stage.part(task)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_merge(work: str, parts: list, latents: dsl.Output[dsl.Dataset]) -> str:
    """Merge all shards into the manifest of the dataset's latents.

    Args:
        work: URI of what the plan has left to do.
        parts: What the tasks returned; makes the merge wait for all of them.
        latents: Manifest of the latents: shards, counts, rejects with reasons.

    Returns:
        URI of the manifest of the latents, for the tasks after it.
    """
    from components import stage

    return stage.merge(work, latents)
