"""What bnfold tells: plans and measurements come in, one report for people (a line) and programs (JSON) goes out.

It runs nothing and judges nothing.
"""

from bnfold.report.completing import complete, file_info, plan_entries
from bnfold.report.records import (
    Costs,
    DeviceInfo,
    Exact,
    FileInfo,
    InputInfo,
    OutputMetrics,
    PlanEntry,
    Site,
    Unproved,
    Verdict,
    VerifyConfig,
)
from bnfold.report.report import SCHEMA, Report

__all__ = [
    "SCHEMA",
    "Costs",
    "DeviceInfo",
    "Exact",
    "FileInfo",
    "InputInfo",
    "OutputMetrics",
    "PlanEntry",
    "Report",
    "Site",
    "Unproved",
    "Verdict",
    "VerifyConfig",
    "complete",
    "file_info",
    "plan_entries",
]
