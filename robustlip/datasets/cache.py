"""Prepared arrays on disk: memory-mapped, so ready at once.

A folder `<data_dir>/prepared/<name>` holds four .npy files and info.json, with
the stamp of the files that the arrays were made from. It is written under
another name and moved in place, so it is whole or absent; if it is deleted, the
set is prepared again.
"""

import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable

import numpy as np
from absl import logging

from robustlip.datasets import arrays
from robustlip.datasets.splits import Split


def folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Where the prepared arrays of a data set are kept."""
  return data_dir / 'prepared' / name


def stamp(paths: Iterable[os.PathLike | str], data_dir: pathlib.Path) -> str:
  """A hash of names, sizes and times of change: new files, another stamp.

  Files in `data_dir` are named by their place in it, so that it can be moved.
  """
  digest = hashlib.blake2b(digest_size=16)
  for path in map(os.fspath, paths):
    status = os.stat(path)
    name = path.removeprefix(str(data_dir))
    digest.update(f'{name}\0{status.st_size}\0{status.st_mtime_ns}\0'.encode())
  return digest.hexdigest()


def read(
  name: str, data_dir: pathlib.Path, stamp: str | None
) -> tuple[Split, Split] | None:
  """Train and test; None if there is no cache, or one made from other files.

  A damaged cache counts as none. Whatever is ignored is named in a log line.

  Args:
    stamp: of the files on disk; None, if they are gone, accepts any.
  """
  path = folder(name, data_dir)
  if not path.is_dir():
    return None
  try:
    info = json.loads((path / 'info.json').read_text())
    if stamp not in (None, info['stamp']):
      logging.info('%s: its files have changed; they are read again', name)
      return None
    found = arrays.mapped(path)
    images, labels, *test = (found[key] for key in arrays.KEYS)
    return Split(images, labels), Split(*test)
  except Exception as error:  # whatever the damage happens to cause
    logging.warning(
      'Ignored the damaged prepared arrays in %s: %s', path, error
    )
    return None


def write(
  name: str, data_dir: pathlib.Path, train: Split, test: Split, *, stamp: str
) -> None:
  """Keeps the arrays for the next time; one log line where that cannot be."""
  path = folder(name, data_dir)
  partial = path.with_name(f'.{name}.{uuid.uuid4().hex}.partial')
  try:
    partial.mkdir(parents=True)
    for key, array in zip(arrays.KEYS, (*train, *test), strict=True):
      np.save(partial / f'{key}.npy', array, allow_pickle=False)
    (partial / 'info.json').write_text(json.dumps({'stamp': stamp}))
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
  except OSError as error:
    logging.info('%s: prepared arrays are not kept: %s', name, error)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
