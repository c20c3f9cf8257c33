"""Every public function, given the wrong thing for each of its arguments: the error names the argument, or says in bearcls's own words what is wrong

New functions are covered by themselves: what an argument may be is told by its annotation. What `good` cannot make for one fails here; give it a value there.
"""
import contextlib, dataclasses, importlib, inspect, os, pkgutil, signal, types, typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
import pytest

pytest.importorskip('fastai', reason='fastai is not installed')
import matplotlib, numpy as np, pandas as pd, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from PIL import Image
import bearcls
from bearcls.core import ArgumentError, BearclsError
from bearcls.folders import image_files
from tiny_bundle import make_bundle

machinery = set('cli clean.items commands.parser commands.making core.in_order core.is_public doors greys images.costly_build mend threads deploy.standalone gather.providers gather.addresses gather.visit gather.fetch inference.files inference.onnxfile inference.signature sample.drawing sample.loopback '
    'sample.scenes serve.middleware serve.problems serve.supervise serve.workers train.trial verify.measure'.split())  # modules and functions for other modules rather than for people
entries = {'serve.process': {'Service'}, 'serve.service': {'make_app', 'serving', 'run_server'}, 'deploy.check': {'check_folder'},
    'export.robustness': set('apply_corruption show_corruptions evaluate_robustness plot_robustness trust_on_corruptions plot_trust robustness_html robustness_metadata robustness_words'.split())}  # what people call there; the rest is machinery

def public():
    "Every function, and every class that is made by hand, that is for people"
    for info in pkgutil.walk_packages(bearcls.__path__, 'bearcls.'):
        module = info.name.removeprefix('bearcls.')
        if module in machinery or module == '__main__': continue
        room = importlib.import_module(info.name)
        for name in sorted(getattr(room, '__all__', ())):
            found = getattr(room, name)
            if getattr(found, '__module__', '') != info.name or name not in entries.get(module, {name}) or f'{module}.{name}' in machinery: continue
            is_made = inspect.isclass(found) and '__init__' in vars(found) and not issubclass(found, Exception) and not dataclasses.is_dataclass(found)
            if inspect.isfunction(found) or is_made: yield f'{module}.{name}', found

functions = dict(public())

def test_they_are_found():
    "The test looks at something, and at what the issue of wrong arguments began with"
    assert len(functions) > 200 and {'train.learner.make_learner', 'interpret.label_issues.label_issues', 'inference.classifier.Classifier', 'folders.image_files', 'serve.service.make_app'} <= functions.keys()

# ---------------------------------------------------------------- what arguments may be

def hints(function):
    "Kinds of each argument; those that are not annotated are left out"
    function = function.__init__ if inspect.isclass(function) else function
    wrapped = inspect.unwrap(function)
    try: found = typing.get_type_hints(wrapped)
    except NameError: found = {}
    return {name: found[name] for name in inspect.signature(function).parameters if name in found and name not in ('self', 'cls')}

def parts(hint):
    "The members of a union, without what is in brackets"
    if typing.get_origin(hint) in (typing.Union, types.UnionType): return [part for h in typing.get_args(hint) for part in parts(h)]
    return [hint]

def fits(value, hint):
    "May `value` be given where `hint` stands?"
    for part in parts(hint):
        kind, inner = typing.get_origin(part) or part, typing.get_args(part)
        if kind is typing.Any or part is typing.Any: return True
        if not isinstance(kind, type): continue
        if kind is float and isinstance(value, int): return True
        if not isinstance(value, kind): continue
        if kind is Callable: return True
        if kind in (str, bytes) or issubclass(kind, os.PathLike) or not inner: return not (isinstance(value, (str, bytes)) and kind is Iterable) or True
        if isinstance(value, (str, bytes)): continue  # a text is taken letter by letter
        if isinstance(value, (pd.DataFrame, Mapping)) and kind not in (dict, Mapping): continue
        if kind in (dict, Mapping, tuple) or all(fits(v, inner[0]) for v in value): return True
    return False

@pytest.fixture(scope='module')
def things(tmp_path_factory):
    "One of each noun, made as a user makes them"
    from bearcls.clean.plans import Change, plan_changes
    from bearcls.data.cache import survey
    from bearcls.data.split import Split, split_images
    from bearcls.all import Classifier, Cleaning, Thresholds, check_images, draw_bears, evaluate, image_dls, make_learner, plan_training
    from bearcls.folders import scan_folder
    from bearcls.monitor.log import PredictionLog
    from bearcls.rollout.queue import ReviewQueue
    from bearcls.rollout.refresh import Division
    from bearcls.rollout.stages import Rollout
    from bearcls.monitor.reference import Reference
    from bearcls.sample.campsite import Campsite
    from bearcls.scale.heads import FittedHead
    folder = tmp_path_factory.mktemp('things')
    bears = draw_bears(folder/'bears', 8, 48, faults=False)
    dls = image_dls(bears, size=48, bs=4, cache=False)
    learn = make_learner(dls, plan_training('scratch', size=48))
    seen, files = evaluate(learn, 'all'), image_files(bears)
    classifier = Classifier(make_bundle(folder/'furs'))
    surveyed = survey(files)
    yield types.SimpleNamespace(folder=folder, bears=bears, dls=dls, learn=learn, seen=seen, files=files, classifier=classifier, bundle=classifier.bundle, report=check_images(bears),
        thresholds=Thresholds(), surveyed=surveyed, split=split_images(surveyed), plan=learn.plan, rows=classifier.predict_batch(files[:3], quiet=True), image=Image.open(files[0]).convert('RGB'),
        cleaning=Cleaning(bears), changes=plan_changes(bears, [Change('/'.join(files[0].parts[-2:]), 'delete')]), table=seen.table, model=learn.model, text='resnet18',
        scanned=scan_folder(bears), log=PredictionLog(folder/'log.sqlite'),
        reference=Reference.from_columns(dict(brightness=np.linspace(60, 90, 40), ood_score=np.linspace(0, 1, 40))),
        rollout=Rollout(folder/'rollout', folder/'log.sqlite'), queue=ReviewQueue(PredictionLog(folder/'log.sqlite')), division=Division(bears, [], [], [], {}), site=Campsite(), fitted=FittedHead(torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)), ['a', 'b'], {}))

def wrong_things(t):
    "What people exchange, and what slips in"
    return {'a Learner': t.learn, 'an Evaluation': t.seen, 'DataLoaders': t.dls, 'a Classifier': t.classifier, 'a Bundle': t.bundle, 'an ImageReport': t.report, 'a DataFrame': t.table,
        'a list of paths': t.files[:2], 'a path': t.bears, 'a text': t.text, 'rows': t.rows, 'a Plan': t.plan, 'a Prediction': t.rows[0].prediction, 'an image': t.image, 'None': None, 'a number': 3.5}  # not 3, which Python takes for an open file

def good(t, name, hint):
    "Something right for an argument that is not under test"
    for thing in (t.learn, t.seen, t.dls, t.classifier, t.bundle, t.report, t.table, t.split, t.plan, t.changes, t.cleaning, t.image, t.model, t.thresholds, t.rows, t.surveyed, t.files, t.rows[0].prediction,
                  t.scanned, t.log, t.reference, t.rollout, t.queue, t.division, t.site, t.fitted, {}, 64, .5, 'text', b'bytes', np.zeros((4, 4), np.float32), torch.zeros(4, 4), torch.float32, np.random.default_rng(0), None, t.bears, [], ('text',), print, True):
        if fits(thing, hint): return t.folder/'new'/name if name == 'dest' else thing
    raise LookupError(f'{name}: {hint}')

# ---------------------------------------------------------------- the test

nouns = (Learner, DataLoaders, pd.DataFrame, Image.Image, os.PathLike, Path)
def is_noun(hint):
    "Is it about a thing that people can exchange for another: a class of ours, of fastai's or pandas', a path, or several of these?"
    for part in parts(hint):
        kind = typing.get_origin(part) or part
        if isinstance(kind, type) and (kind in nouns or kind.__module__.startswith('bearcls.')): return True
        if kind not in (type, typing.Literal) and any(is_noun(h) for h in typing.get_args(part) if h is not Ellipsis and not isinstance(h, list)): return True
    return False

class Endless(Exception): "It was not refused, and does not come back"

@contextlib.contextmanager
def at_most(seconds):
    def stop(*args): raise Endless(f'not back after {seconds} seconds')
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

def speaks(error, name):
    "Is it an error for the user?"
    if isinstance(error, (BearclsError, ImportError)): return True
    return isinstance(error, (TypeError, ValueError)) and (f'`{name}`' in str(error) or 'os.PathLike' in str(error))  # the latter is what Python says of every path

def call(function, arguments):
    "The function's result, gone through if it is an iterator or a `with` block"
    found = function(**arguments)
    if isinstance(found, contextlib.AbstractContextManager) and not isinstance(found, Image.Image) and hasattr(found, 'gen'):
        with found: return
    if isinstance(found, Iterator): next(found, None)

def troubles(t, function):
    "Name of the argument, what was given, and the error that is not for the user"
    known, signature = hints(function), inspect.signature(function)
    for name, hint in known.items():
        if signature.parameters[name].kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) or not is_noun(hint): continue
        others = {n: good(t, n, h) for n, h in known.items() if n != name and signature.parameters[n].default is inspect.Parameter.empty
                  and signature.parameters[n].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)}
        for words, thing in wrong_things(t).items():
            if fits(thing, hint): continue
            try:
                with at_most(20): call(function, {**others, name: thing})
            except Exception as error:
                if not speaks(error, name): yield f'{name}: {words} ends in {type(error).__name__}: {str(error)[:100]}'

@pytest.fixture
def apart(tmp_path, monkeypatch):
    matplotlib.use('agg')
    monkeypatch.chdir(tmp_path)
    yield
    matplotlib.pyplot.close('all')

@pytest.mark.parametrize('name', functions)
def test_wrong_things(things, apart, name):
    found = list(troubles(things, functions[name]))
    assert not found, '\n' + '\n'.join(found)

# ---------------------------------------------------------------- in words

def test_what_the_reader_is_told(things):
    from bearcls.folders import count_labels
    from bearcls.all import Classifier, label_issues, make_learner, model_card, rows_html
    t = things
    for call, words in {
        lambda: label_issues(t.learn): '`seen` must be an Evaluation, as `evaluate(learn)` gives; got a Learner',
        lambda: make_learner(t.bears, t.plan): '`dls` must be a DataLoaders, as `image_dls(path)` gives; got the path',
        lambda: make_learner(t.dls, 3): '`plan` must be',
        lambda: Classifier(t.learn): '`bundle` must be a path or a Bundle, as `read_bundle(path)` gives; got a Learner',
        lambda: model_card(str(t.bundle.path), 'furs'): '`bundle` must be a Bundle, as `read_bundle(path)` gives; got \'',
        lambda: rows_html(t.table): '`rows` must be several, each a PredictionRow, as `classifier.predict_batch(files)` gives; got a DataFrame',
        lambda: count_labels(str(t.files[0])): '`files` must be several, each a path; got',
    }.items():
        with pytest.raises(ArgumentError) as error: call()
        assert isinstance(error.value, TypeError) and str(error.value).startswith(words), error.value

def test_a_name_of_an_architecture_is_a_plan(things, monkeypatch, tmp_path):
    "The way fastai's readers write it"
    from bearcls.all import make_learner
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    learn = make_learner(things.dls, 'squeezenet1_1')
    assert learn.plan.arch == 'squeezenet1_1' and 'squeeze' in type(learn.model).__module__ + str(learn.arch)
