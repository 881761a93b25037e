"""Locks that belong to an object but are not copied or pickled with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[object, Any] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(owner: object, kind: Callable[[], Any] = threading.RLock) -> Any:
    """Return the owner's lock; the first call creates it with `kind`."""
    with _making:
        if owner not in _locks:
            _locks[owner] = kind()
        return _locks[owner]
