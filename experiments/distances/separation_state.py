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


def load(path: pathlib.Path, owner: str, size: int) -> engine.Best | None:
  """The state that `search` left, or None if it is of no use, which is said."""
  if not path.exists():
    return None
  try:
    with path.open('rb') as file, np.load(file) as archive:
      best = engine.Best(
        archive['gaps'], archive['indices'], int(archive['next_query'])
      )
      if str(archive['owner']) != owner:
        logging.warning('%s is of other data: starting anew.', path)
        return None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    logging.warning('%s is damaged (%s): starting anew.', path, error)
    return None
  if best.gaps.shape != (size,) or best.indices.shape != (size,):
    logging.warning('%s has the wrong size: starting anew.', path)
    return None
  return best


def search(
  *sets: np.ndarray, norm: str, path: pathlib.Path
) -> tuple[separation.Neighbors, float]:
  """`nearest_opposite(*sets)` that keeps its state in `path`, and its seconds.

  The state goes when the search is complete.
  """
  size, owner = len(sets[0]), splits.fingerprint(*sets, salt=norm)
  start = load(path, owner, size)
  began = saved = time.monotonic()
  done = int(start.next_query) if start else 0
  with progress.bar(size, path.name.split('.')[0], initial=done) as bar:

    def report(best):
      nonlocal done, saved
      bar.update(int(best.next_query) - done)
      done = int(best.next_query)
      if time.monotonic() - saved > SECONDS_BETWEEN_SAVES and done < size:
        save(path, owner=np.array(owner), **best._asdict())
        saved = time.monotonic()

    found = separation.nearest_opposite(
      *sets, norm=norm, start=start, report=report
    )
  path.unlink(missing_ok=True)
  return found, time.monotonic() - began
