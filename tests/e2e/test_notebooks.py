"""The notebooks from top to bottom, on this machine and on a cluster; only their first code cell is changed.

On this machine the pipelines run for real, small, over a real S3 store. On the cluster an API server of KFP on loopback
takes the runs and says that they succeeded; what the notebooks then show lies in the bucket already.
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from latte.facts import RunFacts
from latte.storage import manifest, registry
from pipelines import notebook as notebooks
from pipelines.store import BUCKET, Store
from tests import kfp_server, video_files
from tests import recorded_kfp as recorded
from tests.e2e import runs

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ROOT = f"s3://{BUCKET}/notebooks"
# In this order: each goes on from what the one before has made.
NAMES = ("submit_run", "schedule_nightly", "bulk_evaluation")
SMALL = {
    **runs.TINY,
    "encode.num_tasks": 1,
    "train.steps": 2,
    "train.preview_every": 0,
    "sample.num_tasks": 1,
    "sample.num_videos": 2,
    "sample.num_sampling_steps": 2,
    "score.protocol.num_clips": 2,
    "report.max_rows": 1,
}
SETS = {"bulk": {key: value for key, value in SMALL.items() if key.startswith(("sample.", "score.", "report."))}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of each class."""
    folder = tmp_path_factory.mktemp("clips")
    for number, group in enumerate(("bikes", "bunny", "carphone")):
        (folder / group).mkdir()
        for clip in range(2):
            video_files.write(folder / group / f"{clip}.mp4", video_files.moving(16, 64, 64, seed=2 * number + clip))
    return folder


def execute(name: str, home: Path, *lines: str) -> nbformat.NotebookNode:
    """Run a notebook with these lines at the end of its first code cell, the one that says what to change."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    first.source += "\n" + "\n".join(lines)
    environment = {**os.environ, "HOME": str(home), "IPYTHONDIR": str(home / "ipython")}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env=environment)
    return notebook


def changes(name: str, videos: Path) -> list[str]:
    what = "sets, common" if name == "bulk_evaluation" else "changes"
    small = SMALL
    if name == "schedule_nightly":  # begins with the model of submit_run, not with a fresh one
        small = {key: value for key, value in SMALL.items() if key != "pretrained"}
    value = f"{SETS!r}, {{'model': 'demo', 'dataset': 'demo'}}" if name == "bulk_evaluation" else repr(small)
    return [f"root, videos = {ROOT!r}, {str(videos)!r}", f"{what} = {value}"]


def outputs(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """What each code cell showed, HTML before text, by its first line."""
    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [
                output.get("text") or output["data"].get("text/html") or output["data"]["text/plain"]
                for output in cell.outputs
            ]
            shown[cell.source.split("\n")[0]] = "".join(texts)
    return shown


def check_what_is_saved(notebook: nbformat.NotebookNode) -> None:
    """No line that was overwritten, no picture or page twice, nothing on standard error."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output
            plain = output.get("text") or output["data"]["text/plain"]
            assert "base64" not in plain and "srcdoc" not in plain
            assert "\r" not in plain
            assert not re.search(r"[1-9]\d?%\|", plain), plain
    places = [
        set(re.findall(r"data:image/[a-z]+;base64,[A-Za-z0-9+/]{200,}", text))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for text in output.get("data", {}).values()
    ]
    assert sum(map(len, places)) == len(set().union(*places))
    assert json.dumps(notebook).count("<iframe") == sum(
        cell.source.endswith(".report()") for cell in notebook.cells if cell.cell_type == "code"
    )


def cells(*values: str) -> str:
    """Cells of a table that stand beside each other in a DataFrame's HTML."""
    return "\n      ".join(f"<td>{value}</td>" for value in values)


@pytest.fixture(scope="module")
def here(store: Store, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the notebooks show on this machine."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"import os; os.chdir({str(home)!r})"]  # runs/ of the test, not of the repository
    lines += [
        f"os.symlink({str(NOTEBOOKS.parent / 'configs')!r}, 'configs') if not os.path.exists('configs') else None"
    ]
    shown = {}
    for name in NAMES:
        notebook = execute(name, home, *lines, *changes(name, videos))
        check_what_is_saved(notebook)
        shown[name] = outputs(notebook)
    return shown


@pytest.fixture
def server() -> Iterator[kfp_server.KfpServer]:
    """An API server whose runs succeed soon, task by task."""
    over = threading.Event()

    def go_on(served: kfp_server.KfpServer) -> None:
        # The workflow of a recorded run of these tasks; what another pipeline has besides is SKIPPED in it.
        workflow = recorded.within_exit_handler(recorded.SUCCEEDED)
        while not over.wait(0.3):
            for run in list(served.runs.values()):
                state = "RUNNING" if run["state"] == "PENDING" else "SUCCEEDED"
                run.update(state=state)
                served.workflows[run["run_id"]] = workflow

    with kfp_server.serve(token="right") as served:
        thread = threading.Thread(target=go_on, args=(served,))
        thread.start()
        yield served
        over.set()
        thread.join()


def test_on_this_machine(here: dict[str, dict[str, str]]) -> None:
    submit, night, bulk = (here[name] for name in NAMES)
    assert (
        "Nothing schedules runs on this machine" in night['notebook.schedule("nightly_retrain", params, cron, where)']
    )
    assert "train …" in night['night = notebook.run("nightly_retrain", params, where)']
    for shown in (night["night.table()"], submit["done.table()"]):
        assert cells("train", "SUCCEEDED") in shown
    for shown in (night["night.report()"], submit["done.report()"]):
        assert 'srcdoc="&lt;!doctype html' in shown
        assert "image/webp" in shown
    assert "data:image/png;base64,iVBOR" in submit["done.contact_sheet()"]
    assert "data:image/png;base64,iVBOR" in bulk["for name, done in runs.items():"]
    assert "2 videos of the set bulk" in bulk["for name, done in runs.items():"]
    assert "<td>frechet_small_i3d</td>" in bulk["notebook.scores(*runs.values())"]
    assert submit["notebook.scores(done)"].count("frechet_small_i3d") == 2


def test_a_promotion_is_shown_with_the_reason_of_the_gate(here: dict[str, dict[str, str]]) -> None:
    shown = here["schedule_nightly"]['notebook.promotions(params["root"], params["name"])']
    assert "<td>frechet_small_i3d</td>" in shown
    assert cells("True", "the first model under this name") in shown


def test_nights_go_on_from_the_model_of_the_run_and_sets_are_made_from_it(here: dict[str, dict[str, str]]) -> None:
    """What bulk evaluation shows would be noise if each notebook trained its own model from the start."""
    start = notebooks.trained(ROOT)
    promoted, _ = registry.read_current(ROOT, "demo")
    assert start is not None and promoted is not None
    run = manifest.read(start, "checkpoint")
    assert RunFacts.of(run).train.init_from is None
    night = manifest.read(promoted.checkpoint, "checkpoint")
    assert RunFacts.of(night).train.init_from == start
    assert night.inputs["checkpoint"] != run.fingerprint
    [bulk] = notebooks.newest(ROOT, "video_set", "bulk")
    assert bulk.inputs["weights"] == promoted.weights_sha256


def test_on_a_cluster_by_changing_one_cell(
    here: dict[str, dict[str, str]], server: kfp_server.KfpServer, videos: Path, tmp_path: Path
) -> None:
    lines = [f"where = notebook.Client(host={server.url!r}, token='right')", "notebook.POLL_S = 0.2"]
    shown = {}
    for name in NAMES:
        notebook = execute(name, tmp_path, *changes(name, videos), *lines)
        check_what_is_saved(notebook)
        shown[name] = outputs(notebook)
    assert sorted(run["display_name"] for run in server.runs.values()) == [
        "bulk_sample bulk", "nightly_retrain demo", "train_and_evaluate demo"
    ]  # fmt: skip
    assert [each["display_name"] for each in server.recurring_runs.values()] == ["nightly_retrain demo"]
    assert (
        "0 0 2 * * * UTC, new or changed"
        in shown["schedule_nightly"]['notebook.schedule("nightly_retrain", params, cron, where)']
    )
    assert "train: succeeded" in shown["submit_run"]['done = notebook.run("train_and_evaluate", params, where)']
    assert cells("train", "SUCCEEDED", "106.0") in shown["submit_run"]["done.table()"]
    # What is in the bucket looks the same from everywhere.
    for name, line in (
        ("submit_run", "done.contact_sheet()"),
        ("submit_run", "notebook.scores(done)"),
        ("schedule_nightly", "notebook.scores(night)"),
        ("bulk_evaluation", "notebook.scores(*runs.values())"),
        ("schedule_nightly", 'notebook.promotions(params["root"], params["name"])'),
    ):
        assert shown[name][line] == here[name][line]
    assert "srcdoc" in shown["schedule_nightly"]["night.report()"]


def test_a_mistake_is_one_line_in_a_notebook(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError) as caught:
        execute("submit_run", tmp_path, f"root, videos, changes = {ROOT!r}, 's3://x/y', {{'train.stepz': 5}}")
    assert "unknown key stepz" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_notebooks_are_kept_without_outputs() -> None:
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert sorted(path.stem for path in found) == sorted(NAMES)
    for path in found:
        notebook = json.loads(path.read_text())
        assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])
