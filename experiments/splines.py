"""Cubic splines on the staircase, fitted by the objective of every method.

A fit is the coefficients [34] of cubic B-splines on the knots {i, i +- 1/3};
every objective is a sum over examples plus 0.01 times the sum of squared
second differences of the coefficients. Perturbed inputs are x - 1/3, x and
x + 1/3. Convex objectives are solved as quadratic programs by Clarabel, whose
dual value bounds how far the fit is from optimal.

Shared arguments: `data` is a `Data`, from `observe`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import clarabel
import numpy as np
import scipy.interpolate
import scipy.optimize
import scipy.sparse

from robustlip.datasets import synthetic

SHIFT = synthetic.STAIR_SHIFT
PENALTY = 0.01  # weight of the squared second differences


def _basis() -> scipy.interpolate.BSpline:
  stairs = np.arange(synthetic.NUM_STAIRS)
  inner = np.sort(np.concatenate([stairs - SHIFT, stairs, stairs + SHIFT]))
  margin = np.arange(1.0, 5.0)
  # On the left the published knots end at -2/3 and not at -1 - 1/3.
  knots = np.concatenate([margin - 5 - inner[0], inner, inner[-1] + margin])
  return scipy.interpolate.BSpline(knots, np.eye(len(knots) - 4), 3)


BASIS = _basis()  # called with inputs [N]: features [N, 34]
SLOPE = BASIS.derivative()
NUM_COEFFICIENTS = BASIS.c.shape[1]
_DIFFERENCES = np.diff(np.eye(NUM_COEFFICIENTS), n=2)
ROUGHNESS = _DIFFERENCES @ _DIFFERENCES.T  # [34, 34]


@dataclasses.dataclass(frozen=True)
class Data:
  """Examples, and the features of their inputs where those are distinct."""

  inputs: np.ndarray  # [N]
  targets: np.ndarray  # [N]
  groups: np.ndarray  # [N], which distinct input
  counts: np.ndarray  # [K], examples per distinct input
  left: np.ndarray  # [K, 34], features of x - 1/3
  center: np.ndarray  # [K, 34]
  right: np.ndarray  # [K, 34]
  slope: np.ndarray  # [K, 34], derivatives of `center` by the input


class Fit(NamedTuple):
  """A fitted spline."""

  coefficients: np.ndarray  # [34]
  optimality_gap: float | None  # objective minus a lower bound, if convex


class Scores(NamedTuple):
  """Means over a set; the last two are in target units per input unit."""

  error: float
  attacked_error: float
  label_ratio: float  # max over both sides of |f(x +- 1/3) - y| / (1/3)
  lipschitz: float  # max over both sides of |f(x +- 1/3) - f(x)| / (1/3)


def observe(inputs: np.ndarray, targets: np.ndarray) -> Data:
  """Gathers equal inputs (up to rounding) and computes their features."""
  points, groups = np.unique(np.round(inputs, 9), return_inverse=True)
  return Data(
    inputs=inputs,
    targets=targets,
    groups=groups,
    counts=np.bincount(groups),
    left=BASIS(points - SHIFT),
    center=BASIS(points),
    right=BASIS(points + SHIFT),
    slope=SLOPE(points),
  )


def evaluate(coefficients: np.ndarray, data: Data) -> Scores:
  """Mean squared errors and Lipschitz ratios of a fit on `data`."""
  features = (data.left, data.center, data.right)
  values = np.stack([f @ coefficients for f in features])  # [3, K]
  errors = np.abs(values[:, data.groups] - data.targets)
  moves = np.abs(values - values[1]).max(axis=0)[data.groups]
  return Scores(
    error=np.mean(errors[1] ** 2),
    attacked_error=np.mean(errors.max(axis=0) ** 2),
    label_ratio=np.mean(errors[::2].max(axis=0)) / SHIFT,
    lipschitz=np.mean(moves) / SHIFT,
  )


def penalty(coefficients: np.ndarray) -> float:
  """The roughness penalty of every objective."""
  return PENALTY * coefficients @ ROUGHNESS @ coefficients


def _errors(coefficients: np.ndarray, data: Data) -> np.ndarray:
  """f(x - 1/3) - y, f(x) - y and f(x + 1/3) - y, [3, N]."""
  features = (data.left, data.center, data.right)
  values = np.stack([f @ coefficients for f in features])
  return values[:, data.groups] - data.targets


def _least_squares(data: Data, weight: float = 1.0) -> tuple:
  """(H, g, c): weight * squared error + penalty is t'Ht - 2 g't + c at t."""
  hessian = data.center.T @ (data.counts[:, None] * data.center)
  gradient = data.center.T @ np.bincount(data.groups, data.targets)
  constant = data.targets @ data.targets
  return (
    weight * hessian + PENALTY * ROUGHNESS,
    weight * gradient,
    weight * constant,
  )


def natural(data: Data) -> Fit:
  """Minimizes the squared error."""
  hessian, gradient, _ = _least_squares(data)
  return Fit(np.linalg.pinv(hessian, hermitian=True) @ gradient, 0.0)


def _solve(objective, quadratic, squares, costs, bounds) -> Fit:
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


def robust(data: Data, *, clean: float, attacked: float) -> Fit:
  """Minimizes clean * squared error + attacked * largest squared error.

  AT is (0, 1), RST is (1, lambda). The variables beside the coefficients are
  the largest and the smallest value around each distinct input, and the
  largest absolute error of each example.
  """

  def objective(coefficients):
    squares = _errors(coefficients, data) ** 2
    total = clean * squares[1].sum() + attacked * squares.max(axis=0).sum()
    return total + penalty(coefficients)

  num_points, num_examples = len(data.counts), len(data.targets)
  around = np.concatenate([data.left, data.center, data.right])
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
  return _solve(
    objective,
    _least_squares(data, clean),
    squares,
    np.zeros_like(squares),
    (matrix, right_side),
  )


def trades(data: Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta * largest squared move of the value.

  The variables beside the coefficients are the largest absolute moves.
  """

  def objective(coefficients):
    errors = _errors(coefficients, data)
    moves = ((errors - errors[1]) ** 2).max(axis=0).sum()
    return (
      (errors[1] ** 2).sum() + beta * moves + penalty(coefficients)
    )

  steps = np.concatenate([data.left - data.center, data.right - data.center])
  two = np.tile(np.eye(len(data.counts)), (2, 1))
  return _solve(
    objective,
    _least_squares(data),
    beta * data.counts,
    np.zeros(len(data.counts)),
    (np.block([[steps, -two], [-steps, -two]]), np.zeros(2 * len(steps))),
  )


def gr_reference(data: Data, *, beta: float) -> Fit:
  """Minimizes squared error + beta / 2 * sum |error| ||features||_2.

  The published penalty: the gradient with respect to the coefficients. The
  variables beside the coefficients are the absolute errors.
  """
  lengths = np.linalg.norm(data.center, axis=1)[data.groups]

  def objective(coefficients):
    errors = _errors(coefficients, data)[1]
    total = (errors**2).sum() + beta / 2 * np.abs(errors) @ lengths
    return total + penalty(coefficients)

  features = scipy.sparse.csr_matrix(data.center[data.groups])
  error = scipy.sparse.identity(len(data.targets))
  return _solve(
    objective,
    _least_squares(data),
    np.zeros(len(data.targets)),
    beta / 2 * lengths,
    (
      scipy.sparse.bmat([[features, -error], [-features, -error]]),
      np.concatenate([data.targets, -data.targets]),
    ),
  )
