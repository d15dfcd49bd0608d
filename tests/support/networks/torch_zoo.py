"""The zoo as PyTorch modules: what bnfold.fold makes of each network, and what torch.fx's fuse makes of it.

`python tests/support/networks/torch_zoo.py` prints, for each network, how many batch norm modules it has, how many of
them each of the two leaves, and how far the folded network is from the original in float64. torch.fx cannot trace most
of the networks as a whole; it gets the largest parts that it can.
"""

import copy
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    import conftest  # noqa: F401 - it finds tests/support

import torch
from torch import Tensor, nn
from zoo import ZOO, ZooModel, is_batch_norm, is_frozen_batch_norm

import bnfold


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of one network.

    Attributes:
        modules: How many batch norm modules it has.
        inputs: What it is called with.
        result: What bnfold.fold gave.
        left: How many batch norm modules the folded network has.
        left_by_fx: How many torch.fx's fuse leaves; None if the network then fails or computes something else.
        error: How far outputs are from the original's in float64, relative to the largest element of each.
    """

    modules: int
    inputs: tuple[Tensor, ...]
    result: bnfold.FoldResult[nn.Module]
    left: int
    left_by_fx: int | None
    error: float


def count(model: ZooModel) -> Counted:
    """Folds a network in float64."""
    module, inputs = model.build()
    module, inputs = module.double(), tuple(wide(x) for x in inputs)
    result = bnfold.fold(module, inputs)
    error = distance(outputs(result.model, inputs), outputs(module, inputs))
    return Counted(batch_norms(module), inputs, result, batch_norms(result.model), left_by_fx(module, inputs), error)


def batch_norms(module: nn.Module) -> int:
    return len([child for child in module.modules() if is_batch_norm(child) or is_frozen_batch_norm(child)])


def left_by_fx(module: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """How many batch norms torch.fx's fuse leaves of a network, if what it makes of it computes the same.

    It does not know frozen ones; tracing only writes them out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = fuse_parts(copy.deepcopy(module))
        try:
            right = distance(outputs(fused, inputs), outputs(module, inputs)) < 1e-6
        except Exception:  # noqa: BLE001 - what torch.fx takes for constant may fail in any way
            return None
    frozen = [child for child in module.modules() if is_frozen_batch_norm(child)]
    left = [child for child in fused.modules() if is_batch_norm(child)]
    return len(left) + len(frozen) if right else None


def fuse_parts(module: nn.Module) -> nn.Module:
    """Fuses a module, or, where torch.fx cannot trace it, what is inside of it."""
    from torch.fx.experimental.optimization import fuse  # importing it warns

    try:
        return fuse(module)
    except Exception:  # noqa: BLE001 - tracing raises whatever the code of a network makes of proxies
        for name, child in module.named_children():
            if any(True for _ in child.children()):
                setattr(module, name, fuse_parts(child))
        return module


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return list(module(*inputs))


def wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def distance(ours: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference, relative to the largest element of each tensor."""
    assert [y.shape for y in ours] == [y.shape for y in reference]
    gaps = [(a - b).abs().max() / b.abs().max().clamp(min=1e-300) for a, b in zip(ours, reference, strict=True)]
    return max(map(float, gaps))


def main() -> None:
    codes: Counter[str] = Counter()
    total: Counter[str] = Counter()
    print("| network | batch norms | left by torch.fx | left by bnfold | error |\n|---|---|---|---|---|")
    for model in ZOO:
        found = count(model)
        fx = "wrong" if found.left_by_fx is None else str(found.left_by_fx)
        print(f"| {model.name} | {found.modules} | {fx} | {found.left} | {found.error:.0e} |", flush=True)
        codes.update(left.code for left in found.result.plan.left)
        by_fx = found.modules if found.left_by_fx is None else found.left_by_fx
        total.update(modules=found.modules, fx=by_fx, bnfold=found.left)
    print(f"| all | {total['modules']} | {total['fx']} | {total['bnfold']} | |")
    print("\nLeft by bnfold, by reason:", ", ".join(f"{code} {count}" for code, count in codes.most_common()))


if __name__ == "__main__":
    main()
