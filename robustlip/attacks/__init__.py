"""Attacks: points in a small ball around an image where a network errs.

    points = attacks.pgd(logits_fn, batch, key, epsilon=8 / 255)
    stages = attacks.cascade('autoattack', epsilon=8 / 255, num_classes=10)

`ascend` is projected gradient ascent on any objective; `pgd`, `targeted` and
`multi_targeted` apply it to a classifier. `apgd`, `fab` and `square` are the
attacks of AutoAttack. `cascade` makes a sequence of attacks from their names;
`evaluation.Evaluator` runs each on the examples that no earlier one fooled.
`expected` makes the network to attack if yours is randomised.

Shared arguments: `logits_fn` maps [B, H, W, C] float32 images in [0, 1] to
logits [B, classes] and should be in inference mode; `batch` is a
`types.Batch`; `key` is one PRNG key or one per example ([B]), see
`projections`; `epsilon` and `step_size` are in units of the pixel range, a
number or one per example ([B]), and may be traced; `norm` is 'linf' or 'l2'.
No gradient flows through an attack.

Inside `jax.jit`, where values cannot raise an error, images outside [0, 1] or
a radius out of range give points that are NaN.
"""

from robustlip.attacks.apgd import apgd, dlr
from robustlip.attacks.ascent import ascend
from robustlip.attacks.bpda import straight_through
from robustlip.attacks.cascade import (
  ATTACKS,
  AUTOATTACK,
  SEQUENCES,
  Attack,
  Stage,
  cascade,
)
from robustlip.attacks.fab import fab
from robustlip.attacks.gradient import (
  expected,
  falling,
  multi_targeted,
  pgd,
  targeted,
)
from robustlip.attacks.square import square

__all__ = [
  'ATTACKS',
  'AUTOATTACK',
  'SEQUENCES',
  'Attack',
  'Stage',
  'apgd',
  'ascend',
  'cascade',
  'dlr',
  'expected',
  'fab',
  'falling',
  'multi_targeted',
  'pgd',
  'square',
  'straight_through',
  'targeted',
]
