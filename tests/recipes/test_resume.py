"""A run that is killed goes on as if it had not been: the same examples, losses and weights, to the last bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launching import launch, launched
from run_files import metrics_of
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, OPTConfig, OPTModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from hf_accum.files import fill_folder_atomically
from hf_accum.run.checkpoint import load_latest
from hf_accum.run.resume import Resumed

Recipe = Callable[..., Path]

SCRIPT = str(Path(__file__).with_name("faulty_recipe.py"))
NUM_STEPS = 20
NINE: dict[str, Any] = {"max_steps": 9, "num_epochs": 2, "save_every": 3}


def make_settings(tiny_model: Path, notes: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """Of a run of 20 steps, with dropout, over more than two passes of its data."""
    return {
        "model": tiny_model,
        "dataset": notes,
        "output_dir": folder,
        "max_length": 64,
        "micro_batch_size": 4,
        "effective_batch_size": 16,
        "max_steps": NUM_STEPS,
        "num_epochs": "null",
        "labels": "eye,heart,muscle",
        "save_every": 3,
        "log_every": 2,
        "dropout": 0.1,
        "full_determinism": "true",
    } | more


def make_flags(tiny_model: Path, notes: Path, folder: Path, **more: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in make_settings(tiny_model, notes, folder, **more).items()]


def train_undisturbed(recipe: Recipe, **settings: Any) -> None:
    """In this process: what is compared with it has been in others, and has to have the same bits."""
    try:
        recipe(**settings)
    finally:
        torch.use_deterministic_algorithms(False)


def assert_same_run(run: Path, whole: Path) -> None:
    lines, expected = metrics_of(run), metrics_of(whole)
    assert [m["step"] for m in lines] == list(range(1, NUM_STEPS + 1))
    for name in ("window_digest", "loss", "grad_norm", "learning_rate", "num_items", "epoch"):
        assert [m[name] for m in lines] == [m[name] for m in expected], name
    name = "adapter_model.safetensors"
    assert (run / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    figures = [json.loads((folder / "evaluation.json").read_text()) for folder in (run, whole)]
    assert figures[0] == figures[1]
    left = [path for path in run.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert left == []


@pytest.mark.slow
def test_a_run_killed_in_a_step_goes_on_from_its_last_checkpoint(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_undisturbed(recipe, **make_settings(tiny_model, notes, whole))
    killed = launch(SCRIPT, "SIGKILL", "0", "12", *make_flags(tiny_model, notes, run))
    assert killed.returncode != 0
    assert not (run / "adapter").exists()
    done = launch("-m", "recipes.clinical_classification", *make_flags(tiny_model, notes, run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed    after step 9, from " in done.stdout
    assert_same_run(run, whole)
    assert not list(tmp_path.glob("run-earlier-*"))


def test_other_settings_are_refused_with_the_difference_or_allowed_by_name(recipe: Recipe, tmp_path: Path) -> None:
    folder = stopped(recipe, tmp_path)
    with pytest.raises(SystemExit) as ended:
        recipe(output_dir=folder, **NINE, learning_rate=0.123, seed=5)
    assert ended.value.code == 2
    assert metrics_of(folder)[-1]["step"] == 3
    recipe(output_dir=folder, **NINE, learning_rate=0.123, allow_changes="learning_rate")
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))


def test_a_finished_run_is_no_run_to_go_on_with(recipe: Recipe) -> None:
    folder = recipe(max_steps=4, save_every=2)
    recipe(output_dir=folder, max_steps=4, save_every=2)
    assert folder.with_name(f"{folder.name}-earlier-1").is_dir()


def test_never_starts_anew_and_keeps_what_was(recipe: Recipe, tmp_path: Path) -> None:
    folder = stopped(recipe, tmp_path)
    recipe(output_dir=folder, max_steps=4, resume="never")
    assert folder.with_name(f"{folder.name}-earlier-1").is_dir()
    assert [m["step"] for m in metrics_of(folder)] == [1, 2, 3, 4]


def test_a_checkpoint_s_folder_is_gone_on_from_elsewhere(recipe: Recipe, tmp_path: Path) -> None:
    folder = stopped(recipe, tmp_path)
    other = recipe(**NINE, resume=folder / "checkpoints" / "step-00000003")
    assert [m["step"] for m in metrics_of(other)] == list(range(4, 10))
    with pytest.raises(SystemExit):
        recipe(**NINE, resume=folder / "checkpoints")


def test_a_folder_in_which_another_run_is_at_work_is_refused(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_accum.run.folder._PATIENCE_SECONDS", 0.2)
    folder = stopped(recipe, tmp_path)
    file = str(folder.with_name(f".{folder.name}.lock"))
    lock = f"import sys; from filelock import FileLock; lock = FileLock({file!r}); lock.acquire(); "
    other = subprocess.Popen(
        [sys.executable, "-c", lock + "print('locked', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    before = sorted(tmp_path.rglob("*"))
    for how in ({}, {"resume": "never"}):
        with pytest.raises(SystemExit) as ended:
            recipe(output_dir=folder, **NINE, **how)
        assert ended.value.code == 2
        assert "another run is at work in it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    other.communicate("")
    recipe(output_dir=folder, **NINE)


def test_other_data_under_the_same_name_is_refused_and_the_same_elsewhere_is_not(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(notes, tmp_path / "mine"))
    folder = stopped(recipe, tmp_path, dataset=mine)
    file = mine / "train-1.jsonl"
    file.write_text(file.read_text().replace("; ", ", ", 1))
    with pytest.raises(SystemExit):
        recipe(output_dir=folder, dataset=mine, **NINE)
    assert "data_digest was" in capsys.readouterr().err
    recipe(output_dir=folder, dataset=notes, **NINE)
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))


@pytest.mark.slow
def test_on_two_ranks_and_in_other_micro_batches_it_goes_on_with_the_same_examples(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path
) -> None:
    how = NINE | {"dropout": 0, "learning_rate": 0.01}
    whole = recipe(**how)
    run = stopped(recipe, tmp_path, dropout=0, learning_rate=0.01)
    named = {"model": tiny_model, "dataset": notes, "output_dir": run, "max_length": 64, "micro_batch_size": 3} | how
    flags = [f"--{name}={value}" for name, value in named.items()]
    done = launch("-m", "recipes.clinical_classification", *flags, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed    after step 3, from " in done.stdout
    lines, expected = metrics_of(run), metrics_of(whole)
    for name in ("step", "window_digest", "num_items", "epoch", "learning_rate"):
        assert [m[name] for m in lines] == [m[name] for m in expected]
    assert [m["loss"] for m in lines] == pytest.approx([m["loss"] for m in expected], rel=1e-4)


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_accum.run.checkpoint._SECONDS_BETWEEN_TRIES", (0.02,))
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "size=3m"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("this process may not mount a disk")
    try:
        ballast, checkpoints = disk / "ballast", disk / "run" / "checkpoints"
        seen: list[str] = []
        failures: list[Exception] = []

        def save(path: Path, write: Callable[[Path], None]) -> None:
            """What it stands for, and how often that failed."""
            try:
                fill_folder_atomically(path, write)
            except Exception as error:
                failures.append(error)
                raise

        monkeypatch.setattr("hf_accum.run.checkpoint.fill_folder_atomically", save)

        def saved() -> list[str]:
            return [path.name for path in checkpoints.glob("step-*")]

        def other_program() -> None:
            """Fills the disk as soon as the 4th step is saved, and makes room when saving has failed three times."""
            while set(saved()) <= {"step-00000002"}:
                time.sleep(0.001)
            fill(ballast)
            while len(failures) < 3:
                time.sleep(0.001)
            seen.extend(saved())
            ballast.unlink()

        thread = threading.Thread(target=other_program, daemon=True)
        thread.start()
        how = {"max_steps": 20, "num_epochs": "null", "labels": "eye,heart,muscle", "log_every": 1}
        recipe(**how, output_dir=disk / "run", save_every=2, keep_checkpoints=1, effective_batch_size=64)
        thread.join(20)
        assert not ballast.exists()
        said = capsys.readouterr().out
        assert "could not be saved" in said
        assert "No space left on device" in said
        assert [m["step"] for m in metrics_of(disk / "run")] == list(range(1, 21))
        assert (disk / "run" / "adapter" / "adapter_model.safetensors").exists()
        loaded = load_latest(disk / "run", print)
        assert loaded is not None
        assert loaded.step >= 4
        assert seen, "an earlier one is there all the time"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(file: Path) -> None:
    """Take all the room that a disk has."""
    with suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1 << 22))


def test_another_order_of_the_data_starts_the_pass_anew(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Places of one order mean nothing in another: examples would be lost, and others come twice."""
    folder = stopped(recipe, tmp_path, shuffle_block_size=40)
    recipe(output_dir=folder, **NINE, shuffle_block_size=30, allow_changes="shuffle_block_size")
    assert "another order than before: the pass that was begun starts anew" in capsys.readouterr().out
    assert [m["epoch"] for m in metrics_of(folder)] == [0] * 3 + [0] * 5 + [1]
    assert sum(m["num_examples"] for m in metrics_of(folder)[3:8]) == 134


def test_settings_that_were_filled_in_by_the_first_run_are_no_change(recipe: Recipe, tmp_path: Path) -> None:
    """The labels that it found: then no pass is made to find them, and nothing is known of the data's content."""
    folder = stopped(recipe, tmp_path)
    recipe(f"--config={folder / 'config.yaml'}", output_dir=folder, **NINE)
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))


def test_the_same_model_elsewhere_is_allowed_by_name_and_another_one_by_another(
    recipe: Recipe, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(recipe, tmp_path)
    moved, other = tmp_path / "moved", tmp_path / "other"
    for path in (moved, other):
        shutil.copytree(tiny_model, path)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if "query.weight" in name)
    save_file({**tensors, name: tensors[name] + 1}, other / "model.safetensors", {"format": "pt"})
    for model, allowed in ((moved, "learning_rate"), (other, "model")):
        with pytest.raises(SystemExit):
            recipe(output_dir=folder, **NINE, model=model, allow_changes=allowed)
        said = capsys.readouterr().err
        assert ("model was" if model == moved else "was trained on another base model") in said
    recipe(output_dir=folder, **NINE, model=moved, allow_changes="model")
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))


def test_a_run_begun_before_unused_adapters_were_left_out_goes_on_with_them(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"pooling": "mean", "dropout": 0}
    with monkeypatch.context() as earlier:
        earlier.setattr(Resumed, "leaves_out_unused_adapters", False)
        folder = stopped(recipe, tmp_path, **how)
    file = folder / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    file.unlink()
    recipe(output_dir=folder, **NINE, **how)
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))
    found = load_file(file)
    assert any("pooler" in name for name in found)
    torch.testing.assert_close(found, whole)
    assert not any("pooler" in name for name in load_file(recipe(**NINE, **how) / "adapter" / file.name))


def test_a_model_of_random_depth_goes_on_with_the_layers_that_it_would_have_had(
    recipe: Recipe, tiny_model: Path, tmp_path: Path
) -> None:
    """The random numbers of a micro-batch are its own: which layers are left out hangs on nothing before it."""
    model = tmp_path / "opt"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(model)
    sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 2, "ffn_dim": 64}
    config = OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=4, layerdrop=0.5, dropout=0.0, **sizes)
    torch.manual_seed(0)
    OPTModel(config).save_pretrained(model)
    how = {"model": model, "full_determinism": "true", "log_every": 1}
    try:
        folder = stopped(recipe, tmp_path, **how)
        file = folder / "adapter" / "adapter_model.safetensors"
        whole = load_file(file)
        file.unlink()
        recipe(output_dir=folder, **NINE, **how)
        always_whole = recipe(**NINE, **how, dropout=0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [m["step"] for m in metrics_of(folder)] == list(range(1, 10))
    found = load_file(file)
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    losses = [[round(m["loss"], 3) for m in metrics_of(run)] for run in (folder, always_whole)]
    assert losses[0] != losses[1], "with `dropout 0` no layer is left out"


@pytest.mark.parametrize("save_every", [2, 100])
def test_weights_that_are_not_trained_and_that_a_late_forward_changes_are_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], save_every: int
) -> None:
    """Before they are saved: in the end, or at the next checkpoint."""
    calls = iter(range(1_000_000))
    forward = BertEmbeddings.forward

    def moving(self: Any, *inputs: Any, **named: Any) -> Any:
        if next(calls) == 20:  # the question at the start has fewer
            self.word_embeddings.weight.data[5].add_(0.5)
        return forward(self, *inputs, **named)

    monkeypatch.setattr(BertEmbeddings, "forward", moving)
    with pytest.raises(SystemExit) as ended:
        recipe(output_dir="run", max_steps=4, save_every=save_every)
    assert ended.value.code == 2
    assert next(calls) > 20
    assert "1 weights that are not trained were changed in the run" in capsys.readouterr().err
    assert not Path("run/adapter").exists()


def stopped(recipe: Recipe, tmp_path: Path, **how: Any) -> Path:
    """An unfinished run, after step 3 of 9."""
    folder = recipe(**NINE, **how)
    (folder / "evaluation.json").unlink()
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()  # and damaged
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_kills"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.by_hand)])
def test_a_run_killed_again_and_again_ends_the_same(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path, num_processes: int, num_kills: int
) -> None:
    kill_and_resume(recipe, tiny_model, notes, tmp_path, num_processes, num_kills)


@pytest.mark.by_hand
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_killed_fifty_times_ends_the_same(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path, num_processes: int
) -> None:
    kill_and_resume(recipe, tiny_model, notes, tmp_path, num_processes, 50)


def kill_and_resume(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path, num_processes: int, num_kills: int
) -> None:
    """SIGKILL to the whole tree of processes at random moments, saving included; each time the same command again.

    A run that comes to its end is compared with one that was not disturbed, and another one begun.
    """
    whole = tmp_path / "whole"
    how = {"save_every": 1, "log_every": 1}
    module = ("-m", "recipes.clinical_classification")
    if num_processes == 1:
        train_undisturbed(recipe, **make_settings(tiny_model, notes, whole, **how))
    else:
        done = launch(*module, *make_flags(tiny_model, notes, whole, **how), num_processes=num_processes)
        assert done.returncode == 0, done.stderr[-3000:]
    draw = random.Random(num_processes)
    steps: list[int] = []
    while len(steps) < num_kills:
        run = tmp_path / f"run-{len(steps)}"
        flags = make_flags(tiny_model, notes, run, **how)
        while len(steps) < num_kills and not (run / "evaluation.json").exists():
            with launched(SCRIPT, "nothing", "0", "0", *flags, until="training", num_processes=num_processes) as (
                launcher,
                _output,
            ):
                time.sleep(draw.uniform(0, 0.8))
                kill_all(launcher)
            metrics = run / "metrics.jsonl"
            steps.append(metrics.read_text().count("\n") if metrics.exists() else 0)
        if not (run / "evaluation.json").exists():
            done = launch(*module, *flags, num_processes=num_processes)
            assert done.returncode == 0, done.stderr[-3000:]
        assert_same_run(run, whole)
    print(f"killed {len(steps)} times, after steps {steps}")


def kill_all(launcher: "subprocess.Popen[str]") -> None:
    """SIGKILL to the launcher and its ranks, which torchrun starts in groups of their own."""
    everyone = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    launcher.wait(20)
    psutil.wait_procs(everyone, timeout=20)
