// TIFFs, which most browsers do not know: greys, colours and palettes of any depth, by the rule of bearcls.greys
import { ImageError, cutOff, damaged, limit, tooLarge, unpacked } from './files.js';

const sizes = { 1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 11: 4, 12: 8, 16: 8, 17: 8 };
const unsupported = (what) => new ImageError(`it is a TIFF ${what}, which this page does not read. Save it as PNG or JPEG`, 'unsupported');

export async function readTiff(b) {  // {image: on white, turn}
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  let tags;
  try { tags = directory(view); } catch (error) { throw error instanceof RangeError ? damaged() : error; }
  const one = (tag, otherwise) => tags.get(tag)?.[0] ?? otherwise;
  const [width, height, bits, form, parts, photo] = [one(256, 0), one(257, 0), one(258, 1), one(339, 1) % 4 || 1, one(277, 1), one(262, 0)];
  if (!width || !height) throw damaged();
  if (width * height > limit) throw tooLarge({ width, height });
  const packing = one(259, 1), colours = photo === 2 ? 3 : 1, extra = one(338, bits === 8 && photo === 2 && parts === 4 ? 2 : 0);
  if (photo > 3 || parts < colours) throw unsupported('of an unusual kind');
  if (![1, 5, 8, 32946, 32773].includes(packing)) throw unsupported('packed in an unusual way');
  if (new Set(tags.get(258)).size > 1 || bits > 64 || form === 3 && ![16, 32, 64].includes(bits) || form === 2 && bits < 8) throw unsupported('with unusual samples');
  const layout = { b, little: b[0] === 0x49, tags, one, width, height, bits, form, parts, packing };
  const image = new ImageData(width, height), put = writer(image.data, layout, { photo, colours, extra });
  const planes = one(284, 1) === 2 ? parts : 1;
  for (let plane = 0; plane < planes; plane++) await eachSample(layout, plane, planes, put);
  put.finish();
  return { image: await createImageBitmap(image), turn: one(274, 1) };
}

function directory(view) {  // numbers of each tag, of the first directory
  const little = view.getUint8(0) === 0x49, big = view.getUint16(2, little) === 43, tags = new Map();
  const long = (at) => (big ? Number(view.getBigUint64(at, little)) : view.getUint32(at, little));
  const first = long(big ? 8 : 4), n = big ? long(first) : view.getUint16(first, little), read = {
    1: (at) => view.getUint8(at), 3: (at) => view.getUint16(at, little), 4: (at) => view.getUint32(at, little), 6: (at) => view.getInt8(at),
    8: (at) => view.getInt16(at, little), 9: (at) => view.getInt32(at, little), 11: (at) => view.getFloat32(at, little), 12: (at) => view.getFloat64(at, little),
    16: (at) => Number(view.getBigUint64(at, little)), 17: (at) => Number(view.getBigInt64(at, little)),
  };
  for (let k = 0; k < Math.min(n, 4096); k++) {
    const at = first + (big ? 8 + 20 * k : 2 + 12 * k), tag = view.getUint16(at, little), kind = view.getUint16(at + 2, little), count = long(at + 4);
    if (!(kind in sizes) || count > 100_000 || tags.has(tag)) continue;
    const place = at + (big ? 12 : 8), start = count * sizes[kind] > (big ? 8 : 4) ? long(place) : place;
    tags.set(tag, Array.from({ length: count }, (_, i) => read[kind](start + i * sizes[kind])));
  }
  return tags;
}

function writer(out, { tags, bits, form, parts, width }, { photo, colours, extra }) {  // puts a sample where it belongs, on the scale of 256 levels
  const deep = bits > 8 || form !== 1, table = tags.get(320);
  let [low, high] = form === 3 ? [0, 1] : form === 2 ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
  const [least, most] = [low, high], declared = deep && (tags.has(340) || tags.has(341));
  if (declared) [low, high] = [Math.min(...(tags.get(340) ?? [low])), Math.max(...(tags.get(341) ?? [high]))];
  if (!(low < high) || !Number.isFinite(high - low)) throw new ImageError(`it declares a scale from ${low} to ${high}, on which nothing can be placed`);
  if (photo === 3 && (!table || table.length < 3 << bits)) throw damaged();
  let lowest = Infinity, highest = -Infinity, strange = false;
  const clear = extra === 1 || extra === 2 ? colours : -1;
  const put = (x, y, part, value) => {
    const at = 4 * (width * y + x);
    if (part === clear) { out[at + 3] = (value - least) * 255 / (most - least); return; }
    if (part >= colours) return;
    if (photo === 3) { for (let c = 0; c < 3; c++) out[at + c] = table[value + (c << bits)] >> 8; return; }
    if (!Number.isFinite(value)) strange = true;
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
    const level = (value - low) * (255 / (high - low)), shown = photo === 0 ? 255 - level : level;
    if (colours === 3) out[at + part] = shown;
    else out[at] = out[at + 1] = out[at + 2] = shown;
  };
  put.finish = () => {
    const scale = 255 / (high - low);
    if (strange) throw new ImageError('it holds values that are not numbers, which no grey stands for');
    if (!declared && photo !== 3 && ((lowest - low) * scale < -0.5 || (highest - low) * scale > 255.5))
      throw new ImageError(`it holds values from ${lowest} to ${highest}, and nothing says which is white: such values are read from ${low} to ${high}`);
    for (let at = 0; at < out.length; at += 4) {
      const share = clear < 0 ? 1 : out[at + 3] / 255;
      if (share < 1) for (let c = 0; c < 3; c++) out[at + c] = (extra === 1 ? out[at + c] : share * out[at + c]) + 255 * (1 - share);
      out[at + 3] = 255;
    }
  };
  return put;
}

async function eachSample(layout, plane, planes, put) {
  const { b, tags, one, width, height, bits, parts } = layout, tiled = tags.has(324), here = planes > 1 ? 1 : parts;
  const across = tiled ? one(322, 0) : width, high = tiled ? one(323, 0) : Math.min(one(278, height), height);
  if (!across || !high || across * high > 4 * limit) throw damaged();
  const row = Math.ceil(across * here * bits / 8), beside = Math.ceil(width / across), each = beside * Math.ceil(height / high);
  const offsets = tags.get(tiled ? 324 : 273) ?? [], counts = tags.get(tiled ? 325 : 279);
  for (let k = 0; k < each; k++) {
    const offset = offsets[plane * each + k], top = high * Math.floor(k / beside), left = across * (k % beside), rows = tiled ? high : Math.min(high, height - top);
    if (offset === undefined) throw cutOff();
    const data = await unpack(b.subarray(offset, counts ? offset + counts[plane * each + k] : undefined), layout.packing, row * rows), read = reader(data, row, across * here, here, layout);
    for (let y = 0; y < rows && top + y < height; y++) {
      const values = read(y);
      for (let x = 0; x < across && left + x < width; x++) for (let p = 0; p < here; p++) put(left + x, top + y, planes > 1 ? plane : p, values(x * here + p));
    }
  }
}

async function unpack(data, packing, need) {
  if (packing === 1) {
    if (data.length < need) throw cutOff();
    return data.slice(0, need);
  }
  const out = new Uint8Array(need);
  let n = 0;
  if (packing === 5) n = unpackWords(data, out);
  else if (packing === 32773) {
    for (let at = 0; at < data.length && n < need;) {
      const count = data[at++];
      if (count < 128) { out.set(data.subarray(at, at + Math.min(count + 1, need - n)), n); at += count + 1; n += count + 1; } else if (count > 128) { out.fill(data[at++], n, n + 257 - count); n += 257 - count; }
    }
  } else {
    const done = await unpacked([data], need + (1 << 20), out);
    if (done.n < need && done.wrong) throw damaged();
    n = done.n;
  }
  if (n < need) throw cutOff();
  return out;
}

function unpackWords(data, out) {  // LZW as TIFF has it: the highest bit first, and words grow one earlier than in a GIF
  const before = new Uint16Array(4097), last = new Uint8Array(4097), length = new Uint16Array(4097);
  for (let v = 0; v < 256; v++) { last[v] = v; length[v] = 1; }
  let width = 9, next = 258, old = -1, held = 0, have = 0, n = 0;
  for (let at = 0; at < data.length && n < out.length; at++) {
    held = (held << 8 | data[at]) & 0xffffff;
    have += 8;
    if (have < width) continue;
    have -= width;
    const code = held >>> have & (1 << width) - 1;
    if (code === 257) break;
    if (code === 256) { width = 9; next = 258; old = -1; continue; }
    if (code > next || code === next && old < 0) throw damaged();
    let word = code < next ? code : old;
    const end = n + length[word];
    for (let k = end; k-- > n; word = before[word]) out[k] = last[word];
    const first = out[n];
    if (code === next) out[end] = first;
    if (old >= 0 && next < 4096) { before[next] = old; last[next] = first; length[next] = length[old] + 1; next++; }
    n = code === next - 1 && length[code] === end - n + 1 ? end + 1 : end;
    old = code;
    if (next >= (1 << width) - 1 && width < 12) width++;
  }
  return n;
}

function reader(data, row, n, parts, { bits, form, little, one, packing }) {  // for a row, a function from the place to the sample
  const predictor = packing === 1 || packing === 32773 ? 1 : one(317, 1), bytes = bits / 8, whole = [8, 16, 32, 64].includes(bits);
  if (predictor === 3 ? form !== 3 : predictor !== 1 && !(predictor === 2 && whole)) throw unsupported('packed in an unusual way');
  let view = new DataView(data.buffer, data.byteOffset, data.byteLength), low = little;
  if (predictor === 2) undo(data, row, bytes, parts, little);
  if (predictor === 3) { data = sorted(data, row, n, bytes, parts); view = new DataView(data.buffer); low = false; }
  const signed = (v) => (form === 2 && v >= 2 ** (bits - 1) ? v - 2 ** bits : v);
  const get = { 8: (at) => signed(view.getUint8(at)), 16: form === 3 ? (at) => half(view.getUint16(at, low)) : (at) => signed(view.getUint16(at, low)),
    32: form === 3 ? (at) => view.getFloat32(at, low) : (at) => signed(view.getUint32(at, low)),
    64: form === 3 ? (at) => view.getFloat64(at, low) : (at) => Number(form === 2 ? view.getBigInt64(at, low) : view.getBigUint64(at, low)) }[whole ? bits : 0];
  if (get) return (y) => (k) => get(y * row + k * bytes);
  return (y) => (k) => {  // packed from the highest bit on; whole bytes in the file's order
    let value = 0;
    if (bits % 8 === 0) for (let i = 0; i < bytes; i++) value = value * 256 + data[y * row + k * bytes + (little ? bytes - 1 - i : i)];
    else for (let i = k * bits; i < (k + 1) * bits; i++) value = value * 2 + (data[y * row + (i >> 3)] >> 7 - (i & 7) & 1);
    return signed(value);
  };
}

function undo(data, row, bytes, parts, little) {  // differences to the left neighbour, byte by byte with what is carried
  const step = bytes * parts;
  for (let y = 0; y < data.length; y += row) for (let at = y + step; at < y + row; at += bytes) {
    let carry = 0;
    for (let i = 0; i < bytes; i++) {
      const k = at + (little ? i : bytes - 1 - i), sum = data[k] + data[k - step] + carry;
      data[k] = sum;
      carry = sum >> 8;
    }
  }
}

function sorted(data, row, n, bytes, parts) {  // floats whose bytes lie sorted, as differences
  const out = new Uint8Array(data.length);
  for (let y = 0; y < data.length; y += row) {
    for (let k = y + parts; k < y + row; k++) data[k] += data[k - parts];
    for (let k = 0; k < n; k++) for (let i = 0; i < bytes; i++) out[y + k * bytes + i] = data[y + i * n + k];
  }
  return out;
}

function half(word) {  // a float of 16 bits
  const sign = word & 0x8000 ? -1 : 1, power = word >> 10 & 31, rest = word & 1023;
  if (power === 31) return rest ? NaN : sign * Infinity;
  return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -14 * rest / 1024);
}
