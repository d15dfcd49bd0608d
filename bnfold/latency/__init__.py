"""How fast two models are: both come in, and their latencies, measured in turns as deployed, go out.

It must not know plans, and says nothing about whether the outputs match.
"""

from bnfold.latency.benchmarking import benchmark
from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.pair import Setting
from bnfold.latency.result import SCHEMA, Comparison, Timing

__all__ = ["SCHEMA", "Comparison", "Latency", "Ratio", "Setting", "Timing", "benchmark"]
