"""Checkpoints through Orbax: written in the background, restored exactly.

A store keeps the newest few trees of NumPy arrays in one folder. A checkpoint
that cannot be read is moved aside and the one before it is used.
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
      max_to_keep=keep, cleanup_tmp_directories=True
    )
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options)

  def save(self, number: int, tree: Any) -> None:
    """Starts to write `tree`, copied to the host first, as `number`."""
    tree = jax.tree.map(np.asarray, tree)
    self._manager.save(number, args=ocp.args.StandardSave(tree), force=True)

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """The newest readable (number, tree); None where there is none.

    Args:
      like: a tree of arrays or `jax.ShapeDtypeStruct` with the structure,
        shapes and dtypes to restore.
    """
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    for number in sorted(self._manager.all_steps(), reverse=True):
      try:
        tree = self._manager.restore(
          number, args=ocp.args.StandardRestore(like)
        )
        return number, jax.tree.map(np.asarray, tree)
      except Exception as error:  # Orbax raises whatever its readers raise
        self._set_aside(number, error)
    return None

  def _set_aside(self, number: int, error: Exception) -> None:
    damaged = self.folder / f'damaged-{number}'
    self._manager.close()
    os.replace(self.folder / str(number), damaged)
    self._manager = self._open()
    logging.warning(
      'Checkpoint %d cannot be read (%s); moved to %s, trying the one before.',
      number,
      ' '.join(str(error).split())[:200],
      damaged,
    )

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.close()
