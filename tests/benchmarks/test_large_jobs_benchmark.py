"""benchmarks.large_jobs: a short run, and what it makes of its measurements."""

import re
import subprocess
import sys

import pytest

from benchmarks import large_jobs
from benchmarks.large_jobs import Cost, Speed, compare, find_images, row, watch


def test_each_way_has_a_row(drawn, capsys, monkeypatch):
    def label(images, flags):
        processes = 1 if {"--json", "--processes=1"} & set(flags) else 2
        return Cost(5 + len(images) * 0.2 / processes, 2 + len(images) * 0.2, 100_000_000)

    monkeypatch.setattr(large_jobs, "label", label)
    monkeypatch.setattr(large_jobs, "find_spec", lambda name: None)
    flags = ["--data", str(drawn), "--images", "24", "--rounds", "2"]
    assert large_jobs.main(flags) == 0
    measured = " s | 5.0 s | 2.0 s | 100 MB |"
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"| `--json` | 5.0 | 1.00 | 0.200{measured}",
        f"| `--out`, one process | 5.0 | 1.00 | 0.200{measured}",
        f"| `--out`, a process for each processor | 10.0 | 2.00 | 0.200{measured}",
    ]
    monkeypatch.setattr(large_jobs, "find_spec", lambda name: object())
    assert large_jobs.main([*flags, "--runtime", "openvino"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in rows] == [
        *("`--out`, one process", "`--out`, a process for each processor", "`--out --engine ray`")
    ]


@pytest.mark.parametrize("flags", [["--json"], ["--processes=2"]])
def test_a_run_is_measured(drawn, small_tflite, flags):
    cost = large_jobs.label(find_images(drawn, 20), [*flags, f"--model={small_tflite}"])
    assert cost.wall_s > 0.1  # a fast machine starts Python, and reads the model, in 0.4 s
    assert cost.cpu_s > 0.05
    assert 20e6 < cost.memory < 2e9


def test_a_run_that_fails_is_an_error(drawn, tmp_path, capsys):
    (tmp_path / "no.tflite").write_bytes(b"no model")
    flags = ["--data", str(drawn), "--model", str(tmp_path / "no.tflite"), "--images", "24"]
    assert large_jobs.main(flags) == 1
    error = capsys.readouterr().err
    assert re.search(r"to label all images\. Received: exit code 1 \(predict\.py: Expected", error)


def test_images_are_of_all_folders(drawn, capsys):
    found = find_images(drawn, 10)
    assert len(found) == 10
    assert len({path.parent for path in found}) == 5
    assert large_jobs.main(["--data", str(drawn), "--images", "1000"]) == 1
    assert "Expected 1000 images in" in capsys.readouterr().err


def test_the_start_is_told_from_the_images():
    few, many = Cost(12.0, 5.0, 70), Cost(30.0, 23.0, 80)
    assert compare(few, many, 10, 100) == Speed(0.2, 0.2, 10.0, 3.0, 80)


def test_no_cost_of_an_image_is_an_error():
    with pytest.raises(large_jobs.LargeJobsError, match=r"Received: 9\.0 and 12\.0 s\. Take more"):
        compare(Cost(12.0, 5.0, 70), Cost(9.0, 23.0, 80), 10, 100)


def test_ratios_are_of_images_per_second():
    cells = row("a", Speed(0.05, 0.1, 2.0, 3.0, 80_000_000), 0.2)
    assert cells == ["a", "20.0", "4.00", "0.100 s", "2.0 s", "3.0 s", "80 MB"]


def test_processes_below_count_too(monkeypatch):
    monkeypatch.setattr(large_jobs, "SAMPLE_S", 0.02)  # little is lost after the last look
    burn = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
    code = (
        "import subprocess, sys\n"
        f"children = [subprocess.Popen([sys.executable, '-c', {burn!r}]) for _ in range(2)]\n"
        "for child in children: child.wait()"
    )
    cost = watch(subprocess.Popen([sys.executable, "-c", code]))
    assert cost.cpu_s == pytest.approx(2.1, abs=0.6)
    assert 10e6 < cost.memory < 100e6
    assert cost.wall_s >= 1
