"""Augmentations: training images changed at random, bytes to bytes.

Shared arguments: `images` are uint8 [B, H, W, C]; `key` is one PRNG key or one
per example ([B]). Pixels that are removed become black, or noise in `erase`.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from robustlip import projections

# (uint8 images [B, H, W, C], keys [B]) -> uint8 images
Augment = Callable[[chex.Array, chex.PRNGKey], chex.Array]


def crop(images: chex.Array, key: chex.PRNGKey, *, padding: int) -> chex.Array:
  """Windows of the original size out of images padded with black."""
  amounts = ((padding, padding), (padding, padding), (0, 0))

  def one(image, key):
    corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, amounts)
    return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)

  return _each(one, images, key)


def flip(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Each image mirrored left to right with probability one half."""

  def one(image, key):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return _each(one, images, key)


def cutout(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Removes a square of half the image's height around a random pixel.

  The part of the square that lies outside the image removes nothing.

  Source: DeVries and Taylor 2017, arXiv:1708.04552, 16 pixels of 32.
  """
  side = images.shape[1] // 2

  def one(image, key):
    centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    corner = centre - side // 2
    return jnp.where(_inside(image, corner, (side, side)), 0, image)

  return _each(one, images, key)


def erase(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Replaces a random rectangle by noise, with probability one half.

  Its area is 2 to 40 % of the image and its height 0.3 to 3.3 times its width;
  sides longer than the image are cut to it.

  Source: random erasing, Zhong et al. 2017, arXiv:1708.04896.
  """

  def one(image, key):
    keys = jax.random.split(key, 5)
    area = jax.random.uniform(keys[0], minval=0.02, maxval=0.4)
    area *= image.shape[0] * image.shape[1]
    skew = jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
    stretch = (1 / 0.3) ** (skew / 2)
    size = jnp.sqrt(area) * jnp.stack([stretch, 1 / stretch])
    whole = jnp.array(image.shape[:2])
    size = jnp.clip(jnp.round(size).astype(int), 1, whole)
    corner = jax.random.randint(keys[2], (2,), 0, whole - size + 1)
    noise = jax.random.bits(keys[3], image.shape, image.dtype)
    taken = _inside(image, corner, size) & jax.random.bernoulli(keys[4])
    return jnp.where(taken, noise, image)

  return _each(one, images, key)


def crop_shift(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
  """Crops each image to a rectangle and shifts it within a black image.

  The crop removes 0 to 10 rows and columns in total, fewer than either side.

  Source: Li and Spratling 2023, arXiv:2301.09879, CropShift of 0 to 10.
  """

  def one(image, key):
    keys = jax.random.split(key, 4)
    strength = jax.random.randint(keys[0], (), 0, min(11, *image.shape[:2]))
    lost = jax.random.randint(keys[1], (), 0, strength + 1)
    lost = jnp.stack([lost, strength - lost])
    before, after = (
      jax.random.randint(key, (2,), 0, lost + 1) for key in keys[2:]
    )
    window = _inside(image, before, jnp.array(image.shape[:2]) - lost)
    kept = jnp.where(window, image, 0)
    return jnp.roll(kept, after - before, axis=(0, 1))

  return _each(one, images, key)


def cutmix(
  images: chex.Array, key: chex.PRNGKey, *, probability: chex.Numeric
) -> tuple[chex.Array, chex.Array]:
  """Images with a rectangle of their neighbour's pixels in the same place.

  The rectangle has the aspect ratio of the image, a uniformly random fraction
  of its area and a random centre; it is cut at the borders. Neighbours
  (`swapped`) are random pairs if the batch is shuffled.

  Args:
    probability: that an image is mixed; 0.5 on CIFAR-10 in the source.

  Returns:
    The images, and the fraction [B] of its pixels that each has kept.

  Raises:
    ValueError: for an odd number of images, or if `probability` is out of
      range.

  Source: Yun et al. 2019, arXiv:1905.04899.
  """
  probability = projections.check_numbers(
    probability, name='cutmix', highest=1.0
  )

  def one(image, key, other):
    keys = jax.random.split(key, 3)
    whole = jnp.array(image.shape[:2])
    size = whole * jnp.sqrt(jax.random.uniform(keys[0]))
    size = size.astype(int)
    corner = jax.random.randint(keys[1], (2,), 0, whole) - size // 2
    taken = _inside(image, corner, size)
    taken &= jax.random.bernoulli(keys[2], probability)
    return jnp.where(taken, other, image), 1 - taken.mean()

  return _each(one, images, key, swapped(images))


def swapped(values: chex.Array) -> chex.Array:
  """Swaps the examples 0 and 1, 2 and 3, and so on, [B, ...] -> [B, ...].

  Raises:
    ValueError: for an odd number of examples.
  """
  if len(values) % 2:
    raise ValueError(f'neighbours need an even number, got {len(values)}.')
  pairs = values.reshape(-1, 2, *values.shape[1:])
  return pairs[:, ::-1].reshape(values.shape)


def _each(one, images, key, *others):
  keys = projections.example_keys(key, len(images))
  return jax.vmap(one)(images, keys, *others)


def _inside(image, corner, size):
  """Which pixels lie in a rectangle, bool [H, W, 1]."""
  places = jnp.indices(image.shape[:2])
  first = jnp.asarray(corner).reshape(2, 1, 1)
  end = first + jnp.asarray(size).reshape(2, 1, 1)
  return ((places >= first) & (places < end)).all(axis=0)[..., None]


def in_turn(*augments: Augment) -> Augment:
  """Several augmentations one after the other, each with draws of its own."""

  def augment(images, key):
    for place, one in enumerate(augments):
      images = one(images, projections.other_keys(key, len(images), place))
    return images

  return augment


def _cifar(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
  keys = projections.example_keys(key, len(images))
  crop_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return flip(crop(images, crop_keys, padding=4), flip_keys)


# Those with numbers are the paper's for CIFAR-10 and Restricted ImageNet.
AUGMENTATIONS: dict[str, Augment] = {
  'none': lambda images, key: images,
  'crop4_flip': _cifar,
  'crop8': lambda images, key: crop(images, key, padding=8),
  'flip': flip,
  'crop_shift': crop_shift,
  'cutout': cutout,
  'erase': erase,
}


def augmentation(names: str) -> Augment:
  """The augmentation of that name, or of several separated by commas.

  Raises:
    ValueError: for a name that is not in `AUGMENTATIONS`.
  """
  words = [word.strip() for word in names.split(',')]
  if unknown := set(words) - set(AUGMENTATIONS):
    raise ValueError(
      f'no augmentation {", ".join(sorted(unknown))}; there are '
      f'{", ".join(AUGMENTATIONS)}.'
    )
  chosen = [AUGMENTATIONS[word] for word in words]
  return chosen[0] if len(chosen) == 1 else in_turn(*chosen)
