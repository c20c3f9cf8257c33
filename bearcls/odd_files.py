import io, struct, zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
import numpy as np
from PIL import Image

@dataclass(frozen=True)
class OddFile:
    "A file that is not what it seems, and what is to become of it"
    name: str                # File name; its ending is the true one
    data: bytes = field(repr=False)  # Content
    what: str                # What is odd about it, in words
    reason: str = ''         # Why it is refused, one of `bearcls.core.image_reasons`; empty if it is answered
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)  # What an opened image shows: height by width by 3, 0 to 255
    page: str = ''           # The page's own reason
    within: int = 1          # How far a decoder's pixels may lie from `pixels`, in levels of 255

    @property
    def kind(self) -> str: return self.name.rpartition('.')[2]  # Format, as the ending names it

def _colours(height=40, width=48):
    "Red grows to the right, green downwards, and blue is a chess board"
    y, x = np.mgrid[:height, :width]
    return np.stack([x*255//(width - 1), y*255//(height - 1), (x//8 + y//8) % 2*200], -1).astype(np.uint8)

def _grey(height=40, width=48):
    "A ramp from 0 to 1 along both sides"
    y, x = np.mgrid[:height, :width]
    return (x/(width - 1) + y/(height - 1))/2

def _levels(share):
    "Shares of white as what an opened image shows"
    return np.repeat(np.rint(255*np.clip(share, 0, 1)).astype(np.uint8)[..., None], 3, -1)

def _white_under(pixels, alpha):
    "Pixels over white; `alpha` from 0 to 1"
    share = np.broadcast_to(alpha[..., None], pixels.shape)
    return np.rint(share*pixels + (1 - share)*255).astype(np.uint8)

def _chunk(kind, body, crc=None):
    "One chunk of a PNG; `crc` for a wrong checksum"
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body) if crc is None else crc)

_png_kinds = {'grey': 0, 'RGB': 2, 'palette': 3, 'grey with alpha': 4, 'RGBA': 6}
_adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]

def _rows(values, depth):
    "Rows of a PNG without filters: samples packed from the left, each row with its filter byte"
    flat = values.reshape(len(values), -1)
    if depth == 16: packed = flat.astype('>u2').view(np.uint8).reshape(len(flat), -1)
    elif depth == 8: packed = flat.astype(np.uint8)
    else:
        bits = (flat[..., None] >> np.arange(depth)[::-1] & 1).reshape(len(flat), -1)
        packed = np.packbits(bits.astype(np.uint8), axis=1)
    return np.pad(packed, ((0, 0), (1, 0))).tobytes()

def _png(values, kind, depth=8, before=(), interlaced=False, after=(), idat=None):
    "A PNG of whole numbers, with chunks `before` and `after` its pixels; `idat` makes the pixels' chunks from the compressed rows"
    height, width = values.shape[:2]
    parts = [values[y::dy, x::dx] for y, x, dy, dx in _adam7] if interlaced else [values]
    packed = zlib.compress(b''.join(_rows(p, depth) for p in parts if p.size))
    head = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, _png_kinds[kind], 0, 0, interlaced))
    body = idat(packed) if idat else _chunk(b'IDAT', packed)
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(before) + body + b''.join(after) + _chunk(b'IEND', b'')

def _odd_pngs():
    "Transparent colours of every kind, and what may go wrong beside the pixels"
    colours, grey = _colours(), _grey()
    def odd(name, what, data, pixels=colours, within=1, reason=''):
        return OddFile(f'{name}.png', data, what, reason, None if reason else pixels, within=within)
    for interlaced in (False, True):
        end, tail = ('-interlaced', ', interlaced') if interlaced else ('', '')
        for depth in (1, 2, 4, 8, 16):
            most = 2**depth - 1
            values = np.rint(grey*most).astype(np.int64)
            key = int(values[20, 24])
            seen = _levels(np.where(values == key, 1, values/most))
            yield odd(f'grey{depth}-key{end}', f'{depth}-bit grey, one grey transparent{tail}', _png(values, 'grey', depth, [_chunk(b'tRNS', struct.pack('>H', key))], interlaced), seen)
            yield odd(f'grey{depth}{end}', f'{depth}-bit grey{tail}', _png(values, 'grey', depth, [], interlaced), _levels(values/most))
        for depth in (8, 16):
            values = np.clip(colours.astype(np.int64)*257 + np.arange(48)[:, None] % 3 - 1, 0, 65535) if depth == 16 else colours.astype(np.int64)
            key = values[20, 24]
            hidden = (values == key).all(-1)
            full = np.rint(values/(2**depth - 1)*255).astype(np.uint8)
            yield odd(f'rgb{depth}-key{end}', f'{depth}-bit colours, one colour transparent{tail}', _png(values, 'RGB', depth, [_chunk(b'tRNS', struct.pack('>HHH', *map(int, key)))], interlaced), np.where(hidden[..., None], 255, full).astype(np.uint8))
            alpha = np.rint(grey*(2**depth - 1)).astype(np.int64)
            yield odd(f'rgba{depth}{end}', f'{depth}-bit colours with partial transparency{tail}', _png(np.concatenate([values, alpha[..., None]], -1), 'RGBA', depth, [], interlaced), _white_under(full, alpha/(2**depth - 1)), 2)
            level = np.rint(grey.T.reshape(40, 48)*(2**depth - 1)).astype(np.int64)
            yield odd(f'la{depth}{end}', f'{depth}-bit grey with partial transparency{tail}', _png(np.stack([level, alpha], -1), 'grey with alpha', depth, [], interlaced), _white_under(_levels(level/(2**depth - 1)), alpha/(2**depth - 1)), 2)
        for depth in (1, 2, 4, 8):
            n = 2**depth
            index = np.rint(grey*(n - 1)).astype(np.int64)
            table = np.random.default_rng(depth).integers(0, 256, (n, 3)).astype(np.uint8)
            clear = np.random.default_rng(n).integers(0, 256, n - n//3).astype(np.uint8)
            alpha = np.append(clear, [255]*(n - len(clear)))/255
            given = [_chunk(b'PLTE', table.tobytes()), _chunk(b'tRNS', clear.tobytes())]
            yield odd(f'palette{depth}-alpha{end}', f'{n} colours, some partly transparent{tail}', _png(index, 'palette', depth, given, interlaced), _white_under(table[index], alpha[index]), 2)

def _damaged_pngs():
    "PNGs whose pixels are whole while something beside them is not, and some whose pixels are not"
    pixels = _colours()
    def png(**more): return _png(pixels, 'RGB', **more)
    def odd(name, what, data, reason='', pixels=pixels, within=0):
        return OddFile(f'{name}.png', data, what, reason, None if reason else pixels, within=within)
    noise = np.random.default_rng(0).bytes(1_200_000)
    whole, packed = png(), zlib.compress(_rows(pixels, 8))
    hurt = bytearray(packed)
    hurt[len(hurt)//2] ^= 255
    claims = bytearray(whole)
    claims[16:24] = struct.pack('>II', 60_000, 60_000)
    claims[29:33] = struct.pack('>I', zlib.crc32(claims[12:29]))
    side = [_chunk(b'gAMA', struct.pack('>I', 100_000)), _chunk(b'iCCP', b'swapped\0\0' + zlib.compress(noise))]
    wrong = lambda kind, body: _chunk(kind, body, 1)
    exif = b'II*\0\x08\0\0\0' + struct.pack('<HHHIHHI', 1, 0x0112, 3, 1, 6, 0, 0)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    frame = struct.pack('>IIIIHHBB', 48, 40, 0, 0, 1, 10, 0, 0)
    second = b'\0\0\0\x02' + zlib.compress(_rows(255 - pixels, 8))
    yield odd('profile-large', 'a colour profile of 1.2 MB', png(before=side[1:]))
    yield odd('comment-large', 'a packed comment of 2 MB', png(before=[_chunk(b'zTXt', b'Comment\0\0' + zlib.compress(bytes(2_000_000)))]))
    yield odd('comment-plain', 'a comment of 1.2 MB', png(before=[_chunk(b'tEXt', b'Comment\0' + noise)]))
    yield odd('comment-itxt', 'an international comment of 2 MB, packed', png(before=[_chunk(b'iTXt', b'Comment\0\1\0\0\0' + zlib.compress(b'a'*2_000_000))]))
    yield odd('comments-many', 'seventy comments of 1 MB, packed', png(before=[_chunk(b'zTXt', b'Comment\0\0' + zlib.compress(bytes(1_000_000)))]*70))
    yield odd('profile-damaged', 'a colour profile that cannot be unpacked', png(before=[_chunk(b'iCCP', b'x\0\0' + b'no zlib')]))
    yield odd('profile-method', 'a colour profile packed in an unknown way', png(before=[_chunk(b'iCCP', b'x\0\7' + b'no zlib')]))
    for kind, body in ((b'iCCP', b'x\0\0' + zlib.compress(bytes(90))), (b'tEXt', b'Comment\0text'), (b'pHYs', bytes(9)), (b'gAMA', bytes(4)), (b'tIME', bytes(7)), (b'prVt', b'mine')):
        yield odd(f'checksum-{kind.decode()}', f'a wrong checksum in the side chunk {kind.decode()}', png(before=[wrong(kind, body)]))
    for kind in (b'gAMA', b'cHRM', b'pHYs', b'sRGB', b'tIME', b'acTL'): yield odd(f'short-{kind.decode()}', f'a side chunk {kind.decode()} without content', png(before=[_chunk(kind, b'')]))
    yield odd('gamma', 'a gamma of 1.0, which some programs apply', png(before=side[:1]))
    yield odd('letters', 'a side chunk whose name is no word', png(before=[_chunk(b'a?b!', b'')]))
    yield odd('after', 'a damaged comment behind the pixels', png(after=[wrong(b'tEXt', b'Comment\0text')]))
    yield odd('between', 'a comment between two halves of the pixels', png(idat=lambda p: _chunk(b'IDAT', p[:99]) + _chunk(b'tEXt', b'a\0b') + _chunk(b'IDAT', p[99:])))
    yield odd('pieces', 'pixels in pieces of seven bytes, with empty ones between', png(idat=lambda p: b''.join(_chunk(b'IDAT', p[k:k + 7]) + _chunk(b'IDAT', b'') for k in range(0, len(p), 7))))
    yield odd('trailing', 'other things behind the end', whole + b'PK\3\4' + bytes(200))
    yield odd('extra', 'more behind the packed pixels', png(idat=lambda p: _chunk(b'IDAT', p + b'more')))
    yield odd('checksum-pixels', 'a wrong checksum of a chunk of pixels, which can be unpacked whole', png(idat=lambda p: wrong(b'IDAT', p)))
    yield odd('no-end', 'no end marker', whole[:-12])
    yield odd('half-end', 'half an end marker', whole[:-6])
    yield odd('no-checksum', 'cut off after the last byte of the pixels', whole[:-16])
    yield odd('adler', 'cut off in the last checksum of the pixels', whole[:-18])
    yield odd('key-late', 'a transparent colour that is named behind the pixels, where it does not count', png(after=[_chunk(b'tRNS', struct.pack('>HHH', *map(int, pixels[3, 3])))]))
    yield odd('orientation', 'an EXIF record that turns it', png(before=[_chunk(b'eXIf', exif)]), pixels=np.rot90(pixels, -1))
    yield odd('orientation-damaged', 'an EXIF record with a wrong checksum', png(before=[wrong(b'eXIf', exif)]))
    yield odd('exif-damaged', 'an EXIF record that breaks off', png(before=[_chunk(b'eXIf', exif[:15])]))
    yield odd('exif-noise', 'an EXIF record of other bytes', png(before=[_chunk(b'eXIf', b'no EXIF at all')]))
    yield odd('xmp', 'a turn that stands in XMP alone, where browsers do not look', png(before=[_chunk(b'iTXt', xmp)]))
    moving = [_chunk(b'acTL', struct.pack('>II', 2, 0)), _chunk(b'fcTL', struct.pack('>I', 0) + frame)]
    yield odd('moving', 'a moving image: its first one is looked at', png(before=moving, after=[_chunk(b'fcTL', struct.pack('>I', 1) + frame), _chunk(b'fdAT', second)]))
    yield odd('moving-damaged', 'a moving image whose frames are counted wrongly', png(before=[moving[0], _chunk(b'fcTL', struct.pack('>I', 7) + frame)], after=[_chunk(b'fcTL', struct.pack('>I', 1) + frame), _chunk(b'fdAT', second)]))
    yield odd('moving-hidden', 'a moving image behind a still one', png(before=moving[:1], after=[_chunk(b'fcTL', struct.pack('>I', 0) + frame), _chunk(b'fdAT', second)]))
    yield odd('hurt', 'one wrong byte among the pixels', png(idat=lambda p: _chunk(b'IDAT', bytes(hurt))), 'unreadable')
    yield odd('half', 'half a file', whole[:len(whole)//2], 'truncated')
    yield odd('rows-missing', 'fewer rows than it says', png(idat=lambda p: _chunk(b'IDAT', zlib.compress(_rows(pixels[:-1], 8)))), 'truncated')
    yield odd('header-only', 'no pixels at all', png(idat=lambda p: b''), 'truncated')
    yield odd('claims', '3.6 gigapixels in a file of a kilobyte', bytes(claims), 'bomb')
    yield odd('header-checksum', 'a wrong checksum of the header', whole[:29] + b'\0\0\0\1' + whole[33:], 'unreadable')
    yield odd('palette-checksum', 'a wrong checksum of the palette', _png(pixels[..., 0] % 4, 'palette', 8, [wrong(b'PLTE', bytes(range(12)))]), 'unreadable')
    yield odd('palette-missing', 'indices without a palette', _png(pixels[..., 0] % 4, 'palette', 8), 'unreadable')
    yield odd('key-checksum', 'a wrong checksum of the transparent colour', png(before=[wrong(b'tRNS', bytes(6))]), 'unreadable')
    yield odd('unknown', 'a part that readers have to know, and do not', png(before=[_chunk(b'ABCD', b'')]), 'unreadable')
    yield odd('no-size', 'a width of 0', whole[:8] + _chunk(b'IHDR', struct.pack('>IIBBBBB', 0, 40, 8, 2, 0, 0, 0)) + whole[33:], 'unreadable')
    yield odd('depth', 'a depth that there is not', whole[:8] + _chunk(b'IHDR', struct.pack('>IIBBBBB', 48, 40, 4, 2, 0, 0, 0)) + whole[33:], 'unreadable')
    yield odd('index-outside', 'indices that the palette does not have, which are black', _png(pixels[..., 1] % 4, 'palette', 8, [_chunk(b'PLTE', bytes(range(200, 206)))]), pixels=np.array([[200, 201, 202], [203, 204, 205], [0, 0, 0], [0, 0, 0]], np.uint8)[pixels[..., 1] % 4])
    yield odd('table-spare', 'a palette for colours that need none', png(before=[wrong(b'PLTE', bytes(12))]))

def _jpeg(image, **how):
    out = io.BytesIO()
    image.save(out, 'JPEG', **{'quality': 92, 'subsampling': 0, **how})
    return out.getvalue()

def _seen(data):
    "What a whole JPEG shows"
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))

def _odd_jpegs():
    "JPEGs without their end, with and without all their pixels, and with odd records"
    image = Image.fromarray(_colours())
    def odd(name, what, data, reason='', shows=None, within=4):
        return OddFile(f'{name}.jpg', data, what, reason, None if reason else _seen(data if shows is None else shows), within=within)
    kinds = {'baseline': {}, 'halved': dict(subsampling=2), 'progressive': dict(progressive=True), 'restarts': dict(restart_marker_rows=1)}
    for name, how in kinds.items():
        data = _jpeg(image, **how)
        yield odd(f'{name}-no-end', f'no end marker ({name})', data[:-2], shows=data, within=4 if name != 'halved' else 8)
        yield odd(f'{name}-half-end', f'half an end marker ({name})', data[:-1], shows=data, within=4 if name != 'halved' else 8)
        yield odd(f'{name}-zeros', f'zeros instead of the end marker, as rescued disks have them ({name})', data[:-2] + bytes(500), shows=data, within=4 if name != 'halved' else 8)
        for n in (4, 20, 200): yield odd(f'{name}-less-{n}', f'the last {n} bytes of the pixels missing ({name})', data[:-2 - n], 'truncated')
        yield odd(f'{name}-zeros-inside', f'zeros instead of the last 100 bytes ({name})', data[:-102] + bytes(500), 'truncated')
    data = _jpeg(image, progressive=True)
    yield odd('layers-missing', 'the last layer of a progressive image missing', data[:data.rindex(b'\xff\xc4')], 'truncated')
    grey = _jpeg(image.convert('L'))
    yield odd('grey-no-end', 'no end marker (grey)', grey[:-2], shows=grey)
    yield odd('trailing', 'other things behind the end', data + b'PK\3\4' + bytes(200), shows=data)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _jpeg(image, exif=exif)
    at = turned.index(b'Exif\0\0')
    yield OddFile('orientation.jpg', turned, 'an EXIF record that turns it', '', np.rot90(_seen(turned), -1), within=4)
    yield OddFile('orientation-no-end.jpg', turned[:-2], 'turned, and without its end marker', '', np.rot90(_seen(turned), -1), within=4)
    yield odd('exif-noise', 'an EXIF record of other bytes', turned[:at + 6] + b'no EXIF, as ' + turned[at + 18:])
    yield odd('exif-points-nowhere', 'an EXIF record that points nowhere', turned[:at + 10] + b'\0\0\xff\xf0' + turned[at + 14:])
    yield odd('exif-nine', 'an EXIF record with a turn that there is not', turned.replace(b'\x01\x12\0\3\0\0\0\1\0\6', b'\x01\x12\0\3\0\0\0\1\0\x09'))
    yield odd('profile-damaged', 'a colour profile of other bytes', _jpeg(image, icc_profile=b'no profile'*20))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = _jpeg(image)
    yield odd('xmp', 'a turn that stands in XMP alone, where browsers do not look', plain[:2] + b'\xff\xe1' + struct.pack('>H', len(xmp) + 2) + xmp + plain[2:])
    yield odd('half', 'half a file', plain[:len(plain)//2], 'truncated')
    yield odd('head', 'its first three bytes', plain[:3], 'truncated')
    yield odd('noise', 'the first bytes of a JPEG, and then other things', b'\xff\xd8\xff' + bytes(range(256))*9, 'unreadable')
    yield odd('cmyk', 'the four colours of printers', _jpeg(image.convert('CMYK')), within=4)

def _tiff(values, bits, form=1, order='<', white_is_zero=False, declared=(), compression=1, predictor=1, big=False):
    "An uncompressed or deflated TIFF of samples: unsigned (1), signed (2) or float (3); `declared` its lowest and highest"
    height, width, parts = (*values.shape, 1)[:3]
    letter = {1: 'u', 2: 'i', 3: 'f'}[form]
    if bits in (8, 16, 32, 64): rows = values.astype(f'{order}{letter}{bits//8}').reshape(height, -1)
    else:
        flat = values.reshape(height, -1).astype(np.int64) & (1 << bits) - 1
        places = (flat[..., None] >> np.arange(bits)[::-1] & 1).reshape(height, -1)
        rows = np.packbits(places.astype(np.uint8), axis=1)
    if predictor == 2: rows = np.concatenate([rows[:, :parts], rows[:, parts:] - rows[:, :-parts]], 1).astype(rows.dtype)
    packed = rows.tobytes()
    if compression == 8: packed = zlib.compress(packed)
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits]*parts), 259: (3, [compression]), 262: (3, [2 if parts == 3 else 0 if white_is_zero else 1]),
            273: (4, [0]), 277: (3, [parts]), 278: (4, [height]), 279: (4, [len(packed)]), 317: (3, [predictor]), 339: (3, [form]*parts)}
    if len(declared): tags |= {number: (12, [value]*parts) for number, value in zip((340, 341), declared)}
    letters = {3: 'H', 4: 'I', 12: 'd'}
    start, extra, entries = 8 + 2 + 12*len(tags) + 4, b'', b''
    sizes = {number: struct.calcsize(f'<{len(given)}{letters[kind]}') for number, (kind, given) in tags.items()}
    tags[273] = (4, [start + sum(-(-n//2)*2 for n in sizes.values() if n > 4)])
    for number, (kind, given) in sorted(tags.items()):
        body = struct.pack(f'{order}{len(given)}{letters[kind]}', *given)
        if len(body) > 4:
            place = struct.pack(order + 'I', start + len(extra))
            extra += body + b'\0'*(len(body) % 2)
        else: place = body.ljust(4, b'\0')
        entries += struct.pack(order + 'HHI', number, kind, len(given)) + place
    head = (b'II' if order == '<' else b'MM') + struct.pack(order + 'HI', 42, 8)
    return head + struct.pack(order + 'H', len(tags)) + entries + bytes(4) + extra + packed

def _odd_tiffs():
    "Greys of more than 8 bits: each on the scale that the file declares, otherwise on that of its data type"
    grey = _grey()
    def odd(name, what, data, share=grey, reason='', within=1):
        return OddFile(f'{name}.tif', data, what, reason, None if reason else _levels(share), page='unsupported', within=within)
    for order, word in (('<', 'II'), ('>', 'MM')):
        for bits in (10, 12, 14, 16, 32):
            values = np.rint(grey*(2**bits - 1)).astype(np.int64)
            yield odd(f'grey{bits}-{word}', f'{bits}-bit grey ({word})', _tiff(values, bits, 1, order))
            if bits != 14: yield odd(f'white-is-zero{bits}-{word}', f'{bits}-bit grey in which 0 is white ({word})', _tiff(2**bits - 1 - values, bits, 1, order, True))
        for bits in (8, 16, 32): yield odd(f'signed{bits}-{word}', f'{bits}-bit grey with a sign ({word})', _tiff(np.rint(grey*(2**bits - 1)).astype(np.int64) - 2**(bits - 1), bits, 2, order))
        for bits in (16, 32, 64): yield odd(f'float{bits}-{word}', f'{bits}-bit floats from 0 to 1 ({word})', _tiff(grey, bits, 3, order))
    yield odd('float-dark', 'floats up to 0.5: half as light, whatever the highest of the image is', _tiff(grey/2, 32, 3), grey/2)
    yield odd('float-rounding', 'floats up to 1.001, as computing leaves them', _tiff(grey*1.001, 32, 3), grey*1.001)
    yield odd('float-declared', 'floats up to 3000, and the file says so', _tiff(grey*3000, 32, 3, declared=(0, 3000)))
    yield odd('float-declared-wide', 'floats up to 3000 in a file that says up to 6000', _tiff(grey*3000, 32, 3, declared=(0, 6000)), grey/2)
    yield odd('grey16-declared', '12-bit values in 16 bits, and the file says so', _tiff(np.rint(grey*4095), 16, declared=(0, 4095)))
    yield odd('grey16-low', '12-bit values in 16 bits, and nobody says so: dark, as the data type has it', _tiff(np.rint(grey*4095), 16), grey*4095/65535)
    yield odd('signed16-declared', 'a CT image from -1000 to 3000, and the file says so', _tiff(np.rint(grey*4000) - 1000, 16, 2, declared=(-1000, 3000)))
    yield odd('float-white-is-zero', 'floats in which 0 is white', _tiff(1 - grey, 32, 3, white_is_zero=True))
    yield odd('grey16-deflate', '16-bit grey, packed', _tiff(np.rint(grey*65535), 16, compression=8))
    yield odd('grey16-predictor', '16-bit grey, packed as differences', _tiff(np.rint(grey*65535), 16, compression=8, predictor=2))
    yield odd('float-3000', 'floats up to 3000, and nobody says what is white', _tiff(grey*3000, 32, 3), reason='unreadable')
    yield odd('float-negative', 'floats below 0, and nobody says what is black', _tiff(grey - .5, 32, 3), reason='unreadable')
    yield odd('float-nan', 'a float that is no number', _tiff(np.where(grey == grey[3, 3], np.nan, grey), 32, 3), reason='unreadable')
    yield odd('float-infinite', 'a float that is infinite', _tiff(np.where(grey == grey[3, 3], np.inf, grey), 32, 3), reason='unreadable')
    yield odd('float-declared-nan', 'a declared scale, and a float that is no number', _tiff(np.where(grey == grey[3, 3], np.nan, grey), 32, 3, declared=(0, 1)), reason='unreadable')
    yield odd('declared-nothing', 'a declared scale from 5 to 5', _tiff(grey, 32, 3, declared=(5, 5)), reason='unreadable')
    yield odd('half', 'half a file', _tiff(np.rint(grey*65535), 16)[:2000], reason='truncated')
    colours = _colours()
    for bits, form, values in ((16, 1, colours.astype(np.int64)*257), (32, 3, colours/255)):
        yield OddFile(f'colours{bits}.tif', _tiff(values, bits, form), f'colours of {bits} bits', '', colours, page='unsupported')

def _saved(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()

def _odd_others():
    "GIF, WebP, AVIF and BMP; and what is no image"
    colours, image = _colours(), Image.fromarray(_colours())
    table = image.quantize(16)
    gif, seen = _saved(table, 'GIF'), np.asarray(table.convert('RGB'))
    yield OddFile('whole.gif', gif, 'a plain one', '', seen)
    yield OddFile('no-end.gif', gif[:-1], 'no end marker', '', seen)
    yield OddFile('no-end-of-data.gif', gif[:-2], 'the pixels whole, and nothing behind them', '', seen)
    yield OddFile('trailing.gif', gif + b'more', 'other things behind the end', '', seen)
    yield OddFile('half.gif', gif[:len(gif)*2//3], 'a part of a file', 'truncated')
    yield OddFile('less.gif', gif[:-20], 'the last 20 bytes missing', 'truncated')
    key = _saved(table, 'GIF', transparency=3)
    yield OddFile('key.gif', key, 'one colour transparent', '', np.where((np.asarray(table) == 3)[..., None], 255, seen).astype(np.uint8))
    yield OddFile('moving-half.gif', _saved(table, 'GIF', save_all=True, append_images=[table.rotate(180)])[:len(gif) + 60], 'a moving image whose second one is cut off', '', seen)
    lossless = _saved(image, 'WEBP', lossless=True)
    yield OddFile('lossless.webp', lossless, 'a plain one', '', colours)
    yield OddFile('trailing.webp', lossless + b'more', 'other things behind the end', '', colours)
    yield OddFile('half.webp', lossless[:len(lossless)//2], 'half a file', 'truncated')
    yield OddFile('less.webp', lossless[:-1], 'the last byte missing', 'truncated')
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.rint(_grey()*255).astype(np.uint8)))
    white = _white_under(colours, np.rint(_grey()*255)/255)
    yield OddFile('lossless-alpha.webp', _saved(clear, 'WEBP', lossless=True, exact=True), 'partial transparency', '', white, within=2)
    for quality in (80,):
        lossy = _saved(clear, 'WEBP', quality=quality)
        yield OddFile('lossy-alpha.webp', lossy, 'lossy, with partial transparency', '', _white_under(np.asarray(Image.open(io.BytesIO(lossy)))[..., :3], np.asarray(Image.open(io.BytesIO(lossy)))[..., 3]/255), within=4)
    yield OddFile('profile-damaged.webp', _saved(image, 'WEBP', lossless=True, icc_profile=b'no profile'*20), 'a colour profile of other bytes', '', colours)
    yield OddFile('exif-noise.webp', _saved(image, 'WEBP', lossless=True, exif=b'no EXIF at all'), 'an EXIF record of other bytes', '', colours)
    bmp = _saved(image, 'BMP')
    yield OddFile('whole.bmp', bmp, 'a plain one', '', colours)
    yield OddFile('half.bmp', bmp[:-200], 'the last 200 bytes missing', 'truncated')
    yield OddFile('trailing.bmp', bmp + b'more', 'other things behind the end', '', colours)
    down = bytearray(_saved(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 'BMP'))
    down[22:26] = struct.pack('<i', -40)
    yield OddFile('downwards.bmp', bytes(down), 'rows from the top', '', colours)
    yield OddFile('alpha.bmp', _saved(clear, 'BMP'), 'a fourth part that the format calls unused', '', colours)
    yield OddFile('empty.jpg', b'', 'no bytes', 'empty')
    yield OddFile('text.jpg', b'This is no image at all.', 'text', 'not_an_image')
    yield OddFile('page.jpg', b'<!doctype html><title>Gone</title>', 'a web page', 'not_an_image')
    yield OddFile('raw.ppm', b'P6 2 2 255 ' + bytes(12), 'a format that is not read', 'not_an_image')

def draw_odd_files() -> list[OddFile]:  # Some two hundred, drawn anew each time
    "Files that are not what they seem, and what is to become of each"
    return [o for draw in (_odd_pngs, _damaged_pngs, _odd_jpegs, _odd_tiffs, _odd_others) for o in draw()]
