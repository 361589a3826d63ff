"""A store behind TLS, whose certificate is the site's own."""

import os
import ssl
import time
from pathlib import Path

import pytest

from latte import storage
from latte.errors import UserError
from tests import certificates, fault_proxy


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_a_certificate_that_is_not_trusted_is_told_at_once_and_works_once_it_is_named(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificates.self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with fault_proxy.serve(os.environ["AWS_ENDPOINT_URL_S3"], certificate=context) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        started = time.monotonic()
        with pytest.raises(UserError, match=r"certificate is not trusted .*in AWS_CA_BUNDLE") as told:
            storage.write_bytes(f"{s3_root}/a", b"a")
        assert time.monotonic() - started < 5, "a certificate does not become better by trying again"
        assert "\n" not in str(told.value)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
        storage.write_bytes(f"{s3_root}/a", b"a")
        assert storage.read_bytes(f"{s3_root}/a") == b"a"
