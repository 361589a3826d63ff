"""The steps of a local run as containers: what they may see and change, and that none of them outlives the run.

A container sees the run's store over the host's network, the files and folders that the settings name (read-only), and
the folder of KFP's small artifacts. Of the rest of its file system only /tmp can be written to. It has no capabilities
and is never root. KFP's DockerRunner starts it and follows its output.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latte.errors import UserError

LABEL = "latte.run-dir"
# Each container has its own.
_OWN = (Path("/"), Path("/tmp"))  # noqa: S108
# The user of the images; containers run as the user of the run, and as this one where that is root.
IMAGE_UID = 10001
# What the steps read from the environment, beside what the run itself tells them.
_HANDED_ON = ("AWS_", "LATTE_S3_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")  # in small letters, too
_VERSION, _REVISION = "org.opencontainers.image.version", "org.opencontainers.image.revision"


def require(image: str, pull: bool = True) -> str:
    """See to it that Docker answers and has the image, which is pulled if it is not there and may be.

    Returns:
        What the image says of itself: its name, the version and the commit that it was built from.

    Raises:
        UserError: no Docker daemon, or no such image here or in a registry.
    """
    import docker

    with _client() as client:
        try:
            found = client.images.get(image)
        except docker.errors.ImageNotFound:
            if not pull:
                raise UserError(
                    f"image {image}: not here; `make images` builds it, or the first run pulls it"
                ) from None
            found = _pull(client, image)
        except docker.errors.APIError as error:
            raise UserError(f"image {image}: {error.explanation}") from None
    labels = found.labels
    return f"{image} (version {labels.get(_VERSION, 'unknown')}, commit {labels.get(_REVISION, 'unknown')[:12]})"


def runner(run_dir: Path, reads: Sequence[Path], writes: Sequence[Path], environment: Mapping[str, str]) -> Any:
    """KFP's DockerRunner for one run.

    Args:
        run_dir: the run's folder; its containers are labelled with it.
        reads: files and folders that the steps read, mounted where they are here.
        writes: existing files and folders that they write to, mounted likewise.
        environment: variables for the steps, beside what this process knows of the store (AWS_…, LATTE_S3_…, proxies).

    Raises:
        UserError: they read or write what every container has of its own.
    """
    from docker.types import Mount
    from kfp import local

    for path in (*reads, *writes):
        if path in _OWN:
            raise UserError(f"{path}: every container has its own; put the files into a folder below it")
    handed_on = {
        key: value for key, value in os.environ.items() if key.startswith(_HANDED_ON) or key.upper() in _PROXIES
    }
    # AWS_CA_BUNDLE and the like.
    named = [Path(value) for key, value in handed_on.items() if key.startswith("AWS_") and Path(value).is_absolute()]
    only_read = {*reads, *filter(Path.is_file, named)} - set(writes)
    mounts = [Mount(str(path), str(path), "bind", read_only=True) for path in only_read]
    mounts += [Mount(str(path), str(path), "bind") for path in writes]
    # On disk, other than a tmpfs, and removed with the container.
    mounts.append(Mount("/tmp", None, "volume"))  # noqa: S108
    return local.DockerRunner(
        user=_user(),
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode="host",
        working_dir=os.getcwd(),
        labels={LABEL: str(run_dir)},
        mounts=mounts,
        environment={**handed_on, **environment},
    )


def give(path: Path) -> None:
    """Let the containers write to a file or folder of the run, where the run is root and they are not."""
    if os.getuid() == 0:
        os.chown(path, IMAGE_UID, IMAGE_UID)


def end(run_dir: Path, grace_s: float) -> None:
    """Ask the run's containers to end, and remove those that have not ended after `grace_s`."""
    import docker

    deadline = time.monotonic() + grace_s
    with _client() as client:
        if grace_s > 0:
            for container in _members(client, run_dir):
                # Docker signals process 1 only: KFP's shell, which does not hand it on.
                with contextlib.suppress(docker.errors.APIError):  # it has just ended
                    container.exec_run(["sh", "-c", "kill -TERM -1"])
        while left := _members(client, run_dir):
            if time.monotonic() >= deadline:
                for container in left:
                    with contextlib.suppress(docker.errors.APIError):  # Docker is removing it already
                        container.remove(force=True, v=True)
            time.sleep(0.05)


def _members(client: Any, run_dir: Path) -> list[Any]:
    filters = {"label": f"{LABEL}={run_dir}"}
    return list(client.containers.list(all=True, filters=filters, ignore_removed=True))


def _user() -> str:
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() != 0 else f"{IMAGE_UID}:{IMAGE_UID}"


def _pull(client: Any, image: str) -> Any:
    import docker

    try:
        return client.images.pull(image)
    except docker.errors.APIError as error:
        raise UserError(
            f"image {image} is not here and cannot be pulled ({error.explanation}): build it with `make images`, "
            "or name another with --image or LATTE_IMAGE"
        ) from None


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        reason = str(error).partition(": ")[2] or error
        raise UserError(
            f"Docker does not answer ({reason}): start it, name its socket in DOCKER_HOST, or leave out --runner docker"
        ) from None
    with contextlib.closing(client):
        yield client
