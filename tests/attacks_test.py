"""Attacks on networks whose worst points are known."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from robustlip import attacks, losses, methods, projections, released
from robustlip.types import Batch

KEY = jax.random.key(0)
INPUTS = jax.random.uniform(
  jax.random.key(1), (7, 4, 4, 1), minval=0.4, maxval=0.6
)
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2, 0])
BATCH = Batch(INPUTS, LABELS)


def linear(inputs):
  return inputs.reshape(len(inputs), -1) @ WEIGHTS


def two_class(inputs):
  return linear(inputs)[:, :2]


def slanted(inputs):
  """Logit 1 rises with every pixel, logit 0 falls."""
  total = inputs.reshape(len(inputs), -1).sum(axis=1)
  return jnp.stack([-total, total], axis=1)


TWO, FIRST = Batch(INPUTS, LABELS % 2), Batch(INPUTS, 0 * LABELS)


def worst_two_class(epsilon, norm):
  """The exact worst point of a linear two-class network inside the box."""
  away = np.asarray(WEIGHTS[:, 1] - WEIGHTS[:, 0])
  signs = np.where(np.asarray(TWO.labels) == 0, 1.0, -1.0)[:, None] * away
  if norm == 'l2':
    signs = signs / np.linalg.norm(signs, axis=1, keepdims=True)
  else:
    signs = np.sign(signs)
  return INPUTS + epsilon * signs.reshape(INPUTS.shape)


class AttacksTest(chex.TestCase):
  @parameterized.parameters('linf', 'l2')
  def test_pgd_is_exact_on_a_linear_network(self, norm):
    attack = functools.partial(attacks.pgd, two_class, norm=norm, num_steps=60)
    points = jax.jit(attack)(TWO, KEY, epsilon=0.1)
    expected = worst_two_class(0.1, norm)
    chex.assert_trees_all_close(points, expected, atol=1e-4)

  @parameterized.parameters(1.0, 10000.0)
  def test_certainty_is_not_robustness(self, scale):
    # Where the gradient of cross entropy is 0 in float32, too.
    def certain(inputs):
      return scale * two_class(inputs)

    points = attacks.pgd(certain, TWO, KEY, epsilon=0.1, num_steps=60)
    chex.assert_trees_all_close(points, worst_two_class(0.1, 'linf'), atol=1e-4)

  def test_best_iterate_is_the_highest_seen(self):
    # Ascent on a parabola with steps too large to settle on its top.
    def objective(points):
      return -((points - INPUTS - 0.03) ** 2).sum(axis=(1, 2, 3))

    ascend = functools.partial(
      attacks.ascend, objective, INPUTS, KEY, epsilon=0.1, start=INPUTS
    )
    visited = [objective(ascend(step_size=0.04, num_steps=n)) for n in range(5)]
    best = objective(ascend(step_size=0.04, num_steps=4, keep='best'))
    np.testing.assert_allclose(best, np.max(visited, axis=0), rtol=1e-6)
    assert (best > visited[-1]).all()

  def test_restarts_never_help_the_network(self):
    def bumpy(inputs):
      waves = jnp.sin(40 * inputs).reshape(len(inputs), -1)
      return waves @ WEIGHTS

    def margin(points):
      return losses.margins(bumpy(points), LABELS)

    keys = jax.random.split(KEY, 7)
    attack = functools.partial(attacks.pgd, bumpy, BATCH, keys, epsilon=0.2)
    several = margin(attack(num_restarts=5))
    again = margin(attack(num_restarts=8))
    assert (again >= several).all() and (again > several).any()

  def test_multi_targeted_is_exact_on_a_linear_network(self):
    epsilon = 0.05
    points = attacks.multi_targeted(
      linear, BATCH, KEY, epsilon=epsilon, num_classes=3, num_steps=30
    )
    gaps = WEIGHTS.T[None] - WEIGHTS.T[LABELS][:, None]  # [B, target, pixel]
    x = INPUTS.reshape(7, 1, -1)
    worst = (x * gaps).sum(-1) + epsilon * jnp.abs(gaps).sum(-1)
    worst = jnp.where(jax.nn.one_hot(LABELS, 3, dtype=bool), -jnp.inf, worst)
    chex.assert_trees_all_close(
      losses.margins(linear(points), LABELS), worst.max(1), atol=1e-4
    )

  def test_the_first_stage_is_at_the_runner_up(self):
    first = attacks.cascade(
      'multi_targeted', epsilon=0.05, num_classes=3, num_steps=30
    )[0]
    points = first.attack(linear, BATCH, KEY, **first.settings)
    for point, image, label in zip(points, INPUTS, LABELS, strict=True):
      wrong = [c for c in range(3) if c != label]
      logits = np.ravel(image) @ WEIGHTS
      gap = WEIGHTS[:, max(wrong, key=lambda c: logits[c])] - WEIGHTS[:, label]
      reached = np.ravel(point) @ gap
      exact = np.ravel(image) @ gap + 0.05 * jnp.abs(gap).sum()
      np.testing.assert_allclose(reached, exact, atol=1e-4)

  def test_the_published_schedules(self):
    walk = dict(epsilon=0.1, start=INPUTS)
    others = functools.partial(attacks.multi_targeted, num_classes=2)
    for attack, defaults, num_steps, step in (
      (attacks.pgd, attacks.pgd, 10, 0.02),
      (others, attacks.targeted, 20, 0.01),
    ):
      one = attack(slanted, FIRST, KEY, num_steps=1, **walk)
      chex.assert_trees_all_close(one, INPUTS + step, atol=1e-6)
      steps = inspect.signature(defaults).parameters['num_steps']
      assert steps.default == num_steps


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(epsilon=0.1, num_steps=-1), 'num_steps must be at least 0'),
    (dict(epsilon=0.1, num_restarts=0), 'num_restarts must be at least 1'),
    (dict(epsilon=0.1, norm='l1'), "got 'l1'"),
    (dict(epsilon=0.1, num_restarts=2, start=INPUTS), 'explicit start'),
    (dict(epsilon=0.1, start=INPUTS[:1]), 'start must be'),
    (dict(epsilon=0.1, start=jnp.uint8(255 * INPUTS)), 'must be floats'),
  ],
)
def test_wrong_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    attacks.pgd(linear, BATCH, KEY, **settings)


def test_an_objective_is_one_number_an_example():
  for objective in (jnp.mean, lambda x: x.reshape(len(x), -1)[:, :1]):
    with pytest.raises(ValueError, match=r'objective must be \(7,\)'):
      attacks.ascend(
        objective, INPUTS, KEY, epsilon=0.1, step_size=0.1, num_steps=1
      )


@pytest.mark.parametrize(
  'attack', [attacks.multi_targeted, released.multi_targeted]
)
def test_the_number_of_classes_is_the_networks(attack):
  for num_classes in (2, 4):
    with pytest.raises(ValueError, match=f'is {num_classes}, .* has 3'):
      attack(linear, TWO, KEY, epsilon=0.1, num_classes=num_classes)


@pytest.mark.parametrize(
  'change',
  [
    lambda labels: labels[:, None],
    lambda labels: labels[:1],
    lambda labels: labels[0],
    lambda labels: labels + 1,
    lambda labels: labels - 1,
    lambda labels: 1.0 * labels,
  ],
)
def test_labels_that_do_not_fit_are_refused(change):
  batch = BATCH._replace(labels=change(LABELS))
  targeted = functools.partial(attacks.multi_targeted, num_classes=3)
  for attack in (attacks.pgd, targeted):
    with pytest.raises(ValueError, match='labels must be'):
      attack(linear, batch, KEY, epsilon=0.1)


@pytest.mark.parametrize(
  'inputs, message',
  [
    (255 * INPUTS, r'must be in \[0, 1\]'),
    (2 * INPUTS - 1, r'must be in \[0, 1\]'),
    (jnp.nan * INPUTS, r'must be in \[0, 1\]'),
    (INPUTS.at[1].set(jnp.nan), 'there are NaN among them'),
    (INPUTS.at[0, 0, 0, 0].set(1.0000001), r'to 1\.00000012'),
    ((255 * INPUTS).astype(jnp.uint8), 'uint8; images of bytes'),
    (INPUTS.astype(jnp.bfloat16), 'float32 in .*, got bfloat16'),
    (INPUTS[:0], 'there are no images'),
  ],
)
def test_what_are_no_images_is_refused(inputs, message):
  batch = Batch(inputs, LABELS[: len(inputs)])
  with pytest.raises(ValueError, match=message):
    attacks.pgd(linear, batch, KEY, epsilon=0.1)


def test_negative_radii_are_refused():
  for epsilon in (-0.1, np.float32(-0.1), jnp.float32(np.nan)):
    with pytest.raises(ValueError, match='epsilon must be at least 0'):
      attacks.pgd(linear, BATCH, KEY, epsilon=epsilon)
  radius = jnp.float32(0.1)  # concrete, but not to comparisons within jit
  jax.jit(lambda key: attacks.pgd(linear, BATCH, key, epsilon=radius))(KEY)


STANDARDISED = INPUTS.at[2:4].add(0.6).at[5, 0, 0, 0].set(jnp.nan)
OUTSIDE = np.array([False, False, True, True, False, True, False])


def test_within_jit_images_out_of_range_come_back_as_nan():
  attack = functools.partial(released.multi_targeted, num_classes=3)
  points = jax.jit(
    lambda inputs: attack(linear, Batch(inputs, LABELS), KEY, epsilon=0.1)
  )(STANDARDISED)
  nan = np.isnan(points)
  np.testing.assert_array_equal(nan.all(axis=(1, 2, 3)), OUTSIDE)
  np.testing.assert_array_equal(nan.any(axis=(1, 2, 3)), OUTSIDE)


@pytest.mark.parametrize(
  'epsilon, message',
  [
    (8, 'at most 1, got 8'),
    (np.full(4, 0.1, np.float32), r'one per example, \(7,\), got shape \(4,\)'),
    (np.full((7, 1), 0.1, np.float32), r'got shape \(7, 1\)'),
  ],
)
def test_a_radius_is_a_number_or_one_per_example(epsilon, message):
  for call in (attacks.pgd, functools.partial(attacks.apgd, num_steps=3)):
    with pytest.raises(ValueError, match=message):
      call(linear, BATCH, KEY, epsilon=epsilon)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_each_example_has_a_key_a_radius_and_steps_of_its_own(norm):
  radii = jnp.linspace(0.0, 0.12, 7)
  keys = jax.random.split(KEY, 7)
  run = functools.partial(attacks.pgd, linear, norm=norm, num_restarts=2)
  together = run(BATCH, keys, epsilon=radii, step_size=radii / 3)
  chex.assert_trees_all_equal(together[0], INPUTS[0])
  for i in (3, 6):
    alone = Batch(INPUTS[i : i + 1], LABELS[i : i + 1])
    expected = run(
      alone, keys[i : i + 1], epsilon=radii[i], step_size=radii[i] / 3
    )
    chex.assert_trees_all_close(together[i : i + 1], expected, atol=1e-6)


@pytest.mark.parametrize('name', ['at', 'rst', 'trades', 'llr'])
def test_the_inner_problem_of_a_method_keeps_to_its_ball(name):
  for norm in projections.NORMS:
    method = methods.METHODS[name](epsilon=0.02, norm=norm)
    moves = method.maximize(linear, FIRST, KEY) - INPUTS
    assert 0 < projections.norms(moves, norm=norm).max() < 0.0201


@pytest.mark.parametrize('name', ['at', 'rst', 'trades'])
@pytest.mark.parametrize('num_steps', [1, 3])
def test_the_inner_problem_crosses_the_ball_in_any_number_of_steps(
  name, num_steps
):
  method = methods.METHODS[name](epsilon=0.1, num_steps=num_steps)
  points = method.maximize(two_class, TWO, KEY)
  if name != 'trades':  # whose objective rises on both sides of the image
    expected = worst_two_class(0.1, 'linf')
    chex.assert_trees_all_close(points, expected, atol=1e-6)
  sizes = projections.norms(points - INPUTS)
  chex.assert_trees_all_close(sizes, jnp.full(7, 0.1), atol=1e-6)


def test_numbers_of_double_precision_leave_float32_alone():
  with jax.enable_x64(True):
    points = attacks.pgd(
      linear, BATCH, KEY, epsilon=np.float64(0.1), step_size=np.float64(0.02)
    )
  assert points.dtype == jnp.float32


@pytest.mark.parametrize(
  'wrap, message',
  [
    (lambda x: x[:, :1], '2 classes at least'),
    (lambda x: (x, x), 'logits .* alone, got a tuple'),
    (lambda x: {'a': x}, 'logits .* alone, got a dict'),
  ],
)
def test_a_network_returns_logits_of_several_classes_alone(wrap, message):
  with pytest.raises(ValueError, match=message):
    attacks.pgd(lambda x: wrap(linear(x)), BATCH, KEY, epsilon=0.1)


def test_steps_may_fall():
  points = attacks.pgd(
    *(slanted, FIRST, KEY),
    epsilon=0.1,
    step_size=lambda step: 0.01 / (step + 1),
    num_steps=3,
    start=INPUTS,
  )
  expected = INPUTS + 0.01 * (1 + 1 / 2 + 1 / 3)
  chex.assert_trees_all_close(points, expected, atol=1e-6)
  falling = attacks.falling(0.1, 10)
  np.testing.assert_allclose(
    [falling(0), falling(5), falling(10)], [0.2, 0.1, 0.0], atol=1e-6
  )


def test_the_gradient_of_the_mean_is_the_mean_of_the_gradients():
  def noisy(inputs, key):
    kept = jax.random.bernoulli(key, 0.5, inputs.shape)
    return linear(jnp.where(kept, inputs, 0.0) ** 2)

  def gradient(network):
    return jax.grad(lambda x: (network(x)[:, 1] - network(x)[:, 0]).sum())(
      INPUTS
    )

  keys = jax.random.split(KEY, 3)
  draws = [gradient(functools.partial(noisy, key=key)) for key in keys]
  found = gradient(attacks.expected(noisy, KEY, num_samples=3))
  np.testing.assert_allclose(found, np.mean(draws, axis=0), atol=1e-6)
  assert np.abs(draws[0] - draws[1]).max() > 0.1
  other = jax.random.key(0, impl='rbg')
  keys = jax.random.split(projections.threefry(other), 3)
  found = attacks.expected(noisy, other, num_samples=3)(INPUTS)
  each = [noisy(INPUTS, key) for key in keys]
  np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
  with pytest.raises(ValueError, match='num_samples must be at least 1'):
    attacks.expected(noisy, KEY, num_samples=0)


@pytest.mark.parametrize(
  'attack', [attacks.targeted, attacks.apgd, attacks.fab]
)
def test_points_of_a_target_that_is_none_are_no_numbers(attack):
  @jax.jit
  def points(targets):  # not known, so that they cannot be refused
    batch = Batch(INPUTS[:3], jnp.zeros(3, int))
    settings = dict(targets=targets, epsilon=0.1, num_steps=2)
    return attack(linear, batch, KEY, **settings)

  found = np.isnan(points(jnp.array([1, 0, 7])))
  np.testing.assert_array_equal(found.all((1, 2, 3)), [False, True, True])
  assert not found[0].any()


def test_numbers_that_reach_nowhere_are_refused():
  for changes in (dict(epsilon=np.inf, norm='l2'), dict(step_size=np.inf)):
    with pytest.raises(ValueError, match='at least 0 and finite, got inf'):
      attacks.pgd(linear, BATCH, KEY, **dict(epsilon=0.1) | changes)
  for attack in (attacks.fab, attacks.apgd):
    with pytest.raises(ValueError, match='num_steps must be at least 1'):
      attack(
        *(linear, BATCH, KEY),
        epsilon=0.1,
        targets=(LABELS + 1) % 3,
        num_steps=0,
      )
  for method in (methods.at, methods.trades):
    with pytest.raises(ValueError, match='num_steps must be at least 1'):
      method(epsilon=0.1, num_steps=0)
