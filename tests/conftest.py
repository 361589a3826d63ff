"""A real S3 server for the tests that need one, and a root of their own in it for each."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import store as stores

# MindSpore's own log lines would bury a test's message.
os.environ.setdefault("GLOG_v", "3")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Store]:
    """SeaweedFS on loopback for the whole session; its credentials are in the environment while it runs."""
    before = dict(os.environ)
    with stores.serve(tmp_path_factory.mktemp("store")) as served:
        os.environ.update(served.environment)
        try:
            yield served
        finally:
            for key in served.environment:
                if key in before:
                    os.environ[key] = before[key]
                else:
                    del os.environ[key]


@pytest.fixture
def s3_root(store: stores.Store) -> str:
    """A fresh prefix in the store's bucket."""
    return f"s3://{stores.BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root, once as a folder and once in the store."""
    if request.param == "file":
        return (tmp_path / "root").as_uri()
    return str(request.getfixturevalue("s3_root"))
