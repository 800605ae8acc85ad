"""Checkpoints through Orbax: written in the background, restored exactly.

A store keeps the newest few trees of NumPy arrays in one folder. A checkpoint
that cannot be read is moved aside, so that the one before it is the newest.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging


class Store:
  """Numbered checkpoints in `folder`, the newest `keep` of them."""

  def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
    self.folder = pathlib.Path(folder).absolute()
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=True,
      # Written by a thread that a process which ends early outruns.
      save_root_metadata=False,
    )
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options)

  def save(self, number: int, tree: Any) -> None:
    """Starts to write `tree`, copied to the host first, as `number`."""
    tree = jax.tree.map(np.asarray, tree)
    self._manager.save(number, args=ocp.args.StandardSave(tree), force=True)

  def numbers(self) -> list[int]:
    """What there is, oldest first."""
    return sorted(self._manager.all_steps())

  def restore(self, number: int, like: Any = None) -> Any | None:
    """The tree saved as `number`, or None if it cannot be read.

    Args:
      like: a tree of arrays with the structure, shapes and dtypes to restore;
        None gives what was saved as nested dicts.
    """
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    try:
      tree = self._manager.restore(number, args=ocp.args.StandardRestore(like))
    except Exception as error:  # Orbax raises whatever its readers raise
      self._set_aside(number, error)
      return None
    return jax.tree.map(np.asarray, tree)

  def _set_aside(self, number: int, error: Exception) -> None:
    damaged = self.folder / f'damaged-{number}'
    self._manager.close()
    os.replace(self.folder / str(number), damaged)
    self._manager = self._open()
    logging.warning(
      'Checkpoint %d cannot be read (%s); moved to %s, the one before is used.',
      number,
      ' '.join(str(error).split())[:200],
      damaged,
    )

  def __enter__(self) -> 'Store':
    """The store itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Waits until everything is written."""
    self._manager.close()


def newest_common(stores: list[Store], like: Any) -> tuple[int, list] | None:
  """The newest number that every store can restore, and the trees.

  Stores of runs that train together differ by one checkpoint at most, if the
  process was killed between two saves.
  """
  while True:
    common = set.intersection(*(set(store.numbers()) for store in stores))
    if not common:
      return None
    trees = [store.restore(max(common), like) for store in stores]
    if all(tree is not None for tree in trees):
      return max(common), trees
