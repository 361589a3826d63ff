"""The train step: a Latte on latents, from scratch or from given weights, resumed to the bit after a stop.

Where the weights come from, first rule that applies:

1. The newest committed checkpoint of this very run (same name, same fingerprint): the run goes on as if it had never
   stopped, optimizer, EMA, loss log and data order included.
2. `init_from`: weights (EMA) of another run's checkpoint manifest or of a converted file; step, optimizer and data
   order start anew. Rows of the label table are taken by the names of their classes; rows of other classes, and tensors
   whose shape differs (other num_frames), are re-initialised and named.
3. Fresh weights from `seed`.
4. Whatever the start was, it is published as step 0 before the first update, so that a run can be compared with it.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from latte import storage
from latte.config import build
from latte.errors import NotThereError, UserError
from latte.facts import LatentsFacts, LatteFacts, RunFacts, RunMetrics, TrainSettings, WeightsFacts
from latte.places import Place
from latte.storage import manifest
from latte.training import workers
from latte.training.config import Start, TrainConfig

_STAT_THREADS = 16
# These change how a run is watched, cached or stopped, not what it computes.
_NOT_IN_FINGERPRINT = {
    "root", "name", "latents", "init_from", "log_every", "checkpoint_every", "keep_last", "keep_every", "cache_dir",
    "cache_gb", "workers", "recompute", "jit_level", "profile_steps", "max_device_memory_gb", "hccl_connect_timeout_s",
    "hccl_exec_timeout_s", "dry_run", "shard_optimizer", "preview_every", "preview_clips", "preview_steps", "vae",
}  # fmt: skip


def run(config: TrainConfig) -> manifest.Manifest:
    """Train to `config.steps` updates and return the manifest of the run's checkpoints.

    Raises:
        UserError: the latents, the model's settings or the start weights do not fit together.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    if config.dry_run:
        raise UserError("dry_run=true: nothing is trained; the command `latte train` prints the plan")
    latents = manifest.read(config.latents, "latents", "latents")
    start = _resolve_start(config.init_from, latents)
    vae = _resolve_vae(config, latents)
    settings = config.model_dump(exclude=_NOT_IN_FINGERPRINT)
    if config.lr_schedule == "constant":
        settings.pop("steps")  # a longer run goes on where a shorter one ended
    if config.precision == "fp32":
        settings.pop("precision")
    # Which rows are taken follows from the names of both sides.
    others = (
        [start.classes] if start and start.classes and list(start.classes) != LatentsFacts.of(latents).classes else []
    )
    fingerprint = manifest.fingerprint("train", settings, latents.fingerprint, start and start.sha256, *others)
    place = Place.under("checkpoint", fingerprint, config.root, "runs", config.name)
    done = place.found
    if done is not None and RunMetrics.of(done).step >= config.steps and _has_its_log(done):
        return done

    started = time.monotonic()
    if not workers.inside():
        _check_shards(latents)
        if config.workers > 1:
            workers.launch("latte.steps.train", config.model_dump(mode="json"), config.workers)
            return manifest.read(place.uri, "checkpoint")
    from latte.training.loop import train

    trained = train(config, latents, place.uri, start, vae)
    metrics = trained.metrics
    if config.preview_every:
        metrics["previews_uri"] = storage.join(place.uri, "previews")
    # What it was made from, by places that the next run finds too; a pipeline hands over files of its own run.
    places = {"latents": latents.file, "vae": vae.file if vae is not None else None, "init_from": start and start.place}
    settings = {**config.model_dump(exclude={"root", "cache_dir", "cache_gb"}), **places}
    result = place.manifest(
        config.name,
        shards=trained.shards,
        counts={"steps": config.steps, "parameters": trained.num_parameters},
        inputs={"latents": latents.fingerprint, "init_from": start.sha256 if start else ""},
        config=trained.facts.model_copy(update={"train": TrainSettings(**settings)}).said(),
        metrics={**metrics, "metrics_uri": storage.join(place.uri, "metrics.jsonl")},
        seconds=time.monotonic() - started,
    )
    if trained.lease is not None:
        manifest.finish(result, config.root, trained.lease.put)
    if workers.inside():
        # Whoever waits for this node's workers finds the manifest, on every node.
        from latte import device

        device.wait_for_workers()
    return result


def plan(config: TrainConfig) -> str:
    """Needs of `run`, in lines; nothing is trained or written.

    Raises:
        UserError: the latents and the model's settings do not fit together, or the plan does not fit the device.
    """
    from latte.planning import plans
    from latte.training import starting

    model = starting.resolve_model(config.model, manifest.read(config.latents, "latents", "latents"))
    planned = plans.training(config, model)
    planned.check()
    return str(planned)


def _has_its_log(done: manifest.Manifest) -> bool:
    """Whether the loss log of a run is what it was at the run's end; what was cut is made whole by running again."""
    log_sha256 = RunFacts.of(done).log_sha256
    if log_sha256 is None:
        return True
    try:
        data = storage.read_bytes(RunMetrics.of(done).metrics_uri)
    except NotThereError:
        return False
    return storage.sha256_bytes(data) == log_sha256


def _resolve_vae(config: TrainConfig, latents: manifest.Manifest) -> manifest.Manifest | None:
    """The autoencoder that decodes previews."""
    if config.vae is None or not config.preview_every:
        return None
    vae = manifest.read_weights(config.vae, "vae", "vae")
    if vae.weights_file().sha256 != latents.inputs["vae"]:
        raise UserError(f"vae {config.vae}: the latents are of another autoencoder ({latents.inputs['vae'][:12]}…)")
    return vae


def _check_shards(latents: manifest.Manifest) -> None:
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="shards") as pool:
        whole = list(pool.map(manifest.is_whole, latents.shards))
    missing = [shard.uri for shard, there in zip(latents.shards, whole, strict=True) if not there]
    if missing:
        raise UserError(f"latents {latents.uri}: shard {missing[0]} ({len(missing)} in all) is missing or cut off")


def _resolve_start(init_from: str | None, latents: manifest.Manifest) -> Start | None:
    if init_from is None:
        return None
    try:
        place = manifest.located(init_from)
    except UserError as error:
        raise type(error)(f"init_from {error}") from None
    if not place.endswith(".json"):
        with storage.as_local_file(place) as path:
            return Start(place, storage.sha256_file(path), place)
    source = manifest.read(place, key="init_from")
    if source.kind == "checkpoint":
        known = LatteFacts.of(source).vae or "unknown"
        if known != latents.inputs["vae"]:
            raise UserError(
                f"init_from {init_from}: that model knows the latents of another autoencoder "
                f"({known[:12]}…), these are of {latents.inputs['vae'][:12]}…"
            )
        shard = source.shard(f"step-{RunMetrics.of(source).step:08d}/ema.safetensors")
    elif source.kind == "weights":
        kind = WeightsFacts.of(source).kind
        if kind != "latte":
            raise UserError(f"init_from {init_from}: weights of {kind}, expected latte")
        shard = source.weights_file()
    else:
        raise UserError(f"init_from {init_from}: a manifest of {source.kind}, expected checkpoint or weights")
    facts = LatteFacts.of(source)
    return Start(shard.uri, shard.sha256, source.file, facts.classes or None, facts.latte.class_dropout_prob > 0)


if __name__ == "__main__":
    workers.serve(lambda settings: run(build(TrainConfig, settings, "train")))
