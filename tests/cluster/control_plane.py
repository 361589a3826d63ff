"""A real control plane on loopback: etcd, API server, controller manager and scheduler, with RBAC and Pod Security.

Users prove themselves by tokens: `ADMIN` may do everything, anybody else what roles say.
"""

import json
import secrets
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import programs
from tests.cluster.authority import Authority
from tests.cluster.daemons import Daemons, free_port

ADMIN = "admin"
NODE = "node-1"
# (user, group) of every token; what has no group may do nothing but what a test gives it.
_USERS = {
    ADMIN: "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    f"system:node:{NODE}": "system:nodes",
    "alice": "",
}
_NO_LEADER = "--leader-elect=false"


class ControlPlane:
    """One of its own for a session of tests."""

    def __init__(self, folder: Path) -> None:
        """Start everything; ready within seconds.

        Raises:
            programs.NoGoError: there is nothing to start.
        """
        self.folder, self.programs = folder, programs.built()
        self.daemons = Daemons(folder)
        self._authority = Authority(folder)
        self._tokens = {user: secrets.token_hex(16) for user in _USERS}
        lines = [f"{self._tokens[user]},{user},{user},{group}" for user, group in _USERS.items()]
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        self.port, self._etcd = free_port(), f"http://127.0.0.1:{free_port()}"
        self.url = f"https://127.0.0.1:{self.port}"
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it all."""
        self.daemons.close()

    def _start(self) -> None:
        peers = f"http://127.0.0.1:{free_port()}"
        self.daemons.start(
            "etcd",
            [
                *(self.programs / "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync"),
                *("--listen-client-urls", self._etcd, "--advertise-client-urls", self._etcd),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"default={peers}"),
            ],
        )
        server, server_key = self._authority.key_pair("kube-apiserver", ("127.0.0.1", "10.96.0.1", "localhost"))
        client, client_key = self._authority.key_pair("kubelet-client", group="system:masters")
        _, account_key = self._authority.key_pair("service-accounts")
        self.daemons.start(
            "kube-apiserver",
            [
                *(self.programs / "kube-apiserver", f"--etcd-servers={self._etcd}"),
                *("--bind-address=127.0.0.1", f"--secure-port={self.port}", "--endpoint-reconciler-type=none"),
                *(f"--tls-cert-file={server}", f"--tls-private-key-file={server_key}"),
                *(f"--client-ca-file={self.certificate}", f"--token-auth-file={self.folder / 'tokens.csv'}"),
                *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
                *("--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16"),
                *(f"--service-account-key-file={account_key}", f"--service-account-signing-key-file={account_key}"),
                *(f"--kubelet-client-certificate={client}", f"--kubelet-client-key={client_key}"),
                *("--kubelet-preferred-address-types=InternalIP", "--allow-privileged", "--profiling=false"),
            ],
        )
        self.daemons.wait("kube-apiserver", self.is_ready)
        manager = [f"--service-account-private-key-file={account_key}", f"--root-ca-file={self.certificate}"]
        manager += ["--use-service-account-credentials", "--node-monitor-grace-period=20s"]
        for name, options in (("kube-controller-manager", manager), ("kube-scheduler", [])):
            config = self.kubeconfig(f"system:{name}")
            self.daemons.start(
                name, [self.programs / name, f"--kubeconfig={config}", "--secure-port=0", _NO_LEADER, *options]
            )

    @property
    def certificate(self) -> Path:
        """File of the authority's certificate."""
        return self._authority.certificate_file

    def is_ready(self) -> bool:
        """Whether the API server says so."""
        try:
            return self.request("/readyz") == "ok"
        except OSError:
            return False

    def request(self, path: str, user: str = ADMIN) -> str:
        """What a GET of the API answers.

        Raises:
            OSError: it does not, or not with 200.
        """
        import ssl

        context = ssl.create_default_context(cafile=str(self.certificate))
        asked = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self._tokens[user]}"})
        with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
            return str(answer.read().decode())

    def compact(self) -> None:
        """Have etcd forget all but the newest state of everything, as a cluster does every five minutes."""
        newest = int(self._to_etcd("range", {"key": "AA=="})["header"]["revision"])
        self._to_etcd("compaction", {"revision": str(newest), "physical": True})

    def _to_etcd(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        asked = urllib.request.Request(f"{self._etcd}/v3/kv/{call}", json.dumps(body).encode())
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return dict(json.load(answer))

    def stop_api_server(self) -> None:
        """Nobody answers from now on, and watches and logs are cut: it is killed."""
        self.daemons.stop("kube-apiserver", signal.SIGKILL)

    def start_api_server(self) -> None:
        """The one that was stopped, on its old port and store."""
        self.daemons.again("kube-apiserver")
        self.daemons.wait("kube-apiserver", self.is_ready)

    def kubeconfig(self, user: str, token: str | None = None, namespace: str = "default") -> Path:
        """A file with which clients ask as this user, or as whoever the token names."""
        cluster = {"server": self.url, "certificate-authority": str(self.certificate)}
        context = {"cluster": "here", "user": user, "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token or self._tokens[user]}}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
        path = self.folder / f"{user.replace(':', '-')}-{namespace}.kubeconfig"
        path.write_text(yaml.safe_dump(content))
        path.chmod(0o600)
        return path

    def kubectl(
        self, *arguments: Any, user: str = ADMIN, given: str | None = None, fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """What the real kubectl says; an error where it fails, and none where it is expected to and does not."""
        command = [str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig(user)}", *map(str, arguments)]
        home = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, input=given, env=home, timeout=120)
        assert (done.returncode != 0) == fails, f"kubectl {arguments}: {done.stdout}{done.stderr}"
        return done

    def apply(self, *documents: dict[str, Any]) -> None:
        """`kubectl apply` of these objects, checked strictly."""
        self.kubectl("apply", "--validate=strict", "-f", "-", given=yaml.safe_dump_all(documents))

    def get(self, *arguments: Any) -> dict[str, Any]:
        """An object, or a list of them."""
        return dict(json.loads(self.kubectl("get", "-o", "json", *arguments).stdout))

    def token(self, namespace: str, account: str) -> str:
        """A token of a service account, as its pods get one; of a new namespace's `default` once that is there."""
        self.kubectl("wait", "--for=create", f"serviceaccount/{account}", "-n", namespace, "--timeout=30s")
        return self.kubectl("create", "token", account, "-n", namespace).stdout.strip()
