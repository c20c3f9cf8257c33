"Threads: your number decides, it is back afterwards whatever happens, and what is calculated does not depend on it"
import os, subprocess, sys, time
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.metrics import error_rate
from fastai.torch_core import set_seed
from fastai.vision.all import vision_learner
from torchvision.models import resnet18
from bearcls.data.loaders import image_dls
from bearcls.interpret.evaluate import evaluate
from bearcls.sample.bears import draw_bears
from bearcls.threads import Pace, decided_threads, in_lanes, use_threads
from bearcls.train.fast import image_features
from bearcls.train.learner import train
from bearcls.train.log import paced

@pytest.fixture(scope='module')
def path(tmp_path_factory): return draw_bears(tmp_path_factory.mktemp('threads')/'bears', n_per_label=10, seed=5, faults=False)

@pytest.fixture
def no_environment(monkeypatch):
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): monkeypatch.delenv(name, raising=False)

def learner(path, **settings):
    set_seed(1)
    return vision_learner(image_dls(path, size=48, recipe='squish', seed=1, **settings), resnet18, pretrained=False, metrics=error_rate)

def test_the_environment_decides(no_environment, monkeypatch):
    with use_threads(os.cpu_count()):
        if os.cpu_count() > 1: assert decided_threads() is None
        for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
            monkeypatch.setenv(name, '2')
            assert decided_threads() == os.cpu_count() and not Pace().is_due
            monkeypatch.delenv(name)

def test_torch_decides(no_environment):
    "A number that PyTorch would not take by itself is somebody's"
    with use_threads(4*os.cpu_count() + 1): assert decided_threads() == 4*os.cpu_count() + 1 and not Pace().is_due
    with use_threads(1): assert decided_threads() == 1

def test_the_argument_is_above_both(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    with use_threads(2): assert decided_threads(3) == 3

@pytest.mark.parametrize('wrong', [0, -1, 1.5, 'all', True])
def test_what_is_no_number_of_threads(wrong, path):
    with pytest.raises(ValueError, match='`threads` must be a whole number of at least 1'): decided_threads(wrong)
    with pytest.raises(ValueError, match='`threads` must be'): learner(path).fit_fast(threads=wrong)
    with pytest.raises(ValueError, match='`threads` must be'): evaluate(learner(path), threads=wrong)

def test_lanes_keep_the_order_and_use_all_of_them():
    "The first items take longest"
    names = set()
    def work(i):
        time.sleep(.02 if i < 3 else 0)
        names.add((torch.get_num_threads(), id(__import__('threading').current_thread())))
        return i
    assert list(in_lanes(work, range(40), threads=3)) == list(range(40))
    assert len(names) > 1 and {n for n, _ in names} == {1}

def test_the_number_is_back_after_an_error_and_a_break(path):
    before = torch.get_num_threads()
    with pytest.raises(KeyError): list(in_lanes(lambda i: {}[i], range(5), threads=2))
    lanes = in_lanes(lambda i: i, range(100), threads=2)
    next(lanes)
    lanes.close()
    class Breaks(Callback):
        def after_batch(self): raise InterruptedError('stop')
    learn = learner(path)
    with pytest.raises(InterruptedError), paced(learn, threads=before + 1), learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Breaks())
    assert torch.get_num_threads() == before and not any(type(cb).__name__ == '_Pacer' for cb in learn.cbs)

def test_features_do_not_depend_on_the_lanes(path):
    seen = [image_features(learner(path, cache=False), sorted(path.rglob('*.jpg')) or sorted(path.rglob('*.png')), threads=n) for n in (1, 2, 5)]
    assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])

def test_nothing_is_left_behind(path):
    before = torch.get_num_threads()
    learn = train(path, 'scratch', epochs=1, size=32, quiet=True, threads=2, bs=8)
    evaluate(learn, 'all', threads=2)
    assert torch.get_num_threads() == before

def test_measuring_changes_no_digit(path, no_environment, monkeypatch):
    "A training that measures before every batch and keeps its number learns what one that never measures learns"
    def trained(measures):
        learn = learner(path, bs=8)
        with use_threads(2), paced(learn, None if measures else 2) as pace, learn.no_bar(), learn.no_logging():
            if measures: pace.fixed = None
            learn.fit(1)
            return learn.model[1][-1].weight.detach().clone(), pace.measured
    calls = []
    def measure(self, work):
        work()
        calls.append(1)
        self.next = 0
        return self.now
    monkeypatch.setattr(Pace, 'measure', measure)
    never, always = trained(False)[0], trained(True)[0]
    assert len(calls) >= 2 and torch.equal(never, always)

def test_company_is_noticed(no_environment, monkeypatch):
    "Work that takes longer with more threads is done with one, until it does not any more; on a clock that only the work moves"
    now, slow = [0.], [True]
    monkeypatch.setattr('bearcls.threads.time', SimpleNamespace(perf_counter=lambda: now[0]))
    def work(): now[0] += (.008 if slow[0] else .002) if torch.get_num_threads() > 1 else .004
    with use_threads(max(2, os.cpu_count())):
        with Pace() as pace:
            pace.fixed = None
            assert pace.is_due and pace.measure(work) == 1 == torch.get_num_threads()
            assert not pace.is_due
            slow[0] = False
            assert pace.measure(work) == torch.get_num_threads() > 1
        assert torch.get_num_threads() == max(2, os.cpu_count())

def test_threads_need_no_fastai():
    "The module is light where torch is at hand anyway"
    code = 'import sys, bearcls.threads; print("fastai" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'
