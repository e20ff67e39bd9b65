"""JSON merge patch (RFC 7396): how a workflow's state changes."""

from __future__ import annotations

from typing import Any


def merge_patch(state: Any, patch: Any) -> Any:
    """Return the state after the patch; neither argument is changed. None in a patch removes its key."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(state) if isinstance(state, dict) else {}
    for key, change in patch.items():
        if change is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), change)
    return merged
