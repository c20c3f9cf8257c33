// What a file is, and whether its pixels are whole: the rules of bearcls.mend. A decoder gets what the pixels depend on, and nothing else
import { reduceTurn } from './classify.js';

export class ImageError extends Error {  // its message is for the visitor; `reason` is one of bearcls.images.image_reasons, or 'unsupported'
  constructor(message, reason = 'unreadable') { super(message); this.reason = reason; }
}

export const limit = 100_000_000;  // pixels, as in bearcls.images.max_pixels
export const damaged = () => new ImageError('it is damaged');
export const cutOff = () => new ImageError('the file ends before the image does', 'truncated');
export const tooLarge = ({ width, height }) => new ImageError(`it claims ${width}×${height} pixels, and at most ${limit.toLocaleString('en')} are accepted`, 'bomb');

export async function examine(b) {  // {name, width, height, turn, parts}: `parts` are for the decoder; the `tries` of a JPEG without its end must look alike
  if (!b.length) throw new ImageError('the file is empty', 'empty');
  const kind = await describe(b, new DataView(b.buffer, b.byteOffset, b.byteLength), (at, n) => String.fromCharCode(...b.subarray(at, at + n)));
  if (!kind) throw new ImageError('it is no image of a known format', 'not_an_image');
  if (kind.width * kind.height > limit) throw tooLarge(kind);
  if (kind.cut) throw cutOff();
  return { turn: 1, parts: [b], ...kind };
}

async function describe(b, view, text) {  // nothing if the first bytes are no image's
  const start = text(0, 4), brand = text(4, 4) === 'ftyp' ? text(8, 4) : '';
  try {
    if (b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff) return jpeg(b, view, text);
    if (text(0, 8) === '\x89PNG\r\n\x1a\n') return await png(b, view, text);
    if (start === 'GIF8') return gif(b, view);
    if (start === 'RIFF' && text(8, 4) === 'WEBP') return webp(b, view, text);
    if (text(0, 2) === 'BM') return bmp(view);
  } catch (error) {
    if (error instanceof RangeError) throw cutOff();
    throw error;
  }
  if (/^avi[fs]/.test(brand)) return { name: 'avif', cut: cutBox(b, view, text) };
  if (/^(hei|hev|mif|msf)/.test(brand)) return { name: 'heic', cut: cutBox(b, view, text) };
  if (['II*\0', 'MM\0*', 'II+\0', 'MM\0+'].includes(start)) return { name: 'tiff' };
}

const word = (value) => [value >>> 24, value >>> 16 & 255, value >>> 8 & 255, value & 255];

const remainders = Int32Array.from({ length: 256 }, (_, value) => {  // of CRC-32, for each byte
  for (let k = 0; k < 8; k++) value = value & 1 ? 0xedb88320 ^ value >>> 1 : value >>> 1;
  return value;
});

export function checksum(parts) {
  let sum = -1;
  for (const b of parts) for (let at = 0; at < b.length; at++) sum = remainders[(sum ^ b[at]) & 255] ^ sum >>> 8;
  return ~sum >>> 0;
}

// ---------------------------------------------------------------- PNG

const depths = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const passes = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

async function png(b, view, text) {  // header, palette, transparent colours and pixels; other parts are left out, and EXIF says how to turn
  const found = {}, pixels = [];
  let right = true, ended = false;
  for (let at = 8; at + 8 <= b.length && !ended;) {
    const size = view.getUint32(at), name = text(at + 4, 4), end = at + 8 + size;
    if (['IHDR', 'PLTE', 'tRNS', 'eXIf'].includes(name) && !(name in found) && !pixels.length || name === 'IDAT') {
      const whole = end + 4 <= b.length && checksum([b.subarray(at + 4, end)]) === view.getUint32(end), data = b.subarray(at + 8, end);
      if (name === 'IDAT') { pixels.push(data); right &&= whole; } else if (whole || name !== 'eXIf') found[name] = { data, whole };
    } else if (name === 'IEND') ended = true;
    else if (!(b[at + 4] & 32) && name !== 'IHDR' && name !== 'PLTE') throw damaged();
    at = end + 4;
  }
  const { data: head, whole } = found.IHDR ?? {};
  if (head?.length !== 13) throw damaged();
  const [width, height] = [0, 4].map((at) => new DataView(head.buffer, head.byteOffset).getUint32(at)), [depth, kind, packing, filtering, interlaced] = head.subarray(8);
  if (width * height > limit) throw tooLarge({ width, height });
  if (!whole || !width || !height || !depths[kind]?.includes(depth) || packing || filtering || interlaced > 1) throw damaged();
  const parts = [b.subarray(0, 8), ...chunk('IHDR', head), ...table(found, kind, depth)];
  if (!pixels.length) throw cutOff();
  const lines = (interlaced ? passes : [[0, 0, 1, 1]]).map(([x, y, dx, dy]) => [Math.ceil((width - x) / dx), Math.ceil((height - y) / dy)]);
  const bits = depth * ({ 2: 3, 4: 2, 6: 4 }[kind] ?? 1), need = lines.reduce((sum, [w, h]) => sum + (w > 0 && h > 0 ? h * (1 + Math.ceil(w * bits / 8)) : 0), 0);
  const { n, wrong, end } = await unpacked(pixels, need + (1 << 20));
  if (n < need) throw wrong ? damaged() : cutOff();
  if (!right && ended && !end) throw damaged();
  return { name: 'png', width, height, turn: found.eXIf ? reduceTurn(found.eXIf.data) : 1, parts: [...parts, ...chunk('IDAT', ...pixels), ...chunk('IEND')] };
}

function table(found, kind, depth) {  // palette and transparent colours, where the header makes use of them
  const parts = [], colours = found.PLTE?.data;
  if (kind === 3) {
    if (!found.PLTE?.whole || colours.length < 3 || colours.length > 768) throw damaged();
    const all = new Uint8Array(3 * 2 ** depth);  // what it lacks is black
    all.set(colours.subarray(0, all.length));
    parts.push(...chunk('PLTE', all));
  }
  if (found.tRNS && [0, 2, 3].includes(kind)) {
    if (!found.tRNS.whole) throw damaged();
    const clear = found.tRNS.data.subarray(0, kind === 3 ? Math.min(Math.floor(colours.length / 3), 2 ** depth) : { 0: 2, 2: 6 }[kind]);
    if (clear.length >= { 0: 2, 2: 6, 3: 1 }[kind]) parts.push(...chunk('tRNS', clear));
  }
  return parts;
}

function chunk(name, ...data) {
  const letters = Uint8Array.from(name, (c) => c.charCodeAt(0)), size = data.reduce((sum, d) => sum + d.length, 0);
  return [Uint8Array.from([...word(size), ...letters]), ...data, Uint8Array.from(word(checksum([letters, ...data])))];
}

export async function unpacked(parts, most, keep = null) {  // how many bytes come out; `wrong` if they are damaged, `end` if they come to their end
  const stream = new DecompressionStream('deflate'), writer = stream.writable.getWriter(), reader = stream.readable.getReader();
  let n = 0, fed = false;
  (async () => {
    for (const part of parts) if (part.length) await writer.write(part);
    fed = true;
    await writer.close();
  })().catch(() => null);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { n, end: true };
      keep?.set(value.subarray(0, Math.max(0, keep.length - n)), Math.min(n, keep.length));
      if ((n += value.length) > most) { reader.cancel().catch(() => null); return { n, end: true }; }
    }
  } catch { return { n, wrong: !fed }; }
}

// ---------------------------------------------------------------- JPEG

function jpeg(b, view, text) {
  const kind = { name: 'jpeg' };
  let frame = null;
  for (let at = 2; ;) {
    const marker = view.getUint16(at);
    if (marker === 0xffff) { at++; continue; }
    if (marker < 0xff00) throw damaged();
    if (marker === 0xffda) return ends(b, at) || kind.width * kind.height > limit ? kind : { ...kind, cut: !frame || !allLayers(b, at, frame), tries: tries(b) };
    if (marker >= 0xffc0 && marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker)) {
      [kind.height, kind.width] = [view.getUint16(at + 5), view.getUint16(at + 7)];
      frame = { layered: [2, 6, 10, 14].includes(marker & 15), numbers: Array.from({ length: b[at + 9] }, (_, k) => b[at + 10 + 3 * k]) };
    }
    if (marker === 0xffe2 && text(at + 4, 4) === 'MPF\0') kind.several = true;
    at += 2 + view.getUint16(at + 2);
  }
}

function ends(b, from) {  // is there an end of the image after `from`? Cameras write other things behind it
  for (let at = b.lastIndexOf(0xd9); at > from; at = b.lastIndexOf(0xd9, at - 1)) if (b[at - 1] === 0xff) return true;
  return false;
}

function allLayers(b, at, { layered, numbers }) {  // has each component its scan, or the last layer of each of its 64 frequencies?
  const left = new Map(numbers.map((number) => [number, new Set(Array(layered ? 64 : 1).keys())]));
  while (at >= 0 && at < b.length - 4) {
    if (b[at + 1] === 0xda) {
      const n = b[at + 4], [first, last, depth] = b.subarray(at + 5 + 2 * n);
      for (let k = 0; k < n; k++) {
        const some = left.get(b[at + 5 + 2 * k]);
        if (!layered) some?.clear();
        else if (!(depth & 15)) for (let v = first; v <= last; v++) some?.delete(v);
      }
    }
    at += 2 + (b[at + 2] << 8) + b[at + 3];
    do at = b.indexOf(0xff, at); while (at >= 0 && (b[at + 1] === 0 || b[at + 1] >= 0xd0 && b[at + 1] <= 0xd7 || b[at + 1] === 0xff || b[at + 1] === undefined) && ++at);
  }
  return ![...left.values()].some((some) => some.size);
}

function tries(b) {  // whatever followed the packed pixels, the image would be the same: then every pixel is there
  let end = b.length;
  while (end && !b[end - 1]) end--;  // rescued disks end in zeros; but one or two may well belong to the pixels
  const zeros = b.length - end > 2, tail = (byte) => Uint8Array.from({ length: 432 }, (_, k) => (k % 18 < 16 ? byte : k % 18 === 16 ? 0xff : 0xd0 + Math.floor(k / 18) % 8));  // with restart markers, as some files have them
  if (!zeros) end = b.at(-1) === 0xff ? b.length - 1 : b.length;
  const body = [b.subarray(0, end), new Uint8Array(zeros && b[end - 1] === 0xff ? 1 : 0)];
  return [[], [tail(0x55)], [tail(0xaa)]].map((more) => [...body, ...more, Uint8Array.of(0xff, 0xd9)]);
}

// ---------------------------------------------------------------- GIF, BMP, WebP

function gif(b, view) {  // its first image is the one that is looked at
  const table = (flags) => (flags & 0x80 ? 3 << (flags & 7) + 1 : 0), kind = { name: 'gif', width: view.getUint16(6, true), height: view.getUint16(8, true), cut: true };
  for (let at = 13 + table(b[10]); at < b.length && b[at] !== 0x3b;) {
    const image = b[at] === 0x2c ? view.getUint16(at + 5, true) * view.getUint16(at + 7, true) : 0, blocks = [];
    if (b[at] === 0x2c) at += 11 + table(b[at + 9]);
    else if (b[at] === 0x21) at += 2;
    else { at++; continue; }
    const first = at;
    for (; b[at]; at += 1 + b[at]) blocks.push(b.subarray(at + 1, at + 1 + b[at]));
    if (image && at < b.length) return { ...kind, cut: false };
    if (image) return { ...kind, cut: words(blocks, b[first - 1]) < image, parts: [b, new Uint8Array(at - b.length), Uint8Array.of(0, 0x3b)] };
    at++;
  }
  return kind;
}

function words(blocks, smallest) {  // how many pixels the packed words of a GIF stand for
  const clear = 1 << smallest, lengths = [];
  let width = smallest + 1, held = 0, have = 0, before = 0, n = 0;
  for (const block of blocks) for (const byte of block) {
    held |= byte << have;
    have += 8;
    while (have >= width) {
      const code = held & (1 << width) - 1;
      held >>>= width;
      have -= width;
      if (code === clear) { lengths.length = 0; width = smallest + 1; before = 0; continue; }
      if (code === clear + 1) return n;
      const own = code < clear ? 1 : lengths[code - clear - 2] ?? before + 1;
      if (before && lengths.length < 4094 - clear) lengths.push(before + 1);
      if (lengths.length + clear + 2 === 1 << width && width < 12) width++;
      n += before = own;
    }
  }
  return n;
}

function bmp(view) {  // with the header of Windows or the short one of OS/2; packed ones have no length that could be told beforehand
  const short = view.getUint32(14, true) === 12, side = (k) => (short ? view.getUint16(18 + 2 * k, true) : Math.abs(view.getInt32(18 + 4 * k, true)));
  const [width, height] = [side(0), side(1)], depth = view.getUint16(short ? 24 : 28, true), packed = !short && ![0, 3, 6].includes(view.getUint32(30, true));
  return { name: 'bmp', width, height, cut: !packed && view.getUint32(10, true) + 4 * Math.ceil(width * depth / 32) * height > view.byteLength };
}

function webp(b, view, text) {
  const kind = { name: 'webp', cut: view.getUint32(4, true) + 8 > view.byteLength }, form = text(12, 4), bits = (at) => view.getUint16(at, true) & 0x3fff;
  if (form === 'VP8X') [kind.width, kind.height] = [24, 27].map((at) => 1 + b[at] + (b[at + 1] << 8) + (b[at + 2] << 16));
  if (form === 'VP8 ') [kind.width, kind.height] = [bits(26), bits(28)];
  if (form === 'VP8L') [kind.width, kind.height] = [1 + bits(21), 1 + (view.getUint32(21, true) >>> 14 & 0x3fff)];
  return kind;
}

function cutBox(b, view, text) {  // does an AVIF or HEIF break off within one of its boxes?
  const left = new Set(['meta', 'mdat']);
  for (let at = 0, size; left.size && at + 8 <= b.length; at += size) {
    size = view.getUint32(at);
    if (size === 1) size = at + 16 <= b.length ? Number(view.getBigUint64(at + 8)) : 0;
    else size ||= b.length - at;  // to the end of the file
    if (size < 8 || at + size > b.length) return true;
    left.delete(text(at + 4, 4));
  }
  return false;
}
