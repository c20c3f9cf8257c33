"Hostile files and accidents around verify and quarantine: what would make bad reading in a notebook"
import errno, json, os
import pytest
from PIL import Image
from hostile import bomb, picture, snapshot
from bearcls import quarantine, verify
from bearcls.core import DataError, describe_file, image_files, read_manifest, write_manifest
from bearcls.quarantine import quarantine_folder, restore
from bearcls.verify import check_images, verify_images

def test_hostile_files_become_findings(bears):
    (bears/'black'/'bomb.png').write_bytes(bomb())
    (bears/'black'/'nearly.png').write_bytes(bomb(10_500, 10_000))
    (bears/'black'/'empty.gif').write_bytes(b'')
    (bears/'black'/'tricky.jpg').write_bytes(b'\xff\xd8\xff' + os.urandom(3000))
    (bears/'black'/'odd\nname <b>.jpg').write_bytes(b'<html>') if os.name != 'nt' else None
    report = check_images(bears)
    kinds = {f.file: f.issue for f in report.rows if f.issue in verify.broken_issues}
    assert kinds['black/bomb.png'] == kinds['black/nearly.png'] == 'bomb'
    assert kinds['black/broken.jpg'] == 'truncated' and kinds['grizzly/page.jpg'] == 'not_an_image' and kinds['black/empty.gif'] == 'empty'
    assert kinds['black/tricky.jpg'] in ('unreadable', 'not_an_image', 'truncated')
    assert '<b>.jpg' not in report._repr_html_()
    assert check_images(bears, n_workers=1).rows == check_images(bears, n_workers=5).rows
    assert [f.relative_to(bears).as_posix() for f in verify_images(image_files(bears))] == [f for f in map(lambda f: f.relative_to(bears).as_posix(), image_files(bears)) if f in kinds]


def test_a_file_that_goes_away_is_a_finding(bears):
    (bears/'black'/'gone.jpg').write_bytes(picture())
    files = image_files(bears)
    (bears/'black'/'gone.jpg').unlink()
    [m] = [verify.measure_file(f, bears) for f in files if f.name == 'gone.jpg']
    assert m.issue == 'missing'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission_is_a_finding(bears):
    (bears/'black'/'0.jpg').chmod(0)
    assert 'black/0.jpg' in check_images(bears).files('unreadable')


def test_quarantine_and_restore_byte_for_byte(bears):
    write_manifest(bears, [describe_file(f, bears, url=f'https://example.org/{f.name}') for f in image_files(bears)])
    before = snapshot(bears.parent)
    report = check_images(bears)
    moves = report.quarantine()
    assert [(m.file, m.status) for m in moves] == [('grizzly/page.jpg', 'moved'), ('black/broken.jpg', 'moved')]
    assert not (bears/'black'/'broken.jpg').exists() and (quarantine_folder(bears)/'black'/'broken.jpg').exists()
    assert {r.file for r in read_manifest(bears) if r.status == 'quarantined'} == {m.file for m in moves}
    assert {m.status for m in restore(bears)} == {'restored'}
    after = snapshot(bears.parent)
    del after['.quarantine/bears/journal.jsonl']
    assert after == before


def test_interrupted_before_and_after_the_move(bears, monkeypatch):
    before = snapshot(bears)
    report, real = check_images(bears), quarantine._move
    def power_cut(source, target): raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, '_move', power_cut)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert snapshot(bears) == before
    def power_cut_after(source, target):
        real(source, target)
        raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, '_move', power_cut_after)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert len(snapshot(bears)) == len(before) - 1
    with pytest.raises(KeyboardInterrupt): restore(bears)
    monkeypatch.setattr(quarantine, '_move', real)
    restore(bears)
    assert snapshot(bears) == before and restore(bears) == []
    report.quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    journal.write_bytes(journal.read_bytes() + b'{"id": 99, "file": "bl')
    restore(bears)
    assert snapshot(bears) == before
    assert {m.status for m in report.quarantine()} == {'moved'}
    restore(bears)
    assert snapshot(bears) == before


def test_the_same_file_may_leave_and_return_many_times(bears):
    before, report = snapshot(bears), check_images(bears)
    for _ in range(3):
        assert len(report.quarantine()) == 2
        assert len(restore(bears)) == 2
    assert snapshot(bears) == before


def test_collisions_on_both_sides_keep_every_file(bears):
    report = check_images(bears)
    first = (bears/'black'/'broken.jpg').read_bytes()
    report.quarantine()
    second = picture(2)[:-300]
    (bears/'black'/'broken.jpg').write_bytes(second)
    assert [m.to for m in check_images(bears).quarantine()] == ['black/broken-1.jpg']
    third = picture(5)
    (bears/'black'/'broken.jpg').write_bytes(third)
    restore(bears)
    assert {f.read_bytes() for f in (bears/'black').glob('broken*')} == {first, second, third}


def test_a_journal_cannot_lead_out_of_the_folder(bears, tmp_path):
    report = check_images(bears)
    report.quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    lines = journal.read_text(encoding='utf-8').splitlines()
    for field, name in [('file', '../../evil.jpg'), ('file', '/evil.jpg'), ('file', 'black\\..\\..\\evil.jpg'), ('to', '../../../outside.jpg')]:
        (tmp_path.parent/'outside.jpg').write_bytes(b'x')
        entry = {**json.loads(lines[0]), field: name}
        journal.write_text('\n'.join([json.dumps(entry), *lines[1:]]) + '\n', encoding='utf-8')
        held = snapshot(tmp_path)
        if field == 'file' or (quarantine_folder(bears)/name).exists():
            with pytest.raises(DataError, match='leads out of'): restore(bears)
        assert snapshot(tmp_path) == held
    with pytest.raises(DataError): report.quarantine(files=['../../outside.jpg'])


def test_across_disks_a_move_copies_first(bears, monkeypatch):
    def other_disk(a, b): raise OSError(errno.EXDEV, 'Invalid cross-device link')
    before = snapshot(bears)
    monkeypatch.setattr(quarantine.os, 'rename', other_disk)
    assert {m.status for m in check_images(bears).quarantine()} == {'moved'}
    assert {m.status for m in restore(bears)} == {'restored'}
    assert snapshot(bears) == before


def test_a_move_that_fails_is_a_row(bears, monkeypatch):
    def refuse(a, b): raise PermissionError(errno.EACCES, 'Permission denied')
    before = snapshot(bears)
    monkeypatch.setattr(quarantine.os, 'rename', refuse)
    moves = check_images(bears).quarantine()
    assert {m.status for m in moves} == {'skipped'} and all('Permission denied' in m.reason for m in moves)
    assert snapshot(bears) == before


def test_a_hundred_identical_and_blank_pictures_stay_quick(tmp_path):
    (tmp_path/'b'/'x').mkdir(parents=True)
    for n in range(100): Image.new('RGB', (64, 64), (n, n, n)).save(tmp_path/'b'/'x'/f'{n:03}.png')
    report = check_images(tmp_path/'b')
    assert report.counts['near_constant'] == 100 and 'near_copy' not in report.counts
