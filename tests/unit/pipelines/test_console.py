import builtins
import contextlib
import io
import threading

from pipelines.console import RunLog, time_table


def test_lines_of_parallel_tasks_do_not_mix_and_a_patched_print_does_not_lock(monkeypatch) -> None:
    file, terminal = io.StringIO(), io.StringIO()
    log = RunLog(file, terminal)
    real = builtins.print

    def indented(*args, **kwargs) -> None:
        real("    ", end="")
        real(*args, **kwargs)

    def task(name: str) -> None:
        for i in range(200):
            print(f"{name} {i}\n", end="")

    with contextlib.redirect_stdout(log):
        monkeypatch.setattr(builtins, "print", indented)
        threads = [threading.Thread(target=task, args=(name,), daemon=True) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    lines = file.getvalue().splitlines()
    assert sorted(lines) == sorted(f"    {name} {i}" for name in "ab" for i in range(200))
    assert terminal.getvalue() == ""


def test_progress_goes_to_the_terminal_too() -> None:
    file, terminal = io.StringIO(), io.StringIO()
    log = RunLog(file, terminal)
    log.write("encode:  40%|####      | 96/240 [00:04<00:06, 23.1videos/s]\nsomething else\n")
    assert terminal.getvalue() == "encode:  40%|####      | 96/240 [00:04<00:06, 23.1videos/s]\n"
    assert file.getvalue().count("\n") == 2


def test_parallel_tasks_of_a_step_count_once_and_waiting_for_another_step_does_not() -> None:
    events = [
        {"event": "finished", "task": "encode: plan", "time": 1.5, "seconds": 1.0},
        {"event": "finished", "task": "encode: shards 1 of 2", "time": 10.0, "seconds": 8.0},
        {"event": "finished", "task": "encode: shards 2 of 2", "time": 11.0, "seconds": 8.0},
        {"event": "finished", "task": "train", "time": 31.0, "seconds": 20.0},
    ]
    table = time_table(events)
    assert list(table.columns[0].cells) == ["encode", "train"]
    assert list(table.columns[1].cells) == ["10.0", "20.0"]
