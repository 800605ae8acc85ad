"""A strict session: two CPU devices, no silent broadcasting.

The suite compiles hundreds of programs and runs each for a moment. They are
compiled without XLA's slow optimisations, and kept for the tests that compile
the same ones: scripts have a folder of their own, since some are killed.
"""

import atexit
import json
import os
import pathlib
import shutil
import tempfile

import jax
import pytest
import scripts

from robustlip import datasets
from robustlip.models import convolution

os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
  # Compiles faster what runs slower, most of all the search for separation.
  # Later versions end at a flag that they lack.
  + ['--xla_cpu_use_fusion_emitters=false'] * (jax.__version_info__ < (0, 11))
)
convolution.enable_fast_cpu()
COMPILED = 'ROBUSTLIP_TESTS_COMPILED'  # which workers take from the first
if COMPILED not in os.environ:
  os.environ[COMPILED] = tempfile.mkdtemp(prefix='robustlip-tests-')
  atexit.register(shutil.rmtree, os.environ[COMPILED], ignore_errors=True)
# A folder for each worker: JAX may read what another is still writing.
OWN = f'{os.environ[COMPILED]}/{os.environ.get("PYTEST_XDIST_WORKER", "")}'
os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{OWN}/scripts'
jax.config.update('jax_compilation_cache_dir', f'{OWN}/tests')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS', 'cpu'))
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def call():
  """Runs a script in this process, see `scripts.here`."""
  return scripts.here


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  """The data set of `scripts.tiny`."""
  return datasets.load(scripts.tiny(tmp_path_factory.mktemp('tiny')))


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """The flags and the folder of a finished run, which nobody touches."""
  folder = tmp_path_factory.mktemp('finished')
  work = folder / 'run'
  work.mkdir()
  for name in ('.lock', 'config.json.1.partial'):  # ended before it had begun
    (work / name).touch()
  flags = scripts.settings(
    folder, '--holdout=15', '--epochs=24', '--checkpoint_seconds=0'
  )
  run = scripts.here('experiments.train', *flags, f'--workdir={work}')
  written = (work / 'result.json').read_text()
  assert scripts.last_json(run) == json.loads(written)
  return flags, work


@pytest.fixture
def trained(finished, tmp_path):
  """The same flags and a copy of the folder."""
  flags, work = finished
  return flags, shutil.copytree(work, tmp_path / 'run')


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Gives a file to one worker: what its tests share is made once."""
  from xdist import scheduler

  if config.getvalue('dist') == 'load':  # as -n means unless told otherwise
    return scheduler.LoadFileScheduling(config, log)
