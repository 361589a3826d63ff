"""`latte-pipeline gc` beside a cluster: what schedules and running runs name stays."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from latte import storage
from latte.inventory import gc
from latte.inventory.gc import Keep
from pipelines import housekeeping
from pipelines.cli import cli
from pipelines.client import Client
from tests import kfp_server, nights


def recurring(server: kfp_server.KfpServer, client: Client, root: str, **parameters: object) -> None:
    client.schedules()
    (experiment,) = server.experiments
    server.recurring_runs["one"] = {
        "recurring_run_id": "one",
        "display_name": "nightly",
        "experiment_id": experiment,
        "runtime_config": {"parameters": {"root": root, **parameters}},
    }


def test_what_schedules_name_stays(
    server: kfp_server.KfpServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = nights.old(tmp_path / "root", (5.0, 6.0, 7.0))
    without = {each.place for each in gc.survey(root, Keep(newest=0)).going}
    assert made[1]["run"] in without
    checkpoint = storage.join(root, made[1]["run"], "manifest.json")
    recurring(server, client, root, name="sky", checkpoint=checkpoint)
    others = tuple(housekeeping.needed_on(client, root))
    found = gc.survey(root, Keep(newest=0, others=others))
    assert found.kept[made[1]["run"]] == "needed by schedule nightly"
    assert found.kept[made[2]["set"]] == "needed by schedule nightly", "the newest of the name"
    assert made[1]["set"] in {each.place for each in found.going}
    recurring(server, client, "s3://other/root", name="sky", checkpoint=checkpoint)
    assert housekeeping.needed_on(client, root) == []

    recurring(server, client, root, name="sky", checkpoint=checkpoint)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    monkeypatch.setenv("KFP_TOKEN", "right")
    done = CliRunner().invoke(cli, ["gc", "--root", root, "--keep", "0"])
    assert done.exit_code == 0, done.output
    assert made[1]["set"] in done.output
    assert made[1]["run"] not in done.output
    # Uploads go where the schedules were asked, and only those that none of them names.
    named, idle = (storage.join(root, f"uploads/{digit * 16}", "clips.zip") for digit in "ab")
    for uri in (named, idle):
        storage.write_bytes(uri, b"clips")
    nights.age(root, 10)
    recurring(server, client, root, encode={"dataset": {"videos": named}})
    done = CliRunner().invoke(cli, ["gc", "--root", root, "--keep", "9", "--yes"])
    assert done.exit_code == 0, done.output
    assert (storage.exists(named), storage.exists(idle)) == (True, False)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(cli, ["gc", "--root", root, "--keep", "0", "--yes"])
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert storage.exists(checkpoint)
