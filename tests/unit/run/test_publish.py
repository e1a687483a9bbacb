"""What of a run is uploaded: the result and its card, no row of the data, whole or not at all."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from card_runs import make_run
from huggingface_hub import ModelCard

from hf_accum.errors import UserError
from hf_accum.run.card import write_card
from hf_accum.run.publish import publish, write_published

OF_PATIENTS = "a text of a patient"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    adapter = folder / "adapter"
    for name in ("adapter_model.safetensors", "tokenizer.json", "notes.txt", "optimizer.bin"):
        (adapter / name).write_text(OF_PATIENTS if name in ("notes.txt", "optimizer.bin") else "{}")
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in ("errors.jsonl", "predictions.jsonl", "metrics.jsonl"):
        (folder / name).write_text(OF_PATIENTS)
    write_card(folder)
    return folder


def test_weights_what_loads_them_and_the_card_are_written(run: Path, tmp_path: Path) -> None:
    published = write_published(run, tmp_path / "out", "apache-2.0")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == set(published.files)
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json", "usage.json", "config.json"} <= there
    assert not any(OF_PATIENTS in path.read_text() for path in (tmp_path / "out").iterdir())
    assert {"adapter/notes.txt", "checkpoints", "errors.jsonl", "predictions.jsonl"} <= set(published.left_out)
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["license"] == "apache-2.0"
    assert "license" not in (run / "adapter" / "README.md").read_text()


def test_what_cannot_be_published_is_said_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, said in ((tmp_path / "none", "no such folder"), (run / "adapter", "folder of a run")):
        with pytest.raises(UserError, match=said):
            write_published(folder, out)
    with pytest.raises(UserError, match="identifier of the hub"):
        write_published(run, out, "My Licence")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="new or empty"):
        write_published(run, tmp_path / "full")
    card = run / "adapter" / "README.md"
    whole = card.read_text()
    card.write_text("without metadata")
    with pytest.raises(UserError, match="no metadata"):
        write_published(run, out)
    card.write_text(whole)
    (run / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/model"}')
    with pytest.raises(UserError, match="earlier version"):
        write_published(run, out)
    (run / "evaluation.json").unlink()
    with pytest.raises(UserError, match="not through"):
        write_published(run, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]


def test_the_hub_needs_a_name_and_a_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_accum.run.publish.get_token", lambda: None)
    for repo in ("a/b/c", "model", "a b/c"):
        with pytest.raises(UserError, match="id of a repository"):
            publish(run, repo)
    with pytest.raises(UserError, match="needs a token"):
        publish(run, "me/model")


class StandIn(BaseHTTPRequestHandler):
    """Not the hub: answers the calls of an upload as its clients expect, and keeps what came."""

    is_private = True
    came: list[tuple[str, Any]] = []  # noqa: RUF012 (set anew by the fixture)

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "private": self.is_private, "tags": [], "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = self.path.split("?")[0]
        self.came.append((path, body))
        here = f"http://{self.headers['Host']}"
        if "preupload" in path:
            files = json.loads(body)["files"]
            kept = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": file["path"], **kept} for file in files]})
        elif "commit" in path:
            self._answer({"commitUrl": f"{here}/me/model/commit/1", "commitOid": "1", "pullRequestUrl": None})
        elif path.endswith("create"):
            self._answer({"url": f"{here}/me/model", "name": "me/model", "id": "1"})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, values: Any) -> None:
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(StandIn, "came", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def command(run: Path, endpoint: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    more = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_made_up", "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-m", "hf_accum.cli.main", "publish", str(run), "me/model", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | more)


@pytest.mark.slow
def test_a_stand_in_of_the_hub_gets_one_commit_with_these_files(
    run: Path, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command(run, stand_in, "--private", "--licence", "mit", "--revision", "first")
    assert done.returncode == 0, done.stderr
    assert f"{stand_in}/me/model/commit/1" in done.stdout
    assert "stays here: adapter/notes.txt" in done.stdout
    (commit,) = [body for path, body in StandIn.came if path.endswith("/commit/first")]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert {"README.md", "adapter_model.safetensors", "usage.json"} <= files
    assert not files & {"notes.txt", "errors.jsonl", "predictions.jsonl", "metrics.jsonl"}
    (created,) = [json.loads(body) for path, body in StandIn.came if path == "/api/repos/create"]
    assert created["visibility"] == "private"
    monkeypatch.setattr(StandIn, "is_private", False)
    done = command(run, stand_in, "--private")
    assert done.returncode == 2
    assert "is there already, and public" in done.stderr
    assert sum("commit" in path for path, _ in StandIn.came) == 1


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_a_mistake_in_a_sentence(run: Path) -> None:
    done = command(run, "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "nothing was uploaded" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
