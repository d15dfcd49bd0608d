"""What bnfold tells: one report for people (a line) and for programs (JSON)."""

from bnfold.report.completing import complete, plan_entries
from bnfold.report.records import (
    DeviceInfo,
    FileInfo,
    InputInfo,
    OutputMetrics,
    PlanEntry,
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
    "Verdict",
    "VerifyConfig",
    "complete",
    "plan_entries",
]
