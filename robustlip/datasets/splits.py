"""What every source of a data set ends in: checked arrays with names."""

import hashlib
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
  """Images and their labels, in the order of the source."""

  images: np.ndarray  # [N, H, W, C], uint8
  labels: np.ndarray  # [N], int32


class Dataset(NamedTuple):
  """A training and a test split over the same classes."""

  name: str
  train: Split
  test: Split
  class_names: tuple[str, ...]
  epsilon: float | None  # l-inf radius in [0, 1]; None: the user must say
  fingerprint: str | None = None  # unless it is a whole published set

  @property
  def both(self) -> Split:
    """The training examples, then the test examples."""
    pairs = zip(self.train, self.test, strict=True)
    return Split(*(np.concatenate(pair) for pair in pairs))


def fingerprint(*arrays: np.ndarray, salt: str = '') -> str:
  """A hash of types, shapes, values and `salt`, in hexadecimal digits."""
  digest = hashlib.blake2b(salt.encode(), digest_size=16)
  for array in arrays:
    digest.update(f'{array.dtype}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def check(
  split: Split,
  source: str,
  *,
  num_classes: int,
  image_shape: tuple[int, ...] | None = None,
) -> Split:
  """The split, with int32 labels, if it is what the rest can work on.

  Args:
    source: the file or folder that the message of an error names.
    num_classes: labels must lie in 0 .. num_classes - 1.
    image_shape: (H, W, C); None accepts any.

  Raises:
    ValueError: wrong shape or dtype, no examples, labels out of range.
  """
  images, labels = split
  if images.dtype != np.uint8 or images.ndim != 4:
    raise ValueError(
      f'{source}: images are {images.dtype} of shape {images.shape}, expected '
      'uint8 of shape (N, height, width, channels), one channel for gray.'
    )
  if image_shape is not None and images.shape[1:] != image_shape:
    raise ValueError(
      f'{source}: images of {images.shape[1:]} (height, width, channels), '
      f'expected {image_shape}.'
    )
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'{source}: labels are {labels.dtype} of shape {labels.shape}, expected '
      'integers of shape (N,).'
    )
  if len(images) != len(labels):
    raise ValueError(
      f'{source}: {len(images)} images but {len(labels)} labels.'
    )
  if images.size == 0:
    raise ValueError(f'{source}: no examples.')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f'{source}: labels from {labels.min()} to {labels.max()}, expected '
      f'0 to {num_classes - 1}.'
    )
  return Split(images, labels.astype(np.int32, copy=False))
