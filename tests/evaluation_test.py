"""Evaluation against counting in NumPy, whatever the batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen as nn

from robustlip import attacks, evaluation, lipschitz, models
from robustlip.datasets import Split

RNG = np.random.default_rng(0)
SPLIT = Split(
  RNG.integers(60, 200, (37, 3, 3, 1), np.uint8),
  RNG.integers(0, 2, 37).astype(np.int32),
)
WEIGHTS = RNG.normal(size=(9, 2)).astype(np.float32)
EPSILON = 0.02


class Linear(nn.Module):
  """Two classes, no parameters."""

  @nn.compact
  def __call__(self, inputs, train=False):
    return (inputs - 0.5).reshape(len(inputs), -1) @ WEIGHTS


def measured(batch_size, split=SPLIT):
  evaluator = evaluation.Evaluator(
    partial(models.logits_fn, Linear()),
    attack=partial(attacks.pgd, epsilon=EPSILON),
    ratios=lambda *args: lipschitz.estimate(*args, epsilon=EPSILON).ratios,
    batch_size=batch_size,
  )
  return evaluator({}, split, jax.random.key(0))


FOUR = RNG.normal(size=(9, 4)).astype(np.float32)


def bumpy(inputs):
  """Four classes, with more than one summit in a ball."""
  return jnp.sin(20 * inputs).reshape(len(inputs), -1) @ FOUR


LABELS_OF_FOUR = np.asarray(bumpy(SPLIT.images / np.float32(255)).argmax(-1))


class TwoLayers(nn.Module):
  @nn.compact
  def __call__(self, inputs, train=False):
    hidden = nn.Dense(100)(inputs.reshape(len(inputs), -1))
    return nn.Dense(2)(hidden)


class EvaluationTest(chex.TestCase):
  def test_accuracies_of_a_linear_network_are_exact(self):
    outcome = measured(8)
    direction = WEIGHTS[:, 1] - WEIGHTS[:, 0]
    scores = (SPLIT.images.reshape(37, 9) / 255 - 0.5) @ direction
    margins = np.where(SPLIT.labels == 1, scores, -scores)
    correct = margins > 0
    robust = margins > EPSILON * np.abs(direction).sum()
    np.testing.assert_array_equal(outcome.correct, correct)
    np.testing.assert_array_equal(outcome.robust, robust)
    assert robust.any() and (correct & ~robust).any() and (~correct).any()

  def test_features_are_counted_and_fitted(self):
    expected = 4 * (100 + 2 + 2)  # both layers, and what the network returns
    assert evaluation.feature_bytes(TwoLayers(), (3, 3, 1)) == expected
    fits = partial(evaluation.fitting_batch_size, TwoLayers())
    devices = jax.local_device_count()
    assert fits((3, 3, 1)) == devices * evaluation.MAX_BATCH_SIZE
    copies = evaluation.CPU_CACHE_BYTES // (7 * expected)
    assert fits((3, 3, 1), copies=copies) == devices * 7
    smallest = devices * evaluation.MIN_BATCH_SIZE
    assert fits((3, 3, 1), copies=10**9) == smallest

  @parameterized.parameters(1, 10, 37, 1000)
  def test_the_batch_size_changes_nothing(self, batch_size):
    chex.assert_trees_all_close(measured(batch_size), measured(8), rtol=1e-6)

  @parameterized.parameters('pgd', 'multi_targeted')
  def test_attempts_in_turn_find_what_all_at_once_find(self, name):
    split = Split(SPLIT.images, LABELS_OF_FOUR)
    attack = {
      'pgd': partial(attacks.pgd, num_restarts=3),
      'multi_targeted': partial(attacks.multi_targeted, num_classes=4),
    }[name]
    attack = partial(attack, epsilon=0.05, num_steps=1)

    def robust(attack, attempts):
      evaluator = evaluation.Evaluator(
        lambda variables: bumpy,
        attack=attack,
        ratios=None,
        batch_size=8,
        attempts=attempts,
      )
      return evaluator.accuracies({}, split, jax.random.key(0))[1]

    def only_the_first(*args, attempt):
      return attack(*args, attempt=0 * attempt)

    np.testing.assert_array_equal(robust(attack, 3), robust(attack, 1))
    several, one = robust(attack, 3).sum(), robust(only_the_first, 3).sum()
    assert 0 < several < one < 37

  def test_images_that_are_scaled_already_are_refused(self):
    scaled = SPLIT._replace(images=SPLIT.images / np.float32(255))
    with pytest.raises(ValueError, match='must be uint8'):
      measured(8, scaled)

  def test_every_image_needs_a_label(self):
    for labels in (SPLIT.labels[:-1], SPLIT.labels[:, None]):
      with pytest.raises(ValueError, match='as many labels'):
        measured(8, SPLIT._replace(labels=labels))

  def test_empty_batches_are_refused(self):
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
      measured(0)

  def test_a_network_that_is_always_wrong_is_not_attacked(self):
    split = Split(SPLIT.images, np.full(37, 1, np.int32))
    evaluator = evaluation.Evaluator(
      lambda variables: always_the_first,
      attack=None,  # calling it would raise
      ratios=lambda logits_fn, inputs, keys: jnp.zeros(len(inputs)),
      batch_size=8,
    )
    outcome = evaluator({}, split, jax.random.key(0))
    assert not outcome.correct.any() and not outcome.robust.any()

  def test_logits_that_are_not_finite_classify_nothing(self):
    evaluator = evaluation.Evaluator(
      lambda variables: lambda inputs: jnp.nan * always_the_first(inputs),
      attack=None,
      ratios=None,
      batch_size=8,
    )
    split = Split(SPLIT.images, np.zeros(37, np.int32))
    correct, robust = evaluator.accuracies({}, split, jax.random.key(0))
    assert not correct.any() and not robust.any()


def always_the_first(inputs):
  return jnp.zeros((len(inputs), 2)).at[:, 0].set(1.0)


def test_summary_has_gaps_in_percent():
  train = evaluation.Outcome(
    np.array([1, 1, 1, 1], bool), np.array([1, 1, 1, 0], bool), np.ones(4)
  )
  test = evaluation.Outcome(
    np.array([1, 0], bool), np.array([0, 0], bool), np.array([2.0, 4.0])
  )
  record = evaluation.summary(train, test)
  assert record['gap'] == 50 and record['adv_gap'] == 75
  assert record['train_lipschitz'] == 1 and record['test_lipschitz'] == 3
