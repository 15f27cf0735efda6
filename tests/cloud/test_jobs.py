"""Jobs: the state machine and predict.py label lists of images, whatever is killed meanwhile."""

import contextlib
import json
import os

import pytest

from tests.cloud.roles import containers_of, find_function, without
from tests.cloud.steps import (
    check_rows,
    delete,
    list_keys,
    list_results,
    rewrite_results,
    start_predict,
    were_rewritten,
    write_job,
)
from tools.cloud import list_command
from tools.container import docker
from tools.deploy import RUNTIME
from tools.ministack import PATIENCE, read_rows, start_map, wait_for_map, wait_until

TEXT = b"no image"
SHARD_SIZE = 3  # of 20 images, so seven shards, of which four are labelled at the same time
SHARDS = 7


def several(drawn, copies):
    """Return `copies` of each drawn image, by other names."""
    return {
        name.replace(".jpg", f"-{copy:03}.jpg"): content
        for name, content in drawn.items()
        for copy in range(copies)
    }


def label(cloud, job):
    """Label a job by the state machine and return how that ended."""
    return wait_for_map(cloud, start_map(cloud, job))


def invoke(cloud, job):
    """Return what the function answers to the only list of a job."""
    [listed] = list_keys(cloud, f"jobs/{job}/lists/")
    answer = cloud.client("lambda").invoke(
        FunctionName=find_function(cloud, "MapFunction"),
        Payload=json.dumps({"list": listed}).encode(),
    )
    return json.loads(answer["Payload"].read())


def count_items(cloud, execution):
    """Return of how many items an execution made runs of their own."""
    machine = cloud.client("stepfunctions")
    [run] = machine.list_map_runs(executionArn=execution)["mapRuns"]
    return machine.describe_map_run(mapRunArn=run["mapRunArn"])["itemCounts"]["total"]


def test_broken_images_are_rows_with_errors_and_a_job_is_done_once(cloud, drawn):
    files = several(drawn, 2)
    broken = sorted(files)[::20]
    keys = write_job(cloud, "broken", files | dict.fromkeys(broken, TEXT), 10)
    assert (len(keys), len(broken)) == (40, 2)
    execution = start_map(cloud, "broken")
    assert wait_for_map(cloud, execution) == "SUCCEEDED"
    assert count_items(cloud, execution) == 4
    rows = read_rows(cloud, "broken")
    wrong = [row for row in rows if row["error"]]
    assert [row["image"].rpartition("/")[2] for row in wrong] == broken
    assert {row["error"]["type"] for row in wrong} == {"UnsupportedTypeError"}
    check_rows(
        cloud,
        [row for row in rows if not row["error"]],
        [key for key in keys if key.rpartition("/")[2] not in broken],
    )
    before = rewrite_results(cloud, "broken")
    assert len(before) == 4
    assert label(cloud, "broken") == "SUCCEEDED"
    assert list_results(cloud, "broken") == before
    assert were_rewritten(cloud, before)


# Of 20 lists 5 % are tolerated.
@pytest.mark.parametrize(("lost", "status"), [(1, "SUCCEEDED"), (2, "FAILED"), (20, "FAILED")])
def test_lists_of_which_no_image_can_be_read(cloud, lost, status):
    files = {f"{number:02}.jpg": TEXT for number in range(40)}
    keys = write_job(cloud, f"lost-{lost}", files, 2)
    delete(cloud, keys[: 2 * lost])
    assert label(cloud, f"lost-{lost}") == status
    rows = read_rows(cloud, f"lost-{lost}")
    assert [row["image"] for row in rows] == [f"s3://{cloud.bucket}/{k}" for k in keys[2 * lost :]]


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject"])
def test_without_one_permission_a_job_fails(cloud, action):
    """So the role has what it needs, and this much of it nothing to spare."""
    job = f"permission-{action[3:]}"
    write_job(cloud, job, {"1.jpg": TEXT}, 1)
    with without(cloud, "MapFunction", action):
        failed = invoke(cloud, job)
        assert failed["errorType"] == "StoreError"
        assert "AccessDenied: " in failed["errorMessage"]
        assert f"not authorized to perform: {action}" in failed["errorMessage"]
        assert label(cloud, job) == "FAILED"
        assert list_results(cloud, job) == []
    assert invoke(cloud, job) == {"labelled": True, "images": 1, "errors": 1}


def some_results(cloud, job):
    """Wait until a job has some of its results."""
    wait_until(lambda: list_results(cloud, job), f"results of {job}")


def succeed(cloud, job):
    assert label(cloud, job) == "SUCCEEDED"


def finish(cloud, job, keys, run):
    """Let `run` finish a job of which some is done; fail unless it labels each image once."""
    before = rewrite_results(cloud, job)
    assert 0 < len(before) < SHARDS
    run()
    assert len(list_results(cloud, job)) == SHARDS
    assert were_rewritten(cloud, before)
    check_rows(cloud, read_rows(cloud, job), keys)


def test_a_job_whose_functions_are_killed_goes_on_where_it_was(cloud, drawn, server):
    keys = write_job(cloud, "killed", drawn, SHARD_SIZE)
    execution = start_map(cloud, "killed")
    some_results(cloud, "killed")
    docker("kill", *containers_of(server, find_function(cloud, "MapFunction")))
    assert wait_for_map(cloud, execution) == "FAILED"
    finish(cloud, "killed", keys, lambda: succeed(cloud, "killed"))


def test_a_job_that_is_stopped_is_finished_by_predict_py(cloud, drawn):
    """While functions may still be at work."""
    keys = write_job(cloud, "stopped", drawn, SHARD_SIZE)
    execution = start_map(cloud, "stopped")
    some_results(cloud, "stopped")
    cloud.client("stepfunctions").stop_execution(executionArn=execution)
    assert wait_for_map(cloud, execution) == "ABORTED"
    finish(cloud, "stopped", keys, lambda: predict(cloud, "stopped"))


def test_predict_py_that_is_killed_goes_on_where_it_was(cloud, drawn):
    keys = write_job(cloud, "predict", drawn, SHARD_SIZE)
    process = start_predict(cloud, *label_command(cloud, "predict"))
    some_results(cloud, "predict")
    process.kill()
    process.wait()
    wait_until(lambda: not is_group(process.pid), "its processes to end")
    finish(cloud, "predict", keys, lambda: predict(cloud, "predict"))


def is_group(number):
    """Return whether there are processes in a group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, 0)
        return True
    return False


def label_command(cloud, job):
    """Return the arguments of Python that label a job."""
    return [word for word in list_command(cloud, job, RUNTIME) if word != "--list-only"]


def predict(cloud, job):
    """Label a job with predict.py."""
    process = start_predict(cloud, *label_command(cloud, job))
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output


@pytest.mark.slow
def test_a_thousand_images(cloud, drawn):
    keys = write_job(cloud, "thousand", several(drawn, 50), 100)
    assert wait_for_map(cloud, start_map(cloud, "thousand"), 900) == "SUCCEEDED"
    assert len(list_results(cloud, "thousand")) == 10
    check_rows(cloud, read_rows(cloud, "thousand"), keys)
