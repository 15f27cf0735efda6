"""What the commands of this folder have in common: flags, and one sentence an error."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from serving.errors import ModelError
from training.errors import CacheError, DataError

OUT = Path(".cache", "experiments")
SEED = 69420


def parser(description: str, name: str, epochs: int) -> argparse.ArgumentParser:
    """Return a parser of the flags that every command has; `epochs` is the default."""
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--exclude", type=Path, metavar="FILE", help="images to leave out, a class/file a line")
    add("--epochs", type=count, default=epochs, help="[%(default)s]")
    add("--seed", type=int, default=SEED, help="of split, order and weights [%(default)s]")
    add("--out", type=Path, default=OUT / name, help="where to write to [%(default)s/]")
    return made


def count(text: str) -> int:
    """Return `text` as a number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text}")
    return value


def run(job: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Do `job` and return the exit code; the errors of people and machines are one sentence."""
    name = job.__module__ if job.__module__ != "__main__" else f"experiments.{job.__name__}"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        job(options)
    except (DataError, ModelError, CacheError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"{name}: Expected to read {options.data} and to write to {options.out}. "
            f"Received: {error}. Free space or rights, then run it again: it goes on.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. The same command goes on; {options.out} has what is finished.")
        return 130
    return 0
