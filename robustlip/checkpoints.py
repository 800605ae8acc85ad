"""Checkpoints through Orbax: written in the background, restored exactly.

A store keeps the newest few checkpoints, trees of NumPy arrays, in one folder.
One that cannot be read is moved aside, so that the one before it is used. Of
several processes, the first writes and all read.
"""

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

KEPT = 3  # checkpoints, the last of them perhaps still being written


class Store:
  """Numbered checkpoints in `folder`, the newest `KEPT` of them.

  Raises:
    ValueError: if the path has a `[`.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = _usable(folder)
    process = jax.process_index()
    self._writes = process == 0
    # Every process is the primary one of its own group: none waits for another.
    self._orbax = ocp.StandardCheckpointer(
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f'process{process}',
      )
    )

  def save(self, number: int, tree: Any) -> None:
    """Starts to write `tree`, copied to the host first, as `number`."""
    if not self._writes:
      return
    self.wait()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._clean()
    path = self.folder / str(number)
    self._orbax.save(path, jax.tree.map(np.asarray, tree), force=True)

  def wait(self) -> None:
    """Returns when what was saved is on disk."""
    self._orbax.wait_until_finished()

  def numbers(self) -> list[int]:
    """The numbers of the checkpoints in the folder, oldest first."""
    names = (path.name for path in self.folder.glob('*'))
    return sorted(int(name) for name in names if name.isdecimal())

  def drop_after(self, number: int) -> None:
    """Removes the checkpoints with larger numbers."""
    for later in self.numbers() if self._writes else ():
      if later > number:
        shutil.rmtree(self.folder / str(later))

  def restore(self, number: int, like: Any = None) -> Any | None:
    """The tree saved as `number`; None if there is none or it is damaged.

    Args:
      like: a tree of arrays with the structure, shapes and dtypes to restore;
        None gives what was saved as nested dicts.

    Raises:
      ValueError: if it can be read and is another tree than `like`.
    """
    path = self.folder / str(number)
    if not path.exists():  # the process that writes may have set it aside
      return None
    try:
      tree = self._orbax.restore(path)
    except (MemoryError, PermissionError):  # the file may be intact
      raise
    except Exception as error:  # Orbax raises whatever its readers raise
      self._set_aside(number, error)
      return None
    tree = jax.tree.map(np.asarray, tree)
    if like is None:
      return tree
    wanted = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    another = ValueError(
      f'{path} can be read but has other arrays than this run; it is not moved'
    )
    if _kinds(tree) != _kinds(wanted):  # Orbax would convert them
      raise another
    try:
      found = jax.tree.map(np.asarray, self._orbax.restore(path, wanted))
    except Exception as error:
      raise another from error
    if jax.tree.map(np.shape, found) != jax.tree.map(np.shape, wanted):
      raise another
    return found

  def newest(self, like: Any) -> Any | None:
    """The newest tree that can be restored, see `restore`; None without any."""
    trees = (self.restore(number, like) for number in reversed(self.numbers()))
    return next((tree for tree in trees if tree is not None), None)

  def _set_aside(self, number: int, error: Exception) -> None:
    damaged = self.folder / f'damaged-{number}'
    if self._writes:
      shutil.rmtree(damaged, ignore_errors=True)
      os.replace(self.folder / str(number), damaged)
    logging.warning(
      'Checkpoint %d cannot be read (%s); moved to %s, the one before is used.',
      number,
      ' '.join(str(error).split())[:200],
      damaged,
    )

  def _clean(self) -> None:
    """Removes old checkpoints, and parts that a killed process left."""
    for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path)
    for number in self.numbers()[: 1 - KEPT]:
      shutil.rmtree(self.folder / str(number))

  def __enter__(self) -> 'Store':
    """The store itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Waits until everything is written."""
    self._orbax.close()


def _usable(path: str | os.PathLike) -> pathlib.Path:
  """The absolute path for Orbax to write to.

  Raises:
    ValueError: if it has a `[`: Orbax would read it as a glob pattern, and
      silently not find the files it wrote.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if '[' in str(path):
    raise ValueError(f'{path}: no checkpoint can be kept where a name has a [')
  return path


def _kinds(tree: Any) -> list[tuple[tuple[int, ...], str]]:
  return sorted((x.shape, str(x.dtype)) for x in jax.tree.leaves(tree))


def save(path: str | os.PathLike, tree: Any) -> None:
  """Writes one tree of arrays to the new folder `path`; `load` reads it.

  Raises:
    ValueError: if the path has a `[`.
  """
  path = _usable(path)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, jax.tree.map(np.asarray, tree))


def load(path: str | os.PathLike) -> Any:
  """What `save` has written, as nested dicts and lists of NumPy arrays.

  All keys of dicts become strings.

  Raises:
    FileNotFoundError: if there is nothing.
  """
  path = pathlib.Path(path).expanduser().absolute()
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore(path))


def newest_variables(folder: str | os.PathLike) -> tuple[int, dict[str, Any]]:
  """The step and the variables of the newest readable checkpoint of a run.

  Args:
    folder: `checkpoints` or `best` in the folder of a run.

  Raises:
    FileNotFoundError: if there is none.
  """
  if os.path.isdir(folder):
    with Store(folder) as store:
      for step in reversed(store.numbers()):
        if (tree := store.restore(step)) is not None:
          state = tree['state']
          return step, {k: state[k] or {} for k in ('params', 'batch_stats')}
  raise FileNotFoundError(f'{folder} has no checkpoint that can be read')
