"""Staircase fits by GR and LLR, as released code and as papers define them.

Shared arguments: `data` is a `splines.Data`. Every objective is a sum over
examples plus the roughness penalty of `splines`. If l = (f(x) - y)^2 is the
loss of one example, the papers' penalties depend on l'(x) = 2 (f(x) - y) f'(x),
its gradient with respect to the input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from experiments.staircase_fits import convex_fits, splines
from experiments.staircase_fits.convex_fits import Fit


def gr_released(data: splines.Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta / 2 * sum |error| ||features||_2.

  The released penalty: it has the gradient with respect to the coefficients.
  """
  lengths = np.linalg.norm(data.center, axis=1)[data.groups]
  return convex_fits.minimize(
    convex_fits.least_squares(data),
    data.center[None],
    data.groups,
    data.targets,
    costs=beta / 2 * lengths,
  )


_FIRST = np.diff(np.eye(splines.NUM_COEFFICIENTS))
_SLOPE_ROWS = _FIRST @ _FIRST.T


def _released_slopes(data: splines.Data) -> np.ndarray:
  """What the released code uses as f'(x): features [K, 34], times coefficients.

  They are row k of D D', where D takes first differences and k is the knot
  nearest to x: minus the second difference of the coefficients there.
  """
  points = np.zeros(len(data.counts))
  points[data.groups] = data.inputs
  distances = np.abs(points[:, None] - splines.INNER_KNOTS)
  return _SLOPE_ROWS[np.argmin(distances, axis=1) + 2]


def _released_sides(data: splines.Data, beta: float):
  """The objective's quadratic (H, g) for either shift, up to a constant."""
  hessian, gradient, _ = convex_fits.least_squares(data, 1 - beta)
  slopes = _released_slopes(data)
  sums = np.bincount(data.groups, data.targets)
  cross = slopes.T @ (data.counts[:, None] * data.center)

  def side(features, shift):
    square = features.T @ (data.counts[:, None] * features)
    first_order = -shift * (cross + cross.T)
    return (
      hessian + beta * (square + first_order),
      gradient + beta * (features.T @ sums - shift * slopes.T @ sums),
    )

  left, _, right = data.around
  return side(left, -splines.SHIFT), side(right, splines.SHIFT)


def llr_released(data: splines.Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta * max(l(-1/3), l(1/3)), sums over examples.

  l(d) is the summed error at x + d, minus that at x, minus d times the summed
  "gradient", with `_released_slopes` in place of f'(x). So the objective is the
  maximum of two quadratics. Its minimum is the largest minimum over their
  convex combinations, if that combination is convex; else the gap is None.
  """
  sides = _released_sides(data, beta)

  def value(coefficients, quadratic):
    hessian, gradient = quadratic
    return coefficients @ hessian @ coefficients - 2 * gradient @ coefficients

  def mixture(weight):
    return [(1 - weight) * a + weight * b for a, b in zip(*sides, strict=True)]

  def slope(weight):
    best = np.linalg.solve(*mixture(weight))
    return value(best, sides[1]) - value(best, sides[0])

  if slope(0.0) <= 0:
    weight = 0.0
  elif slope(1.0) >= 0:
    weight = 1.0
  else:
    weight = scipy.optimize.brentq(slope, 0.0, 1.0, xtol=1e-15)
  best = mixture(weight)
  coefficients = np.linalg.solve(*best)
  gap = max(value(coefficients, s) for s in sides) - value(coefficients, best)
  convex = np.linalg.eigvalsh(best[0])[0] >= 0
  return Fit(coefficients, gap if convex else None)


def gr(data: splines.Data, *, beta: float) -> Fit:
  """Minimizes the sum of l + beta / 2 * l'(x)^2 from the natural fit.

  Not convex: a local minimum. Source: Finlay & Oberman 2021,
  arXiv:1905.11468.
  """
  start = convex_fits.natural(data).coefficients
  return Fit(_descend(_gr_objective, start, data, beta), None)


@jax.jit
@jax.value_and_grad
def _gr_objective(coefficients, data, beta):
  error = splines.errors(coefficients, data)[1]
  slope = (data.slope @ coefficients)[data.groups]
  squares = error**2 + beta / 2 * (2 * error * slope) ** 2
  return squares.sum() + splines.penalty(coefficients)


def _descend(objective, coefficients, data, *numbers) -> np.ndarray:
  """A local minimum from a start, in double precision."""
  with jax.enable_x64(True):
    return scipy.optimize.minimize(
      objective,
      coefficients,
      (jax.device_put(data), *numbers),
      method='BFGS',
      jac=True,
      options={'gtol': 1e-8},  # some directions are flat
    ).x


def llr(data: splines.Data, *, linearity: float, gradient: float) -> Fit:
  """Minimizes sums of l + linearity * g + gradient * |d l'(x)|.

  g is the larger of |l(x + d) - l(x) - d l'(x)| over d = +-1/3. Every absolute
  value |v| is smoothed to sqrt(v^2 + t^2), with t decreasing to 1e-5; each
  problem starts from the solution of the one before. Not convex: a local
  minimum. Source: Qin et al. 2019, arXiv:1907.02610.
  """
  coefficients = convex_fits.natural(data).coefficients
  for smoothing in 10.0 ** -np.arange(1, 6):
    coefficients = _descend(
      _llr_objective, coefficients, data, linearity, gradient, smoothing
    )
  return Fit(coefficients, None)


@jax.jit
@jax.value_and_grad
def _llr_objective(coefficients, data, linearity, gradient, smoothing):
  def absolute(values):
    return jnp.sqrt(values**2 + smoothing**2).sum()

  left, center, right = splines.errors(coefficients, data)
  slope = (data.slope @ coefficients)[data.groups]
  change = 2 * splines.SHIFT * center * slope  # d l'(x), d = 1/3
  # max(|a|, |b|) = (|a + b| + |a - b|) / 2
  largest = absolute(left**2 + right**2 - 2 * center**2)
  largest += absolute(right**2 - left**2 - 2 * change)
  return (
    (center**2).sum()
    + linearity / 2 * largest
    + gradient * absolute(change)
    + splines.penalty(coefficients)
  )
