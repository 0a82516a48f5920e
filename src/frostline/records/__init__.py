"""What was found: frozen dataclasses that every room hands on and every report reads."""

from frostline.records.evaluation import Curve, EvaluationReport
from frostline.records.memory import AllocatorCounters, LivePoint, MemoryReport
from frostline.records.peak import PeakRow, PeakTable
from frostline.records.proof import GradientDifference, ProofClass, ProofReport
from frostline.records.run import Component, RunReport, StepRecord
from frostline.records.text import Record, from_json, to_json

__all__ = [
    "AllocatorCounters",
    "Component",
    "Curve",
    "EvaluationReport",
    "GradientDifference",
    "LivePoint",
    "MemoryReport",
    "PeakRow",
    "PeakTable",
    "ProofClass",
    "ProofReport",
    "Record",
    "RunReport",
    "StepRecord",
    "from_json",
    "to_json",
]
