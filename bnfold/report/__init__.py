"""What bnfold tells: one report for people (a line) and for programs (JSON)."""

from bnfold.report.completing import complete, merge_entries, plan_entries
from bnfold.report.records import (
    ApartEntry,
    DeviceInfo,
    FileInfo,
    InputInfo,
    MergeEntry,
    OutputMetrics,
    PlanEntry,
    Site,
    Verdict,
    VerifyConfig,
)
from bnfold.report.report import SCHEMA, Report

__all__ = [
    "SCHEMA",
    "ApartEntry",
    "DeviceInfo",
    "FileInfo",
    "InputInfo",
    "MergeEntry",
    "OutputMetrics",
    "PlanEntry",
    "Report",
    "Site",
    "Verdict",
    "VerifyConfig",
    "complete",
    "merge_entries",
    "plan_entries",
]
