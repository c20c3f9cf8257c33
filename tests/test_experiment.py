"Experiments that are killed, interrupted, changed or given nonsense, statistics against tables, and profiles that leave no trace"
import contextlib, csv, json, math, shutil, subprocess, sys, textwrap, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.metrics import error_rate
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from torch import nn
from bearcls.core import DataError
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.train.experiment import Experiment, Run, experiment, read_runs, resampled_interval, split_fingerprint, write_runs
from bearcls.intervals import wilson
from bearcls.data.cache import Store
from bearcls.train.profile import profile_epoch, stages
from bearcls.sample.bears import draw_bears

@pytest.fixture
def path(tmp_path): return draw_bears(tmp_path/'bears', n_per_label=6, seed=1, faults=False)

class Fake:
    "What `experiment` asks of a Learner: it is right, except about the first `wrong` validation images"
    def __init__(self, dls, wrong=0, p=.8): self.dls, self.wrong, self.p = dls, wrong, p
    no_bar = no_logging = staticmethod(contextlib.nullcontext)
    def get_preds(self):
        n = len(self.dls.valid_ds)
        targets = torch.arange(n) % 3
        given = torch.where(torch.arange(n) < self.wrong, (targets + 1) % 3, targets)
        return torch.full((n, 3), (1 - self.p)/2).scatter(1, given[:, None], self.p), targets

def trainer(calls, **wrong):
    "Trains nothing; the variant named by `name` errs on as many images as `wrong` says, and raises what is no number"
    def train(path, seed, valid_pct, name, **kwargs):
        calls.append((name, seed))
        what = wrong[name]
        if isinstance(what, BaseException): raise what
        return Fake(image_dls(path, size=16, cache=False, seed=seed, valid_pct=valid_pct), what)
    return train

def variants(*names): return {n: dict(name=n) for n in names}

def without_time(rows): return [{**vars(r), 'seconds': 0} for r in rows]

def test_rows_are_paired_and_measured(path):
    tried = experiment(path, variants('a', 'b'), seeds=(3, 4), valid_pct=.34, trainer=trainer([], a=0, b=2))
    assert [(r.variant, r.seed, r.n_train, r.n_valid, r.wrong, r.problem) for r in tried.rows] == \
        [('a', 3, 12, 6, 0, ''), ('b', 3, 12, 6, 2, ''), ('a', 4, 12, 6, 0, ''), ('b', 4, 12, 6, 2, '')]
    assert tried.rows[0].split == tried.rows[1].split != tried.rows[2].split
    assert tried.rows[0].log_loss == pytest.approx(-math.log(.8))
    assert tried.rows[1].log_loss == pytest.approx(-(4*math.log(.8) + 2*math.log(.1))/6, rel=1e-5)
    assert all(r.seconds >= 0 for r in tried.rows)

killed = '''
    import sys, time
    sys.path.insert(0, sys.argv[1])
    from test_experiment import experiment, trainer, variants
    quick = trainer([], a=0, b=1)
    def train(path, seed, **kwargs):
        if seed == 2: print('third seed', flush=True); time.sleep(600)
        return quick(path, seed, **kwargs)
    experiment(sys.argv[2], variants('a', 'b'), seeds=range(4), file=sys.argv[3], trainer=train)
'''

def test_killed_and_resumed(path, tmp_path):
    "What was finished is kept, what was not is run, and the result is that of an uninterrupted experiment"
    file, calls = tmp_path/'runs.csv', []
    with subprocess.Popen([sys.executable, '-c', textwrap.dedent(killed), str(Path(__file__).parent), str(path), str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'third seed\n'
        process.kill()
    assert [(r.variant, r.seed) for r in read_runs(file)] == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    resumed = experiment(path, variants('a', 'b'), seeds=range(4), file=file, trainer=trainer(calls, a=0, b=1))
    assert calls == [('a', 2), ('b', 2), ('a', 3), ('b', 3)]
    uninterrupted = experiment(path, variants('a', 'b'), seeds=range(4), trainer=trainer([], a=0, b=1))
    assert without_time(resumed.rows) == without_time(uninterrupted.rows) == without_time(read_runs(file))

def test_interrupted_keeps_finished_runs(path, tmp_path):
    file = tmp_path/'runs.csv'
    with pytest.raises(KeyboardInterrupt):
        experiment(path, variants('a', 'b'), seeds=(0,), file=file, trainer=trainer([], a=0, b=KeyboardInterrupt()))
    assert [r.variant for r in read_runs(file)] == ['a']

@pytest.mark.parametrize('raised', [MemoryError('no room'), AssertionError(), StopIteration(), RuntimeError('two\nlines'), ZeroDivisionError('by zero'), ImportError('no timm')])
def test_failing_variant_is_a_row(path, tmp_path, raised):
    "The others go on; the next time, what failed is tried again and only that"
    file, calls = tmp_path/'runs.csv', []
    tried = experiment(path, variants('a', 'b'), seeds=(0, 1), file=file, trainer=trainer([], a=raised, b=1))
    assert [r.problem for r in tried.rows if r.variant == 'a'] == [' '.join(f'{type(raised).__name__}: {raised}'.split())]*2
    assert tried.summary.set_index('variant').failed.to_dict() == {'a': 2, 'b': 0}
    assert tried.summary.verdict.tolist() == ['reference', 'cannot tell']
    assert type(raised).__name__ in tried._repr_html_()
    assert experiment(path, variants('a', 'b'), seeds=(0, 1), file=file, trainer=trainer(calls, a=0, b=1)).table.problem.tolist() == ['']*4
    assert calls == [('a', 0), ('a', 1)]

def test_all_failed(path):
    tried = experiment(path, variants('a', 'b'), seeds=(0, 1), trainer=trainer([], a=ValueError('no'), b=ValueError('no')))
    assert tried.summary.error.isna().all()
    assert '0 of 2' in tried._repr_html_()
    tried.plot()

def test_diverged_training_is_a_problem(path):
    def train(path, seed, **kwargs): return Fake(image_dls(path, size=16, cache=False, seed=seed), p=math.nan)
    assert 'diverged' in experiment(path, {'a': {}}, seeds=(0,), trainer=train).rows[0].problem

def test_another_split_is_a_problem(path):
    "A trainer that splits as it likes is not compared"
    def train(path, seed, **kwargs): return Fake(image_dls(path, size=16, cache=False, seed=seed + 1))
    row = experiment(path, {'a': {}}, seeds=(0,), trainer=train).rows[0]
    assert 'other images' in row.problem and math.isnan(row.error)

def test_changes_are_run_again(path, tmp_path):
    "Another argument, another share, another image or another label make another run; another place does not"
    file, calls = tmp_path/'runs.csv', []
    def again(where=path, args=None, **kwargs):
        calls.clear()
        experiment(where, {'a': dict(name='a', **(args or {})), 'b': dict(name='b')}, seeds=(0,), file=file, trainer=trainer(calls, a=0, b=1), **kwargs)
        return [name for name, _ in calls]
    assert again() == ['a', 'b'] and again() == []
    assert again(shutil.copytree(path, tmp_path/'elsewhere')) == []
    assert again(args=dict(epochs=3)) == ['a'] and again(args=dict(epochs=3)) == []
    assert again(args=dict(epochs=3), valid_pct=.4) == ['a', 'b']
    files = image_files(path)
    files[0].rename(path/'teddy'/'moved.jpg')
    assert again(args=dict(epochs=3), valid_pct=.4) == ['a', 'b']
    assert len(read_runs(file)) == 2

def test_foreign_file_is_left_alone(path, tmp_path):
    for text in ('a,b\n1,2\n', '', 'variant\nx\n', 'PK\x03\x04\x00'):
        (tmp_path/'notes.csv').write_text(text, encoding='utf-8')
        with pytest.raises(DataError, match='not replaced'): experiment(path, variants('a'), seeds=(0,), file=tmp_path/'notes.csv', trainer=trainer([], a=0))
        assert (tmp_path/'notes.csv').read_text(encoding='utf-8') == text

def test_odd_names_survive_the_file(tmp_path):
    rows = [Run(name, 0, 8, 2, 1, .5, .7, 1.25, problem, 'f00d', json.dumps(dict(note=name)))
            for name, problem in [('a,b', ''), ('"quoted"', 'x, "y"'), ('Bär 🐻', ''), ('NaN', ''), ('007', 'None'), (' space ', '')]]
    write_runs(tmp_path/'runs.csv', rows)
    assert read_runs(tmp_path/'runs.csv') == rows
    with open(tmp_path/'runs.csv', encoding='utf-8', newline='') as f: assert [r['variant'] for r in csv.DictReader(f)] == [r.variant for r in rows]

@pytest.mark.parametrize('wrong, message', [
    (dict(variants={}), 'is empty'), (dict(variants={'a': dict(seed=3)}), 'sets seed'), (dict(variants={'a': dict(exclude=[])}), 'sets exclude'),
    (dict(variants={'a': 'fast'}), 'must be a dictionary'), (dict(seeds=()), 'seeds'), (dict(split='split.json'), 'fixes one split'), (dict(seed=1), 'as `seeds`')])
def test_what_cannot_be_compared_is_refused(path, wrong, message):
    calls = []
    with pytest.raises(ValueError, match=message): experiment(**{**dict(path=path, variants=variants('a'), trainer=trainer(calls, a=0)), **wrong})
    assert calls == []

@pytest.mark.parametrize('k, t', [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (30, 2.045)])
def test_interval_against_students_table(k, t):
    "Values 1 to k, a fifth held back: their variance is k(k+1)/12; t for k-1 degrees of freedom from printed tables"
    low, high = resampled_interval(range(1, k + 1), n_train=400, n_valid=100)
    half = t*math.sqrt((1/k + .25)*k*(k + 1)/12)
    assert (high - low)/2 == pytest.approx(half, rel=3e-4)
    assert (high + low)/2 == pytest.approx((k + 1)/2)

def test_interval_by_confidence():
    "t for two degrees of freedom: 2.920 for 90%, 9.925 for 99%"
    for confidence, t in ((.9, 2.920), (.99, 9.925)):
        low, high = resampled_interval([1, 2, 3], 80, 20, confidence)
        assert (high - low)/2 == pytest.approx(t*math.sqrt(7/12), rel=3e-4)

def test_more_seeds_do_not_buy_certainty():
    "However many splits, the interval does not shrink below that of the held-back share"
    values = np.tile([0., 1.], 500)
    low, high = resampled_interval(values, 80, 20)
    assert (high - low)/2 == pytest.approx(1.962*math.sqrt(.25)*.5, rel=.01)

@pytest.mark.parametrize('k, n, low, high', [(0, 10, 0, .2775), (1, 10, .0179, .4042), (5, 10, .2366, .7634), (10, 10, .7225, 1), (5, 100, .0215, .1118)])
def test_wilson_against_known_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)

def made(name, wrong, seeds=None):
    return [Run(name, s, 80, 20, w, w/20, w/10, 2.) for s, w in zip(seeds or range(9), wrong)]

def test_differences_are_paired_by_seed_and_not_by_place():
    "Every run of b is one image better; the seeds stand in another order, and each variant has one that the other lacks"
    tried = Experiment(made('a', [9, 1, 5, 3], [0, 1, 2, 7]) + made('b', [4, 8, 0, 6], [2, 0, 1, 8]))
    row = tried.compare().iloc[1]
    assert row.difference == pytest.approx(-1/20) and row.runs == 4
    assert math.isnan(row.low) and row.verdict == 'cannot tell'  # all differences are the same: nothing to go on

def test_verdicts():
    base = made('base', [10, 12, 11, 9, 10])
    tried = Experiment(base + made('better', [3, 4, 4, 2, 2]) + made('worse', [17, 18, 19, 17, 16]) + made('same', [11, 11, 11, 10, 9]) + made('lone', [0]))
    assert tried.compare().set_index('variant').verdict.to_dict() == dict(base='reference', better='lower', worse='higher', same='cannot tell', lone='cannot tell')
    assert tried.compare('seconds').difference[1:].tolist() == [0]*4
    difference = np.array([17 - 10, 18 - 12, 19 - 11, 17 - 9, 16 - 10])/20
    half = 2.776*math.sqrt((1/5 + 20/80)*difference.var(ddof=1))
    row = tried.compare().iloc[2]
    assert (row.low, row.high) == pytest.approx((difference.mean() - half, difference.mean() + half), rel=1e-3)

def test_fingerprint_sees_sides_labels_and_bytes(path):
    files = image_files(path)
    def sides(train, valid): return SimpleNamespace(train_ds=SimpleNamespace(items=train), valid_ds=SimpleNamespace(items=valid))
    first = split_fingerprint(sides(files[2:], files[:2]))
    assert split_fingerprint(sides(files[:1:-1], files[1::-1])) == first  # the order is no matter
    assert split_fingerprint(sides(files[:2], files[2:])) != first
    assert split_fingerprint(sides(files[1:], files[:1])) != first
    files[0].write_bytes(files[0].read_bytes() + b' ')
    assert split_fingerprint(sides(files[2:], files[:2])) != first

class Net(nn.Sequential):
    "A small network with running statistics and dropout, both of which training changes or uses up"
    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.3), nn.Linear(8, 3))

class Diary(Callback):
    "Acts as those do that write files at the end of an epoch"
    def __init__(self): self.epochs = 0
    def after_epoch(self): self.epochs += 1

def book_learner(path, seed=5, bs=4):
    "The book's own DataBlock, and a Learner with a diary"
    set_seed(seed, reproducible=True)
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=seed),
        item_tfms=Resize(64), batch_tfms=aug_transforms())
    dls = block.dataloaders(path, bs=bs, num_workers=0)
    return Learner(dls, Net(), metrics=error_rate, loss_func=nn.CrossEntropyLoss(), cbs=Diary())

def train_one(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)

@pytest.mark.parametrize('when', ['before', 'between'])
def test_profile_leaves_no_trace(path, when):
    "Trained with a profile before or between its epochs, a model has the same weights, records and diary as without"
    plain, profiled = book_learner(path), None
    for _ in range(2): train_one(plain)
    profiled = book_learner(path)
    if when == 'between': train_one(profiled)
    values = list(profiled.recorder.values) if when == 'between' else None
    callbacks = sorted(type(cb).__name__ for cb in profiled.cbs)
    profile = profile_epoch(profiled, n_batches=2)
    assert profile.n_images == 8
    assert sorted(type(cb).__name__ for cb in profiled.cbs) == callbacks
    if when == 'between': assert profiled.recorder.values == values
    for _ in range(1 if when == 'between' else 2): train_one(profiled)
    for a, b in zip(plain.model.state_dict().values(), profiled.model.state_dict().values()): assert torch.equal(a, b)
    assert profiled.diary.epochs == plain.diary.epochs == 2

def test_profile_when_training_fails(path):
    "A Learner that cannot be trained says why, and is as before"
    learn = book_learner(path)
    learn.loss_func = lambda pred, y: (_ for _ in ()).throw(ArithmeticError('no loss'))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(ArithmeticError, match='no loss'): profile_epoch(learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert {'Recorder', 'Diary'} <= {type(cb).__name__ for cb in learn.cbs} and '_Watch' not in {type(cb).__name__ for cb in learn.cbs}
    assert not {'create_item', 'create_batch'} & vars(learn.dls.train).keys()

def test_profile_knows_where_the_time_is(path):
    "A slow file, a slow transform and a slow network are each found in their place; slower than a wait for a processor"
    def slowed(thing):
        learn = book_learner(path)
        if thing == 'open':
            opened = learn.dls.train_ds.tls[0].tfms.fs[0]
            learn.dls.train_ds.tls[0].tfms.fs[0] = lambda f, **kwargs: (time.sleep(.1), opened(f, **kwargs))[1]
        if thing == 'item': learn.dls.train.after_item.fs.append(lambda o, **kwargs: (time.sleep(.1), o)[1])
        if thing == 'batch': learn.dls.train.after_batch.fs.append(lambda o, **kwargs: (time.sleep(.4), o)[1])
        if thing == 'forward': learn.model.register_forward_hook(lambda *args: time.sleep(.4))
        if thing == 'backward': learn.model[-1].register_full_backward_hook(lambda *args: time.sleep(.4))
        return profile_epoch(learn, n_batches=2)
    for thing in ('open', 'item', 'batch', 'forward', 'backward'):
        rows = {r['stage']: r['ms'] for r in slowed(thing).rows}
        assert max(rows, key=rows.get) == thing, (thing, rows)

def test_profile_of_few_batches(path):
    "As many batches are timed as asked for, over several epochs if need be; without a whole batch there is nothing to time"
    one = profile_epoch(book_learner(path, bs=8), n_batches=5)
    assert one.n_images == 40 and list(stages) == [r['stage'] for r in one.rows]
    many = profile_epoch(book_learner(path, bs=2), n_batches=20, warm_up=0)
    assert many.n_images == 40 > many.n_train and many.seconds == pytest.approx(many.ms*many.n_train/1000)
    learn = book_learner(path)
    learn.dls.loaders[0] = learn.dls.train.new(bs=64, drop_last=True)
    with pytest.raises(ValueError, match='no whole batch'): profile_epoch(learn)

def test_a_learner_that_answers_with_logits_is_a_problem(path):
    "Their logarithms would be a log loss of nothing; a loss of torch alone does not say how they become probabilities"
    class Logits(Fake):
        def get_preds(self): return super().get_preds()[0]*7 - 3, super().get_preds()[1]
    def train(path, seed, **kwargs): return Logits(image_dls(path, size=16, cache=False, seed=seed))
    row = experiment(path, {'a': {}}, seeds=(0,), trainer=train).rows[0]
    assert 'no probabilities' in row.problem and math.isnan(row.log_loss)

def test_few_images_are_allowed_for_all_variants(tmp_path):
    "What `train` accepts for small labels, the split of an experiment accepts as well"
    small = draw_bears(tmp_path/'small', n_per_label=4, seed=1, faults=False)
    def train(path, seed, **kwargs): return Fake(image_dls(path, size=16, cache=False, seed=seed, min_per_label=3))
    assert experiment(small, {'a': {}}, seeds=(0,), trainer=train, min_per_label=3).rows[0].problem == ''

def test_the_split_leaves_images_on_disk_as_training_opens_them(path, tmp_path):
    "Not another set of them, which would push those that are used out of the cache"
    def train(path, seed, **kwargs): return Fake(image_dls(path, seed=seed, size=64, recipe='squish', cache=kwargs['cache']))
    experiment(path, {'a': {}}, seeds=(0,), trainer=train, size=64, cache=tmp_path/'kept')
    assert len([kind for kind, _ in Store(tmp_path/'kept'/'images.sqlite').kinds() if kind.startswith('opened')]) == 1
