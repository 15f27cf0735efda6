"""Turns a missing package into a sentence: which environment to activate.

Imported before anything that is not in the standard library, and written for old Pythons, too.
"""

import os
import shlex
import sys
import types

WANTED = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def explain_missing_packages() -> None:
    """Make failed imports of packages end in a sentence; refuse a Python that is too old."""
    if sys.version_info < WANTED:
        sys.exit(explanation(f"Python {sys.version_info[0]}.{sys.version_info[1]}"))
    default = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        if isinstance(error, ModuleNotFoundError) and is_package(error.name or ""):
            print(explanation(f"no package {(error.name or '').split('.')[0]}"), file=sys.stderr)
        else:
            default(kind, error, trace)

    sys.excepthook = hook


def is_package(module: str) -> bool:
    """Return whether `module` belongs to a package that has to be installed."""
    name = module.split(".")[0]
    ours = (os.path.join(ROOT, name), os.path.join(ROOT, name + ".py"))
    return bool(name) and name not in sys.stdlib_module_names and not any(map(os.path.exists, ours))


def explanation(received: str) -> str:
    """Return what to do where Python has `received` instead of our packages."""
    python = os.path.join(ROOT, ".venv", "bin", "python")
    arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
    if os.path.exists(python):
        folder = os.path.relpath(os.path.join(ROOT, ".venv"))
        command = [os.path.relpath(python), *arguments]
        advice = f"Activate their environment: source {shlex.quote(folder)}/bin/activate. "
        advice += f"Or run: {' '.join(map(shlex.quote, command))}"
    else:
        advice = "Make their environment and activate it: make setup && source .venv/bin/activate"
    return (
        f"Expected the packages of Pipfile.lock. Received: {received} in {sys.executable}. {advice}"
    )
