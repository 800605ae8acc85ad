"""Where a published number comes from: command, commit, machine, date."""

import datetime
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from typing import Any

from experiments import common

RESULTS = pathlib.Path(__file__).with_name('results')  # what is published


def destination(output: str | None, name: str) -> pathlib.Path:
  """Where a record goes: `output`, else `name` among the published ones.

  Raises:
    ValueError: if no file can be written there.
  """
  path = pathlib.Path(output or RESULTS / name)
  if path.is_dir():
    raise ValueError(f'--output={path} is a folder; name a file')
  common.output_folder(path.parent)
  return path


def command() -> str:
  """How this script was started, without the folders of this machine.

  Of `--output` the name of the file remains.
  """
  script = pathlib.Path(sys.argv[0]).name.removesuffix('.py').split('.')[-1]
  flags, words = [], iter(sys.argv[1:])
  for word in words:
    name, equals, value = word.lstrip('-').partition('=')
    if name not in ('data_dir', 'output', 'workdir'):
      flags.append(word)
      continue
    if not equals:
      value = next(words, '')  # a word of its own
    if name == 'output':
      flags.append(f'--output={pathlib.Path(value).name}')
  return shlex.join(['python', '-m', f'experiments.{script}', *flags])


def commit() -> str | None:
  """The commit of the working tree; None outside of a checkout.

  It ends in `-dirty` if tracked files but the published results differ.
  """
  root = pathlib.Path(__file__).resolve().parents[1]

  def git(*words: str) -> list[str]:
    result = subprocess.run(
      ['git', *words], cwd=root, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()

  try:
    top, name = git('rev-parse', '--show-toplevel', '--short', 'HEAD')
    if pathlib.Path(top) != root:  # another project's
      return None
    code = ('.', ':!experiments/results')
    changed = git('status', '--porcelain', '--untracked-files=no', '--', *code)
  except (OSError, subprocess.CalledProcessError):
    return None
  return f'{name}-dirty' if changed else name


def machine() -> str:
  """Processors and memory, as far as the system tells."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():  # virtual machines leave generations out of the name
    fields = dict(
      re.findall(r'^([\w ]+?)\s*: (.*)$', cpuinfo.read_text(), re.MULTILINE)
    )
    model = fields.get('model name', model)
    if 'cpu family' in fields:
      model += f' (family {fields["cpu family"]}, model {fields["model"]})'
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return f'{os.cpu_count()} cores of {model}, {memory:.0f} GB'


def record() -> dict[str, Any]:
  """All of it, with the versions of the software."""
  return {
    'command': command(),
    'commit': commit(),
    'date': datetime.date.today().isoformat(),
    'machine': machine(),
    **common.versions(),
  }
