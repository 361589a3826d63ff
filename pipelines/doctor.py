"""Checks of all that has to be right before a run on a cluster can work, each done for real, with a remedy."""

from collections.abc import Callable

from latte import storage
from latte.errors import LatteError
from latte.storage import registry
from pipelines import installation, namespace_check, trial
from pipelines.client import Client
from pipelines.cluster import Cluster
from pipelines.namespace_check import Finding, look
from pipelines.parameters import in_bucket


def examine(
    host: str | None, namespace: str | None, token: str | None, root: str | None, cluster: Cluster | None = None
) -> list[Finding]:
    """Look at the API server, the bucket and the namespace that runs will really work in.

    Args:
        host: as for `Client`.
        namespace: as for `Client`; on a standalone installation runs work in KFP's own, whatever is named.
        token: as for `Client`.
        root: s3://bucket/prefix, reached with this machine's AWS_… variables; None: not looked at.
        cluster: section `cluster` of the settings that will be sent; the defaults when None.
    """
    findings, there = _server(host, namespace, token)
    if root is None:
        findings.append(Finding("bucket", None, "not looked at: name it with --root s3://bucket/prefix"))
    else:
        findings.append(look("bucket", lambda: _bucket(root)))
        findings.append(look("conditional writes", lambda: _conditional_writes(root)))
    if there is None:
        return [*findings, Finding("namespace", None, "not looked at: only Kubeflow Pipelines tells which it is")]
    return findings + namespace_check.examine(there, cluster or Cluster(), namespace)


def try_out(
    host: str | None,
    namespace: str | None,
    token: str | None,
    root: str | None,
    cluster: Cluster,
    say: Callable[[str], None],
) -> Finding:
    """Start one tiny run and see it end; `say` is told what changes meanwhile, the others are as for `examine`."""

    def check() -> str:
        if root is None:
            raise LatteError("name the bucket for it with --root s3://bucket/prefix")
        client = Client(host, namespace, token, experiment=trial.EXPERIMENT)
        return trial.run(client, in_bucket(root, "--root"), cluster, say)

    return look("run", check)


def _server(
    host: str | None, namespace: str | None, token: str | None
) -> tuple[list[Finding], installation.Installation | None]:
    """Findings about the API server, and the installation; None where nobody tells."""
    try:
        client = Client(host, namespace, token)
        there = installation.of(client)
    except LatteError as error:
        return [Finding("Kubeflow Pipelines", False, str(error))], None

    def answers() -> str:
        count = len(client.schedules())
        ours = f"{count} schedule{'s' * (count != 1)} of ours"
        return f"{client.host} answers, {there.kind}, version 2 of the API, {ours}"

    findings = [look("Kubeflow Pipelines", answers)]
    version = client.version()
    if not version:
        return [*findings, Finding("version", None, "not looked at: the server does not tell")], there
    older = client.older()
    return [*findings, Finding("version", not older, older or f"Kubeflow Pipelines {version}")], there


def _bucket(root: str) -> str:
    storage.check_root(root)
    return f"{root}: written, read and deleted"


def _conditional_writes(root: str) -> str:
    registry.check_conditional_writes(root, "doctor")
    return f"{root}: kept; models can be promoted there"
