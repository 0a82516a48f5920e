"""What was found: frozen dataclasses that every room hands on and every report reads."""

from frostline.records.audit import AuditedPhase, AuditReport, Finding, Level, ModuleRole, Place, Role, TermFlow
from frostline.records.evaluation import Curve, EvaluationReport
from frostline.records.memory import AllocatorCounters, LivePoint, MemoryReport
from frostline.records.peak import PeakRow, PeakTable
from frostline.records.plan import Plan, Treatment
from frostline.records.proof import GradientDifference, ProofCheck, ProofClass, ProofReport
from frostline.records.run import Component, RunReport, StepRecord
from frostline.records.text import Record, from_json, to_json

__all__ = [
    "AllocatorCounters",
    "AuditReport",
    "AuditedPhase",
    "Component",
    "Curve",
    "EvaluationReport",
    "Finding",
    "GradientDifference",
    "Level",
    "LivePoint",
    "MemoryReport",
    "ModuleRole",
    "PeakRow",
    "PeakTable",
    "Place",
    "Plan",
    "ProofCheck",
    "ProofClass",
    "ProofReport",
    "Record",
    "Role",
    "RunReport",
    "StepRecord",
    "TermFlow",
    "Treatment",
    "from_json",
    "to_json",
]
