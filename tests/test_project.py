"The project keeps its promises about itself: generated files in step, clean notebooks, one version, light imports"
import ast, configparser, importlib, importlib.metadata, os, re, runpy, shutil, subprocess, sys, types
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
from nbdev.config import tomllib
from notebooks import cells, exported, notebooks, output_text, root

sys.path.insert(0, str(root/'nbs'/'_sphinx'))
from pages import first_of_roof, wings

heavy = ['torch', 'torchvision', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'ipywidgets', 'anywidget', 'gradio', 'streamlit']
ids = [f.relative_to(root/'nbs').as_posix() for f in notebooks()]

def run(*command, cwd=root):
    "Run a command of the environment under test; its output is shown when it fails"
    env = {**os.environ, 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
    env.pop('IN_TEST', None)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8', stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f'{" ".join(command)}\n{done.stdout}\n{done.stderr}'
    return done.stdout

@pytest.fixture(scope='module')
def regenerated(tmp_path_factory):
    "A copy of the project in which nbdev has exported and cleaned everything once more"
    copy = tmp_path_factory.mktemp('regenerated')
    for name in ('nbs', 'bearcls'):
        shutil.copytree(root/name, copy/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.last_checked'))
    for name in ('_quarto.yml', 'pyproject.toml', 'settings.ini', 'setup.py'): shutil.copy(root/name, copy/name)
    run('nbdev-export', cwd=copy)
    run('nbdev-clean', cwd=copy)
    run(sys.executable, '-c', 'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()', cwd=copy)
    return copy

def different(folder, copy, suffixes):
    "Files that only one side has, or that differ"
    found = [{f.relative_to(side) for f in (side/folder).rglob('*') if f.suffix in suffixes and '__pycache__' not in f.parts} for side in (root, copy)]
    same = {f for f in found[0] & found[1] if text(root/f) == text(copy/f)}
    return sorted(f.as_posix() for f in (found[0] | found[1]) - same)

def text(file): return file.read_text(encoding='utf-8')  # with the line endings of every system read alike

def test_export_in_step(regenerated):
    assert different('bearcls', regenerated, {'.py'}) == [], 'run nbdev-export'

def test_project_files_unchanged_by_export(regenerated):
    assert text(root/'pyproject.toml') == text(regenerated/'pyproject.toml')
    assert different('nbs', regenerated, {'.yml', '.txt'}) == []

def test_notebooks_clean(regenerated):
    assert different('nbs', regenerated, {'.ipynb'}) == [], 'run nbdev-clean'

def test_readme_in_step():
    run(sys.executable, 'nbs/_sphinx/readme.py', '--check')

def test_sidebar_in_step():
    run(sys.executable, 'nbs/_sphinx/sidebar.py', '--check')

@pytest.mark.parametrize('notebook', notebooks(), ids=ids)
def test_outputs(notebook):
    "No path of someone's machine, no warning, progress bar or traceback left behind, and a page that loads quickly"
    assert notebook.stat().st_size < 2_000_000
    for cell in cells(notebook):
        words = output_text(cell)
        assert not any(o['output_type'] == 'error' or o.get('name') == 'stderr' for o in cell.get('outputs', [])), cell['source']
        assert 'Traceback (most recent call last)' not in words, cell['source']
        found = re.search(r'(?:(?<![\w./])|file://)(?:/(?:home|Users|root|work|tmp)/|[A-Z]:\\Users\\)\S*|' + re.escape(str(root)), words)
        assert not found, f'{found[0]} in the output of\n{cell["source"]}'

@pytest.mark.parametrize('notebook', notebooks(), ids=ids)
def test_figures_are_shown(notebook):
    "`#| hide` hides a cell's output too; `#| echo: false` hides the code alone"
    hidden = [c for c in cells(notebook) if c['cell_type'] == 'code' and c['source'].startswith('#| hide\n')]
    assert [c['source'] for c in hidden if any('image/png' in o.get('data', {}) for o in c['outputs'])] == []

def mixes_imports(source):
    "Does a cell import and do something else as well? In hidden cells, a function or a `try` may import for itself"
    nodes = ast.parse(re.sub(r'^[%!].*', 'pass', source, flags=re.MULTILINE))
    imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in (nodes.body if source.startswith('#| hide') else ast.walk(nodes))]
    return any(imports) and not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes.body)

@pytest.mark.parametrize('notebook', notebooks(), ids=ids)
def test_imports_sit_alone(notebook):
    "For a page, nbdev runs the exported cells and those that import, and no others; what stands beside an import would run without the cells above it"
    code = {c['id']: c['source'] for c in cells(notebook) if c['cell_type'] == 'code'}
    if not any('#| export' in source for source in code.values()): pytest.skip('nothing is run for this page')
    mixed = [key for key, source in code.items() if not re.search(r'#\| *(export|eval: false)', source) and mixes_imports(source)]
    assert mixed == [], f'{notebook.name}: these cells (by id) import and do something else as well'

@pytest.mark.parametrize('module', [
    'bearcls', 'bearcls.core', 'bearcls.inference.bundle', 'bearcls.inference.classifier', 'bearcls.serve.problems', 'bearcls.serve.service'])
def test_import_is_light(module):
    loaded = run(sys.executable, '-c', f'import sys, {module}; print(*sys.modules)').split()
    assert module in loaded
    assert sorted(set(heavy) & set(loaded)) == []

@pytest.mark.parametrize('wing', ['inference', 'serve'])
def test_everything_from_the_door_is_light(wing):
    loaded = run(sys.executable, '-c', f'import sys\nfrom bearcls.{wing} import *\nprint(*sys.modules)').split()
    assert f'bearcls.{wing}.{dict(inference="classifier", serve="service")[wing]}' in loaded
    assert sorted(set(heavy) & set(loaded)) == []

heavy_doors = {'train', 'interpret'}  # each names a function like its module, which is loaded with the door

@pytest.mark.parametrize('wing', sorted({*wings} - heavy_doors))
def test_a_door_loads_nothing_heavy(wing):
    loaded = run(sys.executable, '-c', f'import sys, bearcls.{wing}; print(*sys.modules)').split()
    assert sorted(set(heavy) & set(loaded)) == []

# ---------------------------------------------------------------- the tree

package = root/'bearcls'
sources = {'.'.join(f.relative_to(package).with_suffix('').parts): text(f) for f in sorted(package.rglob('*.py'))
           if f.name != '_modidx.py' and not {'static', 'templates'} & {*f.parts}}
homes = {}  # for each module, the notebook that exports it
for name, file in zip(ids, notebooks()):
    for cell in cells(file):
        if m := re.match(r'#\| default_exp (\S+)', cell['source']): homes[m[1]] = name

def place(module):
    "Where a module stands in the order of dependence: its wing, and its number there"
    folder, _, name = homes[module].rpartition('/')
    number = int(name.partition('_')[0])
    return (wings.index(folder) + 1 if folder else 0 if number < first_of_roof else len(wings) + 1, number)

def imported(module, source):
    "The modules of bearcls that a module imports, within functions too; a front door as `gather.__init__`"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = ['bearcls', *module.split('.')][:-node.level] if node.level else []
            base = '.'.join([*folder, *([node.module] if node.module else [])])
            named = [f'{base}.{a.name}' for a in node.names]
            found = [n if n.partition('.')[2] in sources else base for n in named]
        else: continue
        for name in found:
            top, _, rest = name.partition('.')
            if top == 'bearcls' and rest: yield f'{rest}.__init__' if f'{rest}.__init__' in sources else rest

def against_the_rule(sources):
    "Imports of front doors, and of modules that do not stand before the one that imports them"
    for module, source in sources.items():
        for other in imported(module, source) if not module.endswith('__init__') else ():
            if other.endswith('__init__') or place(other) >= place(module): yield f'{module} -> {other}'

known_exceptions = set()  # each with the move that will end it; none may be added

def test_imports_lead_downward():
    "From the top folder, from wings further up in the list, from lower numbers in the same folder; never from front doors"
    assert {*against_the_rule(sources)} == known_exceptions

@pytest.mark.parametrize('module,line,found', [
    ('core', 'from .gather.search import search_images', 'core -> gather.search'),
    ('gather.search', 'from ..train.learner import train', 'gather.search -> train.learner'),
    ('gather.search', 'from .download import gather', 'gather.search -> gather.download'),
    ('train.learner', 'def later():\n    from bearcls.export.convert import export_bundle', 'train.learner -> export.convert'),
    ('export.convert', 'import bearcls.app.notebook', 'export.convert -> app.notebook'),
    ('deploy.web', 'from ..cli import main', 'deploy.web -> cli'),
    ('folders', 'from . import similarity', 'folders -> similarity'),
    ('quickstart.run', 'from ..gather import search_images', 'quickstart.run -> gather.__init__'),
    ('train.fast', 'from ..data import image_dls', 'train.fast -> data.__init__')])
def test_an_upward_import_is_noticed(module, line, found):
    assert [*against_the_rule({module: f'{sources[module]}\n{line}\n'})] == [found]

def test_every_module_has_its_notebook():
    "nbdev-export leaves modules behind whose notebook is gone; `nbs/gather/07_search.ipynb` makes `bearcls/gather/search.py`"
    assert sorted(sources.keys() - homes.keys()) == ['__init__']
    assert sorted(homes.keys() - sources.keys()) == []
    def exported(notebook): return re.sub(r'\b\d+_', '', notebook.removesuffix('.ipynb')).replace('index', '__init__').replace('main', '__main__').replace('/', '.')
    assert {m: n for m, n in homes.items() if exported(n) != m} == {}

def test_wings_are_folders():
    "Each with a front door, at most nine modules, and no number twice"
    folders = {f.parent.name for f in (root/'nbs').glob('*/index.ipynb')}
    assert folders == {*wings} == {f.parent.name for f in package.glob('*/__init__.py')}
    for folder in ('', *wings):
        own = [m for m, n in homes.items() if n.rpartition('/')[0] == folder and not m.endswith('__init__')]
        numbers = [place(m)[1] for m in own]
        assert len(numbers) == len({*numbers}) and (not folder or 0 < len(numbers) <= 9), folder

def test_modules_are_small():
    "At most 420 exported lines, so that you can read a page in one sitting"
    lengths = {m: exported(root/'nbs'/n).count('\n') for m, n in homes.items()}  # without the line that names the module
    assert {m: n for m, n in lengths.items() if n > 420} == {} and lengths['core'] > 100

@pytest.mark.parametrize('wing', wings)
def test_front_door(wing):
    "Its names are there and on the page, none is answered by a module of that name, and the table lists every module"
    door = importlib.import_module(f'bearcls.{wing}')
    own = [m.partition('.')[2] for m in homes if m.startswith(f'{wing}.') and not m.endswith('__init__')]
    page = '\n'.join(c['source'] for c in cells(root/'nbs'/wing/'index.ipynb') if c['cell_type'] == 'markdown')
    assert getattr(door, '_offered', door.__all__) and [m for m in own if f'[{m}]({homes[f"{wing}.{m}"].partition("/")[2]})' not in page] == []
    for name in getattr(door, '_offered', door.__all__):
        assert f'`{name}`' in page and not isinstance(getattr(door, name), types.ModuleType), name

# ---------------------------------------------------------------- metadata in one place

def test_install_brings_what_the_application_starts():
    "Voilà starts a kernel in a process of its own, so no import in the package shows that it is needed"
    needed = [Requirement(r) for r in importlib.metadata.requires('bearcls')]
    plain = {r.name for r in needed if r.marker is None or r.marker.evaluate({'extra': ''})}
    assert {'ipykernel', 'jupyterlab', 'voila'} <= plain

def test_one_version():
    settings = configparser.ConfigParser(delimiters=['='], comment_prefixes=['#'])
    settings.read(root/'settings.ini', encoding='utf-8')
    assert importlib.metadata.version('bearcls') == settings['DEFAULT']['version']

def test_python_versions_agree():
    "The oldest and the newest Python named in the classifiers are the ones that the workflow tests"
    project = tomllib.loads(text(root/'pyproject.toml'))['project']
    named = [c.rpartition(' ')[2] for c in project['classifiers'] if re.fullmatch(r'.* :: 3\.\d+', c)]
    matrix = yaml.safe_load(text(root/'.github/workflows/test.yml'))['jobs']['test']['strategy']['matrix']
    assert matrix['python'] == [named[0], named[-1]]
    assert project['requires-python'] == f'>={named[0]}'

@pytest.mark.parametrize('workflow', sorted((root/'.github/workflows').glob('*.yml')), ids=lambda f: f.stem)
def test_workflows_parse(workflow):
    "Each workflow has jobs, and every action is pinned to a major version, by tag or by a branch of releases"
    jobs = yaml.safe_load(text(workflow))['jobs']
    uses = [s['uses'] for job in jobs.values() for s in job['steps'] if 'uses' in s]
    assert uses and all(re.fullmatch(r'[\w-]+/[\w/-]+@(release/)?v\d+', u) for u in uses), uses

def test_ci_calls_the_test_command():
    lines = text(root/'.ci/run').splitlines()
    assert [line for line in lines if not line.startswith('#')] == ['exec bash tests/run.sh']


def test_a_public_name_has_one_home():
    "Pages and links find a function or a class by its name alone"
    from bearcls._modidx import d
    homes = {}
    for module, names in d['syms'].items():
        for name in {n.removeprefix(f'{module}.') for n in names}:
            if '.' not in name: homes.setdefault(name, []).append(module)  # a class may get methods in other modules
    assert {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith('_')} == {}

@pytest.mark.parametrize('file', sorted((root/'bench').glob('*.py')), ids=lambda f: f.stem)
def test_benchmarks_say_what_they_measure(file, monkeypatch, capsys):
    "Each one's `--help` begins with its own docstring, and names its options"
    if file.stem == 'common': pytest.skip('what the others share')
    monkeypatch.setattr(sys, 'argv', [file.name, '--help'])
    monkeypatch.syspath_prepend(str(root/'bench'))
    with pytest.raises(SystemExit) as ended: runpy.run_path(str(file), run_name='__main__')
    said, doc = capsys.readouterr().out, ast.get_docstring(ast.parse(file.read_text(encoding='utf-8')))
    assert ended.value.code == 0 and doc.splitlines()[0] in said and f'python bench/{file.name} --out' in said and '--out' in said.split(doc.splitlines()[-1])[1]

retired = {'picture': 'image', 'unlikeness': 'OOD score', 'false.alarm': 'false positive', 'near.cop(y|ies)': 'near duplicate', r'(?<![/\w])stress(es|ed)?\b': 'robustness, corruption', 'disturb': 'corrupt', r'\brooms? (of bearcls|does|knows|is about)': 'page or module'}
speaks_of_them = {'nbs/explain/03_glossary.ipynb', 'nbs/changelog.ipynb', 'CHANGELOG.md', 'tests/test_project.py',  # the names of earlier versions themselves
    'nbs/inference/04_bundle.ipynb', 'nbs/inference/07_classifier.ipynb', 'bearcls/inference/bundle.py', 'bearcls/inference/classifier.py', 'bearcls/static/web/model.js', 'tests/test_bundle.py'}  # readers of bundles of format 1

def test_one_word_for_one_thing():
    "Words that the glossary has replaced come back neither in code nor in text"
    places = [root/name for name in ('nbs', 'bearcls', 'tests', 'bench')]
    listed = [*root.glob('*.md'), *(f for place in places for f in place.rglob('*'))]
    kinds = ('.ipynb', '.py', '.js', '.css', '.md', '.jinja', '.txt')
    listed = [f.relative_to(root) for f in listed if f.suffix in kinds]
    files = [f.as_posix() for f in listed if not {'__pycache__', '.ipynb_checkpoints'} & set(f.parts) and f.as_posix() not in speaks_of_them]
    assert len(files) > 200
    found = []
    of_drift = re.compile(r'monitor|drift|bets|campsite|test_log|accuracy|index|changelog|README')  # an alarm without a change has no other name
    for name in files:
        texts = [c['source'] for c in cells(root/name)] if name.endswith('.ipynb') else [text(root/name)]
        lines = [line for t in texts for line in t.splitlines() if 'aliases:' not in line]
        found += [f'{name}: {line.strip()[:120]} (say: {word})' for pattern, word in retired.items()
            for line in lines if re.search(pattern, line, re.IGNORECASE) and not (pattern == 'false.alarm' and of_drift.search(name))]
    assert found == []
