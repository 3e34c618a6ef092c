"""An image source: a fixed sequence of uint8 pictures with names, and a bounded memory of decoded ones."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class ImageSource:
    """Random access to pictures, the form in which grain reads them.

    Attributes:
        names: one name per picture, for reports; relative POSIX paths of files.
        load: index -> uint8 (H, W, 3); must be thread-safe and deterministic.
        fingerprint: changes whenever the pictures or their order change.
        cache_bytes: decoded pictures are kept while they fit all together; 0 = never.
    """

    names: Sequence[str]
    load: Callable[[int], np.ndarray]
    fingerprint: str
    cache_bytes: int = 0
    _kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _kept_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def chosen(self, limit: int) -> "ImageSource":
        """Returns the source of at most `limit` pictures, spread evenly over the names; 0 = all of them."""
        if not limit or limit >= len(self):
            return self
        # By the hash of the name: the first of a sorted list could all come from one folder.
        order = sorted(range(len(self)), key=lambda i: hashlib.sha256(str(self.names[i]).encode()).digest())
        kept = sorted(order[:limit])
        names = [self.names[i] for i in kept]
        return ImageSource(names, lambda i: self[kept[i]], f"{self.fingerprint}-{limit}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns picture `index` as uint8 (H, W, 3), which the caller must not change."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of a source of {len(self)}")
        if (kept := self._kept.get(index)) is not None:
            return kept
        image = self.load(index)
        # All or nothing where pictures are of one size: a part kept would make the pace of an epoch uneven.
        if image.nbytes * len(self) <= self.cache_bytes:
            with self._lock:
                # Pictures of several sizes: this one may be small and the others large.
                if index not in self._kept and self._kept_bytes + image.nbytes <= self.cache_bytes:
                    self._kept[index] = image
                    self._kept_bytes += image.nbytes
        return image
