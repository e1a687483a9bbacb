"""`hf-accum serve`: answers of a real server to real requests are what `hf-accum predict` tells of the same rows."""

import base64
import importlib
import io
import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_recipe import RECIPES
from PIL import Image
from served import JSON, Server, answer_of, served

from hf_accum.cli.main import main

Recipe = Callable[..., Path]
MADE = {"max_steps": 4, "effective_batch_size": 16, "learning_rate": 0.01}
BY_ID = {recipe.id: recipe for recipe in RECIPES}


def predicted(run: Path, rows: list[Any], folder: Path, *flags: str) -> list[dict[str, Any]]:
    data, output = folder / "asked.jsonl", folder / "told.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["predict", str(run), f"--dataset={data}", f"--output={output}", *flags])
    return [json.loads(line) for line in output.read_text().splitlines()]


def half_sent(server: Server, body: bytes) -> Any:
    """A connection on which a request has begun to come."""
    connection = server.connect()
    connection.putrequest("POST", "/predict")
    for name, value in {**JSON, "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:5])
    return connection


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_closed(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def test_200_at_once_are_told_what_predict_tells(recipe: Recipe, tmp_path: Path) -> None:
    run = recipe(**MADE)
    rows = [{"text": f"syncope {'murmur ' * (place * 7 % 60)} {place}"} for place in range(300)]
    told = predicted(run, rows, tmp_path)
    asked: list[Any] = [
        {"rows": [rows[place], rows[place + 100]]} if place < 100 else rows[place + 100] for place in range(200)
    ]
    expected = [[told[p], told[p + 100]] if p < 100 else [told[p + 100]] for p in range(200)]
    bad = {3: {"rows": [rows[0], {"text": None}]}, 50: {"note": "private"}, 120: {"rows": [rows[1], "private"]}}
    with served(run) as server, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(server.ask, [bad.get(place, one) for place, one in enumerate(asked)]))
        for place, (status, answer) in enumerate(answers):
            if place in bad:
                assert status == 422
                continue
            assert status == 200, answer
            for one, row in zip(answer["rows"], expected[place], strict=True):
                assert list(one) == ["prediction", "probabilities"]
                assert one["prediction"] == row["prediction"]
                assert one["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
        assert "rows[1]: field 'text'" in answers[3][1]["error"]
        assert answers[50][1]["bad_rows"] == [{"row": 0, "error": "field 'text': no such column; the row has note"}]
        assert answers[120][1]["error"] == "rows[1]: has to be an object, it is a text"
        longest = {"text": "murmur " * 100}
        assert "rows[1]: 38 tokens were cut off" in server.ask({"rows": [rows[0], longest]})[1]["notes"][0]

        assert server.get("/health") == (
            200,
            {"status": "ok", "run": run.name, "columns": ["prediction", "probabilities"]},
        )
        assert server.metric('requests_total{status="200"}') == 198
        assert server.metric('requests_total{status="422"}') == server.metric("errors_total") == 3
        assert server.metric("rows_total") == server.metric("batch_rows_sum") == 300 - 5 + 2
        assert server.metric("batch_requests_sum") == 198
        assert server.metric("batch_requests_count") < 100
        assert server.metric("cut_rows_total") >= 1
        assert server.metric("requests_in_progress") == 0
    for text in ("murmur", "private", "syncope"):
        assert text not in server.log


@pytest.mark.slow
def test_what_is_too_large_too_slow_or_wrong_harms_nobody_else(recipe: Recipe) -> None:
    run = recipe(**MADE)
    limits = ("--max_request_bytes=1000", "--max_rows=3", "--max_waiting=4", "--timeout_seconds=2")
    good, long = {"text": "syncope"}, json.dumps({"text": "x" * 2_000_000}).encode()
    body = json.dumps(good).encode()
    with served(run, "--recipe=slow_recipe", *limits) as server, ThreadPoolExecutor(4) as pool:
        expected = server.ask(good)
        assert expected[0] == 200
        for sent, status, reason in (
            (long, 413, "more than the 1,000 bytes"),
            (iter([long[:900], long[900:]]), 413, "more than the 1,000 bytes"),  # in chunks, its length unsaid
            (b'{"rows": [' + b"{}," * 3 + b"{}]}", 413, "4 rows, more than the 3"),
            (b"", 400, "has to be JSON"),
            (b'{"text": ', 400, "has to be JSON"),
            (b'{"text": "\xff"}', 400, "has to be UTF-8"),
            (b"[" * 900, 400, "has to be JSON"),
            (b'{"text": NaN}', 400, "NaN is no JSON"),
            (b"[1]", 400, "it is a list"),
            (b'{"rows": 3}', 400, "with a list and nothing else"),
            (b'{"text": "\\ud800"}', 422, "rows[0]: field 'text': not UTF-8"),
            (b'{"\\ud800": 1}', 422, "the row has \ud800"),
        ):
            answer = server.send(sent)
            assert answer[0] == status, answer
            assert reason in answer[1]["error"]
        assert server.send(body, {"Content-Type": "text/plain"})[0] == 415
        assert server.send(body, {**JSON, "Content-Length": str(10**12)})[0] == 413
        assert server.send(None, {}, "GET")[0] == 405
        assert server.get("/rows")[0] == 404
        assert server.ask({"rows": []}) == (200, {"rows": []})

        # Requests that wait for each other are computed together, and only one of them fails.
        before = server.metric("batch_rows_count")
        waiting = pool.submit(server.ask, {"text": "sleep"})
        wait_until(lambda: server.metric("batch_rows_count") > before)
        others = [pool.submit(server.ask, {"text": text}) for text in ("fail private", "memory", "syncope")]
        wait_until(lambda: server.metric("requests_in_progress") == 4)
        connection = server.connect()
        connection.request("POST", "/predict", body, JSON)
        response = connection.getresponse()
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        connection.close()
        assert waiting.result()[0] == 504
        assert [other.result()[0] for other in others] == [504] * 3  # they have waited too long too
        wait_until(lambda: server.ask(good)[0] == 200)

        slow = half_sent(server, body)
        assert server.ask(good) == expected
        status, answer = answer_of(slow)
        assert (status, answer["error"]) == (408, "did not come whole within the 2 s of a request")
        slow.close()
        half_sent(server, body).close()  # gone away
        before = server.metric("batch_requests_count")
        both = [pool.submit(server.ask, {"text": text}) for text in ("fail private", "syncope", "memory")]
        assert both[1].result() == expected
        assert server.metric("batch_requests_count") > before
        assert both[0].result() == (500, {"error": "a fault of the server (RuntimeError); its log says where"})
        assert both[2].result() == (
            413,
            {"error": "a row is too large for the memory of the server: send a shorter text, or a smaller image"},
        )

        in_flight = half_sent(server, body)
        wait_until(lambda: server.metric("requests_in_progress") == 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_closed(server.port))
        in_flight.send(body[5:])
        assert answer_of(in_flight) == expected
        in_flight.close()
    assert "slow_recipe.py" in server.log
    assert "error: a single example does not fit" in server.log
    assert "private" not in server.log


def test_what_cannot_be_served_is_said(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recipe(**MADE)

    def said(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, arguments)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "has to be the folder of a run" in said(tmp_path)
    assert "--max_rows 0: has to be above 0" in said(run, "--max_rows=0")
    assert "--max_rows 9,999: has to be at most 4,096" in said(run, "--max_rows=9999", "--port=0")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be listened at" in said(run, f"--port={other.getsockname()[1]}")
    assert "--port 99999: has to be from 0" in said(run, "--port=99999")
    (run / "evaluation.json").rename(run / "other.json")
    assert "has to be a run that is through" in said(run)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'hf-accum[serve]'" in said(run)


def base64_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe_id", "rows", "flags", "bad", "reason"),
    [
        (
            "clinical_ner",
            [{"tokens": ["w1"] * n} for n in (1, 9, 30)] + [{"text": "w3 w2, w7"}],
            (),
            {"note": "w1"},
            "has to have a column 'tokens' or 'text'; the row has note",
        ),
        (
            "term_retrieval",
            [{"term": "w1 w2"}, {"definition": "w3"}, {"term": "w4", "definition": "w5 w6"}],
            (),
            {"note": "w1"},
            "has to have a column 'term' or 'definition'; the row has note",
        ),
        (
            "medical_lm",
            [{"question": "w1 " * n} for n in (1, 2, 3)],
            ("--max_new_tokens=4",),
            {"question": "w1 " * 20},
            "its prompt has 21 tokens, and there is room for 12: of 16 in all, 4 are for what is written",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each_recipe_of_texts(
    recipe_id: str,
    rows: list[Any],
    flags: tuple[str, ...],
    bad: dict[str, str],
    reason: str,
    tmp_path: Path,
    accelerator: object,
) -> None:
    """What is wrong is said in the words of a request: a client has no flags."""
    run = run_of(recipe_id, tmp_path)
    told = predicted(run, rows, tmp_path, *flags)
    with served(run, *flags) as server:
        status, answer = server.ask({"rows": rows})
        assert status == 200
        for row, one, other in zip(rows, answer["rows"], told, strict=True):
            assert {**row, **one}.keys() == other.keys()
            for column, value in one.items():
                close = column.endswith("_embedding")
                assert value == (pytest.approx(other[column], abs=1e-5) if close else other[column])
        for note in answer.get("notes", []):
            assert note.endswith(": the text ended at 4 tokens, the most that are written")
        status, answer = server.ask(bad)
        assert (status, answer["error"]) == (422, f"rows[0]: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_images_come_and_masks_go_as_base64(task: str, tmp_path: Path, accelerator: object) -> None:
    run, folder, draw = run_of(f"driving_images-{task}", tmp_path), tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    images = [Image.fromarray(draw.integers(0, 255, (20 + n, 30, 3), dtype=np.uint8)) for n in range(5)]
    for place, image in enumerate(images):
        image.save(folder / f"{place}.png")
    main(["predict", str(run), f"--dataset={folder}", f"--output={tmp_path / 'told.jsonl'}"])
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    with served(run) as server:
        status, answer = server.ask({"rows": [{"image": base64_of(image)} for image in images]})
        assert status == 200, answer
        for one, other in zip(answer["rows"], told, strict=True):
            if task == "classification":
                assert one["prediction"] == other["prediction"]
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
                continue
            assert one["prediction"] == pytest.approx(other["prediction"], abs=1e-2)
            with (
                Image.open(io.BytesIO(base64.b64decode(one["mask_file"]))) as mask,
                Image.open(tmp_path / other["mask_file"]) as expected,
            ):
                assert (np.asarray(mask) != np.asarray(expected)).mean() < 0.01
        for image in (str(folder / "0.png"), {"path": str(folder / "0.png")}, "data:image/png;base64,AAAA", "AAAA"):
            status, answer = server.ask({"image": image})
            assert status == 422
            assert "rows[0]: field 'image'" in answer["error"]


def run_of(recipe_id: str, folder: Path) -> Path:
    recipe = BY_ID[recipe_id]
    flags = recipe.make_flags(folder, folder / "run", max_steps=3, learning_rate=0.01)
    importlib.import_module(f"recipes.{recipe.name}").main(flags)
    return folder / "run"
