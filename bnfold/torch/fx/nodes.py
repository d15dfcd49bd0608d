"""Reading the nodes of a torch.fx graph that torch.export made: operators, arguments by name, shapes."""

import operator
from collections.abc import Iterator, Mapping

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.experimental.symbolic_shapes import statically_known_true

from bnfold.torch.fx.tensors import numpy_dtype

Shape = tuple[int | str | None, ...]

_READS_METADATA = frozenset(
    "sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous _assert_tensor_metadata _shape_as_tensor"
    " zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty"
    " new_empty_strided is_same_size numel size stride dim".split()
)
"""Operators that read the shape or the type of their first argument, never its elements."""

_METADATA_ARGUMENTS = frozenset({("expand_as", 1), ("view_as", 1), ("reshape_as", 1), ("type_as", 1), ("to", 1)})
"""Other arguments of which only that is read: operator, position among the tensors."""


ASSERTION = torch.ops.aten._assert_tensor_metadata.default
"""What torch.export writes beside a cast."""

_BATCH_NORMS = frozenset(
    "batch_norm native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit"
    " _native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_no_update"
    " _batch_norm_with_update _batch_norm_with_update_functional".split()
)


def overload(node: fx.Node) -> OpOverload | None:
    """The operator that a node calls, if it is one of torch's dispatcher."""
    return node.target if isinstance(node.target, OpOverload) else None


def operator_name(node: fx.Node) -> str:
    """The short name of an aten operator, in-place or not, such as "relu"; "" for everything else."""
    target = overload(node)
    if target is None or target.namespace != "aten":
        return ""
    name = target._schema.name.removeprefix("aten::")
    return name if name.startswith("__") else name.rstrip("_")


def display_name(node: fx.Node) -> str:
    """A short name for what a node does."""
    target = node.target
    if isinstance(target, OpOverload):
        return operator_name(node) or target._schema.name
    if isinstance(target, HigherOrderOperator):
        return str(target._name)
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def arguments(node: fx.Node) -> dict[str, object]:
    """The arguments of a call of an operator by their names in its schema, defaults filled in."""
    target = overload(node)
    if target is None:
        return {}
    found: dict[str, object] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def is_batch_norm(node: fx.Node) -> bool:
    """Whether a node is a batch norm, in whatever mode; core aten also makes one of an instance norm."""
    if operator_name(node) not in _BATCH_NORMS:
        return False
    return "instance_norm" not in str(node.meta.get("original_aten", "")) and "InstanceNorm" not in module_class(node)


def module_class(node: fx.Node) -> str:
    """The name of the class of the innermost module that a node ran in, without its package; "" if unknown."""
    stack = node.meta.get("nn_module_stack")
    if not isinstance(stack, Mapping) or not stack:
        return ""
    entry = [*stack.values()][-1]
    kind = entry[1] if isinstance(entry, tuple) and len(entry) > 1 else ""
    return str(kind if isinstance(kind, str) else getattr(kind, "__qualname__", "")).rsplit(".", 1)[-1]


def is_tuple_item(node: fx.Node) -> bool:
    """Whether a node takes one item of the tuple or list that another node computes."""
    if node.target is not operator.getitem or len(node.args) != 2 or not isinstance(node.args[1], int):
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and not isinstance(source.meta.get("val"), torch.Tensor)


def fake_tensor(node: fx.Node) -> torch.Tensor | None:
    """What torch.export found out about the tensor that a node computes."""
    found = node.meta.get("val")
    return found if isinstance(found, torch.Tensor) else None


def fake_tensors(node: fx.Node) -> tuple[torch.Tensor, ...] | None:
    """The same for a node that computes several, None for any other."""
    found = node.meta.get("val")
    if not isinstance(found, tuple | list) or not all(isinstance(item, torch.Tensor) for item in found):
        return None
    return tuple(found)


def is_symbolic_scalar(node: fx.Node) -> bool:
    """Whether a node computes a number that torch.export reasons about, a size for instance."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def shape_of(tensor: torch.Tensor | None) -> Shape | None:
    """The shape: each dimension a size or, where it is symbolic, the expression."""
    if tensor is None:
        return None
    return tuple(_dimension(size) for size in tensor.shape)


def _dimension(size: "int | torch.SymInt") -> int | str:
    if isinstance(size, int):
        return size
    known = size.node.maybe_as_int()
    return str(size) if known is None else int(known)


def same_strides(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are laid out alike whatever their values are, on which sizes may depend."""
    strides = zip(one.stride(), other.stride(), strict=True) if one.dim() == other.dim() else [(0, 1)]
    return all(statically_known_true(ours == theirs) for ours, theirs in strides)


def dtype_of(tensor: torch.Tensor | None) -> str:
    """Numpy's name of the element type, "" if it has none or it is not known."""
    dtype = None if tensor is None else numpy_dtype(tensor.dtype)
    return "" if dtype is None else dtype.name


def all_reads(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that are arguments of a node, one entry for each use."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    yield from found


def metadata_reads(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments of which a node reads the shape or the type alone; an assertion about the type alone reads none."""
    if node.target is ASSERTION and not any(arguments(node)[name] for name in ("size", "stride")):
        return
    reads = [read for read in all_reads(node) if fake_tensor(read) is not None]
    elements = [*element_reads(node)]
    yield from (read for read in reads if read not in elements)


def element_reads(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments whose elements a node reads, one entry for each use; not sizes, types or other numbers."""
    name = operator_name(node)
    if name in _READS_METADATA:
        return
    position = 0
    for read in all_reads(node):
        if is_symbolic_scalar(read) or (read.op == "get_attr" and fake_tensor(read) is None):
            continue
        if (name, position) not in _METADATA_ARGUMENTS:
            yield read
        position += 1


def within(prefix: str, path: str) -> str:
    """The path of a module inside the part of a model that has the path `prefix`."""
    return f"{prefix}.{path}" if prefix and path else prefix or path
