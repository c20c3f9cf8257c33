"The command line as a stranger meets it: the whole way on drawn and on real images, and every wrong input in one sentence"
import csv, json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import tiny_bundle
from front_ends import draw_for_site
from bearcls.core import DataError
from bearcls.manifest import read_manifest
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.data.split import Split
from bearcls.sample.figures import draw_bear
from bearcls.quickstart import quickstart
from bearcls.sample.bears import draw_bears, unreadable_faults
from bearcls.gather.search import providers
from bearcls.teach.post import held_back

program = shutil.which('bearcls', path=os.path.dirname(sys.executable))

def bearcls(*arguments, cwd, **environment):
    "Run the command in a process of its own"
    env = {**os.environ, 'PYTHONUTF8': '1', **environment}
    return subprocess.run([program, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True,
        encoding='utf-8', stdin=subprocess.DEVNULL)

def bearcls_here(monkeypatch, capsys, *arguments, cwd):
    "Run the command in this process, which spares it the imports"
    from bearcls.cli import main
    monkeypatch.chdir(cwd)
    monkeypatch.setenv('TQDM_DISABLE', '1')
    capsys.readouterr()
    try: code = main([str(a) for a in arguments]) or 0
    except SystemExit as e: code = e.code or 0
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, out, err)

def draw_folder(path, **counts):
    "An image folder with so many drawn images of each label"
    for label, n in counts.items():
        (path/label).mkdir(parents=True)
        for i in range(n): draw_bear(label, seed=i, side=64).save(path/label/f'{i}.jpg')
    return path

def snapshot(path): return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob('*') if f.is_file()}

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "What the command leaves behind without cached weights, with fewer images than it would draw: bench/quickstart.py measures all of them"
    cwd = tmp_path_factory.mktemp('drawn')
    few = [] if os.environ.get('BEARCLS_IMAGES') else ['--n-per-label', 200]  # the image for the site shows all of them
    return cwd, bearcls('quickstart', *few, cwd=cwd, TORCH_HOME=str(cwd/'no weights'))

def test_whole_way(drawn):
    cwd, done = drawn
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((cwd/'bearcls-quickstart'/'bundle'/'bundle.json').read_text(encoding='utf-8'))['metrics']
    assert metrics['error'] <= 0.35, 'guesses are wrong in 0.67'
    n, difference = re.search(r'largest difference on (\d+) validation images: (\S+)', done.stdout).groups()
    assert int(n) == metrics['n'] and float(difference) <= 0.001
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr

def test_every_unreadable_file_is_reported(drawn):
    cwd, done = drawn
    dest = cwd/'bearcls-quickstart'
    with open(dest/'bears'/'faults.csv', encoding='utf-8', newline='') as f: planted = [r['file'] for r in csv.DictReader(f) if r['fault'] in unreadable_faults]
    page = (dest/'report.html').read_text(encoding='utf-8')
    assert len(planted) >= 4
    assert [f for f in planted if f not in page] == []
    assert [f for f in planted if (dest/'bears'/f).exists()] == [], 'quarantine has moved them'
    assert sorted(f.name for f in dest.rglob('*.part')) == []

def test_next_commands_work(drawn):
    "What the command tells to type next is typed"
    cwd, done = drawn
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith('bearcls predict'))
    answer = bearcls(*line.split()[1:], cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    label = line.split()[-1].split('/')[-2]
    assert label in answer.stdout

def test_report_in_a_browser(drawn, browser):
    "One page that asks nobody for anything, says nothing on the console, and fits a phone"
    cwd, _ = drawn
    asked, said = [], []
    page = browser.new_page(viewport=dict(width=400, height=800))
    page.on('request', lambda r: asked.append(r.url))
    page.on('console', lambda m: said.append(m.text))
    page.goto((cwd/'bearcls-quickstart'/'report.html').as_uri())
    assert [u for u in asked if not u.startswith(('file:', 'data:'))] == [] and said == []
    assert page.evaluate('document.documentElement.scrollWidth') <= 400
    assert page.locator('h2').count() == 9
    assert page.locator('img:not([alt])').count() == 0
    assert page.evaluate('[...document.images].every(i => i.naturalWidth > 0)')
    page.close()

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_image_for_the_site(drawn, browser):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_quickstart.py -k site draws the site's report.png anew: the error and the mistakes"
    with browser.new_page(viewport=dict(width=1000, height=800)) as page:
        page.goto((drawn[0]/'bearcls-quickstart'/'report.html').as_uri())
        page.evaluate("""() => {
          for (const section of document.querySelectorAll('section')) if (section.id !== 'mistakes') section.remove();
          let last = [...document.querySelectorAll('h3')].find(h => h.textContent === 'What the worst mistakes take after');
          while (last) { const next = last.nextSibling; last.remove(); last = next; }
          document.body.style.paddingBottom = '1rem';
        }""")
        assert page.locator('table').count() == 2
        page.set_viewport_size(dict(width=1000, height=page.evaluate('document.body.offsetHeight')))
        draw_for_site(page, 'report.png')

def test_real_photographs(tmp_path, shared):
    "Transfer learning on photographs from the web, whose files stay as they are"
    data = shared/'data'/'bears'
    if not data.is_dir(): pytest.skip(f'{shared} holds no photographs')
    names = sorted(f.as_posix() for f in data.rglob('*'))
    done = bearcls('quickstart', '--data', data.resolve(), '--arch', 'squeezenet1_1', cwd=tmp_path, TORCH_HOME=str((shared/'torch').resolve()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Training a head on what squeezenet1_1 sees' in done.stdout
    metadata = json.loads((tmp_path/'bearcls-quickstart'/'bundle'/'bundle.json').read_text(encoding='utf-8'))
    assert metadata['metrics']['error'] <= 0.06
    assert metadata['data']['train'] + metadata['data']['valid'] == 416
    assert sorted(f.as_posix() for f in data.rglob('*')) == names

def test_own_folder_is_left_as_it_is(tmp_path):
    "A broken file is named and left out; nothing is moved, added or changed"
    data = draw_folder(tmp_path/'my images', black=12, teddy=12)
    (data/'teddy'/'page.jpg').write_text('<html>', encoding='utf-8')
    before = snapshot(data)
    done = bearcls('quickstart', '--data', data, '--epochs', '1', '--arch', 'xresnet18_thin', '--dest', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'teddy/page.jpg' in done.stdout and 'your folder is unchanged' in done.stdout
    assert snapshot(data) == before
    assert not (tmp_path/'.quarantine').exists()

def test_again_into_the_same_folder(tmp_path):
    "A second run replaces what the first made, and nothing else"
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'mine.txt').write_text('keep me', encoding='utf-8')
    for _ in range(2): q = quickstart(tmp_path/'out', n_per_label=20, epochs=1, arch='xresnet18_thin', quiet=True)
    split = q.learn.dls.split
    assert Split.load(tmp_path/'out'/'split.json').sides == split.sides
    assert {str(f) for f in held_back(q.bundle, q.path, seed=7).table.file} == {str(f) for f in split.valid}
    assert (tmp_path/'out'/'mine.txt').read_text(encoding='utf-8') == 'keep me'

wrong = {
    'no such folder': (['--data', 'nowhere'], 'There is no folder nowhere'),
    'a file, not a folder': (['--data', 'file.txt'], 'file.txt is not a folder'),
    'no labels': (['--data', 'flat'], 'holds no images in label folders'),
    'one label': (['--data', 'one'], 'has one label only, teddy'),
    'few images': (['--data', 'few'], 'black has 4'),
    'few usable images': (['--data', 'broken'], 'black has 4'),
    'unknown arch': (['--arch', 'resnt18'], 'did you mean resnet18'),
    'arch that cannot be cut': (['--data', 'good', '--arch', 'vit_b_16'], 'cannot cut vit_b_16'),
    'no epochs': (['--epochs', '0'], '`epochs` must be at least 1'),
    'dest is a file': (['--dest', 'file.txt'], 'file.txt is a file'),
    'dest below a file': (['--dest', 'file.txt/deep'], 'file.txt'),
    'strangers in dest': (['--dest', 'taken'], 'taken'),
    'a report of their own': (['--dest', 'work'], 'was not written by bearcls'),
    'a bundle of their own': (['--dest', 'files'], 'holds something else than a bundle'),
    'a split of their own': (['--dest', 'wood'], 'it is not replaced'),
    'one word to search for': (['--search', 'grizzly bear'], 'at least two labels'),
    'too few to draw': (['--n-per-label', '3'], '`n_per_label`'),
}

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Image folders with something wrong about each"
    path = tmp_path_factory.mktemp('folders')
    (path/'file.txt').write_text('a file', encoding='utf-8')
    draw_folder(path/'one', teddy=8)
    draw_folder(path/'few', black=4, teddy=8)
    draw_folder(path/'good', black=8, teddy=8)
    draw_folder(path/'broken', black=6, teddy=8)
    for i in range(2): (path/'broken'/'black'/f'{i}.jpg').write_bytes(b'')
    (path/'flat').mkdir()
    draw_bear('teddy', seed=0, side=64).save(path/'flat'/'0.jpg')
    (path/'taken'/'bears').mkdir(parents=True)
    (path/'taken'/'bears'/'thesis.txt').write_text('years of work', encoding='utf-8')
    (path/'work').mkdir()
    (path/'work'/'report.html').write_text('<h1>Annual report</h1>', encoding='utf-8')
    (path/'wood').mkdir()
    (path/'wood'/'split.json').write_text('{"wood": "oak"}', encoding='utf-8')
    (path/'files'/'bundle').mkdir(parents=True)
    (path/'files'/'bundle'/'letters.txt').write_text('bundled', encoding='utf-8')
    return path

@pytest.mark.parametrize('case', wrong)
def test_wrong_input(case, folders, monkeypatch, capsys):
    "One sentence, exit status 2, no traceback, and the folders as they were"
    arguments, words = wrong[case]
    before = snapshot(folders)
    arguments = ['quickstart', *arguments, *([] if '--dest' in arguments else ['--dest', 'out'])]
    if case == next(iter(wrong)): done = bearcls(*arguments, cwd=folders, TQDM_DISABLE='1')
    else: done = bearcls_here(monkeypatch, capsys, *arguments, cwd=folders)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('bearcls: ') and words in done.stderr, done.stderr
    shutil.rmtree(folders/'out', ignore_errors=True)
    assert snapshot(folders) == before

def test_no_write_permission(tmp_path, monkeypatch, capsys):
    "Root may write everywhere but in the kernel's own folders"
    if os.name == 'nt': pytest.skip('folders have other permissions on Windows')
    locked = tmp_path/'locked'
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0: locked = Path('/sys')
    if not locked.is_dir(): pytest.skip('root may write everywhere here')
    done = bearcls_here(monkeypatch, capsys, 'quickstart', '--dest', locked/'out', cwd=tmp_path)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1) and f'{locked/"out"} cannot be written to' in done.stderr, done.stderr

def test_search_goes_the_whole_way(tmp_path, monkeypatch):
    "Words to images to a model, with a provider that finds them on this machine"
    source = draw_bears(tmp_path/'web', n_per_label=24, seed=1, faults=False)
    for name in ('duckduckgo', 'bing'): monkeypatch.setitem(providers, name, lambda term, max_images, **options: providers['local'](term, max_images, source=source))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'no weights'))
    q = quickstart(tmp_path/'out', search=['grizzly bear', 'teddy bear'], epochs=1, arch='xresnet18_thin', quiet=True)
    assert {f.parent.name for f in image_files(q.path)} == {'grizzly bear', 'teddy bear'}
    assert len(q.learn.dls.train_ds) + len(q.learn.dls.valid_ds) == 48
    rows = read_manifest(q.path)
    assert len(rows) == 48 and {r.term for r in rows} == {'grizzly bear', 'teddy bear'}
    assert q.html.exists() and q.difference <= 0.001

def test_search_without_a_network(tmp_path):
    "No connection is one sentence too, with what to do about it"
    nowhere = {k: 'http://127.0.0.1:9' for k in ('HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'DDGS_PROXY')}
    done = bearcls('quickstart', '--search', 'grizzly bear', 'black bear', '--dest', 'out', cwd=tmp_path, TQDM_DISABLE='1', **nowhere)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'duckduckgo' in done.stderr.lower()

light = {'torch', 'fastai', 'fastcore', 'pandas', 'matplotlib'}
ask = 'import sys\nfrom bearcls.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)'

def test_help_is_light():
    done = subprocess.run([sys.executable, '-c', ask, '--help'], capture_output=True, text=True, encoding='utf-8', check=True)
    *shown, modules = done.stdout.splitlines()
    assert 'quickstart' in '\n'.join(shown) and 'bearcls.cli' in modules.split() and light & set(modules.split()) == set()

def test_predict_is_light(tmp_path):
    "A prediction loads neither torch nor fastai, and prints one line"
    bundle, bear = tiny_bundle.make_bundle(tmp_path/'bundle'), tmp_path/'bear.jpg'
    draw_bear('teddy', seed=0).save(bear)
    done = subprocess.run([sys.executable, '-c', ask, 'predict', bundle, bear], capture_output=True, text=True, encoding='utf-8', check=True)
    answer, modules = done.stdout.splitlines()
    assert answer.startswith(f'{bear}: ') and 'onnxruntime' in modules.split() and light & set(modules.split()) == set()

def test_search_trains_on_what_was_asked_for_only(tmp_path, monkeypatch):
    "A word without images is named, and images of an earlier search are not trained on"
    source = draw_bears(tmp_path/'web', n_per_label=6, seed=1, faults=False)
    for name in ('duckduckgo', 'bing'): monkeypatch.setitem(providers, name, lambda term, max_images, **options: providers['local'](term, max_images, source=source))
    with pytest.raises(DataError, match="No images came for 'unicorn'"): quickstart(tmp_path/'out', search=['teddy', 'unicorn'], quiet=True)
    with pytest.raises(DataError, match="already holds images of 'teddy'"): quickstart(tmp_path/'out', search=['grizzly', 'black'], quiet=True)

def test_excluded_files_may_be_named_from_here(tmp_path, monkeypatch):
    "`verify_images(get_image_files('bears'))` names files from the current folder, a report from the image folder"
    monkeypatch.chdir(tmp_path)
    draw_bears('bears', n_per_label=8, seed=3, faults=False)
    bad = Path('bears/grizzly/bad.jpg')
    bad.write_bytes(b'<html>')
    for name in (bad, bad.resolve(), 'grizzly/bad.jpg'):
        dls = image_dls('bears', size=32, exclude=[name])
        assert len(dls.train_ds) + len(dls.valid_ds) == 24

@pytest.mark.parametrize('options, words', [(['--workers', '0'], '`workers` must be at least 1'), (['--threads', '0'], '`threads` must be at least 1'), (['--port', '70000'], 'port must be 0-65535')], ids=range(3))
def test_numbers_that_no_service_takes(options, words, tmp_path, monkeypatch, capsys):
    done = bearcls_here(monkeypatch, capsys, 'serve', tiny_bundle.make_bundle(tmp_path/'bundle'), *options, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr
