"Bundles that are broken, changed or from the future; and the prediction side with nothing else installed"
import json, shutil, subprocess, sys, venv, zipfile
from pathlib import Path
import numpy as np
import onnx
import pytest
from PIL import Image
from bearcls.core import sha256
from bearcls.deploy.check import install_packages
from bearcls.deploy.targets import DeployError
from bearcls.export.card import add_metrics
from bearcls.inference.bundle import model_bytes, read_bundle, sign_bundle, zip_bundle
from bearcls.inference.classifier import Classifier, max_memory
from bearcls.inference.files import BundleError
from bearcls.inference.onnxfile import OnnxFileError, check_model
from bearcls.inference.signature import SignatureError, make_keys, public_key, sign_bytes, signature_fits
from hostile_bundles import all_hostile, mangle
from tiny_bundle import colour_model, furs, make_bundle

root = Path(__file__).resolve().parent.parent

@pytest.fixture
def bundle(tmp_path): return make_bundle(tmp_path/'furs')

def rewrite(bundle, change):
    "Apply `change` to the metadata of a bundle"
    metadata = json.loads((bundle/'bundle.json').read_text(encoding='utf-8'))
    change(metadata)
    (bundle/'bundle.json').write_text(json.dumps(metadata), encoding='utf-8')

def replace_model(bundle, content):
    "Another model, with a digest that fits: what a forger would do"
    (bundle/'model.onnx').write_bytes(content)
    rewrite(bundle, lambda metadata: metadata['model'].update(sha256=sha256(content), bytes=len(content)))

def test_the_sound_one_is_read(bundle):
    assert read_bundle(bundle).labels == list(furs)
    assert Classifier(bundle).predict(Image.new('RGB', (80, 80), furs['brown'])).label == 'brown'

def test_bundles_of_the_version_before_are_read(bundle, tmp_path):
    "Format 1 had other words for metadata and outputs; a label may be called like one of them"
    now = make_bundle(tmp_path/'now', labels=['black', 'pictures', 'unlikeness'], model=colour_model(ood_score=True), confidence=dict(bias=0, evidence=dict(probability=[0, 1, 1], ood_score=[0, 1, -.1])),
        ood_score=dict(threshold=.2, false_positive_rate=.05, images=90, left_out=dict(pictures=dict(n=3, auroc=.7, caught=.5))),
        metrics=dict(images_compared=3, robustness=dict(words='By night.', rows=[]), labels=[dict(label='pictures', images=4)]), data=dict(labels=dict(unlikeness=dict(train=3))))
    old = shutil.copytree(now, tmp_path/'old')
    text = (old/'bundle.json').read_text(encoding='utf-8')
    for name, today in (('ood_score', 'unlikeness'), ('false_positive_rate', 'false_alarms'), ('images_compared', 'pictures_compared'), ('"images"', '"pictures"'), ('"robustness"', '"stress"')):
        assert name in text
        text = text.replace(name, today)
    (old/'bundle.json').write_text(text.replace('"format_version": 2', '"format_version": 1'), encoding='utf-8')
    model = onnx.load_from_string((old/'model.onnx').read_bytes())
    for one in (*model.graph.output, *model.graph.node):
        if getattr(one, 'name', '') == 'ood_score': one.name = 'unlikeness'
        if 'ood_score' in getattr(one, 'output', ()): one.output[:] = ['unlikeness']
    replace_model(old, model.SerializeToString())
    was, new = read_bundle(old), read_bundle(now)
    for name in ('labels', 'ood_score', 'confidence', 'metrics', 'data'): assert getattr(was, name) == getattr(new, name), name
    image = Image.new('RGB', (80, 80), 'white')
    assert Classifier(old).predict(image) == Classifier(now).predict(image) and Classifier(old).predict(image).ood_score > .2

wrong_values = {
    'labels': [None, 'black', [], ['one'], ['a', 'a', 'b'], ['a', 1, 'b'], ['', 'b', 'c'], {'a': 1}, ['a'*300, 'b', 'c'], [['a'], 'b', 'c'], ['a', 'b', 'c\n'], ['a', 'b', '\x1b[31mc']],
    'input.width': [None, 0, -1, 64.0, '64', True, 10**9, [64]],
    'input.height': [0, 1e400, 'a'],
    'input.method': [None, 'stretch', 3, ['crop'], {}],
    'input.pad_mode': [None, 'mirror', ['zeros'], {}],
    'input.resample': ['nearest', None, 2],
    'input.colour': ['bgr', None],
    'input.min_side': [0, -5, 1.5, 'large', False],
    'normalisation.mean': [None, [0, 0], [0, 0, 'x'], [0, 0, float('nan')], 0.5],
    'normalisation.std': [[1, 1, 0], [1, 1, -1], [1, 1, 1e999]],
    'temperature': [0, -1, None, '1', float('nan'), float('inf'), True, 10**400],
    'trust.threshold': [-0.1, 1.1, None, 'high', float('nan')],
    'trust.smallest': [-1, 0.5, None],
    'trust.ood_score': [{}, 'later', 0, {'threshold': .5}, dict(threshold='a', false_positive_rate=.05, images=9), dict(threshold=.5, false_positive_rate=2, images=9), dict(threshold=.5, false_positive_rate=.05, images=0)],
    'trust.confidence': [{}, 'later', 0, dict(bias=0), dict(bias=0, evidence={}), dict(bias='x', evidence={'probability': [0, 1, 1]}), dict(bias=0, evidence={'probability': [0, 0, 1]}),
        dict(bias=0, evidence={'probability': [0, 1]}), dict(bias=0, evidence={'weather': [0, 1, 1]}), dict(bias=0, evidence=['probability']), dict(bias=float('nan'), evidence={'probability': [0, 1, 1]})],
    'metrics': [None, [], 'good'],
    'data': [None, 3],
    'versions': [None, []],
    'created': [None, 2025],
    'model.sha256': [None, '', 'abc', 5, '0'*64],
    'model.bytes': [None, 0, -1, 1.0, 1 << 40, '443'],
    'model.arch': [None, 3],
    'model.variant': [None, 'int4', 8],
    'weights': [{}, 'later', dict(sha256='0'*64, bytes=0, builder='arch'), dict(sha256='x', bytes=5, builder='arch'), dict(sha256='0'*64, bytes=5)],
    'format': [None, 'other', 5, {}],
    'format_version': [None, 0, -1, '1', 1.5, True, []],
}

@pytest.mark.parametrize('field, value', [(f, v) for f, values in wrong_values.items() for v in values],
    ids=lambda v: v if isinstance(v, str) and '.' in v else None)
def test_wrong_field(bundle, field, value):
    *groups, key = field.split('.')
    def change(metadata):
        for g in groups: metadata = metadata[g]
        metadata[key] = value
    rewrite(bundle, change)
    with pytest.raises(BundleError) as e: read_bundle(bundle)
    assert '\n' not in str(e.value) and len(str(e.value)) < 500

@pytest.mark.parametrize('field', [f for f in wrong_values if f not in ('format', 'trust.confidence')])  # the latter is missing in older bundles
def test_missing_field(bundle, field):
    *groups, key = field.split('.')
    def change(metadata):
        for g in groups: metadata = metadata[g]
        del metadata[key]
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=key): read_bundle(bundle)

@pytest.mark.parametrize('content', [b'', b'{', b'null', b'[]', b'"bundle"', b'\xff\xfe\x00', b'{"format": "bearcls-bundle"}', b'['*100_000,
    b'{"format": NaN}', b'{"a": ' + b'9'*5000 + b'}', b'<html>', b'\x80\x04pickle'], ids=range(12))
def test_broken_metadata(bundle, content):
    (bundle/'bundle.json').write_bytes(content)
    with pytest.raises(BundleError) as e: read_bundle(bundle)
    assert '\n' not in str(e.value)

def test_groups_of_another_kind(bundle):
    for group in ('input', 'normalisation', 'trust', 'model'):
        for value in (None, 3, [], 'text'):
            changed = make_bundle(bundle.parent/f'{group}-{value!r:.4}'.replace("'", ''))
            rewrite(changed, lambda metadata: metadata.update({group: value}))
            with pytest.raises(BundleError, match=f'`{group}[.].*` is missing'): read_bundle(changed)

def test_newer_format_says_what_to_do(bundle):
    rewrite(bundle, lambda metadata: metadata.update(format_version=7))
    with pytest.raises(BundleError, match='pip install -U bearcls'): read_bundle(bundle)

def test_oversized_metadata_are_not_read(bundle):
    with open(bundle/'bundle.json', 'ab') as f: f.truncate((1 << 22) + 1)
    with pytest.raises(BundleError, match='larger than 4,194,304 bytes'): read_bundle(bundle)

def test_every_changed_byte_of_the_model_is_found(bundle):
    original = (bundle/'model.onnx').read_bytes()
    for position in range(0, len(original), 7):
        changed = bytearray(original)
        changed[position] ^= 0x20
        (bundle/'model.onnx').write_bytes(changed)
        with pytest.raises(BundleError, match='checksum'): Classifier(bundle)

@pytest.mark.parametrize('size', [0, 1, 200])
def test_truncated_model(bundle, size):
    (bundle/'model.onnx').write_bytes((bundle/'model.onnx').read_bytes()[:size])
    with pytest.raises(BundleError, match='not complete'): Classifier(bundle)

def test_missing_model(bundle):
    (bundle/'model.onnx').unlink()
    with pytest.raises(BundleError, match='has no model.onnx'): Classifier(bundle)

@pytest.mark.parametrize('content', [b'x', b'\x08\x07'*100, b'\x80\x04\x95pickle', b'PK\x03\x04' + b'\0'*300])
def test_something_else_as_the_model(bundle, content):
    replace_model(bundle, content)
    with pytest.raises(BundleError, match='ONNX Runtime|takes|gives|can be used'): Classifier(bundle)

def test_damaged_graphs_with_a_fitting_digest(bundle):
    "A forged model either does not load, in one clear error, or loads and has the right shape"
    original, refused = (bundle/'model.onnx').read_bytes(), 0
    for position in range(0, len(original), 5):
        changed = bytearray(original)
        changed[position] ^= 0x41
        replace_model(bundle, bytes(changed))
        try: Classifier(bundle)
        except BundleError: refused += 1
    assert refused > 10

def test_models_for_other_metadata(bundle):
    replace_model(bundle, colour_model(dict(a=(0, 0, 0), b=(255, 255, 255))))
    with pytest.raises(BundleError, match='for 3 labels are expected'): Classifier(bundle)
    replace_model(bundle, colour_model(size=32))
    with pytest.raises(BundleError, match='64×64×3 bytes is expected'): Classifier(bundle)

def test_prediction_side_loads_nothing_heavy(bundle):
    "In a fresh process: importing, loading a bundle and predicting"
    code = f'''import sys
import bearcls, bearcls.core, bearcls.inference.classifier
assert 'onnxruntime' not in sys.modules, 'onnxruntime is loaded before it is needed'
from PIL import Image
classifier = bearcls.inference.classifier.Classifier({str(bundle)!r})
print(classifier.predict(Image.new('RGB', (80, 80), 'white')).label)
heavy = {{'torch', 'torchvision', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'IPython', 'ipywidgets', 'scipy'}} & set(sys.modules)
assert not heavy, heavy'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'white'

def test_app_loads_no_training_library(bundle):
    code = f'''import sys
from bearcls.app.notebook import ClassifierApp
ClassifierApp({str(bundle)!r})
heavy = {{'torch', 'torchvision', 'fastai', 'fastcore', 'pandas', 'matplotlib'}} & set(sys.modules)
assert not heavy, heavy'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

def test_predicts_with_three_packages_only(bundle, tmp_path):
    "A virtual environment with numpy, Pillow and ONNX Runtime, and bearcls without its other requirements"
    home = tmp_path/'env'
    venv.create(home, with_pip=False)
    programs = home/('Scripts' if sys.platform == 'win32' else 'bin')
    python = programs/('python.exe' if sys.platform == 'win32' else 'python')
    try: install_packages(programs, 'numpy', 'pillow', 'onnxruntime', 'setuptools>=77', 'wheel')
    except DeployError as e: pytest.skip(str(e))
    source = tmp_path/'source'
    shutil.copytree(root/'bearcls', source/'bearcls', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'settings.ini', 'setup.py', 'LICENSE'): shutil.copy(root/name, source)
    (source/'README.md').touch()
    install_packages(programs, '--no-deps', '--no-build-isolation', str(source))
    Image.new('RGB', (300, 200), furs['brown']).save(tmp_path/'brown.jpg')
    code = f'''import importlib.util as u
assert not [m for m in ('torch', 'fastai', 'fastcore', 'pandas') if u.find_spec(m)]
from bearcls.inference.classifier import Classifier
rows = Classifier({str(bundle)!r}).predict_batch([{str(tmp_path/'brown.jpg')!r}, {str(tmp_path/'none.jpg')!r}])
print(rows[0].prediction.label, rows[1].status)'''
    done = subprocess.run([str(python), '-I', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['brown', 'failed']

# Hostile bundles

@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "Some three hundred bundles made to do harm, and what a process said about each"
    if sys.platform == 'win32': pytest.skip('links, pipes and the size of a process are asked for as on Unix')
    folder = tmp_path_factory.mktemp('hostile')
    paths = [str(p) for p in all_hostile(folder)]
    (folder/'list.txt').write_text('\n'.join(paths))
    done = subprocess.run([sys.executable, str(Path(__file__).with_name('hostile_bundles.py')), str(folder/'list.txt')], capture_output=True, text=True, timeout=600)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"path"')]
    assert done.returncode == 0, f'the process ended at {said[-1]["path"] if said else "the first"}: {done.stderr[-2000:]}'
    return paths, [s for s in said if 'seconds' in s]

def test_hostile_bundles_are_answered_or_refused(hostile):
    "A prediction, or one clear error; never another exception"
    paths, said = hostile
    assert len(paths) > 250 and [s['path'] for s in said] == paths
    assert [s for s in said if 'failed' in s] == []
    assert sum('refused' in s for s in said) > 200

def test_refusals_are_one_sentence(hostile):
    for s in hostile[1]: assert '\n' not in s.get('refused', '') and len(s.get('refused', '')) < 500, s

def test_answers_are_probabilities(hostile):
    for s in hostile[1]:
        if 'label' in s: assert 0 <= s['probability'] <= 1 and abs(sum(s['probabilities'].values()) - 1) < .01, s

def test_hostile_bundles_do_not_fill_the_memory(hostile):
    "Reading takes next to nothing; a graph that grows is stopped at the bound"
    reading = [s['megabytes'] for s in hostile[1] if not Path(s['path']).name.startswith(('huge', 'lie'))]
    first = hostile[1][0]['megabytes']
    before_graphs = [s['megabytes'] for s in hostile[1] if Path(s['path']).parent.name < '6']
    assert max(before_graphs) < first + 150, (first, max(before_graphs))
    assert max(s['megabytes'] for s in hostile[1]) < first + 1.5*max_memory/2**20 and reading

def test_what_a_network_need_not_do_is_refused(hostile):
    "Not by chance, but for the reason"
    said = {Path(s['path']).name: s.get('refused', '') for s in hostile[1]}
    for name in ('external-passwd', 'external-up', 'external-here', 'external-device'): assert 'in another file' in said[name]
    assert 'loops and branches' in said['loop'] and 'functions of its own' in said['functions'] and 'loops and branches' in said['nested']
    for name in ('shape-huge', 'shape-negative', 'shape-product'): assert 'as its shape says' in said[name] or 'than its shape says' in said[name]
    assert 'would unfold' in said['bomb.zip'] and 'password' in said['locked.zip'] and 'same name' in said['doubled.zip'] and 'too many files' in said['many.zip']
    for name in ('huge-filled', 'huge-expanded', 'huge-tiled', 'huge-crossed', 'huge-spread'): assert said[name]

def test_mangled_models_never_confuse_the_reader():
    "The reader of ONNX files ends in a finding or in its own error, on 5,000 mangled ones"
    import random
    from tiny_bundle import colour_model as original
    rng, content, refused = random.Random(1), original(), 0
    for _ in range(5000):
        try: check_model(mangle(content, rng))
        except OnnxFileError: refused += 1
    assert 1000 < refused < 5000

# One file, and signatures

def test_zip_made_by_hand(bundle, tmp_path):
    "Somebody zips the folder, as Finder does it"
    with zipfile.ZipFile(tmp_path/'by hand.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for f in bundle.iterdir():
            z.write(f, f'furs/{f.name}')
            z.writestr(f'__MACOSX/furs/._{f.name}', b'finder')
    assert read_bundle(tmp_path/'by hand.zip') == read_bundle(bundle)
    assert Classifier(tmp_path/'by hand.zip').predict(Image.new('RGB', (80, 80), 'white')).label == 'white'

def test_every_changed_byte_of_a_zip_is_found_or_harmless(bundle):
    "The metadata and the model are what they were, or there is an error"
    zipped = zip_bundle(bundle)
    content, metadata, model = zipped.read_bytes(), read_bundle(bundle), model_bytes(read_bundle(bundle))
    for position in range(0, len(content), 11):
        changed = bytearray(content)
        changed[position] ^= 0x55
        zipped.write_bytes(changed)
        try: again = read_bundle(zipped)
        except BundleError: continue
        assert again == metadata and model_bytes(again) == model

def test_model_that_changes_after_reading(bundle):
    metadata = read_bundle(bundle)
    (bundle/'model.onnx').write_bytes(colour_model(sharpness=1))
    with pytest.raises(BundleError, match='checksum'): model_bytes(metadata)

def test_signature_covers_everything(bundle, tmp_path):
    secret, public = make_keys(tmp_path/'mine')
    sign_bundle(bundle, secret)
    for name in ('README.md', 'bundle.json', 'bundle.sig', 'model.onnx'):
        copy = shutil.copytree(bundle, tmp_path/f'copy-{name}')
        content = bytearray((copy/name).read_bytes())
        content[len(content)//2] ^= 1
        (copy/name).write_bytes(content)
        with pytest.raises(BundleError): read_bundle(copy, key=public)
    assert read_bundle(bundle, key=public) == read_bundle(bundle)

@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'null', b'{"signature": 5}', b'{"signature": "zz"}', b'{"signature": "00"}', b'\xff', b'['*9000])
def test_broken_signature(bundle, tmp_path, content):
    _, public = make_keys(tmp_path/'mine')
    (bundle/'bundle.sig').write_bytes(content)
    with pytest.raises(BundleError, match='signature|signed'): read_bundle(bundle, key=public)

def test_signatures_are_those_of_others():
    "The same as the package cryptography makes"
    ed25519 = pytest.importorskip('cryptography.hazmat.primitives.asymmetric.ed25519')
    for i in range(20):
        secret, message = bytes([i]*32), bytes(range(i))
        other = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
        assert other.public_key().public_bytes_raw() == public_key(secret) and other.sign(message) == sign_bytes(message, secret)
        assert signature_fits(message, other.sign(message), public_key(secret))

def test_another_format_in_the_same_bytes():
    "ONNX Runtime would read a file with these letters as its own format, whatever else it is"
    model = colour_model()
    forged = b'\x08\x08\x09\x00ORTM' + bytes(3) + model
    with pytest.raises(OnnxFileError, match='another format'): check_model(forged)

def test_operators_that_no_classifier_needs(tmp_path):
    import onnx
    proto = onnx.load_from_string(colour_model())
    proto.graph.node[1].op_type = 'Unique'
    with pytest.raises(OnnxFileError, match='uses the operator Unique, which classifiers of images have no need of'): check_model(proto.SerializeToString())

def test_nothing_of_others_is_replaced(tmp_path):
    for name in ('README.md', 'weights.safetensors'):
        (tmp_path/name).mkdir()
        (tmp_path/name/name).write_text('mine')
        with pytest.raises(BundleError, match='and is no bundle, so nothing is written there'): make_bundle(tmp_path/name)
        assert (tmp_path/name/name).read_text() == 'mine' and len(list((tmp_path/name).iterdir())) == 1

@pytest.mark.parametrize('metrics,words', [({'a': float('nan')}, 'metrics.a'), ({'a': [1, {2: set()}]}, r'metrics.a\[1\].2')])
def test_what_is_no_json(tmp_path, metrics, words):
    path = make_bundle(tmp_path/'b')
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    with pytest.raises(BundleError, match=words): add_metrics(path, metrics, replace_card=True)
    assert before == {f.name: f.read_bytes() for f in path.iterdir()}

def test_metrics_into_a_signed_bundle(tmp_path):
    "Only what carries one's own signature is signed again, and a wrong key changes nothing"
    path, (secret, public), (other, _) = make_bundle(tmp_path/'b'), make_keys(tmp_path/'mine'), make_keys(tmp_path/'other')
    sign_bundle(path, secret)
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    for key in (None, tmp_path/'typo', public, other):
        with pytest.raises((BundleError, SignatureError)): add_metrics(path, {'a': 1}, key, replace_card=True)
        assert before == {f.name: f.read_bytes() for f in path.iterdir()}
    add_metrics(path, {'a': np.int64(1)}, secret)
    assert read_bundle(path, public).metrics['a'] == 1
    metadata = json.loads((path/'bundle.json').read_text())
    metadata['labels'].reverse()
    (path/'bundle.json').write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match='was changed since'): add_metrics(path, {'b': 2}, secret, replace_card=True)
