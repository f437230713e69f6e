"""Paretoderm: find the smallest, fastest skin-lesion classifier that is accurate enough."""

from src import garbage, torchvision_operators

__version__ = "0.1.0"

torchvision_operators.install()
garbage.collect_less_often()
