"""Distributions of the paper that are drawn, not loaded: NumPy arrays.

Every function takes a NumPy generator, a `Generator` or the legacy
`RandomState`; both offer the calls made here. With `RandomState(1)` the
staircase is the draw of the authors' experiment, value for value.
"""

import numpy as np

Random = np.random.Generator | np.random.RandomState

NUM_STAIRS = 10
STAIR_SHIFT = 1.0 / 3  # the rare inputs, and the perturbation radius
SHIFT_PROBABILITY = 0.005
TARGET_NOISE = 0.1  # standard deviation


def stair_probabilities() -> np.ndarray:
  """Probability of each stair, [NUM_STAIRS]: the upper five are rare."""
  weights = np.repeat([1 / 5, 0.01], NUM_STAIRS // 2)
  return weights / weights.sum()


def staircase(
  num_examples: int, random: Random
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets of the staircase regression, float64, both [N].

  An input is one of the stairs 0 to 9, moved to either side by `STAIR_SHIFT`
  with probability `SHIFT_PROBABILITY`; its target is the stair plus noise.

  Source: Raghunathan et al. 2020, arXiv:2002.10716, with the constants and
  the order of random calls of the paper's experiment.
  """
  stairs = random.choice(NUM_STAIRS, num_examples, p=stair_probabilities())
  targets = stairs + TARGET_NOISE * random.standard_normal(num_examples)
  to_the_right = random.random(num_examples) < 0.5
  shifted = random.random(num_examples) < SHIFT_PROBABILITY
  shifts = shifted * np.where(to_the_right, STAIR_SHIFT, -STAIR_SHIFT)
  return stairs + shifts, targets


def spirals(
  num_per_class: int, random: Random, *, noise: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
  """Two interleaved spirals: points [2 N, 2] float64, labels [2 N] int32.

  The spirals are point reflections of each other and turn a little more than
  twice (780 degrees); `noise` is the width of a uniform shift of each
  coordinate, in units of the radius after one radian.
  """
  angles = np.sqrt(random.random(num_per_class)) * np.deg2rad(780)
  arm = angles * np.stack([-np.cos(angles), np.sin(angles)])
  arm = (arm + noise * random.random(arm.shape)).T
  labels = np.repeat(np.arange(2, dtype=np.int32), num_per_class)
  return np.concatenate([arm, -arm]), labels


def one_strong_many_weak(
  num_examples: int,
  random: Random,
  *,
  num_weak: int,
  mean: float,
  agreement: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
  """One feature that strongly predicts the label, and many weak ones.

  Feature 0 is the label's sign with probability `agreement`, else its
  negative; the `num_weak` others are normal with unit variance and mean
  `mean` times the sign.

  Returns:
    Inputs [N, 1 + num_weak] float64 and labels [N] int32, 0 for the sign -1.

  Source: Tsipras et al. 2019, arXiv:1805.12152, Section 2.1.
  """
  labels = random.choice(2, num_examples).astype(np.int32)
  signs = 2.0 * labels[:, None] - 1
  agrees = random.random((num_examples, 1)) < agreement
  weak = mean * signs + random.standard_normal((num_examples, num_weak))
  return np.hstack([np.where(agrees, signs, -signs), weak]), labels
