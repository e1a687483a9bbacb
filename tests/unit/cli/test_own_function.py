"""A function of the user's project: called, or a sentence that says which line fails."""

import re
import sys
from pathlib import Path

import pytest

from hf_accum.cli.main import main
from hf_accum.cli.own_function import call_function
from hf_accum.errors import UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] in ("ones_script", "ones_helper")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def message(project: Path, script: str, place: str = "ones_script:f", helper: str = "") -> str:
    (project / "ones_helper.py").write_text(helper)
    (project / "ones_script.py").write_text(script)
    with pytest.raises(UserError) as error:
        call_function(place)
    return str(error.value)


def test_it_gives_what_the_function_returns(project: Path) -> None:
    (project / "ones_script.py").write_text("def f():\n    return 3\n")
    assert call_function("ones_script:f") == 3


@pytest.mark.parametrize(
    ("script", "said", "line"),
    [
        ("x = 1\nraise ValueError('no data')\n", "ones_script cannot be imported: ValueError: no data", 2),
        ("x = 1\n\ndef f(:\n", "ones_script cannot be imported: SyntaxError: ", 3),
        ("import no_such_package\n", "ones_script cannot be imported: ModuleNotFoundError: No module named ", 1),
        ("import sys\n\nsys.exit(2)\n", "ones_script cannot be imported: SystemExit: 2", 3),
        ("import json\njson.loads('{')\n", "ones_script cannot be imported: JSONDecodeError: ", 2),
        ("def f():\n    return 1 / 0\n", "f fails: ZeroDivisionError: division by zero", 2),
    ],
)
def test_what_fails_is_named_with_its_file_and_line(project: Path, script: str, said: str, line: int) -> None:
    told = message(project, script)
    assert told.startswith(f"ones_script:f: {said}")
    assert told.endswith(f" ({project / 'ones_script.py'}, line {line})")
    assert told.count("line ") == 1 or "JSONDecodeError" in told


def test_a_module_that_the_user_s_own_imports_is_named_where_it_fails(project: Path) -> None:
    told = message(project, "import ones_helper\n", helper="\n\nx = {}['k']\n")
    assert told.endswith(f"KeyError: 'k' ({project / 'ones_helper.py'}, line 3)")


def test_the_command_ends_with_status_2_and_shows_the_traceback_when_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "ones_script.py").write_text("raise RuntimeError('not today')\n")
    for flags, has_traceback in (([], False), (["--debug"], True)):
        with pytest.raises(SystemExit) as ended:
            main(["check", "ones_script:f", *flags])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert re.search(
            r"^error: ones_script:f: .*RuntimeError: not today \(.*ones_script.py, line 1\)$", said, re.M
        )
        assert ("Traceback (most recent call last)" in said) is has_traceback
