"""Tools to measure whether accurate image classifiers have to be fragile.

Import the modules, not names: `from robustlip import attacks, losses`.
"""

import os

import jax

# On CPUs XLA gives convolutions to YNNPACK, which takes up to ten times as
# long as Eigen. Known from 0.10 to 0.12; a flag that XLA does not know ends
# the process, so that later versions are left as they are.
if (0, 10) <= jax.__version_info__ < (0, 13):
  os.environ['XLA_FLAGS'] = ' '.join(
    [
      '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution',
      os.environ.get('XLA_FLAGS', ''),
    ]
  )
