"""APGD, FAB, Square and cascades where the worst or nearest point is known."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import optimize

from robustlip import attacks, losses, projections
from robustlip.attacks.fab import nearest_error, to_hyperplane
from robustlip.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
COUNT = 12
IMAGES = RNG.uniform(0.02, 0.98, (COUNT, 4, 4, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(16, 5)).astype(np.float32)
RADII = {'linf': 0.08, 'l2': 0.3}


def network(num_classes, wrap=lambda x: x):
  def logits_fn(inputs):
    return (
      wrap(inputs - 0.5).reshape(len(inputs), -1) @ WEIGHTS[:, :num_classes]
    )

  return logits_fn


def batch_of(num_classes):
  logits = network(num_classes)(IMAGES)
  return Batch(jnp.asarray(IMAGES), jnp.asarray(logits.argmax(1), jnp.int32))


def project(point, image, epsilon, norm):
  """The nearest point of ball and box; in l2 clip(x + s d) of the largest s."""
  if norm == 'linf':
    return np.clip(np.clip(point, image - epsilon, image + epsilon), 0, 1)
  low, high = 0.0, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    moved = np.clip(image + middle * (point - image), 0, 1) - image
    fits = np.linalg.norm(moved) <= epsilon
    low, high = (middle, high) if fits else (low, middle)
  whole = np.clip(point, 0, 1)
  if np.linalg.norm(whole - image) <= epsilon:
    return whole
  return np.clip(image + low * (point - image), 0, 1)


def worst_margins(num_classes, norm):
  """Largest margin in ball and box, [B]."""
  images = IMAGES.reshape(COUNT, 16).astype(np.float64)
  weights = WEIGHTS[:, :num_classes].T.astype(np.float64)
  labels = np.asarray(batch_of(num_classes).labels)
  normals = weights[None] - weights[labels][:, None]
  moved = [
    [project(image + 1e6 * n, image, RADII[norm], norm) for n in each]
    for image, each in zip(images, normals, strict=True)
  ]
  margins = ((np.array(moved) - 0.5) * normals).sum(-1)
  margins[np.arange(COUNT), labels] = -np.inf
  return margins.max(axis=1)


def fooled_by(name, num_classes, norm, **settings):
  """Whom the stages of an attack fool, and the margins where they end."""
  batch, logits_fn = batch_of(num_classes), network(num_classes)
  stages = attacks.cascade(
    name, epsilon=RADII[norm], num_classes=num_classes, norm=norm, **settings
  )
  margins = []
  run = jax.jit(partial(stages[0].attack, logits_fn))
  for stage in stages:
    assert stage.attack is stages[0].attack
    points = run(batch, KEY, **stage.settings)
    lengths = projections.norms(points - batch.inputs, norm=norm)
    assert (lengths <= RADII[norm] + 1e-6).all()
    assert points.min() >= 0 and points.max() <= 1
    margins.append(losses.margins(logits_fn(points), batch.labels))
  return np.max(margins, axis=0)


class LinearTest(chex.TestCase):
  @parameterized.product(
    name=['apgd_ce', 'apgd_dlr', 'apgd_targeted'], norm=['linf', 'l2']
  )
  def test_two_classes(self, name, norm):
    exact = worst_margins(2, norm)
    assert (exact > 1e-3).any() and (exact < -1e-3).any()
    margins = fooled_by(name, 2, norm)
    clear = np.abs(exact) > 1e-3
    np.testing.assert_array_equal(margins[clear] > 0, exact[clear] > 0)

  @parameterized.product(
    name=['apgd_targeted', 'fab_targeted'], norm=['linf', 'l2']
  )
  def test_targeted_attacks_find_every_class(self, name, norm):
    exact = worst_margins(5, norm)
    margins = fooled_by(name, 5, norm)
    clear = np.abs(exact) > 1e-2
    np.testing.assert_array_equal(margins[clear] > 0, exact[clear] > 0)

  def test_strong_is_exact(self):
    for norm in projections.NORMS:
      exact = worst_margins(5, norm)
      margins = fooled_by('targeted_falling', 5, norm)
      np.testing.assert_allclose(margins, exact, atol=2e-3)

  def test_square_needs_no_gradient(self):
    flat = network(2, jax.lax.stop_gradient)
    batch = batch_of(2)
    attack = partial(attacks.square, flat, batch, KEY, num_queries=1000)
    for norm, share in (('linf', 0.999), ('l2', 0.5)):
      exact = worst_margins(2, norm)
      clean = losses.margins(flat(batch.inputs), batch.labels)
      points = attack(epsilon=RADII[norm], norm=norm)
      margins = losses.margins(flat(points), batch.labels)
      robust = exact < 0  # it stops elsewhere once the network is fooled
      gained = (margins - clean) / (exact - clean)
      assert (gained[robust] > share).all() and (gained < 1 + 1e-5).all()
      if norm == 'linf':
        np.testing.assert_array_equal(margins > 0, exact > 0)

  def test_square_finds_colours(self):
    images = np.full((4, 6, 5, 3), 0.5, np.float32)
    weights = np.array([1.0, -1.0, 1.0], np.float32)

    def logits_fn(inputs):  # 30 pixels of .1 in each of three channels
      score = (inputs - 0.5).sum((1, 2)) @ weights
      return jnp.stack([jnp.full_like(score, 8.9), score], axis=1)

    batch = Batch(jnp.asarray(images), jnp.zeros(4, jnp.int32))
    points = attacks.square(logits_fn, batch, KEY, epsilon=0.1)
    assert (losses.margins(logits_fn(points), batch.labels) > 0).all()


class ApgdTest(chex.TestCase):
  @parameterized.parameters('linf', 'l2')
  def test_the_published_algorithm(self, norm):
    """Against NumPy, on a landscape of many summits that fools nobody."""
    slopes = RNG.normal(size=16)
    epsilon, num_steps = RADII[norm], 40

    def logits_fn(inputs):
      score = jnp.sin(20 * inputs.reshape(len(inputs), -1)) @ jnp.float32(
        slopes
      )
      return jnp.stack([jnp.zeros_like(score), score - 100], axis=1)

    batch = Batch(jnp.asarray(IMAGES), jnp.zeros(COUNT, jnp.int32))
    keys = jax.random.split(KEY, COUNT)
    points = attacks.apgd(
      logits_fn, batch, keys, epsilon=epsilon, num_steps=num_steps, norm=norm
    )
    starts = projections.random_start(
      batch.inputs, keys, epsilon=epsilon, norm=norm
    )
    for image, start, found in zip(IMAGES, starts, points, strict=True):
      expected = transcribed(
        np.ravel(image).astype(np.float64),
        np.ravel(start).astype(np.float64),
        lambda x: np.sin(20 * x) @ slopes,
        lambda x: 20 * np.cos(20 * x) * slopes,
        epsilon,
        num_steps,
        norm,
      )
      np.testing.assert_allclose(np.ravel(found), expected, atol=1e-3)

  def test_dlr_by_hand(self):
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0]])
    labels, targets = jnp.array([0, 1]), jnp.array([2, 0])
    untargeted = attacks.dlr(logits, labels)
    np.testing.assert_allclose(untargeted, [-2 / 4, 2 / 4], rtol=1e-6)
    targeted = attacks.dlr(logits, labels, targets)
    np.testing.assert_allclose(targeted, [-4 / 4.5, 2 / 4.5], rtol=1e-6)
    # With too few classes the margin takes its place.
    np.testing.assert_allclose(attacks.dlr(logits[:, :2], labels), [-2, 2])
    three = attacks.dlr(logits[:, :3], labels, targets)
    np.testing.assert_allclose(three, [-4, 2])


def transcribed(image, start, value, slope, epsilon, num_steps, norm):
  """Algorithm 1 of arXiv:2003.01690 in one dimension of examples."""
  shares = [0.0, 0.22]
  while shares[-1] < 1:
    shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
  checkpoints = [int(np.ceil(round(s * num_steps, 9))) for s in shares]
  size = 2 * epsilon
  halved, rises, last = False, 0, 0
  x = previous = best = start
  checked = value(start)
  for k in range(1, num_steps + 1):
    gradient = slope(x)
    unit = np.sign(gradient)
    if norm == 'l2':
      unit = gradient / np.linalg.norm(gradient)
    z = project(x + size * unit, image, epsilon, norm)
    a = 0.75 if k > 1 else 1.0
    step = a * (z - x) + (1 - a) * (x - previous)
    previous, x = x, project(x + step, image, epsilon, norm)
    rises += value(x) > value(previous)
    if value(x) > value(best):
      best = x
    if k in checkpoints:
      few = rises < 0.75 * (k - last)
      stuck = not halved and value(best) == checked
      halved = few or stuck
      if halved:
        size, x = size / 2, best
      checked, rises, last = value(best), 0, k
  return best


class FabTest(chex.TestCase):
  @parameterized.parameters('linf', 'l2')
  def test_distances_of_an_affine_network(self, norm):
    batch, logits_fn = batch_of(5), network(5)
    found, exact = [], []
    search = jax.jit(partial(nearest_error, logits_fn, norm=norm))
    for rank in range(4):
      targets = attacks.gradient.likely_wrong(
        logits_fn(batch.inputs), batch.labels, rank
      )
      nearest = search(batch, targets=targets)
      wrong = logits_fn(nearest.points).argmax(1) != batch.labels
      np.testing.assert_array_equal(wrong, jnp.isfinite(nearest.distances))
      lengths = projections.norms(nearest.points - batch.inputs, norm=norm)
      np.testing.assert_allclose(
        lengths[wrong], nearest.distances[wrong], rtol=1e-6
      )
      found.append(nearest.distances)
      none = search(
        batch, targets=targets.at[0].set(5).at[1].set(batch.labels[1])
      )
      assert np.isnan(none.distances[:2]).all()
      np.testing.assert_array_equal(none.distances[2:], nearest.distances[2:])
      wrong = batch._replace(labels=targets)  # the image itself is an error
      itself = search(wrong, targets=batch.labels)
      np.testing.assert_array_equal(itself.distances, 0)
      np.testing.assert_array_equal(itself.points, batch.inputs)
      normals = (WEIGHTS[:, targets] - WEIGHTS[:, batch.labels]).T
      exact.append(
        [
          shortest(image, normal, -(image - 0.5) @ normal, norm)
          for image, normal in zip(
            IMAGES.reshape(COUNT, 16), normals, strict=True
          )
        ]
      )
    found, exact = np.min(found, axis=0), np.min(exact, axis=0)
    assert np.isfinite(exact).all()
    assert (found >= exact - 1e-4).all()
    np.testing.assert_allclose(found, exact, rtol=0.03)

  @parameterized.product(norm=['linf', 'l2'], sign=[-1, 1])
  def test_the_shortest_step_to_a_hyperplane(self, norm, sign):
    points = RNG.uniform(size=(6, 5)).astype(np.float32)
    points[0] = [0, 1, 0, 1, 0]
    normals = RNG.normal(size=(6, 5)).astype(np.float32)
    rises = sign * np.array([0.05, 0.1, 0.2, 0.4, 0.8, 50.0], np.float32)
    steps = to_hyperplane(
      jnp.asarray(points), jnp.asarray(normals), jnp.asarray(rises), norm=norm
    )
    lengths = projections.norms(steps, norm=norm)
    for i in range(6):
      exact = shortest(points[i], normals[i], rises[i], norm)
      if np.isfinite(exact):
        np.testing.assert_allclose(lengths[i], exact, rtol=1e-4)
        np.testing.assert_allclose(steps[i] @ normals[i], rises[i], rtol=1e-4)
      else:  # out of reach: as far as the box allows
        corner = (np.sign(rises[i] * normals[i]) > 0).astype(np.float32)
        np.testing.assert_allclose(steps[i], corner - points[i], atol=1e-6)

  @parameterized.parameters(*RADII)
  def test_hyperplanes_nearly_out_of_reach_do_not_keep_each_other_busy(
    self, norm
  ):
    rng = np.random.default_rng(0)  # rounding is larger than what is missing
    points, normals = rng.uniform(size=(2, 500, 64)).astype(np.float32)
    normals = 2 * normals - 1
    reach = (abs(normals) * np.where(normals > 0, 1 - points, points)).sum(1)
    rises = reach * (1 - 10 ** rng.uniform(-6, -1, 500))
    steps = to_hyperplane(
      *map(jnp.asarray, (points, normals, np.float32(rises))), norm=norm
    )
    found = (np.float64(steps) * normals).sum(axis=1)
    np.testing.assert_allclose(found, rises, rtol=1e-5)


def shortest(point, normal, rise, norm):
  """Length of the shortest step in the box with normal . step = rise."""
  point, normal = np.float64(point), np.float64(normal)
  size = len(point)
  if norm == 'linf':  # (step, length): minimise the length
    above = np.hstack([np.eye(size), -np.ones((size, 1))])
    below = np.hstack([-np.eye(size), -np.ones((size, 1))])
    solved = optimize.linprog(
      np.r_[np.zeros(size), 1],
      A_ub=np.vstack([above, below]),
      b_ub=np.zeros(2 * size),
      A_eq=np.r_[normal, 0][None],
      b_eq=[rise],
      bounds=[(-p, 1 - p) for p in point] + [(0, None)],
    )
    return solved.fun if solved.status == 0 else np.inf
  far = np.maximum(normal * np.sign(rise) * -point, 0) + np.maximum(
    normal * np.sign(rise) * (1 - point), 0
  )
  if far.sum() < abs(rise):
    return np.inf
  solved = optimize.minimize(
    lambda step: step @ step,
    np.zeros(size),
    jac=lambda step: 2 * step,
    bounds=[(-p, 1 - p) for p in point],
    constraints={'type': 'eq', 'fun': lambda step: normal @ step - rise},
    method='SLSQP',
    options={'ftol': 1e-14, 'maxiter': 500},
  )
  return np.sqrt(solved.fun)


class CascadeTest(chex.TestCase):
  def names(self, *args, **settings):
    settings = dict(epsilon=0.1, num_classes=10) | settings
    return [stage.name for stage in attacks.cascade(*args, **settings)]

  def test_the_standard_order(self):
    expected = ['apgd_ce'] + 9 * ['apgd_targeted'] + 9 * ['fab_targeted']
    assert self.names('autoattack') == [*expected, 'square']
    assert self.names(attacks.AUTOATTACK) == self.names('autoattack')
    assert self.names('square, pgd') == ['square', 'pgd']
    passes = [
      sum(s.passes for s in attacks.cascade(x, epsilon=0.1, num_classes=10))
      for x in ('autoattack', 'strong')
    ]
    assert passes == [10 * 2 * 101 + 9 * 100 * 3 + 5001, 10 * 2 + 9 * 20 * 2]
    assert self.names('apgd_targeted', num_classes=2) == [
      'apgd_targeted_margin'
    ]

  def test_restarts_are_stages_of_what_draws(self):
    names = self.names('pgd,fab_targeted', num_classes=3, num_restarts=2)
    assert names == ['pgd', 'pgd', 'fab_targeted', 'fab_targeted']

  def test_restarts_differ_and_a_stage_repeats_itself(self):
    batch = batch_of(5)
    one, two = attacks.cascade(
      'pgd', epsilon=0.1, num_classes=5, num_restarts=2, num_steps=1
    )
    points = [
      s.attack(network(5), batch, KEY, **s.settings) for s in (one, two)
    ]
    again = one.attack(network(5), batch, KEY, **one.settings)
    chex.assert_trees_all_equal(points[0], again)
    assert (points[0] != points[1]).any()

  @parameterized.parameters(
    (dict(names='pgd,fgsm'), "unknown attack 'fgsm'"),
    (dict(names=''), "unknown attack ''"),
    (dict(names=()), 'no attack is named'),
    (dict(num_classes=1), 'num_classes must be at least 2'),
    (dict(num_steps=0), 'num_steps must be at least 1'),
    (dict(num_restarts=0), 'num_restarts must be at least 1'),
    (dict(names='fab_targeted', num_restarts=2), 'draws nothing'),
    (dict(norm='l1'), "got 'l1'"),
    (dict(epsilon=8), 'epsilon must be at least 0 and at most 1, got 8'),
  )
  def test_wrong_settings_are_named(self, settings, message):
    settings = dict(names='pgd', epsilon=0.1, num_classes=3) | settings
    with pytest.raises(ValueError, match=message):
      stages = attacks.cascade(**settings)
      stages[0].attack(network(3), batch_of(3), KEY, **stages[0].settings)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(targets=lambda labels: labels), 'targets must differ'),
    (dict(targets=lambda labels: labels + 5), r'targets must be in \[0, 5\)'),
    (dict(targets=lambda labels: labels[:1]), 'targets must be integers'),
    (dict(objective='mse'), "got 'mse'"),
    (dict(num_steps=0), 'num_steps must be at least 1'),
  ],
)
def test_wrong_arguments_are_named(change, message):
  batch = batch_of(5)
  if 'targets' in change:
    change = dict(targets=change['targets'](batch.labels))
  with pytest.raises(ValueError, match=message):
    attacks.apgd(network(5), batch, KEY, epsilon=0.1, **change)
  if 'objective' not in change and 'num_steps' not in change:
    with pytest.raises(ValueError, match=message):
      attacks.fab(network(5), batch, KEY, epsilon=0.1, **change)
