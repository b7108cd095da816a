"""What a tier has done and met, in the same words for every tier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierCounts:
    """Since the tier was made. All but bytes are numbers of times.

    puts:          donors kept, or replaced.
    reads:         `read` calls that were answered.
    bytes_written: of blobs.
    bytes_read:    of blobs.
    evictions:     donors that went for want of room.
    quarantined:   donors that went because something of them was not what was written.
    orphans:       files or keys that belonged to no donor and were collected.
    rebuilt:       indexes that could not be read and were begun anew.
    reopened:      times the tier came back after what lies behind it had gone.
    errors:        calls that ended with `TierUnavailable`, and background work that failed.
    """

    puts: int = 0
    reads: int = 0
    bytes_written: int = 0
    bytes_read: int = 0
    evictions: int = 0
    quarantined: int = 0
    orphans: int = 0
    rebuilt: int = 0
    reopened: int = 0
    errors: int = 0
