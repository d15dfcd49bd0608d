"""Random models in numbers that no change has to wait for: each is folded, and keeps every promise of the tests.

`python tests/networks/hunt.py graphs|programs|modules FIRST LAST`
takes the seeds from FIRST to LAST - 1 (ONNX graphs: a
fifth of a second each; exported programs and modules: half a second), and prints what was wrong with which.
"""

import runpy
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    import conftest  # noqa: F401 - it finds tests/support


def graphs() -> Callable[[int], object]:
    """Graphs of all rows of the table, and sums of random branches, by definition and by the exact gate."""
    import random_rejoined
    from random_models import of_seed

    check = runpy.run_path(str(TESTS / "networks/test_random_models.py"))["assert_fold_is_right"]
    return lambda seed: check(random_rejoined.of_seed(seed) if seed % 2 else of_seed(seed))


def programs() -> Callable[[int], object]:
    """Programs as exported, and decomposed."""
    check = runpy.run_path(str(TESTS / "torch/program/test_random.py"))["fold_seed"]
    return lambda seed: check(seed, decomposed=seed % 2 == 1)


def modules() -> Callable[[int], object]:
    """Modules with branches, loops, shared parts and code of their own."""
    check: Callable[[int], object] = runpy.run_path(str(TESTS / "torch/module/test_random.py"))["check_seed"]
    return check


KINDS = {function.__name__: function for function in (graphs, programs, modules)}


def main(kind: str, first: int, last: int) -> None:
    """Folds the models of a range of seeds."""
    check = KINDS[kind]()
    wrong = []
    for seed in range(first, last):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(seed)
        except Exception:  # noqa: BLE001 - whatever it is, it is what is hunted
            wrong.append(seed)
            print(f"seed {seed}:")
            traceback.print_exc(file=sys.stdout)
        if (seed - first + 1) % 100 == 0:
            print(f"{seed - first + 1} {kind}, {len(wrong)} wrong", flush=True)
    print(f"{last - first} {kind} from seed {first}, {len(wrong)} wrong: {wrong}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
