// A file as what the model sees: opened as bearcls.images.load_image does, shaped as bearcls.inference.bundle.prepare does
import { turned, webpTurn } from './classify.js';
import { ImageError, checksum, cutOff, damaged, examine, limit, tooLarge } from './files.js';
import { readTiff } from './tiff.js';

const strip = 1 << 22;      // pixels drawn at a time: a phone's canvas may not hold a whole photograph
const longest = 65_535;     // pixels in a row that a browser draws; some draw half as many

export async function lookAt(file, input) {  // {pixels: bytes as (height, width, 3), size: [width, height] as opened, width, height, preview: a canvas}
  const bytes = new Uint8Array(await file.arrayBuffer().catch(() => { throw new ImageError('the file cannot be read; has it been moved or changed?'); }));
  const kind = await examine(bytes);
  const tiff = kind.name === 'tiff' ? await readTiff(bytes) : null, turn = kind.name === 'webp' ? webpTurn(bytes) : tiff?.turn ?? kind.turn;
  const opened = tiff?.image ?? (kind.tries ? await alike(kind) : await decode(kind.parts, kind)), bitmap = turned(opened, turn >= 2 && turn <= 8 ? turn : 1);
  if (!bitmap) throw new ImageError('it is too large for this browser to turn it upright');
  try {
    const { width, height } = measured(bitmap);
    let image = drawn(bitmap, width, height);
    if (input.min_side) for (const [by, draft] of reductions(image, kind, input.min_side)) image = reduced(image, by, draft);
    return { pixels: prepare(image, input), size: [image.width, image.height], ...preview(bitmap, width, height) };
  } finally { bitmap.close?.(); }
}

// ---------------------------------------------------------------- pixels of the browser

async function decode(parts, kind) {  // upright; colours as the file has them, since training did not look at profiles either
  const wishes = { colorSpaceConversion: 'none', imageOrientation: 'from-image', premultiplyAlpha: 'premultiply' }, blob = new Blob(parts, { type: `image/${kind.name}` });
  try { return await createImageBitmap(blob, wishes); } catch { /* perhaps an element can do it */ }
  const image = new Image(), address = image.src = URL.createObjectURL(blob);
  try { await image.decode(); } catch {
    if (kind.name === 'heic') throw new ImageError('it is a HEIC image, as iPhones take them, which this browser does not know. Save it as JPEG, or open this page on the phone itself', 'unsupported');
    throw kind.name === 'avif' ? new ImageError('this browser does not know AVIF images. Save it as JPEG or PNG', 'unsupported') : damaged();
  } finally { URL.revokeObjectURL(address); }
  return image;
}

async function alike(kind) {  // a JPEG without its end: its pixels must not depend on what follows
  const sums = [];
  for (const parts of kind.tries) {
    const bitmap = await decode(parts, kind), { width, height } = measured(bitmap), { most, rows } = drawn(bitmap, width, height);
    const all = Array.from({ length: Math.ceil(height / most) }, (_, k) => checksum([rows(k * most, Math.min(most, height - k * most))]));
    bitmap.close?.();
    sums.push(all.join());
    if (sums[0] !== sums.at(-1)) throw cutOff();
  }
  return decode(kind.tries[0], kind);
}

function measured(bitmap) {
  const width = bitmap.naturalWidth ?? bitmap.width, height = bitmap.naturalHeight ?? bitmap.height;
  if (width * height > limit) throw tooLarge({ width, height });
  if (Math.max(width, height) > longest) throw new ImageError(`it has ${width}×${height} pixels, and browsers draw at most ${longest.toLocaleString('en')} in a row`);
  return { width, height };
}

function canvasOf(width, height) {
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  return { canvas, context: canvas.getContext('2d', { willReadFrequently: true }) };
}

function preview(bitmap, width, height) {  // small, for the page
  const scale = Math.min(1, 480 / Math.max(width, height)), { canvas, context } = canvasOf(...[width, height].map((n) => Math.max(1, Math.round(n * scale))));
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { width, height, preview: canvas };
}

function drawn(bitmap, width, height) {  // reads some rows at a time, on white
  const { canvas, context } = canvasOf(width, Math.max(1, Math.min(height, 8192, Math.floor(strip / width))));
  const fill = (colour) => { context.fillStyle = colour; context.fillRect(0, 0, width, canvas.height); };
  fill('rgb(10, 120, 230)');  // some browsers hide what a canvas holds, or give up on a large one without a word
  const probe = context.getImageData(width - 1, canvas.height - 1, 1, 1).data;
  if ([10, 120, 230].some((v, i) => Math.abs(v - probe[i]) > 2)) throw new ImageError(width > 16_384 ? `it is ${width} pixels wide, and this browser does not draw as many in a row` : 'this browser does not let the page see its pixels; a setting against tracking may forbid it');
  const rows = (y, n) => {
    fill('white');
    context.drawImage(bitmap, 0, y, width, n, 0, 0, width, n);
    return context.getImageData(0, 0, width, n).data;
  };
  return { width, height, most: canvas.height, rows };
}

// ---------------------------------------------------------------- smaller by whole numbers

function reductions({ width, height }, kind, least) {  // what Pillow's `draft` does for JPEGs, then its `reduce`
  const side = Math.min(width, height), draft = kind.name === 'jpeg' && !kind.several ? [8, 4, 2].find((k) => side >= k * least) ?? 1 : 1;
  return [[draft, true], [Math.floor(Math.ceil(side / draft) / least), false]].filter(([by]) => by > 1);
}

function reduced(image, by, draft) {  // means of squares: rounded as Pillow does, or halves to even, since a decoder of JPEGs does not round before its mean
  const width = Math.ceil(image.width / by), height = Math.ceil(image.height / by), data = new Uint8ClampedArray(4 * width * height);
  const sums = new Uint32Array(3 * width), whole = Math.max(1, Math.floor(image.most / by));
  for (let top = 0; top < height; top += whole) {
    const count = Math.min(whole * by, image.height - top * by), rows = image.rows(top * by, count);
    for (let y = 0; y * by < count; y++) {
      sums.fill(0);
      const high = Math.min(by, count - y * by);
      for (let k = 0; k < high; k++) {
        let at = 4 * image.width * (y * by + k);
        for (let x = 0, o = 0; x < width; x++, o += 3) {
          let r = 0, g = 0, b = 0;
          for (const end = at + 4 * Math.min(by, image.width - x * by); at < end; at += 4) { r += rows[at]; g += rows[at + 1]; b += rows[at + 2]; }
          sums[o] += r; sums[o + 1] += g; sums[o + 2] += b;
        }
      }
      for (let x = 0, o = 0, out = 4 * width * (top + y); x < width; x++, o += 3, out += 4) {
        const n = high * Math.min(by, image.width - x * by), factor = Math.floor(Math.fround((1 << 24) / n));
        for (let c = 0; c < 3; c++) data[out + c] = draft ? sums[o + c] / n : Math.floor((sums[o + c] + (n >> 1)) * factor / (1 << 24));
      }
    }
  }
  return held(data, width, height);
}

function held(data, width, height) { return { width, height, most: height, rows: (y, n) => data.subarray(4 * width * y, 4 * width * (y + n)) }; }

// ---------------------------------------------------------------- the model's shape

export function prepare(image, { width, height, method, pad_mode }) {
  const all = (n) => line(n, 0, n, 0);
  if (method === 'squish') return resize(image, all(image.width), all(image.height), width, height);
  if (method === 'random_crop') {
    const extra = 8 * Math.ceil(Math.max(width, height) * 0.14 / 8), larger = resize(image, all(image.width), all(image.height), width + extra, height + extra);
    const out = new Uint8Array(3 * width * height), from = 3 * (extra >> 1);
    for (let y = 0; y < height; y++) {
      const at = from + 3 * (y + (extra >> 1)) * (width + extra);
      out.set(larger.subarray(at, at + 3 * width), 3 * width * y);
    }
    return out;
  }
  const factor = Math[method === 'crop' ? 'min' : 'max'](image.width / width, image.height / height);
  const [w, h] = [width, height].map((n) => Math.max(1, Math.trunc(factor * n)));
  if (w * h > limit) throw new ImageError('it is too long and thin');
  return resize(image, cut(image.width, w, pad_mode), cut(image.height, h, pad_mode), width, height);
}

function cut(size, wanted, mode) {  // the middle of a side, or the side with something beside it
  const start = Math.trunc((size - wanted) / 2), first = Math.max(start, 0);
  return line(wanted, first, Math.min(start + wanted, size) - first, Math.max(-start, 0), mode);
}

function line(n, first, count, before, mode) {  // for each place the pixel that stands there, -1 for black
  const period = Math.max(1, 2 * (count - 1));
  return Int32Array.from({ length: n }, (_, i) => {
    const j = i - before, turn = (j % period + period) % period;
    if (j >= 0 && j < count) return first + j;
    return mode === 'border' ? first + (j < 0 ? 0 : count - 1) : mode === 'reflection' ? first + Math.min(turn, period - turn) : -1;
  });
}

// Pillow's bilinear filter: triangles as wide as the step, whole numbers of 22 bits, first along rows, then along columns
const bits = 22, half = 1 << bits - 1;

function triangles(size, n) {  // for each of `n` places where its pixels begin, and their weights
  const scale = size / n, reach = Math.max(scale, 1);
  return Array.from({ length: n }, (none, i) => {
    const centre = (i + 0.5) * scale, first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(size, Math.trunc(centre + reach + 0.5));
    const weights = Float64Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / reach)));
    const total = weights.reduce((sum, v) => sum + v, 0);
    return { first, weights: Int32Array.from(weights, (v) => Math.trunc(0.5 + v / total * (1 << bits))) };
  });
}

function resize(image, columns, rows, width, height) {
  const shown = rows.filter((y) => y >= 0), low = shown.reduce((a, b) => Math.min(a, b)), high = shown.reduce((a, b) => Math.max(a, b)) + 1;
  const across = triangles(columns.length, width), along = triangles(rows.length, height), narrow = new Uint8Array(3 * width * (high - low));
  const plain = columns.every((x, i) => x === columns[0] + i && x >= 0), wide = plain ? null : new Uint8ClampedArray(4 * columns.length);
  for (let top = low, out = 0; top < high; top += image.most) {
    const n = Math.min(image.most, high - top), data = image.rows(top, n);
    for (let y = 0; y < n; y++) {
      const row = 4 * image.width * y;
      if (!plain) columns.forEach((x, i) => { for (let c = 0; c < 3; c++) wide[4 * i + c] = x < 0 ? 0 : data[row + 4 * x + c]; });
      const from = plain ? data : wide, start = plain ? row + 4 * columns[0] : 0;
      for (const { first, weights } of across) {
        let r = half, g = half, b = half;
        for (let k = 0, at = start + 4 * first; k < weights.length; k++, at += 4) { const v = weights[k]; r += from[at] * v; g += from[at + 1] * v; b += from[at + 2] * v; }
        narrow[out++] = r >> bits; narrow[out++] = g >> bits; narrow[out++] = b >> bits;
      }
    }
  }
  const result = new Uint8Array(3 * width * height), sums = new Int32Array(3 * width);
  along.forEach(({ first, weights }, y) => {
    sums.fill(half);
    weights.forEach((v, k) => {
      if (rows[first + k] < 0) return;
      for (let x = 0, at = 3 * width * (rows[first + k] - low); x < sums.length; x++, at++) sums[x] += narrow[at] * v;
    });
    for (let x = 0; x < sums.length; x++) result[3 * width * y + x] = sums[x] >> bits;
  });
  return result;
}
