"Hostile files and accidents around verify and quarantine: what would make bad reading in a notebook"
import csv, errno, io, json, os, shutil, struct
from collections import Counter
import pytest
from PIL import Image
from hostile import bomb, image_bytes, snapshot
from bearcls.verify import measure, quarantine, report as verify
from bearcls.core import DataError
from bearcls.manifest import describe_file, read_manifest, write_manifest
from bearcls.folders import image_files
from bearcls.sample.figures import draw_bear
from bearcls.verify.measure import measure_file
from bearcls.verify.quarantine import quarantine_folder, restore
from bearcls.sample.bears import draw_bears
from bearcls.verify.report import broken_issues, check_images, verify_images

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
    (bears/'black'/'gone.jpg').write_bytes(image_bytes())
    files = image_files(bears)
    (bears/'black'/'gone.jpg').unlink()
    [m] = [measure_file(f, bears) for f in files if f.name == 'gone.jpg']
    assert m.issue == 'missing'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission_is_a_finding(bears):
    (bears/'black'/'0.jpg').chmod(0)
    assert 'black/0.jpg' in check_images(bears).files('unreadable')


def meddling_open(monkeypatch, name, meddle):
    "Whoever opens a file of this name finds that `meddle` has happened, before the open or in the middle of the read"
    def opened(file, *args):
        f = open(file, *args)
        if os.path.basename(file) != name: return f
        class Meddled(io.BufferedReader):
            def read(self, n=-1):
                first = super().read(100)
                meddle(file)
                return first + super().read(n - 100)
        return Meddled(f.detach())
    monkeypatch.setattr(measure, 'open', opened, raising=False)


def grow(file):
    with open(file, 'ab') as f: f.write(b'more')

def shorten(file): os.truncate(file, 200)

def rewrite(file):
    "Other bytes, as many as before"
    size = os.path.getsize(file)
    with open(file, 'r+b') as f: f.write(bytes(size))
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize('meddle', [grow, shorten, rewrite])
def test_a_file_that_changes_while_it_is_read_is_a_finding_and_stays(bears, monkeypatch, meddle):
    meddling_open(monkeypatch, '1.jpg', lambda file: meddle(file) if 'black' in str(file) else None)
    report = check_images(bears)
    assert report.files('changed') == ['black/1.jpg']
    assert {m.file for m in report.quarantine()} == {'black/broken.jpg', 'grizzly/page.jpg'}
    assert (bears/'black'/'1.jpg').exists()


def test_a_file_replaced_after_the_check_is_not_moved(bears):
    report = check_images(bears)
    (bears/'black'/'broken.jpg').write_bytes(image_bytes(4))
    assert [(m.file, m.status) for m in report.quarantine()] == [('grizzly/page.jpg', 'moved'), ('black/broken.jpg', 'skipped')]


@pytest.mark.parametrize('error', [PermissionError(errno.EACCES, 'Permission denied'), OSError(errno.EIO, 'Input/output error')])
def test_a_file_that_may_not_be_read_is_a_finding(bears, monkeypatch, error):
    def refused(file, *args):
        if os.path.basename(file) == '0.jpg': raise error
        return open(file, *args)
    monkeypatch.setattr(measure, 'open', refused, raising=False)
    found = {f.file: f.reason for f in check_images(bears).rows if f.issue == 'unreadable'}
    assert found.keys() == {'black/0.jpg', 'grizzly/0.jpg'} and all(error.strerror in reason for reason in found.values())


def test_a_folder_where_a_file_was_is_a_finding(bears):
    (bears/'black'/'0.jpg').unlink()
    (bears/'black'/'0.jpg').mkdir()
    assert measure_file(bears/'black'/'0.jpg', bears).issue == 'unreadable'
    assert 'black/0.jpg' not in {m.file for m in check_images(bears).measures}


def jpeg_claiming(width, height):
    data = bytearray(image_bytes())
    at = data.index(b'\xff\xc0')
    data[at + 5:at + 9] = struct.pack('>HH', height, width)
    return bytes(data)

def tiff_claiming(width, height):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 64)]
    return b'II*\0' + struct.pack('<I', 72) + bytes(64) + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *tag) for tag in tags) + bytes(4)

def patched(fmt, at, dimensions, **options):
    out = io.BytesIO()
    Image.new('RGB', (8, 8)).save(out, fmt, **options)
    data = bytearray(out.getvalue())
    data[at:at + len(dimensions)] = dimensions
    return bytes(data)

bombs = {'png': bomb(), 'jpeg': jpeg_claiming(65500, 65500), 'tiff': tiff_claiming(60000, 60000), 'gif': patched('GIF', 6, struct.pack('<HH', 65535, 65535)),
         'bmp': patched('BMP', 18, struct.pack('<ii', 60000, 60000)), 'webp': patched('WEBP', 21, struct.pack('<I', 16382 | 16382 << 14), lossless=True)}

@pytest.mark.parametrize('fmt', bombs)
def test_a_bomb_is_refused_before_it_is_decoded_in_every_format(bears, monkeypatch, fmt):
    (bears/'black'/'bomb.jpg').write_bytes(bombs[fmt])
    decoded = []
    monkeypatch.setattr(Image.core, 'new', lambda mode, size, real=Image.core.new: decoded.append(size) or real(mode, size))
    report = check_images(bears)
    assert report.files('bomb') == ['black/bomb.jpg']
    assert 'black/bomb.jpg' in [f.relative_to(bears).as_posix() for f in verify_images(image_files(bears))]
    assert (96, 80) in decoded and max(w*h for w, h in decoded) < 1e6


def test_what_is_no_file_is_passed_over(bears):
    if not hasattr(os, 'mkfifo'): pytest.skip('no named pipes on this system')
    os.mkfifo(bears/'black'/'pipe.jpg')
    os.mkfifo(bears/'black'/'pipe')
    os.symlink(bears, bears/'black'/'loop')
    os.symlink('/dev/zero', bears/'black'/'endless.jpg')
    os.symlink(bears/'nowhere.jpg', bears/'black'/'nowhere.jpg')
    assert {m.file for m in check_images(bears).measures} == {f'{label}/{name}.jpg' for label, name in
        [*((label, n) for label in ('black', 'grizzly') for n in range(3)), ('black', 'broken'), ('grizzly', 'page')]}


def test_looking_changes_nothing_and_a_link_is_moved_instead_of_what_it_leads_to(bears, tmp_path):
    outside = tmp_path/'outside'
    outside.mkdir()
    (outside/'page.jpg').write_bytes(b'<html>outside')
    os.symlink(outside/'page.jpg', bears/'black'/'link.jpg')
    before = snapshot(tmp_path)
    report = check_images(bears)
    report.show(), report.with_split(['black/0.jpg']), verify_images(image_files(bears)), report._repr_html_()
    assert snapshot(tmp_path) == before
    assert 'black/link.jpg' in {m.file for m in report.quarantine() if m.status == 'moved'}
    assert (outside/'page.jpg').read_bytes() == b'<html>outside' and not os.path.lexists(bears/'black'/'link.jpg')
    restore(bears)
    assert os.path.islink(bears/'black'/'link.jpg')


def test_images_that_training_does_not_see_are_findings(bears):
    for name in ('black/saved', 'black/saved.jpg_large', 'black/more/3.jpg', 'top.png'):
        (bears/name).parent.mkdir(exist_ok=True)
        (bears/name).write_bytes(image_bytes(7))
    for name in ('black/.hidden', '.cache/1.jpg', 'black/notes.txt'):
        (bears/name).parent.mkdir(exist_ok=True)
        (bears/name).write_bytes(b'' if name.endswith('txt') else image_bytes(8))
    report = check_images(bears)
    assert report.files('overlooked') == ['top.png'] and report.files('left_out') == ['black/notes.txt']
    assert {'black/more/3.jpg', 'black/saved', 'black/saved.jpg_large'} <= {m.file for m in report.measures if not m.issue}
    assert {m.status for m in report.quarantine(['overlooked'])} == {'moved'} and {m.status for m in report.restore()} == {'restored'}


def test_a_report_is_written_whatever_the_names(bears, tmp_path):
    names = ['a<script>alert(1)</script>'.replace('/', '_'), '"quoted"', "it's & more", 'x'*240] if os.name != 'nt' else ["it's & more"]
    for n, name in enumerate(names): (bears/'black'/f'{name}.jpg').write_bytes(b'<html>' + bytes(n))
    if os.name != 'nt': (bears/'black'/os.fsdecode(b'\xff\xfe.jpg')).write_bytes(b'<html>undecodable')
    report = check_images(bears)
    page = report.write_html(tmp_path/'report.html').read_bytes()
    assert b'<script' not in page and b'http' not in page and page.count(b'a web page under the name') >= len(names)
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith('.')] == []
    with pytest.raises(DataError, match='to write the report in'): report.write_html(tmp_path/'nowhere'/'report.html')


def test_a_copy_of_a_copy_is_told_of_across_the_split(tmp_path):
    drawn = draw_bears(tmp_path/'b', n_per_label=4, faults=False)
    large = Image.open(drawn/'teddy'/'teddy_0001.jpg')
    large.resize((200, 200)).save(drawn/'teddy'/'smaller.jpg', quality=90)
    (drawn/'black'/'same.jpg').write_bytes((drawn/'teddy'/'smaller.jpg').read_bytes())
    report = check_images(drawn)
    assert report.files('across_split') == [] and report.files('across_labels') == ['black/same.jpg']
    held = report.with_split([drawn/'black'/'same.jpg', 'teddy/smaller.jpg'])
    assert {(f.file, f.of) for f in held.rows if f.issue == 'across_split'} == {(f, 'teddy/teddy_0001.jpg') for f in ('black/same.jpg', 'teddy/smaller.jpg')}
    assert held.adjust(min_side=40).files('across_split') == held.files('across_split')
    assert held.with_split([]).files('across_split') == []


def test_faults_of_five_drawn_sets_are_found(tmp_path):
    planted, found, pairs_found, false = Counter(), Counter(), 0, 0
    issues = {'truncated_jpeg': 'truncated', 'html_page': 'not_an_image', 'empty_file': 'empty', 'bomb_png': 'bomb', 'webp_as_jpg': 'wrong_extension',
        'rgba_png': 'odd_mode', 'palette_png': 'odd_mode', 'cmyk_jpeg': 'odd_mode', 'exif_rotated': 'exif_rotated', 'one_pixel': 'too_small', 'duplicate': 'duplicate',
        'rescaled_copy': 'near_duplicate', 'reencoded_copy': 'near_duplicate', 'cropped_copy': 'near_duplicate', 'too_dark': 'too_dark', 'blurred': 'blurred'}
    for seed in (42, 1, 2, 3, 4):
        folder = draw_bears(tmp_path/str(seed), n_per_label=240, side=160, seed=seed)
        report = check_images(folder)
        with open(folder/'faults.csv', encoding='utf-8', newline='') as f: faults = [r for r in csv.DictReader(f) if r['fault'] in issues]
        hits = {(f.file, f.issue) for f in report.rows} | {(f.of, f.issue) for f in report.rows if f.of}
        for r in faults:
            planted[issues[r['fault']]] += 1
            found[issues[r['fault']]] += (r['file'], issues[r['fault']]) in hits
        pairs = {frozenset((r['file'], r['of'])) for r in faults if r['of']}
        copies = [f for f in report.rows if f.issue in ('duplicate', 'near_duplicate')]
        pairs_found, false = pairs_found + len(copies), false + sum(frozenset((f.file, f.of)) not in pairs for f in copies)
        assert set(report.files(*broken_issues)) == {r['file'] for r in faults if issues[r['fault']] in broken_issues}
    least = {**dict.fromkeys(planted, 1.0), 'near_duplicate': 0.95, 'too_dark': 0.9, 'blurred': 0.9}
    assert min(planted[issue] for issue in ('duplicate', 'near_duplicate', 'too_dark', 'blurred')) >= 30
    assert {issue: found[issue]/planted[issue] for issue in planted if found[issue] < least[issue]*planted[issue]} == {}
    assert false <= 0.01*pairs_found


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
    report, real = check_images(bears), quarantine.move_file
    def power_cut(source, target): raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, 'move_file', power_cut)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert snapshot(bears) == before
    def power_cut_after(source, target):
        real(source, target)
        raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, 'move_file', power_cut_after)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert len(snapshot(bears)) == len(before) - 1
    with pytest.raises(KeyboardInterrupt): restore(bears)
    monkeypatch.setattr(quarantine, 'move_file', real)
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
    second = image_bytes(2)[:-300]
    (bears/'black'/'broken.jpg').write_bytes(second)
    assert [m.to for m in check_images(bears).quarantine()] == ['black/broken-1.jpg']
    third = image_bytes(5)
    (bears/'black'/'broken.jpg').write_bytes(third)
    restore(bears)
    assert {f.read_bytes() for f in (bears/'black').glob('broken*')} == {first, second, third}


def test_a_journal_cannot_lead_out_of_the_folder(bears, tmp_path):
    report = check_images(bears)
    report.quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    lines = journal.read_text(encoding='utf-8').splitlines()
    for field, name in [('file', '../../evil.jpg'), ('file', '/evil.jpg'), *([('file', 'black\\..\\..\\evil.jpg')] if os.name == 'nt' else []), ('to', '../../../outside.jpg')]:
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


def test_a_hundred_identical_and_blank_images_stay_quick(tmp_path):
    (tmp_path/'b'/'x').mkdir(parents=True)
    for n in range(100): Image.new('RGB', (64, 64), (n, n, n)).save(tmp_path/'b'/'x'/f'{n:03}.png')
    report = check_images(tmp_path/'b')
    assert report.counts['near_constant'] == 100 and 'near_duplicate' not in report.counts


def test_quarantine_leaves_the_good_one_of_two_copies(tmp_path):
    "A larger copy that shows nothing is no reason for the smaller one to go"
    (tmp_path/'b'/'x').mkdir(parents=True)
    good = draw_bear('teddy', seed=3, side=320)
    good.save(tmp_path/'b'/'x'/'good.png')
    good.resize((640, 640)).point(lambda v: v//6).save(tmp_path/'b'/'x'/'large.png')
    report = check_images(tmp_path/'b')
    assert report.files('too_dark') == report.files('near_duplicate') == ['x/large.png']
    report.quarantine(['near_duplicate', 'too_dark'])
    assert [f.name for f in image_files(tmp_path/'b')] == ['good.png']


@pytest.mark.skipif(os.name == 'nt', reason='Windows has neither such names nor links for everybody')
def test_odd_names_and_links_come_back(tmp_path):
    label = tmp_path/'b'/'bear: brown'
    label.mkdir(parents=True)
    (label/'a\\b.jpg').write_bytes(b'<html>')
    (label/os.fsdecode(b'caf\xe9.jpg')).write_bytes(b'<html>')
    (label/'note.txt').write_text('no image')
    os.symlink('note.txt', label/'link.jpg')
    (label/'bear.jpg').write_bytes(image_bytes(1))
    os.symlink('bear.jpg', label/'again.jpg')
    os.symlink(label, tmp_path/'b'/'twin')
    before = sorted(os.listdir(label))
    report = check_images(tmp_path/'b')
    assert 'duplicate' not in report.counts and 'across_labels' not in report.counts
    report.write_html(tmp_path/'report.html')
    assert {m.file.rpartition('/')[2] for m in report.quarantine() if m.status == 'moved'} == {'a\\b.jpg', 'link.jpg', os.fsdecode(b'caf\xe9.jpg')}
    assert {m.status for m in restore(tmp_path/'b')} == {'restored'} and sorted(os.listdir(label)) == before


def test_a_report_stays_with_its_folder(bears, tmp_path, monkeypatch):
    "Another folder of the same name, where the program goes later, is left alone"
    monkeypatch.chdir(tmp_path)
    report = check_images('bears')
    (tmp_path/'else').mkdir()
    shutil.copytree(bears, tmp_path/'else'/'bears')
    before = snapshot(tmp_path/'else')
    monkeypatch.chdir(tmp_path/'else')
    assert {m.status for m in report.quarantine()} == {'moved'} and snapshot(tmp_path/'else') == before
    assert not (bears/'black'/'broken.jpg').exists()


def test_a_journal_of_nonsense_stops_nothing(bears):
    before = snapshot(bears)
    check_images(bears).quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    journal.write_bytes(b'[]\n1\n{"id": [], "file": 3, "to": 4}\n' + journal.read_bytes())
    assert {m.status for m in restore(bears)} == {'restored'} and snapshot(bears) == before


def test_a_damaged_avif_is_a_finding(bears):
    (bears/'black'/'a.avif').write_bytes(image_bytes(1, fmt='AVIF').replace(b'iloc', b'free'))
    assert 'black/a.avif' in check_images(bears).files('unreadable')
    assert [f.name for f in verify_images([bears/'black'/'a.avif'])] == ['a.avif']
