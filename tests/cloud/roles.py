"""Functions, their containers and roles."""

import contextlib
import json
from collections.abc import Iterator

from tools.container import docker
from tools.ministack import Cloud, MiniStack

POLICY = "label"


def find_function(cloud: Cloud, name: str) -> str:
    """Return the full name of a function of the template."""
    listed = cloud.client("lambda").list_functions()["Functions"]
    [found] = [each["FunctionName"] for each in listed if f"-{name}-" in each["FunctionName"]]
    return found


def containers_of(server: MiniStack, function: str) -> list[str]:
    """Return the ids of the containers of a function, by its full name."""
    variable, ids = f"AWS_LAMBDA_FUNCTION_NAME={function}", server.containers()
    return [each for each in ids if variable in docker("inspect", each).stdout]


@contextlib.contextmanager
def without(cloud: Cloud, function: str, action: str) -> Iterator[None]:
    """Take one `action` from the role of a `function` of the template while the context lasts."""
    functions, roles = cloud.client("lambda"), cloud.client("iam")
    name = find_function(cloud, function)
    role = functions.get_function_configuration(FunctionName=name)["Role"].rpartition("/")[2]
    policy = {"RoleName": role, "PolicyName": POLICY}
    document = roles.get_role_policy(**policy)["PolicyDocument"]
    less = [less_of(statement, action) for statement in document["Statement"]]
    assert less != document["Statement"], f"{role} has no {action}"
    changed = document | {"Statement": [each for each in less if each["Action"]]}
    try:
        roles.put_role_policy(**policy, PolicyDocument=json.dumps(changed))
        yield
    finally:
        roles.put_role_policy(**policy, PolicyDocument=json.dumps(document))


def less_of(statement: dict, action: str) -> dict:
    """Return `statement` without `action`."""
    actions = statement["Action"]
    actions = [actions] if isinstance(actions, str) else actions
    return statement | {"Action": [each for each in actions if each != action]}
