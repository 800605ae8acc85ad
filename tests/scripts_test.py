"""Every script refuses what it does not know, in one line."""

import importlib
import pathlib
import re
import subprocess

import pytest
from absl import flags

import experiments
from experiments import common, report

FOLDER = pathlib.Path(experiments.__file__).parent
ROOT = FOLDER.parent
NAMES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if '\n  common.run(main, define)\n' in path.read_text()
)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['--no_such_flag=1', 'stray'])
def test_wrong_arguments_are_one_line(name, argument, call):
  finished = call(f'experiments.{name}', argument)
  assert finished.code == 1
  (line,) = finished.err.splitlines()
  assert line.startswith('error: ')
  assert argument.strip('-').split('=')[0] in line


def test_help_has_the_flags_that_are_read_and_is_no_failure(call):
  finished = call('experiments.train', '--help')
  assert finished.code == 0
  for flag in ('--lam', '--dataset', '--epsilon', '--workdir', '--stream'):
    assert f'{flag}:' in finished.out or f'[no]{flag[2:]}:' in finished.out
  assert '--num_restarts' not in finished.out
  assert call('experiments.tables', '--help').out.isascii()


@pytest.mark.parametrize(
  'name, flag',
  [
    ('separation', 'workdir'),
    ('theory', 'workdir'),
    ('staircase', 'workdir'),
    ('tables', 'workdir'),
    ('benchmark', 'output'),
  ],
)
def test_a_folder_that_cannot_be_is_found_out_first(name, flag, tmp_path, call):
  (tmp_path / 'file').write_text('')
  where = f'{tmp_path}/file/below' + '/record.json' * (flag == 'output')
  finished = call(f'experiments.{name}', f'--{flag}={where}')
  assert finished.code == 1
  line = finished.err.splitlines()[-1]
  assert line.startswith('error: cannot write to') and 'below' in line


SHOWN = re.compile(r'(experiments\.[\w.]+)((?:\s+(?:\\\s+)?--[^\s`)]+)*)')


def shown_commands():
  files = [*FOLDER.glob('*.py'), *report.PAGES]
  files += [ROOT / 'BUILD_NOTES.md', ROOT / '.ci' / 'gpu']
  for file in files:
    text = file.read_text(encoding='utf-8')
    for module, given in SHOWN.findall(text):
      if given and module.split('.')[1] in NAMES:
        words = given.replace('\\', ' ').split()
        yield file.name, module, [word for word in words if 'NAME' not in word]


def test_every_command_that_is_shown_has_flags_that_exist():
  found = list(shown_commands())
  assert {'README.md', 'gpu', 'train.py'} <= {name for name, *_ in found}
  for name, module, given in found:
    common.define_flags(importlib.import_module(module).define)
    try:
      assert flags.FLAGS([module, *given]) == [module], (name, given)
    except flags.Error as error:
      pytest.fail(f'{name}: {module} {" ".join(given)}: {error}')


def test_measurements_on_a_gpu_go_on_where_they_stopped(tmp_path):
  for name in ('.ci', 'bin'):
    (tmp_path / name).mkdir()
  (tmp_path / '.ci' / 'gpu').write_bytes((ROOT / '.ci' / 'gpu').read_bytes())
  python = tmp_path / 'bin' / 'python'
  env = {'PATH': f'{python.parent}:/usr/bin:/bin'}

  def call(program, seconds):
    python.write_text(f'#!/bin/sh\n{program}\n')
    python.chmod(0o755)
    command = ['bash', tmp_path / '.ci' / 'gpu', str(seconds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  slow = 'case "$*" in *=attack*) sleep 60;; esac; echo a table; echo "{}"'
  out = call(slow, 7)
  assert '== train: 0\na table\n==' in out
  assert '== attack: not finished' in out and '== table_3: not fin' in out
  out = call('case "$*" in *=separation*) exit 3;; esac; echo "$*"', 60)
  assert '--suite=train ' not in out.split('==')[0]
  assert '--suite=attack' in out.split('==')[0]
  assert '== separation: 3' in out and '== table_3: 0' in out
