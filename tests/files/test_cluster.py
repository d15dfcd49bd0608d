"""Many files on a cluster of processes, of which one is killed in the middle: each file is done once, and none half."""

import os
import signal

import onnx
import pytest
from small_networks import original, random_layers

import bnfold

distributed = pytest.importorskip("distributed", reason="distributed comes with the extra test")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # a cluster has many, of its own


def test_a_killed_worker_leaves_nothing_undone_and_nothing_half(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    count = 12
    for seed in range(count):
        onnx.save(original(random_layers(4, channels=32, seed=seed)), f"in/{seed:02}.onnx")
    options = {"recursive": True, "device": "cpu", "samples": 1, "threads": 1}
    bnfold.fold_files("in", "alone", verify=False, **options)

    seen, victims = [], []

    def kill_one(outcome):
        seen.append(outcome.name)
        if not victims:
            busy = [address for address, tasks in client.processing().items() if tasks]
            numbers = client.run(os.getpid, workers=busy[:1])
            victims.extend(numbers.values())
            os.kill(victims[0], signal.SIGKILL)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        outcomes = bnfold.fold_files("in", "out", executor=client.get_executor(), on_done=kill_one, **options)
    assert victims
    assert sorted(seen) == [outcome.name for outcome in outcomes] == [f"{seed:02}.onnx" for seed in range(count)]
    assert {(outcome.status.value, outcome.headline()) for outcome in outcomes} == {
        ("folded", "pass; 4 BatchNorms, 0 left")
    }
    assert sorted(os.listdir("out")) == sorted(
        f"{outcome.name}{end}" for outcome in outcomes for end in ("", ".bnfold.json")
    )
    for outcome in outcomes:
        assert (tmp_path / "out" / outcome.name).read_bytes() == (tmp_path / "alone" / outcome.name).read_bytes()
    assert {outcome.status.value for outcome in bnfold.fold_files("in", "out", resume=True, **options)} == {"kept"}
