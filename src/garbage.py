"""How often Python looks for garbage in cycles: seldom, because next to nothing of what these programs make is."""

import gc

YOUNG = 20_000  # objects; Python's own 700 (3.11) is for small programs


def collect_less_often() -> None:
    """Let the collector wait for `YOUNG` new objects; one that was switched off or waits for more is left alone.

    Importing PyTorch, Lightning and MLflow leaves 600,000 objects, which the collector would walk again and again: a
    fifth of the time until a command starts to work, and a fifth of short trainings. What is no part of a cycle is
    freed at once as ever, large tensors among it.
    """
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.set_threshold(YOUNG, *older)
