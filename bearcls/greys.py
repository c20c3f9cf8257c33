import io, math, struct
from typing import BinaryIO
import numpy as np
from PIL import Image

class FileFlaw(ValueError):
    "What is wrong with an image file, in words that go on after its name"
    def __init__(self,
        words: str,                  # Such as 'ends before the picture does'
        reason: str = 'unreadable',  # One of `bearcls.core.image_reasons`
    ):
        super().__init__(words)
        self.reason = reason

# ---- cell
_what_to_do = 'divide by the highest value that can occur, or let the file say it (TIFF tags 340 and 341, SMinSampleValue and SMaxSampleValue)'

def grey_levels(
    values: np.ndarray,                       # Whole numbers or floats, of any shape
    low: float = 0.0,                         # Value that is black
    high: float = 1.0,                        # Value that is white
    declared: bool = False,                   # Does the file itself name `low` and `high`? Then what lies outside is cut off
    invert: bool = False,                     # Is `low` white and `high` black?
) -> np.ndarray:                              # Levels from 0 to 255, as bytes
    "Values on the 8-bit scale, rounded; `FileFlaw` for those that have no place on it"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise FileFlaw(f'declares a scale from {low:g} to {high:g}, on which nothing can be placed')
    levels = (values.astype(np.float64) - low)*(255/(high - low))
    if values.dtype.kind == 'f' and not np.isfinite(levels).all():
        raise FileFlaw('holds values that are no numbers (NaN or infinite), which no grey stands for; replace them first')
    if not declared and levels.size and not (-.5 <= levels.min() and levels.max() <= 255.5):
        raise FileFlaw(f'holds values from {values.min():g} to {values.max():g}, and nothing says which is white: '
                       f'such values are read from {low:g}, black, to {high:g}, white; {_what_to_do}')
    levels = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return 255 - levels if invert else levels

# ---- cell
def type_scale(
    bits: int,           # Bits of a sample
    form: int = 1,       # TIFF's SampleFormat: 1 unsigned, 2 signed, 3 float
) -> tuple[float, float]:  # Lowest and highest value; of floats 0 and 1
    "The scale of a data type, where a file declares no other"
    if form == 3: return 0.0, 1.0
    return (-2.0**(bits - 1), 2.0**(bits - 1) - 1) if form == 2 else (0.0, 2.0**bits - 1)

# ---- cell
_sizes = {1: 'B', 3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i', 11: 'f', 12: 'd', 16: 'Q', 17: 'q'}  # TIFF's types as those of `struct`

def tiff_tags(
    f: BinaryIO,  # TIFF or BigTIFF
) -> tuple[str, bool, dict[int, tuple]]:  # Byte order ('<' or '>'), whether it is a BigTIFF, and the numbers of each tag
    "The first directory of a TIFF"
    f.seek(0)
    head = f.read(4)
    order, big = '<' if head[:1] == b'I' else '>', b'+' in head
    def read(at, form):
        f.seek(at)
        return struct.unpack(order + form, f.read(struct.calcsize(order + form)))
    first, = read(8, 'Q') if big else read(4, 'I')
    n, = read(first, 'Q' if big else 'H')
    tags = {}
    for k in range(min(n, 4096)):
        at = first + (8 + 20*k if big else 2 + 12*k)
        tag, kind, count = read(at, 'HHQ' if big else 'HHI')
        if kind not in _sizes or count > 100_000: continue
        at, form = at + (12 if big else 8), f'{count}{_sizes[kind]}'
        if struct.calcsize(order + form) > (8 if big else 4): at, = read(at, 'Q' if big else 'I')
        tags.setdefault(tag, read(at, form))
    return order, big, tags

# ---- cell
_lossless = {1, 5, 8, 32946, 32773, 34925, 50000}  # Compressions of bytes: none, LZW, deflate, PackBits, LZMA, Zstandard

class DeepTiff:
    "A TIFF whose samples are deeper than 8 bits, signed or floats; opened like an image of Pillow"
    format, info = 'TIFF', {}
    def __init__(self,
        f: BinaryIO,   # The file
        order: str, big: bool, tags: dict[int, tuple],  # From `tiff_tags`
    ):
        def one(tag, default): return (tags.get(tag) or (default,))[0]
        self.f, self.order, self.big, self.tags, self.one = f, order, big, tags, one
        self.size = self.width, self.height = one(256, 0), one(257, 0)
        self.photo, self.bits, self.form = one(262, 0), one(258, 1), one(339, 1)
        self.form = 1 if self.form == 4 else self.form
        self.parts, self.planes = one(277, 1), one(284, 1) == 2
        self.colours = 3 if self.photo == 2 else 1
        letter = {1: 'unsigned', 2: 'signed', 3: 'float'}.get(self.form, 'unknown')
        self.mode = f'{"RGB" if self.colours == 3 else "grey"}, {self.bits} bits {letter}'
    def __enter__(self): return self
    def __exit__(self, *args): pass

    @property
    def scale(self) -> tuple[float, float, bool]:  # Black, white, and whether the file says so
        "SMinSampleValue and SMaxSampleValue, otherwise the data type's"
        low, high = type_scale(self.bits, self.form)
        declared = 340 in self.tags or 341 in self.tags
        return float(min(self.tags.get(340) or [low])), float(max(self.tags.get(341) or [high])), declared

    def bands(self):
        "All samples, some rows at a time, as (rows, width, parts)"
        offsets, counts = (self.tags.get(tag, ()) for tag in ((324, 325) if 324 in self.tags else (273, 279)))
        if not self.planes: yield from _bands(self, self.parts, offsets, counts)
        else:
            each = len(offsets)//self.parts
            planes = [_bands(self, 1, offsets[k*each:(k + 1)*each], counts[k*each:(k + 1)*each]) for k in range(self.parts)]
            for values in zip(*planes): yield np.concatenate(values, -1)

def deep_tiff(
    f: BinaryIO,         # A file that can seek
) -> DeepTiff | None:    # None for what Pillow reads rightly by itself, and what is no TIFF
    "A TIFF that needs the rule of deep greys"
    try:
        f.seek(0)
        if f.read(4) not in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'): return None
        image = DeepTiff(f, *tiff_tags(f))
    except (struct.error, OverflowError, OSError, ValueError): return None
    bits = set(image.tags.get(258, (1,)))
    deep = image.bits > 8 or image.bits == 8 and image.form == 2
    known = image.form in (1, 2) and image.bits <= 64 or image.form == 3 and image.bits in (16, 32, 64)
    ours = deep and known and len(bits) == 1 and image.photo in (0, 1, 2) and image.one(259, 1) in _lossless
    return image if ours and image.parts >= image.colours else None

# ---- cell
_band = 1 << 26  # Bytes that are unpacked at a time

def _bands(image, parts, offsets, counts):
    "Samples that lie together, some rows at a time, as (rows, width, parts)"
    one, f, packing = image.one, image.f, image.one(259, 1)
    tiled = 324 in image.tags
    across, high = (one(322, 1), one(323, 1)) if tiled else (image.width, min(one(278, image.height), image.height))
    if across < 1 or high < 1: raise FileFlaw('cannot be decoded: its parts have no size')
    row, n_across = -(-across*parts*image.bits//8), -(-image.width//across)
    if row*high > 4*_band: raise FileFlaw(f'claims parts of {row*high:,} bytes, more than are accepted', 'bomb')
    predictor = one(317, 1) if packing not in (1, 32773) else 1
    at_once = max(1, _band//(row*n_across*high))
    for k in range(0, -(-image.height//high), at_once):
        rows = min(at_once*high, image.height - k*high)
        some = slice(k*n_across, (k + at_once)*n_across)
        places = list(zip(offsets[some], counts[some] if packing != 1 or counts[some] else [row*high]*at_once*n_across))
        if len(places) < -(-rows//high)*n_across: raise FileFlaw('ends before the picture does', 'truncated')
        raw = _unpacked(image, places, row, rows, high, n_across, tiled)
        values = _meaning(raw.reshape(-1, row), across*parts, parts, image.bits, image.form, image.order, predictor)
        yield values.reshape(rows, n_across*across, parts)[:, :image.width]

def _unpacked(image, places, row, rows, high, n_across, tiled):
    "Bytes of strips or tiles, side by side where they are: Pillow unpacks them, as an 8-bit grey image as wide as a row has bytes"
    from PIL.TiffImagePlugin import TiffImageFile
    parts = []
    for offset, count in places:
        image.f.seek(offset)
        parts.append(image.f.read(min(count, 2*row*high + 65_536)))
    starts = np.cumsum([8] + [len(p) + len(p) % 2 for p in parts]).tolist()
    tags = {256: [row*n_across], 257: [rows], 258: [8], 259: [image.one(259, 1)], 262: [1], 266: [image.one(266, 1)], 277: [1]}
    sizes = [len(p) for p in parts]
    tags |= {322: [row], 323: [high], 324: starts[:-1], 325: sizes} if tiled else {273: starts[:-1], 278: [high], 279: sizes}
    body = b''.join(p + b'\0'*(len(p) % 2) for p in parts)
    with TiffImageFile(io.BytesIO(b'II*\0' + struct.pack('<I', starts[-1]) + body + _directory(tags, starts[-1]))) as small:
        return np.asarray(small)

def _directory(tags, start):
    "A directory of whole numbers that stands at `start`"
    room, entries, extra = start + 2 + 12*len(tags) + 4, b'', b''
    for tag, values in sorted(tags.items()):
        body = struct.pack(f'<{len(values)}I', *values)
        place = body if len(values) == 1 else struct.pack('<I', room + len(extra))
        if len(values) > 1: extra += body
        entries += struct.pack('<HHI', tag, 4, len(values)) + place
    return struct.pack('<H', len(tags)) + entries + bytes(4) + extra

def _meaning(raw, n, parts, bits, form, order, predictor):
    "Rows of bytes as rows of `n` samples"
    kind = {1: 'u', 2: 'i', 3: 'f'}[form]
    if predictor == 3 and form == 3:
        apart = np.cumsum(raw.reshape(len(raw), -1, parts), axis=1, dtype=np.uint8).reshape(len(raw), bits//8, n)
        return np.ascontiguousarray(apart.swapaxes(1, 2)).view(f'>f{bits//8}')[..., 0]
    if bits in (8, 16, 32, 64):
        if predictor not in (1, 2): raise FileFlaw(f'cannot be decoded: the predictor {predictor} is not known')
        if predictor == 1: return raw.view(f'{order}{kind}{bits//8}')
        whole = raw.view(f'{order}u{bits//8}').reshape(len(raw), -1, parts)
        return np.cumsum(whole, axis=1, dtype=f'u{bits//8}').reshape(len(raw), n).view(f'{kind}{bits//8}')
    if predictor != 1: raise FileFlaw(f'cannot be decoded: the predictor {predictor} of {bits} bits is not known')
    if bits % 8 == 0 and order == '<': raw = raw.reshape(len(raw), n, bits//8)[..., ::-1].reshape(len(raw), -1)
    values = np.empty((len(raw), n), np.int64)
    for k in range(0, len(raw), 256):
        each = np.unpackbits(raw[k:k + 256], axis=1)[:, :n*bits].reshape(-1, n, bits)
        total = np.zeros(each.shape[:2], np.int64)
        for b in range(bits): total = total*2 + each[..., b]
        values[k:k + 256] = total
    return np.where(values >= 1 << bits - 1, values - (1 << bits), values) if form == 2 else values

# ---- cell
def load_deep(
    image: DeepTiff,     # From `deep_tiff`
) -> Image.Image:        # Grey or RGB, transparency on white, not yet turned upright
    "The image on the 8-bit scale: as the file declares it, otherwise as its data type has it"
    if min(image.size) < 1: raise FileFlaw(f'cannot be decoded: it claims {image.width}×{image.height} pixels')
    low, high, declared = image.scale
    colours, extra = image.colours, image.tags.get(338, ())[:1]
    out, y = np.empty((image.height, image.width, colours), np.uint8), 0
    for values in image.bands():
        levels = grey_levels(values[..., :colours], low, high, declared, image.photo == 0)
        if extra in ((1,), (2,)) and image.parts > colours:
            share = grey_levels(values[..., colours:colours + 1], *type_scale(image.bits, image.form))/255
            levels = np.rint((levels if extra == (1,) else share*levels) + 255*(1 - share)).clip(0, 255)
        out[y:y + len(values)] = levels
        y += len(values)
    return Image.fromarray(out if colours == 3 else out[..., 0])

# ---- cell
def pillow_scale(
    image: Image.Image,  # In mode I;16, I or F
) -> tuple[float, float, bool, bool]:  # Black, white, whether a file says so, and whether its 0 is white
    "The scale of an image that Pillow holds: of the TIFF that it was opened from, otherwise of 16-bit numbers, or of floats from 0 to 1"
    tags = getattr(image, 'tag_v2', None) if image.format == 'TIFF' else None
    if tags is None: return *type_scale(16, 3 if image.mode == 'F' else 1), False, False
    def numbers(tag): return [float(v) for v in (lambda v: v if isinstance(v, tuple) else (v,))(tags[tag])] if tag in tags else []
    low, high = type_scale(int((numbers(258) or [1])[0]), int((numbers(339) or [1])[0]))
    declared = 340 in tags or 341 in tags
    return min(numbers(340) or [low]), max(numbers(341) or [high]), declared, tags.get(262) == 0
