"""The calls to the Kubernetes API that launching takes; errors are one line each, what may pass is tried again."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from components.volcano import job as jobs
from latte.credentials import for_header
from latte.errors import LatteError, UserError

T = TypeVar("T")
# The API server may be away for so long, for example while it is upgraded.
OUTAGE_S = 600.0
_REQUEST_TIMEOUT_S = (10, 60)
_WATCH_S = 300
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_PASSING = {408, 409, 429, 500, 502, 503, 504}
# An API server that is just starting knows no roles yet and refuses everybody: who was let in before asks again.
REFUSED_S = 60.0


class TakenError(UserError):
    """There is an object of this name already."""


class MissingError(LatteError):
    """There is no such object."""


class Api:
    """Jobs and pods of one namespace; the pod's service account or a kubeconfig (KUBECONFIG) says who asks."""

    def __init__(self, namespace: str) -> None:
        """Connect lazily.

        Raises:
            UserError: neither a service account nor a kubeconfig is there, or its token cannot be sent.
        """
        import kubernetes as k8s

        self._k8s, self.namespace = k8s, namespace
        self._let_in: set[str] = set()
        try:
            kubeconfig = os.environ.get("KUBECONFIG")
            k8s.config.load_kube_config(kubeconfig) if kubeconfig else k8s.config.load_incluster_config()
        except k8s.config.ConfigException as error:
            raise UserError(f"no way to the Kubernetes API: {error}; run this step on the cluster") from None
        known = k8s.client.Configuration.get_default_copy()
        for_header("the token of the Kubernetes API", known.api_key.get("authorization"))
        self._jobs, self._core = k8s.client.CustomObjectsApi(), k8s.client.CoreV1Api()
        self._where = (jobs.GROUP, jobs.VERSION, namespace, jobs.PLURAL)

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Create the Job.

        Raises:
            TakenError: the name is taken.
            UserError: no rights to do so, no Volcano, or Volcano refuses it.
        """
        return self._patiently(
            lambda: self._jobs.create_namespaced_custom_object(*self._where, job, _request_timeout=_REQUEST_TIMEOUT_S),
            f"create Volcano Job {job['metadata']['name']}",
        )

    def get(self, name: str) -> dict[str, Any]:
        """The Job as it is now.

        Raises:
            MissingError: there is none.
        """
        return self._patiently(
            lambda: self._jobs.get_namespaced_custom_object(*self._where, name, _request_timeout=_REQUEST_TIMEOUT_S),
            f"Volcano Job {name}",
        )

    def delete(self, name: str) -> None:
        """Ask once for the Job and, in the background, its pods to be deleted; none there is fine.

        Raises:
            LatteError: the API refuses or does not answer.
        """
        import urllib3.exceptions

        options = self._k8s.client.V1DeleteOptions(propagation_policy="Background")
        try:
            self._jobs.delete_namespaced_custom_object(*self._where, name, body=options, _request_timeout=(5, 15))
        except self._k8s.client.ApiException as error:
            if error.status != 404:
                raise self._explained(error, f"delete Volcano Job {name}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LatteError(f"delete Volcano Job {name}: the Kubernetes API does not answer: {error}") from None

    def unfinished(self, owner_uid: str) -> list[str]:
        """Names of the Jobs that this object owns and that have not ended; asked for once.

        Raises:
            LatteError: the API refuses or does not answer.
        """
        import urllib3.exceptions

        what = f"Volcano Jobs in {self.namespace}"
        try:
            found = self._jobs.list_namespaced_custom_object(*self._where, _request_timeout=(5, 15))
        except self._k8s.client.ApiException as error:
            raise self._explained(error, what) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LatteError(f"{what}: the Kubernetes API does not answer: {error}") from None
        return sorted(
            job["metadata"]["name"]
            for job in found["items"]
            if any(owner.get("uid") == owner_uid for owner in job["metadata"].get("ownerReferences") or [])
            and (job.get("status") or {}).get("state", {}).get("phase") not in (jobs.DONE, *jobs.FAILED)
        )

    def changes(self, job: dict[str, Any], within_s: float) -> Iterator[dict[str, Any]]:
        """States of the Job after this one, until the server ends the watch, the connection is cut or it is deleted."""
        import urllib3.exceptions

        watch = self._k8s.watch.Watch()
        metadata = job["metadata"]
        with contextlib.suppress(urllib3.exceptions.HTTPError, self._k8s.client.ApiException, ValueError):
            # What is suppressed shows again in the `get` after it, or has passed.
            for event in watch.stream(
                self._jobs.list_namespaced_custom_object,
                *self._where,
                field_selector=f"metadata.name={metadata['name']}",
                resource_version=metadata.get("resourceVersion"),
                timeout_seconds=max(1, int(min(within_s, _WATCH_S))),
                _request_timeout=(10, _WATCH_S + 30),
            ):
                if event["type"] == "DELETED":
                    return
                yield event["object"]

    def pod(self, name: str) -> dict[str, Any]:
        """A pod, as JSON.

        Raises:
            MissingError: there is none.
        """
        return self._patiently(
            lambda: self._plain(self._core.read_namespaced_pod(name, self.namespace, **self._raw())), f"pod {name}"
        )

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The pods of a Job, as JSON."""
        selector = f"{jobs.JOB_LABEL}={job}"
        found = self._patiently(
            lambda: self._plain(self._core.list_namespaced_pod(self.namespace, label_selector=selector, **self._raw())),
            f"pods of Volcano Job {job}",
        )
        return list(found["items"])

    def log(self, pod: str) -> Iterator[str]:
        """The lines of a pod's log with their times, as they come, until the container or the connection ends.

        Raises:
            UserError: no rights to read it.
        """
        import urllib3.exceptions

        try:
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=jobs.TASK,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(10, None),
            )
            yield from self._k8s.watch.watch.iter_resp_lines(answer)
        except self._k8s.client.ApiException as error:
            if error.status in (401, 403):
                raise self._explained(error, f"log of pod {pod}") from None
        except urllib3.exceptions.HTTPError:
            pass
        # Otherwise it is not there yet, gone already or cut: whoever follows asks again.

    def _raw(self) -> dict[str, Any]:
        return {"_preload_content": False, "_request_timeout": _REQUEST_TIMEOUT_S}

    def _plain(self, answer: Any) -> dict[str, Any]:
        return dict(json.loads(answer.data))

    def _patiently(self, call: Callable[[], T], what: str) -> T:
        """Call it, again and again where the server fails or does not answer, for OUTAGE_S at most.

        Args:
            call: asks the server.
            what: it asks for, in words; the last one is the object's name.
        """
        import urllib3.exceptions

        kind = what.rpartition(" ")[0]
        started, pause = time.monotonic(), _FIRST_PAUSE_S
        answered: float | None = None
        while True:
            patience_s, since = OUTAGE_S, started
            try:
                answer = call()
                self._let_in.add(kind)
                return answer
            except self._k8s.client.ApiException as error:
                failure = self._explained(error, what)
                if self._is_about_rights(error) and kind in self._let_in:
                    answered = answered or time.monotonic()
                    patience_s, since = REFUSED_S, answered
                elif error.status not in _PASSING or isinstance(failure, TakenError):
                    raise failure from None
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = LatteError(f"{what}: the Kubernetes API does not answer: {error}")
            if time.monotonic() - since > patience_s:
                raise failure
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _is_about_rights(self, error: Any) -> bool:
        return error.status == 401 or (error.status == 403 and is_about_rights(_said(error)))

    def _explained(self, error: Any, what: str) -> LatteError:
        said = _said(error)
        if error.status == 409 and "AlreadyExists" in str(error.body):
            return TakenError(f"{what}: {said}")
        if error.status == 401:
            return UserError(f"{what}: the step's service account is not known to the cluster ({said})")
        if self._is_about_rights(error):
            return UserError(
                f"{what}: the step's service account may not do that in namespace {self.namespace}; add "
                f"manifests/components/volcano to the overlay and run with KFP_SERVICE_ACCOUNT=latte-runner ({said})"
            )
        if error.status == 404 and what.startswith("create"):
            return UserError(
                f"{what}: this cluster has no Volcano ({jobs.PLURAL}.{jobs.GROUP} is not known); install it, or leave "
                "cluster.*.volcano out of the settings"
            )
        if error.status == 404:
            return MissingError(f"{what}: not there")
        if error.status in (400, 403, 422):
            return UserError(f"{what}: refused: {said}")
        return LatteError(f"{what}: the cluster answered {error.status}: {said}")


def is_about_rights(said: str) -> bool:
    """Whether these are RBAC's words; quotas, Pod Security and admission refuse with the same status."""
    return 'User "' in said and '" cannot ' in said


def _said(error: Any) -> str:
    try:
        said = str(json.loads(error.body)["message"]).strip()[:300]
    except (ValueError, TypeError, KeyError):
        said = ""
    return said or str(error.reason or f"status {error.status}, without a word")
