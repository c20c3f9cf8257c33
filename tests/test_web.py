"A bundle as a page that needs no server: what is written, and what a real browser makes of it, from the disk and from a server, with and without a network"
import contextlib, functools, http.server, io, json, math, re, shutil, struct, subprocess, sys, tarfile, threading, time
from pathlib import Path
from base64 import b64decode, b64encode
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
import bearcls.deploy.web as web
from bearcls.images import ImageError, load_image, max_pixels, min_light
from bearcls.core import package_file
from bearcls.deploy.web import WebError, folder_files, join_scripts, single_file, web_metadata, web_files, web_runtime, weigh_web, write_web
from bearcls.inference.bundle import Bundle, read_bundle, write_bundle
from bearcls.inference.classifier import Classifier
from bearcls.inference.prediction import judge
from bearcls.sample.odd_files import draw_odd_files
from tiny_bundle import make_bundle

fake = {'ort.wasm.bundle.min.mjs': b'var a=1;export{a as InferenceSession};\n//# sourceMappingURL=x.map\n', 'ort-wasm-simd-threaded.wasm': b'\0asm'}
labels = ['black', 'brown', 'white']

def test_the_page_has_the_same_limits():
    "A browser cannot import Python, so two numbers of `bearcls.images` stand in the page's scripts once more"
    def number(script, name): return float(re.search(rf'const {name} = ([\d_]+);', package_file(f'static/web/{script}').read_text(encoding='utf-8'))[1])
    assert (number('model.js', 'minLight'), number('files.js', 'limit')) == (min_light, max_pixels)

def test_both_widgets_follow_the_theme_alike():
    "Each widget is one file for Jupyter, so they cannot share a third; what is dark differs, since only the application colours the pages of Voilà"
    found = [re.search(r'^function followTheme.*?^}$', package_file(f'static/{name}.js').read_text(encoding='utf-8'), re.M | re.S)[0]
             for name in ('classify', 'cleaner')]
    assert found[0] == found[1]

def texture_bundle(dest, side=96, seed=5, samples=(), **metadata):
    "A small network of random weights, whose answers depend on edges and grain as well as on colours; on `samples`, or drawn scenes, all its labels occur"
    import onnx.parser
    rng, made = np.random.default_rng(seed), dest.with_name(dest.name + '-raw')
    def tensor(name, *shape, values=None):
        values = rng.normal(0, 1.6/math.sqrt(np.prod(shape[1:])), shape) if values is None else values
        return f'float[{",".join(map(str, shape))}] {name} = {{{", ".join(f"{v:.6g}" for v in np.ravel(values))}}}'
    weights = [tensor('w1', 12, 3, 5, 5), tensor('w2', 16, 12, 3, 3), tensor('w3', 3, 16)]
    def write(dest, middle, sharp, threshold):
        inside = ',\n'.join([*weights, tensor('middle', 3, values=middle), tensor('sharp', 3, values=sharp)])
        text = f'''<ir_version: 8, opset_import: ["" : 17]>
g (uint8[n,{side},{side},3] image) => (float[n,3] logits, float[n,3] probabilities, float[n,16] features, float[n] ood_score)
<{inside}, float grey = {{128}}>
{{ x = Cast<to=1>(image)  c = Sub(x, grey)  d = Div(c, grey)  t = Transpose<perm=[0,3,1,2]>(d)
   a = Conv<strides=[2,2], pads=[2,2,2,2]>(t, w1)  b = Relu(a)  e = Conv<strides=[2,2], pads=[1,1,1,1]>(b, w2)  f = Relu(e)
   features = ReduceMean<axes=[2,3], keepdims=0>(f)  g3 = Gemm<transB=1>(features, w3)  h = Sub(g3, middle)  logits = Mul(h, sharp)  probabilities = Softmax<axis=1>(logits)
   ood_score = ReduceL2<axes=[1], keepdims=0>(features) }}'''
        given = dict(method='squish', min_side=2*side, ood_score=dict(threshold=threshold, false_positive_rate=.05, images=90)) | metadata
        return write_bundle(Bundle(labels, (side, side), **given), onnx.parser.parse_model(text).SerializeToString(), dest, '# Texture\n')
    raw = Classifier(write(made, [0]*3, [1]*3, 9))
    out = raw.run(np.stack([raw._open(s)[1] for s in samples or [scene(k) for k in range(100, 124)]]))
    return write(dest, out['logits'].mean(0), 2/out['logits'].std(0), float(np.quantile(out['ood_score'], .8)))

# ---------------------------------------------------------------- what is written

def parts(tmp_path, **metadata):
    bundle = read_bundle(make_bundle(tmp_path/'bundle', **metadata))
    model = (bundle.path/'model.onnx').read_bytes()
    return web_metadata(bundle, model), model, fake

def test_nothing_private_travels(tmp_path):
    metadata, model, _ = parts(tmp_path, metrics={'by': 'Ann'}, data={'sources': {'/srv/ann/bears': 3}}, versions={'python': '/srv/ann'},
        ood_score=dict(threshold=.3, false_positive_rate=.05, images=9, measured={'file': '/srv/ann/x.jpg'}))
    files = folder_files(metadata, model, fake, 'Bears') | {'single': single_file(metadata, model, fake, 'Bears')}
    assert not [name for name, content in files.items() if b'/srv' in content or b'Ann' in content]

hostile = ['</title><script>alert(1)</script>', '"><img src=x onerror=alert(1)>', '--><script>', "' onload='alert(1)", '&lt;b&gt; & <!--', '\u2028 ${alert(1)} $title $policy']
@pytest.mark.parametrize('k', range(len(hostile)))
def test_titles_and_labels_are_never_code(tmp_path, k):
    words = hostile[k]
    bundle = write_bundle(Bundle(['a', words.strip(), '</script>'], (64, 64)), (make_bundle(tmp_path/'b')/'model.onnx').read_bytes(), tmp_path/'c')
    metadata = web_metadata(read_bundle(bundle), (bundle/'model.onnx').read_bytes())
    for page in (folder_files(metadata, b'm', fake, words)['index.html'], single_file(metadata, b'm', fake, words)):
        text = page.decode()
        assert len(re.findall(r'<script\b', text)) == len(re.findall(r'</script>', text)) <= 5
        assert '<img' not in text and '<script>alert' not in text and text.count('</title>') == 1
        found = re.search(r'id="bearcls-metadata">(.*?)</script>', text, re.S)
        assert not found or json.loads(found[1])['labels'][1] == words.strip()

def test_the_policy_names_every_script_and_no_host(tmp_path):
    from base64 import b64encode
    from hashlib import sha256
    metadata, model, _ = parts(tmp_path)
    text = single_file(metadata, model, fake, 'Bears').decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1].replace('&#x27;', "'")
    for script in re.findall(r'<script type="module">(.*?)</script>', text, re.S) + re.findall(r'<style>(.*?)</style>', text, re.S):
        assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and 'unsafe-inline' not in policy and 'http' not in policy
    files = folder_files(metadata, model, fake, 'Bears')
    assert not [name for name, content in files.items() if re.search(rb'https?://(?!www\.w3\.org/2000/svg)', content) and not name.startswith('LICENSE')]

def test_runtime_in_the_page_asks_for_no_place_of_its_own(tmp_path):
    "In Firefox a page from the disk has no origin, and what is beside it cannot be named"
    metadata, model, _ = parts(tmp_path)
    source = b'var u=import.meta.url;export{u as default,u as InferenceSession};\n'
    text = single_file(metadata, model, fake | {'ort.wasm.bundle.min.mjs': source}, 'Bears').decode()
    assert 'var u="blob:page";globalThis.bearclsRuntime={default:u,InferenceSession:u};' in text
    with pytest.raises(WebError, match='ends in an unknown way'): single_file(metadata, model, fake | {'ort.wasm.bundle.min.mjs': b'module.exports = 1'}, 'Bears')

def test_equal_bundles_are_equal_pages_and_the_worker_knows_the_files(tmp_path):
    metadata, model, _ = parts(tmp_path)
    one, two = (folder_files(metadata, model, fake, 'Bears') | {'single': single_file(metadata, model, fake, 'Bears')} for _ in range(2))
    assert one == two
    listed = json.loads(re.search(r'const files = (\{.*?\});', one['sw.js'].decode(), re.S)[1])
    version = re.search(r"const version = '(\w+)';", one['sw.js'].decode())[1]
    assert listed.pop('./') == '' and {name: web.sha256(one[name]) for name in listed} == listed and f'<meta name="bearcls-version" content="{version}">' in one['index.html'].decode()
    assert set(listed) == set(one) - {'single', 'sw.js', 'LICENSE-onnxruntime-web.txt', 'index.html'}
    others = [folder_files(metadata, model + b' ', fake, 'Bears'), folder_files(metadata, model, fake, 'Cats')]
    assert len({f['sw.js'] for f in (one, *others)}) == 3 and set(re.findall(r'href="\./([^"]+)"', one['index.html'].decode())) <= set(one)

def test_the_page_names_the_single_file_only_where_there_is_one(tmp_path):
    given = parts(tmp_path)
    assert [b'classifier.html' in folder_files(*given, 'Bears', single)['index.html'] for single in (True, False)] == [True, False]

def test_without_npm_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'none'))
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(WebError, match='install Node.js, or give `runtime` the folder or the .tgz'): web_runtime()

@pytest.mark.skipif(sys.platform == 'win32', reason='npm is a shell script here')
def test_npm_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'none'))
    npm = tmp_path/'npm'
    npm.write_text('#!/bin/sh\necho "npm error code ENOTFOUND" >&2\nexit 1\n')
    npm.chmod(0o755)
    monkeypatch.setattr(web.shutil, 'which', lambda name: str(npm))
    with pytest.raises(WebError, match='npm could not fetch onnxruntime-web .*ENOTFOUND.*give `runtime`'): web_runtime()

def tgz(file, entries):
    with tarfile.open(file, 'w:gz') as tar:
        for name, content, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, '/etc/passwd'
            tar.addfile(entry, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return file

def test_broken_and_forged_packages_are_refused(tmp_path):
    names = [f'package/dist/{name}' for name in web.runtime_digests]
    with pytest.raises(WebError, match='is no folder or .tgz'): web_runtime(tmp_path/'nothing')
    (tmp_path/'text.tgz').write_text('text')
    with pytest.raises(WebError, match='cannot be read as a .tgz'): web_runtime(tmp_path/'text.tgz')
    whole = tgz(tmp_path/'whole.tgz', [(names[0], b'x'*100_000, tarfile.REGTYPE)])
    (tmp_path/'half.tgz').write_bytes(whole.read_bytes()[:60])
    with pytest.raises(WebError, match='cannot be read as a .tgz|holds no'): web_runtime(tmp_path/'half.tgz')
    with pytest.raises(WebError, match='holds no ort'): web_runtime(tgz(tmp_path/'links.tgz', [(name, b'', tarfile.SYMTYPE) for name in names]))
    with pytest.raises(WebError, match='is not that of onnxruntime-web'): web_runtime(tgz(tmp_path/'forged.tgz', [(name, b'evil', tarfile.REGTYPE) for name in names]))
    assert sorted(f.name for f in tmp_path.iterdir()) == ['forged.tgz', 'half.tgz', 'links.tgz', 'text.tgz', 'whole.tgz']

def test_folders_of_others_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(web, 'web_runtime', lambda source=None: fake)
    bundle = make_bundle(tmp_path/'bundle')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'notes.txt').write_text('mine')
    for dest in (tmp_path/'mine', bundle, bundle/'model.onnx'):
        before = sorted(p.name for p in tmp_path.rglob('*'))
        with pytest.raises(WebError, match='so nothing is written there|must be a folder'): write_web(bundle, dest)
        assert sorted(p.name for p in tmp_path.rglob('*')) == before
    page = write_web(bundle, tmp_path/'page')
    (page.dest/'notes.txt').write_text('mine')
    again = write_web(bundle, tmp_path/'page', single=False)
    assert (page.dest/'notes.txt').read_text() == 'mine' and again.single is None and not (page.dest/'classifier.html').exists()
    assert {f.name: f.stat().st_size for f in again.dest.iterdir() if f.name != 'notes.txt'} == again.sizes

def test_heavy_models_get_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(web, 'web_runtime', lambda source=None: fake)
    bundle = make_bundle(tmp_path/'bundle')
    monkeypatch.setattr(web, 'heavy_page', 100)
    assert 'compress_bundle' in write_web(bundle, tmp_path/'page').note
    monkeypatch.setattr(web, 'largest_single', 100)
    with pytest.raises(WebError, match='compress_bundle.*single=False'): write_web(bundle, tmp_path/'other')
    assert not (tmp_path/'other').exists() and write_web(bundle, tmp_path/'other', single=False).single is None

def test_modules_that_cannot_be_joined_are_named():
    for line in ("import * as x from './a.js'", "export * from './a.js'", "import './a.js'", 'export { a };'):
        with pytest.raises(WebError, match='a.js holds a line that cannot be joined'): join_scripts({'a.js': f'const a = 1;\n{line}\n'})

def test_words_of_judgement_are_those_of_python(tmp_path):
    "Numbers that lie in the middle between two roundings, too"
    if shutil.which('node') is None: pytest.skip('node is not installed')
    rng = np.random.default_rng(0)
    bundle = Bundle(labels, (64, 64), ood_score=dict(threshold=.375, false_positive_rate=.1, images=9), threshold=.9, smallest=32)
    cases = [dict(p=sorted(map(float, p), reverse=True), size=[int(s), 80], light=int(light), far=far) for p, s, light, far in zip(
        [[k/8, 1 - k/8, 0] for k in range(9)] + rng.dirichlet([1]*3, 300).round(3).tolist(), rng.integers(20, 200, 309), rng.integers(40, 250, 309),
        [None, .125, .625, 1.125, .374999, .37501] + rng.uniform(0, .6, 303).tolist())]
    metadata = dict(trust=dict(threshold=bundle.threshold, smallest=bundle.smallest, ood_score=bundle.ood_score))
    for name in ('model.js',): (tmp_path/name).write_bytes(package_file(f'static/web/{name}').read_bytes())
    (tmp_path/'package.json').write_text('{"type": "module"}')
    (tmp_path/'main.js').write_text(f"import {{ judge }} from './model.js';\nconst metadata = {json.dumps(metadata)}, labels = {json.dumps(labels)};\n"
        f"console.log(JSON.stringify({json.dumps(cases)}.map((c) => judge(metadata, c.p.map((p, i) => [labels[i], p]), c.size, c.light, c.far))));")
    theirs = json.loads(subprocess.run(['node', 'main.js'], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    ours = [judge(bundle, dict(zip(labels, c['p'])), tuple(c['size']), c['light'], c['far']) for c in cases]
    assert theirs == ours and len({o.split('(')[0] for o in ours}) > 10

def test_sizes_can_be_told_beforehand(tmp_path, monkeypatch):
    row, = weigh_web({'furs': make_bundle(tmp_path/'bundle')})
    assert row['name'] == 'furs' and 3 < row['visit'] < 5 and 4 < row['single'] < 6

# ---------------------------------------------------------------- in a browser

@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    "The npm package, fetched once"
    if shutil.which('npm') is None: pytest.skip('npm is not installed')
    folder = tmp_path_factory.mktemp('runtime')
    for name, content in web_runtime().items(): (folder/name).write_bytes(content)
    return folder

@pytest.fixture(scope='module')
def texture(tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp('texture')
    bundle = texture_bundle(folder/'bundle')
    return bundle, write_web(bundle, folder/'page', runtime=runtime, title='Which fur?')

@contextlib.contextmanager
def serving(folder, habit='', asked=None):
    "A server of plain files on this machine; gives its address. Its `habit` may be 'unpack', browsers get packed files unpacked, or 'script', pages get one more; what is `asked` for is told"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def end_headers(self):
            if habit == 'unpack' and self.path.endswith(web.packed_name): self.send_header('Content-Encoding', 'gzip')
            super().end_headers()
        def do_GET(self):
            if asked is not None: asked.append(self.path)
            if habit != 'script' or self.path not in ('/', '/index.html'): return super().do_GET()
            page = (Path(folder)/'index.html').read_bytes().replace(b'<head>', b'<head><script>window.host = {};</script>', 1)
            self.send_response(200)
            for name, value in (('Content-Type', 'text/html'), ('Content-Length', len(page))): self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(page)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}/'
        finally: server.shutdown()

def patient(context):
    "With time for slow machines"
    context.set_default_timeout(180_000)
    return context

@contextlib.contextmanager
def opened(browser, address, state='ready', offline=False, **options):
    "The page, ready; nothing may be asked of any other host, and nothing may go wrong in its console"
    context = patient(browser.new_context(**options))
    context.set_offline(offline)
    page, asked, wrong = context.new_page(), [], []
    context.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
    try:
        page.goto(address)
        wait_ready(page, state)
        page.evaluate("() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }")
        yield page
        assert not [url for url in asked if not url.startswith((address, 'blob:', 'data:'))] and not wrong
    finally: context.close()

def wait_ready(page, state='ready'):
    page.wait_for_selector('html[data-state=ready], html[data-state=offline], html[data-state=failed]')
    if state == 'offline': page.wait_for_selector('html[data-state=offline]')
    assert page.locator('html').get_attribute('data-state') != 'failed', page.locator('#state').inner_text()

def ask(page, file):
    "Choose a file; the answer in numbers, or None, and the words in its card"
    page.set_input_files('input[multiple]', str(file))
    names = page.eval_on_selector_all('.bq-card', 'cards => cards.map((c) => c.dataset.name)')
    assert names == [Path(file).name]  # whatever was there before is gone at once
    page.wait_for_selector('.bq-card:not([data-state=waiting])')
    answers = page.evaluate('() => window.answers.splice(0)')
    assert len(answers) <= 1 and all(a['name'] == Path(file).name for a in answers)
    return (answers or [None])[0], page.locator('.bq-card').inner_text()

def compare(page, classifier, file):
    "Largest difference to Python's probabilities; the words are Python's, too"
    theirs, words = ask(page, file)
    assert theirs, f'{Path(file).name}: {words}'
    ours = classifier.predict(file)
    apart = max(abs(p - theirs['probabilities'][label]) for label, p in ours.probabilities.items())
    if ours.probability - sorted(ours.probabilities.values())[-2] > .02: assert theirs['label'] == ours.label
    if ours.trusted == theirs['trusted']: assert re.sub(r'[\d.]+', '', ours.reason) == re.sub(r'[\d.]+', '', theirs['reason']) or apart > 1e-4
    assert (ours.label in words) if ours.trusted else ('Ask a person' in words)
    return apart

def scene(seed, size=(480, 360)):
    "A drawn image with edges and grain"
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(4, min(size)//4 + 5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    grain = rng.normal(0, 8, (size[1], size[0], 1)) if size[0]*size[1] < 4_000_000 else 0
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))

def swapped_profile():
    "A colour profile whose red is blue: who applies it sees other colours"
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    for old, new in ((b'rXYZ', b'????'), (b'bXYZ', b'rXYZ'), (b'????', b'bXYZ')):
        at = profile.index(old, 128)
        profile[at:at + 4] = new
    return bytes(profile)

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Images of all kinds, by name"
    folder, exif = tmp_path_factory.mktemp('images'), Image.Exif()
    big, small = scene(1, (4000, 3000)), scene(2)
    small.save(folder/'good.jpg', quality=92)
    for k in range(2, 9):
        exif[0x0112] = k
        scene(k, (403, 299)).save(folder/f'turned{k}.jpg', exif=exif, quality=92)
    exif[0x0112] = 6
    big.save(folder/'twelve.jpg', quality=90, exif=exif)
    scene(3, (1500, 1100)).save(folder/'middle.jpg', quality=90, subsampling=0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 3250, 3), np.uint8))
    noise.save(folder/'heavy.png', compress_level=0)
    alpha = scene(4).convert('RGBA')
    alpha.putalpha(Image.linear_gradient('L').resize(alpha.size))
    alpha.save(folder/'alpha.png')
    small.convert('P', palette=Image.Palette.ADAPTIVE).save(folder/'palette.png', transparency=3)
    scene(5).save(folder/'lossless.webp', lossless=True)
    scene(6).save(folder/'photo.webp', quality=90)
    (folder/'webp.jpg').write_bytes((folder/'photo.webp').read_bytes())
    scene(7).convert('P').save(folder/'moving.gif', save_all=True, append_images=[scene(8).convert('P')])
    scene(9).convert('L').save(folder/'grey.jpg', quality=92)
    scene(10).convert('1').save(folder/'bits.png')
    scene(11).save(folder/'windows.bmp')
    colours = np.asarray(scene(17, (403, 299)))[::-1, :, ::-1]
    rows = np.pad(colours.reshape(299, -1), ((0, 0), (0, -3*403 % 4))).tobytes()
    (folder/'os2.bmp').write_bytes(b'BM' + struct.pack('<IHHIIHHHH', 26 + len(rows), 0, 0, 26, 12, 403, 299, 1, 24) + rows)
    scene(12).save(folder/'profile.jpg', quality=95, icc_profile=swapped_profile())
    scene(13).save(folder/'profile.png', icc_profile=swapped_profile())
    scene(14, (3000, 40)).save(folder/'strip.png')
    scene(15, (20, 24)).save(folder/'tiny.png')
    scene(16).save(folder/'progressive.jpg', progressive=True, quality=85)
    return folder

def broken_files(folder):
    "Files that are no images, and what is said about them"
    jpeg, png, webp, gif, bmp = ((folder/name).read_bytes() for name in ('good.jpg', 'alpha.png', 'photo.webp', 'moving.gif', 'windows.bmp'))
    claims, hurt = bytearray(png), bytearray(png)
    hurt[len(png)//2] ^= 255
    claims[16:24] = (60_000).to_bytes(4, 'big')*2
    wrong = {'text.jpg': (b'This is no image at all.', 'no image of a known format'), 'empty.jpg': (b'', 'empty'), 'page.jpg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'no image of a known format'),
        'half.jpg': (jpeg[:len(jpeg)//2], 'ends before the image does'), 'half.png': (png[:len(png)//2], 'ends before the image does'), 'half.webp': (webp[:len(webp)//2], 'ends before the image does'),
        'half.gif': (gif[:len(gif)//3], 'ends before the image does'), 'half.bmp': (bmp[:-2000], 'ends before the image does'), 'hurt.png': (bytes(hurt), 'damaged'),
        'claims.png': (bytes(claims), '60000×60000 pixels, and at most 100,000,000'), 'phone.heic': (b'\0\0\0\x18ftypheic' + bytes(80), 'HEIC'), 'scan.tif': (b'II*\0' + bytes(80), 'damaged'),
        'head.jpg': (jpeg[:3], 'ends before the image does'), 'noise.jpg': (b'\xff\xd8\xff' + bytes(range(256))*9, 'damaged'), 'raw.ppm': (b'P6 2 2 255 ' + bytes(12), 'no image of a known format')}
    for name, (content, _) in wrong.items(): (folder/name).write_bytes(content)
    return {name: words for name, (_, words) in wrong.items()}

def test_single_file_answers_as_python_does(browser, texture, images):
    "From the disk, without a network: images of all kinds, and files that are none between them"
    bundle, page = texture
    classifier, wrong = Classifier(bundle), broken_files(images)
    assert (images/'heavy.png').stat().st_size > 29_000_000
    good = [f for f in sorted(images.iterdir()) if f.name not in wrong]
    bad, apart = [*wrong.items()], {}
    with opened(browser, page.single.as_uri(), offline=True) as tab:
        for k, file in enumerate(good):
            apart[file.name] = compare(tab, classifier, file)
            if k >= len(bad): continue
            theirs, words = ask(tab, images/bad[k][0])
            assert theirs is None and bad[k][1] in words and bad[k][0] in words and '%' not in words
            with pytest.raises(ImageError): classifier.predict(images/bad[k][0])
        assert compare(tab, classifier, images/'good.jpg') < .01
    assert {classifier.predict(f).label for f in good} == set(labels)
    print({name: round(v, 5) for name, v in sorted(apart.items(), key=lambda item: -item[1])})
    assert max(apart.values()) < .01 and len(bad) < len(good)

def test_turned_webp(browser, texture, tmp_path):
    "Chromium does not heed the orientation of these, Pillow does"
    bundle, page = texture
    classifier, exif, apart = Classifier(bundle), Image.Exif(), {}
    for k in range(1, 9):
        exif[0x0112] = k
        for name, size, given in (('lossy', (403, 299), dict(quality=90)), ('lossless', (299, 403), dict(lossless=True)), ('large', (2400, 1700), dict(quality=92, method=0))):
            scene(k, size).save(tmp_path/f'{name}{k}.webp', exif=(b'Exif\0\0' if k % 2 else b'') + exif.tobytes().removeprefix(b'Exif\0\0'), **given)
    with opened(browser, page.single.as_uri(), offline=True) as tab:
        for file in sorted(tmp_path.glob('*.webp')):
            apart[file.name] = compare(tab, classifier, file)
            width, height = Image.open(file).size
            shown = tab.locator('.bq-image canvas').evaluate('c => c.width > c.height')
            assert shown == ((width > height) == (int(file.stem[-1]) < 5)), file.name
    assert len(apart) == 24 and max(apart.values()) < .01, apart

def test_more_pixels_in_a_row_than_a_browser_draws(browser, texture, tmp_path):
    _, page = texture
    with opened(browser, page.single.as_uri(), offline=True) as tab:
        for size in ((70_000, 60), (60, 70_000)):
            scene(1, size).save(tmp_path/'long.png', compress_level=1)
            theirs, words = ask(tab, tmp_path/'long.png')
            assert theirs is None and f'it has {size[0]}×{size[1]} pixels, and browsers draw at most 65,535 in a row' in words

@pytest.mark.parametrize('method', ['crop', 'pad', 'random_crop'])
def test_other_shapes(browser, tmp_path, runtime, images, method):
    bundle = texture_bundle(tmp_path/'bundle', method=method, pad_mode='reflection', min_side=None)
    page, classifier = write_web(bundle, tmp_path/'page', runtime=runtime), Classifier(bundle)
    with opened(browser, page.single.as_uri(), offline=True) as tab:
        assert max(compare(tab, classifier, images/name) for name in ('good.jpg', 'alpha.png', 'turned6.jpg', 'twelve.jpg', 'strip.png')) < .01

def test_photographs(browser, tmp_path, runtime, shared):
    "A hundred real ones, and the originals up to 37 megapixels"
    bears, originals = (sorted(f for f in (shared/'data'/name).glob('*/*') if f.suffix.lower() in ('.jpg', '.jpeg', '.png', '.gif')) for name in ('bears', 'originals'))
    if len(bears) < 100: pytest.skip('BEARCLS_SHARED holds no photographs')
    bundle = texture_bundle(tmp_path/'bundle', side=224, samples=bears[::20])
    page, classifier = write_web(bundle, tmp_path/'page', runtime=runtime), Classifier(bundle)
    with opened(browser, page.single.as_uri(), offline=True) as tab: apart = [compare(tab, classifier, f) for f in [*bears[::len(bears)//100], *originals]]
    print(f'{len(apart)} photographs, largest difference {max(apart):.5f}')
    assert len(apart) >= 100 and max(apart) < .01

def test_pixels_agree(browser, texture, images):
    "What the model sees, byte by byte, where Pillow does not decode a JPEG smaller than it is"
    from bearcls.inference.bundle import prepare
    from bearcls.images import load_image
    bundle, page = texture
    exact = ['good.jpg', 'alpha.png', 'palette.png', 'lossless.webp', 'moving.gif', 'bits.png', 'windows.bmp', 'os2.bmp', 'profile.png', 'profile.jpg', 'strip.png', 'tiny.png', 'heavy.png', 'turned5.jpg', 'turned8.jpg', 'grey.jpg', 'progressive.jpg']
    with serving(page.dest) as address, opened(browser, address) as tab:
        tab.evaluate("() => document.body.append(Object.assign(document.createElement('input'), { type: 'file', id: 'one' }))")
        for name in exact:
            tab.set_input_files('#one', str(images/name))
            image = load_image(images/name, 200)
            for method, size in (('squish', (96, 96)), ('crop', (80, 50)), ('pad', (64, 64)), ('random_crop', (64, 64))):
                given = dict(width=size[0], height=size[1], method=method, pad_mode='border', min_side=200)
                theirs = tab.evaluate("""async (input) => { const { lookAt } = await import('./pixels.js');
                    return btoa(String.fromCharCode(...(await lookAt(document.querySelector('#one').files[0], input)).pixels)); }""", given)  # a text comes faster than a list
                theirs, ours = (np.frombuffer(v, np.uint8).astype(int) for v in (b64decode(theirs), np.asarray(prepare(image, size, method, 'border')).tobytes()))
                assert np.abs(ours - theirs).max() <= 1, (name, method)

def test_files_that_are_not_what_they_seem(browser, texture):
    "Python and the page agree on every file of the drawn list: the same pixels, or the same reason to refuse"
    files, differ = draw_odd_files(), []
    look = """async ([data, name, width, height]) => {
        const { lookAt } = await import('./pixels.js'), bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        try {
            const seen = await lookAt(new File([bytes], name), { width, height, method: 'squish', min_side: null });
            return { size: seen.size, pixels: btoa(String.fromCharCode(...seen.pixels)) };
        } catch (error) { return { reason: error.reason ?? `crashed: ${error.message}`, words: error.message }; } }"""
    with serving(texture[1].dest) as address, opened(browser, address) as tab:
        for odd in files:
            height, width = (40, 48) if odd.pixels is None else odd.pixels.shape[:2]
            theirs = tab.evaluate(look, [b64encode(odd.data).decode(), odd.name, width, height])
            reason = theirs.get('reason', '')
            if reason: fine = reason == odd.reason and theirs['words']
            else:
                pixels = np.frombuffer(b64decode(theirs['pixels']), np.uint8).astype(int).reshape(height, width, 3)
                fine = not odd.reason and theirs['size'] == [width, height] and np.abs(pixels - odd.pixels).max() <= odd.within
                if fine: fine = np.abs(pixels - np.asarray(load_image(odd.data)).astype(int)).max() <= odd.within
            if not fine: differ.append((odd.name, odd.reason or 'answered', reason or 'answered'))
    assert differ == [] and len(files) > 200

def test_served_folder_and_without_a_network_afterwards(browser, texture, images):
    bundle, page = texture
    classifier = Classifier(bundle)
    context = patient(browser.new_context())
    try:
        tab, asked = context.new_page(), []
        context.on('request', lambda request: asked.append(request.url))
        with serving(page.dest) as address:
            tab.goto(address + '?from=mail')
            wait_ready(tab, 'offline')
            assert all(url.startswith((address, 'blob:', 'data:')) for url in asked)
            links = json.loads((page.dest/'manifest.webmanifest').read_text(encoding='utf-8'))['icons']
            assert all(tab.request.get(address + icon['src']).ok for icon in links)
        for path in ('', 'index.html', '?from=mail'):  # the server is gone
            tab.goto(address + path)
            wait_ready(tab)
            tab.evaluate("() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }")
            assert compare(tab, classifier, images/'good.jpg') < .01
    finally: context.close()

def test_packed_files_may_come_unpacked(browser, texture, images):
    "Some hosts say of them that they are packed, and the browser unpacks; the page answers all the same"
    bundle, page = texture
    with serving(page.dest, 'unpack') as address, opened(browser, address) as tab:
        first = "async (name) => [...new Uint8Array(await (await fetch(name, { cache: 'no-store' })).arrayBuffer()).slice(0, 4)]"
        assert bytes(tab.evaluate(first, web.packed_name)) == b'\0asm', 'the host has no such habit'
        assert compare(tab, Classifier(bundle), images/'good.jpg') < .01

def test_kept_from_a_host_that_writes_into_pages(browser, texture, images):
    "It opens without a network all the same"
    bundle, page = texture
    context = patient(browser.new_context())
    try:
        tab = context.new_page()
        with serving(page.dest, 'script') as address:
            tab.goto(address)
            wait_ready(tab, 'offline')
        tab.goto(address)
        wait_ready(tab)
        tab.evaluate("() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }")
        assert compare(tab, Classifier(bundle), images/'good.jpg') < .01
    finally: context.close()

@pytest.mark.parametrize('changed', ['page.css', 'index.html'])
def test_of_half_a_version_nothing_is_kept(browser, texture, tmp_path, changed):
    shutil.copytree(texture[1].dest, tmp_path/'page')
    file = tmp_path/'page'/changed
    file.write_text(file.read_text(encoding='utf-8').replace('bearcls-version" content="', 'bearcls-version" content="0') + '\n', encoding='utf-8')
    context, asked = patient(browser.new_context()), []
    try:
        with serving(tmp_path/'page', asked=asked) as address:
            tab, end = context.new_page(), time.monotonic() + 120
            tab.goto(address)
            wait_ready(tab)
            while '/icon-512.png' not in asked or tab.evaluate('async () => Boolean(await navigator.serviceWorker.getRegistration()) || (await caches.keys()).length'):
                assert time.monotonic() < end, tab.evaluate('() => caches.keys()')
                tab.wait_for_timeout(50)
            assert tab.locator('#state').inner_text() == 'Ready.'
    finally: context.close()

def test_a_new_version_takes_over_whole(browser, tmp_path, runtime, images):
    "The page of today's model never meets yesterday's"
    def deploy(seed): return write_web(texture_bundle(tmp_path/f'bundle{seed}', seed=seed), tmp_path/'page', runtime=runtime, title=f'Version {seed}', single=False)
    page, context = deploy(5), patient(browser.new_context())
    try:
        tab = context.new_page()
        with serving(page.dest) as address:
            tab.goto(address)
            wait_ready(tab, 'offline')
            deploy(6)
            tab.reload()
            wait_ready(tab)
            assert tab.title() == 'Version 5'
            tab.evaluate('async () => { const r = await navigator.serviceWorker.ready; await r.update(); for (let n = 0; !r.waiting && n < 2400; n++) await new Promise((done) => setTimeout(done, 50)); }')
            tab.close()
            tab = context.new_page()
            end = time.monotonic() + 120
            while tab.title() != 'Version 6':  # as soon as no page of the old one is open
                assert time.monotonic() < end, 'the old version stays'
                tab.goto('about:blank')
                tab.wait_for_timeout(300)
                tab.goto(address)
                wait_ready(tab)
        tab.reload()
        wait_ready(tab)
        tab.evaluate("() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }")
        assert compare(tab, Classifier(tmp_path/'bundle6'), images/'good.jpg') < .01
        assert len(tab.evaluate('() => caches.keys()')) == 1
    finally: context.close()

def test_damaged_model_is_told(browser, texture, tmp_path):
    _, page = texture
    shutil.copytree(page.dest, tmp_path/'page')
    model = bytearray((tmp_path/'page'/'model.onnx').read_bytes())
    model[-9] ^= 1
    (tmp_path/'page'/'model.onnx').write_bytes(model)
    context = patient(browser.new_context(service_workers='block'))
    try:
        with serving(tmp_path/'page') as address:
            tab = context.new_page()
            tab.goto(address)
            tab.wait_for_selector('html[data-state=failed]')
            assert 'did not come complete' in tab.locator('#state').inner_text()
            tab.set_input_files('input[multiple]', files=[dict(name='bear.png', mimeType='image/png', buffer=b'x')])
            tab.wait_for_selector('.bq-card[data-state=problem]')
            assert 'did not come complete' in tab.locator('.bq-card').inner_text()
    finally: context.close()

def test_hostile_words_in_a_browser(browser, tmp_path, runtime, images):
    words, title = ['</script><img src=x onerror=alert(1)>', '__proto__', '7'], '"></title><script>alert(1)</script>'
    bundle = write_bundle(Bundle(words, (64, 64)), (make_bundle(tmp_path/'b')/'model.onnx').read_bytes(), tmp_path/'bundle')
    page = write_web(bundle, tmp_path/'page', runtime=runtime, title=title)
    with serving(page.dest) as address:
        for place in (page.single.as_uri(), address):
            with opened(browser, place) as tab:
                tab.on('dialog', lambda dialog: pytest.fail('a script of the title ran'))
                theirs, shown = ask(tab, images/'good.jpg')
                assert tab.title() == title and title in tab.locator('h1').inner_text() and all(w in shown for w in words)
                assert theirs['label'] == Classifier(bundle).predict(images/'good.jpg').label
                assert tab.locator('img[src=x]').count() == 0

def test_several_images_at_once_each_in_its_own_card(browser, texture, images):
    bundle, page = texture
    classifier, names = Classifier(bundle), ['good.jpg', 'twelve.jpg', 'text.jpg', 'alpha.png', 'moving.gif', 'tiny.png']
    broken_files(images)
    with opened(browser, page.single.as_uri(), offline=True) as tab:
        tab.set_input_files('input[multiple]', [str(images/'heavy.png'), str(images/'middle.jpg')])
        tab.set_input_files('input[multiple]', [str(images/name) for name in names])  # another choice while the first is worked on
        for k, name in enumerate(names):
            card = tab.locator('.bq-card').nth(k)
            tab.wait_for_selector(f'.bq-card[data-name="{name}"]:not([data-state=waiting])')
            if name == 'text.jpg':
                assert 'no image' in card.inner_text()
                continue
            ours = classifier.predict(images/name)
            bars = card.locator('.bq-label').all_inner_texts()
            assert bars[0] == ours.label and card.locator('canvas').count() == 1
        assert tab.locator('.bq-card').count() == len(names)

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow_screen_and_keyboard(browser, texture, images, scheme, tmp_path):
    _, page = texture
    with opened(browser, page.single.as_uri(), offline=True, viewport=dict(width=360, height=740), color_scheme=scheme) as tab:
        tab.on('filechooser', lambda chooser: None)  # from now on no window of the system opens
        for _ in range(5):
            tab.keyboard.press('Tab')
            if 'Choose images' in (name := tab.evaluate('() => document.activeElement.textContent')): break
        assert name == 'Choose images'
        with tab.expect_file_chooser() as chooser: tab.keyboard.press('Enter')
        chooser.value.set_files([str(images/'good.jpg'), str(images/'strip.png')])
        tab.wait_for_selector('.bq-card:not([data-state=waiting]) >> nth=1')
        assert tab.evaluate('() => document.documentElement.scrollWidth') <= 360
        level = tab.evaluate('() => Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])')
        assert (level < 80) == (scheme == 'dark')
        assert 'stay on this device' in tab.locator('main').inner_text() and tab.locator('[role=status]').count() >= 1
