"""Folds every model of a folder on several processes, and starts where it was interrupted if it is run again.

    python samples/fold_many.py models/ folded/
    python samples/fold_many.py models/ folded/ --dask    # the same on a Dask cluster: pip install distributed

Whatever has the interface of concurrent.futures.Executor carries the work: a pool of processes, Dask, Ray, MPI.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

import bnfold


@contextmanager
def workers(dask: bool) -> Iterator[Executor]:
    if not dask:
        with ProcessPoolExecutor(2) as executor:
            yield executor
        return
    from distributed import Client, LocalCluster

    # a cluster somewhere else is Client("tcp://scheduler:8786"); its workers have to see the same files, or URLs
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client.get_executor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models")
    parser.add_argument("folded")
    parser.add_argument("--dask", action="store_true")
    arguments = parser.parse_args()
    with workers(arguments.dask) as executor:
        outcomes = bnfold.fold_files(
            arguments.models,
            arguments.folded,
            executor=executor,
            recursive=True,
            resume=True,
            device="cpu",
            threads=1,
            on_done=lambda outcome: print(f"{outcome.status}: {outcome.source}: {outcome.headline()}"),
        )
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} are folded")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
