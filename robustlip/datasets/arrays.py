"""Arrays of one's own in an .npz file, and the MNIST subset in the package."""

import pathlib

import numpy as np

from robustlip.datasets import splits

_KEYS = ('train_images', 'train_labels', 'test_images', 'test_labels')
_EXAMPLE = 'np.savez(path, ' + ', '.join(f'{key}=...' for key in _KEYS) + ')'


def read(
  path: pathlib.Path,
) -> tuple[splits.Split, splits.Split, tuple[str, ...]]:
  """Train, test and class names of an .npz file.

  Images are uint8 [N, H, W, C] (floats are refused: rounding them would move
  the distances between images, so that is left to their owner). Labels are
  integers that number the classes from 0; `class_names` is optional, without
  it every class must occur in the training labels.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: keys that are missing, pickled objects, wrong shapes, dtypes,
      pixels or labels, no examples.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file; make it by {_EXAMPLE}.')
  arrays = _arrays(path)
  names = _class_names(path, arrays)
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
  try:
    with (
      path.open('rb') as file,  # np.load leaves damaged files open
      np.load(file, allow_pickle=False) as archive,
    ):
      keys = set(archive.files)
      missing = [key for key in _KEYS if key not in keys]
      if not missing:
        return {
          key: archive[key] for key in (*_KEYS, 'class_names') if key in keys
        }
  except Exception as error:  # zipfile, zlib and NumPy have no common base
    raise ValueError(
      f'{path}: not a whole .npz file of plain arrays as {_EXAMPLE} writes '
      f'them ({error}).'
    ) from error
  raise ValueError(f'{path} lacks {", ".join(missing)}; it is {_EXAMPLE}.')


def _class_names(
  path: pathlib.Path, arrays: dict[str, np.ndarray]
) -> tuple[str, ...]:
  if 'class_names' in arrays:
    return tuple(str(name) for name in arrays['class_names'].reshape(-1))
  labels = arrays['train_labels']
  if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
    return ()  # what `splits.check` goes on to refuse
  present = np.unique(labels)
  if present[0] != 0 or present[-1] != len(present) - 1:
    raise ValueError(
      f'{path}: train_labels has {len(present)} values from {present[0]} to '
      f'{present[-1]}, expected 0 to {len(present) - 1} without gaps (or give '
      'class_names).'
    )
  return tuple(str(label) for label in present)


def _split(
  path: pathlib.Path,
  part: str,
  arrays: dict[str, np.ndarray],
  *,
  num_classes: int,
) -> splits.Split:
  images = arrays[f'{part}_images']
  if np.issubdtype(images.dtype, np.floating) and images.size:
    found = (
      'NaN or infinite values'
      if not np.isfinite(images).all()
      else f'values from {images.min():g} to {images.max():g}'
    )
    raise ValueError(
      f'{path}: {part}_images are {images.dtype} with {found}, expected uint8 '
      'from 0 to 255; of floats in [0, 1]: np.uint8(np.round(255 * images)).'
    )
  split = splits.Split(images, arrays[f'{part}_labels'])
  return splits.check(split, f'{path}, {part}', num_classes=num_classes)
