"""Namespace that runs really work in: the user's own or, on a standalone installation, KFP's, whatever is asked."""

from dataclasses import dataclass

from pipelines import runs
from pipelines.client import Client

# KFP's own namespace, and the account that runs without one of their own have, as KFP's manifests call them.
USUAL = "kubeflow"
_ACCOUNTS = {False: "pipeline-runner", True: "default-editor"}


@dataclass(frozen=True)
class Installation:
    """Kind of an installation, and its namespace of runs.

    Attributes:
        multi_user: whether each user has a namespace; otherwise every run works in KFP's own.
        namespace: where pods of runs are.
        known_by: how that is known, in words; "" where it is only KFP's usual name.
        account: that the steps run as.
        account_named: whether somebody has named it.
    """

    multi_user: bool
    namespace: str
    known_by: str
    account: str
    account_named: bool

    @property
    def kind(self) -> str:
        """In words."""
        return "multi-user" if self.multi_user else "standalone"


def of(client: Client) -> Installation:
    """The installation that a client speaks to, as far as it tells by itself.

    Raises:
        LatteError: the server fails.
    """
    account, named = client.service_account or _ACCOUNTS[client.multi_user], client.service_account is not None
    if client.multi_user:
        return Installation(True, str(client.namespace), "the namespace that was named", account, named)
    for line in runs.newest_first(client, 1):
        found = runs.workflow_of(client, line.run_id)
        if found and found.namespace:
            return Installation(False, found.namespace, f"run {line.run_id} worked there", account, named)
    return Installation(False, USUAL, "", account, named)


def remark(client: Client) -> str:
    """Note for a user who has named another namespace than runs will work in; "" of nothing.

    Raises:
        LatteError: the server fails.
    """
    if client.multi_user or not client.namespace:
        return ""
    there = of(client)
    if there.namespace == client.namespace:
        return ""
    if not there.known_by:
        return (
            f"{client.host} is a standalone installation: runs work in its own namespace, usually {there.namespace}, "
            f"whatever --namespace says ({client.namespace}); latte-pipeline doctor finds it"
        )
    return (
        f"{client.host} is a standalone installation: runs work in its own namespace {there.namespace}, not in "
        f"{client.namespace}; latte-pipeline doctor looks at {there.namespace}"
    )
