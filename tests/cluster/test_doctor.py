"""doctor on a real API server: the namespace that runs really work in, and what is missing there."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pipelines import installation
from pipelines.client import Client
from tests import conftest, kfp_server
from tests import recorded_kfp as recorded
from tests.cluster import conftest as definitions
from tests.cluster.control_plane import ControlPlane
from tests.cluster.objects import SECRET, namespace_of_kfp
from tests.e2e.runs import REPOSITORY
from tests.integration.test_doctor import VOLCANO, problems, settings_file, told
from tests.unit.pipelines.test_manifests import MANIFESTS, with_all_that_is_offered

NPU = "huawei.com/Ascend910"
STANDALONE, MULTI_USER = (MANIFESTS / "overlays" / kind for kind in ("standalone", "multi-user"))


def secret(namespace: str, **changes: Any) -> dict[str, Any]:
    return {**SECRET, "metadata": {"name": "latte-s3", "namespace": namespace}, **changes}


@pytest.fixture
def standalone(own_home: None, cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    """A standalone installation in `kubeflow`, where the overlay and the secret have been applied."""
    namespace_of_kfp(cluster)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig("admin")))
    monkeypatch.setenv("KFP_SERVICE_ACCOUNT", "latte-runner")
    cluster.kubectl("apply", "-k", STANDALONE)
    cluster.apply(secret("kubeflow"))
    yield cluster
    cluster.kubectl("delete", "-k", STANDALONE, "--ignore-not-found")
    kinds = "secrets,resourcequotas,roles,rolebindings"
    cluster.kubectl("delete", kinds, "--all", "-n", "kubeflow")


def test_runs_on_a_standalone_installation_work_in_kfp_s_own_namespace(
    server: kfp_server.KfpServer, standalone: ControlPlane, called: Callable[..., Result]
) -> None:  # fmt: skip
    # As somebody sets it up who takes the namespace for their own: account and secret lie where no run ever is.
    standalone.kubectl("delete", "-k", STANDALONE)
    standalone.kubectl("delete", "secret", "latte-s3", "-n", "kubeflow")
    standalone.kubectl("apply", "-k", MULTI_USER)
    standalone.apply(secret("latte"))
    wrong = called("--namespace", "latte")
    assert problems(wrong) == [
        "service account: service account latte-runner in kubeflow: not there; apply manifests/overlays/standalone or "
        "multi-user",
        "secret: secret latte-s3 in kubeflow: not there; make it from manifests/secret.template.yaml",
        "a step's pod: a pod like a step's in kubeflow: refused: pods \"latte-doctor-\" is forbidden: error looking up "
        'service account kubeflow/latte-runner: serviceaccount "latte-runner" not found',
    ]
    assert told(wrong)["namespace"] == (
        "ok",
        "standalone: runs work in kubeflow (ml-pipeline is there), not in latte; Pod Security there: not enforced",
    )
    # A run that has been tells it without Kubernetes.
    server.experiments.clear()
    unknown = installation.remark(Client(server.url, token="right", namespace="latte"))
    assert "its own namespace, usually kubeflow, whatever --namespace says (latte)" in unknown
    run_id = recorded.play(server, recorded.NO_ACCOUNT)
    client = Client(server.url, token="right", namespace="latte")
    there = installation.of(client)
    assert (there.namespace, there.known_by) == ("kubeflow", f"run {run_id} worked there")
    assert installation.remark(client) == (
        f"{server.url} is a standalone installation: runs work in its own namespace kubeflow, not in latte; "
        "latte-pipeline doctor looks at kubeflow"
    )
    assert installation.remark(Client(server.url, token="right")) == ""


def test_all_is_well_once_the_overlay_is_applied(
    request: pytest.FixtureRequest, standalone: ControlPlane, called: Callable[..., Result]
) -> None:  # fmt: skip
    done = called("--root", conftest.in_store(request, "seaweedfs"))
    assert done.exit_code == 0, done.stdout
    assert told(done)["rights"] == ("ok", "latte-runner in kubeflow may do what it has to")
    assert told(done)["artifacts of KFP"] == (
        "ok", "they go to minio://mlpipeline/v2/artifacts, opened with secret mlpipeline-minio-artifact"
    )  # fmt: skip
    assert told(done)["Volcano"][0] == told(done)["version"][0] == "-"
    assert [mark for mark, _ in told(done).values()].count("ok") == 10
    assert not standalone.get("pods", "-n", "kubeflow")["items"], "nothing is made"


def test_on_an_installation_of_many_users_the_user_s_namespace(
    own_home: None, cluster: ControlPlane, called: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    cluster.kubectl("apply", "-k", MULTI_USER)
    cluster.apply(secret("latte"))
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig("admin")))
    monkeypatch.setenv("KFP_SERVICE_ACCOUNT", "latte-runner")
    with kfp_server.serve(token="right", multi_user=True) as shared:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", shared.url)
        done = called("--namespace", "latte")
        assert done.exit_code == 0, done.stdout
        assert told(done)["namespace"] == (
            "ok",
            "multi-user: runs work in latte (the namespace that was named); Pod Security there: restricted",
        )
        assert told(done)["a step's pod"][0] == "ok", "Pod Security takes it"
        assert installation.remark(Client(shared.url, token="right", namespace="latte")) == ""
        monkeypatch.delenv("KFP_SERVICE_ACCOUNT")
        own = called("--namespace", "latte")
        assert "service account default-editor in latte: not there; name one with KFP_SERVICE_ACCOUNT" in own.stdout


def test_secrets_and_the_launcher_s_config(
    standalone: ControlPlane, called: Callable[..., Result], tmp_path: Path
) -> None:  # fmt: skip
    standalone.kubectl("patch", "secret/latte-s3", "-n", "kubeflow", "-p", '{"data": {"AWS_REGION": null}}')
    assert problems(called()) == ["secret: secret latte-s3 in kubeflow: no AWS_REGION in it; add it"]
    standalone.apply(secret("kubeflow"))
    chosen = settings_file(tmp_path, webhook_secret="chat")
    assert "webhook secret: secret chat in kubeflow: not there" in problems(called(*chosen))[0]
    standalone.kubectl("create", "secret", "generic", "chat", "-n", "kubeflow", "--from-literal=LATTE_WEBHOOK=x")
    assert told(called(*chosen))["webhook secret"] == ("ok", "secret chat in kubeflow has all keys")
    chosen = settings_file(tmp_path, image_pull_secrets=["registry"])
    assert "image pull secret registry in kubeflow: not there" in problems(called(*chosen))[0]
    standalone.kubectl("create", "secret", "generic", "registry", "-n", "kubeflow")
    assert "of type Opaque; make it with kubectl create secret docker-registry" in problems(called(*chosen))[0]
    standalone.kubectl("delete", "secret", "registry", "-n", "kubeflow")
    login = ("--docker-server=registry.example.com", "--docker-username=u", "--docker-password=p")
    standalone.kubectl("create", "secret", "docker-registry", "registry", "-n", "kubeflow", *login)
    assert called(*chosen).exit_code == 0

    place = settings_file(tmp_path, pipeline_root="s3://latte/kfp")
    assert "has no providers.s3, so that KFP cannot open it" in problems(called(*place))[0]
    lines = (REPOSITORY / "docs/cluster.md").read_text().partition("    providers: |\n")[2].split("\n\n")[0]
    providers = textwrap.dedent(lines)
    launcher = {"apiVersion": "v1", "kind": "ConfigMap"}
    launcher["metadata"] = {"name": "kfp-launcher", "namespace": "kubeflow"}
    standalone.apply({**launcher, "data": {"providers": providers}})
    assert told(called(*place))["artifacts of KFP"][1] == "they go to s3://latte/kfp, opened with secret latte-s3"
    # Who may read ours and not another's.
    standalone.apply({**launcher, "data": {"providers": providers.replace("latte-s3", "other")}})
    assert problems(called(*place)) == [
        "rights: latte-runner in kubeflow may not get secrets other; apply manifests/overlays/standalone or multi-user "
        "and run with KFP_SERVICE_ACCOUNT=latte-runner"
    ]


def test_quotas_as_the_cluster_counts_them(
    standalone: ControlPlane, called: Callable[..., Result], tmp_path: Path
) -> None:
    def allow(name: str, **hard: str) -> None:
        metadata = {"name": name, "namespace": "kubeflow"}
        standalone.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})
        standalone.kubectl("wait", f"quota/{name}", "-n", "kubeflow", "--for=jsonpath={.status.used}", "--timeout=30s")

    allow("npus", **{f"requests.{NPU}": "8"})
    assert told(called())["quota"] == ("ok", f"requests.{NPU} 0 of 8")
    many = settings_file(tmp_path, train={"accelerator": {"resource": NPU, "count": 16}})
    assert "0 of 8; a step asks for 16" in problems(called(*many))[0]
    # A pod that waits for a node counts as well.
    npus = {"limits": {NPU: "8"}}
    container = {"name": "main", "image": "none", "resources": npus}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other", "namespace": "kubeflow"}}
    standalone.apply({**pod, "spec": {"containers": [container]}})
    used = f"--for=jsonpath={{.status.used.requests\\.{NPU.replace('.', chr(92) + '.')}}}=8"
    standalone.kubectl("wait", "quota/npus", "-n", "kubeflow", used, "--timeout=30s")
    assert f"quota npus in kubeflow: requests.{NPU} 8 of 8: used up; raise it" in problems(called())[0]
    standalone.kubectl("delete", "pod", "other", "-n", "kubeflow", "--grace-period=0", "--force")
    standalone.kubectl("delete", "quota", "npus", "-n", "kubeflow")
    allow("few", pods="0")
    assert told(called())["quota"] == ("ok", "pods 0 of 0")
    (line,) = problems(called())
    assert line.startswith("a step's pod: a pod like a step's in kubeflow: refused: pods ")
    assert line.endswith("exceeded quota: few, requested: pods=1, used: pods=0, limited: pods=0")


def test_volcano_s_rights_and_queue(
    standalone: ControlPlane, called: Callable[..., Result], tmp_path: Path
) -> None:  # fmt: skip
    chosen = settings_file(tmp_path, **VOLCANO)
    launching, queue = problems(called(*chosen))
    assert launching.startswith(
        "launching: latte-runner in kubeflow may not create jobs, get jobs, list jobs, watch jobs"
    )
    assert "add manifests/components/volcano to the overlay" in launching
    assert queue == (
        "queue: Volcano queue latte: not there; apply manifests/queue.yaml, or name another in cluster.*.volcano.queue"
    )
    standalone.kubectl("apply", "-k", with_all_that_is_offered(tmp_path) / "overlays/standalone")
    standalone.kubectl("apply", "-f", MANIFESTS / "queue.yaml")
    # Volcano's controller sets the state of a queue; here it is set by hand.
    for state in ("Closed", "Open"):
        patch = ("--subresource=status", "--type=merge", "-p", f'{{"status": {{"state": "{state}"}}}}')
        standalone.kubectl("patch", "queues.scheduling.volcano.sh", "latte", *patch)
        done = called(*chosen)
        assert (told(done)["launching"][0], done.exit_code) == ("ok", int(state == "Closed"))
        if state == "Closed":
            assert problems(done) == [
                "queue: Volcano queue latte: Closed; Volcano refuses Jobs for a queue that is not Open: open it"
            ]
    standalone.kubectl("delete", "-f", definitions.VOLCANO)
    try:
        assert problems(called(*chosen)) == [
            "Volcano: CRD jobs.batch.volcano.sh: not there; install Volcano, or leave cluster.encode.volcano out of "
            "the settings"
        ]
    finally:
        definitions.install(standalone)


def test_without_rights_with_an_expired_login_and_without_an_answer_there_is_a_line_each(
    standalone: ControlPlane, called: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(standalone.kubeconfig("alice")))
    blind = called()
    assert blind.exit_code == 0  # nothing is known to be wrong
    lines = told(blind)
    assert lines["secret"] == (
        "-",
        'not looked at: secret latte-s3 in kubeflow: this kubeconfig has no right to (secrets "latte-s3" is '
        'forbidden: User "alice" cannot get resource "secrets" in API group "" in the namespace "kubeflow")',
    )
    assert {lines[what][0] for what in ("service account", "quota", "a step's pod")} == {"-"}
    monkeypatch.setenv("KUBECONFIG", str(standalone.kubeconfig("expired", token="of-yesterday")))
    assert problems(called()) == [
        "namespace: namespace kubeflow: not logged in, or the kubeconfig's login has expired; log in again"
    ]
    monkeypatch.setenv("KUBECONFIG", str(standalone.kubeconfig("admin")))
    standalone.stop_api_server()
    try:
        assert "namespace kubeflow: the cluster does not answer: " in problems(called())[0]
    finally:
        standalone.start_api_server()


def test_what_is_known_to_be_wrong_is_not_tried(
    server: kfp_server.KfpServer, standalone: ControlPlane, called: Callable[..., Result],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    standalone.kubectl("delete", "secret", "latte-s3", "-n", "kubeflow")
    done = called("--root", conftest.in_store(request, "seaweedfs"), "--run")
    assert told(done)["run"] == ("-", "not started, as there are problems")
    assert not server.runs
