"""training/cli.py and training/streams.py: errors, streams and flags of all commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from serving.errors import UserError
from training import cli
from training.streams import printable


def command(code, *, redirect="", **settings):
    """Run `code` as a command whose main function is `command`, from a shell that redirects."""
    program = f"""
import os, sys, time
from training import cli
def command():
{"".join(f"    {line}" + chr(10) for line in code.splitlines())}
sys.exit(cli.run_command(command, "cut", paths="read x", advice="Mend it."))
"""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, program],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | settings,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def run(error):
    def fail():
        raise error

    return cli.run_command(fail, "cut", paths="read x", advice="Mend it.", stopped="Stopped here.")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            UserError("Expected a.\nReceived: \x1b[2J\udce9."),
            1,
            "Expected a.\nReceived: \\x1b[2J\\udce9.",
        ),
        (
            OSError(28, "", "a\nb"),
            1,
            "Expected to read x. Received: No space left on device (a\\nb). Mend it.",
        ),
        (BrokenPipeError(32, ""), 1, "Expected to read x. Received: Broken pipe. Mend it."),
        (MemoryError(), 1, f"Memory ran out. {cli.SMALLER_BATCH}"),
        (KeyboardInterrupt(), 130, "Stopped here."),
        (KeyboardInterrupt("Stopped at 3."), 130, "Stopped at 3."),
    ],
)
def test_what_a_person_can_mend_is_a_sentence(error, code, sentence, capsys):
    assert run(error) == code
    assert capsys.readouterr().err.lstrip() == f"cut: {sentence}\n"


@pytest.mark.parametrize("error", [TypeError("a defect"), RecursionError(), UnicodeError()])
def test_a_defect_is_raised(error):
    with pytest.raises(type(error)):
        run(error)


def test_escapes_leave_text_of_all_scripts_alone():
    text = "Löwenzahn 蒲公英 \U0001f469\u200d\U0001f33e ورد"
    assert printable(text) == text
    assert printable("a\tb\u202ec\u2028") == r"a\tb\u202ec\u2028"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xe9"), ("utf-8:strict", "é")])
def test_any_name_can_be_printed(encoding, shown):
    done = command(r"print('\udce9é'); print('é', file=sys.stderr)", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (0, rf"\udce9{shown}" + "\n")
    assert done.stderr == f"{shown}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "redirect", ["| true; exit ${PIPESTATUS[0]}", "2>&1 | true; exit ${PIPESTATUS[0]}"]
)
def test_it_ends_without_a_word_when_its_reader_does(redirect, unbuffered):
    code = "time.sleep(0.1); print('x' * 100_000, flush=True); print('lost')"
    done = command(code, redirect=redirect, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_output_that_is_never_flushed_is_missed_too():
    done = command("print('x')", redirect=">/dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "cut: Expected to write to standard output. Received: No space left on device. "
        f"{cli.FULL_OUTPUT}\n"
    )
    done = command("raise SystemExit(3)", redirect=">/dev/full 2>&1")
    assert done.returncode == 3


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(redirect, tmp_path):
    code = f"""
with open({str(tmp_path / "file")!r}, "w") as file:
    os.write(1, b"C++ on 1;")
    os.write(2, b"C++ on 2;")
    print("a"); print("b", file=sys.stderr); sys.stdin.read(0)
    print([file.fileno() > 2, os.get_inheritable(1), os.get_inheritable(2)], file=file)
"""
    assert command(code, redirect=redirect).returncode == 0
    assert json.loads((tmp_path / "file").read_text().lower()) == [True] * 3


def test_ctrl_c_during_imports_is_one_line(tmp_path):
    (tmp_path / "heavy.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    code = "import signal; signal.signal(2, signal.default_int_handler); import training.cli, heavy"
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "\nStopped.\n")


def test_help_into_a_closed_pipe_leaves_no_trace():
    done = command("cli.make_parser('x').parse_args(['--help'])", redirect="| true")
    assert done.stderr == ""


def test_info_lines_of_cpp_are_hidden_and_no_others():
    done = command("""
from training.streams import without_info_lines
with without_info_lines():
    os.write(2, b"INFO: Created\\nWARNING: old\\nERROR: odd INFO: x\\n")
    raise TypeError("defect")
""")
    assert done.stderr.startswith("WARNING: old\nERROR: odd INFO: x\nTraceback")
    assert done.stderr.endswith("TypeError: defect\n")


def test_paths_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert cli.path("~/a") == Path("/home/x/a")
    assert cli.path("~nobody-at-all/a") == Path("~nobody-at-all/a")
    parser = cli.make_parser("x")
    cli.add_data_flags(parser)
    parser.add_argument("--own", type=Path)
    flags = parser.parse_args(["--data=~/d", "--exclude=~/e", "--own=~/o"])
    found = (flags.data, flags.exclude, flags.own)
    assert found == (Path("/home/x/d"), Path("/home/x/e"), Path("/home/x/o"))


def test_a_port_is_a_number_below_65536(capsys):
    parser = cli.make_parser("x")
    parser.add_argument("--port", type=cli.port)
    assert parser.parse_args(["--port", "65535"]).port == 65535
    for wrong in ("0", "65536", "-1", "http"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--port={wrong}"])
        assert wrong in capsys.readouterr().err
