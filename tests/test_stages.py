"Rollout stages when things go wrong: killed writers, two people at once, damaged records, alarms, a challenger that fails, many threads"
import json, math, os, random, signal, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pytest
pytest.importorskip('sqlalchemy', reason='SQLAlchemy is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from PIL import Image
from bearcls.inference.classifier import Classifier
from bearcls.inference.files import BundleError
from bearcls.monitor.accuracy import AccuracyAlarm, ReviewRule
from bearcls.monitor.log import LogRow, PredictionLog, Verdict
from bearcls.monitor.watch import LogWatch, Normal
from bearcls.monitor.writer import LogWriter
from bearcls.rollout.registry import Registry
from bearcls.rollout.stages import Rollout, Supervised, covers
from bearcls.sample.standins import colour_model, furs
from bearcls.steps import Needs, NotReady, Record, RolloutError, RolloutEvent, Scope, day, event_line, read_events, rollout_state
from tiny_bundle import make_bundle

start = 1.78e9

class Clock:
    now = start
    def __call__(self): return self.now

def begun(tmp_path, stage='shadow', **more):
    "A rollout in one of the stages"
    clock = Clock()
    rollout = Rollout(tmp_path, PredictionLog(tmp_path/'log.sqlite'), clock=clock, **more)
    rollout.start('Ada', 'a test')
    if stage != 'shadow': rollout.up('Ada', 'a test', Scope(places=('gate',)), force=True)
    if stage == 'full': rollout.up('Ada', 'a test', force=True)
    clock.now += 60
    return rollout, clock

def bear(fur='brown'): return Image.new('RGB', (80, 80), furs[fur])

# ---------------------------------------------------------------- the record

writing = '''
import os, sys
from bearcls.steps import Record, RolloutEvent
record = Record(sys.argv[1])
os.write(1, b'ready\\n')
for i in range(10**6):
    record.add(lambda state: RolloutEvent('look', f'{sys.argv[2]}-{i}', 'x'*2000, 1.78e9))
    os.write(1, b'%d\\n' % i)
'''

def test_killed_writers_leave_a_sound_record(tmp_path):
    "24 processes, three at once, are killed at random; what they said was written is there once, and nothing is damaged"
    rng = random.Random(4)
    record = Record(tmp_path/'rollout.jsonl')
    record.add(lambda state: RolloutEvent('start', 'Ada', 'why', 1.78e9, 'shadow'))
    said = set()
    for n in range(8):
        running = [subprocess.Popen([sys.executable, '-c', writing, record.file, f'{n}-{k}'], stdout=subprocess.PIPE) for k in range(3)]
        for p in running: assert p.stdout.readline() == b'ready\n'
        threading.Event().wait(.02 + rng.random()*.1)
        for k, p in enumerate(running):
            p.kill()
            said |= {f'{n}-{k}-{int(i)}' for i in p.stdout.read().split()}
            p.wait()
    found = [e.who for e in record.events if e.kind == 'look']
    assert len(said) > 24 and not said - set(found) and len(found) == len(set(found))

def test_a_line_torn_anywhere_is_left_out(tmp_path):
    "However much of a line was written, the ones before count, and the next one is added whole"
    whole = event_line(RolloutEvent('start', 'Ada', 'why', 1.78e9, 'shadow'))
    more = event_line(RolloutEvent('stage', 'Bär', 'ü"}{', 1.78e9, 'limited', 'shadow', Scope(('gate',), (8, 18), .5), 'm', True, ['a', 'b']))
    for n in range(1, len(more)):
        record = Record(tmp_path/f'{n}.jsonl')
        record.file.write_bytes(whole + more[:n])
        kinds = ['start', 'stage'] if n == len(more) - 1 else ['start']  # the newline alone may be missing
        assert [e.kind for e in record.events] == kinds
        record.add(lambda state: RolloutEvent('look', 'Bo', 'why', 1.78e9))
        assert [e.kind for e in record.events] == [*kinds, 'look'] and len(record.file.read_bytes().splitlines()) == len(kinds) + 1
    assert read_events(whole + more)[1].scope == Scope(('gate',), (8, 18), .5)

@pytest.mark.parametrize('line', [b'[]', b'{"v": 1}', b'{"v": 1, "kind": "stage", "time": 1, "stage": "boss"}', b'null', b'{"v": 1, "kind": "stage", "time": "x"}',
    b'{"v": 1, "kind": "stage", "time": 1, "scope": {"share": 7}}', b'\xff\xfe', b'{"v": 1, "kind": "needs", "time": 1, "needs": {"boss": 7}}', b'{"v": "x"}', b'{"v": 1, "kind": "boss", "time": 1}', b''])
def test_a_damaged_record_decides_nothing(tmp_path, line):
    "A damaged line is an error that names it, and never a stage"
    rollout, _ = begun(tmp_path, 'full')
    with rollout.record.file.open('ab') as f: f.write(line + b'\n')
    with pytest.raises(RolloutError, match='line 4 of rollout.jsonl is damaged'): rollout.route('gate')
    with pytest.raises(RolloutError, match='damaged'): rollout.down('Bo', 'why')

def test_a_full_disk_leaves_the_record_as_it_was(tmp_path, monkeypatch):
    rollout, _ = begun(tmp_path)
    before = rollout.record.file.read_bytes()
    real = open
    class Full:
        "A file that takes half of a line"
        def __init__(self, f): self.f = f
        def __enter__(self): return self
        def __exit__(self, *_): self.f.close()
        def __getattr__(self, name): return getattr(self.f, name)
        def write(self, data): return self.f.write(data[:len(data)//2])
    monkeypatch.setattr('builtins.open', lambda *a, **k: Full(real(*a, **k)) if 'rollout.jsonl' in str(a[0]) else real(*a, **k))
    with pytest.raises(RolloutError, match='is the disk full'): rollout.look('Ada')
    monkeypatch.undo()
    assert rollout.record.file.read_bytes() == before

going_up = '''
import sys
from bearcls.rollout.stages import Rollout
from bearcls.steps import RolloutError
rollout = Rollout(sys.argv[1], sys.argv[2])
real = rollout.criteria
def slow(to=''):
    found = real(to)
    print('ready', flush=True)
    sys.stdin.readline()
    return found
rollout.criteria = slow
try: print(rollout.up(sys.argv[3], 'why', force=True).stage, flush=True)
except RolloutError as e: print(e, flush=True)
'''

def test_two_people_go_up_at_once(tmp_path):
    "One of them does; the other is told who was faster"
    rollout, _ = begun(tmp_path, 'limited')
    running = [subprocess.Popen([sys.executable, '-c', going_up, tmp_path, tmp_path/'log.sqlite', who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in ('Bo', 'Cy')]
    for p in running: assert p.stdout.readline() == 'ready\n'
    for p in running: p.stdin.write('\n'), p.stdin.flush()
    said = sorted(p.communicate(timeout=60)[0].strip() for p in running)
    assert said[1] == 'full' and 'was faster: from limited to full' in said[0]
    assert [e.kind for e in rollout.record.events] == ['start', 'stage', 'stage']

# ---------------------------------------------------------------- steps back

def test_the_switch_trips_once_however_many_ask(tmp_path):
    "32 routes in threads, by two objects on one record; one step back is taken"
    rollout, clock = begun(tmp_path, 'full')
    other = Rollout(tmp_path, rollout.log, clock=clock)
    clock.now += 14.1*day
    with ThreadPoolExecutor(8) as pool: routes = list(pool.map(lambda i: (rollout, other)[i % 2].route('gate'), range(32)))
    assert {r.stage for r in routes} == {'limited'} and rollout.state.changes == 4
    assert rollout.state.last.who == '' and rollout.state.scope == Scope(places=('gate',)) and 'no person has looked for 14.1 days' in rollout.state.last.why
    clock.now += 2.9*day
    assert rollout.route('gate').decides == 'model'
    rollout.look('Bo')
    clock.now += 2.9*day
    assert rollout.route('gate').decides == 'model' and rollout.route('lake').decides == 'person'
    clock.now += .2*day
    assert rollout.route('gate').stage == 'shadow' and rollout.check() is None

def test_an_image_with_a_wrong_date_trips_nothing(tmp_path):
    rollout, clock = begun(tmp_path, 'full')
    for when in (0, 4e9): assert rollout.route('gate', when).stage == 'full'

def alarm(when, last=math.nan): return AccuracyAlarm(.2, .04, when - 3600, when, 100, 20, last=last)

def test_an_alarm_steps_back_once(tmp_path):
    "It may carry the end of an hour that is not over; if it goes on, it counts again, and one that was known before counts never"
    log = PredictionLog(tmp_path/'log.sqlite')
    watch = LogWatch(log)
    rollout, clock = begun(tmp_path, 'full', watch=watch)
    watch.errors = [alarm(start - 100)]
    assert rollout.check() is None
    watch.errors.append(alarm(clock.now + 1800))
    step = rollout.check()
    assert step.stage == 'limited' and 'about 20% of the answers are wrong' in step.why
    for _ in range(3):
        clock.now += 1000
        assert rollout.check() is None and rollout.state.stage == 'limited'
    assert 'days without an alarm' in [c.name for c in rollout.criteria().missing]
    rollout.up('Ada', 'I know', force=True)
    assert rollout.check() is None and rollout.state.stage == 'full'
    watch.errors[-1].last = clock.now + 5000
    assert rollout.check().stage == 'limited' and rollout.check() is None

def test_down_never_goes_up(tmp_path):
    "Somebody who saw `full` and steps down finds that the rollout is in shadow already; it stays there"
    rollout, clock = begun(tmp_path, 'full')
    slow = Rollout(tmp_path, rollout.log, clock=clock)
    state = slow.state
    rollout.down('Ada', 'alarm', 'shadow')
    class Late(Rollout): state = property(lambda self: state)
    late = Late(tmp_path, rollout.log, clock=clock)
    assert late.down('Bo', 'me too').stage == 'shadow' and rollout.state.stage == 'shadow'
    assert rollout.down('Cy', 'to be sure').before == 'shadow'
    with pytest.raises(ValueError, match='`to` must be a stage below shadow'): rollout.down('Cy', 'why', 'limited')

# ---------------------------------------------------------------- criteria

def filled(rollout, n=300, wrong=0, trusted=True, model='m', seconds=.1):
    rows = [LogRow('brown', .9, trusted=trusted, model=model, role='shadow', chosen=1., seconds=seconds, time=rollout.clock() - 30, answer=f'{model}{trusted}{i}') for i in range(n)]
    rollout.log.write(rows)
    for i, row in enumerate(rows): rollout.log.write_verdict(Verdict(row.answer, i >= wrong))

def test_criteria_count_what_the_model_trusts(tmp_path):
    rollout, clock = begun(tmp_path)
    filled(rollout, 300, 2)
    filled(rollout, 50, 50, trusted=False)
    filled(rollout, 40, 40, model='another')
    rollout.record.add(lambda s: RolloutEvent('stage', 'Ada', 'names the model', start, 'shadow', 'shadow', model='m'))
    found = {c.name: c for c in rollout.criteria()}
    assert found['verdicts on trusted answers'].measured == '300' and found['wrong among them'].met and found['wrong among them'].measured.startswith('0.7%')
    filled(rollout, 300, 30, trusted=True, model='m2')
    rollout.record.add(lambda s: RolloutEvent('stage', 'Ada', 'names the model', start, 'shadow', 'shadow', model='m2'))
    assert not {c.name: c for c in rollout.criteria()}['wrong among them'].met

def test_slow_answers_and_an_empty_log_hold_it_back(tmp_path):
    rollout, clock = begun(tmp_path)
    assert [c.met for c in rollout.criteria()] == [False, False, False, False, False, True]
    filled(rollout, 30, seconds=3.)
    assert not rollout.criteria()[2].met
    with pytest.raises(NotReady, match='5 of 6 criteria for limited are not met') as e: rollout.up('Ada', 'why', Scope(share=.1))
    assert len(e.value.criteria) == 6
    event = rollout.up('Ada', 'why', Scope(share=.1), force=True)
    assert event.forced and len(rollout.record.events[-1].measured) == 6

def test_an_idle_watch_is_no_quiet(tmp_path):
    "A watch that has not read for a week cannot say that there was no alarm"
    log = PredictionLog(tmp_path/'log.sqlite')
    watch = LogWatch(log, Normal(model='m', shadow=True))
    rollout, clock = begun(tmp_path, watch=watch)
    log.write([LogRow('brown', .9, model='m', role='shadow', time=start + 30)])
    watch.update()
    clock.now += 9*day
    assert not rollout.criteria()[4].met
    log.write([LogRow('brown', .9, model='m', role='shadow', time=clock.now)])
    watch.update()
    assert rollout.criteria()[4].met

def test_needs_are_kept(tmp_path):
    rollout, clock = begun(tmp_path)
    rollout.require('limited', Needs(verdicts=3, error=1, days=0, quiet=0, look=1), 'Ada', 'a trial')
    filled(rollout, 3)
    assert not Rollout(tmp_path, rollout.log, clock=clock).criteria().missing

@pytest.mark.parametrize('bad', [dict(share=0), dict(share=1.1), dict(share=True), dict(hours=(1,)), dict(hours=(-1, 3)), dict(hours='8-18'), dict(places='gate'), dict(zone='Mars/Base'), dict(zone='../../etc/passwd')])
def test_scopes_are_checked(bad):
    with pytest.raises((ValueError, TypeError), match=f'`{next(iter(bad))}`'): Scope(**bad)

def test_scopes_over_midnight_and_growing_shares():
    night = Scope(hours=(22, 6), zone='UTC')
    assert [night.holds('', 1.78e9 - 1.78e9 % day + h*3600) for h in (21.9, 22, 3, 5.9, 6)] == [False, True, True, True, False]
    keys = [f'visitor {i}' for i in range(4000)]
    inside = [{k for k in keys if covers(Scope(share=s), '', 0, k, 'salt')} for s in (.05, .25, 1)]
    assert inside[0] < inside[1] < inside[2] == set(keys) and abs(len(inside[1])/4000 - .25) < .03

# ---------------------------------------------------------------- answers

@pytest.fixture
def models(tmp_path):
    colours = furs | dict(white=(200, 200, 200))
    return dict(champion=Classifier(make_bundle(tmp_path/'a'), threads=1), challenger=Classifier(make_bundle(tmp_path/'b', model=colour_model(colours)), threads=1))

def rows_of(log):
    chunk, = log.read(['answer', 'role', 'pair', 'model', 'label', 'chosen', 'right', 'place'], shadow=True)
    return [dict(zip(chunk, values)) for values in zip(*chunk.values())]

def test_two_models_answer_in_pairs(tmp_path, models):
    rollout, clock = begun(tmp_path, 'full')
    camp = Supervised(models, rollout)
    rollout.challenge(models['challenger'].bundle.digest, 'Ada', 'newer', Scope(share=.5))
    shown = [camp.answer(bear(), 'gate', f'v{i}').route.shows for i in range(60)]
    rows = rows_of(rollout.log)
    assert len(rows) == 120 and 10 < shown.count('challenger') < 50
    for a, b, who in zip(rows[::2], rows[1::2], shown):
        assert a['pair'] == b['pair'] and a['model'] != b['model']
        assert (a['role'], b['role']) == (('shadow', 'challenger') if who == 'challenger' else ('', 'shadow'))
    assert rollout.log.stats().answers == 60 and all(np.isnan(r['chosen']) for r in rows)
    outcome = camp.answer(bear('black'), 'gate', 'v1')
    camp.decide(outcome, 'brown', 'Ada')
    assert [r['right'] for r in rows_of(rollout.log)[-2:]] == [0, 0]

@pytest.mark.parametrize('trouble', ['missing', 'another', 'broken', 'huge'])
def test_a_challenger_in_trouble_costs_no_answer(tmp_path, models, trouble, monkeypatch):
    rollout, clock = begun(tmp_path, 'full')
    wanted = models['challenger'].bundle.digest
    if trouble == 'missing': del models['challenger']
    if trouble == 'another': wanted = 'f'*64
    if trouble in ('broken', 'huge'):
        def fails(*_): raise BundleError('no answer') if trouble == 'broken' else MemoryError()
        monkeypatch.setattr(models['challenger'], 'answer', fails)
    rollout.challenge(wanted, 'Ada', 'newer', Scope())
    camp = Supervised(models, rollout)
    outcome = camp.answer(bear(), 'gate')
    assert (outcome.route.shows, outcome.label) == ('champion', 'brown') and len(camp.problems) == 1
    row, = rows_of(rollout.log)
    assert row['role'] == '' and row['model'] == models['champion'].bundle.digest

def test_the_champion_of_a_registry(tmp_path, models):
    "Its verdicts count, and after a promotion those of the new one"
    registry = Registry(tmp_path/'models')
    for name in 'ab': registry.add(tmp_path/name, who='Ada', why='a test')
    first, second = (m.id for m in registry.models())
    registry.promote(first, who='Ada', why='a test')
    rollout = Rollout(registry, tmp_path/'log.sqlite')
    rollout.start('Ada', 'a test')
    assert rollout.model == registry.model('champion').digest == rollout.state.model
    registry.promote(second, who='Ada', why='a test')
    assert rollout.model == registry.model(second).digest and (tmp_path/'models'/'rollout.jsonl').exists()
    assert len(Registry(tmp_path/'models').models()) == 2
    with pytest.raises(ValueError, match='must lie on this machine'): Rollout('memory://models', tmp_path/'log.sqlite')

def test_a_writer_and_threads(tmp_path, models):
    "Ninety images in eight threads while somebody steps down; each has its rows, and roles fit the outcome"
    rollout, clock = begun(tmp_path, 'full')
    with LogWriter(rollout.log) as writer:
        camp = Supervised(models['champion'], rollout, writer, ReviewRule(budget=.5, even=1))
        def one(i):
            if i == 45: rollout.down('Ada', 'enough', 'shadow')
            outcome = camp.answer(bear(('black', 'brown', 'white')[i % 3]), 'gate')
            if outcome.chosen: camp.decide(outcome, 'brown', 'Ada')
            return outcome
        with ThreadPoolExecutor(8) as pool: outcomes = list(pool.map(one, range(90)))
        assert writer.flush(60)
    rows = {r['answer']: r for r in rows_of(rollout.log)}
    assert len(rows) == 90
    for o in outcomes:
        row = rows[o.ids['champion']]
        assert row['role'] == ('' if o.route.shows else 'shadow') and np.isnan(row['right']) == (o.chosen is None)
        assert o.decides == ('model' if o.route.shows and o.prediction.trusted else 'person') and (o.prediction is None) == (not o.route.shows)
    assert {o.route.stage for o in outcomes} <= {'full', 'shadow'} and outcomes[0].route.stage == 'full' and rollout.route().stage == 'shadow'
    assert {o.chosen for o in outcomes if o.decides == 'model'} == {.5, None} and all(o.chosen == 1 for o in outcomes if o.decides == 'person')

def test_names_and_reasons_are_asked_for(tmp_path):
    rollout, _ = begun(tmp_path)
    for call in (lambda: rollout.up('', 'why', Scope()), lambda: rollout.down('Ada', ' '), lambda: rollout.look(''), lambda: rollout.challenge('', 'Ada', '')):
        with pytest.raises(ValueError, match='must not be empty'): call()
    rollout.look('A\0da\ud800', 'x'*9999)
    assert len(str(rollout.story())) < 1500 and '<script>' not in rollout.story()._repr_html_()
    rollout.look('<script>alert(1)</script>')
    assert '<script>' not in rollout.story()._repr_html_()

def test_importing_loads_nothing_heavy():
    source = "import sys, bearcls.steps, bearcls.rollout.stages; print([m for m in ('torch', 'fastai', 'pandas', 'sqlalchemy', 'scipy', 'matplotlib', 'onnxruntime', 'ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', source], capture_output=True, text=True, check=True).stdout == '[]\n'

def test_the_command_line(tmp_path, capsys):
    "Steps, statuses, and what is wrong in one sentence; the watch's memory counts"
    from bearcls.cli import main
    log = tmp_path/'log.sqlite'
    def says(status, action, *words):
        assert main(['rollout', action, str(tmp_path), '--log', str(log), *words]) == status
        out = capsys.readouterr()
        return (out.out + out.err).strip()
    ada = ('--who', 'Ada', '--why', 'a test')
    assert says(0, 'status') == 'nothing has begun' == says(2, 'up', *ada, '--place', 'gate')[9:26] == says(2, 'down', *ada)[9:26]
    assert says(0, 'start', *ada) == 'Ada: began in shadow'
    assert 'the rollout began already' in says(2, 'start', *ada)
    rollout = Rollout(tmp_path, log)
    assert 'with --place, --hours or --share' in says(2, 'up', *ada) and 'above 0' in says(2, 'up', *ada, '--share', '0')
    assert '5 of 6 criteria' in says(1, 'up', *ada, '--place', 'gate')
    filled(rollout, 200, 0, model='')
    watch = LogWatch(PredictionLog(log), state=f'{log}.watch.json')
    watch.update()
    assert 'days without an alarm 0.0' in says(1, 'status')
    assert says(0, 'up', *ada, '--place', 'gate', '--hours', '22-6', '--share', '.25', '--force').endswith('(gate, 22 to 6 h UTC, 25%), forced')
    assert json.loads(says(1, 'status', '--json'))['scope'] == 'gate, 22 to 6 h UTC, 25%'
    watch.errors.append(alarm(rollout.state.since + 60))
    watch.save()
    assert says(1, 'status').startswith('shadow since')
    assert '`to` must be a stage below shadow' in says(2, 'down', *ada, '--to', 'limited')
    assert says(0, 'look', '--who', 'Bo') == 'Bo: looked' and len(says(0, 'story').splitlines()) == 4
    with pytest.raises(SystemExit): main(['rollout', 'up', str(tmp_path), *ada, '--hours', 'day'])
    assert "two hours such as 8-18 are expected; got 'day'" in capsys.readouterr().err
