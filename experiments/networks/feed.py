"""Training examples on their way to the devices.

Resident: the whole set is on every device as uint8 and a dispatch is told
where in the epoch's order to start and stop. Streamed: each dispatch brings
the images of its own steps. The steps see the same examples either way.
"""

import jax
import numpy as np

from robustlip import training
from robustlip.datasets import Split
from robustlip.training import Epoch

STREAMED_STEPS = 32  # whose images travel together


def fits(split: Split) -> bool:
  """Whether the images take at most half of what the device has."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return split.images.nbytes <= stats.get('bytes_limit', np.inf) / 2


def _shares(order: np.ndarray) -> np.ndarray:
  """[R, S, B] -> [D, R, S, B / D] for the devices of this process."""
  parts = np.stack(np.split(order, jax.device_count(), axis=-1))
  mine = jax.local_device_count()
  return parts[jax.process_index() * mine :][:mine]


class Resident:
  """The set is copied to the devices once."""

  def __init__(self, split: Split):
    self._images = training.replicate(split.images)
    self._labels = training.replicate(split.labels)

  def epoch(self, order: np.ndarray) -> None:
    """Starts an epoch that takes examples in `order`, int32 [R, S, B]."""
    self._epoch = Epoch(self._images, self._labels, _shares(order))

  def chunk(self, first: int, last: int) -> tuple[Epoch, int, int]:
    """What a dispatch of steps `first` to `last` is called with."""
    return self._epoch, first, last


class Streamed:
  """The set stays on the host, memory-mapped perhaps."""

  def __init__(self, split: Split):
    self._split = split

  def epoch(self, order: np.ndarray) -> None:
    """Starts an epoch that takes examples in `order`, int32 [R, S, B]."""
    self._order = _shares(order)

  def chunk(self, first: int, last: int) -> tuple[Epoch, int, int]:
    """The images of these steps and their places, in arrays of one size."""
    steps = np.arange(first, min(last, first + STREAMED_STEPS))
    padded = np.resize(steps, STREAMED_STEPS)
    chosen = self._order[:, :, padded]  # [D, R, steps, B / D]
    order = np.arange(chosen[0].size, dtype=np.int32).reshape(chosen[0].shape)
    flat = chosen.reshape(len(chosen), -1)
    epoch = Epoch(
      self._split.images[flat],
      self._split.labels[flat],
      np.stack([order] * len(chosen)),
    )
    return epoch, 0, len(steps)
