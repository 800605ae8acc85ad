"""Partial results of a separation search on disk."""

import pathlib
import time
import zipfile

import numpy as np
from absl import logging

from robustlip import progress, separation
from robustlip.datasets import splits
from robustlip.separation import search as engine

SECONDS_BETWEEN_SAVES = 20.0


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz file, moved in place when it is complete."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.tmp')
  with partial.open('wb') as file:
    np.savez(file, **arrays)
  partial.replace(path)


def load(
  path: pathlib.Path, owner: str, size: int
) -> tuple[engine.Best | None, float]:
  """The state that `search` left and the seconds it took.

  None and 0 if there is none or it is of no use, which is said.
  """
  nothing = None, 0.0
  if not path.exists():
    return nothing
  try:
    with path.open('rb') as file, np.load(file) as archive:
      best = engine.Best(
        archive['gaps'], archive['indices'], int(archive['next_query'])
      )
      seconds = float(archive['seconds'])
      if str(archive['owner']) != owner:
        logging.warning('%s is of other data: starting anew.', path)
        return nothing
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    logging.warning('%s is damaged (%s): starting anew.', path, error)
    return nothing
  if best.gaps.shape != (size,) or best.indices.shape != (size,):
    logging.warning('%s has the wrong size: starting anew.', path)
    return nothing
  return best, seconds


def search(
  *sets: np.ndarray, norm: str, path: pathlib.Path
) -> tuple[separation.Neighbors, float]:
  """`nearest_opposite(*sets)` that keeps its state in `path`, and its seconds.

  What is complete is kept too, for a second start after it.
  """
  size, owner = len(sets[0]), splits.fingerprint(*sets, salt=norm)
  start, spent = load(path, owner, size)
  began = saved = time.monotonic()
  done = int(start.next_query) if start else 0
  with progress.bar(size, path.name.split('.')[0], initial=done) as bar:

    def report(best):
      nonlocal done, saved
      bar.update(int(best.next_query) - done)
      done = int(best.next_query)
      now = time.monotonic()
      if now - saved > SECONDS_BETWEEN_SAVES or done == size:
        seconds = spent + now - began
        save(path, owner=owner, seconds=seconds, **best._asdict())
        saved = now

    found = separation.nearest_opposite(
      *sets, norm=norm, start=start, report=report
    )
  return found, spent + time.monotonic() - began
