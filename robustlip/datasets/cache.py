"""Prepared arrays on disk: memory-mapped, so ready at once.

A folder `<data_dir>/prepared/<name>` holds four .npy files and info.json. It
is written under another name and moved in place, so it is whole or absent;
deleting it has the set prepared again.
"""

import json
import pathlib
import shutil
import uuid

import numpy as np
from absl import logging

from robustlip.datasets import splits

_ARRAYS = ('train_images', 'train_labels', 'test_images', 'test_labels')


def folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Where the prepared arrays of a data set are kept."""
  return data_dir / 'prepared' / name


def read(
  name: str, data_dir: pathlib.Path
) -> tuple[splits.Split, splits.Split, str] | None:
  """Train, test and where they once came from; None if there is no cache.

  A damaged cache counts as none, with one log line that names it.
  """
  path = folder(name, data_dir)
  if not path.is_dir():
    return None
  try:
    arrays = [
      np.load(path / f'{key}.npy', mmap_mode='r', allow_pickle=False)
      for key in _ARRAYS
    ]
    info = json.loads((path / 'info.json').read_text())
    for key, array in zip(_ARRAYS, arrays, strict=True):
      if list(array.shape) != info['shapes'][key]:
        raise ValueError(f'{key}.npy has shape {array.shape}')
    return splits.Split(*arrays[:2]), splits.Split(*arrays[2:]), info['source']
  except Exception as error:  # whatever the damage happens to cause
    logging.warning(
      'Ignored the damaged prepared arrays in %s: %s', path, error
    )
    return None


def write(
  name: str,
  data_dir: pathlib.Path,
  train: splits.Split,
  test: splits.Split,
  *,
  source: str,
) -> None:
  """Keeps the arrays for the next time; one log line where that cannot be."""
  path = folder(name, data_dir)
  partial = path.with_name(f'.{name}.{uuid.uuid4().hex}.partial')
  try:
    partial.mkdir(parents=True)
    info = {'source': source, 'shapes': {}}
    for key, array in zip(_ARRAYS, (*train, *test), strict=True):
      np.save(partial / f'{key}.npy', array, allow_pickle=False)
      info['shapes'][key] = array.shape
    (partial / 'info.json').write_text(json.dumps(info, indent=2) + '\n')
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
  except OSError as error:
    logging.info('%s: prepared arrays are not kept: %s', name, error)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
