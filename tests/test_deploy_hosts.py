"The hosts' own user interfaces: each from its written folder, in an environment of its own, in a real browser"
import json, os, re, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path
import pytest
from PIL import Image
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.sample.standins import colour_model, furs
from uploads import image_bytes

pytest.importorskip('jinja2', reason='jinja2 is not installed')
from bearcls.deploy.check import ask_page, ask_service, install_packages, make_environment, oldest_python, started
from bearcls.deploy.targets import deploy

labels = [f'{name} & <b>soft</b> ${{1+1}}' for name in furs]
title = 'Which <i>fur</i> is it?'
answers = {'space-gradio': '#answers', 'streamlit': '.answers'}

guard = '''import socket
log, lookup, connect = {log!r}, socket.getaddrinfo, socket.socket.connect
def outside(host): return not (host in (None, '', 'localhost', '0.0.0.0', '::') or str(host).startswith(('127.', '::1')))
def refuse(host):
    with open(log, 'a') as f: f.write(f'{{host}}\\n')
    raise OSError('other hosts are not asked')
def guarded_lookup(host, *args, **kwargs):
    host = host.decode() if isinstance(host, bytes) else host
    return refuse(host) if outside(host) else lookup(host, *args, **kwargs)
def guarded_connect(self, address): return refuse(address[0]) if isinstance(address, tuple) and outside(address[0]) else connect(self, address)
socket.getaddrinfo, socket.socket.connect = guarded_lookup, guarded_connect
'''

def rotated():
    "The bytes of an image that lies on its side, with the note that it has to be turned"
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(furs['brown'], (400, 200), exif=exif)

class Environments:
    "Environments by target, made once and kept for all tests; nothing in them can reach another host without its name being written down"
    def __init__(self, root): self.root, self.made = root, {}
    def __call__(self, folder, target, *more):
        if target in self.made: return self.made[target]
        start = time.monotonic()
        programs, size = make_environment(folder, self.root/target)
        if more: install_packages(programs, *more)
        print(f'{target}: {size/1e6:.0f} MB, installed in {time.monotonic() - start:.0f} s')
        log = self.root/f'{target}.hosts'
        site = subprocess.run([programs/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True, check=True).stdout.strip()
        (Path(site)/'no_other_hosts.py').write_text(guard.format(log=str(log)), encoding='utf-8')
        (Path(site)/'no_other_hosts.pth').write_text('import no_other_hosts\n', encoding='utf-8')  # no sitecustomize: some systems have their own, which comes first
        subprocess.run([programs/'python', '-c', 'import socket\ntry: socket.getaddrinfo("example.org", 80)\nexcept OSError: pass'], check=True)
        assert log.read_text() == 'example.org\n', 'the guard writes nothing down'
        log.write_text('')
        self.made[target] = programs, log
        return self.made[target]

@pytest.fixture(scope='session')
def environments(tmp_path_factory):
    if sys.version_info < oldest_python: pytest.skip(f'the versions that folders ask for need Python {".".join(map(str, oldest_python))} or newer')
    return Environments(tmp_path_factory.mktemp('environments'))

@pytest.fixture(scope='session')
def bundle(tmp_path_factory): return write_bundle(Bundle(labels, (64, 64)), colour_model(), tmp_path_factory.mktemp('bundle')/'furs', '# Furs\n')

class Site:
    "A deployed folder at work"
    def __init__(self, target, folder, url, programs, log): self.target, self.folder, self.url, self.programs, self.log = target, folder, url, programs, log

@pytest.fixture(scope='module', params=['space-gradio', 'streamlit'])
def site(request, environments, bundle, tmp_path_factory):
    folder = deploy(request.param, bundle, tmp_path_factory.mktemp('folder')/'furs', title)
    programs, log = environments(folder, request.param)
    with started(folder, programs) as url: yield Site(request.param, folder, url, programs, log)
    assert log.read_text() == '', 'the server looked for other hosts'

class Page:
    "A page of a site, driven as a visitor does"
    def __init__(self, browser, site, **options):
        self.site, self.tab = site, browser.new_page(**options)
        self.hosts = set()
        self.tab.set_default_timeout(180_000)
        self.tab.on('request', lambda r: self.hosts.add(r.url.split('/')[2]) if r.url.startswith(('http', 'ws')) else None)
        self.tab.on('websocket', lambda w: self.hosts.add(w.url.split('/')[2]))
        self.tab.goto(site.url)
        self.files.wait_for(state='attached')
    @property
    def files(self): return self.tab.locator('input[type=file]').first
    @property
    def cards(self): return self.tab.locator(f'{answers[self.site.target]} .card')
    def put(self, name, content):
        "Choose a file; a large one goes over the disk, which is faster"
        file = self.site.folder.parent/name
        if len(content) > 1_000_000: file.write_bytes(content)
        self.files.set_input_files(file if len(content) > 1_000_000 else dict(name=name, mimeType='image/jpeg', buffer=content))
    def choose(self, name, content):
        "The words about a file; nothing else may stand there"
        self.put(name, content)
        self.cards.filter(has_text=name).wait_for()
        assert self.cards.count() == 1, 'an older answer is still there'
        return self.cards.inner_text()
    def close(self):
        "What holds on every page at every time"
        content, own = self.tab.content(), self.site.url.split('/')[2]
        assert not any(w in content for w in ('Traceback', 'site-packages', str(self.site.folder.parent))), 'a trace or a path of the server'
        assert self.hosts == {own}, 'the page asked other hosts'
        assert self.tab.evaluate('[...document.querySelectorAll("link[href]")].every(e => new URL(e.href).host == location.host)')
        assert self.tab.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'the page is wider than the screen'
        self.tab.close()

@pytest.fixture(params=['wide', 'phone'])
def page(request, browser, site):
    wide = request.param == 'wide'
    page = Page(browser, site, viewport=dict(width=1100 if wide else 360, height=800), color_scheme='light' if wide else 'dark')
    yield page
    page.close()

def label(colour): return labels[list(furs).index(colour)]

def test_every_kind_of_file(page):
    "Right answers and clear sentences, one after the other, and never an old one"
    assert page.tab.get_by_role('heading', name=title).count() == 1
    other = tuple((a + b)//2 for a, b in zip(furs['white'], furs['brown']))
    for name, content, expected in [
        ('good.jpg', image_bytes(furs['brown']), label('brown')),
        ('phone.jpg', rotated(), label('brown')),
        ('twelve.jpg', image_bytes(furs['white'], (4000, 3000)), label('white')),
        ('text.jpg', b'this is text', 'text.jpg cannot be looked at: the file is no image of a known format.'),
        ('large.png', image_bytes(furs['brown'], (3200, 3030), 'PNG', compress_level=0), label('brown')),
        ('alpha.png', image_bytes((0, 0, 0, 0), format='PNG', mode='RGBA'), label('white')),
        ('web.webp', image_bytes(furs['brown'], format='WEBP'), label('brown')),
        ('empty.jpg', b'', 'empty.jpg cannot be looked at: the file holds no bytes.'),
        ('half.jpg', image_bytes('white', (900, 900))[:3000], 'half.jpg cannot be looked at: the file ends before the image does.'),
        ('bomb.png', image_bytes(1, (12_000, 12_000), 'PNG', mode='1'), 'bomb.png cannot be looked at: the image claims more pixels than allowed.'),
        ('doubt.png', image_bytes(other, format='PNG'), 'None of these? Ask a person\nThe model would rather not decide: it could be '),
        ('a <b>&amp; ${2+2}.jpg', b'text', 'a <b>&amp; ${2+2}.jpg cannot be looked at'),
        ('good.jpg', image_bytes(furs['white']), label('white'))]:
        words = page.choose(name, content)
        if 'cannot be looked at' in expected: assert words.startswith(expected), name
        else: assert words.startswith(f'{name}\n{expected}') and all(f'{l}\n' in words for l in labels), name
        shown = page.cards.locator('img')
        assert shown.count() == ('cannot be looked at' not in expected)
        if name == 'phone.jpg': assert shown.evaluate('i => i.naturalHeight == 2*i.naturalWidth'), 'the image lies on its side'
    background = page.tab.evaluate('getComputedStyle(document.querySelector(".stApp") ?? document.body).backgroundColor')
    assert (sum(map(int, re.findall(r'\d+', background)[:3])) < 300) == (page.tab.viewport_size['width'] == 360), 'light or dark, as the visitor has it'

def test_several_and_too_large(page):
    "Several images have a card each; one that is refused says why, and the old answers are gone"
    kinds = {'one.jpg': image_bytes(furs['white']), 'two.jpg': b'text', 'three.webp': image_bytes(furs['black'], format='WEBP')}
    page.files.set_input_files([dict(name=n, mimeType='image/jpeg', buffer=c) for n, c in kinds.items()])
    page.cards.nth(2).wait_for()
    words = page.cards.all_inner_texts()
    assert [w.split('\n')[0].split(' ')[0] for w in words] == list(kinds) and 'cannot be looked at' in words[1]
    page.put('giant.png', bytes(34_000_000))
    page.tab.get_by_text(re.compile(r'32\.0 ?Mb', re.I)).first.wait_for()
    assert not any(card.is_visible() for card in page.cards.all()), 'old answers beside a file that was refused'
    assert page.choose('good.jpg', image_bytes(furs['brown'])).startswith(f'good.jpg\n{label("brown")}')

def test_camera(page):
    "An image from the camera, which is asked for only when a visitor wants it; here it shows a moving figure"
    if page.site.target == 'space-gradio':
        page.tab.get_by_text('Take or paste an image').click()
        page.tab.get_by_text('Click to Access Webcam').click()
    else: page.tab.get_by_text('Use the camera').click()
    page.tab.wait_for_function('document.querySelector("video")?.videoWidth > 0 && document.querySelector("video").currentTime > 0')
    page.tab.get_by_role('button', name=re.compile('capture photo|take photo', re.I)).click()
    page.cards.locator('img').wait_for()
    assert page.cards.count() == 1 and all(f'{l}\n' in page.cards.inner_text() for l in labels)

@pytest.mark.parametrize('site', ['space-gradio'], indirect=True)
def test_gradio_answers_programs(site):
    "The same over Gradio's client, with a sentence for what is no image"
    files = {n: site.folder.parent/n for n in ('good.png', 'text.jpg')}
    files['good.png'].write_bytes(image_bytes(furs['brown'], format='PNG'))
    files['text.jpg'].write_text('this is text')
    code = f'''import json
from gradio_client import Client, handle_file
client = Client({site.url!r}, verbose=False)
print(json.dumps([client.predict(handle_file(f), api_name='/predict') for f in {[str(f) for f in files.values()]}]))'''
    done = subprocess.run([site.programs/'python', '-c', code], capture_output=True, text=True, check=True, env={**os.environ, 'HF_HUB_DISABLE_TELEMETRY': '1', 'GRADIO_ANALYTICS_ENABLED': 'False'})
    good, bad = json.loads(done.stdout.splitlines()[-1])
    assert good['label'] == label('brown') and good['trusted'] and set(good['probabilities']) == set(labels)
    assert bad == {'error': 'The file cannot be looked at: the file is no image of a known format.'}

@pytest.mark.parametrize('site', ['space-gradio'], indirect=True)
def test_gradio_opens_only_what_was_uploaded(site, tmp_path):
    "The path of a file comes from the visitor, who may write any"
    secret = tmp_path/'secret.png'
    secret.write_bytes(image_bytes(furs['brown'], format='PNG'))
    def post(path, data):
        request = urllib.request.Request(f'{site.url}/gradio_api/{path}', json.dumps(data).encode(), {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=30) as answer: return json.loads(answer.read())
    def events(path):
        with urllib.request.urlopen(f'{site.url}/gradio_api/{path}', timeout=30) as answer: return answer.read().decode()
    with urllib.request.urlopen(f'{site.url}/config', timeout=30) as answer: asked = next(d['id'] for d in json.loads(answer.read())['dependencies'] if len(d['inputs']) == 2)
    for k, data in enumerate(([[{'image': {'path': str(secret)}}], None], [None, {'path': str(secret)}], [[{'video': {'path': str(secret)}}], None], [[{'image': {'path': '/dev/zero'}}], None])):
        post('queue/join', dict(data=data, fn_index=asked, session_hash=f'h{k}'))
        said = events(f'queue/data?session_hash=h{k}')
        assert 'process_completed' in said and 'data:image' not in said and label('brown') not in said
    for path in (secret, '/etc/passwd', '/no/such/file', '/dev/zero', f'{tempfile.gettempdir()}/gradio/../{secret.name}'):
        said = events(f'call/predict/{post("call/predict", dict(data=[{"path": str(path)}]))["event_id"]}')
        assert label('brown') not in said and 'known format' not in said

@pytest.mark.parametrize('site', ['streamlit'], indirect=True)
def test_streamlit_keeps_no_images(site, browser):
    "What was answered is no longer held"
    psutil = pytest.importorskip('psutil')
    server = next(p for p in psutil.process_iter(['cmdline']) if 'streamlit' in ' '.join(p.info['cmdline'] or []) and site.url.split(':')[-1] in p.info['cmdline'])
    held = lambda: server.memory_info().rss/1e6
    page, large = Page(browser, site, viewport=dict(width=900, height=800)), image_bytes(furs['brown'], (3000, 2400), 'PNG', compress_level=0)
    files, after = [site.folder.parent/f'{k}.png' for k in range(8)], []
    for file in files: file.write_bytes(large)
    for turn in range(12):
        files = [file.rename(file.with_name(f'turn{turn}-{k}.png')) for k, file in enumerate(files)]
        page.files.set_input_files(files)
        for file in files: page.cards.filter(has_text=file.name).wait_for()
        after.append(held())
    page.close()
    assert max(after[6:]) - max(after[:6]) < 2*8*len(large)/1e6, f'MB after each turn: {after}'  # kept, it would be six turns' worth

slow = {  # pages that take their time, with room for one or two visitors
    'space-gradio': {'max_waiting = 64': 'max_waiting = 1', 'answers, images, photo], concurrency_limit=usable_cores()': 'answers, images, photo], concurrency_limit=1'},
    'streamlit': {'patience = 20': 'patience = .5', 'BoundedSemaphore(usable_cores())': 'BoundedSemaphore(1)'}}

def test_streamlit_takes_a_new_model(browser, bundle, environments, tmp_path, monkeypatch):
    "Without being started again"
    programs, _ = environments(folder := deploy('streamlit', bundle, tmp_path/'furs'), 'streamlit')
    night = write_bundle(Bundle(['night', 'brown', 'white'], (64, 64)), colour_model({'night': furs['black'], 'brown': furs['brown'], 'white': furs['white']}), tmp_path/'night', '# Night')
    (tmp_path/'dark.png').write_bytes(image_bytes(furs['black'], format='PNG'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with started(folder, programs) as url:
        ask_page(url, tmp_path/'dark.png', label('black'), 180)
        deploy('streamlit', night, next(tmp_path.glob('*/app')))  # where it runs
        ask_page(url, tmp_path/'dark.png', 'night', 180)

@pytest.mark.parametrize('target', list(slow))
def test_too_many(target, browser, bundle, environments, tmp_path):
    "Who comes when there is no room is told so; the others are answered"
    folder, begun, go = deploy(target, bundle, tmp_path/'furs', title), tmp_path/'begun', tmp_path/'go'
    app = (folder/'app.py').read_text(encoding='utf-8')
    wait = f'    import pathlib, time\n    pathlib.Path({str(begun)!r}).touch()\n    while not pathlib.Path({str(go)!r}).exists(): time.sleep(.05)\n'
    for old, new in {**slow[target], '    found, image, problem = look(content)': f'{wait}    found, image, problem = look(content)'}.items():
        assert old in app
        app = app.replace(old, new)
    (folder/'app.py').write_text(app, encoding='utf-8')
    programs, log = environments(folder, target)
    with started(folder, programs) as url:
        pages = [Page(browser, Site(target, folder, url, programs, log), viewport=dict(width=700, height=700)) for _ in range(3 if target == 'space-gradio' else 2)]
        pages[0].put('good.jpg', image_bytes(furs['brown']))
        end = time.monotonic() + 180
        while not begun.exists():
            assert time.monotonic() < end, 'the first image is not looked at'
            time.sleep(.1)
        for page in pages[1:-1]:
            with page.tab.expect_response(lambda answer: 'queue/join' in answer.url) as joined: page.put('good.jpg', image_bytes(furs['brown']))
            assert joined.value.ok
        pages[-1].put('good.jpg', image_bytes(furs['brown']))
        pages[-1].cards.filter(has_text=re.compile('[Tt]oo many are asking just now')).wait_for()
        go.touch()
        for page in pages[:-1]:
            page.cards.filter(has_text='good.jpg').wait_for()
            assert page.cards.inner_text().startswith(f'good.jpg\n{label("brown")}')
        assert pages[-1].choose('again.jpg', image_bytes(furs['white'])).startswith(f'again.jpg\n{label("white")}')
        for page in pages: page.close()

def lines_of(folder, word): return [l.split(maxsplit=1)[1] for l in (folder/'Dockerfile').read_text(encoding='utf-8').replace('\\\n', ' ').splitlines() if l.split(maxsplit=1)[:1] == [word]]

@pytest.fixture(scope='session')
def docker_folder(bundle, tmp_path_factory): return deploy('space-docker', bundle, tmp_path_factory.mktemp('docker')/'furs', title)

def test_docker_files(docker_folder):
    "What the Dockerfile names is in the folder, and it agrees with what the Space is told"
    for line in lines_of(docker_folder, 'COPY'):
        *sources, _ = [w for w in line.split() if not w.startswith('--')]
        assert sources and all((docker_folder/s).exists() for s in sources)
    settings = dict(l.split(': ', 1) for l in (docker_folder/'README.md').read_text(encoding='utf-8').split('---\n')[1].splitlines())
    assert json.loads(settings['title']) == title and settings['sdk'] == 'docker'
    assert settings['app_port'] == lines_of(docker_folder, 'EXPOSE')[0] == json.loads(lines_of(docker_folder, 'CMD')[0])[-1]
    assert lines_of(docker_folder, 'USER') == ['user'] and '--uid 1000 user' in lines_of(docker_folder, 'RUN')[0]
    assert not {f.name for f in docker_folder.rglob('*') if f.is_file()} & {'weights.safetensors', 'feedback.sqlite'}

def test_docker_runs(docker_folder, environments):
    "Its command starts in what its RUN installs, and its own health check is content"
    programs, log = environments(docker_folder, 'space-docker')
    assert lines_of(docker_folder, 'RUN')[1] == 'pip install -r requirements.txt'
    check = json.loads(lines_of(docker_folder, 'HEALTHCHECK')[0].split('CMD ')[1])
    with started(docker_folder, programs) as url:
        port = url.split(':')[-1]
        assert subprocess.run([programs/check[0], *(w.replace('7860', port) for w in check[1:])]).returncode == 0
        assert ask_service(url, image_bytes(furs['brown'], format='PNG'))['label'] == label('brown')
    assert subprocess.run([programs/check[0], *(w.replace('7860', port) for w in check[1:])], stderr=subprocess.DEVNULL).returncode != 0
    assert log.read_text() == '', 'the server looked for other hosts'

run_notebook = '''import re, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read('notebook.ipynb', 4)
nbformat.validate(notebook)
place, log = sys.argv[1:]
if place == 'colab': notebook.cells.insert(0, nbformat.v4.new_code_cell("""import sys, types
google, colab, output = (types.ModuleType(n) for n in ('google', 'google.colab', 'google.colab.output'))
output.serve_kernel_port_as_iframe = lambda port, **options: print(f'frame of 127.0.0.1:{port}/')
google.colab, colab.output = colab, output
sys.modules |= {'google': google, 'google.colab': colab, 'google.colab.output': output}"""))
client = NotebookClient(notebook, timeout=300, kernel_name='python3')
with client.setup_kernel():
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == 'code': client.execute_cell(cell, i)
        if cell.id == 'install': open(log, 'w').close()  # pip has asked its own hosts
    said = str(cell.outputs)
    print(('frame of' in said), 'gradio.live' in said, re.search('127.0.0.1:[0-9]+', said)[0], flush=True)
    input()
'''

@pytest.mark.parametrize('place', ['colab', 'here'])
def test_notebook(place, bundle, environments, browser, tmp_path):
    "Every cell runs, in Colab (acted) and elsewhere, and the page answers as that of the Space does"
    folder = deploy('colab', bundle, tmp_path/'furs', title)
    programs, log = environments(folder, 'colab', 'nbclient', 'ipykernel', 'pip')
    with subprocess.Popen([programs/'python', '-c', run_notebook, place, log], cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, 'PATH': f'{programs}{os.pathsep}{os.environ["PATH"]}', 'PYTHONPATH': ''}) as process:
        framed, tunnel, address = process.stdout.readline().split()
        assert (framed, tunnel) == (str(place == 'colab'), 'False')
        page = Page(browser, Site('space-gradio', folder, f'http://{address}/', programs, log))
        assert page.tab.get_by_role('heading', name=title).count() == 1
        assert page.choose('good.jpg', image_bytes(furs['brown'])).startswith(f'good.jpg\n{label("brown")}')
        assert 'cannot be looked at' in page.choose('text.jpg', b'text')
        page.close()
        process.communicate('\n')
    assert log.read_text() == '', 'the application looked for other hosts'
