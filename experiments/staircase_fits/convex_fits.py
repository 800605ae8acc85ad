"""Staircase fits with convex objectives, solved to optimality.

Every objective is a sum over examples plus the roughness penalty of `splines`.
They are quadratic programs; Clarabel's dual value bounds how far a fit is from
optimal.

Shared arguments: `data` is a `splines.Data`.
"""

from typing import Any, NamedTuple

import clarabel
import numpy as np
import scipy.sparse

from experiments.staircase_fits import splines


class Fit(NamedTuple):
  """A fitted spline."""

  coefficients: np.ndarray  # [34]
  optimality_gap: float | None  # objective minus a lower bound, if convex


def least_squares(data: splines.Data, weight: float = 1.0) -> tuple:
  """(H, g, c) with weight * squared error + penalty = t'Ht - 2 g't + c."""
  hessian = data.center.T @ (data.counts[:, None] * data.center)
  gradient = data.center.T @ np.bincount(data.groups, data.targets)
  constant = data.targets @ data.targets
  return (
    weight * hessian + splines.PENALTY * splines.ROUGHNESS,
    weight * gradient,
    weight * constant,
  )


def natural(data: splines.Data) -> Fit:
  """Minimizes the squared error."""
  hessian, gradient, _ = least_squares(data)
  return Fit(np.linalg.pinv(hessian, hermitian=True) @ gradient, 0.0)


def minimize(
  quadratic: tuple,
  features: np.ndarray,
  groups: np.ndarray,
  targets: np.ndarray,
  *,
  squares: Any = 0.0,
  costs: Any = 0.0,
) -> Fit:
  """Minimizes t'Ht - 2 g't + c + sum(squares s^2 + costs s) over t.

  s_i is the largest |f't - targets_i| over the feature vectors f of its group.
  The variables of the program are t, the largest and the smallest f't of each
  group, and s.

  Args:
    quadratic: the triple (H, g, c).
    features: [D, K, 34], D feature vectors for each of K groups.
    groups: [N], the group of each target.
    targets: [N].
    squares: coefficients of s^2, [N] or a number.
    costs: coefficients of s, [N] or a number.
  """
  hessian, gradient, constant = quadratic
  sides, num_groups, _ = features.shape
  squares, costs = (np.broadcast_to(x, len(targets)) for x in (squares, costs))
  around, free = np.concatenate(features), np.zeros(2 * num_groups)
  each = np.tile(np.eye(num_groups), (sides, 1))
  pick = np.eye(num_groups)[groups]
  size = scipy.sparse.identity(len(targets))
  bounds = scipy.sparse.bmat(
    [
      [around, -each, None, None],
      [-around, None, each, None],
      [None, pick, None, -size],
      [None, None, -pick, -size],
    ],
    format='csc',
  )
  right_side = np.concatenate([np.zeros(2 * len(around)), targets, -targets])
  matrix = scipy.sparse.block_diag(
    [hessian, scipy.sparse.diags(np.concatenate([free, squares]))]
  )
  settings = clarabel.DefaultSettings()
  settings.verbose = False
  settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
  solution = clarabel.DefaultSolver(
    scipy.sparse.triu(2 * matrix, format='csc'),
    np.concatenate([-2 * gradient, free, costs]),
    bounds,
    right_side,
    [clarabel.NonnegativeConeT(len(right_side))],
    settings,
  ).solve()
  best = np.array(solution.x[: len(gradient)])
  sizes = np.abs((features @ best)[:, groups] - targets).max(axis=0)
  value = best @ hessian @ best - 2 * gradient @ best + constant
  value += squares @ sizes**2 + costs @ sizes
  return Fit(best, value - (solution.obj_val_dual + constant))


def robust(data: splines.Data, *, clean: float, attacked: float) -> Fit:
  """Minimizes clean * squared error + attacked * largest squared error.

  (clean, attacked) is (0, 1) in AT and (1, lambda) in RST.
  """
  return minimize(
    least_squares(data, clean),
    data.around,
    data.groups,
    data.targets,
    squares=attacked,
  )


def trades(data: splines.Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta * largest squared move of the value."""
  inputs = np.arange(len(data.counts))
  return minimize(
    least_squares(data),
    data.around[::2] - data.center,
    inputs,
    np.zeros(len(inputs)),
    squares=beta * data.counts,
  )
