"""Evaluation against counting in NumPy, whatever the batch."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from robustlip import attacks, evaluation, lipschitz
from robustlip.datasets import Split
from robustlip.images import from_bytes

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SPLIT = Split(
  RNG.integers(60, 200, (37, 3, 3, 1), np.uint8),
  RNG.integers(0, 2, 37).astype(np.int32),
)
WEIGHTS = RNG.normal(size=(9, 2)).astype(np.float32)
EPSILON = 0.02
FOUR = RNG.normal(size=(9, 4)).astype(np.float32)


def linear(inputs):
  return (inputs - 0.5).reshape(len(inputs), -1) @ WEIGHTS


def bumpy(inputs):
  """Four classes, with more than one summit in a ball."""
  return jnp.sin(20 * inputs).reshape(len(inputs), -1) @ FOUR


def always_the_first(inputs):
  return jnp.zeros((len(inputs), 2)).at[:, 0].set(1.0)


LABELS_OF_FOUR = np.asarray(bumpy(from_bytes(SPLIT.images)).argmax(-1))
HARD = Split(SPLIT.images, LABELS_OF_FOUR)


def of_stages(stages, function=linear, **settings):
  return evaluation.Evaluator(lambda _: function, cascade=stages, **settings)


def evaluator(function=linear, names='pgd', batch_size=8, **settings):
  settings = dict(epsilon=EPSILON, num_classes=2) | settings
  stages = attacks.cascade(names, **settings)

  def ratios(*args):
    return lipschitz.estimate(*args, epsilon=settings['epsilon']).ratios

  others = dict(ratios={'eq3': ratios}, batch_size=batch_size)
  return of_stages(stages, function, **others)


def exact(epsilon=EPSILON):
  """Who is right, and who stays so, under a linear network of two classes."""
  slope = np.abs(WEIGHTS[:, 1] - WEIGHTS[:, 0]).sum()
  return exact_margins() < 0, exact_margins() < -epsilon * slope


def exact_margins():
  """The wrong logit of `linear` over the right one."""
  scores = (SPLIT.images.reshape(37, 9) / 255 - 0.5) @ WEIGHTS
  rows = np.arange(37)
  return scores[rows, 1 - SPLIT.labels] - scores[rows, SPLIT.labels]


class EvaluationTest(chex.TestCase):
  def test_accuracies_of_a_linear_network_are_exact(self):
    attacked = evaluator().accuracies({}, SPLIT, KEY)
    correct, robust = exact()
    np.testing.assert_array_equal(attacked.correct, correct)
    np.testing.assert_array_equal(attacked.robust, robust)
    np.testing.assert_array_equal(attacked.broken_by == 0, correct & ~robust)
    slope = EPSILON * np.abs(WEIGHTS[:, 1] - WEIGHTS[:, 0]).sum()
    highest = exact_margins() + np.where(correct, slope, 0)
    np.testing.assert_allclose(attacked.margins, highest, atol=1e-5)
    assert robust.any() and (correct & ~robust).any() and (~correct).any()

  def test_the_tail_of_a_long_attack_is_short(self):
    sizes = []

    def spying(logits_fn, batch, keys, *, epsilon):
      sizes.append(len(batch.labels))
      return attacks.pgd(logits_fn, batch, keys, epsilon=epsilon)

    settings = {'epsilon': EPSILON}
    correct, robust = (x.sum() for x in exact())
    assert correct == 15  # who are attacked
    for size, passes, expected in (
      (12, 20, [12]),
      (12, 100, [12, 6]),
      (24, 100, [18]),
    ):
      stages = [attacks.Stage('spy', spying, settings, passes=passes)]
      attacked = of_stages(stages, batch_size=size).accuracies({}, SPLIT, KEY)
      assert sizes == expected
      assert attacked.robust.sum() == robust
      sizes.clear()

  def test_a_mask_chooses_examples_as_their_indices_do(self):
    def mean(variables, batch, keys):
      return batch.inputs.mean(axis=(1, 2, 3))

    mask = SPLIT.labels == 1
    found = evaluation.per_example(
      *(evaluation.over_devices(mean), {}, SPLIT, KEY),
      batch_size=8,
      indices=mask,
    )
    expected = SPLIT.images[mask].mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_the_batch_size_changes_nothing(self):
    measured = []
    for batch_size in (8, 3):
      names = 'pgd,apgd_targeted,square'
      measure = evaluator(bumpy, names, batch_size, num_classes=4, num_steps=3)
      attacked = measure.accuracies({}, HARD, KEY)
      measured.append((attacked, measure.lipschitz({}, HARD, KEY)))
    chex.assert_trees_all_close(*measured, rtol=1e-5)

  def test_a_stage_is_given_only_what_stands(self):
    seen = []

    def spying(logits_fn, batch, keys, *, epsilon):
      jax.debug.callback(lambda x: seen.append(np.array(x)), batch.inputs)
      return attacks.pgd(logits_fn, batch, keys, epsilon=epsilon)

    stages = attacks.cascade('pgd', epsilon=EPSILON, num_classes=2)
    stages += (attacks.Stage('spy', spying, {'epsilon': EPSILON}),)
    of_stages(stages, batch_size=2).accuracies({}, SPLIT, KEY)
    jax.effects_barrier()
    given = np.rint(255 * np.concatenate(seen)).astype(np.uint8)
    standing = SPLIT.images[exact()[1]]
    assert {x.tobytes() for x in given} == {x.tobytes() for x in standing}

  def test_points_are_those_that_fool(self):
    measure = evaluator(bumpy, 'pgd', num_classes=4, epsilon=0.02)
    attacked = measure.accuracies({}, HARD, KEY, keep_points=True)
    images = from_bytes(HARD.images)
    broken = ~attacked.robust
    assert broken.any() and attacked.robust.any()
    moved = attacked.points - images
    assert np.abs(moved).max() <= 0.02 + 1e-6
    assert not moved[attacked.robust].any()
    fooled = np.asarray(bumpy(attacked.points).argmax(-1)) != HARD.labels
    np.testing.assert_array_equal(fooled, broken)

  def test_an_interrupted_cascade_goes_on(self):
    measure = evaluator(bumpy, 'pgd,apgd_ce,square', num_classes=4, num_steps=5)
    saved = []
    whole = measure.accuracies(
      {}, HARD, KEY, save=lambda *done: saved.append(done)
    )
    assert [count for count, _ in saved] == [1, 2, 3]
    again = measure.accuracies({}, HARD, KEY, done=saved[0])
    chex.assert_trees_all_equal(again[:3], whole[:3])

  def test_the_accuracy_curve_of_a_linear_network_is_exact(self):
    radii = [0.04, 0.0, 0.01]
    curve = evaluator().accuracies_at({}, SPLIT, KEY, radii)
    assert list(curve) == sorted(radii)
    for radius, attacked in curve.items():
      np.testing.assert_array_equal(attacked.robust, exact(radius)[1])
    with pytest.raises(ValueError, match='epsilon must be .* at most 1, got 8'):
      evaluator().accuracies_at({}, SPLIT, KEY, [8])
    seen = []  # nothing stands at 1
    measure = evaluation.Evaluator(seen.append, cascade=evaluator().cascade)
    with pytest.raises(ValueError, match='epsilon must be .* at most 1, got 8'):
      measure.accuracies_at({}, SPLIT, KEY, [0.01, 1.0, 8])
    assert not seen

  def test_a_cascade_by_name_is_refused(self):
    with pytest.raises(ValueError, match='attacks.cascade'):
      of_stages('autoattack')

  def test_a_stage_of_ones_own_with_no_radius_of_a_ball_is_refused(self):
    stage = attacks.Stage('mine', attacks.pgd, {'epsilon': 8})
    measure = of_stages([stage])
    with pytest.raises(ValueError, match='epsilon must be .* at most 1, got 8'):
      measure.accuracies({}, SPLIT, KEY)

  @parameterized.parameters(
    (dict(images=SPLIT.images / np.float32(255)), 'expected uint8'),
    (dict(labels=SPLIT.labels[:-1]), '37 images but 36'),
    (dict(labels=SPLIT.labels[:, None]), 'integers of shape'),
    (dict(labels=SPLIT.labels + 1), r'labels must be in \[0, 2\)'),
    (dict(labels=2 * SPLIT.labels - 1), r'labels must be in \[0, 2\)'),
  )
  def test_what_is_no_split_of_the_network_is_refused(self, change, message):
    with pytest.raises(ValueError, match=message):
      evaluator().accuracies({}, SPLIT._replace(**change), KEY)

  def test_empty_batches_are_refused(self):
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
      evaluator(batch_size=0).accuracies({}, SPLIT, KEY)

  def test_a_network_that_is_always_wrong_is_not_attacked(self):
    split = Split(SPLIT.images, np.full(37, 1, np.int32))
    stages = (attacks.Stage('never', None),)  # calling it would raise
    attacked = of_stages(stages, always_the_first).accuracies({}, split, KEY)
    assert not attacked.correct.any() and not attacked.robust.any()
    assert (attacked.broken_by == evaluation.UNBROKEN).all()

  def test_a_class_that_is_never_predicted_changes_nothing(self):
    def masked(inputs):
      never = jnp.full((len(inputs), 1), -jnp.inf)
      return jnp.concatenate([linear(inputs), never], axis=1)

    names = 'apgd_dlr,targeted_falling,fab_targeted,square'
    measure = evaluator(masked, names, num_classes=3, num_steps=10)
    attacked = measure.accuracies({}, SPLIT, KEY)
    np.testing.assert_array_equal(attacked.robust, exact()[1])
    with_it, without = (
      evaluator(function).lipschitz({}, SPLIT, KEY)
      for function in (masked, linear)
    )
    chex.assert_trees_all_close(with_it, without, rtol=1e-6)

  def test_more_draws_of_a_randomised_network_break_more(self):
    dropout = nn.Dropout(0.5, deterministic=False)

    def noisy(inputs, key):  # its mean is `linear`
      return linear(
        0.5 + dropout.apply({}, inputs - 0.5, rngs={'dropout': key})
      )

    robust = []
    for num_samples in (1, 50):
      seen = attacks.expected(noisy, KEY, num_samples=num_samples)
      measure = of_stages(
        attacks.cascade('pgd', epsilon=EPSILON, num_classes=2),
        attacked=lambda variables, seen=seen: seen,
      )
      robust.append(measure.accuracies({}, SPLIT, KEY).robust)
    np.testing.assert_array_equal(robust[1], exact()[1])
    assert robust[0].sum() > robust[1].sum()


def test_a_cascade_goes_on_with_what_is_done_of_its_own_split_alone():
  measure, saved = evaluator(linear, 'pgd,square', num_steps=5), []
  measure.accuracies(
    {}, SPLIT, KEY, keep_points=True, save=lambda *done: saved.append(done)
  )
  assert saved[0][1].points is not None
  # Points of the first stage alone would be clean images of the others.
  assert measure.accuracies({}, SPLIT, KEY, done=saved[0]).points is None
  fewer = Split(SPLIT.images[:5], SPLIT.labels[:5])
  with pytest.raises(ValueError, match='of 37 examples, the split has 5'):
    measure.accuracies({}, fewer, KEY, done=saved[0])
