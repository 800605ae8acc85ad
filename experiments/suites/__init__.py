"""What `experiments.benchmark` measures: one module for each suite.

A suite is a function `cases(peers)` that returns the cases to time, or
`case(arch, peers, ...)` where there is one for each network; `peers` says
whether other libraries take part. `experiments.benchmark` runs the
candidates of a case in turns and reports work per second and paired ratios.
"""

from collections.abc import Callable
from typing import NamedTuple


class Candidate(NamedTuple):
  """One way to do a piece of work."""

  run: Callable[[], object]  # does it once and returns when it is done
  work: float  # units of the case that one run does
  memory: float | None = None  # MiB that its program holds at most, if known


class Case(NamedTuple):
  """Candidates that do the same work; the first is ours."""

  name: str
  unit: str  # what `work` counts: images, pairs, ...
  candidates: dict[str, Candidate]


def batches(count: int, batch_size: int) -> list[slice]:
  """Slices that cover `count` examples."""
  firsts = range(0, count, batch_size)
  return [slice(first, first + batch_size) for first in firsts]
