"Long work into a file: a line when it begins and one when it ends; a bar only where a person looks"
import os, select, subprocess, sys
import pytest
from notebooks import root

slow_loop = '''import time
from bearcls.core import progress
for i in progress(range(40), 'looking'): time.sleep(.05)
with progress(desc='training', total=4) as bar:
    for i in range(4):
        time.sleep(.4)
        bar.update(1)
        bar.set_postfix_str(f'epoch {i + 1}')
'''
loud = {k: v for k, v in os.environ.items() if not k.startswith('TQDM')} | dict(PYTHONUTF8='1', PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))

def into_a_file(file, *command, **more):
    "What a program leaves in a file that takes all of its output"
    with open(file, 'wb') as out: done = subprocess.run([sys.executable, *map(str, command)], stdout=out, stderr=out, cwd=file.parent, env=loud | more, timeout=300)
    text = file.read_bytes().decode()
    assert done.returncode == 0, text
    return text

def test_two_lines_for_each_piece_of_work(tmp_path):
    text = into_a_file(tmp_path/'log.txt', '-c', slow_loop)
    assert '\r' not in text
    begun, ended, trained, at_last = text.splitlines()
    assert begun.startswith('looking: ') and ' of 40 after 1 s' in begun
    assert ended.startswith('looking: 40 of 40 after ')
    assert trained.startswith('training: ') and ' of 4 after ' in trained
    assert at_last.startswith('training: 4 of 4 after ') and at_last.endswith(' s, epoch 4')

def test_silent_if_asked(tmp_path):
    assert into_a_file(tmp_path/'log.txt', '-c', slow_loop, TQDM_DISABLE='1') == ''

def test_short_work_is_silent(tmp_path):
    assert into_a_file(tmp_path/'log.txt', '-c', 'from bearcls.core import progress\nfor _ in progress(range(1000)): pass') == ''

def test_an_error_in_the_loop_still_ends_the_work(tmp_path):
    code = 'import time\nfrom bearcls.core import progress\ntry:\n for i in progress(range(9), "looking", delay=0):\n  if i == 3: raise KeyError\nexcept KeyError: print("known")'
    lines = into_a_file(tmp_path/'log.txt', '-c', code).splitlines()
    assert any(line.startswith('looking: 3 of 9') for line in lines) and 'known' in lines

@pytest.mark.parametrize('closed', ['sys.stderr = None', 'sys.stderr.close()'])
def test_without_a_place_to_write(tmp_path, closed):
    code = f'import sys\nfrom bearcls.core import progress\n{closed}\nprint(sum(progress(range(5), delay=0)))'
    assert into_a_file(tmp_path/'log.txt', '-c', code) == '10\n'

@pytest.mark.skipif(os.name == 'nt', reason='Windows has no pseudo-terminals of this kind')
def test_a_bar_on_a_terminal():
    import fcntl, pty, struct, termios
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    text = b''
    with subprocess.Popen([sys.executable, '-c', slow_loop], stdout=theirs, stderr=theirs, env=loud | dict(TERM='xterm')) as program:
        while program.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], .2)[0]: text += os.read(ours, 4096)
    for end in ours, theirs: os.close(end)
    assert program.returncode == 0 and b'\rlooking:' in text and b'it/s' in text

def test_quickstart_into_a_file(tmp_path):
    "The whole way: its own words, and two lines for the training, not one for each of its batches"
    text = into_a_file(tmp_path/'log.txt', '-m', 'bearcls', 'quickstart', '--n-per-label', 60, '--epochs', 6, '--arch', 'xresnet18_thin', TORCH_HOME=str(tmp_path/'no weights'))
    lines = text.splitlines()
    assert '\r' not in text and '[8/8]' in text
    assert len(lines) < 90, text
    bars = [line for line in lines if ' after ' in line and line.endswith((' s', '%', ' cores'))]
    for work in {line.partition(':')[0] for line in bars}: assert sum(line.startswith(f'{work}:') for line in bars) % 2 == 0, text

def test_a_command_line_in_a_notebook_returns_no_bars(tmp_path, monkeypatch):
    "However slow the machine is: its errors are errors"
    from bearcls import cli, core
    from bearcls.commands.parser import terminal  # cli has registered the commands
    from bearcls.sample.drawing import colour_card, write_png
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    monkeypatch.setattr(core, '_TwoLines', None)  # calling it would fail
    for label in ('a', 'b'):
        (tmp_path/label).mkdir()
        (tmp_path/label/'one.png').write_bytes(write_png(colour_card()))
    status, out, err = terminal('check', tmp_path)
    assert (status, err) == (0, '') and '2 images checked' in out, (status, out, err)
    assert 'TQDM_DISABLE' not in os.environ
