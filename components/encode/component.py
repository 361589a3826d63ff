"""Encode: a dataset's videos become latents. Plan, shards (fanned out), merge."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_plan(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    plan: dsl.Output[dsl.Artifact],
    train: dict,
    sample: dict,
    score: dict,
    together: int = 0,
) -> list[str]:
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
        together: Above 0: one task for everything, shared out to at most so many workers of one Volcano Job.

    Returns:
        The tasks to fan out over, "0/2" for the first of two; "*/2" for one that two workers share.
    """
    from components.runtime import run_step
    from latte.facts import PlanMetrics

    wired = {"root": root, "name": name, "vae": vae.path}
    asked = {key: keys for key, keys in (("train", train), ("sample", sample), ("score", score)) if keys}
    size = PlanMetrics.of(run_step("encode: plan", "encode", settings, wired, "plan", {"sections": asked}, output=plan))
    if together:
        return [f"*/{max(1, min(int(together), size.shards_to_encode))}"]
    return [f"{task}/{size.num_tasks}" for task in range(size.num_tasks)]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_shards(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    plan: dsl.Input[dsl.Artifact],
    task: str,
) -> int:
    """Encode one task's range of shards; shards that are published already are skipped.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset.
        settings: Keys of latte.steps.encode.EncodeConfig, the same as for the plan.
        vae: Manifest of the autoencoder's weights.
        plan: Manifest of the plan.
        task: Which task of how many, counted from 0, for example "0/2"; "*/2" is all, for two workers to share.

    Returns:
        Number of shards that this task answers for.
    """
    from components.runtime import run_step
    from components.work import label_of, share

    wired = {"root": root, "name": name, "vae": vae.path}
    arguments = {"plan_uri": plan.path, **share(task)}
    label = f"encode: shards {label_of(task)}"
    done = run_step(label, "encode", settings, wired, "encode_shards", arguments)
    return len(done.shards)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode_merge(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    plan: dsl.Input[dsl.Artifact],
    parts: list,
    latents: dsl.Output[dsl.Dataset],
    train: dict,
    sample: dict,
    score: dict,
) -> None:
    """Merge all shards into the manifest of the dataset's latents.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset.
        settings: Keys of latte.steps.encode.EncodeConfig, the same as for the plan.
        vae: Manifest of the autoencoder's weights.
        plan: Manifest of the plan.
        parts: What the tasks returned; makes the merge wait for all of them.
        latents: Manifest of the latents: shards, counts, rejects with reasons.
        train: Keys of TrainConfig, for what training asks of the dataset; empty where nothing is trained.
        sample: Keys of SampleConfig, for what the sets ask of it.
        score: Keys of ScoreConfig, for what scoring asks of it.
    """
    from components.runtime import run_step

    wired = {"root": root, "name": name, "vae": vae.path}
    label = f"encode: merge of {len(parts)}"
    asked = {key: keys for key, keys in (("train", train), ("sample", sample), ("score", score)) if keys}
    arguments = {"plan_uri": plan.path, "sections": asked}
    run_step(label, "encode", settings, wired, "merge", arguments, output=latents)
