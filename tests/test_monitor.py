"""Accuracy, history, watch and report: what makes bad reading in a notebook

Many seeds, servers that misbehave, two programs at once, hostile states, a long stream in little memory.
"""
import json, math, os, socket, subprocess, sys, threading, time, tracemalloc
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
import numpy as np
import pytest

pytest.importorskip('sqlalchemy', reason='sqlalchemy is not installed')
from bearcls.cli import main
from bearcls.core import DataError
from bearcls.monitor.accuracy import AccuracyMonitor, ReviewRule, Reviews, accuracy_from, accuracy_monitor, count_reviews
from bearcls.monitor.history import History, most_places, read_history, rest
from bearcls.monitor.log import LogRow, PredictionLog, Verdict
from bearcls.monitor.report import LiveReport, live_report, log_thumbnails, monitor_report, timeline
from bearcls.monitor.writer import LogWriter
from bearcls.timelines import mark_labels
from bearcls.monitor.watch import LogWatch, normal_of, open_watch, read_state, run_command, send_webhook, watch_figures

sys.path.insert(0, str(Path(__file__).parents[1]/'bench'))
start, day = 1767225600, 86400  # 2026-01-01

@pytest.fixture(scope='module')
def bench():
    import accuracy
    return accuracy

# ---------------------------------------------------------------- accuracy: a short version of bench/accuracy.py

@pytest.mark.parametrize('even, most', [(1, 2526), (.5, 800)])
def test_a_drop_is_noticed(bench, even, most):
    "From 4 to 15% errors, at 5% review: 1.3 times the limit at random, 800 images chosen"
    delays = bench.delays(bench.usual_rule(even), 24)[:, 0]
    assert np.median(delays) <= most

@pytest.mark.parametrize('even', [1, .5])
def test_false_alarms_and_coverage(bench, even):
    "At most one false alarm in 10,000 answers at exactly the promise; the sequence holds after every answer; the estimate has no bias"
    rule = bench.usual_rule(even)
    count, n = bench.false_alarms(rule, 5)
    assert count <= 1e-4*n
    held, _, bias, _ = bench.coverage(rule, 40, 4000).T
    assert held.mean() >= .95
    assert abs(bias.mean()) < 4*bias.std()/math.sqrt(40) + 1e-3

def test_missing_verdicts_widen_the_interval_at_worst():
    reviews = Reviews(1000, {.1: (100, 60, 3)})
    chance, worst = accuracy_from(reviews), accuracy_from(reviews, missing='worst')
    assert worst.low < chance.low < chance.accuracy < chance.high and chance.outstanding == 40
    none = accuracy_from(Reviews(1000, {.1: (100, 0, 0)}))
    assert math.isnan(none.accuracy) and (none.low, none.high) == (0, 1)

def test_volunteered_verdicts_do_not_count():
    columns = dict(chosen=np.array([np.nan]*50 + [.5]*50), right=np.array([0.]*50 + [1.]*50))
    found = accuracy_from(count_reviews(columns))
    assert found.volunteered == 50 and found.wrong == 0 and found.accuracy == 1

@pytest.mark.parametrize('bad', [0, -1, 1.5, math.inf])
def test_probabilities_that_are_none(bad):
    with pytest.raises(DataError, match='`chosen`'): count_reviews(dict(chosen=np.array([bad]), right=np.array([1.])))

@pytest.mark.parametrize('change', [dict(best=[0]), dict(promised=2), dict(log_capital='x'), dict(since=None)])
def test_a_damaged_memory_of_accuracy(change):
    with pytest.raises(DataError, match='`state`'): accuracy_monitor(AccuracyMonitor(.04).state() | change)

# ---------------------------------------------------------------- history

def stream(chunks, size, places=3, seed=0):
    "Columns of a log, made on the fly"
    rng = np.random.default_rng(seed)
    names = np.array([f'camera {i}' for i in range(places)], object)
    for i in range(chunks):
        t = start + (i*size + np.arange(size))*365*day/(chunks*size)
        chosen = np.where(rng.random(size) < .05, .05, np.nan)
        yield dict(time=t, place=names[rng.integers(places, size=size)], label=np.array(['black', 'grizzly'], object)[rng.integers(2, size=size)],
            trusted=rng.random(size) < .9, brightness=rng.normal(100, 10, size), ood_score=rng.random(size), confidence=rng.random(size),
            chosen=chosen, right=np.where(np.isnan(chosen), np.nan, rng.random(size) < .9))

def test_a_long_stream_needs_little_memory():
    "Twice the rows, the same memory"
    def peak(chunks):
        tracemalloc.start()
        history = History()
        for columns in stream(chunks, 20_000):
            history.add(columns)
            history.join(columns['time'][-1])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(c.answers for c in history.cells.values()) == chunks*20_000
        return most
    few, many = peak(5), peak(15)
    assert many < 60e6 and many < 2*few + 20e6

def test_sums_agree_with_the_rows():
    history, rows = History(), list(stream(3, 1000))
    for columns in rows: history.add(columns)
    history.join(start + 365*day)
    whole = {k: np.concatenate([c[k] for c in rows]) for k in rows[0]}
    days = history.periods('camera 1', seconds=400*day)
    mine = whole['place'] == 'camera 1'
    total = sum((d.total for d in days[1:]), days[0].total)
    assert total.answers == mine.sum() and total.trusted == whole['trusted'][mine].sum()
    assert total.mean('brightness') == pytest.approx(whole['brightness'][mine].mean())
    assert total.reviews == count_reviews({k: whole[k][mine] for k in ('chosen', 'right')})
    assert read_history(json.loads(json.dumps(history.state()))).state() == history.state()

def test_places_without_end():
    history = History()
    for i in range(20):
        history.add(dict(time=np.full(50, float(start)), place=np.array([f'{i}-{k}' for k in range(50)], object), label=np.full(50, 'x', object), trusted=np.ones(50, bool)))
    assert len(history.places) == most_places + 1 and history.places[-1] == rest
    assert sum(c.answers for c in history.cells.values()) == 1000

# ---------------------------------------------------------------- watch

def write(log, n=1200, dark_from=900, **more):
    rng = np.random.default_rng(5)
    log.write([LogRow('black', .97, brightness=float(rng.normal(30 if i >= dark_from else 120, 10)), ood_score=float(rng.random()), place='gate',
        time=start + 1200.*i, answer=f'a{i}', **more) for i in range(n)])

@pytest.fixture
def log(tmp_path):
    log = PredictionLog(tmp_path/'log.sqlite')
    write(log)
    return log

def test_pieces_give_the_same_alarms_as_one_reading(tmp_path):
    "A program from cron and one that reads everything at once"
    log = PredictionLog(tmp_path/'log.sqlite')
    write(log, 600)
    until = start + 6*day
    found = [(a.feature, a.since, a.time) for a in open_watch(log, reference_until=until).update()]
    rng = np.random.default_rng(6)
    for part in range(3):
        log.write([LogRow('black', .97, brightness=float(rng.normal(30, 10)), ood_score=float(rng.random()), place='gate',
            time=start + 1200.*(600 + 40*part + i), answer=f'b{part}-{i}') for i in range(40)])
        found += [(a.feature, a.since, a.time) for a in open_watch(log).update()]
    whole = open_watch(log, reference_until=until, state=None)
    assert found and found == [(a.feature, a.since, a.time) for a in whole.update()]

def test_late_verdicts_are_counted(log):
    watch = open_watch(log, state=None)
    watch.update()
    assert sum(c.reviews.judged for c in watch.history.cells.values()) == 0
    log.write([LogRow('black', .9, time=start + 5, answer='late', chosen=.5)])
    watch.update()
    log.write_verdict(Verdict('late', False))
    watch.update()
    reviews = [c.reviews for c in watch.history.cells.values() if c.reviews.chosen]
    assert [(r.by, r.n) for r in reviews] == [({.5: (1, 1, 1)}, 1)]
    log.write_verdict(Verdict('late', True))  # the newest counts
    watch.update()
    assert sum(c.reviews.wrong for c in watch.history.cells.values()) == 0

@pytest.mark.parametrize('text', ['', '[]', '{}', '{"format": "bearcls-watch"}', '{"format": "bearcls-watch", "format_version": 99}',
    '{"format": "bearcls-watch", "format_version": 1, "model": "", "last": "x", "last_verdict": 0, "newest": null, "history": {}}'])
def test_hostile_states(log, tmp_path, text):
    (tmp_path/'s.json').write_text(text)
    with pytest.raises(DataError): open_watch(log, state=tmp_path/'s.json')
    assert main(['monitor', str(log.file), '--state', str(tmp_path/'s.json')]) == 2

def test_no_reference_no_alarm(log):
    watch = open_watch(log, state=None)
    assert watch.update() == [] and watch.drift == {}
    with pytest.raises(DataError, match='`reference_until`'): open_watch(log, reference_until=start - 1, state=None)

def test_a_state_of_another_model(log, tmp_path):
    open_watch(log, state=tmp_path/'s.json').update()
    normal = normal_of()
    normal.model = 'f'*64
    with pytest.raises(DataError, match='another bundle'): LogWatch(log, normal, tmp_path/'s.json')

# ---------------------------------------------------------------- messages

class Rude(BaseHTTPRequestHandler):
    def do_POST(self):
        if self.path == '/slow': time.sleep(3)
        if self.path == '/redirect':
            self.send_response(307)
            self.send_header('Location', f'http://127.0.0.1:{self.server.server_port}/secret')
        elif self.path == '/secret': self.server.secrets.append(1)
        self.send_response_only(500 if self.path == '/500' else 200) if self.path != '/redirect' else None
        self.end_headers()
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def rude():
    server = HTTPServer(('127.0.0.1', 0), Rude)
    server.secrets = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()

@pytest.mark.parametrize('path, words', [('/500', 'status 500'), ('/redirect', 'a redirect, which is not followed'), ('/slow', 'no answer within|timed out')])
def test_a_rude_server(rude, path, words):
    import re
    begun = time.monotonic()
    done = send_webhook(f'http://127.0.0.1:{rude.server_port}{path}', dict(a=1), timeout=1)
    assert not done.ok and re.search(words, done.reason), done
    assert time.monotonic() - begun < 2.5 and not rude.secrets

def test_a_server_that_drips(tmp_path):
    "A byte of the header every 0.2 seconds keeps no one waiting"
    door = socket.create_server(('127.0.0.1', 0))
    def drip():
        guest, _ = door.accept()
        with guest:
            try:
                for _ in range(60):
                    guest.send(b'H')
                    time.sleep(.2)
            except OSError: pass
    threading.Thread(target=drip, daemon=True).start()
    begun = time.monotonic()
    assert not send_webhook(f'http://127.0.0.1:{door.getsockname()[1]}/', {}, timeout=1).ok
    assert time.monotonic() - begun < 2.5
    door.close()

def test_nobody_there_and_no_http():
    assert not send_webhook('http://127.0.0.1:9/', {}, timeout=1).ok
    for url in ('ftp://x', 'file:///etc/passwd', 'javascript:1', ''):
        with pytest.raises(ValueError, match='`url`'): send_webhook(url, {})

def test_commands(tmp_path):
    assert run_command(f'{sys.executable} -c "import sys; sys.exit(3)"', {}).reason == 'exit status 3'
    assert 'not done within' in run_command(f'{sys.executable} -c "import time; time.sleep(9)"', {}, timeout=.5).reason
    assert run_command(f'{sys.executable} -c "raise SystemExit" ; touch {tmp_path}/no', {}).ok and not (tmp_path/'no').exists()  # no shell
    for command in ('', '"'):
        with pytest.raises(ValueError, match='`command`'): run_command(command, {})

# ---------------------------------------------------------------- report and command line

def test_the_page_is_whole_and_safe(tmp_path):
    log = PredictionLog(tmp_path/'log.sqlite')
    evil = '<script>alert(1)</script>"\'&'
    write(log, thumbnail=b'\xff\xd8 no JPEG')
    log.write([LogRow(evil, .9, place=evil, time=start + day, answer='evil', chosen=1., name=evil)])
    log.write_verdict(Verdict('evil', False, evil, evil))
    report = monitor_report(log, reference_until=start + 6*day, title=evil)
    page = report.write_html(tmp_path/'page.html').read_text()
    assert '<script' not in page and 'alert(1)' in page and log_thumbnails(log, [1, 2]) == {}
    assert 'src="http' not in page and 'href="http' not in page and 'url(' not in page
    assert '<script' not in report._repr_html_()
    assert page.count('<svg') == page.count('aria-label=') > 4

@pytest.mark.parametrize('values', [[], [math.nan], [1.], [0., 0.], [math.nan, 1., math.nan, 2.]])
def test_time_lines_of_little(values):
    assert '<figure' in timeline('x', [start + day*i for i in range(len(values))], values)

def test_an_empty_log(tmp_path):
    report = monitor_report(PredictionLog(tmp_path/'none.sqlite'))
    assert 'no answers' in report.headline() and report.write_html(tmp_path/'page.html').exists()
    assert not (tmp_path/'none.sqlite').exists()

def test_cron(log, rude, tmp_path, capsys):
    "Status 0 when quiet, 1 for a new alarm if asked, 2 for wrong input; the message arrives once"
    note = tmp_path/'note'
    command = f'{sys.executable} -c "import sys; open(sys.argv[1], \'a\').write(sys.stdin.read() + chr(10))" {note}'
    args = ['monitor', str(log.file), '--reference-until', '2026-01-07', '--command', command, '--html', str(tmp_path/'page.html')]
    assert main([*args, '--fail-on', 'alarm', '--webhook', f'http://127.0.0.1:{rude.server_port}/500']) == 1
    n = len(note.read_text().splitlines())
    said = capsys.readouterr()
    assert n == said.out.count('New: ') and 'status 500' in said.err and json.loads(note.read_text().splitlines()[0])['format'] == 'bearcls-alarm'
    assert main([*args, '--fail-on', 'alarm', '--webhook', f'http://127.0.0.1:{rude.server_port}/ok']) == 0
    assert len(note.read_text().splitlines()) == n and read_state(f'{log.file}.watch.json')['unsent'] == []
    assert main(['monitor', str(tmp_path/'missing.sqlite')]) == 2
    with pytest.raises(SystemExit) as ended: main([*args, '--since', 'yesterday'])
    assert ended.value.code == 2
    assert {name for name, *_ in watch_figures(f'{log.file}.watch.json')} >= {'bearcls_monitor_alarms', 'bearcls_monitor_trusted'}

def test_watch_stays_until_it_is_stopped(log):
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1]))
    process = subprocess.Popen([sys.executable, '-m', 'bearcls', 'monitor', str(log.file), '--reference-until', '2026-01-07', '--watch', '1'], stdout=subprocess.PIPE, text=True, env=env)
    try: assert 'answers from' in process.stdout.readline() and process.poll() is None
    finally:
        process.kill()
        process.wait()

def test_import_is_light():
    "Neither torch nor fastai, pandas, Matplotlib, SciPy or Jinja"
    code = ('import sys, bearcls.monitor.accuracy, bearcls.monitor.history, bearcls.monitor.watch, bearcls.monitor.report; '
        'print(sorted({"torch", "fastai", "pandas", "matplotlib", "scipy", "jinja2"} & set(sys.modules)))')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
    assert said.stdout.strip() == '[]', said.stderr

def test_the_writer_chooses_as_the_rule_would(tmp_path):
    "From many threads, with a database that is away at times; no second pass is needed, and accuracy counts the verdicts"
    rule = ReviewRule(budget=.2)
    rng = np.random.default_rng(0)
    rows = [LogRow('teddy', p, trusted=p > .6, confidence=p, time=start + i) for i, p in enumerate(rng.beta(9, 1, 400).tolist())]
    rows[0].chosen = 1.  # the caller's own choice stays
    log = PredictionLog(tmp_path/'log.sqlite', timeout=.1)
    with LogWriter(log, review=rule, retry=.02, linger=.01) as writer:
        threads = [threading.Thread(target=lambda part: [writer.add(r) for r in part], args=(rows[i::4],)) for i in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert writer.flush()
        while writer.spool.bytes: time.sleep(.02)
    found, = log.read(['answer', 'trusted', 'confidence', 'chosen'])
    wanted = rule.choose(found)
    mine = found['answer'] == rows[0].answer
    assert np.array_equal(found['chosen'][~mine], wanted[~mine], equal_nan=True) and found['chosen'][mine] == 1
    n = int((~np.isnan(found['chosen'])).sum())
    assert 40 < n < 200
    for answer in found['answer'][~np.isnan(found['chosen'])]: log.write_verdict(Verdict(answer, True))
    columns, = log.read(['chosen', 'right'])
    assert accuracy_from(count_reviews(columns)).verdicts == n

@pytest.mark.parametrize('answer', [None, np.array([.5]), np.array(['a']*3), np.array([2.]*3)])
def test_a_broken_rule_costs_no_answer(tmp_path, answer):
    class Rule:
        def choose(self, columns): return answer
    with LogWriter(tmp_path/'log.sqlite', review=Rule()) as writer:
        for _ in range(3): writer.add(LogRow('teddy', .9))
        assert writer.flush()
        status = writer.status()
    assert status.written == 3 and not status.lost and 'no answers were chosen' in status.problem
    columns, = writer.log.read(['chosen'])
    assert np.isnan(columns['chosen']).all()

# ---------------------------------------------------------------- the report that stays open

def test_a_live_report_keeps_up_and_says_what_is_wrong(log):
    live = LiveReport(monitor_report(log, reference_until=start + 6*day))
    assert live.look() and not live.look()
    before = live.html
    for answer in ('a', 'b'): log.write([LogRow('teddy', .9, answer=answer)])
    assert live.look() and live.html != before and not live.look()
    log.write_verdict(Verdict('a', False, 'grizzly'))
    assert live.look()
    last = live.body
    there = [f for f in log.files() if f.exists()]
    for f in there: f.rename(f'{f}.away')
    log.file.write_bytes(b'no database at all, but long enough to be taken for one'*100)
    assert live.look() and 'Not up to date' in live.html and live.body == last and not live.look()
    for f in log.files(): f.unlink(missing_ok=True)
    for f in there: Path(f'{f}.away').rename(f)
    assert live.look() and 'Not up to date' not in live.html

@pytest.mark.parametrize('how', ['close', 'stop'])
def test_a_live_report_ends(log, how):
    pytest.importorskip('ipywidgets')
    box = live_report(log, .5, reference_until=start + 6*day)
    button, body = box.children
    before = body.value
    log.write([LogRow('teddy', .9)])
    while body.value == before: time.sleep(.02)
    box.close() if how == 'close' else button.click()
    box.thread.join()
    drawn = box.live.drawn
    log.write([LogRow('teddy', .9)])
    assert box.live.drawn == drawn == 2
    with pytest.raises(ValueError, match='at least 0.5'): live_report(log, 0)

@pytest.mark.parametrize('places', [[5.]*30, list(range(0, 340, 4)), [float(x) for x in np.random.default_rng(0).uniform(0, 340, 200)]])
def test_labels_of_marks_never_overlap(places):
    labels = mark_labels((x, i) for i, x in enumerate(places, 1))
    ends = [(at - 3.5*len(text), at + 3.5*len(text)) for at, text in labels]
    assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:]))
