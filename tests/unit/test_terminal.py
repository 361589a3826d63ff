"""Names of strangers and placeholders: shown and not sent to a terminal, refused where KFP would expand them."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner

from components.volcano import api
from latte import config
from latte.cli import cli, guarded
from latte.errors import UserError
from latte.steps.encode import EncodeConfig
from latte.storage import manifest
from latte.terminal import shown
from pipelines import console, kfp_errors, local, settings
from pipelines.cli import cli as pipeline_cli
from pipelines.client import Client
from tests.e2e.runs import REPOSITORY

EVIL = "a\x1b]0;owned\x07\x1b[2J\nerror: b\u202egpm.mp4"
PIPELINE = yaml.safe_load((REPOSITORY / "configs/demo/pipeline.yaml").read_text())


def is_tame(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b é 視 \U0001f600", "a b é 視 \U0001f600"),
        ("a\x1b[31m\r\nb\tc", "a\\x1b[31m\\r\\nb\\tc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202eabc\u2066\u2028", "\\u202eabc\\u2066\\u2028"),
        ("non\u00a0breaking", "non\u00a0breaking"),
    ],
)
def test_control_characters_are_spelled(text: str, line: str) -> None:
    assert shown(text) == line


def test_an_error_is_one_line_whatever_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"{EVIL}: no such file")

    with pytest.raises(SystemExit) as ended:
        guarded(fail)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert is_tame(said)


def test_what_a_run_says_is_tame(tmp_path: Path) -> None:
    log, terminal = io.StringIO(), io.StringIO()
    out = console.RunLog(log, terminal)
    out.say(f"encode: {EVIL}")
    out.write(f"encode {EVIL[:20]}:  40%|####      | 96/240 [00:04<00:06, 23.1videos/s]\n\x1b[92mtext\x1b[0m\n")
    assert is_tame(terminal.getvalue())
    assert len(terminal.getvalue().splitlines()) == 2
    assert "\x1b" not in log.getvalue()


def test_tables_show_names_tame(tmp_path: Path) -> None:
    made = manifest.Manifest(
        kind="latents", name="x", uri=f"file://{tmp_path}/datasets/x/0123456789abcdef", fingerprint="0123456789abcdef",
        rejects=[manifest.Reject(item=EVIL, reason=f"{EVIL} is bad")], inputs={EVIL: EVIL}, config={EVIL: EVIL},
    )  # fmt: skip
    manifest.write(made, f"{made.uri}/manifest.json")
    for arguments in (["show", made.uri], ["ls", str(tmp_path)]):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        assert is_tame(done.output)
    assert all(is_tame(row) and "\n" not in row for row in manifest.reject_rows(made.rejects))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[1m", "a\u202eb"])
def test_a_name_has_no_control_characters(name: str) -> None:
    with pytest.raises(UserError, match="a name is one line of text, without control characters"):
        config.build(EncodeConfig, {"name": name, "root": "/r", "vae": "/v", "dataset": {"videos": "/d"}})
    with pytest.raises(UserError, match="name: a name is one line of text"):
        settings.check(settings.PipelineConfig, {**PIPELINE, "name": name}, "params")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "/", "a%20b", "a" * 201, "\xe9" * 101])
def test_a_name_is_one_that_a_folder_can_have(name: str) -> None:
    with pytest.raises(UserError, match="name: a name becomes a folder's"):
        config.build(EncodeConfig, {"name": name, "root": "/r", "vae": "/v", "dataset": {"videos": "/d"}})
    with pytest.raises(UserError, match=r"^params: name: a name becomes a folder's"):
        settings.check(settings.PipelineConfig, {**PIPELINE, "name": name}, "params")


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("name", "{{$.pipeline_job_uuid}}"),
        ("encode", {"dataset": {"videos": "/data/{{$.inputs.parameters['root']}}"}}),
        ("sample", {"labels": ["{{workflow.name}}"]}),
        ("train", {"{{$}}": 1}),
        ("cluster", {"light": {"labels": {"a": "{{inputs.parameters.x}}"}}}),
    ],
)
def test_placeholders_are_refused_before_anything_is_expanded(section: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        settings.check(settings.PipelineConfig, {**PIPELINE, section: value}, "params")
    assert str(caught.value).startswith(f"params: {section}")
    if section != "cluster":
        assert "{{ begins a placeholder of KFP" in str(caught.value)


def test_placeholders_of_the_command_line_are_refused(tmp_path: Path) -> None:
    checked = settings.check(settings.PipelineConfig, PIPELINE, "params")
    for folder, root in ((tmp_path / "{{$}}", None), (tmp_path / "run", "s3://bucket/{{$.x}}")):
        with pytest.raises(UserError, match="begins a placeholder of KFP"):
            local.run(checked, folder, root)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- YAML


def test_yaml_that_unfolds_without_end_or_says_a_key_twice_is_one_line(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)
    )
    merged = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n + 1}: &a{n + 1} {{{', '.join(f'k{k}: *a{n}' for k in range(9))}}}\n" for n in range(12)
    )
    for text, said in (
        (bomb, "line 6: not valid YAML: its aliases unfold to more than 100000 values"),
        (merged, "not valid YAML: its aliases unfold to more than 100000 values"),
        ("a: &a [*a]\n", "line 1: not valid YAML: nested more than 50 levels deep"),
        ("[" * 100_000, "not valid YAML: nested too deeply"),
        ("name: a\nencode: {}\nname: b\n", "line 3: not valid YAML: the key name stands in line 1 already"),
        (
            "encode:\n  image_size: 64\n  image_size: 32\n",
            "line 3: not valid YAML: the key image_size stands in line 2",
        ),
        ("seed: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("seed: 010", "line 1: not valid YAML: 010 would be read as 8; write the number plainly, or a text in quotes"),
        ("a: 1\nsteps: -1:30", "line 2: not valid YAML: -1:30 would be read as -90"),
        ("day: 2026-13-45", "not valid YAML: month must be in 1..12"),
    ):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        done = CliRunner().invoke(cli, ["encode", "-c", str(path)])
        assert done.exit_code == 2, (text[:60], done.output[-300:])
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr


def test_anchors_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: *a\n")
    assert config.read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}


# ------------------------------------------------------------------------------------------------------------ secrets


@pytest.fixture
def answering() -> object:
    """A server that says nothing of use, and the Authorization headers that it got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_a_line_break_around_a_token_is_left_out(
    answering: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = answering
    monkeypatch.setenv("KFP_TOKEN", "SECRETKFP456\n")
    Client(url + "\n")
    assert set(seen) <= {"Bearer SECRETKFP456", ""}
    assert "Bearer SECRETKFP456" in seen


@pytest.mark.parametrize("secret", ["SECRET\nKFP", "SECRET\r\nX-Other: 1", "SECRÉT", "SECRET\x1b[0m"])
def test_a_token_that_no_header_takes_is_refused_without_showing_it(
    answering: tuple[str, list[str]], secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN", secret)
    done = CliRunner().invoke(pipeline_cli, ["status", "--host", answering[0], "abc"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert (
        line == "error: KFP_TOKEN: there is a line break or another character in it that no header takes; set it anew"
    )


def test_a_password_in_the_host_s_url_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError) as caught:
        Client("https://me:SECRET@kubeflow.example.com")
    assert "SECRET" not in str(caught.value)


def test_a_token_of_a_kubeconfig_is_not_shown_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "SECRET\nX"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(UserError) as caught:
        api.Api("default")
    assert str(caught.value).startswith("the token of the Kubernetes API: there is a line break")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("status", "reason"), [(403, ""), (405, None), (500, "")])
@pytest.mark.parametrize("body", [b"", b"\n", b'{"message": ""}', '{"message": "\\n"}'])
def test_no_message_ends_in_nothing(status: int, reason: str | None, body: bytes | str) -> None:
    error = SimpleNamespace(status=status, reason=reason, body=body)
    for said in (kfp_errors.said(error), api._said(error)):
        assert said.strip()
