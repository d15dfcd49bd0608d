"""Why something cannot be done: a stable code for programs, and a sentence for people."""

from dataclasses import dataclass
from enum import StrEnum


class StopCode(StrEnum):
    """Why an affine stays where it is; stable, for programs."""

    TRAINING_MODE = "training_mode"
    SPATIAL = "spatial"
    OPSET = "opset"
    PARAMETERS_NOT_CONSTANT = "parameters_not_constant"
    PARAMETERS_NOT_FINITE = "parameters_not_finite"
    OVERRIDABLE = "overridable"
    UNKNOWN_RANK = "unknown_rank"
    SKIPPED = "skipped"
    MODEL_INPUT = "model_input"
    MODEL_OUTPUT = "model_output"
    CAPTURED = "captured"
    OTHER_CONSUMERS = "other_consumers"
    UNUSED = "unused"
    NO_RULE = "no_rule"
    NONLINEAR = "nonlinear"
    NEGATIVE_SCALE = "negative_scale"
    VARIES = "varies"
    BROADCAST = "broadcast"
    SHIFT = "shift"
    CHANGES_DTYPE = "changes_dtype"
    WEIGHT_NOT_CONSTANT = "weight_not_constant"
    QUANTIZED_WEIGHT = "quantized_weight"
    QUANTIZED = "quantized"
    WEIGHT_DTYPE = "weight_dtype"
    CHANNEL_AXIS = "channel_axis"
    PADDED_SHIFT = "padded_shift"
    OVERFLOW = "overflow"
    MORE_WORK = "more_work"
    STRIDES = "strides"
    OUTPUT_SIZE = "output_size"
    SHAPE_IS_READ = "shape_is_read"
    PADDING = "padding"
    NEEDS_GRAPH = "needs_graph"
    SHARED_WEIGHT = "shared_weight"
    HOOKS = "hooks"
    MUTATED = "mutated"
    NOT_REACHED = "not_reached"
    NOT_CAPTURED = "not_captured"


@dataclass(frozen=True, slots=True)
class Stop:
    """A reason that something cannot be done.

    Attributes:
        code: The kind of reason.
        reason: A clause that names the nodes and values involved.
    """

    code: StopCode
    reason: str
