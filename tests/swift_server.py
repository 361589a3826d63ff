"""OpenStack Swift with its S3 interface in one process: `python -m tests.swift_server FOLDER PORT`.

Proxy, account, container and object server are Swift's own, on loopback, with one replica in the folder. The user's
name and secret come from the environment; the access key is `latte:USER`.
"""

import os
import sys
import warnings
from pathlib import Path

import eventlet
import eventlet.wsgi
from swift.common import utils, wsgi
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder

BACKENDS = ("account", "container", "object")
FILTERS = ("catch_errors", "gatekeeper", "proxy_logging", "s3api", "tempauth", "bulk", "slo", "dlo")
BACKEND = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
[app:main]
use = egg:swift#{name}
"""


def proxy_settings(folder: Path, user: str, secret: str) -> str:
    """Settings of the proxy server; memcached, which others put before it, only makes it faster."""
    more = {"s3api": "location = us-east-1\n", "tempauth": f"user_latte_{user} = {secret} .admin\n"}
    filters = [f"[filter:{name}]\nuse = egg:swift#{name}\n{more.get(name, '')}" for name in FILTERS]
    return (
        f"[DEFAULT]\nswift_dir = {folder}\n[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n"
        f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{''.join(filters)}"
    )


def write_ring(folder: Path, name: str, port: int) -> None:
    """Say where the one server of this kind and its one disk are."""
    ring = RingBuilder(part_power=0, replicas=1, min_part_hours=1)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0})
    ring.rebalance()
    ring.get_ring().save(str(folder / f"{name}.ring.gz"))


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    utils.monkey_patch()
    (folder / "disk").mkdir(exist_ok=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    utils.set_swift_dir(str(folder))
    served = []
    for name in BACKENDS:
        listener = eventlet.listen(("127.0.0.1", 0))
        write_ring(folder, name, listener.getsockname()[1])
        served.append((listener, folder / f"{name}-server.conf"))
        served[-1][1].write_text(BACKEND.format(folder=folder, name=name))
    served.append((eventlet.listen(("127.0.0.1", port)), folder / "proxy-server.conf"))
    served[-1][1].write_text(proxy_settings(folder, os.environ["SWIFT_USER"], os.environ["SWIFT_SECRET"]))
    # boto3 looks for "ETag", which eventlet would write as "Etag".
    warnings.filterwarnings("ignore", message="capitalize_response_headers is disabled")
    options = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False, "log_output": False}
    servers = [
        eventlet.spawn(eventlet.wsgi.server, listener, wsgi.loadapp(str(settings)), **options)
        for listener, settings in served
    ]
    for server in servers:
        server.wait()


if __name__ == "__main__":
    main()
