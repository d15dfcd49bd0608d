"""What bnfold tells: one report for people (a line) and for programs (JSON)."""

from bnfold.report.completing import complete, plan_entries
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
    "plan_entries",
]
