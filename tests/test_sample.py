"The sample set in a fresh process: what it loads, and that nothing but the seed decides its bytes"
import os, subprocess, sys
import pytest
from bearcls.folders import image_files
from bearcls.sample.bears import NotEmptyError, draw_bears

DIGEST = """
import hashlib, sys
from pathlib import Path
from bearcls.sample.bears import draw_bears
d = draw_bears(sys.argv[1], n_per_label=20, side=64)
print(hashlib.sha256(b''.join(f.read_bytes() for f in sorted(d.rglob('*')) if f.is_file())).hexdigest())
"""

def run(code, *args, **env):
    "Standard output of `code` in a process of its own"
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

def test_loads_no_heavy_library():
    heavy = run("import sys, bearcls.sample.bears; print([m for m in ('torch', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'IPython') if m in sys.modules])")
    assert heavy == '[]'

def test_same_bytes_in_every_process(tmp_path):
    "Neither the process nor the order of sets and dictionaries (PYTHONHASHSEED) may reach the images"
    assert run(DIGEST, tmp_path/'a', PYTHONHASHSEED='1') == run(DIGEST, tmp_path/'b', PYTHONHASHSEED='2')

def test_works_in_a_plain_script(tmp_path):
    "No guard around the main part is needed"
    script = tmp_path/'script.py'
    script.write_text(f'from bearcls.sample.bears import draw_bears\ndraw_bears({str(tmp_path/"set")!r}, n_per_label=2, side=64, faults=False)\n', encoding='utf-8')
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    assert len(image_files(tmp_path/'set')) == 6

def test_resumes_after_an_interruption(tmp_path, monkeypatch):
    import bearcls.sample.bears as sample
    whole = draw_bears(tmp_path/'whole', n_per_label=20, side=64)
    drawn, real = [], sample._item_bytes
    def stop_half_way(*args):
        drawn.append(1)
        if len(drawn) == 30: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(sample, '_item_bytes', stop_half_way)
    with pytest.raises(KeyboardInterrupt): draw_bears(tmp_path/'part', n_per_label=20, side=64)
    monkeypatch.undo()
    part = draw_bears(tmp_path/'part', n_per_label=20, side=64)
    names = [f.relative_to(whole) for f in whole.rglob('*') if f.is_file()]
    assert all((part/n).read_bytes() == (whole/n).read_bytes() for n in names)

@pytest.mark.parametrize('name', ['notes.txt', 'black/mine.jpg', 'panda/panda_0000.jpg'])
def test_leaves_strangers_alone(tmp_path, name):
    stranger = draw_bears(tmp_path/'set', n_per_label=2, side=64, faults=False)/name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b'mine')
    before = {f: f.read_bytes() for f in (tmp_path/'set').rglob('*') if f.is_file()}
    with pytest.raises(NotEmptyError, match='must be a new or empty folder'): draw_bears(tmp_path/'set', n_per_label=2, side=96, faults=False)
    assert before == {f: f.read_bytes() for f in (tmp_path/'set').rglob('*') if f.is_file()}
