"""Paretoderm: find the smallest, fastest skin-lesion classifier that is accurate enough."""

import os

from src.core import environment

__version__ = "0.1.0"

# Threads that spin at OpenMP's barriers stand still where another program uses their core. Read by
# torch when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# From a PostgreSQL server with the C locale texts would come as bytes.
os.environ.setdefault("PGCLIENTENCODING", "utf8")
environment.install_import_hooks()
environment.collect_less_often()
environment.mask_logs()
