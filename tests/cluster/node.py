"""A real node on this machine, for root: kubelet, containerd, runc and CNI's bridge.

Nothing of it is left at the end: containers, mounts, control groups, the bridge and the kernel's settings.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from tests.cluster import images
from tests.cluster.control_plane import NODE, ControlPlane
from tests.cluster.daemons import Daemons, free_port

BUSYBOX = "latte-tests/busybox:1"
_PAUSE = "latte-tests/pause:1"
# The tests' own: pods reach this machine under the address.
ADDRESS, _SUBNET, _BRIDGE = "10.244.77.1", "10.244.77.0/24", "latte-t0"
_CNI = Path("/usr/lib/cni")
_NEEDED = ("containerd", "ctr", "runc", "ip")
_CGROUPS = Path("/sys/fs/cgroup")
# What a kubelet and CNI make beside the folders that they are given.
_FOLDERS = tuple(Path(path) for path in ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers"))
# What a kubelet sets.
_KERNEL = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


def missing() -> str:
    """Programs that a node needs and this machine lacks, in a line; "" where it has all."""
    lacking = [name for name in _NEEDED if not shutil.which(name)]
    lacking += [str(path) for path in (_CNI / "bridge", _CNI / "host-local", images.BUSYBOX) if not path.exists()]
    packages = "containerd runc containernetworking-plugins iproute2 busybox-static"
    return f"no {', '.join(lacking)}: apt-get install {packages}" if lacking else ""


class Node:
    """The one node of a cluster."""

    def __init__(self, cluster: ControlPlane) -> None:
        """Start it and wait until it is ready."""
        self.cluster = cluster
        # A socket's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="latte-node-"))
        self._socket = self.folder / "containerd.sock"
        self._daemons = Daemons(self.folder)
        self._fresh = [path for path in _FOLDERS if not path.exists()]
        self._kernel = {name: Path("/proc/sys", name).read_text() for name in _KERNEL}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{ADDRESS}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        self._configure()
        self._daemons.start("containerd", ["containerd", "--config", self.folder / "containerd.toml"])
        self._daemons.wait("containerd", lambda: self.ctr("version", check=False).returncode == 0)
        for name in (BUSYBOX, _PAUSE):
            images.write(self.folder / "image.tar", name)
            with (self.folder / "image.tar").open("rb") as archive:
                self.load(archive)
        self._daemons.start(
            "kubelet",
            [
                *(self.cluster.programs / "kubelet", f"--config={self.folder / 'kubelet.yaml'}"),
                *(f"--kubeconfig={self.cluster.kubeconfig(f'system:node:{NODE}')}", f"--hostname-override={NODE}"),
                *(f"--root-dir={self.folder / 'kubelet'}", f"--cert-dir={self.folder / 'pki'}", f"--node-ip={ADDRESS}"),
            ],
        )
        self._daemons.wait("kubelet", self.is_ready)

    def _configure(self) -> None:
        (self.folder / "cni").mkdir()
        ipam = {"type": "host-local", "dataDir": str(self.folder / "addresses")}
        ipam |= {"ranges": [[{"subnet": _SUBNET, "gateway": ADDRESS}]], "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": _BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ipam}
        network = {"cniVersion": "0.4.0", "name": "latte-tests", "plugins": [bridge]}
        (self.folder / "cni" / "10-latte.conflist").write_text(json.dumps(network))
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        (self.folder / "containerd.toml").write_text(f"""\
version = 2
root = "{self.folder}/containerd"
state = "{self.folder}/run"
[grpc]
address = "{self._socket}"
[{cri}]
sandbox_image = "{_PAUSE}"
# Lower than this process's own it may not be set everywhere.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[{cri}.cni]
bin_dir = "{_CNI}"
conf_dir = "{self.folder}/cni"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
""")
        (self.folder / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        few = {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
        kubelet: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "port": free_port(),
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.cluster.certificate)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "evictionHard": few,
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(self.folder / "logs"),
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "resolvConf": str(self.folder / "resolv.conf"),
            "nodeStatusUpdateFrequency": "2s",
        }
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))

    def is_ready(self) -> bool:
        """Whether pods are placed on it."""
        for node in self.cluster.get("nodes")["items"]:
            conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
            return conditions.get("Ready") == "True" and not node["spec"].get("taints")
        return False

    def ctr(self, *arguments: str, check: bool = True, given: Any = None) -> "subprocess.CompletedProcess[str]":
        """containerd's own client."""
        command = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, check=check, stdin=given, capture_output=True, text=True)

    def load(self, archive: IO[bytes]) -> None:
        """Put an image on the node, as `docker save` writes it."""
        self.ctr("images", "import", "-", given=archive)

    def close(self) -> None:
        """Stop it and clear away all that it made."""
        self._daemons.stop("kubelet")
        ours = [each for each in psutil.process_iter(["cmdline"]) if str(self._socket) in (each.info["cmdline"] or [])]
        shims = [each for each in ours if each.pid not in {own.pid for own in self._daemons.running.values()}]
        inside = [child for shim in shims for child in shim.children(recursive=True)]
        for process in (*inside, *shims):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._daemons.close()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mounted := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", mounted], check=False)
        subprocess.run(["ip", "link", "delete", _BRIDGE], check=False, capture_output=True)
        for groups in _CGROUPS.glob("*/kubepods"):
            _remove_groups(groups)
        for name, value in self._kernel.items():
            Path("/proc/sys", name).write_text(value)
        for folder in (self.folder, *self._fresh):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_groups(top: Path) -> None:
    """Folders of control groups go one by one, from below, once their processes have gone."""
    deadline = time.monotonic() + 10
    while top.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                continue
        time.sleep(0.1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
