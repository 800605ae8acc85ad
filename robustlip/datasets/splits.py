"""The containers that every source of data fills, and checks of the arrays."""

import hashlib
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
  """Images and their labels, in the order of the source."""

  images: np.ndarray  # [N, H, W, C], uint8
  labels: np.ndarray  # [N], int32


class Dataset(NamedTuple):
  """A training and a test split over the same classes."""

  name: str  # of the published set, or of the user's file
  train: Split
  test: Split
  class_names: tuple[str, ...]
  epsilon: float | None  # l-inf radius in [0, 1]; None: the user must give it
  fingerprint: str | None = None  # of the arrays; None: a whole published set
  path: str | None = None  # of the user's own file, absolute

  @property
  def source(self) -> str:
    """The argument of `load` that loads this data set again."""
    return self.path or self.name

  @property
  def both(self) -> Split:
    """The training examples, then the test examples."""
    pairs = zip(self.train, self.test, strict=True)
    return Split(*(np.concatenate(pair) for pair in pairs))


def fingerprint(*arrays: np.ndarray) -> str:
  """A hash of types, shapes and values, in hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=16)
  for array in arrays:
    digest.update(f'{array.dtype}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def checksum(*splits: Split) -> str:
  """A hash of the splits that ignores the order of examples, in hexadecimal.

  TFDS stores the published examples in an order of its own.
  """
  total = 0
  for part, split in enumerate(splits):
    for image, label in zip(*split, strict=True):
      content = bytes([part, label]) + image.tobytes()
      digest = hashlib.blake2b(content, digest_size=16).digest()
      total += int.from_bytes(digest)
  return f'{total % 2**128:032x}'


def check(
  split: Split,
  source: str,
  *,
  num_classes: int,
  image_shape: tuple[int, ...] | None = None,
) -> Split:
  """The split with int32 labels, checked for the rest of the library.

  Args:
    source: the file or folder that an error message names.
    num_classes: labels must lie in 0 .. num_classes - 1.
    image_shape: (H, W, C); None accepts any.

  Raises:
    ValueError: wrong shape, layout or dtype, no examples, labels out of range.
  """
  check_layout(split, source, image_shape=image_shape)
  labels = check_labels(
    split.labels, f'{source} labels', num_classes=num_classes
  )
  return split._replace(labels=labels)


def check_layout(
  split: Split,
  source: str = 'the split',
  *,
  image_shape: tuple[int, ...] | None = None,
) -> None:
  """Raises ValueError unless images are uint8 [N, height, width, channels].

  Also if there are not as many labels, or `split` is not a `Split`.

  Args:
    source: what an error message begins with.
    image_shape: (H, W, C); None accepts any but channels first.
  """
  if not isinstance(split, Split):
    raise ValueError(
      f'{source} must be a datasets.Split of uint8 images and labels, got '
      f'{type(split).__name__}.'
    )
  images, labels = split
  if not (hasattr(images, 'shape') and hasattr(labels, 'shape')):
    raise ValueError(
      f'{source}: images and labels must be arrays; np.asarray makes one.'
    )
  found = f'{source}: images are {images.dtype} of shape {images.shape}'
  wanted = f'{found}, expected uint8 of shape (N, height, width, channels)'
  if images.dtype != np.uint8:
    raise ValueError(f'{wanted}{_as_bytes(images)}.')
  if images.ndim != 4:
    gray = '; of gray ones: images[..., None]' * (images.ndim == 3)
    raise ValueError(f'{wanted}{gray}.')
  if images[:1000].max(initial=0) == 1:
    raise ValueError(
      f'{source}: images are uint8 from 0 to 1, expected 0 to 255: they seem '
      'to have been divided by 255 before.'
    )
  shape = images.shape[1:]
  if shape[0] <= 4 < min(shape[1:]):
    raise ValueError(
      f'{found}, channels first; expected (N, height, width, channels): '
      'images.transpose(0, 2, 3, 1).'
    )
  if image_shape not in (None, shape):
    raise ValueError(f'{found}, expected {("N", *image_shape)}.')
  if len(images) != len(labels):
    raise ValueError(
      f'{source}: {len(images)} images but {len(labels)} labels.'
    )
  if not images.size:
    raise ValueError(f'{source}: no examples.')


def _as_bytes(images) -> str:
  """How to turn images into uint8, for an error message."""
  few = np.asarray(images[:1000])
  if not few.size or not np.issubdtype(few.dtype, np.floating):
    return ''
  lowest, highest = few.min(), few.max()
  if 0 <= lowest <= highest <= 1:
    return '; of floats in [0, 1]: np.uint8(np.round(255 * images))'
  if 0 <= lowest <= highest <= 255:
    return '; of floats in [0, 255]: np.uint8(np.round(images))'
  return f'; these are from {lowest:g} to {highest:g}'


def check_labels(
  labels: np.ndarray, source: str = 'labels', *, num_classes: int | None = None
) -> np.ndarray:
  """The labels as int32 [N], checked to number the classes from 0.

  Args:
    source: what an error message begins with.
    num_classes: None requires that every class occurs.

  Raises:
    ValueError: labels that are no integers or do not number the classes from
      0; it says how to map them.
  """
  several = labels.ndim == 2 and np.issubdtype(labels.dtype, np.integer)
  if several and labels.shape[1] > 1 and (labels.sum(axis=1) != 1).any():
    raise ValueError(
      f'{source} of shape {labels.shape} give images no class or several: keep '
      'one column, labels[:, i], or the images of one class.'
    )
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'{source} are {labels.dtype} of shape {labels.shape}, expected integers '
      'of shape (N,): labels.astype(int) if they are whole numbers, '
      'labels.argmax(1) if they are one-hot.'
    )
  values = np.unique(labels).tolist()  # Python's integers, however large
  if num_classes is None:
    num_classes = len(values)
  if not values or 0 <= values[0] <= values[-1] < num_classes:
    return labels.astype(np.int32, copy=False)
  if values == [-1, 1]:
    remedy = '(labels + 1) // 2'
  elif (values[0], values[-1]) == (1, num_classes):
    remedy = 'labels - 1'
  else:
    remedy = 'np.searchsorted(np.unique(train_labels), labels)'
  raise ValueError(
    f'{source} from {values[0]} to {values[-1]}, expected 0 to '
    f'{num_classes - 1}; to number the classes from 0: {remedy}.'
  )
