"""Faults in the rules and merges of bnfold: changes to the source of one function each; see `exact_mutations`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault.

    Attributes:
        name: What is broken.
        function: Module and name of the function whose source changes.
        old: A part of it that stands there once.
        new: What stands there instead.
        inner: Where `function` makes rows of the table: the row and the function in it that changes, such as
            "AVERAGE.forward".
    """

    name: str
    function: str
    old: str
    new: str
    inner: str = ""


def _guard(name: str, function: str, old: str, inner: str = "") -> Mutation:
    """A guard that never stops."""
    return Mutation(name, function, old, old.replace(old.removeprefix("if ").removesuffix(":"), "False"), inner)


_ARITHMETIC, _WINDOWS, _REARRANGING = "bnfold.rules.arithmetic:", "bnfold.rules.windows:", "bnfold.rules.rearranging:"
_SHAPES, _JOINING, _WEIGHTS = "bnfold.rules.shapes:", "bnfold.algebra.joining:", "bnfold.algebra.linear_map:"
_VARIES = "any(array.shape[axis] != 1 for axis in along.axes)"

MUTATIONS = (
    # the table
    Mutation("add: sign of a shift lost backward", f"{_ARITHMETIC}_add_backward", "sign * _divisor", "_divisor"),
    Mutation(
        "add: shift to every input", f"{_ARITHMETIC}_add_backward", "if at == position else None", "if True else None"
    ),
    Mutation(
        "add: scale to the first input alone",
        f"{_ARITHMETIC}_add_backward",
        "[tuple(carried)]",
        "[(carried[0], *(None,) * (len(carried) - 1))]",
    ),
    Mutation("add: sign of a shift lost forward", f"{_ARITHMETIC}_add_forward", "[sign * array for", "[array for"),
    _guard(
        "add: other scales of the inputs",
        f"{_ARITHMETIC}_add_forward",
        "if len(scales) < len(given) or not all(_same(scales[0], array) for array in scales[1:]):",
    ),
    Mutation(
        "broadcast operands not looked at",
        f"{_SHAPES}narrowed",
        "return array if fits else None",
        "return array[tuple(slice(0, 1 if have not in (1, size) else None) for have, size in zip(array.shape, shape))]",
    ),
    _guard("mul: shift passes backward", f"{_ARITHMETIC}_mul_backward", "if part is Part.SHIFT:"),
    Mutation(
        "mul: scale to both inputs", f"{_ARITHMETIC}_mul_backward", "operand if at == position else None", "operand"
    ),
    _guard("mul: shift passes forward", f"{_ARITHMETIC}_mul_forward", "if part is Part.SHIFT:"),
    Mutation("mul: scales of both inputs added", f"{_ARITHMETIC}_mul_forward", "total * array", "total + array"),
    Mutation(
        "div: scale to the denominator", f"{_ARITHMETIC}_div_backward", "[(numerator, None)]", "[(None, numerator)]"
    ),
    Mutation("div: denominator not looked at", f"{_ARITHMETIC}_div_forward", "or arrays[1] is not None", ""),
    _guard("relu: shift passes", f"{_ARITHMETIC}_relu", "if part is Part.SHIFT:"),
    Mutation("relu, maximum: negative scale passes", f"{_ARITHMETIC}negative", "(array >= 0).all()", "True"),
    Mutation(
        "sum, zero padding: shift passes", f"{_WINDOWS}_guard", "adds or _along(node).counts", "_along(node).counts"
    ),
    Mutation("average: padding counted as elements", f"{_WINDOWS}_guard", "adds or _along(node).counts", "adds"),
    *(
        Mutation(
            f"{row.lower()}: varies along what is mixed, {way}", f"{_WINDOWS}_row", _VARIES, "False", f"{row}.{way}"
        )
        for row in ("AVERAGE", "MAXIMUM", "RESAMPLE", "ZERO_PAD")
        for way in ("backward", "forward")
    ),
    Mutation(
        "transpose: the inverse backward",
        f"{_REARRANGING}_transpose_backward",
        "np.argsort(_permutation(node))",
        "_permutation(node)",
    ),
    Mutation(
        "transpose: the inverse forward",
        f"{_REARRANGING}_transpose_forward",
        "array.transpose(_permutation(node))",
        "array.transpose(np.argsort(_permutation(node)))",
    ),
    Mutation(
        "reshape: columns first",
        f"{_SHAPES}reshaped",
        "np.ascontiguousarray(array).reshape(shape)",
        "np.ascontiguousarray(array).reshape(shape, order='F')",
    ),
    Mutation(
        "reshape: opaque axes not looked at",
        f"{_SHAPES}reshaped",
        "if any(array.shape[axis] != 1 for axis in opaque):",
        "array = array[tuple(slice(0, 1 if axis in opaque else None) for axis in range(array.ndim))]\n    if False:",
    ),
    Mutation(
        "concat: pieces in the wrong order backward",
        f"{_REARRANGING}_concat_backward",
        "tuple(np.split(array, np.cumsum(sizes)[:-1], axis))",
        "tuple(np.split(np.flip(array, axis), np.cumsum(sizes)[:-1], axis))",
    ),
    Mutation(
        "concat: pieces off by one backward",
        f"{_REARRANGING}_concat_backward",
        "np.split(array,",
        "np.split(np.roll(array, 1, axis),",
    ),
    Mutation(
        "concat: pieces in the wrong order forward",
        f"{_REARRANGING}_concat_forward",
        "np.concatenate(parts, axis)",
        "np.flip(np.concatenate(parts, axis), axis)",
    ),
    Mutation(
        "concat: other inputs carry it too",
        f"{_REARRANGING}_concat_forward",
        "np.full((1,) * rank, part.neutral) if array is None",
        "given[0].take([0], axis) if array is None",
    ),
    Mutation(
        "pick, gather: off by one backward",
        f"{_REARRANGING}_put_back",
        "return whole if (whole.take(indices, axis) == array).all() else None",
        "return np.roll(whole, 1, axis)",
    ),
    Mutation(
        "pick: other outputs not looked at",
        f"{_REARRANGING}_pick_backward",
        "any(value.uses or value.observer for at, value in enumerate(node.outputs) if at != position)",
        "False",
    ),
    Mutation(
        "pick: off by one forward",
        f"{_REARRANGING}_pick_forward",
        "array.take(indices, axis)",
        "array.take((indices + 1) % array.shape[axis], axis)",
    ),
    Mutation(
        "gather: off by one forward",
        f"{_REARRANGING}_gather_forward",
        "array.take(node.parameters.indices, axis)",
        "array.take([(index + 1) % array.shape[axis] for index in node.parameters.indices], axis)",
    ),
    Mutation(
        "pick, gather: an element taken twice",
        f"{_REARRANGING}_put_back",
        "if (whole.take(indices, axis) == array).all() else None",
        "if True else None",
    ),
    Mutation(
        "depth to space: the other mode",
        f"{_REARRANGING}_to_deep",
        "if blocks.depth_last else np.repeat",
        "if not blocks.depth_last else np.repeat",
    ),
    Mutation(
        "space to depth: blocks not looked at",
        f"{_REARRANGING}_to_wide",
        "if (split == split[0]).all() else None",
        "if True else None",
    ),
    # the search
    Mutation(
        "a value that is an output changes",
        "bnfold.planning.route:seen_by_others",
        "if seen is not None and seen.observer is not None:",
        "if False:",
    ),
    Mutation(
        "other readers not looked at",
        "bnfold.planning.route:seen_by_others",
        "if len(uses) == 1 and uses[reader] == 1:",
        "if True:",
    ),
    Mutation(
        "forward: outputs not looked at",
        "bnfold.planning.forward:Forward._reach",
        "if seen is not None and seen.observer is not None:",
        "if False:",
    ),
    Mutation(
        "a split joins scales by adding them",
        "bnfold.planning.backward:_joined",
        "ends[node] * array if part is Part.SCALE",
        "ends[node] + array if part is Part.SCALE",
    ),
    Mutation(
        "channels reversed at a map",
        "bnfold.planning.route:into_map",
        "return array.reshape(-1) if",
        "return array.reshape(-1)[::-1] if",
    ),
    Mutation(
        "composed in the wrong order",
        "bnfold.algebra.affine:Affine.then",
        "following.scale * self.shift + following.shift",
        "self.scale * following.shift + self.shift",
    ),
    Mutation(
        "lift: epsilon added twice",
        "bnfold.algebra.affine:Affine.from_batch_norm",
        "np.sqrt(variance.astype(np.float64) + epsilon)",
        "np.sqrt(variance.astype(np.float64) + 2 * epsilon)",
    ),
    # weights
    Mutation(
        "input shift: groups not looked at",
        f"{_WEIGHTS}_kernel_sums",
        "[group_of_row[block]]",
        "[0 * group_of_row[block]]",
    ),
    Mutation(
        "input shift: alpha forgotten",
        f"{_WEIGHTS}Folding.exact_bias",
        "(linear.alpha * _kernel_sums(linear, self.inner.shift))",
        "_kernel_sums(linear, self.inner.shift)",
    ),
    Mutation("bias not scaled", f"{_WEIGHTS}Folding.exact_bias", "exact * self.outer.scale.reshape(vector)", "exact"),
    Mutation("beta forgotten", f"{_WEIGHTS}Folding.exact_bias", "linear.beta * linear.bias", "linear.bias"),
    Mutation(
        "groups of an input scale repeated wrongly",
        f"{_WEIGHTS}Folding._scales",
        "np.repeat(columns,",
        "np.repeat(columns[::-1],",
    ),
    # merges
    Mutation(
        "merge: off by one tap",
        f"{_JOINING}_add",
        "places.append(slice(start,",
        "start = (start + 1) % (axis.taps - (part.taps - 1) * step)\n        places.append(slice(start,",
    ),
    Mutation("merge: sign of a branch lost", f"{_JOINING}_add", "target += factor * weight", "target += weight"),
    Mutation(
        "merge: sign of a bias lost",
        f"{_JOINING}total",
        "[factor * vector for vector, factor in found",
        "[vector for vector, factor in found",
    ),
    Mutation(
        "merge: groups in the wrong place",
        f"{_JOINING}_blocks",
        "(begin - block)[:, None] + np.arange(inputs)",
        "((begin - block)[::-1])[:, None] + np.arange(inputs)",
    ),
    _guard("merge: other sizes", f"{_JOINING}_common", "if len({part.surplus for part in parts}) > 1:"),
    _guard("chain: a padded bias", f"{_JOINING}chain", "if offset is not None and offset.any():"),
    Mutation(
        "chain: padding of the first forgotten",
        f"{_JOINING}chain",
        "first=before.first + after.first",
        "first=after.first",
    ),
    Mutation("chain: the first bias forgotten", f"{_JOINING}chain", "if inner is None:", "if True:"),
    Mutation(
        "chain: channels between reversed",
        f"{_JOINING}_product",
        'np.einsum("gomk,gmil->goikl", after,',
        'np.einsum("gomk,gmil->goikl", after[:, :, ::-1],',
    ),
    Mutation("merge: the pool does not divide", "bnfold.algebra.kernels:of_pool", "1.0 / taps", "1.0"),
    Mutation(
        "merge: the identity twice",
        "bnfold.algebra.kernels:of_affine",
        "Affine(np.ones(1), np.zeros(1))",
        "Affine(2 * np.ones(1), np.zeros(1))",
    ),
    Mutation(
        "merge: affines added without the identity",
        "bnfold.planning.merging.search:_affine",
        "Affine(np.ones(()), np.zeros(()))",
        "Affine(np.zeros(()), np.zeros(()))",
    ),
    Mutation(
        "merge: sign of the sum lost",
        "bnfold.planning.merging.sums:Sum.without",
        "factor /= _factors(node)[at]",
        "factor /= 1",
    ),
    # lifting and applying
    Mutation(
        "lift: the border of a padded map forgotten",
        "bnfold.onnx.lift.nodes:_partial_kernel",
        "return PADS_WITH_ZEROS if any(pads) or pads_by_name else",
        "return",
    ),
    Mutation(
        "lift: Gemm transposed",
        "bnfold.onnx.lift.nodes:_gemm",
        'bool(int_attribute(node, "transB", 0))',
        'not int_attribute(node, "transB", 0)',
    ),
    Mutation(
        "lift: SAME_LOWER as SAME_UPPER",
        "bnfold.onnx.lift.nodes:lift_window",
        'if auto_pad == "SAME_UPPER" else more + less',
        "if True else more + less",
    ),
    Mutation(
        "lift: Sub as Add",
        "bnfold.onnx.lift.affines:lift_affine",
        "return Affine(one, -array)",
        "return Affine(one, array)",
    ),
    Mutation(
        "lift: padded pool counts nothing",
        "bnfold.onnx.lift.moves.rows:_average_pool",
        'int_attribute(view.node, "count_include_pad", 0)',
        "False",
    ),
    Mutation(
        "lift: a slice off by one",
        "bnfold.onnx.lift.moves.rows:_cut",
        "min(max(end, low), size), step)",
        "min(max(end, low), size), step) - 1",
    ),
    Mutation(
        "apply: names of changed values kept",
        "bnfold.planning.renaming:Renaming._move",
        "self._names[self._root(value)] = None",
        "pass",
    ),
    Mutation(
        "apply: the window of a merged map forgotten",
        "bnfold.onnx.edit.apply:_set_form",
        "window.before + tuple(max(0, after) for after in window.after)",
        "(0,) * 2 * len(window.before)",
    ),
    Mutation("leftover: shift forgotten", "bnfold.onnx.edit.leftover:_depthwise_conv", "shift.any()", "False"),
)
