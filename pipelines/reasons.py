"""Why a task failed or does not go on, in one line that says what to change: Argo's and Kubernetes' words explained."""

import re

from pipelines.step_log import one_line

# (what Kubernetes or Argo says, what it means to the user); the first that fits is taken.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"error looking up service account (?P<namespace>[^/\s]+)/(?P<account>[^:\s]+)",
        "no service account {account} in namespace {namespace}; apply manifests/ there, or set KFP_SERVICE_ACCOUNT",
    ),
    (r"exceeded quota: (?P<rest>.+)", "over the namespace's quota ({rest}); wait, or ask for less in cluster"),
    (
        r"violates PodSecurity (?P<rest>.+)",
        "not allowed by the namespace's Pod Security: {rest}; label the namespace as manifests/ do",
    ),
    (
        r"(?:ImagePullBackOff|ErrImagePull|InvalidImageName|ErrImageNeverPull|RegistryUnavailable)(?P<rest>: .+)?",
        "image not pulled{rest}; check --image and cluster.image_pull_secrets",
    ),
    (
        r"CreateContainerConfigError(?P<rest>: .+)?",
        "its container cannot be made{rest}; make the secret from manifests/secret.template.yaml",
    ),
    (r"(?:CreateContainer|RunContainer)Error(?P<rest>: .+)?", "its container cannot start{rest}"),
    (
        r"Unschedulable(?P<rest>: .+)?",
        "no node fits{rest}; change cluster.*.cpu, memory, accelerator, node_selector or tolerations, or wait",
    ),
    (r"OOMKilled", "out of memory (OOMKilled); raise memory in the section cluster, or ask for less"),
    (
        r"active on the node longer than the specified deadline|DeadlineExceeded",
        "longer than its deadline_s; raise it in the section cluster",
    ),
    (r"pod deleted|pod was deleted", "its pod was deleted; latte-pipeline retry goes on from there"),
)
# What says nothing by itself: the log tells more, or a node below does.
_EMPTY = re.compile(
    r"|omitted: depends condition not met|No more retries left|when '.*' evaluated false"
    r"|ContainerCreating|PodInitializing|child '.*' (?:failed|errored)|retry exceeded workflow deadline.*"
)
_EXIT = re.compile(r"(?:main: )?Error \(exit code (?P<code>\d+)\)")
_STOPPED = re.compile(r"workflow deadline|exit code 143|exit code 137|[Ss]topped|[Tt]erminat")


def explained(message: str) -> str:
    """A node's message in one line; "" of one that says nothing."""
    text = one_line(message)
    if _EMPTY.fullmatch(text):
        return ""
    for pattern, meaning in _KNOWN:
        if found := re.search(pattern, text):
            return meaning.format(**{key: value or "" for key, value in found.groupdict().items()})
    if found := _EXIT.fullmatch(text):
        return f"exit code {found['code']}"
    return text


def only_code(message: str) -> bool:
    """Whether the message only tells the exit code, so that the log tells more."""
    return _EXIT.fullmatch(one_line(message)) is not None


def stopped(message: str) -> bool:
    """Whether it reads like what was under way when the run was stopped."""
    return _STOPPED.search(message) is not None
