"""Feeds training examples to the devices; copies trees to each of them.

Shapes: N examples, D devices, S steps to an epoch, B examples to a step on all
devices together.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from robustlip.datasets import Split
from robustlip.types import DEVICES

STEPS_PER_DISPATCH = 8  # after which the host sees the loss and may stop


class Epoch(NamedTuple):
  """Examples on the devices and the order in which steps take them."""

  images: chex.Array  # uint8 [D, N, H, W, C]
  labels: chex.Array  # int32 [D, N]
  order: chex.Array  # int32 [D, S, B / D], indices into the first two


def replicate(tree: Any) -> Any:
  """Copies to the local devices, [...] -> [D, ...], with the sharding of pmap.

  With another sharding of its arguments a program would be compiled twice.

  Raises:
    ValueError: if the tree has a PRNG key, which some optimizers keep.
  """
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(DEVICES)
  )

  def copies(x):
    if jax.dtypes.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key):
      raise ValueError(
        'a state with a PRNG key in it cannot be copied to the devices: take '
        'an optimizer that keeps none.'
      )
    every = np.broadcast_to(x, (len(devices), *np.shape(x)))
    return jax.device_put(every, sharding)

  return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
  """The copy of the first local device as NumPy arrays, [D, ...] -> [...]."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)[0]), tree)


def epoch_order(
  seed: int, epoch: int, *, num_examples: int, batch_size: int
) -> np.ndarray:
  """Shuffled examples of one epoch in full batches, int32 [S, B].

  The `num_examples % batch_size` examples left over differ every epoch.

  Raises:
    ValueError: if there are fewer examples than one batch takes.
  """
  steps = num_examples // batch_size
  if steps < 1:
    raise ValueError(
      f'a batch of {batch_size} needs at least as many training examples, '
      f'got {num_examples}.'
    )
  generator = np.random.default_rng([seed, epoch])
  order = generator.permutation(num_examples)[: steps * batch_size]
  return order.reshape(steps, batch_size).astype(np.int32)


def _device_shares(order: np.ndarray) -> np.ndarray:
  """[S, B] -> [D, S, B / D] for the devices of this process."""
  parts = np.stack(np.split(order, jax.device_count(), axis=-1))
  mine = jax.local_device_count()
  return parts[jax.process_index() * mine :][:mine]


def _device_memory() -> float:
  stats = jax.local_devices()[0].memory_stats() or {}
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return stats.get('bytes_limit', whole / jax.local_device_count())


class Feed:
  """Feeds training examples to the devices.

  Resident: the whole set is on every device as uint8, and a dispatch names its
  first and last step in the epoch's order. Streamed: each dispatch brings the
  images of its own steps. The steps see the same examples either way.

  Args:
    stream: None streams if the images would take more than half of a device's
      memory; devices on a CPU share the host's.
  """

  def __init__(self, split: Split, *, stream: bool | None = None):
    self._split = split
    if stream is None:
      stream = split.images.nbytes > _device_memory() / 2
    self._resident = None
    if not stream:
      self._resident = replicate((split.images, split.labels))

  def dispatches(self, order: np.ndarray, first: int = 0):
    """Yields (epoch, first, last), the arguments of each dispatch of an epoch.

    Args:
      order: int32 [S, B], see `epoch_order`.
      first: step to begin with.
    """
    order = _device_shares(order)
    for start in range(first, order.shape[1], STEPS_PER_DISPATCH):
      stop = min(start + STEPS_PER_DISPATCH, order.shape[1])
      if self._resident:
        yield Epoch(*self._resident, order), start, stop
      else:
        yield self._streamed(order[:, start:stop]), 0, stop - start

  def _streamed(self, order: np.ndarray) -> Epoch:
    """The images of these steps, filled up to `STEPS_PER_DISPATCH` steps."""
    devices, steps, share = order.shape
    steps = np.resize(np.arange(steps), STEPS_PER_DISPATCH)
    flat = order[:, steps].reshape(devices, -1)
    places = np.arange(flat.shape[1], dtype=np.int32)
    places = places.reshape(STEPS_PER_DISPATCH, share)
    images, labels = self._split.images[flat], self._split.labels[flat]
    return Epoch(images, labels, np.stack([places] * devices))
