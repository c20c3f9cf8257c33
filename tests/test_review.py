"The review queue with several people and processes at once, what its order does to accuracy, and returning images through crashes and hostile input"
import copy, json, multiprocessing, os, random, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest

pytest.importorskip('sqlalchemy', reason='SQLAlchemy is not installed')
from bearcls.core import BearclsError, sha256
from bearcls.folders import image_files, scan_folder
from bearcls.manifest import read_manifest
from bearcls.monitor.accuracy import accuracy_of
from bearcls.monitor.log import LogRow, PredictionLog, Verdict
from bearcls.monitor.retention import forget, prune
from bearcls.rollout.queue import ReviewItem, ReviewQueue, queue_tables
from bearcls.rollout.returning import from_label_studio, return_images, to_label_studio
from bearcls.rollout.review import Review, agreement, agreement_from
from bearcls.sample.bears import draw_bears
from test_log import postgres  # noqa: F401, a fixture

labels = ['black', 'grizzly', 'teddy']
root = Path(__file__).resolve().parents[1]
now = 1_790_424_000

def row(k, label='black', **more):
    return LogRow(label, .6, dict.fromkeys(labels, .2) | {label: .6}, **{**dict(trusted=False, confidence=.6, time=now - k, answer=f'a{k}', place='gate'), **more})

def ask(where, who, n, found):
    "Another process: asks for images and says something about each, until there are none"
    queue = ReviewQueue(PredictionLog(where, timeout=30), per_day=1000, twice=0.)
    mine = []
    while items := queue.items(n, who, now):
        for item in items:
            queue.answer(item, 'teddy' if item.answer.endswith('3') else 'black', who, now)
            mine.append(item.answer)
    found.put((who, mine))

def ask_together(where, n_rows):
    context = multiprocessing.get_context('spawn')
    found = context.Queue()
    people = [context.Process(target=ask, args=(str(where), who, 4, found)) for who in ('Anna', 'Ben', 'Cleo')]
    for p in people: p.start()
    got = dict(found.get(timeout=240) for _ in people)
    for p in people: p.join(60)
    everything = sum(got.values(), [])
    assert sorted(everything) == sorted(f'a{k}' for k in range(n_rows)), 'an image was lost, or looked at twice'
    return got

def test_three_people_at_once(tmp_path):
    "Three processes share a queue: each image goes to exactly one of them"
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write(row(k) for k in range(60))
    ask_together(tmp_path/'log.sqlite', 60)
    looks = ReviewQueue(log, days=1e5).looks()
    assert len(looks) == 60 and np.isfinite(next(log.read())['right']).all()

def test_three_people_at_once_in_postgres(postgres):  # noqa: F811
    log = PredictionLog(postgres.url)
    with log.transaction() as c: c.exec_driver_sql('DELETE FROM answers')
    log.write(row(k) for k in range(40))
    ask_together(postgres.url, 40)
    queue = ReviewQueue(log, days=1e5, per_day=1000)
    assert len(queue.looks()) == 40
    assert queue.undo('Anna', now) is None or len(queue.looks()) == 39
    log.write_verdict(Verdict('a1', False, 'grizzly', 'Anna'))

def test_too_little_time_does_not_bend_the_accuracy(tmp_path):
    "Half of the chosen answers fit into the days. Errors crowd at one place, among the untrusted and where models disagree; the estimate stays right all the same"
    errors = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        log = PredictionLog(tmp_path/f'{seed}.sqlite')
        rows = []
        wrong = {}
        for k in range(1500):
            pond, doubtful = rng.random() < .3, rng.random() < .2
            bad = rng.random() < (.45 if pond and doubtful else .2 if pond or doubtful else .02)
            name = f'{seed}-{rng.integers(1 << 60):x}'
            wrong[name] = bad
            shared = dict(place='pond' if pond else 'gate', trusted=not doubtful, answer=name, pair=name)
            rows.append(row(k, 'grizzly' if bad else 'black', chosen=.2 if rng.random() < .2 else None, **shared))
            if bad and rng.random() < .7: rows.append(row(k, 'black', **{**shared, 'role': 'shadow', 'answer': name + 's'}))
        log.write(rows)
        chosen = sum(r.chosen is not None for r in rows)
        queue = ReviewQueue(log, per_day=chosen//2, per_place=5, twice=0., days=1)
        items = queue.items(chosen, 'Anna', now)
        assert len(items) == chosen//2 and {i.kind for i in items} == {'chosen'}
        for item in items: queue.answer(item, 'black', 'Anna', now)
        found = accuracy_of(next(log.read()))[0]
        assert found.low <= 1 - np.mean(list(wrong.values())) <= found.high
        errors.append(found.accuracy - 1 + np.mean(list(wrong.values())))
    assert abs(np.mean(errors)) < .02, errors  # an order by doubt or by disagreement would be off by far more

def test_learning_does_not_count(tmp_path):
    "Looks at difficult images leave the accuracy alone, also if their answers are judged in the same sitting"
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write([row(k, chosen=.5 if k % 2 else None, trusted=k % 2 == 1) for k in range(40)])
    queue = ReviewQueue(log, per_day=40, twice=0.)
    for item in queue.items(40, 'Anna', now): queue.answer(item, 'black' if item.counts else 'teddy', 'Anna', now)
    found = accuracy_of(next(log.read()))[0]
    assert (found.verdicts, found.wrong, found.volunteered) == (20, 0, 20)

def test_an_image_goes_to_two_people_at_most(tmp_path):
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write(row(k) for k in range(10))
    queue = ReviewQueue(log, per_day=1000, twice=1.)
    for who in ('Anna', 'Ben', 'Cleo'):
        review = Review(queue, who, clock=lambda: now)
        while review.item: review.say('right' if who == 'Anna' else 'grizzly')
    assert len(queue.looks()) == 20
    assert sum(a.images for a in agreement(queue.looks())) == 10

def test_an_image_waits_once(tmp_path):
    "Two shadows, a shadow beside the model in use, a canary: one item each, by the answer that people saw; a draw of either answer puts it among the chosen"
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write([row(1, role='shadow', pair='p1', answer='first'), row(1, 'teddy', role='shadow', pair='p1', answer='second'),
        row(2, role='shadow', pair='p2', answer='unseen'), row(2, 'teddy', pair='p2', answer='seen'),
        row(3, role='challenger', pair='p3', answer='canary'), row(3, role='shadow', pair='p3', answer='behind', chosen=1.),
        row(4, role='shadow', answer='alone', chosen=.1), row(5, answer='plain')])
    queue = ReviewQueue(log, twice=0.)
    items = {i.answer: i for i in queue.items(20, 'Anna', now)}
    assert {a: i.kind for a, i in items.items()} == dict(first='disagree', seen='disagree', canary='chosen', alone='chosen', plain='doubt')
    assert items['seen'].says == 'black or teddy' and items['canary'].rival == ''
    for item in items.values(): queue.answer(item, 'teddy', 'Anna', now)
    columns = next(log.read(shadow=True))
    assert dict(zip(columns['answer'], columns['right'])) == dict(first=0, second=1, unseen=0, seen=1, canary=0, behind=0, alone=0, plain=0)

@pytest.mark.parametrize('shares, wrong', [((.4, .35, .25), .05), ((.4, .35, .25), .15), ((.4, .35, .25), .3), ((.9, .07, .03), .05), ((.7, .3), .1)])
@pytest.mark.parametrize('n', [20, 50, 200])
def test_the_interval_of_kappa_holds(shares, wrong, n):
    "Two people who err independently: the 95% interval of kappa holds the true one in more than 92% of the runs"
    rng = np.random.default_rng(n)
    k = len(shares)
    says = np.full((k, k), wrong/(k - 1)) + np.eye(k)*(1 - wrong - wrong/(k - 1))
    both = np.einsum('t,ta,tb->ab', shares, says, says)
    agree, chance = np.trace(both), both.sum(0) @ both.sum(1)
    held = 0
    for counts in rng.multinomial(n, both.ravel(), 1000):
        pairs = [(str(i // k), str(i % k)) for i, m in enumerate(counts) for _ in range(m)]
        found = agreement_from(('Anna', 'Ben'), pairs)
        held += found.low <= (agree - chance)/(1 - chance) <= found.high
    assert held/1000 > .92

def test_forgotten_and_pruned_answers(tmp_path):
    "A reserved image that its owner takes back is gone from the queue, and does not hold up the others"
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write(row(k) for k in range(10))
    queue = ReviewQueue(log, per_day=10, twice=0.)
    items = queue.items(10, 'Anna', now)
    for item in items[:4]: forget(log, item.answer)
    assert [i.answer for i in queue.items(10, 'Anna', now)] == [i.answer for i in items[4:]]
    with pytest.raises(BearclsError, match='holds no answer'): queue.answer(items[0], 'black', 'Anna', now)
    assert len(queue.looks()) == 0

def test_what_people_said_is_forgotten_with_the_answer(tmp_path):
    "`forget` and `prune` also take the queue's own rows: who looked, and what was said"
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write(row(k) for k in range(10))
    queue = ReviewQueue(log, per_day=10, twice=0.)
    items = queue.items(10, 'Anna', now)
    for item in items: queue.answer(item, item.label, 'Anna', now)
    assert len(queue.looks()) == 10
    forget(log, items[0].answer)
    assert {look.answer for look in queue.looks()} == {i.answer for i in items[1:]}
    assert items[0].answer.encode() not in log.file.read_bytes()
    prune(log, days=0, now=now + 1e9)
    assert queue.looks() == []

def test_a_log_without_answers_is_not_made_by_looking(tmp_path):
    queue = ReviewQueue(PredictionLog(tmp_path/'none.sqlite'))
    assert queue.items() == [] and queue.looks() == [] and queue.undo() is None and not queue.waiting()[1]
    assert not list(tmp_path.iterdir())

killed_review = '''
import sys
from bearcls.monitor.log import PredictionLog
from bearcls.rollout.queue import ReviewQueue
queue = ReviewQueue(PredictionLog(sys.argv[1]), per_day=5000, twice=0.)
while items := queue.items(5, 'Anna', 1_790_424_000):
    for item in items:
        print('next', flush=True)
        queue.answer(item, 'grizzly', 'Anna', 1_790_424_000)
'''

def start(code, *args):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])), 'TQDM_DISABLE': '1'}
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=env, stdout=subprocess.PIPE)

def test_killed_while_somebody_reviews(tmp_path):
    "Each answer has a verdict exactly if the queue knows of it, whenever the program was killed"
    file = tmp_path/'log.sqlite'
    log = PredictionLog(file)
    log.write(row(k) for k in range(3000))
    for n, seconds in ((1, .001), (8, .004), (14, .01), (23, .0)):
        with start(killed_review, file) as process:
            for _ in range(n): process.stdout.readline()
            time.sleep(seconds)
            process.kill()
        columns = next(log.read())
        judged = {a for a, right in zip(columns['answer'], columns['right']) if not np.isnan(right)}
        assert judged == {x.answer for x in ReviewQueue(log, days=1e5).looks()}
    assert judged and len(judged) < 3000
    queue = ReviewQueue(log, per_day=5000)
    assert len(queue.items(5, 'Anna', now)) == 5  # what was reserved comes first

# ---------------------------------------------------------------- images back into the folder

@pytest.fixture(scope='module')
def camera(tmp_path_factory):
    "A folder of a camera, and a log in which each of its images was judged"
    folder = tmp_path_factory.mktemp('camera')
    files = image_files(draw_bears(folder/'images', n_per_label=40, side=96, seed=4, faults=False))
    log = PredictionLog(folder/'log.sqlite')
    for k, file in enumerate(files):
        log.write([row(k, file.parent.name, name=file.name, sha256=sha256(file))])
        log.write_verdict(Verdict(f'a{k}', True, file.parent.name, 'Anna'))
    return folder/'images', log, files

killed_return = '''
import sys, time
import bearcls.rollout.returning as r
from bearcls.monitor.log import PredictionLog
whole = r.os.replace
def slow(a, b):
    time.sleep(.01)
    whole(a, b)
    time.sleep(.01)
r.os.replace = slow
print('ready', flush=True)
put = r._put_in
r._put_in = lambda *args: put(*args, at_once=10)
mark = r._mark_near
r._mark_near = lambda found, new: (mark(found, new), print('copying', flush=True))
r.return_images(PredictionLog(sys.argv[1]), sys.argv[2], sys.argv[3], near='keep')
'''

def test_killed_while_images_return(camera, tmp_path):
    "Every image is there wholly or not at all, the manifest can be read, and running again brings the rest"
    images, log, files = camera
    dest = tmp_path/'bears'
    known = {sha256(f): f.parent.name for f in files}
    sizes = []
    for seconds in (.05, .4, .7, .2):
        with start(killed_return, log.file, images, dest) as process:
            for _ in range(2): process.stdout.readline()
            time.sleep(seconds)
            process.kill()
        there = image_files(dest)
        assert all(known[sha256(f)] == f.parent.name for f in there)
        rows = read_manifest(dest)
        assert all(r.status == 'ok' and (dest/r.file).exists() for r in rows)
        sizes.append(len(there))
    assert sizes == sorted(sizes) and 0 < sizes[-1] < len(files)
    result = return_images(log, images, dest, near='keep')
    assert result.counts() == dict(there=sizes[-1], added=len(files) - sizes[-1])
    assert {r.file for r in read_manifest(dest)} == set(scan_folder(dest).names) == {r.file for r in result}
    assert len(read_manifest(dest)) == len(files) and all(r.more['who'] == 'Anna' for r in read_manifest(dest))
    assert not [f for f in dest.rglob('.*.part') if f.name.count('.') > 2]  # of an image; a manifest's own is left when a program is killed, and hidden
    assert return_images(log, images, dest, near='keep').counts() == dict(there=len(files))

def test_nothing_of_mine_is_overwritten(camera, tmp_path):
    images, log, files = camera
    first = return_images(log, images, tmp_path/'one')[0]
    mine = tmp_path/'two'/first.file
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'my own notes')
    found = return_images(log, images, tmp_path/'two')[0]
    assert mine.read_bytes() == b'my own notes' and found.status == 'left out' and 'another file is called' in found.reason

hostile_names = ['../../evil.jpg', '/etc/passwd', 'C:\\evil.jpg', '.hidden.jpg', 'a\nb.jpg', 'CON.jpg', '💥.jpg', 'x'*255, '', '..', 'a.jpg.exe', '<img src=x onerror=alert(1)>.jpg']

def test_hostile_names_and_labels(camera, tmp_path):
    "A sender's file names and a typed label lead nowhere outside the folder"
    images, _, files = camera
    log = PredictionLog(tmp_path/'log.sqlite')
    for k, name in enumerate(hostile_names):
        log.write([row(k, name=name, sha256=sha256(files[k]))])
        log.write_verdict(Verdict(f'a{k}', True, 'black', 'Anna'))
    bad = ['..', '.', '../up', 'a/b', 'a\\b', ' spaced ', '.hidden', 'C:', 'line\nbreak']
    for k, label in enumerate(bad, len(hostile_names)):
        log.write([row(k, name='x.jpg', sha256=sha256(files[k]))])
        log.write_verdict(Verdict(f'a{k}', False, label, 'Anna'))
    before = {f for f in tmp_path.rglob('*')}
    found = return_images(log, images, tmp_path/'dest'/'bears', near='keep')
    assert [r.status for r in found] == ['added']*len(hostile_names) + ['left out']*len(bad)
    inside = {f for f in tmp_path.rglob('*')} - before
    assert all(f.is_relative_to(tmp_path/'dest') for f in inside)
    assert scan_folder(tmp_path/'dest'/'bears').labels == ['black']
    assert '<img src=x' not in found._repr_html_()

def changed(value, rng):
    "A JSON value with one part exchanged"
    strange = [None, 0, -1, 1e400, '', 'x'*2000, [], {}, [[]], {'choices': 5}, True, '\ud800']
    if rng.random() < .3 or not isinstance(value, (list, dict)) or not value: return rng.choice(strange)
    value = copy.copy(value)
    key = rng.randrange(len(value)) if isinstance(value, list) else rng.choice(list(value))
    value[key] = changed(value[key], rng)
    return value

def test_any_label_studio_file(tmp_path):
    "Two thousand damaged exports: each is read, or refused with a sentence that names the file"
    item = ReviewItem('a1', 'doubt', 'black', .6, labels, name='x.jpg', model='f'*64)
    task = json.loads(to_label_studio([item], tmp_path/'tasks.json').read_text())[0]
    result = [dict(from_name='label', to_name='image', type='choices', value=dict(choices=['teddy']))]
    good = [{**task, 'id': 1, 'annotations': [dict(completed_by=3, result=result, updated_at='2026-09-27T08:15:00Z', was_cancelled=False)]}]
    file = tmp_path/'export.json'
    file.write_text(json.dumps(good))
    assert [(v.right, v.correct, v.who) for v in from_label_studio(file)] == [(False, 'teddy', '3')]
    rng = random.Random(1)
    read = 0
    for _ in range(2000):
        file.write_text(json.dumps(changed(good, rng)))
        try: read += len(from_label_studio(file))
        except (BearclsError, ValueError) as e: assert 'export.json' in str(e), e
    assert read > 100
    for text in ('', '{', '[' * 100_000, 'NaN', '[{"data": {"answer": 1}}]'):
        file.write_text(text)
        with pytest.raises(BearclsError, match='export.json'): from_label_studio(file)

def test_light_imports():
    done = subprocess.run([sys.executable, '-c', 'import sys, bearcls.rollout.queue, bearcls.rollout.review, bearcls.rollout.returning; print(*sys.modules)'],
        capture_output=True, text=True, check=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert not {'torch', 'fastai', 'pandas', 'ipywidgets', 'anywidget', 'sqlalchemy', 'fastcore', 'matplotlib'} & set(done.stdout.split())
