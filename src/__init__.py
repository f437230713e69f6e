"""Paretoderm: find the smallest, fastest skin-lesion classifier that is accurate enough."""

import os
import sys

from src.core import environment

__version__ = "0.1.0"

# Threads that spin at OpenMP's barriers stand still where another program uses their core. Read by
# torch when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# From a PostgreSQL server with the C locale texts would come as bytes.
os.environ.setdefault("PGCLIENTENCODING", "utf8")
# Progress bars are one line that changes on a terminal, and a line now and then in a file, to which
# the output of a study's trials goes.
if "PARETODERM_PRELOAD" in os.environ or not (sys.stderr and sys.stderr.isatty()):
    os.environ.setdefault("TQDM_MININTERVAL", "30")
    os.environ.setdefault("TQDM_MAXINTERVAL", "60")
environment.install_import_hooks()
environment.collect_less_often()
environment.mask_logs()
