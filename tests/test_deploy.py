"Folders for hosts: what is in them, what they refuse to replace, and whether they work in an environment of their own"
import ast, fnmatch, hashlib, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from PIL import Image
import bearcls.deploy.check
from tiny_bundle import make_bundle
from uploads import labels_expected, write_uploads
from bearcls.cli import main
from bearcls.core import package_file
from bearcls.deploy.check import check_folder, make_environment, oldest_python, requirements_of, started
from bearcls.deploy.standalone import RuntimeFileError, join_modules
from bearcls.deploy.targets import DeployError, changed_files, deploy, deploy_files, deploy_targets, read_record
from bearcls.deploy.web import web_runtime
from bearcls.inference.bundle import BundleError, read_bundle, zip_bundle
from bearcls.rollout.registry import Registry
from bearcls.sample.standins import colour_model

needs_npm = pytest.mark.skipif(shutil.which('npm') is None, reason='npm is not installed')
every_target = [pytest.param(t, marks=needs_npm if t in ('web', 'space-static') else ()) for t in deploy_targets]

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('bundle')/'furs')

@pytest.fixture(scope='session')
def environment(tmp_path_factory):
    "Programs of an environment for a folder's requirements; folders that ask for the same share one"
    if sys.version_info < oldest_python: pytest.skip('the versions that folders ask for need a newer Python')
    made = {}
    def programs(folder):
        wanted = requirements_of(folder)
        key = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
        if key not in made: made[key], _ = make_environment(folder, tmp_path_factory.mktemp('environments')/key)
        return made[key]
    return programs

def test_a_folder_follows_an_alias(tmp_path):
    "BEARCLS_BUNDLE names a model of a registry; no bearcls is needed for that"
    pytest.importorskip('fastapi')
    pytest.importorskip('uvicorn')
    registry = Registry(tmp_path/'models')
    first, second = (registry.add(make_bundle(tmp_path/f'made{k}', model=colour_model(sharpness=60 + k))).id for k in range(2))
    registry.promote(first)
    dest = deploy('fastapi', tmp_path/'made1', tmp_path/'folder')
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    code = f"import sys; sys.modules['bearcls'] = None; sys.argv = ['app.py', '--port', '{port}']; import runpy; runpy.run_path('app.py', run_name='__main__')"
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(BEARCLS_BUNDLE=f'{tmp_path}/models@champion', PYTHONPATH=str(dest))
    def model():
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/labels', timeout=5) as answer: return json.load(answer)['model']
    def wait_for(wanted):
        end = time.monotonic() + 60
        while True:
            try: found = model()
            except OSError: found = None
            if found == wanted: return
            assert process.poll() is None and time.monotonic() < end, found
            time.sleep(.1)
    with subprocess.Popen([sys.executable, '-c', code], cwd=dest, env=env) as process:
        try:
            wait_for(first)
            registry.promote(second)
            wait_for(second)
            registry.rollback()
            wait_for(first)
        finally: process.terminate()

def test_notebooks_and_pages_follow_an_alias_too(bundle):
    for target in ('voila', 'binder'): assert 'BEARCLS_BUNDLE' in ''.join(json.loads(deploy_files(target, bundle)['app.ipynb'])['cells'][0]['source'])
    assert b'BEARCLS_BUNDLE' in deploy_files('streamlit', bundle)['app.py']
    for target in ('fastapi', 'space-docker', 'space-gradio', 'voila', 'streamlit'): assert b'models@champion' in deploy_files(target, bundle)['README.md']

gradio_asked = '''
import os, runpy, sys
from unittest.mock import MagicMock
sys.modules['bearcls'], sys.modules['gradio'] = None, MagicMock()
sys.modules['gradio'].utils.get_upload_folder.return_value = 'uploads'
app = runpy.run_path('app.py')
image = open(sys.argv[1], 'rb').read()
for line in sys.stdin:
    found, _, problem = app['look'](image)
    print(found.label if found else problem, flush=True)
'''

def test_a_gradio_page_follows_an_alias(tmp_path):
    "With Gradio itself replaced by a stand-in: the model of the next image is the one that the registry names"
    registry = Registry(tmp_path/'models')
    first, second = (registry.add(make_bundle(tmp_path/f'made{k}', labels, model=colour_model(sharpness=60 + k))).id for k, labels in enumerate((['a', 'b', 'c'], ['d', 'e', 'f'])))
    registry.promote(first)
    dest = deploy('space-gradio', tmp_path/'made1', tmp_path/'folder')
    Image.new('RGB', (64, 64), 'white').save(tmp_path/'white.png')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(BEARCLS_BUNDLE=f'{tmp_path}/models@champion', PYTHONPATH=str(dest))
    with subprocess.Popen([sys.executable, '-c', gradio_asked, str(tmp_path/'white.png')], cwd=dest, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        def ask():
            process.stdin.write('\n'), process.stdin.flush()
            return process.stdout.readline().strip()
        before = ask()
        registry.promote(second)
        after = ask()
        registry.rollback()
        again = ask()
        (tmp_path/'models').rename(tmp_path/'gone')
        gone = ask()
        process.stdin.close()
    assert before in 'abc' and after in 'def' and again == before and gone != '', (before, after, again, gone)

# ---------------------------------------------------------------- what is written

@pytest.mark.parametrize('target', every_target)
def test_nothing_of_the_libraries(target, bundle):
    files = deploy_files(target, bundle)
    for name, content in files.items():
        if not name.endswith('.py'): continue
        imported = {(n.names[0].name if isinstance(n, ast.Import) else n.module or '').partition('.')[0] for n in ast.walk(ast.parse(content)) if isinstance(n, (ast.Import, ast.ImportFrom))}
        assert not imported & {'bearcls', 'torch', 'fastai', 'fastcore', 'pandas', 'torchvision'}, name
    assert files['README.md'].decode().strip() or target == 'web'
    for name, content in files.items():
        if name.endswith(('.md', '.py', '.txt', 'Dockerfile', '.toml', '.ipynb', '.html')): assert b'{{' not in content or name.endswith(('.py', '.html')), f'{name} has a place that was not filled in'

@pytest.mark.parametrize('target', every_target)
def test_titles_and_labels_of_any_kind(target, tmp_path):
    "Names with quotes, braces, tags and other scripts end up as text"
    from bearcls.inference.bundle import Bundle, write_bundle
    from bearcls.sample.standins import colour_model
    labels = ["it's </script> {{ 7*7 }}", 'ours "brown" #1', 'медведь']
    made = write_bundle(Bundle(labels, (64, 64)), colour_model(dict(zip(labels, [(45, 42, 40), (140, 100, 60), (225, 222, 215)]))), tmp_path/'b')
    dest = deploy(target, made, tmp_path/'d', title='{{ 7*7 }} "Bears"\'s\nsecond line')
    for f in dest.rglob('*'):
        if f.is_file() and f.suffix in ('.py', '.md', '.html', '.ipynb', '.webmanifest', ''):
            assert '49 "Bears"' not in f.read_text(encoding='utf-8')
        if f.suffix == '.py': compile(f.read_bytes(), f.name, 'exec')
        if f.suffix in ('.ipynb', '.webmanifest', '.json'): json.loads(f.read_text(encoding='utf-8'))

def test_zip_and_folder_give_the_same(bundle, tmp_path):
    zipped = zip_bundle(bundle, tmp_path/'b.zip')
    assert deploy_files('fastapi', zipped) == deploy_files('fastapi', bundle)

def test_requirements_are_pinned(bundle):
    for target in deploy_targets:
        if deploy_targets[target].parts:
            files = deploy_files(target, bundle)
            lines = [w.split('#')[0].strip() for n in files if n.endswith('requirements.txt') for w in files[n].decode().splitlines()]
            assert all('==' in w for w in lines if w), target

@pytest.mark.parametrize('target', ['fastapi', 'space-docker'])
def test_dockerfile_copies_what_is_there(target, bundle, tmp_path):
    dest = deploy(target, bundle, tmp_path/'d')
    lines = (dest/'Dockerfile').read_text().splitlines()
    for line in lines:
        if line.startswith('COPY'):
            for source in [w for w in line.split()[1:-1] if not w.startswith('--')]: assert (dest/source).exists(), source
    user = next(i for i, w in enumerate(lines) if w.startswith('USER'))
    assert 'root' not in lines[user] and any(w.startswith('HEALTHCHECK') for w in lines) and user < next(i for i, w in enumerate(lines) if w.startswith('CMD'))

# ---------------------------------------------------------------- what is replaced

def test_replaces_only_its_own(bundle, tmp_path):
    dest = deploy('voila', bundle, tmp_path/'d')
    (dest/'notes.md').write_text('mine')
    deploy('voila', bundle, dest, title='Other')
    assert 'Other' in (dest/'app.ipynb').read_text() and (dest/'notes.md').read_text() == 'mine'
    before = {f: f.read_bytes() for f in dest.rglob('*') if f.is_file()}
    (dest/'app.ipynb').write_text('{}')
    with pytest.raises(DeployError, match='holds app.ipynb'): deploy('voila', bundle, dest)
    assert {f: f.read_bytes() for f in dest.rglob('*') if f.is_file()} == before | {dest/'app.ipynb': b'{}'}

def test_a_readme_of_ones_own_stays(bundle, tmp_path):
    dest = deploy('binder', bundle, tmp_path/'d')
    (dest/'README.md').write_text('# Mine')
    newer = make_bundle(tmp_path/'newer', created='2025-01-01T00:00:00+00:00')
    for _ in range(2): deploy('binder', newer, dest)
    assert (dest/'README.md').read_text() == '# Mine' and changed_files(dest) == ['README.md']
    assert read_record(dest)['model'] == read_bundle(newer).digest and read_bundle(dest/'bundle').created == '2025-01-01T00:00:00+00:00'
    with pytest.raises(DeployError, match='holds README.md'): deploy('fastapi', newer, dest)  # whose README would be another

@pytest.mark.parametrize('target', every_target)
def test_environments_and_votes_are_not_for_repositories(target, bundle):
    ignored = deploy_files(target, bundle)['.gitignore'].decode().split()
    assert {'.venv/', '__pycache__/', '*.sqlite*'} <= set(ignored)

@pytest.mark.parametrize('given', ['me/bears', 'https://github.com/me/bears', 'https://github.com/me/bears.git', 'github.com/me/bears/', 'https://huggingface.co/spaces/me/bears', ' me/bears '])
def test_repositories(given, bundle): assert b'gh/me/bears/HEAD' in deploy_files('binder', bundle, repo=given)['README.md']

@pytest.mark.parametrize('given', ['bears', 'me/bears/more', 'me bears/x', '', 'https://example.org/me/bears'])
def test_what_is_no_repository(given, bundle):
    with pytest.raises(ValueError, match='`repo` should be USER/REPO'): deploy_files('binder', bundle, repo=given)

def test_another_target_takes_its_own_files_away(bundle, tmp_path):
    dest = deploy('voila', bundle, tmp_path/'d')
    deploy('fastapi', bundle, dest)
    assert not (dest/'app.ipynb').exists() and (dest/'serve.py').exists() and read_record(dest)['target'] == 'fastapi'
    (dest/'static'/'mine.txt').write_text('keep')
    deploy('colab', bundle, dest)
    assert not (dest/'bundle').exists() and [f.name for f in (dest/'static').iterdir()] == ['mine.txt']  # no empty folders, and nothing of others

@pytest.mark.parametrize('target', every_target)
def test_deploying_again_keeps_what_was_given(target, bundle, tmp_path):
    "Title, name and address, unless others are given"
    newer = make_bundle(tmp_path/'newer', created='2025-01-01T00:00:00+00:00')
    first = deploy(target, bundle, tmp_path/'Bears here', 'Which bear?', 'bear-app', 'me/bears')
    before = (first/'README.md').read_bytes()
    assert b'# Which bear?' in before and (target == 'voila' or b'me/bears' in before or b'bear-app' in before)
    deploy(target, newer, first)
    assert (first/'README.md').read_bytes() == before
    deploy(target, newer, first, 'What now?', repo='you/other')
    assert b'# What now?' in (first/'README.md').read_bytes() and {k: read_record(first)[k] for k in ('title', 'name', 'repo')} == dict(title='What now?', name='bear-app', repo='you/other')

@pytest.mark.parametrize('name', ['My App', 'a b', 'ä', '-a', 'a..b', 'a/b', 'A'])
def test_names_that_no_host_takes(name, bundle, tmp_path):
    with pytest.raises(ValueError, match='`name` should be of small letters'): deploy('fastapi', bundle, tmp_path/'d', name=name)
    assert not (tmp_path/'d').exists()

@pytest.mark.parametrize('target', every_target)
def test_the_readme_names_every_file(target, bundle, tmp_path):
    dest = deploy(target, bundle, tmp_path/'d')
    listed = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", (dest/'README.md').read_text(encoding='utf-8'))
    for f in dest.iterdir():
        if f.name == 'README.md' or f.name.startswith(('.git', '.docker')): continue
        assert any(fnmatch.fnmatch(name, n) for n in listed for name in (f.name, f'{f.name}/') ) or any(n.startswith(f'{f.name}/') for n in listed), f.name

@needs_npm
def test_a_page_whose_model_is_too_large_for_one_file(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr('bearcls.deploy.targets.largest_single', 10)
    for target in ('web', 'space-static'):
        dest = deploy(target, bundle, tmp_path/target)
        assert (dest/'index.html').exists() and not (dest/'classifier.html').exists() and 'classifier.html' not in (dest/'README.md').read_text(encoding='utf-8')

@needs_npm
def test_the_runtime_can_be_brought_along(bundle, tmp_path, capsys):
    (tmp_path/'runtime').mkdir()
    for name, content in web_runtime().items(): (tmp_path/'runtime'/name).write_bytes(content)
    assert main(['deploy', 'web', str(bundle), str(tmp_path/'d'), '--runtime', str(tmp_path/'runtime')]) == 0
    (tmp_path/'runtime'/name).write_bytes(b'another')
    assert main(['deploy', 'web', str(bundle), str(tmp_path/'e'), '--runtime', str(tmp_path/'runtime')]) == 2 and 'is not that of onnxruntime-web' in capsys.readouterr().err
    assert not (tmp_path/'e').exists()

record = dict(target='voila', title='', name='app', repo='USER/REPO', model='0'*64, files={})

@pytest.mark.parametrize('text', ['{', '[]', '{"target": "voila"}', '[' * 100_000, *(json.dumps(record | wrong) for wrong in [dict(target='heroku'), dict(files={'../other': '0'}), dict(files={'/etc/passwd': '0'}),
    dict(files={'a\\b': '0'}), dict(files=[]), dict(title=None), dict(repo=7)])], ids=range(11))
def test_a_record_that_is_none(text, bundle, tmp_path):
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'deploy.json').write_text(text)
    with pytest.raises(DeployError, match='deploy.json'): deploy('voila', bundle, tmp_path/'d')
    assert [f.name for f in (tmp_path/'d').iterdir()] == ['deploy.json']

def test_wrong_bundles_write_nothing(bundle, tmp_path):
    with pytest.raises(BundleError): deploy('voila', tmp_path/'none', tmp_path/'d')
    broken = shutil.copytree(bundle, tmp_path/'broken')
    (broken/'model.onnx').write_bytes(b'no model')
    with pytest.raises(BundleError): deploy('voila', broken, tmp_path/'d')
    (tmp_path/'file').write_text('')
    with pytest.raises(DeployError, match='is a file'): deploy('voila', bundle, tmp_path/'file')
    assert not (tmp_path/'d').exists()

# ---------------------------------------------------------------- joining

@pytest.fixture
def little_package(monkeypatch, tmp_path):
    "A folder that takes the place of the package: files and their sources"
    import bearcls.deploy.standalone as standalone
    def write(files):
        for name, source in files.items():
            (tmp_path/name).parent.mkdir(exist_ok=True)
            (tmp_path/name).write_text(source, encoding='utf-8')
    monkeypatch.setattr(standalone.bearcls, '__file__', str(tmp_path/'__init__.py'))
    standalone.module_statements.cache_clear()
    yield write
    standalone.module_statements.cache_clear()

def test_two_meanings_of_one_name_are_refused(little_package):
    little_package({
        'one.py': '"One"\nfrom html import escape\ndef _help(): return escape("")\ndef first(): return _help()\n',
        'two.py': '"Two"\nfrom .one import first\ndef _help(): return first()\ndef second(): return _help()\n',
        'three.py': '"Three"\nfrom shlex import quote as escape\nfrom .one import first\ndef third(): return escape(first())\n',
        'four.py': '"Four"\ndef fourth():\n    from .one import first\n    return first()\n'})
    with pytest.raises(RuntimeFileError, match='both define _help'): join_modules(['two.second'], {'app': ['one', 'two']})
    with pytest.raises(RuntimeFileError, match='different things by one name'): join_modules(['three.third'], {'app': ['one', 'three']})
    with pytest.raises(RuntimeFileError, match='inside a function'): join_modules(['four.fourth'], {'app': ['one', 'four']})
    apart = join_modules(['two.second'], {'base': ['one'], 'app': ['two']})
    assert 'from base import first' in apart['app'] and list(apart) == ['base', 'app']

def test_modules_of_wings_are_joined(little_package):
    "Relative imports of one dot and of two lead to the folder and to the one above it"
    little_package({
        '__init__.py': '"All"\nbase = 40\n',
        'one.py': '"One"\nfrom . import base\ndef first(): return base\n',
        'left/one.py': '"Another of this name"\ndef other(): return 1\n',
        'left/two.py': '"Two"\nfrom ..one import first\nfrom .one import other\ndef second(): return first() + other()\n',
        'right/three.py': '"Three"\nfrom ..left.two import second\ndef third(): return second() + 1\n'})
    modules = ['__init__', 'one', 'left.one', 'left.two', 'right.three']
    source, found = join_modules(['right.three.third'], {'app': modules})['app'], {}
    assert 'from .' not in source
    exec(source, found)
    assert found['third']() == 42
    with pytest.raises(RuntimeFileError, match='left is a front door'): join_modules(['left.second'], {'app': modules})
    with pytest.raises(RuntimeFileError, match='no module left.three'): join_modules(['left.three.third'], {'app': modules})
    with pytest.raises(RuntimeFileError, match='need left.one, which no file is made of'): join_modules(['left.two.second'], {'app': ['__init__', 'one', 'left.two']})

# ---------------------------------------------------------------- at work

@pytest.mark.skipif(sys.version_info < oldest_python, reason='the versions that folders ask for need a newer Python')
def test_check_tells_what_is_wrong(bundle, tmp_path):
    dest = deploy('fastapi', bundle, tmp_path/'d')
    with pytest.raises(DeployError, match='no folder that'): check_folder(bundle)
    (dest/'requirements.txt').write_text('no-such-package-of-bearcls==1\n')
    check = check_folder(dest, quiet=True)
    assert not check.ok and [s.status for s in check.steps] == ['ok', 'failed'] and 'changed since' in check.steps[0].words and 'cannot be installed' in check.steps[1].words

def test_check_needs_a_python_that_the_versions_exist_for(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bearcls.deploy.check, 'oldest_python', (9, 1))
    check = check_folder(deploy('voila', bundle, tmp_path/'app'), quiet=True)
    assert not check.ok and 'need Python 9.1 or newer' in check.steps[-1].words and [s.name for s in check.steps] == ['files', 'environment']

@needs_npm
@needs_npm
def test_check_without_a_browser(bundle, tmp_path, monkeypatch):
    "Playwright may be there, and no browser"
    pytest.importorskip('playwright')
    monkeypatch.setattr('bearcls.deploy.check.find_browser', lambda: str(tmp_path/'nowhere'))
    check = check_folder(deploy('web', bundle, tmp_path/'d'), bundle, quiet=True)
    assert check.ok and check.steps[-1].status == 'not checked' and 'playwright install chromium' in check.steps[-1].words
    assert re.search(r'http.server \d+ ', check.steps[-2].words)

def test_check_asks_for_the_bundle_where_there_is_none(bundle, tmp_path):
    dest = deploy('colab', bundle, tmp_path/'d')
    (dest/'bundle').mkdir()
    with pytest.raises(DeployError, match='give the one that it was made of'): check_folder(dest, quiet=True)

def test_check_on_the_command_line(bundle, tmp_path, capsys, monkeypatch):
    assert main(['deploy', 'web', str(bundle), str(tmp_path/'page'), '--check']) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'{tmp_path/"page"} works')
    monkeypatch.setattr(bearcls.deploy.check, 'oldest_python', (9, 1))
    assert main(['deploy', 'voila', str(bundle), str(tmp_path/'app'), '--check']) == 1
    assert 'does not work yet' in capsys.readouterr().out.splitlines()[-1]

@pytest.mark.parametrize('target', ['voila', 'binder', 'fastapi', 'space-docker'])
def test_every_kind_of_file(target, bundle, tmp_path, browser, environment):
    dest, files = deploy(target, bundle, tmp_path/target), write_uploads(tmp_path/'files')
    with started(dest, environment(dest)) as url:
        for width in (1200, 360):
            tab = browser.new_page(viewport=dict(width=width, height=800))
            hosts = set()
            tab.on('response', lambda r: hosts.add(r.url.split('/')[2]) if r.url.startswith('http') else None)
            tab.goto(url + deploy_targets[target].page, timeout=120_000)
            tab.get_by_role('button', name='Choose images').wait_for(timeout=60_000)
            for name, label in labels_expected.items() if width == 1200 else list(labels_expected.items())[:1]:
                tab.locator('input[type=file]').first.set_input_files(files/name)
                card = tab.locator(f'article[data-name="{name}"]:not([data-state=waiting])')
                card.wait_for(timeout=60_000)
                assert tab.locator('article').count() == 1, f'{name}: an older answer is still there'
                if label: assert card.locator('.bq-head').inner_text().startswith(label), name
                else: assert card.get_attribute('data-state') == 'problem' and len(card.locator('.bq-problem').inner_text()) > 20, name
                assert 'Traceback' not in tab.content() and str(tmp_path) not in tab.content() and 'site-packages' not in tab.content()
            assert tab.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
            assert hosts == {url.split('/')[2]}
            tab.close()

# ---------------------------------------------------------------- what stands in two places

def test_gradio_and_streamlit_say_the_same():
    "Each application is one file, so the functions that both need stand in both"
    def functions(name):
        source = package_file(f'templates/deploy/{name}/app.py.txt').read_text(encoding='utf-8')
        return {n.name: ast.get_source_segment(source, n) for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    gradio, streamlit = functions('space_gradio'), functions('streamlit')
    for name in ('heading', 'look', 'bar', 'card'): assert gradio[name] == streamlit[name], name

def test_one_version_of_gradio(bundle):
    wanted = {t: deploy_files(t, bundle)['requirements.txt'].decode() for t in ('space-gradio', 'colab')}
    version, = {re.search(r'^gradio==(\S+)', text, re.M)[1] for text in wanted.values()}
    assert f'sdk_version: {version}' in deploy_files('space-gradio', bundle)['README.md'].decode()
