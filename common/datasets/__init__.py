"""Data sets by name: `load` one, `require` many to be complete, `captions` for reference sentences."""

from common.datasets.check import require
from common.datasets.images import ImageSet
from common.datasets.loading import canonical, load
from common.datasets.reference import captions
from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2

__all__ = ["ImageSet", "MTIL_ORDER_1", "MTIL_ORDER_2", "canonical", "captions", "load", "require"]
