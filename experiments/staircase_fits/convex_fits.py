"""Staircase fits with convex objectives, solved to optimality.

Every objective is a sum over examples plus the roughness penalty of `splines`.
They are quadratic programs; Clarabel's dual value bounds how far a fit is from
optimal.

Shared arguments: `data` is a `splines.Data`.
"""

from typing import NamedTuple

import clarabel
import numpy as np
import scipy.sparse

from experiments.staircase_fits import splines


class Fit(NamedTuple):
  """A fitted spline."""

  coefficients: np.ndarray  # [34]
  optimality_gap: float | None  # objective minus a lower bound, if convex


def least_squares(data: splines.Data, weight: float = 1.0) -> tuple:
  """(H, g, c): weight * squared error + penalty is t'Ht - 2 g't + c at t."""
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


def minimize(objective, quadratic, squares, costs, bounds) -> Fit:
  """Minimizes t'Ht - 2 g't + c + sum(squares s^2 + costs s) over t and s.

  Args:
    objective: function of the coefficients t that this equals at the best s.
    quadratic: the triple (H, g, c).
    bounds: a matrix and a vector; the matrix times (t, s) is at most the
      vector.
  """
  hessian, gradient, constant = quadratic
  matrix = scipy.sparse.block_diag([hessian, scipy.sparse.diags(squares)])
  settings = clarabel.DefaultSettings()
  settings.verbose = False
  settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
  solution = clarabel.DefaultSolver(
    scipy.sparse.triu(2 * matrix, format='csc'),
    np.concatenate([-2 * gradient, costs]),
    scipy.sparse.csc_matrix(bounds[0]),
    bounds[1],
    [clarabel.NonnegativeConeT(len(bounds[1]))],
    settings,
  ).solve()
  coefficients = np.array(solution.x[: len(gradient)])
  lower_bound = solution.obj_val_dual + constant
  return Fit(coefficients, objective(coefficients) - lower_bound)


def robust(data: splines.Data, *, clean: float, attacked: float) -> Fit:
  """Minimizes clean * squared error + attacked * largest squared error.

  AT is (0, 1), RST is (1, lambda). The variables beside the coefficients are
  the largest and the smallest value around each distinct input, and the
  largest absolute error of each example.
  """

  def objective(coefficients):
    squares = splines.errors(coefficients, data) ** 2
    total = clean * squares[1].sum() + attacked * squares.max(axis=0).sum()
    return total + splines.penalty(coefficients)

  num_points, num_examples = len(data.counts), len(data.targets)
  around = np.concatenate(data.around)
  three = np.tile(np.eye(num_points), (3, 1))
  pick = scipy.sparse.csr_matrix(
    (np.ones(num_examples), (np.arange(num_examples), data.groups))
  )
  error = scipy.sparse.identity(num_examples)
  matrix = scipy.sparse.bmat(
    [
      [around, -three, None, None],
      [-around, None, three, None],
      [None, pick, None, -error],
      [None, None, -pick, -error],
    ]
  )
  right_side = np.concatenate(
    [np.zeros(2 * len(around)), data.targets, -data.targets]
  )
  squares = np.repeat([0.0, attacked], [2 * num_points, num_examples])
  return minimize(
    objective,
    least_squares(data, clean),
    squares,
    np.zeros_like(squares),
    (matrix, right_side),
  )


def trades(data: splines.Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta * largest squared move of the value.

  The variables beside the coefficients are the largest absolute moves.
  """

  def objective(coefficients):
    errors = splines.errors(coefficients, data)
    moves = ((errors - errors[1]) ** 2).max(axis=0).sum()
    return (errors[1] ** 2).sum() + beta * moves + splines.penalty(coefficients)

  steps = np.concatenate(data.around[::2] - data.center)
  two = np.tile(np.eye(len(data.counts)), (2, 1))
  return minimize(
    objective,
    least_squares(data),
    beta * data.counts,
    np.zeros(len(data.counts)),
    (np.block([[steps, -two], [-steps, -two]]), np.zeros(2 * len(steps))),
  )
