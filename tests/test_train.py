"Training that is killed, repeated, refused, uneven and silent"
import copy, json, os, pickle, random, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
import pandas as pd
from dataclasses import replace
from PIL import Image, ImageDraw, ImageFont
from torchvision.models import squeezenet1_1
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.all import CategoryBlock, DataBlock, IndexSplitter, MultiCategoryBlock, RegressionBlock, get_image_files, parent_label
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy, error_rate
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from fastai.vision.all import ImageBlock, ImageDataLoaders, Resize
from fastai.vision.learner import create_vision_model
from bearcls.data.loaders import image_dls
from bearcls.sample.figures import draw_bear
import bearcls.train.arch as arch_module
from bearcls.train.arch import TrainError, arch_stats, find_weights, fixed_size, get_arch, load_weights, read_weights, xresnet18_thin
from bearcls.train.learner import make_learner, plan_training, train
from bearcls.train.precision import Autocast
from bearcls.train.log import log_training, plot_training, suggest_lr, training_table
from bearcls.train.phases import Checkpoint, Phase, run_phases

def folder_of(path, **counts):
    "An image folder with so many drawn images of each label"
    for label, n in counts.items():
        (path/label).mkdir(parents=True)
        for i in range(n): draw_bear(label, seed=i, side=64).save(path/label/f'{i}.png')
    return path

@pytest.fixture(scope='module')
def bears(tmp_path_factory): return folder_of(tmp_path_factory.mktemp('data')/'bears', black=12, grizzly=20, teddy=20)

@pytest.fixture(scope='module')
def squeezenet(tmp_path_factory):
    "Weights in torchvision's layout, of a network that has learnt nothing"
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp('weights')/'squeezenet.pth'
    torch.save(get_arch('squeezenet1_1')().state_dict(), file)
    return file

def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
def weights_of(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def figures(learn): return training_table(learn).drop(columns='seconds').to_numpy().tolist()

# ---- killed and resumed

child = '''
import json, os, signal, sys
import torch
import bearcls.train.phases as phases
from fastai.learner import Learner
from bearcls.train.learner import train

moment, folder, data, weights, options = sys.argv[1], *map(json.loads, sys.argv[2:])
seen = dict(train=0, valid=0, saved=0)
def die(): os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))

def one_batch(self, _plain=Learner._do_one_batch):
    seen['train' if self.training else 'valid'] += 1
    if (moment, seen['train']) == ('in an epoch', 6) and self.training: die()
    if (moment, seen['valid']) == ('in validation', 2): die()
    _plain(self)

def save(state, file, _plain=torch.save):
    seen['saved'] += 1
    if moment == 'while writing' and seen['saved'] == 3:
        file.write(b'PK' + bytes(5000))
        file.flush()
        die()
    _plain(state, file)

def unfreeze(self, _plain=Learner.unfreeze):
    if moment == 'between the phases': die()
    _plain(self)

def write(self, is_done=False, _plain=phases.Checkpoint.write):
    if is_done and moment == 'after the last epoch': die()
    _plain(self, is_done)

Learner._do_one_batch, Learner.unfreeze, torch.save, phases.Checkpoint.write = one_batch, unfreeze, save, write
train(data, checkpoint=folder, weights=weights, **options)
print('survived')
'''
options = dict(route='fine_tune', arch='squeezenet1_1', epochs=2, size=48, bs=12, imbalance='balanced_sampling', early_stop=2, quiet=True)

@pytest.fixture(scope='module')
def uninterrupted(bears, squeezenet): return train(bears, weights=squeezenet, **options)

@pytest.mark.parametrize('moment', ['in an epoch', 'in validation', 'while writing', 'between the phases', 'after the last epoch'])
def test_killed_and_resumed(moment, bears, squeezenet, uninterrupted, tmp_path):
    folder = tmp_path/'checkpoint'
    arguments = [json.dumps(a) for a in (str(folder), str(bears), str(squeezenet), options)]
    done = subprocess.run([sys.executable, '-c', child, moment, *arguments], capture_output=True, text=True, env={**os.environ, 'TQDM_DISABLE': '1'})
    assert done.returncode != 0 and 'survived' not in done.stdout and 'Traceback' not in done.stderr, done.stderr
    resumed = train(bears, weights=squeezenet, checkpoint=folder, **options)
    assert same(weights_of(resumed), weights_of(uninterrupted))
    assert figures(resumed) == figures(uninterrupted)
    assert [f.name for f in folder.iterdir()] == ['checkpoint.pth']

def test_checkpoints_change_nothing(bears, squeezenet, uninterrupted, tmp_path):
    assert same(weights_of(train(bears, weights=squeezenet, checkpoint=tmp_path, **options)), weights_of(uninterrupted))

scratch = dict(route='scratch', epochs=2, size=32, bs=12, quiet=True)

@pytest.fixture(scope='module')
def finished(bears, tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    return folder, train(bears, checkpoint=folder, **scratch)

def test_finished_is_reused(bears, finished, monkeypatch):
    folder, learn = finished
    monkeypatch.setattr(Learner, 'fit', lambda *args, **kwargs: pytest.fail('it trained again'))
    again = train(bears, checkpoint=folder, **scratch)
    assert same(weights_of(again), weights_of(learn)) and figures(again) == figures(learn)

@pytest.mark.parametrize('change,word', [(dict(seed=1), 'seed was 42 and is 1'), (dict(epochs=3), 'phases was'), (dict(bs=10), 'batch size was 12 and is 10'),
    (dict(imbalance='class_weights'), 'imbalance was None'), (dict(size=40), 'size was 32 and is 40'), (dict(early_stop=5), 'early_stop was None')])
def test_other_arguments_are_refused(change, word, bears, finished):
    folder, before = finished[0], (finished[0]/'checkpoint.pth').read_bytes()
    with pytest.raises(TrainError, match='is of another training') as e: train(bears, checkpoint=folder, **{**scratch, **change})
    assert word in str(e.value) and (folder/'checkpoint.pth').read_bytes() == before

def test_other_images_are_refused(finished, tmp_path):
    other = folder_of(tmp_path/'bears', black=12, grizzly=20, teddy=20)
    (other/'teddy'/'19.png').unlink()
    with pytest.raises(TrainError, match='images was'): train(other, checkpoint=finished[0], **scratch)

def test_a_moved_folder_is_the_same(finished, tmp_path):
    moved = folder_of(tmp_path/'elsewhere', black=12, grizzly=20, teddy=20)
    assert same(weights_of(train(moved, checkpoint=finished[0], **scratch)), weights_of(finished[1]))

def test_other_software_is_refused(finished, tmp_path):
    state = torch.load(finished[0]/'checkpoint.pth', weights_only=True)
    state['metadata']['software'] = 'bearcls 0.0.1'
    torch.save(state, tmp_path/'checkpoint.pth')
    saver = Checkpoint(tmp_path, torch.load(finished[0]/'checkpoint.pth', weights_only=True)['metadata'])
    with pytest.raises(TrainError, match="software was 'bearcls 0.0.1'"): saver.read()

class Rogue:
    def __reduce__(self): return (os.mkdir, ('rogue was here',))

def test_hostile_and_broken_files_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = (finished[0]/'checkpoint.pth').read_bytes()
    file = tmp_path/'checkpoint.pth'
    for content in (whole[:len(whole)//2], b'', b'not a checkpoint', pickle.dumps(Rogue())):
        file.write_bytes(content)
        with pytest.raises(TrainError, match='cannot be read as a checkpoint'): Checkpoint(tmp_path, {}).read()
        assert file.read_bytes() == content
    torch.save(dict(model=Rogue()), file)
    with pytest.raises(TrainError, match='cannot be read'): Checkpoint(tmp_path, {}).read()
    torch.save(dict(model=torch.zeros(2)), file)
    with pytest.raises(TrainError, match='no checkpoint of bearcls'): Checkpoint(tmp_path, {}).read()
    assert not Path('rogue was here').exists()
    with pytest.raises(TrainError, match='must be a folder'): Checkpoint(file, {})

class Cut(Callback):
    "Dies in the second epoch"
    is_back = False
    def before_batch(self):
        if self.training and self.epoch == 1 and not self.is_back: raise InterruptedError('cut')

def cut_learner(bears, is_back=False, cbs=(), num_workers=0, recipe='squish', **settings):
    set_seed(1, reproducible=True)
    learn = Learner(image_dls(bears, size=32, bs=12, num_workers=num_workers, recipe=recipe), xresnet18_thin(3), metrics=error_rate, cbs=[Cut(), *cbs], **settings)
    learn.cut.is_back = is_back
    return learn

@pytest.mark.parametrize('change,words', [(dict(cbs=[MixUp()]), 'callbacks was'), (dict(wd=.3), 'wd was None and is 0.3'), (dict(moms=(.5, .4, .5)), 'moms was'),
    (dict(loss_func=LabelSmoothingCrossEntropyFlat()), 'loss was'), (dict(loss_func=CrossEntropyLossFlat(weight=torch.tensor([9., 1., 1.]))), 'loss was'),
    (dict(opt_func=SGD), 'optimizer was'), (dict(num_workers=1), 'loading processes was 0 and is 1')], ids=lambda v: str(v)[:24])
def test_another_learner_does_not_go_on(change, words, bears, tmp_path):
    with pytest.raises(InterruptedError): run_phases(cut_learner(bears), [Phase(2, 1e-2)], checkpoint=tmp_path)
    with pytest.raises(TrainError, match='is of another training') as e: run_phases(cut_learner(bears, True, **change), [Phase(2, 1e-2)], checkpoint=tmp_path)
    assert words in str(e.value)

def test_other_metrics_go_on(bears, tmp_path):
    "They only watch"
    with pytest.raises(InterruptedError): run_phases(cut_learner(bears), [Phase(2, 1e-2)], checkpoint=tmp_path)
    learn = cut_learner(bears, True)
    learn.metrics = [error_rate, accuracy]
    run_phases(learn, [Phase(2, 1e-2)], checkpoint=tmp_path)
    assert same(weights_of(learn), weights_of(run_phases(cut_learner(bears, True), [Phase(2, 1e-2)])))

def test_resumed_with_processes_that_load(bears, tmp_path):
    "They draw the random crops; with as many of them the weights are those of an uninterrupted run"
    how = dict(num_workers=2, recipe='random_crop')
    with pytest.raises(InterruptedError): run_phases(cut_learner(bears, **how), [Phase(2, 1e-2)], checkpoint=tmp_path)
    resumed = run_phases(cut_learner(bears, True, **how), [Phase(2, 1e-2)], checkpoint=tmp_path)
    assert same(weights_of(resumed), weights_of(run_phases(cut_learner(bears, True, **how), [Phase(2, 1e-2)])))

def test_a_folder_below_home_and_a_program_that_moves(bears, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    assert Checkpoint('~/run', {}).file == tmp_path/'home'/'run'/'checkpoint.pth'
    saver = Checkpoint('run', {})
    monkeypatch.chdir('/')
    assert saver.file == tmp_path/'run'/'checkpoint.pth'

def test_a_folder_that_cannot_be_made(bears, tmp_path):
    (tmp_path/'file').write_text('no folder')
    with pytest.raises(TrainError, match='cannot be written'): train(bears, checkpoint=tmp_path/'file'/'run', **scratch)

def test_a_full_disk(bears, tmp_path):
    "Files may grow to 4 MB, less than a checkpoint has; the one before stays"
    resource = pytest.importorskip('resource')
    code = f'''
import resource, signal
from bearcls.train.learner import train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
train({str(bears)!r}, checkpoint={str(tmp_path/'run')!r}, cache=False, **{scratch!r})
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'TQDM_DISABLE': '1'})
    assert 'TrainError' in done.stderr and 'cannot be written' in done.stderr and 'make room' in done.stderr
    assert [f.name for f in (tmp_path/'run').iterdir()] == ['checkpoint.pth']  # that of the first epoch, without the optimizer's averages

def test_two_trainings_in_one_folder(bears, tmp_path):
    first, second = Checkpoint(tmp_path, dict(seed=1)), Checkpoint(tmp_path, dict(seed=2))
    for saver in (first, second):
        assert saver.read() is None
        saver.learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
        saver.learn.epoch, saver.learn.train_iter = 0, 0
    first.write()
    with pytest.raises(TrainError, match='Another training has begun'): second.write()
    first.write()
    assert Checkpoint(tmp_path, dict(seed=1)).read()['metadata'] == dict(seed=1)

def test_a_bit_that_was_lost(finished, tmp_path):
    "In the middle of the weights, where torch itself notices nothing"
    content = bytearray((finished[0]/'checkpoint.pth').read_bytes())
    content[len(content)//2] ^= 1
    (tmp_path/'checkpoint.pth').write_bytes(content)
    with pytest.raises(TrainError, match='cannot be read as a checkpoint'): Checkpoint(tmp_path, torch.load(finished[0]/'checkpoint.pth', weights_only=True)['metadata']).read()

def test_only_its_own_leftovers_are_removed(tmp_path):
    "A browser calls its half-loaded files alike"
    for name in ('.abcd1234.part', '.my film.mp4.part', 'report.part'): (tmp_path/name).write_bytes(b'PK')
    assert Checkpoint(tmp_path, {}).read() is None
    assert sorted(f.name for f in tmp_path.iterdir()) == ['.my film.mp4.part', 'report.part']

def table_of(bears):
    files = sorted(get_image_files(bears))
    return pd.DataFrame(dict(name=[f.relative_to(bears).as_posix() for f in files], label=[f.parent.name for f in files],
        labels=[f'{f.parent.name} bear' for f in files], number=[float(i) for i, _ in enumerate(files)]))

def test_checkpoint_of_images_in_a_table(bears, tmp_path):
    dls = [ImageDataLoaders.from_df(t, bears, seed=1, item_tfms=Resize(32), bs=12, num_workers=0) for t in (table_of(bears), table_of(bears)[::-1])]
    first = train(dls[0], 'scratch', epochs=1, quiet=True, checkpoint=tmp_path)
    assert same(weights_of(first), weights_of(train(dls[0], 'scratch', epochs=1, quiet=True, checkpoint=tmp_path)))
    with pytest.raises(TrainError, match='images was'): train(dls[1], 'scratch', epochs=1, quiet=True, checkpoint=tmp_path)

# ---- the same again

@pytest.mark.parametrize('route', ['scratch', 'fine_tune', 'fast'])
def test_seeds_repeat(route, bears, squeezenet):
    how = dict(route=route, size=64, bs=12, quiet=True)
    if route != 'fast': how['epochs'] = 1
    if route != 'scratch': how.update(arch='squeezenet1_1', weights=squeezenet)
    first = train(bears, **how)
    for noise in (random.random, np.random.rand, torch.rand): noise(*([7] if noise is torch.rand else []))
    assert same(weights_of(first), weights_of(train(bears, **how)))
    assert not same(weights_of(first), weights_of(train(bears, seed=1, **how)))

def test_seeds_of_numpy_are_seeds(bears):
    first, second = (train(bears, 'scratch', epochs=1, size=32, bs=12, seed=s, quiet=True) for s in (3, np.int64(3)))
    assert same(weights_of(first), weights_of(second))

def test_dataloaders_used_before_repeat_too(bears):
    dls = image_dls(bears, size=32, bs=12)
    first = train(dls, 'scratch', epochs=1, quiet=True)
    assert same(weights_of(first), weights_of(train(dls, 'scratch', epochs=1, quiet=True)))
    assert first.plan.size == 32

# ---- uneven labels

def test_balanced_sampling_shows_each_label_as_often(tmp_path):
    path = folder_of(tmp_path/'bears', black=60, teddy=10)
    dls = image_dls(path, size=32, bs=8)
    learn = make_learner(dls, plan_training('scratch'), 'balanced_sampling')
    np.random.seed(0)
    share = np.mean([y.float().mean().item() for _ in range(4) for _, y in learn.dls.train])
    assert 0.4 < share < 0.6 and len(learn.dls.train) == len(dls.train)
    assert type(dls.train) is not type(learn.dls.train)  # the DataLoaders that were given stay as they are
    weighted = make_learner(dls, plan_training('scratch'), 'class_weights')
    assert weighted.loss_func.func.weight.tolist() == pytest.approx([56/96, 56/16])

@pytest.mark.filterwarnings('ignore:load_learner:UserWarning')
def test_balanced_learner_can_be_exported(bears, tmp_path):
    learn = train(bears, imbalance='balanced_sampling', **scratch)
    learn.export(tmp_path/'learner.pkl')
    again = load_learner(tmp_path/'learner.pkl')
    assert again.predict(bears/'teddy'/'0.png')[0] == learn.predict(bears/'teddy'/'0.png')[0]

# ---- refusals

@pytest.mark.parametrize('arguments,words', [
    (dict(route='pretrained'), '`route` must be auto, fast, fine_tune, drawn, scratch'), (dict(epochs=0), '`epochs` must be at least 1'),
    (dict(route='fast', epochs=2), 'leave `epochs` out'), (dict(size=4), '`size` must be at least 8'), (dict(arch='resnt18'), 'did you mean resnet18'),
    (dict(route='scratch', imbalance='yes'), '`imbalance` must be'), (dict(route='scratch', precision='half'), '`precision` must be'),
    (dict(route='scratch', early_stop=0), '`early_stop` must be at least 1'), (dict(weights='x.pth'), 'must say which architecture'),
    (dict(weights='x.pth', arch='resnet18'), 'there is no file x.pth'), (dict(weights=None, route='fast', arch='resnet18'), 'the route fast needs some'),
    (dict(weights='x.pth', arch='resnet18', route='scratch'), 'takes no weights of yours'), (dict(arch='vit_b_16', route='scratch'), 'cannot cut vit_b_16'),
    (dict(seed=None), '`seed` must be a whole number, got None'), (dict(seed='x'), "`seed` must be a whole number, got 'x'"),
    (dict(route='scratch', epochs='3'), "`epochs` must be a whole number, got '3'"), (dict(route='scratch', early_stop='2'), "`early_stop` must be at least 1 epoch, got '2'"),
    (dict(arch=xresnet18_thin), "`arch` must be a name in quotes, such as 'xresnet18_thin'"), (dict(route='scratch', epochs=1, bs=1), 'would be alone in a batch')])
def test_bad_arguments(arguments, words, bears):
    with pytest.raises(TrainError) as e: train(bears, **{**dict(quiet=True, timeout=.1), **arguments})
    assert words in str(e.value)

def test_arguments_for_dataloaders_that_exist(bears):
    dls = image_dls(bears, size=32)
    for how in (dict(valid_pct=.3), dict(size=64)):
        with pytest.raises(TrainError, match=f'{next(iter(how))}: these are for `image_dls`'): train(dls, 'scratch', **how)

@pytest.mark.parametrize('data', [None, 3, Learner])
def test_what_is_no_data(data):
    with pytest.raises(TrainError, match='must be an image folder or DataLoaders, got a'): train(data, 'scratch', quiet=True)

def block_of(label_block, **how): return DataBlock((ImageBlock, label_block), get_items=get_image_files, item_tfms=Resize(32), **how)

@pytest.mark.parametrize('route', ['scratch', 'fine_tune', 'fast'])
def test_other_tasks_are_refused_in_words(route, bears, squeezenet):
    several = block_of(MultiCategoryBlock, get_y=lambda f: [f.parent.name, 'bear'])
    number = block_of(RegressionBlock(n_out=1), get_y=lambda f: float(f.stem))
    no_label = DataBlock((ImageBlock,), get_items=get_image_files, item_tfms=Resize(32))
    all_train = block_of(CategoryBlock, get_y=parent_label, splitter=IndexSplitter([]))
    how = dict(arch='squeezenet1_1', weights=squeezenet) if route != 'scratch' else {}
    for block, words in [(several, 'must have one label'), (number, 'must have one label'), (no_label, 'images and their labels'), (all_train, 'lack images')]:
        with pytest.raises(TrainError, match=words): train(block.dataloaders(bears, bs=12, num_workers=0), route, quiet=True, **how)

def test_a_batch_larger_than_the_set(bears, tmp_path):
    "fastai would train on nothing, and the checkpoint would say that it is done"
    dls = ImageDataLoaders.from_folder(bears, valid_pct=.2, seed=1, item_tfms=Resize(32), bs=600, num_workers=0)
    for work in (lambda: train(dls, 'scratch', epochs=1, checkpoint=tmp_path, quiet=True), lambda: suggest_lr(Learner(dls, xresnet18_thin(3)))):
        with pytest.raises(TrainError, match='42 images to train on and a batch takes 600'): work()
    assert not list(tmp_path.iterdir())

def test_a_last_image_that_is_alone(bears):
    dls = block_of(CategoryBlock, get_y=parent_label, splitter=IndexSplitter(list(range(10)))).dataloaders(bears, bs=41, num_workers=0)
    dls.train.drop_last = False
    with pytest.raises(TrainError, match='Of 42 images in batches of 41, one would be alone'): train(dls, 'scratch', epochs=1, quiet=True)

# ---- weights in files

def test_weights_in_the_usual_wrappings(squeezenet, tmp_path):
    plain = torch.load(squeezenet, weights_only=True)
    wrapped = [{'state_dict': plain}, {'model': plain, 'epoch': 3}, {f'module.{k}': v for k, v in plain.items()}]
    for i, content in enumerate([plain, *wrapped]):
        torch.save(content, tmp_path/f'{i}.pth')
        model = create_vision_model(get_arch('squeezenet1_1'), 3, pretrained=False)
        load_weights(model, 'squeezenet1_1', tmp_path/f'{i}.pth')
        assert torch.equal(model[0][0][0].weight, plain['features.0.weight'])

def test_safetensors(squeezenet, tmp_path):
    library = pytest.importorskip('safetensors.torch')
    library.save_file(torch.load(squeezenet, weights_only=True), tmp_path/'w.safetensors')
    assert same(read_weights(tmp_path/'w.safetensors'), torch.load(squeezenet, weights_only=True))
    (tmp_path/'w.safetensors').write_bytes(b'no')
    with pytest.raises(TrainError, match='not a safetensors file'): read_weights(tmp_path/'w.safetensors')

@pytest.mark.filterwarnings('ignore::UserWarning:torchvision')  # fastai asks for weights in an older way
@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'mobilenet_v3_small', 'efficientnet_b0', 'shufflenet_v2_x0_5', 'regnet_y_400mf', 'convnext_tiny', 'xresnet18'])
def test_bodies_of_each_family(name, tmp_path):
    "Where each tensor of a body comes from is found, whichever way fastai cuts"
    theirs = get_arch(name)()
    torch.save(theirs.state_dict(), tmp_path/'w.pth')
    model = create_vision_model(get_arch(name), 3, pretrained=False).eval()
    load_weights(model, name, tmp_path/'w.pth')
    known = {v.data_ptr(): v for v in theirs.state_dict().values()}
    assert all(any(v.shape == w.shape and torch.equal(v, w) for w in known.values()) for v in model[0].state_dict().values())
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)

def test_weights_below_home(squeezenet, monkeypatch):
    monkeypatch.setenv('HOME', str(squeezenet.parent))
    monkeypatch.setenv('USERPROFILE', str(squeezenet.parent))
    assert find_weights('squeezenet1_1', weights='~/squeezenet.pth').file == str(squeezenet)

def test_files_that_are_no_weights(squeezenet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.pth').write_bytes(b'<html>')
    torch.save(Rogue(), tmp_path/'b.pth')
    torch.save([1, 2], tmp_path/'c.pth')
    for name, words in dict(a='is not opened', b='is not opened', c='no table of tensors').items():
        with pytest.raises(TrainError, match=words): read_weights(tmp_path/f'{name}.pth')
    assert not Path('rogue was here').exists()
    with pytest.raises(TrainError) as e: load_weights(create_vision_model(get_arch('squeezenet1_0'), 3, pretrained=False), 'squeezenet1_0', squeezenet)
    assert 'squeezenet.pth does not fit squeezenet1_0: features.0.weight has the shape (64, 3, 3, 3), not (96, 3, 7, 7)' in str(e.value)

# ---- timm

def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='pip install timm'): get_arch('timm/resnet18')
    with pytest.raises(TrainError, match='pip install timm'): get_arch('convnextv2_atto')

def test_timm(bears, tmp_path):
    timm = pytest.importorskip('timm')
    library = pytest.importorskip('safetensors.torch')
    library.save_file(timm.create_model('test_resnet').state_dict(), tmp_path/'w.safetensors')
    assert arch_stats('test_resnet')[0] == (.5, .5, .5) and fixed_size('vit_tiny_patch16_224') == 224
    for route in ('fast', 'fine_tune', 'scratch'):
        how = dict(weights=tmp_path/'w.safetensors') if route != 'scratch' else {}
        learn = train(bears, route, 'test_resnet', size=64, bs=12, quiet=True, **how, **({} if route == 'fast' else dict(epochs=1)))
        assert learn.predict(bears/'teddy'/'0.png')[0] in learn.dls.vocab
        mean = next(t.mean for t in learn.dls.valid.after_batch.fs if hasattr(t, 'mean'))
        assert mean.flatten().tolist() == [.5, .5, .5]
    with pytest.raises(TrainError, match='takes images of 224 pixels'): plan_training('scratch', 'vit_tiny_patch16_224', size=64)
    with pytest.raises(TrainError, match='did you mean'): get_arch('timm/resnt18')
    assert find_weights('test_resnet', timeout=.1).url.startswith('http')

# ---- no traces, no noise

class Interrupt(Callback):
    def before_batch(self):
        if self.iter == 1: raise KeyboardInterrupt

@pytest.mark.parametrize('interrupted', [False, True])
def test_lr_finder_leaves_no_trace(interrupted, bears):
    learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
    learn.fit_one_cycle(1)
    before, state, opt, n, table = weights_of(learn), torch.get_rng_state(), learn.opt, len(learn.cbs), figures(learn)
    files, modes = sorted(bears.rglob('*')), [m.training for m in learn.model.modules()]
    if interrupted:
        with pytest.raises(KeyboardInterrupt), learn.added_cbs(Interrupt()): suggest_lr(learn, num_it=20)
    else: assert 1e-6 < suggest_lr(learn, num_it=20).suggested < 1
    assert same(weights_of(learn), before) and torch.equal(torch.get_rng_state(), state) and learn.opt is opt
    assert len(learn.cbs) == n and figures(learn) == table and [m.training for m in learn.model.modules()] == modes
    assert sorted(bears.rglob('*')) == files

def test_lr_finder_of_a_loss_that_is_no_number(bears):
    learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
    with torch.no_grad(): next(learn.model.parameters()).fill_(float('nan'))
    with pytest.raises(TrainError, match='no number from batch 1 on'): suggest_lr(learn, num_it=12)

def test_a_copy_of_the_model_in_training_is_a_copy(bears):
    "As those callbacks make that average weights; with a shorter precision too"
    class Copies(Callback):
        order = 20  # after Autocast
        def before_fit(self): self.copied = copy.deepcopy(self.learn.model)
    learn = Learner(image_dls(bears, size=32, bs=12), xresnet18_thin(3), cbs=[Autocast(), Copies()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    images = torch.randn(2, 3, 32, 32)
    copied = learn.copies.copied.eval()
    before = copied(images)
    with torch.no_grad():
        for p in learn.model.parameters(): p.zero_()
    assert torch.equal(copied(images), before) and copied.forward.model is copied

@pytest.mark.parametrize('metrics,n_lines', [([], 2), ([accuracy], 2), ([accuracy, error_rate], 3)])
def test_a_curve_of_any_metrics(metrics, n_lines, bears):
    learn = Learner(image_dls(bears, size=32, bs=12), xresnet18_thin(3), metrics=metrics)
    log_training(learn)
    with learn.no_logging(): learn.fit(2)
    assert len(plot_training(learn).lines) == n_lines and len(training_table(learn)) == 2

def test_silence_of_a_prediction(bears, capfd):
    learn = train(bears, **scratch)
    learn.predict(bears/'teddy'/'0.png')
    learn.get_preds()
    learn.validate()
    assert capfd.readouterr().out == ''

def test_outputs_of_a_notebook(bears):
    "In a real kernel: predictions leave no output, training by hand leaves one table"
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    start = f'import warnings; warnings.filterwarnings("ignore")\nfrom bearcls.train.learner import train\nlearn = train({str(bears)!r}, "scratch", epochs=1, size=32, bs=12)'
    cells = [start, f'answer = learn.predict({str(bears/"teddy"/"0.png")!r})', 'answers = learn.get_preds(), learn.validate()', 'learn.fine_tune(2)']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()
    trained, predicted, validated, by_hand = [c['outputs'] for c in notebook.cells]
    assert predicted == validated == []
    def shown(outputs): return [o for o in outputs if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]  # all but the bar
    assert [o.get('text') for o in shown(trained)] == ['Training xresnet18_thin from scratch at 32 pixels: as asked.\n']
    assert [o['data']['text/html'].count('<tr>') for o in shown(by_hand)] == [4]

def test_table_in_a_terminal(bears, capsys):
    learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
    learn.fit_one_cycle(2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'seconds'] and len(lines) == 3

def test_an_interrupted_bar_is_closed(bears):
    learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
    with pytest.raises(KeyboardInterrupt), learn.added_cbs(Interrupt()): learn.fit_one_cycle(1)
    learn.predict(bears/'teddy'/'0.png')
    assert learn.training_log.bar is None and learn.training_log.rows == []

def test_early_stop_keeps_the_best(bears):
    learn = make_learner(image_dls(bears, size=32, bs=12), plan_training('scratch'))
    run_phases(learn, [Phase(6, 0.3)], early_stop=1)  # far too high a rate, so that it gets worse
    table = training_table(learn)
    assert len(table) < 6
    assert learn.validate()[0] == pytest.approx(table.valid_loss.min(), rel=1e-4)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu(bears, squeezenet):
    for precision in ('auto', 'float16', 'float32'):
        learn = train(bears, 'fine_tune', 'squeezenet1_1', epochs=1, size=64, bs=12, weights=squeezenet, precision=precision, imbalance='class_weights', quiet=True)
        assert next(learn.model.parameters()).is_cuda and learn.predict(bears/'teddy'/'0.png')[0] in learn.dls.vocab

@pytest.mark.parametrize('content', [b'', b'PK' + bytes(500), None])
def test_damaged_cached_weights_are_named(content, bears, squeezenet, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path/'hub'/'checkpoints'/'squeezenet1_1-b8a52dc0.pth'
    file.parent.mkdir(parents=True)
    file.write_bytes(squeezenet.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(TrainError, match='cached weights of squeezenet1_1, is damaged; delete it') as e: train(bears, arch='squeezenet1_1', size=48, quiet=True)
    assert str(file) in str(e.value) and file.exists()

# --- where the plan is in doubt

import bearcls.train.learner as train_module
from bearcls.sample.bears import draw_bears
from bearcls.train.fast import image_features
from bearcls.train.trial import Trial, unlike_photographs

def digit_folder(dest, n=80, side=28, mode='L', seed=0, noise=12):
    "Drawn digits, light on dark, with noise of this many grey levels"
    rng = np.random.default_rng(seed)
    for i in range(n):
        image, label = Image.new('L', (side, side)), dest/str(i % 10)
        font = ImageFont.load_default(size=float(rng.uniform(.6, .95)*side))
        ImageDraw.Draw(image).text(tuple(rng.uniform(.42, .58, 2)*side), str(i % 10), int(rng.integers(150, 256)), font, 'mm', stroke_width=int(rng.integers(0, 2)))
        image = np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR), float) + rng.normal(0, noise, (side, side))
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image.clip(0, 255))).convert(mode).save(label/f'{i:04d}.png')
    return dest

@pytest.fixture
def weights_at_hand(tmp_path, monkeypatch):
    "Cached weights that have learnt nothing"
    folder = tmp_path/'torch'/'hub'/'checkpoints'
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), folder/'squeezenet1_1-b8a52dc0.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))

def test_weights_come_with_one_line_and_no_bar(bears, tmp_path, monkeypatch, capsys):
    "Where nobody looks at stderr, it says what is downloaded and how large it is"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(arch_module, '_ask', lambda url, timeout: '')
    asked = []
    def download(url, file, digest, progress):
        asked.append((url.rpartition('/')[2], digest, progress))
        torch.save(squeezenet1_1().state_dict(), file)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for _ in range(2): train(bears, arch='squeezenet1_1', size=48, quiet=True)
    assert asked == [('squeezenet1_1-b8a52dc0.pth', 'b8a52dc0', False)]
    assert capsys.readouterr().err.splitlines() == ['Downloading the ImageNet weights of squeezenet1_1, 5 MB']

@pytest.fixture
def told(monkeypatch):
    "A trial whose outcome the test decides; the calls are counted"
    calls, outcome = [], {}
    def tried(learn, what, augment, **settings):
        calls.append(what)
        return outcome['trial']
    monkeypatch.setattr(train_module, 'try_routes', tried)
    return calls, outcome

def test_in_doubt_a_trial_decides(tmp_path, weights_at_hand, told, monkeypatch):
    "Tiny grey digits: the route and the reason follow the trial, which happens once"
    calls, outcome = told
    digits = digit_folder(tmp_path/'digits')
    monkeypatch.setitem(train_module.scratch_plan, 'epochs', 1)
    outcome['trial'] = Trial('tiny and grey (28×28 pixels)', 64, 30, 26, 13, 2)
    learn = train(digits, quiet=True)
    assert (learn.plan.route, learn.plan.arch, learn.plan.size, learn.plan.is_open) == ('scratch', 'xresnet18_thin', 64, False)
    assert '50.0% wrong' in learn.plan.reason and '7.7%' in learn.plan.reason and 'tiny and grey (28×28 pixels)' in learn.plan.reason
    assert learn.dls.valid.one_batch()[0].shape[-1] == 64
    assert train(digits, quiet=True).plan == learn.plan and len(calls) == 1  # the outcome is kept
    outcome['trial'] = Trial('tiny and grey (28×28 pixels)', 64, 3, 26, 1, 2)
    learn = train(digits, quiet=True, seed=1)
    assert (learn.plan.route, learn.plan.arch, len(calls)) == ('fast', 'squeezenet1_1', 2) and '3.8% wrong' in learn.plan.reason

def test_without_doubt_nothing_is_tried(tmp_path, weights_at_hand, told):
    "Drawn photographs, a route by name, an architecture by name, a plan of one's own"
    calls, _ = told
    digits = digit_folder(tmp_path/'digits')
    assert train(draw_bears(tmp_path/'bears', n_per_label=8, faults=False), quiet=True).plan.route == 'fast'
    assert train(digits, 'fast', quiet=True).plan.route == 'fast'
    assert train(digits, arch='squeezenet1_1', quiet=True).plan.route == 'fast'
    plan = plan_training()
    assert plan.is_open and train(digits, plan=replace(plan, is_open=False), quiet=True).plan.route == 'fast'
    assert not calls

def test_dataloaders_of_ones_own_in_doubt(tmp_path, weights_at_hand, told):
    "Where they are large, training from nothing would take too long: the reason says what to try"
    calls, outcome = told
    digits = digit_folder(tmp_path/'digits')
    outcome['trial'] = Trial('tiny', 64, 30, 26, 13, 2)
    learn = train(image_dls(digits, size=160, recipe='squish', bs=16), quiet=True)
    assert learn.plan.route == 'fast' and 'DataLoaders of 160 pixels are too large for that, the route scratch takes 64' in learn.plan.reason
    outcome['trial'] = Trial('tiny', 64, 3)
    assert train(image_dls(digits, size=64, recipe='squish', bs=16), quiet=True).plan.route == 'fast' and len(calls) == 2

@pytest.mark.parametrize('mode, side, words', [('L', 28, 'tiny and grey'), ('RGB', 28, 'tiny and grey'), ('1', 64, 'tiny and grey'), ('I;16', 28, 'tiny and grey'),
    ('L', 200, 'grey'), ('RGB', 300, 'grey')])
def test_what_is_unlike_photographs(tmp_path, mode, side, words):
    folder = digit_folder(tmp_path/'d', 10, side, 'L' if mode == 'I;16' else mode)
    if mode == 'I;16':
        for f in folder.rglob('*.png'): Image.fromarray(np.asarray(Image.open(f), np.uint16)*257).save(f)
    assert unlike_photographs(sorted(folder.rglob('*.png'))) == f'{words} ({side}×{side} pixels)'

def test_photographs_are_photographs(shared):
    for folder in (shared/'data'/'bears').iterdir():
        if folder.is_dir(): assert unlike_photographs(sorted(folder.glob('*.jpg'))) == ''

def test_a_trial_of_digits(tmp_path, shared, monkeypatch):
    "Real weights, both routes, no pretence: the reason tells both figures, the route is the one that they speak for, and no validation image took part"
    monkeypatch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))
    monkeypatch.setitem(train_module.scratch_plan, 'epochs', 1)  # the trial is what is tested here
    trials, tried, asked = [], train_module.try_routes, []
    monkeypatch.setattr(train_module, 'try_routes', lambda *a, **k: trials.append(tried(*a, **k, epochs=2)) or trials[-1])
    monkeypatch.setattr('bearcls.train.trial.image_features', lambda learn, items, *a: asked.extend(items) or image_features(learn, items, *a))
    learn = train(digit_folder(tmp_path/'digits', 100), quiet=True, near_duplicates=False)
    trial, = trials
    assert learn.plan.route == trial.chosen and trial.reason in learn.plan.reason and 'tiny and grey (28×28 pixels)' in learn.plan.reason
    assert {str(f) for f in asked} == {str(f) for f in learn.dls.train_ds.items} and trial.n == len(asked)

def grey_photos(shared, dest):
    "The shared photographs without their colours"
    for file in (shared/'data'/'bears').glob('*/*.jpg'):
        with Image.open(file) as image: image = image.convert('L').resize((160, 120))
        (dest/file.parent.name).mkdir(parents=True, exist_ok=True)
        image.save(dest/file.parent.name/f'{file.stem}.png')
    return dest

@pytest.mark.parametrize('kind, better', [('noisy digits', 'scratch'), ('grey photographs', 'fast')])
def test_a_trial_finds_the_better_route(kind, better, tmp_path, shared, monkeypatch):
    "Trained to the end on 1,000 such digits, the two routes have 53% and 8.5% wrong; on these photographs 5% and 19%"
    monkeypatch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))
    folder = digit_folder(tmp_path/'digits', 500, noise=60) if better == 'scratch' else grey_photos(shared, tmp_path/'grey')
    learn = make_learner(image_dls(folder, size=160, recipe='squish', near_duplicates=False), 'squeezenet1_1')
    trial = train_module.try_routes(learn, kind, train_module.scratch_augment(32), max_n=400)
    assert trial.chosen == better, trial.reason
    assert trial.n_both >= 100 and max(trial.wrong_fast, trial.wrong_scratch) > 1.3*min(trial.wrong_fast, trial.wrong_scratch)
