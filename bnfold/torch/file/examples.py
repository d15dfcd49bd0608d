"""Example inputs for a module, from the words of the command line: shapes, value ranges, real data."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from bnfold.errors import UsageError, perhaps
from bnfold.input_spec import Array, InputSpec, only_input
from bnfold.system.memory import require_memory
from bnfold.torch.fx.tensors import to_torch

Range = tuple[float, float]
Call = tuple[tuple[object, ...], dict[str, object]]
DynamicAxes = Mapping[str, Mapping[int, str]]
"""For inputs by name, the names of their dynamic axes."""

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def make_example(
    module: torch.nn.Module,
    shapes: Sequence[tuple[str | None, InputSpec]] = (),
    data: Mapping[str, Array] | None = None,
    *,
    ranges: Mapping[str, Range] | None = None,
    dynamic: DynamicAxes | None = None,
    seed: int = 0,
) -> Call:
    """What to call a module with.

    Args:
        module: Its forward tells the names and the order of the inputs.
        shapes: Shapes of inputs that are made up; None for a name stands for the next input. Element types default to
            float32; integers are 0 or 1, or in their range, both ends included.
        data: Inputs by name.
        ranges: Lowest and highest value of inputs that are made up, by name.
        dynamic: Axes that vary; made-up inputs have at least 2 there, for torch.export takes 1 for a constant.
        seed: Seed of the values.

    Returns:
        Positional and named inputs.

    Raises:
        UsageError: A name is unknown, an input without default is missing, or an argument contradicts another.
    """
    data, ranges, dynamic = data or {}, ranges or {}, dynamic or {}
    signature = inspect.signature(module.forward)
    names = _Names(module, signature)
    data = only_input(data, names.required)
    specs, extra = names.assign(shapes, tuple(data))
    names.check("a value range", tuple(ranges), {*specs})
    names.check("a dynamic axis", tuple(dynamic), {*specs, *data})
    values: dict[str, object] = {name: to_torch(np.asarray(array)) for name, array in data.items()}
    for index, (name, spec) in enumerate(specs.items()):
        shape = _grown(name, spec.shape, dynamic.get(name, {}))
        values[name] = _made_up(name, shape, spec.dtype or "float32", ranges.get(name), seed + index)
    more = tuple(
        _made_up("*", spec.shape, spec.dtype or "float32", None, seed + len(specs) + index)
        for index, spec in enumerate(extra)
    )
    names.require(values)
    return names.call(values, more)


def dynamic_shapes(
    module: torch.nn.Module, call: Call, dynamic: DynamicAxes
) -> dict[str, dict[int, torch.export.Dim] | None]:
    """What torch.export is told about varying axes; axes of one name are one size.

    Args:
        module: The module.
        call: What `make_example` gave.
        dynamic: Names of axes.

    Raises:
        UsageError: An axis does not exist, or the module takes inputs that have no name.
    """
    positional, named = call
    parameters = inspect.signature(module.forward).parameters.values()
    places = [parameter.name for parameter in parameters if parameter.kind in _NAMED[:2]]
    if len(positional) > len(places):
        raise UsageError("dynamic axes need inputs with names, but forward takes some as *args")
    values = {**dict(zip(places, positional, strict=False)), **named}
    dims = {axis: torch.export.Dim(axis) for axes in dynamic.values() for axis in axes.values()}
    shapes: dict[str, dict[int, torch.export.Dim] | None] = dict.fromkeys(values)
    for name, axes in dynamic.items():
        value = values.get(name)
        rank = value.dim() if isinstance(value, torch.Tensor) else 0
        _check_axes(name, rank, axes)
        shapes[name] = {axis % rank: dims[dim] for axis, dim in axes.items()}
    return shapes


def name_axes(module: torch.nn.Module, dynamic: Mapping[str | None, Mapping[int, str]]) -> DynamicAxes:
    """Dynamic axes that came without a name are those of the first input that has none by name.

    Raises:
        UsageError: Every input has its axes already.
    """
    named = {name: axes for name, axes in dynamic.items() if name is not None}
    if None not in dynamic:
        return named
    names = _Names(module, inspect.signature(module.forward))
    free = [name for name in names.known if name not in named]
    if not free:
        raise UsageError("--dynamic without a name has no input left that it could be for")
    return {**named, free[0]: dynamic[None]}


def type_hint(module: torch.nn.Module, call: Call) -> str:
    """What to type where a module has other element types than what it is called with; "" if that fits."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if len(kinds) != 1:
        return ""
    (wanted,) = kinds
    positional, named = call
    names = [name for name, parameter in inspect.signature(module.forward).parameters.items()]
    for name, value in {**dict(zip(names, positional, strict=False)), **named}.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype is not wanted:
            shape, kind = ",".join(map(str, value.shape)), str(wanted).removeprefix("torch.")
            return f"The module is in {kind}: give --input {name}:{shape}:{kind}, or data of that type."
    return ""


class _Names:
    """The inputs of a forward."""

    def __init__(self, module: torch.nn.Module, signature: inspect.Signature) -> None:
        self._where = f"{type(module).__name__}.forward{signature}"
        self._parameters = signature.parameters
        kinds = [parameter.kind for parameter in self._parameters.values()]
        self.known = [name for name, parameter in self._parameters.items() if parameter.kind in _NAMED]
        self._takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
        self._takes_any_number = inspect.Parameter.VAR_POSITIONAL in kinds

    @property
    def required(self) -> list[str]:
        """The inputs without a default; all of them where each has one."""
        empty = inspect.Parameter.empty
        return [name for name in self.known if self._parameters[name].default is empty] or self.known

    def assign(
        self, shapes: Sequence[tuple[str | None, InputSpec]], given: tuple[str, ...]
    ) -> tuple[dict[str, InputSpec], list[InputSpec]]:
        """Gives each shape its input; what is left over goes to *args."""
        self.check("data", given, None)
        specs: dict[str, InputSpec] = {}
        for name, spec in shapes:
            if name is None:
                continue
            self.check("a shape", (name,), None)
            if name in specs or name in given:
                raise UsageError(f"input {name!r} has two shapes, or both data and a shape")
            specs[name] = spec
        free = [name for name in self.known if name not in specs and name not in given]
        extra = []
        for name, spec in shapes:
            if name is not None:
                continue
            if free:
                specs[free.pop(0)] = spec
            elif self._takes_any_number:
                extra.append(spec)
            else:
                raise UsageError(f"there are more shapes than inputs of {self._where}")
        return {name: specs[name] for name in sorted(specs, key=self._position)}, extra

    def check(self, what: str, names: tuple[str, ...], known: set[str] | None) -> None:
        """Requires names to be among the known ones, or, for None, to be inputs."""
        for name in names:
            is_input = name in self.known or self._takes_any_name
            if not is_input or (known is not None and name not in known):
                hint = "Give its shape with --input." if is_input else perhaps(name, self.known)
                problem = "which is not an input" if not is_input else "which has no made-up values"
                raise UsageError(f"{what} was given for {name!r}, {problem} of {self._where}", hint=hint)

    def require(self, values: Mapping[str, object]) -> None:
        """Requires every input without default to be there."""
        missing = [
            name
            for name in self.required
            if name not in values and self._parameters[name].default is inspect.Parameter.empty
        ]
        if missing:
            raise UsageError(
                f"no shape for {', '.join(missing)} of {self._where}",
                hint=f"Give --input {missing[0]}:1,3,224,224 or the like, or real data with --inputs.",
            )

    def call(self, values: Mapping[str, object], more: tuple[object, ...]) -> Call:
        """Inputs by position as far as there is no gap, the others by name."""
        positional: list[object] = []
        rest = dict(values)
        for name in self.known:
            if name not in rest or self._parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
                break
            positional.append(rest.pop(name))
        return (*positional, *more), rest

    def _position(self, name: str) -> int:
        return self.known.index(name) if name in self.known else len(self.known)


def _grown(name: str, shape: tuple[int, ...], axes: Mapping[int, str]) -> tuple[int, ...]:
    _check_axes(name, len(shape), axes)
    varying = {axis % len(shape) for axis in axes}
    return tuple(max(size, 2) if axis in varying else size for axis, size in enumerate(shape))


def _check_axes(name: str, rank: int, axes: Mapping[int, str]) -> None:
    for axis in axes:
        if not -rank <= axis < rank:
            raise UsageError(f"input {name!r} has {rank} dimensions, so axis {axis} cannot vary")


def _made_up(name: str, shape: tuple[int, ...], dtype: str, value_range: Range | None, seed: int) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    nbytes = math.prod(shape) * (torch.float64.itemsize + kind.itemsize)
    require_memory(nbytes, f"input {name!r} of shape {shape}", partial(UsageError, hint="Give smaller inputs."))
    rng = np.random.default_rng(seed)
    if kind.is_floating_point:
        values = rng.standard_normal(shape) if value_range is None else rng.uniform(*value_range, shape)
        return torch.from_numpy(np.asarray(values)).to(kind)
    low, high = value_range or (0, 1)
    if not (float(low).is_integer() and float(high).is_integer()):
        raise UsageError(f"the value range {low:g},{high:g} of input {name!r} does not fit {dtype}")
    limits = (0, 1) if kind is torch.bool else (torch.iinfo(kind).min, torch.iinfo(kind).max)
    if not limits[0] <= low <= high <= limits[1]:
        raise UsageError(f"the value range {low:g},{high:g} of input {name!r} does not fit {dtype}")
    return torch.from_numpy(np.asarray(rng.integers(int(low), int(high), shape, endpoint=True))).to(kind)
