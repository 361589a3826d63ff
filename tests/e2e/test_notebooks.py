"""The notebooks from top to bottom, on this machine and on a cluster; only their first code cell is changed.

On this machine the pipelines run for real, small, over a real S3 store. On the cluster an API server of KFP on loopback
takes the runs and says that they succeeded; what the notebooks then show lies in the bucket already.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from pipelines.demo.data import cut_demo_clips
from pipelines.store import BUCKET, Store
from tests import kfp_server
from tests import recorded_kfp as recorded
from tests.e2e import runs

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ROOT = f"s3://{BUCKET}/notebooks"
# In this order: a model has to be promoted before sets are made from it.
NAMES = ("schedule_nightly", "bulk_evaluation", "submit_run")
SMALL = {
    **runs.TINY,
    "encode.num_tasks": 1,
    "sample.num_tasks": 1,
    "sample.num_videos": 2,
    "score.protocol.num_clips": 2,
}
SETS = {"bulk": {key: value for key, value in SMALL.items() if key.startswith(("sample.", "score."))}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of each class."""
    everything, few = tmp_path_factory.mktemp("all-clips"), tmp_path_factory.mktemp("clips")
    cut_demo_clips(everything)
    for group in (path for path in everything.iterdir() if path.is_dir()):
        (few / group.name).mkdir()
        for clip in sorted(group.glob("*.mp4"))[:2]:
            shutil.copy(clip, few / group.name)
    return few


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
    value = f"{SETS!r}, {{'model': 'demo', 'dataset': 'demo'}}" if name == "bulk_evaluation" else repr(SMALL)
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


@pytest.fixture(scope="module")
def here(store: Store, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the notebooks show on this machine."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"import os; os.chdir({str(home)!r})"]  # runs/ of the test, not of the repository
    lines += [
        f"os.symlink({str(NOTEBOOKS.parent / 'configs')!r}, 'configs') if not os.path.exists('configs') else None"
    ]
    return {name: outputs(execute(name, home, *lines, *changes(name, videos))) for name in NAMES}


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
    night, bulk, submit = (here[name] for name in NAMES)
    assert "Nothing schedules runs on this machine" in night["if where is None:"]
    assert "train …" in night['night = notebook.run("nightly_retrain", params, where)']
    for shown in (night["night.table()"], submit["done.table()"]):
        assert "<td style='text-align:left'>train</td><td style='text-align:left'>SUCCEEDED</td>" in shown
    assert "in force" in night['notebook.promotions(params["root"], params["name"])']
    for shown in (night["night.report()"], submit["done.report()"]):
        assert 'srcdoc="&lt;!doctype html' in shown
        assert "image/webp" in shown
    assert "data:image/png;base64,iVBOR" in submit["done.contact_sheet()"]
    assert "data:image/png;base64,iVBOR" in bulk["for name, done in runs.items():"]
    assert "2 videos of the set bulk" in bulk["for name, done in runs.items():"]
    assert "<td style='text-align:left'>frechet_small_i3d</td>" in bulk["notebook.scores(*runs.values())"]
    assert submit["notebook.scores(done)"].count("frechet_small_i3d") == 2


def test_on_a_cluster_by_changing_one_cell(
    here: dict[str, dict[str, str]], server: kfp_server.KfpServer, videos: Path, tmp_path: Path
) -> None:
    lines = [f"where = notebook.Client(host={server.url!r}, token='right')", "notebook.POLL_S = 0.2"]
    shown = {name: outputs(execute(name, tmp_path, *changes(name, videos), *lines)) for name in NAMES}
    assert sorted(run["display_name"] for run in server.runs.values()) == [
        "bulk_sample bulk", "nightly_retrain demo", "train_and_evaluate demo"
    ]  # fmt: skip
    assert [each["display_name"] for each in server.recurring_runs.values()] == ["nightly_retrain demo"]
    assert "0 0 2 * * * UTC, new or changed" in shown["schedule_nightly"]["if where is None:"]
    assert "train: succeeded" in shown["submit_run"]['done = notebook.run("train_and_evaluate", params, where)']
    row = ("train", "SUCCEEDED", "1 min 46 s")
    assert "".join(f"<td style='text-align:left'>{cell}</td>" for cell in row) in shown["submit_run"]["done.table()"]
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
