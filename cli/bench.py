"""`bnfold bench`: which of two models is faster, and by how much."""

from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import UsageError

from .shared import options
from .shared.compare import Verification
from .shared.models import CodeOptions
from .shared.modules import stdout_kept
from .shared.pairs import pair_of
from .shared.terminal import say, say_json, tell

if TYPE_CHECKING:
    from bnfold.latency import Comparison, Latency, Setting, Timing

_DEVICE_NAMES = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}
_OPTIMIZATIONS = {"all": "all optimisations on", "eager": "eager"}


def bench(
    original: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The original: an .onnx or .pt2 file, or package.module:factory; see `bnfold fold`."
        ),
    ],
    folded: Annotated[
        str,
        typer.Argument(metavar="B", help="What to compare with it, for the same runtime; as for `bnfold verify`."),
    ],
    batch: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="Batch sizes such as 1,8,32, a line of the table each, where the first dimension of the inputs is"
            " open, as that of code always is. They take the place of the first size in --input.",
        ),
    ] = "",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|tensorrt",
            help="Where to measure. auto takes the GPU if it works; the others never fall back.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within an operator; left out, the runtime chooses.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Time for each model and batch size, with warm-up; a slow model may take longer.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of made-up data.")] = 0,
    shapes: options.Input = None,
    inputs: options.Inputs = None,
    value_ranges: options.ValueRange = None,
    weights: options.Weights = None,
    kwargs: options.Kwargs = None,
    trust_pickle: options.TrustPickle = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document (bnfold.bench/1) and nothing else.")
    ] = False,
) -> None:
    """Measure how long two models take, in turns on the same inputs, warm and optimised as they will be deployed.

    About speed alone: whether the outputs match is for `bnfold verify` to say.
    """
    import bnfold

    given = Verification(device, 1, seed, shapes, inputs, value_ranges)
    with stdout_kept():
        pair = pair_of(original, folded, CodeOptions(weights, kwargs, (), trust_pickle), given)
        timing = bnfold.benchmark(
            pair.original,
            pair.folded,
            inputs=given.loaded_inputs() if pair.call is None else pair.call,
            device=device,
            batch=_batch_sizes(batch),
            threads=threads,
            seconds=seconds,
            seed=seed,
            shapes=(given.parsed_shapes() or None) if pair.call is None else None,
            value_ranges=(given.parsed_ranges() or None) if pair.call is None else None,
            progress=tell,
        )
    if as_json:
        say_json(timing.to_json())
    else:
        say(_lines(timing))


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except ValueError:
        message = f"--batch {text!r} is not a list of sizes"
        raise UsageError(message, hint="Write for example --batch 1,8,32.") from None


def _lines(timing: "Timing") -> list[str]:
    from .shared import show

    header = ("batch", "original", "IQR", "folded", "IQR", "original/folded", "interval", "rounds", "folded is")
    rows = [header, *map(_row, timing.comparisons)]
    confidence = min(comparison.ratio.confidence for comparison in timing.comparisons)
    setting = timing.setting
    lines = [_where(setting), *([f"not on a GPU: {setting.fell_back}"] if setting.fell_back else []), ""]
    lines += show.table(rows)
    return [
        *lines,
        "",
        f"median latencies with interquartile range; the ratio is the median of {_counts(timing)} rounds, with its"
        f" {confidence:.0%} interval and the range over the rounds",
        "only speed was compared: whether the outputs match is for `bnfold verify` to say",
    ]


def _where(setting: "Setting") -> str:
    details = [setting.provider] if setting.provider else []
    details += [setting.name, *(["TF32 on"] if setting.tf32 else [])]
    threads = "default threads" if setting.threads is None else _counted(setting.threads, "thread")
    device = _DEVICE_NAMES.get(setting.used, setting.used)
    return (
        f"{setting.runtime} {setting.version} on {device} ({', '.join(details)}),"
        f" {threads} on {_counted(setting.cpus, 'processor')}, {_OPTIMIZATIONS[setting.optimizations]}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _row(comparison: "Comparison") -> tuple[str, ...]:
    ratio = comparison.ratio
    return (
        "-" if comparison.batch is None else str(comparison.batch),
        *_latency(comparison.original),
        *_latency(comparison.folded),
        f"{ratio.median:.3f}",
        f"{ratio.low:.3f}-{ratio.high:.3f}",
        f"{min(ratio.rounds):.3f}-{max(ratio.rounds):.3f}",
        "as fast, up to noise" if ratio.within_noise else "faster" if ratio.median > 1 else "slower",
    )


def _latency(latency: "Latency") -> tuple[str, str]:
    return _duration(latency.median_s), _duration(latency.iqr_s)


def _duration(seconds: float) -> str:
    """Three significant digits, in the unit that fits."""
    value, unit = seconds * 1e6, "µs"
    for unit in ("µs", "ms", "s"):
        if value < 1000 or unit == "s":
            break
        value /= 1000
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def _counts(timing: "Timing") -> str:
    counts = sorted({len(comparison.ratio.rounds) for comparison in timing.comparisons})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
