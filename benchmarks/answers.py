"""Compare whole answers with bare runs of the model, and an event of 16 images with 16 events.

    python -m benchmarks.answers models/x.int8.tflite --runtimes openvino

Each model, runtime and number of threads has a process of its own; what is compared takes turns
in it. The first table has pairs of a bare run and a whole answer, the second what the rest of the
answer consists of, the third events. Times are medians, ratios are medians of the pairs' or
rounds' ratios. CPU time is that of all threads and of the decoder's process; the most memory is
that of both processes.
"""

import argparse
import base64
import contextlib
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.decoder import draw, processes
from benchmarks.load import LoadError, image_server, read_images
from benchmarks.serving import enlarge
from serving import answers, events, fetch, log, resources
from serving import service as module
from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.handler import Handler
from serving.image import open_image
from serving.preprocess import preprocess
from serving.resources import MEGABYTES_PER_VCPU, MEMORY
from serving.runtimes import RUNTIMES
from serving.service import Service
from training import cli
from training.markdown import markdown_row, markdown_table

COUNT = 16  # images of an event
WARM = 5  # pairs that do not count
ANSWERS = ("bare, ms", "answer, ms", "ratio", "bare, CPU ms", "answer, CPU ms", "ratio")
EVENTS = (
    *(f"{COUNT} events, images a second", "one event, images a second", "times as fast"),
    *(f"{COUNT} events, CPU ms an image", "one event, CPU ms an image", "most memory MB"),
)
# What an answer takes beside the model: {name: (where it is looked up, by which name)}.
STEPS: dict[str, tuple[Any, str]] = {
    "parse the event": (events, "parse"),
    "fetch": (module, "fetch_all"),
    "memory for the decoder": (resources, "decoding_memory"),
    "wait for the decoder": (Decoder, "decode"),
    "scale": (module, "scale"),
    "the model": (Classifier, "predict"),
    "familiarity": (module, "known"),
    "scores": (answers, "named_scores"),
    "log": (log, "write_request"),
    "all": (Handler, "handle"),
}


class Setup(NamedTuple):
    """What a process serves.

    Attributes:
        model: a .tflite file.
        runtime: package that runs it.
        threads: as many as the processors that its memory buys.
    """

    model: Path
    runtime: str
    threads: int

    @property
    def cells(self) -> tuple[object, ...]:
        """The first cells of its rows."""
        return self.model.name, self.runtime, self.threads


class Cost(NamedTuple):
    """What a call took: seconds, and seconds of CPU time of this process."""

    seconds: float
    cpu: float


class Pairs(NamedTuple):
    """What bare runs and whole answers cost, by turns.

    Attributes:
        bare: of each run of the model.
        whole: of each answer.
        decoder: seconds of CPU time of the decoder's process for each.
        steps: {name: seconds of CPU time of this process for each}.
    """

    bare: list[Cost]
    whole: list[Cost]
    decoder: float
    steps: dict[str, float]


class Rounds(NamedTuple):
    """What `COUNT` events and one event of as many images cost, by turns, decoder included."""

    many: list[Cost]
    one: list[Cost]
    peak: int  # bytes


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(lambda: benchmark(options), "benchmarks.answers")


def benchmark(options: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        LoadError: there are no images.
    """
    installed = [name for name, path in RUNTIMES.items() if find_spec(path.split(".")[0])]
    setups = [
        Setup(model, runtime, threads)
        for model in options.models
        for runtime in options.runtimes or installed
        for threads in options.threads
    ]
    small = list(read_images(options.data).values())
    files = {f"/{place}.jpg": small[place % len(small)] for place in range(COUNT)}
    files["/large.jpg"] = enlarge(small[0])
    with image_server(files, slow=0) as address:
        urls = {
            "small": [f"{address}/{place}.jpg" for place in range(COUNT)],
            "12 MP": [f"{address}/large.jpg"] * COUNT,
        }
        if options.pairs:
            print_answers(setups, urls, small[0], options.pairs)
        if options.rounds:
            print_events(setups, urls, options.rounds)


def print_answers(
    setups: Sequence[Setup], urls: dict[str, list[str]], small: bytes, pairs: int
) -> None:
    """Print what an answer costs beside a bare run of the model, and where."""
    requests: dict[str, dict] = {"in the event": {"image": base64.b64encode(small).decode()}}
    requests |= {f"{kind}, by URL": {"url": found[0]} for kind, found in urls.items()}
    head = ("model", "runtime", "threads", f"image, {pairs} pairs", *ANSWERS)
    print(markdown_table(head, ()), flush=True)
    found = {}
    for setup in setups:
        for name, event in requests.items():
            with process() as pool:
                taken = pool.submit(compare, setup, event, pairs).result()
            print(markdown_row((*setup.cells, name, *answer_cells(taken))), flush=True)
            found[setup, name] = taken
    for setup in setups:
        print(f"\nCPU ms of an answer by {setup.runtime}, {setup.model.name}, {setup.threads}:\n")
        rows = [
            (step, *(f"{found[setup, name].steps.get(step, 0) * 1000:.2f}" for name in requests))
            for step in STEPS
        ]
        apart = (f"{found[setup, name].decoder * 1000:.2f}" for name in requests)
        print(markdown_table(("step", *requests), [*rows, ("the decoder's process", *apart)]))


def answer_cells(taken: Pairs) -> list[str]:
    """Return the cells of `ANSWERS`."""
    ratio = median(b.seconds / a.seconds for a, b in zip(taken.bare, taken.whole, strict=True))
    bare, whole = (median(each.cpu for each in costs) for costs in (taken.bare, taken.whole))
    times = [median(each.seconds for each in costs) for costs in (taken.bare, taken.whole)]
    shown = [f"{seconds * 1000:.1f}" for seconds in (*times, bare, whole + taken.decoder)]
    return [*shown[:2], f"{ratio:.2f}", *shown[2:], f"{(whole + taken.decoder) / bare:.2f}"]


def print_events(setups: Sequence[Setup], urls: dict[str, list[str]], rounds: int) -> None:
    """Print what one event costs beside as many events as it has images."""
    head = ("model", "runtime", "threads", f"images, {rounds} rounds", *EVENTS)
    print("\n" + markdown_table(head, ()), flush=True)
    for setup in setups:
        for kind, found in urls.items():
            with process() as pool:
                taken = pool.submit(take_turns, setup, found, rounds).result()
            print(markdown_row((*setup.cells, kind, *event_cells(taken))), flush=True)


def event_cells(taken: Rounds) -> list[str]:
    """Return the cells of `EVENTS`."""
    ratio = median(a.seconds / b.seconds for a, b in zip(taken.many, taken.one, strict=True))
    speeds = [COUNT / median(each.seconds for each in costs) for costs in taken[:2]]
    cpu = [median(each.cpu for each in costs) / COUNT * 1000 for costs in taken[:2]]
    shown = [f"{speed:.1f}" for speed in speeds] + [f"{ratio:.2f}"]
    return shown + [f"{each:.1f}" for each in cpu] + [f"{taken.peak / 1e6:.0f}"]


def process() -> ProcessPoolExecutor:
    """Return a process of its own for the functions below."""
    return ProcessPoolExecutor(1, get_context("spawn"))


@contextlib.contextmanager
def serving(setup: Setup) -> Generator[Handler]:
    """Load what lambda_function.py does, and write its log where nobody reads it."""
    os.environ |= {"FETCH_ALLOW": "127.0.0.1", MEMORY: str(setup.threads * MEGABYTES_PER_VCPU)}
    decoder = Decoder()
    classifier = Classifier(setup.model, setup.threads, setup.runtime)
    service = Service(classifier, setup.model.stem, decoder)
    fetch.prepare()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield Handler(service)
    decoder.close()


def compare(setup: Setup, event: dict, pairs: int) -> Pairs:
    """Return what a bare run costs, and the answer to `event`, in this process."""
    found = Pairs([], [], 0.0, {})
    steps: dict[str, list[float]] = defaultdict(list)
    with serving(setup) as serve:
        classifier, before = serve.service.classifier, 0.0
        size, bare = classifier.input_size, classifier.predict
        inputs = preprocess(open_image(draw(size)), size)
        for name, (owner, attribute) in STEPS.items():
            setattr(owner, attribute, noted(getattr(owner, attribute), steps[name]))
        for turn in range(-WARM, pairs):
            if turn == 0:
                before = decoder_cpu()
                for costs in (found.bare, found.whole, *steps.values()):
                    costs.clear()
            found.bare.append(take(lambda: bare(inputs)))
            found.whole.append(take(lambda: check(serve.handle(event))))
        decoder = (decoder_cpu() - before) / pairs
    each = {name: median(costs) for name, costs in steps.items() if costs}
    return found._replace(decoder=decoder, steps=each)


def take_turns(setup: Setup, urls: Sequence[str], rounds: int) -> Rounds:
    """Return what an event for each of `urls` costs, and one for all, in this process."""
    found = Rounds([], [], 0)

    def whole(costs: list[Cost], requests: Sequence[dict]) -> None:
        before = decoder_cpu()
        cost = take(lambda: [check(serve.handle(each)) for each in requests])
        costs.append(Cost(cost.seconds, cost.cpu + decoder_cpu() - before))

    one, many = [{"urls": list(urls)}], [{"url": url} for url in urls]
    with serving(setup) as serve:
        whole([], many[:1])
        whole([], one)
        for turn in range(rounds):
            whole(*((found.many, many) if turn % 2 else (found.one, one)))
            whole(*((found.one, one) if turn % 2 else (found.many, many)))
        peak = sum(map(peak_memory, (os.getpid(), *processes())))
    return found._replace(peak=peak)


def noted(function: Callable, costs: list[float]) -> Callable:
    """Return `function`, but what it costs is added to `costs`, in seconds of CPU time."""

    def call(*arguments: Any, **named: Any) -> Any:
        before = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            costs.append(time.process_time() - before)

    return call


def take(function: Callable[[], object]) -> Cost:
    """Return what `function` costs."""
    started, before = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - started, time.process_time() - before)


def check(answer: Any) -> None:
    """Raise `LoadError` if `answer` has an error."""
    for each in answer if isinstance(answer, list) else [answer]:
        if "error" in each:
            raise LoadError(f"Expected scores. Received: {each}")


def decoder_cpu() -> float:
    """Return the seconds of CPU time that the decoder's process has taken."""
    *_, worker = processes()
    return int(Path(f"/proc/{worker}/schedstat").read_text().split()[0]) / 1e9


def peak_memory(process: int) -> int:
    """Return the most memory that `process` has had, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m benchmarks.answers")
    add = parser.add_argument
    add("models", type=Path, nargs="+", help=".tflite files")
    add("--data", type=Path, default=Path("flowers"), help="small images [flowers/]")
    add("--pairs", type=int, default=200, help="of a bare run and an answer [%(default)s]")
    add("--rounds", type=int, default=5, help=f"of {COUNT} events and one [%(default)s]")
    add("--threads", type=int, nargs="+", default=[1, 2], help="[1 2]")
    add("--runtimes", nargs="+", choices=RUNTIMES, help="[those that are installed]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
