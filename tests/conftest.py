"What several tests share: a browser, and the folder with real photographs"
import gc, os, subprocess, sys
from pathlib import Path
import pytest
from hostile import image_bytes
from notebooks import root

flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync '
    '--use-fake-device-for-media-stream --use-fake-ui-for-media-stream').split()  # a camera that shows a moving figure

slow_files = '''cleaner_browser export site_browser quickstart site deploy_hosts web train app_browser fast scale experiment deploy review_browser quiz_browser teach gallery interpret pickles mend book
    serve_browser trust app robustness sending arguments pages log monitor drift refresh registry review stages loops release'''.split()  # they train, or start servers and browsers; the longest first
long_files = 'serve data verify download clean progress pretrain post threads'.split()  # half a minute and more, without any of these
quick_too = {'deploy', 'web', 'teach', 'gallery'}  # of these, only tests with a browser and single long ones are left out
slow_tests = ('test_faults_of_five_drawn_sets', 'test_predicts_with_three_packages_only', 'test_every_kind_of_file', 'test_killed', 'test_500_broken_files',
    'test_every_recipe_can_be_exported', 'test_split_and_batches_repeat_in_a_fresh', 'test_hostile_bundles', 'test_a_learner_with_nested',
    'test_an_unfinished_training', 'test_schemathesis', 'test_quickstart_into_a_file',
    'test_empty_each_check_fails', 'test_solved_each_check_passes', 'test_the_tasks_are_not_seen', 'test_solved_from_end_to_end', 'test_without_a_runtime')  # 10 seconds to two minutes each

def pytest_addoption(parser):
    parser.addoption('--quick', action='store_true', help='leave out what takes longer: browsers, hosts, trainings')

def pytest_collection_modifyitems(config, items):
    "Long files come first, so that no process works alone at the end; with --quick, what trains or starts servers and browsers is left out"
    def name_of(item): return item.path.stem.removeprefix('test_')
    rank = {name: i for i, name in enumerate([*slow_files, *long_files])}
    items.sort(key=lambda item: rank.get(name_of(item), len(rank)))
    if not config.getoption('--quick'): return
    def is_slow(item):
        name = name_of(item)
        return name in slow_files and name not in quick_too or 'browser' in getattr(item, 'fixturenames', ()) or item.name.startswith(slow_tests)
    config.hook.pytest_deselected(items=[i for i in items if is_slow(i)])
    items[:] = [i for i in items if not is_slow(i)]

def pytest_collection_finish(session):
    "What stands in memory after the imports stays to the end: the garbage collector need not look through it at each export and each trial"
    gc.collect()
    gc.freeze()

@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    "Opened images and answers are kept apart from the user's own; processes that test side by side share them"
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BEARCLS_CACHE', str((base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'cache'))
        yield

@pytest.fixture(scope='module')  # not longer: while Playwright runs, asyncio.run() is refused
def browser():
    "Chromium through Playwright; the test is skipped where there is none"
    sync_api = pytest.importorskip('playwright.sync_api')
    from bearcls.deploy.check import find_browser
    with sync_api.sync_playwright() as p:
        program = find_browser() or p.chromium.executable_path
        if not Path(program).exists(): pytest.skip('no Chromium on this machine')
        chromium = p.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()

@pytest.fixture(scope='session')
def shared():
    "Folder with real photographs and cached weights; the test is skipped where there is none"
    folder = Path(os.environ.get('BEARCLS_SHARED', '../shared'))
    if not folder.is_dir(): pytest.skip(f'BEARCLS_SHARED: there is no folder {folder}')
    return folder

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The built site: the one that `tests/run.sh` has just built, or a new one"
    if os.environ.get('BEARCLS_SITE'): return Path(os.environ['BEARCLS_SITE'])
    out = tmp_path_factory.mktemp('site')
    done = subprocess.run([sys.executable, root/'nbs/_sphinx/build.py', '--out', out], capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stdout + done.stderr
    return out

@pytest.fixture
def bears(tmp_path):
    folder = tmp_path/'bears'
    for k, label in enumerate(('black', 'grizzly')):
        (folder/label).mkdir(parents=True)
        for n in range(3): (folder/label/f'{n}.jpg').write_bytes(image_bytes(10*k + n))
    (folder/'black'/'broken.jpg').write_bytes(image_bytes(1)[:-200])
    (folder/'grizzly'/'page.jpg').write_bytes(b'<html>')
    return folder
