"""The command `hf-accum report`: its flags, messages and status; it starts without torch."""

import sys
from pathlib import Path

import pytest
from launching import run
from report_cases import write_run

from hf_accum.cli.main import main


def few(folder: Path) -> Path:
    write_run(folder, 0)
    (folder / "tuning.json").unlink()
    return folder


def test_a_page_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = few(tmp_path / "run")
    main(["report", str(folder), "--no_texts", "--figures", str(tmp_path / "figures")])
    assert capsys.readouterr().out == f"written: {folder / 'report.html'}\n"
    assert "the text of" not in (folder / "report.html").read_text()
    assert (tmp_path / "figures" / "confusion.png").is_file()
    main(["report", str(folder), "--watch", "--output", str(tmp_path / "x.html")])  # it is through
    assert "the text of" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER"], "error: run FOLDER: has to be the folder that a run wrote (its --output_dir)"),
        (["FOLDER/none"], "error: run FOLDER/none: has to be a run's folder, it is not there"),
        (["RUN", "--unheard_of"], "error: --unheard_of: is no flag of hf-accum report\n"),
        (
            ["RUN", "--no_text"],
            "error: --no_text: is no flag of hf-accum report; is --no_texts meant?\n",
        ),
        (["RUN", "--output", "FOLDER"], "error: --output FOLDER: has to be a file, it is a folder"),
        (["RUN", "--figures", "RUN/x"], "error: --figures RUN/x: has to be outside of a run's folder"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = few(tmp_path / "run")

    def named(text: str) -> str:
        return text.replace("FOLDER", str(tmp_path)).replace("RUN", str(folder))

    with pytest.raises(SystemExit) as ended:
        main(["report", *map(named, arguments)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(named(message))
    assert told.count("\n") == 1
    assert not (folder / "report.html").exists()


@pytest.mark.slow
def test_no_torch_is_needed(tmp_path: Path) -> None:
    code = """
import sys
from hf_accum.cli.main import main
main(["report", sys.argv[1]])
print(sorted({"torch", "transformers", "accelerate", "datasets", "scipy", "sklearn"} & set(sys.modules)))
"""
    done = run([sys.executable, "-c", code, str(few(tmp_path / "run"))])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
