"""Exact, near and paragraph duplicates across all units: sign, match by partition, decide.

A document is dropped where an earlier (unit, document) equals it, or shares a band with it and is
similar enough. There are no clusters: what was decided about old units holds when others are added.
"""

from data_prep.dedup.decisions import (
    Duplicate,
    RemovedParagraph,
    UnitDuplicates,
    duplicates,
)
from data_prep.dedup.job import Job
from data_prep.dedup.paragraphs import remove_paragraphs
from data_prep.dedup.signatures import SignatureWriter, is_signed
from data_prep.dedup.stages import Stage, stages
from data_prep.dedup_config import DedupConfig

__all__ = [
    "DedupConfig",
    "Duplicate",
    "Job",
    "RemovedParagraph",
    "SignatureWriter",
    "Stage",
    "UnitDuplicates",
    "duplicates",
    "is_signed",
    "remove_paragraphs",
    "stages",
]
