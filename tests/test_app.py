"The notebook application and its votes, without a browser"
import contextlib, json, logging, multiprocessing, os, random, re, sqlite3, stat, subprocess, sys, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from hostile import image_bytes
from tiny_bundle import make_bundle

pytest.importorskip('anywidget', reason='anywidget is not installed')
from bearcls.app.feedback import Feedback, FeedbackError
from bearcls.app.notebook import AppDesk, AppError, ClassifierApp, answer_upload, max_answers, max_message, open_here, serve_app, voila_config, write_app
from bearcls.core import package_file
from bearcls.inference.classifier import Classifier
from bearcls.inference.prediction import Prediction
from bearcls.monitor.writer import LogWriter
from bearcls.rollout.registry import Registry
from bearcls.sample.standins import colour_model

sure = Prediction('grizzly', 0.9, dict(grizzly=0.9, black=0.08, teddy=0.02))
metadata = dict(sha256='0'*64, name='bear.jpg', model='3f1c')

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('bundle')/'furs')

@pytest.fixture
def desk(bundle, tmp_path): return AppDesk(Classifier(bundle, threads=1), Feedback(tmp_path/'feedback.sqlite'))

def ask(desk, content, name='bear.png', **more): return desk.reply(dict(do='ask', number='1', name=name) | more, [content])

# ---------------------------------------------------------------- messages

def test_forged_messages(desk):
    "Whatever comes, a sentence or an answer goes back, and it can be sent as JSON"
    logging.getLogger('bearcls.app').setLevel(logging.CRITICAL)
    dice = random.Random(0)
    values = [None, True, 0, -1, 1e400, float('nan'), '', 'ask', 'tell', 'x'*100_000, '\0', '\ud800', [], {}, [[]]*3, dict(a=1), b'bytes', object()]
    buffers = [[], [b''], [b'x', b'y'], [None], ['text'], [bytearray(10)], [memoryview(b'abcd')], [7], None, [os.urandom(1000)]]
    answer = ask(desk, image_bytes(1))
    assert answer.get('label'), answer
    try:
        for _ in range(3000):
            message = dice.choice(values) if dice.random() < .1 else {k: dice.choice([*values, answer['answer'], 'brown', True]) for k in ('do', 'number', 'name', 'answer', 'right', 'label', 'unseen') if dice.random() < .8}
            if isinstance(message, dict) and dice.random() < .7: message['do'] = dice.choice(['ask', 'tell'])
            said = desk.reply(message, dice.choice(buffers))
            json.dumps(said, allow_nan=False).encode()
            assert said.get('label') or said.get('kept') or said['problem'] and '/' not in said['problem'] and 'Traceback' not in said['problem'], said
            assert len(said['number']) <= 80
    finally: logging.getLogger('bearcls.app').setLevel(logging.NOTSET)

def test_no_path_in_any_reply(bundle, tmp_path, monkeypatch):
    "Neither of the bundle nor of the votes, and not in the log"
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger('bearcls.app').addHandler(handler)
    place = str(tmp_path/'secret')
    try:
        for error in (KeyError(place), OSError(2, 'no', place), MemoryError(place), RuntimeError(place), RecursionError(place), UnicodeDecodeError('utf-8', place.encode(), 0, 1, 'x')):
            classifier = Classifier(bundle, threads=1)
            monkeypatch.setattr(classifier, 'predict', lambda source, error=error: (_ for _ in ()).throw(error))
            said = ask(AppDesk(classifier), image_bytes(1))
            assert said['problem'].endswith('.') and place not in json.dumps(said)
    finally: logging.getLogger('bearcls.app').removeHandler(handler)
    assert records and not any(place in r or str(Path(__file__).parent) in r for r in records), records
    blocked = AppDesk(Classifier(bundle, threads=1), Feedback(tmp_path/'nowhere'/'f.sqlite'))
    vote = blocked.reply(dict(do='tell', number='2', answer=ask(blocked, image_bytes(1))['answer'], right=True))
    assert vote == dict(number='2', problem='This could not be kept: the file for feedback cannot be written.')

def test_limits(desk):
    assert 'up to 8 MB' in ask(desk, bytes(max_message + 1))['problem'] and not desk.answers
    for k in range(max_answers + 5): ask(desk, b'x', f'{k}.jpg')
    assert len(desk.answers) == max_answers and desk.answers[-1].name == f'{max_answers + 4}.jpg'
    long = desk.classify('n'*5000 + '\n\x1b[0m', b'x')
    assert len(long.name) == 200 and long.name.isprintable()
    assert desk.classify('a\nb\x00c', b'x').name == 'a b c' and desk.classify('', b'x').name == 'The image'

def test_kinds_that_only_some_programs_open(bundle):
    classifier = Classifier(bundle, threads=1)
    assert 'Please save it as JPEG' in answer_upload(classifier, 'IMG_1.HEIC', b'\0\0\0\x18ftypheic' + bytes(100)).problem

def test_image_only_where_it_is_wanted(desk):
    "The browser has what it could open, and gets a small image of what it could not"
    assert 'image' not in ask(desk, image_bytes(1)) and ask(desk, image_bytes(1), unseen=True)['image'].startswith('data:image/jpeg;base64,')

def test_votes_on_what_was_said(desk):
    "The label, the probability and the digest come from the server, whatever the page says"
    answer = ask(desk, image_bytes(1))
    assert desk.reply(dict(do='tell', number='2', answer=answer['answer'], right=True, label='', probability=1, sha256='f'*64, name='other')) == dict(number='2', kept=True)
    vote, = desk.feedback.rows()
    assert (vote.label, vote.probability, vote.name, vote.model) == (answer['label'], answer['probability'], 'bear.png', desk.classifier.bundle.digest) and vote.sha256 != 'f'*64
    problem = ask(desk, b'text')
    assert 'answer' not in problem
    assert 'no longer known' in desk.reply(dict(do='tell', number='3', answer=desk.answers[-1].id, right=True))['problem'], 'a problem was voted on'
    assert 'no longer known' in AppDesk(desk.classifier).reply(dict(do='tell', number='3', answer=answer['answer'], right=True))['problem']

def test_widget(bundle, tmp_path):
    "Passes messages on, both ways; nobody is asked where no file is given"
    app, sent = ClassifierApp(bundle, feedback=None, note='Images stay here.'), []
    app.send = sent.append
    assert app.metadata['feedback'] is False and app.metadata['labels'] == app.classifier.labels and app.metadata['note'] == 'Images stay here.'
    app._handle_custom_msg(dict(do='ask', number='7', name='bear.png'), [memoryview(image_bytes(1))])
    app._handle_custom_msg(None, [])
    assert sent[0]['number'] == '7' and sent[0]['label'] == app.answers[-1].prediction.label and 'problem' in sent[1]
    assert app.classify('bear.png', image_bytes(1)).prediction and len(app.answers) == 2
    assert not list(tmp_path.iterdir())

def test_trouble_with_the_log_on_the_page(bundle, tmp_path):
    "One sentence while the log cannot be written, which names no file; gone when it can be written again"
    logging.getLogger('bearcls.app').setLevel(logging.CRITICAL)
    place = tmp_path/'secret place'
    try:
        with LogWriter(place/'log.sqlite', spool=bundle/'bundle.json'/'spool', retry=.05) as writer:
            app, sent = ClassifierApp(bundle, log=writer), []
            app.send = sent.append
            assert app.metadata['trouble'] == ''
            def visit(number):
                app._handle_custom_msg(dict(do='ask', number=number, name='bear.png'), [memoryview(image_bytes(1))])
                app._handle_custom_msg(dict(do='tell', number=number, answer=sent[-1]['answer'], right=True), [])
                return sent[-1]
            assert 'could not be kept' in visit('1')['problem'] and sent[0]['label']
            assert app.metadata['trouble'].startswith('The log cannot be written') and 'log.sqlite' not in app.metadata['trouble'] and 'secret' not in app.metadata['trouble']
            assert 'log.sqlite' in app.desk.log_trouble()
            place.mkdir()
            end = time.monotonic() + 30
            while app.metadata['trouble']:
                assert time.monotonic() < end, app.desk.log_trouble()
                visit('2')
            assert sent[-1]['kept'] and 'lost' in app.desk.log_trouble()  # which the owner still learns
    finally: logging.getLogger('bearcls.app').setLevel(logging.NOTSET)

def test_follows_an_alias(tmp_path, caplog):
    "With the next image; a bundle that cannot be loaded is refused, and a vote goes to the model that answered"
    registry = Registry(tmp_path/'models')
    first = registry.add(make_bundle(tmp_path/'first')).id
    second = registry.add(make_bundle(tmp_path/'second', ['a', 'b', 'c'], colour_model(sharpness=61))).id
    registry.promote(first)
    app = ClassifierApp(f'{registry.folder}@champion', feedback=tmp_path/'votes.sqlite', threads=1)
    sent = []
    app.send = sent.append
    def asked(number): app._handle_custom_msg(dict(do='ask', number=number, name='bear.png'), [image_bytes(1)])
    asked('1')
    registry.promote(second)
    asked('2')
    assert app.answers[0].model[:12] == first and app.answers[1].model[:12] == second and app.metadata['labels'] == ['a', 'b', 'c']
    app._handle_custom_msg(dict(do='tell', number='3', answer=sent[0]['answer'], right=True), [])
    assert sent[-1]['kept'] is True and [v.model[:12] for v in app.desk.feedback.rows()] == [first]
    third = registry.add(make_bundle(tmp_path/'third', model=colour_model(sharpness=62))).id
    (tmp_path/'models'/'models'/third/'model.onnx').write_bytes(b'broken')
    registry.promote(third)
    for k in '45': asked(k)
    assert 'answer' in sent[-1] and app.answers[-1].model[:12] == second
    assert len([r for r in caplog.records if 'refused' in r.getMessage()]) == 1
    registry.rollback()
    asked('6')
    assert app.answers[-1].model[:12] == second

def test_a_bundle_that_is_replaced_is_taken_over(tmp_path):
    place = make_bundle(tmp_path/'bundle')
    app = ClassifierApp(place, feedback=None, threads=1)
    before = app.classify('bear.png', image_bytes(1)).model
    make_bundle(place, model=colour_model(sharpness=61))
    assert app.classify('bear.png', image_bytes(1)).model != before

def test_script_is_made_for_strangers():
    "No words become HTML, nothing is evaluated, no host is named; and its settings are the ones that Python sends"
    script = package_file('static/classify.js').read_text(encoding='utf-8')
    for word in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(', 'new Function', '.style.cssText', 'localStorage', 'fetch('): assert word not in script, word
    assert re.findall(r'https?://[^\'" ]+', script) == ['http://www.w3.org/2000/svg']
    style = package_file('static/classify.css').read_text(encoding='utf-8')
    assert 'url(' not in style and '@import' not in style
    sent = set(re.search(r'constructor\(root, \{(.*?)\}\)', script).group(1).replace(':', ' ').replace(',', ' ').split())
    assert {'title', 'labels', 'note', 'maxBytes', 'rawBytes'} <= sent

# ---------------------------------------------------------------- votes

def vote_often(path, start):
    store = Feedback(path, timeout=30)
    for k in range(start, start + 25): store.vote(str(k), sure, True, **metadata)

def test_several_processes(tmp_path):
    "They all make the file at the same moment, too"
    path, context = tmp_path/'feedback.sqlite', multiprocessing.get_context('spawn')
    processes = [context.Process(target=vote_often, args=(path, 25*k)) for k in range(4)]
    for p in processes: p.start()
    for p in processes: p.join(60)
    assert [p.exitcode for p in processes] == [0]*4 and len(Feedback(path).rows()) == 100

def test_locked(tmp_path):
    store = Feedback(tmp_path/'feedback.sqlite', timeout=.2)
    store.vote('1', sure, True, **metadata)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute('BEGIN EXCLUSIVE')
    with pytest.raises(FeedbackError, match='others are writing. Please try again'): store.vote('2', sure, True, **metadata)
    other.execute('ROLLBACK')
    other.close()
    store.vote('2', sure, True, **metadata)
    assert len(store.rows()) == 2

def test_locked_for_readers(tmp_path):
    "A file whose journal is the older one is not read while others write: it could be half of theirs"
    store = Feedback(tmp_path/'feedback.sqlite', timeout=.2)
    store.vote('1', sure, True, **metadata)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        assert other.execute('PRAGMA journal_mode=DELETE').fetchone() == ('delete',)
        other.execute('BEGIN EXCLUSIVE')
        with pytest.raises(FeedbackError, match='The file for feedback is locked'): store.rows()
        other.execute('ROLLBACK')
    assert len(store.rows()) == 1

def test_read_only_place(tmp_path):
    folder = tmp_path/'shelf'
    folder.mkdir()
    store = Feedback(folder/'feedback.sqlite')
    store.vote('1', sure, True, **metadata)
    os.chmod(store.path, stat.S_IREAD)
    os.chmod(folder, stat.S_IREAD | stat.S_IEXEC)
    try:
        if os.access(folder, os.W_OK): pytest.skip('this user may write everywhere')
        assert len(store.rows()) == 1
        with pytest.raises(FeedbackError, match='cannot be written'): store.vote('2', sure, True, **metadata)
    finally: os.chmod(folder, stat.S_IRWXU)

def test_hostile_votes(tmp_path):
    store = Feedback(tmp_path/'feedback.sqlite')
    for right, correct, more in [(True, 'black', {}), (False, 'grizzly', {}), (False, 'polar', {}), (False, None, {}), (False, 7, {}), (1, '', {}), (None, '', {}), ('True', '', {}), (False, 'x'*10_000, {}),
                                 (True, '', dict(name='n'*256)), (True, '', dict(name=None)), (True, '', dict(sha256='G'*64)), (True, '', dict(sha256=None)), (True, '', dict(model='b'*129)), (True, '', dict(name='a\0b'))]:
        with pytest.raises(FeedbackError): store.vote('1', sure, right, correct, **metadata | more)
    for answer in ('', 'a'*65, None, 5):
        with pytest.raises(FeedbackError): store.vote(answer, sure, True, **metadata)
    for p in (float('nan'), 1.5, -1., float('inf')):
        with pytest.raises(FeedbackError): store.vote('1', Prediction('grizzly', p, dict(grizzly=p)), True, **metadata)
    assert not store.path.exists(), 'a refused vote has made the file'
    store.vote("'; DROP TABLE votes; --", sure, True, **metadata | dict(name="Robert'); --"))
    assert store.rows()[0].name == "Robert'); --"

def test_path_with_odd_letters(tmp_path):
    folder = tmp_path/'a folder? #1 100% ü'
    folder.mkdir()
    store = Feedback(folder/'feed?back#.sqlite')
    store.vote('1', sure, True, **metadata)
    assert len(store.rows()) == 1 and store.path.exists() and store.path.parent == folder

# ---------------------------------------------------------------- what it costs, and what it is served with

def test_lean(bundle, tmp_path):
    "A visitor's process loads no torch, no fastai, no pandas, and no notebook's extras"
    code = f'''
import sys, json
from bearcls.app.notebook import ClassifierApp
app = ClassifierApp({str(bundle)!r}, threads=1, feedback=None)
print(json.dumps([m for m in ('torch', 'fastai', 'fastcore', 'pandas', 'scipy', 'matplotlib', 'jinja2', 'nbdev', 'onnx', 'jupyter_server') if m in sys.modules]))
'''
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH')]))}
    assert json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env, cwd=tmp_path).stdout) == []

def test_settings_of_voila():
    "The file is what Voilà takes, and its class is one that Voilà may use"
    pytest.importorskip('voila', reason='voila is not installed')
    from traitlets.config import Config
    config = Config()
    space = dict(get_config=lambda: config)
    exec(compile(voila_config(), 'voila.py', 'exec'), space)
    assert config.VoilaConfiguration.multi_kernel_manager_class.__name__ == 'PatientKernels' and config.VoilaConfiguration.preheat_kernel is True
    assert config.MappingKernelManager.cull_idle_timeout + 2*config.MappingKernelManager.cull_interval < 60
    assert config.Voila.tornado_settings['websocket_max_message_size'] > max_message + 100_000
    policy = config.Voila.tornado_settings['headers']['Content-Security-Policy']
    assert 'http' not in policy and '*' not in policy

def test_notebook_and_its_paths(bundle, tmp_path):
    "Votes are kept beside the bundle unless another file is named, or none"
    source = lambda **options: json.loads(write_app(bundle, tmp_path, **options).read_text(encoding='utf-8'))['cells'][0]['source']
    beside = os.path.relpath(bundle.parent/'feedback.sqlite', tmp_path)
    assert f'feedback={Path(beside).as_posix()!r})' in source()
    assert source(feedback=None).endswith('feedback=None)') and source(feedback=tmp_path/'votes.sqlite').endswith("feedback='votes.sqlite')")
    assert "'It\\'s a \"bear\"?'" in source(title='It\'s a "bear"?')
    with pytest.raises(ValueError):
        with serve_app(tmp_path/'nowhere'): pass

def test_behind_a_proxy(bundle, monkeypatch):
    "A proxy for the world is not asked about this machine"
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'all_proxy'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    with serve_app(bundle, timeout=180) as url, open_here(url, 180) as page: assert page.status == 200

def test_a_place_for_votes_that_is_none(bundle, tmp_path):
    with pytest.raises(AppError, match='there is no folder'):
        with serve_app(bundle, feedback=tmp_path/'nowhere'/'votes.sqlite'): pass

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows knows no SIGTERM')
def test_told_to_end_it_ends_its_server(bundle):
    command = [sys.executable, '-c', f'from bearcls.app.notebook import run_app; run_app({str(bundle)!r}, open_browser=False)']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[-1]
        with open_here(url, 180) as page: assert page.status == 200
        process.terminate()
        assert process.wait(120) == 0
    with pytest.raises(OSError): open_here(url, 2)

def kernels():
    "The kernels below this process: the id of each, by the number of its process"
    psutil, found = pytest.importorskip('psutil', reason='psutil is not installed'), {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if known := re.search(r'kernel-([0-9a-f-]{36})\.json', ' '.join(child.cmdline())): found[child.pid] = known[1]
    return found

def wait_until(condition, complaint, seconds=120):
    "Until it holds; what it says is given back"
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, complaint
        time.sleep(.1)
    return found

@contextlib.contextmanager
def small_server(bundle, monkeypatch, **settings):
    "A server with settings of its own; gives its address, and what tells which kernels it has"
    text = voila_config()
    for name, value in settings.items():
        text, n = re.subn(rf'^((?:c\.MappingKernelManager\.)?{name} = )\d+', rf'\g<1>{value}', text, flags=re.M)
        assert n == 1, name
    monkeypatch.setattr('bearcls.app.notebook.voila_config', lambda: text)
    others = set(kernels())
    with serve_app(bundle, timeout=180) as url: yield url, lambda: {pid: kernel for pid, kernel in kernels().items() if pid not in others}

def visit(url):
    "Open the page as a browser does: its status, and its text"
    try:
        with open_here(url, 180) as page: return page.status, page.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.read().decode()

def test_a_crowd(bundle, monkeypatch):
    "More visitors than there is memory for are asked to come again; when they have gone, one kernel waits for the next"
    with small_server(bundle, monkeypatch, max_kernels=4, cull_interval=2, cull_idle_timeout=6) as (url, ours):
        wait_until(ours, 'no kernel waits for the first visitor')
        with ThreadPoolExecutor(8) as pool: statuses, pages = zip(*pool.map(visit, [url]*10))
        assert all('Too many visitors; please come again in a minute' in page for status, page in zip(statuses, pages) if status == 503), 'a visitor does not read why'
        assert set(statuses) == {200, 503} and 1 <= statuses.count(200) <= 4, statuses
        wait_until(lambda: kernel_of(visit(url)) or time.sleep(3), 'nobody gets in after the crowd has gone')
        seen = []
        wait_until(lambda: seen.append(len(ours())) or seen[-20:] == [1]*20, 'nobody waits for the next visitor, or several do')

def kernel_of(page):
    "The id of the kernel that a visitor was given, if one was"
    status, html = page
    return re.search(r'"kernelId": ?"([0-9a-f-]{36})"', html)[1] if status == 200 else None

def test_a_server_with_room_for_one(bundle, monkeypatch):
    "While a visitor has the only kernel, the next cannot start; that neither keeps the first one alive nor is the next given up for ever"
    with small_server(bundle, monkeypatch, max_kernels=1) as (url, ours):
        first = wait_until(lambda: kernel_of(visit(url)), 'there is no room for one')
        time.sleep(2)  # after one the next is tried, in vain
        with open_here(urllib.request.Request(f'{url}voila/api/shutdown/{first}', b''), 60) as said: assert said.status in (200, 204)
        wait_until(lambda: first not in ours().values(), 'the page has said goodbye, and its kernel lives on')
        second, = wait_until(ours, 'nobody waits for the next visitor').values()
        assert wait_until(lambda: kernel_of(visit(url)), 'there is no room for the next visitor') == second != first

def test_a_kernel_that_dies_while_it_waits(bundle, monkeypatch):
    "Is not handed to a visitor, also not when it was started again: it would not know the notebook; another takes its place"
    psutil = pytest.importorskip('psutil', reason='psutil is not installed')
    with small_server(bundle, monkeypatch, cull_interval=2) as (url, ours):
        (pid, first), = wait_until(ours, 'no kernel waits for a visitor').items()
        time.sleep(4)  # it has been seen alive
        psutil.Process(pid).kill()
        second, = wait_until(lambda: set(ours().values()) - {first}, 'nobody takes the place of the kernel that died')
        assert kernel_of(visit(url)) == second
