"""Entities of people's own files, from the command line: figures by type and layer, and going on after a kill."""

import json
import random
from pathlib import Path

import pytest
from launching import launch
from run_files import metrics_of
from tiny import WORDS, save_base

FAULTY = str(Path(__file__).with_name("faulty_recipe.py"))


@pytest.mark.by_hand
def test_a_brat_folder_with_nested_entities_goes_on_after_a_kill(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(40):
        words = draw.choices(WORDS, k=draw.randint(4, 30))
        text = ", ".join(words)
        end = len(", ".join(words[:3]))
        spans = [("Disease", 0, end), ("Drug", 0, len(words[0]))]
        lines = [f"T{i}\t{name} {start} {end}\t{text[start:end]}\n" for i, (name, start, end) in enumerate(spans)]
        (folder / f"n{number}.txt").write_text(text)
        (folder / f"n{number}.ann").write_text("".join(lines))
    model = save_base(tmp_path / "model", "bert")
    flags = f"--model {model} --dataset {folder} --nested each_label --group_column document --max_length 16 "
    flags += "--overlap 4 --eval_fraction 0.3 --effective_batch_size 8 --micro_batch_size 3 --lora.rank 2 "
    flags += "--max_steps 7 --num_epochs null --save_every 2 --full_determinism true"
    runs = [tmp_path / "whole", tmp_path / "killed"]
    whole = launch("-m", "recipes.clinical_ner", *flags.split(), "--output_dir", str(runs[0]))
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert "80 entities, by the characters of texts" in whole.stdout
    killed = [*flags.split(), "--output_dir", str(runs[1])]
    assert launch(FAULTY, "SIGKILL", "0", "5", *killed, FAULTY_RECIPE="clinical_ner").returncode != 0
    done = launch("-m", "recipes.clinical_ner", *killed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed    after step" in done.stdout
    for name in ("window_digest", "loss", "num_items"):
        assert [line[name] for line in metrics_of(runs[1])] == [line[name] for line in metrics_of(runs[0])], name
    weights = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    figures = json.loads((runs[1] / "evaluation.json").read_text())
    assert figures == json.loads((runs[0] / "evaluation.json").read_text())
    by_type = figures["per_class_overlap"]
    assert (
        by_type["Disease"]["num_true"] == by_type["Drug"]["num_true"] == figures["per_class"]["Drug"]["support"] > 0
    )
    assert figures["f1"] <= figures["overlap_f1"]
