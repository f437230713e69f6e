"""Runs whose process is gone: killed with no chance to say so, they would stay RUNNING for ever.

Each run names its process (host, process id, start of the process). The next run, or the user interface when it is
started, ends those that have none.
"""

import socket

import psutil

from src.tracking.store import Store

VANISHED = "the process vanished (killed?)"


def owner_tags() -> dict[str, str]:
    """Tags that name this process for good: process ids are used again, so the start belongs to it."""
    return {
        "host": socket.gethostname(),
        "pid": str(psutil.Process().pid),
        "process_start": f"{_seconds_after_boot(psutil.Process()):.2f}",
    }


def reap(store: Store) -> list[str]:
    """End the runs of this host that still count as running though their process is gone.

    They become FAILED, with the tags `failure` and `trial_state`. Runs of other hosts and programs are left alone.

    Args:
        store: The store to tidy, opened if it is not yet.

    Returns:
        The ids of the runs that were ended.
    """
    query = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    gone = [run for run in store.search(query) if not _is_alive(run.data.tags)]
    for run in gone:
        store.client.set_tag(run.info.run_id, "failure", VANISHED)
        store.client.set_tag(run.info.run_id, "trial_state", "fail")
        store.client.set_terminated(run.info.run_id, "FAILED")
    return [run.info.run_id for run in gone]


def close(store: Store, run_id: str, state: str, reason: str) -> None:
    """End a run whose process cannot do it any more, or overrule how it ended.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        state: Its `trial_state`: complete, pruned, over_limit or fail; fail makes it FAILED, the others FINISHED.
        reason: One line; the tag `failure` or `ended_early`. Empty for none.
    """
    status = "FAILED" if state == "fail" else "FINISHED"
    run = store.client.get_run(run_id)
    tag = "failure" if state == "fail" else "ended_early"
    tags = run.data.tags
    if reason and tags.get(tag) != reason:
        store.client.set_tag(run_id, tag, reason)
    if state != "fail" and "failure" in tags:
        store.client.delete_tag(run_id, "failure")
    if tags.get("trial_state") != state:
        store.client.set_tag(run_id, "trial_state", state)
    if run.info.status != status and not (state == "fail" and run.info.status == "KILLED"):
        store.client.set_terminated(run_id, status)


def _is_alive(tags: dict[str, str]) -> bool:
    if "pid" not in tags or "process_start" not in tags:
        return True  # not started by us: not ours to end
    try:
        process = psutil.Process(int(tags["pid"]))
        same = abs(_seconds_after_boot(process) - float(tags["process_start"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _seconds_after_boot(process: psutil.Process) -> float:
    """Start of a process, counted from the boot: a clock that is set while it runs does not move this."""
    return process.create_time() - psutil.boot_time()
