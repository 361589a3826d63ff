"""The namespace that runs work in, seen through Kubernetes: account, rights, secrets, quota, Pod Security, queues."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import yaml

from components.placement import SECRET_KEYS
from components.volcano.api import is_about_rights
from latte.errors import LatteError
from latte.steps.tell import WEBHOOK_ENV
from pipelines.cluster import HEAVY, Cluster
from pipelines.installation import Installation

T = TypeVar("T")
VOLCANO_CRD = "jobs.batch.volcano.sh"
LAUNCHER = "kfp-launcher"
API_SERVICE = "ml-pipeline"
_TEMPLATE = "make it from manifests/secret.template.yaml"
_WEBHOOK = f"make it with kubectl create secret generic, key {WEBHOOK_ENV}, or take it out of cluster.webhook_secret"
# Where KFP keeps its own artifacts unless the ConfigMap says otherwise, and the secret that opens it.
KFP_ROOT, KFP_SECRET = "minio://mlpipeline/v2/artifacts", "mlpipeline-minio-artifact"
_KUBE_TIMEOUT_S = 10
_OVERLAY = "apply manifests/overlays/standalone or multi-user"
_VOLCANO_RIGHTS = [("batch.volcano.sh", "jobs", "", verb) for verb in ("create", "get", "list", "watch", "delete")]
_VOLCANO_RIGHTS += [("", "pods", "", "get"), ("", "pods", "", "list"), ("", "pods/log", "", "get")]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine (True), not (False), or not looked at (None), and a line about it."""

    what: str
    fine: bool | None
    line: str


class NotLookedAtError(LatteError):
    """Raised for what nobody lets this machine see."""


def look(what: str, check: Callable[[], str]) -> Finding:
    """A check's function; it returns the line of what is fine, and raises that of what is not."""
    try:
        return Finding(what, True, check())
    except NotLookedAtError as error:
        return Finding(what, None, f"not looked at: {error}")
    except LatteError as error:
        return Finding(what, False, str(error))


def examine(there: Installation, cluster: Cluster, given: str | None) -> list[Finding]:
    """Look at all that a run needs in the namespace that it will work in.

    Args:
        there: the installation.
        cluster: section `cluster` of the settings that will be sent.
        given: the namespace that the user named, which on a standalone installation may be KFP's own.
    """
    import kubernetes as k8s

    try:
        # It prints a line about what it tries next.
        with contextlib.redirect_stdout(io.StringIO()):
            kubeconfig = os.environ.get("KUBECONFIG")
            k8s.config.load_kube_config(kubeconfig) if kubeconfig else k8s.config.load_config()
    except k8s.config.ConfigException:
        return [Finding("namespace", None, "not looked at: no kubeconfig on this machine, and this is no pod")]
    told_at_once = k8s.client.Configuration.get_default_copy()
    told_at_once.retries = False
    k8s.client.Configuration.set_default(told_at_once)
    core = k8s.client.CoreV1Api()
    there = _really(core, there, given)
    findings = [_namespace(core, there, given)]
    if findings[0].fine is False:
        return findings
    launcher: dict[str, str] = {}
    findings.append(look("service account", lambda: _account(core, there)))
    findings.append(look("secret", lambda: _secret(core, there, cluster.secret)))
    if (webhook := cluster.webhook_secret) is not None:
        findings.append(look("webhook secret", lambda: _secret(core, there, webhook, (WEBHOOK_ENV,), _WEBHOOK)))
    findings += [look("image pull secret", partial(_pull, core, there, name)) for name in cluster.image_pull_secrets]
    findings.append(look("artifacts of KFP", lambda: _launcher(core, there, cluster, launcher)))
    if findings[1].fine:
        findings.append(look("rights", lambda: _rights(there, _needed(cluster, launcher), _OVERLAY)))
    findings += [
        look("quota", lambda: _quota(core, there, cluster)),
        look("a step's pod", lambda: _pod(core, there, cluster)),
    ]
    return [*findings, *_volcano(there, cluster, findings[1].fine is True)]


def _really(core: Any, there: Installation, given: str | None) -> Installation:
    """With KFP's own namespace where no run tells it: the one of those it may be that has the API server."""
    if there.multi_user or there.known_by:
        return there
    for name in dict.fromkeys(each for each in (given, there.namespace) if each):
        with contextlib.suppress(LatteError):  # what is wrong here is told when the namespace itself is looked at
            read(partial(core.read_namespaced_service, API_SERVICE, name, **_TIMED), name, "")
            return replace(there, namespace=name, known_by=f"{API_SERVICE} is there")
    return there


def _namespace(core: Any, there: Installation, given: str | None) -> Finding:
    name = there.namespace
    known = there.known_by or "KFP's usual; no run tells, and Kubernetes does not"
    line = f"{there.kind}: runs work in {name} ({known})"
    if not there.multi_user and given and given != name:
        line += f", not in {given}"

    def check() -> str:
        found = read(lambda: core.read_namespace(name, **_TIMED), f"namespace {name}", _OVERLAY)
        labels = found.metadata.labels or {}
        return f"{line}; Pod Security there: {labels.get('pod-security.kubernetes.io/enforce', 'not enforced')}"

    found = look("namespace", check)
    # Its labels are for those who may see the whole cluster; that it is there, everything below shows.
    return found if found.fine is not None else Finding("namespace", True, line)


def _account(core: Any, there: Installation) -> str:
    what = f"service account {there.account} in {there.namespace}"
    read(
        lambda: core.read_namespaced_service_account(there.account, there.namespace, **_TIMED),
        what,
        _OVERLAY if there.account_named else "name one with KFP_SERVICE_ACCOUNT",
    )
    return what + ("" if there.account_named else ": KFP's own, as KFP_SERVICE_ACCOUNT names none")


def _secret(
    core: Any, there: Installation, name: str, keys: Sequence[str] = SECRET_KEYS, remedy: str = _TEMPLATE
) -> str:
    what = f"secret {name} in {there.namespace}"
    found = read(lambda: core.read_namespaced_secret(name, there.namespace, **_TIMED), what, remedy)
    missing = [key for key in keys if not (found.data or {}).get(key)]
    if missing:
        raise LatteError(f"{what}: no {', '.join(missing)} in it; add it")
    return f"{what} has all keys"


def _pull(core: Any, there: Installation, name: str) -> str:
    what = f"image pull secret {name} in {there.namespace}"
    found = read(
        lambda: core.read_namespaced_secret(name, there.namespace, **_TIMED),
        what,
        "make it with kubectl create secret docker-registry, or take it out of cluster.image_pull_secrets",
    )
    if found.type not in ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"):
        raise LatteError(f"{what}: of type {found.type}; make it with kubectl create secret docker-registry")
    return what


def _launcher(core: Any, there: Installation, cluster: Cluster, known: dict[str, str]) -> str:
    """Place of KFP's own artifacts of a run, and whether its launcher can open it; `known` gets its secret."""
    try:
        found = read(lambda: core.read_namespaced_config_map(LAUNCHER, there.namespace, **_TIMED), LAUNCHER, "").data
    except ObjectMissingError:
        found = None  # it may be left out
    root = cluster.pipeline_root or (found or {}).get("defaultPipelineRoot") or KFP_ROOT
    scheme = root.partition("://")[0]
    providers = _mapping(_mapping(yaml.safe_load((found or {}).get("providers") or "{}")).get(scheme))
    if not providers and scheme == "minio":
        known["secret"] = KFP_SECRET
    elif not providers and "?" not in root:
        raise LatteError(
            f"{root}: ConfigMap {LAUNCHER} in {there.namespace} has no providers.{scheme}, so that KFP cannot open it; "
            "add it (docs/cluster.md), or leave cluster.pipeline_root out of the settings"
        )
    reference = _mapping(_mapping(_credentials(providers, root)).get("secretRef"))
    if reference.get("secretName"):
        known["secret"] = str(reference["secretName"])
    return f"they go to {root}" + (f", opened with secret {known['secret']}" if known else "")


def _credentials(providers: dict[str, Any], root: str) -> Any:
    """Of the first override that fits the bucket, or the default."""
    bucket, _, prefix = root.partition("://")[2].partition("/")
    for each in providers.get("Overrides") or providers.get("overrides") or []:
        given = _mapping(each)
        if given.get("bucketName") == bucket and prefix.startswith(str(given.get("keyPrefix") or "")):
            return given.get("credentials")
    return _mapping(providers.get("default")).get("credentials")


def _needed(cluster: Cluster, launcher: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Rights of the steps' account: API group, resource, name, verb."""
    needed = [("argoproj.io", "workflowtaskresults", "", verb) for verb in ("create", "patch")]
    needed += [("", "configmaps", LAUNCHER, "get"), ("", "secrets", cluster.secret, "get")]
    return needed + ([("", "secrets", launcher["secret"], "get")] if launcher else [])


def _rights(there: Installation, needed: list[tuple[str, str, str, str]], advice: str) -> str:
    """Whether the steps' account may do all of this."""
    import kubernetes as k8s

    def allowed(group: str, resource: str, name: str, verb: str) -> bool:
        kind, _, part = resource.partition("/")
        attributes = k8s.client.V1ResourceAttributes(
            namespace=there.namespace, verb=verb, group=group, resource=kind, subresource=part or None
        )
        attributes.name = name or None
        spec = k8s.client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{there.namespace}:{there.account}",
            groups=["system:serviceaccounts", f"system:serviceaccounts:{there.namespace}", "system:authenticated"],
            resource_attributes=attributes,
        )
        review = k8s.client.V1LocalSubjectAccessReview(
            metadata=k8s.client.V1ObjectMeta(namespace=there.namespace), spec=spec
        )
        answer = read(
            lambda: k8s.client.AuthorizationV1Api().create_namespaced_local_subject_access_review(
                there.namespace, review, **_TIMED
            ),
            f"rights of {there.account} in {there.namespace}",
            "ask whoever runs the cluster",
        )
        return bool(answer.status.allowed)

    missing = [f"{right[3]} {right[1]} {right[2]}".strip() for right in needed if not allowed(*right)]
    who = f"{there.account} in {there.namespace}"
    if missing:
        raise LatteError(f"{who} may not {', '.join(missing)}; {advice} and run with KFP_SERVICE_ACCOUNT=latte-runner")
    return f"{who} may do what it has to"


def _quota(core: Any, there: Installation, cluster: Cluster) -> str:
    from kubernetes.utils import parse_quantity

    what = f"quotas in {there.namespace}"
    found = read(lambda: core.list_namespaced_resource_quota(there.namespace, **_TIMED), what, "").items
    asked = {
        f"requests.{pod.accelerator.resource}": pod.accelerator.count * (pod.volcano.nodes if pod.volcano else 1)
        for pod in map(cluster.of, HEAVY)
        if pod.accelerator
    }
    lines = []
    for quota in found:
        for resource, hard in (quota.status.hard or {}).items():
            used = (quota.status.used or {}).get(resource, "0")
            lines.append(f"{resource} {used} of {hard}")
            wanted = asked.get(resource, 0)
            if wanted > parse_quantity(hard) or parse_quantity(used) >= parse_quantity(hard) > 0:
                short = f"; a step asks for {wanted}" if wanted > parse_quantity(hard) else ": used up"
                raise LatteError(
                    f"quota {quota.metadata.name} in {there.namespace}: {resource} {used} of {hard}{short}; raise it, "
                    "or ask for less in the section cluster"
                )
    return f"{', '.join(lines) or 'none'}"


def _pod(core: Any, there: Installation, cluster: Cluster) -> str:
    """Whether the cluster takes a pod like those of a run: nothing is made, the API server is asked."""
    security = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    resources = {"cpu": cluster.light.cpu, "memory": cluster.light.memory}
    asked = {key: value for key, value in resources.items() if value}
    body = {
        "metadata": {"generateName": "latte-doctor-"},
        "spec": {
            "serviceAccountName": there.account,
            "restartPolicy": "Never",
            "nodeSelector": cluster.light.node_selector,
            "containers": [
                {
                    "name": "main",
                    "image": "latte-pipelines",
                    "resources": {"requests": asked, "limits": asked},
                    "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
                }
            ],
        },
    }
    what = f"a pod like a step's in {there.namespace}"
    read(lambda: core.create_namespaced_pod(there.namespace, body, dry_run="All", **_TIMED), what, "")
    return f"{what} would be taken: Pod Security, quota and admission let it in"


def _volcano(there: Installation, cluster: Cluster, has_account: bool) -> list[Finding]:
    import kubernetes as k8s

    steps = [step for step in HEAVY if cluster.of(step).volcano]
    if not steps:
        return [Finding("Volcano", None, "not looked at: no cluster.*.volcano in the settings (name them with -c)")]

    def installed() -> str:
        extensions = k8s.client.ApiextensionsV1Api()
        read(
            lambda: extensions.read_custom_resource_definition(VOLCANO_CRD, **_TIMED),
            f"CRD {VOLCANO_CRD}",
            f"install Volcano, or leave cluster.{steps[0]}.volcano out of the settings",
        )
        return f"{VOLCANO_CRD} is installed"

    def queue(name: str) -> str:
        objects = k8s.client.CustomObjectsApi()
        found = read(
            lambda: objects.get_cluster_custom_object("scheduling.volcano.sh", "v1beta1", "queues", name, **_TIMED),
            f"Volcano queue {name}",
            "apply manifests/queue.yaml, or name another in cluster.*.volcano.queue",
        )
        state = str(_mapping(found.get("status")).get("state") or "Unknown")
        if state != "Open":
            raise LatteError(
                f"Volcano queue {name}: {state}; Volcano refuses Jobs for a queue that is not Open: open it"
            )
        return f"Volcano queue {name}: Open"

    queues = dict.fromkeys(volcano.queue for step in steps if (volcano := cluster.of(step).volcano))
    findings = [look("Volcano", installed)]
    if findings[0].fine is False:
        return findings
    if has_account:
        advice = "add manifests/components/volcano to the overlay"
        findings.append(look("launching", lambda: _rights(there, _VOLCANO_RIGHTS, advice)))
    return findings + [look("queue", partial(queue, name)) for name in queues]


class ObjectMissingError(LatteError):
    """There is no such object."""


_TIMED: dict[str, Any] = {"_request_timeout": _KUBE_TIMEOUT_S}


def read(call: Callable[[], T], what: str, advice: str) -> T:
    """Answer of the cluster.

    Args:
        call: asks it.
        what: is asked for, in words.
        advice: what to do where it is not there.

    Raises:
        MissingError: it is not there.
        NotLookedAtError: this machine may not see it.
        LatteError: the login has expired, it is refused, or the cluster fails.
    """
    import kubernetes as k8s
    import urllib3.exceptions

    try:
        return call()
    except k8s.client.ApiException as error:
        message = _said(error)
        if error.status == 404:
            raise ObjectMissingError(f"{what}: not there; {advice}") from None
        if error.status == 401:
            raise LatteError(f"{what}: not logged in, or the kubeconfig's login has expired; log in again") from None
        if error.status == 403 and is_about_rights(message):
            raise NotLookedAtError(f"{what}: this kubeconfig has no right to ({message})") from None
        raise LatteError(f"{what}: refused: {message}") from None
    except urllib3.exceptions.HTTPError as error:
        raise LatteError(f"{what}: the cluster does not answer: {' '.join(str(error).split())[:300]}") from None


def _said(error: Any) -> str:
    """The API server's own message in one line, or the status."""
    try:
        message = str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{error.status} {error.reason}"
    return " ".join(message.split())[:300]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
