import functools, io, os, re, struct, zlib
from typing import BinaryIO
from PIL import Image, ImageChops
from .greys import FileFlaw

def mended(
    source: str | os.PathLike | bytes | BinaryIO,  # Path, bytes, or a binary file that can seek
    pixels: bool = True,   # Will the pixels be decoded? False: the header alone, without the end
    limit: int = 100_000_000,  # Larger images are left as they are: nobody will decode them
) -> BinaryIO:             # What a decoder is to be given
    "An image file without what its pixels do not depend on"
    f = open(source, 'rb') if isinstance(source, (str, os.PathLike)) else io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
    try:
        f.seek(0)
        head = f.read(16)
        if head[:8] == b'\x89PNG\r\n\x1a\n': out = _mended_png(f, pixels)
        elif head[:3] == b'\xff\xd8\xff' and pixels: out = _mended_jpeg(f, limit)
        elif head[:4] == b'RIFF' and head[8:12] == b'WEBP': out = _whole_webp(f)
        else: out = f
        out.seek(0)
    except BaseException:
        if f is not source: f.close()
        raise
    if out is not f and f is not source: f.close()
    return out

# ---- cell
_cut = 'ends before the picture does'
_depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # Bits that a PNG may have, by its kind of colour

def _mended_png(f, pixels):
    "Header, palette, transparent colours, EXIF and pixels; all other parts of a PNG are left out, unread"
    parts, ended = {}, False
    body, right = [], True
    f.seek(8)
    while len(head := f.read(8)) == 8:
        size, name = struct.unpack('>I4s', head)
        first = name not in parts and not body
        if name == b'IDAT' and not pixels:
            body.append(b'')
            break
        if name in (b'IHDR', b'PLTE', b'tRNS', b'eXIf') and first or name == b'IDAT':
            data, check = f.read(size), f.read(4)
            whole = len(data) == size and check == struct.pack('>I', zlib.crc32(data, zlib.crc32(name)))
            if name == b'IDAT':
                body.append(data)
                right &= whole
            elif whole or name != b'eXIf': parts[name] = data, whole
        elif name == b'IEND':
            ended = True
            break
        elif not name[0] & 32 and name not in (b'IHDR', b'PLTE'): raise FileFlaw('cannot be decoded: a part of it is damaged, or of an unknown kind')
        else: f.seek(size + 4, os.SEEK_CUR)
    kind, depth, need = _png_header(parts)
    table = _png_table(parts, kind, depth)
    if not body: raise FileFlaw(_cut, 'truncated')
    head = b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(name, data) for name, data in table.items())
    if not pixels: return io.BytesIO(head + struct.pack('>I4s', 0, b'IDAT'))
    if not right and ended: _check_packed(body, need)
    body = b''.join(body)
    return io.BytesIO(b''.join([head, struct.pack('>I', len(body)), b'IDAT', body, bytes(4), _chunk(b'IEND', b'')]))

def _chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

def _png_header(parts):
    "Kind of colour, depth and number of unpacked bytes"
    data, whole = parts.get(b'IHDR', (b'', False))
    if not whole or len(data) != 13: raise FileFlaw('cannot be decoded: its header is damaged')
    width, height, depth, kind, packing, filtering, interlaced = struct.unpack('>IIBBBBB', data)
    if not width or not height: raise FileFlaw(f'cannot be decoded: it claims {width}×{height} pixels')
    if depth not in _depths.get(kind, ()) or packing or filtering or interlaced > 1: raise FileFlaw('cannot be decoded: its header is damaged')
    bits = depth*{2: 3, 4: 2, 6: 4}.get(kind, 1)
    return kind, depth, unpacked_bytes(width, height, bits, interlaced)

_adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # Start and step across and down

def unpacked_bytes(
    width: int, height: int,  # Pixels
    bits: int,                # Bits of a pixel
    interlaced: bool = False, # Do its pixels come in seven passes?
) -> int:                     # Bytes, those that name the filters included
    "How many bytes the pixels of a PNG have before they are packed"
    passes = _adam7 if interlaced else [(0, 0, 1, 1)]
    sizes = [(-(-(width - x)//dx), -(-(height - y)//dy)) for x, y, dx, dy in passes]
    return sum(h*(1 + -(-w*bits//8)) for w, h in sizes if w > 0 and h > 0)

def _png_table(parts, kind, depth):
    "The parts that stand before the pixels, as Pillow is to see them"
    table = {b'IHDR': parts[b'IHDR'][0]}
    if kind == 3:
        colours, whole = parts.get(b'PLTE', (b'', False))
        if not whole or not 3 <= len(colours) <= 768: raise FileFlaw('cannot be decoded: its palette is missing or damaged')
        table[b'PLTE'] = colours
    if b'tRNS' in parts and kind in (0, 2, 3):
        clear, whole = parts[b'tRNS']
        if not whole: raise FileFlaw('cannot be decoded: which colour is transparent is damaged')
        if kind == 3: clear = clear[:len(table[b'PLTE'])//3]
        if kind == 0 and len(clear) >= 2 and depth in (2, 4):  # Pillow compares it with what it has spread to 8 bits
            clear = struct.pack('>H', (struct.unpack('>H', clear[:2])[0] & 2**depth - 1)*255//(2**depth - 1))
        if len(clear) >= {0: 2, 2: 6, 3: 1}[kind]: table[b'tRNS'] = clear
    if b'eXIf' in parts: table[b'eXIf'] = parts[b'eXIf'][0]
    return table

def _check_packed(body, need):
    "Are packed pixels whole, where a checksum around them is wrong? They carry one of their own"
    unpack, n = zlib.decompressobj(), 0
    try:
        for piece in body:
            while piece and not unpack.eof and n <= need + (1 << 20):
                n += len(unpack.decompress(piece, 1 << 20))
                piece = unpack.unconsumed_tail
    except zlib.error as e: raise FileFlaw(f'cannot be decoded: its pixels are damaged ({e})') from e
    if n < need: raise FileFlaw(_cut, 'truncated')
    if not unpack.eof and n <= need + (1 << 20): raise FileFlaw('cannot be decoded: its pixels are damaged')

def load_png(
    image: Image.Image,  # A PNG that Pillow has opened from what `mended` gave
) -> Image.Image:        # The same, its pixels loaded; one transparent colour of 16 bits already white
    "Pixels of a PNG, with what Pillow would pass over: rows that are missing, and colours that differ in the lower byte"
    f, key = image.fp, image.info.get('transparency')
    deep = image.mode == 'RGB' and image.tile[:1] and image.tile[0][3] == 'RGB;16B' and isinstance(key, tuple)
    image.load()
    last = [image.crop((0, y, image.width, y + 1)) for y in range(max(0, image.height - 2), image.height)]
    if any(map(_all_zero, last)): _check_rows(f)
    if not deep: return image
    f.seek(0)
    with Image.open(f, formats=['PNG']) as low:
        low.tile = [low.tile[0]._replace(args='RGB;16L')]  # the same bytes, of which it takes the others
        low.load()
        hit = [high.point([255*(v == k >> 8) for v in range(256)]) for high, k in zip(image.split(), key)]
        hit += [part.point([255*(v == k & 255) for v in range(256)]) for part, k in zip(low.split(), key)]
    mask = functools.reduce(ImageChops.darker, hit)
    del image.info['transparency']
    image.paste('white', (0, 0), mask)
    return image

def _check_rows(f):
    "`FileFlaw` for a PNG whose packed pixels end early; Pillow leaves the rest black without a word"
    f.seek(0)
    data = f.read()
    width, height, depth, kind, _, _, interlaced = struct.unpack('>IIBBBBB', data[16:29])
    at = 8
    while data[at + 4:at + 8] != b'IDAT': at += 12 + struct.unpack('>I', data[at:at + 4])[0]
    piece = memoryview(data)[at + 8:at + 8 + struct.unpack('>I', data[at:at + 4])[0]]
    need, unpack, n = unpacked_bytes(width, height, depth*{2: 3, 4: 2, 6: 4}.get(kind, 1), interlaced), zlib.decompressobj(), 0
    while piece and not unpack.eof and n < need:
        n += len(unpack.decompress(piece, 1 << 20))
        piece = unpack.unconsumed_tail
    if n < need: raise FileFlaw(_cut, 'truncated')

def _all_zero(row):
    extrema = row.getextrema()
    return all(high == 0 for _, high in (extrema if isinstance(extrema[0], tuple) else [extrema]))

# ---- cell
_end = b'\xff\xd9'
_marker = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')  # What ends the packed pixels of a JPEG

def _mended_jpeg(f, limit):
    "A JPEG with its end marker, if every pixel is there; cameras write other things behind it"
    start, frame = _jpeg_start(f)
    if _has_end(f, start) or frame and frame[0] > limit: return f
    f.seek(0)
    data = f.read()
    bare = data.rstrip(b'\0')  # rescued disks end in zeros
    zeros = len(data) - len(bare)
    if frame and _all_layers(data, start, *frame[1:]):
        for keep in range(min(zeros, 2) + 1):  # the pixels may end in zeros, too
            body = bare + bytes(keep)
            if body.endswith(b'\xff'): body = body + b'\0' if zeros else body[:-1]
            if _is_enough(body): return io.BytesIO(body + _end)
    raise FileFlaw(_cut, 'truncated')

def _jpeg_start(f):
    "Where the first scan begins, and the frame: pixels, the components' numbers, and whether it comes in layers"
    at, frame = 2, None
    while True:
        f.seek(at)
        head = f.read(10)
        if len(head) < 4: raise FileFlaw(_cut, 'truncated')
        if head[0] != 0xff: raise FileFlaw('cannot be decoded: it is damaged')
        if head[1] == 0xda: return at, frame
        if 0xc0 <= head[1] <= 0xcf and head[1] not in (0xc4, 0xc8, 0xcc) and len(head) == 10:
            numbers = f.read(3*head[9])
            frame = struct.unpack('>H', head[5:7])[0]*struct.unpack('>H', head[7:9])[0], numbers[::3], head[1] in (0xc2, 0xc6, 0xca, 0xce)
        at += 1 if head[1] == 0xff else 2 + struct.unpack('>H', head[2:4])[0]

def _has_end(f, start):
    "Is there an end marker behind the first scan's beginning? It is looked for from the end of the file"
    size, step = f.seek(0, os.SEEK_END), 1 << 16
    for at in range(size - step, start - step, -step):
        f.seek(max(at, start))
        if _end in f.read(step + 1): return True
    return False

def _all_layers(data, at, numbers, layered):
    "Does each component have a scan, or in layers a last one for each of its 64 frequencies?"
    left = {number: set(range(64 if layered else 1)) for number in numbers}
    while 0 <= at < len(data) - 4:
        if data[at + 1] == 0xda:
            n = data[at + 4]
            first, last, depth = data[at + 5 + 2*n:at + 8 + 2*n]
            for number in data[at + 5:at + 5 + 2*n:2]:
                if not layered: left[number] = set()
                elif depth & 15 == 0: left[number] -= set(range(first, last + 1))
        at += 2 + struct.unpack('>H', data[at + 2:at + 4])[0]
        found = _marker.search(data, at)
        at = found.start() if found else -1
    return not any(left.values())

def _is_enough(body):
    "Whatever followed the packed pixels, would the image be the same? Then every pixel is there"
    seen = set()
    for more in (b'', b'\x55'*64, b'\xaa'*64):
        with Image.open(io.BytesIO(body + more + _end), formats=['JPEG', 'MPO']) as image: seen.add(zlib.crc32(image.tobytes()))
        if len(seen) > 1: return False
    return True

# ---- cell
def _whole_webp(f):
    "A WebP says at its beginning how long it is"
    f.seek(4)
    said, size = struct.unpack('<I', f.read(4))[0] + 8, f.seek(0, os.SEEK_END)
    if said > size: raise FileFlaw(f'{_cut}: it has {size:,} of {said:,} bytes', 'truncated')
    return f

# ---- cell
def exif_turn(
    exif: bytes,  # An EXIF record, with or without the 'Exif' before it
) -> int:         # 1 to 8; 1, upright, for a record that is damaged or says nothing
    "How EXIF wants an image turned"
    exif = exif.removeprefix(b'Exif\0\0')
    order = '<' if exif[:1] == b'I' else '>'
    try:
        at, = struct.unpack_from(order + 'I', exif, 4)
        n, = struct.unpack_from(order + 'H', exif, at)
        for entry in range(at + 2, at + 2 + 12*n, 12):
            tag, kind = struct.unpack_from(order + 'HH', exif, entry)
            if tag != 0x0112: continue
            turn, = struct.unpack_from(order + ('I' if kind == 4 else 'H'), exif, entry + 8)
            return turn if 1 <= turn <= 8 else 1
    except struct.error: pass
    return 1
