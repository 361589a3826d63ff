"""Kubeflow Pipelines from a notebook or the command line: submit a run, schedule it.

client = Client(host="https://kubeflow.example.com/pipeline")
run = client.submit("train_and_evaluate", params)
client.schedule("nightly_retrain", params, "0 0 2 * * *")
print(operate.status(client, run.run_id))  # pipelines/operate.py
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latte import owners
from latte.credentials import for_header
from latte.errors import LatteError, UserError
from latte.storage import manifest
from pipelines import compiled, cron, parameters, tracking
from pipelines import kfp_errors as errors
from pipelines.cluster import Cluster
from pipelines.status import ENDED

T = TypeVar("T")
HOST_ENV, NAMESPACE_ENV = "KF_PIPELINES_ENDPOINT", "KFP_NAMESPACE"
ACCOUNT_ENV, AUTHORITY_ENV = "KFP_SERVICE_ACCOUNT", "SSL_CERT_FILE"
EXPERIMENT = "latte"
_PAGE = 100
_REACH_TIMEOUT_S = 15.0
# To connect, and between two pieces of an answer.
REQUEST_TIMEOUT_S = (10, 120)


@dataclass(frozen=True)
class Submitted:
    """A run that Kubeflow Pipelines has taken on, and a page that shows it."""

    run_id: str
    name: str
    url: str


@dataclass(frozen=True)
class RecurringRun:
    """A recurring run; `changed` says whether this call made it or changed it."""

    recurring_run_id: str
    name: str
    cron: str
    version: str
    changed: bool


class Client:
    """A connection to the API server of Kubeflow Pipelines (2.x)."""

    def __init__(
        self,
        host: str | None = None,
        namespace: str | None = None,
        token: str | None = None,
        service_account: str | None = None,
        experiment: str = EXPERIMENT,
    ) -> None:
        """Connect, and find out at once whether host and token are right.

        Args:
            host: URL of the API server; KF_PIPELINES_ENDPOINT when None.
            namespace: the user's namespace on a multi-user installation; KFP_NAMESPACE when None.
            token: bearer token; KFP_TOKEN when None. Never printed.
            service_account: that the steps run as; KFP_SERVICE_ACCOUNT when None, and the server's own without that.
            experiment: that the runs belong to.

        Raises:
            UserError: no host, a wrong host or a wrong token.
            LatteError: the host does not answer.
        """
        host = (host or os.environ.get(HOST_ENV) or "").strip()
        if not host:
            raise UserError(f"no host of Kubeflow Pipelines: give --host or set {HOST_ENV}")
        if not host.startswith(("http://", "https://")):
            raise UserError(f"host {host}: expected a URL, http://… or https://…")
        if "@" in host.split("/")[2]:
            raise UserError(f"{HOST_ENV} or --host: a user or password in the URL; give a token by {errors.TOKEN_ENV}")
        self.host = host.rstrip("/")
        self.namespace = namespace or os.environ.get(NAMESPACE_ENV) or None
        self.service_account = service_account or os.environ.get(ACCOUNT_ENV) or None
        self.experiment = experiment
        token = for_header(errors.TOKEN_ENV, token or os.environ.get(errors.TOKEN_ENV))
        import kfp_server_api

        configuration = kfp_server_api.Configuration()
        configuration.host = self.host
        # A certificate authority of the site's own: the generated client does not look for it by itself.
        authority = os.environ.get(AUTHORITY_ENV) or None
        if authority and not os.path.isfile(authority):
            raise UserError(f"{AUTHORITY_ENV}: {authority}: no such file")
        configuration.ssl_ca_cert = authority
        configuration.retries = False  # told at once; whoever calls may try again
        if token:
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
        self._api = kfp_server_api.ApiClient(configuration)
        self.multi_user = bool(self.health().multi_user)
        if self.multi_user and not self.namespace:
            raise UserError(f"{self.host} serves many users: name your namespace with --namespace or {NAMESPACE_ENV}")
        import kfp

        with self._errors("connect"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._kfp = kfp.Client(
                host=self.host,
                namespace=self.namespace or "kubeflow",
                existing_token=token,
                ssl_ca_cert=authority,
            )

    def health(self) -> Any:
        """The server's facts about itself: multi_user, pipeline_store.

        Raises:
            UserError: a wrong host or token, or a server before Kubeflow Pipelines 2.0.
        """
        import kfp_server_api

        older = "no version 2 of the API there: a wrong host, or a server before Kubeflow Pipelines 2.0"
        with self._errors("health", missing=older):
            # Through the connections of the generated client, which itself breaks on an untrusted certificate.
            self._api.rest_client.pool_manager.request("GET", self.host, retries=False, timeout=_REACH_TIMEOUT_S)
            return kfp_server_api.HealthzServiceApi(self._api).healthz_service_get_healthz()

    def version(self) -> str:
        """The server's version, for example "2.17.0"; "" where it does not tell."""
        import kfp_server_api

        with self._errors("version"):
            try:
                answer = self._get("/apis/v1beta1/healthz", "object")
            except kfp_server_api.ApiException:
                return ""
        return str((answer or {}).get("tag_name") or "")

    def older(self) -> str:
        """Known trouble with a server that is older than the SDK here, in a line; "" where there is none."""
        import kfp
        from packaging.version import InvalidVersion, Version

        served = self.version()
        try:
            server, sdk = Version(served), Version(kfp.__version__)
        except InvalidVersion:
            return ""
        if server.release[:2] >= sdk.release[:2]:
            return ""
        return (
            f"the server is Kubeflow Pipelines {served}, older than the SDK {kfp.__version__} that compiles pipelines: "
            f"upgrade the server to {sdk.major}.{sdk.minor}"
        )

    def submit(self, pipeline: str, params: Mapping[str, Any], name: str | None = None) -> Submitted:
        """Start a run; files and folders of this machine that the parameters name are uploaded first.

        Args:
            pipeline: train_and_evaluate, nightly_retrain or bulk_sample.
            params: the pipeline's parameters, as in its settings file; `root` must be in an S3 bucket.
            name: name of the run; the pipeline's and the settings' name when None.

        Raises:
            UserError: a parameter is unknown, missing or bad, what it names is nowhere, or the name is that of a run
                that is still going on.
        """
        plan, root = parameters.planned(pipeline, params)
        title = parameters.title(name, pipeline, plan.checked.name)
        with self._errors(f"submit {title}"):
            experiment_id = self._experiment()
            if any(run.display_name == title and run.state not in ENDED for run in self._runs(experiment_id)):
                raise UserError(f"run {title}: one of this name is going on; wait for it or give another --name")
            checked, form = parameters.sent(plan, root)
            plugins = tracking.plugins_input(plan.checked.mlflow)
            return self._start(experiment_id, title, pipeline, checked, form, plugins)

    def start_hello(self, title: str, root: str, placed: Cluster) -> Submitted:
        """Start the pipeline `hello`, which writes, reads and deletes a small object under `root`."""
        with self._errors(f"start {title}"):
            return self._start(self._experiment(), title, "hello", {"root": root}, parameters.PipelineForm(placed))

    def _start(
        self,
        experiment_id: str,
        title: str,
        pipeline: str,
        params: dict[str, Any],
        form: parameters.PipelineForm,
        plugins: dict[str, Any] | None = None,
    ) -> Submitted:
        import kfp_server_api

        pipeline_id, version_id, _ = self._upload(pipeline, form)
        body = kfp_server_api.V2beta1Run(
            experiment_id=experiment_id,
            display_name=title,
            service_account=self.service_account,
            plugins_input=plugins,
            **parameters.request(pipeline_id, version_id, params, form.cluster),
        )
        # kfp.Client hands no plugins_input on.
        run = kfp_server_api.RunServiceApi(self._api).run_service_create_run(run=body)
        return Submitted(run.run_id, title, f"{self.host}/#/runs/details/{run.run_id}")

    def schedule(
        self, pipeline: str, params: Mapping[str, Any], cron_expression: str, name: str | None = None
    ) -> RecurringRun:
        """Run a pipeline again and again; one run at a time, and what was missed is not caught up.

        The same call twice leaves one schedule. Another version of the pipeline, another cron or other parameters under
        the same name replace it: the new one is made before the old one is deleted, so that no night is left out. Files
        and folders of this machine that the parameters name are uploaded now, and the nights use them as they are now.

        Args:
            pipeline: train_and_evaluate, nightly_retrain or bulk_sample.
            params: the pipeline's parameters, as in its settings file; `root` must be in an S3 bucket.
            cron_expression: six fields: second, minute, hour, day of month, month, day of week; UTC.
            name: name of the schedule; the pipeline's and the settings' name when None.

        Raises:
            UserError: a parameter or the cron expression is bad.
        """
        import kfp_server_api

        expression = cron.check(cron_expression)
        plan, root = parameters.planned(pipeline, params)
        title = parameters.title(name, pipeline, plan.checked.name)
        with self._errors(f"schedule {title}"):
            experiment_id = self._experiment()
            checked, form = parameters.sent(plan, root)
            pipeline_id, version_id, version = self._upload(pipeline, form)
            same_name = [each for each in self._schedules(experiment_id) if each.display_name == title]
            account, artifacts = self.service_account or "", form.cluster.pipeline_root or ""
            plugins = tracking.plugins_input(plan.checked.mlflow)
            wanted = (version_id, expression, account, artifacts, parameters.plain(checked), plugins or {})
            kept = next((each for each in same_name if parameters.facts(each) == wanted), None)
            changed = kept is None
            if kept is None:
                body = kfp_server_api.V2beta1RecurringRun(
                    experiment_id=experiment_id,
                    display_name=title,
                    trigger=kfp_server_api.V2beta1Trigger(
                        cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=expression)
                    ),
                    mode=kfp_server_api.RecurringRunMode.ENABLE,
                    max_concurrency=1,
                    no_catchup=True,
                    service_account=self.service_account,
                    plugins_input=plugins,
                    **parameters.request(pipeline_id, version_id, checked, form.cluster),
                )
                api = kfp_server_api.RecurringRunServiceApi(self._api)
                kept = api.recurring_run_service_create_recurring_run(recurring_run=body)
            for each in same_name:
                if each.recurring_run_id != kept.recurring_run_id:
                    self._kfp.delete_recurring_run(each.recurring_run_id)
                    changed = True
        return RecurringRun(kept.recurring_run_id, title, expression, version, changed)

    def schedules(self) -> list[Any]:
        """Every recurring run of the experiment, as the API describes it."""
        with self._errors("schedules"):
            return self._schedules(self._experiment())

    def ask(self, what: str, call: Callable[[Any], T]) -> T:
        """`call(kfp.Client)`; what the server refuses is one line about `what`.

        Raises:
            UserError: the server refuses it, and whoever asks has to change something.
            LatteError: the server or the network fails.
        """
        with self._errors(what):
            return call(self._kfp)

    def send(self, what: str, call: Callable[[Any], T]) -> T:
        """The same with the client that is generated from the published API, for calls that kfp.Client leaves out."""
        with self._errors(what):
            return call(self._api)

    def read(self, what: str, path: str) -> bytes:
        """The bytes of a route that the published API leaves out; errors as with `ask`."""
        with self._errors(what):
            answer = self._api.call_api(
                path,
                "GET",
                auth_settings=["Bearer"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=REQUEST_TIMEOUT_S,
            )
            return bytes(answer.data)

    def _get(self, path: str, kind: str) -> Any:
        """A route that the published API leaves out."""
        return self._api.call_api(
            path, "GET", response_type=kind, auth_settings=["Bearer"], _return_http_data_only=True
        )

    def _experiment(self) -> str:
        return str(self._kfp.create_experiment(self.experiment, namespace=self.namespace).experiment_id)

    def _upload(self, pipeline: str, form: parameters.PipelineForm) -> tuple[str, str, str]:
        """The ids of the pipeline and of the version with just this content, and the version's name.

        Raises:
            UserError: the server does not understand the pipeline, and is older than the SDK that compiled it.
        """
        import kfp_server_api

        try:
            return self._uploaded(pipeline, form)
        except kfp_server_api.ApiException as error:
            if error.status == 400 and (older := self.older()):
                raise UserError(f"{self.host}: {pipeline}: refused: {errors.said(error)}; {older}") from None
            raise

    def _uploaded(self, pipeline: str, form: parameters.PipelineForm) -> tuple[str, str, str]:
        with owners.Folder("pipeline") as folder:
            made = compiled.pipeline(pipeline, form.cluster, form.fanned_out)
            path = compiled.write(made, Path(folder) / f"{pipeline}.yaml")
            title = f"latte-{pipeline.replace('_', '-')}"
            version = f"{title}-{manifest.fingerprint(path.read_text())[:12]}"
            pipelines = _pages(self._kfp.list_pipelines, "pipelines", namespace=self.namespace)
            listed = next((each for each in pipelines if each.display_name == title), None)
            if listed is None:
                listed = self._kfp.upload_pipeline(str(path), title, namespace=self.namespace)
            pipeline_id = listed.pipeline_id
            known = _pages(self._kfp.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline_id)
            found = next((each for each in known if each.display_name == version), None)
            if found is None:
                found = self._kfp.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id)
        return str(pipeline_id), str(found.pipeline_version_id), version

    def _runs(self, experiment_id: str) -> list[Any]:
        return _pages(self._kfp.list_runs, "runs", experiment_id=experiment_id, namespace=self.namespace)

    def _schedules(self, experiment_id: str) -> list[Any]:
        return _pages(
            self._kfp.list_recurring_runs, "recurring_runs", experiment_id=experiment_id, namespace=self.namespace
        )

    @contextlib.contextmanager
    def _errors(self, what: str, missing: str = "") -> Iterator[None]:
        """Turn a refusal of server or network into one line that says what to change; `missing` explains a 404."""
        import kfp_server_api
        import urllib3.exceptions

        try:
            # KFP prints links where a caller expects nothing.
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except kfp_server_api.ApiException as error:
            if error.status == 404 and missing:
                raise UserError(f"{self.host}: {missing}") from None
            raise errors.explained(error, self.host, what) from None
        except urllib3.exceptions.SSLError:
            raise UserError(
                f"{self.host}: its certificate is not trusted; name its authority's file with {AUTHORITY_ENV}"
            ) from None
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            raise LatteError(
                f"{self.host}: no answer ({errors.first_line(error)}); check the host and the network"
            ) from None


def _pages(call: Any, key: str, **arguments: Any) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        page = call(page_token=token, page_size=_PAGE, **arguments)
        found += getattr(page, key) or []
        token = page.next_page_token or ""
        if not token:
            return found
