"""A strict session: two CPU devices, no silent broadcasting.

Programs are compiled without XLA's slow optimisations, which halves the time
of the suite: it compiles hundreds of programs and runs each for a moment.
"""

import os
import pathlib

import jax
import pytest

os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)
jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS', 'cpu'))
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def real_data_dir() -> pathlib.Path:
  """The folder named by ROBUSTLIP_DATA, or a skip that says so."""
  folder = os.environ.get('ROBUSTLIP_DATA')
  if not folder:
    pytest.skip('ROBUSTLIP_DATA does not name a folder with real data sets')
  return pathlib.Path(folder)


def pytest_collection_modifyitems(items):
  """Marks the tests that read real data sets."""
  for item in items:
    if 'real_data_dir' in item.fixturenames:
      item.add_marker('real_data')
