"The classifier under what people send: every format, files that are broken in every way, many threads, addresses that lead elsewhere; and nothing else installed"
import contextlib, gc, io, json, random, shutil, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw, features
import bearcls.inference.classifier as classifier_module
import bearcls.inference.remote as remote
from bearcls.images import ImageError, flatten
from bearcls.inference.bundle import read_bundle
from bearcls.inference.classifier import Classifier, ExecutionProviderError, execution_provider_names
from bearcls.inference.prediction import Prediction
from bearcls.inference.remote import fetch_image
from bearcls.inference.files import BundleError
from bearcls.inference.predictions import write_predictions
from bearcls.inference.signature import make_keys
from bearcls.inference.video import read_frames, sightings
from hostile import bomb, dripping, endless, redirect, serving
from tiny_bundle import furs, make_bundle

root = Path(__file__).resolve().parent.parent
brown = Image.new('RGB', (120, 90), furs['brown'])

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('bundle')/'furs')

@pytest.fixture(scope='module')
def classifier(bundle): return Classifier(bundle)

def saved(image, form, **options):
    "The bytes of a file"
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()

def turned(image, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, 'JPEG', exif=exif)

def detailed(seed=0, size=(96, 72)):
    "An image with something in every corner"
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)

# Formats

deep = Image.fromarray(np.full((60, 80), 225*257, np.uint16))
see_through = Image.new('RGBA', (80, 60), (0, 0, 0, 0))
white = Image.new('RGB', (80, 60), furs['white'])
formats = {
    'jpeg': (lambda: saved(brown, 'JPEG'), 'brown'),
    'jpeg of a phone, turned': (lambda: turned(brown), 'brown'),
    'jpeg in cmyk': (lambda: saved(brown.convert('CMYK'), 'JPEG'), 'brown'),
    'jpeg in grey': (lambda: saved(white.convert('L'), 'JPEG'), 'white'),
    'progressive jpeg': (lambda: saved(brown, 'JPEG', progressive=True), 'brown'),
    'two images in a jpeg': (lambda: saved(brown, 'MPO', save_all=True, append_images=[white]), 'brown'),
    'png': (lambda: saved(brown, 'PNG'), 'brown'),
    'png with a palette': (lambda: saved(brown.quantize(8), 'PNG'), 'brown'),
    'png with a see-through palette': (lambda: saved(see_through.quantize(4), 'PNG', transparency=0), 'white'),
    'png with alpha': (lambda: saved(see_through, 'PNG'), 'white'),
    'png with 16 bits': (lambda: saved(deep, 'PNG'), 'white'),
    'png in black and white': (lambda: saved(white.convert('1'), 'PNG'), 'white'),
    'webp': (lambda: saved(brown, 'WEBP'), 'brown'),
    'animated webp': (lambda: saved(brown, 'WEBP', save_all=True, append_images=[white.resize(brown.size)], lossless=True), 'brown'),
    'gif': (lambda: saved(brown, 'GIF'), 'brown'),
    'animated gif': (lambda: saved(brown, 'GIF', save_all=True, append_images=[white]), 'brown'),
    'animated png': (lambda: saved(brown, 'PNG', save_all=True, append_images=[Image.new('RGB', brown.size, 'white')]), 'brown'),
    'bmp': (lambda: saved(brown, 'BMP'), 'brown'),
    'tiff': (lambda: saved(brown, 'TIFF', compression='tiff_lzw'), 'brown'),
    'tiff with 16 bits': (lambda: saved(deep, 'TIFF'), 'white'),
    'avif': (lambda: saved(brown, 'AVIF'), 'brown'),
}

@pytest.mark.parametrize('name', formats)
def test_format(classifier, tmp_path, name):
    if name == 'avif' and not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    content, label = formats[name][0](), formats[name][1]
    file = tmp_path/'image'
    file.write_bytes(content)
    answers = [classifier.predict(source) for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), file, str(file))]
    assert answers[0].label == label and answers[0].probability > .9
    assert all(a == answers[0] for a in answers)

def test_a_phone_photograph_is_upright(bundle):
    "Half of it is brown and half is white; the camera was held sideways"
    whole = Classifier(bundle)
    image = Image.new('RGB', (100, 60), furs['brown'])
    image.paste(furs['white'], (50, 0, 100, 60))
    for k in range(1, 9):
        size, pixels = whole._open(turned(image, k))
        assert size == ((60, 100) if k >= 5 else (100, 60))
    tops = {k: whole._open(turned(image, k))[1][4, 32].mean() for k in (6, 8)}
    assert tops[6] < 130 < 200 < tops[8]

def test_heif_says_what_to_install_and_works_once_it_is_there(bundle, tmp_path):
    heif = pytest.importorskip('pillow_heif')
    file = tmp_path/'phone.heic'
    heif.from_pillow(brown).save(file)
    ask = f'from bearcls.inference.classifier import Classifier; print(*(r.prediction.label if r.prediction else r.reason for r in Classifier({str(bundle)!r}).predict_batch([{str(file)!r}]*8, n_workers=4, quiet=True)))'
    for hidden, words in (('import sys; sys.modules["pillow_heif"] = None; ', 'pip install pillow-heif'), ('', ' '.join(['brown']*8))):
        done = subprocess.run([sys.executable, '-c', hidden + ask], capture_output=True, text=True, timeout=120)
        assert words in done.stdout + done.stderr

@pytest.mark.parametrize('source', [None, 5, 1.5, [], {}, object(), brown.tobytes(), '', b'', 'x'*300, '\0', Path('no-such-file'), np.zeros((2, 2)), np.zeros((0, 0, 3), np.uint8),
    np.zeros((4, 4, 7), np.uint8), io.StringIO('text'), b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'%!PS-Adobe', b'%PDF-1.4', b'\x89PNG\r\n\x1a\n', bomb()],
    ids=lambda s: type(s).__name__)
def test_what_is_no_image(classifier, source):
    with pytest.raises(ImageError) as e: classifier.predict(source)
    assert len(str(e.value)) < 800 and e.value.reason

def test_an_open_file_is_asked_twice(classifier):
    file = io.BytesIO(saved(brown, 'PNG'))
    assert classifier.predict(file) == classifier.predict(file)

# Broken files

def mutations():
    "500 files: eight formats with bits flipped, ends missing, headers of something else, pieces doubled and zeroed; the same in every run"
    rng, originals = random.Random(11), []
    for form, options in (('JPEG', {}), ('JPEG', dict(progressive=True)), ('PNG', {}), ('WEBP', {}), ('GIF', {}), ('BMP', {}), ('TIFF', dict(compression='tiff_lzw')), ('AVIF', {})):
        if form != 'AVIF' or features.check('avif'): originals.append(saved(detailed(len(originals)), form, **options))
    for n in range(500):
        data = bytearray(originals[n % len(originals)])
        kind = n // len(originals) % 5
        if kind == 0:
            for _ in range(rng.choice((1, 4, 40))): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1: del data[rng.randrange(len(data)):]
        elif kind == 2:
            n_bytes = rng.randrange(1, 40)
            data[:n_bytes] = rng.choice(originals)[:n_bytes]
        elif kind == 3: data[rng.randrange(min(200, len(data)))] = rng.choice((0, 0x7f, 0x80, 0xff))
        else:
            at, n_bytes = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at:at + n_bytes] = rng.choice((bytes(n_bytes), bytes(data[at:at + n_bytes])*3, b'\xff'*n_bytes))
        yield bytes(data)

def resident_mb():
    try: return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))/1000
    except OSError: return 0.

def test_500_broken_files(classifier):
    files, opened, slowest = list(mutations()), 0, 0.
    for round in range(2):
        for data in files:
            start = time.perf_counter()
            try:
                answer = classifier.predict(data)
                opened += 1
                assert isinstance(answer, Prediction) and abs(sum(answer.probabilities.values()) - 1) < 1e-3
            except ImageError as e: assert str(e) and e.reason
            slowest = max(slowest, time.perf_counter() - start)
        gc.collect()
        if round == 0: before = resident_mb()
    assert len(files) == 500 and 100 < opened < 900
    assert slowest < 30  # none hangs
    assert resident_mb() - before < 40  # the second round needs no more than the first

def test_broken_files_in_a_batch(classifier):
    files = list(mutations())[:120]
    rows = classifier.predict_batch([*files, brown], bs=7, n_workers=4)
    assert len(rows) == 121 and rows[-1].prediction.label == 'brown'
    for n, (row, data) in enumerate(zip(rows, files), 1):
        assert row.file == f'image {n}' and (row.status == 'ok') == (row.prediction is not None) and bool(row.reason) == (row.status == 'failed')

def test_broken_animations(classifier):
    whole = saved(detailed(1), 'GIF', save_all=True, append_images=[detailed(k) for k in range(2, 6)], duration=200)
    rng = random.Random(3)
    for n in range(60):
        data = bytearray(whole)
        if n % 2: del data[rng.randrange(10, len(data)):]
        else:
            for _ in range(5): data[rng.randrange(6, len(data))] ^= 1 << rng.randrange(8)
        try: rows = classifier.predict_video(bytes(data), rate=5)
        except (ImageError, ImportError): continue  # of PyAV, where the first bytes are no GIF's any more
        assert all(r.prediction or r is rows[-1] for r in rows)
        sightings(rows)

# One bad input among good ones

class Stream(io.RawIOBase):
    "What comes over the wire: it can be read, and not be sought in"
    def __init__(self, content): self.content = io.BytesIO(content)
    def readable(self): return True
    def readinto(self, buffer): return self.content.readinto(buffer)

def test_opened_images_and_streams_may_be_broken_too(classifier, tmp_path):
    (tmp_path/'cut.jpg').write_bytes(saved(Image.effect_noise((300, 300), 90).convert('RGB'), 'JPEG')[:9000])
    closed = Image.open(io.BytesIO(saved(brown, 'PNG')))
    closed.close()
    rows = classifier.predict_batch([brown, Image.open(tmp_path/'cut.jpg'), closed, Stream(b'<html>'), Stream(b''), Stream(saved(brown, 'PNG')), brown])
    assert [r.status for r in rows][:1] + [r.status for r in rows][-1:] == ['ok', 'ok'] and {r.status for r in rows[1:5]} == {'failed'}

def test_a_image_in_memory_is_opened_as_its_file_is(bundle):
    image = Image.effect_noise((1000, 900), 90).convert('RGB')
    classifier = Classifier(replace(read_bundle(bundle), min_side=128))
    one, other = (classifier._open(source)[1] for source in (image, saved(image, 'PNG')))
    assert np.array_equal(one, other) and np.array_equal(one, classifier._open(np.asarray(image))[1])

@pytest.mark.parametrize('mode', ['P', 'LA', 'RGBA', 'PA'])
def test_transparency_in_strips(mode):
    "Opening some rows at a time changes no byte"
    image = Image.effect_noise((70, 2500), 90).convert('RGBA')
    image.putalpha(Image.effect_noise((70, 2500), 90))
    if mode == 'P':
        image = image.convert('RGB').quantize(16)
        image.info['transparency'] = 3
    else: image = image.convert(mode)
    plain = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB')
    assert plain.tobytes() == flatten(image).tobytes()

def test_a_bundle_that_is_gone(bundle, tmp_path):
    classifier = Classifier(shutil.copytree(bundle, tmp_path/'copy'), threads=2)
    shutil.rmtree(tmp_path/'copy')
    assert classifier.predict(brown).label == 'brown' and classifier.predict_batch([brown]*3)[2].prediction.label == 'brown'

def test_a_camera_that_waits(classifier):
    "With one thread a frame is answered before the next one is asked for"
    order = []
    def camera():
        for n in range(3):
            order.append(f'frame {n}')
            yield float(n), brown
    for row in classifier.watch(camera(), n_workers=1): order.append(f'answer {row.time:.0f}')
    assert order == [f'{what} {n}' for n in range(3) for what in ('frame', 'answer')]

def test_the_command_line(bundle, tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'card').mkdir()
    for name in ('a.png', '._a.png'): (tmp_path/'card'/name).write_bytes(saved(brown, 'PNG') if name == 'a.png' else b'of a Mac')
    _, public = make_keys(tmp_path/'key')
    def bearcls(*args): return subprocess.run([sys.executable, '-c', 'import sys; from bearcls.cli import main; sys.exit(main())', 'predict', *map(str, args)], capture_output=True, text=True, timeout=120)
    done = bearcls(bundle, tmp_path/'card', '--json', '--threads', 1)
    assert done.returncode == 0 and [r['label'] for r in json.loads(done.stdout)] == ['brown']
    for args, words in (((bundle, tmp_path/'empty'), 'there are no images in'), ((bundle, tmp_path/'card', '--key', public), 'is not signed')):
        done = bearcls(*args)
        assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr

# Many at once

def test_2000_requests_of_8_threads(bundle):
    classifier, colours = Classifier(bundle, threads=1), list(furs.items())
    images = [(label, form, saved(Image.new('RGB', (64 + 3*n, 64), colour), form)) for n, (label, colour) in enumerate(colours*3) for form in ('PNG', 'JPEG')]
    questions = [images[n*7 % len(images)] for n in range(2000)]
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda q: classifier.predict(q[2]), questions))
    assert [a.label for a in answers] == [label for label, _, _ in questions]

def test_streams_of_several_threads(classifier):
    def ask(label): return [r.prediction.label for r in classifier.predict_stream([Image.new('RGB', (64, 64), furs[label])]*50, bs=3, n_workers=2)]
    with ThreadPoolExecutor(6) as pool: assert list(pool.map(ask, [*furs]*2)) == [[label]*50 for label in [*furs]*2]

def test_a_stream_takes_little_and_ends_its_threads(classifier):
    taken, before = [], set(threading.enumerate())
    def endless_source():
        while True:
            taken.append(1)
            yield brown
    stream = classifier.predict_stream(endless_source(), bs=4, n_workers=3)
    for n in range(1, 30):
        assert next(stream).prediction.label == 'brown'
        assert len(taken) <= n + (2*3 + 1)*4
    stream.close()
    for _ in range(100):
        if not any(t.name.startswith('bearcls_') for t in threading.enumerate() if t not in before): return
        time.sleep(.05)
    raise AssertionError('threads are left')

def test_the_source_may_fail(classifier):
    def source():
        yield brown
        raise ZeroDivisionError('of the caller')
    with pytest.raises(ZeroDivisionError): list(classifier.predict_stream(source(), bs=1))

def test_no_memory_for_one_image(classifier, monkeypatch):
    def load(source, *args):
        if source == b'large': raise MemoryError
        return brown
    monkeypatch.setattr(classifier_module, 'load_image', load)
    rows = classifier.predict_batch([b'a', b'large', b'b'])
    assert [r.status for r in rows] == ['ok', 'failed', 'ok'] and 'not enough memory' in rows[1].reason

def test_wrong_arguments(classifier, bundle):
    for kind in ('bs', 'n_workers'):
        with pytest.raises(ValueError, match=f'`{kind}` must be at least 1'): classifier.predict_batch([brown], **{kind: 0})
    with pytest.raises(ValueError, match='`threads`'): Classifier(bundle, threads=-1)

# Who computes

def test_providers(bundle, monkeypatch):
    assert Classifier(bundle, execution_providers=['CPUExecutionProvider']).predict(brown).label == 'brown'
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        for name in ('cuda', 'CUDAExecutionProvider', ['cuda', 'cpu']):
            with pytest.raises(ImportError, match='pip install onnxruntime-gpu'): Classifier(bundle, execution_providers=name)
    with pytest.raises(ValueError, match="got 'tpu'"): Classifier(bundle, execution_providers='tpu')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider'])
    assert execution_provider_names('cuda') == ['CUDAExecutionProvider', 'CPUExecutionProvider']
    class Fallen:  # what ONNX Runtime does where the card cannot be reached
        def __init__(self, model, options, providers): pass
        def get_providers(self): return ['CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'InferenceSession', Fallen)
    with pytest.raises(ExecutionProviderError, match='does not start on this machine'): Classifier(bundle, execution_providers='cuda')

def test_a_model_that_fails_while_it_answers(bundle):
    classifier = Classifier(bundle)
    with pytest.raises(BundleError, match='cannot answer'): classifier.run(np.zeros((1, 8, 8, 3), np.uint8))

@pytest.mark.parametrize('wrong', [lambda p: p[:0], lambda p: p*np.nan, lambda p: p*140, lambda p: -p, lambda p: p[:, :2], lambda p: p.astype(int), lambda p: list(p), lambda p: p.astype(str)], ids=range(8))
def test_a_model_whose_answers_are_none(bundle, wrong):
    classifier = Classifier(bundle, threads=1)
    real = classifier.session
    class Forged:
        def run(self, names, *args): return [wrong(v) if n == 'probabilities' else v for n, v in zip(names, real.run(names, *args))]
    classifier.session = Forged()
    with pytest.raises(BundleError, match='gives no probabilities'): classifier.predict(brown)
    with pytest.raises(BundleError, match='gives no probabilities'): classifier.predict_batch([brown]*3)

# Addresses

def test_addresses_only_if_asked(bundle):
    with serving({'/bear.png': saved(brown, 'PNG')}) as (url, hits):
        with pytest.raises(ImageError, match='asked for'): Classifier(bundle).predict(f'{url}/bear.png')
        with pytest.raises(ImageError, match='private network'): Classifier(bundle, allow_url=True).predict(f'{url}/bear.png')
        assert hits == []
        there = Classifier(bundle, allow_url=True, allow_private=True)
        assert there.predict(f'{url}/bear.png').label == 'brown'
        rows = there.predict_batch([f'{url}/bear.png', f'{url}/none.png'])
        assert [r.status for r in rows] == ['ok', 'failed'] and '404' in rows[1].reason

@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '[::1]', '10.1.2.3', '192.168.0.1', '169.254.169.254', '0.0.0.0', '[::ffff:127.0.0.1]', '2130706433', '0x7f.1', '100.64.0.1', '[fe80::1]', '[64:ff9b::7f00:1]'])
def test_private_hosts(host):
    with pytest.raises(ImageError): fetch_image(f'http://{host}:9/bear.png', timeout=3)

def test_redirects(monkeypatch, tmp_path):
    secret = tmp_path/'secret'
    secret.write_bytes(b'secret')
    pages = {'/file': redirect(secret.as_uri()), '/ftp': redirect('ftp://127.0.0.1/x'), '/round': redirect('/round'), '/good': redirect('/bear'), '/bear': b'bear'}
    with serving(pages) as (url, hits):
        assert fetch_image(f'{url}/good', allow_private=True) == b'bear'
        for page in ('file', 'ftp', 'round'):
            with pytest.raises(ImageError, match='cannot be fetched'): fetch_image(f'{url}/{page}', allow_private=True)
        looked, real = [], remote.is_public
        monkeypatch.setattr(remote, 'is_public', lambda address: looked.append(address) or len(looked) == 1 or real(address))
        hits.clear()
        with pytest.raises(ImageError, match='private network'): fetch_image(f'{url}/good')  # the first host passes for public, the second does not
        assert hits == ['/good']

def test_a_server_that_drips():
    "Letter by letter, it cannot keep anybody longer than was said"
    def drip(connection):
        with contextlib.suppress(OSError):
            for letter in b'HTTP/1.1 200 OK\r\nX: ' + b'x'*60:
                connection.sendall(bytes([letter]))
                time.sleep(.2)
    with socket.create_server(('127.0.0.1', 0)) as server:
        threading.Thread(target=lambda: drip(server.accept()[0]), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(ImageError, match='takes longer than 1 seconds'): fetch_image(f'http://127.0.0.1:{server.getsockname()[1]}/', timeout=1, allow_private=True)
        assert time.monotonic() - start < 4

def test_answers_without_end():
    with serving({'/endless': endless, '/dripping': dripping}) as (url, _):
        with pytest.raises(ImageError, match='more than 1,000,000 bytes'): fetch_image(f'{url}/endless', 1_000_000, allow_private=True)
        start = time.perf_counter()
        with pytest.raises(ImageError, match='longer than 0.5 seconds'): fetch_image(f'{url}/dripping', timeout=.5, allow_private=True)
        assert time.perf_counter() - start < 5

@pytest.mark.parametrize('address', ['http://', 'http://[', 'https://exa mple/', 'http://a:b:c/', 'http://\x00/', 'http://' + 'a'*300 + '.example/', 'HTTP://127.0.0.1:99999/'])
def test_addresses_that_are_none(address):
    with pytest.raises(ImageError): fetch_image(address, timeout=3, allow_private=True)

# Files of answers

def test_strange_names_are_written(classifier, tmp_path):
    import csv
    names = ['a,b.png', 'a"b.png', 'ünï.png', 'two\nlines.png'] if sys.platform != 'win32' else ['a,b.png', 'ünï.png']
    for name in names: (tmp_path/name).write_bytes(saved(brown, 'PNG'))
    rows = classifier.predict_batch(tmp_path)
    write_predictions(rows, tmp_path/'out.csv')
    with open(tmp_path/'out.csv', encoding='utf-8', newline='') as f: assert sorted(Path(r['file']).name for r in csv.DictReader(f)) == sorted(names)
    write_predictions(rows, tmp_path/'out.jsonl')
    assert sorted(Path(json.loads(line)['file']).name for line in (tmp_path/'out.jsonl').read_text(encoding='utf-8').splitlines()) == sorted(names)

def test_parquet(classifier, tmp_path):
    pq = pytest.importorskip('pyarrow.parquet')
    n = write_predictions(classifier.predict_stream([brown, b'', *[brown]*5000]), tmp_path/'out.parquet')
    table = pq.read_table(tmp_path/'out.parquet')
    assert n == table.num_rows == 5002 and table['label'].to_pylist()[:3] == ['brown', '', 'brown'] and table['p_brown'].null_count == 1

def test_parquet_says_what_to_install(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match='pip install pyarrow'): write_predictions(classifier.predict_batch([brown]), tmp_path/'out.parquet')
    assert list(tmp_path.iterdir()) == []

# Videos

def write_mp4(file, colours, rate=5, size=(96, 64)):
    av = pytest.importorskip('av')
    with av.open(str(file), 'w') as video:
        stream = video.add_stream('mpeg4', rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, 'yuv420p', 1_000_000
        for colour in colours: video.mux(stream.encode(av.VideoFrame.from_image(Image.new('RGB', size, colour))))
        video.mux(stream.encode())

def test_mp4(classifier, tmp_path):
    write_mp4(tmp_path/'film.mp4', [furs['white']]*20 + [furs['brown']]*30)
    rows = classifier.predict_video(tmp_path/'film.mp4', rate=5)
    assert len(rows) == 50 and [rows[k].prediction.label for k in (0, 10, 25, 49)] == ['white', 'white', 'brown', 'brown']
    assert [s.label for s in sightings(rows)] == ['white', 'brown']
    assert len(classifier.predict_video((tmp_path/'film.mp4').read_bytes(), rate=1)) == 10
    half = classifier.predict_video(tmp_path/'film.mp4', rate=2)
    assert np.allclose(np.diff([r.time for r in half]), .5, atol=.21)

@pytest.mark.parametrize('form', ['h264', 'joined'])
def test_clocks_of_cameras(classifier, tmp_path, form):
    "Raw films have no clock, and joined ones two"
    av = pytest.importorskip('av')
    def film(name):
        with av.open(str(tmp_path/name), 'w', format='h264' if form == 'h264' else 'mpegts') as out:
            stream = out.add_stream('libx264' if form == 'h264' else 'mpeg4', rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = 'yuv420p'
            for _ in range(75):
                for packet in stream.encode(av.VideoFrame.from_image(Image.new('RGB', (64, 64), furs['brown']))): out.mux(packet)
            for packet in stream.encode(): out.mux(packet)
        return (tmp_path/name).read_bytes()
    try: content = film('a.h264') if form == 'h264' else film('a.ts') + film('b.ts')
    except (ValueError, av.error.FFmpegError) as e: pytest.skip(f'this FFmpeg cannot write it: {e}')
    (tmp_path/('12:30 film.' + ('h264' if form == 'h264' else 'ts'))).write_bytes(content)
    rows = classifier.predict_video(next(tmp_path.glob('12*')), rate=2, quiet=True)
    assert len(rows) >= (5 if form == 'h264' else 11) and all(r.prediction and r.prediction.label == 'brown' for r in rows)

def test_broken_mp4(classifier, tmp_path):
    write_mp4(tmp_path/'film.mp4', [detailed(k).getpixel((5, 5)) for k in range(20)])
    whole, rng = (tmp_path/'film.mp4').read_bytes(), random.Random(5)
    for n in range(40):
        data = bytearray(whole)
        if n % 2: del data[rng.randrange(len(data)):]
        else:
            for _ in range(20): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try: rows = classifier.predict_video(bytes(data))
        except ImageError as e: assert str(e)
        else: assert all(r.prediction or r is rows[-1] for r in rows)

@pytest.mark.parametrize('content', [b'', b'no film', b'#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n', b'ffconcat version 1.0\nfile /etc/hostname\n', bomb()], ids=['empty', 'text', 'm3u8', 'concat', 'bomb'])
def test_what_is_no_film(classifier, content):
    pytest.importorskip('av')
    with pytest.raises(ImageError): classifier.predict_video(content)

def test_a_still_that_lasts_for_hours_is_soon_over():
    film = saved(brown, 'WEBP', save_all=True, append_images=[white.resize(brown.size)], duration=10_000_000, lossless=True)
    assert len(list(read_frames(film, rate=2))) < 60

# Nothing else installed

def test_batch_and_video_load_nothing_heavy(bundle, tmp_path):
    (tmp_path/'film.gif').write_bytes(saved(brown, 'GIF', save_all=True, append_images=[white.resize(brown.size)], duration=500))
    (tmp_path/'bear.jpg').write_bytes(saved(brown, 'JPEG'))
    code = f'''import sys
for name in ('torch', 'torchvision', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'IPython', 'ipywidgets', 'scipy', 'aiohttp', 'onnx'): sys.modules[name] = None
from bearcls.inference.classifier import Classifier
from bearcls.inference.predictions import by_need, rows_html, tally, write_predictions
from bearcls.inference.video import sightings
classifier = Classifier({str(bundle)!r})
rows = classifier.predict_batch({str(tmp_path)!r})
assert write_predictions(rows, {str(tmp_path/'out.csv')!r}) == 2 and 'brown' in str(rows_html(by_need(rows)))
print(tally(rows)[0]['label'], len(classifier.predict_video({str(tmp_path/'film.gif')!r})))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ['brown', '2']), done.stderr

def test_a_single_answer_prints_nothing(bundle, tmp_path):
    (tmp_path/'bear.jpg').write_bytes(saved(brown, 'JPEG'))
    code = f'from bearcls.inference.classifier import Classifier; Classifier({str(bundle)!r}).predict({str(tmp_path/"bear.jpg")!r})'
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from Linux')
def test_memory_of_a_batch_is_given_back(bundle):
    classifier = Classifier(bundle)
    list(classifier.predict_stream([brown]*64))
    before = resident_mb()
    for _ in range(3): list(classifier.predict_stream([brown]*256, bs=64))
    assert resident_mb() - before < 60
