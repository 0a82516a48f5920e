"""See one step, on real or fake tensors: what it allocates, what its values depend on, what the program does."""

from frostline.tracing.double import DoublePrecision, in_double
from frostline.tracing.event import Backward, Draw, Escape, Event, GradContext, Root, Source
from frostline.tracing.fake import FakeTensors, build_fake, fake_tensors
from frostline.tracing.flow import FlowTrace
from frostline.tracing.kept import kept_by, leaves_under, nodes_above
from frostline.tracing.leaves import Leaf, Leaves, graph_of
from frostline.tracing.log import Allocation, AllocationLog, Kind, Phase
from frostline.tracing.memtrace import MemTrace
from frostline.tracing.module_use import ModuleUse, RootCall
from frostline.tracing.notes import Change
from frostline.tracing.operators import has_no_derivative
from frostline.tracing.procedure import OptimizerUse, ProcedureTrace, Update
from frostline.tracing.values import fingerprint, gradient_state, has_values

__all__ = [
    "Allocation",
    "AllocationLog",
    "Backward",
    "Change",
    "DoublePrecision",
    "Draw",
    "Escape",
    "Event",
    "FakeTensors",
    "FlowTrace",
    "GradContext",
    "Kind",
    "Leaf",
    "Leaves",
    "MemTrace",
    "ModuleUse",
    "OptimizerUse",
    "Phase",
    "ProcedureTrace",
    "Root",
    "RootCall",
    "Source",
    "Update",
    "build_fake",
    "fake_tensors",
    "fingerprint",
    "gradient_state",
    "graph_of",
    "has_no_derivative",
    "has_values",
    "in_double",
    "kept_by",
    "leaves_under",
    "nodes_above",
]
