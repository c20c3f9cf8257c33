"Opened images and features that are kept: by several programs at once, killed, damaged; and fast training on what others have made"
import os, pickle, signal, sqlite3, subprocess, sys, threading, time
from pathlib import Path
import numpy as np
import pytest
import torch
import pandas as pd
from fastai.data.all import CategoryBlock, ColReader, DataBlock, MultiCategoryBlock, RandomSplitter, get_image_files, parent_label
from fastai.learner import load_learner
from fastai.interpret import ClassificationInterpretation
from fastai.layers import Flatten
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from fastai.metrics import error_rate
from fastai.torch_core import set_seed
from fastai.vision.all import ImageBlock, ImageDataLoaders, Resize, aug_transforms, vision_learner
from PIL import Image
from torchvision.models import resnet18, squeezenet1_1
from bearcls.train.arch import TrainError
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.export.convert import export_bundle
from bearcls.train.fast import feature_kind
from bearcls.train.precision import fast_dtype
from bearcls.inference.classifier import Classifier
from bearcls.data.cache import OpenImage, Store, survey
from bearcls.sample.bears import draw_bears

@pytest.fixture(scope='module')
def path(tmp_path_factory): return draw_bears(tmp_path_factory.mktemp('fast')/'bears', n_per_label=14, seed=5, faults=False)

def learner(path, arch=resnet18, seed=1, **settings):
    set_seed(seed)
    return vision_learner(image_dls(path, size=64, recipe='squish', seed=1, **settings), arch, pretrained=False, metrics=error_rate)

def weights(learn): return learn.model[1][-1].weight.detach()

# --- the store

def child(code, *arguments, **how):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)

writer = '''
import sys
from bearcls.data.cache import Store
store, name, n = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print('begun', flush=True)
for i in range(n): store.put('kind', {f'{name} {i} {k}': bytes([i % 256])*20_000 for k in range(8)})
'''

def test_two_programs_write_at_once(tmp_path):
    both = [child(writer, tmp_path/'s.sqlite', name, 40) for name in 'ab']
    for p in both: assert p.wait(60) == 0, p.stderr.read()
    found = Store(tmp_path/'s.sqlite').get('kind', [f'{name} {i} {k}' for name in 'ab' for i in range(40) for k in range(8)])
    assert len(found) == 640 and found['b 39 7'] == bytes([39])*20_000

def test_threads_share_a_store(tmp_path):
    store, errors = Store(tmp_path/'s.sqlite'), []
    def work(name):
        for i in range(30):
            store.put(f'kind {name}', {str(i): name.encode()*1000})
            if store.get(f'kind {name}', [str(i)]) != {str(i): name.encode()*1000}: errors.append((name, i))
    threads = [threading.Thread(target=work, args=(name,)) for name in 'abcd']
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors and sorted(kind for kind, _ in store.kinds()) == ['kind a', 'kind b', 'kind c', 'kind d']

@pytest.mark.parametrize('wait', [0, .02, .1, .3])
def test_a_writer_that_is_killed_leaves_whole_values(tmp_path, wait):
    p = child(writer, tmp_path/'s.sqlite', 'a', 100_000)
    assert p.stdout.readline() == 'begun\n'
    time.sleep(wait)
    p.send_signal(signal.SIGKILL)
    p.wait()
    store = Store(tmp_path/'s.sqlite')
    rows = store.get('kind', [f'a {i} {k}' for i in range(2000) for k in range(8)])
    assert all(len(v) == 20_000 and len(set(v)) == 1 for v in rows.values()) and len(rows) % 8 == 0
    store.put('kind', {'after': b'x'})
    assert store.get('kind', ['after']) == {'after': b'x'}
    assert dict(store.kinds())['kind'] == len(rows)*20_000 + 1

@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(b''), lambda f: f.write_bytes(f.read_bytes()[:5000]), lambda f: f.write_bytes(b'x'*9999),
    lambda f: f.write_bytes(f.read_bytes()[:16384*3] + b'\xff'*60_000 + f.read_bytes()[16384*3 + 60_000:])], ids=['empty', 'cut', 'junk', 'hole'])
def test_a_damaged_store_costs_only_time(path, tmp_path, damage):
    "The training ends as without a cache"
    plain = weights(learner(path, cache=False).fit_fast())
    learner(path, cache=tmp_path).fit_fast()
    file = next(tmp_path.glob('*.sqlite'))
    damage(file)
    assert torch.equal(weights(learner(path, cache=tmp_path).fit_fast()), plain)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written(path, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match='is not used'): learner(path, cache=tmp_path/'cache').fit_fast()

def test_a_store_in_the_place_of_a_folder(path, tmp_path):
    (tmp_path/'cache').write_text('not a folder')
    with pytest.warns(UserWarning, match='is not used'): learn = learner(path, cache=tmp_path/'cache').fit_fast()
    assert torch.equal(weights(learn), weights(learner(path, cache=False).fit_fast()))
    assert (tmp_path/'cache').read_text() == 'not a folder'

def test_another_database_is_left_alone(tmp_path):
    "A file that is SQLite, and somebody else's"
    db = sqlite3.connect(tmp_path/'images.sqlite')
    db.execute('CREATE TABLE entries (mine TEXT)')
    db.execute("INSERT INTO entries VALUES ('precious')")
    db.commit()
    store = Store(tmp_path/'images.sqlite')
    with pytest.warns(UserWarning, match='is not used'): store.put('kind', {'a': b'x'})
    assert db.execute('SELECT mine FROM entries').fetchall() == [('precious',)]

# --- opened images

def test_the_store_changes_no_pixel(path, tmp_path):
    files = image_files(path)[:12]
    for squish in (None, (48, 48)):
        opener = OpenImage(96, squish, store=Store(tmp_path/'s.sqlite'))
        survey(files, opener)
        opener = OpenImage(96, squish, store=opener.store)
        survey(files, opener)
        for f in files: assert np.array_equal(opener(f), OpenImage(96, squish)(f))
        assert not opener.kept

def test_a_image_that_was_replaced_is_opened_anew(tmp_path):
    file = tmp_path/'a.png'
    Image.new('RGB', (50, 50), 'brown').save(file)
    opener = OpenImage(store=Store(tmp_path/'s.sqlite'), keep_mb=10)
    survey([file], opener)
    Image.new('RGB', (50, 50), 'white').save(file)
    os.utime(file, ns=(1, 1))
    assert opener(file).getpixel((0, 0)) == (255, 255, 255)

def test_survey_of_what_is_no_image(tmp_path):
    (tmp_path/'page.jpg').write_text('<html>')
    (tmp_path/'empty.png').write_bytes(b'')
    found = survey([tmp_path/'page.jpg', tmp_path/'empty.png', tmp_path/'gone.jpg'], OpenImage(32, store=Store(tmp_path/'s.sqlite')))
    assert [bool(s.problem) for s in found] == [True]*3 and all(s.file.name in s.problem for s in found)
    assert found[2].digest == '' and found[0].digest

# --- fast training

def test_fit_fast_on_the_books_dataloaders(path):
    "Made by hand, with fastai's own way of opening: trained as well, and nothing is kept"
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42), get_y=parent_label,
        item_tfms=Resize(64), batch_tfms=aug_transforms())
    set_seed(1)
    learn = vision_learner(block.dataloaders(path), squeezenet1_1, pretrained=False, metrics=error_rate)
    assert feature_kind(learn, torch.float32) is None
    learn.fit_fast(n_views=3)
    assert learn.fast.views == ['plain', 'mirrored', 'random 1'] and learn.fast.n_kept == 0
    with learn.no_bar(), learn.no_logging(): assert learn.validate()[0] == pytest.approx(learn.fast.valid_loss, rel=.1)

@pytest.mark.parametrize('head', ['linear', 'concat'])
def test_a_fast_learner_travels(path, tmp_path, head):
    "Exported as a bundle and as a pickle, it answers alike"
    learn = learner(path).fit_fast(head=head, epochs=3)
    file = learn.dls.valid_ds.items[0]
    bundle = Classifier(export_bundle(learn, tmp_path/'bundle'))
    with learn.no_bar(): label, _, p = learn.predict(file)
    cooled = torch.softmax(p.log()/bundle.bundle.temperature, 0)
    assert bundle.predict(file).probabilities[label] == pytest.approx(float(cooled.max()), abs=2e-3)
    learn.export(tmp_path/'export.pkl')
    assert (tmp_path/'export.pkl').stat().st_size < 60e6
    again = load_learner(tmp_path/'export.pkl')
    with again.no_bar(): assert again.predict(file)[0] == label

def test_features_do_not_outlive_what_they_depend_on(path, tmp_path):
    "Another size, another body or another way to a square is looked at again"
    learner(path, cache=tmp_path).fit_fast()
    assert learner(path, cache=tmp_path).fit_fast().fast.n_kept == 42
    assert learner(path, cache=tmp_path, seed=2).fit_fast().fast.n_kept == 0
    set_seed(1)
    assert vision_learner(image_dls(path, size=80, recipe='squish', seed=1, cache=tmp_path), resnet18, pretrained=False).fit_fast().fast.n_kept == 0
    set_seed(1)
    assert vision_learner(image_dls(path, size=64, recipe='crop', seed=1, cache=tmp_path), resnet18, pretrained=False).fit_fast().fast.n_kept == 0

def test_class_weights_count(path):
    "The Learner's own loss is used: a label that counts a thousand times is what most images are taken for"
    learn = learner(path)
    learn.loss_func = CrossEntropyLossFlat(weight=torch.tensor([1000., 1., 1.]))
    learn.fit_fast(weight_decay=1.)
    with learn.no_bar(), learn.no_logging(): p, _ = learn.get_preds(ds_idx=0)
    assert (p.argmax(1) == 0).float().mean() > .6  # a third are

def table(path): return pd.DataFrame([dict(name=f.relative_to(path).as_posix(), label=f.parent.name, labels=f'{f.parent.name} bear') for f in image_files(path)])

def test_fit_fast_on_images_in_a_table(path):
    "What fastai makes of a DataFrame or a csv file trains as the folder does"
    frame = table(path)
    dls = ImageDataLoaders.from_df(frame, path, valid_pct=.3, seed=1, item_tfms=Resize(64), num_workers=0)
    held_back = {path/name for name in dls.valid_ds.items['name']}
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda p: [p/name for name in frame['name']], get_y=parent_label, item_tfms=Resize(64),
        splitter=lambda files: ([i for i, f in enumerate(files) if f not in held_back], [files.index(path/name) for name in dls.valid_ds.items['name']]))
    losses = []
    for d in (dls, block.dataloaders(path, num_workers=0)):
        set_seed(1)
        losses.append(vision_learner(d, squeezenet1_1, pretrained=False, metrics=error_rate).fit_fast(n_views=1, dtype=torch.float32).fast.valid_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

def test_several_labels_are_refused_in_words(path):
    dls = ImageDataLoaders.from_df(table(path), path, label_col='labels', label_delim=' ', item_tfms=Resize(32), num_workers=0)
    with pytest.raises(TrainError, match='must have one label'): vision_learner(dls, squeezenet1_1, pretrained=False).fit_fast()

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(weight=torch.tensor([9., 1., .2])), FocalLossFlat(), torch.nn.functional.cross_entropy], ids=['cross entropy', 'focal', 'function'])
def test_what_was_measured_is_what_validates(path, loss):
    "The body looks at validation images as the Learner will, whatever precision it trains in; and the loss is the Learner's own"
    learn = learner(path)
    learn.loss_func = loss
    learn.fit_fast(dtype=torch.bfloat16)
    with learn.no_bar(), learn.no_logging(): found, error = learn.validate()
    assert learn.fast.valid_loss == pytest.approx(found, rel=1e-3) and learn.fast.error_rate == pytest.approx(error)

def test_drawn_more_often_counts_more_with_a_plain_function(path):
    "F.cross_entropy has no `reduction` to set, and still gives one number for each image"
    shares = []
    for weighted in (False, True):
        learn = learner(path)
        learn.loss_func = torch.nn.functional.cross_entropy
        if weighted: learn.dls.train.wgts = np.array([1000. if y == 0 else 1. for y in learn.dls.train_ds.tls[1]])
        learn.fit_fast(weight_decay=1.)
        with learn.no_bar(), learn.no_logging(): p, _ = learn.get_preds(ds_idx=0)
        shares.append((p.argmax(1) == 0).float().mean())
    assert shares[1] > shares[0] + .2

def own_loss(logits, labels): return torch.nn.functional.cross_entropy(logits, labels)
class OwnLoss(torch.nn.Module):
    def forward(self, logits, labels): return own_loss(logits, labels)

@pytest.mark.parametrize('loss', [own_loss, OwnLoss()], ids=['function', 'module'])
def test_a_loss_of_ones_own(path, loss):
    "Without a `reduction` it trains as well; it cannot weigh images, which is said"
    learn = learner(path)
    learn.loss_func = loss
    learn.fit_fast()
    plain = learner(path).fit_fast()
    assert torch.allclose(weights(learn), weights(plain), atol=1e-4) and learn.fast.valid_loss == pytest.approx(plain.fast.valid_loss, rel=1e-3)
    learn.dls.train.wgts = np.ones(len(learn.dls.train_ds))
    with pytest.raises(TrainError, match='the loss has no `reduction`'): learn.fit_fast()

def test_weights_before_the_pool_are_part_of_the_features(path, tmp_path):
    "A head of one's own may have a layer that learns before its Flatten; another such layer sees other features"
    def trained(seed):
        learn = learner(path, cache=tmp_path)
        head = torch.nn.Sequential(torch.nn.Conv2d(512, 16, 1), torch.nn.AdaptiveAvgPool2d(1), Flatten(), torch.nn.Linear(16, 3))
        torch.manual_seed(seed)
        torch.nn.init.normal_(head[0].weight)
        learn.model[1] = head
        return learn.fit_fast()
    assert trained(1).fast.n_kept == 0 and trained(1).fast.n_kept == 42
    assert trained(2).fast.n_kept == 0

def test_what_a_reader_of_the_book_does_next(path, tmp_path):
    learn = learner(path)
    learn.path = tmp_path
    learn.fit_fast()
    assert not any(m.training for m in learn.model.modules())  # as any training leaves it
    with learn.no_bar(), learn.no_logging():
        expected = learn.get_preds()[0]
        matrix = ClassificationInterpretation.from_learner(learn).confusion_matrix()
        assert matrix.sum() - matrix.trace() == round(learn.fast.error_rate*len(learn.dls.valid_ds))
        assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(learn.dls.valid_ds.items))[0], expected, atol=1e-5)
        assert 'Total params' in str(learn.summary())
        learn.save('model')
        with torch.no_grad(): learn.model[1][-1].weight.zero_()
        learn.load('model')
        assert torch.equal(learn.get_preds()[0], expected)
        assert 0 < learn.lr_find(num_it=6, show_plot=False).valley < 10
        learn.fine_tune(1)
        assert len(learn.recorder.values) == 1

def test_fast_weights_repeat_in_a_fresh_process(path, tmp_path):
    code = '''
import sys, torch
from bearcls.data.loaders import image_dls
from fastai.vision.all import *
from torchvision.models import resnet18
import bearcls.train.fast
set_seed(1)
learn = vision_learner(image_dls(sys.argv[1], size=64, recipe='squish', seed=1, cache=False), resnet18, pretrained=False)
learn.fit_fast()
torch.save(learn.model[1][-1].weight.detach(), sys.argv[2])
'''
    p = child(code, path, tmp_path/'w.pt')
    assert p.wait(120) == 0, p.stderr.read()
    assert torch.equal(torch.load(tmp_path/'w.pt'), weights(learner(path).fit_fast()))

def test_photographs(shared, monkeypatch, tmp_path):
    "Ninety photographs of bears, a real body: what the route is for"
    monkeypatch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
    for label in ('black', 'grizzly', 'teddy'):
        (tmp_path/'bears'/label).mkdir(parents=True)
        for f in sorted((shared/'data'/'bears'/label).iterdir())[:30]: (tmp_path/'bears'/label/f.name).write_bytes(f.read_bytes())
    learn = vision_learner(image_dls(tmp_path/'bears', recipe='squish', valid_pct=.3), squeezenet1_1, metrics=error_rate).fit_fast()
    with learn.no_bar(), learn.no_logging(): loss, error = learn.validate()
    assert error < .15 and loss < .5
    assert learn.fast.dtype == str(fast_dtype()).removeprefix('torch.')
    assert len(pickle.dumps(learn.dls.valid_ds.tfms[0].fs[0])) < 1e6  # the images stay behind

# --- what was seen is known

from bearcls.interpret.evaluate import evaluate
from bearcls.train.fast import image_features, known_answers

def watched(learn, split='all', **settings):
    "An evaluation, and how many images the body saw for it"
    n = []
    hook = learn.model[0].register_forward_pre_hook(lambda layer, args: n.append(len(args[0])))
    try: return evaluate(learn, split, **settings), sum(n)
    finally: hook.remove()

def by_hand(path):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42), get_y=parent_label, item_tfms=Resize(64),
        batch_tfms=aug_transforms())
    set_seed(1)
    return vision_learner(block.dataloaders(path, num_workers=0), resnet18, pretrained=False, metrics=error_rate)

def asked_anew(learn, split='all'):
    "The same, from the pixels"
    fast = learn.__dict__.pop('fast')
    try: return evaluate(learn, split)
    finally: learn.fast = fast

@pytest.mark.parametrize('how', ['store', 'memory', 'by hand', 'two views', 'concat', 'unusable store'])
def test_evaluation_after_fit_fast_looks_at_nothing(path, tmp_path, how):
    if how == 'unusable store': (tmp_path/'cache').write_text('a file')
    cache = dict(memory=False).get(how, tmp_path/'cache')
    if how == 'by hand': learn = by_hand(path)
    elif how == 'unusable store':
        with pytest.warns(UserWarning, match='is not used'): learn = learner(path, cache=cache)
    else: learn = learner(path, cache=cache)
    learn.fit_fast(n_views=3 if how == 'by hand' else 2 if how == 'two views' else 1, head='concat' if how == 'concat' else 'linear', epochs=3)
    for split in ('all', 'valid', 'train'):
        seen, n = watched(learn, split)
        expected = asked_anew(learn, split)
        assert n == 0
        assert seen.table.file.equals(expected.table.file) and seen.table.actual.equals(expected.table.actual)
        rounding = dict(float32=(5e-5, 1e-3)).get(learn.fast.dtype, (.03, .1))  # in batches of other sizes; bfloat16 has 8 binary digits
        assert np.abs(seen.probabilities - expected.probabilities).max() < rounding[0]
        assert seen.features.shape == expected.features.shape and np.abs(seen.features - expected.features).max() < rounding[1]*np.abs(expected.features).max()

@pytest.mark.parametrize('cache', [True, False])
def test_what_has_changed_is_looked_at(path, tmp_path, cache):
    "One image replaced and one gone; then the body, the DataLoaders, a callback"
    folder = tmp_path/'bears'
    __import__('shutil').copytree(path, folder)
    learn = learner(folder, cache=tmp_path/'cache' if cache else False).fit_fast()
    changed, gone = learn.dls.train_ds.items[0], learn.dls.train_ds.items[1]
    Image.open(learn.dls.train_ds.items[-1]).save(changed)
    gone.unlink()
    seen, n = watched(learn)
    assert n == (0 if cache else 1) or n == 1  # with a store the bytes may be known from another image
    row = seen.table.file.tolist().index(str(changed))
    with learn.no_bar(): assert np.allclose(seen.probabilities[row], learn.predict(changed)[2].numpy(), atol=1e-4)
    assert seen.failed.file.tolist() == [str(gone)] and len(seen) == 41
    class Turns(__import__('fastai').callback.core.Callback):
        def before_batch(self): self.learn.xb = tuple(x.flip(-1) for x in self.xb)
    learn.add_cb(Turns())
    assert watched(learn)[1] == 41
    learn.remove_cb(Turns)
    with torch.no_grad(): next(learn.model[0].parameters()).mul_(1.5)
    assert watched(learn)[1] == 41

def test_other_dataloaders_are_looked_at(path, tmp_path):
    for cache in (tmp_path, False):
        learn = learner(path, cache=cache).fit_fast()
        learn.dls = image_dls(path, size=80, recipe='squish', seed=1, cache=cache)
        assert watched(learn)[1] == 42

def test_sixteen_bits_are_known_too(path, tmp_path):
    "Training images as they were seen, within that precision; validation images in 32 bits"
    learn = learner(path, cache=tmp_path).fit_fast(dtype=torch.bfloat16)
    seen, n = watched(learn)
    expected = asked_anew(learn)
    assert n == 0
    assert np.abs(seen.only('valid').probabilities - expected.only('valid').probabilities).max() < 1e-5
    assert np.abs(seen.probabilities - expected.probabilities).max() < .05

def test_features_in_memory_are_not_exported(path, tmp_path):
    learn = learner(path, cache=False).fit_fast()
    learn.export(tmp_path/'a.pkl')
    again = load_learner(tmp_path/'a.pkl')
    assert known_answers(again, learn.dls.valid_ds.items) is None
