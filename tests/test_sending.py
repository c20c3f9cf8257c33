"What goes to other processes and what is copied: a Classifier opens its bundle anew, errors come out of a pool as they were raised"
import copy, inspect, multiprocessing, os, pickle, shutil, importlib, pkgutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
import pytest
from PIL import Image
import bearcls
from bearcls.core import BearclsError
from bearcls.images import ImageError
from bearcls.inference.bundle import read_bundle, sign_bundle, zip_bundle
from bearcls.inference.classifier import Classifier
from bearcls.inference.files import BundleError
from bearcls.inference.signature import make_keys
from tiny_bundle import furs, make_bundle

brown = Image.new('RGB', (120, 90), furs['brown'])

@pytest.fixture
def bundle(tmp_path): return make_bundle(tmp_path/'furs')

def ask(classifier): return os.getpid(), os.getcwd(), classifier.predict(brown), classifier.threads

def elsewhere(folder): os.chdir(folder)

@pytest.mark.parametrize('start', ['spawn', 'fork'])
def test_a_pool_of_processes(bundle, tmp_path, start, monkeypatch):
    "Also with a relative path, and another working directory at the other end"
    if start not in multiprocessing.get_all_start_methods(): pytest.skip(f'{start} does not exist here')
    monkeypatch.chdir(bundle.parent)
    classifier = Classifier('furs', threads=1, allow_url=True, max_pixels=20_000)
    (tmp_path/'other').mkdir()
    with ProcessPoolExecutor(1, multiprocessing.get_context(start), elsewhere, (tmp_path/'other',)) as pool:
        pid, cwd, answer, threads = pool.submit(ask, classifier).result(120)
        with pytest.raises(ImageError, match='at most 20,000') as error: pool.submit(classifier.predict, png(500)).result(120)
    assert pid != os.getpid() and Path(cwd) == tmp_path/'other' and threads == 1
    assert answer == classifier.predict(brown) and error.value.reason == 'bomb'

def png(side):
    import io
    out = io.BytesIO()
    Image.new('RGB', (side, side)).save(out, 'PNG')
    return out.getvalue()

ways = dict(pickle=lambda value: pickle.loads(pickle.dumps(value)), copy=copy.copy, deepcopy=copy.deepcopy)

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('kind', ['folder', 'zip', 'Bundle', 'changed Bundle', 'signed'])
def test_every_kind_of_bundle(bundle, tmp_path, kind, way):
    given = bundle
    if kind == 'zip': given = zip_bundle(bundle)
    if kind == 'Bundle': given = read_bundle(bundle)
    if kind == 'changed Bundle': given = replace(read_bundle(bundle), threshold=.999999)
    if kind == 'signed':
        secret, public = make_keys(tmp_path/'keys')
        given = read_bundle(sign_bundle(bundle, secret), public)
    classifier = Classifier(given, threads=2, allow_url=True, allow_private=True, max_pixels=10_000_000)
    list(classifier.predict_stream([brown]*3, n_workers=2))  # makes the second session too
    twin = ways[way](classifier)
    for name in ('labels', 'threads', 'execution_providers', 'allow_url', 'allow_private', 'max_pixels', 'bundle', 'outputs'): assert getattr(twin, name) == getattr(classifier, name), name
    assert twin.predict(brown) == classifier.predict(brown) and twin.session is not classifier.session and twin._lock is not classifier._lock
    assert twin.bundle.digest == classifier.bundle.digest and twin.bundle.path == classifier.bundle.path
    assert pickle.dumps(twin) and len(pickle.dumps(classifier)) < 5000, 'the model itself is sent'

def test_all_cores_of_the_other_machine(bundle, monkeypatch):
    "None means those of the process that answers"
    parcel = pickle.dumps(Classifier(bundle))
    monkeypatch.setattr('bearcls.inference.classifier.usable_cores', lambda: 1)
    assert pickle.loads(parcel).threads == 1

def test_a_bundle_that_is_another_by_now(bundle, tmp_path):
    "The copy answers as its original, or not at all; a change of the metadata on the disk does not reach it"
    parcel = pickle.dumps(Classifier(bundle))
    from bearcls.inference.bundle import Bundle, write_bundle
    from bearcls.sample.standins import colour_model
    write_bundle(Bundle(list(furs), (64, 64), threshold=.123), colour_model(), bundle)
    assert pickle.loads(parcel).bundle.threshold == .6
    write_bundle(Bundle(list(furs), (64, 64)), colour_model({**furs, 'brown': (1, 2, 3)}), bundle)
    with pytest.raises(BundleError, match='furs'): pickle.loads(parcel)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=f'There is no bundle at {bundle}'): pickle.loads(parcel)

def test_a_folder_that_was_left(bundle, monkeypatch, tmp_path):
    "A relative path means the folder where it was given"
    monkeypatch.chdir(bundle.parent)
    found = read_bundle('furs')
    (tmp_path/'other').mkdir()
    monkeypatch.chdir(tmp_path/'other')
    assert Classifier(found).predict(brown).label == 'brown'

# ---------------------------------------------------------------- errors

modules = [m.name for m in pkgutil.walk_packages(bearcls.__path__, 'bearcls.') if '._' not in m.name]

def errors():
    "Every exception of bearcls"
    for name in modules: importlib.import_module(name)
    found, left = set(), [BearclsError]
    while left:
        kind = left.pop()
        found.add(kind)
        left += kind.__subclasses__()
    return sorted((kind for kind in found if kind.__module__.startswith('bearcls.')), key=lambda kind: kind.__qualname__)

def test_every_error_can_be_sent():
    "Otherwise a pool of processes ends with BrokenProcessPool instead of the error"
    words = dict(status=404, seconds=7, reason='bomb')
    assert len(errors()) > 15
    for kind in errors():
        own = inspect.signature(kind.__init__).parameters.values() if inspect.isfunction(kind.__init__) else ()
        wanted = [p for p in own if p.name != 'self' and (p.default is p.empty or p.name in words)]
        error = kind(*[words.get(p.name, f'some {p.name}') for p in wanted]) if wanted else kind('some words')
        error.note = 'by hand'
        for way, send in ways.items():
            again = send(error)
            assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error) and again.args == error.args, (kind, way)

# ---------------------------------------------------------------- the rest

def test_caches_and_marks(tmp_path):
    "They stand for a file, which the other process opens itself"
    opening = pytest.importorskip('bearcls.data.cache')
    store = opening.Store(tmp_path/'store.sqlite', 12)
    store.put('kind', {'key': b'value'})
    for way, send in ways.items():
        again = send(store)
        assert again.get('kind', ['key']) == {'key': b'value'} and again.max_mb == 12, way
    from bearcls.clean.marks import Mark, Marks
    (tmp_path/'bears'/'black').mkdir(parents=True)
    brown.save(tmp_path/'bears'/'black'/'a.png')
    marks = Marks(tmp_path/'bears')
    marks.set({'black/a.png': Mark('delete')})
    for way, send in ways.items(): assert send(marks).now() == marks.now() and marks.now(), way
