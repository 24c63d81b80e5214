"""Data sets by name: `load` one, `require` many to be complete, `captions` and `captioned_images` for reference."""

from common.datasets.check import require
from common.datasets.images import ImageSet
from common.datasets.layout import canonical
from common.datasets.loading import load, names_and_templates
from common.datasets.reference import captioned_images, captions
from common.protocols import MTIL_ORDER_1, MTIL_ORDER_2

__all__ = [
    "ImageSet", "MTIL_ORDER_1", "MTIL_ORDER_2", "canonical", "captioned_images", "captions", "load",
    "names_and_templates", "require",
]  # fmt: skip
