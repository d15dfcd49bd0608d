"""Calls of model-local functions, replaced by what they call.

onnx's inliner forgets what an attribute is where a call does not give it: the default that its function declares. And
it replaces calls of functions that are named like an operator of the standard, for which every runtime takes the
operator. Both are seen to before it is asked, and functions that are written in another opset than the model, as torch
writes some, are read in that of the model where all their nodes mean the same in both.
"""

from collections.abc import Collection, Iterator

import onnx
import onnx.inliner
from onnx import defs

from bnfold.errors import UnsupportedModelError
from bnfold.onnx.proto.names import DEFAULT_DOMAINS, GraphLike, all_graphs, nested, opset_version
from bnfold.onnx.proto.versions import means_the_same

_Key = tuple[str, str, str]
_Functions = dict[_Key, onnx.FunctionProto]
_Defaults = dict[str, dict[bytes, onnx.AttributeProto]]

_OTHER_STANDARD_DOMAIN = "ai.onnx.ml"
_RUNTIME_DOMAIN = "com.microsoft"
_RUNTIME_MAPS = frozenset({"FusedConv", "MatMulNBits"})
"""Operators of onnxruntime that are read as what they are there."""


def inlined(
    proto: onnx.ModelProto, names: Collection[tuple[str, str]] = (), *, exclude: bool = True
) -> onnx.ModelProto:
    """A model without the calls of some functions; one that has none is given back itself.

    Args:
        proto: The model; it is not changed.
        names: Domain and name of functions.
        exclude: Whether all other functions are inlined; else those are.

    Raises:
        RuntimeError: They are written in different opsets.
        UnsupportedModelError: It is not clear what an attribute is that a call does not give.
    """
    if not proto.functions:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    called = [function for function in copy.functions if not is_operator(copy, function.domain, function.name)]
    if len(called) < len(copy.functions):
        kept = [onnx.FunctionProto.FromString(function.SerializeToString()) for function in called]
        del copy.functions[:]
        copy.functions.extend(kept)
    _spell_out_defaults(copy)
    for function in copy.functions:
        _read_in_opset_of(copy, function)
    return onnx.inliner.inline_selected_functions(copy, [*names], exclude=exclude)


def is_operator(model: onnx.ModelProto, domain: str, name: str) -> bool:
    """Whether runtimes have an operator of that name, which they take whatever function of that name a model has."""
    if domain == _RUNTIME_DOMAIN:
        return name in _RUNTIME_MAPS
    if domain in DEFAULT_DOMAINS:
        return bool(defs.has(name, opset_version(model.opset_import), ""))
    return domain == _OTHER_STANDARD_DOMAIN and bool(defs.has(name, domain))


def _read_in_opset_of(model: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    """Lets a function import what its model imports, in place, if its nodes mean the same in both."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for entry in function.opset_import:
        wanted = versions.get(entry.domain, entry.version)
        used = (node for graph in nested(function) for node in graph.node if node.domain == entry.domain)
        if all(means_the_same(node, entry.version, wanted) for node in used):
            entry.version = wanted


def _spell_out_defaults(model: onnx.ModelProto) -> None:
    """Gives each call the attributes that it leaves to its function, in place."""
    functions: _Functions = {(item.domain, item.name, item.overload): item for item in model.functions}
    taken = True
    while taken:
        taken = sum(_take_defaults_of_callees(function, functions) for function in model.functions) > 0
    unclear = {key: _unclear(function, functions) for key, function in functions.items()}
    for graph in all_graphs(model):
        for node, key in _calls(graph, functions):
            given = {attribute.name for attribute in node.attribute}
            missing = unclear[key] - given
            if missing:
                raise UnsupportedModelError(
                    f"a call of the function {key[1]!r} leaves out {', '.join(sorted(missing))}, which has different"
                    " defaults inside. Give the attribute where the function is called."
                )
            node.attribute.extend(item for item in functions[key].attribute_proto if item.name not in given)


def _calls(scope: GraphLike, functions: _Functions) -> Iterator[tuple[onnx.NodeProto, _Key]]:
    for node in scope.node:
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            yield node, key


def _defaults_inside(function: onnx.FunctionProto, functions: _Functions) -> _Defaults:
    """For each attribute without a default that a function hands on to calls: those that it has where it arrives."""
    found: _Defaults = {}
    for graph in nested(function):
        for node in graph.node:
            callee = functions.get((node.domain, node.op_type, node.overload))
            defaults = {item.name: item for item in callee.attribute_proto} if callee is not None else {}
            for given in node.attribute:
                if given.ref_attr_name in function.attribute:
                    default = onnx.AttributeProto()
                    if given.name in defaults:
                        default.CopyFrom(defaults[given.name])
                        default.name = given.ref_attr_name
                    found.setdefault(given.ref_attr_name, {})[default.SerializeToString(deterministic=True)] = default
    return found


def _take_defaults_of_callees(function: onnx.FunctionProto, functions: _Functions) -> bool:
    """Lets an attribute that is only handed on have the default that it has where it arrives; says if any does."""
    taken = False
    for name, defaults in _defaults_inside(function, functions).items():
        (default, *others) = defaults.values()
        if default.name and not others:
            function.attribute.remove(name)
            function.attribute_proto.append(default)
            taken = True
    return taken


def _unclear(function: onnx.FunctionProto, functions: _Functions) -> set[str]:
    return {name for name, defaults in _defaults_inside(function, functions).items() if len(defaults) > 1}
