"Cleaning that is killed at every step, meets odd files, full disks and other people's hands: nothing is lost, and what is told is true"
import errno, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from hostile import bomb, image_bytes
from bearcls.clean import marks as marks_room, moves as moves_room
from bearcls.clean.cleaning import Cleaning, orders
from bearcls.clean.marks import Mark, Marks
from bearcls.clean.moves import apply_plan, batches, cleaning_folder, finish_moves, moved_from, redo_moves, undo_moves, unfinished_moves
from bearcls.clean.plans import Change, plan_changes
from bearcls.core import DataError
from bearcls.manifest import ImageRow, describe_file, read_manifest, write_manifest
from bearcls.images import load_image
from bearcls.folders import image_files
from bearcls.interpret.evaluate import Evaluation
from bearcls.verify.quarantine import quarantine_files, quarantine_folder, read_journal, restore, Suspect, whereabouts
from bearcls.verify.report import check_images

posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no fork, and not the same links and names')

def files_of(folder):
    "Everything in a folder: bytes, time and mode of files, where links lead, folders"
    found = {}
    for f in sorted(Path(folder).rglob('*')):
        name = f.relative_to(folder).as_posix()
        if f.is_symlink(): found[name] = 'link', os.readlink(f)
        elif f.is_dir(): found[name] = 'folder'
        else: found[name] = f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_mode
    return found


def contents(folder): return sorted(f.read_bytes() for f in Path(folder).rglob('*') if f.is_file() and f.suffix == '.jpg')


def predicted(path, **changes):
    "An Evaluation whose model says `changes[file]`, and else what the image is filed as"
    labels, files = sorted(d.name for d in path.iterdir() if d.is_dir()), image_files(path)
    rows, probabilities, rng = [], [], np.random.default_rng(0)
    for n, f in enumerate(files):
        said, sure = changes.get(f'{f.parent.name}/{f.name}', (f.parent.name, .9))
        p = np.full(len(labels), (1 - sure)/(len(labels) - 1))
        p[labels.index(said)] = sure
        probabilities.append(p)
        loss = -np.log(p[labels.index(f.parent.name)])
        rows.append(dict(file=str(f), split=('train', 'valid')[n % 2], actual=f.parent.name, predicted=said, probability=sure, loss=loss, correct=said == f.parent.name))
    features = np.array(probabilities, np.float32)*4 + rng.normal(0, .1, (len(files), len(labels))).astype(np.float32)
    return Evaluation(pd.DataFrame(rows), labels, np.array(probabilities), features)


@pytest.fixture
def folder(tmp_path):
    "Two labels with the same names in both, a manifest with a column of its own and Windows line ends, odd times"
    path = tmp_path/'bears'
    for k, label in enumerate(('black', 'grizzly')):
        (path/label).mkdir(parents=True)
        for n in range(4):
            (path/label/f'{n}.jpg').write_bytes(image_bytes(10*k + n))
            os.utime(path/label/f'{n}.jpg', ns=(10**18 + n, 10**18 + 7*n + 1))
    rows = [describe_file(f, path, url=f'http://x.test/{f.name}', more={'mine': 'kept'}) for f in image_files(path)]
    rows[1].status, rows[1].reason = 'duplicate', 'of old'
    manifest = write_manifest(path, [*rows, ImageRow(url='http://x.test/gone', status='failed', reason='HTTP 404')])
    manifest.write_bytes(manifest.read_bytes().replace(b'\n', b'\r\n'))
    os.utime(manifest, ns=(10**18, 10**18 + 5))
    return path

changes = [Change('black/0.jpg', 'delete', reason='a toy'), Change('black/1.jpg', 'relabel', 'grizzly'), Change('grizzly/2.jpg', 'delete'), Change('grizzly/3.jpg', 'relabel', 'sun bear')]


# --- killed at every step

def count_steps(work, kill_at=None):
    "Do `work` in a process of its own that dies just before its step number `kill_at`; how many steps on the disk it took, or None if it died"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        n_steps, fsync = 0, os.fsync
        def step():
            nonlocal n_steps
            if n_steps == kill_at: os.kill(os.getpid(), signal.SIGKILL)
            n_steps += 1
        def heed(event, args):
            writes = event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or event in ('os.rename', 'os.mkdir', 'os.rmdir', 'os.remove', 'os.utime', 'os.chmod', 'os.truncate', 'os.link', 'os.symlink'): step()
        def deadly_fsync(handle):
            step()
            fsync(handle)
        try:
            os.fsync = deadly_fsync
            sys.addaudithook(heed)
            work()
            os.write(writer, str(n_steps).encode())
        finally: os._exit(0)
    os.close(writer)
    with os.fdopen(reader, 'rb') as f: answer = f.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) == (not answer), 'the child failed'
    return int(answer) if answer else None


def copies(folder, tmp_path):
    "The folder with all that lies beside it, as often as one likes"
    n = 0
    while True:
        n += 1
        shutil.copytree(tmp_path, tmp_path.parent/f'{tmp_path.name}-copies'/str(n), symlinks=True, copy_function=shutil.copy2)
        yield tmp_path.parent/f'{tmp_path.name}-copies'/str(n)/folder.name


def apply_changes(path): return apply_plan(plan_changes(path, changes))


def lying_about(path):
    "What lies beside the image folder and would be in somebody's way: images in quarantine, half-written files"
    return sorted(f.name for f in path.parent.rglob('*') if f.is_file() and (f.suffix == '.jpg' and '.quarantine' in f.parts or f.name.endswith('.cleaning') or f.parent == path and f.name.endswith('.part')))


@posix
def test_killed_at_every_step_of_apply(folder, tmp_path):
    before, copy = files_of(folder), copies(folder, tmp_path)
    whole = next(copy)
    n_steps = count_steps(lambda: apply_changes(whole))
    after = {name: held if name != 'manifest.csv' else held[0] for name, held in files_of(whole).items()}
    assert n_steps > 30 and sorted(after) != sorted(before)
    seen = set()
    for step in range(n_steps):
        path = next(copy)
        assert count_steps(lambda: apply_changes(path), step) is None
        assert contents(path.parent) == contents(tmp_path), 'an image was lost, or is there twice'
        half = path.parent.with_name(f'{path.parent.name}-half')
        shutil.copytree(path.parent, half, symlinks=True)
        seen.add(bool(unfinished_moves(path)))
        if unfinished_moves(path):
            with pytest.raises(DataError, match='was interrupted'): apply_changes(path)
        undo_moves(path)
        assert files_of(path) == before and lying_about(path) == [] and restore(path) == [] and not unfinished_moves(path), f'undo after step {step}'
        apply_changes(path)
        assert {name: held if name != 'manifest.csv' else held[0] for name, held in files_of(path).items()} == after, f'once more after step {step}'
        path = half/folder.name
        finish_moves(path) or len(lying_about(path)) == 2 or apply_changes(path)
        assert {name: held if name != 'manifest.csv' else held[0] for name, held in files_of(path).items()} == after and not unfinished_moves(path), f'finish after step {step}'
        undo_moves(path)
        assert files_of(path) == before, f'undo of what was finished after step {step}'
    assert seen == {True, False}


@posix
def test_killed_at_every_step_of_undo(folder, tmp_path):
    before, copy = files_of(folder), copies(folder, tmp_path)
    apply_changes(folder)
    path = next(copy)
    n_steps = count_steps(lambda: undo_moves(path))
    assert n_steps > 15
    for step in range(n_steps):
        path = next(copy)
        assert count_steps(lambda: undo_moves(path), step) is None
        assert contents(path.parent) == contents(tmp_path)
        (undo_moves if step % 2 else finish_moves)(path)
        if not step % 2 and batches(path)[-1].state == 'applied': undo_moves(path)  # killed before the undo was written down
        assert files_of(path) == before and restore(path) == [] and not unfinished_moves(path), f'step {step}'
        assert {m.status for m in redo_moves(path)} == {'moved'}


@posix
def test_killed_while_finishing_and_while_undoing_what_was_half_done(folder, tmp_path):
    before, copy = files_of(folder), copies(folder, tmp_path)
    path = next(copy)
    n_steps = count_steps(lambda: apply_changes(path))
    for first in range(8, n_steps, 5):
        for second in (3, 6, 9, 14):
            for work in (finish_moves, undo_moves):
                path = next(copy)
                count_steps(lambda: apply_changes(path), first)
                count_steps(lambda: work(path), second)
                undo_moves(path)
                assert files_of(path) == before and lying_about(path) == [] and restore(path) == [], (first, second, work)


@posix
def test_killed_at_every_step_across_disks(folder, tmp_path, monkeypatch):
    "Moving is copying there; the new label's folder lies on the other disk"
    rename, stat = os.rename, os.stat
    def other_disk(source, target, **kwargs): raise OSError(errno.EXDEV, 'Invalid cross-device link')
    monkeypatch.setattr('bearcls.verify.quarantine.os.rename', other_disk)
    monkeypatch.setattr(moves_room, '_other_disk', lambda a, b: True)
    before, copy = files_of(folder), copies(folder, tmp_path)
    path = next(copy)
    n_steps = count_steps(lambda: apply_changes(path))
    for step in range(n_steps):
        path = next(copy)
        assert count_steps(lambda: apply_changes(path), step) is None
        assert set(contents(path.parent)) >= set(contents(tmp_path))
        if step % 2:
            finish_moves(path)
            undo_moves(path)
        undo_moves(path)
        assert files_of(path) == before and restore(path) == [] and contents(path.parent) == contents(tmp_path), step


@posix
def test_a_cleaning_that_was_killed_says_so_and_goes_on(folder, tmp_path):
    before, copy = files_of(folder), copies(folder, tmp_path)
    cleaning = Cleaning(folder)
    cleaning.mark(['black/0.jpg', 'grizzly/2.jpg'], 'delete')
    cleaning.mark('black/1.jpg', 'relabel', 'grizzly')
    cleaning.mark('black/3.jpg', 'keep')
    marks, path = cleaning.marks, next(copy)
    n_steps = count_steps(lambda: Cleaning(path).apply())
    for step in range(0, n_steps, 3):
        path = next(copy)
        assert count_steps(lambda: Cleaning(path).apply(), step) is None
        again = Cleaning(path)
        if again.unfinished: assert again.unfinished[1:] in again.notes[0]
        if step % 2:
            again.apply()
            assert not again.unfinished and set(again.marks) == {'black/3.jpg'} and len(again) == 6, step
        again.undo()
        assert files_of(path) == before and again.marks == marks and len(again) == 8, step


def test_the_batch_and_the_manifest_are_on_the_disk_before_the_first_file_moves(folder, monkeypatch):
    order, fsync, move = [], os.fsync, moves_room.move_file
    def noted_fsync(handle):
        fsync(handle)
        order.append(Path(os.readlink(f'/proc/self/fd/{handle}')).name if os.path.exists('/proc/self/fd') else '')
    def noted_move(source, target):
        order.append('move')
        assert [s.file for s in batches(folder)[-1].steps] == [c.file for c in changes]
        move(source, target)
    monkeypatch.setattr(os, 'fsync', noted_fsync)
    monkeypatch.setattr(moves_room, 'move_file', noted_move)
    apply_changes(folder)
    before_moving = order[:order.index('move')]
    assert len(before_moving) >= 3 and order.count('move') == 4
    if all(order): assert ['manifest.csv', 'batch.part', '0001'] == before_moving[:3]


# --- names, links, rights, disks

def test_names_that_collide_keep_every_image(folder):
    before, kept = files_of(folder), contents(folder)
    (folder/'grizzly'/'0-1.jpg').write_bytes(image_bytes(77))
    before, kept = files_of(folder), contents(folder)
    (folder/'sun').mkdir()
    (folder/'sun'/'0.jpg').write_bytes(image_bytes(78))
    before, kept = files_of(folder), contents(folder)
    plan = plan_changes(folder, [Change('black/0.jpg', 'relabel', 'grizzly'), Change('sun/0.jpg', 'relabel', 'grizzly'), Change('grizzly/0.jpg', 'relabel', 'black')])
    assert [s.to for s in plan.steps] == ['grizzly/0-2.jpg', 'grizzly/0-3.jpg', 'black/0-1.jpg']
    assert all('0.jpg is taken' in r['reason'] for r in plan.rows) and list(plan.table.columns) == ['file', 'action', 'to', 'reason']
    apply_plan(plan)
    assert contents(folder) == kept and (folder/'grizzly'/'0-2.jpg').read_bytes() == before['black/0.jpg'][0]
    undo_moves(folder)
    assert files_of(folder) == before


def test_a_name_taken_between_plan_and_apply(folder):
    plan = plan_changes(folder, [Change('black/0.jpg', 'relabel', 'sun bear')])
    (folder/'sun bear').mkdir()
    (folder/'sun bear'/'0.jpg').write_bytes(image_bytes(50))
    [move] = apply_plan(plan)
    assert move.to == 'sun bear/0-1.jpg' and (folder/'sun bear'/'0.jpg').read_bytes() == image_bytes(50)


def test_a_name_taken_at_the_last_moment(folder, monkeypatch):
    real, before = moves_room._begin, files_of(folder)
    def slow(path, steps):
        batch = real(path, steps)
        (folder/'grizzly'/'0-1.jpg').write_bytes(image_bytes(50))
        return batch
    monkeypatch.setattr(moves_room, '_begin', slow)
    first, second = apply_plan(plan_changes(folder, [Change('black/0.jpg', 'relabel', 'grizzly'), Change('black/1.jpg', 'delete')]))
    assert (first.status, second.status) == ('skipped', 'moved') and 'at the last moment' in first.reason
    assert (folder/'grizzly'/'0-1.jpg').read_bytes() == image_bytes(50)
    (folder/'grizzly'/'0-1.jpg').unlink()
    undo_moves(folder)
    assert files_of(folder) == before


@pytest.mark.parametrize('action, to, meddle', [('delete', '', lambda f: f.write_bytes(image_bytes(60))), ('relabel', 'grizzly', lambda f: f.unlink()), ('relabel', 'grizzly', lambda f: f.rename(f.with_name('other.jpg')))])
def test_a_file_that_changed_or_went_since_it_was_marked_is_left_alone(folder, action, to, meddle):
    cleaning = Cleaning(folder)
    cleaning.mark('black/0.jpg', action, to)
    cleaning.mark('black/1.jpg', 'delete')
    meddle(folder/'black'/'0.jpg')
    between = files_of(folder)
    assert 'black/0.jpg' in cleaning.notes[0] and len(cleaning.notes) == 1
    assert [s.action for s in sorted(cleaning.plan().steps, key=lambda s: s.file)] == ['leave', 'delete']
    moves = {m.file: m for m in cleaning.apply()}
    assert moves['black/0.jpg'].status == 'skipped' and ('changed' in moves['black/0.jpg'].reason or 'not there' in moves['black/0.jpg'].reason)
    assert moves['black/1.jpg'].status == 'moved'
    cleaning.undo()
    assert files_of(folder) == between


def test_a_file_that_changes_during_apply_is_left_alone(folder, monkeypatch):
    real = moves_room._begin
    def slow(path, steps):
        batch = real(path, steps)
        (folder/'black'/'0.jpg').write_bytes(image_bytes(60))
        return batch
    monkeypatch.setattr(moves_room, '_begin', slow)
    moves = apply_changes(folder)
    assert [m.status for m in moves] == ['skipped', 'moved', 'moved', 'moved'] and 'changed' in moves[0].reason
    assert (folder/'black'/'0.jpg').read_bytes() == image_bytes(60)
    undo_moves(folder)
    assert (folder/'black'/'0.jpg').read_bytes() == image_bytes(60) and (folder/'black'/'1.jpg').exists()


@posix
def test_links_move_as_links_or_stay(folder, tmp_path):
    (tmp_path/'store').mkdir()
    (tmp_path/'store'/'a.jpg').write_bytes(image_bytes(90))
    os.symlink('../../store/a.jpg', folder/'black'/'outside.jpg')
    os.symlink('0.jpg', folder/'black'/'beside.jpg')
    os.symlink(tmp_path/'store'/'a.jpg', folder/'black'/'absolute.jpg')
    os.symlink('black', folder/'twin')
    os.symlink('nowhere', folder/'black'/'broken.jpg')
    before = files_of(folder)
    plan = plan_changes(folder, [Change(f'black/{n}.jpg', 'relabel', 'grizzly') for n in ('outside', 'beside', 'absolute')] + [Change('black/broken.jpg', 'delete'), Change('black/3.jpg', 'relabel', 'twin')])
    assert [s.action for s in plan.steps] == ['relabel', 'leave', 'relabel', 'delete', 'leave']
    assert 'lead elsewhere' in plan.steps[1].note and 'already' in plan.steps[4].note
    apply_plan(plan)
    assert (folder/'grizzly'/'outside.jpg').is_symlink() and (folder/'grizzly'/'outside.jpg').read_bytes() == image_bytes(90) and (tmp_path/'store'/'a.jpg').exists()
    assert os.path.lexists(quarantine_folder(folder)/'black'/'broken.jpg')
    undo_moves(folder)
    assert files_of(folder) == before


@posix
def test_odd_names_are_marked_moved_and_brought_back(folder):
    odd = ['bär ☃.jpg', 'a\\b.jpg', 'new\nline.jpg', os.fsdecode(b'caf\xe9.jpg'), ' space .jpg', '-rf.jpg', '<b>&.jpg', 'e\u0301.jpg', '\u00e9.jpg', "quote'\".jpg"]
    if sys.platform == 'darwin': odd = [n for n in odd if n.isascii() or '☃' in n]  # there, two spellings of é are one name, and bytes that are no UTF-8 none
    for n, name in enumerate(odd): (folder/'black'/name).write_bytes(image_bytes(20 + n))
    cleaning, before = Cleaning(folder, labels=['Bär ☃']), files_of(folder)
    cleaning.mark([f'black/{n}' for n in odd[::2]], 'delete')
    cleaning.mark([f'black/{n}' for n in odd[1::2]], 'relabel', 'Bär ☃')
    again = Cleaning(folder)
    assert again.marks == cleaning.marks and again.notes == []
    assert '<b>&.jpg' not in again.plan()._repr_html_()
    assert {m.status for m in again.apply()} == {'moved'} and len(again) == 8 + len(odd[1::2])
    assert {m.status for m in Cleaning(folder).undo()} == {'restored'}
    assert files_of(folder) == before and Cleaning(folder).marks == cleaning.marks


@posix
@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_that_may_not_be_written_is_told(folder):
    before = files_of(folder)
    (folder/'black').chmod(0o555)
    try:
        moves = apply_changes(folder)
        assert [m.status for m in moves] == ['skipped', 'skipped', 'moved', 'moved'] and 'Permission denied' in moves[0].reason
        undo_moves(folder)
    finally: (folder/'black').chmod(0o755)
    assert files_of(folder) == before


def refusing(monkeypatch, number, code=errno.EACCES):
    "Every move fails from the `number`th on"
    real, calls = moves_room.move_file, []
    def move(source, target):
        calls.append(source)
        if len(calls) >= number: raise OSError(code, os.strerror(code))
        return real(source, target)
    monkeypatch.setattr(moves_room, 'move_file', move)


@pytest.mark.parametrize('code', [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_moves_that_fail_are_told_and_the_others_come_back(folder, monkeypatch, code):
    before = files_of(folder)
    with monkeypatch.context() as patch:
        refusing(patch, 3, code)
        moves = apply_changes(folder)
    assert [m.status for m in moves] == ['moved', 'moved', 'skipped', 'skipped'] and os.strerror(code) in moves[2].reason
    with monkeypatch.context() as patch:
        refusing(patch, 2, code)
        back = undo_moves(folder)
    assert sorted(m.status for m in back if m.file != 'manifest.csv') == ['restored', 'skipped']
    rows = {r.file: r.status for r in read_manifest(folder)}
    there = {f.relative_to(folder).as_posix() for f in image_files(folder)}
    assert {f for f, status in rows.items() if f and status != 'quarantined'} == there
    assert [m.status for m in undo_moves(folder)] == ['restored'] and files_of(folder) == before


def test_a_full_disk_before_the_batch_is_written_down_moves_nothing(folder, monkeypatch):
    before = files_of(folder)
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(moves_room, '_sync', full)
        with pytest.raises(DataError, match='Nothing has been moved.*No space left'): apply_changes(folder)
    assert files_of(folder) == before and not unfinished_moves(folder)
    assert {m.status for m in apply_changes(folder)} == {'moved'}
    undo_moves(folder)
    assert files_of(folder) == before


def test_a_full_disk_at_the_manifest_is_told_and_finished_later(folder, monkeypatch):
    before = files_of(folder)
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(moves_room, '_put', full)
        moves = apply_changes(folder)
    assert [m.status for m in moves] == ['moved']*4 + ['skipped'] and moves[-1].file == 'manifest.csv' and 'No space left' in moves[-1].reason
    assert files_of(folder)['manifest.csv'] == before['manifest.csv'] and unfinished_moves(folder)
    finish_moves(folder)
    assert not unfinished_moves(folder) and sum(r.status == 'quarantined' for r in read_manifest(folder)) == 2
    undo_moves(folder)
    assert files_of(folder) == before


# --- the manifest

def test_the_manifest_follows_and_comes_back_byte_for_byte(folder):
    before = files_of(folder)
    apply_changes(folder)
    rows = {r.url: r for r in read_manifest(folder) if r.label == 'black'}
    assert (rows['http://x.test/0.jpg'].status, rows['http://x.test/0.jpg'].reason) == ('quarantined', 'cleaned: a toy')
    assert rows['http://x.test/1.jpg'].file == 'grizzly/1-1.jpg' and rows['http://x.test/1.jpg'].more == {'mine': 'kept'}
    assert any(r.status == 'failed' for r in read_manifest(folder))
    undo_moves(folder)
    assert files_of(folder)['manifest.csv'] == before['manifest.csv']


def test_a_manifest_that_others_wrote_keeps_what_they_wrote(folder):
    old = {r.file: r for r in read_manifest(folder)}
    apply_changes(folder)
    write_manifest(folder, [*read_manifest(folder), ImageRow(file='black/new.jpg', label='black', url='http://new.test')])
    told = undo_moves(folder)[-1]
    assert told.file == 'manifest.csv' and 'others have written' in told.reason
    rows = {r.file: r for r in read_manifest(folder)}
    assert rows.pop('black/new.jpg').url == 'http://new.test' and rows == old


def test_a_manifest_removed_or_damaged_in_between(folder):
    kept = (folder/'manifest.csv').read_bytes()
    apply_changes(folder)
    (folder/'manifest.csv').unlink()
    told = undo_moves(folder)[-1]
    assert told.status == 'skipped' and 'removed' in told.reason and Path(told.reason.rpartition(' at ')[2]).read_bytes() == kept
    assert (folder/'black'/'0.jpg').exists()
    (folder/'manifest.csv').write_bytes(b'file,width\nblack/0.jpg,broad\n')
    with pytest.raises(DataError, match='a whole number is expected'): apply_changes(folder)
    assert (folder/'black'/'0.jpg').exists() and not (folder/'sun bear').exists()

def test_a_table_of_the_users_own_is_left_as_it_is(folder):
    (folder/'manifest.csv').write_bytes(b'a;b\n1;2\n')
    before = files_of(folder)
    apply_changes(folder)
    assert (folder/'manifest.csv').read_bytes() == b'a;b\n1;2\n' and files_of(folder) != before
    assert undo_moves(folder) and files_of(folder) == before


def test_a_folder_without_a_manifest_gets_none(folder):
    (folder/'manifest.csv').unlink()
    before = files_of(folder)
    apply_changes(folder)
    assert not (folder/'manifest.csv').exists()
    assert undo_moves(folder) and files_of(folder) == before


# --- undo of undo, two batches, other hands

def test_batches_come_back_in_the_reverse_order(folder):
    states = [files_of(folder)]
    for change in (Change('black/0.jpg', 'relabel', 'grizzly'), Change('grizzly/0-1.jpg', 'relabel', 'sun'), Change('sun/0-1.jpg', 'delete')):
        assert [m.status for m in apply_plan(plan_changes(folder, [change]))] == ['moved']
        states.append(files_of(folder))
    assert moved_from(folder) == {'sun/0-1.jpg': 'black/0.jpg'}
    states.pop()
    while states:
        assert [m.status for m in undo_moves(folder)] == ['restored']
        assert files_of(folder) == states.pop()
    assert undo_moves(folder) == [] and moved_from(folder) == {}


def test_redo_takes_the_undo_back_until_something_else_is_applied(folder):
    before = files_of(folder)
    apply_changes(folder)
    after = {k: v for k, v in files_of(folder).items() if k != 'manifest.csv'}
    for _ in range(3):
        undo_moves(folder)
        assert files_of(folder) == before
        assert {m.status for m in redo_moves(folder)} == {'moved'} and {k: v for k, v in files_of(folder).items() if k != 'manifest.csv'} == after
    undo_moves(folder)
    apply_plan(plan_changes(folder, [Change('grizzly/0.jpg', 'delete')]))
    between = files_of(folder)
    assert redo_moves(folder) == [] and files_of(folder) == between


def test_restore_between_apply_and_undo_loses_nothing_and_is_told(folder):
    before = files_of(folder)
    apply_changes(folder)
    assert {m.status for m in restore(folder)} == {'restored'}
    back = {m.file: m for m in undo_moves(folder)}
    assert {m.status for m in back.values()} == {'restored'}
    assert {f for f, m in back.items() if m.reason == 'it was back already'} == {'black/0.jpg', 'grizzly/2.jpg'}
    assert files_of(folder) == before
    assert restore(folder) == [] and undo_moves(folder) == []


def test_restore_under_a_number_is_found_by_the_undo(folder):
    held = (folder/'black'/'0.jpg').read_bytes()
    apply_changes(folder)
    (folder/'black'/'0.jpg').write_bytes(image_bytes(99))
    restore(folder)
    [m] = [m for m in undo_moves(folder) if m.file == 'black/0.jpg']
    assert (m.status, m.to) == ('restored', 'black/0-1.jpg') and (folder/m.to).read_bytes() == held
    assert (folder/'black'/'0.jpg').read_bytes() == image_bytes(99) and 'black/0-1.jpg' in {r.file for r in read_manifest(folder)}


def test_the_quarantine_knows_what_was_deleted(folder):
    quarantine_files(folder, [Suspect('grizzly/0.jpg', 'mine', 'set aside before')])
    between = files_of(folder)
    apply_changes(folder)
    assert whereabouts(folder, 'black/0.jpg').read_bytes() == image_bytes(0)
    undo_moves(folder)
    assert files_of(folder) == between and whereabouts(folder, 'grizzly/0.jpg').exists()
    (folder/'black'/'0.jpg').unlink()  # by its owner; the quarantine has nothing to do with it any more
    assert [m.file for m in restore(folder)] == ['grizzly/0.jpg']


@pytest.mark.parametrize('where', ['elsewhere', 'edited', 'removed', 'quarantine emptied'])
def test_undo_after_other_hands(folder, where):
    apply_changes(folder)
    moved = folder/'grizzly'/'1-1.jpg'
    if where == 'elsewhere': moved.rename(folder/'grizzly'/'mine.jpg')
    if where == 'edited': moved.write_bytes(image_bytes(70))
    if where == 'removed': moved.unlink()
    if where == 'quarantine emptied': shutil.rmtree(quarantine_folder(folder)/'black')
    between = contents(folder.parent)
    back = {m.file: m for m in undo_moves(folder)}
    lost = 'black/0.jpg' if where == 'quarantine emptied' else 'black/1.jpg'
    assert {f for f, m in back.items() if m.status == 'skipped'} == {lost}
    assert ('changed since' if where == 'edited' else 'neither where it was nor where it went') in back[lost].reason
    assert contents(folder.parent) == between and (folder/'grizzly'/'3.jpg').exists() and not unfinished_moves(folder)


def test_a_file_put_back_by_hand_is_told(folder):
    before = files_of(folder)
    apply_changes(folder)
    (folder/'grizzly'/'1-1.jpg').rename(folder/'black'/'1.jpg')
    assert {m.file: m.reason for m in undo_moves(folder)}['black/1.jpg'] == 'it was back already'
    assert {k: v for k, v in files_of(folder).items()} == before


def test_an_old_place_taken_meanwhile_is_not_overwritten(folder):
    apply_changes(folder)
    (folder/'black'/'1.jpg').write_bytes(image_bytes(88))
    back = {m.file: m for m in undo_moves(folder)}
    assert back['black/1.jpg'].to == 'black/1-1.jpg' and (folder/'black'/'1.jpg').read_bytes() == image_bytes(88) and (folder/'black'/'1-1.jpg').read_bytes() == image_bytes(1)
    assert undo_moves(folder) == []


def test_a_new_label_folder_that_others_use_stays(folder):
    apply_changes(folder)
    (folder/'sun bear'/'note.txt').write_text('mine')
    undo_moves(folder)
    assert [f.name for f in (folder/'sun bear').iterdir()] == ['note.txt']


def test_a_label_that_is_a_file_is_told(folder):
    (folder/'sun bear').write_text('no folder')
    moves = apply_changes(folder)
    assert moves[3].status == 'skipped' and 'is a file' in moves[3].reason and [m.status for m in moves[:3]] == ['moved']*3


def test_two_programs_at_once(folder):
    before = files_of(folder)
    hold = 'import sys, time; from bearcls.clean.moves import _alone\nwith _alone(sys.argv[1]): print("held", flush=True); time.sleep(60)'
    with subprocess.Popen([sys.executable, '-c', hold, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == 'held'
        with pytest.raises(DataError, match='Another program'): apply_changes(folder)
        assert files_of(folder) == before
        other.kill()
    assert {m.status for m in apply_changes(folder)} == {'moved'}


def test_a_damaged_or_forged_batch_is_refused_before_anything_moves(folder):
    apply_changes(folder)
    file, between, cleaning = cleaning_folder(folder)/'batches'/'0001'/'batch.json', files_of(folder), Cleaning(folder)
    whole = file.read_text(encoding='utf-8')
    for text, words in ((whole[:200], 'is damaged'), ('[]', 'is damaged'), (whole.replace('"applied"', '"whatever"'), 'is damaged'), (whole.replace('"black/1.jpg"', 'null'), 'is damaged'),
                        (whole.replace('"sun bear"', '"../sun bear"'), 'leads out of'), (whole.replace('"black/1.jpg"', '"../../evil.jpg"'), 'leads out of')):
        file.write_text(text, encoding='utf-8')
        with pytest.raises(DataError, match=words): undo_moves(folder)
        if words == 'is damaged': assert words in cleaning.unfinished
        assert words in Cleaning(folder).notes[0] and not cleaning.can_undo, 'it opens and says so'
        with pytest.raises(DataError, match=words): cleaning.apply()
        assert files_of(folder) == between
    file.write_text(whole, encoding='utf-8')
    assert {m.status for m in undo_moves(folder)} == {'restored'}


def test_what_somebody_puts_beside_the_batches_is_passed_over(folder):
    apply_changes(folder)
    own = shutil.copytree(cleaning_folder(folder)/'batches'/'0001', cleaning_folder(folder)/'batches'/'0001-mine')
    assert [m.status for m in apply_plan(plan_changes(folder, [Change('grizzly/0.jpg', 'delete')]))] == ['moved']
    assert [b.number for b in batches(folder)] == [1, 2] and own.exists()


def test_a_journal_with_lines_taken_out_brings_every_file_back(folder):
    before, journal = files_of(folder), quarantine_folder(folder)/'journal.jsonl'
    files = [f'{label}/{n}.jpg' for label in ('black', 'grizzly') for n in range(3)]
    def delete(*names): assert {m.status for m in apply_plan(plan_changes(folder, [Change(n, 'delete') for n in names]))} == {'moved'}
    delete(*files[:3])
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b''.join(lines[1:]))
    delete(files[3])
    quarantine_files(folder, [Suspect(files[4])])
    undo_moves(folder)
    journal.write_bytes(b''.join(l for l in journal.read_bytes().splitlines(keepends=True) if files[4].encode() not in l or b'restored' in l))
    quarantine_files(folder, [Suspect(files[5])])
    moved, back = read_journal(folder)
    assert len({e['id'] for e in moved}) == len(moved) and not {e['id'] for e in moved if e['file'] == files[5]} & back
    assert {m.file for m in restore(folder)} >= {files[1], files[2], files[5]}
    assert {f for f in files if f in files_of(folder)} >= {files[1], files[2], files[3], files[5]}


@posix
def test_a_child_started_during_apply_does_not_keep_the_lock(folder, monkeypatch):
    "A worker of a data loader inherits the open file"
    before, go, children = files_of(folder), moves_room._go, []
    def forking(*args):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
        return go(*args)
    monkeypatch.setattr(moves_room, '_go', forking)
    try:
        apply_plan(plan_changes(folder, changes[:1]))
        assert [m.status for m in undo_moves(folder)] == ['restored'] and files_of(folder) == before
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_folders_may_have_names_that_new_labels_may_not(folder):
    odd = ['Washington D.C.'] + ([] if os.name == 'nt' else ['a:b', 'what?'])
    for name in odd: shutil.copytree(folder/'black', folder/name)
    cleaning, before = Cleaning(folder, predicted(folder), labels=odd), files_of(folder)
    for n, name in enumerate(odd): cleaning.mark(f'grizzly/{n}.jpg', 'relabel', name)
    cleaning.mark(f'{odd[0]}/0.jpg', 'relabel', 'black')
    cleaning.mark(f'{odd[0]}/1.jpg', 'delete')
    assert {m.status for m in cleaning.apply()} == {'moved'} and all((folder/name/f'{n}-1.jpg').exists() for n, name in enumerate(odd))
    assert {m.status for m in cleaning.undo()} == {'restored'} and files_of(folder) == before
    assert {m.status for m in cleaning.redo()} == {'moved'}
    with pytest.raises(DataError, match='cannot be a label'): Cleaning(folder, labels=['Mt. St.'])
    with pytest.raises(DataError, match='cannot be a label'): plan_changes(folder, [Change('black/3.jpg', 'relabel', 'Mt. St.')])
    (folder/'.git').mkdir()
    with pytest.raises(DataError, match='cannot be a label'): plan_changes(folder, [Change('black/3.jpg', 'relabel', '.git')])


def test_a_label_of_the_model_that_no_folder_can_have_is_refused_when_it_is_chosen(folder):
    seen = predicted(folder)
    cleaning = Cleaning(folder, Evaluation(seen.table, [*seen.labels, 'either/or'], np.pad(seen.probabilities, ((0, 0), (0, 1))), seen.features))
    assert 'either/or' in cleaning.labels
    with pytest.raises(DataError, match="'either/or' cannot be a label"): cleaning.mark('black/0.jpg', 'relabel', 'either/or')
    assert cleaning.marks == {} and cleaning.plan().steps == []


def test_what_is_impossible_is_refused(folder):
    before = files_of(folder)
    for change, words in ((Change('black/0.jpg', 'erase'), "got 'erase'"), (Change('../x.jpg', 'delete'), 'leads out of'), (Change('/etc/passwd', 'delete'), 'leads out of'),
                          (Change('black/0.jpg', 'relabel', '../up'), 'cannot be a label'), (Change('black/0.jpg', 'relabel', ''), 'cannot be a label'), (Change('black/0.jpg', 'relabel', 'black/deep'), 'cannot be a label')):
        with pytest.raises(DataError, match=words): plan_changes(folder, [change])
    assert [s.note for s in plan_changes(folder, [Change('black', 'delete'), Change('black/none.jpg', 'delete'), Change('black/0.jpg', 'relabel', 'black')]).steps] == \
        ['it is a folder', 'the file is not there any more', 'it lies in the folder of black already']
    assert files_of(folder) == before and not cleaning_folder(folder).exists()


# --- marks

def test_marks_outlive_the_process_and_every_question(folder):
    code = "import sys; from bearcls.clean.cleaning import Cleaning; c = Cleaning(sys.argv[1]); c.mark(['black/0.jpg', 'grizzly/1.jpg'], 'delete'); c.mark('black/2.jpg', 'relabel', 'grizzly'); import os, signal; os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))"
    subprocess.run([sys.executable, '-c', code, str(folder)], env={**os.environ, 'TQDM_DISABLE': '1'}, stderr=subprocess.DEVNULL)
    cleaning = Cleaning(folder)
    expected = {'black/0.jpg': Mark('delete'), 'grizzly/1.jpg': Mark('delete'), 'black/2.jpg': Mark('relabel', 'grizzly')}
    assert cleaning.marks == expected
    for label in ('black', 'grizzly', ''):
        for show in ('all', 'marked', 'undecided'): cleaning.view(label=label, show=show, order='name')
    cleaning.add_predictions(predicted(folder))
    cleaning.refresh()
    assert cleaning.marks == expected == Cleaning(folder).marks and cleaning.notes == []


def test_marks_are_taken_back_stroke_by_stroke(folder):
    cleaning, files = Cleaning(folder), [i.file for i in Cleaning(folder).items]
    strokes = [(files[:3], 'delete', ''), (files[1:2], 'relabel', 'grizzly'), (files[0:1], '', ''), (files[2:5], 'keep', '')]
    states = []
    for stroke in strokes:
        states.append(cleaning.marks)
        cleaning.mark(*stroke)
    for (touched, _, _), state in zip(reversed(strokes), reversed(states)):
        assert cleaning.undo_mark() == touched and cleaning.marks == state == Cleaning(folder).marks
    assert cleaning.undo_mark() == []


@pytest.mark.parametrize('text', [b'', b'{', b'[]', b'null', b'{"format": 1}', b'{"folder": "x", "marks": []}', b'{"folder": "x", "marks": {"black/0.jpg": {}}}', b'\xff\xfe\x00', b'['*100_000,
                                  *(json.dumps({'folder': 'x', 'marks': {name: {'action': 'delete', 'to': '', 'size': 1, 'time': 1, 'sha256': '', **wrong}}}).replace('Infinity', '1e999').encode()
                                    for name, wrong in (('black/0.jpg', dict(action='erase')), ('black/0.jpg', dict(action='relabel', to=5)), ('black/0.jpg', dict(size=float('inf'))), ('../../x.jpg', {})))])
def test_damaged_marks_are_set_aside_and_told(folder, text):
    file = cleaning_folder(folder)/'marks.json'
    file.parent.mkdir(parents=True)
    file.write_bytes(text)
    cleaning = Cleaning(folder)
    assert cleaning.marks == {} and len(cleaning.notes) == 1 and 'could not be read' in cleaning.notes[0]
    assert file.with_name('marks-damaged-1.json').read_bytes() == text
    cleaning.mark('black/0.jpg', 'delete')
    assert Cleaning(folder).marks == {'black/0.jpg': Mark('delete')}


def test_a_folder_in_place_of_the_marks_is_set_aside(folder):
    file = cleaning_folder(folder)/'marks.json'
    (file/'mine').mkdir(parents=True)
    cleaning = Cleaning(folder)
    assert 'it is a folder' in cleaning.notes[0] and file.with_name('marks-damaged-1.json').joinpath('mine').is_dir()
    cleaning.mark('black/0.jpg', 'delete')
    assert Cleaning(folder).marks == {'black/0.jpg': Mark('delete')}


def test_marks_of_another_folder_are_refused_and_kept(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path/'other')
    Cleaning(folder, state=tmp_path/'mine.json').mark('black/0.jpg', 'delete')
    held = (tmp_path/'mine.json').read_bytes()
    with pytest.raises(DataError, match='keeps the marks of'): Cleaning(other, state=tmp_path/'mine.json')
    assert (tmp_path/'mine.json').read_bytes() == held
    (tmp_path/'new').mkdir()
    folder.rename(tmp_path/'new'/'bears')
    assert list(Cleaning(tmp_path/'new'/'bears', state=tmp_path/'mine.json').marks) == ['black/0.jpg']


def test_two_kernels_keep_each_others_marks(folder):
    one, two = Cleaning(folder), Cleaning(folder)
    one.mark('black/0.jpg', 'delete')
    two.mark('black/1.jpg', 'delete')
    one.mark('black/2.jpg', 'keep')
    assert one.marks == two.marks and len(one.marks) == 3
    one.undo_mark()
    assert list(two.marks) == ['black/0.jpg', 'black/1.jpg']


def test_two_programs_that_mark_at_once_keep_all_marks(folder):
    files = [i.file for i in Cleaning(folder).items]
    code = '''if True:
        import sys, time
        from bearcls.clean.marks import Mark, Marks
        marks = Marks(sys.argv[1])
        print('ready', flush=True)
        sys.stdin.readline()
        for n in range(25):
            for f in sys.argv[2:]: marks.set({f: Mark('keep')})
            if not set(sys.argv[2:]) <= set(marks.now()): sys.exit('marks were lost')
            for f in sys.argv[2:]: marks.undo()
        for f in sys.argv[2:]: marks.set({f: Mark('delete')})'''
    programs = [subprocess.Popen([sys.executable, '-c', code, str(folder), *files[k::2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for k in (0, 1)]
    for p in programs: assert p.stdout.readline().strip() == 'ready'
    for p in programs: print(file=p.stdin, flush=True)
    assert [p.communicate()[1] or p.returncode for p in programs] == [0, 0]
    assert Cleaning(folder).marks == {f: Mark('delete') for f in files}


def test_marks_say_when_another_program_does_not_let_go(folder, monkeypatch):
    marks, other = Marks(folder), Marks(folder)
    monkeypatch.setattr(marks_room, 'hold_file', lambda file, seconds=0, real=marks_room.hold_file: real(file, .02))
    with other._writing():
        with pytest.raises(DataError, match='Nothing was marked: another program'): marks.set({'black/0.jpg': Mark('keep')})
    marks.set({'black/0.jpg': Mark('keep')})
    assert other.now() == {'black/0.jpg': Mark('keep')}


def test_marks_that_were_carried_out_by_hand_are_done(folder):
    "The book's loops: `unlink` for what is to be deleted, `shutil.move` for what is to get another label"
    before, cleaning = files_of(folder), Cleaning(folder)
    cleaning.mark([f'black/{n}.jpg' for n in range(3)], 'delete')
    (folder/'polar').mkdir()
    cleaning.refresh()
    cleaning.mark(['black/3.jpg', 'grizzly/3.jpg'], 'relabel', 'polar')
    cleaning.mark('grizzly/0.jpg', 'keep')
    marks = cleaning.marks
    for n in range(3): (folder/'black'/f'{n}.jpg').unlink()
    shutil.move(str(folder/'black'/'3.jpg'), folder/'polar')
    for c in (cleaning, Cleaning(folder)):
        c.refresh()
        assert c.notes == [] and [s.file for s in c.plan().steps] == ['grizzly/3.jpg']
        assert c.summary() == dict(keep=1, delete=0, relabel=1, undecided=3)
    (folder/'black'/'0.jpg').write_bytes(before['black/0.jpg'][0])
    assert cleaning.marks == marks and [s.file for s in Cleaning(folder).plan().steps] == ['black/0.jpg', 'grizzly/3.jpg']
    assert len(cleaning.forget_gone()) == 3 and cleaning.marks.keys() == {'black/0.jpg', 'grizzly/0.jpg', 'grizzly/3.jpg'}
    cleaning.undo_mark()
    assert cleaning.marks == marks


def test_many_files_that_are_gone_make_few_notes(folder):
    cleaning = Cleaning(folder)
    cleaning.mark([i.file for i in cleaning.items], 'keep')
    for f in image_files(folder): f.unlink()
    cleaning.refresh()
    assert len(cleaning.notes) == 4 and cleaning.notes[3] == 'And 5 more marked files are gone or have changed'
    assert len(cleaning.forget_gone()) == 8 and cleaning.notes == [] and cleaning.marks == {}


def test_marks_follow_through_two_relabellings_and_back(folder):
    before, cleaning = files_of(folder), Cleaning(folder, labels=['polar'])
    cleaning.mark('black/0.jpg', 'relabel', 'grizzly')
    [first] = cleaning.apply()
    cleaning.mark(first.to, 'relabel', 'polar')
    cleaning.apply()
    cleaning.undo()
    assert cleaning.marks == {first.to: Mark('relabel', 'polar')} and cleaning.notes == []
    cleaning.undo()
    assert cleaning.marks == {'black/0.jpg': Mark('relabel', 'grizzly')} and cleaning.notes == [] and len(cleaning.plan().steps) == 1
    assert files_of(folder) == before


def test_an_undo_gives_the_marks_of_its_own_batch(folder):
    "Another file of the same name has been marked otherwise meanwhile, in a later batch"
    cleaning = Cleaning(folder)
    cleaning.mark('black/0.jpg', 'relabel', 'grizzly')
    cleaning.apply()
    (folder/'black'/'0.jpg').write_bytes(image_bytes(50))
    cleaning.refresh()
    cleaning.mark('black/0.jpg', 'delete')
    cleaning.apply()
    cleaning.undo()
    assert cleaning.marks == {'black/0.jpg': Mark('delete')}
    cleaning.undo()
    assert cleaning.marks == {'black/0.jpg': Mark('delete'), 'black/0-1.jpg': Mark('relabel', 'grizzly')}


class Stop(KeyboardInterrupt): pass

def interrupted(work, at):
    "Do `work` and interrupt it at the `at`th line that it runs in these rooms; whether it came so far"
    rooms, n_lines = tuple(os.path.join('bearcls', 'clean', f'{r}.py') for r in ('cleaning', 'marks', 'moves')), 0
    def line(frame, event, arg):
        nonlocal n_lines
        n_lines += event == 'line'
        if event == 'line' and n_lines == at: raise Stop
        return line
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename.endswith(rooms) else None)
    try: work()
    except Stop: return True
    finally: sys.settrace(None)
    return False


@posix
@pytest.mark.parametrize('work, every', [('apply', 37), ('undo', 19)])
def test_interrupted_anywhere_and_undone_no_mark_is_lost(folder, tmp_path, work, every):
    cleaning = Cleaning(folder)
    cleaning.mark(['black/0.jpg', 'grizzly/2.jpg'], 'delete')
    cleaning.mark('black/1.jpg', 'relabel', 'grizzly')  # where its name is taken
    cleaning.mark('black/3.jpg', 'keep')
    before, marks, copy = files_of(folder), cleaning.marks, copies(folder, tmp_path)
    if work == 'undo': cleaning.apply()
    for n_stops, at in enumerate(range(1, 10**6, every)):
        path = next(copy)
        if not interrupted(getattr(Cleaning(path), work), at): break
        again = Cleaning(path)
        if not again.unfinished: assert again.notes == [], at
        while again.undo(): pass
        assert again.marks == marks and again.notes == [] and files_of(path) == before, at
        assert sum(m.status == 'moved' for m in again.apply()) == 3 and set(again.marks) == {'black/3.jpg'}, at
    assert n_stops > 10


def test_marks_that_cannot_come_back_leave_the_undo_unfinished(folder, monkeypatch):
    before, cleaning = files_of(folder), Cleaning(folder)
    cleaning.mark('black/0.jpg', 'delete')
    cleaning.apply()
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(marks_room, 'atomic_write', full)
        assert [m.status for m in cleaning.undo()] == ['restored']
    assert 'could not follow' in cleaning.notes[0] and 'was interrupted' in cleaning.notes[1] and cleaning.can_undo
    assert [m.status for m in cleaning.undo()] == ['restored'] and files_of(folder) == before
    assert cleaning.marks == {'black/0.jpg': Mark('delete')} and cleaning.notes == [] and not cleaning.can_undo


def test_a_mark_that_cannot_be_kept_is_not_made(folder, monkeypatch):
    cleaning = Cleaning(folder)
    cleaning.mark('black/0.jpg', 'delete')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(marks_room, 'atomic_write', full)
        with pytest.raises(DataError, match='Nothing was marked.*No space left'): cleaning.mark('black/1.jpg', 'delete')
        with pytest.raises(DataError, match='Nothing was marked'): cleaning.undo_mark()
    assert list(cleaning.marks) == ['black/0.jpg'] == list(Cleaning(folder).marks)
    assert cleaning.undo_mark() == ['black/0.jpg']


def test_marks_refuse_what_is_not_there(folder):
    cleaning = Cleaning(folder)
    for args, words in ((('black/9.jpg', 'delete'), "'black/9.jpg' is none of the images"), ((['black/0.jpg', 'x', 'y'], 'keep'), "'x' is none.*nor are 1 others"), (('black/0.jpg', 'erase'), "got 'erase'"),
                        (('black/0.jpg', 'relabel', 'panda'), "`to` must be one of black, grizzly; got 'panda'"), (('../bears/black/0.jpg', 'delete'), 'is none of the images')):
        with pytest.raises(DataError, match=words): cleaning.mark(*args)
    (folder/'black'/'0.jpg').unlink()
    with pytest.raises(DataError, match='cannot be marked'): cleaning.mark(['black/0.jpg', 'black/1.jpg'], 'delete')
    assert cleaning.marks == {} and not cleaning.state.exists()
    with pytest.raises(DataError, match='holds one folder, bears, with the folders black, grizzly'): Cleaning(folder.parent)
    (folder.parent/'empty').mkdir()
    with pytest.raises(DataError, match='holds no images'): Cleaning(folder.parent/'empty')
    with pytest.raises(DataError, match='There is no folder'): Cleaning(folder/'none')


# --- images, orders, predictions

def test_a_folder_of_weights_is_no_label(folder):
    (folder/'models').mkdir()
    (folder/'models'/'best.pth').write_bytes(b'weights')
    (folder/'empty').mkdir()
    (folder/'.hidden').mkdir()
    cleaning = Cleaning(folder, predicted(folder), labels=['sun bear'])
    assert cleaning.labels[:4] == ['sun bear', 'black', 'empty', 'grizzly'] and Cleaning(folder).labels == ['black', 'empty', 'grizzly']


def test_filters_orders_and_pages_agree_with_a_plain_loop(folder):
    for label, first in (('black', 0), ('grizzly', 10)):
        for n in range(4, 16): (folder/label/f'{n}.jpg').write_bytes(image_bytes(first + n))
    seen = predicted(folder, **{'black/1.jpg': ('grizzly', .97), 'grizzly/0.jpg': ('grizzly', .55), 'grizzly/3.jpg': ('black', .7)})
    cleaning = Cleaning(folder, seen)
    cleaning.mark(['black/0.jpg', 'grizzly/3.jpg'], 'delete')
    items = {i.file: i for i in cleaning.items}
    assert items['black/1.jpg'].probability == .97 and items['black/1.jpg'].loss == pytest.approx(-np.log(.03))
    def names(**view): return [i.file for i in cleaning.view(per_page=100, **view).items]
    assert names(order='loss')[:2] == ['black/1.jpg', 'grizzly/3.jpg'] and names(order='certain')[0] == 'black/1.jpg' and names(order='unsure')[0] == 'grizzly/0.jpg'
    assert names(order='name') == sorted(items) and set(names(show='marked')) == {'black/0.jpg', 'grizzly/3.jpg'} and len(names(show='undecided')) == 30
    scores = [items[f].score for f in names(order='suspicious')]
    assert scores == sorted(scores, reverse=True) and 'black/1.jpg' in names(reason=items['black/1.jpg'].kind) and 0 < scores[0] <= 1
    for label in ('black', 'grizzly'):
        for split in ('train', 'valid'): assert set(names(label=label, split=split)) == {f for f, i in items.items() if (i.label, i.split) == (label, split)}
    for order in orders:
        paged = [cleaning.view(order=order, page=p, per_page=12) for p in range(4)]
        assert [(v.page, v.pages, v.total) for v in paged] == [(0, 3, 32), (1, 3, 32), (2, 3, 32), (2, 3, 32)]
        assert sorted(i.file for v in paged[:3] for i in v.items) == sorted(items)


def test_predictions_may_come_later_and_from_another_working_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    cleaning = Cleaning('bears')
    cleaning.mark('black/1.jpg', 'keep')
    assert all((i.predicted, i.probability, i.loss, i.score) == ('', None, None, 0) for i in cleaning.items)
    seen = predicted(Path('bears'), **{'black/1.jpg': ('grizzly', .97)})
    cleaning.add_predictions(seen)
    assert cleaning.view(order='loss').items[0].file == 'black/1.jpg' and cleaning.marks == {'black/1.jpg': Mark('keep')}
    monkeypatch.chdir(folder)
    assert cleaning.thumbnail('black/1.jpg') and cleaning.plan().steps == []
    stranger = Evaluation(seen.table.assign(file='/nowhere/black/x.jpg'), seen.labels, seen.probabilities, seen.features)
    with pytest.raises(DataError, match='None of the 8 predictions'): cleaning.add_predictions(stranger)


def test_predictions_and_a_report_may_come_one_after_the_other_and_through_a_link(folder, tmp_path):
    if os.name != 'nt': os.symlink(folder, tmp_path/'link')
    seen = predicted(tmp_path/'link' if os.name != 'nt' else folder, **{'black/1.jpg': ('grizzly', .97)})
    (folder/'black'/'page.jpg').write_bytes(b'<html>')
    cleaning = Cleaning(folder, seen)
    cleaning.add_predictions(None, check_images(folder))
    items = {i.file: i for i in cleaning.items}
    assert items['black/1.jpg'].predicted == 'grizzly' and items['black/page.jpg'].proposal == 'delete'
    cleaning.add_predictions(seen)
    assert {i.file: i for i in cleaning.items} == items


def test_marks_that_cannot_follow_are_told_and_the_moves_are_not_lost(folder, monkeypatch):
    before, cleaning = files_of(folder), Cleaning(folder)
    cleaning.mark('black/0.jpg', 'delete')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(marks_room, 'atomic_write', full)
        assert [m.status for m in cleaning.apply()] == ['moved']
    assert len(cleaning.notes) == 1 and 'could not follow' in cleaning.notes[0]
    assert [m.status for m in cleaning.undo()] == ['restored'] and cleaning.notes == [] and files_of(folder) == before


def test_predictions_follow_a_image_that_moved_also_after_a_restart(folder):
    seen = predicted(folder, **{'black/1.jpg': ('grizzly', .97)})
    cleaning = Cleaning(folder, seen)
    cleaning.mark('black/1.jpg', 'relabel', 'grizzly')
    [move] = cleaning.apply()
    for c in (cleaning, Cleaning(folder, seen)):
        item = next(i for i in c.items if i.file == move.to)
        assert (item.label, item.predicted, item.proposal) == ('grizzly', 'grizzly', '') and item.loss == pytest.approx(-np.log(.97))
    cleaning.undo()
    assert cleaning.items == Cleaning(folder, seen).items and cleaning.items[1].loss == pytest.approx(-np.log(.03))


def test_ten_thousand_images_turn_pages_at_once(tmp_path):
    "The bound is a multiple of what it takes here: what it must not be is a search per image"
    data = image_bytes()
    for label in ('a', 'b', 'c', 'd'):
        (tmp_path/'many'/label).mkdir(parents=True)
        for n in range(2500): (tmp_path/'many'/label/f'{n}.jpg').write_bytes(data)
    cleaning = Cleaning(tmp_path/'many')
    files = [i.file for i in cleaning.items]
    cleaning.mark(files[::7], 'keep')
    cleaning.view()
    seconds = []
    for page in range(0, 300, 30):
        for view in (dict(label='b'), dict(show='undecided'), dict(order='name', show='marked')):
            cleaning.view(page=page, **view)
            start = time.perf_counter()
            cleaning.view(page=page, **view)
            seconds.append(time.perf_counter() - start)
    print(f'{np.median(seconds)*1000:.1f} ms a page of 10,000')
    assert len(files) == 10_000 and cleaning.view(show='undecided').total == 10_000 - len(files[::7])
    assert np.median(seconds) < .2


def test_thumbnails_are_upright_small_on_white_and_never_fail(folder):
    def add(name, data): (folder/'black'/name).write_bytes(data)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (400, 200), 'red').save(folder/'black'/'turned.jpg', exif=exif)
    Image.new('RGBA', (300, 300), (0, 0, 0, 0)).save(folder/'black'/'clear.png')
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (900, 1200, 3), dtype=np.uint8)).save(folder/'black'/'noise.png')
    for name, data in (('page.jpg', b'<html>'), ('empty.jpg', b''), ('bomb.png', bomb()), ('cut.jpg', image_bytes()[:-200])): add(name, data)
    cleaning = Cleaning(folder)
    def thumb(name): return load_image(cleaning.thumbnail(f'black/{name}'))
    assert thumb('turned.jpg').size == (80, 160) and min(thumb('clear.png').getpixel((9, 9))) > 250
    assert all(max(thumb(Path(i.file).name).size) <= 160 for i in cleaning.items if i.label == 'black')
    cards = {cleaning.thumbnail(f'black/{n}') for n in ('page.jpg', 'empty.jpg', 'bomb.png')}
    assert len(cards) == 3, 'each card says its own reason'
    before = cleaning.thumbnail('black/0.jpg')
    add('0.jpg', image_bytes(50))
    assert cleaning.thumbnail('black/0.jpg') != before
    (folder/'black'/'1.jpg').unlink()
    assert load_image(cleaning.thumbnail('black/1.jpg')).size == (160, 120)
    with pytest.raises(DataError, match='none of the images'): cleaning.thumbnail('../secret.jpg')


def test_a_report_proposes_and_the_reason_goes_into_quarantine(bears):
    cleaning = Cleaning(bears, report=check_images(bears))
    proposed = {i.file for i in cleaning.items if i.proposal == 'delete'}
    assert proposed == {'black/broken.jpg', 'grizzly/page.jpg'} and cleaning.reasons == {'truncated': 1, 'not_an_image': 1}
    cleaning.mark(sorted(proposed), 'delete')
    cleaning.apply()
    journal = (quarantine_folder(bears)/'journal.jsonl').read_text(encoding='utf-8').splitlines()
    reasons = {json.loads(line)['file']: json.loads(line)['reason'] for line in journal}
    assert reasons.keys() == proposed and all('marked by hand' not in r and r for r in reasons.values())
    assert [i for i in cleaning.items if i.proposal] == [] and {m.file for m in restore(bears)} == proposed


def test_an_empty_folder_can_still_be_undone(folder):
    before, cleaning = files_of(folder), Cleaning(folder)
    cleaning.mark([i.file for i in cleaning.items], 'delete')
    cleaning.apply()
    again = Cleaning(folder)
    assert len(again) == 0 and again.view() .total == 0 and again.plan().steps == []
    assert len(again.undo()) == 8 and files_of(folder) == before and len(again) == 8
