"""Paretoderm: find the smallest, fastest skin-lesion classifier that is accurate enough."""

from src.core import environment

__version__ = "0.1.0"

environment.install_import_hooks()
environment.collect_less_often()
environment.mask_logs()
