"The prediction log when things go wrong: killed processes, a full disk, a locked or lost database, hostile input, and an image to forget"
import contextlib, json, os, shutil, sqlite3, subprocess, sys, tempfile, time
from hashlib import sha256
from pathlib import Path
import numpy as np, pytest
pytest.importorskip('sqlalchemy', reason='SQLAlchemy is not installed')
from PIL import Image
from bearcls.inference.classifier import Classifier
from bearcls.monitor.log import LogError, LogRow, PredictionLog, Verdict, log_version, row_values
from bearcls.monitor.retention import export_log, forget, forget_again, manifest_file, prune
from bearcls.monitor.writer import LogWriter, Spool, spool_file
from bearcls.sample.standins import furs
from tiny_bundle import make_bundle

def answers_in(log): return [a for chunk in log.read(['answer']) for a in chunk['answer']]

def is_sound(file):
    with contextlib.closing(sqlite3.connect(file)) as c: return c.execute('PRAGMA integrity_check').fetchall() == [('ok',)]

def start(source, *args, **more):
    "A Python process with `source`"
    return subprocess.Popen([sys.executable, '-c', source, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen in time'
        time.sleep(.02)

# ---------------------------------------------------------------- killed

killed = '''
import json, os, random, signal, sys, time
from bearcls.monitor.log import LogRow, PredictionLog, log_tables
from bearcls.monitor.writer import LogWriter
import sqlalchemy.dialects.sqlite
log_tables()
rng = random.Random(22)
said = []
def write(file, durability, name, pipe):
    writer = LogWriter(PredictionLog(file, durability), linger=0)
    os.write(pipe, b'ready\\n')
    for i in range(10**6):
        for k in range(3): writer.add(LogRow('teddy', .9, answer=f'{name}-{i}-{k}'))
        assert writer.flush()
        os.write(pipe, b'%d\\n' % i)
for n in range(10):
    running = []
    for k in range(5):
        mine, theirs = os.pipe()
        pid = os.fork()  # this process has no threads, and needs to load everything only once
        if not pid:
            try: write(sys.argv[1] + str(n % 3), ('process', 'power')[n % 2], f'{n}-{k}', theirs)
            finally: os._exit(1)
        os.close(theirs)
        running.append((pid, os.fdopen(mine, 'rb')))
    for pid, pipe in running: assert pipe.readline() == b'ready\\n'
    for pid, pipe in running:
        time.sleep(rng.random()*.1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said.append([list(map(int, pipe.read().split())) for pid, pipe in running])
print(json.dumps(said))
'''

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='Windows cannot fork')
def test_acknowledged_rows_survive_a_kill(tmp_path):
    "50 processes, five at once on one file, are killed at random; whatever they said was safe is there, and the file is sound"
    p = start(killed, tmp_path/'log')
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err.decode()
    said = json.loads(out)
    assert sum(len(i) for round in said for i in round) > 100
    there = set()
    for n in range(3):
        log = PredictionLog(tmp_path/f'log{n}')
        with LogWriter(log, linger=0) as writer:  # takes in what a killed process has left in the spool
            writer.add(LogRow('teddy', .9))
            assert writer.flush()
            until(lambda: not writer.spool.bytes)
        found = answers_in(log)
        assert is_sound(log.file) and len(found) == len(set(found))
        there |= set(found)
    assert not {f'{n}-{k}-{i}-{j}' for n, round in enumerate(said) for k, acknowledged in enumerate(round) for i in acknowledged for j in range(3)} - there

# ---------------------------------------------------------------- several processes

together = '''
import sys
from bearcls.monitor.log import LogRow
from bearcls.monitor.writer import LogWriter
with LogWriter(sys.argv[1], max_waiting=10**5) as writer:
    for i in range(2000): writer.add(LogRow('teddy', .9, answer=f'{sys.argv[2]}-{i}'))
    assert writer.flush(60) and not writer.status().lost
'''

def test_several_processes_write_one_file(tmp_path):
    file = tmp_path/'log.sqlite'
    running = [start(together, file, k) for k in range(3)]
    for p in running: assert p.wait(60) == 0, p.stderr.read().decode()
    assert sorted(answers_in(PredictionLog(file))) == sorted(f'{k}-{i}' for k in range(3) for i in range(2000)) and is_sound(file)

# ---------------------------------------------------------------- full, locked, lost

def test_a_full_disk(tmp_path, monkeypatch):
    "Rows go into the spool, and into the database when there is room again"
    log = PredictionLog(tmp_path/'log.sqlite', timeout=.2)
    log.write([LogRow('teddy', .9)])
    full = [True]
    transaction = PredictionLog.transaction
    @contextlib.contextmanager
    def bounded(self, write=True):
        with transaction(self, write) as connection:
            connection.exec_driver_sql(f'PRAGMA max_page_count={20 if full[0] else 10**6}')
            yield connection
    monkeypatch.setattr(PredictionLog, 'transaction', bounded)
    with pytest.raises(LogError, match='the disk is full'): log.write([LogRow('teddy', .9, thumbnail=bytes(60_000)) for _ in range(9)])
    writer = LogWriter(log, retry=.1)
    for i in range(100): assert writer.add(LogRow('teddy', .9, answer=f'{i}', thumbnail=bytes(3000)))
    assert writer.flush()
    status = writer.status()
    assert status.in_spool and not status.lost and 'the disk is full' in status.words and 'rows wait in the spool' in status.words
    full[0] = False
    until(lambda: not writer.spool.bytes)
    assert {str(i) for i in range(100)} <= set(answers_in(log)) and writer.status().words == '' and is_sound(log.file)
    writer.close()

limited = '''
import resource, signal, sys
from bearcls.monitor.log import LogRow
from bearcls.monitor.writer import LogWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
writer = LogWriter(sys.argv[1])
kept = 0
for i in range(60):
    added = writer.add(LogRow('teddy', .9, answer=str(i), thumbnail=bytes(20_000)))
    assert added and isinstance(writer.flush(), bool)
s = writer.status()
print(s.written, s.spooled, s.lost)
assert s.lost and s.written + s.in_spool + s.lost >= 60 and 'lost' in s.words
'''

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no limit on the size of files')
def test_no_space_for_anything(tmp_path):
    "Where even the spool finds no room, what is lost is counted, to the last row"
    p = start(limited, tmp_path/'log.sqlite')
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err.decode()
    written, spooled, lost = map(int, out.split())
    left = Spool(tmp_path/'log.sqlite.spool')
    log = PredictionLog(tmp_path/'log.sqlite')
    assert len(set(answers_in(log))) + len(left) + lost == 60 and is_sound(log.file)
    with LogWriter(log) as writer: until(lambda: not writer.spool.bytes)
    assert len(answers_in(log)) == 60 - lost

def test_a_file_that_is_moved_away(tmp_path):
    "Rows go into a new file, not into one without a name"
    log = PredictionLog(tmp_path/'log.sqlite')
    with LogWriter(log) as writer:
        writer.add(LogRow('teddy', .9, answer='before'))
        assert writer.flush()
        for f in log.files():
            if f.exists(): f.rename(tmp_path/f.name.replace('log', 'old'))
        writer.add(LogRow('teddy', .9, answer='after'))
        assert writer.flush()
    assert answers_in(log) == ['after'] and answers_in(PredictionLog(tmp_path/'old.sqlite')) == ['before']

def test_the_queue_is_bounded(tmp_path):
    log = PredictionLog(tmp_path/'log.sqlite', timeout=2)
    log.write([LogRow('teddy', .9)])
    with contextlib.closing(sqlite3.connect(log.file, isolation_level=None)) as blocker:
        blocker.execute('BEGIN IMMEDIATE')
        writer = LogWriter(log, max_waiting=10, linger=0)
        begun = time.monotonic()
        kept = [writer.add(LogRow('teddy', .9)) for _ in range(50)]
        assert time.monotonic() - begun < 1 and 10 <= sum(kept) < 25
        assert writer.status().lost == 50 - sum(kept) and 'more rows come than can be written' in writer.status().words
        blocker.execute('ROLLBACK')
    assert writer.close() and writer.status().written == sum(kept)

# ---------------------------------------------------------------- Postgres

binaries = next((Path(p) for p in sorted(Path('/usr/lib/postgresql').glob('*/bin'), reverse=True)), None) if os.name == 'posix' else None

class Postgres:
    "A server on a socket in a folder"
    def __init__(self, folder):
        self.folder = folder
        self.ours = [] if os.geteuid() else ['runuser', '-u', 'postgres', '--']
        if not os.geteuid(): shutil.chown(folder, 'postgres')
        self.ask('initdb', '-D', folder/'data', '-A', 'trust', '-U', 'postgres')
        self.start()
        self.url = f'postgresql+psycopg://postgres@/postgres?host={folder}'
    def ask(self, name, *args): subprocess.run([*self.ours, str(binaries/name), *map(str, args)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd='/')
    def start(self): self.ask('pg_ctl', '-D', self.folder/'data', '-w', '-l', self.folder/'log', '-o', f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off", 'start')
    def stop(self): self.ask('pg_ctl', '-D', self.folder/'data', '-w', '-m', 'immediate', 'stop')

@pytest.fixture(scope='module')
def postgres():
    pytest.importorskip('psycopg', reason='psycopg is not installed')
    if not binaries: pytest.skip('Postgres is not installed')
    folder = Path(tempfile.mkdtemp(prefix='bearcls_pg_'))
    try: server = Postgres(folder)
    except (OSError, subprocess.CalledProcessError) as e: pytest.skip(f'Postgres does not start: {getattr(e, "stderr", e)}')
    yield server
    with contextlib.suppress(subprocess.CalledProcessError): server.stop()
    shutil.rmtree(folder, ignore_errors=True)

def some_rows():
    rows = [LogRow('teddy', .8, dict(teddy=.8, black=.2), i % 3 > 0, time=1.76e9 + 60*i, answer=f't{i}', scene=(-1)**i*2**62, ood_score=.1*i if i % 2 else None, name='b\0är\udc80.jpg',
        sha256=sha256(b'%d' % i).hexdigest(), place='north' if i % 2 else '', features=np.arange(5, dtype=np.float16).tobytes(), width=640) for i in range(20)]
    return rows, [Verdict('t3', True, time=1.0), Verdict('t3', False, 'black', 'Ada', time=2.0), Verdict('t4', True, time=3.0)]

def test_postgres_gives_the_same_answers(postgres, tmp_path):
    rows, verdicts = some_rows()
    found = []
    for where in (tmp_path/'log.sqlite', postgres.url):
        log = PredictionLog(where)
        assert log.write(rows) == 20 and log.write(rows[5:8]) == 0
        for v in verdicts: log.write_verdict(v)
        chunks = list(log.read([*row_values(rows[0]), 'right', 'correct'], since=1.76e9 + 120, chunk=7))
        found.append(({k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}, log.stats().groups, log.stats(until=1.76e9 + 300).answers, [r['answer'] for r in log.tail(3)]))
        assert forget(log, answer='t3', manifest=tmp_path/'manifest').answers == 1 and prune(log, days=1, now=1.76e9 + 86400 + 601).answers == 10
        assert export_log(log, tmp_path/'log.csv') == 9
    (one, *rest), (other, *others) = found
    assert rest == others
    for name in one: np.testing.assert_array_equal(one[name], other[name], name)
    with PredictionLog(postgres.url).transaction() as c: c.exec_driver_sql('DELETE FROM answers')

def test_a_server_that_goes_away(postgres, tmp_path):
    "Answers go on, rows wait in the spool, and nothing is missing or doubled when the server is back"
    log = PredictionLog(postgres.url, timeout=1)
    assert 'postgres@' not in log.title
    with LogWriter(log, spool=tmp_path/'spool', retry=.1) as writer:
        writer.add(LogRow('teddy', .9, answer='first'))
        assert writer.flush() and writer.status().written == 1
        postgres.stop()
        for i in range(30): assert writer.add(LogRow('teddy', .9, answer=f'away{i}'))
        writer.add(Verdict('away3', True))
        assert writer.flush()
        s = writer.status()
        assert s.in_spool == 31 and not s.lost and 'cannot be reached' in s.words
        postgres.start()
        writer.add(LogRow('teddy', .9, answer='last'))
        until(lambda: not writer.spool.bytes)
        assert writer.flush() and not writer.status().words
    names = answers_in(log)
    assert len(names) == len(set(names)) == 32 and log.stats().verdicts == 1

# ---------------------------------------------------------------- forget

def test_forget_leaves_no_byte(tmp_path):
    "Neither in the file nor in its journal, its free pages or the spool; and a reader that is in the way is reported"
    log = PredictionLog(tmp_path/'log.sqlite')
    marked = lambda i: b'THUMB%04d' % i*300
    rows = [LogRow('teddy', .9, answer=f'{i}', sha256=sha256(b'%d' % (i % 50)).hexdigest(), thumbnail=marked(i), features=b'FEAT%04d' % i*64, name=f'photo-{i:04}.jpg') for i in range(100)]
    log.write(rows)
    prune(log, days=0, now=1.0)  # nothing is that old
    waiting = LogRow('teddy', .9, answer='spooled', sha256=rows[7].sha256, thumbnail=marked(7))
    Spool(spool_file(log)).keep([('answers', row_values(waiting)), ('answers', row_values(LogRow('teddy', .9, answer='stays')))])
    def traces(*words): return [(f.name, w) for f in tmp_path.iterdir() if f != manifest_file(log) for w in words if w in f.read_bytes()]
    assert traces(b'THUMB0007') and traces(b'FEAT0057')
    with contextlib.closing(sqlite3.connect(log.file, isolation_level=None)) as reader:
        reader.execute('BEGIN')
        reader.execute('SELECT count(*) FROM answers').fetchall()
        quick = PredictionLog(log.file, timeout=.2)
        assert not forget(quick, sha256=rows[7].sha256).clean
        reader.execute('ROLLBACK')
    again = forget(log, sha256=rows[7].sha256)
    assert again.clean and again.answers == 0
    assert not traces(b'THUMB0007', b'THUMB0057', b'FEAT0007', b'FEAT0057', b'photo-0007', b'photo-0057', rows[7].sha256.encode())
    assert len(answers_in(log)) == 98 and len(Spool(spool_file(log))) == 1 and is_sound(log.file)
    assert [json.loads(line)['sha256'] for line in manifest_file(log).read_text().splitlines()] == [rows[7].sha256]*2
    assert b'THUMB0008' in b''.join(f.read_bytes() for f in log.files() if f.exists())

def test_a_backup_forgets_too(tmp_path):
    log, old = PredictionLog(tmp_path/'log.sqlite'), tmp_path/'backup.sqlite'
    log.write([LogRow('teddy', .9, answer='a', thumbnail=b'PRIVATE'*50), LogRow('teddy', .9, answer='b')])
    with contextlib.closing(sqlite3.connect(log.file)) as source, contextlib.closing(sqlite3.connect(old)) as dest: source.backup(dest)
    forget(log, answer='a')
    assert b'PRIVATE' in old.read_bytes() and forget_again(PredictionLog(old), manifest_file(log)).answers == 1
    assert b'PRIVATE' not in old.read_bytes() and answers_in(PredictionLog(old)) == ['b']

# ---------------------------------------------------------------- versions and input

def test_a_file_of_votes_becomes_a_log(tmp_path):
    "Version 0, as the application wrote it"
    from bearcls.app.feedback import Feedback, FeedbackError
    shutil.copy(Path(__file__).parent/'votes-0.sqlite', tmp_path/'feedback.sqlite')
    log = PredictionLog(tmp_path/'feedback.sqlite')
    found, = log.read(['answer', 'label', 'time', 'trusted', 'right', 'correct', 'name'])
    assert list(found['answer']) == ['7c9e', '8d0f'] and list(found['correct']) == ['black', ''] and list(found['right']) == [0, 1] and list(found['trusted']) == [True, False]
    assert found['time'][0] == 1735732800 and log.write([LogRow('teddy', .9)]) == 1
    with contextlib.closing(sqlite3.connect(log.file)) as c: assert ('votes',) not in c.execute('SELECT name FROM sqlite_master').fetchall()
    with pytest.raises(FeedbackError, match='is a prediction log by now; give it to the application as `log`'): Feedback(log.file).rows()

def older_log(tmp_path, version=1):
    "A log as an older version wrote it: 12 answers; with version 1 3 verdicts, with version 2 one, and a shadow's answer"
    return PredictionLog(shutil.copy(Path(__file__).parent/f'log-{version}.sqlite', tmp_path/'log.sqlite'))

def test_a_log_of_version_1_gets_role_and_pair(tmp_path):
    log = older_log(tmp_path)
    found, = log.read()
    assert len(found['answer']) == 12 and set(found['role']) == set(found['pair']) == {''}
    assert found['right'][1] == 1 and found['right'][3] == 0 and found['correct'][3] == 'teddy' and found['scene'][0] == -6
    assert log.write([LogRow('teddy', .9, role='shadow', pair='p')]) == 1 and log.stats().answers == 12 and log.stats(shadow=True).answers == 13
    with log.transaction(write=False) as c: assert c.exec_driver_sql('SELECT version FROM bearcls_log').scalar() == log_version == 3
    again, = PredictionLog(log.file).read(['answer'], shadow=True)
    assert len(again['answer']) == 13 and is_sound(log.file)

def test_a_log_of_version_2_gets_light_and_colour(tmp_path):
    log = older_log(tmp_path, 2)
    found, = log.read(shadow=True)
    assert list(found['brightness']) == [100 + i for i in range(12)] and np.isnan(found['light']).all() and np.isnan(found['colour']).all()
    assert found['role'][5] == 'shadow' and list(found['pair'][4:6]) == ['p', 'p'] and found['right'][1] == 1
    assert log.write([LogRow('teddy', .9, light=240, colour=31.5)]) == 1
    again, = PredictionLog(log.file).read(['light', 'colour'])
    assert again['light'][-1] == 240 and again['colour'][-1] == 31.5 and is_sound(log.file)

migrating = '''
import sys
from bearcls.monitor.log import LogRow, PredictionLog
log = PredictionLog(sys.argv[1], timeout=60)
print('ready', flush=True)
sys.stdin.readline()
log.write([LogRow('teddy', .9, answer=sys.argv[2], role='shadow')])
'''

def test_several_processes_meet_an_older_log(tmp_path):
    "One of them adds the columns, and all of them write"
    log = older_log(tmp_path)
    running = [start(migrating, log.file, f'new{k}', stdin=subprocess.PIPE) for k in range(4)]
    for p in running: assert p.stdout.readline() == b'ready\n'
    for p in running: p.stdin.write(b'\n'), p.stdin.flush()
    for p in running: assert p.wait(60) == 0, p.stderr.read().decode()
    assert log.stats(shadow=True).answers == 16 and is_sound(log.file)

def test_an_older_program_goes_on_writing(tmp_path):
    "It has the log open while a newer one adds the columns, and knows nothing of them; so does a spool that it has left"
    log = older_log(tmp_path)
    with contextlib.closing(sqlite3.connect(log.file)) as old:
        names = [row[1] for row in old.execute('PRAGMA table_info(answers)') if row[1] != 'id']
        log.stats()
        values = row_values(LogRow('teddy', .9, answer='old'))
        assert set(values) - set(names) == {'role', 'pair', 'light', 'colour'}
        old.execute(f'INSERT INTO answers ({", ".join(names)}) VALUES ({", ".join("?"*len(names))})', [values[n] for n in names])
        old.commit()
    waiting = row_values(LogRow('teddy', .9, answer='spooled'))
    for name in ('role', 'pair', 'light', 'colour'): del waiting[name]
    Spool(spool_file(log)).keep([('answers', waiting)])
    with LogWriter(log) as writer: until(lambda: not writer.spool.bytes)
    found, = log.read(['answer', 'role', 'pair'], since=1.77e9)
    assert list(found['answer']) == ['old', 'spooled'] and set(found['role']) == set(found['pair']) == {''}

def test_postgres_gets_the_columns_too(postgres):
    log = PredictionLog(postgres.url)
    with log.transaction() as c: c.exec_driver_sql('DELETE FROM answers')
    log.write([LogRow('teddy', .9, answer='before')])
    with log.transaction() as c:  # back to version 1
        c.exec_driver_sql('ALTER TABLE answers DROP COLUMN role, DROP COLUMN pair, DROP COLUMN light, DROP COLUMN colour')
        c.exec_driver_sql('UPDATE bearcls_log SET version=1')
    newer = PredictionLog(postgres.url)
    assert newer.write([LogRow('teddy', .9, answer='after', role='shadow', pair='p')]) == 1
    found, = newer.read(['answer', 'role', 'pair'], shadow=True)
    assert list(found['answer']) == ['before', 'after'] and list(found['role']) == ['', 'shadow'] and list(found['pair']) == ['', 'p']
    with newer.transaction() as c: c.exec_driver_sql('DELETE FROM answers')

def test_figures_count_what_people_saw(tmp_path):
    "An image that two models answered is one answer in stats, tail, watch, report and figures; everything is exported"
    from bearcls.monitor.report import wrong_answers
    from bearcls.monitor.watch import LogWatch, Normal, watch_figures
    log = PredictionLog(tmp_path/'log.sqlite')
    for i in range(30):
        log.write([LogRow('teddy', .9, answer=f'a{i}', pair=f'p{i}', model='old', time=1.76e9 + i, role='challenger' if i > 20 else ''),
            LogRow('black', .9, answer=f'b{i}', pair=f'p{i}', model='new', time=1.76e9 + i, role='shadow')])
        log.write_verdict(Verdict(f'b{i}', False, 'teddy'))
    watch = LogWatch(log, state=tmp_path/'watch.json')
    watch.update()
    total = watch.history.periods()[0].total
    assert (total.answers, total.reviews.volunteered) == (30, 0) and watch_figures(tmp_path/'watch.json')[1][2][''] == 30
    assert log.stats().answers == 30 and {r['role'] for r in log.tail(60)} == {'', 'challenger'} and not wrong_answers(log)
    trial = LogWatch(log, Normal(model='new', shadow=True))
    trial.update()
    total = trial.history.periods()[0].total
    assert (total.answers, total.reviews.volunteered) == (30, 30)
    assert export_log(log, tmp_path/'log.csv') == 60 and prune(log, days=1, now=1.77e9).answers == 60

def test_newer_and_foreign_files_stay_as_they_are(tmp_path):
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write([LogRow('teddy', .9)])
    with log.transaction() as c: c.exec_driver_sql(f'UPDATE bearcls_log SET version={log_version + 1}')
    with pytest.raises(LogError, match='written by a newer bearcls'): PredictionLog(log.file).stats()
    for words in (b'no database'*100, b''):
        (tmp_path/'other.sqlite').write_bytes(words)
        if words:
            with pytest.raises(LogError, match='no SQLite database'): PredictionLog(tmp_path/'other.sqlite').write([LogRow('teddy', .9)])
        else: assert PredictionLog(tmp_path/'other.sqlite').write([LogRow('teddy', .9)]) == 1
    with LogWriter(tmp_path/'photos.sqlite') as writer:
        with contextlib.closing(sqlite3.connect(tmp_path/'photos.sqlite')) as c: c.execute('CREATE TABLE photos (id)')
        writer.add(LogRow('teddy', .9))
        assert writer.flush() and 'another program' in writer.status().words and writer.status().in_spool == 1

hostile = ['', 'a\0b', '\ud800\udfff', 'x'*3_000_000, '../../etc/passwd', "'; DROP TABLE answers; --", '\u202egnp.exe', '🐻'*500, '\r\n\t\x1b[31m']

@pytest.mark.parametrize('words', hostile, ids=range(len(hostile)))
def test_hostile_texts_never_cost_an_answer(tmp_path, words):
    row = LogRow(words, .9, {words[:9999]: .9, 'b': .1}, False, words, name=words, request=words)
    log = PredictionLog(tmp_path/'log.sqlite')
    assert log.write([row]) == 1
    found, = log.read(['name', 'request', 'label', 'reason', 'probabilities'])
    assert found['name'][0] == row.name and len(row.name) <= 255 and len(row.request) <= 128 and '\0' not in row.name
    row.name.encode(), row.label.encode()
    for name in ('answer', 'place', 'model', 'sha256'):
        if words in ('', "'; DROP TABLE answers; --", '../../etc/passwd') and name in ('place', 'model') or words == '' and name == 'sha256' or words in hostile[4:6] and name == 'answer': continue
        with pytest.raises(ValueError, match=f'`{name}`') as e: LogRow('teddy', .9, **{name: words})
        assert len(str(e.value)) < 300
    export_log(log, tmp_path/'log.csv')
    assert len((tmp_path/'log.csv').read_bytes()) < 20_000_000

def test_numbers_are_checked():
    for name, values in dict(probability=[None, -1, 1.1, float('nan'), 'x', True + 1], time=[None, float('inf'), 'now'], scene=[2**63, 1.5], width=[-1, 1.5], thumbnail=['x', bytes(70_000)], trusted=[1, None],
            probabilities=[None, [1]], ood_score=[float('nan')]).items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f'`{name}`'): LogRow(**{'label': 'teddy', 'probability': .9, name: value})
    for bad in ({'a': float('nan')}, {'a': object()}, {'a'*2_000_000: .1}):
        with pytest.raises(ValueError, match='`probabilities`'): row_values(LogRow('teddy', .9, bad))

# ---------------------------------------------------------------- answers

def test_a_classifier_with_a_log(tmp_path):
    "Its answers are the same, every way of asking is logged, and a log in trouble does no harm"
    bundle = make_bundle(tmp_path/'bundle')
    file = tmp_path/'brown.png'
    Image.new('RGB', (200, 100), furs['brown']).save(file)
    plain = Classifier(bundle, threads=1).predict(file)
    with LogWriter(tmp_path/'log.sqlite', place='gate', thumbnails=32, features=True) as writer:
        classifier = Classifier(bundle, threads=1, log=writer)
        assert classifier.predict(file) == plain == classifier.predict(file.read_bytes()) == classifier.predict(Image.open(file))
        assert [r.prediction for r in classifier.predict_batch([file, b'<html>', file], quiet=True)] == [plain, None, plain]
    found, = writer.log.read(['name', 'width', 'height', 'bytes', 'sha256', 'place', 'features', 'thumbnail', 'brightness', 'scene', 'seconds', 'model'])
    digest = sha256(file.read_bytes()).hexdigest()
    assert list(found['sha256']) == [digest, digest, '', digest, digest] and set(found['place']) == {'gate'} and list(found['width']) == [200]*5 and set(found['model']) == {classifier.bundle.digest}
    assert [n for n in found['name']] == ['brown.png', '', 'brown.png', 'brown.png', 'brown.png'] and all(np.frombuffer(f, np.float16).shape == (3,) for f in found['features']) and (found['seconds'] > 0).all()
    blind = LogWriter(tmp_path/'nowhere'/'log.sqlite', spool=file/'no')
    assert Classifier(bundle, threads=1, log=blind).predict(file) == plain and not blind.flush() and blind.status().lost == 1

def test_importing_the_wing_loads_nothing_heavy():
    source = "import sys, bearcls.monitor, bearcls.monitor.log, bearcls.monitor.writer, bearcls.monitor.retention; print([m for m in ('torch', 'fastai', 'pandas', 'sqlalchemy', 'scipy', 'matplotlib') if m in sys.modules])"
    assert start(source).communicate()[0].decode().strip() == '[]'

# ---------------------------------------------------------------- service, application, command line

def asked(url, path, content=None, **headers):
    import urllib.request
    request = urllib.request.Request(url + path, content, {'Content-Type': 'image/png', **headers})
    with urllib.request.urlopen(request, timeout=30) as answer: return answer.read()

@pytest.fixture
def brown(tmp_path):
    file = tmp_path/'brown.png'
    Image.new('RGB', (200, 100), furs['brown']).save(file)
    return file

def test_the_service_keeps_its_answers(tmp_path, brown):
    "With request and answer id; when the log is in trouble, answers go on, and /readyz and /metrics say so"
    pytest.importorskip('fastapi', reason='FastAPI is not installed')
    from bearcls.serve.service import Settings, serving
    bundle, file = make_bundle(tmp_path/'bundle'), tmp_path/'log.sqlite'
    with serving(bundle, Settings(threads=1, log=str(file), place='gate')) as url:
        result, = json.loads(asked(url, '/predict', brown.read_bytes(), **{'X-Request-ID': 'visit-7'}))['results']
        until(lambda: file.exists() and PredictionLog(file).stats().answers)
        assert json.loads(asked(url, '/readyz')) == dict(status='ok') and b'bearcls_log_rows_total{result="written"} 1.0' in asked(url, '/metrics')
    row, = PredictionLog(file).tail()
    assert (row['answer'], row['request'], row['place'], row['label'], row['sha256']) == (result['answer'], 'visit-7', 'gate', 'brown', sha256(brown.read_bytes()).hexdigest()) and row['width'] == 200 and row['seconds'] > 0
    (tmp_path/'text.sqlite').write_text('no database '*100)
    with serving(bundle, Settings(threads=1, log=str(tmp_path/'text.sqlite'))) as url:
        assert json.loads(asked(url, '/predict', brown.read_bytes()))['results'][0]['label'] == 'brown'
        until(lambda: 'log' in json.loads(asked(url, '/readyz')))
        state = json.loads(asked(url, '/readyz'))
        assert state['status'] == 'ok' and state['log'] == 'text.sqlite is no SQLite database; 1 rows wait in the spool, 0 are lost'
        assert b'bearcls_log_spool_rows 1.0' in asked(url, '/metrics')
    with pytest.raises(ValueError, match='`place` must be printable'): Settings(place='a\nb')

def test_the_application_keeps_answers_and_votes(tmp_path, brown):
    pytest.importorskip('anywidget', reason='anywidget is not installed')
    from bearcls.app.notebook import AppDesk
    with LogWriter(tmp_path/'log.sqlite') as writer:
        desk = AppDesk(Classifier(make_bundle(tmp_path/'bundle'), threads=1), log=writer)
        said = desk.reply(dict(do='ask', number='1', name='b\0är.png'), [brown.read_bytes()])
        assert desk.reply(dict(do='tell', number='2', answer=said['answer'], right=False, label='black')) == dict(number='2', kept=True)
        for bad in (dict(right='yes'), dict(right=True, label='black'), dict(right=False, label='polar')): assert desk.reply(dict(do='tell', number='3', answer=said['answer'], **bad))['problem']
        assert desk.log_trouble() == ''
    found, = writer.log.read(['answer', 'label', 'width', 'right', 'correct', 'sha256'])
    assert (found['answer'][0], found['label'][0], found['width'][0], found['right'][0], found['correct'][0]) == (said['answer'], 'brown', 200, 0, 'black') and found['sha256'][0] == sha256(brown.read_bytes()).hexdigest()
    blind = LogWriter(tmp_path/'nowhere'/'log.sqlite', spool=brown/'no')
    desk = AppDesk(desk.classifier, log=blind)
    said = desk.reply(dict(do='ask', number='1', name='bear.png'), [brown.read_bytes()])
    assert said['label'] == 'brown' and 'could not be kept' in desk.reply(dict(do='tell', number='2', answer=said['answer'], right=True))['problem'] and 'lost' in desk.log_trouble()

def test_the_command_line(tmp_path, capsys):
    from bearcls.cli import main
    log = PredictionLog(tmp_path/'log.sqlite')
    log.write([LogRow('grizzly', .94, place='gate', time=1.76e9, answer='a1', sha256='5c'*32, thumbnail=b'PRIVATE'*9), LogRow('teddy', .51, trusted=False, reason='it could be black', time=1.76e9 + 60, answer='a2')])
    file = str(log.file)
    def says(*argv, status=0):
        assert main(['log', *argv]) == status
        return ''.join(capsys.readouterr())
    assert says('tail', file, '-n', '1').startswith('2025-10-09 08:54:20  a2') and 'not trusted: it could be black' in says('tail', file)
    assert '2 answers, 0 verdicts' in says('stats', file) and '0 answers' in says('stats', file, '--days', '1')
    assert '2 rows' in says('export', file, str(tmp_path/'log.csv')) and '.csv or .parquet' in says('export', file, str(tmp_path/'log.xls'), status=2)
    assert '1 answers' in says('forget', file, '--sha256', '5c'*32) and b'PRIVATE' not in log.file.read_bytes()
    assert '1 answers are gone' in says('prune', file, '--days', '1') and log.stats().answers == 0
    assert 'there is no log' in says('tail', str(tmp_path/'none.sqlite'), status=2) and '64 hexadecimal' in says('forget', file, '--sha256', 'x', status=2) and 'must be a file or a URL' in says('stats', 'nosuch://x', status=2)
