import os
import signal
import subprocess
import sys

from src.tracking.read import runs
from src.tracking.run import Run
from src.tracking.store import VANISHED, reap

HANG = """
import sys, time
from src.tracking.run import Run
from src.tracking.store import Store
with Run.start(Store(uri=sys.argv[1]), "victim"):
    print("started", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_found_and_living_ones_are_left(store, root):
    store.open()
    foreign = store.client.create_run(store.experiment_id, run_name="foreign")
    elsewhere = store.client.create_run(
        store.experiment_id, run_name="elsewhere", tags={"host": "x", "pid": "1"}
    )
    with Run.start(store, "living") as living:
        victim = subprocess.Popen(
            [sys.executable, "-c", HANG, store.uri], cwd=root, stdout=subprocess.PIPE, text=True
        )
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "started\n"
            assert reap(store) == []
        finally:
            victim.send_signal(signal.SIGKILL)
            os.waitid(
                os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT
            )  # dead, and still in the process table: a zombie
        ended = reap(store)
        victim.communicate()
        found = runs(store).set_index("name")
        assert ended == [found.run_id["victim"]]
        assert found.status["victim"] == "FAILED"
        assert found["tags.failure"]["victim"] == VANISHED
        assert found["tags.trial_state"]["victim"] == "fail"
        assert found.status["living"] == "RUNNING"
        assert reap(store) == []
    assert store.client.get_run(living.id).info.status == "FINISHED"
    for run in (foreign, elsewhere):
        assert store.client.get_run(run.info.run_id).info.status == "RUNNING"


def test_a_process_id_that_is_used_again_does_not_protect(store):
    with Run.start(store, "old") as run:
        run.tag(process_start="1.00")
        assert reap(store) == [run.id]
