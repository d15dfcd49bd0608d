"""How fast two models are, measured in turns on the runtime and device that will serve them."""

from bnfold.latency.benchmarking import benchmark
from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.pair import Setting
from bnfold.latency.result import SCHEMA, Comparison, Timing

__all__ = ["SCHEMA", "Comparison", "Latency", "Ratio", "Setting", "Timing", "benchmark"]
