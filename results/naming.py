"""Names for figures, in which a method's name alone distinguishes one curve from another."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from results import labels
from results.compare import Data


def with_distinct_names(data: Data) -> Data:
    """The same data, with the backbone or the paper added to method names that several rows of a protocol share.

    A method on several backbones is called "ALTA, RN50", and one that several papers measured, other than on MTIL
    and X-TAIL, where they test the same, "Zero-shot CLIP (ALTA)".
    """
    shown = [item for item in data.comparisons if data.words.compares or item.mean is not None]
    backbones, papers = defaultdict(set), defaultdict(set)
    rows: list[Any] = [*data.records, *shown]
    for row in rows:
        backbones[row.protocol, row.method].add(row.backbone)
    for row in data.records:
        if not labels.is_multi_domain(row.protocol):
            papers[row.protocol, row.method, row.backbone].add(row.paper)

    def name(row: Any) -> str:
        several = len(backbones[row.protocol, row.method] - {""}) > 1 and row.backbone
        words = f"{row.method}, {row.backbone}" if several else row.method
        shared = len(papers[row.protocol, row.method, row.backbone]) > 1
        return f"{words} ({labels.paper(row.paper)})" if shared else words

    fields = ("records", "published", "comparisons", "provenance")
    new: dict[str, Any] = {field: [replace(row, method=name(row)) for row in getattr(data, field)] for field in fields}
    return replace(data, **new)
