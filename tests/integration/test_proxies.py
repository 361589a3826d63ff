"""Behind a corporate proxy: what runs on this machine is reached without it, whatever the user has not set."""

from pathlib import Path

import pytest

from components.volcano import api
from latte import storage
from pipelines import store as stores
from pipelines.client import Client
from tests import kfp_server, kubernetes_server


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY without NO_PROXY, in every spelling; whoever goes there is refused."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_the_run_s_own_store_works_beside_a_proxy_and_the_user_s_own_aws_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    monkeypatch.setenv("LATTE_S3_ADDRESSING_STYLE", "virtual")
    with stores.serve(tmp_path) as served:
        for key, value in served.environment.items():
            monkeypatch.setenv(key, value)
        uri = f"s3://{stores.BUCKET}/p/object"
        storage.write_bytes(uri, b"content")
        assert storage.read_bytes(uri) == b"content"
        assert storage.list_uris(f"s3://{stores.BUCKET}/p") == [uri]


@pytest.mark.usefixtures("own_home")
def test_a_cluster_s_api_servers_on_this_machine_are_reached_without_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kfp_server.serve(token="right") as kfp:
        assert Client(kfp.url, token="right").schedules() == []
    with kubernetes_server.serve(tmp_path) as (_, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        assert api.Api("latte").pods("no-such-job") == []
