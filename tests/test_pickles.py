"fastai pickles of others: hostile ones run nothing, and what prediction needs comes through unchanged"
import os, pickle, struct, subprocess, sys, types, zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
import numpy as np, pytest

pytest.importorskip('fastai', reason='fastai is not installed')
import cloudpickle, torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import error_rate
from fastai.vision.augment import PadMode, RandomResizedCrop, Resize, ResizeMethod, aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fasttransform import Transform
from torch import nn
from torchvision.models import resnet18
from bearcls.book.pickles import PickleError, convert_pickle, load_learner, read_learner, refused_names
from bearcls.book.unpickle import read_pickle
from bearcls.core import BearclsError
from bearcls.folders import image_files
from bearcls.inference.classifier import Classifier
from bearcls.sample.bears import draw_bears

# ---------------------------------------------------------------- hostile files

def wrapped(data, folder, name='evil.pkl', extra=(), compression=zipfile.ZIP_STORED):
    "A pickle in the layout of torch.save"
    file = folder/name
    with zipfile.ZipFile(file, 'w', compression) as z:
        for inner, content in {'evil/data.pkl': data, 'evil/byteorder': b'little', 'evil/version': b'3\n', **dict(extra)}.items(): z.writestr(inner, content)
    return file

class Calls:
    "Pickles as a call"
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call

def text(value): return b'X' + struct.pack('<I', len(value)) + value.encode()
def name_of(module, name): return f'c{module}\n{name}\n'.encode()

def touch(canary): return f'{sys.executable} -c "open({str(canary)!r}, chr(119))"'

def hostile(canary):
    "Bytes by name: each would make the canary, if it ran"
    command, code = touch(canary), f'open({str(canary)!r}, "w").close()'
    def dumped(thing, protocol=2): return pickle.dumps(thing, protocol)
    run = name_of('os', 'system') + b'(' + text(command) + b'tR'
    found = {
        'os.system': dumped(Calls(os.system, command)),
        'eval': dumped(Calls(eval, f'open({str(canary)!r}, "w").close()')),
        'exec': dumped(Calls(exec, code), 4),
        'subprocess': dumped(Calls(subprocess.check_call, [sys.executable, '-c', code])),
        'Popen by NEWOBJ': name_of('subprocess', 'Popen') + b'(' + text(command) + b't\x81.',
        'INST': f'(S{command!r}\nios\nsystem\n.'.encode(),
        'OBJ': b'(' + name_of('os', 'system') + text(command) + b'o.',
        'nested': dumped([Calls(list, Calls(map, eval, [code])), Calls(partial, os.system, command)]),
        'partial called': name_of('functools', 'partial') + b'(' + name_of('os', 'system') + text(command) + b'tR(tR.',
        'getattr chain': name_of('builtins', 'getattr') + b'(' + name_of('cloudpickle.cloudpickle', 'subimport') + b'(' + text('os') + b'tR' + text('system')
            + b'tR(' + text(command) + b'tR.',
        'import': name_of('builtins', 'getattr') + b'(' + name_of('builtins', '__import__') + b'(' + text('os') + b'tR' + text('system') + b'tR(' + text(command) + b'tR.',
        'dotted': b'\x80\x04\x8c\x02os\x8c\x06system\x93' + text(command) + b'\x85R.',
        'torch.load': dumped(Calls(partial(torch.load, weights_only=False), str(canary.parent/'inner.pkl'))),
        'torch.hub': name_of('torch.hub', 'load') + b'(' + text(str(canary.parent)) + text('x') + b'tR.',
        'fastcore.run': name_of('fastcore.xtras', 'run') + b'(' + text(command) + b'tR.',
        'load_learner': name_of('fastai.learner', 'load_learner') + b'(' + text(str(canary.parent/'inner.pkl')) + b'tR.',
        'code object': cloudpickle.dumps(Calls(eval("lambda: __import__('os').system(" + repr(command) + ')'))),
        'setstate': name_of('torch.nn.modules.container', 'Sequential') + b')\x81}(' + text('__setstate__') + run + b'ub.',
        'BUILD on a class': name_of('fastai.learner', 'Learner') + b'(N}(' + text('predict') + run + b'utb.',
        'layer called': name_of('torch.fx.graph_module', 'reduce_graph_module') + b'(}(' + text('_code') + text(f'def forward(self): {code}') + b'u' + text(code) + b'tR.',
        'scripted': name_of('torch.jit._script', 'unpackage_script_module') + b'(' + text('x') + text('y') + b'tR.',
        'append to a model': name_of('torch.nn.modules.container', 'Sequential') + b')\x81' + run + b'a.',
    }
    (canary.parent/'inner.pkl').write_bytes(wrapped(found['os.system'], canary.parent, 'inner.zip').read_bytes())
    return found

run_by_python = {'os.system', 'eval', 'exec', 'subprocess', 'INST', 'OBJ', 'getattr chain', 'import', 'dotted', 'torch.load', 'fastcore.run', 'code object', 'partial called'}
names = list(hostile(Path('/nowhere/canary'))) if False else ['os.system', 'eval', 'exec', 'subprocess', 'Popen by NEWOBJ', 'INST', 'OBJ', 'nested', 'partial called', 'getattr chain', 'import',
    'dotted', 'torch.load', 'torch.hub', 'fastcore.run', 'load_learner', 'code object', 'setstate', 'BUILD on a class', 'layer called', 'scripted', 'append to a model']

@pytest.mark.parametrize('name', names)
def test_hostile_pickles_run_nothing(tmp_path, name):
    canary = tmp_path/'canary'
    data = hostile(canary)[name]
    assert not canary.exists()
    file = wrapped(data, tmp_path)
    for read in (read_pickle, read_learner, load_learner, lambda f: convert_pickle(f, tmp_path/'bundle', own_process=False)):
        try: read(file)
        except BearclsError as e: assert 'evil.pkl' in str(e)
    assert not canary.exists() and not (tmp_path/'bundle').exists()
    with pytest.raises(PickleError): load_learner(file)

@pytest.mark.parametrize('name', ['os.system', 'getattr chain', 'torch.load', 'fastcore.run'])
def test_they_would_have(tmp_path, name):
    "The canary sings where Python reads the same bytes: the test above looks at something"
    canary = tmp_path/'canary'
    data = hostile(canary)[name]
    try: pickle.loads(data)
    except Exception: pass  # some go on after they have done harm
    assert canary.exists()

@pytest.mark.parametrize('name,asked', {'os.system': 'system', 'eval': 'builtins.eval', 'torch.load': 'torch.serialization.load', 'fastcore.run': 'fastcore.xtras.run', 'getattr chain': 'os.system',
    'subprocess': 'subprocess.check_call', 'torch.hub': 'torch.hub.load'}.items())
def test_the_name_is_told(tmp_path, name, asked):
    file = wrapped(hostile(tmp_path/'canary')[name], tmp_path)
    assert any(asked in n for n in refused_names(read_pickle(file).asked))
    with pytest.raises(PickleError, match=r'asks for .*nothing was run.*bearcls convert'): load_learner(file)

def bombs():
    storage = name_of('torch', 'FloatStorage')
    view = name_of('torch._utils', '_rebuild_tensor_v2') + b'(('
    number = b'\x8a\x06' + (10**12).to_bytes(6, 'little')
    stored = text('storage') + storage + text('0') + text('cpu') + b'K\x04tQK\x00'
    return {
        'bytearray': b'\x80\x05\x96' + struct.pack('<Q', 10**13) + b'.',
        'bytes': b'\x80\x04\x8e' + struct.pack('<Q', 10**13) + b'.',
        'tensor of a stride of 0': view + stored + b'(' + number + b't(K\x00t\x89}tR.',
        'tensor beyond its numbers': view + stored + b'(' + number + b't(K\x01t\x89}tR.',
        'negative offset': view + stored[:-2] + b'J\xff\xff\xff\xff' + b'(K\x01t(K\x01t\x89}tR.',
        'array': name_of('numpy.core.multiarray', '_reconstruct') + b'(' + name_of('numpy', 'ndarray') + number + b'\x85' + text('b') + b'tR.',
        'bytes by call': name_of('builtins', 'bytearray') + number + b'\x85R.',
        'range': name_of('builtins', 'list') + name_of('builtins', 'range') + number + b'\x85R\x85R.',
        'nesting': b'('*20_000 + b't'*20_000 + b'.', 'marks': b'('*100_000, 'extension': b'\x82\x01.', 'cut': b'\x80\x02}('}

@pytest.mark.parametrize('name', bombs())
def test_bombs(tmp_path, name):
    "A pickle of a few bytes takes no memory and no time"
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = wrapped(bombs()[name], tmp_path, extra={'evil/data/0': b'\0'*16}.items())
    with pytest.raises(PickleError): load_learner(file)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024 < 300

def test_a_zip_that_unpacks_to_more(tmp_path):
    with pytest.raises(PickleError, match='compressed'): read_pickle(wrapped(b'\0'*10**7, tmp_path, compression=zipfile.ZIP_DEFLATED))

def test_a_legacy_file_that_claims_more(tmp_path):
    head = b''.join(pickle.dumps(v, 2) for v in (0x1950a86a20f9469cfc6c, 1001, dict(little_endian=True)))
    pid = b'(' + text('storage') + name_of('torch', 'FloatStorage') + text('0') + text('cpu') + b'\x8a\x06' + (10**12).to_bytes(6, 'little') + b'NtQ.'
    (tmp_path/'old.pkl').write_bytes(head + pid + pickle.dumps(['0'], 2))
    with pytest.raises(PickleError, match='size of its numbers'): read_pickle(tmp_path/'old.pkl')

def test_changed_bytes(tmp_path, learned):
    "Any change ends in a result or in an error for people"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(learned.file) as z: data, others = z.read('export/data.pkl'), {n: z.read(n) for n in z.namelist() if '/data/' in n}
    for _ in range(60):
        content = bytearray(data)
        for _ in range(rng.integers(1, 4)): content[rng.integers(len(content))] = rng.integers(256)
        file = tmp_path/'changed.pkl'
        with zipfile.ZipFile(file, 'w') as z:
            z.writestr('export/data.pkl', bytes(content))
            for n, c in others.items(): z.writestr(n, c)
        try: load_learner(file)
        except BearclsError: pass

@pytest.mark.skipif(sys.platform == 'win32', reason='audit events have other names there')
def test_the_process_is_locked(tmp_path):
    "Connections, programs, and files elsewhere are refused; the folder may be written"
    (tmp_path/'in').mkdir()
    code = f'''
import os, socket, subprocess
from bearcls.book.unpickle import lock_process
lock_process({str(tmp_path/'in')!r})
open({str(tmp_path/'in'/'fine')!r}, 'w').close()
for attempt in (lambda: socket.create_connection(('127.0.0.1', 9)), lambda: socket.getaddrinfo('localhost', 80), lambda: subprocess.run(['true']), lambda: os.system('true'), lambda: os.fork(),
    lambda: open({str(tmp_path/'out')!r}, 'w'), lambda: os.open({str(tmp_path/'out')!r}, os.O_CREAT | os.O_WRONLY), lambda: os.remove({str(tmp_path/'kept')!r}),
    lambda: os.rename({str(tmp_path/'in'/'fine')!r}, {str(tmp_path/'out')!r}), lambda: os.execv('/bin/true', ['true']), lambda: os.symlink('/etc', {str(tmp_path/'in'/'x')!r})):
    try: attempt()
    except PermissionError as e: print('refused')
'''
    (tmp_path/'kept').write_text('x')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['refused']*11, done.stdout + done.stderr
    assert (tmp_path/'kept').exists() and not (tmp_path/'out').exists()

# ---------------------------------------------------------------- pickles of all sorts

def small_model(n=3):
    torch.manual_seed(n)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n)).eval()

@pytest.fixture(scope='module')
def bears(tmp_path_factory): return draw_bears(tmp_path_factory.mktemp('pickles')/'bears', 6, 160, faults=False)

def make_dls(bears, item_tfms=None, batch_tfms=(), get_y=parent_label, **kwargs):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42), get_y=get_y,
        item_tfms=Resize(64) if item_tfms is None else item_tfms, batch_tfms=batch_tfms, **kwargs)
    return block.dataloaders(bears, bs=4, num_workers=0)

def exported(learn, folder, **kwargs):
    learn.path = folder
    learn.export(**kwargs)
    return folder/'export.pkl'

def said(learn, files):
    with learn.no_bar(), learn.no_logging(): return np.array([learn.predict(f)[2].numpy() for f in files])

@pytest.fixture(scope='module')
def learned(bears, tmp_path_factory):
    learn = Learner(make_dls(bears, batch_tfms=[Normalize.from_stats(*imagenet_stats)]), small_model(), metrics=error_rate)
    return types.SimpleNamespace(learn=learn, file=exported(learn, tmp_path_factory.mktemp('learned')))

def agree(learn, file, bears, tmp_path, **kwargs):
    "Rebuilt Learner and bundle answer as the Learner that wrote the pickle"
    files = image_files(bears)[::4]
    expected = said(learn, files)
    again = load_learner(file)
    assert np.abs(said(again, files) - expected).max() < 1e-4
    done = convert_pickle(file, tmp_path/'bundle', files=files, own_process=False, **kwargs)
    classifier = Classifier(tmp_path/'bundle')
    assert classifier.labels == [str(v) for v in learn.dls.vocab]
    answers = np.array([[row.prediction.probabilities[v] for v in classifier.labels] for row in classifier.predict_batch(files, quiet=True)])
    assert np.abs(answers - expected).max() < .001
    return done

@dataclass
class Folder:
    name: str
    images: list = field(default_factory=list)

def own_label(file): return file.parent.name
def label_by_class(file): return Folder(file.parent.name).name
class OwnLoss(nn.Module):
    def forward(self, x, y): return nn.functional.cross_entropy(x, y)
class OwnCallback(Callback): pass

def focal(learn): learn.loss_func = FocalLossFlat()
def smooth(learn): learn.loss_func = LabelSmoothingCrossEntropyFlat()
def own_loss(learn): learn.loss_func = OwnLoss()
def callback(learn): learn.add_cb(OwnCallback())
def half(learn): learn.to_fp16()
shapes = {'squish': Resize(64, ResizeMethod.Squish), 'pad': Resize((48, 64), ResizeMethod.Pad, pad_mode=PadMode.Zeros), 'reflection': Resize(64, ResizeMethod.Pad), 'random_crop': RandomResizedCrop(64, min_scale=.5)}

@pytest.mark.parametrize('name', shapes)
def test_shapes(bears, tmp_path, name):
    learn = Learner(make_dls(bears, shapes[name], [*aug_transforms(), Normalize.from_stats(*imagenet_stats)]), small_model())
    agree(learn, exported(learn, tmp_path), bears, tmp_path)

@pytest.mark.parametrize('change', [focal, smooth, own_loss, callback, half])
def test_losses_callbacks_half_precision(bears, tmp_path, change):
    learn = Learner(make_dls(bears), small_model())
    change(learn)
    file = exported(learn, tmp_path)
    if change is half: learn.to_fp32()
    if change is own_loss: learn.loss_func = CrossEntropyLossFlat()  # one's own has no activation
    done = agree(learn, file, bears, tmp_path)
    names = [r['name'] for r in done.left_out]
    if change is own_loss: assert any('OwnLoss' in n for n in names)
    if change is callback: assert any('OwnCallback' in n for n in names)

def test_weights_in_half_precision(bears, tmp_path):
    learn = Learner(make_dls(bears), small_model())
    learn.model.half()
    file = exported(learn, tmp_path)
    learn.model.float()
    agree(learn, file, bears, tmp_path)

@pytest.mark.parametrize('label', [own_label, eval('lambda f: f.parent.name')], ids=['function', 'lambda'])
def test_own_label_functions(bears, tmp_path, label):
    learn = Learner(make_dls(bears, get_y=label), small_model())
    learn.path = tmp_path
    if label is own_label: label.__module__ = '__main__'
    try: done = agree(learn, exported(learn, tmp_path), bears, tmp_path)
    finally: own_label.__module__ = __name__
    assert any(('lambda' in r['name']) == (label is not own_label) for r in done.left_out)

def test_a_dataclass_of_the_notebook(bears, tmp_path, monkeypatch):
    "cloudpickle describes a class of `__main__` field by field"
    for thing in (Folder, label_by_class): monkeypatch.setattr(thing, '__module__', '__main__')
    learn = Learner(make_dls(bears, get_y=label_by_class), small_model())
    file = exported(learn, tmp_path)
    assert 'dataclasses.Field' in read_pickle(file).asked
    agree(learn, file, bears, tmp_path)

def test_a_module_that_is_gone(bears, tmp_path, monkeypatch):
    gone = types.ModuleType('gone_labels')
    exec('class Labeller:\n    def __call__(self, f): return f.parent.name\nclass Odd(Exception): pass', gone.__dict__)
    gone.Labeller.__module__ = 'gone_labels'
    monkeypatch.setitem(sys.modules, 'gone_labels', gone)
    learn = Learner(make_dls(bears, get_y=gone.Labeller()), small_model())
    file = exported(learn, tmp_path)
    monkeypatch.delitem(sys.modules, 'gone_labels')
    with pytest.raises((ImportError, AttributeError, UnboundLocalError)): load_learner(file, trust=True)
    names = [r['name'] for r in agree(learn, file, bears, tmp_path).left_out]
    assert [n for n in names if not n.startswith('Transform.__init__.<locals>.')] == ['gone_labels.Labeller']  # else fasttransform's own

def changed(file, dest, replacements, protocol2=True):
    "A pickle with other names in it"
    with zipfile.ZipFile(file) as z, zipfile.ZipFile(dest, 'w') as out:
        for name in z.namelist():
            data = z.read(name)
            if name.endswith('data.pkl'):
                for old, new in replacements.items(): data = data.replace(old, new)
            out.writestr(name, data)
    return dest

def test_names_of_old_versions(bears, tmp_path, learned):
    "As fastai2 of 2020 wrote them, with fastcore's transforms; also without attributes that came later"
    file = changed(learned.file, tmp_path/'old.pkl', {b'cfastai.': b'cfastai2.', b'cfasttransform.transform\n': b'cfastcore.transform\n', b'cplum._function\nFunction': b'cfastcore.dispatch\nTypeDispatch',
        b'ctorch._tensor\n': b'ctorch.tensor\n', b'cnumpy._core.': b'cnumpy.core.'})
    with pytest.raises((ImportError, RuntimeError, AttributeError, UnboundLocalError)): load_learner(file, trust=True)
    agree(learned.learn, file, bears, tmp_path)

def test_paths_of_windows(bears, tmp_path, learned):
    other = (b'PosixPath', b'WindowsPath') if os.name == 'posix' else (b'WindowsPath', b'PosixPath')
    file = changed(learned.file, tmp_path/'other.pkl', dict([other]))
    agree(learned.learn, file, bears, tmp_path)

def test_the_layout_before_torch_1_6(bears, tmp_path, learned):
    learned.learn.dls, before = learned.learn.dls.new_empty(), learned.learn.dls
    torch.save(learned.learn, tmp_path/'legacy.pkl', pickle_module=cloudpickle, pickle_protocol=2, _use_new_zipfile_serialization=False)
    learned.learn.dls = before
    assert read_pickle(tmp_path/'legacy.pkl').layout == 'legacy'
    agree(learned.learn, tmp_path/'legacy.pkl', bears, tmp_path)

@pytest.mark.parametrize('last', ['train', 'valid'])
def test_images_made_smaller_on_the_batch(bears, tmp_path, last):
    "The book's presizing: `Resize(150)`, then `aug_transforms(size=(48, 64))`, in validation too"
    learn = Learner(make_dls(bears, Resize(150), [*aug_transforms(size=(48, 64)), Normalize.from_stats(*imagenet_stats)]), small_model())
    getattr(learn.dls, last).one_batch()  # the transform remembers which side it saw last
    agree(learn, exported(learn, tmp_path), bears, tmp_path)

def test_several_labels_are_refused(bears, tmp_path):
    learn = Learner(make_dls(bears), small_model(), loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(PickleError, match='several labels'): load_learner(exported(learn, tmp_path))

def test_another_working_directory(bears, tmp_path, learned, monkeypatch):
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    (tmp_path/'elsewhere'/'mine.pkl').write_bytes(learned.file.read_bytes())
    convert_pickle('mine.pkl', 'bundle', files=image_files(bears)[:2], own_process=False)
    assert Classifier('bundle').labels == list(learned.learn.dls.vocab)

class OwnLayer(nn.Module):
    def forward(self, x): return x
class Sharpen(Transform): order = 2

def test_what_cannot_be_had_is_named(bears, tmp_path, learned):
    learn = Learner(make_dls(bears), nn.Sequential(OwnLayer(), small_model()))
    with pytest.raises(PickleError, match='OwnLayer, which is not among the layers'): load_learner(exported(learn, tmp_path))
    learn = Learner(make_dls(bears, [Resize(64), Sharpen()]), small_model())
    file = exported(learn, tmp_path)
    with pytest.raises(PickleError, match='Sharpen, which bearcls cannot repeat'): load_learner(file)
    assert any('Sharpen' in r['name'] and 'may be others' in r['what'] for r in read_learner(file, leave_out=True).left_out)
    with pytest.raises(PickleError, match='no Learner'): load_learner(wrapped(pickle.dumps({'a': 1}), tmp_path))
    with pytest.raises(PickleError, match='is no file'): convert_pickle(tmp_path/'none.pkl', tmp_path/'b')

def test_hooks_are_taken_off(bears, tmp_path):
    learn = Learner(make_dls(bears), small_model())
    learn.model[0].register_forward_hook(lambda *args: print('this ran'))
    found = read_learner(exported(learn, tmp_path))
    assert 'hooks of this layer' in str(found.left_out) and not found.model[0]._forward_hooks

def test_convert_in_its_own_process(bears, tmp_path):
    "The chapter's model, end to end"
    learn = vision_learner(make_dls(bears, RandomResizedCrop(64, min_scale=.5), aug_transforms(), get_y=eval('lambda f: f.parent.name')), resnet18, pretrained=False).to_fp16()
    file = exported(learn, tmp_path)
    done = convert_pickle(file, tmp_path/'bundle.zip')
    assert done.largest_difference < .001 and done.images_compared >= 12 and done.arch == 'resnet18'
    files, classifier = image_files(bears)[::6], Classifier(tmp_path/'bundle.zip')
    answers = np.array([[classifier.predict(f).probabilities[v] for v in learn.dls.vocab] for f in files])
    assert np.abs(answers - said(learn.to_fp32(), files)).max() < .001
    assert sorted(f.name for f in tmp_path.iterdir()) == ['bundle.zip', 'export.pkl']

def test_a_hostile_file_in_its_own_process(tmp_path):
    canary = tmp_path/'canary'
    file = wrapped(hostile(canary)['os.system'], tmp_path)
    with pytest.raises(PickleError, match=r'evil\.pkl'): convert_pickle(file, tmp_path/'bundle')
    assert not canary.exists() and not (tmp_path/'bundle').exists()
