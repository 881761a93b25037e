"""Locks that belong to an object without being part of it: copies and pickles of it leave them out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[object, Any] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(owner: object, kind: Callable[[], Any] = threading.RLock) -> Any:
    """Return the owner's lock, made by `kind` when it is first asked for."""
    with _making:
        if owner not in _locks:
            _locks[owner] = kind()
        return _locks[owner]
