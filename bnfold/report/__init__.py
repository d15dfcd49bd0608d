"""What bnfold tells: plans and measurements come in, one report for people (a line) and programs (JSON) goes out.

It runs nothing and judges nothing.
"""

from bnfold.report.completing import complete, file_info, plan_entries
from bnfold.report.records import (
    DeviceInfo,
    FileInfo,
    InputInfo,
    OutputMetrics,
    PlanEntry,
    Site,
    Verdict,
    VerifyConfig,
)
from bnfold.report.report import SCHEMA, Report

__all__ = [
    "SCHEMA",
    "DeviceInfo",
    "FileInfo",
    "InputInfo",
    "OutputMetrics",
    "PlanEntry",
    "Report",
    "Site",
    "Verdict",
    "VerifyConfig",
    "complete",
    "file_info",
    "plan_entries",
]
