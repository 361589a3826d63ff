"""A real S3 server for the tests that need one, and a root of their own in it for each."""

import contextlib
import ctypes
import functools
import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines import store as stores
from tests import fault_proxy, other_stores, soak

# MindSpore's own log lines would bury a test's message.
os.environ.setdefault("GLOG_v", "3")
# The networks of these tests are small and many: compiling them takes longer than fused kernels save. What they compute
# is compared in test_fused_kernels.py, and how kernels are kept in test_kernel_cache.py.
os.environ.setdefault("LATTE_FUSED_KERNELS", "0")
# Ceph comes from Debian's packages and is slow to start: only `make soak` asks for it.
S3_STORES = ["seaweedfs", "swift", *([pytest.param("radosgw", marks=pytest.mark.soak)] if soak.FULL else [])]
READ_TIMEOUT_S = 0.5


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """What MindSpore holds for the networks of one file, up to 6 GB, is given back before the next one."""
    yield
    if "mindspore" in sys.modules:
        import mindspore as ms

        from latte import graph_cache

        gc.collect()
        ms.ms_memory_recycle()
        graph_cache._calls.clear()
        ctypes.CDLL(None).malloc_trim(0)


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


@pytest.fixture(scope="session")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], stores.Store]]:
    """Starts Swift or the RADOS gateway once it is asked for; each runs to the end of the session."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def start(name: str) -> stores.Store:
            return running.enter_context(other_stores.STORES[name](tmp_path_factory.mktemp(name)))

        yield start


def in_store(request: pytest.FixtureRequest, name: str) -> str:
    """A fresh prefix in a store's bucket; the environment names the store for the time of the test."""
    if name == "seaweedfs":
        request.getfixturevalue("store")
    else:
        served = request.getfixturevalue("other_store")(name)
        for key, value in served.environment.items():
            request.getfixturevalue("monkeypatch").setenv(key, value)
    return f"s3://{stores.BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=S3_STORES)
def s3_root(request: pytest.FixtureRequest) -> str:
    """A fresh prefix in each of the stores."""
    return in_store(request, request.param)


@pytest.fixture(params=["file", *S3_STORES])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root, in a folder and in each of the stores."""
    return (tmp_path / "root").as_uri() if request.param == "file" else in_store(request, request.param)


@pytest.fixture(params=["file", *(name for name in S3_STORES if name != "swift")])
def registry_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `root`, where promotion works: Swift has no If-Match."""
    return (tmp_path / "root").as_uri() if request.param == "file" else in_store(request, request.param)


@pytest.fixture
def proxy(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[fault_proxy.Proxy]:
    """A proxy before the store of `s3_root`, which the environment names from now on."""
    with fault_proxy.serve(os.environ["AWS_ENDPOINT_URL_S3"], stall_s=3 * READ_TIMEOUT_S) as served:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", served.endpoint)
        monkeypatch.setenv("LATTE_S3_READ_TIMEOUT_S", str(READ_TIMEOUT_S))
        yield served
