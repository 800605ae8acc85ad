"""Arrays of one's own in a file or a folder, and the MNIST subset."""

import pathlib
import zipfile

import numpy as np
from absl import logging

from robustlip.datasets import files, splits

KEYS = ('train_images', 'train_labels', 'test_images', 'test_labels')
_EXAMPLE = 'np.savez(path, ' + ', '.join(f'{key}=...' for key in KEYS) + ')'


def read(
  path: pathlib.Path,
) -> tuple[splits.Split, splits.Split, tuple[str, ...]]:
  """Train, test and class names of an .npz file, or of a folder of arrays.

  A folder has train_images.npy and so on; its images are memory-mapped, so that
  they may be more than memory holds.

  Images are uint8 [N, H, W, C], or [N, H, W] if they are gray. Floats are
  refused: how to round them is for their owner to say, since it moves the
  distances between images. Labels are integers [N] or [N, 1] that number the
  classes from 0; without `class_names` every class must occur in the training
  labels. The files of MedMNIST are of this form; their validation split is
  left out, with one log line.

  Raises:
    FileNotFoundError: if there is no such file or folder.
    ValueError: keys that are missing, pickled objects, wrong shapes, dtypes,
      pixels or labels, no examples.
  """
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such file; make it by {_EXAMPLE}.')
  arrays = mapped(path) if path.is_dir() else _arrays(path)
  if 'class_names' in arrays:
    names = tuple(arrays['class_names'].reshape(-1).astype(str).tolist())
  else:
    labels = _one_column(arrays['train_labels'])
    labels = splits.check_labels(labels, f'{path}, train labels')
    names = tuple(map(str, range(labels.max(initial=-1) + 1)))
  train, test = (
    _split(path, part, arrays, num_classes=len(names))
    for part in ('train', 'test')
  )
  if train.images.shape[1:] != test.images.shape[1:]:
    raise ValueError(
      f'{path}: training images are {train.images.shape[1:]}, test images '
      f'{test.images.shape[1:]}; they must be of one shape.'
    )
  return train, test, names


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  with (
    files.expect(path, f'an .npz file of plain arrays, {_EXAMPLE}'),
    path.open('rb') as file,  # np.load leaves damaged files open
  ):
    if not zipfile.is_zipfile(file):  # np.load would take it for a pickle
      raise ValueError('it is no zip archive')
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
      missing = [key for key in KEYS if key not in archive]
      if missing:
        found = ', '.join(archive.files)
        raise ValueError(f'it has {found}, not {", ".join(missing)}')
      if 'val_images' in archive:
        logging.info('%s: the examples of val_images are left out', path)
      wanted = {*KEYS, 'class_names'}.intersection(archive.files)
      return {key: archive[key] for key in wanted}


def mapped(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a folder by name, memory-mapped.

  Raises:
    ValueError: if one is missing or damaged.
  """
  names = {file.stem for file in folder.glob('*.npy')}
  if missing := [key for key in KEYS if key not in names]:
    raise ValueError(
      f'{folder}: no {missing[0]}.npy is in it; a folder of arrays has '
      f'{", ".join(f"{key}.npy" for key in KEYS)}.'
    )
  arrays = {}
  for key in names & {*KEYS, 'class_names'}:
    file = folder / f'{key}.npy'
    with files.expect(file, f'an array that np.save({str(file)!r}, ...) wrote'):
      arrays[key] = np.load(file, mmap_mode='r', allow_pickle=False)
  return arrays


def _one_column(labels: np.ndarray) -> np.ndarray:
  return labels[:, 0] if labels.shape[1:] == (1,) else labels


def _split(
  path: pathlib.Path,
  part: str,
  arrays: dict[str, np.ndarray],
  *,
  num_classes: int,
) -> splits.Split:
  images = arrays[f'{part}_images']
  if images.ndim == 3:  # gray
    images = images[..., None]
  split = splits.Split(images, _one_column(arrays[f'{part}_labels']))
  return splits.check(split, f'{path}, {part}', num_classes=num_classes)
