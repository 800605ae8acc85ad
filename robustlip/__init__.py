"""Tools to measure whether accurate image classifiers have to be fragile.

Import the modules, not names: `from robustlip import attacks, losses`.
"""

import os

import jax

# On CPUs XLA gives convolutions to YNNPACK, which takes up to ten times as
# long as Eigen. A flag that XLA does not know ends the process, so that only
# the versions between two that were tried are told; flags may be in a file.
_FLAGS = os.environ.get('XLA_FLAGS', '')
_TRIED = (0, 10, 2) <= jax.__version_info__ < (0, 12, 1)
if _TRIED and _FLAGS.lstrip()[:1] in ('', '-'):
  os.environ['XLA_FLAGS'] = (
    f'--xla_cpu_experimental_ynn_fusion_type=-individual_convolution {_FLAGS}'
  )
