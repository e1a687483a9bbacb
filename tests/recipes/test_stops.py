"""A run that is stopped, or in which a rank fails: it is saved where that can be, and ends, with no rank left."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from launching import launch, launched
from run_files import metrics_of

Recipe = Callable[..., Path]

SCRIPT = str(Path(__file__).with_name("faulty_recipe.py"))
GRACE = 20  # seconds, for anything that has to end


@pytest.fixture
def flags(tiny_model: Path, notes: Path, tmp_path: Path) -> list[str]:
    """Of a run far longer than any of these tests."""
    return [
        *(f"--model={tiny_model}", f"--dataset={notes}", f"--output_dir={tmp_path / 'run'}", "--max_length=64"),
        *("--micro_batch_size=8", "--effective_batch_size=16", "--num_epochs=100", "--log_every=1"),
    ]


def check_saved(folder: Path, output: str, by: str) -> int:
    """The run has said by what it was stopped and is saved after its last step, which is returned."""
    metrics = metrics_of(folder)
    last = metrics[-1]["step"]
    assert [line["step"] for line in metrics] == list(range(1, last + 1))
    assert f"stopped by {by} after step {last}: saved in {folder / 'checkpoints'}" in output
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{last:08}"]
    assert not (folder / "adapter").exists()
    assert not (folder / "evaluation.json").exists()
    return last


def exit_codes(output: str) -> list[int]:
    """Of the ranks, as torchrun tells them: that of the first to end comes last."""
    return [int(code) for code in re.findall(r"^  exitcode  : (-?\d+)", output, re.MULTILINE)]


# The launcher is told


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_ranks_after_the_same_step(flags: list[str], tmp_path: Path) -> None:
    with launched(SCRIPT, "nothing", "0", "0", *flags, until="training", num_processes=2) as (launcher, output):
        launcher.send_signal(signal.SIGTERM)
        text = output()
        assert launcher.wait(GRACE) == 1  # of torchrun, whatever its ranks end with
    check_saved(tmp_path / "run", text, "SIGTERM")
    assert "SIGKILL" not in text
    assert "Unable to shutdown" not in text


@pytest.mark.by_hand
def test_an_interrupt_that_reaches_the_ranks_twice_is_one_request(flags: list[str], tmp_path: Path) -> None:
    """Ctrl-C: from the terminal to the whole group, and from torchrun to its ranks once more."""
    with launched(SCRIPT, "nothing", "0", "0", *flags, until="training", num_processes=2) as (launcher, output):
        os.killpg(launcher.pid, signal.SIGINT)
        text = output()
        assert launcher.wait(GRACE) != 0
    check_saved(tmp_path / "run", text, "SIGINT")


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [3, 2])
def test_an_interrupt_in_an_evaluation_leaves_it_to_the_same_command(
    num_steps: int, tiny_model: Path, notes: Path, tmp_path: Path
) -> None:
    """In one between steps, and in that at the end."""
    how = [f"--model={tiny_model}", f"--dataset={notes}", "--max_length=64", "--micro_batch_size=2"]
    how += ["--effective_batch_size=16", f"--max_steps={num_steps}", "--num_epochs=null", "--eval_fraction=0.4"]
    how += ["--eval_every=2", "--full_determinism=true"]
    flags = [*how, f"--output_dir={tmp_path / 'run'}"]
    start = [SCRIPT, "nothing", "0", "0", *flags]
    with launched(*start, until="evaluating", num_processes=2, FAULTY_EVALUATION_SECONDS="2") as (launcher, output):
        began = time.monotonic()
        os.killpg(launcher.pid, signal.SIGINT)
        text = output()
        assert launcher.wait(GRACE) != 0
        assert time.monotonic() - began < GRACE
    assert text.count("SIGINT: leaving the evaluation; the run is saved then") == 1
    folder = tmp_path / "run"
    assert f"stopped by SIGINT after step 2: saved in {folder / 'checkpoints'}" in text
    assert not (folder / "evaluation.json").exists()
    done = launch("-m", "recipes.clinical_classification", *flags, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed    after step 2" in done.stdout
    assert done.stdout.count("evaluation after step 2") == 1
    whole = [*how, f"--output_dir={tmp_path / 'whole'}"]
    assert launch("-m", "recipes.clinical_classification", *whole, num_processes=2).returncode == 0
    figures = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("run", "whole")]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_an_interrupt_before_the_first_window_ends_all_ranks_with_a_line(flags: list[str], tmp_path: Path) -> None:
    command = ("-m", "recipes.clinical_classification", *flags)
    start = launched(*command, until="slow: ", num_processes=2, OMP_NUM_THREADS="999")  # its first line
    with start as (launcher, output):
        os.killpg(launcher.pid, signal.SIGINT)
        text = output()
        assert launcher.wait(GRACE) != 0
    assert text.count("interrupted: ended at once") == 1
    assert "error:" not in text
    assert text.partition("interrupted")[0].count("Traceback") == 0  # torchrun's own comes behind it
    assert text.count("Traceback") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.by_hand
def test_slurm_s_signal_passes_torchrun_where_it_is_told_to(flags: list[str], tmp_path: Path) -> None:
    passed_on = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1"}
    how = {"until": "training", "num_processes": 2}
    with launched(SCRIPT, "nothing", "0", "0", *flags, **how, **passed_on) as (launcher, output):  # type: ignore[arg-type]
        launcher.send_signal(signal.SIGUSR1)
        text = output()
        assert launcher.wait(GRACE) == 1
    check_saved(tmp_path / "run", text, "SIGUSR1")


@pytest.mark.by_hand
@pytest.mark.parametrize("num_processes", [1, 2])
def test_no_rank_goes_on_without_its_launcher(num_processes: int, flags: list[str], tmp_path: Path) -> None:
    """`accelerate launch` of a single process passes no signal on, and none can when it is killed."""
    start = launched(SCRIPT, "nothing", "0", "0", *flags, until="training", num_processes=num_processes)
    with start as (launcher, output):
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        assert len(ranks) == num_processes
        launcher.kill()
        text = output()
        assert not psutil.wait_procs(ranks, timeout=GRACE)[1]
    check_saved(tmp_path / "run", text, "the end of its launcher")


# A rank is told, or its time is over


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_after_the_same_step(flags: list[str], tmp_path: Path) -> None:
    done = launch(SCRIPT, "SIGTERM", "1", "3", *flags, num_processes=2)
    assert check_saved(tmp_path / "run", done.stdout, "SIGTERM") >= 3
    assert exit_codes(done.stderr)[-1] == 75


@pytest.mark.by_hand
def test_the_time_limit_stops_all_ranks_after_the_same_step(flags: list[str], tmp_path: Path) -> None:
    done = launch(SCRIPT, "nothing", "0", "0", *flags, "--max_minutes=0.01", num_processes=2)
    check_saved(tmp_path / "run", done.stdout, "--max_minutes")
    assert exit_codes(done.stderr)[-1] == 75


def test_a_process_that_was_stopped_has_an_exit_code_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        recipe("--num_epochs=100", max_minutes=0.001)
    assert exit_.value.code == 75
    assert [path.name for path in (tmp_path / "run-0" / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.by_hand
def test_a_second_signal_ends_the_process_at_once(flags: list[str]) -> None:
    with launched(SCRIPT, "sleep", "0", "3", *flags, until="training", num_processes=1) as (launcher, output):
        (rank,) = psutil.Process(launcher.pid).children(recursive=True)
        rank.terminate()
        time.sleep(3)
        assert rank.is_running()  # in its window, which takes a minute
        rank.terminate()
        assert launcher.wait(GRACE) == 1
        text = output()
    assert "died with <Signals.SIGTERM: 15>" in text
    assert "stopped by" not in text


# A rank fails


@pytest.mark.parametrize(
    ("what", "code", "cause"),
    [
        pytest.param("SIGKILL", -9, "Signal 9 (SIGKILL)", marks=pytest.mark.slow),
        pytest.param("raise", 1, "ZeroDivisionError: made up in the forward", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_ends_in_a_forward_ends_the_others(what: str, code: int, cause: str, flags: list[str]) -> None:
    started = time.monotonic()
    done = launch(SCRIPT, what, "1", "3", *flags, num_processes=2, timeout=90)
    assert done.returncode == 1
    assert cause in done.stderr
    assert exit_codes(done.stderr)[-1] == code  # the cause, and not what it led to
    assert "error: another rank has ended, or has not answered" in done.stderr
    assert "stopped by" not in done.stdout
    assert "Unable to shutdown" not in done.stderr  # within torchrun's 30 seconds
    assert time.monotonic() - started < 80


@pytest.mark.by_hand
def test_a_rank_that_does_not_answer_ends_the_others_in_the_time_given(flags: list[str]) -> None:
    done = launch(SCRIPT, "SIGSTOP", "1", "3", *flags, "--rank_timeout_minutes=0.4", num_processes=2, timeout=200)
    assert done.returncode == 1
    assert "error: another rank has ended, or has not answered for longer than --rank_timeout_minutes" in done.stderr
    assert "Timed out waiting 24000ms" in done.stderr
    assert exit_codes(done.stderr) == [-9, 2]


# A window is not finite

WORDS = ("weakness", "atrophy", "murmur", "myopia", "ptosis")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Numbers to learn, the 21st of which has a square that float32 does not hold."""
    file = tmp_path / "numbers.jsonl"
    rows = [{"text": " ".join(WORDS[: i % 5 + 1]) + f" {i}", "label": 1e30 if i == 20 else i / 60} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def regression(numbers: Path, **more: object) -> dict[str, object]:
    return {
        "dataset": numbers,
        "problem": "regression",
        "effective_batch_size": 16,
        "log_every": 1,
        "num_epochs": 3,
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
    } | more


def check_skipped(folder: Path, steps: list[int], num_ranks: int) -> None:
    lines = [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]
    metrics = {line["step"]: line for line in metrics_of(folder)}
    assert [line["step"] for line in lines] == steps
    for line in lines:
        assert "0:20" in line["example_ids"]
        assert len(line["loss_sums"]) == num_ranks
        assert line["loss_sums"].count(None) == 1
        if line["step"] in metrics:
            of_step = metrics[line["step"]]
            assert (of_step["loss"], of_step["grad_norm"]) == (None, None)
            assert of_step["window_digest"] == line["window_digest"]
            assert of_step["num_examples"] == len(line["example_ids"]) == len(set(line["example_ids"]))
    for step, of_step in metrics.items():
        assert (of_step["loss"] is None) == (step in steps)


@pytest.mark.slow
def test_windows_that_are_not_finite_are_left_out_on_all_ranks_and_the_run_learns_on(
    tiny_model: Path, numbers: Path, tmp_path: Path
) -> None:
    how = regression(numbers, model=tiny_model, max_length=64, micro_batch_size=4, output_dir=tmp_path / "run")
    given = [f"--{name}={value}" for name, value in how.items()]
    done = launch(
        *("-m", "recipes.clinical_classification", *given, "--on_nonfinite=skip", "--max_nonfinite_skips=3"),
        num_processes=2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [int(step) for step in re.findall(r"^step (\d+): .* no step is made", done.stdout, re.MULTILINE)]
    assert len(steps) == 3
    check_skipped(tmp_path / "run", steps, num_ranks=2)
    assert (tmp_path / "run" / "adapter").exists()


def test_a_run_stops_after_the_most_skips_allowed(
    recipe: Recipe, numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run-0"
    with pytest.raises(SystemExit) as exit_:
        recipe(**regression(numbers, on_nonfinite="skip", max_nonfinite_skips=2))
    assert exit_.value.code == 2
    output = capsys.readouterr()
    (message,) = (line for line in output.err.splitlines() if line.startswith("error"))
    step = int(re.findall(r"error: step (\d+): loss", message)[0])
    assert f"after 2 others; the window's examples are in {folder / 'nonfinite.jsonl'}" in message
    assert f"ended by an error after step {step - 1}: saved in" in output.out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step - 1:08}"]
    skipped = [int(number) for number in re.findall(r"^step (\d+): .* no step is made \(", output.out, re.MULTILINE)]
    assert len(skipped) == 2
    check_skipped(folder, [*skipped, step], num_ranks=1)


@pytest.mark.by_hand
def test_by_default_a_window_that_is_not_finite_stops_the_run(
    tiny_model: Path, numbers: Path, tmp_path: Path
) -> None:
    how = regression(numbers, model=tiny_model, max_length=64, micro_batch_size=4, output_dir=tmp_path / "run")
    done = launch(
        *("-m", "recipes.clinical_classification", *(f"--{name}={value}" for name, value in how.items())),
        num_processes=2,
    )
    assert exit_codes(done.stderr)[-1] == 2
    assert "Traceback" not in done.stderr.partition("error: step")[0]
    assert "--on_nonfinite skip leaves such windows out" in done.stderr
    (line,) = (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()
    check_skipped(tmp_path / "run", [json.loads(line)["step"]], num_ranks=2)
