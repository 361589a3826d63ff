"""What has to be right before a run on a cluster can work, each looked at for real, each with what to do about it."""

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.placement import SECRET, SECRET_KEYS
from latte import registry, storage
from latte.errors import LatteError
from pipelines.client import ACCOUNT_ENV, Client

VOLCANO_CRD = "jobs.batch.volcano.sh"
LAUNCHER = "kfp-launcher"
_KUBE_TIMEOUT_S = 10


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine (True), not (False), or not looked at (None), and a line about it."""

    what: str
    fine: bool | None
    line: str


def examine(host: str | None, namespace: str | None, token: str | None, root: str | None) -> list[Finding]:
    """Look at the API server, the bucket and the namespace.

    Args:
        host: as for `Client`.
        namespace: the namespace that the steps run in.
        token: as for `Client`.
        root: s3://bucket/prefix, reached with this machine's AWS_… variables; None: not looked at.
    """
    findings = _server(host, namespace, token)
    if root is None:
        findings.append(Finding("bucket", None, "not looked at: name it with --root s3://bucket/prefix"))
    else:
        findings.append(_look("bucket", lambda: _bucket(root)))
        findings.append(_look("conditional writes", lambda: _conditional_writes(root)))
    return findings + _namespace(namespace)


def _look(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except LatteError as error:
        return Finding(what, False, str(error))


def _server(host: str | None, namespace: str | None, token: str | None) -> list[Finding]:
    try:
        client = Client(host, namespace, token)
    except LatteError as error:
        return [Finding("Kubeflow Pipelines", False, str(error))]

    def answers() -> str:
        count = len(client.schedules())
        return f"{client.host} answers, version 2 of the API, {count} schedule{'s' * (count != 1)} of ours"

    findings = [_look("Kubeflow Pipelines", answers)]
    version = client.version()
    if not version:
        return [*findings, Finding("version", None, "not looked at: the server does not tell")]
    older = client.older()
    return [*findings, Finding("version", not older, older or f"Kubeflow Pipelines {version}")]


def _bucket(root: str) -> str:
    storage.check_root(root)
    return f"{root}: written, read and deleted"


def _conditional_writes(root: str) -> str:
    registry.check_conditional_writes(root, "doctor")
    return f"{root}: kept; models can be promoted there"


def _namespace(namespace: str | None) -> list[Finding]:
    import kubernetes as k8s

    try:
        # It prints a line about what it tries next.
        with contextlib.redirect_stdout(io.StringIO()):
            k8s.config.load_config()
    except k8s.config.ConfigException:
        return [Finding("namespace", None, "not looked at: no kubeconfig on this machine")]
    if not namespace:
        return [Finding("namespace", None, "not looked at: name it with --namespace")]
    core, extensions = k8s.client.CoreV1Api(), k8s.client.ApiextensionsV1Api()

    def secret() -> str:
        found = _read(
            lambda: core.read_namespaced_secret(SECRET, namespace, _request_timeout=_KUBE_TIMEOUT_S),
            f"secret {SECRET} in {namespace}",
            "make it from manifests/secret.template.yaml",
        )
        missing = [key for key in SECRET_KEYS if not (found.data or {}).get(key)]
        if missing:
            raise LatteError(f"secret {SECRET} in {namespace}: no {', '.join(missing)} in it; add it")
        return f"{SECRET} in {namespace} has all keys"

    def launcher() -> str:
        found = _read(
            lambda: core.read_namespaced_config_map(LAUNCHER, namespace, _request_timeout=_KUBE_TIMEOUT_S),
            f"ConfigMap {LAUNCHER} in {namespace}",
            "apply manifests/overlays/…",
        )
        root = (found.data or {}).get("defaultPipelineRoot", "")
        if not root:
            raise LatteError(f"ConfigMap {LAUNCHER} in {namespace}: no defaultPipelineRoot; apply manifests/overlays/…")
        return f"{LAUNCHER} in {namespace}: artifacts go to {root}"

    def volcano() -> str:
        _read(
            lambda: extensions.read_custom_resource_definition(VOLCANO_CRD, _request_timeout=_KUBE_TIMEOUT_S),
            f"CRD {VOLCANO_CRD}",
            "install Volcano where NPUs are scheduled by it; the overlays cpu and ascend-default-scheduler need none",
        )
        return f"{VOLCANO_CRD} is installed"

    findings = [_look("secret", secret), _look("launcher", launcher), _look("Volcano", volcano)]
    return [*findings, _launching(namespace)] if findings[-1].fine else findings


def _launching(namespace: str) -> Finding:
    """Whether the steps' account may launch Volcano Jobs, wait for them, show their logs and delete them."""
    import kubernetes as k8s

    account = os.environ.get(ACCOUNT_ENV)
    if not account:
        return Finding("launching", None, f"not looked at: name the account that the steps run as in {ACCOUNT_ENV}")
    reviews = k8s.client.AuthorizationV1Api()
    wanted = [("batch.volcano.sh", "jobs", verb) for verb in ("create", "get", "list", "watch", "delete")]
    wanted += [("", "pods", "get"), ("", "pods", "list"), ("", "pods/log", "get")]

    def allowed(group: str, resource: str, verb: str) -> bool:
        name, _, part = resource.partition("/")
        attributes = k8s.client.V1ResourceAttributes(
            namespace=namespace, verb=verb, group=group, resource=name, subresource=part or None
        )
        spec = k8s.client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{namespace}:{account}",
            groups=["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            resource_attributes=attributes,
        )
        review = k8s.client.V1LocalSubjectAccessReview(metadata=k8s.client.V1ObjectMeta(namespace=namespace), spec=spec)
        answer = _read(
            lambda: reviews.create_namespaced_local_subject_access_review(
                namespace, review, _request_timeout=_KUBE_TIMEOUT_S
            ),
            f"rights of {account} in {namespace}",
            "ask whoever runs the cluster",
        )
        return bool(answer.status.allowed)

    def rights() -> str:
        missing = [f"{verb} {resource}" for group, resource, verb in wanted if not allowed(group, resource, verb)]
        if missing:
            raise LatteError(
                f"{account} in {namespace} may not {', '.join(missing)}; apply manifests/overlays/ascend-mindcluster "
                f"and run with {ACCOUNT_ENV}=latte-runner, or leave cluster.*.volcano out of the settings"
            )
        return f"{account} in {namespace} may launch Volcano Jobs"

    return _look("launching", rights)


def _read(call: Callable[[], Any], what: str, advice: str) -> Any:
    import kubernetes as k8s
    import urllib3.exceptions

    try:
        return call()
    except k8s.client.ApiException as error:
        if error.status == 404:
            raise LatteError(f"{what}: not there; {advice}") from None
        if error.status in (401, 403):
            raise LatteError(f"{what}: this kubeconfig may not read it ({error.reason})") from None
        raise LatteError(f"{what}: the cluster answered {error.status} {error.reason}") from None
    except urllib3.exceptions.HTTPError as error:
        raise LatteError(f"{what}: the cluster does not answer: {error}") from None
