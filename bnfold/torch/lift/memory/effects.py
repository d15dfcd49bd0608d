"""What single nodes do to memory: whose memory their results share, and whose they change."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import fx

from bnfold.torch.fx.higher_order import nested_graphs, operands
from bnfold.torch.fx.nodes import (
    all_reads,
    arguments,
    fake_tensor,
    fake_tensors,
    is_tuple_item,
    operator_name,
    overload,
)

_FRESH = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm linear matmul layer_norm"
    " group_norm instance_norm scaled_dot_product_attention avg_pool1d max_pool1d max_pool2d max_pool3d"
    " adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d softmax log_softmax prelu silu"
    " gelu selu relu6 cosine_similarity one_hot embedding rsub mish hardswish hardsigmoid"
    " upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
    " upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa cross_entropy_loss nll_loss lift_fresh_copy"
    " zeros ones full arange zeros_like ones_like full_like rand randn rand_like randn_like"
    " where argsort mean sum var std norm frobenius_norm concat concatenate stack hstack vstack".split()
)
"""Composite operators (whose schemas promise nothing) with results in memory of their own."""

_SHARED = frozenset("unsafe_split unsafe_split_with_sizes unsafe_chunk _unsafe_view lift".split())
"""Operators whose results share memory although their schemas do not say so."""

_ONLY_METADATA = frozenset({"detach_", "requires_grad_"})
_RUNNING_STATISTICS = ("running_mean", "running_var")


def shares_with(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments whose memory a result of a node may share."""
    if node.op != "call_function" or (fake_tensor(node) is None and fake_tensors(node) is None and "val" in node.meta):
        return
    target = overload(node)
    if is_tuple_item(node) or target is None or target.namespace not in ("aten", "prims"):
        yield from all_reads(node)
        return
    schema = target._schema
    if any(result.alias_info is not None for result in schema.returns):
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None:
                given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
                yield from _nodes_in(given)
        return
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    if operator_name(node) in _SHARED or (composite and operator_name(node) not in _FRESH):
        yield from all_reads(node)


def written(node: fx.Node, inside: Callable[[fx.Graph], Collection[fx.Node]]) -> Iterator[fx.Node]:
    """The arguments whose memory a node changes.

    Args:
        node: The node.
        inside: Says which placeholders of a nested graph change.
    """
    if node.op != "call_function":
        return
    target = overload(node)
    if target is None:
        yield from _written_by_graphs(node, inside)
        return
    if target._schema.name.removeprefix("aten::") in _ONLY_METADATA:
        return
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            yield from _nodes_in(given)
    given_names = arguments(node)
    trains = any(given_names.get(name) is True for name in ("training", "use_input_stats"))
    if trains and operator_name(node) != "dropout":
        for name in _RUNNING_STATISTICS:
            yield from _nodes_in(given_names.get(name))


def _written_by_graphs(node: fx.Node, inside: Callable[[fx.Graph], Collection[fx.Node]]) -> Iterator[fx.Node]:
    """The operands of a node that the nested graphs which it runs change."""
    module = node.graph.owning_module
    for name in nested_graphs(node):
        nested = None if module is None else getattr(module, name, None)
        if isinstance(nested, fx.GraphModule):
            changed = inside(nested.graph)
            placeholders = [inner for inner in nested.graph.nodes if inner.op == "placeholder"]
            for placeholder, operand in zip(placeholders, operands(node), strict=False):
                if placeholder in changed:
                    yield from _nodes_in(operand)


def _nodes_in(given: object) -> Iterator[fx.Node]:
    if isinstance(given, fx.Node):
        yield given
    elif isinstance(given, Sequence) and not isinstance(given, str):
        for item in given:
            yield from _nodes_in(item)
