"""Paretoderm: find the smallest, fastest skin-lesion classifier that is accurate enough."""

from src.core import environment

__version__ = "0.1.0"

environment.install_torchvision_guard()
environment.install_torchmetrics_guard()
environment.collect_less_often()
